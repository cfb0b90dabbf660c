"""Train: raw data to a registered challenger, or to a refusal that says why."""

from datetime import datetime

from prefect import flow

from deployments.spec import FEATURES
from flows.parameters import EnvironmentName, ModelName
from flows.prepare import HOUR, about, chosen_sources, prepare, run_name
from flows.runners import task_runner
from tasks import steps
from tasks.champion import standing_champion
from tasks.conclude import find_outcome
from tasks.features import clock_of
from tasks.outcome import GatesRefusedError, TrainOutcome
from tasks.train import check_candidates
from tasks.verdict import Verdict


@flow(name="train", flow_run_name=run_name("train"), description=__doc__, timeout_seconds=24 * HOUR)
def train(
    model: ModelName,
    env: EnvironmentName = "dev",
    source: str | None = None,
    as_of: datetime | None = None,
    force: bool = False,
) -> TrainOutcome:
    """Ingest, validate, build features, split, train, evaluate, gate and register.

    Args:
        model: A model under deployments/models, or the path of a model.yaml.
        env: An environment under deployments/environments.
        source: Read this PATH (or TABLE=PATH) instead.
        as_of: Look from this moment; now by default.
        force: Train again though nothing has changed.

    Raises:
        BadInputError: spec, environment or data are not what they must be.
        GatesRefusedError: a gate did not pass; nothing was proposed.
    """
    loaded, platform = prepare(model, env)
    check_candidates(loaded, platform)
    clock, standing = clock_of(loaded, as_of), standing_champion(platform, loaded.name)

    bronze = {
        name: steps.ingest(loaded, platform, name, place, clock)
        for name, place in chosen_sources(loaded, source).items()
    }
    tables = [
        steps.validate(loaded, platform, name, table, standing, clock) for name, table in bronze.items()
    ]
    steps.contract(loaded, platform, tables)
    silver = {table.table: table.silver for table in tables if table.silver is not None}
    gold = steps.features(loaded, platform, silver, clock)
    if loaded.sql is not None:
        tables.append(steps.validate(loaded, platform, FEATURES, gold, standing, clock))
        steps.contract(loaded, platform, tables)
        gold = tables[-1].silver or gold
    parts = steps.split(loaded, platform, gold)

    outcome = None if force else find_outcome(loaded, platform, gold, standing)
    if outcome is None:
        run = steps.open_training(loaded, platform, gold, parts, silver, clock, force)
        with task_runner(platform.environment) as runner:
            competing = [
                runner.submit(
                    steps.candidate_task,
                    {
                        "loaded": loaded,
                        "platform": platform,
                        "run": run,
                        "development": parts.development,
                        "candidate": candidate,
                    },
                )
                for candidate in loaded.spec.training.candidates
            ]
            results = [future.result() for future in competing]
        leaderboard, trained = steps.winner(loaded, platform, run, parts.development, results)
        evaluation = steps.evaluate(loaded, platform, run, trained, parts, standing)
        gates, version = steps.gate(loaded, platform, run, evaluation), None
        if gates.verdict is Verdict.PASS:
            version, gates = steps.register(loaded, platform, run, trained, tables, gold, gates)
        outcome = steps.report(
            loaded,
            platform,
            run,
            tables=tables,
            gold=gold,
            parts=parts,
            leaderboard=leaderboard,
            trained=trained,
            evaluation=evaluation,
            gates=gates,
            version=version,
        )
    if outcome.version is not None:
        about(outcome.version.version)
    if outcome.verdict is not Verdict.PASS:
        raise GatesRefusedError(outcome)
    return outcome
