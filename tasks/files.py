"""Files as sources: there, not empty, and not written to while they are read."""

from collections.abc import Iterable
from pathlib import Path

from deployments.errors import BadInputError


def existing(path: Path) -> Path:
    """The path of a file or folder that is there.

    Raises:
        BadInputError: it is not, or has not a single byte.
    """
    if not path.exists():
        raise BadInputError(f"{path}: there is no such file")
    if path.is_file() and path.stat().st_size == 0:
        raise BadInputError(f"{path}: the file is empty")
    return path


class Untouched:
    """Refuses files that somebody still writes to while they are read."""

    def __init__(self, paths: Iterable[Path]) -> None:
        self._seen = {path: self._look(path) for path in paths}

    def confirm(self) -> None:
        """Raise BadInputError if one of the files is no longer what it was."""
        for path, seen in self._seen.items():
            if not path.exists() or self._look(path) != seen:
                raise BadInputError(f"{path}: the file changed while it was read; is it still being written?")

    @staticmethod
    def _look(path: Path) -> tuple[int, int, int]:
        found = path.stat()
        return found.st_size, found.st_mtime_ns, found.st_ino
