"""Fold: the segments of an endpoint's prediction log become rows of one Delta table, each exactly once.

A commit carries, as Delta transactions, how far it has read each segment, so rows and progress appear together: a
fold killed anywhere is run again and goes on from there. Segments of ended processes are removed once all they
hold is in the table; those that are still written to are folded up to their last whole record.
"""

import argparse
import fcntl
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import orjson
import pyarrow as pa

from deployments.errors import ContenderError
from serving.folders import Folders
from serving.prediction_log import (
    CorruptSegmentError,
    Segment,
    SegmentHeader,
    UnknownFormatError,
    read_segment,
    segment_files,
)
from serving.unanswered import unanswered

_CHUNK_ROWS = 100_000
_CHUNK_BYTES = 16 << 20
"""What is read between two commits; as Python objects it takes several times that."""

_ABANDONED_SECONDS = 3600
_DAY_SECONDS = 86_400
_TRANSACTION_DAYS = 60

_CONFIGURATION = {
    # Progress notes of segments that are long gone leave the table's log.
    "delta.setTransactionRetentionDuration": f"interval {_TRANSACTION_DAYS} days",
    "delta.checkpointInterval": "20",
}

_FEATURE_TYPES = {
    "boolean": pa.bool_(),
    "integer": pa.int64(),
    "long": pa.int64(),
    "float": pa.float64(),
    "double": pa.float64(),
    "string": pa.string(),
    "datetime": pa.timestamp("us", "UTC"),
}
_FORBIDDEN = str.maketrans(dict.fromkeys(" ,;{}()\n\t=", "_"))
"""Characters that Delta does not allow in the names of columns."""

_NO_TIME = -(1 << 63)

FEATURES = "features"

LOST_AT = "contender.lost_at"
"""Noted by a commit: when how many requests were found not to be logged, as pairs of epoch seconds and counts."""

_COLUMNS = pa.schema(
    [
        ("request_date", pa.date32()),
        ("databricks_request_id", pa.string()),
        ("request_time", pa.timestamp("us", "UTC")),
        ("status_code", pa.int32()),
        ("execution_duration_ms", pa.float64()),
        ("requester", pa.string()),
        ("served_entity_id", pa.string()),
        ("endpoint", pa.string()),
        ("served_entity_name", pa.string()),
        ("model_name", pa.string()),
        ("model_version", pa.string()),
        ("shadow", pa.bool_()),
        ("row", pa.int32()),
        ("entity", pa.map_(pa.string(), pa.string())),
        ("prediction", pa.string()),
        ("prediction_number", pa.float64()),
        ("score", pa.float64()),
        ("error", pa.string()),
        ("log_segment", pa.string()),
        ("log_offset", pa.int64()),
    ]
)
"""All columns but the features. The first six are those of Databricks' inference tables, with fractions of
milliseconds; `log_offset` is where the request's record ends in its segment."""


@dataclass(frozen=True)
class FoldResult:
    """What one fold brought into the table.

    `segments` were read; `lost` requests were answered and not logged, as the log was full; `corrupt` says where
    segments were damaged.
    """

    rows: int = 0
    requests: int = 0
    segments: int = 0
    table_version: int | None = None
    corrupt: tuple[str, ...] = ()
    lost: int = 0


def fold(root: Path, endpoint: str) -> FoldResult:
    """Bring everything that is whole in an endpoint's segments into its table.

    One fold of an endpoint at a time: another waits, and then finds what has come since.

    Raises:
        ContenderError: the table is not one that a fold made.
    """
    folders = Folders(root.absolute())
    folder = folders.log(endpoint)
    with _alone(folder / "fold.lock"):
        _sweep(folder)
        table = PredictionTable(folders.predictions(endpoint))
        folding = _Folding(table)
        for path in segment_files(folder):
            folding.read(path)
        folding.commit()
        return folding.result()


def joined(root: Path, endpoint: str, *, champion: str = "champion", since: date | None = None) -> pa.Table:
    """Each request and row once, with what champion, challengers and shadow said of it side by side.

    The columns are `databricks_request_id`, `row`, `request_time`, `entity`, and for each arm (`champion`,
    `challenger`, `shadow`) its `_version`, `_status`, `_prediction`, `_score` and `_milliseconds`, null where the
    arm was not asked. An arm that was asked twice, as after a retry, shows its latest success, else its latest
    failure. `since` leaves out the days before it.

    Raises:
        ContenderError: nothing was folded yet.
    """
    import duckdb

    rows = PredictionTable(Folders(root.absolute()).predictions(endpoint)).dataset()
    arms = {
        "champion": "NOT shadow AND served_entity_name = $champion",
        "challenger": "NOT shadow AND served_entity_name <> $champion",
        "shadow": "shadow",
    }
    fields = {
        "version": "model_version",
        "status": "status_code",
        "prediction": "prediction",
        "score": "score",
        "milliseconds": "execution_duration_ms",
    }
    packed = ", ".join(f"{short} := {column}" for short, column in fields.items())
    best = f"arg_max(struct_pack({packed}), (status_code < 400, request_time))"
    picked = ", ".join(f"{best} FILTER ({condition}) AS {arm}" for arm, condition in arms.items())
    shown = ", ".join(f"{arm}.{short} AS {arm}_{short}" for arm in arms for short in fields)
    query = (
        f'WITH asked AS (SELECT databricks_request_id, "row", min(request_time) AS request_time, '
        f"any_value(entity) AS entity, {picked} FROM predictions WHERE request_date >= $since GROUP BY ALL) "
        f'SELECT databricks_request_id, "row", request_time, entity, {shown} FROM asked '
        'ORDER BY request_time, databricks_request_id, "row"'
    )
    with duckdb.connect(config={"python_enable_replacements": False}) as connection:
        connection.execute("SET TimeZone = 'UTC'")
        connection.register("predictions", rows)
        parameters = {"champion": champion, "since": since or date(1970, 1, 1)}
        return connection.sql(query, params=parameters).to_arrow_table()


class PredictionTable:
    """The Delta table of one endpoint; made by the first commit."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._delta = self._opened()
        # The last commits of a fold that was killed may not have been forced onto the disk.
        self._forced = -1 if self.version is None else max(-1, self.version - 2)

    @property
    def version(self) -> int | None:
        """Its newest version when it was opened, or after the last append; None where there is no table."""
        return int(self._delta.version()) if self._delta is not None else None

    def dataset(self) -> Any:
        """Its rows, to be scanned."""
        if self._delta is None:
            raise ContenderError(f"{self._path}: nothing was folded yet")
        from pyarrow.fs import LocalFileSystem, SubTreeFileSystem

        # Arrow's own file system: one that calls back into Python can hang an interpreter that is shutting down.
        return self._delta.to_pyarrow_dataset(
            filesystem=SubTreeFileSystem(str(self._path), LocalFileSystem())
        )

    def feature_fields(self) -> dict[str, pa.DataType]:
        """The fields of `features` as they are by now."""
        if self._delta is None:
            return {}
        schema = pa.schema(self._delta.schema().to_arrow())
        if FEATURES not in schema.names:
            return {}
        kind = schema.field(FEATURES).type
        return {
            kind.field(place).name: _plain_type(kind.field(place).type) for place in range(kind.num_fields)
        }

    def noted(self, segment: str) -> int | None:
        """The offset that the table's log has for a segment; None where there never was one, or it has expired."""
        noted = self._delta.transaction_version(segment) if self._delta is not None else None
        return int(noted) if noted is not None else None

    def folded_until(self, header: SegmentHeader) -> int:
        """The offset in a segment up to which its records are in the table."""
        if self._delta is None:
            return 0
        noted = self.noted(header.segment)
        if noted is not None:
            return noted
        if time.time() - header.created_ns / 1e9 < _TRANSACTION_DAYS / 2 * _DAY_SECONDS:
            return 0
        # So old that its note may have expired: the rows themselves say where they came from.
        import pyarrow.compute as pc

        found = self.dataset().to_table(
            columns=["log_offset"], filter=pc.field("log_segment") == header.segment
        )
        return int(pc.max(found.column("log_offset")).as_py() or 0)

    def append(self, rows: pa.Table, progress: Mapping[str, int], notes: Mapping[str, str]) -> None:
        """Commit rows together with how far each segment was read."""
        from deltalake import CommitProperties, DeltaTable, Schema, Transaction, write_deltalake

        if self._delta is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._delta = DeltaTable.create(
                self._path,
                schema=Schema.from_arrow(_COLUMNS),
                partition_by=["request_date"],
                configuration=_CONFIGURATION,
                mode="ignore",
            )
        now = int(time.time() * 1000)
        write_deltalake(
            self._delta,
            rows,
            mode="append",
            schema_mode="merge",
            commit_properties=CommitProperties(
                custom_metadata=dict(notes),
                app_transactions=[Transaction(segment, end, now) for segment, end in progress.items()],
            ),
        )
        self._delta = self._opened()

    def lost(self) -> list[tuple[int, int]]:
        """When how many requests were answered and not logged: epoch seconds and counts, as far back as is noted."""
        found: Counter[int] = Counter()
        for commit in self._delta.history() if self._delta is not None else ():
            at = commit.get(LOST_AT)
            noted = (
                orjson.loads(at) if at else [(commit["timestamp"] // 1000, commit.get("contender.lost", 0))]
            )
            for second, count in noted:
                found[second] += int(count)
        return sorted((second, count) for second, count in found.items() if count)

    def force(self) -> None:
        """Force what was committed onto the disk, so that the segments that it came from may go."""
        if self.version is None or self._forced == self.version:
            return
        log = self._path / "_delta_log"
        written = {log, self._path, log / "_last_checkpoint"}
        for version in range(self._forced + 1, self.version + 1):
            written |= set(log.glob(f"{version:020d}.*"))
            commit = log / f"{version:020d}.json"
            for line in commit.read_bytes().splitlines() if commit.exists() else ():
                if added := orjson.loads(line).get("add"):
                    file = self._path / unquote(added["path"])
                    written |= {file, file.parent}
        for path in written:
            _force(path)
        self._forced = self.version

    def _opened(self) -> Any:
        from deltalake import DeltaTable
        from deltalake.exceptions import TableNotFoundError

        try:
            delta = DeltaTable(self._path)
        except TableNotFoundError:
            return None
        if "log_offset" not in {field.name for field in delta.schema().fields}:
            raise ContenderError(f"{self._path}: this table was not made by folding a prediction log")
        return delta


def _plain_type(kind: Any) -> pa.DataType:
    """Types as they are written here, however a reader of Delta shows them."""
    return pa.string() if pa.types.is_large_string(kind) or pa.types.is_string_view(kind) else kind


@dataclass
class _Folding:
    """One fold: what was read and is not committed yet, and what came of all of it."""

    table: PredictionTable
    fields: dict[str, pa.DataType] = field(default_factory=dict)
    batches: list[pa.RecordBatch] = field(default_factory=list)
    progress: dict[str, int] = field(default_factory=dict)
    finished: list[tuple[Path, bool]] = field(default_factory=list)
    pending_rows: int = 0
    pending_bytes: int = 0
    pending_lost: Counter[int] = field(default_factory=Counter)
    pending_corrupt: int = 0
    rows: int = 0
    requests: int = 0
    segments: int = 0
    lost: int = 0
    corrupt: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.fields = self.table.feature_fields()

    def read(self, path: Path) -> None:
        """Take in what a segment has beyond what the table holds, committing whenever that is enough for once."""
        try:
            segment = read_segment(path)
        except FileNotFoundError:
            return
        except CorruptSegmentError as error:
            self.corrupt.append(str(error))
            _set_aside(path)
            return
        except UnknownFormatError as error:
            self.corrupt.append(str(error))
            return
        with segment:
            self.segments += 1
            start = self.table.folded_until(segment.header)
            gathered = _Rows(segment.header, _placed(segment.header, self.fields))
            before = start
            for end, record in segment.records(start):
                gathered.add(record, end)
                self.pending_bytes += end - before
                before = end
                if gathered.count + self.pending_rows >= _CHUNK_ROWS or self.pending_bytes >= _CHUNK_BYTES:
                    self._gather(gathered, segment)
                    self.commit()
                    gathered = _Rows(segment.header, gathered.places)
            if segment.end > start:
                self._gather(gathered, segment)
            damage = [str(one) for one in segment.corrupt]
            self.corrupt += damage
            self.pending_corrupt += len(damage)
            if not segment.live:
                self.finished.append((path, bool(damage)))

    def _gather(self, gathered: "_Rows", segment: Segment) -> None:
        self.progress[segment.header.segment] = segment.end
        self.requests += gathered.requests
        self.pending_lost += gathered.lost
        if gathered.count:
            self.fields |= gathered.new_fields()
            self.batches.append(gathered.batch(self.fields))
            self.pending_rows += gathered.count

    def commit(self) -> None:
        """Bring what was gathered into the table, and then let go of the segments that are done."""
        if self.progress:
            notes = {
                "contender.rows": str(self.pending_rows),
                "contender.lost": str(self.pending_lost.total()),
                LOST_AT: orjson.dumps(sorted(self.pending_lost.items())).decode(),
                "contender.corrupt": str(self.pending_corrupt),
            }
            self.table.append(_as_one(self.batches, self.fields), self.progress, notes)
            self.rows += self.pending_rows
            self.lost += self.pending_lost.total()
        self.batches, self.progress = [], {}
        self.pending_rows = self.pending_bytes = self.pending_corrupt = 0
        self.pending_lost = Counter()
        finished, self.finished = self.finished, []
        if finished:
            self.table.force()
        for path, damaged in finished:
            _remove(path, damaged=damaged)

    def result(self) -> FoldResult:
        return FoldResult(
            rows=self.rows,
            requests=self.requests,
            segments=self.segments,
            table_version=self.table.version,
            corrupt=tuple(self.corrupt),
            lost=self.lost,
        )


def _placed(header: SegmentHeader, fields: Mapping[str, pa.DataType]) -> list[tuple[str, pa.DataType, bool]]:
    """For each logged column: its field in `features`, that field's type, and whether it is a time.

    A field has the column's name, but for characters that Delta does not allow. Where the table has that name
    with another type, or in other letters' case, or this version has it twice, the kind is appended, then a number.
    """
    taken: dict[str, tuple[str, pa.DataType]] = {name.lower(): (name, kind) for name, kind in fields.items()}
    used: set[str] = set()
    places = []
    for column in header.columns:
        kind = _FEATURE_TYPES[column.kind]
        plain = column.name.translate(_FORBIDDEN) or "_"
        for name in _names(plain, column.kind):
            standing = taken.get(name.lower())
            if name.lower() not in used and standing in {None, (name, kind)}:
                break
        used.add(name.lower())
        places.append((name, kind, column.kind == "datetime"))
    return places


def _names(plain: str, kind: str) -> Iterator[str]:
    yield plain
    yield f"{plain}_{kind}"
    count = 2
    while True:
        yield f"{plain}_{kind}_{count}"
        count += 1


class _Rows:
    """The rows of records of one segment, gathered column by column."""

    def __init__(self, header: SegmentHeader, places: Sequence[tuple[str, pa.DataType, bool]]) -> None:
        self.places = places
        self.count = 0
        self.requests = 0
        self.lost: Counter[int] = Counter()
        self._header = header
        self._plain: dict[str, list[Any]] = {name: [] for name in _COLUMNS.names}
        self._features: list[list[Any]] = [[] for _ in places]
        self._featureless: list[bool] = []

    def add(self, record: Mapping[str, Any], end: int) -> None:
        """Take in one record: a row for each predicted row, one row for a request that was refused."""
        if "lost" in record:
            self.lost[record["time"] // 1_000_000_000] += int(record["lost"])
            return
        columns, predictions, scores = record["columns"], record["predictions"], record["scores"]
        rows = record["rows"] if columns is not None or predictions is not None else 1
        moment = record["time"] // 1000
        plain = self._plain
        for name, value in (
            ("request_date", moment // (_DAY_SECONDS * 1_000_000)),
            ("databricks_request_id", record["id"]),
            ("request_time", moment),
            ("status_code", record["status"]),
            ("execution_duration_ms", record["ms"]),
            ("requester", record["requester"]),
            ("shadow", record["shadow"]),
            ("error", record["error"]),
            ("log_offset", end),
        ):
            plain[name].extend([value] * rows)
        plain["row"].extend(range(rows))
        plain["entity"].extend(_entities(record["keys"], rows))
        said = _of_rows(predictions, rows)
        plain["prediction"].extend(map(_text, said))
        plain["prediction_number"].extend(map(_number, said))
        plain["score"].extend(_of_rows(scores, rows))
        for place, values in enumerate(self._features):
            values.extend(_of_rows(columns[place] if columns is not None else None, rows))
        self._featureless.extend([columns is None] * rows)
        self.count += rows
        self.requests += 1

    def new_fields(self) -> dict[str, pa.DataType]:
        """The fields that its features have."""
        return {name: kind for name, kind, _ in self.places}

    def batch(self, fields: Mapping[str, pa.DataType]) -> pa.RecordBatch:
        """The rows, with `features` of all the table's fields."""
        header, count = self._header, self.count
        constant = {
            "served_entity_id": f"{header.endpoint}-{header.entity}-v{header.version}",
            "endpoint": header.endpoint,
            "served_entity_name": header.entity,
            "model_name": header.name,
            "model_version": header.version,
            "log_segment": header.segment,
        }
        arrays = []
        for one in _COLUMNS:
            if one.name in constant:
                arrays.append(pa.repeat(pa.scalar(constant[one.name], one.type), count))
            elif one.name == "request_date":
                arrays.append(pa.array(self._plain[one.name], pa.int32()).cast(one.type))
            else:
                arrays.append(pa.array(self._plain[one.name], one.type))
        if not fields:
            return pa.RecordBatch.from_arrays(arrays, schema=_COLUMNS)
        given = {
            name: _times(values) if is_time else pa.array(values, kind)
            for (name, kind, is_time), values in zip(self.places, self._features, strict=True)
        }
        features = pa.StructArray.from_arrays(
            [given[name] if name in given else pa.nulls(count, kind) for name, kind in fields.items()],
            fields=[pa.field(name, kind) for name, kind in fields.items()],
            mask=pa.array(self._featureless, pa.bool_()),
        )
        return pa.RecordBatch.from_arrays([*arrays, features], schema=_schema(fields))


def _schema(fields: Mapping[str, pa.DataType]) -> pa.Schema:
    if not fields:
        return _COLUMNS
    return _COLUMNS.append(pa.field(FEATURES, pa.struct([pa.field(*one) for one in fields.items()])))


def _as_one(batches: Sequence[pa.RecordBatch], fields: Mapping[str, pa.DataType]) -> pa.Table:
    """Batches gathered while fields were still being added, all with the fields there are now."""
    schema = _schema(fields)
    widened = []
    for batch in batches:
        if batch.schema.equals(schema):
            widened.append(batch)
            continue
        count = batch.num_rows
        old = batch.column(FEATURES) if FEATURES in batch.schema.names else pa.nulls(count, pa.struct([]))
        had = {old.type.field(place).name for place in range(old.type.num_fields)}
        features = pa.StructArray.from_arrays(
            [old.field(name) if name in had else pa.nulls(count, kind) for name, kind in fields.items()],
            fields=[pa.field(name, kind) for name, kind in fields.items()],
            mask=old.is_null(),
        )
        plain = [batch.column(name) for name in _COLUMNS.names]
        widened.append(pa.RecordBatch.from_arrays([*plain, features], schema=schema))
    return pa.Table.from_batches(widened, schema=schema)


def _of_rows(values: Sequence[Any] | None, rows: int) -> Sequence[Any]:
    return values if values is not None and len(values) == rows else [None] * rows


def _times(microseconds: Sequence[int | None]) -> pa.Array:
    known = [None if moment == _NO_TIME else moment for moment in microseconds]
    return pa.array(known, pa.int64()).cast(_FEATURE_TYPES["datetime"])


def _entities(keys: Mapping[str, Sequence[Any]] | None, rows: int) -> list[Any]:
    """The key of each row, by column and as text."""
    if not keys or any(len(values) != rows for values in keys.values()):
        return [None] * rows
    return [
        [(name, _text(value)) for name, value in zip(keys, row, strict=True)]
        for row in zip(*keys.values(), strict=True)
    ]


def _text(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    return orjson.dumps(value).decode()


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _force(path: Path) -> None:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(path: Path, *, damaged: bool) -> None:
    """Let go of a segment that is in the table; one with damage is kept beside, to be looked at."""
    if damaged:
        _set_aside(path)
    else:
        path.unlink(missing_ok=True)


def _set_aside(path: Path) -> None:
    path.replace(path.with_suffix(".damaged"))


def _sweep(folder: Path) -> None:
    """Remove segments that never came to their name, as their process died in between."""
    for staged in folder.glob("*.partial"):
        try:
            if time.time() - staged.stat().st_mtime > _ABANDONED_SECONDS:
                staged.unlink()
        except FileNotFoundError:
            continue


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Wait for the lock of a file, and hold it."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def main(arguments: Sequence[str] | None = None) -> int:
    """Fold one endpoint's log and say what came of it in one line of JSON."""
    parser = argparse.ArgumentParser(prog="python -m serving.fold", description=__doc__.split("\n", 1)[0])
    parser.add_argument("--root", type=Path, required=True, help="the environment's data root")
    parser.add_argument("--endpoint", required=True)
    given = parser.parse_args(arguments)
    try:
        result = fold(given.root, given.endpoint)
        path = Folders(given.root.absolute()).predictions(given.endpoint)
        lost_at = PredictionTable(path).lost()
        unanswered_at = unanswered(Folders(given.root.absolute()).logs, given.endpoint)
    except ContenderError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    folded = asdict(result) | {"folded_at": datetime.now(UTC), "table": str(path)}
    folded |= {"lost_at": lost_at, "unanswered_at": unanswered_at}
    sys.stdout.write(orjson.dumps(folded).decode() + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
