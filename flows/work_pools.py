"""Work pools: where deployed flows run, one for each environment, made once on a Prefect server.

With them comes the automation that calls a run crashed which has been silent for long: its process was killed.
"""

import os
from collections.abc import Mapping
from copy import deepcopy
from datetime import timedelta
from importlib.util import find_spec
from typing import Any

from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.objects import StateType
from prefect.events.actions import ChangeFlowRunState
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
from prefect.events.schemas.events import ResourceSpecification
from prefect.exceptions import ObjectNotFound
from prefect.settings import PREFECT_API_URL

from deployments.environment import Environment, home, known_environments, load_environment
from deployments.errors import BadInputError

__all__ = ["SILENT_SECONDS", "make_work_pools", "with_defaults"]

SILENT_SECONDS = 600.0
"""How long a run may be silent: three heartbeats, by default (PREFECT_FLOWS_HEARTBEAT_FREQUENCY) 180 seconds apart."""
_SILENT_RUNS = "contender: silent runs have crashed"
_LAST_WORDS = ("Completed", "Failed", "TimedOut", "Cancelled", "Crashed", "Suspended", "AwaitingRetry")
"""States after which nobody speaks for a run any more, or not until it is taken up again."""

_WORKERS = {"docker": "prefect_docker", "kubernetes": "prefect_kubernetes"}
_IMAGE = "contender:latest"


def make_work_pools(*names: str) -> list[tuple[str, str, bool]]:
    """Make the pools of these environments, or of all, unless they stand: name, kind, and whether it was made now.

    The automation for runs that are silent is made, too, unless it stands.

    Raises:
        BadInputError: no server is named, a pool of that name is of another kind, or its kind needs a package that
            is not installed.
    """
    if not PREFECT_API_URL.value():
        raise BadInputError(
            "no Prefect server is named; start one with `prefect server start`, and set PREFECT_API_URL to its address"
        )
    environments = [load_environment(name) for name in names or known_environments()]
    made = [_made(environment) for environment in environments]
    _watch_runs()
    return made


def _watch_runs() -> None:
    """Have the server set runs to Crashed that were heard of, and are not any more."""
    heartbeat = "prefect.flow-run.heartbeat"
    silent = EventTrigger(
        posture=Posture.Proactive,
        match=ResourceSpecification({"prefect.resource.id": "prefect.flow-run.*"}),
        for_each={"prefect.resource.id"},
        after={heartbeat},
        expect={heartbeat, *(f"prefect.flow-run.{state}" for state in _LAST_WORDS)},
        threshold=1,
        within=timedelta(seconds=SILENT_SECONDS),
    )
    crashed = ChangeFlowRunState(
        state=StateType.CRASHED, message=f"It was not heard of for {SILENT_SECONDS:g} s: its process is gone."
    )
    with get_client(sync_client=True) as client:
        if not client.read_automations_by_name(_SILENT_RUNS):
            client.create_automation(
                AutomationCore(
                    name=_SILENT_RUNS,
                    description="A run whose process was killed says nothing more, and would be Running for ever.",
                    trigger=silent,
                    actions=[crashed],
                )
            )


def _made(environment: Environment) -> tuple[str, str, bool]:
    name, kind = environment.pool, environment.work_pool.kind
    with get_client(sync_client=True) as client:
        try:
            standing = client.read_work_pool(name)
        except ObjectNotFound:
            pool = WorkPoolCreate(
                name=name,
                type=kind,
                description=environment.description,
                base_job_template=_template(environment),
            )
            client.create_work_pool(pool)
            return name, kind, True
    if standing.type != kind:
        raise BadInputError(
            f"work pool {name!r} is of type {standing.type}, and environment {environment.name!r} asks for {kind}"
        )
    return name, kind, False


def _template(environment: Environment) -> dict[str, Any]:
    """What a run of this kind is told by default, as its worker says."""
    kind = environment.work_pool.kind
    package = _WORKERS.get(kind)
    if package is not None and find_spec(package) is None:
        raise BadInputError(
            f"environment {environment.name!r} asks for a work pool of kind {kind}, which needs the package "
            f"{package.replace('_', '-')}; install it with: pip install 'contender[{kind}]'"
        )
    from prefect.workers.base import BaseWorker

    worker = BaseWorker.get_worker_class_from_type(kind)
    if worker is None:
        raise BadInputError(f"Prefect knows no worker of kind {kind}")
    return with_defaults(worker.get_default_base_job_template(), kind)


def with_defaults(template: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """A kind's job template with what a run of this line needs by default; an environment's job variables go before it.

    Containers have the data home at the same path as this machine, since tables and models are recorded by absolute
    paths, and run as the user who makes the pool, whose files they write. The network is left to the worker: on Linux
    it is the host's where Prefect's server is local; MLflow and the endpoints of this machine are then reached, too.
    """
    folder = str(home())
    wanted: dict[str, dict[str, Any]] = {
        "docker": {
            "image": _IMAGE,
            "image_pull_policy": "IfNotPresent",
            "env": {"CONTENDER_HOME": folder, "HOME": "/tmp"},  # noqa: S108 - a user that the image does not know
            "volumes": [f"{folder}:{folder}"],
            "auto_remove": True,
            "container_create_kwargs": {"user": f"{os.getuid()}:{os.getgid()}"},
        },
        "kubernetes": {"image": _IMAGE, "image_pull_policy": "IfNotPresent"},
    }
    made: dict[str, Any] = deepcopy(dict(template))
    variables = made.get("variables", {}).get("properties", {})
    for name, value in wanted.get(kind, {}).items():
        if name in variables:
            variables[name]["default"] = value
    return made
