"""Score: the champion over a file, or over everyone as they are now."""

from datetime import datetime
from pathlib import Path

from prefect import flow, task
from prefect.cache_policies import NO_CACHE

from deployments.errors import BadInputError
from deployments.spec import LoadedSpec
from flows.parameters import EnvironmentName, ModelName
from flows.prepare import HOUR, about, prepare, run_name
from platforms.platform import Platform
from platforms.snapshot import Snapshot
from tasks.champion import standing_champion, trained_query
from tasks.features import build_features, clock_of
from tasks.metering import metered
from tasks.publish import publish_links
from tasks.score import ScoreOutcome, default_output, require_champion, score_file, score_snapshot


@task(name="score file", task_run_name="score file", cache_policy=NO_CACHE)
@metered()
def score_given(loaded: LoadedSpec, platform: Platform, given: str, output: Path) -> ScoreOutcome:
    """Score a file."""
    return score_file(loaded, platform, given, output)


@task(name="score everyone", task_run_name="score everyone", cache_policy=NO_CACHE)
@metered()
def score_current(
    loaded: LoadedSpec, platform: Platform, as_of: datetime | None, output: Path | None
) -> ScoreOutcome:
    """Build the champion's features for one moment from the newest valid data, and score them.

    The query is the one that the champion was trained with, whatever the spec's folder holds by now.
    """
    champion = require_champion(platform, loaded.name, standing_champion(platform, loaded.name))
    theirs = trained_query(platform, champion)
    silver = newest_tables(theirs, platform)
    snapshot = build_features(theirs, platform, silver, clock_of(theirs, as_of))
    return score_snapshot(
        loaded, platform, snapshot, output or default_output(platform, loaded.name, snapshot, champion)
    )


def newest_tables(loaded: LoadedSpec, platform: Platform) -> dict[str, Snapshot]:
    """The newest valid version of each source's table.

    Raises:
        BadInputError: a table has never been ingested.
    """
    found = {}
    for name in loaded.spec.sources:
        snapshot = platform.tables.latest(platform.table("silver", loaded.name, name))
        if snapshot is None:
            raise BadInputError(
                f"table {name!r} of {loaded.name} has no data yet; train first, or give --input"
            )
        found[name] = snapshot
    return found


@flow(name="score", flow_run_name=run_name("score"), description=__doc__, timeout_seconds=12 * HOUR)
def score(
    model: ModelName,
    env: EnvironmentName = "dev",
    input: str | None = None,  # noqa: A002
    output: str | None = None,
    as_of: datetime | None = None,
) -> ScoreOutcome:
    """Score a batch with the champion, in chunks, resumably, and never over an earlier output.

    Args:
        model: A model under deployments/models, or the path of a model.yaml.
        env: An environment under deployments/environments.
        input: A csv, Parquet or Delta file of model inputs.
        output: Where the scores go: .csv or .parquet.
        as_of: Without input: score everyone as of then.

    Raises:
        BadInputError: no champion, unreadable input, too many invalid rows, or an output that is of something else.
    """
    loaded, platform = prepare(model, env)
    if input is not None:
        if output is None:
            raise BadInputError("--output is needed with --input")
        outcome = score_given(loaded, platform, input, Path(output))
    else:
        outcome = score_current(loaded, platform, as_of, Path(output) if output else None)
    about(outcome.version)
    publish_links(platform.registered_model(loaded.name), {"scores": outcome.output})
    return outcome
