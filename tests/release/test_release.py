"""Releases on real traffic: real Envoy, real scorers, a real registry."""

import os
import re
import signal
import time
from contextlib import suppress

import pytest

from flows.rollback import write_down
from tasks.drill import drill_rollback
from tasks.release_control import controlled
from tasks.release_record import State
from tasks.rollback import roll_back

pytestmark = pytest.mark.slow


def way(release):
    return [(str(done.state), done.percentage) for done in release.history]


def eventually(true, seconds):
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def seconds_back(release):
    """From the observation that decided it to the champion answering everything."""
    done = release.history[-1]
    return (done.effective - done.observed).total_seconds()


def entities(line):
    return {entity["name"] for entity in line.endpoint["config"]["served_entities"]}


def test_a_good_challenger_is_promoted_watched_drilled_and_rolled_back(line):
    line.plan(lease_seconds=20)
    line.up()

    with line.traffic() as traffic:
        release = line.release()
        promoted = (line.aliases, line.shares, entities(line))
        drilled = drill_rollback(line.platform, "small")
        after_drill = line.shares
        back = roll_back(line.platform, line.loaded, reason="a change of mind")
    problems = write_down(line.platform, back)

    assert way(release) == [
        ("approved", 0),
        ("shadow", 100),
        ("canary", 30),
        ("canary", 60),
        ("promoted", 100),
    ]
    assert promoted == ({"champion": "2", "previous": "1"}, {"v2": 100}, {"v1", "v2"})
    assert (drilled.failed, drilled.champion, drilled.previous) == (0, "2", "1")
    assert drilled.requests > 10
    assert after_drill == {"v2": 100}
    assert (back.version, back.left) == ("1", "2")
    assert line.aliases == {"champion": "1"}
    assert (line.shares, entities(line)) == ({"v1": 100}, {"v1"})
    assert traffic.failed == 0
    assert set(traffic.versions) == {"1", "2"}
    assert line.releases.newest().state is State.ROLLED_BACK
    assert problems == ()
    page = (line.releases.folder(back.release) / "report.html").read_text()
    assert "a change of mind" in page
    events = line.events()
    assert [event for event in events if event.startswith(("release.", "drill."))] == [
        "release.started",
        "release.approved",
        "release.step",
        "release.step",
        "release.step",
        "release.promoted",
        "drill.rollback",
        "release.rolled_back",
    ]
    assert events.count("model.promoted") == 2
    assert events[-3:] == ["model.restored", "release.rolled_back", "evidence.written"]


def test_what_harms_in_shadow_never_gets_a_caller(line):
    # Enough pairs that those from before the challenger turns bad decide nothing, and no harm between what is
    # tolerated and the effect that matters: that passes once there is enough data.
    analysis = line.loaded.spec.release.model_dump(mode="json")["analysis"]
    line.plan(
        shadow={"minimum_requests": 250, "maximum_seconds": 60},
        analysis=analysis | {"scores": {"effect": 0.4, "tolerated": 0.1}},
    )
    line.up()
    found = {}

    def turn(control):
        if control.release.state is State.SHADOW:
            line.behave(online)

    with line.traffic() as traffic:
        for online in ("error", "slow", "shift", "exit"):
            line.behave("good")
            release = line.release(version="2", look=turn)
            found[online] = (way(release)[1:], release.history[-1].reason)
            assert line.aliases["champion"] == "1"
            assert (line.shares, entities(line)) == ({"v1": 100}, {"v1"})

    for online, (steps, _) in found.items():
        assert steps == [("shadow", 100), ("rolled_back", 0)], (online, found[online])
    assert "error rate: " in found["error"][1]
    # One that is slow enough refuses what its queue has no room for.
    assert "latency: " in found["slow"][1] or "error rate: " in found["slow"][1]
    assert "scores: " in found["shift"][1]
    assert "worker" in found["exit"][1]
    assert traffic.failed == 0
    assert set(traffic.versions) == {"1"}


def test_a_challenger_that_turns_bad_among_callers_is_rolled_back(line):
    line.plan(strategy="canary")
    line.up()

    def turn(control):
        if control.release.state is State.CANARY and control.look:
            line.behave("error")

    with line.traffic() as traffic:
        release = line.release(look=turn)

    assert way(release)[-1] == ("rolled_back", 0)
    assert "error rate" in release.history[-1].reason
    assert line.shares == {"v1": 100}
    # Errors of the model itself reach the callers that it had; the rollback adds none.
    assert set(traffic.statuses) <= {200, 500}
    assert seconds_back(release) > 0


def test_a_challenger_that_dies_among_callers_is_rolled_back(line):
    line.plan(strategy="canary", steps=[{"percentage": 50, "minimum_requests": 40, "maximum_seconds": 60}])
    line.up()

    def kill(control):
        if control.release.state is State.CANARY and control.look:
            workers = line.platform.data_plane.status()["endpoints"]["small"]["entities"]
            pid = next(one for one in workers if one["name"] == "v2")["workers"][0]["pid"]
            os.kill(pid, signal.SIGKILL)

    with line.traffic():
        release = line.release(look=kill)

    assert way(release)[-1] == ("rolled_back", 0)
    assert "worker" in release.history[-1].reason
    assert line.shares == {"v1": 100}


def test_without_traffic_there_is_no_verdict_and_no_promotion(line):
    line.plan(shadow={"minimum_requests": 40, "maximum_seconds": 2})
    line.up()

    release = line.release()

    assert way(release)[-1] == ("rolled_back", 0)
    # A machine that stalls looks later than after two seconds.
    assert re.search(r"no verdict after \d+ s: 0 of 40 requests", release.history[-1].reason)
    assert (line.aliases["champion"], line.shares) == ("1", {"v1": 100})


def served_meanwhile(traffic):
    """The versions that answer within a second."""
    traffic.versions.clear()
    time.sleep(1)
    return set(traffic.versions)


def registry_gone(line):
    """The registry's database is no database any more; what makes it one again."""
    database = line.platform.root / "mlflow.db"
    whole = database.read_bytes()
    database.write_bytes(b"no database" * (len(whole) // 11))
    return lambda: database.write_bytes(whole)


def disk_full(line):
    """Nothing more can be written of the release; what makes room again."""
    folder = line.releases.folder(line.releases.newest().id)
    for name in ("release.partial", "looks.jsonl"):
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to("/dev/full")

    def room():
        for name in ("release.partial", "looks.jsonl"):
            (folder / name).unlink(missing_ok=True)

    return room


@pytest.mark.parametrize("broken", [registry_gone, disk_full])
def test_what_fails_beside_a_release_promotes_nothing_and_the_champion_serves_on(line, broken):
    line.plan(steps=[{"percentage": 50, "minimum_requests": 100, "maximum_seconds": 5}])
    line.up()
    mended = []

    def break_it(control):
        if control.release.state is State.CANARY and not mended:
            mended.append(broken(line))

    with line.traffic() as traffic:
        with suppress(Exception):
            line.release(look=break_it)
        # By the controller, or by the lease where it ended.
        eventually(lambda: served_meanwhile(traffic) == {"1"}, seconds=30)
        mended[0]()
        aliases, state = line.aliases, line.releases.newest().state
        with suppress(Exception):
            line.release()
        after = line.releases.newest()

    assert aliases["champion"] == "1"
    assert state is not State.PROMOTED
    assert traffic.failed == 0
    # Taken up again once it is mended, it ends one way or the other, and everything says the same.
    assert after.state in {State.PROMOTED, State.ROLLED_BACK}
    assert line.aliases["champion"] == ("2" if after.state is State.PROMOTED else "1")
    assert line.shares == {f"v{line.aliases['champion']}": 100}


def test_labels_that_come_late_take_a_promotion_back(line):
    document = line.loaded.spec.release.model_dump(mode="json")["analysis"]
    quality = {"loss": "zero_one", "effect": 0.5, "tolerated": 0.05, "minimum_labels": 30}
    line.plan(analysis=document | {"scores": None, "quality": quality})
    line.up()

    def turn(control):
        if control.release.state is State.SHADOW:
            line.behave("worse")

    with line.traffic() as traffic:
        release = line.release(look=turn)
    promoted = release.state
    line.add_labels(traffic.asked)
    with controlled(line.platform, line.loaded, old=True) as control:
        control.step()
        watched = control.release

    assert promoted is State.PROMOTED
    assert watched.state is State.ROLLED_BACK
    assert watched.history[-1].reason.startswith("quality: ")
    assert "harm above 0.05 is shown" in watched.history[-1].reason
    assert line.aliases == {"champion": "1"}
    assert line.shares == {"v1": 100}


def test_blue_green_gives_all_callers_at_once_and_compares_with_copies(line):
    line.plan(strategy="blue_green", lease_seconds=20)
    line.up()

    with line.traffic() as traffic:
        release = line.release()

    assert way(release) == [("approved", 0), ("canary", 100), ("promoted", 100)]
    assert traffic.failed == 0
    assert line.shares == {"v2": 100}
