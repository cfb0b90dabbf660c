"""Ingest: any source becomes a bronze snapshot, as it was received, less personal data that may not be kept.

Everything streams in record batches, so memory does not grow with the source.
"""

import importlib
import inspect
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from deployments.contract import TableContract
from deployments.errors import BadInputError
from deployments.personal_data import keyed_hash
from deployments.source import CsvSource, DeltaSource, ParquetSource, SimulatorSource, Source, SqlSource
from deployments.spec import LoadedSpec
from platforms.platform import Platform
from platforms.snapshot import Snapshot
from platforms.tables import open_delta, storable
from tasks.arrow_types import arrow_type
from tasks.csv_source import read_csv
from tasks.files import Untouched, existing
from tasks.queries import query_session, quoted
from tasks.sql_source import read_sql

__all__ = ["arrow_type", "describe", "ingest_table", "read_source", "without_personal_data"]

_BATCH_ROWS = 131_072
_READ_BYTES = 1 << 20


def ingest_table(
    loaded: LoadedSpec, platform: Platform, name: str, source: Source, until: datetime | None = None
) -> Snapshot:
    """Store one source as the newest bronze version of its table; the same content again is the same version.

    A simulated source has what was known at `until`; any other has what it has.

    Raises:
        BadInputError: the source is missing, empty, unreadable, or lacks columns the contract asks for.
    """
    contract = loaded.spec.contract[name]
    where = f"{describe(source)} (table {name!r})"
    received = read_source(source, contract, platform, beside=loaded.path.parent, until=until)
    _expect_columns(received.schema.names, contract, where)
    kept = storable(without_personal_data(received, contract, platform))
    stream = _not_empty(_ordered(kept, source.clustering, platform), where)
    return platform.tables.write(platform.table("bronze", loaded.name, name), stream)


def read_source(
    source: Source,
    contract: TableContract,
    platform: Platform,
    beside: Path,
    until: datetime | None = None,
) -> pa.RecordBatchReader:
    """Open a source as a stream of record batches; a simulated one ends at `until`.

    Raises:
        BadInputError: missing, empty, half-written or wrongly encoded input, with the place where it goes
            wrong; also while the stream is read.
    """
    match source:
        case CsvSource():
            return read_csv(source, Path(platform.resolve(source.path, beside)))
        case ParquetSource():
            return _read_parquet(Path(platform.resolve(source.path, beside)))
        case DeltaSource():
            path = platform.resolve(source.path, beside)
            if "://" not in path and not Path(path).exists():
                raise BadInputError(f"{path}: there is no such file or Delta table")
            return _scan(open_delta(path, source.version), path)
        case SqlSource():
            return read_sql(source, contract, platform, beside)
        case SimulatorSource():
            return _simulate(source, until)


def describe(source: Source) -> str:
    """A source in a few words, without secrets."""
    match source:
        case CsvSource() | ParquetSource() | DeltaSource():
            return source.path
        case SqlSource():
            return "the SQL query"
        case SimulatorSource():
            return f"simulator {source.function}"


def _read_parquet(path: Path) -> pa.RecordBatchReader:
    if existing(path).is_dir() and (path / "_delta_log").exists():
        raise BadInputError(f"{path}: this is a Delta table; name it with kind: delta")
    files = [path] if path.is_file() else sorted(filter(_finished(path), path.rglob("*.parquet")))
    if not files:
        raise BadInputError(f"{path}: there is no Parquet file in this folder")
    untouched = Untouched(files)
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


def _finished(folder: Path) -> Callable[[Path], bool]:
    """By convention a leading dot or underscore marks what a writer has not finished."""
    return lambda file: not any(part.startswith((".", "_")) for part in file.relative_to(folder).parts)


def _parquet_schema(file: Path) -> pa.Schema:
    try:
        return pq.read_schema(file).remove_metadata()
    except (pa.ArrowInvalid, OSError):
        raise BadInputError(f"{file}: not a whole Parquet file (half-written, or another format)") from None


def _scan(dataset: ds.Dataset, path: str) -> pa.RecordBatchReader:
    """A Delta table's rows; in small batches, as the scanner reads up to 32 of them ahead."""
    scanner = dataset.scanner(batch_size=_BATCH_ROWS // 8, batch_readahead=2, fragment_readahead=1)

    def batches() -> Iterator[pa.RecordBatch]:
        try:
            yield from scanner.to_batches()
        except (pa.ArrowInvalid, OSError):
            raise BadInputError(f"{path}: a file of the Delta table is missing or damaged") from None

    return pa.RecordBatchReader.from_batches(scanner.projected_schema, batches())


def _simulate(source: SimulatorSource, until: datetime | None) -> pa.RecordBatchReader:
    """What the function gives; it is told the moment if it has a parameter for it."""
    module_name, _, function = source.function.partition(":")
    try:
        simulate = getattr(importlib.import_module(module_name), function)
    except (ImportError, AttributeError):
        raise BadInputError(f"simulator {source.function}: there is no such function") from None
    clock = (
        {"until": until} if until is not None and "until" in inspect.signature(simulate).parameters else {}
    )
    try:
        stream: pa.RecordBatchReader = simulate(source.table, seed=source.seed, **{**source.options, **clock})
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

    A hash is under the platform's key, by which `serving` hashes what callers send: equal values stay equal.
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
    digests = [None if value is None else keyed_hash(value, key) for value in coded.dictionary.to_pylist()]
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
