"""The command that looks at live traffic."""

from contextlib import nullcontext
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from flows.options import EnvOption, JsonOption, ModelOption, SinceOption, UntilOption, WindowOption
from flows.session import session

if TYPE_CHECKING:
    from tasks.monitoring_record import MonitorOutcome

monitoring_app = typer.Typer()


@monitoring_app.command()
def monitor(
    model: ModelOption = "churn",
    env: EnvOption = "dev",
    window: WindowOption = None,
    since: SinceOption = None,
    until: UntilOption = None,
    retrain: Annotated[
        bool,
        typer.Option("--retrain", help="Retrain in this process where an alert and the spec ask for it."),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Look at drift, quality, service levels and inputs of a window of live traffic; labels count as known by now."""
    from flows import console, prepare
    from flows.monitor import monitor as monitor_flow
    from flows.server import served

    session.as_json |= as_json
    quiet = session.verbose or session.as_json
    with (
        nullcontext() if quiet else console.stages_shown(),
        served(partial(prepare.opened, model, env)),
    ):
        outcome = monitor_flow(model, env, window, since, until)
        if session.as_json:
            typer.echo(outcome.model_dump_json())
        else:
            _show(outcome)
        if retrain:
            _retrain(outcome, env, model)


def _retrain(outcome: "MonitorOutcome", env: str, model: str) -> None:
    from flows import console
    from flows.retrain import retrain_for

    done = retrain_for(outcome.with_late_alerts, env, model)
    if session.as_json:
        return
    said = "no alert asks for a retraining" if done is None else str(done)
    console.out.print(said, soft_wrap=True, markup=False)


def _show(outcome: "MonitorOutcome") -> None:
    from rich.text import Text

    from flows import console
    from tasks.monitoring_alerts import told_apart
    from tasks.release_report import moment

    console.out.print(
        Text.assemble(
            (f"{outcome.name} version {outcome.version}", "bold"),
            f"  {moment(outcome.window.start)} to {moment(outcome.window.end)}: {outcome.requests:,} requests, "
            f"{outcome.rows:,} rows, {outcome.labelled:,} with labels",
        ),
        soft_wrap=True,
    )
    table = console.new_table("", "part", "verdict")
    for kind, verdict in outcome.verdicts.items():
        table.add_row(kind.replace("_", " "), console.coloured(verdict))
    console.out.print(table)
    console.out.print(told_apart(outcome.verdicts), soft_wrap=True, highlight=False)
    for alert in outcome.alerts:
        said = f" (acknowledged: {alert.acknowledged})" if alert.acknowledged else ""
        style = "dim" if alert.acknowledged else "bold red"
        console.out.print(Text.assemble((alert.event, style), f"{said}: {alert.reason}"), soft_wrap=True)
    for one in outcome.again:
        said = f"judged again by {one.labelled:,} labels: {moment(one.window.start)} to {moment(one.window.end)}: "
        console.out.print(Text.assemble(said, console.coloured(one.verdicts["quality"])), soft_wrap=True)
        for alert in one.alerts:
            console.out.print(Text.assemble((alert.event, "bold red"), f": {alert.reason}"), soft_wrap=True)
    for problem in outcome.problems:
        console.out.print(Text(problem, style="yellow"), soft_wrap=True)
    console.show_where([("Report", outcome.report)])
