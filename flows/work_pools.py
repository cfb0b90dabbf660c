"""Work pools: where deployed flows run, one for each environment, made once on a Prefect server."""

from importlib.util import find_spec
from typing import Any

from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.exceptions import ObjectNotFound
from prefect.settings import PREFECT_API_URL

from deployments.environment import Environment, known_environments, load_environment
from deployments.errors import BadInputError

__all__ = ["make_work_pools"]

_WORKERS = {"docker": "prefect_docker", "kubernetes": "prefect_kubernetes"}


def make_work_pools(*names: str) -> list[tuple[str, str, bool]]:
    """Make the pools of these environments, or of all, unless they stand: name, kind, and whether it was made now.

    Raises:
        BadInputError: no server is named, a pool of that name is of another kind, or its kind needs a package that
            is not installed.
    """
    if not PREFECT_API_URL.value():
        raise BadInputError(
            "no Prefect server is named; start one with `prefect server start`, and set PREFECT_API_URL to its address"
        )
    environments = [load_environment(name) for name in names or known_environments()]
    return [_made(environment) for environment in environments]


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
            f"{package.replace('_', '-')}"
        )
    from prefect.workers.base import BaseWorker

    worker = BaseWorker.get_worker_class_from_type(kind)
    if worker is None:
        raise BadInputError(f"Prefect knows no worker of kind {kind}")
    return worker.get_default_base_job_template()
