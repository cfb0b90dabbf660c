"""Features: publish the champion's features of everyone, so that its endpoint can be asked by key alone."""

from datetime import datetime

from prefect import flow, task
from prefect.cache_policies import NO_CACHE

from deployments.spec import LoadedSpec
from flows.parameters import EnvironmentName, ModelName
from flows.prepare import HOUR, prepare, run_name
from flows.score import newest_tables
from platforms.platform import Platform
from tasks.champion import standing_champion, trained_query
from tasks.features import clock_of
from tasks.metering import metered
from tasks.online import OnlineOutcome, publish_features
from tasks.score import require_champion


@task(name="publish features", task_run_name="publish features", cache_policy=NO_CACHE)
@metered()
def publish_current(
    loaded: LoadedSpec, platform: Platform, as_of: datetime | None, endpoint: str | None
) -> OnlineOutcome:
    """Build the champion's features for one moment from the newest valid data, and publish them.

    The query is the one that the champion was trained with, whatever the spec's folder holds by now.
    """
    champion = require_champion(platform, loaded.name, standing_champion(platform, loaded.name))
    theirs = trained_query(platform, champion)
    silver = newest_tables(theirs, platform)
    return publish_features(
        theirs,
        platform,
        champion,
        silver,
        clock_of(theirs, as_of),
        endpoint or platform.endpoint(loaded.name),
    )


@flow(name="features", flow_run_name=run_name("features"), description=__doc__, timeout_seconds=6 * HOUR)
def features(
    model: ModelName, env: EnvironmentName = "dev", as_of: datetime | None = None, endpoint: str | None = None
) -> OnlineOutcome:
    """Make the champion's features, as of now, those that its endpoint looks up by key.

    Args:
        model: A model under deployments/models, or the path of a model.yaml.
        env: An environment under deployments/environments.
        as_of: The moment to look from, in place of now.
        endpoint: The endpoint, where it is not named as the model's own.

    Raises:
        BadInputError: no champion, no valid data yet, or several rows with the same key.
    """
    loaded, platform = prepare(model, env)
    return publish_current(loaded, platform, as_of, endpoint)
