"""Promote: the challenger becomes champion, where the environment asks for no approval."""

from prefect import flow, task
from prefect.cache_policies import NO_CACHE

from flows.parameters import EnvironmentName, ModelName
from flows.prepare import HOUR, about, prepare, run_name
from platforms.platform import Platform
from tasks import register
from tasks.champion import ChampionMissing, ChampionRef, version_ref
from tasks.metering import metered
from tasks.register import PromotionRefusedError, Version


@task(name="promote", task_run_name="promote", cache_policy=NO_CACHE)
@metered()
def promote_version(platform: Platform, model: str, ref: ChampionRef) -> Version:
    """Move the aliases, and write it into the ledger."""
    return register.promote(platform, model, ref)


@flow(name="promote", flow_run_name=run_name("promote"), description=__doc__, timeout_seconds=HOUR)
def promote(
    model: ModelName,
    env: EnvironmentName = "dev",
    version: str | None = None,
) -> Version:
    """Promote a version whose gates passed.

    Args:
        model: A model under deployments/models, or the path of a model.yaml.
        env: An environment under deployments/environments.
        version: A version; the challenger by default.

    Raises:
        PromotionRefusedError: no challenger, a gate that did not pass, or approvals that are missing.
    """
    loaded, platform = prepare(model, env)
    ref = (
        version_ref(platform, loaded.name, version)
        if version
        else register.challenger_of(platform, loaded.name)
    )
    if isinstance(ref, ChampionMissing):
        raise PromotionRefusedError(ref.reason)
    about(ref.version)
    return promote_version(platform, loaded.name, ref)
