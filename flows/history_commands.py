"""The command that shows how the releases of a model went."""

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.table import Table
from rich.text import Text

from flows.options import EnvOption, JsonOption, ModelOption
from flows.serving_commands import platform_of
from flows.session import session

if TYPE_CHECKING:
    from tasks.history import HistoryRow, ReleaseTold

history_app = typer.Typer()

_COLOURS = {
    "promoted": "green",
    "rolled back": "bold red",
    "rejected": "bold red",
    "rolled back by hand": "bold red",
}


@history_app.command()
def history(
    model: ModelOption = "churn",
    env: EnvOption = "dev",
    release: Annotated[
        str | None, typer.Option("--release", help="One release in full, by the id that the list shows.")
    ] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="How many, newest first.")] = 20,
    as_json: JsonOption = False,
) -> None:
    """Show releases, rollbacks and drills: who approved, how long, and what the analysis saw."""
    from deployments.spec import load_spec
    from tasks.history import history as rows_of
    from tasks.history import release_told

    session.as_json |= as_json
    platform, name = platform_of(env), load_spec(model).name
    if release is not None:
        told = release_told(platform, name, release)
        if session.as_json:
            typer.echo(told.model_dump_json())
        else:
            _show_release(told)
        return
    rows = rows_of(platform, name, limit)
    if session.as_json:
        typer.echo(json.dumps([row.model_dump(mode="json") for row in rows]))
    else:
        _show_rows(name, rows)


def _show_rows(model: str, rows: Sequence["HistoryRow"]) -> None:
    """One block a row: wide tables are cut off where a terminal is narrow."""
    from flows import console
    from tasks.release_report import duration, moment

    if not rows:
        console.out.print(
            f"{model} has no release yet; start one with: python -m flows.run release --model {model}"
        )
        return
    for row in rows:
        style = _COLOURS.get(row.outcome, "cyan" if row.kind == "drill" else "yellow")
        versions = f"{row.left or 'none'} → {row.version}"
        console.out.print(
            Text.assemble((row.id, "bold"), f"  {versions}  ", (row.outcome, style)), soft_wrap=True
        )
        lines = [
            ("began", f"{moment(row.began)} by {row.began_by}"),
            ("took", duration(row.seconds) if row.seconds is not None else ""),
            (
                "approved by",
                ", ".join(row.approved_by) or ("nobody asked for it" if row.kind == "release" else ""),
            ),
            ("requests", ", ".join(f"{arm} {count:,}" for arm, count in row.requests.items())),
            ("analysis" if row.kind == "release" else "why", row.analysis),
            ("report", row.report or ""),
        ]
        console.out.print(_grid([(name, said) for name, said in lines if said]), "")


def _grid(lines: Sequence[tuple[str, str]]) -> Table:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    for name, said in lines:
        grid.add_row(Text(f"  {name}", style="dim"), Text(said))
    return grid


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, show_edge=False)
    for name in columns:
        table.add_column(name, overflow="fold", no_wrap=name not in {"why", "event"})
    return table


def _show_release(told: "ReleaseTold") -> None:
    from flows import console
    from tasks.readings import Test, interval, measured, stage
    from tasks.release_report import moment

    _show_rows(told.release.model, [told.row])
    steps = _table("Steps", "state", "decided", "in effect", "why")
    for one in told.release.history:
        steps.add_row(
            stage(one.state, one.percentage), moment(one.at), moment(one.effective), Text(one.reason)
        )
    if told.release.history:
        console.out.print(steps, "")
    if told.last_look is not None and told.last_look.readings:
        look = told.last_look
        tests = _table(
            f"Last look, {stage(look.state, look.percentage)}",
            "test",
            "verdict",
            "estimate",
            "interval",
            "why",
        )
        for reading in look.readings:
            test = Test.named(reading.test)
            tests.add_row(
                test.label,
                reading.verdict.value,
                measured(test, reading.estimate),
                interval(reading),
                Text(reading.reason),
            )
        console.out.print(tests, "")
    ledger = _table("Ledger", "seq", "time", "actor", "event")
    for entry in told.entries:
        ledger.add_row(str(entry["seq"]), str(entry["time"])[:19], str(entry["actor"]), str(entry["event"]))
    if told.entries:
        console.out.print(ledger)
