"""Metering: seconds, peak memory and rows of the tasks of a flow, written down as costs while they last.

Put `@metered()` under `@task`; where a task is given no platform, `metering` in its body does the same. Outside of a
Prefect run nothing is measured.
"""

import functools
import inspect
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import ParamSpec, TypeVar

from pydantic import BaseModel

from deployments.spec import LoadedSpec
from platforms.platform import Platform
from platforms.snapshot import Snapshot
from tasks.costs import Cost, CostLog, price

__all__ = ["BEAT_SECONDS", "SAMPLE_SECONDS", "Meter", "metered", "metering", "rows_of"]

P = ParamSpec("P")
R = TypeVar("R")

SAMPLE_SECONDS = 0.1
"""How often a task's process is asked how much memory it holds; what is shorter may be missed."""
BEAT_SECONDS = 10.0
"""How often a task that lasts writes what it used so far."""
_DEPTH = 5


@dataclass
class Meter:
    """What a task under way says of itself: how many rows it was given or made."""

    rows: int = 0


def metered(*, rows: bool = True) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Write down what a task costs: its arguments `platform` (or `target`) and `loaded` (or `model`) say whose it is.

    Args:
        rows: Whether the rows of the tables among its arguments and in its result count as read or written by it.
    """

    def decorated(work: Callable[P, R]) -> Callable[P, R]:
        signature = inspect.signature(work)

        @functools.wraps(work)
        def measured(*given: P.args, **named: P.kwargs) -> R:
            arguments = signature.bind(*given, **named).arguments
            platform = arguments.get("platform") or arguments["target"]
            loaded = arguments.get("loaded")
            model = loaded.name if isinstance(loaded, LoadedSpec) else str(arguments["model"])
            with metering(platform, model) as meter:
                result = work(*given, **named)
                if rows:
                    others = [value for value in arguments.values() if not isinstance(value, LoadedSpec)]
                    meter.rows = rows_of([*others, result])
                return result

        return measured

    return decorated


@contextmanager
def metering(platform: Platform, model: str) -> Iterator[Meter]:
    """Measure the Prefect task that is under way in this thread, and write its cost down, also where it fails."""
    from prefect.context import FlowRunContext, TaskRunContext

    meter, task, flow = Meter(), TaskRunContext.get(), FlowRunContext.get()
    if task is None:
        yield meter
        return
    run = task.task_run.flow_run_id or task.task_run.id
    name = flow.flow.name if flow is not None and flow.flow is not None else "none"
    sampler = _Sampler(platform, model, name, str(run), task.task.name, meter)
    sampler.start()
    try:
        yield meter
    finally:
        sampler.end()


def rows_of(values: Iterable[object]) -> int:
    """The rows of all snapshots in some values, each snapshot once; where there is none, of what names its `rows`."""
    values = list(values)
    found = {(one.table, one.version): one.rows for value in values for one in _snapshots(value, _DEPTH)}
    if found:
        return sum(found.values())
    return sum(rows for value in values if type(rows := getattr(value, "rows", None)) is int)


def _snapshots(value: object, depth: int) -> Iterator[Snapshot]:
    if isinstance(value, Snapshot):
        yield value
        return
    inner: Iterable[object] = ()
    if isinstance(value, BaseModel):
        inner = vars(value).values()
    elif isinstance(value, Mapping):
        inner = value.values()
    elif isinstance(value, tuple | list):
        inner = value
    if depth:
        for one in inner:
            yield from _snapshots(one, depth - 1)


class _Sampler(threading.Thread):
    """Follows one task from a thread of its own."""

    def __init__(
        self, platform: Platform, model: str, flow: str, flow_run: str, task: str, meter: Meter
    ) -> None:
        super().__init__(daemon=True)
        import psutil

        self._log, self._rates, self._meter = CostLog(platform, model), platform.environment.rates, meter
        self._said = {"id": uuid.uuid4().hex, "flow": flow, "flow_run": flow_run, "task": task}
        self._process, self._peak = psutil.Process(os.getpid()), 0.0
        self._began, self._clock = datetime.now(UTC), time.monotonic()
        self._ended = threading.Event()
        self._sample()
        self._write(ended=False)

    def run(self) -> None:
        written = time.monotonic()
        while not self._ended.wait(SAMPLE_SECONDS):
            self._sample()
            if time.monotonic() - written >= BEAT_SECONDS:
                self._write(ended=False)
                written = time.monotonic()

    def end(self) -> None:
        """The task is over."""
        self._ended.set()
        self.join()
        self._sample()
        self._write(ended=True)

    def _sample(self) -> None:
        self._peak = max(self._peak, self._process.memory_info().rss / 1e6)

    def _write(self, *, ended: bool) -> None:
        seconds, rows = time.monotonic() - self._clock, self._meter.rows
        amount = price(self._rates, seconds=seconds, peak_megabytes=self._peak, rows=rows)
        self._log.write(
            Cost(
                **self._said,
                began=self._began,
                seconds=round(seconds, 3),
                peak_megabytes=round(self._peak, 1),
                rows=rows,
                amount=amount,
                currency=self._rates.currency,
                ended=ended,
            )
        )
