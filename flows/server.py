"""The Prefect server that a run brings along where the user has none: begun early, on a database made beforehand.

Making an empty Prefect database takes longer than all else a server does to start. `python -m flows.server` makes one
for the installed version and keeps it in the virtual environment; new homes begin with a copy.
"""

import atexit
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from importlib.metadata import version
from pathlib import Path
from urllib.request import urlopen

from deployments.environment import home
from deployments.errors import ContenderError
from flows.database import without_database
from flows.keeper import Kept, kept, logs

KEPT_SECONDS = 60.0
"""How long a server that is kept may be away: its keeper starts one that died again."""


def empty_database() -> Path:
    """Where the empty database of the installed version is, if it was made."""
    return Path(sys.prefix) / "share" / "contender" / f"prefect-{version('prefect')}.db"


def make_empty_database() -> Path:
    """Make the empty database, unless it stands."""
    made = empty_database()
    if made.exists():
        return made
    made.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=made.parent) as folder:
        environment = {**without_database(os.environ), "PREFECT_HOME": folder, "PREFECT_API_URL": ""}
        command = [sys.executable, "-m", "prefect", "server", "database", "upgrade", "-y"]
        subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
        whole = Path(folder) / "whole.db"
        with (
            closing(sqlite3.connect(Path(folder) / "prefect.db")) as built,
            closing(sqlite3.connect(whole)) as copy,
        ):
            built.backup(copy)
        whole.replace(made)
    return made


def furnish(database: Path) -> None:
    """Make a database file that is not there a copy of the empty one, where that was made."""
    if database.exists() or not empty_database().exists():
        return
    database.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=database.parent) as folder:
        copy = Path(folder) / "prefect.db"
        shutil.copyfile(empty_database(), copy)
        try:
            os.link(copy, database)
        except FileExistsError:
            return


class OwnServer:
    """A server of this process's own, which ends with it."""

    def __init__(self) -> None:
        """Begin to start it; it says what it has to say in `server.log` in Prefect's home."""
        folder = Path(os.environ["PREFECT_HOME"])
        furnish(folder / "prefect.db")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}/api"
        self._log = folder / "server.log"
        # Tethered: a run that is killed cannot end it.
        command = [
            sys.executable,
            "-m",
            "serving.tether",
            "--",
            sys.executable,
            "-m",
            "uvicorn",
            "--factory",
            "prefect.server.api.server:create_app",
        ]
        command += ["--host", "127.0.0.1", "--port", str(port), "--log-level", "error", "--lifespan", "on"]
        # As Prefect marks the temporary servers that it starts itself: no scheduler, no UI.
        marks = {"PREFECT_UI_ENABLED": "0", "PREFECT__SERVER_EPHEMERAL": "1", "PREFECT__SERVER_FINAL": "1"}
        # In a process group of its own: Ctrl-C at the terminal is for the run, which may go on or still has to tell.
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                command,
                env={**os.environ, **marks},
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                process_group=0,
            )
        # Prefect's own exit handlers send what is left to send; they are registered later, and so run before this.
        atexit.register(self.stop)

    def wait(self, seconds: float = 120) -> None:
        """Return once it answers.

        Raises:
            ContenderError: it ended, or was silent for too long.
        """
        deadline = time.monotonic() + seconds
        while self._process.poll() is None and time.monotonic() < deadline:
            try:
                with urlopen(f"{self.url}/health", timeout=5):  # noqa: S310 - our own address
                    return
            except OSError:
                time.sleep(0.05)
        raise ContenderError(f"the Prefect server of this run did not start; {self._log} says why")

    def stop(self) -> None:
        """End it."""
        atexit.unregister(self.stop)
        self._process.terminate()
        try:
            self._process.wait(timeout=15)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def _standing() -> Kept | None:
    """The server that is kept, once it answers; None where none is.

    Raises:
        ContenderError: it does not answer within `KEPT_SECONDS`.
    """
    deadline = time.monotonic() + KEPT_SECONDS
    while (standing := kept(home())) is not None:
        if standing.healthy():
            return standing
        if time.monotonic() > deadline:
            raise ContenderError(
                f"the Prefect server at {standing.url} is kept here, and does not answer; {logs(home())} says why. "
                "Without it: `python -m flows.run prefect down` first"
            )
        time.sleep(0.5)
    return None


@contextmanager
def served(opened: Callable[[bool], None]) -> Iterator[None]:
    """Within it, flows have a server: the one that PREFECT_API_URL names, or `prefect up` keeps, or one of their own.

    `opened` checks what has to be right first. It is told whether one of their own starts meanwhile, so that there is
    time for more.

    Raises:
        ContenderError: a server is kept, and does not answer; one more on its database would see its own events alone.
    """
    if not os.environ.get("PREFECT_API_URL"):
        standing = _standing()
        if standing is not None:
            os.environ["PREFECT_API_URL"] = standing.url
    if os.environ.get("PREFECT_API_URL"):
        opened(False)
        yield
        return
    server = OwnServer()
    opened(True)
    from prefect.settings import PREFECT_API_URL, PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings

    server.wait()
    # In the environment as well, for the processes that candidates may be trained in.
    os.environ["PREFECT_API_URL"] = server.url
    try:
        # Nobody watches whether these runs are alive, and ending the thread that says so costs each flow a second.
        with temporary_settings({PREFECT_API_URL: server.url, PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}):
            yield
    finally:
        del os.environ["PREFECT_API_URL"]


if __name__ == "__main__":
    make_empty_database()
