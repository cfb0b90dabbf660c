"""The Python environment of a served version: ours where it will do, else a virtual environment built by uv.

An environment is named by the digest of what it holds, so versions that ask for the same share one. It is built where
it stays, under a lock, and counts once its marker is written: what a killed build left is built anew.
"""

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from deployments.errors import BadInputError, ContenderError

SCORER_PACKAGES = (
    "httptools",
    "lmdb",
    "numpy",
    "orjson",
    "prometheus-client",
    "pydantic",
    "pyyaml",
    "uvicorn",
    "uvloop",
)
"""What a scorer needs besides the model's own requirements."""

_READY = "ready"
_SECONDS = 900
_SOURCE = Path(__file__).parents[1]


class EnvironmentNotBuiltError(ContenderError):
    """A version's environment could not be built; the message names what was asked for and what uv said."""


def read_requirements(text: str, source: str, leave_out: Sequence[str] = ()) -> tuple[Requirement, ...]:
    """The requirements in a requirements.txt, by name; those left out and those for other systems are not among them.

    Raises:
        BadInputError: names the line that is no requirement of a package.
    """
    found = {}
    for number, line in enumerate(text.splitlines(), start=1):
        stated = line.partition(" #")[0].strip()
        if not stated or stated.startswith("#"):
            continue
        try:
            requirement = Requirement(stated)
        except InvalidRequirement:
            raise BadInputError(
                f"{source}:{number}: {stated!r} is not the name of a package with versions; only such are served"
            ) from None
        if requirement.url:
            raise BadInputError(
                f"{source}:{number}: {requirement.name} is asked for from an address, and the digest of a model does "
                "not cover what lies there; name a version of it"
            )
        name = canonicalize_name(requirement.name)
        if name not in leave_out and (requirement.marker is None or requirement.marker.evaluate()):
            found[name] = requirement
    return tuple(found[name] for name in sorted(found))


def installed_version(name: str) -> str | None:
    """The version of a package here, if it is installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def differences(
    requirements: Sequence[Requirement],
    python: str = "",
    installed: Callable[[str], str | None] = installed_version,
) -> list[str]:
    """Where a version's environment differs from ours, one clause each; `python` is the version it was trained with.

    Packages differ where ours does not meet the requirement (a pin is met by that version alone), Python where major
    or minor version do.
    """
    found = []
    ours = f"{sys.version_info.major}.{sys.version_info.minor}"
    theirs = minor_version(python)
    if theirs and theirs != ours:
        found.append(f"Python {theirs} (here {ours})")
    for requirement in requirements:
        here = installed(canonicalize_name(requirement.name))
        if here is None:
            found.append(f"{requirement} (not installed here)")
        elif requirement.url is not None or not requirement.specifier.contains(here, prereleases=True):
            found.append(f"{requirement} (here {here})")
    return found


def minor_version(python: str) -> str:
    """`3.11` of `3.11.9`; empty where nothing is said."""
    return ".".join(python.split(".")[:2]) if python else ""


def contents(requirements: Sequence[Requirement], installed: Callable[[str], str | None]) -> tuple[str, ...]:
    """All that an environment holds: the model's requirements, and the scorer's at our versions where it has none."""
    stated = {canonicalize_name(requirement.name): str(requirement) for requirement in requirements}
    for name in SCORER_PACKAGES:
        here = installed(name)
        if here is not None:
            stated.setdefault(canonicalize_name(name), f"{name}=={here}")
    return tuple(stated[name] for name in sorted(stated))


def digest_of(packages: Sequence[str], python: str) -> str:
    """What an environment with these contents is called."""
    said = "\n".join([f"python {minor_version(python)}", sys.platform, *packages])
    return hashlib.sha256(said.encode()).hexdigest()


def interpreter(root: Path, packages: Sequence[str], python: str = "") -> Path:
    """The interpreter of the environment with these contents under `root`; it is built where it does not stand.

    Two at once: the second waits for the first.

    Raises:
        EnvironmentNotBuiltError: uv is not to be had, or cannot find or install what is asked for.
    """
    folder = root / digest_of(packages, python)[:32]
    found = folder / "bin" / "python"
    root.mkdir(parents=True, exist_ok=True)
    lock = os.open(folder.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not ((folder / _READY).is_file() and found.exists()):
            shutil.rmtree(folder, ignore_errors=True)
            _build(folder, found, packages, python)
    finally:
        os.close(lock)
    return found


def _build(folder: Path, python: Path, packages: Sequence[str], version_wanted: str) -> None:
    wanted = minor_version(version_wanted)
    ours = f"{sys.version_info.major}.{sys.version_info.minor}"
    base = sys.executable if wanted in {"", ours} else wanted
    try:
        _uv("venv", "--quiet", "--python", base, str(folder))
        listed = folder / "packages.txt"
        listed.write_text("\n".join(packages) + "\n", encoding="utf-8")
        # Wheels alone: a source distribution would run code of its own here, before anybody has asked for it.
        how = ("--quiet", "--compile-bytecode", "--only-binary", ":all:")
        _uv("pip", "install", *how, "--python", str(python), "--requirements", str(listed))
        _bring_our_source(folder, wanted or ours)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    (folder / _READY).touch()


def _bring_our_source(folder: Path, python: str) -> None:
    """Only the two packages that a scorer is made of, and nothing that lies beside them."""
    source = folder / "source"
    source.mkdir()
    for name in ("serving", "deployments"):
        (source / name).symlink_to(_SOURCE / name, target_is_directory=True)
    packages = Path(
        sysconfig.get_path("purelib", "posix_prefix", {"base": str(folder), "py_version_short": python})
    )
    (packages / "contender.pth").write_text(f"{source}\n", encoding="utf-8")


def _uv(*arguments: str) -> None:
    binary = find_uv()
    try:
        asked = subprocess.run(
            [binary, *arguments], capture_output=True, text=True, check=False, timeout=_SECONDS
        )
    except subprocess.TimeoutExpired:
        raise EnvironmentNotBuiltError(
            f"uv did not finish within {_SECONDS} s: uv {' '.join(arguments)}"
        ) from None
    if asked.returncode:
        said = " ".join(asked.stderr.split()) or f"exit code {asked.returncode}"
        raise EnvironmentNotBuiltError(f"uv {arguments[0]} failed: {said}")


def find_uv() -> str:
    """The uv beside our interpreter, or the one on the path.

    Raises:
        EnvironmentNotBuiltError: there is none.
    """
    beside = Path(sys.prefix) / "bin" / "uv"
    found = str(beside) if beside.is_file() else shutil.which("uv")
    if found is None:
        raise EnvironmentNotBuiltError("uv is needed to build the environment, and is not on the path")
    return found
