"""prefect.yaml, made of the specs: every flow of every model in every environment, with schedules and triggers.

A new model.yaml, or another environment, needs no line of it written by hand.
"""

import ast
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from deployments.environment import Environment, known_environments, load_environment
from deployments.errors import BadInputError
from deployments.monitoring import ALERT_EVENTS, AlertKind
from deployments.spec import LoadedSpec, load_spec, shipped_models

__all__ = ["FILE", "changes", "names_of", "prefect_yaml"]

FILE = Path("prefect.yaml")

_DEMO = "demo"
_HEAD = """\
# Written by `python -m flows.run deployments sync` from deployments/models and deployments/environments: change those.
# `prefect deploy --all` deploys it; `python -m flows.run deployments pools` makes the work pools that it names.
"""


@dataclass(frozen=True)
class _Deployed:
    """A flow, where it is deployed, and what it is told beside model and environment."""

    flow: str
    where: Callable[[LoadedSpec, Environment], bool]
    parameters: Callable[[Environment], dict[str, Any]] = lambda _: {}
    alone: str | None = "ENQUEUE"
    """What becomes of a second run while one is under way; None where they may run side by side."""


def _trained(_: LoadedSpec, env: Environment) -> bool:
    return env.takes_from is None and env.name != _DEMO


def _everywhere(_: LoadedSpec, env: Environment) -> bool:
    return env.name != _DEMO


_FLOWS = (
    _Deployed("train", _trained),
    _Deployed(
        "transfer", lambda _, env: env.takes_from is not None, lambda env: {"from_env": env.takes_from}
    ),
    _Deployed("promote", lambda loaded, env: _everywhere(loaded, env) and not env.approvals),
    # Queued: Prefect holds a killed run's place until its lease of five minutes is over, counted while a server runs,
    # and the next must not be lost to that.
    _Deployed("release", _everywhere),
    _Deployed("rollback", _everywhere, lambda _: {"reason": ""}, alone=None),
    _Deployed("score", _everywhere, alone=None),
    _Deployed("features", lambda loaded, env: _everywhere(loaded, env) and loaded.sql is not None),
    _Deployed("monitor", _everywhere),
    _Deployed("retrain", _trained, lambda _: {"reason": "asked for by hand"}),
    _Deployed("deliver", lambda loaded, env: _trained(loaded, env) and not env.approvals),
    _Deployed(
        "lifecycle",
        lambda loaded, env: env.name == _DEMO and _DEMO in loaded.spec.release.environments,
        lambda _: {"keep_up": False},
    ),
)


_FLEETS: tuple[tuple[str, Callable[[Environment], bool]], ...] = (
    ("monitor", lambda env: env.name != _DEMO),
    ("retrain", lambda env: env.name != _DEMO and env.takes_from is None),
)
"""What may be done to all models of an environment in one run, and where; by the clock each model has its own runs."""


def prefect_yaml() -> str:
    """The whole file, for the models and environments that are here; the same for the same specs.

    Raises:
        BadInputError: a spec or an environment does not say what it must, or a schedule is none.
    """
    environments = [load_environment(name) for name in known_environments()]
    deployments = [
        one
        for model in shipped_models()
        for environment in environments
        for one in _deployments(load_spec(model), environment, _supplied_by(environment, environments))
    ]
    deployments += [
        _fleet(work, environment)
        for environment in environments
        for work, where in _FLEETS
        if where(environment)
    ]
    document = {"name": "contender", "deployments": deployments}
    return _HEAD + yaml.safe_dump(document, sort_keys=False, allow_unicode=True, width=110)


def changes(standing: str, wanted: str) -> list[str]:
    """What differs between two files, by the names of deployments; a line of words each."""
    if standing == wanted:
        return []
    before, after = _by_name(standing), _by_name(wanted)
    said = [f"{name}: is missing" for name in after if name not in before]
    said += [f"{name}: nothing asks for it any more" for name in before if name not in after]
    said += [f"{name}: is another" for name in after if name in before and before[name] != after[name]]
    return said or ["the text is another, and the deployments are the same"]


def names_of(environment: str) -> list[str]:
    """The names that the file has for an environment; several flows share one.

    Raises:
        BadInputError: the file is not here, is none of deployments, or has none of this environment.
    """
    try:
        found = _by_name(FILE.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadInputError(
            f"{FILE}: cannot be read: {error.strerror}; write it with: python -m flows.run deployments sync"
        ) from None
    names = [one["name"] for one in found.values() if one.get("parameters", {}).get("env") == environment]
    if not names:
        raise BadInputError(
            f"{FILE}: no deployment is of environment {environment}; "
            "write it anew with: python -m flows.run deployments sync"
        )
    return list(dict.fromkeys(names))


def _by_name(text: str) -> dict[str, Any]:
    try:
        document = yaml.safe_load(text) or {}
        found = document.get("deployments") or []
        return {f"{Path(one['entrypoint'].split(':')[0]).stem}/{one['name']}": one for one in found}
    except (yaml.YAMLError, AttributeError, KeyError, TypeError) as error:
        raise BadInputError(f"{FILE}: this is no file of deployments: {error}") from None


def _supplied_by(environment: Environment, environments: Sequence[Environment]) -> list[Environment]:
    """An environment and those that take their models from it, also by way of others."""
    found = [environment]
    for one in found:
        found += [other for other in environments if other.takes_from == one.name and other not in found]
    return found


def _deployments(
    loaded: LoadedSpec, environment: Environment, supplied: Sequence[Environment]
) -> Iterator[dict[str, Any]]:
    for deployed in _FLOWS:
        if deployed.where(loaded, environment):
            made = _deployment(deployed, loaded, environment)
            if deployed.flow == "retrain":
                kinds = loaded.spec.retrain.on
                made["triggers"] = [
                    _trigger(loaded, environment, seen, kind) for seen in supplied for kind in kinds
                ]
            yield made


def _fleet(work: str, environment: Environment) -> dict[str, Any]:
    """All models of an environment: one more run of the same work waits."""
    return {
        "name": f"{work}-{environment.name}",
        "entrypoint": "flows/fleet.py:fleet",
        "description": _description("fleet"),
        "tags": ["contender", "fleet", environment.name],
        "parameters": {"env": environment.name, "work": work},
        **_pull(environment),
        "work_pool": _pool(environment),
        "concurrency_limit": {"limit": 1, "collision_strategy": "ENQUEUE"},
    }


def _pool(environment: Environment) -> dict[str, Any]:
    variables = environment.work_pool.job_variables
    return {"name": environment.pool, **({"job_variables": variables} if variables else {})}


def _pull(environment: Environment) -> dict[str, Any]:
    """Where a run finds the project: by default in this machine's own folder, which an image does not have."""
    if environment.work_pool.kind == "process":
        return {}
    step = "prefect.deployments.steps.set_working_directory"
    return {"pull": [{step: {"directory": environment.work_pool.directory}}]}


def _deployment(deployed: _Deployed, loaded: LoadedSpec, environment: Environment) -> dict[str, Any]:
    model, env = loaded.name, environment.name
    made: dict[str, Any] = {
        "name": f"{model}-{env}",
        "entrypoint": f"flows/{deployed.flow}.py:{deployed.flow}",
        "description": _description(deployed.flow),
        "tags": ["contender", model, env],
        "parameters": {"model": model, "env": env, **deployed.parameters(environment)},
    }
    schedule = loaded.spec.schedules.get(deployed.flow)  # type: ignore[call-overload]
    if schedule is not None:
        made["schedules"] = [{**schedule.model_dump(), "active": environment.schedules_active}]
    made |= _pull(environment)
    made["work_pool"] = _pool(environment)
    if deployed.alone is not None:
        made["concurrency_limit"] = {"limit": 1, "collision_strategy": deployed.alone}
    return made


def _trigger(
    loaded: LoadedSpec, environment: Environment, seen: Environment, kind: AlertKind
) -> dict[str, Any]:
    """An automation: one event, one run where models are trained; whether anything is, its policy says."""
    model, env = loaded.name, environment.name
    elsewhere = "" if seen.name == env else f"in {seen.name}: "
    return {
        "name": f"{model}-{seen.name}-retrain-on-{kind.replace('_', '-')}",
        "description": (
            f"{ALERT_EVENTS[kind]} in {seen.name} asks for a retraining of {model} in {env}; its policy decides."
        ),
        "match": {"prefect.resource.id": f"contender.model.{seen.name}.{model}"},
        "expect": [ALERT_EVENTS[kind]],
        "parameters": {
            "model": model,
            "env": env,
            "reason": f"{elsewhere}{{{{ event.payload.reason }}}}",
            "alert": kind,
        },
    }


def _description(flow: str) -> str:
    """What a flow's module says of itself, in its first line."""
    source = (Path(__file__).parent / f"{flow}.py").read_text(encoding="utf-8")
    said = (ast.get_docstring(ast.parse(source)) or "").splitlines()[0]
    told = said.partition(": ")[2] or said
    return told[:1].upper() + told[1:]
