"""Windows: the same for everybody who asks before the next one ends."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployments.errors import BadInputError
from deployments.monitoring import MonitoringSpec
from tasks.monitor_window import champion_at, window_of
from tasks.register import ledger_of

NOW = datetime(2026, 11, 21, 20, 30, 15, tzinfo=UTC)
MIDNIGHT = datetime(2026, 11, 21, tzinfo=UTC)


def test_a_window_ends_at_the_last_midnight_by_default():
    window = window_of(MonitoringSpec(), now=NOW)

    assert (window.start, window.end) == (MIDNIGHT - timedelta(days=7), MIDNIGHT)


@pytest.mark.parametrize(
    ("every", "end"),
    [
        (1, datetime(2026, 11, 21, 20, tzinfo=UTC)),
        (0.5, datetime(2026, 11, 21, 20, 30, tzinfo=UTC)),
        (6, datetime(2026, 11, 21, 18, tzinfo=UTC)),
        (7, datetime(2026, 11, 21, 14, tzinfo=UTC)),
        (168, datetime(2026, 11, 16, tzinfo=UTC)),
    ],
)
def test_windows_end_at_multiples_from_midnight_and_weeks_from_monday(every, end):
    assert window_of(MonitoringSpec(every_hours=every), now=NOW).end == end


@given(
    every=st.sampled_from([0.25, 1, 6, 24, 48, 168]),
    seconds=st.integers(0, 10**8),
    later=st.floats(0, 0.999),
)
def test_whoever_looks_again_before_the_next_window_looks_at_the_same(every, seconds, later):
    plan, now = MonitoringSpec(every_hours=every), NOW + timedelta(seconds=seconds)

    window = window_of(plan, now=now)
    left = window.end + timedelta(hours=every) - now

    assert window.end <= now
    if every <= 24:
        left = min(left, now.replace(hour=0, minute=0, second=0, microsecond=0) + timedelta(days=1) - now)
    assert window_of(plan, now=now + later * left) == window


@pytest.mark.parametrize(("length", "hours"), [("7d", 168), ("12h", 12), ("30min", 0.5), (" 1.5 D ", 36)])
def test_another_length_is_read(length, hours):
    window = window_of(MonitoringSpec(), length, now=NOW)

    assert window.end - window.start == timedelta(hours=hours)
    assert window.end == MIDNIGHT


def test_an_exact_window_is_taken_as_it_is():
    since, until = datetime(2026, 11, 21, 10, tzinfo=UTC), datetime(2026, 11, 21, 11, tzinfo=UTC)

    window = window_of(MonitoringSpec(), None, since.replace(tzinfo=None), until, now=NOW)

    assert (window.start, window.end) == (since, until)
    assert window_of(MonitoringSpec(), None, since, now=NOW).end == NOW
    assert window_of(MonitoringSpec(), "1h", since, now=NOW) == window
    assert window_of(MonitoringSpec(), "1h", None, until, now=NOW) == window


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("7 weeks",), "'7 weeks' is no length of time; write 7d, 12h or 30min"),
        (("0d",), "is no length"),
        ((None, NOW - timedelta(hours=1), NOW - timedelta(hours=2)), "before it begins"),
        ((None, None, NOW + timedelta(seconds=1)), "still to come"),
        (("2h", NOW - timedelta(hours=1)), "still to come"),
        ((None, NOW + timedelta(hours=1)), "before it begins"),
        (("1h", NOW - timedelta(hours=2), NOW - timedelta(hours=1)), "two of --window, --since and --until"),
    ],
)
def test_a_window_that_is_none_is_refused(given, said):
    with pytest.raises(BadInputError, match=said):
        window_of(MonitoringSpec(), *given, now=NOW)


def test_the_champion_of_a_moment_is_the_one_promoted_or_restored_last(platform):
    ledger = ledger_of(platform)
    moments = {}
    for place, (event, version) in enumerate(
        [("model.promoted", "1"), ("model.promoted", "2"), ("model.promoting", "3"), ("model.restored", "1")]
    ):
        entry = ledger.append(
            event,
            model="fruit",
            subject=f"fruit/{version}",
            details={"version": version},
            key=f"entry/{place}",
            actor="ada",
        )
        moments[place] = datetime.fromisoformat(entry.time)
    before = moments[0] - timedelta(microseconds=1)

    found = [champion_at(platform, "fruit", moment) for moment in (before, *moments.values())]

    assert found == [None, "1", "2", "2", "1"]
    assert champion_at(platform, "other", moments[3]) is None
