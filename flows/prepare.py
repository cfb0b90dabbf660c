"""What every flow begins with: the model's spec, the environment, its platform, and the sources to read."""

import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

from deployments.environment import load_environment
from deployments.errors import BadInputError
from deployments.source import Source, source_at
from deployments.spec import LoadedSpec, load_spec
from platforms import platform_for
from platforms.platform import Platform
from tasks.champion import standing_champion

HOUR = 3600.0
"""Seconds; flows say in hours after how long a run hangs."""


def shown_name(model: str) -> str:
    """What a model calls itself; where its model.yaml cannot be read, which its run will say, the folder of that."""
    path = Path(model)
    if path.suffix not in {".yaml", ".yml"}:
        return path.name
    try:
        return load_spec(model).name
    except BadInputError:
        return path.parent.name


def run_name(flow: str) -> Callable[[], str]:
    """How a flow's runs are called in the UI: model, flow and day; `about` adds the version once it is known."""

    def name() -> str:
        from prefect.runtime import flow_run

        return f"{shown_name(str(flow_run.parameters['model']))} · {flow} · {datetime.now(UTC):%Y-%m-%d}"

    return name


def about(version: str) -> None:
    """Add the version that this flow run is about to its name, as in `churn · train · 2026-11-21 · v7`."""
    from prefect.runtime import flow_run

    _update(name=f"{str(flow_run.name).partition(' · v')[0]} · v{version}")


def _update(**changes: Any) -> None:
    """Change how this flow run is shown; where that cannot be done, nothing is lost but the show."""
    from httpx import HTTPError
    from prefect.client.orchestration import get_client
    from prefect.exceptions import PrefectException
    from prefect.runtime import flow_run

    if flow_run.id is None:
        return
    with suppress(PrefectException, HTTPError), get_client(sync_client=True) as client:
        client.update_flow_run(UUID(str(flow_run.id)), **changes)


def tag_run(*tags: str) -> None:
    """Tag this flow run, unless it has those tags."""
    from prefect.runtime import flow_run

    if flow_run.id is not None and not {*tags} <= set(flow_run.tags):
        _update(tags=sorted({*flow_run.tags, *tags}))


def prepare(model: str, env: str) -> tuple[LoadedSpec, Platform]:
    """The loaded spec and the platform of an environment; a flow run is tagged with both.

    Raises:
        BadInputError: no such model or environment, or a document that does not say what it must.
    """
    loaded, environment = load_spec(model), load_environment(env)
    if "prefect.runtime" in sys.modules:
        tag_run("contender", loaded.name, environment.name)
    return loaded, platform_for(environment)


def opened(model: str, env: str, waits: bool) -> None:
    """Check what every flow begins with; where there is time, since a server starts, make the tracking store ready.

    Raises:
        BadInputError: as `prepare` does.
    """
    loaded, platform = prepare(model, env)
    if waits:
        standing_champion(platform, loaded.name)


def chosen_sources(loaded: LoadedSpec, given: str | None) -> Mapping[str, Source]:
    """The spec's sources; `given` points one elsewhere: `PATH`, or `TABLE=PATH` where there are several.

    Raises:
        BadInputError: it does not say which table, or names one that is not there.
    """
    sources = dict(loaded.spec.sources)
    if given is None:
        return sources
    table, separator, path = given.partition("=")
    if not separator or table not in sources:
        if len(sources) > 1:
            raise BadInputError(
                f"--source: {loaded.name} has several sources; write TABLE=PATH ({', '.join(sources)})"
            )
        table, path = next(iter(sources)), given
    sources[table] = source_at(str(Path(path)) if "://" not in path else path, sources[table])
    return sources
