"""Ingest: any source becomes a bronze snapshot, as it was received, less personal data that may not be kept.

Everything streams in record batches, so memory does not grow with the source.
"""

import codecs
import csv
import hmac
import importlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from deployments.contract import ColumnType, TableContract
from deployments.errors import BadInputError
from deployments.source import CsvSource, DeltaSource, ParquetSource, SimulatorSource, Source, SqlSource
from deployments.spec import LoadedSpec
from platforms.platform import Platform
from platforms.snapshot import Snapshot
from platforms.tables import open_delta, storable
from tasks.queries import query_session, quoted

_BATCH_ROWS = 131_072
_PAGE_ROWS = 16_384
"""Rows fetched at once where they come as Python values, which are many times larger than Arrow's."""
_CSV_BLOCK_BYTES = 4 << 20
_READ_BYTES = 1 << 20


def ingest_table(loaded: LoadedSpec, platform: Platform, name: str, source: Source) -> Snapshot:
    """Store one source as the newest bronze version of its table; the same content again is the same version.

    Raises:
        BadInputError: the source is missing, empty, unreadable, or lacks columns the contract asks for.
    """
    contract = loaded.spec.contract[name]
    where = f"{describe(source)} (table {name!r})"
    received = read_source(source, contract, platform, beside=loaded.path.parent)
    _expect_columns(received.schema.names, contract, where)
    kept = storable(without_personal_data(received, contract, platform))
    stream = _not_empty(_ordered(kept, source.clustering, platform), where)
    return platform.tables.write(platform.table("bronze", loaded.name, name), stream)


def read_source(
    source: Source, contract: TableContract, platform: Platform, beside: Path
) -> pa.RecordBatchReader:
    """Open a source as a stream of record batches.

    Raises:
        BadInputError: missing, empty, half-written or wrongly encoded input, with the place where it goes
            wrong; also while the stream is read.
    """
    match source:
        case CsvSource():
            return _read_csv(source, Path(platform.resolve(source.path, beside)))
        case ParquetSource():
            return _read_parquet(Path(platform.resolve(source.path, beside)))
        case DeltaSource():
            path = platform.resolve(source.path, beside)
            if "://" not in path and not Path(path).exists():
                raise BadInputError(f"{path}: there is no such file or Delta table")
            return _scan(open_delta(path, source.version), path)
        case SqlSource():
            return _read_sql(source, contract, platform, beside)
        case SimulatorSource():
            return _simulate(source)


def describe(source: Source) -> str:
    """A source in a few words, without secrets."""
    match source:
        case CsvSource() | ParquetSource() | DeltaSource():
            return source.path
        case SqlSource():
            return "the SQL query"
        case SimulatorSource():
            return f"simulator {source.function}"


def _existing(path: Path) -> Path:
    if not path.exists():
        raise BadInputError(f"{path}: there is no such file")
    if path.is_file() and path.stat().st_size == 0:
        raise BadInputError(f"{path}: the file is empty")
    return path


class _Untouched:
    """Refuses files that somebody still writes to while they are read."""

    def __init__(self, paths: Iterable[Path]) -> None:
        self._seen = {path: self._look(path) for path in paths}

    def confirm(self) -> None:
        """Raise BadInputError if one of the files is no longer what it was."""
        for path, seen in self._seen.items():
            if not path.exists() or self._look(path) != seen:
                raise BadInputError(f"{path}: the file changed while it was read; is it still being written?")

    @staticmethod
    def _look(path: Path) -> tuple[int, int, int]:
        found = path.stat()
        return found.st_size, found.st_mtime_ns, found.st_ino


def _read_csv(source: CsvSource, path: Path) -> pa.RecordBatchReader:
    if _existing(path).is_dir():
        raise BadInputError(f"{path}: this is a folder; a csv source is one file")
    untouched = _Untouched([path])
    header = _csv_header(source, path)
    try:
        reader = pacsv.open_csv(
            path,
            read_options=pacsv.ReadOptions(
                encoding=source.encoding,
                block_size=_CSV_BLOCK_BYTES,
                column_names=header,
                skip_rows_after_names=1,
            ),
            parse_options=pacsv.ParseOptions(delimiter=source.delimiter, newlines_in_values=True),
            convert_options=pacsv.ConvertOptions(
                column_types=dict.fromkeys(header, pa.string()),
                null_values=list(source.null_values),
                strings_can_be_null=True,
                quoted_strings_can_be_null=True,
            ),
        )
    except (pa.ArrowInvalid, UnicodeError) as error:
        raise _csv_error(path, source, header, error) from None

    def batches() -> Iterator[pa.RecordBatch]:
        try:
            yield from reader
        except (pa.ArrowInvalid, UnicodeError) as error:
            untouched.confirm()
            raise _csv_error(path, source, header, error) from None
        untouched.confirm()
        _expect_closed_quotes(path, source)

    return pa.RecordBatchReader.from_batches(reader.schema, batches())


def _csv_header(source: CsvSource, path: Path) -> list[str]:
    """The first row, checked: no duplicate and no empty names."""
    try:
        with path.open(encoding=_python_encoding(source), newline="") as handle:
            rows = csv.reader(handle, delimiter=source.delimiter)
            header = next(rows, [])
            second = handle.readline()
    except LookupError:
        raise BadInputError(f"{path}: there is no encoding called {source.encoding!r}") from None
    except UnicodeError:
        raise _encoding_error(path, source) from None
    except csv.Error:
        raise BadInputError(f"{path}: the first rows are not delimited text") from None
    if not header:
        raise BadInputError(f"{path}: the first line is blank; it must name the columns")
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise BadInputError(f"{path}: the header names {', '.join(map(repr, twice))} more than once")
    if not all(name.strip() for name in header):
        at = next(i for i, name in enumerate(header, 1) if not name.strip())
        raise BadInputError(f"{path}: column {at} of the header has no name")
    if not second:
        raise BadInputError(f"{path}: the file has a header and no rows")
    return header


def _python_encoding(source: CsvSource) -> str:
    """Python keeps a byte order mark unless told otherwise; Arrow does not."""
    return "utf-8-sig" if codecs.lookup(source.encoding).name == "utf-8" else source.encoding


def _csv_error(path: Path, source: CsvSource, header: Sequence[str], error: Exception) -> BadInputError:
    """What is wrong with a file that Arrow refused, looked for once more at leisure to say where it is."""
    number = 0
    try:
        with path.open(encoding=_python_encoding(source), newline="") as handle:
            rows = csv.reader(handle, delimiter=source.delimiter, strict=True)
            for number, row in enumerate(rows):
                if row and len(row) != len(header):
                    return BadInputError(
                        f"{path}: row {number} (line {rows.line_num}) has {len(row)} values and the header "
                        f"{len(header)}; is the file half-written, or the delimiter another?"
                    )
    except UnicodeError:
        return _encoding_error(path, source)
    except csv.Error as quoting:
        return _quoting_error(path, number, quoting)
    if "straddl" in str(error):
        return BadInputError(
            f"{path}: a row is longer than {_CSV_BLOCK_BYTES >> 20} MB, the most there may be"
        )
    return BadInputError(f"{path}: cannot be read as delimited text ({type(error).__name__})")


def _quoting_error(path: Path, row: int, error: csv.Error) -> BadInputError:
    if "unexpected end" in str(error) or "field larger" in str(error):
        return BadInputError(
            f"{path}: a quote opened in row {row + 1} is never closed, or its value is larger than "
            f"{csv.field_size_limit():,} characters; is the file half-written?"
        )
    return BadInputError(f"{path}: row {row + 1} has a quote inside a quoted value that is not doubled")


def _encoding_error(path: Path, source: CsvSource) -> BadInputError:
    """Where the first byte lies that is no text in the source's encoding."""
    decoder = codecs.getincrementaldecoder(source.encoding)()
    before = lines = 0
    with path.open("rb") as handle:
        while True:
            block = handle.read(_READ_BYTES)
            held = decoder.getstate()[0]
            try:
                lines += decoder.decode(block, final=not block).count("\n")
            except UnicodeError as error:
                start = error.start if isinstance(error, UnicodeDecodeError) else 0
                data = held + block
                row = lines + data[:start].count(b"\n")
                return BadInputError(
                    f"{path}: not {source.encoding} text at byte {before - len(held) + start + 1:,}, "
                    f"line {row + 1:,}; name the file's encoding in the source, e.g. encoding: latin-1"
                )
            before += len(block)
            if not block:
                return BadInputError(f"{path}: not {source.encoding} text")


def _expect_closed_quotes(path: Path, source: CsvSource) -> None:
    """Refuse a file that ends inside a quoted value: Arrow takes all that follows the quote for that value.

    An even number of quotes closes every one of them; only for an odd one is the file read once more.
    """
    if _quotes(path, source) % 2 == 0:
        return
    number = 0
    try:
        with path.open(encoding=_python_encoding(source), newline="") as handle:
            for _row in csv.reader(handle, delimiter=source.delimiter, strict=True):
                number += 1
    except csv.Error as error:
        raise _quoting_error(path, number - 1, error) from None


def _quotes(path: Path, source: CsvSource) -> int:
    """How many quotes a file has; bytes are counted where they can be, which is several times faster."""
    quotes = 0
    if _python_encoding(source) == "utf-8-sig":
        with path.open("rb") as raw:
            while data := raw.read(_READ_BYTES):
                quotes += data.count(b'"')
    else:
        with path.open(encoding=source.encoding, newline="") as handle:
            while text := handle.read(_READ_BYTES):
                quotes += text.count('"')
    return quotes


def _read_parquet(path: Path) -> pa.RecordBatchReader:
    if _existing(path).is_dir() and (path / "_delta_log").exists():
        raise BadInputError(f"{path}: this is a Delta table; name it with kind: delta")
    files = [path] if path.is_file() else sorted(path.rglob("*.parquet"))
    # By convention a leading dot or underscore marks what a writer has not finished.
    files = [file for file in files if not file.relative_to(path.parent).name.startswith((".", "_"))]
    if not files:
        raise BadInputError(f"{path}: there is no Parquet file in this folder")
    untouched = _Untouched(files)
    first = _parquet_schema(files[0])
    for file in files[1:]:
        if not _parquet_schema(file).equals(first):
            raise BadInputError(f"{file}: its columns or types differ from those of {files[0]}")

    def batches() -> Iterator[pa.RecordBatch]:
        for file in files:
            try:
                # Through a buffer: otherwise a row group, however large, is read as a whole.
                with pq.ParquetFile(file, buffer_size=_READ_BYTES, pre_buffer=False) as opened:
                    for batch in opened.iter_batches(_BATCH_ROWS):
                        yield pa.RecordBatch.from_arrays(batch.columns, schema=first)
            except (pa.ArrowInvalid, OSError):
                untouched.confirm()
                raise BadInputError(f"{file}: the Parquet file is damaged") from None
        untouched.confirm()

    return pa.RecordBatchReader.from_batches(first, batches())


def _parquet_schema(file: Path) -> pa.Schema:
    try:
        return pq.read_schema(file).remove_metadata()
    except (pa.ArrowInvalid, OSError):
        raise BadInputError(f"{file}: not a whole Parquet file (half-written, or another format)") from None


def _scan(dataset: ds.Dataset, path: str) -> pa.RecordBatchReader:
    """A Delta table's rows; in small batches, as the scanner reads up to 32 of them ahead."""
    scanner = dataset.scanner(batch_size=_PAGE_ROWS, batch_readahead=2, fragment_readahead=1)

    def batches() -> Iterator[pa.RecordBatch]:
        try:
            yield from scanner.to_batches()
        except (pa.ArrowInvalid, OSError):
            raise BadInputError(f"{path}: a file of the Delta table is missing or damaged") from None

    return pa.RecordBatchReader.from_batches(scanner.projected_schema, batches())


def _read_sql(
    source: SqlSource, contract: TableContract, platform: Platform, beside: Path
) -> pa.RecordBatchReader:
    url = source.url if isinstance(source.url, str) else platform.secret(source.url.secret)
    if url.startswith("duckdb:"):
        return _read_duckdb(source, url, platform, beside)
    return _read_sqlalchemy(source, url, contract)


def _read_duckdb(source: SqlSource, url: str, platform: Platform, beside: Path) -> pa.RecordBatchReader:
    import duckdb

    named = url.removeprefix("duckdb://").removeprefix("/")
    if not named or named == ":memory:":
        raise BadInputError("the SQL source names no database file: write duckdb:///file.duckdb")
    database = str(_existing(Path(platform.resolve(named, beside))))
    with ExitStack() as until_read:
        try:
            connection = until_read.enter_context(query_session(platform, database))
            found = connection.sql(source.query)
            if found is None:
                raise BadInputError("the SQL source's query gives no rows: it is no SELECT")
            reader = found.to_arrow_reader(_BATCH_ROWS)
        except duckdb.Error as error:
            raise BadInputError(f"the SQL source failed: {_first_line(error)}") from None
        held = until_read.pop_all()

    def batches() -> Iterator[pa.RecordBatch]:
        with held:
            try:
                yield from reader
            except (duckdb.Error, pa.ArrowException, OSError) as error:
                raise BadInputError(f"the SQL source failed: {_first_line(error)}") from None

    return pa.RecordBatchReader.from_batches(reader.schema, batches())


def _read_sqlalchemy(source: SqlSource, url: str, contract: TableContract) -> pa.RecordBatchReader:
    """Rows fetched in pages through a server-side cursor; contract and first page settle the types."""
    from sqlalchemy import create_engine, text
    from sqlalchemy.exc import SQLAlchemyError
    from sqlalchemy.pool import NullPool

    with ExitStack() as until_read:
        try:
            engine = create_engine(url, poolclass=NullPool)
            if engine.dialect.name == "sqlite" and engine.url.database not in {None, "", ":memory:"}:
                _existing(Path(str(engine.url.database)))
            connection = until_read.enter_context(engine.connect()).execution_options(
                stream_results=True, max_row_buffer=_PAGE_ROWS
            )
            # Colons are escaped: the query has no parameters, and times have colons.
            result = connection.execute(text(source.query.replace(":", "\\:")))
            if not result.returns_rows:
                raise BadInputError("the SQL source's query gives no rows: it is no SELECT")
            names, pages = list(result.keys()), result.partitions(_PAGE_ROWS)
            first = next(pages, None)
        except ImportError as error:
            raise BadInputError(
                f"the SQL source needs the Python package {error.name!r}, which is not installed"
            ) from None
        except SQLAlchemyError as error:
            raise _sql_error(error) from None
        if first is None:
            raise BadInputError("the SQL source returned no rows")
        held = until_read.pop_all()
    schema = pa.schema(
        [
            pa.field(
                name, _sql_type(values, contract.columns[name].type if name in contract.columns else None)
            )
            for name, values in zip(names, zip(*first, strict=True), strict=True)
        ]
    )

    def batches() -> Iterator[pa.RecordBatch]:
        page: Any = first
        rows = 0
        with held:
            while page is not None:
                columns = zip(schema, zip(*page, strict=True), strict=True)
                yield pa.RecordBatch.from_arrays([_sql_column(f, v, rows) for f, v in columns], schema=schema)
                rows += len(page)
                try:
                    page = next(pages, None)
                except SQLAlchemyError as error:
                    raise _sql_error(error) from None

    return pa.RecordBatchReader.from_batches(schema, batches())


def _sql_type(values: Sequence[Any], declared: ColumnType | None) -> pa.DataType:
    """What a column is stored as: text where its values are of several kinds, for the contract to judge."""
    try:
        found = pa.array(values).type
    except (pa.ArrowException, OverflowError):
        return pa.string()
    if pa.types.is_null(found):
        return pa.string() if declared is None else arrow_type(declared)
    if pa.types.is_timestamp(found):
        return pa.timestamp("us", "UTC" if found.tz else None)
    if declared is ColumnType.NUMBER and (pa.types.is_integer(found) or pa.types.is_decimal(found)):
        return pa.float64()
    if pa.types.is_decimal(found):
        return pa.decimal128(38, found.scale)
    return found


def _sql_column(field: pa.Field, values: Sequence[Any], rows_before: int) -> pa.Array:
    if pa.types.is_string(field.type):
        values = [value if value is None or isinstance(value, str) else str(value) for value in values]
    if pa.types.is_float64(field.type):
        values = [float(value) if isinstance(value, Decimal) else value for value in values]
    try:
        return pa.array(values, field.type)
    except (pa.ArrowException, OverflowError):
        raise BadInputError(
            f"the SQL source's column {field.name!r} has a value after row {rows_before:,} that is no "
            f"{field.type}, as the values before it are: cast the column in the query"
        ) from None


def _sql_error(error: Exception) -> BadInputError:
    """The database's own words; SQLAlchemy's would repeat the query, and its address."""
    return BadInputError(
        f"the SQL source failed: {_first_line(getattr(error, 'orig', None) or type(error).__name__)}"
    )


def _first_line(error: object) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def _simulate(source: SimulatorSource) -> pa.RecordBatchReader:
    module_name, _, function = source.function.partition(":")
    try:
        simulate = getattr(importlib.import_module(module_name), function)
    except (ImportError, AttributeError):
        raise BadInputError(f"simulator {source.function}: there is no such function") from None
    try:
        stream: pa.RecordBatchReader = simulate(source.table, seed=source.seed, **source.options)
    except (TypeError, ValueError) as error:
        raise BadInputError(f"simulator {source.function}: {error}") from None
    return stream


def _expect_columns(found: Sequence[str], contract: TableContract, where: str) -> None:
    names = set(found)
    twice = sorted(name for name in names if found.count(name) > 1)
    if twice:
        raise BadInputError(f"{where}: columns that stand more than once: {', '.join(twice)}")
    missing = [name for name in contract.columns if name not in names]
    if missing:
        raise BadInputError(
            f"{where}: missing columns: {', '.join(missing)} (found: {', '.join(sorted(names))})"
        )
    extra = sorted(names - set(contract.columns))
    if extra and contract.extra_columns == "forbid":
        raise BadInputError(
            f"{where}: columns the contract does not know: {', '.join(extra)} "
            "(add them, or set extra_columns: drop)"
        )


def without_personal_data(
    stream: pa.RecordBatchReader, contract: TableContract, platform: Platform
) -> pa.RecordBatchReader:
    """Keep the contract's columns in its order; drop or hash what it marks as personal data.

    A hash is HMAC-SHA256 under the platform's key, 32 hexadecimal digits: equal values stay equal, and
    without the key no list of guesses gives them back.
    """
    kept = [name for name in contract.kept_columns if name in stream.schema.names]
    hashed = {name for name in kept if contract.columns[name].pii == "hash"}
    key = platform.pii_key() if hashed else b""
    schema = pa.schema(
        [pa.field(name, pa.string() if name in hashed else stream.schema.field(name).type) for name in kept]
    )

    def batches() -> Iterator[pa.RecordBatch]:
        for batch in stream:
            columns = [
                _hashed(batch.column(name), key) if name in hashed else batch.column(name) for name in kept
            ]
            yield pa.RecordBatch.from_arrays(columns, schema=schema)

    return pa.RecordBatchReader.from_batches(schema, batches())


def _hashed(column: pa.Array, key: bytes) -> pa.Array:
    coded = column.cast(pa.string()).dictionary_encode()
    digests = [
        None if value is None else hmac.digest(key, value.encode(), "sha256").hex()[:32]
        for value in coded.dictionary.to_pylist()
    ]
    return pa.DictionaryArray.from_arrays(coded.indices, pa.array(digests, pa.string())).dictionary_decode()


def _ordered(
    stream: pa.RecordBatchReader, clustering: Sequence[str], platform: Platform
) -> pa.RecordBatchReader:
    """The rows by the columns that the source names, and then by all others: content decides their order."""
    if not clustering:
        return stream
    import duckdb

    schema = stream.schema
    refused: list[BadInputError] = []

    def received() -> Iterator[pa.RecordBatch]:
        try:
            yield from stream
        except BadInputError as error:
            refused.append(error)
            raise

    def batches() -> Iterator[pa.RecordBatch]:
        columns = [*clustering, *(name for name in schema.names if name not in clustering)]
        with query_session(platform) as connection:
            connection.register("received", pa.RecordBatchReader.from_batches(schema, received()))
            try:
                rows = connection.table("received").order(", ".join(map(quoted, columns)))
                for batch in rows.to_arrow_reader(_BATCH_ROWS):
                    yield batch.cast(schema)
            except (duckdb.Error, pa.ArrowException):
                if refused:
                    raise refused[0] from None
                raise

    return pa.RecordBatchReader.from_batches(schema, batches())


def _not_empty(stream: pa.RecordBatchReader, where: str) -> pa.RecordBatchReader:
    def batches() -> Iterator[pa.RecordBatch]:
        rows = 0
        for batch in stream:
            rows += batch.num_rows
            if batch.num_rows:
                yield batch
        if rows == 0:
            raise BadInputError(f"{where}: there are no rows")

    return pa.RecordBatchReader.from_batches(stream.schema, batches())


def arrow_type(kind: ColumnType) -> pa.DataType:
    """The Arrow type of a contract type; timestamps are microseconds in UTC."""
    return _ARROW[kind]


_ARROW: Mapping[ColumnType, pa.DataType] = {
    ColumnType.STRING: pa.string(),
    ColumnType.INTEGER: pa.int64(),
    ColumnType.NUMBER: pa.float64(),
    ColumnType.BOOLEAN: pa.bool_(),
    ColumnType.TIMESTAMP: pa.timestamp("us", "UTC"),
    ColumnType.DATE: pa.date32(),
}
