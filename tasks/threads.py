"""Threads inside the numerical libraries: as many as do good, and for linear algebra always one.

OpenMP threads wait for each other by spinning, so where more of them run than there are free cores a fit takes
many times as long: parallel candidates share the cores, and small tables get one. BLAS sums in another order
with every number of threads, so one thread gives the same model file on every machine.
"""

from collections.abc import Iterator
from contextlib import contextmanager

_LARGE_ROWS = 50_000
"""Below this, handing work to another thread costs more than it saves."""


def openmp_threads(rows: int, workers: int) -> int:
    """OpenMP threads for one of `workers` that run side by side, on a table of so many rows."""
    from joblib import cpu_count

    return max(1, cpu_count() // workers) if rows >= _LARGE_ROWS else 1


@contextmanager
def limited_threads(openmp: int) -> Iterator[None]:
    """Run the block with one BLAS thread, and at most `openmp` OpenMP threads in the calling thread.

    BLAS keeps its one thread afterwards: it has one setting for the whole process, so whoever lifted it would
    lift it for the candidates that still train in other threads.
    """
    import scipy.linalg  # noqa: F401 - brings its own BLAS, which is limited only once it is there
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    threadpool_limits(1, user_api="blas")
    with threadpool_limits(openmp, user_api="openmp"):
        yield
