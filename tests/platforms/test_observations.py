"""Observations: a child process that is asked, that says why it cannot, and that nobody has to clean up after."""

import os
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psutil
import pytest

from deployments.environment import PredictionLogConfig
from platforms.observations import LocalObservations, ObservationError
from serving.fold import fold
from serving.folders import Folders
from serving.prediction_log import PredictionLog
from tests.serving.test_fold import record, served_model

ROOT = Path(__file__).parents[2]
SINCE = datetime(2026, 11, 20, 12, tzinfo=UTC)


@pytest.fixture
def log(tmp_path):
    """The prediction log of one worker of `churn`."""
    opened = PredictionLog(
        Folders(tmp_path).log("churn"),
        served_model({"visits": "long"}),
        endpoint="churn",
        entity="v3",
        worker=0,
        config=PredictionLogConfig(),
        pii_key=None,
    )
    yield opened
    opened.close()


def child_of(observations):
    return psutil.Process(observations._child.pid)


def gone(process):
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


def test_the_platform_tells_what_is_logged_as_it_is(platform, log, tmp_path):
    platform = type(platform)(platform.environment, tmp_path)
    log.append(record("a"))

    with platform.observations("churn", SINCE, timeout_seconds=60) as requests:
        first = requests.poll()
        log.append(record("b", shadow=True))
        fold(tmp_path, "churn")
        log.append(record("c"))
        second, third = requests.poll(), requests.poll()
        child = child_of(requests)

    assert first.table["request_id"].to_pylist() == ["a"]
    assert second.table.select(["request_id", "shadow"]).to_pylist() == [
        {"request_id": "b", "shadow": True},
        {"request_id": "c", "shadow": False},
    ]
    assert (len(third.table), third.more, third.lost, third.corrupt) == (0, False, 0, ())
    assert third.table.schema.equals(first.table.schema)
    assert gone(child)
    with pytest.raises(ObservationError, match="not observed any more"):
        requests.poll()


def test_what_the_child_said_before_it_died_is_told_and_another_may_be_begun(log, tmp_path):
    import pyarrow as pa
    from deltalake import write_deltalake

    foreign = Folders(tmp_path).predictions("churn")
    write_deltalake(foreign, pa.table({"a": [1]}))

    with (
        LocalObservations(tmp_path, "churn", SINCE, 60) as requests,
        pytest.raises(ObservationError, match=r"observation of churn ended: .*not made by folding"),
    ):
        requests.poll()
    foreign.rename(tmp_path / "elsewhere")
    log.append(record("a"))
    with LocalObservations(tmp_path, "churn", SINCE, 60) as requests:
        assert len(requests.poll().table) == 1


def test_a_moment_without_a_time_zone_is_refused(tmp_path):
    with (
        LocalObservations(tmp_path, "churn", SINCE.replace(tzinfo=None), 60) as requests,
        pytest.raises(ObservationError, match="no time zone"),
    ):
        requests.poll()


def test_a_child_that_is_killed_is_told(log, tmp_path):
    with LocalObservations(tmp_path, "churn", SINCE, 60) as requests:
        requests.poll()
        child_of(requests).kill()

        with pytest.raises(ObservationError, match="observation of churn ended"):
            requests.poll()


def test_a_child_that_hangs_is_given_up_and_ended(log, tmp_path):
    with LocalObservations(tmp_path, "churn", SINCE, 60) as requests:
        requests.poll()
        child = child_of(requests)
        child.suspend()
        requests._timeout = 0.2

        with pytest.raises(ObservationError, match=r"no answer within 0\.2 s"):
            requests.poll()

        assert gone(child)


ABANDON = """
import sys, time
from datetime import datetime, UTC
from platforms.observations import LocalObservations
observations = LocalObservations(__import__("pathlib").Path(sys.argv[1]), "churn", datetime.now(UTC), 60)
observations.__enter__().poll()
print(observations._child.pid, flush=True)
time.sleep(600)
"""


def test_a_child_does_not_outlive_a_parent_that_was_killed(tmp_path):
    parent = subprocess.Popen(
        [sys.executable, "-c", ABANDON, str(tmp_path)], stdout=subprocess.PIPE, cwd=ROOT
    )
    child = psutil.Process(int(parent.stdout.readline()))

    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    parent.stdout.close()

    until = time.monotonic() + 20
    while not gone(child) and time.monotonic() < until:
        time.sleep(0.02)
    assert gone(child)


def test_a_key_that_interrupts_its_parent_leaves_it_observing(log, tmp_path):
    with LocalObservations(tmp_path, "churn", SINCE, 60) as requests:
        requests.poll()
        child_of(requests).send_signal(signal.SIGINT)
        log.append(record("a"))

        assert len(requests.poll().table) == 1


def test_nothing_is_told_of_before_the_moment(log, tmp_path):
    log.append(record("a"))

    with LocalObservations(tmp_path, "churn", SINCE + timedelta(seconds=1), 60) as requests:
        assert len(requests.poll().table) == 0
