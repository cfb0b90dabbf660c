"""Keeper: a Prefect server and a worker on this machine, kept running until they are told to end.

`python -m flows.keeper HOME PORT POOL DATABASE` is what `prefect up` starts in the background. It restarts what dies,
and what it started ends with it. Who holds its lock file under HOME is up, and the file says where. DATABASE is how the
database may be shown; its address, which may hold a password, is in the environment, and the server alone is given it.
"""

import fcntl
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from http.client import HTTPException
from pathlib import Path
from typing import IO
from urllib.parse import quote
from urllib.request import Request, urlopen

from deployments.errors import BadInputError, ContenderError
from flows.database import DATABASE_VARIABLE, Database, without_database

__all__ = ["Kept", "begin", "end", "kept"]

START_SECONDS = 180.0
RUN_END_SECONDS = 30.0
"""How long runs under way are given to end, as one that is cancelled is: a release puts its champion back."""
END_SECONDS = RUN_END_SECONDS + 30.0
_BACK_OFF = (0.5, 30.0)
_PATIENCE = 2  # a server that never answered and ended as often as this is not started again
RUNS_AT_ONCE = max(8, 4 * (os.cpu_count() or 1))
"""How many runs a worker has under way at a time by default; a release waits for requests most of its time."""
ASKED_AGAIN = 8
"""How often worker and runs ask a server anew that is too busy to write (Prefect's default is 5): minutes in all."""
LEASES = {"PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem"}
"""In memory, as Prefect has it, a server that is started again knows no lease: runs under way are cancelled once they
ask for more time, and places of those that are gone stay taken."""
_RELEASE_SECONDS = 12.0  # a keeper that was killed: its children end within this


@dataclass(frozen=True)
class Kept:
    """A keeper that is up: its process, the server's address and database, and the pool that its worker serves."""

    pid: int
    port: int
    pool: str
    database: str = ""

    @property
    def url(self) -> str:
        """Where the server's API is."""
        return f"http://127.0.0.1:{self.port}/api"

    def healthy(self) -> bool:
        """Whether the server answers."""
        return _answers(f"{self.url}/health")

    def ready(self) -> bool:
        """Whether the server answers, and its database does."""
        return _answers(f"{self.url}/ready")

    def works(self) -> bool:
        """Whether the pool's worker has been heard of lately, as the server says."""
        asked = Request(  # noqa: S310 - our own address
            f"{self.url}/work_pools/{quote(self.pool)}/workers/filter",
            data=b"{}",
            headers={"Content-Type": "application/json"},
        )
        try:
            with urlopen(asked, timeout=10) as answer:  # noqa: S310
                return any(worker["status"] == "ONLINE" for worker in json.load(answer))
        except (OSError, HTTPException):
            return False


def _answers(address: str) -> bool:
    try:
        with urlopen(address, timeout=10):  # noqa: S310 - our own address
            return True
    except (OSError, HTTPException):
        return False


def _lock(home: Path) -> Path:
    return home / "prefect" / "keeper.json"


def logs(home: Path) -> Path:
    """The folder of what server and worker say."""
    return home / "prefect" / "logs"


def kept(home: Path) -> Kept | None:
    """The keeper of a home; None where none is up."""
    path = _lock(home)
    if not path.exists():
        return None
    with path.open("r+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return _noted(path)
    return None


def kept_last(home: Path) -> Kept | None:
    """The keeper of a home that is up, or was up last."""
    return _noted(_lock(home))


def _noted(path: Path) -> Kept | None:
    try:
        return Kept(**json.loads(path.read_text()))
    except (OSError, ValueError, TypeError):
        # Not written yet, or by something else.
        return None


def begin(home: Path, port: int, pool: str, database: Database, at_once: int | None = None) -> Kept:
    """Start the keeper unless it is up, and return once its server answers.

    `at_once` is how many runs its worker is to have at a time; None where nobody minds.

    Raises:
        BadInputError: it is up on another port, for another pool, with another database or for another number of
            runs, or the port is taken.
        ContenderError: it did not start; says why and where to look.
    """
    standing = kept(home)
    if standing is not None:
        other = database.chosen and standing.database != database.shown
        if (standing.port, standing.pool) != (port, pool) or other:
            kept_in = f", kept in {standing.database}" if other else ""
            raise BadInputError(
                f"a Prefect server is up on port {standing.port} with a worker of {standing.pool}{kept_in}; "
                "run `python -m flows.run prefect down` first"
            )
        running = _worker_wanted(home)
        if at_once is not None and running not in {"", str(at_once)}:
            raise BadInputError(
                f"the worker of {pool} is up for {running} runs at a time, and would end them to take another "
                "number; run `python -m flows.run prefect down` first"
            )
        return standing
    _want_free(home, port)
    try:
        logs(home).mkdir(parents=True, exist_ok=True)
        # What a keeper that was killed had been asked; this one's pool may not stand yet.
        (logs(home) / "worker.wanted").unlink(missing_ok=True)
        log = (logs(home) / "keeper.log").open("ab")
    except OSError as error:
        raise ContenderError(f"{logs(home)}: Prefect's logs cannot be written: {error.strerror}") from None
    said_before = {file: file.stat().st_size for file in logs(home).glob("*.log")}
    with log:
        process = subprocess.Popen(
            [sys.executable, "-m", "flows.keeper", str(home), str(port), pool, database.shown],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={**without_database(os.environ), DATABASE_VARIABLE: database.url},
            start_new_session=True,
        )
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        standing = kept(home)
        if standing is not None and standing.pid == process.pid and standing.healthy():
            return standing
        time.sleep(0.2)
    if process.poll() is None:
        process.terminate()
        why = f"no answer within {START_SECONDS:g} s"
    else:
        why = _complaint(home, said_before)
    raise ContenderError(f"the Prefect server did not start: {why} (more in {logs(home)})")


def _want_free(home: Path, port: int) -> None:
    """Return once nobody listens on the port; a keeper that was killed there is given time to let go of it.

    Raises:
        BadInputError: somebody else listens there.
    """
    last = kept_last(home)
    ours = last is not None and last.port == port
    deadline = time.monotonic() + (_RELEASE_SECONDS if ours else 0.0)
    while _taken_port(port):
        if time.monotonic() >= deadline:
            prefects = _answers(f"http://127.0.0.1:{port}/api/health")
            whose = (
                f" by a Prefect server that this home did not start; use it with: "
                f"export PREFECT_API_URL=http://127.0.0.1:{port}/api, or"
                if prefects
                else ";"
            )
            raise BadInputError(f"port {port} is taken{whose} name another: --port")
        time.sleep(0.2)


def _taken_port(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except PermissionError:
            raise BadInputError(
                f"port {port} may not be used by this user; name one above 1023: --port"
            ) from None
        except OSError:
            return True
    return False


def _complaint(home: Path, said_before: Mapping[Path, int]) -> str:
    """The last line since then in which server or keeper speaks of an error; their last line otherwise."""
    lines = []
    for file in (logs(home) / "server.log", logs(home) / "keeper.log"):
        if file.exists():
            with file.open("rb") as log:
                log.seek(said_before.get(file, 0))
                said = log.read().decode("utf-8", "replace").splitlines()
            lines += [line.strip() for line in said if line.strip()]
    errors = [line for line in lines if re.match(r"[\w.]*(Error|Exception)\b", line)]
    return (errors or lines or ["it said nothing"])[-1][:500]


def end(home: Path) -> bool:
    """End the keeper with its server and worker; False where none was up.

    Raises:
        ContenderError: it did not end.
    """
    standing = kept(home)
    if standing is None:
        return False
    with suppress(ProcessLookupError):
        os.kill(standing.pid, signal.SIGTERM)
    deadline = time.monotonic() + END_SECONDS
    while kept(home) is not None:
        if time.monotonic() > deadline:
            raise ContenderError(f"process {standing.pid} did not end within {END_SECONDS:g} s")
        time.sleep(0.1)
    return True


# The process ------------------------------------------------------------------------------------------------


class _Child:
    """One of the processes that are kept; it ends with us, however we end."""

    def __init__(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        log: Path,
        session_seconds: float | None = None,
    ) -> None:
        self._command, self._environment, self._log = command, environment, log
        self._tether = [sys.executable, "-m", "serving.tether"]
        if session_seconds is not None:
            self._tether += ["--sessions", str(session_seconds)]
        self._process: subprocess.Popen[bytes] | None = None
        self._pause, self._not_before = _BACK_OFF[0], 0.0
        self.deaths = 0

    def tend(self) -> None:
        """Start it where it does not run, unless it has just died."""
        if self._process is not None:
            if self._process.poll() is None:
                return
            self._process = None
            self.deaths += 1
        now = time.monotonic()
        if now < self._not_before:
            return
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [*self._tether, "--", *self._command],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env=dict(self._environment),
            )
        self._not_before = now + self._pause
        self._pause = min(2 * self._pause, _BACK_OFF[1])

    def stop(self) -> None:
        """End it, with all it started."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait()


def main(arguments: Sequence[str]) -> int:
    """Keep a server and a worker until SIGTERM."""
    from flows.prefect_ui import quieten, ui_settings
    from flows.server import furnish
    from flows.settings import settle

    home, port, pool, shown = Path(arguments[0]), int(arguments[1]), arguments[2], arguments[3]
    settle()
    prefect_home = Path(os.environ["PREFECT_HOME"])
    file = Database(os.environ[DATABASE_VARIABLE], shown).file
    if file is not None:
        furnish(file)
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    with _lock(home).open("a+") as lock:
        if not _taken(lock):
            sys.stderr.write(f"{_lock(home)}: another keeper is up\n")
            return 2
        standing = Kept(os.getpid(), port, pool, shown)
        lock.truncate(0)
        lock.write(json.dumps(asdict(standing)))
        lock.flush()
        # It names a process, and after a reboot perhaps somebody else's: Prefect would wait for that for ever.
        (prefect_home / "concurrency_leases" / "expirations.lock").unlink(missing_ok=True)
        prefect = [sys.executable, "-m", "prefect"]
        environment = {**os.environ, "PREFECT_API_URL": standing.url}
        server = _Child(
            [*prefect, "server", "start", "--host", "127.0.0.1", "--port", str(port)],
            {**ui_settings(prefect_home), **LEASES, **environment},
            logs(home) / "server.log",
        )
        worker: _Child | None = None
        answered = False
        try:
            while not ended.wait(0.5):
                server.tend()
                if not answered and standing.healthy():
                    answered = True
                    quieten(prefect_home)
                if not answered and server.deaths >= _PATIENCE:
                    return 1
                # The pool is made by whoever started us, once the server answers.
                if worker is None and (at_once := _worker_wanted(home)):
                    worker = _Child(
                        [*prefect, "worker", "start", "--pool", pool, "--limit", at_once],
                        {"PREFECT_CLIENT_MAX_RETRIES": str(ASKED_AGAIN), **without_database(environment)},
                        logs(home) / "worker.log",
                        RUN_END_SECONDS,
                    )
                if worker is not None:
                    worker.tend()
        finally:
            if worker is not None:
                worker.stop()
            server.stop()
            (logs(home) / "worker.wanted").unlink(missing_ok=True)
    return 0


def _taken(lock: IO[str]) -> bool:
    """Whether the lock is ours now; who only asks whether somebody has it holds it for a moment."""
    for _ in range(20):
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(0.05)
        else:
            return True
    return False


def begin_worker(home: Path, at_once: int = RUNS_AT_ONCE) -> None:
    """Have the keeper start its worker, whose pool stands by now, for so many runs at a time, unless it is up."""
    if _worker_wanted(home):
        return
    staged = logs(home) / "worker.partial"
    staged.write_text(str(at_once))
    staged.replace(logs(home) / "worker.wanted")


def _worker_wanted(home: Path) -> str:
    """For how many runs at a time a worker is asked for; empty where none is."""
    try:
        return (logs(home) / "worker.wanted").read_text()
    except FileNotFoundError:
        return ""


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
