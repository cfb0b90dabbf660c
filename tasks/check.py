"""Check a spec as far as that goes without its data: estimators, contract rules, and the query over empty tables."""

from datetime import UTC, datetime

import pyarrow as pa

from deployments.spec import LoadedSpec
from platforms.platform import Platform
from tasks.features import run_query
from tasks.ingest import arrow_type
from tasks.train import check_candidates
from tasks.validate import compile_schema


def check_spec(loaded: LoadedSpec, platform: Platform) -> list[str]:
    """Everything that can be wrong before there is data; returns what was checked, a line each.

    Raises:
        BadInputError: the first thing that is wrong.
    """
    spec = loaded.spec
    for contract in spec.contract.values():
        compile_schema(contract)
    checked = [
        f"{len(spec.sources)} sources, {len(spec.contract)} contracts, {len(spec.features.columns)} features"
    ]
    check_candidates(loaded, platform)
    checked.append(f"{len(spec.training.candidates)} candidates, {len(spec.gates)} gates")
    if loaded.sql is not None:
        empty = {
            name: pa.schema(
                [
                    pa.field(column, arrow_type(declared.type))
                    for column, declared in table.kept_columns.items()
                ]
            ).empty_table()
            for name, table in spec.contract.items()
            if name in spec.sources and not (spec.labels and name == spec.labels.table)
        }
        built = run_query(loaded, platform, empty, datetime.now(UTC))
        checked.append(f"{spec.features.sql}: gives {len(built.column_names)} columns as the contract asks")
    return checked
