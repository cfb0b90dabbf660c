"""Runs the command line again and again, and kills each run (SIGKILL) when a task of it has done its work.

Usage: python kill_after.py TASKS ARGUMENTS…, with the tasks' names parted by commas; NAME:N for the N-th of several.
A last run is let end. Each is a process of its own, forked from this one, which has imported what they all need.
The last line on standard output is how each ended, as JSON.
"""

import functools
import importlib
import json
import os
import signal
import sys
import threading
from collections.abc import Iterator
from itertools import count

from prefect import Task

from flows import run

NEEDED = (
    "deltalake",
    "duckdb",
    "flows.deliver",
    "matplotlib.figure",
    "mlflow.pyfunc",
    "mlflow.sklearn",
    "mlflow.store.model_registry.sqlalchemy_store",
    "mlflow.store.tracking.sqlalchemy_store",
    "pandera.polars",
    "sklearn.linear_model",
    "sklearn.tree",
    "skops.io",
)


def killing(task: Task, number: int) -> None:
    """Kill this process once the task has done its work so many times."""
    work, calls, lock = task.fn, count(1), threading.Lock()

    @functools.wraps(work)
    def fn(*arguments, **named):
        result = work(*arguments, **named)
        with lock:
            if next(calls) == number:
                os.kill(os.getpid(), signal.SIGKILL)
        return result

    task.fn = fn


def all_tasks() -> Iterator[Task]:
    for name in ("tasks.steps", "flows.monitor", "flows.promote", "flows.retrain", "flows.score"):
        module = importlib.import_module(name)
        yield from {id(item): item for item in vars(module).values() if isinstance(item, Task)}.values()


def ended(arguments: list[str], task: str = "") -> int:
    """How a run ended: its exit code, or the signal that killed it, negative."""
    child = os.fork()
    if not child:
        name, _, number = task.partition(":")
        for item in all_tasks():
            if item.name == name:
                killing(item, int(number or 1))
        run.leave(run.main(arguments))
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


if __name__ == "__main__":
    for name in NEEDED:
        importlib.import_module(name)
    print(json.dumps([ended(sys.argv[2:], task) for task in (*sys.argv[1].split(","), "")]))
