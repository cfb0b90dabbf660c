"""Threads: one for linear algebra whoever else is at work, and no more for OpenMP than there are cores to share."""

import json
import os
import subprocess
import sys
from pathlib import Path

import joblib
import pytest

from tasks.threads import openmp_threads

WORK_SIDE_BY_SIDE = """
import json, threading
from concurrent.futures import ThreadPoolExecutor
import sklearn.ensemble
from threadpoolctl import threadpool_info
from tasks.threads import limited_threads

def threads(kind):
    return sorted({library["num_threads"] for library in threadpool_info() if library["user_api"] == kind})

both_in, first_out = threading.Barrier(2), threading.Event()
found = {"before": threads("blas")}

def first():
    with limited_threads(1):
        both_in.wait()
        found["first, openmp"] = threads("openmp")
    first_out.set()

def second():
    with limited_threads(3):
        both_in.wait()
        first_out.wait()
        found["second, openmp"], found["second, blas"] = threads("openmp"), threads("blas")

with ThreadPoolExecutor(2) as pool:
    for done in [pool.submit(first), pool.submit(second)]:
        done.result()
try:
    with limited_threads(1):
        found["main, openmp"] = threads("openmp")
        raise ZeroDivisionError
except ZeroDivisionError:
    found["after"] = threads("openmp")
print(json.dumps(found))
"""


@pytest.mark.parametrize(
    ("cores", "rows", "workers", "expected"),
    [(8, 1_000_000, 2, 4), (8, 1_000, 2, 1), (2, 1_000_000, 4, 1), (8, 1_000_000, 1, 8)],
)
def test_workers_share_the_cores_and_small_tables_get_one(monkeypatch, cores, rows, workers, expected):
    monkeypatch.setattr(joblib, "cpu_count", lambda: cores)

    assert openmp_threads(rows, workers) == expected


def test_who_is_done_first_does_not_lift_the_limit_of_who_still_works():
    asked = subprocess.run(
        [sys.executable, "-c", WORK_SIDE_BY_SIDE],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
        env=os.environ | {"OMP_NUM_THREADS": "2", "OPENBLAS_NUM_THREADS": "2"},
    )

    assert json.loads(asked.stdout) == {
        "before": [2],
        "first, openmp": [1],
        "second, openmp": [3],
        "second, blas": [1],
        "main, openmp": [1],
        "after": [2],
    }
