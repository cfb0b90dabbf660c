"""Scratch folders: where unfinished work lies. What a killed process left there, the next one sweeps up."""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_PREFIX = "held-"


@contextmanager
def scratch_folder(root: Path) -> Iterator[Path]:
    """A new folder under `root`, gone when the block ends.

    Its owner holds a lock on it, which the system lets go of when the process dies, however it dies. So a
    folder that can be locked is nobody's, and is removed. Process ids would not tell: they are used again,
    and are all alike in containers that share a disk.
    """
    root.mkdir(parents=True, exist_ok=True)
    _sweep(root)
    folder, handle = _held(root)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(handle)


def _held(root: Path) -> tuple[Path, int]:
    """A new folder and the lock on it."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=root))
        # Until it is locked, somebody else may sweep it away.
        try:
            handle = os.open(folder, os.O_RDONLY)
        except FileNotFoundError:
            continue
        fcntl.flock(handle, fcntl.LOCK_EX)
        if folder.exists():
            return folder, handle
        os.close(handle)


def _sweep(root: Path) -> None:
    for folder in root.glob(f"{_PREFIX}*"):
        try:
            handle = os.open(folder, os.O_RDONLY)
        except FileNotFoundError:
            continue
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            continue
        else:
            shutil.rmtree(folder, ignore_errors=True)
        finally:
            os.close(handle)
