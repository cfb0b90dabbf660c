"""Deliver: from data to a serving champion and its first scores, in one run."""

from prefect import flow

from deployments.declared import Declared
from flows.parameters import EnvironmentName, ModelName
from flows.prepare import prepare, run_name
from flows.promote import promote
from flows.score import score
from flows.train import train
from tasks.champion import CHAMPION
from tasks.outcome import TrainOutcome
from tasks.register import Version, current
from tasks.score import ScoreOutcome


class DeliveryOutcome(Declared):
    """What the whole run came to."""

    trained: TrainOutcome
    champion: Version
    scored: ScoreOutcome


@flow(name="deliver", flow_run_name=run_name("deliver"), description=__doc__)
def deliver(
    model: ModelName = "churn",
    env: EnvironmentName = "dev",
    source: str | None = None,
) -> DeliveryOutcome:
    """Train, promote and score; a second run with nothing new finds all three done.

    Args:
        model: A model under deployments/models, or the path of a model.yaml.
        env: An environment under deployments/environments.
        source: Read this PATH (or TABLE=PATH) instead.

    Raises:
        ContenderError: bad input, a gate that refused, or a promotion that was.
    """
    trained = train(model, env, source)
    assert trained.version is not None
    _, platform = prepare(model, env)
    champion = current(platform, trained.version)
    if CHAMPION not in champion.aliases:
        champion = promote(model, env, champion.version)
    return DeliveryOutcome(trained=trained, champion=champion, scored=score(model, env))
