"""What the ledger says of retrainings: when each began and why, what it trained, how it ended, and what was refused.

The ledger is all the state there is: a retraining that has begun and not ended was cut short, or is under way.
"""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

from deployments.declared import Declared
from deployments.monitoring import AlertKind
from deployments.spec import LoadedSpec
from platforms.platform import Platform
from tasks.ledger import Entry
from tasks.register import ledger_of
from tasks.release_record import Release, ReleaseStore, State
from tasks.retrain_policy import ENDED, REFUSED, STARTED, TRAINED, last_started

__all__ = [
    "RetrainOutcome",
    "RetrainState",
    "Retraining",
    "begin_retraining",
    "end_retraining",
    "ended_retraining",
    "open_retraining",
    "record_refusal",
    "record_trained",
    "release_of",
    "standing_retraining",
    "state_of",
]

RetrainState = Literal[
    "promoted",
    "rolled_back",
    "rejected",
    "proposed",
    "unchanged",
    "gates_refused",
    "failed",
    "expired",
    "refused",
]
"""How a retraining ended: by its release, as a challenger that waits for one, with nothing new, refused by its gates,
by an error, cut short and too old to be carried on, or before it began."""

CARRY_ON_HOURS = 24.0
"""A retraining that was cut short is carried on for so long after it began, or for the policy's cooldown if that is
longer: until then the policy would not let another begin, and from then on it is asked anew."""


class Retraining(Declared):
    """A retraining under way: `id` names it in the ledger, `as_of` is the moment that it looks from.

    `version` is what it trained, once it has.
    """

    id: str
    model: str
    reason: str
    alert: AlertKind | None
    as_of: datetime | None
    began: datetime
    version: str | None = None


class RetrainOutcome(Declared):
    """How a retraining ended and why; `version` is what it trained, and `release` how that went, where there is one.

    `as_of` is the moment that it looked from, None where it was refused.
    """

    model: str
    environment: str
    id: str
    reason: str
    alert: AlertKind | None
    state: RetrainState
    why: tuple[str, ...] = ()
    version: str | None = None
    release: str | None = None
    as_of: datetime | None = None
    began: datetime | None = None
    ended: datetime

    def __str__(self) -> str:
        version, why = f", version {self.version}" if self.version else "", "; ".join(self.why)
        moment = f" as of {self.as_of:%Y-%m-%d %H:%M} UTC" if self.as_of else ""
        said = (
            "not retrained"
            if self.state == "refused"
            else f"retrained{moment}{version}: {self.state.replace('_', ' ')}"
        )
        return f"{self.model}: {said}{f' ({why})' if why else ''}"


def open_retraining(platform: Platform, model: str) -> Retraining | None:
    """The retraining that began and has not ended."""
    told = _told_of_last(platform, model)
    if not told or any(entry.event == ENDED for entry in told):
        return None
    trained = next((entry for entry in told if entry.event == TRAINED), None)
    return _retraining(told[0], trained)


def ended_retraining(platform: Platform, model: str) -> RetrainOutcome | None:
    """How the retraining that began last has ended; None where it has not, or none ever began."""
    told = _told_of_last(platform, model)
    ended = next((entry for entry in told if entry.event == ENDED), None)
    if ended is None:
        return None
    return _outcome(platform, _retraining(told[0], None), ended)


def _told_of_last(platform: Platform, model: str) -> list[Entry]:
    """The ledger's entries of the retraining that began last, in their order; the first is its beginning."""
    begun = last_started(platform, model)
    if begun is None:
        return []
    name = begun.details["retraining"]
    return [entry for entry in ledger_of(platform).entries(model) if entry.details.get("retraining") == name]


def standing_retraining(platform: Platform, loaded: LoadedSpec, now: datetime) -> Retraining | None:
    """The retraining that a run at `now` has to carry on; None where there is none.

    One whose release has ended meanwhile, as by `release` run by hand, ends as that did. One that was cut short longer
    ago than `CARRY_ON_HOURS` or the policy's cooldown expires, unless its release is under way. Both are written down.
    """
    standing = open_retraining(platform, loaded.name)
    if standing is None:
        return None
    begun = release_of(platform, standing) if standing.version is not None else None
    if begun is not None:
        if not begun.ended:
            return standing
        end_retraining(platform, standing, state_of(begun), (begun.history[-1].reason,), begun.id)
        return None
    hours = max(CARRY_ON_HOURS, loaded.spec.retrain.cooldown_hours)
    if now - standing.began <= timedelta(hours=hours):
        return standing
    done = f"trained version {standing.version}" if standing.version is not None else "trained nothing"
    why = f"it began {standing.began:%Y-%m-%d %H:%M} UTC, {done}, and nobody carried it on within {hours:g} h"
    end_retraining(platform, standing, "expired", (why,))
    return None


def _retraining(begun: Entry, trained: Entry | None) -> Retraining:
    told = begun.details
    return Retraining.model_validate(
        {
            "id": told["retraining"],
            "model": begun.model,
            "reason": told["reason"],
            "alert": told["alert"],
            "as_of": told["as_of"],
            "began": begun.time,
            "version": trained.details["version"] if trained is not None else None,
        }
    )


def begin_retraining(
    platform: Platform, loaded: LoadedSpec, reason: str, alert: AlertKind | None, as_of: datetime | None
) -> Retraining:
    """Write down that a retraining begins."""
    now = datetime.now(UTC)
    name = f"{platform.registered_model(loaded.name)}-{now:%Y%m%dt%H%M%S%f}"
    details = {
        "retraining": name,
        "reason": reason,
        "alert": alert,
        "as_of": as_of.isoformat() if as_of is not None else None,
    }
    return _retraining(_write(platform, loaded.name, STARTED, name, details), None)


def record_trained(platform: Platform, retraining: Retraining, version: str, digest: str) -> Retraining:
    """Write down which version a retraining has made."""
    details = {"retraining": retraining.id, "version": version, "model_digest": digest}
    _write(platform, retraining.model, TRAINED, retraining.id, details)
    return retraining.model_copy(update={"version": version})


def end_retraining(
    platform: Platform,
    retraining: Retraining,
    state: RetrainState,
    why: tuple[str, ...] = (),
    release: str | None = None,
) -> RetrainOutcome:
    """Write down how a retraining ended."""
    details = {
        "retraining": retraining.id,
        "state": state,
        "why": list(why),
        "version": retraining.version,
        "release": release,
    }
    return _outcome(platform, retraining, _write(platform, retraining.model, ENDED, retraining.id, details))


def _outcome(platform: Platform, retraining: Retraining, ended: Entry) -> RetrainOutcome:
    told = ended.details
    return RetrainOutcome.model_validate(
        {
            "model": retraining.model,
            "environment": platform.environment.name,
            "id": retraining.id,
            "reason": retraining.reason,
            "alert": retraining.alert,
            "state": told["state"],
            "why": told["why"],
            "version": told["version"],
            "release": told["release"],
            "as_of": retraining.as_of,
            "began": retraining.began,
            "ended": ended.time,
        }
    )


def record_refusal(
    platform: Platform, loaded: LoadedSpec, reason: str, alert: AlertKind | None, reasons: tuple[str, ...]
) -> RetrainOutcome:
    """Write down that a retraining was asked for and may not begin, and why."""
    now = datetime.now(UTC)
    name = f"{platform.registered_model(loaded.name)}-refused-{now.isoformat()}"
    details = {"retraining": name, "reason": reason, "alert": alert, "reasons": list(reasons)}
    _write(platform, loaded.name, REFUSED, name, details)
    return RetrainOutcome(
        model=loaded.name,
        environment=platform.environment.name,
        id=name,
        reason=reason,
        alert=alert,
        state="refused",
        why=reasons,
        ended=now,
    )


def release_of(platform: Platform, retraining: Retraining) -> Release | None:
    """The release of what a retraining made, where it was begun."""
    return next(
        (
            release
            for release in reversed(ReleaseStore(platform, retraining.model).all())
            if release.challenger.version == retraining.version and release.begun >= retraining.began
        ),
        None,
    )


def state_of(release: Release) -> RetrainState:
    """How the retraining ended whose release has."""
    if release.state is State.PROMOTED:
        return "promoted"
    return "rolled_back" if release.state is State.ROLLED_BACK else "rejected"


def _write(platform: Platform, model: str, event: str, name: str, details: Mapping[str, Any]) -> Entry:
    return ledger_of(platform).append(
        event,
        model=model,
        subject=platform.registered_model(model),
        details=details,
        key=f"{event}/{name}",
        actor=platform.identity(),
    )
