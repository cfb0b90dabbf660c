"""Delta tables in folders: written whole, versioned, and never twice with the same content."""

import fcntl
import json
import shutil
import time
import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import copy_context
from itertools import chain
from pathlib import Path
from typing import TextIO, TypeVar
from urllib.parse import unquote, urlsplit

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from deltalake import CommitProperties, DeltaTable, PostCommitHookProperties, Schema
from deltalake.exceptions import DeltaError, TableNotFoundError
from deltalake.transaction import AddAction, create_table_with_add_actions
from pyarrow.fs import LocalFileSystem, SubTreeFileSystem

from deployments.errors import BadInputError, ContenderError
from platforms.scratch import scratch_folder
from platforms.snapshot import ContentDigest, Snapshot

Item = TypeVar("Item")

_DIGEST = "contender.digest"
_ROWS = "contender.rows"

# A row group is held in memory while it is written, and again by whoever reads it.
_GROUP_ROWS = 262_144
_GROUP_BYTES = 64 << 20
_SAMPLE_ROWS = 16_384

# A snapshot can be opened for as long as the table stands: an old champion's data is asked for years later.
_CONFIGURATION = {
    "delta.enableExpiredLogCleanup": "false",
    "delta.logRetentionDuration": "interval 36500 days",
    "delta.deletedFileRetentionDuration": "interval 36500 days",
}
_AFTER_COMMIT = PostCommitHookProperties(cleanup_expired_logs=False)

# Files are read and decoded piece by piece: memory does not grow with them.
_BUFFER_BYTES = 1 << 20
_SCAN = ds.ParquetFragmentScanOptions(use_buffered_stream=True, buffer_size=_BUFFER_BYTES, pre_buffer=False)


class DeltaTables:
    """Tables under one folder, a Delta table each, named like `silver/churn/events`.

    A write streams through a staging file, so that its digest is known before anything is committed, and the
    commit is one Delta transaction: a process killed in between leaves the table as it was, and what it left
    behind is removed by the next write.
    """

    def __init__(self, root: Path, scratch: Path) -> None:
        self._root = root
        self._scratch = scratch

    def write(self, table: str, stream: pa.RecordBatchReader) -> Snapshot:
        """Make `stream` the table's newest version, or return the newest where the content is the same.

        Whatever the stream raises is raised here, and then nothing is written.

        Raises:
            BadInputError: a column of a type that a table cannot hold.
        """
        with scratch_folder(self._scratch) as folder:
            staged = folder / "rows.parquet"
            digest = _stage(storable(stream), staged)
            with self._lock(table) as journal:
                self._clear(table, journal)
                newest = self.latest(table)
                if newest is not None and newest.digest == digest.hexdigest():
                    return newest
                self._commit(table, staged, digest, journal)
                committed = self.latest(table)
        if committed is None:
            raise ContenderError(f"table {table}: the version just written cannot be found")
        return committed

    def latest(self, table: str) -> Snapshot | None:
        """The newest version of a table, or None where there is no table yet.

        Raises:
            ContenderError: something else has written to the table.
        """
        uri = self._uri(table)
        try:
            delta = DeltaTable(uri)
        except TableNotFoundError:
            return None
        commit = delta.history(1)[0]
        if _DIGEST not in commit:
            raise ContenderError(
                f"table {table}: version {delta.version()} ({commit.get('operation', 'unknown')}) was not "
                f"written by Contender, so its content is not known; restore an earlier version of {uri}"
            )
        return Snapshot(
            table=table,
            uri=uri,
            version=delta.version(),
            rows=int(commit[_ROWS]),
            digest=str(commit[_DIGEST]),
            columns=tuple(field.name for field in delta.schema().fields),
        )

    def open(self, snapshot: Snapshot) -> ds.Dataset:
        """The rows of one version, to be scanned.

        Raises:
            ContenderError: the version is no longer there.
        """
        try:
            return _dataset(DeltaTable(snapshot.uri, version=snapshot.version))
        except DeltaError:
            raise ContenderError(f"{snapshot}: this version is no longer at {snapshot.uri}") from None

    def batches(
        self, snapshot: Snapshot, columns: Sequence[str] | None = None, rows: int = 131_072
    ) -> Iterator[pa.RecordBatch]:
        """The rows of one version, in their order, in batches of at most `rows`; one is read ahead."""
        dataset = self.open(snapshot)
        names = list(columns) if columns is not None else dataset.schema.names
        yield from _ahead(_decoded(dataset, names, rows))

    def read(self, snapshot: Snapshot, columns: Sequence[str] | None = None) -> pa.Table:
        """All rows of one version, in memory."""
        return self.open(snapshot).to_table(columns=list(columns) if columns is not None else None)

    def _uri(self, table: str) -> str:
        return str(self._root / table)

    def _commit(self, table: str, staged: Path, digest: ContentDigest, journal: TextIO) -> None:
        """Move the staged file into the table and make it the whole content, in one Delta transaction."""
        uri = self._uri(table)
        name = f"part-{digest.hexdigest()[:16]}-{uuid.uuid4().hex}.parquet"
        size = staged.stat().st_size
        schema = Schema.from_arrow(pq.read_schema(staged).remove_metadata())
        Path(uri).mkdir(parents=True, exist_ok=True)
        journal.write(name)
        journal.flush()
        shutil.move(staged, Path(uri) / name)
        added = [
            AddAction(
                path=name,
                size=size,
                partition_values={},
                modification_time=int(time.time() * 1000),
                data_change=True,
                stats=json.dumps({"numRecords": digest.rows}),
            )
        ]
        properties = CommitProperties(custom_metadata={_DIGEST: digest.hexdigest(), _ROWS: str(digest.rows)})
        if DeltaTable.is_deltatable(uri):
            DeltaTable(uri).create_write_transaction(
                actions=added,
                mode="overwrite",
                schema=schema,
                commit_properties=properties,
                post_commithook_properties=_AFTER_COMMIT,
            )
        else:
            create_table_with_add_actions(
                uri,
                schema,
                added,
                configuration=_CONFIGURATION,
                commit_properties=properties,
                post_commithook_properties=_AFTER_COMMIT,
            )
        journal.truncate(0)

    def _clear(self, table: str, journal: TextIO) -> None:
        """Remove the file of a commit that never happened: the journal names it until its commit is done."""
        journal.seek(0)
        name = journal.read()
        uri = self._uri(table)
        if name:
            committed = DeltaTable.is_deltatable(uri) and any(
                file.endswith(name) for file in DeltaTable(uri).file_uris()
            )
            if not committed:
                (Path(uri) / name).unlink(missing_ok=True)
            journal.truncate(0)

    @contextmanager
    def _lock(self, table: str) -> Iterator[TextIO]:
        """One writer at a time; gives the table's journal."""
        path = self._root / f"{table}.lock"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a+", encoding="ascii") as journal:
            fcntl.flock(journal, fcntl.LOCK_EX)
            yield journal


def _stage(stream: pa.RecordBatchReader, staged: Path) -> ContentDigest:
    """Write a stream to a file and digest it; reading, digesting and writing run beside each other."""
    digest = ContentDigest(stream.schema)
    groups = _ahead(_row_groups(stream))
    first = next(groups, None) or stream.schema.empty_table()
    with (
        pq.ParquetWriter(staged, stream.schema, compression="lz4", **_layout(first)) as writer,
        ThreadPoolExecutor(1, "digest") as beside,
    ):
        for group in chain([first], groups):
            digested = beside.submit(_take_in, digest, group)
            writer.write_table(group)
            digested.result()
    return digest


def _layout(group: pa.Table) -> dict[str, list[str]]:
    """Dictionaries where values repeat, and bounds where queries look for them: other ones take half the time."""
    sample = group.slice(0, _SAMPLE_ROWS)
    repeating = [
        name for name in group.column_names if 2 * pc.count_distinct(sample[name]).as_py() <= len(sample)
    ]
    ordered = [f.name for f in group.schema if pa.types.is_temporal(f.type) or pa.types.is_integer(f.type)]
    return {"use_dictionary": repeating, "write_statistics": ordered}


def _decoded(dataset: ds.Dataset, columns: Sequence[str], rows: int) -> Iterator[pa.RecordBatch]:
    """The batches of a dataset's files, made when they are asked for; a scanner would run up to 32 ahead."""
    for path in dataset.files:
        with (
            dataset.filesystem.open_input_file(path) as source,
            pq.ParquetFile(source, buffer_size=_BUFFER_BYTES, pre_buffer=False) as file,
        ):
            for batch in file.iter_batches(rows, columns=columns):
                yield batch.select(columns)


def _take_in(digest: ContentDigest, group: pa.Table) -> None:
    for batch in group.to_batches():
        digest.update(batch)


def _row_groups(stream: pa.RecordBatchReader) -> Iterator[pa.Table]:
    """The batches of a stream, gathered to what makes a row group."""
    gathered: list[pa.RecordBatch] = []
    rows = size = 0
    for batch in stream:
        gathered.append(batch)
        rows += batch.num_rows
        size += batch.nbytes
        if rows >= _GROUP_ROWS or size >= _GROUP_BYTES:
            yield pa.Table.from_batches(gathered)
            gathered, rows, size = [], 0, 0
    if rows:
        yield pa.Table.from_batches(gathered)


def _ahead(items: Iterator[Item]) -> Iterator[Item]:
    """The same items, the next one made in another thread while this one is worked on."""
    context = copy_context()

    def following() -> Item | None:
        return context.run(next, items, None)

    with ThreadPoolExecutor(1, "ahead") as pool:
        coming = pool.submit(following)
        while (item := coming.result()) is not None:
            coming = pool.submit(following)
            yield item


def storable(stream: pa.RecordBatchReader) -> pa.RecordBatchReader:
    """The stream in types that Delta has, so that a table gives back what was written to it.

    Unsigned integers become the next wider signed ones (64 bits: decimals), times are in microseconds (finer
    ones are cut) and in UTC where they have a zone, times of day and columns of nothing but nulls are text.

    Raises:
        BadInputError: a column of a type that a table cannot hold.
    """
    schema = pa.schema([pa.field(f.name, _stored_type(f.name, f.type)) for f in stream.schema])
    if schema.equals(stream.schema):
        return stream

    def batches() -> Iterator[pa.RecordBatch]:
        for batch in stream:
            yield pa.RecordBatch.from_arrays(
                [_stored(column, field.type) for column, field in zip(batch.columns, schema, strict=True)],
                schema=schema,
            )

    return pa.RecordBatchReader.from_batches(schema, batches())


_WIDER = {
    pa.uint8(): pa.int16(),
    pa.uint16(): pa.int32(),
    pa.uint32(): pa.int64(),
    pa.uint64(): pa.decimal128(20, 0),
    pa.float16(): pa.float32(),
    pa.date64(): pa.date32(),
    pa.null(): pa.string(),
    pa.large_string(): pa.string(),
    pa.string_view(): pa.string(),
}


def _stored_type(name: str, kind: pa.DataType) -> pa.DataType:
    if pa.types.is_dictionary(kind):
        return _stored_type(name, kind.value_type)
    if pa.types.is_timestamp(kind):
        return pa.timestamp("us", "UTC" if kind.tz else None)
    if pa.types.is_time(kind):
        return pa.string()
    kind = _WIDER.get(kind, kind)
    held = pa.types.is_signed_integer(kind) or pa.types.is_float32(kind) or pa.types.is_float64(kind)
    if held or kind in {pa.string(), pa.bool_(), pa.date32()} or pa.types.is_decimal128(kind):
        return kind
    raise BadInputError(
        f"column {name!r} has the type {kind}, which a table cannot hold: flatten it or make it text first"
    )


def _stored(column: pa.Array, kind: pa.DataType) -> pa.Array:
    if column.type == kind:
        return column
    if pa.types.is_dictionary(column.type):
        return _stored(column.dictionary_decode(), kind)
    cut = pa.types.is_timestamp(column.type) and column.type.unit == "ns"
    return column.cast(kind, safe=not cut)


def _dataset(table: DeltaTable) -> ds.Dataset:
    """A version's rows, read by Arrow itself where the files are local.

    By default its reading threads call back into Python, and a scan that was not read to its end then hangs or
    crashes the interpreter as it shuts down: every run that stopped with an error would.
    """
    uri = urlsplit(table.table_uri)
    local = SubTreeFileSystem(unquote(uri.path), LocalFileSystem()) if uri.scheme in {"", "file"} else None
    dataset = table.to_pyarrow_dataset(filesystem=local)
    dataset.format.default_fragment_scan_options = _SCAN
    return dataset


def open_delta(path: str, version: int | None = None) -> ds.Dataset:
    """Somebody else's Delta table as a dataset.

    Raises:
        BadInputError: there is no Delta table at `path`, or not that version of it, or it needs a reader that
            knows more.
    """
    try:
        return _dataset(DeltaTable(path, version=version))
    except TableNotFoundError:
        raise BadInputError(f"{path}: there is no Delta table here") from None
    except DeltaError as error:
        if version is not None and "version" in str(error).lower():
            raise BadInputError(f"{path}: there is no version {version} of this Delta table") from None
        raise BadInputError(
            f"{path}: cannot be read as a Delta table: {str(error).splitlines()[0]}"
        ) from None
