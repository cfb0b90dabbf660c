"""Service levels: judged for the endpoint, told by version, and not judged on a handful of requests."""

from datetime import timedelta

import pytest

from deployments.monitoring import ServicePlan
from tasks.live_window import Calls, EndpointCalls
from tasks.service_levels import counted_within, service_rows, wilson
from tasks.verdict import Verdict
from tests.tasks.live_logs import DAY, NOON

PLAN = ServicePlan(p95_milliseconds=100, error_rate=0.01, availability=0.995, minimum_requests=100)


def calls(version="3", shadow=False, requests=1000, failed=0, refused=0, p95: float | None = 50.0):
    answered = requests - failed - refused
    low, high = (None, None) if p95 is None else (p95 - 5, p95 + 5)
    return Calls(version, shadow, requests, failed, refused, answered, p95, p95, low, high)


def judged(whole=None, **unlogged):
    """The rows of the whole endpoint by metric, where it answered that."""
    found = service_rows(PLAN, EndpointCalls(whole or Calls()), DAY, "3", **unlogged)
    return {row.metric: row for row in found if not row.subject}


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


def test_errors_of_a_version_that_was_replaced_late_in_the_window_are_judged():
    replaced, newest = calls("1", requests=1_000_000, failed=50_000), calls("3", requests=500)
    whole = calls("", requests=1_000_500, failed=50_000)

    rows = service_rows(PLAN, EndpointCalls(whole, (replaced, newest)), DAY, "3")

    errors = {row.subject: row for row in rows if row.metric == "error_rate"}
    assert (errors[""].version, errors[""].verdict) == ("3", Verdict.FAIL)
    assert errors[""].rows == 1_000_500
    assert (errors["version 1"].version, errors["version 1"].value) == ("1", 0.05)
    assert (errors["version 3"].version, errors["version 3"].value) == ("3", 0.0)
    assert {row.verdict for row in rows if row.subject} == {None}


def test_of_copies_nothing_is_told():
    rows = service_rows(PLAN, EndpointCalls(calls(""), (calls(), calls("5", shadow=True))), DAY, "3")

    assert {row.subject for row in rows} == {"", "version 3"}


def test_lost_requests_of_the_window_are_told():
    lost = [(NOON - timedelta(days=2), 5), (NOON, 2), (NOON + timedelta(hours=1), 3), (DAY.end, 9)]

    assert counted_within(lost, DAY) == 5
    assert judged(calls(), lost=5)["lost"].value == 5
    assert "lost" not in judged(calls())


def test_requests_that_found_no_scorer_count_against_availability_alone():
    found = judged(calls(requests=1000), unanswered=1000)

    assert (found["availability"].value, found["availability"].rows) == (0.5, 2000)
    assert found["availability"].verdict is Verdict.FAIL
    assert found["error_rate"].verdict is Verdict.PASS
    assert found["unanswered"].value == 1000


def test_a_total_outage_is_a_breach():
    found = judged(unanswered=500)

    assert (found["availability"].value, found["availability"].verdict) == (0.0, Verdict.FAIL)
    assert found["error_rate"].verdict is Verdict.INCONCLUSIVE


def test_intervals_of_rates_are_wilsons():
    low, high = wilson(10, 100)

    assert (round(low, 4), round(high, 4)) == (0.0552, 0.1744)
    assert wilson(0, 0) == (None, None)
