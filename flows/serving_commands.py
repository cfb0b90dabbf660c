"""The commands of the data plane: up, down, status, logs, deploy, and who may call."""

import json
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deployments.errors import BadInputError
from flows.options import EnvOption, JsonOption, ModelOption
from flows.session import session

if TYPE_CHECKING:
    from platforms.platform import Platform

serving_app = typer.Typer()
callers_app = typer.Typer(
    help="Who may call the endpoints: API keys, of which only digests are kept.", no_args_is_help=True
)
serving_app.add_typer(callers_app, name="callers")


def platform_of(env: str) -> "Platform":
    """The platform of an environment."""
    from deployments.environment import load_environment
    from platforms import platform_for

    return platform_for(load_environment(env))


@serving_app.command()
def up(env: EnvOption = "dev", as_json: JsonOption = False) -> None:
    """Start the data plane: gateway, scorers, MLflow server; champions without an endpoint get one."""
    from flows import console
    from tasks.serve import serve_champion, unserved_champions

    session.as_json |= as_json
    platform = platform_of(env)
    with console.waiting("starting the gateway"):
        said = platform.data_plane.up()
    with console.waiting("looking for champions"):
        new = [serve_champion(platform, model) for model in list(unserved_champions(platform))]
    named = sorted({*said["endpoints"], *(served.endpoint for served in new)})
    problems = {}
    with console.waiting(f"starting {', '.join(named)}" if named else "looking"):
        for name in named:
            try:
                platform.wait_for_endpoint(name)
            except BadInputError as error:
                problems[name] = str(error)
    _show(platform.data_plane.status(), env)
    for problem in problems.values():
        console.show_error(problem)
    if problems:
        raise typer.Exit(1)


@serving_app.command()
def down(env: EnvOption = "dev", as_json: JsonOption = False) -> None:
    """Drain and stop the data plane; what it should serve stays on disk for the next `up`."""
    from flows import console

    session.as_json |= as_json
    with console.waiting("draining"):
        was_up = platform_of(env).data_plane.down()
    if session.as_json:
        print(json.dumps({"was_up": was_up}))
    else:
        console.out.print("Down." if was_up else "Nothing was up.")


@serving_app.command()
def status(env: EnvOption = "dev", as_json: JsonOption = False) -> None:
    """Versions, traffic, health, request rates and where the logs are; exit code 1 where nothing is up."""
    session.as_json |= as_json
    said = platform_of(env).data_plane.status()
    _show(said, env)
    if said is None:
        raise typer.Exit(1)


def _show(said: Mapping[str, Any] | None, env: str) -> None:
    from flows import console

    if session.as_json:
        print(json.dumps(said))
    elif said is None:
        console.out.print(f"Nothing is up in {env}; start it with: python -m flows.run up --env {env}")
    else:
        console.show_data_plane(said)


@serving_app.command()
def deploy(model: ModelOption = "churn", env: EnvOption = "dev", as_json: JsonOption = False) -> None:
    """Serve the champion at the model's endpoint, with all traffic, once it is ready."""
    from deployments.spec import load_spec
    from flows import console
    from tasks.serve import serve_champion

    session.as_json |= as_json
    platform, name = platform_of(env), load_spec(model).name
    with console.waiting("starting the champion"):
        served = serve_champion(platform, name)
        found = platform.wait_for_endpoint(served.endpoint) if platform.data_plane.status() else None
    if session.as_json:
        print(served.model_dump_json())
        return
    news = "serves" if served.changed else "served already"
    console.out.print(f"{served.endpoint} {news} {served.name} version {served.version}", highlight=False)
    console.out.print(
        found["url"] if found else "The data plane is down; it is served once it is up.", soft_wrap=True
    )


@serving_app.command()
def logs(
    env: EnvOption = "dev",
    process: Annotated[
        str | None, typer.Argument(help="Part of a log's name: gateway, churn, mlflow; all by default.")
    ] = None,
    lines: Annotated[
        int, typer.Option("--lines", "-n", min=0, help="How many of the last lines of each.")
    ] = 20,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with what is written.")] = False,
) -> None:
    """Show the text logs of the data plane."""
    from flows import console

    folder = platform_of(env).data_plane.logs()
    found = sorted(path for path in folder.glob("*.log") if process is None or process in path.stem)
    if not found:
        known = ", ".join(sorted(path.stem for path in folder.glob("*.log")))
        raise BadInputError(
            f"there is no log named like {process!r} in {folder} (known: {known})"
            if known
            else f"there are no logs in {folder}; nothing was ever up"
        )
    seen = {}
    for path in found:
        text = _last_lines(path, lines)
        seen[path] = path.stat().st_size
        for line in text:
            console.out.print(f"{path.stem}: {line}", markup=False, soft_wrap=True)
    while follow:
        time.sleep(0.3)
        for path in found:
            for line in _written_since(path, seen):
                console.out.print(f"{path.stem}: {line}", markup=False, soft_wrap=True)


def _last_lines(path: Path, count: int) -> list[str]:
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 256 * 1024))
        return file.read().decode("utf-8", "replace").splitlines()[-count:] if count else []


def _written_since(path: Path, seen: dict[Path, int]) -> list[str]:
    """Whole lines that were added; a log that became shorter is read from its beginning, a missing one later."""
    try:
        with path.open("rb") as file:
            size = path.stat().st_size
            begin = seen[path] if size >= seen[path] else 0
            file.seek(begin)
            added = file.read()
    except FileNotFoundError:
        return []
    whole = added[: added.rfind(b"\n") + 1]
    seen[path] = begin + len(whole)
    return whole.decode("utf-8", "replace").splitlines()


@callers_app.command("add")
def callers_add(
    name: Annotated[str, typer.Argument(help="The caller's name, as it stands in the prediction log.")],
    env: EnvOption = "dev",
    expires: Annotated[
        datetime | None,
        typer.Option("--expires", help="When the key ends (UTC).", formats=["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S"]),
    ] = None,
) -> None:
    """Make an API key; it is shown once, and takes effect at once."""
    until = expires.replace(tzinfo=UTC) if expires else None
    print(platform_of(env).data_plane.add_caller(name, until))


@callers_app.command("list")
def callers_list(env: EnvOption = "dev", as_json: JsonOption = False) -> None:
    """Show who may call, and until when."""
    from flows import console

    found = platform_of(env).data_plane.callers()
    if session.as_json or as_json:
        print(json.dumps(found))
    else:
        console.show_callers(found)


@callers_app.command("revoke")
def callers_revoke(
    name: Annotated[str, typer.Argument(help="The caller.")],
    env: EnvOption = "dev",
    key: Annotated[
        str | None, typer.Option("--key", help="Only this key, by the name that `list` shows.")
    ] = None,
) -> None:
    """End a caller's keys, at once."""
    from flows import console

    ended = platform_of(env).data_plane.revoke_caller(name, key)
    console.out.print(
        f"revoked {len(ended)} of {name}: {', '.join(one['key'] for one in ended)}", highlight=False
    )
