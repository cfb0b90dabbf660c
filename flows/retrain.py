"""Retrain: train on what is known now and release what passes, on an alert, a schedule or a person's word."""

from datetime import UTC, datetime

from prefect import flow, task
from prefect.cache_policies import NO_CACHE

from deployments.errors import BadInputError, ContenderError, first_line
from deployments.monitoring import AlertKind
from deployments.spec import LoadedSpec, load_spec
from flows.parameters import EnvironmentName, ModelName
from flows.prepare import prepare, run_name
from flows.release import LeftError, NotPromotedError
from flows.release import release as release_flow
from flows.train import train
from platforms.lock import BusyError
from platforms.platform import Platform
from tasks.champion import CHALLENGER, ChampionRef, standing_champion
from tasks.features import clock_of
from tasks.monitoring_record import MonitorOutcome
from tasks.outcome import GatesRefusedError
from tasks.register import current
from tasks.retrain_policy import Refused, may_retrain, retrain_state
from tasks.retrain_record import (
    Retraining,
    RetrainOutcome,
    begin_retraining,
    end_retraining,
    record_refusal,
    record_trained,
    release_of,
    standing_retraining,
    state_of,
)

__all__ = ["RetrainRefusedError", "retrain", "retrain_for"]


class RetrainRefusedError(ContenderError):
    """A retraining that the model's policy does not allow now; `refused` says all reasons, and so does the ledger."""

    exit_code = 3

    def __init__(self, refused: RetrainOutcome) -> None:
        super().__init__(refused)
        self.refused = refused

    def __str__(self) -> str:
        return f"{self.refused.model} is not retrained: {'; '.join(self.refused.why)}"


@task(name="policy", task_run_name="policy", cache_policy=NO_CACHE)
def policy(
    loaded: LoadedSpec,
    platform: Platform,
    reason: str,
    alert: AlertKind | None,
    release: bool,
    as_of: datetime | None,
) -> Retraining:
    """The retraining that was cut short, or a new one where the policy allows it; a refusal is in the ledger.

    Raises:
        RetrainRefusedError: the policy does not allow it.
        BadInputError: there is no reason, or the data plane is not up, which a release would need.
    """
    if not reason.strip():
        raise BadInputError("say why, with --reason: it is what the ledger is asked about later")
    try:
        return _standing_or_new(loaded, platform, reason, alert, release, as_of)
    except RetrainRefusedError:
        raise
    except ContenderError as error:
        record_refusal(platform, loaded, reason, alert, (first_line(error),))
        raise


def _standing_or_new(
    loaded: LoadedSpec,
    platform: Platform,
    reason: str,
    alert: AlertKind | None,
    release: bool,
    as_of: datetime | None,
) -> Retraining:
    now = datetime.now(UTC)
    standing = standing_retraining(platform, loaded, now)
    if standing is None:
        allowed = may_retrain(loaded.spec.retrain, retrain_state(platform, loaded, now), now, alert)
        if isinstance(allowed, Refused):
            raise RetrainRefusedError(record_refusal(platform, loaded, reason, alert, allowed.reasons))
    if release and (standing is None or release_of(platform, standing) is None):
        _require_data_plane(loaded, platform)
    return standing or begin_retraining(platform, loaded, reason, alert, clock_of(loaded, as_of))


def _require_data_plane(loaded: LoadedSpec, platform: Platform) -> None:
    """Say before hours of training, and not after, that a release will need traffic to decide on.

    Raises:
        BadInputError: the data plane is not up.
    """
    plan = loaded.spec.release.plan_for(platform.environment.name)
    champion = isinstance(standing_champion(platform, loaded.name), ChampionRef)
    if plan.looks and champion and platform.data_plane.status() is None:
        raise BadInputError(
            "the data plane is not up, so no traffic could decide about what is trained; start it with: "
            f"python -m flows.run up --env {platform.environment.name} (or train alone: --no-release)"
        )


@flow(name="retrain", flow_run_name=run_name("retrain"), description=__doc__)
def retrain(
    model: ModelName,
    env: EnvironmentName = "dev",
    reason: str = "asked for by hand",
    alert: AlertKind | None = None,
    release: bool = True,
    as_of: datetime | None = None,
) -> RetrainOutcome:
    """Ask the policy, train, and release what the gates propose; never straight to champion.

    One that was cut short is carried on, with its own reason and moment, and the policy is not asked again; one whose
    release was ended by hand meanwhile, or that is too old, is ended first, and the policy asked for another.

    Args:
        model: A model under deployments/models, or the path of a model.yaml.
        env: An environment under deployments/environments.
        reason: Why; it stands in the ledger.
        alert: The kind of alert that asks for it, where one does.
        release: Whether a challenger is released as well, or only proposed.
        as_of: Look from this moment; by default from the spec's `clock`, or where it has none from now.

    Raises:
        RetrainRefusedError: the policy does not allow it now; nothing was begun.
        BadInputError: no such model or environment, or the data plane is not up, which a release would need.
        GatesRefusedError: a gate did not pass; nothing was proposed.
        NotPromotedError: the release ended with the champion in place.
    """
    loaded, platform = prepare(model, env)
    name = platform.registered_model(loaded.name)
    busy = f"another retraining of {name} is under way"
    try:
        with platform.alone(f"retrain-{name}", busy):
            retraining = policy(loaded, platform, reason, alert, release, as_of)
            return _carried_on(loaded, platform, model, env, retraining, release)
    except BusyError as error:
        if str(error) != busy:
            raise
        raise RetrainRefusedError(record_refusal(platform, loaded, reason, alert, (busy,))) from None


def _carried_on(
    loaded: LoadedSpec, platform: Platform, model: str, env: str, retraining: Retraining, release: bool
) -> RetrainOutcome:
    """Train unless that is done, release unless that is done, and write down how it ended."""
    try:
        if retraining.version is None:
            outcome = train(model, env, as_of=retraining.as_of)
            assert outcome.version is not None
            version = current(platform, outcome.version)
            retraining = record_trained(platform, retraining, version.version, version.model_digest)
            if CHALLENGER not in version.aliases:
                return end_retraining(platform, retraining, "unchanged", _why_unchanged(loaded, retraining))
        if not release:
            return end_retraining(platform, retraining, "proposed")
        begun = release_of(platform, retraining)
        if begun is None or not begun.ended:
            begun = release_flow(model, env, retraining.version).release
    except GatesRefusedError as error:
        end_retraining(platform, retraining, "gates_refused", (str(error),))
        raise
    except NotPromotedError as error:
        ended = error.outcome.release
        end_retraining(platform, retraining, state_of(ended), (str(error),), ended.id)
        raise
    except LeftError:
        raise
    except ContenderError as error:
        # A release that waits for approvals, or whose controller is another process, goes on.
        going = release_of(platform, retraining) if retraining.version is not None else None
        if going is None or going.ended:
            end_retraining(platform, retraining, "failed", (first_line(error),), going.id if going else None)
        raise
    last = begun.history[-1].reason
    return end_retraining(platform, retraining, state_of(begun), (last,), begun.id)


def _why_unchanged(loaded: LoadedSpec, retraining: Retraining) -> tuple[str, ...]:
    """Why nothing new was trained, and what would be needed for it."""
    why = [
        f"version {retraining.version} was trained on the same data, spec and code before, and is no challenger"
    ]
    if loaded.spec.clock is not None and retraining.as_of == clock_of(loaded, None):
        why.append("the spec's `clock` is where its data ends; a later moment, with --as-of, sees more")
    return tuple(why)


def retrain_for(
    outcome: MonitorOutcome,
    env: str,
    model: str | None = None,
    release: bool = True,
    as_of: datetime | None = None,
) -> RetrainOutcome | None:
    """Retrain in this process for the first alert of a window that the policy names and nobody acknowledged.

    Args:
        outcome: What a look at a window found.
        env: The environment.
        model: The name or path of the model, where the outcome's own does not say where its spec is.
        release: Whether a challenger is released as well.
        as_of: Look from this moment; by default from the spec's `clock`, or where it has none from now.

    Returns:
        How it ended, a refusal by the policy included; None where no alert asks for it.

    Raises:
        ContenderError: as `retrain` does, other than for a refusal.
    """
    wanted = load_spec(model or outcome.model).spec.retrain.on
    alert = next((one for one in outcome.alerts if one.kind in wanted and not one.acknowledged), None)
    if alert is None:
        return None
    try:
        return retrain(
            model or outcome.model, env, reason=alert.reason, alert=alert.kind, release=release, as_of=as_of
        )
    except RetrainRefusedError as error:
        return error.refused
