"""Starting, stopping and asking the supervisor of a data root; it outlives whoever started it."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import urlopen

from deployments.errors import BadInputError, ContenderError
from serving.desired import EndpointStore
from serving.endpoint import EndpointConfig
from serving.folders import Folders

START_SECONDS = 30.0
STOP_SECONDS = 45.0
SHIFT_SECONDS = 20.0
_NAMED_SECONDS = 5.0
"""How long a supervisor that has the lock may take to write its process id."""


class DataPlaneError(ContenderError):
    """The data plane did not start, or is not up."""


def running(folders: Folders) -> int | None:
    """The process id of the supervisor that holds the root's lock; None where nobody does.

    Raises:
        DataPlaneError: somebody holds it and does not say who.
    """
    import fcntl

    descriptor = os.open(folders.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    deadline = time.monotonic() + _NAMED_SECONDS
    try:
        while time.monotonic() < deadline:
            try:
                # Shared, so that two who ask at once do not take each other for a supervisor.
                fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                said = os.pread(descriptor, 32, 0)
                if said.isdigit() and int(said):
                    return int(said)
            else:
                return None
            time.sleep(0.005)
    finally:
        os.close(descriptor)
    raise DataPlaneError(f"{folders.lock}: a process holds this lock and does not say which it is")


def instructions_file(folders: Folders) -> Path:
    """What the last supervisor was started with."""
    return folders.run / "instructions.json"


def up(given: Mapping[str, Any]) -> dict[str, Any]:
    """Start the supervisor unless it runs, and return its status once the gateway answers; `given` are `Instructions`.

    Raises:
        BadInputError: it runs with other settings, or a port is taken.
        DataPlaneError: it did not start.
    """
    with _alone(Folders(Path(given["root"]))):
        return _up(given)


@contextlib.contextmanager
def _alone(folders: Folders) -> Iterator[None]:
    """One start at a time: the second waits for the first, and finds that it is up."""
    import fcntl

    descriptor = os.open(folders.run / "up.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _up(given: Mapping[str, Any]) -> dict[str, Any]:
    folders = Folders(Path(given["root"]))
    written = instructions_file(folders)
    if running(folders) is not None:
        if read_json(written) != given:
            raise BadInputError(
                f"the data plane of {given['root']} is up with other settings; run `down` first, then `up`"
            )
        return {**_when(folders, _answers, START_SECONDS, None), "started_now": False}
    written.write_text(json.dumps(given, indent=2), encoding="utf-8")
    folders.status.unlink(missing_ok=True)
    log = folders.logs / "supervisor.log"
    begun = log.stat().st_size if log.exists() else 0
    with log.open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "serving.supervisor", str(written)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )

    def ended() -> None:
        code = process.poll()
        if code is not None:
            with log.open("rb") as file:
                file.seek(begun)
                said = file.read().decode("utf-8", "replace").strip().splitlines()
            sentence = said[-1] if said else f"it ended with {code}, and said nothing"
            raise (BadInputError if code == BadInputError.exit_code else DataPlaneError)(sentence)

    return {**_when(folders, _answers, START_SECONDS, ended), "started_now": True}


def down(root: Path) -> bool:
    """Drain and end everything; False where nothing was up.

    Raises:
        DataPlaneError: it does not end.
    """
    folders = Folders(root)
    pid = running(folders)
    if pid is None:
        return False
    for wish, seconds in ((signal.SIGTERM, STOP_SECONDS), (signal.SIGKILL, 5.0)):
        deadline = time.monotonic() + seconds
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, wish)
        while time.monotonic() < deadline:
            if running(folders) is None:
                folders.status.unlink(missing_ok=True)
                return True
            time.sleep(0.05)
    raise DataPlaneError(f"the supervisor of {root} (process {pid}) does not end")


def status(root: Path) -> dict[str, Any] | None:
    """What the supervisor says of itself; None where nothing is up."""
    folders = Folders(root)
    if running(folders) is None:
        return None
    return read_json(folders.status)


def shift(root: Path, endpoint: str, entity: str, lease: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Give one served entity all traffic, and return once it has it: its name, and the seconds that this took.

    The others stay served, with nothing; mirror and lease are gone, unless a new `lease` is given (`expires_at`,
    `fallback`). Where nothing is up it holds once something is.

    Raises:
        BadInputError: there is no such endpoint or entity.
        DataPlaneError: it is up, and has not done it; callers are answered as before.
    """
    begun = time.monotonic()
    folders = Folders(root)

    def all_to_one(before: EndpointConfig) -> object:
        if entity not in {served.name for served in before.served_entities}:
            known = ", ".join(served.name for served in before.served_entities)
            raise BadInputError(f"endpoint {endpoint!r} serves no {entity!r} (known: {known})")
        plain = before.model_dump(mode="json")
        routes = [
            {"served_entity_name": served.name, "traffic_percentage": 100 * (served.name == entity)}
            for served in before.served_entities
        ]
        return plain | {"traffic_config": {"routes": routes, "lease": lease}}

    wanted = EndpointStore(folders).change(endpoint, all_to_one)
    while running(folders) is not None:
        said = (read_json(folders.status) or {}).get("endpoints", {}).get(endpoint, {})
        if (
            said.get("generation_in_effect", 0) >= wanted.generation
            and said.get("created_at_in_effect") == wanted.created_at.isoformat()
        ):
            break
        if time.monotonic() - begun > SHIFT_SECONDS:
            raise DataPlaneError(
                f"endpoint {endpoint!r}: {entity} does not have the traffic after {SHIFT_SECONDS:g} s"
                f" ({said.get('problem') or 'no reason is known'})"
            )
        time.sleep(0.01)
    return {"entity": entity, "generation": wanted.generation, "seconds": time.monotonic() - begun}


def read_json(path: Path) -> dict[str, Any] | None:
    """The JSON object in a file; None where there is no file, or no object in it."""
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _answers(said: dict[str, Any]) -> bool:
    """Whether the supervisor can be asked through the gateway; it may well say that endpoints are not ready yet."""
    try:
        with urlopen(f"{said['gateway']['url']}/health", timeout=2):  # noqa: S310 - our own address
            return True
    except HTTPError as error:
        return error.code == HTTPStatus.SERVICE_UNAVAILABLE
    except OSError:
        return False


def _when(
    folders: Folders,
    condition: Callable[[dict[str, Any]], bool],
    seconds: float,
    look: Callable[[], None] | None,
) -> dict[str, Any]:
    """The status once it fulfils a condition."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if look is not None:
            look()
        said = read_json(folders.status)
        if said is not None and condition(said):
            return said
        time.sleep(0.03)
    raise DataPlaneError(
        f"the data plane did not answer within {seconds:g} s; its logs are in {folders.logs}"
    )
