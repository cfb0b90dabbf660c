"""Coercion: a frame as it was received, in its contract's types; values that do not fit are found."""

from collections.abc import Mapping
from typing import Any

import polars as pl

from deployments.contract import ColumnType, TableContract

POLARS: Mapping[ColumnType, Any] = {
    ColumnType.STRING: pl.String,
    ColumnType.INTEGER: pl.Int64,
    ColumnType.NUMBER: pl.Float64,
    ColumnType.BOOLEAN: pl.Boolean,
    ColumnType.TIMESTAMP: pl.Datetime("us", "UTC"),
    ColumnType.DATE: pl.Date,
}
"""How polars holds a contract's types."""

_TRUE = ("true", "t", "yes", "y", "1")
_FALSE = ("false", "f", "no", "n", "0")
_MOMENTS = (
    *(
        f"%Y-%m-%d{between}%H:%M{seconds}{zone}"
        for between in "T "
        for seconds in (":%S%.f", "")
        for zone in ("%#z", "")
    ),
    "%Y-%m-%d",
)
"""ISO 8601; what has no zone is in UTC. Nothing is guessed: 01/02/2024 means two different days."""
_EXACT = 2.0**53
"""Up to here a float tells one whole number from the next."""


def coerce(frame: pl.DataFrame, contract: TableContract) -> tuple[pl.DataFrame, dict[str, pl.Series]]:
    """The frame in the contract's types, and for each column a mask of the values that would not go in.

    NaN becomes null; a value that does not fit its type without loss becomes null and is reported.
    """
    columns, misfits = [], {}
    for given in frame:
        present, taken = _fitted(given, contract.columns[given.name].type)
        columns.append(taken.alias(given.name))
        if taken.null_count() > present.null_count():
            misfits[given.name] = present.is_not_null() & taken.is_null()
    return pl.DataFrame(columns), misfits


def _fitted(given: pl.Series, wanted: ColumnType) -> tuple[pl.Series, pl.Series]:
    """A column without NaN, and the same in the wanted type, null where a value does not fit."""
    if given.dtype.is_float() and given.is_nan().any():
        given = given.fill_nan(None)
    if given.dtype == POLARS[wanted]:
        return given, given
    if given.dtype == pl.String:
        return _parsed(given, wanted)
    return given, _converted(given, wanted)


def _parsed(given: pl.Series, wanted: ColumnType) -> tuple[pl.Series, pl.Series]:
    text = given.str.strip_chars()
    if wanted is ColumnType.BOOLEAN:
        return given, text.str.to_lowercase().replace_strict(
            [*_TRUE, *_FALSE],
            [True] * len(_TRUE) + [False] * len(_FALSE),
            default=None,
            return_dtype=pl.Boolean,
        )
    if wanted is ColumnType.TIMESTAMP:
        return given, _moments(text)
    if wanted is ColumnType.DATE:
        days = text.str.to_date("%Y-%m-%d", strict=False)
        if days.null_count() > text.null_count():
            days = days.zip_with(days.is_not_null(), _days(_moments(text)))
        return given, days
    if wanted is ColumnType.INTEGER:
        whole = text.cast(pl.Int64, strict=False)
        if whole.null_count() == text.null_count():
            return given, whole
        numbers = text.cast(pl.Float64, strict=False)
        given = _without(given, numbers.is_nan())
        small = numbers.fill_nan(None)
        return given, whole.zip_with(whole.is_not_null(), _whole(small.set(small.abs() > _EXACT, None)))
    numbers = text.cast(pl.Float64, strict=False)
    return _without(given, numbers.is_nan()), numbers.fill_nan(None)


def _without(given: pl.Series, mask: pl.Series) -> pl.Series:
    return given.set(mask, None) if mask.any() else given


def _converted(given: pl.Series, wanted: ColumnType) -> pl.Series:
    kind, target = given.dtype, POLARS[wanted]
    nothing = pl.Series(given.name, [None], dtype=target).new_from_index(0, len(given))
    if wanted is ColumnType.STRING:
        return given.cast(target, strict=False)
    if wanted in {ColumnType.TIMESTAMP, ColumnType.DATE}:
        if isinstance(kind, pl.Datetime):
            aware = given if kind.time_zone else given.dt.replace_time_zone("UTC")
            moments = aware.dt.convert_time_zone("UTC").dt.cast_time_unit("us")
            return moments if wanted is ColumnType.TIMESTAMP else _days(moments)
        if kind == pl.Date:
            return given.cast(pl.Datetime("us")).dt.replace_time_zone("UTC")
        return nothing
    if not (kind.is_numeric() or kind == pl.Boolean):
        return nothing
    if wanted is ColumnType.BOOLEAN:
        ones, noughts = given == 1, given == 0
        return ones.set(~(ones | noughts), None)
    if wanted is ColumnType.INTEGER and (kind.is_float() or kind.is_decimal()):
        return _whole(given)
    return given.cast(target, strict=False)


def _whole(numbers: pl.Series) -> pl.Series:
    """Whole numbers as integers; null where there is a fraction, or more than 64 bits hold."""
    whole = numbers.cast(pl.Int64, strict=False)
    back = whole.cast(numbers.dtype, strict=False)
    return whole.set((back != numbers).fill_null(True), None)


def _moments(text: pl.Series) -> pl.Series:
    """ISO 8601 texts as moments; each format is tried on what the ones before it did not fit."""
    found = pl.Series(text.name, [None], dtype=POLARS[ColumnType.TIMESTAMP]).new_from_index(0, len(text))
    for pattern in _MOMENTS:
        left = text.is_not_null() & found.is_null()
        if not left.any():
            break
        aware = pattern.endswith("z")
        parsed = text.set(~left, None).str.to_datetime(
            pattern, time_unit="us", time_zone="UTC" if aware else None, strict=False
        )
        found = found.zip_with(~left, parsed if aware else parsed.dt.replace_time_zone("UTC"))
    return found


def _days(moments: pl.Series) -> pl.Series:
    """Midnights as days; null for any other time of day."""
    days = moments.dt.date()
    midnight = moments == days.cast(pl.Datetime("us")).dt.replace_time_zone("UTC")
    return days.set(~midnight.fill_null(False), None)
