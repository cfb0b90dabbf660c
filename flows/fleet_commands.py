"""The commands that work on many models at once: fleet monitor and fleet retrain."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deployments.errors import BadInputError
from flows.options import (
    EnvOption,
    JsonOption,
    ReasonOption,
    ReleaseOption,
    SinceOption,
    UntilOption,
    WindowOption,
)
from flows.session import session

if TYPE_CHECKING:
    from tasks.fleet import FleetOutcome
    from tasks.progress import Stage

fleet_app = typer.Typer(help="Monitor or retrain many models in one run.", no_args_is_help=True)

_COLOURS = {"failed": "bold red", "refused": "red", "alerts": "yellow", "no champion": "dim", "done": "green"}

ModelsOption = Annotated[
    list[str] | None,
    typer.Option(
        "--model",
        "-m",
        help="A shipped model, or the path of a model.yaml; again for each. All shipped ones by default.",
    ),
]
UnderOption = Annotated[
    Path | None, typer.Option("--under", help="Every model.yaml in a folder of this folder, too.")
]
AtOnceOption = Annotated[
    int | None,
    typer.Option("--at-once", min=1, help="How many at a time; the workers of the environment by default."),
]


@fleet_app.command("monitor")
def fleet_monitor(
    model: ModelsOption = None,
    under: UnderOption = None,
    env: EnvOption = "dev",
    at_once: AtOnceOption = None,
    window: WindowOption = None,
    since: SinceOption = None,
    until: UntilOption = None,
    retrain: Annotated[
        bool, typer.Option("--retrain", help="Retrain where an alert and the model's spec ask for it.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Look at a window of live traffic of each model. Exit code 1 where any failed, else 3 where any was refused."""
    _run(
        as_json,
        models=_models(model, under),
        env=env,
        at_once=at_once,
        window=window,
        since=since,
        until=until,
        retrain=retrain,
    )


@fleet_app.command("retrain")
def fleet_retrain(
    model: ModelsOption = None,
    under: UnderOption = None,
    env: EnvOption = "dev",
    at_once: AtOnceOption = None,
    reason: ReasonOption = "asked for by hand",
    release: ReleaseOption = True,
    as_json: JsonOption = False,
) -> None:
    """Train each model anew, where its policy allows it. Exit code 1 where any failed, else 3 where any was refused."""
    _run(
        as_json,
        models=_models(model, under),
        env=env,
        at_once=at_once,
        work="retrain",
        reason=reason,
        release=release,
    )


def _models(named: list[str] | None, under: Path | None) -> list[str] | None:
    """Those that were named and those of the folder; None where neither is."""
    if under is None:
        return named or None
    found = [str(path) for path in sorted(under.glob("*/model.yaml"))]
    if not found:
        raise BadInputError(f"--under {under}: there is no model.yaml in any folder of it")
    return [*(named or ()), *found]


def _run(as_json: bool, *, models: list[str] | None, env: str, **given: Any) -> None:
    from flows import console
    from flows.fleet import fleet, ready
    from flows.server import served
    from tasks.fleet import FleetError

    session.as_json |= as_json
    failed: FleetError | None = None

    def opened(_: bool) -> None:
        ready(models, env)

    watch = not (session.verbose or session.as_json) and sys.stderr.isatty()
    with _counted() if watch else nullcontext(), served(opened):
        try:
            outcome = fleet(models, env, **given)
        except FleetError as error:
            outcome, failed = error.outcome, error
    if session.as_json:
        typer.echo(outcome.model_dump_json())
    else:
        _show(outcome)
    if failed is not None:
        console.show_error(str(failed))
        raise typer.Exit(failed.exit_code)


@contextmanager
def _counted() -> Iterator[None]:
    """How many models are done, while they are worked on."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from flows import console
    from flows.fleet import STAGE
    from tasks.progress import watched_by

    columns = (TextColumn("models"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console.err, transient=True) as progress:
        shown = progress.add_task("models", total=None)

        def watch(stage: "Stage") -> None:
            if stage.name == STAGE:
                progress.update(shown, completed=stage.done, total=stage.total)

        with watched_by(watch):
            yield


def _show(outcome: "FleetOutcome") -> None:
    from rich.text import Text

    from flows import console
    from tasks.fleet import told, verdicts_said, why

    console.out.print(
        Text(f"{outcome.work} in {outcome.environment}: {told(outcome)}", style="bold"), soft_wrap=True
    )
    table = console.new_table("", "model", "state", "version", "#seconds", "verdicts, and why")
    for row in outcome.urgent_first:
        table.add_row(
            Text(row.model),
            Text(row.state, style=_COLOURS[row.state]),
            row.version or "–",
            f"{row.seconds:.1f}",
            Text("\n".join(part for part in (verdicts_said(row), why(row)) if part)),
        )
    console.out.print(table)
