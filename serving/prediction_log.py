"""The prediction log: every answered request is one record in a segment, written before the answer is sent.

A segment is a file that one process appends to, and holds a lock on for as long as it does: a segment that can be
locked is done. Its first record says which version wrote it and what the columns are. A record is framed by a mark
that JSON cannot hold, its length and its CRC-32, so a torn or damaged one is seen, and what follows it is found.
"""

import fcntl
import logging
import os
import re
import secrets
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from struct import Struct
from typing import Any, BinaryIO, Self

import numpy as np
import orjson
from pydantic import ValidationError

from deployments.declared import Declared
from deployments.environment import PredictionLogConfig
from deployments.errors import BadInputError, ContenderError
from deployments.personal_data import keyed_hash
from serving.served_model import ServedColumn, ServedModel

SUFFIX = ".segment"
FORMAT = 1

_MARK = b"\xffCPL"
_FRAME = Struct("<4sII")
_MEGABYTE = 1 << 20
_BYTES_READ = 1 << 18
_MEASURED_SECONDS = 1.0
_FULL_SECONDS = 0.2
_LIST_ROWS = 16
"""Columns of so few rows are faster turned into lists than handed to the encoder as arrays."""

_log = logging.getLogger(__name__)


class LogFullError(ContenderError):
    """A record cannot be kept, and answers that are not logged are not to be given."""


@dataclass(slots=True)
class Record:
    """One answered request.

    `columns` are the request's inputs by name and `keys` its entity columns, as the caller sent them; personal data
    in them is hashed or left out when the record is written. `hashed` says that `columns` hold digests already, as
    online features do.
    """

    time_ns: int
    request_id: str
    requester: str | None
    shadow: bool
    status: int
    milliseconds: float
    rows: int
    keys: Mapping[str, list[Any]] | None
    columns: Mapping[str, np.ndarray] | None
    predictions: np.ndarray | list[Any] | None
    scores: np.ndarray | list[Any] | None
    error: str | None
    hashed: bool = False


class SegmentHeader(Declared):
    """What the first record of a segment says of all the others; `columns` are those that are logged, in order."""

    format: int
    segment: str
    endpoint: str
    entity: str
    worker: int
    name: str
    version: str
    model: str
    target: str | None
    columns: tuple[ServedColumn, ...]
    entity_columns: tuple[str, ...]
    created_ns: int


class PredictionLog:
    """The segments that one worker writes.

    `append` returns when the record is with the operating system, so it survives the process; a thread forces what
    was written onto the disk every `sync_milliseconds`. Records that the policy dropped are counted, and the next
    record that can be written is preceded by one that says how many are missing.

    Raises:
        BadInputError: the model has hashed columns, and there is no key to hash with.
    """

    def __init__(
        self,
        folder: Path,
        served: ServedModel,
        *,
        endpoint: str,
        entity: str,
        worker: int,
        config: PredictionLogConfig,
        pii_key: bytes | None,
    ) -> None:
        if served.hashed and not pii_key:
            raise BadInputError(
                f"{served.name} version {served.version} takes personal data ({', '.join(served.hashed)}), and "
                "there is no key to hash it with"
            )
        self.dropped = 0
        self._folder = folder
        self._served = served
        self._endpoint = endpoint
        self._entity = entity
        self._worker = worker
        self._config = config
        self._key = pii_key or b""
        self._budget = config.max_megabytes * _MEGABYTE
        self._hidden = frozenset(served.hidden)
        self._hashed = frozenset(served.hashed)
        self._columns = tuple(column for column in served.columns if column.name not in self._hidden)
        self._plain = tuple(
            (column.name, column.kind == "datetime")
            for column in self._columns
            if column.name not in self._hashed
        )
        self._has_hashed_inputs = len(self._plain) != len(self._columns)
        self._lost = 0
        self._used = 0
        self._measured_at = -1.0e9
        self._lock = threading.Lock()
        self._segment: _OpenSegment | None = None
        self._retired: list[_OpenSegment] = []
        self._stop = threading.Event()
        self._segment = self._opened()
        self._syncing = threading.Thread(target=self._sync_in_groups, name="log-sync", daemon=True)
        self._syncing.start()

    def append(self, record: Record) -> None:
        """Write a record.

        Raises:
            LogFullError: it cannot be written, and the policy is to refuse.
        """
        payload = self._encoded(record)
        with self._lock:
            try:
                self._write(payload)
            except (OSError, LogFullError) as error:
                self._lost += 1
                if self._config.when_full == "refuse":
                    if isinstance(error, LogFullError):
                        raise
                    raise LogFullError(f"the prediction log cannot be written ({error.strerror})") from None
                self.dropped += 1

    def close(self) -> None:
        """Force everything onto the disk and let go of the segment; one without records is removed."""
        self._stop.set()
        self._syncing.join()
        with self._lock:
            if self._segment is not None:
                self._retired.append(self._segment)
                self._segment = None
            retired, self._retired = self._retired, []
        for segment in retired:
            _finish(segment)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _write(self, payload: bytes) -> None:
        """Put one record into a segment with room for it, a note of lost ones first."""
        size = len(payload) + _FRAME.size
        self._expect_room(size)
        segment = self._segment
        if segment is not None and segment.size >= self._config.segment_megabytes * _MEGABYTE:
            self._retire(segment)
            self._measured_at = -1.0e9
            segment = None
        if segment is None:
            self._segment = segment = self._opened()
        try:
            if self._lost:
                self._put(segment, orjson.dumps({"lost": self._lost, "time": time.time_ns()}), payload)
                self._lost = 0
            else:
                self._put(segment, payload)
        except OSError:
            if segment.torn:
                self._retire(segment)
            raise

    def _retire(self, segment: "_OpenSegment") -> None:
        self._retired.append(segment)
        self._segment = None

    def _put(self, segment: "_OpenSegment", *payloads: bytes) -> None:
        """Append records: all of them, or none."""
        frames = b"".join(
            _FRAME.pack(_MARK, len(payload), zlib.crc32(payload)) + payload for payload in payloads
        )
        try:
            written = os.write(segment.descriptor, frames)
            while written < len(frames):
                written += os.write(segment.descriptor, frames[written:])
        except OSError:
            # What is half there goes again; where even that fails, the segment stays torn at its end.
            try:
                os.ftruncate(segment.descriptor, segment.size)
            except OSError:
                segment.torn = True
            raise
        segment.size += len(frames)
        segment.dirty = True
        self._used += len(frames)

    def _expect_room(self, size: int) -> None:
        now = time.monotonic()
        full = self._used + size > self._budget
        if now - self._measured_at > (_FULL_SECONDS if full else _MEASURED_SECONDS):
            self._used = log_bytes(self._folder)
            self._measured_at = now
            full = self._used + size > self._budget
        if full:
            raise LogFullError(
                f"the prediction log of {self._endpoint} has reached its {self._config.max_megabytes} MB; "
                "fold it into its table, or raise serving.log.max_megabytes"
            )

    def _opened(self) -> "_OpenSegment":
        """A new segment, which has its name once it is locked and has its header."""
        created = time.time_ns()
        segment = (
            f"{self._entity}-v{self._served.version}-w{self._worker}-{created:020d}-{secrets.token_hex(4)}"
        )
        path = self._folder / f"{segment}{SUFFIX}"
        staged = path.with_suffix(".partial")
        header = SegmentHeader(
            format=FORMAT,
            segment=segment,
            endpoint=self._endpoint,
            entity=self._entity,
            worker=self._worker,
            name=self._served.name,
            version=self._served.version,
            model=self._served.model,
            target=self._served.target,
            columns=self._columns,
            entity_columns=tuple(name for name in self._served.entity if name not in self._hidden),
            created_ns=created,
        )
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        opened = _OpenSegment(path=path, descriptor=os.open(staged, flags, 0o640))
        try:
            fcntl.flock(opened.descriptor, fcntl.LOCK_EX)
            self._put(opened, header.model_dump_json().encode())
            staged.replace(path)
        except OSError:
            os.close(opened.descriptor)
            staged.unlink(missing_ok=True)
            raise
        opened.empty_size = opened.size
        return opened

    def _sync_in_groups(self) -> None:
        while not self._stop.wait(self._config.sync_milliseconds / 1000):
            with self._lock:
                retired, self._retired = self._retired, []
                segment = self._segment
                dirty = segment is not None and segment.dirty
                if segment is not None:
                    segment.dirty = False
            for finished in retired:
                _finish(finished)
            if segment is not None and dirty:
                # Only this thread closes descriptors, so this one is open whatever `append` does meanwhile.
                _sync(segment)

    def _encoded(self, record: Record) -> bytes:
        content = {
            "time": record.time_ns,
            "id": record.request_id,
            "requester": record.requester,
            "shadow": record.shadow,
            "status": record.status,
            "ms": record.milliseconds,
            "rows": record.rows,
            "keys": self._kept_keys(record.keys) if record.keys else None,
            "columns": self._kept_columns(record) if record.columns is not None else None,
            "predictions": _listed(record.predictions),
            "scores": _listed(record.scores),
            "error": self._kept_error(record.error) if record.error else None,
        }
        try:
            return orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY, default=str)
        except orjson.JSONEncodeError:
            return orjson.dumps(_sayable(content), option=orjson.OPT_SERIALIZE_NUMPY, default=str)

    def _kept_keys(self, keys: Mapping[str, list[Any]]) -> dict[str, Any]:
        return {
            name: self._digests(values) if name in self._hashed else values
            for name, values in keys.items()
            if name not in self._hidden
        }

    def _kept_columns(self, record: Record) -> list[Any]:
        """The columns in the header's order, times as microseconds; None for one that is not there."""
        columns = record.columns
        assert columns is not None
        if self._has_hashed_inputs:
            hashed = self._hashed if not record.hashed else frozenset()
            return [
                self._digests(columns[column.name].tolist())
                if column.name in hashed and column.name in columns
                else _values(columns.get(column.name), is_time=column.kind == "datetime")
                for column in self._columns
            ]
        if record.rows <= _LIST_ROWS:
            try:
                return [
                    columns[name].view(np.int64).tolist() if is_time else columns[name].tolist()
                    for name, is_time in self._plain
                ]
            except KeyError:
                pass
        return [_values(columns.get(name), is_time=is_time) for name, is_time in self._plain]

    def _digests(self, values: Sequence[Any]) -> list[str | None]:
        return [
            None if value is None or value != value else keyed_hash(str(value), self._key)  # noqa: PLR0124
            for value in values
        ]

    def _kept_error(self, error: str) -> str:
        """The message; where the model takes personal data, only the columns it names, for it may quote a value."""
        if not self._hashed and not self._hidden:
            return error
        words = set(re.findall(r"\w+", error))
        named = [
            name
            for name in (*self._served.entity, *(column.name for column in self._served.columns))
            if name in words
        ]
        about = f" It names: {', '.join(dict.fromkeys(named))}." if named else ""
        return f"The message is not kept, as it might repeat personal data.{about}"


@dataclass(slots=True)
class _OpenSegment:
    path: Path
    descriptor: int
    size: int = 0
    empty_size: int = 0
    dirty: bool = False
    torn: bool = False


def _sync(segment: _OpenSegment) -> None:
    try:
        _force(segment.descriptor)
    except OSError as error:
        _log.error("%s: what was logged could not be forced onto the disk: %s", segment.path, error.strerror)


_force: Callable[[int], None] = getattr(os, "fdatasync", os.fsync)


def _finish(segment: _OpenSegment) -> None:
    """Force a segment onto the disk and let go of it."""
    if segment.size == segment.empty_size:
        segment.path.unlink(missing_ok=True)
    else:
        _sync(segment)
    os.close(segment.descriptor)


def _listed(answers: np.ndarray | list[Any] | None) -> Any:
    if isinstance(answers, np.ndarray) and (len(answers) <= _LIST_ROWS or answers.dtype.kind not in "biuf"):
        return answers.tolist()
    return answers


def _values(column: np.ndarray | None, *, is_time: bool) -> Any:
    if column is None:
        return None
    if is_time:
        column = column.view(np.int64)
    if column.dtype.kind in "biuf" and len(column) > _LIST_ROWS:
        return np.ascontiguousarray(column)
    return column.tolist()


def _sayable(content: Any) -> Any:
    """The same content without what JSON cannot say: broken text is mended, integers beyond 64 bits are text."""
    match content:
        case str():
            return content.encode("utf-8", "replace").decode()
        case int() if not -(1 << 63) <= content < 1 << 64:
            return str(content)
        case Mapping():
            return {_sayable(str(name)): _sayable(value) for name, value in content.items()}
        case list() | tuple():
            return [_sayable(value) for value in content]
        case _:
            return content


def segment_files(folder: Path) -> list[Path]:
    """The segments of one endpoint, oldest first within each worker."""
    return sorted(folder.glob(f"*{SUFFIX}"))


def log_bytes(folder: Path) -> int:
    """How much room the segments of one endpoint take."""
    total = 0
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.endswith(SUFFIX):
                try:
                    total += entry.stat().st_size
                except FileNotFoundError:
                    continue
    return total


@dataclass(frozen=True)
class Corruption:
    """Bytes of a segment that hold no record that can be read."""

    file: Path
    offset: int
    bytes: int

    def __str__(self) -> str:
        return f"{self.file}: {self.bytes:,} bytes from offset {self.offset:,} on hold no record that can be read"


class Segment:
    """A segment to be read.

    `live` says whether its process still had it open when it was opened here; if not, this holds its lock until
    it is closed, so that one reader alone removes it. A reader that never removes it does not `hold` it, and may
    `refresh` it instead. `corrupt` grows while records are read.

    Raises:
        CorruptSegmentError: its header cannot be read.
        UnknownFormatError: it is of another format.
    """

    def __init__(self, path: Path, *, hold: bool = True) -> None:
        self.path = path
        self.corrupt: list[Corruption] = []
        self._file: BinaryIO = path.open("rb", buffering=_BYTES_READ)
        try:
            self.live = self._held_by_another(fcntl.LOCK_EX if hold else fcntl.LOCK_SH)
            if not hold:
                fcntl.flock(self._file, fcntl.LOCK_UN)
            self.size = os.fstat(self._file.fileno()).st_size
            self.header, self.start = self._read_header()
        except BaseException:
            self._file.close()
            raise
        self.end = self.start

    def refresh(self) -> None:
        """Take in what was written since, and whether there may be more; for a segment that is not held."""
        # In this order: what nobody writes to any more has its last size.
        self.live = self._held_by_another(fcntl.LOCK_SH)
        fcntl.flock(self._file, fcntl.LOCK_UN)
        # To the end, which also drops what the buffer has: a record that was half there may be gone again.
        self.size = self._file.seek(0, os.SEEK_END)

    @property
    def written_ns(self) -> int:
        """When it was last written to, in nanoseconds since 1970."""
        return os.fstat(self._file.fileno()).st_mtime_ns

    def records(self, start: int = 0) -> Iterator[tuple[int, dict[str, Any]]]:
        """Each whole record from `start` on, with the offset where it ends; `end` follows.

        What is damaged is skipped and noted in `corrupt`. The last record of a live segment may still be on its
        way, and that of a dead process may be torn: neither is corruption, nor read.
        """
        offset = max(start, self.start)
        self.end = offset
        while offset < self.size:
            payload = self._payload_at(offset)
            if payload is not None:
                offset += _FRAME.size + len(payload)
                self.end = offset
                yield offset, orjson.loads(payload)
                continue
            following = self._next_whole(offset + 1)
            if following is None:
                if not self.live and not self._is_torn(offset):
                    self.corrupt.append(Corruption(self.path, offset, self.size - offset))
                return
            self.corrupt.append(Corruption(self.path, offset, following - offset))
            offset = following

    def close(self) -> None:
        """Close the file, and let go of its lock."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _held_by_another(self, kind: int) -> bool:
        """Whether somebody else has the lock; where nobody has, it is this one's now."""
        try:
            fcntl.flock(self._file, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        return False

    def _read_header(self) -> tuple[SegmentHeader, int]:
        payload = self._payload_at(0)
        if payload is None:
            raise CorruptSegmentError(f"{self.path}: the header of this segment cannot be read")
        try:
            header = SegmentHeader.model_validate_json(payload)
        except ValidationError:
            raise CorruptSegmentError(f"{self.path}: the header of this segment says too little") from None
        if header.format != FORMAT:
            raise UnknownFormatError(
                f"{self.path}: this segment has format {header.format}, and only {FORMAT} is known here"
            )
        return header, _FRAME.size + len(payload)

    def _payload_at(self, offset: int) -> bytes | None:
        """The record whose frame begins there, if there is a whole one."""
        self._file.seek(offset)
        head = self._file.read(_FRAME.size)
        if len(head) < _FRAME.size:
            return None
        mark, length, checksum = _FRAME.unpack(head)
        if mark != _MARK or not 0 < length <= self.size - offset - _FRAME.size:
            return None
        payload = self._file.read(length)
        return payload if len(payload) == length and zlib.crc32(payload) == checksum else None

    def _next_whole(self, offset: int) -> int | None:
        """Where the next whole record begins."""
        while offset < self.size:
            self._file.seek(offset)
            piece = self._file.read(_BYTES_READ)
            found = piece.find(_MARK)
            if found < 0:
                if len(piece) < len(_MARK):
                    return None
                offset += len(piece) - len(_MARK) + 1
                continue
            if self._payload_at(offset + found) is not None:
                return offset + found
            offset += found + 1
        return None

    def _is_torn(self, offset: int) -> bool:
        """Whether what begins there is a record that was not written to its end, or room that was never filled."""
        self._file.seek(offset)
        head = self._file.read(_FRAME.size)
        if not head.strip(b"\0"):
            return not any(piece.strip(b"\0") for piece in iter(lambda: self._file.read(_BYTES_READ), b""))
        if len(head) < _FRAME.size:
            return _MARK.startswith(head[: len(_MARK)])
        mark, length, _ = _FRAME.unpack(head)
        return bool(mark == _MARK and length > self.size - offset - _FRAME.size)


class CorruptSegmentError(ContenderError):
    """A segment of which nothing can be read, as its header cannot."""


class UnknownFormatError(ContenderError):
    """A segment that another release of this code wrote."""


def read_segment(path: Path) -> Segment:
    """Open a segment to read its records.

    Raises:
        CorruptSegmentError: its header cannot be read.
        UnknownFormatError: it is of another format.
    """
    return Segment(path)
