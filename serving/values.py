"""From the values of a column, as JSON, CSV or a store gave them, to an array; or to what is wrong, and where.

Arrays are bool, int64, float64 (NaN for missing), object (text, None for missing) or datetime64[us] (UTC, NaT for
missing). An integer or boolean column with a missing value is float64, with NaN.
"""

import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import numpy as np

from serving.served_model import ServedColumn

Values = Sequence[Any]
Build = Callable[[Values], np.ndarray | None]

SHOWN_PROBLEMS = 5
"""Values that do not fit, of which a caller is told."""

_EXACT_IN_A_DOUBLE = 2**53
_BITS = {"integer": 32, "long": 64}
_WANTED = {
    "boolean": "true or false",
    "integer": "a whole number",
    "long": "a whole number",
    "float": "a number",
    "double": "a number",
    "string": "text",
    "datetime": "an ISO 8601 date and time in quotes",
}
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_WHOLE = re.compile(r"[+-]?\d{1,30}", re.ASCII)
_NOT_A_NUMBER = frozenset({"nan", "NaN", "NAN"})
_EPOCH = datetime(1970, 1, 1)  # noqa: DTZ001 - naive UTC, as moments are here
_BOOLEAN, _LONG, _DOUBLE, _OBJECT = map(np.dtype, (np.bool_, np.int64, np.float64, np.object_))
_MOMENT = np.dtype("datetime64[us]")
_BOOLEANS = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}


@dataclass(slots=True)
class Problems:
    """The first few values that do not fit."""

    found: list[str] = field(default_factory=list)

    @property
    def enough(self) -> bool:
        """Whether no more need be looked for."""
        return len(self.found) >= SHOWN_PROBLEMS

    def add(self, column: str, row: int, what: str) -> None:
        """Note a value; rows count from 0."""
        self.found.append(f"column {column!r}, row {row}: {what}")

    def __str__(self) -> str:
        return "; ".join(self.found) + " (the first row is row 0)"


def plain(kind: str) -> tuple[frozenset[type], Build]:
    """The types of values that need no closer look, and how to make an array of them in one go.

    What makes it returns an array of shape (values,), or None where a value is out of range.
    """
    return _PLAIN[kind]


def convert(column: ServedColumn, values: Values, problems: Problems, *, show: bool) -> np.ndarray:
    """One column, value by value: what does not fit is added to `problems`, itself only if it may be shown."""
    read = _READERS[column.kind]
    made: list[Any] = []
    for row, value in enumerate(values):
        if value is None or (value != value and type(value) is float):  # noqa: PLR0124 - NaN
            if column.required and not problems.enough:
                problems.add(column.name, row, f"it is {'null' if value is None else 'NaN'}, and required")
            made.append(None)
            continue
        found, wrong = read(column, value)
        if wrong and not problems.enough:
            problems.add(column.name, row, f"{quoted(value) if show else 'the value'} {wrong}")
        made.append(found)
    return _array(column, made, complete=None not in made)


def _doubles(given: Values) -> np.ndarray:
    return np.array(given, _DOUBLE)


def _texts(given: Values) -> np.ndarray:
    return np.array(given, _OBJECT)


def _booleans(given: Values) -> np.ndarray:
    return np.array(given, _BOOLEAN)


def _longs(given: Values) -> np.ndarray | None:
    try:
        return np.array(given, _LONG)
    except OverflowError:
        return None


def _integers(given: Values) -> np.ndarray | None:
    return _longs(given) if min(given) >= -(2**31) and max(given) < 2**31 else None


def _moments(given: Values) -> np.ndarray | None:
    try:
        passed = [_as_utc(datetime.fromisoformat(text)) - _EPOCH for text in given]
    except (ValueError, OverflowError):
        return None
    counted = [(one.days * 86_400 + one.seconds) * 1_000_000 + one.microseconds for one in passed]
    return np.array(counted, _LONG).view(_MOMENT)


_PLAIN: dict[str, tuple[frozenset[type], Build]] = {
    "boolean": (frozenset({bool}), _booleans),
    "integer": (frozenset({int}), _integers),
    "long": (frozenset({int}), _longs),
    "float": (frozenset({float, int, type(None)}), _doubles),
    "double": (frozenset({float, int, type(None)}), _doubles),
    "string": (frozenset({str, type(None)}), _texts),
    "datetime": (frozenset({str}), _moments),
}


def _array(column: ServedColumn, values: list[Any], *, complete: bool) -> np.ndarray:
    if column.kind == "string":
        return np.array(values, _OBJECT)
    if column.kind == "datetime":
        return np.array(values, _MOMENT)
    if complete and column.kind in _BITS:
        return np.array(values, _LONG)
    if complete and column.kind == "boolean":
        return np.array(values, _BOOLEAN)
    return np.array(values, _DOUBLE)


Read = tuple[Any, str]
"""A value and "", or None and what is wrong with it, in words that follow the value."""


def _read_double(_column: ServedColumn, value: Any) -> Read:
    if type(value) not in {int, float}:
        return None, _not_wanted(value, "double")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    return (number, "") if math.isfinite(number) else (None, "is not a finite number")


def _read_whole(column: ServedColumn, value: Any) -> Read:
    if type(value) not in {int, float}:
        return None, _not_wanted(value, column.kind)
    if type(value) is float:
        if not math.isfinite(value):
            return None, "is not a finite number"
        if not value.is_integer():
            return None, "is a fraction, and a whole number is wanted"
        if abs(value) > _EXACT_IN_A_DOUBLE and abs(value) < 2.0**63:
            return None, "is too large to be exact as it was written; write it without a point or an exponent"
        value = int(value)
    bits = _BITS[column.kind]
    if not -(2 ** (bits - 1)) <= value < 2 ** (bits - 1):
        return None, f"does not fit into {bits} bits"
    return value, ""


def _read_boolean(_column: ServedColumn, value: Any) -> Read:
    return (value, "") if type(value) is bool else (None, _not_wanted(value, "boolean"))


def _read_text(_column: ServedColumn, value: Any) -> Read:
    return (value, "") if type(value) is str else (None, _not_wanted(value, "string"))


def _read_moment(_column: ServedColumn, value: Any) -> Read:
    if isinstance(value, datetime):
        return _as_utc(value), ""
    if type(value) is not str:
        return None, _not_wanted(value, "datetime")
    moment = _moment(value)
    return (None, "is not an ISO 8601 date and time") if moment is None else (moment, "")


_READERS: dict[str, Callable[[ServedColumn, Any], Read]] = {
    "boolean": _read_boolean,
    "integer": _read_whole,
    "long": _read_whole,
    "float": _read_double,
    "double": _read_double,
    "string": _read_text,
    "datetime": _read_moment,
}


def _moment(text: str) -> datetime | None:
    """A date and time in UTC without a time zone; None where the text is none, or leaves the years 1 to 9999."""
    try:
        return _as_utc(datetime.fromisoformat(text))
    except (ValueError, OverflowError):
        return None


def _as_utc(moment: datetime) -> datetime:
    return moment if moment.tzinfo is None else moment.astimezone(UTC).replace(tzinfo=None)


def stored(value: Any, kind: str) -> Any:
    """A stored feature in the type that the model was trained with: categories are text, some booleans numbers."""
    if kind == "string" and type(value) in {int, bool}:
        return str(value).lower()
    if kind in {"float", "double"} and type(value) is bool:
        return float(value)
    return value


def from_text(text: str, kind: str) -> Any:
    """A CSV field as the value it writes, or the text itself where it writes none; an empty one is missing."""
    if text == "":
        return None
    if kind in {"float", "double"}:
        if text in _NOT_A_NUMBER:
            return None
        return float(text) if _NUMBER.fullmatch(text) else text
    if kind in _BITS:
        if _WHOLE.fullmatch(text):
            return int(text)
        return float(text) if _NUMBER.fullmatch(text) else text
    if kind == "boolean":
        return _BOOLEANS.get(text, text)
    return text


def _not_wanted(value: Any, kind: str) -> str:
    hint = "; put it in quotes" if kind == "string" and type(value) in {int, float} else ""
    return f"is {kind_of(value)}, and {_WANTED[kind]} is wanted{hint}"


def kind_of(value: Any) -> str:
    """What a JSON value is called, with its article."""
    if value is None:
        return "null"
    kinds = {
        bool: "a boolean",
        int: "a number",
        float: "a number",
        str: "text",
        list: "a list",
        dict: "an object",
    }
    return kinds.get(type(value), "no JSON value")


def quoted(value: Any) -> str:
    """A value as it was written, cut short; lists and objects only by what they are."""
    if isinstance(value, list | dict):
        return "it"
    shown = str(value) if isinstance(value, float) else json.dumps(value, ensure_ascii=False)
    return shown if len(shown) <= 60 else shown[:57] + "…"
