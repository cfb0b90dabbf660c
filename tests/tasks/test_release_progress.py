from datetime import timedelta

import pytest

from tasks.decide import Wait, stages
from tasks.release_progress import progress_of
from tasks.release_record import State
from tasks.verdict import Verdict
from tests.tasks.made_releases import HARM, PLAN, look, looks, reading, released

WAITS = Wait("the test goes on")
SHADOW, FIRST, SECOND = stages(PLAN)


def under_way(state, step=0, *, history):
    whole = released()
    return whole.model_copy(update={"state": state, "step": step, "history": whole.history[:history]})


def after(release, seconds):
    return release.entered + timedelta(seconds=seconds)


def test_each_state_of_the_plan_is_worth_the_same():
    steps = [
        under_way(State.PROPOSED, history=0),
        under_way(State.APPROVED, history=1),
        under_way(State.SHADOW, history=2),
        under_way(State.CANARY, 0, history=3),
        under_way(State.CANARY, 1, history=4),
        released(),
    ]

    percents = [progress_of(one, None, WAITS, one.entered).percent for one in steps]

    assert percents == [0, 20, 40, 60, 80, 100]


def test_within_a_state_the_minimum_that_is_furthest_from_done_counts():
    release = under_way(State.CANARY, 0, history=3)
    seen = look(State.CANARY, 0, 5, seconds=1, requests=FIRST.minimum_requests // 2)

    by_requests = progress_of(release, seen, WAITS, after(release, 10 * FIRST.minimum_seconds + 10))
    by_seconds = progress_of(
        release,
        look(State.CANARY, 0, 5, seconds=1, requests=10 * FIRST.minimum_requests),
        WAITS,
        after(release, FIRST.minimum_seconds / 4),
    )

    assert by_requests.percent == pytest.approx(70, abs=0.2)
    assert by_seconds.percent == pytest.approx(65 if FIRST.minimum_seconds else 80, abs=0.2)


def test_what_an_earlier_state_saw_counts_for_nothing_in_the_next():
    release = under_way(State.CANARY, 1, history=4)
    before = look(State.CANARY, 0, 5, seconds=1, requests=10 * SECOND.minimum_requests)

    assert progress_of(release, before, WAITS, after(release, 10**6)).percent == 80


def test_a_release_that_was_rolled_back_stays_as_far_as_it_came_and_says_why():
    release = released(State.ROLLED_BACK, after=2)
    bad = looks(failing=True)[-1]

    shown = progress_of(release, bad, WAITS, release.entered)

    assert shown.percent == 60
    assert shown.said == f"**dev_patients version 7**: rolled back. {HARM}"


def test_a_release_under_way_says_what_both_arms_answered_and_what_it_waits_for():
    release = under_way(State.CANARY, 0, history=3)
    seen = look(State.CANARY, 0, 5, seconds=1, requests=1200, latency_p95={"challenger": None, "champion": 6})

    said = progress_of(release, seen, WAITS, release.entered).said

    assert said == (
        "**dev_patients version 7**: canary 5 %. Challenger: 1,200 requests, 1 errors. "
        "Champion: 1,210 requests, 2 errors, p95 6 ms. Waits: the test goes on."
    )


def test_a_release_that_is_held_says_so_before_anything_else():
    release = under_way(State.CANARY, 0, history=3).model_copy(update={"held": "no verdict after 60 s"})

    assert progress_of(release, None, WAITS, release.entered).said.endswith("Held: no verdict after 60 s.")


def test_every_test_of_the_last_look_is_a_row():
    release = under_way(State.CANARY, 1, history=4)
    bad = reading(verdict=Verdict.FAIL, estimate=0.05, low=0.02, high=0.08, reason=HARM)

    rows = progress_of(
        release, look(State.CANARY, 1, 50, seconds=1, readings=(bad,)), WAITS, release.entered
    ).tests

    assert rows == (
        {
            "test": "Error rate",
            "verdict": "fail",
            "estimate": "+5.00 pp",
            "interval": "+2.00 to +8.00 pp",
            "harm above": rows[0]["harm above"],
            "challenger": "400",
            "champion": "410",
            "in": "canary 50 %",
            "why": HARM,
        },
    )
    assert rows[0]["harm above"] == f"{PLAN.analysis.error_rate.effect * 100:.4g} pp"
