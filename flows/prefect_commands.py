"""The commands of a Prefect server of one's own: up, down and status."""

import os
import subprocess
import sys
from typing import Annotated

import typer

from deployments.errors import ContenderError
from flows.options import EnvOption, JsonOption
from flows.session import session

prefect_app = typer.Typer(
    help="A Prefect server and a worker on this machine, with everything deployed.", no_args_is_help=True
)


@prefect_app.command("up")
def prefect_up(
    env: EnvOption = "dev",
    port: Annotated[int, typer.Option("--port", min=1, max=65535, help="Of the server and its UI.")] = 4200,
    as_json: JsonOption = False,
) -> None:
    """Start server and worker, make the work pools, and deploy the environment's flows of every model."""
    from deployments.environment import home, load_environment
    from flows import console, keeper

    session.as_json |= as_json
    environment = load_environment(env)
    with console.waiting("starting the Prefect server"):
        standing = keeper.begin(home(), port, environment.pool)
    os.environ["PREFECT_API_URL"] = standing.url
    with console.waiting("making the work pools"):
        from flows.work_pools import make_work_pools

        make_work_pools()
        keeper.begin_worker(home())
    with console.waiting("deploying"):
        command = [
            sys.executable,
            "-m",
            "prefect",
            "--no-prompt",
            "deploy",
            "--name",
            f"*-{environment.name}",
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ContenderError(f"the deployments were refused: {(done.stderr or done.stdout).strip()[-1000:]}")
    console.show_where(
        [
            ("Prefect UI", f"http://127.0.0.1:{port}"),
            ("For other commands", f"export PREFECT_API_URL={standing.url}"),
            ("Worker", f"of {standing.pool}"),
            ("Logs", str(keeper.logs(home()))),
        ]
    )


@prefect_app.command("down")
def prefect_down(as_json: JsonOption = False) -> None:
    """End server and worker; what they know stays."""
    from deployments.environment import home
    from flows import console, keeper

    session.as_json |= as_json
    with console.waiting("ending server and worker"):
        was_up = keeper.end(home())
    console.out.print("Down." if was_up else "Nothing was up.")


@prefect_app.command("status")
def prefect_status() -> None:
    """Where the server is; exit code 1 where none is up."""
    from deployments.environment import home
    from flows import console, keeper

    standing = keeper.kept(home())
    if standing is None:
        console.out.print("No Prefect server is up; start one with: python -m flows.run prefect up")
        raise typer.Exit(1)
    health = "answers" if standing.healthy() else "does not answer"
    console.out.print(f"{standing.url} {health}; a worker of {standing.pool}", soft_wrap=True)
