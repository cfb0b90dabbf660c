from datetime import UTC, datetime, timedelta

import pytest

from deployments.spec import load_spec
from tasks.register import ledger_of
from tasks.release_record import ReleaseStore, State
from tasks.retrain_policy import last_started
from tasks.retrain_record import (
    begin_retraining,
    end_retraining,
    open_retraining,
    record_trained,
    standing_retraining,
)
from tests.tasks.made_releases import HARM, released


@pytest.fixture
def loaded():
    return load_spec("churn")


def with_cooldown(loaded, hours):
    policy = loaded.spec.retrain.model_copy(update={"cooldown_hours": hours})
    spec = loaded.spec.model_copy(update={"retrain": policy})
    return loaded.model_copy(update={"spec": spec})


def release_begun(platform, state, **changed):
    """A release of version 7 that was begun now."""
    release = released(state, model="churn", begun=datetime.now(UTC), **changed)
    return ReleaseStore(platform, "churn").save(release)


def ended(platform):
    return [entry for entry in ledger_of(platform).entries("churn") if entry.event == "retrain.ended"]


def test_a_retraining_that_broke_starts_no_cooldown_and_any_other_end_does(platform, loaded):
    first = begin_retraining(platform, loaded, "drift", "drift", None)
    end_retraining(platform, first, "rolled_back", ("scores",))
    broken = begin_retraining(platform, loaded, "again", None, None)
    assert open_retraining(platform, "churn").id == broken.id

    end_retraining(platform, broken, "failed", ("the registry is gone",))

    assert open_retraining(platform, "churn") is None
    assert last_started(platform, "churn").details["retraining"] == broken.id
    assert last_started(platform, "churn", broken=False).details["retraining"] == first.id
    assert last_started(platform, "telco", broken=False) is None


def test_one_that_was_cut_short_is_carried_on_for_a_day_or_as_long_as_the_cooldown_lasts(platform, loaded):
    loaded = with_cooldown(loaded, 6)
    begun = begin_retraining(platform, loaded, "drift", "drift", None)
    a_day, later = begun.began + timedelta(hours=23.9), begun.began + timedelta(hours=24.1)

    assert standing_retraining(platform, loaded, a_day) == begun
    assert standing_retraining(platform, with_cooldown(loaded, 48), later) == begun
    assert ended(platform) == []


def test_one_that_nobody_carried_on_expires_with_the_reason(platform, loaded):
    begun = begin_retraining(platform, with_cooldown(loaded, 6), "drift", "drift", None)
    record_trained(platform, begun, "7", "f" * 64)

    weeks_later = begun.began + timedelta(days=21)
    assert standing_retraining(platform, with_cooldown(loaded, 48), weeks_later) is None

    (entry,) = ended(platform)
    assert (entry.details["state"], entry.details["version"]) == ("expired", "7")
    assert "trained version 7, and nobody carried it on within 48 h" in entry.details["why"][0]
    assert open_retraining(platform, "churn") is None


def test_one_whose_release_waits_is_carried_on_however_old_it_is(platform, loaded):
    begun = begin_retraining(platform, loaded, "drift", "drift", None)
    trained = record_trained(platform, begun, "7", "f" * 64)
    release_begun(platform, State.PROPOSED)

    assert standing_retraining(platform, loaded, begun.began + timedelta(days=3)) == trained
    assert ended(platform) == []


def test_one_whose_release_was_ended_by_hand_ends_as_that_did(platform, loaded):
    begun = begin_retraining(platform, loaded, "drift", "drift", None)
    record_trained(platform, begun, "7", "f" * 64)
    release = release_begun(platform, State.ROLLED_BACK)

    assert standing_retraining(platform, loaded, begun.began + timedelta(minutes=5)) is None

    (entry,) = ended(platform)
    assert (entry.details["state"], entry.details["release"]) == ("rolled_back", release.id)
    assert entry.details["why"] == [HARM]
    assert standing_retraining(platform, loaded, begun.began + timedelta(days=90)) is None
    assert len(ended(platform)) == 1
