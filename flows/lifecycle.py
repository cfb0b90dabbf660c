"""Lifecycle: from data to a serving champion and its first scores, in one run."""

from typing import Annotated

from prefect import flow
from pydantic import Field

from deployments.declared import Declared
from flows.prepare import prepare, run_name
from flows.promote import promote
from flows.score import score
from flows.train import train
from tasks.champion import CHAMPION
from tasks.outcome import TrainOutcome
from tasks.register import Version, current
from tasks.score import ScoreOutcome


class LifecycleOutcome(Declared):
    """What the whole run came to."""

    trained: TrainOutcome
    champion: Version
    scored: ScoreOutcome


@flow(name="lifecycle", flow_run_name=run_name("lifecycle"), description=__doc__)
def lifecycle(
    model: Annotated[
        str, Field(description="A model under deployments/models, or the path of a model.yaml.")
    ] = "churn",
    env: Annotated[str, Field(description="An environment under deployments/environments.")] = "dev",
    source: Annotated[str | None, Field(description="Read this PATH (or TABLE=PATH) instead.")] = None,
) -> LifecycleOutcome:
    """Train, promote and score; a second run with nothing new finds all three done.

    Raises:
        ContenderError: bad input, a gate that refused, or a promotion that was.
    """
    trained = train(model, env, source)
    assert trained.version is not None
    _, platform = prepare(model, env)
    champion = current(platform, trained.version)
    if CHAMPION not in champion.aliases:
        champion = promote(model, env, champion.version)
    return LifecycleOutcome(trained=trained, champion=champion, scored=score(model, env))
