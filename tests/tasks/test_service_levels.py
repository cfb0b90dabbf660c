"""Service levels: judged for the champion, told for others, and not judged on a handful of requests."""

from datetime import timedelta

import pytest

from deployments.monitoring import ServicePlan
from tasks.live_window import Calls
from tasks.service_levels import lost_within, service_rows, wilson
from tasks.verdict import Verdict
from tests.tasks.live_logs import DAY, NOON

PLAN = ServicePlan(p95_milliseconds=100, error_rate=0.01, availability=0.995, minimum_requests=100)


def calls(version="3", shadow=False, requests=1000, failed=0, refused=0, p95: float | None = 50.0):
    answered = requests - failed - refused
    low, high = (None, None) if p95 is None else (p95 - 5, p95 + 5)
    return Calls(version, shadow, requests, failed, refused, answered, p95, p95, low, high)


def judged(*given, version="3", lost=0):
    return {
        row.metric: row for row in service_rows(PLAN, given, DAY, version, lost) if row.version == version
    }


def test_a_version_that_keeps_its_promises_passes():
    found = judged(calls())

    assert {name: row.verdict for name, row in found.items() if row.verdict} == {
        "p95_milliseconds": Verdict.PASS,
        "error_rate": Verdict.PASS,
        "availability": Verdict.PASS,
    }
    assert (found["p95_milliseconds"].value, found["p95_milliseconds"].threshold) == (50.0, 100.0)
    assert found["requests"].value == 1000


@pytest.mark.parametrize(
    ("given", "failing"),
    [
        (calls(p95=101.0), {"p95_milliseconds"}),
        (calls(failed=11), {"error_rate", "availability"}),
        (calls(failed=9), {"availability"}),
        (calls(refused=500), set()),
    ],
)
def test_what_breaks_a_promise_fails_and_refusals_break_none(given, failing):
    found = judged(given)

    assert {name for name, row in found.items() if row.verdict is Verdict.FAIL} == failing


def test_few_requests_are_inconclusive_however_bad():
    found = judged(calls(requests=99, failed=99, p95=None))

    verdicts = {row.verdict for row in found.values() if row.verdict}
    assert verdicts == {Verdict.INCONCLUSIVE}
    assert found["error_rate"].reason == "99 requests in the window; 100 are needed"


def test_no_requests_at_all_are_inconclusive():
    found = judged()

    assert {row.verdict for row in found.values() if row.verdict} == {Verdict.INCONCLUSIVE}
    assert found["error_rate"].value is None


def test_where_nothing_was_answered_latency_is_inconclusive_and_errors_fail():
    found = judged(calls(failed=1000, p95=None))

    assert found["p95_milliseconds"].verdict is Verdict.INCONCLUSIVE
    assert found["error_rate"].verdict is Verdict.FAIL


def test_other_versions_are_told_and_copies_are_not():
    rows = service_rows(PLAN, [calls(), calls("4", failed=900), calls("5", shadow=True)], DAY, "3")

    others = [row for row in rows if row.version != "3"]
    assert {row.version for row in others} == {"4"}
    assert {row.verdict for row in others} == {None}
    assert next(row.value for row in others if row.metric == "error_rate") == 0.9


def test_lost_requests_of_the_window_are_told():
    lost = [(NOON - timedelta(days=2), 5), (NOON, 2), (NOON + timedelta(hours=1), 3), (DAY.end, 9)]

    assert lost_within(lost, DAY) == 5
    assert judged(calls(), lost=5)["lost"].value == 5
    assert "lost" not in judged(calls())


def test_intervals_of_rates_are_wilsons():
    low, high = wilson(10, 100)

    assert (round(low, 4), round(high, 4)) == (0.0552, 0.1744)
    assert wilson(0, 0) == (None, None)
