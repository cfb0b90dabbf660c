"""Several tests at once, and several windows before anybody is told."""

import math
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployments.monitoring import DriftPlan
from tasks.drift_decision import alert_of, holm
from tasks.monitoring_record import MetricRow, Window
from tasks.verdict import Verdict

PLAN = DriftPlan(needed=2, windows=3)
BEGIN = datetime(2026, 1, 1, tzinfo=UTC)
DAY = timedelta(days=1)


def looked(day, *drifted, length=7, version="3", kind="drift", inconclusive=()):
    """The rows of a window that begins on a day."""
    window = Window(start=BEGIN + day * DAY, end=BEGIN + (day + length) * DAY)
    verdicts = dict.fromkeys(("pace", "tier"), Verdict.PASS)
    verdicts |= dict.fromkeys(drifted, Verdict.FAIL) | dict.fromkeys(inconclusive, Verdict.INCONCLUSIVE)
    rows = [
        MetricRow(
            version=version,
            window=window,
            kind=kind,
            metric="wasserstein",
            subject=subject,
            value=0.6 if verdict is Verdict.FAIL else 0.1,
            threshold=0.3,
            verdict=verdict,
        )
        for subject, verdict in verdicts.items()
    ]
    summary = Verdict.FAIL if drifted else Verdict.PASS
    return [
        *rows,
        MetricRow(version=version, window=window, kind=kind, metric="drifted_columns", verdict=summary),
    ]


# Several tests at once ----------------------------------------------------------------------------------------


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30), st.floats(0.001, 0.2))
def test_adjusted_p_values_reject_what_holm_rejects_one_after_another(p_values, alpha):
    rejected, left = set(), len(p_values)
    for place in sorted(range(len(p_values)), key=lambda place: p_values[place]):
        if p_values[place] * left >= alpha:
            break
        rejected.add(place)
        left -= 1

    adjusted = holm(p_values)

    assert {place for place, p in enumerate(adjusted) if p < alpha} == rejected
    assert all(p <= adjusted[place] <= 1 for place, p in enumerate(p_values))


def test_p_values_are_multiplied_by_the_tests_that_are_left_and_never_fall_back():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


def test_a_p_value_that_is_not_defined_stays_so_and_counts_as_a_test():
    adjusted = holm([math.nan, 0.01])

    assert math.isnan(adjusted[0])
    assert adjusted[1] == pytest.approx(0.02)


def test_no_p_values_are_none():
    assert holm([]) == []


# Several windows ----------------------------------------------------------------------------------------------


def test_one_window_with_drift_is_no_alert():
    assert alert_of(PLAN, [looked(0), looked(7), looked(14, "pace")]) is None


def test_two_windows_of_three_are_an_alert_about_the_columns_that_drifted_in_both():
    alert = alert_of(PLAN, [looked(0, "pace"), looked(7, "tier"), looked(14, "pace", "tier")])

    assert alert.kind == "drift"
    assert alert.event == "contender.drift.detected"
    assert alert.subjects == ("pace", "tier")
    assert "pace in 2: wasserstein 0.6 of 0.3" in alert.reason


def test_another_column_in_each_window_is_no_alert():
    assert alert_of(PLAN, [looked(0), looked(7, "tier"), looked(14, "pace")]) is None


def test_a_newest_window_without_drift_is_no_alert():
    assert alert_of(PLAN, [looked(0, "pace"), looked(7, "pace"), looked(14)]) is None


def test_a_newest_window_that_is_inconclusive_is_no_alert():
    assert alert_of(PLAN, [looked(0, "pace"), looked(7, "pace"), looked(14, inconclusive=["pace"])]) is None


def test_windows_before_the_last_three_do_not_count():
    assert alert_of(PLAN, [looked(0, "pace"), looked(7), looked(14), looked(21, "pace")]) is None


def test_overlapping_windows_are_not_evidence_twice():
    sliding = [looked(day, "pace") for day in range(7)]

    assert alert_of(PLAN, sliding) is None
    assert alert_of(PLAN, [*sliding, looked(7, "pace")]).subjects == ("pace",)


def test_a_look_at_a_shorter_window_clears_nothing():
    weeks = [looked(0, "pace"), looked(7, "pace")]
    half_a_day = looked(6.9, length=0.1)

    assert alert_of(PLAN, [looked(0, "pace"), half_a_day, looked(7, "pace")]) == alert_of(PLAN, weeks)
    assert alert_of(PLAN, weeks) is not None


def test_looks_at_shorter_windows_confirm_nothing():
    half_hours = [looked(6.96, "pace", length=1 / 48), looked(6.98, "pace", length=1 / 48)]

    assert alert_of(PLAN, [*half_hours, looked(7, "pace")]) is None
    assert alert_of(PLAN, [looked(-7, "pace"), looked(0, "pace"), half_hours[0]]) is None


def test_windows_given_by_their_moments_count_together_where_they_are_about_as_long():
    assert alert_of(PLAN, [looked(0, "pace", length=6.5), looked(7, "pace")]) is not None


def test_of_overlapping_windows_those_count_that_fit_before_the_newest():
    # Counted: day 14, day 7, day 0; what drifted on the days between does not.
    history = [looked(day, *(["pace"] if day in {5, 6, 12, 13, 14} else [])) for day in range(15)]

    assert alert_of(PLAN, history) is None


def test_a_window_looked_at_twice_counts_once():
    assert alert_of(PLAN, [looked(0), looked(7, "pace"), looked(7, "pace")]) is None


def test_windows_of_another_version_do_not_count():
    history = [looked(0, "pace", version="2"), looked(7, "pace", version="2"), looked(14, "pace")]

    assert alert_of(PLAN, history) is None
    assert alert_of(PLAN, [*history, looked(21, "pace")]).subjects == ("pace",)


def test_one_window_is_enough_where_the_plan_says_so():
    assert alert_of(DriftPlan(needed=1, windows=1), [looked(0, "pace")]).subjects == ("pace",)


def test_predictions_have_an_event_of_their_own():
    history = [looked(day, "prediction", kind="prediction_drift") for day in (0, 7)]

    alert = alert_of(PLAN, history)

    assert (alert.kind, alert.event) == ("prediction_drift", "contender.prediction_drift.detected")


def test_nothing_looked_at_is_no_alert():
    assert alert_of(PLAN, []) is None
    assert alert_of(PLAN, [looked(0, "pace"), []]) is None


@pytest.mark.parametrize("kinds", [("drift", "prediction_drift"), ("quality",)])
def test_rows_of_other_kinds_are_refused(kinds):
    with pytest.raises(ValueError, match="one kind of drift"):
        alert_of(PLAN, [[row for kind in kinds for row in looked(0, "pace", kind=kind)]])
