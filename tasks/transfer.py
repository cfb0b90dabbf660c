"""Transfer: a version of one environment becomes a challenger in another, with its lineage and its own judgement there.

The model's files are carried byte for byte, each checked against the digest that its training recorded; what the
line asks of a version's run later is carried with them. Every step finds what an earlier, interrupted run of it left.
"""

import json
import shutil
import tempfile
import time
from datetime import datetime
from pathlib import Path

from deployments import model_file
from deployments.declared import Declared
from deployments.errors import BadInputError, ContenderError
from platforms.platform import Platform
from tasks.cargo import RECEIVED, SENT, Cargo, environment_of, load_cargo
from tasks.champion import (
    ChampionMissing,
    ChampionRef,
    Standing,
    TrainingSnapshots,
    download_model,
    reference_snapshots,
    standing_champion,
)
from tasks.code_version import CodeVersion
from tasks.conclude import without_credentials
from tasks.evaluate import Evaluation, evaluate_challenger
from tasks.evidence import newest_bundle, read_manifest, verify_bundle, write_bundle
from tasks.gate import GateReport, judge
from tasks.outcome import TrainOutcome
from tasks.reference import carry_references
from tasks.register import (
    INTEGRATION,
    PROMOTED,
    PromotionRefusedError,
    Version,
    current,
    integration_gate,
    ledger_of,
    register_version,
    settle,
)
from tasks.tracking import TAG, Tracking
from tasks.train import TrainedModel, TrainingRun
from tasks.verdict import Verdict

TRANSFERRED_FROM, PASSED_APPROVERS = f"{TAG}transferred_from", f"{TAG}passed_approvers"

_REWRITTEN = frozenset({"trained.json", "snapshots.json", "gates.json", "evaluation.json"})
"""Documents that say where things are or whom they were compared with, and so say something else in the target."""

_AS_EVIDENCE = {"model.json": "trained.json"}
_VOUCHED_FOR = frozenset({"trained.json", "model.yaml", "features.sql"})
"""What a training's evidence calls otherwise than its run does, and what it must hold."""

_OF_THE_TARGET = frozenset(
    f"{TAG}{name}" for name in ("model_digest", "model_id", "state", "gate_report", "gate_verdict")
)


class Transfer(Declared):
    """One version taken from one environment into another, and what the gates say of it there."""

    model: str
    source: str
    target: str
    sent: ChampionRef
    version: Version
    gates: GateReport
    unchanged: bool = False


def transfer_version(source: Platform, target: Platform, model: str, number: str | None = None) -> Transfer:
    """Take a version of `source`, its champion by default, into `target`, and have the target judge it.

    Where its gates pass in the target it becomes challenger there. A version that was transferred before is
    answered as it stands, and judged again only where it was never champion and another champion serves by now.

    Raises:
        BadInputError: there is no such version.
        PromotionRefusedError: the target does not take it; says why.
        UntrustedModelError: a file is not what was recorded, or holds types that the target does not allow.
        BusyError: another transfer of this model is under way.
    """
    wanted = target.environment.takes_from
    if wanted is not None and environment_of(wanted).environment != source.environment:
        raise PromotionRefusedError(
            f"environment {target.environment.name!r} takes models from environment {wanted!r} as it is declared, "
            f"and {source.environment.name!r} is another"
        )
    if source.mlflow == target.mlflow and source.registered_model(model) == target.registered_model(model):
        raise BadInputError(
            f"environments {source.environment.name!r} and {target.environment.name!r} have one registry and one "
            f"name for {model}: there is nothing to transfer"
        )
    name = target.registered_model(model)
    with target.alone(f"transfer-{name}", f"another transfer of {name} is under way"):
        return _transfer(load_cargo(source, target, model, number), target)


def _transfer(cargo: Cargo, target: Platform) -> Transfer:
    standing = standing_champion(target, cargo.model)
    if isinstance(standing, ChampionMissing):
        raise PromotionRefusedError(
            f"{standing.reason}; give the alias `champion` to the version that serves"
        )
    run = _open(cargo, target)
    trained = _carry(cargo, target, run)
    version = register_version(cargo.loaded, target, run, trained, _tags(cargo, target))
    report = Tracking(target).document(run.run_id, "gates", GateReport)
    subject = f"{version.name}/{version.version}"
    ours = list(ledger_of(target).entries(cargo.model))
    received = any(entry.event == RECEIVED and entry.subject == subject for entry in ours)
    served = any(entry.event == PROMOTED and entry.subject == subject for entry in ours)
    # A version that failed may have failed for its surroundings: it is tried again.
    judged = report is not None and (
        served or (report.verdict is Verdict.PASS and report.champion == _number(standing))
    )
    if report is None or not judged:
        report = _judged(cargo, target, run, version, trained, standing)
    if not (received and judged):
        _write_sent(cargo, target, version)
        if not served:
            settle(cargo.loaded, target, run, version, report)
        _write_evidence(cargo, target, run, version)
        if not received:
            _write_received(cargo, target, run, version)
        Tracking(target).log(run.run_id, tags={f"{TAG}state": "done", f"{TAG}verdict": report.verdict.value})
        Tracking(target).finish(run.run_id)
    return Transfer(
        model=cargo.model,
        source=cargo.source.environment.name,
        target=target.environment.name,
        sent=cargo.ref,
        version=current(target, version),
        gates=report,
        unchanged=received and judged,
    )


def _number(standing: Standing) -> str | None:
    return standing.version if isinstance(standing, ChampionRef) else None


def _open(cargo: Cargo, target: Platform) -> TrainingRun:
    """The target's run of this transfer: the one that was begun before, or a new one."""
    tracking = Tracking(target)
    experiment = tracking.experiment(cargo.model)
    key = {f"{TAG}transfer": f"{cargo.name}/{cargo.ref.digest}"}
    found = tracking.find_run(experiment, key)
    run_id = (
        found.info.run_id
        if found is not None
        else tracking.create_run(
            experiment,
            name=f"{cargo.model} · from {cargo.source.environment.name} v{cargo.ref.version}",
            tags=key | _lineage(cargo, target) | {f"{TAG}kind": "transfer", f"{TAG}state": "open"},
        )
    )
    theirs = Tracking(cargo.source).client.get_run(cargo.ref.run_id).data
    return TrainingRun(
        run_id=run_id,
        experiment_id=experiment,
        key=cargo.tags.get(f"{TAG}training_key", ""),
        as_of=datetime.fromisoformat(theirs.params["as_of"]),
        started=time.time(),
        code=CodeVersion(
            commit=theirs.tags.get("mlflow.source.git.commit") or None,
            dirty=cargo.tags.get(f"{TAG}dirty") != "false",
            digest=theirs.params["code_digest"],
        ),
    )


def _lineage(cargo: Cargo, target: Platform) -> dict[str, str]:
    """Where it comes from, as tags of run and version."""
    return {
        f"{TAG}model": cargo.model,
        f"{TAG}environment": target.environment.name,
        TRANSFERRED_FROM: cargo.name,
        f"{TAG}transferred_run": cargo.ref.run_id,
        f"{TAG}transferred_tracking": without_credentials(cargo.source.mlflow.tracking_uri),
        f"{TAG}transferred_by": target.identity(),
        f"{TAG}author": cargo.author,
        "mlflow.source.name": "contender",
        "mlflow.source.git.commit": cargo.tags.get(f"{TAG}commit", ""),
    }


def _tags(cargo: Cargo, target: Platform) -> dict[str, str]:
    """The version's tags in the target: those of the source, but for what the target itself decides."""
    kept = {
        name: value
        for name, value in cargo.tags.items()
        if name.startswith(TAG) and name not in _OF_THE_TARGET
    }
    ours = {name: value for name, value in _lineage(cargo, target).items() if name.startswith(TAG)}
    return kept | ours | {PASSED_APPROVERS: json.dumps(cargo.approvers())}


def _carry(cargo: Cargo, target: Platform, run: TrainingRun) -> TrainedModel:
    """The model's files and its run's documents, in the target; `trained` is written last and says that all is there.

    Raises:
        UntrustedModelError: a file is not what was recorded, or holds types that the target does not allow.
    """
    tracking = Tracking(target)
    done = tracking.document(run.run_id, "trained", TrainedModel)
    if done is not None:
        return done
    with tempfile.TemporaryDirectory() as scratch:
        folder = _checked_model(cargo, target, Path(scratch) / "model")
        _carry_documents(cargo, tracking, run, Path(scratch) / "run")
        snapshots = TrainingSnapshots(tables=reference_snapshots(cargo.source, cargo.ref))
        tracking.save_document(
            run.run_id,
            "snapshots",
            carry_references(cargo.loaded.spec, cargo.source, target, snapshots.tables),
        )
        model_id = _logged_model(tracking, cargo, run)
        tracking.client.log_model_artifacts(model_id, str(folder))
    tracking.client.finalize_logged_model(model_id, "READY")
    theirs = Tracking(cargo.source).client.get_run(cargo.ref.run_id).data
    tracking.log(
        run.run_id,
        params=theirs.params,
        metrics=theirs.metrics,
        tags={f"{TAG}model_digest": cargo.ref.digest},
    )
    trained = cargo.trained.model_copy(
        update={"run_id": run.run_id, "model_id": model_id, "uri": f"models:/{model_id}"}
    )
    tracking.save_document(run.run_id, "trained", trained)
    return trained


def _checked_model(cargo: Cargo, target: Platform, folder: Path) -> Path:
    """The source's model files, fetched into `folder` and checked one by one."""
    folder.mkdir(parents=True)
    path = download_model(cargo.source, cargo.ref.model_id, folder)
    odd = sorted({name for name, _ in model_file.folder_digests(path).items() ^ cargo.trained.files.items()})
    if odd:
        raise model_file.UntrustedModelError(
            f"{cargo.ref.name} version {cargo.ref.version}: changed, missing or added since it was saved: "
            f"{', '.join(odd)}"
        )
    model_file.load_model(
        path / model_file.SKOPS_FILE,
        digest=cargo.ref.digest,
        allowed_packages=target.environment.allowed_packages,
    )
    return path


def _carry_documents(cargo: Cargo, tracking: Tracking, run: TrainingRun, folder: Path) -> None:
    """The files of the source's run; those that the target writes anew are kept under the source's name."""
    folder.mkdir(parents=True)
    fetched = Path(Tracking(cargo.source).client.download_artifacts(cargo.ref.run_id, "", str(folder)))
    _require_as_in_evidence(cargo, fetched)
    beside = fetched / f"from-{cargo.source.environment.name}"
    beside.mkdir(exist_ok=True)
    for name in _REWRITTEN:
        if (fetched / name).is_file():
            shutil.move(fetched / name, beside / name)
    tracking.client.log_artifacts(run.run_id, str(fetched))


def _require_as_in_evidence(cargo: Cargo, fetched: Path) -> None:
    """Refuse documents that are not those of the version's evidence, for which the source's ledger vouches.

    The digests of all files of the model stand in one of them, and the spec and the query are others.
    """
    what = f"{cargo.ref.name} version {cargo.ref.version} is not transferred"
    bundle = newest_bundle(cargo.source, cargo.model, cargo.ref.version)
    if bundle is None:
        raise PromotionRefusedError(
            f"{what}: environment {cargo.source.environment.name!r} has no evidence of it"
        )
    problems = verify_bundle(cargo.source, bundle)
    if problems:
        raise PromotionRefusedError(f"{what}: its evidence {bundle} is not as it was written: {problems[0]}")
    said = read_manifest(bundle).files
    said = {_AS_EVIDENCE.get(name, name): digest for name, digest in said.items()}
    found = {
        name: digest
        for name, digest in model_file.folder_digests(fetched).items()
        if name in said or name in _VOUCHED_FOR
    }
    odd = sorted(name for name, digest in found.items() if said.get(name) != digest)
    if odd:
        raise model_file.UntrustedModelError(
            f"{what}: its run keeps other documents than its evidence: {', '.join(odd)}"
        )


def _logged_model(tracking: Tracking, cargo: Cargo, run: TrainingRun) -> str:
    """The id of the run's logged model: the one that an interrupted transfer began, where there is one."""
    found = tracking.client.search_logged_models(
        [run.experiment_id], filter_string=f"source_run_id = '{run.run_id}'", max_results=1
    )
    if found:
        return str(found[0].model_id)
    made = tracking.client.create_logged_model(
        run.experiment_id,
        name=cargo.model,
        source_run_id=run.run_id,
        model_type=cargo.trained.estimator,
    )
    return str(made.model_id)


# The target's judgement -------------------------------------------------------------------------------------


def _judged(
    cargo: Cargo,
    target: Platform,
    run: TrainingRun,
    version: Version,
    trained: TrainedModel,
    standing: Standing,
) -> GateReport:
    """What the gates say of the version in the target: the source's report where it holds there, else a new one.

    It holds where the target has no champion, or has the very model file that the version was compared with. The
    artifact itself is always tried where it arrived.
    """
    tracking = Tracking(target)
    if _holds(cargo, standing):
        report = cargo.gates.model_copy(
            update={
                "champion": _number(standing),
                "results": tuple(result for result in cargo.gates.results if result.gate != INTEGRATION),
            }
        )
        evaluation = Tracking(cargo.source).document(cargo.ref.run_id, "evaluation", Evaluation)
        if evaluation is not None:
            tracking.save_document(run.run_id, "evaluation", _renamed(evaluation, standing))
    else:
        report = judge(cargo.loaded.spec.gates, _evaluated(cargo, target, run, trained, standing))
    report = report.plus(integration_gate(target, version, trained))
    tracking.save_document(run.run_id, "gates", report)
    return report


def _holds(cargo: Cargo, standing: Standing) -> bool:
    if not isinstance(standing, ChampionRef):
        return True
    return cargo.digest_of(cargo.gates.champion) == standing.digest


def _renamed(evaluation: Evaluation, standing: Standing) -> Evaluation:
    """The source's measurements, with the champion called by its number in the target."""
    number, compared = _number(standing), evaluation.comparison
    if compared is not None and number is not None:
        compared = compared.model_copy(update={"version": number})
    return evaluation.model_copy(update={"champion": number, "comparison": compared})


def _evaluated(
    cargo: Cargo, target: Platform, run: TrainingRun, trained: TrainedModel, standing: Standing
) -> Evaluation:
    """The version measured again, beside the target's champion, on the rows that its training kept for that.

    Raises:
        PromotionRefusedError: those rows cannot be had any more.
    """
    outcome = Tracking(cargo.source).document(cargo.ref.run_id, "outcome", TrainOutcome)
    what = (
        f"{cargo.ref.name} version {cargo.ref.version} is not transferred: it was not compared with the champion "
        f"of environment {target.environment.name!r}"
    )
    if outcome is None:
        raise PromotionRefusedError(f"{what}, and its run does not say on which rows it could be")
    parts = outcome.parts
    try:
        return evaluate_challenger(
            cargo.loaded, target, run, trained, parts.development, parts.holdout, standing
        )
    except (model_file.UntrustedModelError, PromotionRefusedError):
        raise
    except ContenderError as error:
        raise PromotionRefusedError(
            f"{what}, and the rows on which it could be cannot be had ({error})"
        ) from None


# What is written down ---------------------------------------------------------------------------------------


def _write_sent(cargo: Cargo, target: Platform, version: Version) -> None:
    place = f"{target.environment.name}/{version.name}/{version.version}"
    ledger_of(cargo.source).append(
        SENT,
        model=cargo.model,
        subject=cargo.subject,
        details={"to": place, "model_digest": cargo.ref.digest},
        key=f"sent/{cargo.subject}/{cargo.ref.digest[:16]}/{place}",
        actor=cargo.source.identity(),
    )


def _write_received(cargo: Cargo, target: Platform, run: TrainingRun, version: Version) -> None:
    subject = f"{version.name}/{version.version}"
    ledger_of(target).append(
        RECEIVED,
        model=cargo.model,
        subject=subject,
        details={
            "from": cargo.name,
            "tracking": without_credentials(cargo.source.mlflow.tracking_uri),
            "source_run_id": cargo.ref.run_id,
            "run_id": run.run_id,
            "model_digest": cargo.ref.digest,
            "gate_report": cargo.gates.digest,
            "author": cargo.author,
            "passed": cargo.passed.hash if cargo.passed else None,
            "passed_approvers": cargo.approvers(),
        },
        key=f"received/{subject}/{cargo.ref.digest[:16]}",
        actor=target.identity(),
    )


def _write_evidence(cargo: Cargo, target: Platform, run: TrainingRun, version: Version) -> None:
    """The target's bundle of the version: the documents of its run, its source's among them, and no data."""
    client = Tracking(target).client
    with tempfile.TemporaryDirectory() as scratch:
        fetched = Path(client.download_artifacts(run.run_id, "", scratch))
        documents: dict[str, str | bytes] = {
            str(path.relative_to(fetched)): path.read_bytes()
            for path in sorted(fetched.rglob("*"))
            if path.is_file() and path.suffix != ".parquet"
        }
    card = documents.get("model_card.md")
    if isinstance(card, bytes):
        client.update_model_version(version.name, version.version, card.decode())
    write_bundle(target, cargo.model, version, documents)
