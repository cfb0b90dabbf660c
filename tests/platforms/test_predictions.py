"""The prediction log as a platform gives it: folded, whole, and in an order that lasts."""

import signal
import subprocess
import sys
import threading
from itertools import pairwise

import pytest

from deployments.errors import ContenderError
from serving.folders import Folders
from tests.serving.test_fold import KILLED
from tests.tasks.live_logs import NOON, at, predictions, write_log

pytestmark = pytest.mark.slow


def ids(log):
    return log.dataset.to_table(columns=["databricks_request_id"]).column(0).to_pylist()


def test_a_log_is_folded_and_given_as_a_table(platform):
    write_log(platform, "churn", [at(0, "a"), at(1, "b", rows=2)])

    first = platform.predictions("churn")
    again = platform.predictions("churn")

    assert (first.new_rows, first.new_requests, first.corrupt, first.lost) == (3, 2, (), ())
    assert sorted(ids(first)) == ["a", "b", "b"]
    assert (again.new_rows, again.new_requests) == (0, 0)
    assert again.dataset.to_table().equals(first.dataset.to_table())


def test_an_endpoint_that_logged_nothing_has_no_table(platform):
    assert platform.predictions("churn") is None


def test_what_comes_later_does_not_move_the_rows_before(platform):
    orders = []
    for part in range(6):
        write_log(platform, "churn", [at(part, f"{part}-{place}") for place in range(3)])
        orders.append(ids(predictions(platform, "churn")))

    for before, after in pairwise(orders):
        assert [one for one in after if one in set(before)] == before


def test_when_requests_were_lost_is_told_of_each_second(platform, monkeypatch):
    from serving.prediction_log import PredictionLog

    endpoint = platform.endpoint("churn")
    write_log(platform, "churn", [at(0, "a")])
    monkeypatch.setattr("serving.prediction_log.time.time_ns", lambda: int(NOON.timestamp() * 1e9))
    opened = PredictionLog._opened

    def losing(self):
        self._lost = 7
        return opened(self)

    with monkeypatch.context() as patched:
        patched.setattr(PredictionLog, "_opened", losing)
        write_log(platform, "churn", [at(0, "b")])

    assert platform.predictions(endpoint).lost == ((NOON, 7),)
    assert platform.predictions(endpoint).lost == ((NOON, 7),)


def test_a_fold_that_is_killed_again_and_again_gives_every_request_once(platform):
    write_log(platform, "churn", [at(place, f"a{place}") for place in range(12)])
    write_log(platform, "churn", [at(place, f"b{place}") for place in range(12)], version="4")
    killed = []

    for step in ("before-commit", "after-commit", "before-remove", "after-remove") * 2:
        done = subprocess.run([sys.executable, "-c", KILLED, str(platform.root), step], check=False)
        killed.append(done.returncode)
    log = platform.predictions("churn")

    assert killed.count(-signal.SIGKILL) >= 4
    assert sorted(ids(log)) == sorted(f"{name}{place}" for name in "ab" for place in range(12))


def test_folds_while_requests_are_logged_lose_and_double_nothing(platform):
    names = [f"r{place}" for place in range(400)]
    writer = threading.Thread(
        target=write_log, args=(platform, "churn", (at(0, name) for name in names)), daemon=True
    )

    writer.start()
    while writer.is_alive():
        platform.predictions("churn")
    writer.join()

    assert sorted(ids(platform.predictions("churn"))) == sorted(names)


def test_a_log_that_cannot_be_folded_is_an_error_that_says_why(platform):
    path = Folders(platform.root).predictions("churn")
    path.parent.mkdir(parents=True)
    path.write_text("in the way")
    write_log(platform, "churn", [at(0, "a")])

    with pytest.raises(ContenderError, match="the prediction log of churn was not folded: "):
        platform.predictions("churn")
