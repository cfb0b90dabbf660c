"""What a release does next: a pure function of its plan, its record, what was observed, and the time.

Nothing here reads a clock, a disk or a network. A release moves forward only where every condition is known to
hold; what is unknown makes it wait, and what is bad, or unknown for too long, ends it with the champion in place.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from deployments.release import ReleasePlan
from tasks.release_record import LIVE, Release, State, Wish
from tasks.verdict import Verdict

__all__ = [
    "MOST_ATTEMPTS",
    "Action",
    "Close",
    "Enter",
    "Hold",
    "Observation",
    "Stage",
    "Wait",
    "decide",
    "stages",
    "taken_up",
]

MOST_ATTEMPTS = 3
"""A state that was entered more often than this, its controller dying each time, is given up."""


@dataclass(frozen=True)
class Observation:
    """What is known at one look; None where it is not known.

    `approvals` is PASS where all that are asked for stand, FAIL where somebody entitled has refused. `ready` says
    whether the challenger has a worker that answers, `unready` why it has none, `restarts` how many of its workers
    ended by themselves since the state was entered. `requests` are those of each arm since then, challenger first;
    `analysis` is the verdict over all tests, and `findings` says why in words. `champion_stands` says whether the
    champion is still the one that the release would replace, and the challenger still the file that the gates
    saw; `changed` says what is not. `wish` is what a person asks for, and `unavailable` what cannot be asked.
    """

    at: datetime
    approvals: Verdict = Verdict.INCONCLUSIVE
    approvals_missing: Sequence[str] = ()
    champion_stands: bool | None = None
    changed: str = ""
    ready: bool | None = None
    unready: str = ""
    restarts: int = 0
    requests: tuple[int, int] = (0, 0)
    analysis: Verdict = Verdict.INCONCLUSIVE
    findings: str = ""
    lease_lapsed: bool = False
    wish: Wish | None = None
    wish_reason: str = "a person asked for it"
    unavailable: str = ""


@dataclass(frozen=True)
class Wait:
    """Nothing changes; `reason` is what is waited for, and `until` when that ends."""

    reason: str
    until: datetime | None = None


@dataclass(frozen=True)
class Enter:
    """Go into a state; `again` where it is the one that the release is in, begun anew."""

    state: State
    reason: str
    step: int = 0
    again: bool = False


@dataclass(frozen=True)
class Hold:
    """Stay, and ask a person."""

    reason: str


@dataclass(frozen=True)
class Close:
    """The rollback window of a promotion is over."""

    reason: str


Action = Wait | Enter | Hold | Close


@dataclass(frozen=True)
class Stage:
    """One state with traffic: the challenger's share, and what it must have seen."""

    state: State
    step: int
    percentage: int
    minimum_requests: int
    minimum_seconds: float
    maximum_seconds: float


def stages(plan: ReleasePlan) -> tuple[Stage, ...]:
    """The states with traffic that lie between approval and promotion, in order."""
    if plan.strategy == "direct":
        return ()
    if plan.strategy == "blue_green":
        last = plan.steps[-1]
        return (
            Stage(State.CANARY, 0, 100, last.minimum_requests, last.minimum_seconds, last.maximum_seconds),
        )
    shadow = plan.shadow
    before = (
        (Stage(State.SHADOW, 0, shadow.percentage, shadow.minimum_requests, 0.0, shadow.maximum_seconds),)
        if plan.strategy == "shadow_canary"
        else ()
    )
    return before + tuple(
        Stage(
            State.CANARY,
            place,
            step.percentage,
            step.minimum_requests,
            step.minimum_seconds,
            step.maximum_seconds,
        )
        for place, step in enumerate(plan.steps)
    )


def decide(plan: ReleasePlan, record: Release, seen: Observation, now: datetime) -> Action:
    """What comes next; see the module."""
    # A rollback that was asked for while the promotion was made counts, also where nothing of it is watched.
    closed = record.closed and seen.wish != "roll_back"
    if closed or record.state in {State.ROLLED_BACK, State.REJECTED}:
        return Wait(f"the release has ended: {record.state}")
    if record.state is State.PROMOTED:
        return _after(record, seen, now)
    if seen.wish == "roll_back":
        return _ended(record, seen.wish_reason)
    if seen.champion_stands is False:
        return _ended(
            record, seen.changed or "the champion or the challenger is no longer the one it began with"
        )
    if seen.approvals is Verdict.FAIL:
        return _ended(record, f"refused: {'; '.join(seen.approvals_missing) or 'by an approver'}")
    if record.state in LIVE:
        return _live(plan, record, seen, now)
    return _before(plan, record, seen, now)


def taken_up(plan: ReleasePlan, record: Release, seen: Observation, now: datetime) -> Action:
    """What becomes of a transition that was decided, and cut short before it was in effect.

    What its decision had seen stands; what allows to go forward is asked anew, since it may be days later. What is not
    known waits. What is not allowed any more begins the state before anew, which waits as it always does; a promotion,
    which may be half made, is ended instead.
    """
    intent = record.intent
    assert intent is not None
    again = Enter(intent.state, f"{intent.reason} (taken up again)", intent.step, again=True)
    if intent.state not in {*LIVE, State.PROMOTED}:
        return again
    if seen.champion_stands is False:
        return _ended(record, seen.changed or "the champion or the challenger is another now")
    if seen.approvals is Verdict.FAIL:
        return _ended(record, f"refused: {'; '.join(seen.approvals_missing) or 'by an approver'}")
    if seen.unavailable or seen.champion_stands is None:
        return Wait(seen.unavailable or "it is not known whether the champion still stands")
    forbidden = _not_allowed(plan, seen, now)
    if not forbidden:
        return again
    if intent.state is State.PROMOTED:
        return _ended(record, f"its promotion was cut short, and is not allowed now: {forbidden}")
    if record.state in LIVE:
        return _live(plan, record, Observation(at=seen.at, ready=True, lease_lapsed=True), now)
    return Enter(record.state, forbidden, record.step, again=True)


def _ended(record: Release, reason: str) -> Enter:
    """Out of the release: with nothing to take back where there was no traffic yet."""
    return Enter(State.ROLLED_BACK if record.state in LIVE else State.REJECTED, reason, record.step)


def _because(why: str) -> str:
    return f": {why}" if why else ""


def _before(plan: ReleasePlan, record: Release, seen: Observation, now: datetime) -> Action:
    """Proposed or approved: nobody is sent to the challenger yet."""
    deadline = record.begun + timedelta(hours=plan.approval_hours)
    if now >= deadline:
        return _ended(record, f"it did not begin within {plan.approval_hours:g} hours")
    waiting = _not_allowed(plan, seen, now)
    if waiting:
        if record.state is State.APPROVED and seen.approvals is not Verdict.PASS:
            return Enter(State.PROPOSED, waiting)
        return Wait(waiting, deadline)
    if record.state is State.PROPOSED:
        return Enter(State.APPROVED, "all approvals that are asked for stand")
    if record.champion is None or plan.strategy == "direct":
        first = "there is no champion to compare with" if record.champion is None else "the plan is direct"
        return Enter(State.PROMOTED, first)
    if seen.ready is False:
        return _ended(record, f"the challenger does not start{_because(seen.unready)}")
    if seen.ready is None:
        return Wait("the challenger is being started", deadline)
    first_stage = stages(plan)[0]
    return Enter(first_stage.state, "the challenger is ready", first_stage.step)


def _not_allowed(plan: ReleasePlan, seen: Observation, now: datetime) -> str:
    """What forbids to go forward at all, now; empty where nothing does."""
    if seen.unavailable:
        return seen.unavailable
    if seen.champion_stands is None:
        return "it is not known whether the champion still stands"
    if seen.approvals is not Verdict.PASS:
        return f"approvals are missing: {'; '.join(seen.approvals_missing) or 'unknown'}"
    if plan.change_windows and not any(window.open_at(now) for window in plan.change_windows):
        return "the change window is closed"
    return ""


def _live(plan: ReleasePlan, record: Release, seen: Observation, now: datetime) -> Action:
    """The challenger has traffic."""
    stage = next((one for one in stages(plan) if (one.state, one.step) == (record.state, record.step)), None)
    if stage is None:
        return _ended(record, "the plan has no such step")
    if seen.ready is False:
        return _ended(record, f"the challenger has no worker that is ready{_because(seen.unready)}")
    if seen.restarts:
        return _ended(record, "a worker of the challenger ended by itself")
    if seen.lease_lapsed:
        # The champion has had all traffic since then, so what was seen is not what the step declares.
        if record.attempt >= MOST_ATTEMPTS:
            return _ended(record, f"its controller was lost {record.attempt} times in this step")
        return Enter(record.state, "the lease lapsed, and the step begins anew", record.step, again=True)
    if seen.analysis is Verdict.FAIL:
        return _ended(record, seen.findings or "the analysis failed")
    if record.held and seen.wish == "resume":
        return Enter(record.state, "a person asked to go on", record.step, again=True)
    if record.held or seen.wish == "hold":
        return Hold(record.held or seen.wish_reason)
    waited = (now - record.entered).total_seconds()
    passed = (
        seen.analysis is Verdict.PASS
        and min(seen.requests) >= stage.minimum_requests
        and waited >= stage.minimum_seconds
        and seen.ready is True
    )
    forbidden = _not_allowed(plan, seen, now) if passed else ""
    if passed and not forbidden:
        return _forward(plan, stage, seen)
    until = record.entered + timedelta(seconds=stage.maximum_seconds)
    if now >= until:
        reason = f"no verdict after {waited:.0f} s: {forbidden or _lacking(stage, seen)}"
        return Hold(reason) if plan.inconclusive == "hold" else _ended(record, reason)
    return Wait(forbidden or _lacking(stage, seen), until)


def _lacking(stage: Stage, seen: Observation) -> str:
    """What a step still waits for."""
    if seen.unavailable:
        return seen.unavailable
    if min(seen.requests) < stage.minimum_requests:
        return f"{min(seen.requests):,} of {stage.minimum_requests:,} requests in the smaller arm"
    if seen.analysis is not Verdict.PASS:
        return seen.findings or "the analysis is inconclusive"
    return "the challenger is not ready" if seen.ready is not True else "the step's shortest time"


def _forward(plan: ReleasePlan, stage: Stage, seen: Observation) -> Enter:
    """The stage after this one, or the end of all of them."""
    way = stages(plan)
    after = way[way.index(stage) + 1 :]
    reason = seen.findings or "all tests passed"
    return (
        Enter(after[0].state, reason, after[0].step) if after else Enter(State.PROMOTED, reason, stage.step)
    )


def _after(record: Release, seen: Observation, now: datetime) -> Action:
    """Promoted: labels may still take it back, until the window is over."""
    if seen.wish == "roll_back" or (record.champion is not None and seen.analysis is Verdict.FAIL):
        asked = seen.wish_reason if seen.wish == "roll_back" else seen.findings
        return Enter(State.ROLLED_BACK, asked or "labels show harm", record.step)
    if record.watch_until is None or now >= record.watch_until:
        return Close("the rollback window is over")
    return Wait("labels may still reopen it", record.watch_until)
