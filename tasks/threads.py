"""Threads inside the numerical libraries: as many as do good, and for linear algebra always one.

OpenMP threads wait for each other by spinning, so where more of them run than there are free cores a fit takes
many times as long: parallel candidates share the cores, and small tables get one. BLAS sums in another order
with every number of threads, so one thread gives the same model file on every machine.
"""

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

_LARGE_ROWS = 50_000
"""Below this, handing work to another thread costs more than it saves."""


def openmp_threads(rows: int, workers: int) -> int:
    """OpenMP threads for one of `workers` that run side by side, on a table of so many rows."""
    from joblib import cpu_count

    return max(1, cpu_count() // workers) if rows >= _LARGE_ROWS else 1


@contextmanager
def limited_threads(openmp: int) -> Iterator[None]:
    """Run the block with one BLAS thread, and at most `openmp` OpenMP threads in the calling thread."""
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    with _blas, threadpool_limits(openmp, user_api="openmp"):
        yield


class _SingleBlas(AbstractContextManager["_SingleBlas"]):
    """BLAS has one number of threads for the whole process: the first to enter sets it, the last restores it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._limits: Any = None

    def __enter__(self) -> "_SingleBlas":
        from threadpoolctl import threadpool_limits

        with self._lock:
            if self._inside == 0:
                self._limits = threadpool_limits(1, user_api="blas")
            self._inside += 1
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                self._limits.restore_original_limits()


_blas = _SingleBlas()
