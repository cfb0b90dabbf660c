"""The stages as Prefect tasks: thin, and exchanging references only.

Each calls the pure function of its stage and shows what came out in the Prefect UI. A task that failed for
reasons of its surroundings is tried again; one that was refused (bad data, a gate, a budget) is not.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE

from deployments.errors import ContenderError
from deployments.source import Source
from deployments.spec import FEATURES, LoadedSpec
from deployments.training import Candidate
from platforms.platform import Platform
from platforms.snapshot import Snapshot
from tasks import publish
from tasks.champion import Standing, TrainingSnapshots, reference_snapshots
from tasks.conclude import check_contract, conclude, logged_plots, version_tags, without_credentials
from tasks.evaluate import Evaluation, evaluate_challenger
from tasks.features import build_training_features
from tasks.gate import GateReport, judge
from tasks.ingest import ingest_table
from tasks.metering import metered
from tasks.mlflow_pages import run_links
from tasks.outcome import TrainOutcome
from tasks.register import (
    INTEGRATION,
    Version,
    integration_gate,
    record_refusal,
    register_version,
    settle,
)
from tasks.report import data_uri
from tasks.split import Development, Parts, split_table
from tasks.tracking import Tracking
from tasks.train import (
    CandidateResult,
    Leaderboard,
    TrainedModel,
    TrainingRun,
    open_run,
    rank,
    train_candidate,
    train_winner,
)
from tasks.validate import TableResult, validate_table
from tasks.verdict import Verdict


def worth_trying_again(_task: Any, _run: Any, state: Any) -> bool:
    """Whether a failed task may succeed unchanged: refusals never do."""
    try:
        state.result()
    except ContenderError:
        return False
    except Exception:  # noqa: BLE001 - whatever else it was, Prefect tries again and then fails the run
        return True
    return False


STEP: dict[str, Any] = {
    "cache_policy": NO_CACHE,
    "retries": 2,
    "retry_delay_seconds": [1, 5],
    "retry_condition_fn": worth_trying_again,
}
"""How a stage is tried again."""


@task(name="ingest", task_run_name="ingest {name}", **STEP)
@metered()
def ingest(
    loaded: LoadedSpec, platform: Platform, name: str, source: Source, until: datetime | None = None
) -> Snapshot:
    """One source as a bronze snapshot."""
    return ingest_table(loaded, platform, name, source, until)


@task(name="validate", task_run_name="validate {name}", **STEP)
@metered()
def validate(
    loaded: LoadedSpec, platform: Platform, name: str, bronze: Snapshot, standing: Standing, clock: datetime
) -> TableResult:
    """One table against its contract, and against what the champion was trained on."""
    contract = loaded.spec.training_contract if name == FEATURES else loaded.spec.contract[name]
    reference = reference_snapshots(platform, standing).get(name)
    return validate_table(
        contract, platform, model=loaded.name, table=name, bronze=bronze, reference=reference, clock=clock
    )


@task(name="features", task_run_name="features", **STEP)
@metered()
def features(
    loaded: LoadedSpec, platform: Platform, silver: dict[str, Snapshot], as_of: datetime
) -> Snapshot:
    """The gold table to train and evaluate on."""
    return build_training_features(loaded, platform, silver, as_of)


@task(name="split", task_run_name="split", **STEP)
@metered()
def split(loaded: LoadedSpec, platform: Platform, gold: Snapshot) -> Parts:
    """Train, validation and holdout, each a table of its own."""
    return split_table(loaded, platform, gold)


@task(name="candidate", task_run_name="candidate {candidate.name}", **STEP)
@metered()
def candidate_task(
    loaded: LoadedSpec, platform: Platform, run: TrainingRun, development: Development, candidate: Candidate
) -> CandidateResult:
    """One candidate's search and its score on the validation part."""
    return train_candidate(loaded, platform, run, development, candidate)


@task(name="train", task_run_name="train", **STEP)
@metered()
def winner(
    loaded: LoadedSpec,
    platform: Platform,
    run: TrainingRun,
    development: Development,
    results: Sequence[CandidateResult],
) -> tuple[Leaderboard, TrainedModel]:
    """The leaderboard, and its best refitted, saved and logged."""
    leaderboard = rank(loaded, list(results))
    publish.publish_leaderboard(platform.registered_model(loaded.name), leaderboard)
    return leaderboard, train_winner(loaded, platform, run, development, leaderboard)


@task(name="evaluate", task_run_name="evaluate", **STEP)
@metered()
def evaluate(
    loaded: LoadedSpec,
    platform: Platform,
    run: TrainingRun,
    trained: TrainedModel,
    parts: Parts,
    standing: Standing,
) -> Evaluation:
    """The one look at the holdout, for challenger and champion."""
    evaluation = evaluate_challenger(
        loaded, platform, run, trained, parts.development, parts.holdout, standing
    )
    publish.publish_metrics(platform.registered_model(loaded.name), evaluation)
    return evaluation


@task(name="gate", task_run_name="gate", **STEP)
@metered(rows=False)
def gate(loaded: LoadedSpec, platform: Platform, run: TrainingRun, evaluation: Evaluation) -> GateReport:
    """Every gate that needs no registered artifact."""
    report = judge(loaded.spec.gates, evaluation)
    standing = Tracking(platform).document(run.run_id, "gates", GateReport)
    if standing is not None and standing.results[: len(report.results)] == report.results:
        report = standing
    if report.verdict is not Verdict.PASS:
        record_refusal(loaded, platform, run, report)
    Tracking(platform).save_document(run.run_id, "gates", report)
    publish.publish_gates(platform.registered_model(loaded.name), report)
    return report


@task(name="register", task_run_name="register", **STEP)
@metered(rows=False)
def register(
    loaded: LoadedSpec,
    platform: Platform,
    run: TrainingRun,
    trained: TrainedModel,
    tables: Sequence[TableResult],
    gold: Snapshot,
    report: GateReport,
) -> tuple[Version, GateReport]:
    """A version, the last gate on it, and the alias `challenger` where all passed."""
    tags = version_tags(loaded, platform, run, tables, gold, trained)
    version = register_version(loaded, platform, run, trained, tags)
    if report.results[-1].gate != INTEGRATION:
        report = report.plus(integration_gate(platform, version, trained))
        Tracking(platform).save_document(run.run_id, "gates", report)
    publish.publish_gates(platform.registered_model(loaded.name), report)
    return settle(loaded, platform, run, version, report), report


@task(name="contract", task_run_name="contract", **STEP)
@metered(rows=False)
def contract(loaded: LoadedSpec, platform: Platform, results: Sequence[TableResult]) -> str:
    """All tables' findings as an artifact and a page; stops where one is broken."""
    publish.publish_contract(platform.registered_model(loaded.name), results)
    return check_contract(loaded, platform, results)


@task(name="open run", task_run_name="open run", **STEP)
@metered(rows=False)
def open_training(
    loaded: LoadedSpec,
    platform: Platform,
    gold: Snapshot,
    parts: Parts,
    silver: dict[str, Snapshot],
    as_of: datetime,
    force: bool,
) -> TrainingRun:
    """The MLflow run of this training, with what it was trained on."""
    run = open_run(loaded, platform, gold, parts, as_of, force)
    Tracking(platform).save_document(
        run.run_id, "snapshots", TrainingSnapshots(tables={**silver, FEATURES: gold})
    )
    return run


_SHOWN = ("calibration", "confusion", "importance", "residuals", "roc")
"""Plots that name no values of columns, and so nobody's."""


@task(name="report", task_run_name="report", **STEP)
@metered(rows=False)
def report(loaded: LoadedSpec, platform: Platform, run: TrainingRun, **found: Any) -> TrainOutcome:
    """Pages, evidence bundle and outcome."""
    outcome = conclude(loaded, platform, run, **found)
    links = {
        "training report": outcome.reports.training,
        "contract report": outcome.reports.contract,
        "MLflow run": f"{run.run_id} at {without_credentials(platform.mlflow.tracking_uri)}",
    }
    shown = {
        "training report": "report.html",
        "contract report": "contract.html",
        "model card": "model_card.md",
    }
    links |= run_links(platform, run.run_id, shown)
    name = platform.registered_model(loaded.name)
    publish.publish_links(name, links)
    for drawn, image in logged_plots(Tracking(platform), run.run_id).items():
        if drawn in _SHOWN:
            publish.publish_image(name, drawn, data_uri(image, "png"), f"{drawn} on the holdout")
    return outcome
