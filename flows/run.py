"""`python -m flows.run`: the command line. Without a command it lives four months of the embedded shop.

Exit codes: 0 done or nothing to do, 1 something broke, 2 bad input or spec, 3 a gate or a promotion refused.
"""

import atexit
import importlib
import json
import os
import sys
import threading
import traceback
from collections.abc import Sequence
from contextlib import nullcontext
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, TypeVar

import typer

from deployments.errors import BadInputError, ContenderError
from flows.approval_commands import approval_app
from flows.deployment_commands import deployments_app
from flows.fleet_commands import fleet_app
from flows.history_commands import history_app
from flows.label_commands import labels_app
from flows.lifecycle_commands import FreshOption, KeepUpOption, lifecycle_app, live
from flows.monitoring_commands import monitoring_app
from flows.options import EnvOption, JsonOption, ModelOption
from flows.prefect_commands import prefect_app
from flows.release_commands import release_app
from flows.retrain_commands import retrain_app
from flows.serving_commands import serving_app
from flows.session import session
from flows.settings import settle

if TYPE_CHECKING:
    from pydantic import BaseModel

    from flows.release import ReleaseOutcome
    from platforms.platform import Platform
    from tasks.outcome import TrainOutcome

R = TypeVar("R")

app = typer.Typer(
    name="contender",
    help="Take a model from raw data to a gated, registered champion.",
    epilog="Exit codes: 0 done or nothing to do, 1 broken, 2 bad input or spec, 3 a gate or promotion refused.",
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    no_args_is_help=False,
)
spec_app = typer.Typer(help="Check, describe and draft model specs.", no_args_is_help=True)
audit_app = typer.Typer(help="Read, verify and export the ledger and the evidence.", no_args_is_help=True)
app.add_typer(serving_app)
app.add_typer(release_app)
app.add_typer(monitoring_app)
app.add_typer(retrain_app)
app.add_typer(fleet_app, name="fleet")
app.add_typer(approval_app)
app.add_typer(history_app)
app.add_typer(spec_app, name="spec")
app.add_typer(audit_app, name="audit")
app.add_typer(labels_app, name="labels")
app.add_typer(deployments_app, name="deployments")
app.add_typer(prefect_app, name="prefect")
app.add_typer(lifecycle_app)

SourceOption = Annotated[
    str | None,
    typer.Option("--source", help="Read this file instead of the spec's source: PATH or TABLE=PATH."),
]
AsOfOption = Annotated[
    datetime | None,
    typer.Option("--as-of", help="Look from this moment (UTC).", formats=["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S"]),
]


@app.callback(invoke_without_command=True)
def main_options(
    context: typer.Context,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show logs and tracebacks.")] = False,
    as_json: JsonOption = False,
    fresh: FreshOption = False,
    keep_up: KeepUpOption = False,
) -> None:
    """Champion/challenger delivery for machine-learning models."""
    session.verbose, session.as_json = verbose, as_json
    settle(verbose)
    if context.invoked_subcommand is None:
        live(fresh=fresh, keep_up=keep_up)
    elif fresh or keep_up:
        raise BadInputError("--fresh and --keep-up go with no command, or behind `lifecycle`")


@app.command()
def run(
    model: ModelOption = "churn",
    env: EnvOption = "dev",
    source: SourceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Train, promote and score: a model of your own through the line in one go, without a release."""
    from flows import console

    outcome = _watched(as_json, "deliver", model, env, source)
    if session.as_json:
        _print_json(outcome)
        return
    console.show_training(outcome.trained)
    console.show_version(outcome.champion)
    console.show_scores(outcome.scored)
    _show_where(outcome.trained, env)


@app.command()
def train(
    model: ModelOption,
    env: EnvOption = "dev",
    source: SourceOption = None,
    as_of: AsOfOption = None,
    force: Annotated[bool, typer.Option("--force", help="Train again though nothing has changed.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Take raw data to a registered challenger, or to a refusal that says why."""
    from flows import console

    outcome = _watched(as_json, "train", model, env, source, as_of, force)
    if session.as_json:
        _print_json(outcome)
        return
    console.show_training(outcome)
    if outcome.version is not None:
        console.show_version(outcome.version)
    _show_where(outcome, env)


@app.command()
def promote(
    model: ModelOption,
    env: EnvOption = "dev",
    version: Annotated[
        str | None, typer.Option("--version", help="A version; the challenger by default.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Make the challenger champion, where the environment asks for no approval."""
    from flows import console

    promoted = _watched(as_json, "promote", model, env, version)
    if session.as_json:
        _print_json(promoted)
    else:
        console.show_version(promoted)


@app.command()
def transfer(
    model: ModelOption,
    source: Annotated[
        str, typer.Option("--from", help="The environment that sends it: dev, test, prod, or a YAML file.")
    ],
    env: Annotated[
        str, typer.Option("--env", "-e", help="The environment that receives it and judges it anew.")
    ],
    version: Annotated[
        str | None, typer.Option("--version", help="A version of the sender; its champion by default.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Take a version from one environment into another, with its lineage, as a challenger."""
    from flows import console

    moved = _watched(as_json, "transfer", model, env, source, version)
    if session.as_json:
        _print_json(moved)
        return
    news = "was transferred already" if moved.unchanged else "was transferred"
    console.out.print(
        f"{moved.sent.name} version {moved.sent.version} {news} from {moved.source} to {moved.target}",
        highlight=False,
        soft_wrap=True,
    )
    console.show_version(moved.version)


@app.command()
def score(
    model: ModelOption,
    env: EnvOption = "dev",
    input: Annotated[  # noqa: A002
        str | None,
        typer.Option("--input", help="A csv, Parquet or Delta file; everyone as they are now by default."),
    ] = None,
    output: Annotated[
        str | None, typer.Option("--output", help="Where the scores go: .csv or .parquet.")
    ] = None,
    as_of: AsOfOption = None,
    as_json: JsonOption = False,
) -> None:
    """Score a batch with the champion; resumable, and never over an earlier output."""
    from flows import console

    outcome = _watched(as_json, "score", model, env, input, output, as_of)
    if session.as_json:
        _print_json(outcome)
    else:
        console.show_scores(outcome)


@app.command()
def features(
    model: ModelOption = "churn",
    env: EnvOption = "dev",
    as_of: AsOfOption = None,
    as_json: JsonOption = False,
) -> None:
    """Publish the champion's features of everyone, so that its endpoint can be asked by key alone."""
    from flows import console

    published = _watched(as_json, "features", model, env, as_of)
    if session.as_json:
        _print_json(published)
    else:
        console.show_online(published)


@spec_app.command("check")
def spec_check(
    file: Annotated[Path, typer.Argument(help="A model.yaml, or the name of a shipped model.")],
    env: EnvOption = "dev",
    as_json: JsonOption = False,
) -> None:
    """Check a model spec: keys, references, contract rules, query and estimators."""
    from flows import console

    session.as_json |= as_json
    from flows.prepare import prepare
    from tasks.check import check_spec

    loaded, platform = prepare(str(file), env)
    found = check_spec(loaded, platform)
    if session.as_json:
        print(json.dumps({"model": loaded.name, "file": str(loaded.path), "checked": found}))
        return
    console.out.print(f"[bold green]ok[/] {loaded.path}: {loaded.name}", soft_wrap=True)
    for line in found:
        console.out.print(f"   {line}", markup=False, soft_wrap=True)


@spec_app.command("schema")
def spec_schema(
    kind: Annotated[str, typer.Argument(help="model or environment")] = "model",
) -> None:
    """Print the JSON schema of model.yaml or of an environment, for editors."""
    from deployments.environment import Environment
    from deployments.spec import ModelSpec

    kinds: dict[str, type[BaseModel]] = {"model": ModelSpec, "environment": Environment}
    if kind not in kinds:
        raise BadInputError(f"there is no schema of {kind!r} (known: {', '.join(kinds)})")
    print(json.dumps(kinds[kind].model_json_schema(), indent=2))


@spec_app.command("init")
def spec_init(
    name: Annotated[str, typer.Argument(help="The new model's name.")],
    data: Annotated[Path, typer.Option("--from", help="A csv, Parquet or Delta file to draft from.")],
    target: Annotated[
        str | None, typer.Option("--target", help="The column to predict; guessed by default.")
    ] = None,
    folder: Annotated[
        Path | None, typer.Option("--folder", help="Where models are; deployments/models by default.")
    ] = None,
) -> None:
    """Draft a model.yaml from a data file, for you to edit."""
    from deployments.spec import MODELS
    from flows import console
    from tasks.draft import write_draft

    path = write_draft(name, data, target, folder or MODELS)
    console.out.print(f"wrote {path}; edit it, then: python -m flows.run spec check {path}", soft_wrap=True)


@audit_app.command("verify")
def audit_verify(env: EnvOption = "dev", as_json: JsonOption = False) -> None:
    """Check ledger, evidence bundles and release records; exit code 1 where anything is wrong."""
    from flows import console
    from tasks.audit import audit

    session.as_json |= as_json
    found = audit(_platform(env))
    if session.as_json:
        _print_json(found)
    else:
        for problem in found.problems:
            console.show_error(problem)
        for change in found.changes:
            console.out.print(change, style="yellow", markup=False, soft_wrap=True)
        if not found.problems:
            console.out.print(
                f"[bold green]ok[/] {found.entries:,} ledger entries, {found.bundles:,} evidence bundles, "
                f"{found.releases:,} releases"
            )
    if found.problems:
        raise typer.Exit(1)


@audit_app.command("export")
def audit_export(
    model: ModelOption = "churn",
    env: EnvOption = "dev",
    version: Annotated[
        str | None,
        typer.Option("--version", help="A version; the one whose evidence was written last by default."),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Where the zip goes; here by default.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a file that stands there.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Write a version's evidence and the ledger into one zip, to be read and verified offline."""
    from deployments.spec import load_spec
    from flows import console
    from tasks.bundle_export import export_bundle

    session.as_json |= as_json
    found = export_bundle(_platform(env), load_spec(model).name, version, out, force=force)
    if session.as_json:
        _print_json(found)
    else:
        for problem in found.problems:
            console.show_error(problem)
        console.out.print(
            f"{found.path}: {found.model} version {found.version}, {found.files} files\nsha256 {found.sha256}",
            highlight=False,
            soft_wrap=True,
        )
    if found.problems:
        raise typer.Exit(1)


@audit_app.command("show")
def audit_show(
    env: EnvOption = "dev",
    model: Annotated[str | None, typer.Option("--model", "-m", help="Only this model.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Show the ledger: who did what to which model, and when."""
    from flows import console
    from tasks.register import ledger_of

    session.as_json |= as_json
    entries = list(ledger_of(_platform(env)).entries(model))
    if session.as_json:
        print(json.dumps([entry.model_dump(mode="json") for entry in entries]))
    elif entries:
        console.show_ledger(entries)
    else:
        console.out.print("The ledger is empty.")


def _platform(env: str) -> "Platform":
    from deployments.environment import load_environment
    from platforms import platform_for

    return platform_for(load_environment(env))


def _watched(as_json: bool, name: str, model: str, env: str, *arguments: Any) -> Any:
    """Run the flow of that name with its stages shown."""
    from flows import console
    from flows.server import served

    def opened(waits: bool) -> None:
        importlib.import_module(f"flows.{name}")
        importlib.import_module("flows.prepare").opened(model, env, waits)

    session.as_json |= as_json
    with nullcontext() if session.verbose else console.stages_shown(), served(opened):
        return getattr(importlib.import_module(f"flows.{name}"), name)(model, env, *arguments)


def _print_json(outcome: "BaseModel") -> None:
    print(outcome.model_dump_json())


def _show_where(outcome: "TrainOutcome", env: str) -> None:
    from deployments.environment import home
    from flows import console
    from tasks.conclude import without_credentials

    platform = _platform(env)
    python = Path(sys.executable).parent
    lines = [
        ("Training report", outcome.reports.training),
        ("Contract report", outcome.reports.contract),
        ("MLflow run", outcome.run_id),
        (
            "MLflow UI",
            f"{python / 'mlflow'} ui --backend-store-uri {without_credentials(platform.mlflow.tracking_uri)}",
        ),
        ("Prefect UI", f"PREFECT_HOME={home() / 'prefect'} {python / 'prefect'} server start"),
        ("Audit", f"{Path(sys.executable)} -m flows.run audit verify --env {env}"),
    ]
    if outcome.reports.evidence:
        lines.insert(2, ("Evidence", outcome.reports.evidence))
    console.show_where(lines)


def _refused(error: ContenderError) -> int:
    """Show what was refused, with the outcome where there is one, and return the exit code."""
    from flows import console

    outcome = getattr(error, "outcome", None)
    if session.as_json:
        if outcome is not None:
            _print_json(outcome)
        else:
            print(json.dumps({"error": str(error), "exit_code": error.exit_code}))
    elif outcome is not None:
        _show_refused(outcome)
    console.show_error(str(error))
    return error.exit_code


def _show_refused(outcome: "TrainOutcome | ReleaseOutcome") -> None:
    """What came of a training that gates refused, or of a release that did not end in a promotion."""
    from flows import console
    from tasks.outcome import TrainOutcome

    if not isinstance(outcome, TrainOutcome):
        from flows.release_view import show_outcome

        show_outcome(outcome)
        return
    console.show_training(outcome)
    if outcome.version is not None:
        console.show_version(outcome.version)
    _show_where(outcome, outcome.environment)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    from flows import console

    try:
        app(args=arguments)
    except SystemExit as stop:
        return int(stop.code or 0)
    except ContenderError as error:
        return _refused(error)
    except KeyboardInterrupt:
        console.show_error("interrupted; run the same command again to carry on")
        return 130
    except Exception as error:  # noqa: BLE001 - the last stop: whatever broke, say it and end with 1
        if session.verbose:
            traceback.print_exc()
        said = str(error).strip().splitlines() or [""]
        console.show_error(f"{type(error).__name__}: {said[0]} (run with --verbose for the traceback)")
        return 1
    return 0


def leave(code: int) -> NoReturn:
    """End the process after its exit handlers, without the interpreter's own taking-down of modules.

    DuckDB's bindings would then list on standard error whatever other libraries' caches still hold of them.
    """
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()  # type: ignore[attr-defined]
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    leave(main())
