"""Which database a Prefect server is kept in, what is said when it cannot be, and a deployed flow on PostgreSQL."""

import fcntl
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import psutil
import pytest

from benchmarks.orchestration_load import Kept, complaints, deploy, run_all
from benchmarks.postgresql import LackingError, postgresql
from deployments.errors import BadInputError, ContenderError
from flows import keeper, server
from flows.database import chosen_database, without_database

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def prefect_home(tmp_path, monkeypatch):
    """A Prefect home of the test's own, and no database named in the environment."""
    for name in list(os.environ):
        if name.startswith("PREFECT_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "home" / "prefect"))
    monkeypatch.setenv("CONTENDER_HOME", str(tmp_path / "home"))
    return tmp_path / "home" / "prefect"


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.mark.parametrize(
    ("given", "taken"),
    [
        ("postgresql://u:p@h:5432/n", "postgresql+asyncpg://u:p@h:5432/n"),
        ("postgres://u@h/n", "postgresql+asyncpg://u@h/n"),
        ("postgresql://u@h/n?sslmode=require", "postgresql+asyncpg://u@h/n?ssl=require"),
        ("postgresql://u@/n?host=/run/postgresql", "postgresql+asyncpg://u@/n?host=%2Frun%2Fpostgresql"),
        ("sqlite:////var/lib/prefect.db", "sqlite+aiosqlite:////var/lib/prefect.db"),
    ],
)
def test_an_address_is_taken_as_people_write_it(prefect_home, given, taken):
    found = chosen_database(given)

    assert found.url == taken
    assert found.chosen


def test_a_password_is_never_shown(prefect_home):
    found = chosen_database("postgresql://u:geheim@h/n")

    assert "geheim" in found.url
    assert found.shown == "postgresql+asyncpg://u:***@h/n"
    assert "geheim" not in repr(found)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("geheim", "this is no address of a database"),
        ("postgresql://u:geheim@h:port/n", "this is no address of a database"),
        ("mysql://u:geheim@h/n", "PostgreSQL or SQLite, not in 'mysql'"),
        ("sqlite://", "name a file"),
        ("sqlite:///:memory:", "name a file"),
    ],
)
def test_what_is_no_database_is_refused_without_repeating_it(prefect_home, given, said):
    with pytest.raises(BadInputError, match=said) as caught:
        chosen_database(given)

    assert "geheim" not in str(caught.value)


def test_workers_and_flows_are_not_told_the_database():
    told = without_database(
        {
            "PREFECT_SERVER_DATABASE_CONNECTION_URL": "postgresql://u:p@h/n",
            "PREFECT_API_DATABASE_PASSWORD": "p",
            "PREFECT_API_URL": "http://127.0.0.1:4200/api",
        }
    )

    assert told == {"PREFECT_API_URL": "http://127.0.0.1:4200/api"}


def prefect(*command, **environment):
    """Run `python -m flows.run prefect …` in a process of its own: exit code, and all that it said."""
    done = subprocess.run(
        [sys.executable, "-m", "flows.run", "prefect", *command],
        env={**os.environ, **environment},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    return done.returncode, " ".join((done.stdout + done.stderr).split())


def test_no_second_server_is_begun_on_the_database_of_one_that_is_kept_and_does_not_answer(
    prefect_home, monkeypatch
):
    monkeypatch.setattr(server, "KEPT_SECONDS", 0.1)
    prefect_home.mkdir(parents=True)
    kept = {"pid": os.getpid(), "port": free_port(), "pool": "contender-dev"}

    with (prefect_home / "keeper.json").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lock.write(json.dumps(kept))
        lock.flush()
        with pytest.raises(ContenderError, match="is kept here, and does not answer"), server.served(print):
            """Nothing runs."""

    assert not (prefect_home / "server.log").exists()


@pytest.mark.slow
def test_a_database_that_does_not_answer_is_said_before_anything_starts(prefect_home):
    dead = f"postgresql://u:geheim@127.0.0.1:{free_port()}/n"

    code, said = prefect("up", "--port", str(free_port()), PREFECT_SERVER_DATABASE_CONNECTION_URL=dead)

    assert code == 2
    assert "cannot be reached" in said
    assert "geheim" not in said
    assert "Traceback" not in said
    assert keeper.kept(prefect_home.parent) is None
    assert not (prefect_home / "logs" / "server.log").exists()


@pytest.mark.slow
def test_a_server_that_cannot_start_says_why(prefect_home):
    broken = prefect_home.parent / "broken.db"
    broken.parent.mkdir(parents=True)
    broken.write_bytes(b"this is no database" * 100)

    code, said = prefect("up", "--port", str(free_port()), "--database", f"sqlite:///{broken}")

    assert code == 1
    assert "file is not a database" in said
    assert "Traceback" not in said
    assert prefect("status") == (
        1,
        "No Prefect server is up; start one with: python -m flows.run prefect up",
    )


@pytest.mark.slow
def test_a_port_that_somebody_else_has_is_refused(prefect_home):
    with socket.socket() as stranger:
        stranger.bind(("127.0.0.1", 0))
        stranger.listen()
        port = stranger.getsockname()[1]

        code, said = prefect("up", "--port", str(port))

    assert (code, said) == (2, f"error: port {port} is taken; name another: --port")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_deployed_flow_runs_to_its_end_on_postgresql(prefect_home, tmp_path):
    try:
        with postgresql() as cluster, Kept(prefect_home.parent, "load", cluster.address) as server:
            deploy(server.api, tmp_path, "load", "benchmarks/orchestration_load.py:burst", "small")

            found = run_all(server.api, "burst/small", [{"tasks": 4}] * 2, 4, 300)

            assert (found.states, found.tasks) == ({"COMPLETED": 2}, {4: 2}), server.log.read_text()
            assert not complaints(server.log)
            assert not (prefect_home / "prefect.db").exists()
            assert_nobody_is_told(cluster.password, prefect_home)
            assert_a_dead_database_is_said(server, cluster)
    except LackingError as lacking:
        pytest.skip(str(lacking))


def assert_nobody_is_told(password, prefect_home):
    """The password is in no file of the server's, on no command line, and not in the worker's environment."""
    files = [path for path in prefect_home.rglob("*") if path.is_file()]
    assert files
    assert [path for path in files if password.encode() in path.read_bytes()] == []
    family = psutil.Process(keeper.kept(prefect_home.parent).pid).children(recursive=True)
    lines = [" ".join(process.cmdline()) for process in family]
    assert len(family) >= 4
    assert not [line for line in lines if password in line]
    told = {
        ("worker" if "worker start" in line else "server")
        for process, line in zip(family, lines, strict=True)
        if any(password in value for value in process.environ().values())
    }
    assert told == {"server"}


def assert_a_dead_database_is_said(server, cluster):
    """The server still answers, and `status` says that its database does not."""
    assert httpx.get(f"{server.api}/ready", timeout=30).status_code == 200

    cluster.stop()

    code, said = prefect("status", "--json")
    assert (code, json.loads(said)["server"], json.loads(said)["database"]) == (1, True, False)
    code, said = prefect("status")
    assert (code, "its database does not" in said, cluster.password in said) == (1, True, False)
