"""Ingest: any source becomes a bronze snapshot, as it was received, less the personal data that may not be kept.

Everything streams in record batches, so memory does not grow with the source.
"""

import csv
import hashlib
import hmac
import importlib
from collections.abc import Iterable, Iterator, Mapping
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
from platforms.tables import open_delta

_BATCH_ROWS = 131_072
_CSV_BLOCK_BYTES = 4 << 20


def ingest_table(loaded: LoadedSpec, platform: Platform, name: str, source: Source) -> Snapshot:
    """Store one source as the newest bronze version of its table; the same content again is the same version.

    Raises:
        BadInputError: the source is missing, empty, unreadable, or lacks columns the contract asks for.
    """
    contract = loaded.spec.contract[name]
    stream = read_source(source, contract, platform, beside=loaded.path.parent)
    _expect_columns(stream.schema.names, contract, where=f"{describe(source)} (table {name!r})")
    stream = without_personal_data(stream, contract, platform)
    snapshot = platform.tables.write(
        platform.table("bronze", loaded.name, name), _not_empty(stream, describe(source))
    )
    return snapshot


def read_source(
    source: Source, contract: TableContract, platform: Platform, beside: Path
) -> pa.RecordBatchReader:
    """Open a source as a stream of record batches.

    Raises:
        BadInputError: missing, empty, half-written or wrongly encoded input, with the place where it goes wrong.
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
            return _ordered(open_delta(path, source.version), source)
        case SqlSource():
            return _read_sql(source, platform)
        case SimulatorSource():
            return _simulate(source, contract)


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


def _read_csv(source: CsvSource, path: Path) -> pa.RecordBatchReader:
    if _existing(path).is_dir():
        raise BadInputError(f"{path}: this is a folder; a csv source is one file")
    header = _csv_header(source, path)
    size = path.stat().st_size
    try:
        reader = pacsv.open_csv(
            path,
            read_options=pacsv.ReadOptions(
                encoding=source.encoding, block_size=_CSV_BLOCK_BYTES, column_names=header, skip_rows=1
            ),
            parse_options=pacsv.ParseOptions(delimiter=source.delimiter, newlines_in_values=True),
            convert_options=pacsv.ConvertOptions(
                column_types={name: pa.string() for name in header},
                null_values=list(source.null_values),
                strings_can_be_null=True,
                quoted_strings_can_be_null=True,
            ),
        )
    except (pa.ArrowInvalid, UnicodeDecodeError) as error:
        raise _csv_error(path, source, error) from None

    def batches() -> Iterator[pa.RecordBatch]:
        try:
            yield from reader
        except (pa.ArrowInvalid, UnicodeDecodeError) as error:
            raise _csv_error(path, source, error) from None
        if path.stat().st_size != size:
            raise BadInputError(f"{path}: the file changed while it was read (is it still being written?)")

    return pa.RecordBatchReader.from_batches(reader.schema, batches())


def _csv_header(source: CsvSource, path: Path) -> list[str]:
    """The first row, checked: no duplicate and no empty names."""
    try:
        with path.open(encoding=source.encoding, newline="") as handle:
            header = next(csv.reader(handle, delimiter=source.delimiter), [])
            second = handle.readline()
    except UnicodeDecodeError as error:
        raise _csv_error(path, source, error) from None
    except LookupError:
        raise BadInputError(f"{path}: there is no encoding called {source.encoding!r}") from None
    header = [name.removeprefix("\ufeff") for name in header]
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise BadInputError(f"{path}: the header names {', '.join(map(repr, twice))} more than once")
    if not all(name.strip() for name in header):
        at = next(i for i, name in enumerate(header, 1) if not name.strip())
        raise BadInputError(f"{path}: column {at} of the header has no name")
    if not second:
        raise BadInputError(f"{path}: the file has a header and no rows")
    return header


def _csv_error(path: Path, source: CsvSource, error: Exception) -> BadInputError:
    said = str(error)
    if isinstance(error, UnicodeDecodeError) or "UTF8" in said or "UTF-8" in said:
        where = f" at byte {error.start}" if isinstance(error, UnicodeDecodeError) else ""
        return BadInputError(
            f"{path}: not {source.encoding} text{where}; name the file's encoding in the source, e.g. encoding: latin-1"
        )
    if "CSV parse error" in said or "Expected" in said:
        cut = said.split("CSV parse error: ")[-1].split(":")[0]
        return BadInputError(
            f"{path}: a row does not fit the header ({cut}); is the file half-written, or the delimiter another?"
        )
    return BadInputError(f"{path}: cannot be read as CSV ({type(error).__name__})")


def _read_parquet(path: Path) -> pa.RecordBatchReader:
    _existing(path)
    files = [path] if path.is_file() else sorted(path.rglob("*.parquet"))
    if not files:
        raise BadInputError(f"{path}: there is no Parquet file in this folder")
    for file in files:
        try:
            schema = pq.read_schema(file)
        except (pa.ArrowInvalid, OSError):
            raise BadInputError(
                f"{file}: not a whole Parquet file (half-written, or another format)"
            ) from None
        twice = sorted({name for name in schema.names if schema.names.count(name) > 1})
        if twice:
            raise BadInputError(f"{file}: the columns {', '.join(map(repr, twice))} stand more than once")

    def batches() -> Iterator[pa.RecordBatch]:
        for file in files:
            try:
                with pq.ParquetFile(file) as opened:
                    if not opened.schema_arrow.equals(first, check_metadata=False):
                        raise BadInputError(f"{file}: its columns or types differ from those of {files[0]}")
                    yield from opened.iter_batches(_BATCH_ROWS)
            except (pa.ArrowInvalid, OSError):
                raise BadInputError(f"{file}: the Parquet file is damaged") from None

    first = pq.read_schema(files[0]).remove_metadata()
    return pa.RecordBatchReader.from_batches(
        first, (pa.RecordBatch.from_arrays(batch.columns, schema=first) for batch in batches())
    )


def _ordered(dataset: ds.Dataset, source: Source) -> pa.RecordBatchReader:
    """A dataset as a stream; ordered, where the source says by what, so that its digest is its content's."""
    if not source.clustering:
        return dataset.scanner(batch_size=_BATCH_ROWS, batch_readahead=2, fragment_readahead=1).to_reader()
    import duckdb

    order = ", ".join(f'"{column}"' for column in source.clustering)
    connection = duckdb.connect()
    connection.register("source", dataset)
    return connection.sql(f"SELECT * FROM source ORDER BY {order}").to_arrow_reader(_BATCH_ROWS)


def _read_sql(source: SqlSource, platform: Platform) -> pa.RecordBatchReader:
    url = source.url if isinstance(source.url, str) else platform.secret(source.url.secret)
    if url.startswith("duckdb:"):
        return _read_duckdb(source, url)
    return _read_sqlalchemy(source, url)


def _read_duckdb(source: SqlSource, url: str) -> pa.RecordBatchReader:
    import duckdb

    database = url.removeprefix("duckdb:///") or ":memory:"
    if database != ":memory:":
        _existing(Path(database))
    try:
        connection = duckdb.connect(database, read_only=database != ":memory:")
        return connection.sql(source.query).to_arrow_reader(_BATCH_ROWS)
    except duckdb.Error as error:
        raise BadInputError(f"the SQL source failed: {_first_line(error)}") from None


def _read_sqlalchemy(source: SqlSource, url: str) -> pa.RecordBatchReader:
    """Rows fetched in pages through a server-side cursor; types are settled by the first page."""
    import pandas as pd
    from sqlalchemy import create_engine, text
    from sqlalchemy.exc import SQLAlchemyError

    try:
        connection = create_engine(url).connect().execution_options(stream_results=True)
        pages = pd.read_sql(text(source.query), connection, chunksize=_BATCH_ROWS, dtype_backend="pyarrow")
        first = next(iter(pages), None)
    except SQLAlchemyError as error:
        raise BadInputError(
            f"the SQL source failed: {_first_line(getattr(error, 'orig', None) or type(error))}"
        ) from None
    if first is None:
        connection.close()
        raise BadInputError("the SQL source returned no rows")
    schema = pa.Table.from_pandas(first, preserve_index=False).schema.remove_metadata()
    schema = pa.schema([f.with_type(pa.string()) if pa.types.is_null(f.type) else f for f in schema])

    def batches() -> Iterator[pa.RecordBatch]:
        page: Any = first
        with connection:
            while page is not None:
                try:
                    yield from pa.Table.from_pandas(page, schema=schema, preserve_index=False).to_batches()
                except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
                    raise BadInputError(
                        f"the SQL source changes a column's type between pages: {_first_line(error)}"
                    ) from None
                page = next(iter(pages), None)

    return pa.RecordBatchReader.from_batches(schema, batches())


def _first_line(error: object) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def _simulate(source: SimulatorSource, contract: TableContract) -> pa.RecordBatchReader:  # noqa: ARG001
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


def _expect_columns(found: Iterable[str], contract: TableContract, where: str) -> None:
    names = set(found)
    missing = [name for name in contract.columns if name not in names]
    if missing:
        raise BadInputError(
            f"{where}: missing columns: {', '.join(missing)} (found: {', '.join(sorted(names))})"
        )
    extra = sorted(names - set(contract.columns))
    if extra and contract.extra_columns == "forbid":
        raise BadInputError(
            f"{where}: columns the contract does not know: {', '.join(extra)} (add them, or set extra_columns: drop)"
        )


def without_personal_data(
    stream: pa.RecordBatchReader, contract: TableContract, platform: Platform
) -> pa.RecordBatchReader:
    """Keep the contract's columns in its order; drop or hash what it marks as personal data.

    A hash is HMAC-SHA256 under the platform's key, 32 hexadecimal digits: equal values stay equal, and without
    the key no list of guesses gives them back.
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
        None if value is None else hmac.new(key, value.encode(), hashlib.sha256).hexdigest()[:32]
        for value in coded.dictionary.to_pylist()
    ]
    return pa.DictionaryArray.from_arrays(coded.indices, pa.array(digests, pa.string())).dictionary_decode()


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
