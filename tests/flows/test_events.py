"""Alerts as events: told once, told again rather than never, and not at all where somebody has answered for them."""

import pytest

from flows import events
from tasks.monitoring_record import Alert, MonitorOutcome
from tests.tasks.live_logs import DAY

ALERT = Alert(kind="drift", event="contender.drift.detected", reason="it drifted", subjects=("b", "a"))


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
    """The events that were emitted, instead of to a server."""
    found = []
    monkeypatch.setattr(events, "emit_event", lambda event, **given: found.append((event, given)))
    return found


def test_an_alert_is_told_with_all_that_an_automation_needs(platform, told):
    assert events.emit(platform, ALERT, outcome())

    ((event, given),) = told
    assert event == "contender.drift.detected"
    assert given["resource"]["prefect.resource.id"] == "contender.model.dev.fruit"
    assert given["payload"] == {
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
    assert len(told) == 5


def test_an_alert_that_could_not_be_told_is_told_the_next_time(platform, told, monkeypatch):
    with monkeypatch.context() as broken:
        broken.setattr(events, "emit_event", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            events.emit(platform, ALERT, outcome())

    assert events.emit(platform, ALERT, outcome())
    assert len(told) == 1


def test_what_was_acknowledged_is_not_told(platform, told):
    assert not events.emit(platform, ALERT.model_copy(update={"acknowledged": "Black Friday"}), outcome())
    assert told == []


def test_a_messenger_that_does_not_answer_stops_nothing(platform, told, monkeypatch):
    sent = []

    class Block:
        def notify(self, body, subject):
            sent.append((subject, body))

    def found(slug):
        if slug == "slack/broken":
            raise ValueError("no such block")
        return Block()

    monkeypatch.setattr(events, "_block", found)
    notified = platform.environment.model_copy(update={"notify": ("slack/broken", "slack/releases")})

    assert events.emit(type(platform)(notified, platform.root), ALERT, outcome())
    assert sent == [("dev-fruit version 3: drift", "it drifted")]
    assert len(told) == 1
