"""Steps of a life that is killed in them and lived on: each comes to what it would have come to at once."""

import csv
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import pytest

from deployments.environment import load_environment
from deployments.spec import load_spec
from flows import lifecycle
from flows import retrain as retraining
from platforms import platform_for
from tasks.life import LifeRecord, Retrained, TrafficSent
from tasks.monitoring_record import Window
from tasks.register import ledger_of
from tasks.release_record import ReleaseStore, State
from tasks.simulated_callers import COLUMNS
from tests.flows.test_retrain import MODEL, other_data
from tests.tasks.made_releases import released, version_ref

pytestmark = pytest.mark.slow


class Killed(BaseException):
    """A process that is killed does nothing more: nothing catches this."""


@pytest.fixture
def killed_in(monkeypatch):
    """Has a function do its work, and kill whoever called it, once: `killed_in(owner, name)`."""

    def arranged(owner, name):
        work = getattr(owner, name)

        def done_and_killed(*arguments, **named):
            monkeypatch.setattr(owner, name, work)
            work(*arguments, **named)
            raise Killed

        monkeypatch.setattr(owner, name, done_and_killed)

    return arranged


@pytest.fixture
def platform(promoted):
    return platform_for(load_environment("dev"))


class Month:
    """The third month of a life whose model, callers and releases are small; each `life` is one process of it."""

    def __init__(self, promoted, platform, monkeypatch):
        self.model, self.platform = promoted.model, platform
        self.asked = 0
        now = datetime.now(UTC)
        window = Window(start=now - timedelta(hours=1), end=now)
        traffic = TrafficSent(as_of=lifecycle.MONTHS[2], customers=1, requests=1, failed=0, windows=(window,))
        self.life()._record.step("3-traffic", TrafficSent, lambda: traffic)
        with self.life()._requests(3).open("w", newline="") as file:
            csv.writer(file).writerows(
                [COLUMNS, ["r", "C1", (now - timedelta(minutes=1)).isoformat(), 200, 1]]
            )
        monkeypatch.setattr(lifecycle._Life, "_callers", lambda *_: self)
        monkeypatch.setattr(retraining, "_require_data_plane", lambda *_: None)
        monkeypatch.setattr(retraining, "release_flow", self.release)

    def life(self):
        record = LifeRecord(self.platform, MODEL)
        life = lifecycle._Life(str(self.model), "dev", load_spec(self.model), self.platform, record)
        life._number = 3
        return life

    @contextmanager
    def keep_asking(self):
        """One request of callers, answered by version 2."""
        with self.life()._requests(3).open("a", newline="") as file:
            csv.writer(file).writerow(["r", "C1", datetime.now(UTC).isoformat(), 200, 2])
        self.asked += 1
        yield

    def release(self, model, env, version):
        made = released(State.PROMOTED, model=MODEL, challenger=version_ref(version), begun=datetime.now(UTC))
        return SimpleNamespace(release=ReleaseStore(self.platform, MODEL).save(made))

    def retrain(self):
        life = self.life()
        return life._step("retrain", Retrained, lambda: life._retrain("it drifted", "drift"))


def test_a_retraining_whose_life_is_killed_anywhere_comes_out_as_one_that_was_not(
    promoted, platform, monkeypatch, killed_in
):
    other_data(promoted.model)
    month = Month(promoted, platform, monkeypatch)

    for owner, name in (
        (retraining, "begin_retraining"),
        (retraining, "record_trained"),
        (ReleaseStore, "save"),
        (lifecycle, "ended_retraining"),
    ):
        killed_in(owner, name)
        with pytest.raises(Killed):
            month.retrain()
    done = month.retrain()

    assert (done.state, done.why) == ("promoted", ("all tests passed",))
    assert (done.trained.version, done.trained.as_of) == ("2", lifecycle.MONTHS[3])
    assert done.released.promoted
    assert done.released.requests == month.asked == 3
    assert done.released.answered == {"2": 3}
    events = [
        entry.event for entry in ledger_of(platform).entries(MODEL) if entry.event.startswith("retrain.")
    ]
    assert events == ["retrain.started", "retrain.trained", "retrain.ended"]
    assert month.retrain() == done


def test_a_release_that_ended_before_its_life_was_killed_is_not_made_again_and_its_callers_are_counted(
    promoted, platform, monkeypatch, killed_in
):
    month = Month(promoted, platform, monkeypatch)
    monkeypatch.setattr(lifecycle, "release_flow", month.release)

    killed_in(ReleaseStore, "save")
    with pytest.raises(Killed):
        month.life()._release(str(promoted.model), "7", month)
    done = month.life()._release(str(promoted.model), "7", month)

    assert done.promoted
    assert (done.requests, done.failed, done.answered) == (1, 0, {"2": 1})
    assert len(ReleaseStore(platform, MODEL).all()) == 1
