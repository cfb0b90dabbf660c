"""A lock on a file: one holder at a time, and free again when its process ends, however it dies."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from deployments.errors import ContenderError


class BusyError(ContenderError):
    """Somebody else is at it."""


@contextmanager
def held(path: Path, busy: str) -> Iterator[None]:
    """Hold the lock of `path`, a file that is made when it is missing.

    Raises:
        BusyError: says `busy`; another process or thread holds it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # Each holder opens the file anew, so that the lock also parts the threads of one process.
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BusyError(busy) from None
        yield
    finally:
        os.close(descriptor)
