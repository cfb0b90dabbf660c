"""What a request must look like, compiled once a version: from a body to typed columns, or a refusal.

Bodies are MLflow's: a JSON object with one of `dataframe_split`, `dataframe_records`, `inputs` or `instances`, or
CSV with a header. Column arrays are bool, int64, float64 (NaN for missing), object (text, None for missing) or
datetime64[us] (UTC, NaT for missing). An optional integer or boolean that is missing somewhere makes its column
float64, with NaN.
"""

import csv
import io
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import chain
from operator import itemgetter
from typing import Any

import numpy as np
import orjson

from deployments.errors import ContenderError
from serving.served_model import ServedColumn, ServedModel
from serving.values import (
    SHOWN_PROBLEMS,
    Build,
    Problems,
    Values,
    convert,
    from_text,
    kind_of,
    plain,
    quoted,
    stored,
)

PROTOCOLS = ("dataframe_split", "dataframe_records", "inputs", "instances")

_BESIDE = frozenset({"params", "client_request_id"})
_CHARSETS = frozenset({"utf-8", "utf8", "us-ascii", "ascii"})
_PLANS = 64
_ABSENT = object()


class BadRequestError(ContenderError):
    """A request that is not answered, with the HTTP status that says so."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass(slots=True)
class Request:
    """The rows of a request: an array of shape (rows,) for each column of the model, by name.

    `keys` are the entity columns that were given. A request that `needs_lookup` gave nothing else, and has no
    columns yet.
    """

    columns: dict[str, np.ndarray]
    rows: int
    keys: Mapping[str, list[Any]] | None = None
    needs_lookup: bool = False


@dataclass(frozen=True)
class _Group:
    """Columns that are read alike: where all values are of `plain` types, `build` reads them in one go.

    The first `required` columns may not be null; `nullable` says whether null is plain for the others.
    """

    columns: tuple[ServedColumn, ...]
    plain: frozenset[type]
    build: Build
    required: int
    nullable: bool


@dataclass(frozen=True)
class _Plan:
    """How to read rows whose values come in a given order of names.

    Where `padded`, one more value follows each row: the null that optional columns nobody gave are read from.
    """

    width: int
    padded: bool
    groups: tuple[tuple[_Group, Callable[[Values], Values]], ...]
    keys: tuple[tuple[str, int], ...]
    needs_lookup: bool


class Signature:
    """The columns of a served version as a checker of requests."""

    def __init__(self, served: ServedModel, max_rows: int = 100_000) -> None:
        self.names = tuple(column.name for column in served.columns)
        self._served = {column.name: column for column in served.columns}
        self._entity = served.entity
        self._features = frozenset(self.names) - frozenset(served.entity)
        self._personal = frozenset(served.hashed) | frozenset(served.hidden)
        self._max_rows = max_rows
        self._groups = _groups(served.columns)
        self._built = tuple(column.name for group in self._groups for column in group.columns)
        self._plans: dict[tuple[str, ...], _Plan] = {}
        self._content_types: dict[str, str] = {}

    def read(self, body: bytes, content_type: str = "application/json") -> Request:
        """Check a body and make it arrays.

        Raises:
            BadRequestError: 400 says what is wrong and in which column and row; 413 too many rows; 415 neither
                JSON nor CSV, or not UTF-8.
        """
        kind = self._content_types.get(content_type)
        if kind is None:
            kind = _content_kind(content_type)
            if len(self._content_types) < _PLANS:
                self._content_types[content_type] = kind
        if kind == "csv":
            return self._read_csv(body)
        if kind == "form" and not body.lstrip().startswith(b"{"):
            raise BadRequestError(415, _not_supported(content_type))
        return self._read_json(body)

    def complete(self, records: Sequence[Mapping[str, Any]]) -> dict[str, np.ndarray]:
        """The columns of rows that were looked up and not sent: stored values in the model's types.

        Raises:
            BadRequestError: a value that the model requires is not stored.
        """
        columns = {}
        for name, column in self._served.items():
            problems = Problems()
            for row, record in enumerate(records):
                if name not in record:
                    # Null would be an answer to another question: this version's features were never published.
                    problems.add(name, row, "it is not among them")
                    break
            values = [stored(record.get(name), column.kind) for record in records]
            columns[name] = convert(column, values, problems, show=column.name not in self._personal)
            if problems.found:
                raise BadRequestError(
                    404,
                    f"the stored features do not make a row of this version: {'; '.join(problems.found)}; "
                    "publish features anew, or send them with the request",
                )
        return columns

    def _read_json(self, body: bytes) -> Request:
        try:
            document = orjson.loads(body)
            careful = False
        except orjson.JSONDecodeError as error:
            document = _with_names_for_no_numbers(body, error)
            careful = True
        if type(document) is not dict:
            raise BadRequestError(400, f"the body is {kind_of(document)}; {_PROTOCOL}")
        protocol = next(iter(document)) if len(document) == 1 else _protocol(document)
        if protocol == "dataframe_split":
            return self._read_split(document[protocol], careful)
        if protocol == "dataframe_records":
            return self._read_records(document[protocol], protocol, careful)
        if protocol in {"inputs", "instances"}:
            return self._read_tensors(document[protocol], protocol, careful)
        raise BadRequestError(400, f"the body has the key {quoted(protocol)}; {_PROTOCOL}")

    def _read_split(self, given: Any, careful: bool) -> Request:
        if type(given) is not dict:
            raise BadRequestError(400, f"dataframe_split is {kind_of(given)}; it must be an object")
        names, rows = given.get("columns"), given.get("data")
        if type(names) is not list or type(rows) is not list:
            absent = "columns" if type(names) is not list else "data"
            raise BadRequestError(400, f"dataframe_split must have a list {absent!r}")
        if len(given) > 2:
            others = sorted(given.keys() - {"columns", "data", "index"})
            if others:
                raise BadRequestError(400, f"dataframe_split has an unknown key {quoted(others[0])}")
            index = given["index"]
            if index is not None and (type(index) is not list or len(index) != len(rows)):
                raise BadRequestError(400, "dataframe_split: 'index' is not a list with one entry a row")
        return self._rows(self._plan(names), rows, careful)

    def _read_records(self, given: Any, protocol: str, careful: bool) -> Request:
        if type(given) is not list:
            raise BadRequestError(400, f"{protocol} is {kind_of(given)}; it must be a list of objects")
        self._count(len(given))
        for row, record in enumerate(given):
            if type(record) is not dict:
                raise BadRequestError(
                    400, f"{protocol}, row {row}: it is {kind_of(record)}, and not an object with columns"
                )
        names = tuple(given[0])
        if len(given) == 1:
            return self._one(self._plan(names), list(given[0].values()), careful)
        if all(tuple(record) == names for record in given):
            columns = list(zip(*(record.values() for record in given), strict=True))
            return self._many(self._plan(names), columns, len(given), careful)
        return self._uneven(given, careful)

    def _uneven(self, records: list[dict[str, Any]], careful: bool) -> Request:
        """Records that have not all the same keys in the same order."""
        names: dict[str, None] = {}
        for row, record in enumerate(records):
            for name in record:
                if name not in names:
                    if name not in self._served and name not in self._entity:
                        raise self._unknown(name, f"row {row}: ")
                    names[name] = None
        plan = self._plan(tuple(names))
        problems = Problems()
        columns = []
        for name in names:
            values = [record.get(name, _ABSENT) for record in records]
            required = name not in self._served or self._served[name].required
            for row, value in enumerate(values):
                if value is _ABSENT:
                    values[row] = None
                    if required and not problems.enough:
                        problems.add(name, row, "it is missing")
            columns.append(values)
        _raise(problems)
        return self._many(plan, columns, len(records), careful)

    def _read_tensors(self, given: Any, protocol: str, careful: bool) -> Request:
        """`inputs` and `instances`: columns by name, records, or rows by position."""
        if type(given) is dict:
            return self._read_columns(given, protocol, careful)
        if type(given) is not list:
            raise BadRequestError(400, f"{protocol} is {kind_of(given)}; it must be a list or an object")
        first = given[0] if given else None
        if type(first) is dict:
            return self._read_records(given, protocol, careful)
        if type(first) is not list and len(self.names) == 1:
            given = [[value] for value in given]
        return self._rows(self._plan(self.names), given, careful)

    def _read_columns(self, given: dict[str, Any], protocol: str, careful: bool) -> Request:
        plan = self._plan(tuple(given))
        columns = list(given.values())
        if not any(type(values) is list for values in columns):
            return self._one(plan, columns, careful)
        rows = None
        for name, values in given.items():
            if type(values) is not list:
                raise BadRequestError(
                    400, f"{protocol}: column {quoted(name)} is {kind_of(values)}, and others are lists"
                )
            if rows is not None and len(values) != rows:
                raise BadRequestError(
                    400,
                    f"{protocol}: column {quoted(name)} has {len(values)} values, and others have {rows}",
                )
            rows = len(values)
        return self._many(plan, columns, rows or 0, careful)

    def _read_csv(self, body: bytes) -> Request:
        try:
            text = body.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise BadRequestError(400, f"the body is not UTF-8: byte {error.start} is none of it") from None
        reader = csv.reader(io.StringIO(text, newline=""), strict=True)
        rows: list[list[str]] = []
        try:
            names = next((row for row in reader if row), None)
            for row in reader:
                if row:
                    rows.append(row)
                    if len(rows) > self._max_rows:
                        break
        except csv.Error as error:
            raise BadRequestError(400, f"the body is not CSV: line {reader.line_num}: {error}") from None
        if names is None:
            raise BadRequestError(400, "the body is empty; CSV begins with a line of column names")
        self._count(len(rows))
        _check_widths(rows, len(names))
        columns: list[Values] = list(zip(*rows, strict=True))
        if names[0] == "":
            # The index that pandas writes unless it is told not to.
            names, columns = names[1:], columns[1:]
        plan = self._plan(names)
        typed = [
            [from_text(value, self._served[name].kind) for value in values]
            if name in self._served
            else values
            for name, values in zip(names, columns, strict=True)
        ]
        return self._many(plan, typed, len(rows), careful=True)

    def _rows(self, plan: _Plan, rows: list[Any], careful: bool) -> Request:
        count = len(rows)
        if count == 1 and type(rows[0]) is list and len(rows[0]) == plan.width:
            return self._one(plan, rows[0], careful)
        self._count(count)
        _check_widths(rows, plan.width)
        return self._many(plan, list(zip(*rows, strict=True)), count, careful)

    def _one(self, plan: _Plan, row: list[Any], careful: bool) -> Request:
        keys = {name: [row[place]] for name, place in plan.keys} if plan.keys else None
        if keys:
            self._check_keys(keys, plan.needs_lookup)
        if plan.needs_lookup:
            return Request({}, 1, keys, needs_lookup=True)
        if plan.padded:
            row = [*row, None]
        arrays: list[np.ndarray] = []
        for group, pick in plan.groups:
            given = pick(row)
            block = None
            if (
                not careful
                and group.plain.issuperset(map(type, given))
                and not (group.nullable and None in given[: group.required])
            ):
                block = group.build(given)
            if block is None:
                return self._many(plan, [(value,) for value in row[: plan.width]], 1, careful)
            if len(given) == 1:
                arrays.append(block)
            else:
                arrays.extend(block.reshape(-1, 1))
        return Request(dict(zip(self._built, arrays, strict=False)), 1, keys)

    def _many(self, plan: _Plan, columns: Sequence[Values], rows: int, careful: bool) -> Request:
        """Rows by their columns; with `careful`, numbers may be NaN or infinite."""
        self._count(rows)
        keys = {name: list(columns[place]) for name, place in plan.keys} if plan.keys else None
        if keys:
            self._check_keys(keys, plan.needs_lookup)
        if plan.needs_lookup:
            return Request({}, rows, keys, needs_lookup=True)
        if plan.padded:
            columns = [*columns, (None,) * rows]
        arrays: list[np.ndarray] = []
        problems = Problems()
        for group, pick in plan.groups:
            given = pick(columns)
            block = None
            if (
                not careful
                and all(group.plain.issuperset(map(type, values)) for values in given)
                and not (group.nullable and any(None in values for values in given[: group.required]))
            ):
                block = group.build(list(chain.from_iterable(given)))
            if block is not None:
                arrays.extend(block.reshape(-1, rows))
            else:
                arrays.extend(
                    convert(column, values, problems, show=column.name not in self._personal)
                    for column, values in zip(group.columns, given, strict=True)
                )
        _raise(problems)
        return Request(dict(zip(self._built, arrays, strict=False)), rows, keys)

    def _plan(self, names: Sequence[Any]) -> _Plan:
        """How to read rows of these columns; made once for each order that callers use.

        Raises:
            BadRequestError: a column is missing, unknown or named twice.
        """
        key = tuple(names)
        try:
            plan = self._plans.get(key)
        except TypeError:
            plan = None
        if plan is None:
            plan = self._planned(key)
            if len(self._plans) >= _PLANS:
                self._plans.clear()
            self._plans[key] = plan
        return plan

    def _planned(self, names: tuple[Any, ...]) -> _Plan:
        places: dict[str, int] = {}
        for place, name in enumerate(names):
            if type(name) is not str:
                raise BadRequestError(400, f"the name of column {place} is {kind_of(name)}, and not text")
            if name in places:
                raise BadRequestError(400, f"column {quoted(name)} stands more than once")
            if name not in self._served and name not in self._entity:
                raise self._unknown(name)
            places[name] = place
        keys = tuple((name, places[name]) for name in self._entity if name in places)
        if keys and self._features and not self._features & places.keys():
            absent = [name for name in self._entity if name not in places]
            if absent:
                raise BadRequestError(
                    400, f"the entity column {absent[0]!r} is missing: a look-up takes {self._wants_keys()}"
                )
            return _Plan(len(names), False, (), keys, needs_lookup=True)
        missing = [
            column.name for column in self._served.values() if column.required and column.name not in places
        ]
        if missing:
            raise BadRequestError(400, self._missing(missing))
        width = len(names)
        groups = tuple(
            (group, _picker([places.get(column.name, width) for column in group.columns]))
            for group in self._groups
        )
        padded = any(name not in places for name in self.names)
        return _Plan(width, padded, groups, keys, needs_lookup=False)

    def _missing(self, missing: list[str]) -> str:
        if len(missing) == 1:
            said = f"column {missing[0]!r} is missing"
        else:
            more = f" and {len(missing) - SHOWN_PROBLEMS} more" if len(missing) > SHOWN_PROBLEMS else ""
            said = f"columns {', '.join(map(repr, missing[:SHOWN_PROBLEMS]))}{more} are missing"
        if self._entity and len(missing) == sum(column.required for column in self._served.values()):
            said += f"; for stored features, send {self._wants_keys()} alone"
        return said

    def _wants_keys(self) -> str:
        return " and ".join(map(repr, self._entity))

    def _unknown(self, name: str, where: str = "") -> BadRequestError:
        near = get_close_matches(name[:64], [*self.names, *self._entity], n=1)
        meant = f"; did you mean {near[0]!r}?" if near else ""
        return BadRequestError(400, f"{where}column {quoted(name)} is not one of the model's{meant}")

    def _count(self, rows: int) -> None:
        if rows == 0:
            raise BadRequestError(400, "the request has no rows")
        if rows > self._max_rows:
            raise BadRequestError(
                413, f"the request has more rows than the {self._max_rows} that one may have"
            )

    def _check_keys(self, keys: Mapping[str, list[Any]], needs_lookup: bool) -> None:
        for name, values in keys.items():
            for row, value in enumerate(values):
                if isinstance(value, list | dict):
                    raise BadRequestError(
                        400, f"column {name!r}, row {row}: it is {kind_of(value)}, and cannot be a key"
                    )
                if value is None and needs_lookup:
                    raise BadRequestError(400, f"column {name!r}, row {row}: a key cannot be null")


def _groups(columns: Iterable[ServedColumn]) -> tuple[_Group, ...]:
    together: dict[tuple[frozenset[type], Build], list[ServedColumn]] = {}
    for column in sorted(columns, key=lambda column: not column.required):
        together.setdefault(plain(column.kind), []).append(column)
    return tuple(
        _Group(tuple(alike), types, build, sum(column.required for column in alike), type(None) in types)
        for (types, build), alike in together.items()
    )


def _raise(problems: Problems) -> None:
    if problems.found:
        raise BadRequestError(400, str(problems))


def _with_names_for_no_numbers(body: bytes, error: orjson.JSONDecodeError) -> Any:
    """A document in which NaN or Infinity stand where numbers should, so that one can say where.

    Raises:
        BadRequestError: it is not JSON for another reason.
    """
    wrong: json.JSONDecodeError = error
    if b"NaN" in body or b"Infinity" in body:
        try:
            document = json.loads(body.decode())
            # What Python reads and JSON cannot say (half of a surrogate pair, endless nesting) ends here.
            orjson.dumps(document)
        except json.JSONDecodeError as found:
            wrong = found
        except (ValueError, RecursionError, TypeError):
            pass
        else:
            return document
    said = f"{wrong.msg}, line {wrong.lineno}, column {wrong.colno}"
    raise BadRequestError(400, f"the body is not JSON: {said}")


def _content_kind(content_type: str) -> str:
    """json, csv, or form: what curl says of data unless it is told otherwise."""
    media, *parameters = content_type.split(";")
    media = media.strip().lower()
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name.strip().lower() == "charset" and value.strip().strip('"').lower() not in _CHARSETS:
            raise BadRequestError(415, f"the charset {quoted(value.strip())} is not supported; send UTF-8")
    if media == "text/csv":
        return "csv"
    if media == "application/json":
        return "json"
    if media in {"", "application/x-www-form-urlencoded"}:
        return "form"
    raise BadRequestError(415, _not_supported(content_type))


def _not_supported(content_type: str) -> str:
    return f"the content type {quoted(content_type)} is not supported; send application/json or text/csv"


_PROTOCOL = f"it must be a JSON object with exactly one of {', '.join(PROTOCOLS)}"


def _protocol(document: dict[str, Any]) -> str:
    """The one protocol that a body uses, after a look at what stands beside it."""
    found = [name for name in PROTOCOLS if name in document]
    if len(found) != 1:
        keys = ", ".join(quoted(name) for name in list(document)[:SHOWN_PROBLEMS])
        said = f"has the keys {keys}" if keys else "is an empty object"
        raise BadRequestError(400, f"the body {said}; {_PROTOCOL}")
    others = [name for name in document if name not in _BESIDE and name != found[0]]
    if others:
        raise BadRequestError(400, f"the body has an unknown key {quoted(others[0])}; {_PROTOCOL}")
    if document.get("params"):
        raise BadRequestError(400, "the model takes no parameters; leave 'params' away")
    return found[0]


def _check_widths(rows: Sequence[Any], width: int) -> None:
    for row, values in enumerate(rows):
        if type(values) is not list:
            raise BadRequestError(400, f"row {row}: it is {kind_of(values)}, and not a list of values")
        if len(values) != width:
            raise BadRequestError(
                400,
                f"row {row}: it has {len(values)} values, and there are {width} columns (the first row is row 0)",
            )


def _picker(places: list[int]) -> Callable[[Values], Values]:
    """A function from a sequence to the tuple of its values at some places."""
    if not places:
        return lambda _values: ()
    if len(places) == 1:
        only = places[0]
        return lambda values: (values[only],)
    return itemgetter(*places)
