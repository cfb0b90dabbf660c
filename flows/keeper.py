"""Keeper: a Prefect server and a worker on this machine, kept running until they are told to end.

`python -m flows.keeper HOME PORT POOL` is what `prefect up` starts in the background. It restarts what dies, and what
it started ends with it. Who holds its lock file under HOME is up, and the file says where.
"""

import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO
from urllib.request import urlopen

from deployments.errors import BadInputError, ContenderError

__all__ = ["Kept", "begin", "end", "kept"]

START_SECONDS = 180.0
END_SECONDS = 30.0
_BACK_OFF = (0.5, 30.0)


@dataclass(frozen=True)
class Kept:
    """A keeper that is up: its process, the server's address, and the pool that its worker serves."""

    pid: int
    port: int
    pool: str

    @property
    def url(self) -> str:
        """Where the server's API is."""
        return f"http://127.0.0.1:{self.port}/api"

    def healthy(self) -> bool:
        """Whether the server answers."""
        try:
            with urlopen(f"{self.url}/health", timeout=5):  # noqa: S310 - our own address
                return True
        except OSError:
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
            return Kept(**json.loads(path.read_text() or "{}"))
    return None


def begin(home: Path, port: int, pool: str) -> Kept:
    """Start the keeper unless it is up, and return once its server answers.

    Raises:
        BadInputError: it is up on another port or for another pool.
        ContenderError: it did not start; says where to look.
    """
    standing = kept(home)
    if standing is not None:
        if (standing.port, standing.pool) != (port, pool):
            raise BadInputError(
                f"a Prefect server is up on port {standing.port} with a worker of {standing.pool}; "
                "run `python -m flows.run prefect down` first"
            )
        return standing
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            raise BadInputError(f"port {port} is taken; name another: --port") from None
    logs(home).mkdir(parents=True, exist_ok=True)
    with (logs(home) / "keeper.log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "flows.keeper", str(home), str(port), pool],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        standing = kept(home)
        if standing is not None and standing.healthy():
            return standing
        time.sleep(0.2)
    if process.poll() is None:
        process.terminate()
    raise ContenderError(f"the Prefect server did not start; {logs(home)} says why")


def end(home: Path) -> bool:
    """End the keeper with its server and worker; False where none was up.

    Raises:
        ContenderError: it did not end.
    """
    standing = kept(home)
    if standing is None:
        return False
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

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], log: Path) -> None:
        self._command, self._environment, self._log = command, environment, log
        self._process: subprocess.Popen[bytes] | None = None
        self._pause, self._not_before = _BACK_OFF[0], 0.0

    def tend(self) -> None:
        """Start it where it does not run, unless it has just died."""
        if self._process is not None and self._process.poll() is None:
            return
        now = time.monotonic()
        if now < self._not_before:
            return
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "serving.tether", "--", *self._command],
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
    from flows.server import furnish
    from flows.settings import settle

    home, port, pool = Path(arguments[0]), int(arguments[1]), arguments[2]
    settle()
    furnish(Path(os.environ["PREFECT_HOME"]))
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    with _lock(home).open("a+") as lock:
        if not _taken(lock):
            sys.stderr.write(f"{_lock(home)}: another keeper is up\n")
            return 2
        standing = Kept(os.getpid(), port, pool)
        lock.truncate(0)
        lock.write(json.dumps(asdict(standing)))
        lock.flush()
        prefect = [sys.executable, "-m", "prefect"]
        environment = {**os.environ, "PREFECT_API_URL": standing.url}
        server = _Child(
            [*prefect, "server", "start", "--host", "127.0.0.1", "--port", str(port)],
            environment,
            logs(home) / "server.log",
        )
        worker = _Child([*prefect, "worker", "start", "--pool", pool], environment, logs(home) / "worker.log")
        try:
            while not ended.wait(0.5):
                server.tend()
                # The pool is made by whoever started us, once the server answers.
                if (logs(home) / "worker.wanted").exists():
                    worker.tend()
        finally:
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


def begin_worker(home: Path) -> None:
    """Have the keeper start its worker, whose pool stands by now."""
    (logs(home) / "worker.wanted").touch()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
