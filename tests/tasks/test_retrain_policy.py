from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from deployments.monitoring import RetrainSpec
from tasks.retrain_policy import Allowed, Refused, RetrainState, may_retrain

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
FINE = RetrainState(new_labels=500)


def reasons(policy, state, now=NOW):
    found = may_retrain(policy, state, now)
    return found.reasons if isinstance(found, Refused) else ()


def test_nothing_against_it_allows_it():
    assert may_retrain(RetrainSpec(minimum_new_labels=500), FINE, NOW) == Allowed()


def test_a_cooldown_refuses_until_it_is_over():
    policy = RetrainSpec(cooldown_hours=6)
    state = RetrainState(last_started=NOW, new_labels=0)

    (said,) = reasons(policy, state, NOW + timedelta(hours=5, minutes=59))

    assert "2026-03-01 12:00:00 UTC" in said
    assert "2026-03-01 18:00:00 UTC" in said
    assert reasons(policy, state, NOW + timedelta(hours=6)) == ()
    assert reasons(RetrainSpec(cooldown_hours=0), state) == ()


def test_too_few_new_labels_refuse_and_so_does_a_number_that_nobody_knows():
    policy = RetrainSpec(minimum_new_labels=1000)

    (said,) = reasons(policy, RetrainState(new_labels=999))
    assert said.startswith("999 labelled rows came since the champion was trained, and 1,000 are wanted")
    assert "nobody can tell" in reasons(policy, RetrainState(new_labels=None))[0]
    assert reasons(RetrainSpec(), RetrainState(new_labels=None)) == ()


def test_only_the_alerts_that_the_policy_names_ask_for_it():
    policy = RetrainSpec(on=("quality",))

    refused = may_retrain(policy, FINE, NOW, "drift")

    assert refused == Refused(("alerts of kind drift do not ask for it (retrain.on: quality)",))
    assert may_retrain(policy, FINE, NOW, "quality") == Allowed()
    assert may_retrain(policy, FINE, NOW) == Allowed()


def test_every_reason_is_told_at_once():
    state = RetrainState(
        no_champion="there is no champion",
        releasing="4",
        last_started=NOW,
        new_labels=0,
        budget=("the daily budget is used up",),
    )

    said = reasons(RetrainSpec(minimum_new_labels=1), state)

    assert len(said) == 5
    assert any("version 4 is being released" in one for one in said)


@given(
    no_champion=st.sampled_from(["", "none"]),
    releasing=st.sampled_from(["", "3"]),
    ago=st.none() | st.floats(-1000, 1000),
    labels=st.none() | st.integers(0, 2000),
    budget=st.sampled_from([(), ("used up",)]),
    cooldown=st.floats(0, 500),
    wanted=st.integers(0, 1500),
)
def test_it_is_allowed_only_where_all_is_known_to_hold(
    no_champion, releasing, ago, labels, budget, cooldown, wanted
):
    started = None if ago is None else NOW - timedelta(hours=ago)
    state = RetrainState(no_champion, releasing, started, labels, budget)

    found = may_retrain(RetrainSpec(cooldown_hours=cooldown, minimum_new_labels=wanted), state, NOW)

    cooled = started is None or started + timedelta(hours=cooldown) <= NOW
    enough = labels >= wanted if labels is not None else not wanted
    assert isinstance(found, Allowed) == (
        not no_champion and not releasing and cooled and enough and not budget
    )
