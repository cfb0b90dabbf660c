"""Alerts: of what failed, never of what is not known; and drift told apart from quality."""

from datetime import timedelta

import pytest

from deployments.monitoring import DriftPlan, MonitoringSpec
from tasks.monitoring_alerts import alerts_of, told_apart
from tasks.monitoring_record import MetricRow, Window
from tasks.verdict import Verdict
from tests.tasks.live_logs import NOON

PLAN = MonitoringSpec(drift=DriftPlan(needed=2, windows=3))


def window(day):
    return Window(start=NOON + timedelta(days=day - 1), end=NOON + timedelta(days=day))


def row(kind, metric, verdict, day=0, subject="", version="3"):
    return MetricRow(
        version=version,
        window=window(day),
        kind=kind,
        metric=metric,
        subject=subject,
        value=0.5,
        threshold=0.3,
        verdict=verdict,
        reason="as told",
    )


def drifted(day, verdict=Verdict.FAIL, version="3"):
    return [
        row("drift", "wasserstein", verdict, day, "weight", version),
        row("drift", "drifted_columns", verdict, day, version=version),
    ]


@pytest.mark.parametrize(
    ("kind", "event"),
    [
        ("quality", "contender.quality.degraded"),
        ("fairness", "contender.quality.degraded"),
        ("service", "contender.slo.breached"),
        ("inputs", "contender.inputs.invalid"),
        ("budget", "contender.budget.breached"),
    ],
)
def test_what_fails_is_an_alert_and_what_is_not_known_is_none(kind, event):
    for verdict in (Verdict.PASS, Verdict.INCONCLUSIVE, None):
        assert alerts_of(PLAN, [row(kind, "a", verdict)], []) == ()

    (alert,) = alerts_of(PLAN, [row(kind, "a", Verdict.FAIL), row(kind, "b", Verdict.PASS)], [])

    assert alert.event == event
    assert alert.subjects == ("a",)
    assert alert.reason == "a: as told"


def test_an_estimate_or_a_slice_is_never_an_alert():
    rows = [row("estimated_quality", "estimated_f1", Verdict.FAIL), row("slice", "f1", Verdict.FAIL)]

    assert alerts_of(PLAN, rows, []) == ()


def test_drift_is_an_alert_once_it_shows_in_windows_enough():
    first = alerts_of(PLAN, drifted(0), drifted(0))
    second = alerts_of(PLAN, drifted(1), drifted(0) + drifted(1))

    assert first == ()
    assert [(one.kind, one.subjects) for one in second] == [("drift", ("weight",))]


def test_a_window_looked_at_again_does_not_count_twice():
    assert alerts_of(PLAN, drifted(0), drifted(0)) == ()


def test_later_windows_and_other_versions_are_no_history_of_a_window():
    standing = drifted(0, Verdict.PASS) + drifted(1) + drifted(-1, version="2")

    assert alerts_of(PLAN, drifted(0), standing) == ()


P, F, I = Verdict.PASS, Verdict.FAIL, Verdict.INCONCLUSIVE  # noqa: E741


@pytest.mark.parametrize(
    ("drift", "prediction", "quality", "said"),
    [
        (F, P, P, "drifted and quality held"),
        (P, P, F, "the relation of inputs and outcome has changed"),
        (F, F, F, "Quality fell and the data drifted"),
        (P, P, P, "Quality is what it was on the holdout, and the data looks as in training."),
        (F, F, I, "too few labels; predictions drifted, too"),
        (F, P, I, "too few labels; predictions did not"),
        (F, I, I, "of predictions nothing can be told"),
        (P, P, I, "The data looks as in training; quality is not known"),
        (I, I, I, "too little to tell"),
        (I, I, F, "whether the data drifted cannot be told"),
        (I, I, P, "Quality is what it was on the holdout."),
    ],
)
def test_drift_and_quality_are_told_apart(drift, prediction, quality, said):
    found = told_apart({"drift": drift, "prediction_drift": prediction, "quality": quality})

    assert said in found


def test_what_was_not_looked_at_is_not_known():
    assert told_apart({}) == "There is too little to tell drift or quality."
