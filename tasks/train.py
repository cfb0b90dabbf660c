"""Train: candidates search and compete on the development parts; the winner is refitted, saved and logged.

Nothing here is ever given the holdout. Every step finds what an earlier, interrupted run of it left in MLflow,
and carries on from there.
"""

import hashlib
import json
import math
import shutil
import tempfile
import time
from datetime import datetime
from importlib.metadata import packages_distributions, version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from deployments import model_file
from deployments.declared import Declared
from deployments.errors import BadInputError, ContenderError, first_line
from deployments.measures import MEASURES, TaskKind
from deployments.spec import LoadedSpec
from deployments.training import Candidate, Threshold
from platforms.platform import Platform
from platforms.snapshot import Snapshot
from tasks.champion import TRAINING_ROWS, write_training_rows
from tasks.code_version import CodeVersion, code_version, environment_lock
from tasks.costs import require_budget
from tasks.frame import input_schema, model_inputs, target_values
from tasks.metrics import Outputs, measure, outputs_of
from tasks.pipeline import calibrated, make_estimator, make_pipeline, with_threshold, without_folds
from tasks.progress import stage
from tasks.search import fold_columns, make_folds, search
from tasks.split import ROW_ID, Development, Parts
from tasks.threads import limited_threads, openmp_threads
from tasks.tracking import TAG, Tracking

EXAMPLE_ROWS = 5


class DirtyTreeError(BadInputError):
    """The environment trains from committed code only."""


class BudgetExceededError(ContenderError):
    """The environment's budget does not let another candidate start."""


class TrainingRun(Declared):
    """The MLflow run that one training is recorded in. `key` names what went in; the same key is the same run."""

    run_id: str
    experiment_id: str
    key: str
    as_of: datetime
    started: float
    code: CodeVersion


class CandidateResult(Declared):
    """What one candidate reached; `folds` are the cross-validation scores of its best parameters."""

    name: str
    run_id: str
    estimator: str
    params: dict[str, Any]
    tried: int
    folds: tuple[float, ...]
    validation: float
    seconds: float

    @property
    def cross_validation(self) -> float:
        """The mean over folds."""
        return float(np.mean(self.folds))


class Leaderboard(Declared):
    """All candidates, best first by the validation part."""

    metric: str
    candidates: tuple[CandidateResult, ...]

    @property
    def winner(self) -> CandidateResult:
        """The best."""
        return self.candidates[0]


class TrainedModel(Declared):
    """The winner, refitted, saved and logged. `digest` is of the model file, `files` of everything beside it."""

    run_id: str
    model_id: str
    uri: str
    digest: str
    files: dict[str, str]
    bytes: int
    candidate: str
    estimator: str
    params: dict[str, Any]
    threshold: float | None
    train_metrics: dict[str, float]
    training_rows: int
    example: list[dict[str, Any]]
    expected: list[float]
    expected_predictions: list[str | bool | int | float]


_NOT_TRAINED_BY = {"release", "monitoring", "retrain", "schedules"}
"""Sections of the spec that say what becomes of a model, and not what it is."""


def training_key(loaded: LoadedSpec, platform: Platform, gold: Snapshot, code: CodeVersion) -> str:
    """A digest of everything that decides the outcome: spec, query, data, code and environment."""
    said = {
        "spec": loaded.spec.model_dump(mode="json", exclude=_NOT_TRAINED_BY),
        "sql": loaded.sql,
        "data": gold.digest,
        "code": code.digest,
        "lock": environment_lock(),
        "environment": platform.environment.name,
        "allowed_packages": platform.environment.allowed_packages,
    }
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def open_run(
    loaded: LoadedSpec, platform: Platform, gold: Snapshot, parts: Parts, as_of: datetime, force: bool = False
) -> TrainingRun:
    """The run for this training: the one that was interrupted, where there is one, or a new one.

    Raises:
        DirtyTreeError: the environment wants committed code, and this is not.
    """
    code = code_version()
    if code.dirty and not platform.environment.allow_dirty_tree:
        raise DirtyTreeError(
            f"environment {platform.environment.name!r} trains from committed code only"
            + (": commit or discard the changes" if code.commit else ", and this is no git checkout")
        )
    tracking = Tracking(platform)
    experiment = tracking.experiment(loaded.name)
    key = training_key(loaded, platform, gold, code)
    tags = {f"{TAG}training_key": key, f"{TAG}kind": "training"}
    open_tags = tags | {f"{TAG}state": "open"}
    found = tracking.find_run(experiment, open_tags)
    if found is not None:
        run_id = found.info.run_id
        as_of = datetime.fromisoformat(found.data.params.get("as_of", as_of.isoformat()))
    else:
        run_id = tracking.create_run(
            experiment,
            name=f"{loaded.name} · {as_of:%Y-%m-%d} · {gold.digest[:8]}",
            tags=open_tags
            | {
                f"{TAG}model": loaded.name,
                f"{TAG}environment": platform.environment.name,
                f"{TAG}author": platform.identity(),
                f"{TAG}forced": str(force).lower(),
                f"{TAG}dirty": str(code.dirty).lower(),
                "mlflow.source.name": "contender",
                "mlflow.source.git.commit": code.commit or "",
            },
        )
    _describe_run(tracking, run_id, loaded, gold, parts, as_of, code)
    return TrainingRun(
        run_id=run_id, experiment_id=experiment, key=key, as_of=as_of, started=time.time(), code=code
    )


def _describe_run(
    tracking: Tracking,
    run_id: str,
    loaded: LoadedSpec,
    gold: Snapshot,
    parts: Parts,
    as_of: datetime,
    code: CodeVersion,
) -> None:
    development, holdout = parts.development, parts.holdout
    named = {"train": development.train, "validation": development.validation, "holdout": holdout}
    tracking.log(
        run_id,
        params={
            "as_of": as_of.isoformat(),
            "split": loaded.spec.split.kind,
            "gold": f"{gold.table} {gold.digest[:12]}",
            "code_digest": code.digest[:16],
            **{f"rows_{name}": part.snapshot.rows for name, part in named.items()},
        },
        metrics={
            f"balance_{name}_{_metric_name(label)}": share
            for name, part in named.items()
            for label, share in list(part.balance.items())[:20]
        },
    )
    tracking.log_datasets(run_id, {"gold": gold} | {name: part.snapshot for name, part in named.items()})
    tracking.client.log_text(run_id, environment_lock(), "environment.txt")
    tracking.client.log_text(run_id, loaded.path.read_text(encoding="utf-8"), "model.yaml")
    if loaded.sql:
        tracking.client.log_text(run_id, loaded.sql, "features.sql")


def _metric_name(label: str) -> str:
    return "".join(c if c.isalnum() or c in "_-. /" else "_" for c in label)


def check_candidates(loaded: LoadedSpec, platform: Platform) -> None:
    """Make every candidate once, unfitted, so that a bad name or parameter is found before anything is trained.

    Raises:
        BadInputError: names the candidate and what is wrong with it.
    """
    spec = loaded.spec
    for candidate in spec.training.candidates:
        searched = dict.fromkeys(candidate.search.space) if candidate.search else {}
        try:
            made = _estimator(loaded, platform, candidate, candidate.params)
            if not (
                spec.target.kind is TaskKind.REGRESSION
                or candidate.calibrate
                or hasattr(made, "predict_proba")
            ):
                raise BadInputError(
                    f"estimator {candidate.estimator!r} gives no probabilities; add `calibrate: sigmoid`"
                )
            _estimator(loaded, platform, candidate, {**candidate.params, **searched})
        except BadInputError as error:
            raise BadInputError(f"{loaded.path}: candidate {candidate.name!r}: {error}") from None


def _estimator(loaded: LoadedSpec, platform: Platform, candidate: Candidate, params: dict[str, Any]) -> Any:
    training = loaded.spec.training
    return make_estimator(
        candidate.estimator,
        params,
        platform.environment.allowed_packages,
        loaded.spec.target.kind,
        training.seed,
    )


def train_candidate(
    loaded: LoadedSpec, platform: Platform, run: TrainingRun, development: Development, candidate: Candidate
) -> CandidateResult:
    """Search one candidate's parameters on the train part, and score the best on the validation part.

    Raises:
        BudgetExceededError: the run has used up the environment's training time.
        BudgetUsedUpError: the model has used up its budget of a day or a month.
        BadInputError: the estimator refuses its parameters or the data.
    """
    tracking = Tracking(platform)
    tags = {f"{TAG}candidate": candidate.name, "mlflow.parentRunId": run.run_id}
    found = tracking.find_run(run.experiment_id, tags)
    if found is not None and found.info.status == "FINISHED":
        result = tracking.document(found.info.run_id, "candidate", CandidateResult)
        if result is not None:
            return result
    require_budget(platform, loaded, f"candidate {candidate.name!r}")
    budget = platform.environment.budget.training_seconds
    if time.time() - run.started > budget:
        raise BudgetExceededError(
            f"candidate {candidate.name!r} was not started: training has used up its {budget:g} s "
            f"(budget.training_seconds of environment {platform.environment.name!r})"
        )
    child = (
        found.info.run_id
        if found is not None
        else tracking.create_run(run.experiment_id, candidate.name, tags, parent=run.run_id)
    )
    started = time.perf_counter()
    rows, workers = development.train.snapshot.rows, platform.environment.task_runner.workers
    with stage(f"candidate {candidate.name}"), limited_threads(openmp_threads(rows, workers)):
        result = _compete(loaded, platform, child, development, candidate, started)
    tracking.log(
        child,
        params={"estimator": candidate.estimator, "tried": result.tried}
        | {f"model_{name}": value for name, value in result.params.items()},
        metrics={
            f"validation_{loaded.spec.training.metric}": result.validation,
            f"cross_validation_{loaded.spec.training.metric}": result.cross_validation,
            "seconds": result.seconds,
        },
    )
    tracking.log_series(child, f"fold_{loaded.spec.training.metric}", result.folds)
    tracking.save_document(child, "candidate", result)
    tracking.finish(child)
    return result


def _compete(
    loaded: LoadedSpec,
    platform: Platform,
    run_id: str,
    development: Development,
    candidate: Candidate,
    started: float,
) -> CandidateResult:
    spec = loaded.spec
    rows = platform.tables.read(development.train.snapshot)
    inputs, truth = model_inputs(rows, spec), target_values(rows, spec)
    group_columns, time_column = fold_columns(spec)
    pipeline = make_pipeline(spec, _estimator(loaded, platform, candidate, candidate.params))
    try:
        groups = _codes(rows, group_columns)
        folds = make_folds(spec, truth, groups, _times(rows, time_column))
        # An estimator without probabilities of its own is searched as it will serve: calibrated.
        own = spec.target.kind is TaskKind.REGRESSION or hasattr(pipeline, "predict_proba")
        base = pipeline if own else calibrated(pipeline, candidate.calibrate, spec.training.folds)
        found = search(spec, base, candidate.search, inputs, truth, folds)
        params = {**candidate.params, **found.params}
        model = _unfitted(loaded, platform, candidate, params, rows).fit(inputs, truth)
    except (ValueError, TypeError) as error:
        raise BadInputError(
            f"{loaded.path}: candidate {candidate.name!r} cannot be trained: {first_line(error)}"
        ) from None
    held = platform.tables.read(development.validation.snapshot)
    said = outputs_of(model, model_inputs(held, spec), spec.target)
    return CandidateResult(
        name=candidate.name,
        run_id=run_id,
        estimator=candidate.estimator,
        params=params,
        tried=found.tried,
        folds=found.folds,
        validation=measure(spec.training.metric, target_values(held, spec), said),
        seconds=time.perf_counter() - started,
    )


def _unfitted(
    loaded: LoadedSpec, platform: Platform, candidate: Candidate, params: dict[str, Any], rows: pa.Table
) -> Any:
    """Pipeline and estimator, to be fitted to `rows`; calibration tears no group apart either."""
    spec = loaded.spec
    pipeline = make_pipeline(spec, _estimator(loaded, platform, candidate, params))
    groups = _codes(rows, fold_columns(spec)[0]) if candidate.calibrate else None
    torn = (
        spec.training.folds if groups is None else make_folds(spec, target_values(rows, spec), groups, None)
    )
    return calibrated(pipeline, candidate.calibrate, torn)


def _codes(rows: pa.Table, columns: tuple[str, ...]) -> np.ndarray | None:
    """One number per distinct combination of the columns; shape (rows,)."""
    if not columns:
        return None
    frame = pd.DataFrame({name: rows.column(name).to_pandas() for name in columns})
    return np.asarray(frame.groupby(list(columns), sort=False, dropna=False).ngroup())


def _times(rows: pa.Table, column: str | None) -> np.ndarray | None:
    return (
        None
        if column is None
        else np.asarray(rows.column(column).cast(pa.timestamp("us", "UTC")).cast(pa.int64()))
    )


def rank(loaded: LoadedSpec, results: list[CandidateResult]) -> Leaderboard:
    """Candidates by their score on the validation part, best first; those without one come last.

    Raises:
        ContenderError: no candidate has a score.
    """
    measured = MEASURES[loaded.spec.training.metric]
    if not any(math.isfinite(result.validation) for result in results):
        raise ContenderError(f"no candidate has a {measured.name} on the validation part")
    sign = -1 if measured.higher_is_better else 1
    ordered = sorted(
        results,
        key=lambda result: (
            sign * result.validation if math.isfinite(result.validation) else math.inf,
            result.name,
        ),
    )
    return Leaderboard(metric=measured.name, candidates=tuple(ordered))


def train_winner(
    loaded: LoadedSpec,
    platform: Platform,
    run: TrainingRun,
    development: Development,
    leaderboard: Leaderboard,
) -> TrainedModel:
    """Refit the best candidate, choose the decision threshold, save the model file and log it to MLflow."""
    tracking = Tracking(platform)
    done = tracking.document(run.run_id, "trained", TrainedModel)
    if done is not None:
        return done
    tracking.save_document(run.run_id, "leaderboard", leaderboard)
    spec, winner = loaded.spec, leaderboard.winner
    candidate = next(item for item in spec.training.candidates if item.name == winner.name)
    train = platform.tables.read(development.train.snapshot)
    validation = platform.tables.read(development.validation.snapshot)
    both = spec.training.refit_on == "train_and_validation"
    seen = pa.concat_tables([train, validation])
    rows = seen if both else train
    inputs, truth = model_inputs(rows, spec), target_values(rows, spec)
    with limited_threads(openmp_threads(len(inputs), workers=1)):
        with stage("refit the winner"):
            threshold = _threshold(loaded, platform, candidate, winner.params, train, validation)
            model = _unfitted(loaded, platform, candidate, winner.params, rows)
            if threshold is not None:
                model = with_threshold(model, threshold, _as_class(spec.target.positive, truth))
            model = without_folds(model.fit(inputs, truth), spec.training.folds)
        said = outputs_of(model, inputs, spec.target)
        with stage("save the model"):
            trained = _log_model(loaded, platform, run, winner, model, inputs, said, truth, threshold)
    # Rows that chose the candidate or the threshold count as seen, whether or not the model was refitted on them.
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / TRAINING_ROWS
        write_training_rows(path, seen.column(ROW_ID))
        tracking.client.log_artifact(run.run_id, str(path))
    tracking.log(
        run.run_id,
        params={"candidate": winner.name, "estimator": winner.estimator, "threshold": threshold}
        | {f"model_{name}": value for name, value in winner.params.items()},
        metrics={f"train_{name}": value for name, value in trained.train_metrics.items()},
        tags={f"{TAG}model_digest": trained.digest},
    )
    tracking.save_document(run.run_id, "trained", trained)
    return trained


def _as_class(positive: object, truth: np.ndarray) -> object:
    return str(positive) if truth.dtype.kind in "UO" else positive


def _threshold(
    loaded: LoadedSpec,
    platform: Platform,
    candidate: Candidate,
    params: dict[str, Any],
    train: pa.Table,
    validation: pa.Table,
) -> float | None:
    """The probability from which the model answers yes; chosen on the validation part by a model that never saw it."""
    spec = loaded.spec
    if spec.target.kind is not TaskKind.BINARY:
        return None
    wanted = spec.training.threshold
    if not isinstance(wanted, Threshold):
        return float(wanted)
    model = _unfitted(loaded, platform, candidate, params, train).fit(
        model_inputs(train, spec), target_values(train, spec)
    )
    said = outputs_of(model, model_inputs(validation, spec), spec.target)
    truth = target_values(validation, spec)
    return choose_threshold(wanted.maximise, truth, said)


def choose_threshold(metric: str, truth: np.ndarray, said: Outputs) -> float:
    """The best of a hundred thresholds between the scores' quantiles; ties go to the lowest.

    Raises:
        ContenderError: the metric is not defined at any of them.
    """
    assert said.classes is not None
    assert said.positive is not None
    tried = np.unique(np.quantile(said.score, np.linspace(0.01, 0.99, 99)))
    negative = said.classes[1 - said.positive]
    values = []
    for threshold in tried:
        decided = np.where(said.score >= threshold, said.classes[said.positive], negative)
        values.append(
            measure(metric, truth, Outputs(decided, said.probabilities, said.classes, said.positive))
        )
    if np.isnan(values).all():
        raise ContenderError(f"no threshold can be chosen: {metric} is not defined on the validation part")
    return float(tried[int(np.nanargmax(values))])


def _log_model(
    loaded: LoadedSpec,
    platform: Platform,
    run: TrainingRun,
    winner: CandidateResult,
    model: Any,
    inputs: pd.DataFrame,
    said: Outputs,
    truth: np.ndarray,
    threshold: float | None,
) -> TrainedModel:
    import mlflow.sklearn
    import skops.io
    from mlflow.models import Model, ModelSignature, infer_signature

    spec = loaded.spec
    dumped = skops.io.dumps(model)
    strangers = model_file.untrusted_types(dumped, platform.environment.allowed_packages)
    if strangers:
        raise model_file.UntrustedModelError(
            f"candidate {winner.name!r} makes a model with types that are not on the allow-list: "
            f"{', '.join(strangers)}"
        )
    client = Tracking(platform).client
    model_id = _logged_model(client, loaded, run, winner)
    example = inputs.head(EXAMPLE_ROWS).reset_index(drop=True)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "model"
        mlflow.sklearn.save_model(
            model,
            str(folder),
            serialization_format="skops",
            skops_trusted_types=skops.io.get_untrusted_types(data=dumped),
            signature=ModelSignature(
                inputs=input_schema(spec), outputs=infer_signature(None, said.predictions[:1000]).outputs
            ),
            input_example=example,
            pip_requirements=_requirements(winner.estimator),
            code_paths=_code_paths(loaded, Path(scratch)),
            mlflow_model=Model(run_id=run.run_id, model_id=model_id),
            metadata={"contender": {"model": loaded.name, "positive": str(spec.target.positive)}},
        )
        file = folder / model_file.SKOPS_FILE
        model_file.canonicalise(file)
        trained = TrainedModel(
            run_id=run.run_id,
            model_id=model_id,
            uri=f"models:/{model_id}",
            digest=model_file.file_digest(file),
            files=model_file.folder_digests(folder),
            bytes=sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()),
            candidate=winner.name,
            estimator=winner.estimator,
            params=winner.params,
            threshold=threshold,
            train_metrics={name: measure(name, truth, said) for name in spec.evaluation.metrics},
            training_rows=len(inputs),
            example=json.loads(example.to_json(orient="records", date_format="iso", double_precision=15)),
            expected=[float(value) for value in said.take(np.arange(len(example))).score],
            expected_predictions=said.predictions[: len(example)].tolist(),
        )
        client.log_model_artifacts(model_id, str(folder))
    client.finalize_logged_model(model_id, "READY")
    return trained


def _logged_model(client: Any, loaded: LoadedSpec, run: TrainingRun, winner: CandidateResult) -> str:
    """The id of the run's logged model: the one that an interrupted run began, where there is one."""
    found = client.search_logged_models(
        [run.experiment_id], filter_string=f"source_run_id = '{run.run_id}'", max_results=1
    )
    if found:
        return str(found[0].model_id)
    made = client.create_logged_model(
        run.experiment_id, name=loaded.name, source_run_id=run.run_id, model_type=winner.estimator
    )
    return str(made.model_id)


def _requirements(estimator: str) -> list[str]:
    """What a server needs to load the model, pinned to what it was trained with."""
    names = {"scikit-learn", "skops", "numpy", "pandas", "scipy"}
    package = estimator.partition(".")[0]
    if package != "sklearn":
        names.update(packages_distributions().get(package, ()))
    return [f"{name}=={version(name)}" for name in sorted(names)]


def _code_paths(loaded: LoadedSpec, scratch: Path) -> list[str] | None:
    """Our one transformer travels with a model that uses it, under the name it is loaded by."""
    if not loaded.spec.features.dates.columns:
        return None
    import deployments.date_parts

    package = scratch / "code" / "deployments"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text('"""What travels with a model."""\n')
    shutil.copy(Path(deployments.date_parts.__file__), package)
    return [str(package)]
