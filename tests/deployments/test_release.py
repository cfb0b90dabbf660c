"""The release plan: what makes one, when a change window is open, and what differs by environment."""

from datetime import UTC, datetime, time

import pytest
from pydantic import ValidationError

from deployments.explanations import DeclarationError
from deployments.release import ChangeWindow, Effect, ReleasePlan, ReleaseSpec, Step


@pytest.mark.parametrize(
    ("given", "word"),
    [
        ({"steps": [{"percentage": 50}, {"percentage": 5}]}, "the percentages must rise"),
        ({"steps": [{"percentage": 5}, {"percentage": 5}]}, "the percentages must rise"),
        ({"steps": []}, "at least 1"),
        ({"steps": [{"percentage": 100}]}, "less than or equal to 99"),
        ({"steps": [{"percentage": 5, "minimum_seconds": 10, "maximum_seconds": 10}]}, "must be below"),
        ({"lease_seconds": 3, "look_seconds": 2}, "at least three times"),
        ({"analysis": {"error_rate": {"effect": 0.1, "tolerated": 0.1}}}, "must be below `effect`"),
        ({"change_windows": [{"timezone": "Mars/Olympus"}]}, "is no time zone"),
        ({"strategy": "yolo"}, "shadow_canary"),
        ({"shadows": {}}, "Extra inputs"),
    ],
)
def test_what_makes_no_plan_is_refused_with_the_reason(given, word):
    with pytest.raises(ValidationError, match=word):
        ReleasePlan.model_validate(given)


def test_a_night_belongs_to_the_day_on_which_it_begins():
    night = ChangeWindow(days=("fri",), start=time(22), end=time(4), timezone="Europe/Vienna")

    open_at = {
        "thursday 23": night.open_at(datetime(2026, 3, 5, 22, 30, tzinfo=UTC)),
        "friday 23": night.open_at(datetime(2026, 3, 6, 22, 30, tzinfo=UTC)),
        "saturday 3": night.open_at(datetime(2026, 3, 7, 2, 30, tzinfo=UTC)),
        "saturday 5": night.open_at(datetime(2026, 3, 7, 4, 30, tzinfo=UTC)),
        "saturday 23": night.open_at(datetime(2026, 3, 7, 22, 30, tzinfo=UTC)),
    }

    assert open_at == {
        "thursday 23": False,
        "friday 23": True,
        "saturday 3": True,
        "saturday 5": False,
        "saturday 23": False,
    }


def test_a_day_is_that_of_the_windows_own_time_zone():
    monday = ChangeWindow(days=("mon",), start=time(9), end=time(17), timezone="Asia/Tokyo")

    assert monday.open_at(datetime(2026, 3, 2, 1, tzinfo=UTC))
    assert not monday.open_at(datetime(2026, 3, 2, 9, tzinfo=UTC))


def test_an_environment_changes_keys_and_leaves_the_rest():
    spec = ReleaseSpec(
        steps=(Step(percentage=10),),
        environments={
            "prod": {"inconclusive": "hold", "analysis": {"scores": None, "latency": {"effect": 0.8}}}
        },
    )

    prod, dev = spec.plan_for("prod"), spec.plan_for("dev")

    assert (prod.inconclusive, dev.inconclusive) == ("hold", "roll_back")
    assert prod.steps == dev.steps == (Step(percentage=10),)
    assert prod.analysis.scores is None
    assert prod.analysis.latency is not None
    assert (prod.analysis.latency.effect, prod.analysis.latency.quantile) == (0.8, 0.9)
    assert dev.analysis.scores == Effect(effect=0.25, tolerated=0.1)


def test_an_environments_plan_must_be_one_too():
    with pytest.raises((ValidationError, DeclarationError), match=r"environments\.prod\.steps"):
        ReleaseSpec(environments={"prod": {"steps": [{"percentage": 0}]}})
