"""Split: the gold table in three tables of its own. Only evaluation is ever handed the holdout's snapshot."""

import hashlib
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from deployments.declared import Declared
from deployments.errors import BadInputError
from deployments.measures import TaskKind
from deployments.spec import LoadedSpec
from deployments.training import GroupSplit, RandomSplit, TimeSplit
from platforms.platform import Platform
from platforms.snapshot import Snapshot

ROW_ID = "row_id"
"""A 64-bit hash of the row's key: how a later run tells that a model was trained on a row."""


class Part(Declared):
    """One part of the split: where it is, and its target's balance (class shares, or mean and deviation)."""

    snapshot: Snapshot
    balance: dict[str, float]


class Development(Declared):
    """What training may see."""

    train: Part
    validation: Part


class Parts(Declared):
    """All three parts; the flow hands `development` to training and `holdout` to evaluation."""

    development: Development
    holdout: Part


def split_table(loaded: LoadedSpec, platform: Platform, gold: Snapshot) -> Parts:
    """Divide the gold table by the spec's split, and write each part as a table.

    Raises:
        BadInputError: a part would have fewer rows than the spec asks for, or a class would be missing from one.
    """
    rows = platform.tables.read(gold)
    spec = loaded.spec
    ids = row_ids(rows, spec.row_key)
    rows = rows.append_column(ROW_ID, pa.array(ids, pa.int64()))
    parts = assign(rows, spec.split, spec.target.column, spec.target.kind)
    written = {}
    for index, name in enumerate(("train", "validation", "holdout")):
        part = rows.filter(pa.array(parts == index))
        if part.num_rows < spec.split.min_rows:
            raise BadInputError(
                f"{loaded.path}: split: {name} would have {part.num_rows:,} of {rows.num_rows:,} rows; "
                f"at least {spec.split.min_rows:,} are asked for (split.min_rows)"
            )
        balance = _balance(part.column(spec.target.column), spec.target.kind)
        if spec.target.kind is not TaskKind.REGRESSION and len(balance) < 2:
            raise BadInputError(
                f"{loaded.path}: split: {name} would have only one class: {next(iter(balance))!r}"
            )
        snapshot = platform.tables.write(platform.table("gold", loaded.name, name), part.to_reader())
        written[name] = Part(snapshot=snapshot, balance=balance)
    return Parts(
        development=Development(train=written["train"], validation=written["validation"]),
        holdout=written["holdout"],
    )


def row_ids(rows: pa.Table, key: Sequence[str]) -> np.ndarray:
    """A 64-bit hash of each row's key, the same in every run and on every machine; shape (rows,)."""
    return _hashes(rows, key, salt="row").view(np.int64)  # Delta has no unsigned integers


def assign(
    rows: pa.Table, split: RandomSplit | GroupSplit | TimeSplit, target: str, kind: TaskKind
) -> np.ndarray:
    """The part of each row: 0 train, 1 validation, 2 holdout; shape (rows,)."""
    if isinstance(split, TimeSplit):
        return _by_time(rows.column(split.column), split)
    if isinstance(split, GroupSplit):
        return _by_share(_hashes(rows, [split.column], f"split{split.seed}") / 2.0**64, split)
    hashes = rows.column(ROW_ID).to_numpy().view(np.uint64) ^ np.uint64(split.seed)
    mixed = (hashes * np.uint64(0x9E3779B97F4A7C15)) ^ (hashes >> np.uint64(31))
    if kind is TaskKind.REGRESSION:
        return _by_share(_ranks(mixed), split)
    classes = pc.dictionary_encode(rows.column(target).combine_chunks()).indices.to_numpy()
    parts = np.empty(len(classes), dtype=np.int8)
    for label in np.unique(classes):
        members = classes == label
        parts[members] = _by_share(_ranks(mixed[members]), split)
    return parts


def _hashes(rows: pa.Table, key: Sequence[str], salt: str) -> np.ndarray:
    columns = [rows.column(name).cast(pa.string()).to_pylist() for name in key]
    hashed = (
        hashlib.blake2b("\x1f".join([salt, *map(str, values)]).encode(), digest_size=8).digest()
        for values in zip(*columns, strict=True)
    )
    return np.frombuffer(b"".join(hashed), dtype="<u8")


def _ranks(hashes: np.ndarray) -> np.ndarray:
    """Each hash's place among all of them, from 0 to 1."""
    ranks = np.empty(len(hashes))
    ranks[np.argsort(hashes, kind="stable")] = (np.arange(len(hashes)) + 0.5) / len(hashes)
    return ranks


def _by_share(places: np.ndarray, split: RandomSplit | GroupSplit) -> np.ndarray:
    """Lowest places to the holdout, the next to validation, the rest to train."""
    parts = np.zeros(len(places), dtype=np.int8)
    parts[places < split.holdout + split.validation] = 1
    parts[places < split.holdout] = 2
    return parts


def _by_time(column: pa.ChunkedArray, split: TimeSplit) -> np.ndarray:
    """The latest share of rows is the holdout; a boundary falls between two different times, never inside one."""
    moments = column.cast(pa.timestamp("us", "UTC")).cast(pa.int64()).to_numpy()
    times, counts = np.unique(moments, return_counts=True)
    after = counts[::-1].cumsum()[::-1] / len(moments)
    holdout_from = _first_at_most(times, after, split.holdout)
    validation_from = _first_at_most(times, after, split.holdout + split.validation)
    if validation_from >= holdout_from:
        earlier = times[times < holdout_from]
        validation_from = earlier[-1] if len(earlier) else holdout_from
    return np.select([moments >= holdout_from, moments >= validation_from], [2, 1], 0).astype(np.int8)


def _first_at_most(times: np.ndarray, after: np.ndarray, share: float) -> int:
    """The boundary whose later rows are closest to `share` of all, leaving at least one earlier time."""
    return int(times[1:][np.argmin(np.abs(after[1:] - share))]) if len(times) > 1 else int(times[0])


def _balance(target: pa.ChunkedArray, kind: TaskKind) -> dict[str, float]:
    if kind is TaskKind.REGRESSION:
        return {"mean": float(pc.mean(target).as_py()), "deviation": float(pc.stddev(target).as_py())}
    counted = sorted((str(pair["values"]), pair["counts"]) for pair in pc.value_counts(target).to_pylist())
    return {name: count / len(target) for name, count in counted}
