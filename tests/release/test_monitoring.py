"""Monitoring of real answers: late labels, drifted callers, events that arrive, and kills on the way."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
import yaml

from deployments.errors import BadInputError
from deployments.spec import load_spec
from flows.monitor import monitor
from platforms.lock import BusyError
from tasks.labels import add_labels
from tasks.monitoring_record import MonitoringTable, Window
from tasks.monitoring_series import series_name
from tasks.tracking import Tracking
from tasks.verdict import Verdict
from tests import prefect_api
from tests.release.conftest import ROOT, Traffic
from tests.tasks.live_logs import DAY, NOON, at, write_log

pytestmark = pytest.mark.slow

PLAN = {
    "drift": {"minimum_rows": 100, "needed": 1, "windows": 1},
    "quality": {"minimum_labels": 50, "minimum_coverage": 0.3},
    "service": {"minimum_requests": 50, "p95_milliseconds": 60000},
}


@pytest.fixture
def server(prefect_server, monkeypatch):
    """The address of the session's Prefect server."""
    monkeypatch.setenv("PREFECT_API_URL", prefect_server)
    return prefect_server


@pytest.fixture
def watched(line):
    """The line, with a monitoring plan for little traffic."""
    document = yaml.safe_load(line.spec.read_text())
    line.spec.write_text(yaml.safe_dump(document | {"monitoring": PLAN}))
    line.loaded = load_spec(line.spec)
    return line


@dataclass
class Callers(Traffic):
    """Callers whose `a` is elsewhere than in training, by `shift`."""

    shift: float = 0.0

    def ask_often(self, count, seed):
        numbers = random.Random(seed)
        moved = random.Random(seed)
        moved.gauss = lambda mean, deviation: numbers.gauss(mean, deviation) + self.shift
        moved.random = numbers.random
        for _ in range(count):
            self.ask(moved)


def asked(line, count, seed, shift=0.0):
    """So many requests; the span in which they were answered, and what the labels of each would be."""
    callers = Callers(line.endpoint["url"], shift=shift)
    since = datetime.now(UTC)
    callers.ask_often(count, seed)
    assert callers.failed == 0
    return (since, datetime.now(UTC)), callers.asked


def look(line, span):
    return monitor(str(line.spec), str(line.environment_file), None, *span)


def add(line, path, labels):
    rows = [f"{request},{str(bool(label)).lower()}" for request, label in labels]
    path.write_text("\n".join(["request_id,label", *rows]) + "\n")
    return add_labels(line.platform, line.loaded, path)


def rows_of(line, kind=None):
    rows = MonitoringTable(line.platform, "small").rows()
    return [row for row in rows if kind in {None, row.kind}]


def events(server, prefix, at_least, seconds=30, **payload):
    """Events of that name and with that in their payload, once there are so many."""
    deadline = time.monotonic() + seconds
    while True:
        named = {"event": {"prefix": [prefix]}}
        answer = prefect_api.asked("POST", f"{server}/events/filter", filter=named, limit=50)
        found = [event for event in answer["events"] if payload.items() <= event["payload"].items()]
        if len(found) >= at_least or time.monotonic() > deadline:
            return found
        time.sleep(0.2)


def test_windows_of_real_traffic_are_judged_as_labels_and_callers_change(watched, server, tmp_path):
    watched.up()
    first, truth = asked(watched, 160, seed=1)

    fresh = look(watched, first)
    rows_then = rows_of(watched)
    labels = list(truth.items())
    add(
        watched,
        tmp_path / "some.csv",
        [*labels[:60], *((request, not is_so) for request, is_so in labels[:5])],
    )
    some = look(watched, first)
    add(watched, tmp_path / "rest.csv", [*reversed(labels), ("nobody", True)])
    full = look(watched, first)
    rows_full = rows_of(watched)
    again = look(watched, first)
    second, _ = asked(watched, 160, seed=2, shift=4.0)
    drifted = look(watched, second)
    repeated = look(watched, second)

    # Nothing is known of quality, and nothing else is wrong.
    assert (fresh.version, fresh.requests, fresh.rows, fresh.labelled) == ("1", 160, 160, 0)
    assert fresh.verdicts["quality"] is Verdict.INCONCLUSIVE
    others = {kind: verdict for kind, verdict in fresh.verdicts.items() if kind != "quality"}
    assert others == dict.fromkeys(("service", "inputs", "drift", "prediction_drift"), Verdict.PASS)
    assert fresh.alerts == ()
    # Labels in parts: some of them wrong, then all of them, in another order.
    assert (some.labelled, full.labelled, again.labelled) == (60, 160, 160)
    assert full.verdicts["quality"] is Verdict.PASS
    assert [row.value for row in rows_full if row.metric == "coverage"] == [1.0]
    assert {row.key for row in rows_then} <= {row.key for row in rows_full}
    # The same window once more is the same rows.
    assert again.model_copy(update={"report": ""}) == full.model_copy(update={"report": ""})
    assert [row for row in rows_of(watched) if row.window == full.window] == rows_full
    # Callers who are elsewhere drift, and that is told once.
    assert drifted.verdicts["drift"] is Verdict.FAIL
    assert drifted.verdicts["quality"] is Verdict.INCONCLUSIVE
    (alert,) = [one for one in drifted.alerts if one.kind == "drift"]
    assert alert.event == "contender.drift.detected"
    assert "a" in alert.subjects
    assert repeated.alerts == drifted.alerts
    # The server is that of other tests as well.
    ours = {"window_end": drifted.window.end.isoformat()}
    (event,) = events(server, "contender.drift.", 1, **ours)
    assert event["resource"]["prefect.resource.id"] == "contender.model.dev.small"
    assert event["payload"]["version"] == "1"
    assert event["payload"]["subjects"] == list(alert.subjects)
    page = Path(drifted.report).read_text(encoding="utf-8")
    assert "contender.drift.detected" in page
    assert 'href="monitoring-' in page
    # A window that is given by its moments is of a series of its length, and a second look adds no point.
    (coverage,) = [row for row in rows_full if row.metric == "coverage"]
    client = Tracking(watched.platform).client
    series = client.get_metric_history(
        client.get_model_version("small", "1").run_id,
        series_name(watched.loaded.spec.monitoring, coverage),
    )
    points = [point for point in series if point.step == int(full.window.end.timestamp())]
    assert [point.value for point in points] == [0.0, 0.375, 1.0]


def logged(line, count=200, **changes):
    """A log of the champion that was never served, as callers from training would have made it."""
    draw = np.random.default_rng(5)
    records = []
    for place in range(count):
        a, b = draw.normal(0, 2, 2)
        records.append(
            at(
                place / 60,
                f"r{place}",
                columns={"a": np.array([a]), "b": np.array([b])},
                predictions=np.array([a - b > 0]),
                scores=np.array([1 / (1 + np.exp(b - a))]),
                **changes,
            )
        )
    write_log(line.platform, "small", records, columns={"a": "double", "b": "double"}, version="1")


SPAN = (DAY.start, DAY.end)


@pytest.fixture
def past(monkeypatch):
    """The day of the made-up log is over."""
    from flows import monitor as flow
    from tasks.monitor_window import window_of

    monkeypatch.setattr(
        flow, "window_of", lambda *given: window_of(*given, now=max(DAY.end, datetime.now(UTC)))
    )


@pytest.mark.usefixtures("past")
def test_a_log_without_traffic_in_the_window_is_inconclusive_and_says_what_to_do(watched, server):
    empty = look(watched, (DAY.start, NOON))

    assert set(empty.verdicts.values()) == {Verdict.INCONCLUSIVE}
    assert set(empty.verdicts) >= {"service", "inputs", "drift", "quality"}
    assert empty.alerts == ()
    assert any("nobody asked small between" in one and "--since" in one for one in empty.problems)
    assert {row.verdict for row in rows_of(watched)} <= {Verdict.INCONCLUSIVE, None}


@pytest.mark.usefixtures("past", "server")
def test_a_window_of_an_earlier_champion_is_that_ones(watched):
    logged(watched)
    Tracking(watched.platform).client.set_registered_model_alias("small", "champion", "2")

    outcome = look(watched, SPAN)

    assert outcome.version == "1"
    assert any(
        "version 1 is judged, which answered most" in one and "version 2 is champion now" in one
        for one in outcome.problems
    )


@pytest.mark.usefixtures("past", "server")
def test_two_who_monitor_at_once_do_not_write_over_each_other(watched):
    with (
        watched.platform.alone("monitor-small", "somebody is at it"),
        pytest.raises(BusyError, match="small is being monitored by another process"),
    ):
        look(watched, SPAN)


@pytest.mark.usefixtures("server")
def test_a_model_without_a_champion_is_refused(watched):
    Tracking(watched.platform).client.delete_registered_model_alias("small", "champion")

    with pytest.raises(BadInputError, match="train and promote one first"):
        look(watched, (DAY.start, NOON))


TASKS = ("fold", "service levels", "inputs", "drift", "quality", "budget", "keep")


def test_monitoring_killed_after_each_part_in_turn_ends_like_one_that_was_not(watched, server, tmp_path):
    logged(watched)
    add(watched, tmp_path / "labels.csv", [(f"r{place}", place % 2) for place in range(150)])
    program = [sys.executable, str(ROOT / "tests" / "flows" / "kill_after.py"), ",".join(TASKS)]
    arguments = ["monitor", "--json", "--model", str(watched.spec), "--env", str(watched.environment_file)]
    span = ["--since", "2026-11-20T00:00:00", "--until", "2026-11-20T13:00:00"]

    done = subprocess.run(
        [*program, *arguments, *span],
        cwd=ROOT,
        env={
            **os.environ,
            "PREFECT_API_URL": server,
            "PYTHONPATH": str(ROOT),
            "PREFECT_HOME": str(tmp_path / "p"),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    killed = rows_of(watched)
    whole = look(watched, (DAY.start, datetime(2026, 11, 20, 13, tzinfo=UTC)))

    assert done.returncode == 0, done.stderr
    *_, last, ended = done.stdout.strip().splitlines()
    assert json.loads(ended) == [*([-signal.SIGKILL] * len(TASKS)), 0]
    said = json.loads(last)
    assert (said["requests"], said["labelled"]) == (whole.requests, whole.labelled) == (200, 150)
    assert {kind: str(verdict) for kind, verdict in whole.verdicts.items()} == said["verdicts"]
    assert rows_of(watched) == killed
    assert len({row.key for row in killed}) == len(killed)
    assert {row.window for row in killed} == {Window(start=DAY.start, end=whole.window.end)}


@pytest.fixture
def looked_on(monkeypatch):
    """`looked_on(line, window)`: a look without moments, when that window is the newest that has ended."""
    from flows import monitor as flow

    def look_then(line, window):
        monkeypatch.setattr(flow, "window_of", lambda *_: window)
        return monitor(str(line.spec), str(line.environment_file))

    return look_then


NEXT = Window(start=DAY.end, end=DAY.end + (DAY.end - DAY.start))


def test_labels_that_came_late_are_judged_and_told_by_the_next_look(watched, server, looked_on, tmp_path):
    # Each request is about somebody else.
    logged(watched, keys=None)
    first = looked_on(watched, DAY)
    before = rows_of(watched)
    add(watched, tmp_path / "labels.csv", [(f"r{place}", place % 2) for place in range(150)])

    put = MonitoringTable.put

    def cut(table, rows):
        if rows[0].window == DAY:
            raise KeyboardInterrupt
        put(table, rows)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MonitoringTable, "put", cut)
        with pytest.raises(KeyboardInterrupt):
            looked_on(watched, NEXT)
    second = looked_on(watched, NEXT)
    after = [row for row in rows_of(watched) if row.window == DAY]
    third = looked_on(watched, NEXT)
    explicit = look(watched, (NEXT.start, NEXT.end)) if NEXT.end < datetime.now(UTC) else third

    assert (first.verdicts["quality"], first.again) == (Verdict.INCONCLUSIVE, ())
    # The labels are those of a coin, and the look that judged by them was cut short before it kept what it had told.
    (again,) = second.again
    assert (again.window, again.version, again.labelled) == (DAY, "1", 150)
    assert again.verdicts["quality"] is Verdict.FAIL
    assert [(alert.kind, alert.event) for alert in again.alerts] == [
        ("quality", "contender.quality.degraded")
    ]
    assert [one.kind for one in second.with_late_alerts.alerts] == ["quality"]
    ours = {"window_end": DAY.end.isoformat(), "model": "small"}
    told = events(server, "contender.quality.degraded", 1, **ours)
    assert len([one for one in told if one["payload"]["report"] == again.report]) == 1
    # What labels do not change is as it was, and nothing stands twice.
    others = {"quality", "slice", "fairness", "importance"}
    assert [row for row in after if row.kind not in others] == [
        row for row in before if row.kind not in others
    ]
    assert len({row.key for row in after}) == len(after)
    assert (third.again, explicit.again) == ((), ())
