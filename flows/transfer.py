"""Transfer: a version of one environment becomes a challenger in another, with its lineage."""

from prefect import flow, task
from prefect.cache_policies import NO_CACHE

from deployments.environment import load_environment
from flows.parameters import EnvironmentName, ModelName
from flows.prepare import HOUR, prepare, run_name
from platforms import platform_for
from platforms.platform import Platform
from tasks.metering import metered
from tasks.register import PromotionRefusedError, refusals
from tasks.transfer import Transfer, transfer_version
from tasks.verdict import Verdict


@task(name="transfer", task_run_name="transfer", cache_policy=NO_CACHE)
@metered()
def transfer_task(source: Platform, target: Platform, model: str, version: str | None) -> Transfer:
    """Carry the version over, and have the target judge it."""
    return transfer_version(source, target, model, version)


@flow(name="transfer", flow_run_name=run_name("transfer"), description=__doc__, timeout_seconds=2 * HOUR)
def transfer(
    model: ModelName, env: EnvironmentName, from_env: EnvironmentName, version: str | None = None
) -> Transfer:
    """Take a version from one environment into another, where it is judged and proposed.

    Args:
        model: A model under deployments/models, or the path of a model.yaml.
        env: The environment that receives it.
        from_env: The environment that sends it.
        version: A version there; its champion by default.

    Raises:
        BadInputError: no such model, environment or version.
        PromotionRefusedError: the environment does not take it, or its gates do not pass there.
        UntrustedModelError: a file of it is not what was recorded.
    """
    loaded, target = prepare(model, env)
    found = transfer_task(platform_for(load_environment(from_env)), target, loaded.name, version)
    if found.gates.verdict is not Verdict.PASS:
        raise PromotionRefusedError(
            f"{found.version} is not proposed in environment {found.target!r}: {'; '.join(refusals(found.gates))}"
        )
    return found
