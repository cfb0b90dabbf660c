"""Releases of what is not binary, on real traffic: numbers and several classes, their scores and their labels."""

import pytest

from tasks.release_record import State
from tasks.release_report import write_page
from tasks.verdict import Verdict
from tests.release.kinds import MULTICLASS, REGRESSION

pytestmark = pytest.mark.slow

ABSOLUTE = {"loss": "absolute", "bound": 4.0, "effect": 1.5, "tolerated": 0.2, "minimum_labels": 30}
SQUARED = {"loss": "squared", "bound": 9.0, "effect": 3.0, "tolerated": 0.4, "minimum_labels": 30}
ZERO_ONE = {"loss": "zero_one", "effect": 0.4, "tolerated": 0.05, "minimum_labels": 30}
SCORES = {"effect": 0.4, "tolerated": 0.15}


def plan(line, *, quality, strategy="shadow_canary", **each):
    """A plan with those limits, the same for each step, and time enough for a busy machine."""
    release = line.loaded.spec.release.model_dump(mode="json")
    each |= {"maximum_seconds": 240}
    line.plan(
        strategy=strategy,
        shadow=release["shadow"] | each,
        steps=[step | each for step in release["steps"]],
        analysis=release["analysis"] | {"scores": SCORES, "quality": quality},
    )


def last_looks(line, release):
    """What was seen last in each state and step."""
    return {(look.state, look.step): look for look in line.releases.looks(release.id)}


@pytest.mark.parametrize(
    ("kind", "quality"),
    [
        pytest.param(REGRESSION, ABSOLUTE, id="regression"),
        pytest.param(MULTICLASS, ZERO_ONE, id="multiclass"),
    ],
)
def test_a_good_challenger_is_promoted_once_labels_have_come_for_each_step(line_of, kind, quality):
    line = line_of(kind)
    plan(line, quality=quality | {"wait": True})
    line.up()

    with line.traffic() as traffic, line.labels_of(traffic):
        release = line.release(seconds=500)

    assert [(str(done.state), done.percentage) for done in release.history] == [
        ("approved", 0),
        ("shadow", 100),
        ("canary", 30),
        ("canary", 60),
        ("promoted", 100),
    ]
    assert traffic.failed == 0
    assert set(traffic.versions) == {"1", "2"}
    assert (line.aliases, line.shares) == ({"champion": "2", "previous": "1"}, {"v2": 100})
    looks = last_looks(line, release)
    assert list(looks) == [(State.SHADOW, 0), (State.CANARY, 0), (State.CANARY, 1)]
    for look in looks.values():
        found = {reading.test: reading for reading in look.readings}
        assert {reading.verdict for reading in found.values()} == {Verdict.PASS}
        assert min(found["quality"].challenger, found["quality"].champion) >= 30
        # Each answer of each arm is one score, in one of the bins that the report draws.
        assert {arm: sum(counts) for arm, counts in look.scores.items()} == look.requests
    page = write_page(line.platform, release).read_text()
    assert "Quality on labels" in page


@pytest.mark.parametrize(
    ("kind", "challengers"),
    [
        pytest.param(
            REGRESSION,
            [
                ("shift", "shadow_canary", None),
                ("worse", "shadow_canary", ABSOLUTE),
                ("worse", "canary", SQUARED),
            ],
            id="regression",
        ),
        pytest.param(
            MULTICLASS,
            [
                ("shift", "canary", None),
                ("worse", "shadow_canary", ZERO_ONE),
                ("worse", "canary", ZERO_ONE),
            ],
            id="multiclass",
        ),
    ],
)
def test_what_scores_or_labels_say_against_a_challenger_rolls_it_back(line_of, kind, challengers):
    line = line_of(kind)
    line.up()
    found = []

    with line.traffic() as traffic, line.labels_of(traffic):
        for online, strategy, quality in challengers:
            # More requests than there will be: no step is over before its labels have come.
            plan(line, quality=quality, strategy=strategy, minimum_requests=100_000)
            line.behave(online)
            release = line.release(version="2", seconds=400)
            found.append((release.history, line.aliases["champion"], line.shares))

    for (online, strategy, _), (history, champion, shares) in zip(challengers, found, strict=True):
        state = "canary" if strategy == "canary" else "shadow"
        assert [str(done.state) for done in history] == ["approved", state, "rolled_back"]
        reason = history[-1].reason
        assert reason.startswith("scores: " if online == "shift" else "quality: ")
        # The worse ones' scores are spread as the champion's are, so nothing but labels is against them.
        assert "; " not in reason
        assert " is shown" in reason
        assert (champion, shares) == ("1", {"v1": 100})
    assert traffic.failed == 0
    assert line.events().count("release.rolled_back") == len(challengers)
