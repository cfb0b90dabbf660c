"""What a release does next: no sequence of observations promotes without every condition, and none gets stuck."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deployments.release import ChangeWindow, ReleasePlan, Shadow, Step
from tasks.champion import ChampionRef
from tasks.decide import (
    MOST_ATTEMPTS,
    Close,
    Enter,
    Hold,
    Observation,
    Wait,
    decide,
    stages,
    taken_up,
)
from tasks.release_record import LIVE, Release, State, Transition
from tasks.verdict import Verdict

NOW = datetime(2026, 3, 4, 12, tzinfo=UTC)
PLAN = ReleasePlan(
    shadow=Shadow(minimum_requests=50, maximum_seconds=60),
    steps=(
        Step(percentage=10, minimum_requests=100, maximum_seconds=60),
        Step(percentage=50, minimum_requests=100, minimum_seconds=5, maximum_seconds=60),
    ),
)


def ref(version):
    return ChampionRef(name="dev-churn", version=version, run_id="r" + version, model_id="m", digest="d" * 64)


def release(plan=PLAN, **changes):
    return Release(
        **{
            "id": "churn-2",
            "model": "churn",
            "environment": "dev",
            "endpoint": "dev-churn",
            "challenger": ref("2"),
            "champion": ref("1"),
            "gate_report": "g",
            "author": "ann",
            "started_by": "bob",
            "plan": plan,
            "begun": NOW,
            "entered": NOW,
            **changes,
        }
    )


GOOD = Observation(
    at=NOW,
    approvals=Verdict.PASS,
    champion_stands=True,
    ready=True,
    requests=(500, 500),
    analysis=Verdict.PASS,
)
LATER = NOW + timedelta(seconds=10)


def canary(step=0, **changes):
    return release(state=State.CANARY, step=step, **changes)


# The way forward --------------------------------------------------------------------------------------------


def test_a_good_challenger_goes_through_every_stage_and_is_promoted():
    record, way = release(), []
    for _ in range(10):
        action = decide(PLAN, record, GOOD, LATER)
        if not isinstance(action, Enter):
            break
        way.append((action.state, action.step))
        record = record.model_copy(update={"state": action.state, "step": action.step})

    assert way == [
        (State.APPROVED, 0),
        (State.SHADOW, 0),
        (State.CANARY, 0),
        (State.CANARY, 1),
        (State.PROMOTED, 1),
    ]


@pytest.mark.parametrize(
    ("strategy", "expected"),
    [
        ("shadow_canary", [("shadow", 100), ("canary", 10), ("canary", 50)]),
        ("canary", [("canary", 10), ("canary", 50)]),
        ("blue_green", [("canary", 100)]),
        ("direct", []),
    ],
)
def test_each_strategy_has_its_stages(strategy, expected):
    plan = PLAN.model_copy(update={"strategy": strategy})

    assert [(str(stage.state), stage.percentage) for stage in stages(plan)] == expected
    assert len(stages(plan)) == plan.looks


def test_without_a_champion_there_is_nobody_to_compare_with():
    action = decide(PLAN, release(state=State.APPROVED, champion=None), GOOD, LATER)

    assert action == Enter(State.PROMOTED, "there is no champion to compare with")


# What holds it back -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "word"),
    [
        (
            {"approvals": Verdict.INCONCLUSIVE, "approvals_missing": ("owner",)},
            "approvals are missing: owner",
        ),
        ({"champion_stands": None}, "not known"),
        ({"unavailable": "MLflow does not answer"}, "MLflow does not answer"),
        ({"requests": (99, 500)}, "99 of 100 requests"),
        ({"requests": (500, 99)}, "99 of 100 requests"),
        ({"analysis": Verdict.INCONCLUSIVE, "findings": "too wide"}, "too wide"),
        ({"ready": None}, "not ready"),
    ],
)
def test_a_condition_that_does_not_hold_makes_a_step_wait_and_then_ends_it(changed, word):
    seen = replace(GOOD, **changed)

    waits = decide(PLAN, canary(step=1), seen, LATER)
    ends = decide(PLAN, canary(step=1), seen, NOW + timedelta(seconds=61))

    assert isinstance(waits, Wait)
    assert word in waits.reason
    assert isinstance(ends, Enter)
    assert ends.state is State.ROLLED_BACK
    assert word in ends.reason


@pytest.mark.parametrize(
    ("changed", "word"),
    [
        ({"analysis": Verdict.FAIL, "findings": "error rate: harm is shown"}, "error rate: harm is shown"),
        ({"ready": False}, "no worker"),
        ({"restarts": 1}, "ended by itself"),
        ({"wish": "roll_back"}, "a person"),
        ({"champion_stands": False, "changed": "version 3 serves now"}, "version 3 serves now"),
        ({"approvals": Verdict.FAIL, "approvals_missing": ("no by eve",)}, "no by eve"),
    ],
)
@pytest.mark.parametrize("held", ["", "somebody looks at it"])
def test_what_is_bad_ends_it_at_once_with_the_champion_in_place(changed, word, held):
    action = decide(PLAN, canary(held=held), replace(GOOD, **changed), LATER)

    assert isinstance(action, Enter)
    assert action.state is State.ROLLED_BACK
    assert word in action.reason


def test_nothing_is_rolled_back_that_had_no_traffic():
    refused = decide(PLAN, release(), replace(GOOD, approvals=Verdict.FAIL), LATER)
    late = decide(PLAN, release(), Observation(at=NOW), NOW + timedelta(hours=73))

    assert isinstance(refused, Enter)
    assert isinstance(late, Enter)
    assert refused.state is late.state is State.REJECTED


def test_a_challenger_that_does_not_start_is_rejected_and_one_that_starts_is_waited_for():
    approved = release(state=State.APPROVED)

    waits = decide(PLAN, approved, replace(GOOD, ready=None), LATER)
    ends = decide(PLAN, approved, replace(GOOD, ready=False, unready="no such file"), LATER)

    assert isinstance(waits, Wait)
    assert isinstance(ends, Enter)
    assert (ends.state, ends.reason) == (State.REJECTED, "the challenger does not start: no such file")


def test_a_closed_change_window_lets_nothing_forward_and_still_lets_it_back():
    closed = PLAN.model_copy(update={"change_windows": (ChangeWindow(days=("sat",)),)})

    forward = decide(closed, canary(plan=closed), GOOD, LATER)
    begins = decide(closed, release(closed, state=State.APPROVED), GOOD, LATER)
    back = decide(closed, canary(plan=closed), replace(GOOD, analysis=Verdict.FAIL), LATER)

    assert isinstance(forward, Wait)
    assert isinstance(begins, Wait)
    assert forward.reason == begins.reason == "the change window is closed"
    assert isinstance(back, Enter)
    assert back.state is State.ROLLED_BACK


def test_a_step_is_not_shorter_than_its_shortest_time():
    early = decide(PLAN, canary(step=1), GOOD, NOW + timedelta(seconds=4))
    then = decide(PLAN, canary(step=1), GOOD, NOW + timedelta(seconds=5))

    assert isinstance(early, Wait)
    assert isinstance(then, Enter)
    assert then.state is State.PROMOTED


def test_inconclusive_asks_a_person_where_the_plan_says_so():
    asking = PLAN.model_copy(update={"inconclusive": "hold"})
    seen, late = replace(GOOD, requests=(0, 500)), NOW + timedelta(seconds=61)

    action = decide(asking, canary(), seen, late)
    held = canary(held="no verdict")

    assert isinstance(action, Hold)
    assert isinstance(decide(asking, held, GOOD, late), Hold)
    assert decide(asking, held, replace(GOOD, wish="resume"), late) == Enter(
        State.CANARY, "a person asked to go on", 0, again=True
    )


def test_a_step_whose_controller_is_lost_again_and_again_is_given_up():
    seen = replace(GOOD, lease_lapsed=True)

    again = decide(PLAN, canary(), seen, LATER)
    given_up = decide(PLAN, canary(attempt=MOST_ATTEMPTS), seen, LATER)

    assert isinstance(again, Enter)
    assert (again.state, again.again) == (State.CANARY, True)
    assert isinstance(given_up, Enter)
    assert given_up.state is State.ROLLED_BACK


# After promotion --------------------------------------------------------------------------------------------


def test_labels_may_take_a_promotion_back_until_its_window_is_over():
    promoted = release(state=State.PROMOTED, step=1, watch_until=NOW + timedelta(hours=1))
    harm = replace(GOOD, analysis=Verdict.FAIL, findings="quality: harm is shown")

    back = decide(PLAN, promoted, harm, LATER)

    assert isinstance(back, Enter)
    assert (back.state, back.reason) == (State.ROLLED_BACK, "quality: harm is shown")
    assert isinstance(decide(PLAN, promoted, GOOD, LATER), Wait)
    assert isinstance(decide(PLAN, promoted, GOOD, NOW + timedelta(hours=2)), Close)


# Whatever is observed ---------------------------------------------------------------------------------------

observations = st.builds(
    Observation,
    at=st.just(NOW),
    approvals=st.sampled_from(Verdict),
    champion_stands=st.sampled_from([True, True, True, False, None]),
    ready=st.sampled_from([True, True, True, False, None]),
    restarts=st.sampled_from([0, 0, 0, 1]),
    requests=st.tuples(st.sampled_from([0, 99, 100, 5000]), st.sampled_from([0, 100, 5000])),
    analysis=st.sampled_from(Verdict),
    lease_lapsed=st.sampled_from([False, False, True]),
    wish=st.sampled_from([None, None, None, "roll_back", "resume", "hold"]),
    unavailable=st.sampled_from(["", "", "the disk is full"]),
)
plans = st.builds(
    lambda strategy, inconclusive: PLAN.model_copy(
        update={"strategy": strategy, "inconclusive": inconclusive}
    ),
    st.sampled_from(["shadow_canary", "canary", "blue_green", "direct"]),
    st.sampled_from(["roll_back", "hold"]),
)


def applied(record, action, now):
    """What the controller makes of an action, without its effects."""
    if isinstance(action, Hold):
        return record.model_copy(update={"held": action.reason})
    if isinstance(action, Enter):
        attempt = record.attempt + 1 if action.again else 1
        update = {"state": action.state, "step": action.step, "entered": now, "held": "", "attempt": attempt}
        return record.model_copy(update=update)
    return record


@settings(max_examples=400, deadline=None)
@given(plans, st.lists(st.tuples(observations, st.sampled_from([0.5, 5, 61, 90_000])), max_size=25))
def test_nothing_is_promoted_without_every_condition(plan, seen):
    record, now, visited = release(plan), NOW, []
    for observation, seconds in seen:
        now += timedelta(seconds=seconds)
        action = decide(plan, record, observation, now)
        if isinstance(action, Enter) and action.state is State.PROMOTED:
            assert observation.approvals is Verdict.PASS
            assert observation.champion_stands is True
            assert not observation.unavailable
            assert observation.wish != "roll_back"
            assert not record.held
            assert visited == [(stage.state, stage.step) for stage in stages(plan)]
            if stages(plan):
                assert observation.analysis is Verdict.PASS
                assert observation.ready is True
                assert min(observation.requests) >= 100
                assert not observation.restarts
            return
        harm = observation.analysis is Verdict.FAIL and not observation.lease_lapsed
        if record.state in LIVE and (harm or observation.wish == "roll_back" or observation.ready is False):
            assert isinstance(action, Enter)
            assert action.state is State.ROLLED_BACK
        if isinstance(action, Enter) and action.state in LIVE and not action.again:
            visited.append((action.state, action.step))
        record = applied(record, action, now)


@settings(max_examples=300, deadline=None)
@given(plans, st.lists(observations, min_size=1, max_size=30))
def test_no_sequence_gets_stuck(plan, seen):
    record, now = release(plan), NOW
    for observation in [*seen, *seen, *seen, *[Observation(at=NOW)] * 5]:
        now += timedelta(hours=20)
        record = applied(record, decide(plan, record, observation, now), now)

    assert record.state not in LIVE | {State.PROPOSED, State.APPROVED} or record.held


def test_an_ended_release_stays_as_it_is():
    for state in (State.ROLLED_BACK, State.REJECTED):
        assert isinstance(decide(PLAN, release(state=state), replace(GOOD, wish="roll_back"), LATER), Wait)


# What was cut short -----------------------------------------------------------------------------------------

CLOSED = PLAN.model_copy(update={"change_windows": (ChangeWindow(days=("sat",)),)})


def cut_short(state, intended, plan=PLAN, **changes):
    """A release in one state whose way into another was decided, and never confirmed."""
    step = changes.pop("to_step", 0)
    intent = Transition(state=intended, step=step, reason="all tests passed", observed=NOW, at=NOW)
    return release(plan, state=state, intent=intent, **changes)


def test_a_transition_that_was_cut_short_is_made_where_it_still_is_allowed():
    step = taken_up(PLAN, cut_short(State.CANARY, State.CANARY, to_step=1), GOOD, LATER)
    promotion = taken_up(PLAN, cut_short(State.CANARY, State.PROMOTED), GOOD, LATER)

    assert (step.state, step.step) == (State.CANARY, 1)
    assert promotion.state is State.PROMOTED
    assert "taken up again" in step.reason


@pytest.mark.parametrize(
    "seen",
    [
        replace(GOOD, approvals=Verdict.INCONCLUSIVE, approvals_missing=("owner's has expired",)),
        replace(GOOD, approvals=Verdict.FAIL),
        replace(GOOD, champion_stands=False, changed="version 3 is champion now"),
    ],
)
def test_a_promotion_that_was_cut_short_is_ended_where_it_is_not_allowed_any_more(seen):
    action = taken_up(PLAN, cut_short(State.CANARY, State.PROMOTED, step=1), seen, LATER)

    assert (action.state, action.step) == (State.ROLLED_BACK, 1)


def test_what_was_cut_short_does_not_go_forward_in_a_closed_change_window():
    promotion = taken_up(CLOSED, cut_short(State.CANARY, State.PROMOTED, CLOSED), GOOD, LATER)
    step = taken_up(CLOSED, cut_short(State.SHADOW, State.CANARY, CLOSED), GOOD, LATER)
    begins = taken_up(CLOSED, cut_short(State.APPROVED, State.SHADOW, CLOSED), GOOD, LATER)

    assert promotion.state is State.ROLLED_BACK
    assert "the change window is closed" in promotion.reason
    assert (step.state, step.again) == (State.SHADOW, True)
    assert (begins.state, begins.again) == (State.APPROVED, True)


@pytest.mark.parametrize("seen", [replace(GOOD, unavailable="no route"), replace(GOOD, champion_stands=None)])
def test_what_was_cut_short_waits_while_it_is_not_known_whether_it_is_allowed(seen):
    assert isinstance(taken_up(PLAN, cut_short(State.CANARY, State.PROMOTED), seen, LATER), Wait)


def test_the_way_back_that_was_cut_short_asks_nobody():
    record = cut_short(State.CANARY, State.ROLLED_BACK)

    action = taken_up(PLAN, record, Observation(at=NOW), LATER)

    assert action.state is State.ROLLED_BACK
