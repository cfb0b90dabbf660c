"""What live traffic is compared with: inputs with those of training, answers with answers about rows not learned.

A model is surer of rows that it has learned than of any that callers send, a forest much surer. So what it says is
compared with what it says of its holdout, which it neither learned nor was chosen by.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from deployments.errors import ContenderError
from deployments.measures import TaskKind
from deployments.spec import FEATURES, ModelSpec
from platforms.platform import Platform
from platforms.snapshot import Snapshot
from tasks.champion import ChampionRef, load_version, reference_snapshots
from tasks.drift import Unlearned
from tasks.frame import model_inputs
from tasks.metrics import Outputs, outputs_of
from tasks.outcome import TrainOutcome
from tasks.sampling import sample
from tasks.threads import limited_threads, openmp_threads
from tasks.tracking import Tracking

__all__ = ["Reference", "known_categories", "said_column", "training_reference", "training_tables"]

_MOST_CATEGORIES = 10_000


@dataclass(frozen=True)
class Reference:
    """Inputs of training rows, drawn from `rows` of them, and what the version says of rows that it did not learn.

    `unlearned` is None where no such rows are here: a version from another environment left its holdout there.
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
    outcome = _trained_here(platform, ref)
    if outcome is not None:
        development = outcome.parts.development
        return (development.train.snapshot, development.validation.snapshot)
    snapshot = reference_snapshots(platform, ref).get(FEATURES)
    if snapshot is None or not snapshot.columns:
        raise ContenderError(
            f"{ref.name} version {ref.version}: the data it was trained on is not here to compare anything with"
        )
    return (snapshot,)


def _trained_here(platform: Platform, ref: ChampionRef) -> TrainOutcome | None:
    """What the version's training came to; None where it came from another environment, or that was not recorded."""
    outcome = Tracking(platform).document(ref.run_id, "outcome", TrainOutcome)
    return outcome if outcome is not None and outcome.run_id == ref.run_id else None


def training_reference(
    platform: Platform, ref: ChampionRef, spec: ModelSpec, *, rows: int, seed: int
) -> Reference:
    """At most `rows` training rows, and what the version says of at most as many of its holdout; drawn by a seed.

    Raises:
        ContenderError: the rows, or the model, are not to be had.
    """
    tables = training_tables(platform, ref)
    _expect_columns(tables, spec, ref)
    drawn = sample(_batches(platform, tables, spec.features.columns), rows, seed)
    outcome = _trained_here(platform, ref)
    unlearned = None
    if outcome is not None:
        holdout = outcome.parts.holdout.snapshot
        held = sample(_batches(platform, (holdout,), spec.features.columns), rows, seed)
        with limited_threads(openmp_threads(held.num_rows, workers=1)):
            said = outputs_of(load_version(platform, ref), model_inputs(held, spec), spec.target)
        unlearned = Unlearned(pd.Series(said_column(said, spec)), holdout.rows)
    return Reference(model_inputs(drawn, spec), sum(table.rows for table in tables), unlearned)


def said_column(said: Outputs, spec: ModelSpec) -> np.ndarray:
    """What is compared of predictions: the probability of the positive class, the class as text, or the number."""
    if spec.target.kind is TaskKind.MULTICLASS:
        return np.asarray([str(one) for one in said.predictions.tolist()], dtype=object)
    return said.score


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
