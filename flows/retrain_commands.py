"""The commands around retraining: retrain, drift ack, drift acks, costs and the dashboard."""

import json
from collections.abc import Sequence
from contextlib import nullcontext
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deployments.errors import BadInputError
from flows.options import MOMENTS, EnvOption, JsonOption, ModelOption, ReasonOption, ReleaseOption
from flows.session import session

if TYPE_CHECKING:
    from tasks.costs import Spent, SpentOn
    from tasks.drift_ack import DriftAck

retrain_app = typer.Typer()
drift_app = typer.Typer(help="Say which drift was to be expected.", no_args_is_help=True)
retrain_app.add_typer(drift_app, name="drift")


@retrain_app.command()
def retrain(
    model: ModelOption = "churn",
    env: EnvOption = "dev",
    reason: ReasonOption = "asked for by hand",
    release: ReleaseOption = True,
    as_of: Annotated[
        datetime | None,
        typer.Option(
            "--as-of",
            help="Look from this moment (UTC); by default from the spec's clock, or where it has none from now.",
            formats=MOMENTS,
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Train anew and release the challenger, where the retrain policy allows it; carries on what was cut short."""
    from flows import console, prepare, release_view
    from flows.release import viewed_by
    from flows.retrain import retrain as retrain_flow
    from flows.server import served

    session.as_json |= as_json
    quiet = session.verbose or session.as_json
    with (
        nullcontext() if quiet else console.stages_shown(),
        nullcontext() if quiet else viewed_by(release_view.View(None)),
        served(partial(prepare.opened, model, env)),
    ):
        outcome = retrain_flow(model, env, reason, None, release, as_of)
    if session.as_json:
        typer.echo(outcome.model_dump_json())
        return
    console.out.print(str(outcome), markup=False, soft_wrap=True)


@drift_app.command("ack")
def drift_ack(
    reason: Annotated[
        str, typer.Option("--reason", help="Why it was to be expected; it stands in the ledger.")
    ],
    model: ModelOption = "churn",
    env: EnvOption = "dev",
    columns: Annotated[
        str, typer.Option("--columns", help="Features, by commas; `prediction` is the model's own answers.")
    ] = "",
    everything: Annotated[bool, typer.Option("--all", help="All features, and the predictions.")] = False,
    until: Annotated[
        datetime | None,
        typer.Option("--until", help="Windows that end by this moment (UTC) are covered.", formats=MOMENTS),
    ] = None,
    days: Annotated[
        float | None, typer.Option("--days", min=0, help="The same, from now on, in days.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Acknowledge a shift that was to be expected: its alerts neither go out nor retrain while it lasts."""
    from flows import console
    from flows.prepare import prepare
    from tasks.drift_ack import acknowledge

    session.as_json |= as_json
    named = [name.strip() for name in columns.split(",") if name.strip()]
    if bool(named) == everything:
        raise BadInputError("say which columns: either --columns a,b or --all")
    if (until is None) == (days is None):
        raise BadInputError("say how long: either --until MOMENT or --days N")
    now = datetime.now(UTC)
    end = now + timedelta(days=days or 0) if until is None else until.replace(tzinfo=UTC)
    loaded, platform = prepare(model, env)
    ack = acknowledge(platform, loaded, named, end, reason, now)
    if session.as_json:
        typer.echo(ack.model_dump_json())
    else:
        console.out.print(f"Acknowledged, entry {ack.entry} of the ledger.")
        _show_acks([ack])


@drift_app.command("acks")
def drift_acks(
    model: ModelOption = "churn",
    env: EnvOption = "dev",
    past: Annotated[bool, typer.Option("--past", help="Those that have ended as well.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Show which drift is acknowledged, until when and by whom."""
    from flows import console
    from flows.prepare import prepare
    from tasks.drift_ack import acknowledgements

    session.as_json |= as_json
    loaded, platform = prepare(model, env)
    found = acknowledgements(platform, loaded.name, None if past else datetime.now(UTC))
    if session.as_json:
        typer.echo(json.dumps([ack.model_dump(mode="json") for ack in found]))
    elif found:
        _show_acks(found)
    else:
        console.out.print(f"No drift of {loaded.name} is acknowledged.")


def _show_acks(found: Sequence["DriftAck"]) -> None:
    from rich.text import Text

    from flows import console

    table = console.new_table("", "columns", "until (UTC)", "by", "why")
    for ack in found:
        columns = ", ".join(ack.columns) or "all, and the predictions"
        table.add_row(Text(columns), f"{ack.until:%Y-%m-%d %H:%M}", Text(ack.by), Text(ack.reason))
    console.out.print(table)


@retrain_app.command()
def costs(
    model: ModelOption = "churn",
    env: EnvOption = "dev",
    days: Annotated[
        float | None, typer.Option("--days", min=0, help="So far back; this month by default.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Show what a model cost, by flow and task, and what is left of its budgets."""
    from flows.prepare import prepare
    from tasks.costs import budget_problems, spent, spent_on, start_of_day, start_of_month

    session.as_json |= as_json
    loaded, platform = prepare(model, env)
    now, policy = datetime.now(UTC), loaded.spec.retrain
    since = start_of_month(now) if days is None else now - timedelta(days=days)
    total, parts = spent(platform, loaded.name, since), spent_on(platform, loaded.name, since)
    day = spent(platform, loaded.name, start_of_day(now))
    month = spent(platform, loaded.name, start_of_month(now))
    problems = budget_problems(platform, loaded.name, policy, now)
    if session.as_json:
        said = {
            "total": total.model_dump(mode="json"),
            "parts": [part.model_dump(mode="json") for part in parts],
            "today": {"amount": day.amount, "budget": policy.daily_budget},
            "month": {"amount": month.amount, "budget": policy.monthly_budget},
            "problems": list(problems),
        }
        typer.echo(json.dumps(said))
        return
    _show_costs(loaded.name, total, parts)
    _show_budget("today", day, policy.daily_budget)
    _show_budget("this month", month, policy.monthly_budget)
    for problem in problems:
        _say(problem, "yellow")


def _show_costs(model: str, total: "Spent", parts: Sequence["SpentOn"]) -> None:
    from rich.text import Text

    from flows import console

    if not parts:
        console.out.print(f"Nothing of {model} has cost anything since {total.since:%Y-%m-%d %H:%M} UTC.")
        return
    title = f"{model} since {total.since:%Y-%m-%d %H:%M} UTC"
    table = console.new_table(title, "flow", "task", "#runs", "#seconds", "#peak MB", "#rows", "#cost")
    for part in parts:
        table.add_row(
            Text(part.flow),
            Text(part.task),
            f"{part.runs:,}",
            f"{part.seconds:,.1f}",
            f"{part.peak_megabytes:,.0f}",
            f"{part.rows:,}",
            f"{part.amount:.4g} {part.currency}",
        )
    console.out.print(table, "")
    cut = f", {total.unfinished:,} of them cut short or under way" if total.unfinished else ""
    _say(f"In all {total} for {total.seconds:,.1f} s of {total.tasks:,} tasks{cut}.")
    if total.unknown:
        _say(f"Not counted: {total.unknown}.", "yellow")


def _show_budget(when: str, found: "Spent", budget: float | None) -> None:
    of = f"of {budget:g} {found.currency}" if budget is not None else "(no budget is set)"
    _say(f"Spent {when}: {found} {of}")


def _say(text: str, style: str | None = None) -> None:
    from flows import console

    console.out.print(text, style=style, markup=False, soft_wrap=True)


@retrain_app.command()
def dashboard(
    model: ModelOption = "churn",
    env: EnvOption = "dev",
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Where the page goes; among the environment's reports by default."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Write one page on a model: health, quality, drift, service, releases, costs and delivery; it works offline."""
    from flows import console
    from flows.prepare import prepare
    from tasks.dashboard import write_dashboard

    session.as_json |= as_json
    loaded, platform = prepare(model, env)
    with console.waiting("drawing"):
        path = write_dashboard(platform, loaded, out)
    if session.as_json:
        typer.echo(
            json.dumps({"model": loaded.name, "environment": platform.environment.name, "page": str(path)})
        )
    else:
        console.out.print(str(path), soft_wrap=True, highlight=False)
