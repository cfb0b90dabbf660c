"""Who is told of a rollback that a person made."""

from datetime import UTC, datetime

import pytest

from flows import notify
from tasks.release_record import ReleaseStore, State
from tasks.rollback import RollbackOutcome
from tests.tasks.made_releases import released


@pytest.fixture
def told(monkeypatch):
    """What was told, by event."""
    found = []
    monkeypatch.setattr(notify, "announce", lambda event, **said: found.append((event, said)))
    return found


def outcome(release=None):
    return RollbackOutcome(
        model="patients",
        endpoint="patients",
        left="7",
        version="6",
        reason="a change of mind",
        release=release,
        seconds=0.1,
        at=datetime.now(UTC),
    )


def test_a_rollback_by_hand_is_told_with_its_reason(platform, told):
    notify.tell_rollback(platform, outcome())

    ((event, said),) = told
    assert event == "contender.release.rolled_back"
    assert said["payload"]["reason"] == "a change of mind"
    assert (said["payload"]["version"], said["payload"]["champion"]) == ("7", "6")


def test_a_rollback_of_a_release_is_told_once_whoever_saw_it(platform, told):
    release = ReleaseStore(platform, "patients").save(released(State.ROLLED_BACK))

    notify.tell_rollback(platform, outcome(release.id))
    notify.tell_rollback(platform, outcome(release.id))

    assert len(told) == 1
