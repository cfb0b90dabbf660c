"""Many deployed runs submitted at once, on a server with SQLite and on one with PostgreSQL: is any lost or stuck?

`python -m benchmarks.orchestration_load [--runs 20] [--database sqlite --database postgresql]`. Each server is the one
that `prefect up` keeps, with its process worker and that one's limit. `score` is the line's own, each run writing a
file of its own; `burst` is what presses a server and hardly a processor: 25 tasks without content on threads.
"""

import argparse
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import get_client
from prefect.settings import PREFECT_API_URL, PREFECT_CLIENT_MAX_RETRIES, temporary_settings

from benchmarks.postgresql import postgresql
from benchmarks.report import write_table
from flows.keeper import ASKED_AGAIN, RUNS_AT_ONCE

ROOT = Path(__file__).resolve().parents[1]
BURST_TASKS = 25
ENDED = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}
_COMPLAINTS = r"database is locked|deadlock detected|QueuePool limit|TimeoutError"


@task(cache_policy=NO_CACHE)
def nothing(place: int) -> int:
    """A task without content."""
    return place


@flow
def burst(tasks: int) -> int:
    """Many tasks at once."""
    return sum(future.result() for future in [nothing.submit(place) for place in range(tasks)])


@dataclass(frozen=True)
class Loaded:
    """What became of runs that were submitted at once."""

    states: Counter[str]
    tasks: Counter[int]
    """How many runs have how many completed task runs."""
    submitting: float
    seconds: float
    recorded: float
    """Seconds until the task runs of all of them were in the database, or patience was at its end."""
    refused: int
    """How often a submission was answered "too busy, ask again", which Prefect's client does."""


def run_all(
    api: str, deployment: str, parameters: list[dict[str, Any]], tasks: int, patience: float
) -> Loaded:
    """Submit a run of `flow/deployment` for each set of parameters at once, and wait until all have ended.

    A run counts only with its task runs, which reach the database with their events, a moment later: they are waited
    for as well. What has not ended after `patience` seconds is counted in the state that it is stuck in.
    """
    found = httpx.get(f"{api}/deployments/name/{deployment}", timeout=60).raise_for_status().json()
    refused = 0

    def noted(answer: httpx.Response) -> None:
        nonlocal refused
        refused += answer.status_code in {429, 503}

    begun = time.perf_counter()

    def submit(given: dict[str, Any]) -> str:
        # Prefect's own client, which asks again where the database was too busy (503), as often as our runs do.
        hooks = {"timeout": 120, "event_hooks": {"response": [noted]}}
        patient = {PREFECT_API_URL: api, PREFECT_CLIENT_MAX_RETRIES: ASKED_AGAIN}
        with temporary_settings(patient), get_client(hooks, sync_client=True) as client:
            return str(client.create_flow_run_from_deployment(found["id"], parameters=given).id)

    with ThreadPoolExecutor(len(parameters)) as pool:
        wanted = list(pool.map(submit, parameters))
    submitting = time.perf_counter() - begun
    while True:
        states = _states(api, wanted)
        seconds = time.perf_counter() - begun
        if (len(states) == len(wanted) and set(states.values()) <= ENDED) or seconds > patience:
            break
        time.sleep(1.0)
    deadline = time.monotonic() + patience
    while True:
        completed = _completed_tasks(api, wanted)
        if all(completed[run] >= tasks for run in wanted) or time.monotonic() > deadline:
            break
        time.sleep(1.0)
    recorded = time.perf_counter() - begun
    return Loaded(
        Counter(states.values()),
        Counter(completed[run] for run in wanted),
        submitting,
        seconds,
        recorded,
        refused,
    )


def _states(api: str, runs: list[str]) -> dict[str, str]:
    found = _asked(f"{api}/flow_runs/filter", flow_runs={"id": {"any_": runs}}, limit=200)
    return {run["id"]: run["state_type"] for run in found}


def _completed_tasks(api: str, runs: list[str]) -> Counter[str]:
    wanted = {"flow_run_id": {"any_": runs}, "state": {"type": {"any_": ["COMPLETED"]}}}
    completed: Counter[str] = Counter()
    while True:
        page = _asked(f"{api}/task_runs/filter", task_runs=wanted, limit=200, offset=completed.total())
        completed.update(item["flow_run_id"] for item in page)
        if len(page) < 200:
            return completed


def _asked(url: str, **body: Any) -> Any:
    return httpx.post(url, json=body, timeout=120).raise_for_status().json()


def deploy(api: str, folder: Path, pool: str, entrypoint: str, name: str) -> None:
    """Deploy one flow of this project."""
    file = folder / f"{name}.yaml"
    file.write_text(
        f"name: load\ndeployments:\n- name: {name}\n  entrypoint: {entrypoint}\n  work_pool: {{name: {pool}}}\n"
        "  enforce_parameter_schema: false\n"
    )
    command = [
        sys.executable,
        "-m",
        "prefect",
        "--no-prompt",
        "deploy",
        "--prefect-file",
        str(file),
        "--name",
        name,
    ]
    environment = {**os.environ, "PREFECT_API_URL": api}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr + done.stdout)


def complaints(log: Path) -> Counter[str]:
    """What a server's log says of its database being too busy, and how often."""
    return Counter(re.findall(_COMPLAINTS, log.read_text(errors="replace")))


def main() -> None:
    """Measure and write benchmarks/results/orchestration-load.md."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--flow", action="append", choices=["score", "burst"], help="Both by default.")
    parser.add_argument("--database", action="append", choices=["sqlite", "postgresql"])
    parser.add_argument(
        "--patience", type=float, default=1800, help="Seconds after which a run counts as stuck."
    )
    given = parser.parse_args()
    flows = given.flow or ["score", "burst"]
    rows: list[list[str]] = []
    with tempfile.TemporaryDirectory() as folder:
        jobs = {name: _jobs(name, Path(folder), given.runs) for name in flows}
        for database in given.database or ["sqlite", "postgresql"]:
            rows += _measured(database, Path(folder), jobs, given.patience)
    write_table(
        "orchestration-load",
        f"{given.runs} deployed runs submitted at once, on a server with SQLite and on one with PostgreSQL",
        f"python -m benchmarks.orchestration_load --runs {given.runs}",
        [
            "database",
            "flow",
            "server's first answer, s",
            "submitted in, s",
            "answered: too busy, ask again",
            "all ended after, s",
            "all task runs recorded after, s",
            "states",
            "task runs each",
            "complaints in the server's log",
        ],
        rows,
        f"{BURST_TASKS} task runs in each burst; the worker has {RUNS_AT_ONCE} runs under way at a time. "
        f"Worker, runs and whoever submits ask a busy server {ASKED_AGAIN} times more (Prefect's default is 5). "
        f"One run of each. Load of the machine at the end: {os.getloadavg()[0]:.1f}.",
    )


@dataclass(frozen=True)
class _Jobs:
    """Runs of one flow: its entrypoint, parameters of each run, and the task runs that each must have."""

    entrypoint: str
    parameters: list[dict[str, Any]]
    tasks: int


def _jobs(name: str, folder: Path, runs: int) -> _Jobs:
    if name == "burst":
        return _Jobs("benchmarks/orchestration_load.py:burst", [{"tasks": BURST_TASKS}] * runs, BURST_TASKS)
    from benchmarks.served import make_bench

    bench = make_bench(folder)
    common = {"model": str(bench.spec), "env": str(bench.env), "input": str(folder / "rows.parquet")}
    given = [{**common, "output": str(folder / "{database}" / f"{place}.parquet")} for place in range(runs)]
    return _Jobs("flows/score.py:score", given, 1)


def _measured(database: str, folder: Path, jobs: dict[str, _Jobs], patience: float) -> list[list[str]]:
    os.environ["CONTENDER_HOME"] = str(folder / "home")
    home, pool = folder / database, "contender-bench"
    rows = []
    with ExitStack() as stack:
        own_file = f"sqlite:///{home / 'prefect' / 'prefect.db'}"
        address = stack.enter_context(postgresql()).address if database == "postgresql" else own_file
        server = stack.enter_context(Kept(home, pool, address))
        for name, job in jobs.items():
            deploy(server.api, folder, pool, job.entrypoint, f"load-{name}")
            before = complaints(server.log)
            parameters = [
                {
                    key: value.replace("{database}", database) if key == "output" else value
                    for key, value in one.items()
                }
                for one in job.parameters
            ]
            found = run_all(server.api, f"{name}/load-{name}", parameters, job.tasks, patience)
            said = complaints(server.log) - before
            rows.append(
                [
                    database,
                    name,
                    f"{server.seconds:.1f}",
                    f"{found.submitting:.2f}",
                    str(found.refused),
                    f"{found.seconds:.0f}",
                    f"{found.recorded:.0f}",
                    ", ".join(f"{count} {state}" for state, count in found.states.items()),
                    ", ".join(f"{number} in {count} runs" for number, count in found.tasks.items()),
                    ", ".join(f"{count} x {text}" for text, count in said.items()) or "none",
                ]
            )
            print(rows[-1], flush=True)
    return rows


class Kept:
    """A server as `prefect up` keeps it, with a process worker of one pool and nothing deployed."""

    def __init__(self, home: Path, pool: str, address: str) -> None:
        self._home, self._pool, self._address = home, pool, address
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]
        self.api = f"http://127.0.0.1:{self._port}/api"
        self.log = home / "prefect" / "logs" / "server.log"
        self.seconds = 0.0

    def __enter__(self) -> "Kept":
        """Start it, and return once it answers and the pool stands."""
        from flows.settings import settle

        os.environ["PREFECT_HOME"] = str(self._home / "prefect")
        # Why a server answers "ask again" stands in its log with this alone.
        os.environ["PREFECT_SERVER_LOG_RETRYABLE_ERRORS"] = "true"
        settle()
        from flows import keeper
        from flows.database import check_database, chosen_database

        chosen = chosen_database(self._address)
        check_database(chosen)
        begun = time.perf_counter()
        keeper.begin(self._home, self._port, self._pool, chosen)
        self.seconds = time.perf_counter() - begun
        pool = {"name": self._pool, "type": "process", "base_job_template": {}}
        httpx.post(f"{self.api}/work_pools/", json=pool, timeout=60).raise_for_status()
        keeper.begin_worker(self._home)
        return self

    def __exit__(self, *_: object) -> None:
        from flows import keeper

        keeper.end(self._home)


if __name__ == "__main__":
    main()
