"""What the ledger is told of a release: that it was begun, and every transition once it is in effect."""

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from platforms.platform import Platform
from tasks.demands import pin
from tasks.register import ledger_of
from tasks.release_record import Release, State, Transition

__all__ = ["write_entry", "write_start", "write_transition"]


def write_start(platform: Platform, release: Release) -> None:
    """The ledger's first entry of a release, after what its environment demands.

    One that was killed before it has it written by the next.
    """
    pin(ledger_of(platform), platform.environment, actor=platform.identity())
    replaces = release.champion.version if release.champion else None
    write_entry(platform, release, "release.started", {"replaces": replaces})


def write_entry(
    platform: Platform, release: Release, event: str, details: Mapping[str, Any], key: str = ""
) -> None:
    """One entry of a release in the ledger; written again it stands once."""
    ledger_of(platform).append(
        event,
        model=release.model,
        subject=release.subject,
        details={
            "release": release.id,
            "version": release.challenger.version,
            "model_digest": release.challenger.digest,
            **details,
        },
        key=f"{event}/{release.id}{f'/{key}' if key else ''}",
        actor=platform.identity(),
    )


def write_transition(platform: Platform, release: Release, done: Transition, former: State) -> Transition:
    """The ledger's entry of a transition that is in effect; the transition as the ledger has it.

    A controller that died after its entry, and before the record, told it already: that stands.
    """
    event = {
        State.APPROVED: "release.approved",
        State.PROMOTED: "release.promoted",
        State.ROLLED_BACK: "release.rolled_back",
        State.REJECTED: "release.rejected",
    }.get(done.state, "release.step")
    assert done.effective is not None
    key = f"{event}/{release.id}/{len(release.history)}"
    for entry in ledger_of(platform).entries(release.model):
        told = entry.details
        if entry.key == key and (told["state"], told["step"]) == (str(done.state), done.step):
            effective = done.observed + timedelta(seconds=float(str(told["seconds"])))
            return done.model_copy(update={"reason": told["reason"], "effective": effective})
    write_entry(
        platform,
        release,
        event,
        {
            "from": str(former),
            "state": str(done.state),
            "step": done.step,
            "percentage": done.percentage,
            "reason": done.reason,
            "seconds": round((done.effective - done.observed).total_seconds(), 3),
            "approvals": list(release.approvals),
            "approvers": list(release.approvers),
        },
        f"{len(release.history)}",
    )
    return done
