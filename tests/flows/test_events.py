"""Alerts as events: told once to each server, told again rather than never, and not at all where somebody answered."""

import socket
import time

import pytest
from prefect import flow
from prefect.client.orchestration import PrefectClient
from prefect.settings import PREFECT_API_URL, temporary_settings

from flows import events
from tasks.monitoring_record import Alert, MonitorOutcome
from tests.prefect_api import asked
from tests.tasks.live_logs import DAY

ALERT = Alert(kind="drift", event="contender.drift.detected", reason="it drifted", subjects=("b", "a"))
NOBODY = "http://127.0.0.1:9/api"


def outcome(**changes):
    given = {
        "model": "fruit",
        "environment": "dev",
        "name": "dev-fruit",
        "version": "3",
        "window": DAY,
        "requests": 9,
        "rows": 9,
        "labelled": 0,
        "verdicts": {},
        "alerts": (ALERT,),
        "report": "/somewhere/report.html",
    }
    return MonitorOutcome.model_validate(given | changes)


@pytest.fixture
def told(monkeypatch):
    """The events that were delivered, instead of to a server."""
    found = []

    async def deliver(event):
        found.append(event)

    monkeypatch.setattr(events, "_deliver", deliver)
    return found


def test_an_alert_is_told_with_all_that_an_automation_needs(platform, told):
    assert events.emit(platform, ALERT, outcome())

    (event,) = told
    assert event.event == "contender.drift.detected"
    assert event.resource.id == "contender.model.dev.fruit"
    assert event.resource.name == "dev-fruit"
    assert event.payload == {
        "model": "fruit",
        "environment": "dev",
        "version": "3",
        "kind": "drift",
        "reason": "it drifted",
        "subjects": ["b", "a"],
        "window_start": DAY.start.isoformat(),
        "window_end": DAY.end.isoformat(),
        "report": "/somewhere/report.html",
    }


def test_a_window_that_is_looked_at_again_tells_nothing_twice(platform, told):
    events.emit(platform, ALERT, outcome())

    again = events.emit(
        platform, ALERT.model_copy(update={"subjects": ("a", "b"), "reason": "as before"}), outcome()
    )
    others = [
        events.emit(platform, ALERT.model_copy(update={"subjects": ("a", "b", "c")}), outcome()),
        events.emit(platform, ALERT, outcome(version="4")),
        events.emit(platform, ALERT, outcome(window={"start": DAY.start, "end": DAY.end.replace(year=2027)})),
        events.emit(platform, ALERT.model_copy(update={"event": "contender.quality.degraded"}), outcome()),
    ]

    assert not again
    assert others == [True] * 4
    assert len({event.id for event in told}) == 5


def test_an_alert_that_one_server_was_told_is_told_another_as_the_same_event(platform, told):
    with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:50001/api"}):
        assert events.emit(platform, ALERT, outcome())

    with temporary_settings({PREFECT_API_URL: "http://team:4200/api"}):
        assert events.emit(platform, ALERT, outcome())
    with temporary_settings({PREFECT_API_URL: "http://team:4200/api/"}):
        assert not events.emit(platform, ALERT, outcome())

    first, second = told
    assert first.id == second.id


def test_what_was_acknowledged_is_not_told(platform, told):
    assert not events.emit(platform, ALERT.model_copy(update={"acknowledged": "Black Friday"}), outcome())
    assert told == []


def test_a_messenger_that_does_not_answer_stops_nothing_and_is_told_the_next_time(
    platform, told, monkeypatch
):
    sent, broken = [], {"slack/broken"}

    class Block:
        def __init__(self, slug):
            self.slug = slug

        def notify(self, body, subject):
            sent.append((self.slug, subject, body))

    def found(slug):
        if slug in broken:
            raise ValueError("no such block")
        return Block(slug)

    monkeypatch.setattr(events, "_block", found)
    notified = platform.environment.model_copy(update={"notify": ("slack/broken", "slack/releases")})
    notifying = type(platform)(notified, platform.root)

    assert events.emit(notifying, ALERT, outcome())
    broken.clear()
    assert not events.emit(notifying, ALERT, outcome())
    assert not events.emit(notifying, ALERT, outcome())

    said = ("dev-fruit version 3: drift", "it drifted")
    assert sent == [("slack/releases", *said), ("slack/broken", *said)]
    assert len(told) == 1


# On a real server -------------------------------------------------------------------------------------------


def kept_by(server, event_id, seconds=60):
    """The events of that id that a server keeps; it writes them some seconds after it took them."""
    deadline = time.monotonic() + seconds
    wanted = {"id": {"id": [str(event_id)]}}
    while not (found := asked("POST", f"{server}/events/filter", filter=wanted)["events"]):
        assert time.monotonic() < deadline, "the event was not kept"
        time.sleep(0.3)
    return found


def test_an_event_that_is_delivered_twice_is_one_and_names_the_run_that_told_it(
    platform, prefect_server, monkeypatch
):
    ids = []
    deliver = events._deliver

    async def noted(event):
        await deliver(event)
        ids.append(event.id)

    monkeypatch.setattr(events, "_deliver", noted)

    @flow
    def tells():
        told = events.emit(platform, ALERT, outcome())
        # As after a run that was killed between telling and noting it.
        for mark in (platform.folder("monitoring") / "fruit" / "told").iterdir():
            mark.unlink()
        return told, events.emit(platform, ALERT, outcome())

    assert tells() == (True, True)

    first, second = ids
    assert first == second
    (kept,) = kept_by(prefect_server, first)
    assert kept["resource"]["prefect.resource.id"] == "contender.model.dev.fruit"
    assert "flow-run" in {one["prefect.resource.role"] for one in kept["related"]}


def test_an_alert_whose_server_cannot_be_reached_is_a_warning_of_the_run_and_told_the_next_time(
    platform, prefect_server, monkeypatch, caplog
):
    @flow
    def tells():
        return events.emit(platform, ALERT, outcome())

    # The command line, which other tests run in this process, has Prefect say errors alone.
    with monkeypatch.context() as broken, caplog.at_level("WARNING", logger="prefect.flow_runs"):
        broken.setattr(events, "get_client", lambda: PrefectClient(NOBODY))
        unreachable = tells()

    assert not unreachable
    (warned,) = [one for one in caplog.records if "was not delivered" in one.message]
    assert warned.message.startswith("dev-fruit version 3: drift: the event contender.drift.detected")
    assert warned.name == "prefect.flow_runs"
    assert tells()
    assert not tells()


def test_a_server_that_does_not_answer_is_waited_for_no_longer_than_a_delivery_may_take(
    platform, monkeypatch
):
    monkeypatch.setattr(events, "DELIVERY_SECONDS", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}/api"
        began = time.monotonic()
        with temporary_settings({PREFECT_API_URL: address}):
            assert not events.emit(platform, ALERT, outcome())

    assert time.monotonic() - began < 10
