"""Which code is running: git commit, whether the tree was dirty, and a digest that works without git."""

import hashlib
import subprocess
from functools import cache
from importlib.metadata import distributions
from pathlib import Path

from deployments.declared import Declared

ROOT = Path(__file__).resolve().parent.parent
_PACKAGES = ("deployments", "platforms", "tasks", "flows")


class CodeVersion(Declared):
    """The code a model was made with. `commit` is None outside a git checkout, where `dirty` is true."""

    commit: str | None
    dirty: bool
    digest: str


@cache
def code_version() -> CodeVersion:
    """The code of this process; looked at once.

    Installed inside somebody else's checkout (a virtual environment in a project), it has no commit of its own.
    """
    tracked = _git("ls-files", "--error-unmatch", "--", __file__)
    commit = _git("rev-parse", "HEAD") if tracked is not None else None
    status = _git("status", "--porcelain", "--", *_PACKAGES) if commit is not None else None
    return CodeVersion(commit=commit, dirty=status is None or status != "", digest=_code_digest())


def _git(*arguments: str) -> str | None:
    try:
        asked = subprocess.run(
            ["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=False, timeout=30
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return asked.stdout.strip() if asked.returncode == 0 else None


def _code_digest() -> str:
    """SHA-256 over the Python sources of our packages; specs and queries are digested by themselves."""
    whole = hashlib.sha256()
    for package in _PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            whole.update(f"{path.relative_to(ROOT)}\0".encode())
            whole.update(hashlib.sha256(path.read_bytes()).digest())
    return whole.hexdigest()


@cache
def environment_lock() -> str:
    """The installed packages, `name==version`, one a line, sorted; looked at once."""
    named = ((item.metadata["Name"], item.version) for item in distributions())
    installed = {f"{name.lower()}=={number}" for name, number in named if name}
    return "\n".join(sorted(installed)) + "\n"
