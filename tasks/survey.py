"""Survey: one look over a whole csv, Parquet or Delta source, and what each of its columns holds.

Rows stream in batches, and what is kept of a column does not grow with them. The type of a text column is the
first that takes all its values under the very conversion that validation applies.
"""

import codecs
import csv
import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import polars as pl
import pyarrow as pa

from deployments.contract import ColumnContract, ColumnType, Scalar, TableContract
from deployments.environment import Environment, LocalPlatformConfig
from deployments.errors import BadInputError
from deployments.source import CsvSource, DeltaSource, ParquetSource
from platforms import platform_for
from tasks.coercion import coerce
from tasks.ingest import read_source
from tasks.progress import stage

NULL_TOKENS = ("NA", "N/A", "n/a", "#N/A", "null", "NULL", "nan", "NaN", "?")
"""Texts that stand for no value, besides the empty and the blank one."""

MOST_COUNTED = 200
"""Values are counted one by one up to this many different ones."""

_MOST_TOKENS = 20
_LONGEST_NAME = 500
_LONGEST_HEADER = 4 << 20
_DECODED_BYTES = 4 << 20
_MEMORY_MEGABYTES = 256
_DELIMITERS = ",;\t|"

FileSource = CsvSource | ParquetSource | DeltaSource

# Text is tried as each of these; a text that fits none stays text.
_TRIED = (
    ColumnType.INTEGER,
    ColumnType.NUMBER,
    ColumnType.BOOLEAN,
    ColumnType.DATE,
    ColumnType.TIMESTAMP,
)
_TRIAL = {kind: TableContract(columns={"value": ColumnContract(type=kind, nullable=True)}) for kind in _TRIED}
_RANGED = {ColumnType.INTEGER, ColumnType.NUMBER, ColumnType.DATE, ColumnType.TIMESTAMP}

# What the conversion would take, and yet is something else: codes that begin with zeros, identifiers too long
# for a float to keep apart, decimals that only happen to be whole, and words for yes other than true.
_REFUSED = {
    ColumnType.INTEGER: r"^\s*[+-]?0\d|[.eE]",
    ColumnType.NUMBER: r"^\s*[+-]?(0\d|\d{16,}\s*$)",
    ColumnType.BOOLEAN: r"(?i)^\s*[^tf\s]|^\s*[tf]\s*$",
}

SHAPES = {
    "an e-mail address": r"^\s*[^@\s]+@[^@\s]+\.[^@\s]+\s*$",
    "a social security number": r"^\s*\d{3}-\d{2}-\d{4}\s*$",
    "a bank account": r"^\s*[A-Z]{2}\d{2}( ?[A-Z0-9]{4}){2,7}( ?[A-Z0-9]{1,3})?\s*$",
    "a network address": r"^\s*\d{1,3}(\.\d{1,3}){3}\s*$",
    "a phone number": r"^\s*\+?[\d(][\d ()./-]{5,18}\d\s*$",
}
"""Texts whose shape tells what they are."""


@dataclass(frozen=True)
class Column:
    """What one column holds over all rows.

    `low` and `high` are of its type, and None where the type has no range; `counts` are its different values
    and their rows, None where there are too many. `shape` is what at least nine of ten texts look like.
    """

    name: str
    type: ColumnType
    rows: int
    missing: int
    infinite: int = 0
    low: Any = None
    high: Any = None
    counts: dict[Scalar, int] | None = None
    shape: str | None = None

    @property
    def is_moment(self) -> bool:
        """Whether it holds dates or times."""
        return self.type in {ColumnType.DATE, ColumnType.TIMESTAMP}

    @property
    def is_number(self) -> bool:
        """Whether it holds numbers."""
        return self.type in {ColumnType.INTEGER, ColumnType.NUMBER}

    @property
    def present(self) -> int:
        """Rows with a value."""
        return self.rows - self.missing


@dataclass(frozen=True)
class Survey:
    """What a source holds: its columns, those whose type no contract speaks, the texts that mean no value.

    `keys` are the columns that alone tell each row from every other.
    """

    path: Path
    source: FileSource
    rows: int
    columns: dict[str, Column]
    foreign: dict[str, str]
    null_tokens: tuple[str, ...]
    keys: tuple[str, ...]


def survey(path: Path) -> Survey:
    """Look over all rows of a csv or Parquet file, a folder of Parquet files, or a Delta table.

    Raises:
        BadInputError: the source is missing, empty, half-written or wrongly encoded, or has no proper header.
    """
    try:
        source = _source(path)
        reader = _read(source)
    except OSError as error:
        raise BadInputError(f"{path}: cannot be read ({error.strerror})") from None
    schema = reader.schema
    _check_names(path, schema.names)
    text = isinstance(source, CsvSource)
    kinds = {name: _contract_type(schema.field(name).type) for name in schema.names}
    watches = {name: _Watch(name, kind, text) for name, kind in kinds.items() if kind is not None}
    rows = batches = 0
    with stage(f"look over {path.name}") as advance:
        for batch in reader:
            if batch.num_rows:
                _look(watches, batch)
                rows, batches = rows + batch.num_rows, batches + 1
                advance(batch.num_rows)
    if not rows:
        raise BadInputError(f"{path}: there are no rows")
    keys = [name for name, watch in watches.items() if watch.is_key]
    if keys and batches > 1:
        with held_columns(source, keys) as distinct:
            keys = [name for name in keys if distinct([name]) == rows]
    tokens = sorted({token for watch in watches.values() for token in watch.tokens})
    return Survey(
        path=path,
        source=source,
        rows=rows,
        columns={name: watch.column(rows) for name, watch in watches.items()},
        foreign={name: str(schema.field(name).type) for name, kind in kinds.items() if kind is None},
        null_tokens=tuple(tokens),
        keys=tuple(keys),
    )


@contextmanager
def held_columns(source: FileSource, names: Sequence[str]) -> Iterator[Callable[[Sequence[str]], int]]:
    """Some columns of a source, held on disk: the block gets a function that counts the different rows of any."""
    reader = _read(source)
    schema = pa.schema([reader.schema.field(name) for name in names])
    stream = pa.RecordBatchReader.from_batches(schema, (batch.select(names) for batch in reader))
    with (
        tempfile.TemporaryDirectory() as folder,
        duckdb.connect(str(Path(folder) / "rows.duckdb")) as connection,
    ):
        connection.execute(f"SET memory_limit = '{_MEMORY_MEGABYTES}MB'")
        connection.register("stream", stream)
        connection.execute("CREATE TABLE held AS SELECT * FROM stream")

        def distinct(columns: Sequence[str]) -> int:
            listed = ", ".join('"' + name.replace('"', '""') + '"' for name in columns)
            query = f"SELECT count(*) FROM (SELECT {listed} FROM held GROUP BY {listed})"
            return int(connection.execute(query).fetchall()[0][0])

        yield distinct


def _source(path: Path) -> FileSource:
    """The source a path stands for, told by its ending, and for folders by what is in them."""
    address, suffix = str(path.absolute()), path.suffix.lower()
    if not path.exists():
        raise BadInputError(f"{path}: there is no such file")
    if path.is_dir():
        if (path / "_delta_log").is_dir():
            return DeltaSource(path=address)
        if next(path.rglob("*.parquet"), None) is not None:
            return ParquetSource(path=address)
        raise BadInputError(f"{path}: this folder holds neither a Delta table nor Parquet files")
    if path.stat().st_size == 0:
        raise BadInputError(f"{path}: the file is empty")
    if suffix in {".parquet", ".pq"}:
        return ParquetSource(path=address)
    if suffix in {".csv", ".tsv", ".txt"}:
        _check_text(path)
        return CsvSource(path=address, delimiter=_delimiter(path), null_values=())
    raise BadInputError(
        f"{path}: its name does not tell what it is; give a .csv, .tsv, .txt or .parquet file, a folder of "
        "Parquet files or a Delta table"
    )


def _check_text(path: Path) -> None:
    """Refuse what is not UTF-8, with the line it goes wrong in."""
    decoder, line = codecs.getincrementaldecoder("utf-8")(), 1
    with path.open("rb") as handle:
        while True:
            block = handle.read(_DECODED_BYTES)
            try:
                line += decoder.decode(block, final=not block).count("\n")
            except UnicodeDecodeError as error:
                line += error.object[: error.start].count(b"\n")
                raise BadInputError(
                    f"{path}:{line}: not UTF-8 text; save the file as UTF-8 (its rows can be read in another "
                    "encoding later: sources.<table>.encoding)"
                ) from None
            if not block:
                return


def _delimiter(path: Path) -> str:
    """The delimiter under which the header has the most columns; the comma, if none divides it."""
    with path.open(encoding="utf-8-sig", newline="") as handle:
        head = handle.readline(_LONGEST_HEADER)
    try:
        return max(_DELIMITERS, key=lambda delimiter: len(next(csv.reader([head], delimiter=delimiter), [])))
    except csv.Error as error:
        raise BadInputError(f"{path}: the first row is no header ({error})") from None


def _read(source: FileSource) -> pa.RecordBatchReader:
    """The source's rows, by the reader that ingest uses; all it asks of the platform is an address."""
    anywhere = platform_for(Environment(name="draft", platform=LocalPlatformConfig(data_root="draft")))
    anything = TableContract(columns={"any": ColumnContract(type=ColumnType.STRING)})
    reader = read_source(source, anything, anywhere, Path(source.path).parent)
    if not isinstance(source, DeltaSource):
        return reader

    def batches() -> Iterator[pa.RecordBatch]:
        try:
            yield from reader
        except (pa.ArrowInvalid, OSError) as error:
            said = str(error).strip().splitlines()[0]
            raise BadInputError(f"{source.path}: the Delta table is damaged ({said})") from None

    return pa.RecordBatchReader.from_batches(reader.schema, batches())


def _check_names(path: Path, names: Sequence[str]) -> None:
    for place, name in enumerate(names, 1):
        if len(name) > _LONGEST_NAME:
            raise BadInputError(
                f"{path}: the name of column {place} has {len(name):,} characters; is the first row a header?"
            )
        if not name.strip():
            raise BadInputError(f"{path}: column {place} has no name")


def _contract_type(kind: pa.DataType) -> ColumnType | None:
    """The contract's word for an Arrow type, None where it has none."""
    if pa.types.is_dictionary(kind):
        return _contract_type(kind.value_type)
    known: tuple[tuple[Callable[[pa.DataType], bool], ColumnType], ...] = (
        (pa.types.is_string, ColumnType.STRING),
        (pa.types.is_large_string, ColumnType.STRING),
        (pa.types.is_string_view, ColumnType.STRING),
        (pa.types.is_boolean, ColumnType.BOOLEAN),
        (pa.types.is_integer, ColumnType.INTEGER),
        (pa.types.is_floating, ColumnType.NUMBER),
        (pa.types.is_decimal, ColumnType.NUMBER),
        (pa.types.is_timestamp, ColumnType.TIMESTAMP),
        (pa.types.is_date, ColumnType.DATE),
    )
    return next((spoken for is_kind, spoken in known if is_kind(kind)), None)


def _look(watches: "dict[str, _Watch]", batch: pa.RecordBatch) -> None:
    for name, watch in watches.items():
        column = batch.column(name)
        if pa.types.is_dictionary(column.type):
            column = column.dictionary_decode()
        values = pl.Series("value", pl.from_arrow(pa.chunked_array([column])))
        watch.see(values)


@dataclass
class _Watch:
    """What has been seen of one column so far."""

    name: str
    kind: ColumnType
    is_text: bool
    missing: int = 0
    infinite: int = 0
    tokens: set[str] = field(default_factory=set)
    ranges: dict[ColumnType, tuple[Any, Any]] = field(default_factory=dict)
    counts: dict[Any, int] | None = field(default_factory=dict)
    shapes: dict[str, int] = field(default_factory=lambda: dict.fromkeys(SHAPES, 0))
    seen: int = 0
    all_differ: bool = True

    def __post_init__(self) -> None:
        self._alive = list(_TRIED) if self.is_text else []

    @property
    def is_key(self) -> bool:
        """Whether each batch had a value in every row, and no value twice."""
        told = self._type() not in {ColumnType.NUMBER, ColumnType.BOOLEAN}
        return self.all_differ and not self.missing and told

    def see(self, values: pl.Series) -> None:
        """Take in the next rows."""
        present = self._without_nulls(values)
        self.missing += len(values) - len(present)
        if present.is_empty():
            return
        self.all_differ = self.all_differ and present.n_unique() == len(present)
        if self.is_text:
            self._alive = [kind for kind in self._alive if self._takes(kind, present)]
        else:
            self._widen(self.kind, present)
        if self.kind is ColumnType.STRING:
            self._see_shapes(present)
        self.seen += len(present)
        self._count(present)

    def _without_nulls(self, values: pl.Series) -> pl.Series:
        values = values.drop_nulls()
        if values.dtype.is_float():
            return values.drop_nans()
        if not self.is_text:
            return values
        bare = values.str.strip_chars()
        empty = bare.is_in(["", *NULL_TOKENS])
        if empty.any():
            found = values.filter(empty).unique().head(_MOST_TOKENS).to_list()
            self.tokens |= set(found[: _MOST_TOKENS - len(self.tokens)])
        return values.filter(~empty)

    def _takes(self, kind: ColumnType, texts: pl.Series) -> bool:
        if kind in _REFUSED and texts.str.contains(_REFUSED[kind]).any():
            return False
        typed, misfits = coerce(texts.to_frame("value"), _TRIAL[kind])
        if misfits:
            return False
        self._widen(kind, typed["value"])
        return True

    def _widen(self, kind: ColumnType, typed: pl.Series) -> None:
        if kind not in _RANGED:
            return
        if typed.dtype.is_float():
            finite = typed.is_finite()
            self.infinite += int((~finite).sum())
            typed = typed.filter(finite)
            if typed.is_empty():
                return
        low, high = self.ranges.get(kind, (typed.min(), typed.max()))
        self.ranges[kind] = (min(low, typed.min()), max(high, typed.max()))

    def _see_shapes(self, texts: pl.Series) -> None:
        for name in list(self.shapes):
            self.shapes[name] += int(texts.str.contains(SHAPES[name]).sum())
            if self.shapes[name] < 0.5 * (self.seen + len(texts)):
                del self.shapes[name]

    def _count(self, values: pl.Series) -> None:
        if self.counts is None:
            return
        if values.dtype.is_temporal() or values.n_unique() > MOST_COUNTED:
            self.counts = None
            return
        for value, count in values.value_counts().iter_rows():
            self.counts[value] = self.counts.get(value, 0) + count
        if len(self.counts) > MOST_COUNTED:
            self.counts = None

    def _type(self) -> ColumnType:
        if not self.is_text or not self.seen:
            return self.kind
        return self._alive[0] if self._alive else ColumnType.STRING

    def column(self, rows: int) -> Column:
        """What the column holds, after `rows` rows."""
        kind = self._type()
        low, high = self.ranges.get(kind, (None, None))
        shape = next((name for name, count in self.shapes.items() if count >= 0.9 * self.seen), None)
        return Column(
            name=self.name,
            type=kind,
            rows=rows,
            missing=self.missing,
            infinite=self.infinite if kind is ColumnType.NUMBER else 0,
            low=float(low) if isinstance(low, Decimal) else low,
            high=float(high) if isinstance(high, Decimal) else high,
            counts=self._typed_counts(kind),
            shape=shape if self.seen else None,
        )

    def _typed_counts(self, kind: ColumnType) -> dict[Scalar, int] | None:
        if self.counts is None:
            return None
        typed: dict[Scalar, int] = {}
        for value, count in self.counts.items():
            one = _typed(value, kind)
            if one is not None:
                typed[one] = typed.get(one, 0) + count
        return typed


def _typed(value: Any, kind: ColumnType) -> Scalar | None:
    """A counted value as its column's type has it; None for moments, whose values nobody lists."""
    if kind is ColumnType.INTEGER:
        return int(value)
    if kind is ColumnType.NUMBER:
        return float(value)
    if kind is ColumnType.BOOLEAN:
        return value if isinstance(value, bool) else re.match(r"(?i)\s*true", value) is not None
    return str(value) if kind is ColumnType.STRING else None
