"""A release that is cut short anywhere is taken up, or puts the champion back, and everything agrees in the end.

The registry, the ledger, the records and the endpoint's desired state are real; nothing is up to serve it, and what
would be observed of traffic is given. What real traffic does is in test_release.
"""

import multiprocessing
import threading
from contextlib import nullcontext, suppress
from datetime import UTC, datetime, timedelta

import pytest
from prefect.exceptions import TerminationSignal

from deployments.errors import BadInputError, ContenderError
from deployments.release import ChangeWindow
from flows.release import _carried_on, _Held, ended_together, viewed_by
from flows.rollback import write_down
from platforms.data_plane import LocalDataPlane
from platforms.local import LocalPlatform
from platforms.lock import BusyError
from tasks import drill, register, release_control, rollback
from tasks.audit import audit_release
from tasks.champion import NoChampionYet, standing_champion
from tasks.decide import Observation
from tasks.ledger import Ledger
from tasks.register import PromotionRefusedError
from tasks.release_control import Controller, ReleaseError, controlled
from tasks.release_record import ReleaseStore, State
from tasks.rollback import roll_back
from tasks.serve import serve_champion
from tasks.tracking import TAG, Tracking
from tasks.verdict import Verdict


class KilledError(BaseException):
    """The process ends here; nothing of it is run any more."""


def good(control, **changes):
    return Observation(
        **{
            "at": datetime.now(UTC),
            "approvals": Verdict.PASS,
            "champion_stands": True,
            "ready": True,
            "requests": (500, 500),
            "analysis": Verdict.PASS,
            **changes,
        }
    )


@pytest.fixture
def observed(monkeypatch):
    """Every look sees what is in the returned dictionary, by state; else that all is well."""
    seen = {}

    def observe(control):
        wish = control._wish()
        return good(control, **{**seen.get(control.release.state, {}), **wish})

    monkeypatch.setattr(Controller, "observe", observe)
    monkeypatch.setattr(Controller, "_take_in", lambda self, eyes: None)
    monkeypatch.setattr(LocalDataPlane, "status", lambda self: {})
    return seen


@pytest.fixture
def served(line):
    """The champion has an endpoint; what it should be is on disk."""
    serve_champion(line.platform, "small")
    return line


def until_ended(control):
    while not control.ended:
        control.step()


def carry_on(line, version=None):
    with controlled(line.platform, line.loaded, version) as control:
        until_ended(control)
        return control.release


class Knife:
    """Ends the process, as it were, right before the n-th write anywhere; or does something else there."""

    def __init__(self, monkeypatch, cutting=None):
        self.writes = 0
        self.cut_at = None
        self.cutting = cutting or self.kill
        for owner, name in (
            (ReleaseStore, "save"),
            (Ledger, "append"),
            (Controller, "_serve"),
            (register, "promote"),
            (register, "restore"),
            (register, "retract"),
            (register, "withdraw"),
        ):
            monkeypatch.setattr(owner, name, self.guarded(getattr(owner, name)))

    def guarded(self, write):
        def guarded(*args, **named):
            self.writes += 1
            if self.writes == self.cut_at:
                self.cutting()
            return write(*args, **named)

        return guarded

    @staticmethod
    def kill():
        raise KilledError

    def cut(self, at):
        self.writes, self.cut_at = 0, at


def state_of(line):
    found = line.releases.newest()
    return {
        "state": str(found.state),
        "intent": found.intent,
        "aliases": {name: number for name, number in line.aliases.items() if name != "challenger"},
        "shares": line.shares,
        "audit": audit_release(line.platform, "small", found.id),
    }


@pytest.mark.slow
@pytest.mark.parametrize("ends", ["promoted", "rolled_back"])
def test_a_release_killed_before_every_write_is_taken_up_and_everything_agrees(
    served, observed, monkeypatch, ends
):
    knife = Knife(monkeypatch)
    bad = {"analysis": Verdict.FAIL, "findings": "error rate: harm is shown"}
    observed.update({State.CANARY: bad} if ends == "rolled_back" else {})
    champion = {"champion": "2", "previous": "1"} if ends == "promoted" else {"champion": "1"}

    cuts = 0
    for at in range(1, 200):
        knife.cut(at)
        try:
            carry_on(served, "2")
        except KilledError:
            cuts += 1
        else:
            break
        knife.cut(None)
        carry_on(served, "2")

        found = state_of(served)
        assert found["state"] == ends, at
        assert found["intent"] is None
        assert found["aliases"] == champion, at
        assert found["shares"] == ({"v2": 100} if ends == "promoted" else {"v1": 100}), at
        assert found["audit"] == [], at
        if ends == "promoted":
            roll_back(served.platform, served.loaded, reason="to begin anew")

    assert cuts > 15


def test_two_releases_of_a_model_at_once_are_refused(served, observed):
    with controlled(served.platform, served.loaded):
        asked = multiprocessing.get_context("fork").Pool(1)
        with asked, pytest.raises(BusyError, match="another process controls a release of small"):
            asked.apply(_try, (served.platform, served.loaded))


def _try(platform, loaded):
    with controlled(platform, loaded):
        pass


def test_another_version_is_not_released_beside_one_that_is_under_way(served, observed):
    with controlled(served.platform, served.loaded) as control:
        control.step()

    with (
        pytest.raises(ReleaseError, match="version 2 of small is being released"),
        controlled(served.platform, served.loaded, "1"),
    ):
        pass


def test_a_registry_that_does_not_answer_promotes_nothing(served, observed, monkeypatch):
    def unreachable(*_):
        raise OSError("no route to host")

    with controlled(served.platform, served.loaded) as control:
        while control.release.state is not State.CANARY:
            control.step()
        monkeypatch.undo()
        monkeypatch.setattr(release_control, "standing_champion", unreachable)
        control.ask_again()
        seen = control.observe()

    assert seen.champion_stands is None
    assert "no route to host" in seen.unavailable
    assert served.aliases["champion"] == "1"


def test_a_registry_that_keeps_silent_is_not_waited_for_while_there_is_a_lease(served, observed, monkeypatch):
    speaks = threading.Event()
    asked = release_control.standing_champion

    def silent(*given):
        speaks.wait(60)
        return asked(*given)

    with controlled(served.platform, served.loaded) as control:
        while control.release.state is not State.CANARY:
            control.step()
        monkeypatch.undo()
        monkeypatch.setattr(release_control, "standing_champion", silent)
        control.ask_again()
        first = control.observe()
        speaks.set()
        second = control.observe()

    assert (first.champion_stands, second.champion_stands) == (None, True)
    assert "no answer yet" in first.unavailable
    assert "registry" not in second.unavailable


def test_a_full_disk_promotes_nothing(served, observed, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    with controlled(served.platform, served.loaded) as control:
        while control.release.step < 1:
            control.step()
        monkeypatch.setattr(Ledger, "append", full)
        with pytest.raises(OSError, match="No space left"):
            until_ended(control)
        control.abandon()

    assert served.aliases["champion"] == "1"
    assert served.shares == {"v1": 100}


def test_a_process_that_is_told_to_end_gives_the_champion_all_traffic_at_once(served, observed, monkeypatch):
    def told(_):
        raise TerminationSignal(15)

    with controlled(served.platform, served.loaded) as control:
        while control.release.state is not State.CANARY:
            control.step()
        assert served.shares == {"v1": 70, "v2": 30}
        with monkeypatch.context() as patched:
            patched.setattr(Controller, "step", told)
            with pytest.raises(TerminationSignal):
                _carried_on(_Held(control))

    assert served.shares == {"v1": 100}
    assert served.releases.newest().state is State.CANARY
    assert carry_on(served).state is State.PROMOTED


def test_a_release_in_another_thread_than_the_one_that_is_told_to_end_puts_its_champion_back(
    served, observed
):
    with controlled(served.platform, served.loaded) as control:
        while control.release.state is not State.CANARY:
            control.step()
        with pytest.raises(TerminationSignal), ended_together():
            raise TerminationSignal(15)
        with pytest.raises(TerminationSignal):
            _carried_on(_Held(control))
    with ended_together():
        """Nobody is told to end any more."""

    assert served.shares == {"v1": 100}
    assert served.releases.newest().state is State.CANARY


def test_each_release_shows_its_looks_to_its_own_viewers(served, observed):
    seen, others = [], []
    with controlled(served.platform, served.loaded) as control:
        with viewed_by(lambda *look: seen.append(look)):
            held = _Held(control)
        with viewed_by(lambda *look: others.append(look)):
            held.step()

    assert [one for one, _ in seen] == [control]
    assert others == []


def test_a_wish_to_go_back_is_heard_before_traffic_is_given_again(served, observed):
    with controlled(served.platform, served.loaded) as control:
        while control.release.state is not State.CANARY:
            control.step()

    roll_back(served.platform, served.loaded, reason="the operator is worried")

    newest = served.releases.newest()
    assert newest.state is State.ROLLED_BACK
    assert "the operator is worried" in newest.history[-1].reason
    assert served.shares == {"v1": 100}


def ask_back(line):
    """What a rollback does before the process that controls the release has seen it."""
    release = line.releases.newest()
    line.releases.leave_wish(release.id, "roll_back", reason="a worry", who="olga")
    # A promotion that nobody watches keeps no former champion ready.
    with suppress(BadInputError):
        line.platform.shift_traffic(release.endpoint, "v1")


@pytest.mark.slow
@pytest.mark.parametrize("hours", [1, 0])
def test_a_rollback_asked_for_before_any_write_ends_with_the_champion_and_is_recorded(
    served, observed, monkeypatch, hours
):
    served.plan(rollback_hours=hours)
    knife = Knife(monkeypatch, lambda: ask_back(served))

    for at in range(3, 200):
        knife.cut(at)
        release = carry_on(served, "2")
        if knife.writes < at:
            break
        found = state_of(served)
        assert release.state in {State.ROLLED_BACK, State.REJECTED}, at
        assert "a worry (olga)" in release.history[-1].reason, at
        assert (found["shares"], found["aliases"]) == ({"v1": 100}, {"champion": "1"}), at
        assert found["audit"] == [], at

    assert at > 20


@pytest.mark.parametrize("while_", ["the aliases are moved", "the ledger is told"])
def test_a_rollback_asked_for_while_a_promotion_is_made_is_not_lost(served, observed, monkeypatch, while_):
    owner, name = {
        "the aliases are moved": (register, "promote"),
        "the ledger is told": (release_control, "write_transition"),
    }[while_]
    made = getattr(owner, name)

    def asked(*given, **named):
        done = made(*given, **named)
        if served.releases.newest().intent.state is State.PROMOTED:
            ask_back(served)
        return done

    monkeypatch.setattr(owner, name, asked)

    release = carry_on(served)

    assert release.state is State.ROLLED_BACK
    assert "a worry (olga)" in release.history[-1].reason
    assert served.shares == {"v1": 100}
    assert served.aliases == {"champion": "1"}
    assert served.releases.wish(release.id) is None
    assert audit_release(served.platform, "small", release.id) == []


def test_a_rollback_chosen_at_the_terminal_while_the_promotion_is_made_is_not_lost(
    served, observed, monkeypatch
):
    made = release_control.write_transition

    with controlled(served.platform, served.loaded) as control:

        def chosen(*given):
            if control.release.intent.state is State.PROMOTED:
                control.wish = "roll_back"
            return made(*given)

        monkeypatch.setattr(release_control, "write_transition", chosen)
        until_ended(control)

    assert control.release.state is State.ROLLED_BACK
    assert served.shares == {"v1": 100}


def test_a_rollback_from_elsewhere_is_heard_though_the_release_is_held_at_the_terminal(served, observed):
    with controlled(served.platform, served.loaded) as control:
        while control.release.state is not State.CANARY:
            control.step()
        control.wish = "hold"
        control.step()
        assert control.release.held

        ask_back(served)
        control.step()

    assert control.release.state is State.ROLLED_BACK


def test_a_rollback_that_nobody_ends_says_so_after_a_while(served, observed, monkeypatch):
    with controlled(served.platform, served.loaded) as control:
        while control.release.state is not State.CANARY:
            control.step()
    monkeypatch.setattr(Controller, "step", lambda self: None)
    monkeypatch.setattr(rollback, "CONTROLLER_SECONDS", 1.0)

    with pytest.raises(ContenderError, match="has not ended after 1 s"):
        roll_back(served.platform, served.loaded, reason="because")

    assert served.shares == {"v1": 100}


@pytest.fixture
def first(line):
    """The line before it had a champion: nothing is served, and version 2 is proposed."""
    client = Tracking(line.platform).client
    client.delete_registered_model_tag("small", f"{TAG}promoted")
    client.delete_registered_model_alias("small", "champion")
    return line


def endpoints(line):
    return [found["name"] for found in line.platform.endpoints.list_endpoints()]


def test_a_first_release_whose_scorer_does_not_start_can_be_withdrawn(first, observed, monkeypatch):
    serve = Controller._serve

    def never_ready(control, config, **how):
        serve(control, config, **how)
        raise BadInputError("v2 is not ready after 180 s")

    monkeypatch.setattr(Controller, "_serve", never_ready)
    for _ in range(2):
        with pytest.raises(BadInputError, match="not ready"):
            carry_on(first)
    assert first.aliases["champion"] == "2"

    back = roll_back(first.platform, first.loaded, reason="it does not start")

    ended = first.releases.newest()
    assert (back.version, back.left) == (None, "2")
    assert (ended.state, ended.intent) == (State.ROLLED_BACK, None)
    assert "it does not start" in ended.history[-1].reason
    assert (endpoints(first), first.aliases) == ([], {})
    assert standing_champion(first.platform, "small") == NoChampionYet()
    assert audit_release(first.platform, "small", ended.id) == []
    assert write_down(first.platform, back) == ()
    with pytest.raises(PromotionRefusedError, match="never was champion"):
        roll_back(first.platform, first.loaded, reason="because", to="2")
    monkeypatch.setattr(Controller, "_serve", serve)
    assert carry_on(first, "2").state is State.PROMOTED
    assert (endpoints(first), first.aliases) == (["small"], {"champion": "2"})


def test_a_first_release_that_is_only_proposed_can_be_withdrawn(first, observed):
    observed[State.PROPOSED] = {"approvals": Verdict.INCONCLUSIVE}
    with controlled(first.platform, first.loaded) as control:
        control.step()

    back = roll_back(first.platform, first.loaded, reason="a change of mind")

    assert (back.version, back.left) == (None, "2")
    assert first.releases.newest().state is State.REJECTED
    assert (endpoints(first), first.aliases) == ([], {})


@pytest.mark.slow
def test_a_first_release_withdrawn_and_killed_before_every_write_is_withdrawn_by_the_next(
    first, observed, monkeypatch
):
    knife = Knife(monkeypatch)
    promote = register.promote

    def stuck(*given, **named):
        promote(*given, **named)
        raise BadInputError("v2 is not ready after 180 s")

    for at in range(1, 30):
        with monkeypatch.context() as patched, suppress(BadInputError):
            patched.setattr(register, "promote", stuck)
            carry_on(first, "2")
        knife.cut(at)
        with suppress(KilledError):
            roll_back(first.platform, first.loaded, reason="it does not start")
        done = knife.writes < at
        knife.cut(None)
        if first.releases.newest().state is not State.ROLLED_BACK:
            roll_back(first.platform, first.loaded, reason="it does not start")

        newest = first.releases.newest()
        assert (newest.state, newest.intent) == (State.ROLLED_BACK, None), at
        assert (endpoints(first), first.aliases) == ([], {}), at
        assert audit_release(first.platform, "small", newest.id) == [], at
        if done:
            break

    assert at > 5


@pytest.mark.parametrize("moved", [False, True])
def test_a_promotion_that_was_cut_short_is_not_made_in_a_closed_change_window(
    served, observed, monkeypatch, moved
):
    promote = register.promote

    def killed(*given, **named):
        if moved:
            promote(*given, **named)
        raise KilledError

    with monkeypatch.context() as patched:
        patched.setattr(register, "promote", killed)
        with pytest.raises(KilledError):
            carry_on(served)
    newest = served.releases.newest()
    tomorrow = f"{datetime.now(UTC) + timedelta(days=1):%a}".lower()
    closed = newest.plan.model_copy(update={"change_windows": (ChangeWindow(days=(tomorrow,)),)})
    served.releases.save(newest.model_copy(update={"plan": closed}))

    ended = carry_on(served)

    assert ended.state is State.ROLLED_BACK
    assert "the change window is closed" in ended.history[-1].reason
    assert (served.shares, served.aliases["champion"]) == ({"v1": 100}, "1")
    assert audit_release(served.platform, "small", ended.id) == []


def test_approvals_that_are_gone_when_it_is_promoted_send_no_caller_to_the_challenger(
    served, observed, monkeypatch
):
    given, serve = [], Controller._serve

    def serving(control, config, **how):
        given.append(
            {r["served_entity_name"]: r["traffic_percentage"] for r in config["traffic_config"]["routes"]}
        )
        serve(control, config, **how)

    def expired(_):
        raise PromotionRefusedError("the approval has expired")

    monkeypatch.setattr(Controller, "_serve", serving)
    monkeypatch.setattr(Controller, "_approved", expired)

    release = carry_on(served)

    assert release.state is State.ROLLED_BACK
    assert "the approval has expired" in release.history[-1].reason
    assert max(shares.get("v2", 0) for shares in given) < 100


def test_labels_that_come_late_are_held_against_the_last_shadow_not_one_that_was_cut_short(served, observed):
    quality = {"loss": "zero_one", "effect": 0.5, "tolerated": 0.05, "minimum_labels": 30}
    document = served.loaded.spec.release.model_dump(mode="json")["analysis"]
    served.plan(analysis=document | {"quality": quality})
    with controlled(served.platform, served.loaded) as control:
        while control.release.state is not State.SHADOW:
            control.step()
    carry_on(served)

    with controlled(served.platform, served.loaded, old=True) as control:
        eyes = control._opened()
        history = control.release.history

    first, last = (past for past in history if past.state is State.SHADOW)
    assert first.effective < last.effective == eyes.since
    assert eyes.until == history[history.index(last) + 1].at


@pytest.fixture
def drilled(served, observed, monkeypatch):
    """Version 2 is champion, version 1 is warm, and `drilled(stays)` drills; `stays` is done while version 1 serves."""
    carry_on(served)
    monkeypatch.setattr(drill, "_until_ready", lambda *_: None)
    monkeypatch.setattr(LocalPlatform, "wait_for_endpoint", lambda *_: {})
    monkeypatch.setattr(drill._Caller, "asking", lambda _: nullcontext())
    serving = served.platform

    def run(stays):
        def stay(seconds):
            if seconds == drill.STAY_SECONDS:
                stays()

        with monkeypatch.context() as patched:
            patched.setattr(drill.time, "sleep", stay)
            return drill.drill_rollback(serving, "small")

    return run


def test_a_drill_that_is_killed_leaves_a_lease_and_the_next_command_notices(served, drilled, monkeypatch):
    def killed():
        shifted.update(served.endpoint["config"]["traffic_config"])
        monkeypatch.setattr(drill, "_has_lease", dead)
        raise KilledError

    def dead(*_):
        raise KilledError

    shifted, has_lease = {}, drill._has_lease
    with pytest.raises(KilledError):
        drilled(killed)
    monkeypatch.setattr(drill, "_has_lease", has_lease)

    assert served.shares == {"v1": 100}
    assert shifted["lease"]["fallback"] == "v2"
    until = datetime.fromisoformat(shifted["lease"]["expires_at"])
    assert (until - datetime.now(UTC)).total_seconds() <= drill.LEASE_SECONDS

    with controlled(served.platform, served.loaded, old=True):
        assert served.shares == {"v2": 100}
        assert served.endpoint["config"]["traffic_config"]["lease"] is None
    assert served.events()[-1] == "drill.cut_short"
    drilled(lambda: None)
    assert served.events().count("drill.cut_short") == 1
    assert served.events()[-1] == "drill.rollback"
    assert served.shares == {"v2": 100}


def test_no_release_is_begun_while_a_rollback_is_drilled_and_none_is_drilled_beside_one(served, drilled):
    def release():
        with pytest.raises(BusyError, match="or drills its rollback"):
            carry_on(served)

    drilled(release)

    with controlled(served.platform, served.loaded, old=True), pytest.raises(BusyError):
        drilled(lambda: None)


def test_a_rollback_that_a_person_makes_during_a_drill_stands(served, drilled):
    def roll():
        _gone_back(served, to="1")

    with pytest.raises(drill.DrillFailedError, match="somebody else changed the traffic"):
        drilled(roll)

    assert served.shares == {"v1": 100}
    assert served.aliases == {"champion": "1"}
    assert "drill.cut_short" not in served.events()


def test_a_rollback_wants_a_reason_and_something_to_go_back_to(served):
    with pytest.raises(Exception, match="say why"):
        roll_back(served.platform, served.loaded, reason=" ")
    with pytest.raises(Exception, match="no previous champion"):
        roll_back(served.platform, served.loaded, reason="because")


def test_a_rollback_to_what_never_was_champion_is_refused_before_anybody_is_sent_there(served):
    endpoint, events = served.endpoint, served.events()

    with pytest.raises(PromotionRefusedError, match="version 2 never was champion"):
        roll_back(served.platform, served.loaded, reason="because", to="2")

    assert served.shares == {"v1": 100}
    assert (served.endpoint["config"], served.events()) == (endpoint["config"], events)
    assert served.aliases == {"champion": "1", "challenger": "2"}


def test_a_rollback_to_a_version_whose_model_file_is_another_now_is_refused(served, observed):
    carry_on(served)
    client = Tracking(served.platform).client
    client.set_model_version_tag("small", "1", f"{TAG}model_digest", "0" * 64)

    with pytest.raises(PromotionRefusedError, match="version 1 never was champion"):
        _gone_back(served, to="1")

    assert served.shares == {"v2": 100}
    assert served.aliases["champion"] == "2"


def test_a_rollback_to_a_former_champion_gives_it_all_traffic_and_is_recorded(served, observed):
    carry_on(served)

    back = _gone_back(served, to="1")

    assert (back.version, back.left) == ("1", "2")
    assert served.shares == {"v1": 100}
    assert served.aliases == {"champion": "1"}
    assert served.events()[-2:] == ["model.restored", "rollback.by_hand"]


def _gone_back(line, to):
    """A rollback to a version by its number, once no release keeps it warm."""
    newest = line.releases.newest()
    line.releases.save(newest.model_copy(update={"closed": True}))
    return roll_back(line.platform, line.loaded, reason="because", to=to)
