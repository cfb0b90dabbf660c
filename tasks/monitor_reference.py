"""What live traffic is compared with: inputs with those of training, answers with answers about rows not learned.

The answers are those that evaluation kept (see `tasks.unlearned`).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from deployments.errors import ContenderError
from deployments.spec import FEATURES, ModelSpec
from platforms.platform import Platform
from platforms.snapshot import Snapshot
from tasks.champion import ChampionRef, reference_snapshots
from tasks.frame import model_inputs
from tasks.outcome import TrainOutcome
from tasks.sampling import sample
from tasks.tracking import Tracking
from tasks.unlearned import Unlearned, kept_answers

__all__ = ["Reference", "known_categories", "training_reference", "training_tables"]

_MOST_CATEGORIES = 10_000


@dataclass(frozen=True)
class Reference:
    """Inputs of training rows, drawn from `rows` of them, and what the version says of rows that it did not learn.

    `unlearned` is None where that was not kept, as of versions that were evaluated before it was.
    """

    frame: pd.DataFrame
    rows: int
    unlearned: Unlearned | None


def training_tables(platform: Platform, ref: ChampionRef) -> tuple[Snapshot, ...]:
    """The tables with the rows that a version was trained on or chosen by.

    Where training did not record them, or where a version came from another environment, it is what checks of new
    data compare with: all rows, or a sample of them.

    Raises:
        ContenderError: nothing of them was recorded, or they did not come along.
    """
    outcome = Tracking(platform).document(ref.run_id, "outcome", TrainOutcome)
    if outcome is not None and outcome.run_id == ref.run_id:
        development = outcome.parts.development
        return (development.train.snapshot, development.validation.snapshot)
    snapshot = reference_snapshots(platform, ref).get(FEATURES)
    if snapshot is None or not snapshot.columns:
        raise ContenderError(
            f"{ref.name} version {ref.version}: the data it was trained on is not here to compare anything with"
        )
    return (snapshot,)


def training_reference(
    platform: Platform, ref: ChampionRef, spec: ModelSpec, *, rows: int, seed: int
) -> Reference:
    """At most `rows` training rows, drawn by a seed, and what the version said of rows that it did not learn.

    Raises:
        ContenderError: the rows are not to be had.
    """
    tables = training_tables(platform, ref)
    _expect_columns(tables, spec, ref)
    drawn = sample(_batches(platform, tables, spec.features.columns), rows, seed)
    return Reference(
        model_inputs(drawn, spec), sum(table.rows for table in tables), kept_answers(platform, ref)
    )


def known_categories(platform: Platform, ref: ChampionRef, spec: ModelSpec) -> dict[str, frozenset[str]]:
    """The categories that training rows had, by column; columns with personal data, or very many, are left out.

    Raises:
        ContenderError: the rows are not to be had.
    """
    tables = training_tables(platform, ref)
    _expect_columns(tables, spec, ref)
    declared = spec.feature_contract.columns
    columns = [name for name in spec.features.categorical.columns if declared[name].pii is None]
    found: dict[str, set[str]] = {name: set() for name in columns}
    for batch in _batches(platform, tables, columns) if columns else ():
        for name in list(found):
            found[name] |= set(pc.unique(batch.column(name).cast(pa.string())).drop_null().to_pylist())
            if len(found[name]) > _MOST_CATEGORIES:
                del found[name]
    return {name: frozenset(values) for name, values in found.items()}


def _batches(
    platform: Platform, tables: Sequence[Snapshot], columns: Sequence[str]
) -> Iterator[pa.RecordBatch]:
    for table in tables:
        yield from platform.tables.batches(table, columns)


def _expect_columns(tables: Sequence[Snapshot], spec: ModelSpec, ref: ChampionRef) -> None:
    missing = sorted(
        {name for table in tables for name in spec.features.columns if name not in table.columns}
    )
    if missing:
        raise ContenderError(
            f"{ref.name} version {ref.version}: of the data it was trained on, {', '.join(missing)} did not come along"
        )
