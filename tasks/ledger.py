"""The append-only, hash-chained ledger: who did what to which model, and when, in one JSON-lines file.

Events go in; entries come out, each holding the hash of the one before it, so that a line edited, dropped,
reordered or inserted no longer fits its neighbours. A head file beside the ledger holds the number of entries
and the last hash, so that a ledger cut short is found too.

What this cannot detect: whoever can write both files can write a whole new history, hashes and head and all,
or delete both. A bare hash chain has no secret in it. To find that out, keep the head's `last` hash where the
same person cannot write: in a signed evidence bundle, a registry tag, a ticket.
"""

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from deployments.errors import ContenderError

__all__ = ["GENESIS", "Entry", "Ledger", "LedgerError", "Verification"]

GENESIS = "0" * 64
"""What the first entry has in the place of a hash before it."""


class LedgerError(ContenderError):
    """The ledger refused an entry, or what stands in it cannot be trusted."""


Hash = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Name = Annotated[str, Field(min_length=1)]


class Entry(BaseModel):
    """One line of the ledger: `event` happened to `subject` of `model`, at `time` (UTC, ISO 8601)."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    seq: Annotated[int, Field(ge=1)]
    time: Name
    event: Name
    actor: Name
    model: str
    subject: str
    details: dict[str, JsonValue]
    key: Name
    previous: Hash
    hash: Hash


@dataclass(frozen=True)
class Verification:
    """What an audit of the ledger found: the number of lines read, and each problem by its line number."""

    ok: bool
    entries: int
    problems: tuple[str, ...]


@dataclass(frozen=True)
class _Head:
    """What the last append left: how many entries, the last one's hash, the SHA-256 of the whole file.

    The digest lets an append refuse a ledger edited anywhere in it, without following the chain.
    """

    entries: int
    last: str
    digest: str


class Ledger:
    """The ledger in the file at `path`, with its head (`.head.json`) and its lock (`.lock`) beside it.

    Threads and processes may append at once: an exclusive lock on the lock file puts them one after another.
    An append returns once its entry is on the disk. One that is killed leaves nothing, or a torn last line
    that nobody was promised, or a whole entry that the head does not count yet; the next append mends these.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._head_path = path.with_suffix(".head.json")
        self._lock_path = path.with_suffix(".lock")

    def append(
        self, event: str, *, model: str, subject: str, details: Mapping[str, Any], key: str, actor: str
    ) -> Entry:
        """Write one entry and return it, or return the one that already stands under `key`.

        `key` names the step that the entry records, so that a step killed and run again records itself once.
        `details` must be JSON, without NaN or infinities; event, actor and key must not be empty.

        Raises `LedgerError` if `key` stands for something else, if the arguments make no entry, if the ledger
        was changed by anything but an append, or if the disk refuses.
        """
        wanted = {"event": event, "model": model, "subject": subject, "details": _plain(details)}
        with self._locked():
            data, head = self._settled()
            standing = _standing(data, key)
            if standing is not None:
                self._check_same(standing, wanted)
                return standing
            entry = _sealed(
                {
                    **wanted,
                    "seq": head.entries + 1,
                    "time": datetime.now(UTC).isoformat(timespec="microseconds"),
                    "actor": actor,
                    "key": key,
                    "previous": head.last,
                }
            )
            line = _line(entry)
            self._write_line(line)
            self._write_head(_Head(entry.seq, entry.hash, _digest(data + line)))
            return entry

    def entries(self, model: str | None = None) -> Iterator[Entry]:
        """The entries in the order they were written, of one model or of all; a torn last line is left out.

        Raises `LedgerError` at a line that is no entry. Whether the entries are the ones once written is for
        `verify` to say.
        """
        if not self.path.exists():
            return
        with self.path.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                if not line.endswith(b"\n"):
                    return
                try:
                    entry = _entry(line)
                except ValueError:
                    raise LedgerError(
                        f"{self.path}:{number}: this line is not an entry as it was written; "
                        "verify the ledger and restore it from a copy."
                    ) from None
                if model is None or entry.model == model:
                    yield entry

    def verify(self) -> Verification:
        """Follow the whole chain from the first line to the head, and report every break in it.

        What a killed append leaves behind is reported too, as such, until the next append has put it right.
        """
        with self._locked(shared=True):
            return _verified(self._data(), self._head())

    # State and its repair

    def _settled(self) -> tuple[bytes, _Head]:
        """The ledger's bytes and head, after repair of what a killed append may have left."""
        data, head = self._data(), self._head()
        if head is None and not data:
            # Before the first entry: from here on a missing head means that someone took it away.
            head = _Head(0, GENESIS, _digest(b""))
            self._write_head(head)
        whole, tail = _torn(data)
        settled = head if head is not None and _seals(head, whole) else _ahead(head, whole)
        if settled is None:
            problem = _verified(data, head).problems[0]
            raise LedgerError(
                f"{self.path}: the ledger was changed by something other than an append and takes no more "
                f"entries ({problem}). Verify it, and restore it from a copy."
            )
        if settled is not head:
            self._write_head(settled)
        if tail:
            self._cut(len(whole))
        return whole, settled

    def _check_same(self, standing: Entry, wanted: Mapping[str, Any]) -> None:
        # As JSON, where 1, 1.0 and true are three things.
        differing = [
            name for name in wanted if _canonical(wanted[name]) != _canonical(getattr(standing, name))
        ]
        if differing:
            raise LedgerError(
                f"{self.path}: the key {standing.key!r} already stands for entry {standing.seq} "
                f"({standing.event}), with another {' and another '.join(differing)}; "
                "a key must name one step and no other."
            )

    # Files

    def _data(self) -> bytes:
        return self.path.read_bytes() if self.path.exists() else b""

    def _head(self) -> _Head | None:
        """The head as it stands; None if it is missing or is not one."""
        try:
            fields = json.loads(self._head_path.read_bytes())
            head = _Head(**fields)
        except (FileNotFoundError, ValueError, TypeError):
            return None
        return head if type(head.entries) is int else None

    def _write_line(self, line: bytes) -> None:
        with self.path.open("ab") as ledger:
            ledger.write(line)
            ledger.flush()
            os.fsync(ledger.fileno())

    def _cut(self, length: int) -> None:
        with self.path.open("r+b") as ledger:
            ledger.truncate(length)
            os.fsync(ledger.fileno())

    def _write_head(self, head: _Head) -> None:
        temporary = self._head_path.with_suffix(".tmp")
        with temporary.open("wb") as file:
            file.write(_canonical(vars(head)) + b"\n")
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(self._head_path)
        directory = os.open(self.path.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)

    @contextmanager
    def _locked(self, *, shared: bool = False) -> Iterator[None]:
        """Hold the lock; what the disk refuses meanwhile is a `LedgerError`."""
        try:
            with self._lock(shared=shared):
                yield
        except OSError as error:
            raise LedgerError(f"{self.path}: the ledger cannot be used: {error.strerror}.") from error

    @contextmanager
    def _lock(self, *, shared: bool) -> Iterator[None]:
        if shared and not self._lock_path.exists():
            # Nobody appends here: nothing was written yet, or this is a copy, perhaps on a read-only disk.
            yield
            return
        if not shared:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        # Each holder opens the file anew, so that the lock also parts the threads of one process.
        descriptor = os.open(self._lock_path, os.O_RDONLY if shared else os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
            yield
        finally:
            # Closing alone would not unlock it if a process forked meanwhile, and holds the descriptor too.
            fcntl.flock(descriptor, fcntl.LOCK_UN)
            os.close(descriptor)


# Entries and lines


def _canonical(content: object) -> bytes:
    """The one way to write `content` as JSON: keys sorted, no spaces, ASCII, no NaN."""
    return json.dumps(
        content, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False
    ).encode("ascii")


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _plain(details: Mapping[str, Any]) -> dict[str, JsonValue]:
    """`details` as they read back from the file: tuples are lists, keys are sorted."""
    try:
        plain: dict[str, JsonValue] = json.loads(_canonical(dict(details)))
    except (TypeError, ValueError, RecursionError) as error:
        raise LedgerError(f"The details of an entry must be JSON, without NaN: {error}.") from error
    return plain


def _sealed(fields: Mapping[str, Any]) -> Entry:
    try:
        return Entry(**fields, hash=_digest(_canonical(fields)))
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        name = ".".join(str(part) for part in problem["loc"])
        raise LedgerError(f"No entry can be made with this {name}: {problem['msg']}.") from None


def _line(entry: Entry) -> bytes:
    return _canonical(entry.model_dump()) + b"\n"


def _entry(line: bytes) -> Entry:
    """The entry that `line` holds. Raises `ValueError` if one byte of it is not as `append` wrote it."""
    try:
        fields = json.loads(line.decode("ascii"))
        entry = Entry(**fields)
    except (TypeError, RecursionError) as error:
        raise ValueError(str(error)) from error
    sealed = {name: value for name, value in fields.items() if name != "hash"}
    if _digest(_canonical(sealed)) != entry.hash or _line(entry) != line:
        raise ValueError(f"entry {entry.seq} does not match its hash")
    return entry


def _standing(data: bytes, key: str) -> Entry | None:
    """The entry under `key`. Lines are canonical, so the key's bytes find it without parsing every line."""
    needle = b'"key":' + _canonical(key)
    found = data.find(needle)
    while found >= 0:
        end = data.index(b"\n", found) + 1
        fields = json.loads(data[data.rfind(b"\n", 0, found) + 1 : end])
        if fields["key"] == key:
            return Entry(**fields)
        found = data.find(needle, end)  # it stood inside somebody's details
    return None


def _torn(data: bytes) -> tuple[bytes, bytes]:
    """The whole lines, and what follows the last line end."""
    end = data.rfind(b"\n") + 1
    return data[:end], data[end:]


# The chain and its head


def _seals(head: _Head, whole: bytes) -> bool:
    """Whether `head` is what the append of the last of these lines left."""
    if head.digest != _digest(whole) or head.entries != whole.count(b"\n"):
        return False
    try:
        return head.last == (_entry(_last_line(whole)).hash if whole else GENESIS)
    except ValueError:
        return False


def _ahead(head: _Head | None, whole: bytes) -> _Head | None:
    """The head that counts the last line too, if `head` lacks only that line and the whole chain holds."""
    if head is None or not whole or not _seals(head, whole.removesuffix(_last_line(whole))):
        return None
    problems, last = _chain(whole)
    return None if problems else _Head(head.entries + 1, last, _digest(whole))


def _last_line(whole: bytes) -> bytes:
    return whole[whole.rfind(b"\n", 0, -1) + 1 :]


def _chain(whole: bytes) -> tuple[list[str], str]:
    """Every break in the chain of lines, and the hash of the last entry."""
    problems: list[str] = []
    keys: dict[str, int] = {}
    seq, previous = 0, GENESIS
    for number, line in enumerate(whole.split(b"\n")[:-1], start=1):
        seq += 1
        try:
            entry = _entry(line + b"\n")
        except ValueError:
            problems.append(f"line {number}: it is not an entry as it was written; it was edited or put in")
            previous = ""
            continue
        if entry.seq != seq:
            problems.append(
                f"line {number}: it holds entry {entry.seq}, not {seq}; a line was dropped, moved or put in"
            )
        elif previous and entry.previous != previous:
            problems.append(
                f"line {number}: it does not follow from line {number - 1}; one of them was rewritten"
            )
        if entry.key in keys:
            problems.append(f"line {number}: its key stands on line {keys[entry.key]} already; it was put in")
        keys.setdefault(entry.key, number)
        seq, previous = entry.seq, entry.hash
    return problems, previous


def _verified(data: bytes, head: _Head | None) -> Verification:
    whole, tail = _torn(data)
    count = whole.count(b"\n")
    problems, _ = _chain(whole)
    if head is None:
        if data:
            problems.append(f"line {count}: there is no readable head file to say that this is the last line")
    elif head.entries > count:
        problems.append(
            f"line {count + 1}: the head counts {head.entries} entries; from here they were cut off"
        )
    elif _ahead(head, whole) is not None:
        problems.append(f"line {count}: its append was interrupted; the next append will confirm it")
    elif head.entries < count:
        problems.append(f"line {head.entries + 1}: the head counts only the lines before it; it was put in")
    elif not problems and not _seals(head, whole):
        problems.append(f"line {count}: the head names another last entry; one of the two was rewritten")
    if tail and head is not None and head.entries <= count:
        problems.append(f"line {count + 1}: its append was interrupted; the next append will remove it")
    return Verification(not problems, count, tuple(problems))
