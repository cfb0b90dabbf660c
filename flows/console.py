"""What people see in the terminal: stages under way on standard error, results on standard output."""

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from threading import Lock
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console, Group
from rich.panel import Panel
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from tasks.progress import Stage, watched_by
from tasks.verdict import Verdict

if TYPE_CHECKING:
    from tasks.ledger import Entry
    from tasks.online import OnlineOutcome
    from tasks.outcome import TrainOutcome
    from tasks.register import Version
    from tasks.score import ScoreOutcome

_COLOURS = {Verdict.PASS: "green", Verdict.FAIL: "bold red", Verdict.INCONCLUSIVE: "yellow"}
_SAID_AFTER_SECONDS = 2.0

_WIDTH_OF_NO_TERMINAL = 110


def _console(stderr: bool) -> Console:
    watched = (sys.stderr if stderr else sys.stdout).isatty()
    return Console(stderr=stderr, highlight=False, width=None if watched else _WIDTH_OF_NO_TERMINAL)


out = _console(stderr=False)
err = _console(stderr=True)


@contextmanager
def stages_shown() -> Iterator[None]:
    """Show each stage while it lasts; where nobody watches a terminal, one line for each that took a while."""
    with _live() if sys.stderr.isatty() else _lines():
        yield


@contextmanager
def _lines() -> Iterator[None]:
    started: dict[str, float] = {}

    def watch(stage: Stage) -> None:
        began = started.setdefault(stage.name, time.monotonic())
        if stage.finished:
            took = time.monotonic() - began
            del started[stage.name]
            if took >= _SAID_AFTER_SECONDS:
                err.print(f"  {stage.name}: {took:.1f} s", markup=False)

    with watched_by(watch):
        yield


@contextmanager
def _live() -> Iterator[None]:
    progress = Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        TimeElapsedColumn(),
        console=err,
        transient=True,
    )
    shown: dict[str, int] = {}
    lock = Lock()

    def watch(stage: Stage) -> None:
        with lock:
            if stage.name not in shown:
                shown[stage.name] = progress.add_task(stage.name, total=stage.total)
            progress.update(shown[stage.name], completed=stage.done, total=stage.total)  # type: ignore[arg-type]
            if stage.finished:
                progress.remove_task(shown.pop(stage.name))  # type: ignore[arg-type]

    with progress, watched_by(watch):
        waiting = progress.add_task("working", total=None)
        yield
        progress.remove_task(waiting)


def new_table(title: str, *columns: str) -> Table:
    """An empty table; a column whose name begins with # is one of numbers."""
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, show_edge=False)
    for place, name in enumerate(columns):
        right = name.startswith("#")
        last = place == len(columns) - 1
        table.add_column(
            name.removeprefix("#"), justify="right" if right else "left", overflow="fold", no_wrap=not last
        )
    return table


def coloured(verdict: Verdict) -> Text:
    """A verdict in its colour."""
    return Text(verdict.value, style=_COLOURS[verdict])


def _number(value: float | None) -> str:
    if value is None or value != value:  # noqa: PLR0124 - NaN
        return "–"
    return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.4g}"


def show_training(outcome: "TrainOutcome") -> None:
    """The summary of a training: data, contract, candidates, metrics, gates, version."""
    heading = f"{outcome.model} in {outcome.environment}"
    if outcome.unchanged:
        heading += ": nothing has changed since this was trained"
    out.print(Text(heading, style="bold"), "")

    data = new_table("Data and contract", "table", "#rows", "#invalid", "contract", "snapshot")
    for table in outcome.tables:
        snapshot = table.silver or table.bronze
        version = f"{snapshot.table} v{snapshot.version} · {snapshot.digest[:12]}"
        data.add_row(
            table.table, f"{table.rows:,}", f"{table.invalid_rows:,}", coloured(table.verdict), version
        )
    out.print(data, "")
    for table in outcome.tables:
        for note in table.notes:
            out.print(Text(f"  {table.table}: {note}", style="dim"))
    parts = outcome.parts
    sizes = (parts.development.train, parts.development.validation, parts.holdout)
    split = " · ".join(
        f"{name} {part.snapshot.rows:,}"
        for name, part in zip(("train", "validation", "holdout"), sizes, strict=True)
    )
    out.print(Text(f"Split: {split}\n"))

    board = outcome.leaderboard
    candidates = new_table(
        "Candidates",
        "candidate",
        f"#validation {board.metric}",
        "#cross-validation",
        "#tried",
        "#seconds",
        "estimator",
    )
    for item in board.candidates:
        candidates.add_row(
            item.name,
            _number(item.validation),
            _number(item.cross_validation),
            str(item.tried),
            f"{item.seconds:.1f}",
            item.estimator.rpartition(".")[2],
        )
    out.print(candidates, "")

    metrics = new_table(
        f"Holdout, {outcome.evaluation.rows:,} rows", "metric", "#estimate", "#interval", "#trained on"
    )
    for name, found in outcome.evaluation.metrics.items():
        trained = outcome.evaluation.train_metrics.get(name)
        metrics.add_row(
            name, _number(found.value), f"{_number(found.low)} to {_number(found.high)}", _number(trained)
        )
    out.print(metrics, "")

    gates = new_table("Gates", "gate", "verdict", "#value", "#threshold", "why")
    for result in outcome.gates.results:
        gates.add_row(
            result.gate,
            coloured(result.verdict),
            _number(result.value),
            _number(result.threshold),
            Text(result.reason),
        )
    out.print(gates, "")
    if outcome.version is None:
        out.print(Text("Not registered: a gate did not pass.\n", style="bold red"))


def show_version(version: "Version") -> None:
    """A version and its aliases."""
    aliases = ", ".join(version.aliases) or "no alias"
    out.print(
        Text.assemble(("Registry: ", "bold"), f"{version} ({aliases}), digest {version.model_digest[:12]}")
    )


def show_scores(outcome: "ScoreOutcome") -> None:
    """What a scoring came to."""
    note = " (these scores were there already)" if outcome.unchanged else ""
    out.print(
        Text.assemble(
            ("Scores: ", "bold"),
            f"{outcome.scored_rows:,} rows by {outcome.name} version {outcome.version}, "
            f"mean score {_number(outcome.mean_score)}{note}\n        {outcome.output}",
        ),
        soft_wrap=True,
    )
    if outcome.rejected:
        out.print(
            Text(f"Rejected: {outcome.rejected_rows:,} rows, with reasons\n        {outcome.rejected}"),
            soft_wrap=True,
        )


def show_where(lines: Sequence[tuple[str, str]]) -> None:
    """Where to read on."""
    grid = Table.grid(padding=(0, 2))
    for name, where in lines:
        grid.add_row(Text(name, style="bold"), Text(where, overflow="fold"))
    out.print(
        Panel(Group(grid), title="Where to look", title_align="left", border_style="dim", box=box.ROUNDED)
    )


def show_ledger(entries: Sequence["Entry"]) -> None:
    """Entries of the ledger, oldest first."""
    table = new_table("Ledger", "#seq", "time", "event", "model", "subject", "actor")
    for entry in entries:
        row = (str(entry.seq), entry.time[:19], entry.event, entry.model, entry.subject, entry.actor)
        table.add_row(*(Text(cell) for cell in row))
    out.print(table)


@contextmanager
def waiting(what: str) -> Iterator[None]:
    """Say what is waited for, while it lasts."""
    with err.status(what) if sys.stderr.isatty() else nullcontext():
        yield


def show_data_plane(said: Mapping[str, Any]) -> None:
    """What the data plane says of itself: addresses, versions, shares, rates, and what is wrong."""
    table = new_table(
        "Endpoints",
        "endpoint",
        "served as",
        "version",
        "#share",
        "engine",
        "#ready",
        "#requests/s",
        "#p50 ms",
        "#p95 ms",
    )
    for name, endpoint in said["endpoints"].items():
        shares = {
            route["served_entity_name"]: route["traffic_percentage"]
            for route in endpoint["traffic"]["routes"]
        }
        mirror = endpoint["traffic"].get("mirror") or {}
        for entity in endpoint["entities"]:
            workers = [worker for worker in entity["workers"] if worker["ready"]]
            health = [worker["health"] for worker in workers]
            share = f"{shares.get(entity['name'], 0)} %"
            if mirror.get("served_entity_name") == entity["name"]:
                share += f" + {mirror['traffic_percentage']} % shadow"
            table.add_row(
                name,
                entity["name"],
                f"{entity['entity_name']} {entity['entity_version']}",
                share,
                entity["engine"] or "–",
                f"{len(workers)} of {max(len(entity['workers']), 1)}",
                _number(sum(one.get("requests_per_second", 0.0) for one in health)),
                _number(_middle(health, "p50_milliseconds")),
                _number(_middle(health, "p95_milliseconds")),
            )
    if said["endpoints"]:
        out.print(table, "")
    else:
        out.print("No endpoint yet; train and promote a champion, then: python -m flows.run deploy\n")
    gateway, mlflow = said["gateway"], said["mlflow"]
    lines = [
        ("Gateway", f"{gateway['url']} ({gateway['kind'].removesuffix('Gateway')})"),
        *[("Ask", f"{gateway['url']}/serving-endpoints/{name}/invocations") for name in said["endpoints"]],
        *[("Docs", f"{gateway['url']}/serving-endpoints/{name}/docs") for name in said["endpoints"]],
        ("MLflow", mlflow["url"]),
        ("Logs", said["logs"]),
    ]
    show_where(lines)
    for lack in gateway["lacks"]:
        out.print(Text(f"  this gateway has no {lack}", style="yellow"))
    problems = {
        name: endpoint["problem"] for name, endpoint in said["endpoints"].items() if endpoint["problem"]
    }
    for name, problem in {**said["problems"], **problems, **_gateway_problem(gateway)}.items():
        show_error(f"{name}: {problem}")


def _gateway_problem(gateway: Mapping[str, Any]) -> dict[str, str]:
    return {"gateway": gateway["problem"]} if gateway["problem"] else {}


def _middle(health: Sequence[Mapping[str, Any]], key: str) -> float | None:
    """The mean of what workers say, weighted by their requests."""
    found = [(one[key], one.get("requests", 0)) for one in health if one.get(key) is not None]
    total = sum(weight for _, weight in found)
    return sum(value * weight for value, weight in found) / total if total else None


def show_online(outcome: "OnlineOutcome") -> None:
    """Whose features an endpoint looks up now."""
    left_out = f", {outcome.unkeyed:,} without a key left out" if outcome.unkeyed else ""
    out.print(
        f"Endpoint {outcome.endpoint} looks up {outcome.rows:,} keys as of {outcome.as_of:%Y-%m-%d %H:%M} UTC "
        f"for {outcome.name} version {outcome.version}{left_out}",
        soft_wrap=True,
    )


def show_callers(found: Sequence[Mapping[str, Any]]) -> None:
    """Who may call, one line a key."""
    table = new_table("Callers", "caller", "key", "made", "expires")
    for key in found:
        table.add_row(key["caller"], key["key"], key["created_at"][:19], (key["expires_at"] or "never")[:19])
    out.print(table if found else "Nobody holds a key.")


def show_error(message: str) -> None:
    """An error, as it was said."""
    err.print(Text.assemble(("error: ", "bold red"), message), soft_wrap=True)
