"""What one scorer counts, written by hand: a client library's counters cost more than checking a request does.

Counters are Prometheus' to read; a summary of the last minute is for people.
"""

import math
import time
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping

SECONDS = (
    *(0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01),
    *(0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0),
)
"""Upper bounds of the latency histogram."""

ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 4096, 16384, 65536)
"""Upper bounds of the histogram of rows a request."""

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_SLOT_SECONDS = 5
_SLOTS = 13
_BINS = 192
_BINS_AN_OCTAVE = 8
_SMALLEST_MILLISECONDS = 0.005


class _Histogram:
    """Counts by upper bound, and their sum."""

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def add(self, value: float) -> None:
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def lines(self, name: str, labels: str) -> Iterable[str]:
        total = 0
        for bound, count in zip((*self._bounds, math.inf), self._counts, strict=True):
            total += count
            shown = "+Inf" if math.isinf(bound) else f"{bound:.10g}"
            yield f'{name}_bucket{{{labels},le="{shown}"}} {total}'
        yield f"{name}_sum{{{labels}}} {self._sum!r}"
        yield f"{name}_count{{{labels}}} {total}"


class _LastMinute:
    """Latencies in slots of five seconds, each counted in bins that are nine percent wide."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._began = clock()
        self._bins = [[0] * _BINS for _ in range(_SLOTS)]
        self._slot_numbers = [-1] * _SLOTS

    def add(self, milliseconds: float) -> None:
        number = int(self._clock() / _SLOT_SECONDS)
        slot = number % _SLOTS
        if self._slot_numbers[slot] != number:
            self._slot_numbers[slot] = number
            self._bins[slot] = [0] * _BINS
        place = int(math.log2(milliseconds / _SMALLEST_MILLISECONDS + 1e-9) * _BINS_AN_OCTAVE)
        self._bins[slot][min(max(place, 0), _BINS - 1)] += 1

    def summary(self) -> dict[str, float | None]:
        now = self._clock()
        newest = int(now / _SLOT_SECONDS)
        recent = [
            bins
            for number, bins in zip(self._slot_numbers, self._bins, strict=True)
            if newest - _SLOTS < number <= newest
        ]
        counts = [sum(column) for column in zip(*recent, strict=True)] if recent else [0] * _BINS
        covered = now - max(self._began, (newest - _SLOTS + 1) * _SLOT_SECONDS)
        return {
            "requests_per_second": round(sum(counts) / max(covered, 1.0), 3),
            "p50_milliseconds": _quantile(counts, 0.5),
            "p95_milliseconds": _quantile(counts, 0.95),
        }


def _quantile(counts: list[int], share: float) -> float | None:
    """The middle of the bin that holds a quantile, in milliseconds; None where nothing was counted."""
    wanted = share * sum(counts)
    passed = 0
    for place, count in enumerate(counts):
        passed += count
        if count and passed >= wanted:
            return float(f"{_SMALLEST_MILLISECONDS * 2 ** ((place + 0.5) / _BINS_AN_OCTAVE):.3g}")
    return None


class ScorerMetrics:
    """The numbers of one worker, labelled with whose they are."""

    def __init__(self, labels: Mapping[str, str], clock: Callable[[], float] = time.monotonic) -> None:
        self._labels = ",".join(f'{name}="{_escaped(value)}"' for name, value in labels.items())
        self._requests: dict[tuple[int, bool], int] = {}
        self._seconds = _Histogram(SECONDS)
        self._rows = _Histogram(tuple(float(bound) for bound in ROWS))
        self._last_minute = _LastMinute(clock)
        self.requests = 0
        self.in_flight = 0

    def answered(self, status: int, *, shadow: bool, milliseconds: float, rows: int) -> None:
        """Count one request that has its answer; `rows` is 0 where it was refused before they were known."""
        self.requests += 1
        key = (status, shadow)
        self._requests[key] = self._requests.get(key, 0) + 1
        self._seconds.add(milliseconds / 1000)
        if rows:
            self._rows.add(rows)
        self._last_minute.add(milliseconds)

    def summary(self) -> dict[str, float | None]:
        """Requests a second, p50 and p95 of about the last minute; shadow traffic and errors included."""
        return self._last_minute.summary()

    def page(self, *, waiting: int, batches: int, batched_rows: int, log_dropped: int) -> str:
        """Everything in Prometheus' text format."""
        lines = [
            "# HELP contender_requests_total Invocations answered, by status.",
            "# TYPE contender_requests_total counter",
        ]
        for (status, shadow), count in sorted(self._requests.items()):
            labels = f'{self._labels},status="{status}",shadow="{str(shadow).lower()}"'
            lines.append(f"contender_requests_total{{{labels}}} {count}")
        for name, what, histogram in (
            ("contender_request_seconds", "From the request's arrival to its answer.", self._seconds),
            ("contender_request_rows", "Rows of a request.", self._rows),
        ):
            lines += [f"# HELP {name} {what}", f"# TYPE {name} histogram"]
            lines += histogram.lines(name, self._labels)
        for name, kind, what, value in (
            ("contender_in_flight", "gauge", "Invocations under way.", self.in_flight),
            ("contender_queue_length", "gauge", "Requests that wait for the model.", waiting),
            ("contender_batches_total", "counter", "Calls of the model.", batches),
            ("contender_batched_rows_total", "counter", "Rows that the model was called with.", batched_rows),
            ("contender_log_dropped_total", "counter", "Records missing from the log.", log_dropped),
        ):
            lines += [f"# HELP {name} {what}", f"# TYPE {name} {kind}", f"{name}{{{self._labels}}} {value}"]
        return "\n".join(lines) + "\n"


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
