"""What a release tells people: each thing once, and again where a messenger failed."""

import pytest

from flows import notify
from tasks.release_record import ReleaseStore, State
from tests.tasks.made_releases import released

BLOCKS = ("slack-webhook/releases", "custom-webhook/audit")


@pytest.fixture
def told(monkeypatch):
    """What was announced and sent, and which blocks fail."""
    seen = {"events": [], "messages": [], "failing": set()}

    def sent(slug, subject, said):
        if slug in seen["failing"]:
            return False
        seen["messages"].append((slug, subject))
        return True

    monkeypatch.setattr(notify, "announce", lambda event, **_: seen["events"].append(event))
    monkeypatch.setattr(notify, "sent", sent)
    return seen


@pytest.fixture
def release(platform):
    made = released(State.PROMOTED)
    ReleaseStore(platform, made.model).save(made)
    return made


def begun(platform, release):
    """A process that takes the release up."""
    return notify.Notifier(ReleaseStore(platform, release.model), release, BLOCKS)


def test_a_thing_is_told_once_however_many_processes_take_the_release_up(platform, release, told):
    begun(platform, release)
    begun(platform, release)

    assert told["events"] == ["contender.release.started"]
    assert [slug for slug, _ in told["messages"]] == list(BLOCKS)


def test_a_message_that_failed_is_sent_by_the_next_process_and_the_event_is_not_told_again(
    platform, release, told
):
    told["failing"] = {BLOCKS[0]}
    begun(platform, release)
    told["failing"] = set()
    begun(platform, release)

    assert told["events"] == ["contender.release.started"]
    assert sorted(slug for slug, _ in told["messages"]) == sorted(BLOCKS)


def test_a_messenger_that_failed_holds_up_no_look(platform, release, told, monkeypatch):
    asked = []

    def failing(slug, *_):
        asked.append(slug)
        return False

    monkeypatch.setattr(notify, "sent", failing)
    one = begun(platform, release)
    one._tell(release, "held", "A person is asked.")

    assert asked == [BLOCKS[0]]
