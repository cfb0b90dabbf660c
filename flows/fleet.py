"""Fleet: many models of an environment monitored, or retrained, in one run, so many at a time."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from queue import SimpleQueue
from typing import Annotated, Any

from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.futures import PrefectFuture
from prefect.states import Completed, Failed
from prefect.task_runners import TaskRunner
from pydantic import Field

from deployments.environment import Environment, load_environment
from deployments.errors import BadInputError
from deployments.spec import load_spec, shipped_models
from flows.monitor import monitor
from flows.parameters import EnvironmentName, ModelName
from flows.prepare import shown_name, tag_run
from flows.release import ended_together
from flows.retrain import retrain as retrain_flow
from flows.retrain import retrain_for
from flows.runners import on_a_worker, task_runner
from platforms import platform_for
from tasks.champion import NoChampionYet, standing_champion
from tasks.fleet import FleetError, FleetOutcome, FleetRow, Work, as_table, told
from tasks.progress import stage

__all__ = ["STAGE", "fleet", "ready"]

STAGE = "fleet"
"""The stage under which a run tells how many of its models are done."""


@dataclass(frozen=True)
class Asked:
    """What is to be done to each model."""

    work: Work
    window: str | None = None
    since: datetime | None = None
    until: datetime | None = None
    retrain: bool = False
    reason: str = ""
    release: bool = True


@task(name="model", task_run_name="{asked.work} {name}", cache_policy=NO_CACHE, persist_result=False)
def one_model(name: str, model: str, env: str, asked: Asked) -> State[Any]:
    """One model, in a flow run of its own; what stops it fails this task run and no other, and its row says why."""
    began = time.monotonic()
    row = FleetRow(model=name, spec=model, state="failed")
    try:
        with on_a_worker():
            if asked.work == "retrain":
                row = row.retrained_as(retrain_flow(model, env, asked.reason, release=asked.release))
            elif _never_had_a_champion(model, env):
                row = row.model_copy(update={"state": "no champion"})
            else:
                outcome = monitor(model, env, asked.window, asked.since, asked.until)
                row = row.monitored(outcome)
                if asked.retrain:
                    row = row.retrained_as(retrain_for(outcome.with_late_alerts, env, model, asked.release))
    except Exception as error:  # noqa: BLE001 - whatever stopped this model, the others go on
        row = row.stopped(error)
    row = row.model_copy(update={"seconds": round(time.monotonic() - began, 3)})
    if row.error:
        return Failed(message=row.error, data=row, name=row.state.capitalize())
    return Completed(message=row.state, data=row)


def _never_had_a_champion(model: str, env: str) -> bool:
    platform = platform_for(load_environment(env))
    return isinstance(standing_champion(platform, load_spec(model).name), NoChampionYet)


def _run_name() -> str:
    from prefect.runtime import flow_run

    return f"fleet · {flow_run.parameters['work']} · {datetime.now(UTC):%Y-%m-%d}"


@flow(name="fleet", flow_run_name=_run_name, description=__doc__)
def fleet(
    models: list[ModelName] | None = None,
    env: EnvironmentName = "dev",
    work: Work = "monitor",
    at_once: Annotated[int | None, Field(ge=1)] = None,
    window: str | None = None,
    since: datetime | None = None,
    until: datetime | None = None,
    retrain: bool = False,
    reason: str = "asked for by hand",
    release: bool = True,
) -> FleetOutcome:
    """Monitor, or retrain, each model in a run of its own on the environment's task runner; none stops another.

    Args:
        models: Models under deployments/models, or paths of model.yaml files; all under deployments/models by default.
        env: An environment under deployments/environments.
        work: What is done to each.
        at_once: How many at a time; the workers of the environment's task runner by default.
        window: To monitor: how long the window is, as 7d, 12h or 30min; as each spec says by default.
        since: To monitor: the window's first moment (UTC where it has no zone).
        until: To monitor: the first moment after the window.
        retrain: To monitor: whether alerts are followed by a retraining, where the spec asks for it.
        reason: To retrain: why; it stands in the ledger.
        release: Whether what was retrained is released as well, or only proposed.

    Raises:
        BadInputError: no such environment, no models, or parameters that are not of this work.
        FleetError: some models failed or were refused; the others are done, and `outcome` has a row of each.
    """
    if work == "retrain" and (window or since or until or retrain):
        raise BadInputError("a window, and whether alerts are followed, is said of fleets that are monitored")
    environment, chosen = ready(models, env)
    tag_run("contender", "fleet", environment.name)
    wide = min(at_once or environment.task_runner.workers, len(chosen))
    asked = Asked(work, window, since, until, retrain, reason, release)
    began = time.monotonic()
    with task_runner(environment, wide) as runner, ended_together():
        rows = _each(runner, chosen, env, asked, wide)
    outcome = FleetOutcome(
        environment=environment.name,
        work=work,
        at_once=wide,
        rows=rows,
        seconds=round(time.monotonic() - began, 3),
    )
    _publish(outcome)
    if outcome.of("failed") or outcome.of("refused"):
        raise FleetError(outcome)
    return outcome


def ready(models: Sequence[str] | None, env: str) -> tuple[Environment, tuple[str, ...]]:
    """The environment and the models, each once; the tracking store has its tables then, which one must make alone.

    Raises:
        BadInputError: no such environment, or no models.
    """
    chosen = tuple(dict.fromkeys(shipped_models() if models is None else models))
    if not chosen:
        raise BadInputError("there are no models to work on")
    environment = load_environment(env)
    standing_champion(platform_for(environment), shown_name(chosen[0]))
    return environment, chosen


def _each(
    runner: TaskRunner[Any], models: Sequence[str], env: str, asked: Asked, at_once: int
) -> tuple[FleetRow, ...]:
    """Submit the models, each as one before it ends, so that a cluster of any size has `at_once` at most."""
    ended: SimpleQueue[int] = SimpleQueue()
    under_way: dict[int, PrefectFuture[Any]] = {}
    rows: dict[int, FleetRow] = {}
    with stage(STAGE, total=len(models)) as advance:
        for place, model in enumerate(models):
            if len(under_way) == at_once:
                first = ended.get()
                rows[first] = _row(under_way.pop(first), models[first])
                advance(1)
            named = {"name": shown_name(model), "model": model, "env": env, "asked": asked}
            under_way[place] = runner.submit(one_model, named)
            under_way[place].add_done_callback(partial(_put, ended, place))
        while under_way:
            first = ended.get()
            rows[first] = _row(under_way.pop(first), models[first])
            advance(1)
    return tuple(rows[place] for place in range(len(models)))


def _put(ended: "SimpleQueue[int]", place: int, _: object) -> None:
    ended.put(place)


def _row(future: PrefectFuture[Any], model: str) -> FleetRow:
    """A model's row, also where its worker was lost before it could give one."""
    try:
        found = future.result(raise_on_failure=False)
    except Exception as error:  # noqa: BLE001 - each task runner has its own for a worker that died
        found = error
    if isinstance(found, FleetRow):
        return found
    lost = found if isinstance(found, Exception) else RuntimeError(f"its task run gave no row but {found!r}")
    return FleetRow(model=shown_name(model), spec=model, state="failed").stopped(lost)


def _publish(outcome: FleetOutcome) -> None:
    from prefect.artifacts import create_table_artifact

    create_table_artifact(
        key=f"fleet-{outcome.work}-{outcome.environment}".replace("_", "-"),
        table=as_table(outcome),
        description=told(outcome),
    )
