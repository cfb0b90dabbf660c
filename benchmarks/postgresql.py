"""A private PostgreSQL cluster in a folder, for a benchmark or a test; it ends with the block."""

import os
import pwd
import secrets
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Cluster", "LackingError", "postgresql"]


class LackingError(Exception):
    """There is no PostgreSQL server on this machine, or nobody to run it; says which."""


@dataclass(frozen=True)
class Cluster:
    """A cluster that is up, and the address of its empty database, with the password, as SQLAlchemy takes it."""

    address: str
    password: str
    control: tuple[str, ...]

    def stop(self) -> None:
        """End it at once, connections and all."""
        _run([*self.control, "-m", "immediate", "stop"])


@contextmanager
def postgresql() -> Iterator[Cluster]:
    """A cluster with an empty database.

    It listens on a free port of 127.0.0.1 alone and asks for a password. A server refuses to run as root: there it is
    the system's user `postgres` who runs it.

    Raises:
        LackingError: the programs or that user are not there.
    """
    binaries = _binaries()
    runner = _runner()
    password = secrets.token_urlsafe(12)
    with tempfile.TemporaryDirectory(prefix="pg-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        # Short, since the path of a unix socket may have no more than 107 characters.
        data, given = Path(folder) / "data", Path(folder) / "password"
        given.write_text(password)
        if runner:
            shutil.chown(folder, "postgres")
            shutil.chown(given, "postgres")
        port = _free_port()
        make = ["initdb", "-D", str(data), "-U", "prefect", "--auth=scram-sha-256", f"--pwfile={given}"]
        _run([*runner, str(binaries / make[0]), *make[1:], "-E", "UTF8", "--locale=C", "--no-sync"])
        control = (*runner, str(binaries / "pg_ctl"), "-D", str(data), "-w", "-t", "120")
        # Nothing here outlives the block, so nothing needs to reach the disk.
        options = f"-p {port} -k {folder} -c listen_addresses=127.0.0.1 -c fsync=off"
        _run([*control, "-l", f"{folder}/log", "-o", options, "start"])
        cluster = Cluster(f"postgresql://prefect:{password}@127.0.0.1:{port}/postgres", password, control)
        try:
            yield cluster
        finally:
            with suppress(RuntimeError):  # ended already
                cluster.stop()


def _binaries() -> Path:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if found:
        return found[-1].parent
    on_path = shutil.which("initdb")
    if on_path is None:
        raise LackingError(
            "no PostgreSQL server here: neither /usr/lib/postgresql/*/bin/initdb nor initdb on the PATH"
        )
    return Path(on_path).parent


def _runner() -> list[str]:
    if os.geteuid() != 0:
        return []
    if shutil.which("runuser") is None:
        raise LackingError("PostgreSQL does not run as root, and there is no runuser to run it as another")
    try:
        pwd.getpwnam("postgres")
    except KeyError:
        raise LackingError("PostgreSQL does not run as root, and there is no user postgres") from None
    return ["runuser", "-u", "postgres", "--"]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        found: int = probe.getsockname()[1]
        return found


def _run(command: list[str]) -> None:
    done = subprocess.run(
        command,
        cwd="/",
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stdout.strip()[-500:]}")
