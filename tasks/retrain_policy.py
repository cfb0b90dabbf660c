"""The retrain policy: whether an alert, or a person, may begin another retraining now.

What is known (ledger, labels, costs, the release under way) goes in; permission, or every reason against it, comes out.
"""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from deployments.monitoring import AlertKind, RetrainSpec
from deployments.spec import LoadedSpec
from platforms.platform import Platform
from tasks.champion import ChampionMissing, ChampionRef, NoChampionYet, Standing, standing_champion
from tasks.costs import budget_problems
from tasks.labels import labelled_since
from tasks.ledger import Entry
from tasks.register import ledger_of
from tasks.release_record import ReleaseStore
from tasks.tracking import Tracking

__all__ = [
    "ENDED",
    "REFUSED",
    "STARTED",
    "TRAINED",
    "Allowed",
    "Refused",
    "RetrainState",
    "last_started",
    "may_retrain",
    "new_labels",
    "retrain_state",
]

STARTED, TRAINED = "retrain.started", "retrain.trained"
REFUSED, ENDED = "retrain.refused", "retrain.ended"


@dataclass(frozen=True)
class Allowed:
    """Nothing speaks against it."""


@dataclass(frozen=True)
class Refused:
    """What speaks against it, each reason a clause of its own."""

    reasons: tuple[str, ...]


@dataclass(frozen=True)
class RetrainState:
    """What a decision rests on.

    `no_champion` says why there is none to retrain, `releasing` which version is under way, `new_labels` how many
    labelled rows came since the champion was trained (None where nobody can tell, or asks); `budget` names budgets that
    are used up; `last_started` is when the last one began that was not ended by something that broke.
    """

    no_champion: str = ""
    releasing: str = ""
    last_started: datetime | None = None
    new_labels: int | None = None
    budget: tuple[str, ...] = ()


def may_retrain(
    policy: RetrainSpec, state: RetrainState, now: datetime, alert: AlertKind | None = None
) -> Allowed | Refused:
    """Whether a retraining may begin at `now`; every reason against it, and what cannot be told is one.

    `alert` is the kind of alert that asks for it; a person (None) may always ask.
    """
    reasons = []
    if alert is not None and alert not in policy.on:
        reasons.append(
            f"alerts of kind {alert} do not ask for it (retrain.on: {', '.join(policy.on) or 'none'})"
        )
    if state.no_champion:
        reasons.append(state.no_champion)
    if state.releasing:
        reasons.append(f"version {state.releasing} is being released; roll that back, or wait for it to end")
    if state.last_started is not None:
        free = state.last_started + timedelta(hours=policy.cooldown_hours)
        if now < free:
            reasons.append(
                f"the last retraining began {state.last_started:%Y-%m-%d %H:%M:%S} UTC, and the cooldown of "
                f"{policy.cooldown_hours:g} h lasts until {free:%Y-%m-%d %H:%M:%S} UTC (retrain.cooldown_hours)"
            )
    if policy.minimum_new_labels and state.new_labels is None and not state.no_champion:
        reasons.append("nobody can tell how many labels came since the champion was trained")
    if state.new_labels is not None and state.new_labels < policy.minimum_new_labels:
        reasons.append(
            f"{state.new_labels:,} labelled rows came since the champion was trained, and "
            f"{policy.minimum_new_labels:,} are wanted (retrain.minimum_new_labels)"
        )
    reasons += state.budget
    return Refused(tuple(reasons)) if reasons else Allowed()


def retrain_state(platform: Platform, loaded: LoadedSpec, now: datetime) -> RetrainState:
    """Ask the registry, the release record, the ledger, the labels and the costs."""
    standing = standing_champion(platform, loaded.name)
    newest = ReleaseStore(platform, loaded.name).newest()
    entry = last_started(platform, loaded.name, broken=False)
    return RetrainState(
        no_champion=_no_champion(standing, platform.registered_model(loaded.name)),
        releasing=newest.challenger.version if newest is not None and not newest.ended else "",
        last_started=datetime.fromisoformat(entry.time) if entry is not None else None,
        new_labels=_new_labels(platform, loaded, standing),
        budget=budget_problems(platform, loaded.name, loaded.spec.retrain, now),
    )


def _new_labels(platform: Platform, loaded: LoadedSpec, standing: Standing) -> int | None:
    """They are counted over the whole prediction log, so only for a policy that asks."""
    if not loaded.spec.retrain.minimum_new_labels or not isinstance(standing, ChampionRef):
        return None
    return new_labels(platform, loaded.name, standing)


def _no_champion(standing: Standing, name: str) -> str:
    match standing:
        case NoChampionYet():
            return f"{name} has no champion to retrain; train and release a first version"
        case ChampionMissing():
            return f"{standing.reason}; give the alias `champion` to the version that serves"
    return ""


def last_started(platform: Platform, model: str, *, broken: bool = True) -> Entry | None:
    """The ledger's entry of the retraining that began last; `broken` says whether those count that broke."""
    told = list(ledger_of(platform).entries(model))
    left_out = {
        entry.details["retraining"]
        for entry in told
        if entry.event == ENDED and entry.details["state"] == "failed" and not broken
    }
    found = [
        entry for entry in told if entry.event == STARTED and entry.details["retraining"] not in left_out
    ]
    return found[-1] if found else None


def new_labels(platform: Platform, model: str, champion: ChampionRef) -> int:
    """How many rows that were answered to callers had their first label since the champion's version was made.

    They are those that `labels add` brought; labels that a source of the spec holds are counted by nobody before they
    are ingested.
    """
    made = Tracking(platform).client.get_model_version(champion.name, champion.version).creation_timestamp
    return labelled_since(platform, model, datetime.fromtimestamp(made / 1000, UTC))
