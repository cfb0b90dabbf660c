import math

import pytest

from deployments.release import AnalysisPlan, Effect, QualityEffect, ReleasePlan
from tasks.readings import (
    Test,
    interval,
    last_readings,
    measured,
    requests_seen,
    stretches,
    summary,
    threshold,
)
from tasks.release_record import State
from tasks.verdict import Verdict
from tests.tasks.made_releases import HARM, look, looks, reading


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("error rate", 0.0678, "+6.78 pp"),
        ("error_rate", -0.00001, "0.00 pp"),
        ("latency p90", 0.944, "+94.4 %"),
        ("latency p90", math.inf, "∞"),
        ("sample ratio", 0.25, "25.0 %"),
        ("score distribution", 0.0475, "0.0475"),
        ("quality", math.nan, "–"),
        ("something new", 0.5, "+0.5000"),
    ],
)
def test_an_estimate_is_told_in_its_unit(name, value, said):
    assert measured(Test.named(name), value) == said


def test_an_interval_names_its_unit_once():
    assert interval(reading()) == "-1.00 to +1.20 pp"
    assert interval(reading("latency p90", low=-1.0, high=math.inf)) == "-100.0 % to ∞"


@pytest.mark.parametrize(
    "name", ["error rate", "latency p90", "score distribution", "paired score", "quality"]
)
def test_the_effect_of_a_test_is_the_plans(name):
    plan = ReleasePlan(
        analysis=AnalysisPlan(
            **dict.fromkeys(("error_rate", "scores"), Effect(effect=0.3, tolerated=0.1)),
            latency={"effect": 0.3, "tolerated": 0.1},
            quality=QualityEffect(effect=0.3, tolerated=0.1, loss="brier"),
        )
    )

    assert Test.named(name).harm(plan, look(seconds=1)) == Effect(effect=0.3, tolerated=0.1)


@pytest.mark.parametrize(
    ("state", "percentage", "share"),
    [
        (State.CANARY, 25, 0.25),
        (State.CANARY, 75, 0.75),
        (State.SHADOW, 100, 0.5),
        (State.SHADOW, 25, 0.2),
        (State.CANARY, 100, 0.5),
    ],
)
def test_the_sample_ratio_is_held_against_the_share_and_its_effect_is_a_part_of_the_smaller(
    state, percentage, share
):
    test, seen = Test.named("sample ratio"), look(state, 0, percentage, seconds=1)

    assert test.centre(seen) == pytest.approx(share)
    harm = test.harm(ReleasePlan(), seen)
    assert harm.effect == pytest.approx(0.5 * min(share, 1 - share))
    assert harm.tolerated == pytest.approx(0.1 * min(share, 1 - share))


def test_an_effect_in_two_directions_says_so():
    assert threshold(Test.named("sample ratio"), 0.125) == "± 12.5 %"
    assert threshold(Test.named("error rate"), 0.03) == "3 pp"


def test_a_test_that_the_plan_leaves_out_has_no_effect():
    plan = ReleasePlan(analysis=AnalysisPlan(error_rate=None))

    assert Test.named("error rate").harm(plan, look(seconds=1)) is None


def test_looks_of_a_state_entered_again_are_a_stretch_of_their_own_and_counted_once():
    seen = [
        look(seconds=1, requests=100),
        look(seconds=2, requests=300),
        look(seconds=9, requests=50),
        look(State.CANARY, 0, 5, seconds=20, requests=60),
    ]

    assert [len(stretch) for stretch in stretches(seen)] == [2, 1, 1]
    assert requests_seen(seen) == {"challenger": 410, "champion": 440}
    assert requests_seen([]) == {"challenger": 0, "champion": 0}


def test_each_test_says_its_last_word_and_the_worst_comes_first():
    found = last_readings([look(seconds=1, readings=(reading("paired score"),)), *looks(failing=True)])

    assert [one.test for _, one in found] == ["error rate", "paired score", "latency p90"]
    assert found[0][1].reason == HARM
    assert found[1][0].state is State.SHADOW


def test_a_summary_names_what_stopped_a_release():
    undecided = reading("quality", Verdict.INCONCLUSIVE, estimate=math.nan, low=-1, high=1)
    watched = look(State.PROMOTED, 1, 100, seconds=2000, readings=(undecided,))
    harmed = look(State.PROMOTED, 1, 100, seconds=2000, readings=(reading("quality", Verdict.FAIL),))

    assert summary([]) == summary([look(seconds=1, readings=())]) == "nothing was analysed"
    assert summary(looks()) == "all tests passed"
    assert summary(looks(failing=True)) == "failed in canary 50 %: Error rate +5.00 pp (+2.00 to +8.00 pp)"
    passing = looks()[-1]
    unlabelled = passing.model_copy(update={"readings": (*passing.readings, undecided)})
    assert summary([unlabelled]) == "all tests passed"
    assert summary([watched]).startswith("undecided in promoted: Quality on labels –")
    assert summary([*looks(), watched]) == "all tests passed"
    assert summary([*looks(), harmed]).startswith("failed in promoted: Quality on labels")
