"""How far a release is, in the words and numbers that its live artifacts in the Prefect UI show.

A record, the analysis's last look and a moment go in; nothing is measured, decided or sent here.
"""

from dataclasses import dataclass
from datetime import datetime

from tasks.decide import Action, Hold, Stage, Wait, stages
from tasks.readings import ARMS, Test, interval, measured, stage, threshold
from tasks.release_record import ENDED, LIVE, Look, Release, State

__all__ = ["Progress", "progress_of"]

_PERCENT = 100.0


@dataclass(frozen=True)
class Progress:
    """How far a release is: per cent of its plan, a line of Markdown, and a row for each test of the last look."""

    percent: float
    said: str
    tests: tuple[dict[str, str], ...]


def progress_of(release: Release, look: Look | None, action: Action, now: datetime) -> Progress:
    """What is to be shown after one look.

    Each state of the plan is worth the same; within one that has traffic it is the smaller of the parts of its
    minimum requests and seconds that are done. A release that was rolled back stays as far as it came.
    """
    reached = _reached(release)
    return Progress(
        percent=round(_percent(release, reached, look if _of(look, reached) else None, now), 1),
        said=_said(release, look, action),
        tests=tuple(_rows(release, look)) if look is not None else (),
    )


def _reached(release: Release) -> tuple[State, int]:
    """The state that counts: for one that ended without promotion, the one it was in before."""
    if release.state in ENDED and release.state is not State.PROMOTED:
        before = [one for one in release.history if one.state not in ENDED]
        return (before[-1].state, before[-1].step) if before else (State.PROPOSED, 0)
    return release.state, 0 if release.state not in LIVE else release.step


def _of(look: Look | None, reached: tuple[State, int]) -> bool:
    return look is not None and (look.state, look.step) == reached


def _percent(release: Release, reached: tuple[State, int], look: Look | None, now: datetime) -> float:
    state, _ = reached
    if state is State.PROMOTED:
        return _PERCENT
    live = stages(release.plan)
    way = [(State.PROPOSED, 0), (State.APPROVED, 0), *((one.state, one.step) for one in live)]
    place = way.index(reached) if reached in way else 0
    part = 0.0
    if state in LIVE and release.state in LIVE and place >= 2:
        part = _part(live[place - 2], look, (now - release.entered).total_seconds())
    return _PERCENT * (place + part) / len(way)


def _part(done_at: Stage, look: Look | None, seconds: float) -> float:
    """What part of a state's minimum is behind it."""
    requests = look.requests.get("challenger", 0) if look is not None else 0
    parts = [requests / done_at.minimum_requests] if done_at.minimum_requests else []
    parts += [seconds / done_at.minimum_seconds] if done_at.minimum_seconds else []
    return max(0.0, min([1.0, *parts]))


def _said(release: Release, look: Look | None, action: Action) -> str:
    version = f"**{release.challenger.name} version {release.challenger.version}**"
    if release.state in ENDED:
        return f"{version}: {stage(release.state, 0)}. {_sentence(release.history[-1].reason)}"
    share = next(
        (
            one.percentage
            for one in stages(release.plan)
            if (one.state, one.step) == (release.state, release.step)
        ),
        0,
    )
    said = [f"{version}: {stage(release.state, share)}."]
    if look is not None and look.state is release.state:
        said += [_arm(look, arm) for arm in ARMS]
    if release.held:
        said.append(f"Held: {_sentence(release.held)}")
    elif isinstance(action, Wait | Hold):
        said.append(f"Waits: {_sentence(action.reason)}")
    return " ".join(said)


def _arm(look: Look, arm: str) -> str:
    latency = look.latency_p95.get(arm)
    slow = "" if latency is None else f", p95 {latency:.3g} ms"
    return f"{arm.capitalize()}: {look.requests.get(arm, 0):,} requests, {look.errors.get(arm, 0):,} errors{slow}."


def _sentence(text: str) -> str:
    return text if text.endswith((".", "!", "?")) else f"{text}."


def _rows(release: Release, look: Look) -> list[dict[str, str]]:
    rows = []
    for reading in look.readings:
        test = Test.named(reading.test)
        harm = test.harm(release.plan, look)
        rows.append(
            {
                "test": test.label,
                "verdict": str(reading.verdict),
                "estimate": measured(test, reading.estimate),
                "interval": interval(reading),
                "harm above": threshold(test, harm.effect) if harm else "",
                "challenger": f"{reading.challenger:,}",
                "champion": f"{reading.champion:,}",
                "in": stage(look.state, look.percentage),
                "why": reading.reason,
            }
        )
    return rows
