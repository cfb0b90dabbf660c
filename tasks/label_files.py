"""Files of labels: what they say, checked value by value, in tables that the labels are made of.

A file names the request, or the entity and a moment: who was predicted, and from when on. Nothing is taken from a file
that is wrong anywhere.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from deployments.contract import ColumnContract, ColumnType, TableContract
from deployments.errors import BadInputError
from deployments.personal_data import keyed_hash
from deployments.source import CsvSource, ParquetSource
from deployments.spec import LoadedSpec, ModelSpec
from platforms.platform import Platform
from tasks.queries import quoted

if TYPE_CHECKING:
    import duckdb
    import polars as pl

__all__ = ["LABEL", "MOMENTS", "REQUEST", "ROW", "LabelFile", "read_labels"]

REQUEST, ROW, LABEL = "request_id", "row", "label"
MOMENTS = ("as_of", "time")
"""What the column with the moment may be called, where a file names entities."""

_MOST_ROWS = 2**31 - 1
_SQL = {
    ColumnType.STRING: "VARCHAR",
    ColumnType.INTEGER: "BIGINT",
    ColumnType.NUMBER: "DOUBLE",
    ColumnType.BOOLEAN: "BOOLEAN",
    ColumnType.TIMESTAMP: "TIMESTAMPTZ",
    ColumnType.DATE: "DATE",
}


@dataclass(frozen=True)
class LabelFile:
    """What a file brought into the table `given`.

    That has label (text) and place (its row in the file, from 0), and either request_id and row, or `moment` and the
    columns of the entity; `entity` is their SQL types, and empty where the file names requests.
    """

    rows: int
    entity: Mapping[str, str]


def read_labels(
    platform: Platform,
    loaded: LoadedSpec,
    file: Path,
    connection: "duckdb.DuckDBPyConnection",
    now: datetime,
) -> LabelFile:
    """Read a file into the table `given`.

    Raises:
        BadInputError: it cannot be read, lacks a column or has another, or has values that are no labels, no key, or a
            moment that is still to come.
    """
    stream = _opened(platform, file)
    spec = loaded.spec
    label = spec.training_contract.columns[spec.target.column]
    moment = _moment_column(stream.schema.names, spec, file)
    keys = (
        {} if moment is None else {name: spec.feature_contract.columns[name] for name in spec.features.entity}
    )
    hashed = [name for name, declared in keys.items() if declared.pii == "hash"]
    secret = platform.pii_key() if hashed else b""
    types = {name: "VARCHAR" if name in hashed else _SQL[declared.type] for name, declared in keys.items()}
    key = f'{REQUEST} VARCHAR, "{ROW}" INTEGER' if moment is None else "moment TIMESTAMPTZ"
    columns = ", ".join(f"{quoted(name)} {kind}" for name, kind in types.items())
    connection.execute(
        f"CREATE TABLE given ({LABEL} VARCHAR, place BIGINT, {key}{', ' + columns if columns else ''})"
    )
    faults, rows = _Faults(file), 0
    for batch in stream:
        typed = (
            _of_requests(batch, label, faults, rows)
            if moment is None
            else _of_entities(batch, label, moment, keys, faults, rows, now)
        )
        for name in hashed:
            digests = [
                None if value is None else keyed_hash(value, secret) for value in typed[name].to_pylist()
            ]
            typed = typed.set_column(typed.column_names.index(name), name, pa.array(digests, pa.string()))
        rows += batch.num_rows
        if not faults.found:
            connection.register("batch", typed)
            connection.execute("INSERT INTO given SELECT * FROM batch")
            connection.unregister("batch")
    faults.expect_none(rows)
    if not rows:
        raise BadInputError(f"{file}: there are no rows")
    return LabelFile(rows, types)


def _opened(platform: Platform, file: Path) -> pa.RecordBatchReader:
    from tasks.ingest import read_source

    path = str(file.absolute())
    sources: dict[str, CsvSource | ParquetSource] = {
        ".csv": CsvSource(path=path),
        ".tsv": CsvSource(path=path, delimiter="\t"),
        ".parquet": ParquetSource(path=path),
    }
    if file.suffix.lower() not in sources:
        raise BadInputError(f"{file}: labels are read from {', '.join(sources)} files")
    any_columns = TableContract(columns={LABEL: ColumnContract(type=ColumnType.STRING)})
    return read_source(sources[file.suffix.lower()], any_columns, platform, beside=file.parent)


def _moment_column(found: Sequence[str], spec: ModelSpec, file: Path) -> str | None:
    """The column with the moment where the file names entities; None where it names requests.

    Raises:
        BadInputError: it names neither, or has columns that labels do not have.
    """
    entity = spec.features.entity
    moments = [name for name in MOMENTS if name in found and name not in entity]
    by_entity = REQUEST not in found and (moments or any(name in found for name in entity))
    known = [*entity, *(moments[:1] or MOMENTS[:1]), LABEL] if by_entity else [REQUEST, LABEL]
    missing = [name for name in known if name not in found]
    if missing:
        or_else = "" if by_entity else f"; or name {', '.join(entity)}, {' or '.join(MOMENTS)}, and {LABEL}"
        raise BadInputError(
            f"{file}: missing columns: {', '.join(missing)} (found: {', '.join(found)}){or_else}"
        )
    known += [] if by_entity else [ROW]
    others = [name for name in found if name not in known]
    if others:
        raise BadInputError(
            f"{file}: columns that labels do not have: {', '.join(others)} (known: {', '.join(known)})"
        )
    return moments[0] if by_entity else None


@dataclass
class _Faults:
    """Values of a file that are no labels: for each kind of fault how many, and the first."""

    file: Path
    found: dict[tuple[str, str], tuple[int, int, Any]] = field(default_factory=dict)

    def note(self, column: str, what: str, wrong: "pl.Series", given: "pl.Series", before: int) -> None:
        """Note the values of a batch where `wrong` is true; `before` rows came before the batch."""
        places = wrong.arg_true()
        if not len(places):
            return
        count, first, value = self.found.get((column, what), (0, before + places[0] + 1, given[places[0]]))
        self.found[column, what] = (count + len(places), first, value)

    def expect_none(self, rows: int) -> None:
        """Raise BadInputError if there is any."""
        if not self.found:
            return
        said = [
            f"column {column!r}: {count:,} of {rows:,} rows {what}, first row {first:,}"
            + ("" if value is None else f" ({value!r})")
            for (column, what), (count, first, value) in self.found.items()
        ]
        raise BadInputError(f"{self.file}: {'; '.join(said)}; nothing was added")


def _typed(
    given: "pl.DataFrame", wanted: Mapping[str, ColumnType], faults: _Faults, before: int
) -> "pl.DataFrame":
    """Columns in the types that they must have; values that do not fit, or are not there, are noted."""
    from tasks.coercion import coerce

    contract = TableContract(columns={name: ColumnContract(type=kind) for name, kind in wanted.items()})
    typed, misfits = coerce(given.select(list(wanted)), contract)
    for name, kind in wanted.items():
        column, wrong = typed[name], misfits.get(name)
        if wrong is not None:
            faults.note(name, f"hold no {kind}", wrong, given[name], before)
        missing = column.is_null() if wrong is None else column.is_null() & ~wrong
        if kind is ColumnType.STRING:
            missing |= (column == "").fill_null(False)
        faults.note(name, "have no value", missing, column, before)
    return typed


def _labels(
    typed: "pl.DataFrame", declared: ColumnContract, faults: _Faults, before: int
) -> tuple[Any, pa.Array]:
    """The labels as they are kept, and their places in the file; those that the contract does not allow are noted."""
    import polars as pl

    from tasks.coercion import POLARS

    label = typed[LABEL]
    if declared.type is ColumnType.NUMBER:
        faults.note(LABEL, "hold no finite number", label.is_infinite().fill_null(False), label, before)
    if declared.values is not None:
        values = pl.Series(list(declared.values), dtype=POLARS[declared.type], strict=False)
        other = ~label.is_in(values.implode()).fill_null(True)
        known = ", ".join(str(value) for value in declared.values)
        faults.note(LABEL, f"hold none of the values {known}", other, label, before)
    return label.cast(pl.String).to_arrow(), pa.array(range(before, before + len(typed)), pa.int64())


def _of_requests(batch: pa.RecordBatch, declared: ColumnContract, faults: _Faults, before: int) -> pa.Table:
    """A batch whose labels name request and row."""
    import polars as pl

    given: Any = pl.from_arrow(batch)
    if ROW not in given.columns:
        given = given.with_columns(pl.lit(0, pl.Int64).alias(ROW))
    wanted = {REQUEST: ColumnType.STRING, ROW: ColumnType.INTEGER, LABEL: declared.type}
    typed = _typed(given, wanted, faults, before)
    labels, places = _labels(typed, declared, faults, before)
    row = typed[ROW]
    faults.note(
        ROW, "hold no place in a request", ((row < 0) | (row > _MOST_ROWS)).fill_null(False), row, before
    )
    return pa.table({LABEL: labels, "place": places, REQUEST: typed[REQUEST].to_arrow(), ROW: row.to_arrow()})


def _of_entities(
    batch: pa.RecordBatch,
    declared: ColumnContract,
    moment: str,
    keys: Mapping[str, ColumnContract],
    faults: _Faults,
    before: int,
    now: datetime,
) -> pa.Table:
    """A batch whose labels name an entity and a moment; hashed keys are still as they were given."""
    import polars as pl

    given: Any = pl.from_arrow(batch)
    wanted = {name: one.type for name, one in keys.items()}
    wanted |= {moment: ColumnType.TIMESTAMP, LABEL: declared.type}
    typed = _typed(given, wanted, faults, before)
    labels, places = _labels(typed, declared, faults, before)
    when = typed[moment]
    faults.note(moment, "are still to come", (when > now).fill_null(False), when, before)
    columns = {LABEL: labels, "place": places, "moment": when.to_arrow()}
    return pa.table(columns | {name: typed[name].to_arrow() for name in keys})
