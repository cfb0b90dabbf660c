"""Who predicts, and when: at once where the model is fast, else together with whatever else waits.

One engine answers one call at a time. A slow engine works in a thread of its own; what arrives meanwhile is its next
batch. A batch that fails is tried again request by request, so that one bad request fails alone.
"""

import asyncio
import math
import statistics
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

import numpy as np

from deployments.errors import ContenderError

if TYPE_CHECKING:
    from serving.engine import Answers, Engine

BATCH_ROWS = 512
"""Rows that requests are put together up to; a larger request goes alone."""

_AT_ONCE_SECONDS = 0.0005
_BLOCKING_SECONDS = 0.002
_TRIALS = 15
_TRIAL_SECONDS = 0.5
_WEIGHT_OF_THE_LAST = 0.2


class QueueFullError(ContenderError):
    """As many requests wait as may wait."""

    def __init__(self, retry_after_seconds: int) -> None:
        super().__init__(f"as many requests wait as may wait; come again in {retry_after_seconds} s")
        self.retry_after_seconds = retry_after_seconds


class TooLateError(ContenderError):
    """A request waited, or was worked on, longer than a request may."""


@dataclass(eq=False, slots=True)
class _Waiting:
    columns: Mapping[str, np.ndarray]
    rows: int
    answer: "asyncio.Future[Answers]"


@dataclass(slots=True)
class _Batch:
    """Requests that are answered together; `results` are filled in by the thread, an answer or an error each."""

    requests: list[_Waiting]
    rows: int
    results: "list[Answers | Exception]" = field(default_factory=list)
    seconds: float = 0.0


def one_row_seconds(engine: "Engine", columns: Mapping[str, np.ndarray]) -> float:
    """How long the engine takes for the first row of `columns`: the median of some calls, after a few for warming up.

    Raises whatever the engine raises.
    """
    row = {name: values[:1] for name, values in columns.items()}
    taken: list[float] = []
    until = time.perf_counter() + _TRIAL_SECONDS
    while len(taken) < _TRIALS and (not taken or time.perf_counter() < until):
        began = time.perf_counter()
        engine.predict(row, 1)
        taken.append(time.perf_counter() - began)
    return statistics.median(taken[len(taken) // 3 :])


class Batcher:
    """Asks an engine for many callers; used from one event loop.

    `one_row` is the engine's time for one row, in seconds: it decides whether requests are answered at once.
    `queue` bounds the requests that wait, and `timeout` how long, in seconds.
    """

    def __init__(self, engine: "Engine", *, one_row: float, queue: int, timeout: float) -> None:
        self._engine = engine
        self._queue = queue
        self._timeout = timeout
        self._row_seconds = one_row
        self.rows_at_once = int(_BLOCKING_SECONDS / max(one_row, 1e-9)) if one_row <= _AT_ONCE_SECONDS else 0
        self.batches = 0
        self.batched_rows = 0
        self._waiting: deque[_Waiting] = deque()
        self._waiting_rows = 0
        self._busy = False
        self._begun = 0.0
        self._work: SimpleQueue[tuple[asyncio.AbstractEventLoop, _Batch] | None] = SimpleQueue()
        self._thread: threading.Thread | None = None

    @property
    def waiting(self) -> int:
        """Requests that wait for their turn."""
        return len(self._waiting)

    @property
    def stuck(self) -> bool:
        """Whether the engine has been at one batch for twice as long as a request may take: it may never come back."""
        return self._busy and time.monotonic() - self._begun > 2 * self._timeout

    def at_once(self, columns: Mapping[str, np.ndarray], rows: int) -> "Answers | None":
        """The answers, if they cost so little that nobody else notices; None: they must be waited for.

        Raises whatever the engine raises.
        """
        if rows > self.rows_at_once or self._busy:
            return None
        self.batches += 1
        self.batched_rows += rows
        return _checked(self._engine.predict(columns, rows), rows)

    async def predict(self, columns: Mapping[str, np.ndarray], rows: int, spent: float = 0.0) -> "Answers":
        """The answers, in their turn; `spent` seconds of the time that a request has are over already.

        Raises:
            QueueFullError: too many wait already.
            TooLateError: it took too long. What has not begun by then is never done.
        """
        if len(self._waiting) >= self._queue:
            raise QueueFullError(self._retry_after())
        loop = asyncio.get_running_loop()
        one = _Waiting(columns, rows, loop.create_future())
        self._waiting.append(one)
        self._waiting_rows += rows
        if not self._busy:
            self._next(loop)
        late = loop.call_later(max(0.0, self._timeout - spent), self._give_up, one)
        try:
            return await one.answer
        except asyncio.CancelledError:
            self._forget(one)
            raise
        finally:
            late.cancel()

    def close(self) -> None:
        """End the thread once it has done what it is doing."""
        if self._thread is not None:
            self._work.put(None)
            self._thread = None

    def _retry_after(self) -> int:
        return min(60, max(1, math.ceil(self._waiting_rows * self._row_seconds)))

    def _give_up(self, one: _Waiting) -> None:
        if not one.answer.done():
            one.answer.set_exception(TooLateError(f"there was no answer within {self._timeout:g} s"))
            self._forget(one)

    def _forget(self, one: _Waiting) -> None:
        if one in self._waiting:
            self._waiting.remove(one)
            self._waiting_rows -= one.rows

    def _next(self, loop: asyncio.AbstractEventLoop) -> None:
        """Hand the thread what waits, up to a batch."""
        if not self._waiting:
            return
        batch = _Batch([], 0)
        while self._waiting and (not batch.requests or batch.rows + self._waiting[0].rows <= BATCH_ROWS):
            one = self._waiting.popleft()
            batch.requests.append(one)
            batch.rows += one.rows
        self._waiting_rows -= batch.rows
        self._busy, self._begun = True, time.monotonic()
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="inference", daemon=True)
            self._thread.start()
        self._work.put((loop, batch))

    def _run(self) -> None:
        while (work := self._work.get()) is not None:
            loop, batch = work
            began = time.perf_counter()
            try:
                batch.results = self._answers(batch.requests)
            except Exception as error:  # noqa: BLE001 - nobody would be answered any more without this thread
                batch.results = [error] * len(batch.requests)
            batch.seconds = time.perf_counter() - began
            try:
                loop.call_soon_threadsafe(self._finished, loop, batch)
            except RuntimeError:
                # The loop was closed: nobody waits any more.
                return

    def _finished(self, loop: asyncio.AbstractEventLoop, batch: _Batch) -> None:
        self._busy = False
        self.batches += 1
        self.batched_rows += batch.rows
        self._row_seconds += _WEIGHT_OF_THE_LAST * (batch.seconds / batch.rows - self._row_seconds)
        for one, result in zip(batch.requests, batch.results, strict=True):
            if one.answer.done():
                continue
            if isinstance(result, Exception):
                one.answer.set_exception(result)
            else:
                one.answer.set_result(result)
        self._next(loop)

    def _answers(self, requests: Sequence[_Waiting]) -> "list[Answers | Exception]":
        joined = _joined(requests) if len(requests) > 1 else None
        if joined is not None:
            together = self._asked(joined, sum(one.rows for one in requests))
            if not isinstance(together, Exception):
                return _split(together, requests)
        return [self._asked(one.columns, one.rows) for one in requests]

    def _asked(self, columns: Mapping[str, np.ndarray], rows: int) -> "Answers | Exception":
        try:
            return _checked(self._engine.predict(columns, rows), rows)
        except StopIteration as error:
            # A future cannot carry it.
            return RuntimeError(f"the model stopped an iteration that is not its own: {error}")
        except Exception as error:  # noqa: BLE001 - it is raised again where the caller waits
            return error
        except BaseException as error:  # noqa: BLE001 - a model that leaves, leaves its own caller alone
            return RuntimeError(f"the model was left by {type(error).__name__}: {error}")


def _checked(answers: "Answers", rows: int) -> "Answers":
    """The answers, if there is one a row: with any other number they would go to the wrong callers."""
    if len(answers.predictions) != rows or (answers.scores is not None and len(answers.scores) != rows):
        raise ValueError(f"the model answered {len(answers.predictions)} predictions for {rows} rows")
    return answers


def _joined(requests: Sequence[_Waiting]) -> dict[str, np.ndarray] | None:
    """The rows of all requests, or None where joining would change a column's type, and so perhaps its values."""
    joined: dict[str, np.ndarray] = {}
    for name, values in requests[0].columns.items():
        parts = [one.columns[name] for one in requests]
        if any(part.dtype != values.dtype for part in parts):
            return None
        joined[name] = np.concatenate(parts)
    return joined


def _split(answers: "Answers", requests: Sequence[_Waiting]) -> "list[Answers | Exception]":
    """To each request its rows."""
    found: list[Any] = []
    begin = 0
    for one in requests:
        end = begin + one.rows
        scores = None if answers.scores is None else answers.scores[begin:end]
        found.append(type(answers)(answers.predictions[begin:end], scores))
        begin = end
    return found
