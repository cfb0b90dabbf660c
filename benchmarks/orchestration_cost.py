"""What orchestration costs: how soon a flow's first task runs on a standing server, and what a whole life asks of it.

`python -m benchmarks.orchestration_cost [--rounds 5] [--no-life]`. The start is told from timestamps of the server:
what is before the flow run exists there is the process's start and its imports, and what is after it is Prefect's. The
life is that of `python -m flows.run`, in one process, in which every request to the server is counted and timed, and
every flow and task run is timed outside and inside: what is between is what the engine takes, its requests among it.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

import httpx

from benchmarks.report import write_table
from benchmarks.served import make_bench

ROOT = Path(__file__).resolve().parents[1]
BAR_SECONDS = 3.0


def main() -> None:
    """Measure and write benchmarks/results/orchestration-start.md and orchestration-life.md."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--no-life", action="store_true", help="Leave out the life, which takes minutes.")
    parser.add_argument("--no-start", action="store_true", help="Leave out the start.")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.inside:
        _one_life()
        return
    if not given.no_start:
        with tempfile.TemporaryDirectory() as folder:
            _starts(Path(folder), given.rounds)
    if not given.no_life:
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-m", "benchmarks.orchestration_cost", "--inside"]
            done = subprocess.run(
                command,
                env={**os.environ, "CONTENDER_HOME": folder},
                check=True,
                stdout=subprocess.PIPE,
                text=True,
            )
        _show_life(json.loads(done.stdout.strip().splitlines()[-1]))


# The start --------------------------------------------------------------------------------------------------


def _starts(folder: Path, rounds: int) -> None:
    bench = make_bench(folder)
    from flows.server import OwnServer

    server = OwnServer()
    server.wait()
    environment = {**os.environ, "PREFECT_API_URL": server.url}
    taken: list[tuple[float, float, float]] = []
    try:
        for place in range(rounds + 1):
            command = [sys.executable, "-m", "flows.run", "score", "--model", str(bench.spec)]
            command += ["--env", str(bench.env), "--input", str(folder / "rows.parquet")]
            command += ["--output", str(folder / f"scores-{place}.parquet")]
            begun = datetime.now(UTC)
            subprocess.run(command, env=environment, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
            made, running, first = _first_task(server.url)
            if place:  # the first writes what Python and the disk remember
                taken.append(
                    tuple((moment - begun).total_seconds() for moment in (made, running, first))  # type: ignore[arg-type]
                )
    finally:
        server.stop()
    made_s, running_s, first_s = (median(column) for column in zip(*taken, strict=True))
    bare = median(_imports() for _ in range(rounds))
    write_table(
        "orchestration-start",
        "How soon a flow's first task runs, on a standing server",
        f"python -m benchmarks.orchestration_cost --no-life --rounds {rounds}",
        ["from starting `python -m flows.run score` until", "median s", "all rounds s"],
        [
            ["its flow run exists on the server", f"{made_s:.2f}", _all(one[0] for one in taken)],
            ["the flow runs", f"{running_s:.2f}", _all(one[1] for one in taken)],
            ["its first task runs", f"{first_s:.2f}", _all(one[2] for one in taken)],
            [
                "of this Prefect's, behind imports",
                f"{first_s - made_s:.2f}",
                _all(o[2] - o[0] for o in taken),
            ],
            ["(a process that only imports what the flow does)", f"{bare:.2f}", ""],
        ],
        f"Bar: {BAR_SECONDS:g} s to the first task: {'kept' if first_s <= BAR_SECONDS else 'missed'}. "
        f"Load of the machine at the end: {os.getloadavg()[0]:.1f}.",
    )


def _all(taken: Iterator[float]) -> str:
    return ", ".join(f"{seconds:.2f}" for seconds in taken)


def _imports() -> float:
    started = time.perf_counter()
    code = "import os, flows.run, flows.score; os._exit(0)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
    return time.perf_counter() - started


def _first_task(api: str) -> tuple[datetime, datetime, datetime]:
    """When the newest flow run was made and began, and when its first task run began."""
    (run,) = _asked(f"{api}/flow_runs/filter", sort="START_TIME_DESC", limit=1)
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        # Task runs reach the database with their events, a moment later.
        tasks = _asked(f"{api}/task_runs/filter", task_runs={"flow_run_id": {"any_": [run["id"]]}})
        begun = [_moment(task["start_time"]) for task in tasks if task["start_time"]]
        if begun:
            return _moment(run["created"]), _moment(run["start_time"]), min(begun)
        time.sleep(0.2)
    raise TimeoutError(f"no task run of {run['name']} was recorded")


def _asked(url: str, **body: Any) -> Any:
    return httpx.post(url, json=body, timeout=30).raise_for_status().json()


def _moment(text: str) -> datetime:
    return datetime.fromisoformat(text.replace("Z", "+00:00"))


# The life ---------------------------------------------------------------------------------------------------


def _one_life() -> None:
    from flows.settings import settle

    settle()
    started = time.perf_counter()
    with _counted() as said:
        from flows.lifecycle_commands import _lived
        from flows.session import session

        session.as_json = True
        outcome = _lived("churn", "demo", fresh=False, keep_up=False)
    said |= {"seconds": time.perf_counter() - started, "surprises": len(outcome.surprises)}
    print(json.dumps(said))


@contextmanager
def _counted() -> Iterator[dict[str, Any]]:
    """Within it, requests to Prefect's server and runs of flows and tasks are counted and timed."""
    import prefect.flow_engine
    import prefect.task_engine
    from prefect.client.base import PrefectHttpxAsyncClient, PrefectHttpxSyncClient

    seconds: Counter[str] = Counter()
    counts: Counter[str] = Counter()
    lock = threading.Lock()

    def timed(what: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def called(*arguments: Any, **named: Any) -> Any:
            begun = time.perf_counter()
            try:
                return function(*arguments, **named)
            finally:
                with lock:
                    seconds[what] += time.perf_counter() - begun
                    counts[what] += 1

        return called

    def timed_async(what: str, function: Callable[..., Any]) -> Callable[..., Any]:
        async def called(*arguments: Any, **named: Any) -> Any:
            begun = time.perf_counter()
            try:
                return await function(*arguments, **named)
            finally:
                with lock:
                    seconds[what] += time.perf_counter() - begun
                    counts[what] += 1

        return called

    for engine, kind in ((prefect.flow_engine, "flow"), (prefect.task_engine, "task")):
        for function, what in ((f"run_{kind}_sync", "outside"), ("call_with_parameters", "inside")):
            setattr(engine, function, timed(f"{kind} {what}", getattr(engine, function)))
    PrefectHttpxSyncClient.send = timed("sync request", PrefectHttpxSyncClient.send)  # type: ignore[method-assign]
    PrefectHttpxAsyncClient.send = timed_async("async request", PrefectHttpxAsyncClient.send)  # type: ignore[method-assign]
    said: dict[str, Any] = {}
    yield said
    said |= {"counts": dict(counts), "taken": dict(seconds)}


def _show_life(said: dict[str, Any]) -> None:
    counts, taken = Counter(said["counts"]), Counter(said["taken"])
    rows = []
    engine = 0.0
    for kind in ("flow", "task"):
        own = taken[f"{kind} outside"] - taken[f"{kind} inside"]
        engine += own
        number = counts[f"{kind} outside"]
        rows.append([f"{kind} runs", str(number), f"{own:.1f}", f"{1000 * own / max(number, 1):.0f}"])
    for kind in ("sync", "async"):
        number, spent = counts[f"{kind} request"], taken[f"{kind} request"]
        rows.append([f"{kind} requests", str(number), f"{spent:.1f}", f"{1000 * spent / max(number, 1):.0f}"])
    whole = said["seconds"]
    write_table(
        "orchestration-life",
        "What orchestration costs a life: `python -m flows.run` with every flow, task and request counted",
        "python -m benchmarks.orchestration_cost --no-start",
        ["", "number", "seconds", "ms each"],
        [
            *rows,
            ["the whole life", "1", f"{whole:.0f}", ""],
            ["of which the engine of flows and tasks", "", f"{engine:.1f}", f"{100 * engine / whole:.1f} %"],
        ],
        "Seconds of runs are those outside the functions that they run; requests that an engine waits for are within "
        f"them. Events go over one websocket and are not counted. The life went {said['surprises']} times another way "
        f"than usual. Load of the machine at the end: {os.getloadavg()[0]:.1f}.",
    )


if __name__ == "__main__":
    main()
