"""Threads: one for linear algebra whoever else is at work, and no more for OpenMP than there are cores to share."""

import threading
from concurrent.futures import ThreadPoolExecutor

import joblib
import pytest
import sklearn.ensemble  # noqa: F401 - brings OpenMP
from threadpoolctl import threadpool_info, threadpool_limits

from tasks.threads import limited_threads, openmp_threads


def threads(kind):
    return {library["num_threads"] for library in threadpool_info() if library["user_api"] == kind}


@pytest.fixture
def several_threads():
    with threadpool_limits(2):
        yield


@pytest.mark.parametrize(
    ("cores", "rows", "workers", "expected"),
    [(8, 1_000_000, 2, 4), (8, 1_000, 2, 1), (2, 1_000_000, 4, 1), (8, 1_000_000, 1, 8)],
)
def test_workers_share_the_cores_and_small_tables_get_one(monkeypatch, cores, rows, workers, expected):
    monkeypatch.setattr(joblib, "cpu_count", lambda: cores)

    assert openmp_threads(rows, workers) == expected


def test_limits_hold_inside_and_are_lifted_after(several_threads):
    with limited_threads(1):
        assert threads("blas") == {1}
        assert threads("openmp") == {1}

    assert threads("blas") == {2}
    assert threads("openmp") == {2}


def test_who_leaves_first_does_not_lift_the_limit_of_who_stays(several_threads):
    both_in, first_out = threading.Barrier(2), threading.Event()

    def first():
        with limited_threads(1):
            both_in.wait()
        first_out.set()

    def second():
        with limited_threads(2):
            both_in.wait()
            first_out.wait()
            return threads("blas"), threads("openmp")

    with ThreadPoolExecutor(2) as pool:
        pool.submit(first)
        blas, openmp = pool.submit(second).result()

    assert blas == {1}
    assert openmp == {2}
    assert threads("blas") == {2}


def test_limits_are_lifted_after_a_failure(several_threads):
    with pytest.raises(ZeroDivisionError), limited_threads(1):
        raise ZeroDivisionError

    assert threads("blas") == {2}
