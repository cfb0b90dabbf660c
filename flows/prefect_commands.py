"""The commands of a Prefect server of one's own: up, down and status."""

import json
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
    database: Annotated[
        str | None,
        typer.Option(
            "--database",
            help="Where the server keeps what it knows: postgresql://user@host/name or sqlite:///path. By default "
            "what PREFECT_SERVER_DATABASE_CONNECTION_URL says, and a file under the data home otherwise.",
        ),
    ] = None,
    at_once: Annotated[
        int | None,
        typer.Option(
            "--at-once",
            min=1,
            help="How many runs the worker has under way at a time; by default four for each processor, and at "
            "least eight. The others wait. A worker that is up keeps its number.",
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Start server and worker, make the work pool, and deploy the environment's flows of every model."""
    from deployments.environment import home, load_environment
    from flows import console, keeper
    from flows.database import check_database, chosen_database, without_database
    from flows.deployment_file import names_of

    session.as_json |= as_json
    environment = load_environment(env)
    names = names_of(environment.name)
    # Prefect reads its settings once, when it is first imported, which the next line does.
    os.environ["PREFECT_API_URL"] = f"http://127.0.0.1:{port}/api"
    chosen, last = chosen_database(database), keeper.kept_last(home())
    with console.waiting("starting the Prefect server"):
        if keeper.kept(home()) is None:
            check_database(chosen)
        standing = keeper.begin(home(), port, environment.pool, chosen, at_once)
    if last is not None and last.database not in {"", standing.database}:
        console.out.print(
            f"The server before this one kept its data in {last.database}; what it knows is still there.",
            markup=False,
            soft_wrap=True,
        )
    with console.waiting("making the work pool"):
        from flows.work_pools import make_work_pools

        make_work_pools(environment.name)
        keeper.begin_worker(home(), at_once or keeper.RUNS_AT_ONCE)
    with console.waiting("deploying"):
        # By whole names: a pattern deploys what shares a name once for each that shares it.
        named = [part for name in names for part in ("--name", name)]
        command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", *named]
        done = subprocess.run(
            command, env=without_database(os.environ), capture_output=True, text=True, check=False
        )
    if done.returncode:
        raise ContenderError(f"the deployments were refused: {(done.stderr or done.stdout).strip()[-1000:]}")
    console.show_where(
        [
            ("Prefect UI", f"http://127.0.0.1:{port}"),
            ("For other commands", f"export PREFECT_API_URL={standing.url}"),
            ("Worker", f"of {standing.pool}"),
            ("Database", standing.database),
            ("Logs", str(keeper.logs(home()))),
        ]
    )


@prefect_app.command("down")
def prefect_down(as_json: JsonOption = False) -> None:
    """End the runs under way, which have half a minute, then worker and server; what they know stays."""
    from deployments.environment import home
    from flows import console, keeper

    session.as_json |= as_json
    with console.waiting("ending server and worker"):
        was_up = keeper.end(home())
    console.out.print("Down." if was_up else "Nothing was up.")


@prefect_app.command("status")
def prefect_status(as_json: JsonOption = False) -> None:
    """Whether server, database and worker answer, and where they are; exit code 1 where any of them does not."""
    from deployments.environment import home
    from flows import console, keeper

    session.as_json |= as_json
    standing = keeper.kept(home())
    found = {"up": standing is not None}
    if standing is not None:
        found |= {"server": standing.healthy(), "database": standing.ready(), "worker": standing.works()}
    if session.as_json:
        where = {} if standing is None else {"url": standing.url, "pool": standing.pool}
        console.out.print_json(json.dumps(where | found))
    elif standing is None:
        console.out.print("No Prefect server is up; start one with: python -m flows.run prefect up")
    elif not found["server"]:
        console.out.print(
            f"{standing.url} does not answer; a worker of {standing.pool}. The keeper starts what died again; "
            f"{keeper.logs(home())} says why it died",
            soft_wrap=True,
        )
    else:
        database = "" if found["database"] else f", and its database does not: {standing.database}"
        worker = f"a worker of {standing.pool}" + ("" if found["worker"] else " has not been heard of")
        console.out.print(f"{standing.url} answers{database}; {worker}", soft_wrap=True)
    if not all(found.values()):
        raise typer.Exit(1)
