"""Register: a version in the registry for a challenger whose gates passed, and the aliases that say who serves.

A version is made before the last gate, which loads it in a fresh process; only then does it become `challenger`.
Every function may be run again after a crash at any point: it finds what stands and does the rest.
"""

import json
import math
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
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
    trained_spec,
    version_ref,
)
from tasks.code_version import ROOT
from tasks.demands import pin
from tasks.gate import GateReport, GateResult
from tasks.ledger import Entry, Ledger
from tasks.tracking import TAG, Tracking
from tasks.train import TrainedModel, TrainingRun
from tasks.verdict import Verdict

INTEGRATION = "integration"
REGISTERED, REJECTED, PROMOTED = "model.registered", "model.rejected", "model.promoted"
RESTORED, RETRACTED = "model.restored", "model.retracted"
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
    ours = {f"{TAG}model_digest": trained.digest, f"{TAG}model_id": trained.model_id}
    standing = [
        found
        for found in client.search_model_versions(f"name = '{name}' and run_id = '{run.run_id}'")
        # Somebody else may have registered the same run by hand.
        if ours.items() <= found.tags.items()
    ]
    if standing:
        number = str(standing[0].version)
    else:
        made = client.create_model_version(
            name,
            source=client.get_logged_model(trained.model_id).artifact_location,
            run_id=run.run_id,
            model_id=trained.model_id,
            tags=dict(tags) | ours | {f"{TAG}state": "registered"},
        )
        number = str(made.version)
    return Version(name=name, version=number, run_id=run.run_id, model_digest=trained.digest)


def integration_gate(platform: Platform, version: Version, trained: TrainedModel) -> GateResult:
    """Load the registered artifact in a fresh process, and ask it the signature's input example.

    Every file of it must be as it was saved, and it must give the numbers that the model in memory gave when it
    was trained, through our loader and through MLflow's own.
    """
    addresses = platform.mlflow
    ref = ChampionRef(
        name=version.name,
        version=version.version,
        run_id=version.run_id,
        model_id=trained.model_id,
        digest=trained.digest,
    )
    question = {
        "tracking_uri": addresses.tracking_uri,
        "registry_uri": addresses.registry_uri,
        "name": version.name,
        "version": version.version,
        "digest": trained.digest,
        "files": trained.files,
        "target": trained_spec(platform, ref).target.model_dump(mode="json"),
        "allowed_packages": list(platform.environment.allowed_packages),
    }
    try:
        asked = subprocess.run(
            [sys.executable, "-P", "-m", "tasks.fresh_load"],
            input=json.dumps(question),
            capture_output=True,
            text=True,
            check=False,
            timeout=_FRESH_PROCESS_SECONDS,
            # In the same directory, so that relative addresses mean the same, and with the same modules.
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join(
                    str(Path(place).absolute()) for place in [str(ROOT), *sys.path]
                ),
                "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
            },
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
    try:
        answer = json.loads(asked.stdout.strip().rpartition("\n")[2])
        scores, predictions = answer["scores"], answer["predictions"]
    except (ValueError, KeyError, TypeError):
        return _integration(Verdict.FAIL, None, "a fresh process gave an answer that cannot be read")
    return compare_answers(trained, scores, predictions)


def compare_answers(trained: TrainedModel, scores: list[float], predictions: list[Any]) -> GateResult:
    """What a fresh process answered against what the model said when it was trained."""
    rows = len(trained.expected)
    if not rows:
        return _integration(Verdict.INCONCLUSIVE, None, "no answers were recorded when the model was trained")
    if not len(scores) == len(predictions) == len(trained.expected_predictions) == rows:
        answered = f"{len(scores)} scores and {len(predictions)} predictions for {rows} rows"
        return _integration(Verdict.FAIL, None, f"the fresh process answered {answered}")
    if not all(math.isfinite(score) for score in (*scores, *trained.expected)):
        return _integration(Verdict.FAIL, None, "the model answers with what is not a number")
    furthest = max(abs(a - b) / max(1.0, abs(b)) for a, b in zip(scores, trained.expected, strict=True))
    same = all(_same(a, b) for a, b in zip(predictions, trained.expected_predictions, strict=True))
    if not same:
        return _integration(Verdict.FAIL, furthest, "MLflow's own loader gives other predictions")
    verdict = Verdict.PASS if furthest <= _TOLERANCE else Verdict.FAIL
    reason = f"largest difference over {len(scores)} rows, loaded from the registry in a fresh process"
    return _integration(verdict, furthest, reason)


def _same(a: Any, b: Any) -> bool:
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in (a, b))
    return math.isclose(a, b, rel_tol=_TOLERANCE, abs_tol=_TOLERANCE) if numbers else str(a) == str(b)


def _integration(verdict: Verdict, value: float | None, reason: str) -> GateResult:
    return GateResult(gate=INTEGRATION, verdict=verdict, value=value, threshold=_TOLERANCE, reason=reason)


def settle(
    loaded: LoadedSpec, platform: Platform, run: TrainingRun, version: Version, report: GateReport
) -> Version:
    """Make the version `challenger` where every gate passed, else mark it rejected; both are in the ledger.

    Raises:
        ContenderError: the report is of another model, or lacks the integration gate.
    """
    if report.model_digest != version.model_digest:
        raise ContenderError(f"{version}: the gate report is of another model file than the version's")
    if all(result.gate != INTEGRATION for result in report.results):
        raise ContenderError(f"{version}: the gate report lacks the integration gate")
    client, passed = Tracking(platform).client, report.verdict is Verdict.PASS
    held = current(platform, version).aliases
    serves = CHAMPION in held
    state = "champion" if serves else "challenger" if passed else "rejected"
    for name, value in (
        ("gate_report", report.digest),
        ("gate_verdict", report.verdict.value),
        ("state", state),
    ):
        client.set_model_version_tag(version.name, version.version, f"{TAG}{name}", value)
    if passed and not serves:
        client.set_registered_model_alias(version.name, CHALLENGER, version.version)
    elif not passed and CHALLENGER in held:
        client.delete_registered_model_alias(version.name, CHALLENGER)
    ledger_of(platform).append(
        REGISTERED if passed else REJECTED,
        model=loaded.name,
        subject=_subject(version),
        details={
            "run_id": run.run_id,
            "model_digest": version.model_digest,
            "gate_report": report.digest,
            "verdict": report.verdict.value,
            "refused_by": refusals(report),
            "champion": report.champion,
        },
        # Judged again, as against another champion, it is another decision.
        key=f"settled/{version.name}/{version.version}/{run.run_id}/{report.digest}",
        actor=platform.identity(),
    )
    return current(platform, version)


def _subject(version: Version | ChampionRef) -> str:
    """What the ledger calls a version."""
    return f"{version.name}/{version.version}"


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
            "champion": report.champion,
        },
        key=f"refused/{run.run_id}/{report.digest}",
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
    except MlflowException as error:
        if error.error_code not in {"RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"}:
            raise
        raise PromotionRefusedError(f"{name} has no challenger; train one first") from None
    ref = version_ref(platform, model, str(found.version))
    if isinstance(ref, ChampionMissing):
        raise PromotionRefusedError(ref.reason)
    return ref


def promote(platform: Platform, model: str, ref: ChampionRef, *, approvals: Sequence[str] = ()) -> Version:
    """Make a version champion, and the champion that stood `previous`.

    Refuses unless the ledger says that the version's gates passed, against the champion that stands now (or the
    version was champion before), and its model file is what the gates saw. Where the environment asks for
    approvals, a release is the only way, and gives the digests of those that it verified. Run again after a
    crash, it finishes what it began.

    Raises:
        PromotionRefusedError: says what is missing.
        UntrustedModelError: the model file is not what was recorded.
        BusyError: another promotion of this model is under way.
    """
    with platform.alone(f"promotion-{ref.name}", f"another promotion of {ref.name} is under way"):
        return _promote(platform, model, ref, approvals)


def _promote(platform: Platform, model: str, ref: ChampionRef, approvals: Sequence[str]) -> Version:
    ledger = ledger_of(platform)
    history = _history(platform, model, ref)
    require_promotable(platform, model, ref, history, approvals)
    standing = standing_champion(platform, model)
    if isinstance(standing, ChampionMissing):
        raise PromotionRefusedError(
            f"{standing.reason}; give the alias `champion` to the version that serves"
        )
    before = None if isinstance(standing, NoChampionYet) else standing.version
    promotions = [entry for entry in history if entry.event == PROMOTED]
    require_compared(ref, before, history)
    last = promotions[-1] if promotions else None
    if last is None or last.subject != _subject(ref) or before != ref.version:
        # Named by the promotion it follows: a crash and a second try are one step, going back and forth is not.
        step = f"{_subject(ref)}/{ref.digest[:16]}/{last.seq if last else 0}"
        details = {"version": ref.version, "model_digest": ref.digest, "replaces": before} | {
            "approvals": list(approvals)
        }
        pin(ledger, platform.environment, actor=platform.identity())
        begun = _begun(history, f"promotion/{step}") or ledger.append(
            "promotion.started",
            model=model,
            subject=_subject(ref),
            details=details,
            key=f"promotion/{step}",
            actor=platform.identity(),
        )
        _move_aliases(platform, ref, before)
        ledger.append(
            PROMOTED,
            model=model,
            subject=_subject(ref),
            details=begun.details | {"started": begun.seq},
            key=f"promoted/{step}",
            actor=platform.identity(),
        )
    promoted = Version(name=ref.name, version=ref.version, run_id=ref.run_id, model_digest=ref.digest)
    if CHALLENGER in current(platform, promoted).aliases:
        Tracking(platform).client.delete_registered_model_alias(ref.name, CHALLENGER)
    return current(platform, promoted)


def restore(platform: Platform, model: str, ref: ChampionRef, *, reason: str, key: str) -> Version:
    """Make a version that was champion before champion again; the one that stood is no `previous` afterwards.

    It needs no approval. `previous` becomes the champion before the one restored, where the ledger knows of one,
    so that whoever goes back twice never meets the version that was left. Run again under the same `key`, which
    names the step, it finishes what it began.

    Raises:
        PromotionRefusedError: it never was champion with this model file.
        UntrustedModelError: the model file is not what was recorded.
        BusyError: a promotion of this model is under way.
    """
    with platform.alone(f"promotion-{ref.name}", f"a promotion of {ref.name} is under way"):
        return _restore(platform, model, ref, reason, key)


def _restore(platform: Platform, model: str, ref: ChampionRef, reason: str, key: str) -> Version:
    client, history = Tracking(platform).client, _history(platform, model, ref)
    first = _first_promotion(ref, history)
    load_version(platform, ref)
    standing = standing_champion(platform, model)
    left = standing.version if isinstance(standing, ChampionRef) and standing.version != ref.version else None
    begun = _begun(history, f"restoring/{key}") or ledger_of(platform).append(
        "model.restoring",
        model=model,
        subject=_subject(ref),
        details={"version": ref.version, "model_digest": ref.digest, "leaves": left, "reason": reason},
        key=f"restoring/{key}",
        actor=platform.identity(),
    )
    client.set_registered_model_alias(ref.name, CHAMPION, ref.version)
    client.set_model_version_tag(ref.name, ref.version, f"{TAG}state", "champion")
    if begun.details["leaves"] is not None:
        client.set_model_version_tag(ref.name, str(begun.details["leaves"]), f"{TAG}state", "rolled_back")
    earlier = first.details.get("replaces")
    if earlier is not None and earlier not in {ref.version, begun.details["leaves"]}:
        client.set_registered_model_alias(ref.name, PREVIOUS, str(earlier))
    elif PREVIOUS in client.get_registered_model(ref.name).aliases:
        client.delete_registered_model_alias(ref.name, PREVIOUS)
    ledger_of(platform).append(
        RESTORED,
        model=model,
        subject=_subject(ref),
        details=begun.details | {"started": begun.seq},
        key=f"restored/{key}",
        actor=platform.identity(),
    )
    version = Version(name=ref.name, version=ref.version, run_id=ref.run_id, model_digest=ref.digest)
    return current(platform, version)


def require_was_champion(platform: Platform, model: str, ref: ChampionRef) -> None:
    """Refuse a version that there is no way back to; the ledger alone is asked, which takes milliseconds.

    Raises:
        PromotionRefusedError: it never was champion in this environment with this model file.
    """
    _first_promotion(ref, _history(platform, model, ref))


def _first_promotion(ref: ChampionRef, history: Sequence[Entry]) -> Entry:
    """The entry by which a version became champion for the first time, with the model file that it has now."""
    first: Entry | None = None
    for entry in history:
        if entry.event in {PROMOTED, RETRACTED} and _is_of(entry, ref):
            first = (first or entry) if entry.event == PROMOTED else None
    if first is None:
        raise PromotionRefusedError(
            f"{ref.name} version {ref.version} never was champion, so there is no way back to it; release it"
        )
    return first


def retract(platform: Platform, model: str, ref: ChampionRef, *, reason: str, key: str) -> None:
    """Take back the promotion of a first champion: the model has none afterwards, as before.

    Nothing is done where its promotion was not begun, or another version is champion. Run again under the same
    `key`, which names the step, it finishes what it began.

    Raises:
        BusyError: a promotion of this model is under way.
    """
    with platform.alone(f"promotion-{ref.name}", f"a promotion of {ref.name} is under way"):
        history, client = _history(platform, model, ref), Tracking(platform).client
        begun = any(entry.event == "promotion.started" and _is_of(entry, ref) for entry in history)
        registered = client.get_registered_model(ref.name)
        standing = dict(registered.aliases).get(CHAMPION)
        if not begun or (standing is not None and str(standing) != ref.version):
            return
        # Before the alias: the tag without an alias would say that the champion was taken away.
        if f"{TAG}promoted" in registered.tags:
            client.delete_registered_model_tag(ref.name, f"{TAG}promoted")
        if standing is not None:
            client.delete_registered_model_alias(ref.name, CHAMPION)
        if _begun(history, f"retracted/{key}") is None:
            ledger_of(platform).append(
                RETRACTED,
                model=model,
                subject=_subject(ref),
                details={"version": ref.version, "model_digest": ref.digest, "reason": reason},
                key=f"retracted/{key}",
                actor=platform.identity(),
            )


def withdraw(platform: Platform, ref: ChampionRef, state: str) -> None:
    """Take the alias `challenger` from a version that did not become champion, and say in a tag what it is now."""
    client = Tracking(platform).client
    aliases = dict(client.get_registered_model(ref.name).aliases)
    if str(aliases.get(CHALLENGER)) == ref.version:
        client.delete_registered_model_alias(ref.name, CHALLENGER)
    client.set_model_version_tag(ref.name, ref.version, f"{TAG}state", state)


def _history(platform: Platform, model: str, ref: ChampionRef) -> list[Entry]:
    """What the ledger says of a registered model, oldest first."""
    return [
        entry for entry in ledger_of(platform).entries(model) if entry.subject.rpartition("/")[0] == ref.name
    ]


def _is_of(entry: Entry, ref: ChampionRef) -> bool:
    """Whether an entry is of this version with this model file."""
    return entry.subject == _subject(ref) and entry.details["model_digest"] == ref.digest


def _begun(history: Sequence[Entry], key: str) -> Entry | None:
    """The entry of a promotion that was begun and cut short."""
    return next((entry for entry in history if entry.key == key), None)


def _move_aliases(platform: Platform, ref: ChampionRef, before: str | None) -> None:
    """Point the aliases at champion and previous, and make the tags say the same; safe to be done again."""
    client = Tracking(platform).client
    if before is not None and before != ref.version:
        client.set_registered_model_alias(ref.name, PREVIOUS, before)
    client.set_registered_model_alias(ref.name, CHAMPION, ref.version)
    # After the alias: the tag without an alias would say that the champion was taken away.
    client.set_registered_model_tag(ref.name, f"{TAG}promoted", "true")
    client.set_model_version_tag(ref.name, ref.version, f"{TAG}state", "champion")
    previous = dict(client.get_registered_model(ref.name).aliases).get(PREVIOUS)
    if previous is not None and str(previous) != ref.version:
        client.set_model_version_tag(ref.name, str(previous), f"{TAG}state", "replaced")
    elif previous is not None:
        # Left by an alias moved by hand: there is nothing to go back to.
        client.delete_registered_model_alias(ref.name, PREVIOUS)


def require_promotable(
    platform: Platform, model: str, ref: ChampionRef, history: Sequence[Entry], approvals: Sequence[str]
) -> None:
    """Refuse a version whose gates did not pass, whose file is another, or that lacks approvals.

    `approvals` are the digests of those that the caller has verified; nothing is verified of them here. Where the
    environment takes versions from another alone, the version must have passed there.

    Raises:
        PromotionRefusedError: says what is missing.
        UntrustedModelError: the model file is not what was recorded.
    """
    wanted = platform.environment.approvals
    if wanted and not approvals:
        raise PromotionRefusedError(
            f"{ref.name} version {ref.version} is not promoted: environment {platform.environment.name!r} asks for "
            f"signed approvals by {', '.join(wanted)}, and for a release: python -m flows.run release"
        )
    from tasks.cargo import require_passed

    require_passed(platform, model, ref)
    found = Tracking(platform).client.get_model_version(ref.name, ref.version)
    verdict = found.tags.get(f"{TAG}gate_verdict")
    if verdict != Verdict.PASS.value:
        raise PromotionRefusedError(
            f"{ref.name} version {ref.version} is not promoted: its gates say {verdict or 'nothing'}"
        )
    # Whoever may write to the registry may write any tag; nobody writes to the ledger but gates.
    settled = _settled(ref, history)
    if settled is None or settled.event != REGISTERED or settled.details["model_digest"] != ref.digest:
        raise PromotionRefusedError(
            f"{ref.name} version {ref.version} is not promoted: the ledger does not say that the gates passed "
            "this model file; train again"
        )
    load_version(platform, ref)


def _settled(ref: ChampionRef, history: Sequence[Entry]) -> Entry | None:
    """The last that the gates decided about a version."""
    decided = [
        entry
        for entry in history
        if entry.subject == _subject(ref)
        and entry.event in {REGISTERED, REJECTED}
        and entry.details["run_id"] == ref.run_id
    ]
    return decided[-1] if decided else None


def require_compared(ref: ChampionRef, before: str | None, history: Sequence[Entry]) -> None:
    """Refuse a challenger that was compared with another champion than the one it would replace."""
    if before in {None, ref.version}:
        return
    served = any(entry.event == PROMOTED and _is_of(entry, ref) for entry in history)
    settled = _settled(ref, history)
    compared = settled.details.get("champion") if settled else None
    if not served and compared != before:
        raise PromotionRefusedError(
            f"{ref.name} version {ref.version} is not promoted: its gates compared it with "
            f"{f'version {compared}' if compared else 'no champion'}, and version {before} serves now; train again"
        )
