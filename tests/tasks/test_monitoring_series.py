"""Windows beside the version's run: a series for each length, and a point for each window."""

from datetime import timedelta

import pytest

from deployments.monitoring import MonitoringSpec
from tasks.champion import ChampionRef
from tasks.monitoring_record import MetricRow, Window
from tasks.monitoring_series import log_window, series_name
from tasks.tracking import Tracking
from tests.tasks.live_logs import NOON

PLAN = MonitoringSpec(window_hours=168)


def row(value, *, version="3", subject="", **length):
    window = Window(start=NOON - timedelta(**(length or {"days": 7})), end=NOON)
    return MetricRow(
        version=version, window=window, kind="quality", metric="coverage", subject=subject, value=value
    )


@pytest.fixture
def logged(tracked):
    """`logged(rows)`: they were put beside a run, whose series of a name `logged.series(name)` gives."""
    tracking = Tracking(tracked)
    run = tracking.create_run(tracking.experiment("fruit"), "a run", {})
    ref = ChampionRef(name="dev-fruit", version="3", run_id=run, model_id="m", digest="d")

    def log(*rows):
        assert log_window(tracked, ref, PLAN, rows[0].window, rows) == []

    log.series = lambda name: [
        (point.step, point.value) for point in tracking.client.get_metric_history(run, name)
    ]
    return log


@pytest.mark.parametrize(
    ("length", "said"),
    [
        ({"days": 7}, ""),
        ({"hours": 168}, ""),
        ({"hours": 12}, "12h/"),
        ({"days": 1}, "1d/"),
        ({"hours": 36}, "36h/"),
        ({"minutes": 30}, "30min/"),
        ({"hours": 3, "seconds": 61.5}, "3h/"),
        ({"milliseconds": 1528}, "1.5s/"),
    ],
)
def test_a_window_of_another_length_than_the_plans_has_it_in_its_name(length, said):
    assert series_name(PLAN, row(1.0, **length)) == f"monitoring/{said}quality/coverage"


def test_windows_of_two_lengths_that_end_together_are_points_of_two_series(logged):
    logged(row(0.7))
    logged(row(0.2, hours=12))
    logged(row(0.7))

    end = int(NOON.timestamp())
    assert logged.series("monitoring/quality/coverage") == [(end, 0.7)]
    assert logged.series("monitoring/12h/quality/coverage") == [(end, 0.2)]


def test_a_value_that_changed_is_logged_again(logged):
    logged(row(0.0))
    logged(row(0.4))

    assert [value for _, value in logged.series("monitoring/quality/coverage")] == [0.0, 0.4]


def test_what_is_of_a_column_or_of_another_version_is_left_out(logged):
    logged(row(0.1), row(0.2, version="2"), row(0.3, subject="weight"), row(None))

    assert [value for _, value in logged.series("monitoring/quality/coverage")] == [0.1]


def test_service_levels_beside_a_version_are_its_own_and_not_the_endpoints(logged):
    rates = [
        row(value, subject=subject).model_copy(update={"kind": "service", "metric": "error_rate"})
        for value, subject in ((0.05, ""), (0.01, "version 3"))
    ]

    logged(*rates)

    assert [value for _, value in logged.series("monitoring/service/error_rate")] == [0.01]
