"""Online features: the features of every key as of one moment, looked up by key in a file that never changes.

Publishing builds a new store beside the one that serves and then moves a pointer to it. A store is an LMDB file that
readers map into memory; a value holds the columns' bytes, so numbers come back to the last bit.
"""

import argparse
import fcntl
import hashlib
import os
import re
import secrets
import sys
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, date, datetime, timedelta
from itertools import chain
from pathlib import Path
from struct import Struct
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

import lmdb
import numpy as np
from pydantic import ValidationError

from deployments.declared import Declared
from deployments.errors import BadInputError, ContenderError
from deployments.online_features import OnlineFeatureSet, PublishedFeatures, ValueKind
from deployments.personal_data import keyed_hash
from serving.folders import Folders

if TYPE_CHECKING:
    import pyarrow as pa

POINTER = "current.json"
FORMAT = 1

_BATCH_ROWS = 16_384
_FIRST_MAP_BYTES = 64 << 20
_LONGEST_KEY = 500
"""LMDB keys have at most 511 bytes; a longer key is stored under its digest."""

_CODES = {"boolean": "?", "long": "q", "double": "d", "datetime": "q", "string": "I"}
_EPOCH = datetime(1970, 1, 1)  # noqa: DTZ001 - moments are kept in UTC and without a zone, as models take them
_MICROSECOND = timedelta(microseconds=1)
_INTEGER = re.compile(r"[+-]?[0-9]+")


class _Pointer(Declared):
    """Which store serves, and what it holds."""

    format: int
    store: str
    previous: str | None
    rows: int
    published_at: datetime
    features: OnlineFeatureSet


class _Layout:
    """How a row's columns lie in a value: a bit for each null, the fixed parts, then the texts."""

    def __init__(self, kinds: Mapping[str, ValueKind]) -> None:
        self.kinds = dict(kinds)
        self._names = tuple(kinds)
        self._nulls = (len(kinds) + 7) // 8
        self._fixed = Struct(f"<{self._nulls}s" + "".join(_CODES[kind] for kind in kinds.values()))
        self._none = bytes(self._nulls)
        self._texts = tuple(name for name, kind in kinds.items() if kind == "string")
        self._times = tuple(name for name, kind in kinds.items() if kind == "datetime")

    def packed(self, row: Sequence[Any]) -> bytes:
        """A row's values, in the order of the columns; times are microseconds since 1970."""
        nulls, fixed, texts = 0, [], []
        for place, (value, kind) in enumerate(zip(row, self.kinds.values(), strict=True)):
            if value is None:
                nulls |= 1 << place
                fixed.append(0)
            elif kind == "string":
                text = value.encode()
                texts.append(text)
                fixed.append(len(text))
            else:
                fixed.append(value)
        return self._fixed.pack(nulls.to_bytes(self._nulls, "little"), *fixed) + b"".join(texts)

    def unpacked(self, value: bytes) -> dict[str, Any]:
        """The row by column; times are naive UTC."""
        nulls, *fixed = self._fixed.unpack_from(value)
        row = dict(zip(self._names, fixed, strict=True))
        at = self._fixed.size
        for name in self._texts:
            end = at + row[name]
            row[name] = value[at:end].decode()
            at = end
        for name in self._times:
            row[name] = _EPOCH + timedelta(microseconds=row[name])
        if nulls != self._none:
            bits = int.from_bytes(nulls, "little")
            for place, name in enumerate(self._names):
                if bits >> place & 1:
                    row[name] = None
        return row


def _packed_key(values: Sequence[Any], kinds: Sequence[ValueKind]) -> bytes:
    """A key's bytes: alike for equal keys and different for others, texts with their lengths."""
    parts = []
    for value, kind in zip(values, kinds, strict=True):
        if kind == "string":
            text = value.encode("utf-8", "surrogatepass")
            parts.append(len(text).to_bytes(4, "big") + text)
        elif kind == "double":
            parts.append(_DOUBLE.pack(value + 0.0))
        elif kind == "boolean":
            parts.append(b"\1" if value else b"\0")
        else:
            parts.append(_LONG.pack(value))
    key = b"".join(parts)
    return b"\0" + key if len(key) <= _LONGEST_KEY else b"\1" + hashlib.sha256(key).digest()


_DOUBLE, _LONG = Struct(">d"), Struct(">q")


# Looking up -------------------------------------------------------------------------------------------------


class OnlineFeatures:
    """The store that was served when this was opened; for use in one thread.

    Open with `OnlineFeatures.open`. `stale` says when another was published since.
    """

    def __init__(self, folder: Path, pointer: _Pointer, mark: tuple[int, ...], pii_key: bytes | None) -> None:
        features = pointer.features
        self.snapshot = features.snapshot
        self.as_of = features.as_of
        self.entity = features.entity
        self.columns = features.columns
        self._pointer = str(folder / POINTER)
        self._mark = mark
        self._layout = _Layout(features.columns)
        self._default = None if features.default is None else _whole(features.default, features.columns)
        self._key = pii_key or b""
        self._hashed = frozenset(features.hashed)
        self._store = _store(folder / pointer.store)

    @classmethod
    def open(cls, folder: Path, *, pii_key: bytes | None = None) -> "OnlineFeatures | None":
        """What is served from `folder`; None where nothing was published.

        Raises:
            BadInputError: keys are personal data, and there is no key to hash them with.
            ContenderError: the store is damaged or of another format.
        """
        for attempt in range(5):
            try:
                with (folder / POINTER).open("rb") as file:
                    mark, content = _mark(os.fstat(file.fileno())), file.read()
            except FileNotFoundError:
                return None
            pointer = _pointer(folder, content)
            hashed = [name for name in pointer.features.entity if name in pointer.features.hashed]
            if hashed and not pii_key:
                raise BadInputError(
                    f"{', '.join(hashed)}: personal data, and there is no key to hash it with"
                )
            try:
                return cls(folder, pointer, mark, pii_key)
            except FileNotFoundError:
                # Since the pointer was read, two others were published, and the store it named is gone.
                if attempt == 4:
                    raise ContenderError(f"{folder / pointer.store}: this store is missing") from None
            except lmdb.Error as error:
                raise ContenderError(f"{folder / pointer.store}: this store is damaged ({error})") from None
        raise AssertionError

    def lookup(self, keys: Mapping[str, Sequence[Any]]) -> list[Mapping[str, Any] | None]:
        """The features of each key by column, in the kinds of `columns`; None for a key that is not known.

        Args:
            keys: for each entity column a value for each row; numbers may be given as text, as csv does.

        Raises:
            BadInputError: an entity column is missing or not of the same length, or a value is not of its kind.
        """
        columns = []
        for name, kind in self.entity.items():
            values = keys.get(name)
            if values is None:
                raise BadInputError(f"the key column {name!r} is missing")
            coerce, hidden = _COERCE[kind], name in self._hashed
            try:
                coerced = [coerce(value) for value in values]
                columns.append([keyed_hash(value, self._key) for value in coerced] if hidden else coerced)
            except (TypeError, ValueError, OverflowError):
                row = _first_refused(coerce, values)
                shown = "the value" if hidden else repr(values[row])
                raise BadInputError(f"{name!r}, row {row}: {shown} is no key of type {kind}") from None
        if len({len(values) for values in columns}) > 1:
            raise BadInputError(f"the key columns ({', '.join(self.entity)}) are not equally long")
        kinds = tuple(self.entity.values())
        get, unpacked = self._store.get, self._layout.unpacked
        found = (get(_packed_key(key, kinds)) for key in zip(*columns, strict=True))
        return [None if value is None else unpacked(value) for value in found]

    def declared_default(self) -> Mapping[str, Any] | None:
        """What an unknown key has; None where unknown keys are refused."""
        return self._default

    def stale(self) -> bool:
        """Whether another store was published since this one was opened."""
        try:
            return _mark(os.stat(self._pointer)) != self._mark  # noqa: PTH116 - asked at every request
        except FileNotFoundError:
            return True


class _Store:
    """An open store; a process may open a file only once, so those who read the same file share it."""

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise FileNotFoundError(path)
        self._environment = lmdb.open(
            str(path), subdir=False, readonly=True, lock=False, create=False, readahead=False
        )
        self._reading = self._environment.begin()
        self.get: Callable[[bytes], bytes | None] = self._reading.get

    def __del__(self) -> None:
        if hasattr(self, "_reading"):
            self._reading.abort()
            self._environment.close()


_stores: weakref.WeakValueDictionary[Path, _Store] = weakref.WeakValueDictionary()


def _store(path: Path) -> _Store:
    path = path.resolve()
    store = _stores.get(path)
    if store is None:
        store = _stores[path] = _Store(path)
    return store


def _mark(status: os.stat_result) -> tuple[int, ...]:
    return (status.st_ino, status.st_mtime_ns, status.st_size)


def _pointer(folder: Path, content: bytes) -> _Pointer:
    try:
        pointer = _Pointer.model_validate_json(content)
    except ValidationError:
        raise ContenderError(f"{folder / POINTER}: this is no pointer to online features") from None
    if pointer.format != FORMAT:
        raise ContenderError(f"{folder / POINTER}: format {pointer.format}, and only {FORMAT} is known here")
    return pointer


# Values of a declared kind ----------------------------------------------------------------------------------


def _integer(value: Any) -> int:
    if isinstance(value, np.generic):
        value = value.item()
    is_text = isinstance(value, str) and _INTEGER.fullmatch(value)
    if is_text or (isinstance(value, float) and value.is_integer()):
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not -(1 << 63) <= value < 1 << 63:
        raise ValueError
    return value


def _number(value: Any) -> float:
    if isinstance(value, bool | np.bool_) or value is None:
        raise ValueError
    number = float(value)
    if number != number:  # noqa: PLR0124 - not a number
        raise ValueError
    return number


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, int | np.integer) and not isinstance(value, bool):
        return str(value)
    raise ValueError


def _boolean(value: Any) -> bool:
    if isinstance(value, bool | np.bool_):
        return bool(value)
    if value in {"true", "false"}:
        return bool(value == "true")
    raise ValueError


def _microseconds(value: Any) -> int:
    """A moment as microseconds since 1970 in UTC; without a zone it is in UTC."""
    if isinstance(value, np.datetime64):
        value = value.astype("datetime64[us]").item()
    if isinstance(value, str):
        value = datetime.fromisoformat(value)
    if isinstance(value, date) and not isinstance(value, datetime):
        value = datetime(value.year, value.month, value.day)  # noqa: DTZ001
    if not isinstance(value, datetime):
        raise TypeError
    if value.tzinfo is not None:
        value = value.astimezone(UTC).replace(tzinfo=None)
    return int((value - _EPOCH) // _MICROSECOND)


_COERCE: dict[ValueKind, Callable[[Any], Any]] = {
    "boolean": _boolean,
    "long": _integer,
    "double": _number,
    "string": _text,
    "datetime": _microseconds,
}


def _first_refused(coerce: Callable[[Any], Any], values: Sequence[Any]) -> int:
    for row, value in enumerate(values):
        try:
            coerce(value)
        except (TypeError, ValueError, OverflowError):
            return row
    raise AssertionError


def _whole(default: Mapping[str, Any], kinds: Mapping[str, ValueKind]) -> dict[str, Any]:
    """A value for each column: the declared one, else null."""
    layout = _Layout(kinds)
    row = [
        None if default.get(name) is None else _COERCE[kind](default[name]) for name, kind in kinds.items()
    ]
    return layout.unpacked(layout.packed(row))


# Publishing -------------------------------------------------------------------------------------------------


def publish(folder: Path, rows: Iterable["pa.RecordBatch"], features: OnlineFeatureSet) -> PublishedFeatures:
    """Build a store of `rows` beside the one that serves, and make it the one.

    The store before stays for those who have it open; earlier ones are removed. Rows without a whole key are left
    out and counted.

    Raises:
        BadInputError: a column is missing or not of its kind, a key stands twice, or a default is not of its kind.
        ContenderError: another process is publishing here.
    """
    if features.default is not None:
        _check_default(features)
    with _alone(folder / "publish.lock"):
        before = _standing(folder)
        _remove_others(folder, keep={before.store, before.previous} if before else set())
        name = f"store-{secrets.token_hex(8)}.lmdb"
        staged = folder / f"{name}.partial"
        try:
            count, unkeyed = _build(staged, rows, features)
            staged.replace(folder / name)
        finally:
            staged.unlink(missing_ok=True)
        pointer = _Pointer(
            format=FORMAT,
            store=name,
            previous=before.store if before else None,
            rows=count,
            published_at=datetime.now(UTC),
            features=features,
        )
        _point(folder, pointer)
        _remove_others(folder, keep={pointer.store, pointer.previous})
    return PublishedFeatures(
        endpoint=folder.name,
        snapshot=features.snapshot,
        as_of=features.as_of,
        rows=count,
        unkeyed=unkeyed,
        store=name,
    )


def _check_default(features: OnlineFeatureSet) -> None:
    for name, value in (features.default or {}).items():
        if name not in features.columns:
            raise BadInputError(f"the default names {name!r}, which is not among the features")
        try:
            _whole({name: value}, {name: features.columns[name]})
        except (TypeError, ValueError, OverflowError):
            raise BadInputError(
                f"the default of {name!r}, {value!r}, is not of type {features.columns[name]}"
            ) from None


def _standing(folder: Path) -> _Pointer | None:
    try:
        return _pointer(folder, (folder / POINTER).read_bytes())
    except FileNotFoundError:
        return None


def _point(folder: Path, pointer: _Pointer) -> None:
    """Move the pointer, after what it points to is on the disk."""
    staged = folder / f"{POINTER}.partial"
    with staged.open("w", encoding="utf-8") as file:
        file.write(pointer.model_dump_json(indent=1))
        file.flush()
        os.fsync(file.fileno())
    _sync_folder(folder)
    staged.replace(folder / POINTER)
    _sync_folder(folder)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove_others(folder: Path, keep: set[str | None]) -> None:
    """Remove stores that nobody points to, and what a killed publisher left."""
    for path in folder.glob("store-*"):
        if path.name not in keep:
            path.unlink(missing_ok=True)


def _build(path: Path, rows: Iterable["pa.RecordBatch"], features: OnlineFeatureSet) -> tuple[int, int]:
    """Write all rows to a new store; how many there are, and how many had no whole key."""
    entity, kinds = tuple(features.entity), tuple(features.entity.values())
    layout = _Layout(features.columns)
    count = unkeyed = 0
    # Nobody reads it before it is whole, so it is forced onto the disk once, at its end.
    environment = lmdb.open(
        str(path), subdir=False, map_size=_FIRST_MAP_BYTES, lock=False, sync=False, metasync=False
    )
    try:
        for batch in rows:
            keys = [_column(batch, name, kind) for name, kind in features.entity.items()]
            values = [_column(batch, name, kind) for name, kind in features.columns.items()]
            items = []
            for key, row in zip(zip(*keys, strict=True), zip(*values, strict=True), strict=True):
                if any(part is None or part != part for part in key):  # noqa: PLR0124 - not a number
                    unkeyed += 1
                else:
                    items.append((_packed_key(key, kinds), layout.packed(row)))
            items.sort()
            if _put(environment, items) != len(items):
                raise BadInputError(
                    f"{features.snapshot}: a key ({', '.join(entity)}) stands more than once, so there is no "
                    "one row to look up"
                )
            count += len(items)
        environment.sync(True)
    finally:
        environment.close()
    return count, unkeyed


def _put(environment: lmdb.Environment, items: Sequence[tuple[bytes, bytes]]) -> int:
    """Add items whose keys are new, making room as it is needed; how many were."""
    while True:
        try:
            with environment.begin(write=True) as writing:
                _, added = writing.cursor().putmulti(items, overwrite=False)
                return int(added)
        except lmdb.MapFullError:
            environment.set_mapsize(environment.info()["map_size"] * 2)


def _column(batch: "pa.RecordBatch", name: str, kind: ValueKind) -> list[Any]:
    """A column's values as Python has them; times as microseconds in UTC."""
    import pyarrow as pa

    if name not in batch.schema.names:
        raise BadInputError(
            f"the feature table has no column {name!r} (it has {', '.join(batch.schema.names)})"
        )
    column = batch.column(name)
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    kinds = {
        "boolean": pa.bool_(),
        "long": pa.int64(),
        "double": pa.float64(),
        "string": pa.string(),
        "datetime": pa.timestamp("us"),
    }
    try:
        cast = column.cast(kinds[kind])
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        raise BadInputError(
            f"column {name!r} is of type {column.type}, and its values do not go into {kind}"
        ) from None
    values: list[Any] = (cast.cast(pa.int64()) if kind == "datetime" else cast).to_pylist()
    return values


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Hold the lock of a file, or say that somebody else is publishing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ContenderError(
                f"online features of {path.parent.name} are being published already"
            ) from None
        yield
    finally:
        os.close(descriptor)


def _rows_of(table: str, version: int, columns: Sequence[str]) -> Iterator["pa.RecordBatch"]:
    """The rows of one version of a Delta table, in small batches."""
    from deltalake import DeltaTable
    from deltalake.exceptions import DeltaError
    from pyarrow.fs import LocalFileSystem, SubTreeFileSystem

    try:
        delta = DeltaTable(table, version=version)
    except DeltaError:
        raise BadInputError(f"{table}: there is no version {version} of a Delta table here") from None
    uri = urlsplit(delta.table_uri)
    local = SubTreeFileSystem(unquote(uri.path), LocalFileSystem()) if uri.scheme in {"", "file"} else None
    dataset = delta.to_pyarrow_dataset(filesystem=local)
    known = [name for name in columns if name in dataset.schema.names]
    scanner = dataset.scanner(columns=known, batch_size=_BATCH_ROWS, batch_readahead=2, fragment_readahead=1)
    yield from scanner.to_batches()


def main(arguments: Sequence[str] | None = None) -> int:
    """Publish one version of a feature table; what to publish of it is read from standard input."""
    parser = argparse.ArgumentParser(prog="python -m serving.online", description=__doc__.split("\n", 1)[0])
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("publish", help="make a feature table the one that is looked up")
    command.add_argument("--root", type=Path, required=True, help="the environment's data root")
    command.add_argument("--endpoint", required=True)
    command.add_argument("--table", required=True, help="a Delta table, by folder or URI")
    command.add_argument("--version", type=int, required=True)
    given = parser.parse_args(arguments)
    try:
        try:
            features = OnlineFeatureSet.model_validate_json(sys.stdin.read())
        except ValidationError as error:
            raise BadInputError(f"standard input does not say what to publish: {error}") from None
        names = list(dict.fromkeys(chain(features.entity, features.columns)))
        rows = _rows_of(given.table, given.version, names)
        published = publish(Folders(given.root).online(given.endpoint), rows, features)
    except ContenderError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    sys.stdout.write(published.model_dump_json() + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
