"""Register: a version in the registry for a challenger whose gates passed, and the aliases that say who serves.

A version is made before the last gate, which loads it in a fresh process; only then does it become `challenger`.
Every function may be run again after a crash at any point: it finds what stands and does the rest.
"""

import json
import math
import os
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

from deployments.declared import Declared
from deployments.errors import ContenderError
from deployments.spec import LoadedSpec
from platforms.platform import Platform
from tasks.champion import (
    CHALLENGER,
    CHAMPION,
    PREVIOUS,
    ChampionMissing,
    ChampionRef,
    NoChampionYet,
    load_version,
    standing_champion,
    version_ref,
)
from tasks.code_version import ROOT
from tasks.gate import GateReport, GateResult
from tasks.ledger import Ledger
from tasks.tracking import TAG, Tracking
from tasks.train import TrainedModel, TrainingRun
from tasks.verdict import Verdict

INTEGRATION = "integration"
_TOLERANCE = 1e-9
_FRESH_PROCESS_SECONDS = 180


class PromotionRefusedError(ContenderError):
    """A version that may not become champion; the message says what is missing."""

    exit_code = 3


class Version(Declared):
    """A registered version of a model."""

    name: str
    version: str
    run_id: str
    model_digest: str
    aliases: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.name} version {self.version}"


def ledger_of(platform: Platform) -> Ledger:
    """The environment's ledger."""
    return Ledger(platform.folder("ledger") / "ledger.jsonl")


def register_version(
    loaded: LoadedSpec,
    platform: Platform,
    run: TrainingRun,
    trained: TrainedModel,
    tags: Mapping[str, str],
) -> Version:
    """A version for this run's model, without an alias; the one that stands, where it was made before."""
    from mlflow.exceptions import MlflowException

    client, name = Tracking(platform).client, platform.registered_model(loaded.name)
    try:
        client.create_registered_model(name, description=loaded.spec.governance.purpose)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    standing = client.search_model_versions(f"name = '{name}' and run_id = '{run.run_id}'")
    if standing:
        number = str(standing[0].version)
    else:
        made = client.create_model_version(
            name,
            source=client.get_logged_model(trained.model_id).artifact_location,
            run_id=run.run_id,
            model_id=trained.model_id,
            tags={
                f"{TAG}model_digest": trained.digest,
                f"{TAG}model_id": trained.model_id,
                f"{TAG}state": "registered",
            }
            | dict(tags),
        )
        number = str(made.version)
    return Version(name=name, version=number, run_id=run.run_id, model_digest=trained.digest)


def integration_gate(platform: Platform, version: Version, trained: TrainedModel) -> GateResult:
    """Load the registered artifact in a fresh process, and ask it the signature's input example.

    It must give the numbers that the model in memory gave when it was trained, through our loader and through
    MLflow's own.
    """
    addresses = platform.mlflow
    question = {
        "tracking_uri": addresses.tracking_uri,
        "registry_uri": addresses.registry_uri,
        "name": version.name,
        "version": version.version,
        "digest": trained.digest,
        "allowed_packages": list(platform.environment.allowed_packages),
    }
    try:
        asked = subprocess.run(
            [sys.executable, "-m", "tasks.fresh_load"],
            input=json.dumps(question),
            capture_output=True,
            text=True,
            check=False,
            timeout=_FRESH_PROCESS_SECONDS,
            cwd=ROOT,
            env={**os.environ, "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false"},
        )
    except subprocess.TimeoutExpired:
        return _integration(
            Verdict.FAIL, None, f"a fresh process did not answer within {_FRESH_PROCESS_SECONDS} s"
        )
    if asked.returncode != 0:
        said = asked.stderr.strip().splitlines()
        return _integration(
            Verdict.FAIL,
            None,
            f"a fresh process could not use the artifact: {said[-1] if said else asked.returncode}",
        )
    answer = json.loads(asked.stdout.strip().splitlines()[-1])
    return compare_answers(trained, answer["scores"], answer["predictions"])


def compare_answers(trained: TrainedModel, scores: list[float], predictions: list[Any]) -> GateResult:
    """What a fresh process answered against what the model said when it was trained."""
    if len(scores) != len(trained.expected) or len(predictions) != len(trained.expected_predictions):
        return _integration(Verdict.FAIL, None, f"{len(scores)} answers for {len(trained.expected)} rows")
    furthest = max(abs(a - b) / max(1.0, abs(b)) for a, b in zip(scores, trained.expected, strict=True))
    if math.isnan(furthest):
        return _integration(Verdict.FAIL, None, "the fresh process answered NaN")
    same = all(_same(a, b) for a, b in zip(predictions, trained.expected_predictions, strict=True))
    if not same:
        return _integration(Verdict.FAIL, furthest, "MLflow's own loader gives other predictions")
    verdict = Verdict.PASS if furthest <= _TOLERANCE else Verdict.FAIL
    reason = f"largest difference over {len(scores)} rows, loaded from the registry in a fresh process"
    return _integration(verdict, furthest, reason)


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, float) or isinstance(b, float):
        return math.isclose(float(a), float(b), rel_tol=_TOLERANCE, abs_tol=_TOLERANCE)
    return str(a) == str(b)


def _integration(verdict: Verdict, value: float | None, reason: str) -> GateResult:
    return GateResult(gate=INTEGRATION, verdict=verdict, value=value, threshold=_TOLERANCE, reason=reason)


def settle(
    loaded: LoadedSpec, platform: Platform, run: TrainingRun, version: Version, report: GateReport
) -> Version:
    """Make the version `challenger` where every gate passed, else mark it rejected; both are in the ledger."""
    client = Tracking(platform).client
    passed = report.verdict is Verdict.PASS
    client.set_model_version_tag(version.name, version.version, f"{TAG}gate_report", report.digest)
    client.set_model_version_tag(version.name, version.version, f"{TAG}gate_verdict", report.verdict.value)
    client.set_model_version_tag(
        version.name, version.version, f"{TAG}state", "challenger" if passed else "rejected"
    )
    if passed:
        serving = standing_champion(platform, loaded.name)
        if not (isinstance(serving, ChampionRef) and serving.version == version.version):
            client.set_registered_model_alias(version.name, CHALLENGER, version.version)
    ledger_of(platform).append(
        "model.registered" if passed else "model.rejected",
        model=loaded.name,
        subject=f"{version.name}/{version.version}",
        details={
            "run_id": run.run_id,
            "model_digest": version.model_digest,
            "gate_report": report.digest,
            "verdict": report.verdict.value,
            "refused_by": refusals(report),
        },
        key=f"settled/{version.name}/{version.version}",
        actor=platform.identity(),
    )
    return current(platform, version)


def record_refusal(loaded: LoadedSpec, platform: Platform, run: TrainingRun, report: GateReport) -> None:
    """Write into the ledger that gates refused a challenger before it was registered."""
    ledger_of(platform).append(
        "model.refused",
        model=loaded.name,
        subject=run.run_id,
        details={
            "run_id": run.run_id,
            "model_digest": report.model_digest,
            "gate_report": report.digest,
            "verdict": report.verdict.value,
            "refused_by": refusals(report),
        },
        key=f"refused/{run.run_id}",
        actor=platform.identity(),
    )


def refusals(report: GateReport) -> list[str]:
    """The gates that did not pass, with their verdicts."""
    return [
        f"{result.gate}: {result.verdict}" for result in report.results if result.verdict is not Verdict.PASS
    ]


def current(platform: Platform, version: Version) -> Version:
    """The version with the aliases it has now."""
    registered = Tracking(platform).client.get_registered_model(version.name)
    held = sorted(
        alias for alias, number in dict(registered.aliases).items() if str(number) == version.version
    )
    return version.model_copy(update={"aliases": tuple(held)})


def challenger_of(platform: Platform, model: str) -> ChampionRef:
    """The version that is proposed.

    Raises:
        PromotionRefusedError: there is none, or it was not registered by Contender.
    """
    from mlflow.exceptions import MlflowException

    name = platform.registered_model(model)
    try:
        found = Tracking(platform).client.get_model_version_by_alias(name, CHALLENGER)
    except MlflowException:
        raise PromotionRefusedError(f"{name} has no challenger; train one first") from None
    ref = version_ref(platform, model, str(found.version))
    if isinstance(ref, ChampionMissing):
        raise PromotionRefusedError(ref.reason)
    return ref


def promote(platform: Platform, model: str, ref: ChampionRef) -> Version:
    """Make a version champion, and the champion that stood `previous`.

    Refuses unless the version's gates passed, its model file is what the gates saw, and the environment asks
    for no approvals. Run again after a crash, it finishes what it began.

    Raises:
        PromotionRefusedError: says what is missing.
    """
    client = Tracking(platform).client
    _require_promotable(platform, client, ref)
    standing = standing_champion(platform, model)
    if isinstance(standing, ChampionMissing):
        raise PromotionRefusedError(f"{ref.name}: {standing.reason}; name the champion by its alias first")
    before = None if isinstance(standing, NoChampionYet) else standing.version
    ledger = ledger_of(platform)
    promoted = [entry for entry in ledger.entries(model) if entry.event == "model.promoted"]
    place = promoted[-1].seq if promoted else 0
    finished = (
        bool(promoted) and promoted[-1].subject == f"{ref.name}/{ref.version}" and before == ref.version
    )
    if not finished:
        details = {"version": ref.version, "model_digest": ref.digest}
        begun = ledger.append(
            "promotion.started",
            model=model,
            subject=f"{ref.name}/{ref.version}",
            details=details,
            key=f"promotion/{ref.name}/{ref.version}/{place}",
            actor=platform.identity(),
        )
        client.set_registered_model_tag(ref.name, f"{TAG}promoted", "true")
        if before is not None and before != ref.version:
            client.set_registered_model_alias(ref.name, PREVIOUS, before)
        client.set_registered_model_alias(ref.name, CHAMPION, ref.version)
        client.set_model_version_tag(ref.name, ref.version, f"{TAG}state", "champion")
        ledger.append(
            "model.promoted",
            model=model,
            subject=f"{ref.name}/{ref.version}",
            details=details | {"started": begun.seq},
            key=f"promoted/{ref.name}/{ref.version}/{place}",
            actor=platform.identity(),
        )
    if dict(client.get_registered_model(ref.name).aliases).get(CHALLENGER) == ref.version:
        client.delete_registered_model_alias(ref.name, CHALLENGER)
    return current(
        platform, Version(name=ref.name, version=ref.version, run_id=ref.run_id, model_digest=ref.digest)
    )


def _require_promotable(platform: Platform, client: Any, ref: ChampionRef) -> None:
    wanted = platform.environment.approvals
    if wanted:
        raise PromotionRefusedError(
            f"{ref.name} version {ref.version} is not promoted: environment {platform.environment.name!r} asks for "
            f"signed approvals by {', '.join(wanted)}, and none stands"
        )
    found = client.get_model_version(ref.name, ref.version)
    verdict = found.tags.get(f"{TAG}gate_verdict")
    if verdict != Verdict.PASS.value:
        raise PromotionRefusedError(
            f"{ref.name} version {ref.version} is not promoted: its gates say {verdict or 'nothing'}"
        )
    load_version(platform, ref)
