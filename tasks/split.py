"""Split: the gold table in three tables of its own. Only evaluation is ever handed the holdout's snapshot."""

import hashlib
from collections.abc import Mapping, Sequence

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

_PARTS = ("train", "validation", "holdout")


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
        BadInputError: a part would have fewer rows than the spec asks for, or lack a class.
    """
    spec = loaded.spec
    rows = platform.tables.read(gold)
    parts = assign(rows, spec.split, spec.features.entity)
    rows = rows.append_column(ROW_ID, pa.array(row_ids(rows, spec.row_key), pa.int64()))
    divided = {name: rows.filter(pa.array(parts == index)) for index, name in enumerate(_PARTS)}
    balances = _checked(loaded, divided, rows)
    written = {
        name: Part(
            snapshot=platform.tables.write(platform.table("gold", loaded.name, name), part.to_reader()),
            balance=balances[name],
        )
        for name, part in divided.items()
    }
    return Parts(
        development=Development(train=written["train"], validation=written["validation"]),
        holdout=written["holdout"],
    )


def _checked(
    loaded: LoadedSpec, divided: Mapping[str, pa.Table], rows: pa.Table
) -> dict[str, dict[str, float]]:
    """The balance of each part, all of them fit to be used."""
    spec = loaded.spec
    target, kind = spec.target.column, spec.target.kind
    classes = set(_balance(rows.column(target), kind))
    balances = {}
    for name, part in divided.items():
        if part.num_rows < spec.split.min_rows:
            raise BadInputError(
                f"{loaded.path}: split: {name} would have {part.num_rows:,} of {rows.num_rows:,} rows; "
                f"at least {spec.split.min_rows:,} are asked for (split.min_rows)"
            )
        balances[name] = _balance(part.column(target), kind)
        lacking = sorted(classes - set(balances[name]))
        if kind is not TaskKind.REGRESSION and (lacking or len(classes) < 2):
            what = f"no row of class {', '.join(map(repr, lacking))}" if lacking else "only one class"
            raise BadInputError(
                f"{loaded.path}: split: {name} would have {what} among {part.num_rows:,} rows of {target!r}"
            )
    return balances


def row_ids(rows: pa.Table, key: Sequence[str]) -> np.ndarray:
    """A hash of each row's key as a signed 64-bit number, the same in every run and everywhere; (rows,)."""
    return _hashes(rows, key, salt="row").view("<i8")


def assign(rows: pa.Table, split: RandomSplit | GroupSplit | TimeSplit, entity: Sequence[str]) -> np.ndarray:
    """The part of each row: 0 train, 1 validation, 2 holdout; shape (rows,).

    A random or group split looks at the row's own entity or group alone. So its part stays what it was when the
    data grows, all rows of an entity or group are in one part, and each class is divided in the same shares, up
    to the chance of the draw.

    Raises:
        BadInputError: rows without a time or group, or a time column that is none.
    """
    if isinstance(split, RandomSplit):
        return _by_share(rows, entity, split)
    if rows.column(split.column).null_count:
        missing = rows.column(split.column).null_count
        raise BadInputError(f"split: {missing:,} rows have no {split.column!r} to split by")
    if isinstance(split, GroupSplit):
        return _by_share(rows, [split.column], split)
    return _by_time(rows.column(split.column), split)


def _hashes(rows: pa.Table, key: Sequence[str], salt: str) -> np.ndarray:
    columns = [rows.column(name).cast(pa.string()).to_pylist() for name in key]
    hashed = (
        hashlib.blake2b(repr((salt, *values)).encode(), digest_size=8).digest()
        for values in zip(*columns, strict=True)
    )
    return np.frombuffer(b"".join(hashed), dtype="<u8")


def _by_share(rows: pa.Table, key: Sequence[str], split: RandomSplit | GroupSplit) -> np.ndarray:
    """Lowest hashes to the holdout, the next to validation, the rest to train."""
    places = _hashes(rows, key, f"split {split.seed}") / 2.0**64
    parts = np.zeros(len(places), dtype=np.int8)
    parts[places < split.holdout + split.validation] = 1
    parts[places < split.holdout] = 2
    return parts


def _by_time(column: pa.ChunkedArray, split: TimeSplit) -> np.ndarray:
    """The latest share of rows is the holdout; a boundary lies between two different times, never inside one.

    Boundaries are where the shares come closest to those asked for, with at least one time in each part.
    """
    if not (pa.types.is_timestamp(column.type) or pa.types.is_date(column.type)):
        raise BadInputError(f"split: {split.column!r} is of type {column.type} and tells no time")
    moments = column.cast(pa.timestamp("us", getattr(column.type, "tz", None))).cast(pa.int64()).to_numpy()
    times, counts = np.unique(moments, return_counts=True)
    if len(times) < len(_PARTS):
        raise BadInputError(
            f"split: {split.column!r} has only {len(times)} different times; three are needed"
        )
    after = counts[::-1].cumsum()[::-1] / len(moments)
    holdout = 2 + int(np.argmin(np.abs(after[2:] - split.holdout)))
    validation = 1 + int(np.argmin(np.abs(after[1:holdout] - (split.holdout + split.validation))))
    return np.select([moments >= times[holdout], moments >= times[validation]], [2, 1], 0).astype(np.int8)


def _balance(target: pa.ChunkedArray, kind: TaskKind) -> dict[str, float]:
    if kind is TaskKind.REGRESSION:
        return {"mean": float(pc.mean(target).as_py()), "deviation": float(pc.stddev(target).as_py())}
    counted = sorted((str(pair["values"]), pair["counts"]) for pair in pc.value_counts(target).to_pylist())
    return {name: count / len(target) for name, count in counted}
