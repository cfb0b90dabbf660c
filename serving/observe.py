"""Observe: every request that an endpoint answers, as soon as it is logged, for somebody who looks all the time.

`python -m serving.observe --root R --endpoint E --since MOMENT` answers each line `poll` on its standard input with
what was logged since the one before: eight bytes of length (big-endian), then an Arrow IPC stream of `SCHEMA`, whose
metadata says what else there is to know. It ends when its standard input does, or its parent.
"""

import argparse
import operator
import os
import select
import signal
import sys
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc

from deployments.errors import BadInputError, ContenderError
from serving.fold import PredictionTable
from serving.folders import Folders
from serving.prediction_log import (
    SUFFIX,
    CorruptSegmentError,
    Segment,
    UnknownFormatError,
)

MOST_REQUESTS = 200_000
MOST_ROWS = 500_000
"""At so many, what is still to come waits for the next poll."""

POLL_SECONDS = 1.0
"""A poll that takes longer answers with what it has."""

_MTIME_SLACK_NS = 1_000_000_000
"""A file system's clock may be a little behind the one that requests are timed by."""

_PARENT_SECONDS = 1.0
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

SCHEMA = pa.schema(
    [
        ("request_id", pa.string()),
        ("time", pa.timestamp("us", "UTC")),
        ("entity", pa.string()),
        ("version", pa.string()),
        ("shadow", pa.bool_()),
        ("status", pa.int32()),
        ("milliseconds", pa.float64()),
        ("rows", pa.int32()),
        ("scores", pa.list_(pa.float64())),
        ("predictions", pa.list_(pa.string())),
        ("requester", pa.string()),
    ]
)
"""One row a request. `rows` were predicted, 0 where the request was refused; `scores` are the model's, or its
predictions where these are numbers and it gives no scores; `predictions` are text, as JSON has them but for quotes."""

_FOLDED = {
    "request_id": "databricks_request_id",
    "time": "request_time",
    "entity": "served_entity_name",
    "version": "model_version",
    "shadow": "shadow",
    "status": "status_code",
    "milliseconds": "execution_duration_ms",
    "requester": "requester",
}
_FOLDED_ROWS = ("row", "prediction", "prediction_number", "score", "log_segment", "log_offset")


@dataclass
class _Tail:
    """A segment that is read as it grows, and how far it was read."""

    segment: Segment
    offset: int


@dataclass(frozen=True)
class _Fold:
    """What one commit of a fold brought into the table: from which segments, and what they lacked."""

    segments: tuple[str, ...]
    lost: int
    corrupt: int
    moment_ns: int


class Observer:
    """Gives every request of an endpoint from a moment on, by the time that it came, exactly once.

    What was folded before is taken from the table, all else from the segments. A segment stays open while it is
    read, so a fold that removes it takes nothing away; one that came and went unseen is taken from the table.

    Raises:
        ContenderError: the table is not one that a fold made.
    """

    def __init__(self, root: Path, endpoint: str, since: datetime) -> None:
        folders = Folders(root.absolute())
        self._folder = folders.log(endpoint)
        self._table = folders.predictions(endpoint)
        self._since = since
        self._since_ns = (since - _EPOCH) // timedelta(microseconds=1) * 1000
        self._tails: dict[str, _Tail] = {}
        self._done: set[str] = set()
        self._before = PredictionTable(self._table)
        self._next_fold = 0 if self._before.version is None else self._before.version + 1
        self._folded: deque[Iterator[pa.Table]] = deque([_requests(self._before, since)])
        self._rest: pa.Table | None = None
        self._lost, self._corrupt = self._lacking_before()

    def poll(self) -> pa.Table:
        """What was logged since the last poll, by the time that it came; `SCHEMA` with metadata.

        The metadata: `more` is 1 where there is more already; `lost` counts requests that were answered and not
        logged, at most (a fold counts those of several segments together); `corrupt` lists, as JSON, where
        records cannot be read.
        """
        new = _New(self._since_ns, lost=self._lost, corrupt=self._corrupt)
        self._lost, self._corrupt = 0, []
        self._find(new)
        self._take_folded(new)
        self._take_logged(new)
        return new.table()

    def close(self) -> None:
        """Let go of the segments."""
        for tail in self._tails.values():
            tail.segment.close()
        self._tails = {}

    def _find(self, new: "_New") -> None:
        """Open segments that appeared, and have what was folded unseen read from the table."""
        with os.scandir(self._folder) as entries:
            names = {entry.name.removesuffix(SUFFIX) for entry in entries if entry.name.endswith(SUFFIX)}
        for name in sorted(names - self._done - self._tails.keys()):
            self._open(name, new)
        missed: dict[str, int] = {}
        while (fold := self._fold(self._next_fold)) is not None:
            self._next_fold += 1
            for name in fold.segments:
                if name not in self._done and name not in self._tails and not self._open(name, new):
                    missed[name] = self._before.noted(name) or 0
                    self._done.add(name)
            if missed.keys() & set(fold.segments):
                new.lost += fold.lost
                new.corrupt += self._said_of(fold)
        if missed:
            self._folded.append(_requests(PredictionTable(self._table), self._since, missed))
        # A segment goes only after all commits with its records, and those that there are were just looked at.
        self._done &= names

    def _open(self, name: str, new: "_New") -> bool:
        """Begin to read a segment; false where it is gone."""
        path = self._folder / f"{name}{SUFFIX}"
        try:
            segment = Segment(path, hold=False)
        except FileNotFoundError:
            return False
        except (CorruptSegmentError, UnknownFormatError) as error:
            new.corrupt.append(str(error))
            self._done.add(name)
            return True
        if not segment.live and segment.written_ns < self._since_ns - _MTIME_SLACK_NS:
            segment.close()
            self._done.add(name)
        else:
            self._tails[name] = _Tail(segment, self._before.folded_until(segment.header))
        return True

    def _take_folded(self, new: "_New") -> None:
        while not new.full():
            if self._rest is not None:
                self._rest = new.take(self._rest)
                continue
            if not self._folded:
                return
            self._rest = next(self._folded[0], None)
            if self._rest is None:
                self._folded.popleft()

    def _take_logged(self, new: "_New") -> None:
        for name, tail in list(self._tails.items()):
            if new.full():
                return
            segment = tail.segment
            if segment.live:
                segment.refresh()
            known = len(segment.corrupt)
            for end, record in segment.records(tail.offset):
                tail.offset = end
                new.add(record, segment)
                if new.full():
                    break
            else:
                if not segment.live:
                    segment.close()
                    del self._tails[name]
                    self._done.add(name)
            new.corrupt += [str(one) for one in segment.corrupt[known:]]

    def _lacking_before(self) -> tuple[int, list[str]]:
        """What folds since the moment from which on is observed found to be lost or corrupt."""
        lost, corrupt = 0, []
        for version in range(self._next_fold - 1, -1, -1):
            fold = self._fold(version)
            if fold is None or fold.moment_ns < self._since_ns:
                break
            lost += fold.lost
            corrupt += self._said_of(fold)
        return lost, corrupt

    def _said_of(self, fold: _Fold) -> list[str]:
        return [f"{self._table}: a fold found {fold.corrupt} damaged stretches"] if fold.corrupt else []

    def _fold(self, version: int) -> _Fold | None:
        """What one version of the table brought; None where there is none yet."""
        try:
            content = (self._table / "_delta_log" / f"{version:020d}.json").read_bytes()
        except FileNotFoundError:
            return None
        actions = [orjson.loads(line) for line in content.splitlines() if line]
        notes: Mapping[str, Any] = next((one["commitInfo"] for one in actions if "commitInfo" in one), {})
        return _Fold(
            tuple(one["txn"]["appId"] for one in actions if "txn" in one),
            int(notes.get("contender.lost", 0)),
            int(notes.get("contender.corrupt", 0)),
            int(notes.get("timestamp", 0)) * 1_000_000,
        )


class _New:
    """What one poll gives, as it is gathered."""

    def __init__(self, since_ns: int, *, lost: int, corrupt: Sequence[str]) -> None:
        self.lost = lost
        self.corrupt = list(corrupt)
        self._since_ns = since_ns
        self._until = time.monotonic() + POLL_SECONDS
        self._requests = self._rows = 0
        self._tables: list[pa.Table] = []
        self._columns: list[list[Any]] = [[] for _ in SCHEMA]
        self._was_full = False

    def full(self) -> bool:
        """Whether this is enough for once."""
        self._was_full = (
            self._requests >= MOST_REQUESTS or self._rows >= MOST_ROWS or time.monotonic() > self._until
        )
        return self._was_full

    def add(self, record: Mapping[str, Any], segment: Segment) -> None:
        """Take in one record of a segment, unless it is from before."""
        if record["time"] < self._since_ns:
            return
        if "lost" in record:
            self.lost += int(record["lost"])
            return
        header, predictions = segment.header, record["predictions"]
        request = (
            record["id"],
            record["time"] // 1000,
            header.entity,
            header.version,
            record["shadow"],
            record["status"],
            record["ms"],
            len(predictions) if predictions is not None else 0,
            _scores(record["scores"], predictions),
            None if predictions is None else [_text(one) for one in predictions],
            record["requester"],
        )
        for values, value in zip(self._columns, request, strict=True):
            values.append(value)
        self._requests += 1
        self._rows += request[7]

    def take(self, requests: pa.Table) -> pa.Table | None:
        """Take in requests, as many as there is room for; the others are given back."""
        room = MOST_REQUESTS - self._requests
        taken = requests.slice(0, room)
        self._tables.append(taken)
        self._requests += len(taken)
        self._rows += pc.sum(taken["rows"]).as_py() or 0
        return requests.slice(room) if len(requests) > room else None

    def table(self) -> pa.Table:
        """Everything, with the metadata."""
        logged = pa.table(
            [pa.array(values, one.type) for values, one in zip(self._columns, SCHEMA, strict=True)], SCHEMA
        )
        metadata = {
            "more": "1" if self._was_full else "0",
            "lost": str(self.lost),
            "corrupt": orjson.dumps(self.corrupt).decode(),
        }
        requests = pa.concat_tables([*self._tables, logged]).sort_by("time")
        return requests.replace_schema_metadata(metadata)


def _text(prediction: Any) -> str | None:
    if prediction is None or isinstance(prediction, str):
        return prediction
    return orjson.dumps(prediction).decode()


def _scores(scores: list[Any] | None, predictions: list[Any] | None) -> list[Any] | None:
    if scores is not None or predictions is None:
        return scores
    numbers = [
        one if isinstance(one, int | float) and not isinstance(one, bool) else None for one in predictions
    ]
    return numbers if any(one is not None for one in numbers) else None


def _requests(
    table: PredictionTable, since: datetime, segments: Mapping[str, int] | None = None
) -> Iterator[pa.Table]:
    """The table's requests from a moment on, file by file; of some segments alone, those behind an offset in each."""
    if table.version is None:
        return
    dataset = table.dataset()
    wanted = pc.field("request_time") >= pa.scalar(since, pa.timestamp("us", "UTC"))
    if segments is not None:
        wanted &= reduce(
            operator.or_,
            [
                (pc.field("log_segment") == name) & (pc.field("log_offset") > offset)
                for name, offset in segments.items()
            ],
        )
    days = pc.field("request_date") >= pa.scalar(since.astimezone(UTC).date(), pa.date32())
    columns = [*_FOLDED.values(), *_FOLDED_ROWS]
    for fragment in dataset.get_fragments(days):
        rows = fragment.to_table(dataset.schema, columns=columns, filter=wanted)
        if len(rows):
            yield _by_request(rows)


def _by_request(rows: pa.Table) -> pa.Table:
    """The table's rows, one each for what was predicted, as one a request."""
    order = [(name, "ascending") for name in ("log_segment", "log_offset", "row")]
    rows = rows.sort_by(order).combine_chunks()
    segment = rows["log_segment"].combine_chunks().dictionary_encode().indices.to_numpy()
    offset = rows["log_offset"].to_numpy()
    others = (segment[1:] != segment[:-1]) | (offset[1:] != offset[:-1])
    first = np.flatnonzero(np.concatenate([[True], others]))
    bounds = np.append(first, len(rows))
    counts = np.diff(bounds)
    requests = rows.take(pa.array(first))
    answered = requests["status_code"].to_numpy() < 400
    scored = np.add.reduceat(rows["score"].is_valid().to_numpy().astype(np.int64), first) > 0
    numbered = np.add.reduceat(rows["prediction_number"].is_valid().to_numpy().astype(np.int64), first) > 0
    scores = pc.if_else(pa.array(np.repeat(scored, counts)), rows["score"], rows["prediction_number"])
    made = {
        "rows": pa.array(np.where(answered, counts, 0), pa.int32()),
        "scores": _lists(bounds, scores.cast(pa.float64()), ~(answered & (scored | numbered))),
        "predictions": _lists(bounds, rows["prediction"].cast(pa.string()), ~answered),
    }
    return pa.table(
        [
            made[one.name] if one.name in made else requests[_FOLDED[one.name]].cast(one.type)
            for one in SCHEMA
        ],
        SCHEMA,
    )


def _lists(bounds: np.ndarray, values: pa.ChunkedArray, missing: np.ndarray) -> pa.ListArray:
    offsets = pa.array(bounds, pa.int32())
    return pa.ListArray.from_arrays(offsets, values.combine_chunks(), mask=pa.array(missing))


# The process ------------------------------------------------------------------------------------------------


def _polls(parent: int) -> Iterator[None]:
    """Each time that we are asked, until nobody is left who could."""
    held = b""
    while True:
        if not select.select([0], [], [], _PARENT_SECONDS)[0]:
            # Somebody else may have the other end of the pipe, too; without our parent we end all the same.
            if os.getppid() != parent:
                return
            continue
        said = os.read(0, 4096)
        if not said:
            return
        *lines, held = (held + said).split(b"\n")
        for line in lines:
            if line != b"poll":
                raise BadInputError(f"{line!r} is nothing that can be asked here; ask: poll")
            yield


def _answer(answers: int, table: pa.Table) -> None:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)
    content = sink.getvalue()
    for part in (content.size.to_bytes(8, "big"), content):
        left = memoryview(part)
        while left:
            left = left[os.write(answers, left) :]


def main(arguments: Sequence[str] | None = None) -> int:
    """Answer polls until standard input ends."""
    parent = os.getppid()
    # Whoever asks decides when it is over, also where both are told to by one key.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parser = argparse.ArgumentParser(prog="python -m serving.observe", description="Observe an endpoint.")
    parser.add_argument("--root", type=Path, required=True, help="the environment's data root")
    parser.add_argument("--endpoint", required=True)
    parser.add_argument("--since", type=datetime.fromisoformat, required=True, help="with a time zone")
    given = parser.parse_args(arguments)
    # What libraries print is no answer.
    answers = os.dup(1)
    os.dup2(2, 1)
    try:
        if given.since.tzinfo is None:
            raise BadInputError(f"--since {given.since.isoformat()}: this has no time zone")
        observer = Observer(given.root, given.endpoint, given.since)
        for _ in _polls(parent):
            _answer(answers, observer.poll())
    except BrokenPipeError:
        return 0
    except ContenderError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    except OSError as error:
        sys.stderr.write(f"{error.filename or given.root}: {error.strerror}\n")
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
