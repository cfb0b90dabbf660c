"""Conclude: what a training leaves behind for people: pages, evidence, and the outcome a re-run finds."""

import re
import tempfile
from collections.abc import Sequence
from pathlib import Path

from deployments.spec import LoadedSpec
from platforms.platform import Platform
from platforms.snapshot import Snapshot
from tasks.champion import ChampionMissing, NoChampionYet, Standing, version_ref
from tasks.code_version import code_version, environment_lock
from tasks.evaluate import Evaluation
from tasks.evidence import as_json, write_bundle
from tasks.gate import GateReport
from tasks.model_card import model_card
from tasks.outcome import Reports, TrainOutcome, contract_digest
from tasks.register import Version, current
from tasks.report import contract_page, training_page
from tasks.split import Parts
from tasks.tracking import TAG, Tracking
from tasks.train import Leaderboard, TrainedModel, TrainingRun, training_key
from tasks.validate import TableResult, require_contract
from tasks.verdict import Verdict, overall


def find_outcome(
    loaded: LoadedSpec, platform: Platform, gold: Snapshot, standing: Standing
) -> TrainOutcome | None:
    """The outcome of an earlier, finished run of the same training, if it still holds.

    It holds while nothing it was decided against has changed: its version serves, or the champion it was
    compared with (or the absence of one) still stands.
    """
    tracking = Tracking(platform)
    key = training_key(loaded, platform, gold, code_version())
    done = {f"{TAG}training_key": key, f"{TAG}state": "done"}
    found = tracking.find_run(tracking.experiment(loaded.name), done)
    outcome = tracking.document(found.info.run_id, "outcome", TrainOutcome) if found else None
    if outcome is None or not _holds(outcome, platform, standing):
        return None
    version = outcome.version and current(platform, outcome.version)
    return outcome.model_copy(update={"version": version, "unchanged": True})


def _holds(outcome: TrainOutcome, platform: Platform, standing: Standing) -> bool:
    version = outcome.version
    if version is not None:
        registered = version_ref(platform, outcome.model, version.version)
        if isinstance(registered, ChampionMissing) or registered.run_id != version.run_id:
            return False  # somebody took it out of the registry
    match standing:
        case NoChampionYet():
            return outcome.evaluation.first_version
        case ChampionMissing():
            return False
    serves = version is not None and (version.version, version.model_digest) == (
        standing.version,
        standing.digest,
    )
    return serves or outcome.evaluation.champion == standing.version


def write_page(platform: Platform, model: str, name: str, page: str) -> str:
    """Write a page among the environment's reports, whole or not at all; returns its path."""
    folder = platform.folder("reports") / model
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.html"
    staged = path.with_suffix(".partial")
    staged.write_text(page, encoding="utf-8")
    staged.replace(path)
    return str(path)


def check_contract(loaded: LoadedSpec, platform: Platform, results: Sequence[TableResult]) -> str:
    """Write the contract page; stop where a contract is broken, with an MLflow run that says so.

    Raises:
        ContractBroken: names tables, checks and counts, and the page.
    """
    page = contract_page(loaded, results)
    path = write_page(platform, loaded.name, "contract", page)
    if overall([result.verdict for result in results]) is not Verdict.PASS:
        tracking = Tracking(platform)
        run = tracking.create_run(
            tracking.experiment(loaded.name), f"{loaded.name} · contract broken", {f"{TAG}kind": "validation"}
        )
        log_contract(platform, run, page, results)
        tracking.finish(run, "FAILED")
    require_contract(results, report=path)
    return path


def log_contract(platform: Platform, run: str, page: str, results: Sequence[TableResult]) -> None:
    """The contract's findings as metrics, tags and a page of one MLflow run."""
    tracking = Tracking(platform)
    tracking.log(
        run,
        metrics={f"contract_rows_{result.table}": result.rows for result in results}
        | {f"contract_invalid_rows_{result.table}": result.invalid_rows for result in results},
        tags={f"{TAG}contract": overall([result.verdict for result in results]).value},
    )
    tracking.client.log_text(run, page, "contract.html")


def version_tags(
    loaded: LoadedSpec,
    platform: Platform,
    run: TrainingRun,
    tables: Sequence[TableResult],
    gold: Snapshot,
    trained: TrainedModel,
) -> dict[str, str]:
    """What the registry says of a version: where its data, code and answers to questions are."""
    governance = loaded.spec.governance
    return {
        f"{TAG}model": loaded.name,
        f"{TAG}environment": platform.environment.name,
        f"{TAG}snapshot": f"{gold.table} v{gold.version}",
        f"{TAG}snapshot_digest": gold.digest,
        f"{TAG}contract": overall([table.verdict for table in tables]).value,
        f"{TAG}contract_digest": contract_digest(tuple(tables)),
        f"{TAG}training_key": run.key,
        f"{TAG}commit": run.code.commit or "none",
        f"{TAG}dirty": str(run.code.dirty).lower(),
        f"{TAG}candidate": trained.candidate,
        f"{TAG}owner": governance.owner,
        f"{TAG}risk": governance.risk,
        f"{TAG}risk_note": governance.risk_note or "none",
        f"{TAG}author": platform.identity(),
    }


def conclude(
    loaded: LoadedSpec,
    platform: Platform,
    run: TrainingRun,
    *,
    tables: Sequence[TableResult],
    gold: Snapshot,
    parts: Parts,
    leaderboard: Leaderboard,
    trained: TrainedModel,
    evaluation: Evaluation,
    gates: GateReport,
    version: Version | None,
) -> TrainOutcome:
    """Write the pages and, for a version, the evidence bundle; record the outcome and close the run."""
    tracking = Tracking(platform)
    contract = contract_page(loaded, tables)
    training = training_page(
        loaded,
        tables=tables,
        parts=parts,
        leaderboard=leaderboard,
        trained=trained,
        evaluation=evaluation,
        gates=gates,
        plots=logged_plots(tracking, run.run_id),
        version=version.version if version else None,
        run=run,
        mlflow_hint=without_credentials(platform.mlflow.tracking_uri),
    )
    card = model_card(loaded, trained, evaluation, gates, parts, run)
    log_contract(platform, run.run_id, contract, tables)
    tracking.client.log_text(run.run_id, training, "report.html")
    tracking.client.log_text(run.run_id, card, "model_card.md")
    bundle = None
    if version is not None:
        tracking.client.update_model_version(version.name, version.version, card)
        bundle = write_bundle(
            platform,
            loaded.name,
            version,
            {
                "contract.json": as_json([table.model_dump(mode="json") for table in tables]),
                "contract.html": contract,
                "data.json": as_json(
                    {"gold": gold.model_dump(mode="json"), "parts": parts.model_dump(mode="json")}
                ),
                "code.json": as_json(run.code.model_dump(mode="json")),
                "environment.txt": environment_lock(),
                "model.yaml": loaded.path.read_text(encoding="utf-8"),
                "leaderboard.json": leaderboard.model_dump_json(indent=1),
                "model.json": trained.model_dump_json(indent=1),
                "evaluation.json": evaluation.model_dump_json(indent=1),
                "gates.json": gates.model_dump_json(indent=1),
                "report.html": training,
                "model_card.md": card,
                **({"features.sql": loaded.sql} if loaded.sql else {}),
            },
        )
    name = f"training-v{version.version}" if version else f"training-{run.run_id[:8]}"
    outcome = TrainOutcome(
        model=loaded.name,
        environment=platform.environment.name,
        run_id=run.run_id,
        key=run.key,
        as_of=run.as_of,
        tables=tuple(tables),
        gold=gold,
        parts=parts,
        leaderboard=leaderboard,
        trained=trained,
        evaluation=evaluation,
        gates=gates,
        version=version,
        reports=Reports(
            contract=write_page(platform, loaded.name, "contract", contract),
            training=write_page(platform, loaded.name, name, training),
            evidence=str(bundle) if bundle else None,
        ),
    )
    tracking.save_document(run.run_id, "outcome", outcome)
    tracking.log(
        run.run_id,
        tags={f"{TAG}state": "done", f"{TAG}verdict": gates.verdict.value, f"{TAG}gate_report": gates.digest},
    )
    tracking.finish(run.run_id)
    return outcome


def without_credentials(uri: str) -> str:
    """An address without the user, password and options that may stand in it."""
    scheme, separator, rest = uri.partition("://")
    if not separator:
        return uri
    # Not by urlsplit: a database password may hold slashes, brackets and question marks.
    return f"{scheme}://{re.sub(r'^[^:/@]*(:.*)?@', '', rest).partition('?')[0]}"


def logged_plots(tracking: Tracking, run_id: str) -> dict[str, bytes]:
    """The plots that evaluation logged, as PNG bytes by name."""
    with tempfile.TemporaryDirectory() as folder:
        names = [item.path for item in tracking.client.list_artifacts(run_id, "plots")]
        paths = [Path(tracking.client.download_artifacts(run_id, name, folder)) for name in names]
        return {path.stem: path.read_bytes() for path in paths}
