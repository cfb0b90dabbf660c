"""Delta tables in folders: written whole, versioned, and never twice with the same content."""

import fcntl
import json
import shutil
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from deltalake import CommitProperties, DeltaTable, Schema
from deltalake.exceptions import TableNotFoundError
from deltalake.transaction import AddAction, create_table_with_add_actions

from deployments.errors import BadInputError, ContenderError
from platforms.snapshot import DigestingStream, Snapshot

_DIGEST = "contender.digest"
_ROWS = "contender.rows"


class DeltaTables:
    """Tables under one folder, a Delta table each, named like `silver/churn/events`.

    A write streams through a staging file, so that its digest is known before anything is committed, and the
    commit is one Delta transaction: a process killed in between leaves the table as it was.
    """

    def __init__(self, root: Path, scratch: Path) -> None:
        self._root = root
        self._scratch = scratch

    def write(self, table: str, stream: pa.RecordBatchReader) -> Snapshot:
        """Make `stream` the table's newest version, or return the newest where the content is the same.

        Raises:
            BadInputError: a column of a type that a table cannot hold.
        """
        passing = DigestingStream(stream)
        staged = self._scratch / f"{uuid.uuid4().hex}.parquet"
        staged.parent.mkdir(parents=True, exist_ok=True)
        try:
            with pq.ParquetWriter(staged, stream.schema, compression="lz4") as writer:
                for batch in passing.reader():
                    writer.write_batch(batch)
            digest = passing.digest.hexdigest()
            with self._lock(table):
                newest = self.latest(table)
                if newest is not None and newest.digest == digest:
                    return newest
                self._commit(table, staged, digest, passing.digest.rows)
        finally:
            staged.unlink(missing_ok=True)
        committed = self.latest(table)
        if committed is None:
            raise ContenderError(f"table {table}: the version just written cannot be found")
        return committed

    def latest(self, table: str) -> Snapshot | None:
        """The newest version of a table, or None where there is no table yet."""
        uri = self._uri(table)
        try:
            delta = DeltaTable(uri)
        except TableNotFoundError:
            return None
        commit = delta.history(1)[0]
        return Snapshot(
            table=table,
            uri=uri,
            version=delta.version(),
            rows=int(commit[_ROWS]),
            digest=str(commit[_DIGEST]),
            columns=tuple(field.name for field in delta.schema().fields),
        )

    def open(self, snapshot: Snapshot) -> ds.Dataset:
        """The rows of one version, to be scanned."""
        return DeltaTable(snapshot.uri, version=snapshot.version).to_pyarrow_dataset()

    def batches(
        self, snapshot: Snapshot, columns: Sequence[str] | None = None, rows: int = 131_072
    ) -> Iterator[pa.RecordBatch]:
        """The rows of one version, in their order, in batches of at most `rows`."""
        scanner = self.open(snapshot).scanner(
            columns=list(columns) if columns is not None else None,
            batch_size=rows,
            batch_readahead=2,
            fragment_readahead=1,
        )
        yield from scanner.to_batches()

    def read(self, snapshot: Snapshot, columns: Sequence[str] | None = None) -> pa.Table:
        """All rows of one version, in memory."""
        return self.open(snapshot).to_table(columns=list(columns) if columns is not None else None)

    def _uri(self, table: str) -> str:
        return str(self._root / table)

    def _commit(self, table: str, staged: Path, digest: str, rows: int) -> None:
        """Move the staged file into the table and make it the whole content, in one Delta transaction."""
        uri = self._uri(table)
        name = f"part-{digest[:16]}-{staged.name}"
        size = staged.stat().st_size
        schema = Schema.from_arrow(pq.read_schema(staged).remove_metadata())
        Path(uri).mkdir(parents=True, exist_ok=True)
        shutil.move(staged, Path(uri) / name)
        added = [
            AddAction(
                path=name,
                size=size,
                partition_values={},
                modification_time=int(time.time() * 1000),
                data_change=True,
                stats=json.dumps({"numRecords": rows}),
            )
        ]
        properties = CommitProperties(custom_metadata={_DIGEST: digest, _ROWS: str(rows)})
        if DeltaTable.is_deltatable(uri):
            DeltaTable(uri).create_write_transaction(
                actions=added, mode="overwrite", schema=schema, commit_properties=properties
            )
        else:
            create_table_with_add_actions(uri, schema, added, commit_properties=properties)

    @contextmanager
    def _lock(self, table: str) -> Iterator[None]:
        path = self._root / f"{table}.lock"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield


def open_delta(path: str, version: int | None = None) -> ds.Dataset:
    """Somebody else's Delta table as a dataset.

    Raises:
        BadInputError: there is no Delta table at `path`, or not that version of it.
    """
    try:
        return DeltaTable(path, version=version).to_pyarrow_dataset()
    except TableNotFoundError:
        raise BadInputError(f"{path}: there is no Delta table here") from None
    except Exception as error:
        if version is None or "version" not in str(error).lower():
            raise
        raise BadInputError(f"{path}: there is no version {version} of this Delta table") from None
