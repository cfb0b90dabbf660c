"""API keys: who may call, in one file that holds callers and SHA-256 digests, and no key.

A key is 256 random bits, so a plain SHA-256 is enough: there is no dictionary to try it against, and a salt or a slow
hash would buy nothing. The key itself is shown once, when it is made. A caller may hold two at a time, so that a new
key is in use before the old one is revoked.
"""

import fcntl
import hashlib
import json
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

from pydantic import AwareDatetime, Field, ValidationError

from deployments.declared import Declared
from deployments.errors import BadInputError, first_line

__all__ = ["MARK", "Key", "callers", "digest_of", "listed", "new_key", "revoke"]

MARK = "contender_"
"""What every key begins with, so that scanners for leaked secrets can know one."""

OVERLAP = 2
"""Valid keys that a caller may have: the one in use, and the one that takes over."""

Caller = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.@-]{0,62}$")]


class Key(Declared):
    """One key, known by the SHA-256 of its text; `expires_at` has a time zone."""

    digest: str = Field(pattern=r"^[0-9a-f]{64}$")
    caller: Caller
    created_at: AwareDatetime
    expires_at: AwareDatetime | None = None

    @property
    def name(self) -> str:
        """What people call the key by: the first twelve digits of its digest."""
        return self.digest[:12]

    def valid(self, now: datetime) -> bool:
        """Whether it opens anything at `now`."""
        return self.expires_at is None or now < self.expires_at


class _KeyFile(Declared):
    keys: tuple[Key, ...] = ()


def digest_of(key: str) -> str:
    """The SHA-256 of a key's text, in hexadecimal."""
    return hashlib.sha256(key.encode()).hexdigest()


def new_key(path: Path, caller: str, expires: datetime | None = None) -> str:
    """Make a key for a caller and answer it; nobody can be told it again.

    Raises:
        BadInputError: the caller's name cannot stand in a header, the key would be born expired, or the caller
            holds two valid keys already.
    """
    now = datetime.now(UTC)
    if expires is not None and expires.tzinfo is None:
        raise BadInputError(f"the expiry {expires.isoformat()} has no time zone; add one, such as +00:00.")
    if expires is not None and expires <= now:
        raise BadInputError(
            f"the expiry {expires.isoformat()} is in the past; a key must be valid when made."
        )
    key = MARK + secrets.token_urlsafe(32)
    try:
        made = Key(digest=digest_of(key), caller=caller, created_at=now, expires_at=expires)
    except ValidationError:
        raise BadInputError(
            f"{caller!r} cannot be a caller's name: use up to 63 letters, digits and . _ @ -, "
            "beginning with a letter or a digit."
        ) from None
    with _changing(path):
        kept = [one for one in listed(path) if one.valid(now)]
        held = [one.name for one in kept if one.caller == caller]
        if len(held) >= OVERLAP:
            raise BadInputError(
                f"{caller!r} holds {len(held)} valid keys already ({', '.join(held)}); "
                "revoke one before you make another."
            )
        _write(path, [*kept, made])
    return key


def revoke(path: Path, caller: str, name: str | None = None) -> tuple[Key, ...]:
    """End one key of a caller, or all; answers the keys that were ended.

    Raises:
        BadInputError: the caller has no such key.
    """
    with _changing(path):
        known = listed(path)
        ended = tuple(one for one in known if one.caller == caller and (name is None or one.name == name))
        if not ended:
            which = "no key" if name is None else f"no key {name!r}"
            raise BadInputError(f"{caller!r} has {which} in {path}; there was nothing to revoke.")
        _write(path, [one for one in known if one not in ended])
    return ended


def listed(path: Path) -> tuple[Key, ...]:
    """All keys in the file, oldest first, expired ones included; none where there is no file.

    Raises:
        BadInputError: the file is not what this module writes.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return ()
    except OSError as error:
        raise BadInputError(f"{path}: the API keys cannot be read: {error.strerror}.") from None
    try:
        return _KeyFile.model_validate_json(content).keys
    except ValidationError as error:
        problem = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in problem["loc"]) or "the file"
        raise BadInputError(
            f"{path}: these are not API keys as Contender writes them: {where}: {problem['msg']}."
        ) from None


def callers(path: Path, now: datetime) -> Mapping[str, str]:
    """Who holds each key that is valid at `now` (with a time zone), by the key's digest.

    Raises:
        BadInputError: as `listed`.
    """
    return {key.digest: key.caller for key in listed(path) if key.valid(now)}


def _write(path: Path, keys: list[Key]) -> None:
    """Write the file for its owner alone, whole or not at all."""
    content = _KeyFile(keys=tuple(keys)).model_dump(mode="json")
    staged = path.with_name(f"{path.name}.{secrets.token_hex(4)}.partial")
    descriptor = os.open(staged, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            json.dump(content, file, indent=2)
            file.flush()
            os.fsync(file.fileno())
        staged.replace(path)
    except OSError as error:
        staged.unlink(missing_ok=True)
        raise BadInputError(f"{path}: the API keys cannot be written: {first_line(error)}.") from None


@contextmanager
def _changing(path: Path) -> Iterator[None]:
    """One change at a time, also of several processes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path.with_name(f"{path.name}.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
