"""Reference: what a transferred version's data is compared with where it arrives, as tables of that environment.

Training data stays where it is. What is carried is a sample of the columns that a distribution check names and of
the model's own inputs, without keys, target or personal data: enough for every check that the source could make.
"""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pyarrow as pa

from deployments.spec import FEATURES, ModelSpec
from platforms.platform import Platform
from platforms.snapshot import Snapshot
from tasks.champion import TrainingSnapshots

SAMPLE_ROWS = 100_000
"""As many as a distribution check looks at, drawn in the same way: it finds the same distance as in the source."""


def carry_references(
    spec: ModelSpec, source: Platform, target: Platform, tables: Mapping[str, Snapshot]
) -> TrainingSnapshots:
    """The training snapshots of a version, by table, as samples that the target keeps.

    A table of which nothing may be compared is named without columns, so that a check that is declared later is
    inconclusive and not skipped. Run again, it finds what stands.

    Raises:
        ContenderError: a snapshot is no longer in the source.
    """
    carried = {}
    for name, snapshot in tables.items():
        columns = compared_columns(spec, name, snapshot)
        if not columns:
            carried[name] = snapshot.model_copy(update={"columns": ()})
            continue
        schema = source.tables.open(snapshot).schema
        rows = pa.RecordBatchReader.from_batches(
            pa.schema([schema.field(column) for column in columns]), _sample(source, snapshot, columns)
        )
        carried[name] = target.tables.write(target.table("gold", spec.name, f"reference_{name}"), rows)
    return TrainingSnapshots(tables=carried)


def compared_columns(spec: ModelSpec, table: str, snapshot: Snapshot) -> tuple[str, ...]:
    """The columns of a table that checks name, or that the model takes; none that holds personal data."""
    built = table == FEATURES
    contract = spec.training_contract if built else spec.contract[table]
    inputs = (
        spec.features.columns if contract.columns.items() >= spec.feature_contract.columns.items() else ()
    )
    named = dict.fromkeys((*(check.column for check in contract.distribution), *inputs))
    return tuple(
        column
        for column in named
        if column in snapshot.columns and column in contract.columns and contract.columns[column].pii is None
    )


def _sample(platform: Platform, snapshot: Snapshot, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    chosen = np.arange(snapshot.rows)
    if snapshot.rows > SAMPLE_ROWS:
        random = np.random.default_rng(0)
        chosen = np.sort(random.choice(snapshot.rows, SAMPLE_ROWS, replace=False, shuffle=False))
    before = 0
    for batch in platform.tables.batches(snapshot, columns):
        after = before + batch.num_rows
        here = chosen[np.searchsorted(chosen, before) : np.searchsorted(chosen, after)] - before
        yield batch.take(pa.array(here))
        before = after
