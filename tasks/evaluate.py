"""Evaluate: the one look at the holdout, for the challenger and for the champion on the same rows.

What comes out is a document of measurements; tasks.gate decides on it without measuring anything.
"""

import math
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from pydantic import Field

from deployments.declared import Declared
from deployments.errors import ContenderError, first_line
from deployments.gates import FairnessGate, LatencyGate, RobustnessGate
from deployments.measures import TaskKind
from deployments.spec import LoadedSpec, ModelSpec
from platforms.platform import Platform
from tasks import probe
from tasks.champion import (
    ChampionMissing,
    ChampionRef,
    NoChampionYet,
    Standing,
    load_logged_model,
    load_version,
    trained_spec,
    training_rows,
)
from tasks.frame import model_inputs, target_values
from tasks.metrics import Bootstrap, Estimate, Outputs, estimate, estimate_improvement, measure, outputs_of
from tasks.progress import stage
from tasks.search import fold_columns
from tasks.split import ROW_ID, Development, Part
from tasks.threads import limited_threads, openmp_threads
from tasks.tracking import Tracking
from tasks.train import TrainedModel, TrainingRun
from tasks.unlearned import keep_answers


class SliceResult(Declared):
    """One metric on the holdout rows with one value of one column."""

    column: str
    value: str
    metric: str
    estimate: Estimate


class PairedEstimate(Declared):
    """Challenger and champion on the same rows; `improvement` is positive where the challenger is better."""

    challenger: float
    champion: float
    improvement: Estimate


class Comparison(Declared):
    """The champion on the challenger's holdout, less the rows that the champion was trained on."""

    version: str
    rows: int
    excluded: int
    metrics: dict[str, PairedEstimate]
    problem: str = ""


class Group(Declared):
    """One group of a fairness attribute: rows, rate of positive answers, true and false positive rates, metric."""

    attribute: str
    value: str
    rows: int
    selection_rate: float = math.nan
    true_positive_rate: float = math.nan
    false_positive_rate: float = math.nan
    positives: int = 0
    negatives: int = 0
    metrics: dict[str, float] = {}


class CalibrationBin(Declared):
    """Rows of similar score: their mean score and the share that was positive."""

    rows: int
    mean_score: float
    positive_share: float


class Calibration(Declared):
    """Expected calibration error over bins of equal count (Naeini et al. 2015, with equal-mass bins)."""

    error: float
    bins: tuple[CalibrationBin, ...]


class Evaluation(Declared):
    """Everything measured of one challenger. A measurement that could not be made is absent, never zero."""

    model_digest: str
    first_version: bool
    champion: str | None
    rows: int
    metrics: dict[str, Estimate]
    train_metrics: dict[str, float]
    slices: tuple[SliceResult, ...] = ()
    skipped_slices: tuple[str, ...] = ()
    comparison: Comparison | None = None
    groups: tuple[Group, ...] = ()
    calibration: Calibration | None = None
    latency: probe.Latency | None = None
    swings: tuple[probe.Swing, ...] = ()
    single_features: tuple[probe.SingleFeature, ...] = ()
    importance: dict[str, float] = {}
    megabytes: float | None = None
    deciles: tuple[float, ...] = Field(
        (), description="Of a regression's predictions: where a release compares distributions of them."
    )


@dataclass(frozen=True)
class Answered:
    """Rows with what was said of them and what was true; `clusters` tells which rows are of one entity."""

    rows: pa.Table
    truth: np.ndarray
    said: Outputs
    clusters: np.ndarray


@dataclass(frozen=True)
class _Holdout(Answered):
    """The holdout as evaluation sees it; nothing else does."""

    inputs: pd.DataFrame


def evaluate_challenger(
    loaded: LoadedSpec,
    platform: Platform,
    run: TrainingRun,
    trained: TrainedModel,
    development: Development,
    holdout: Part,
    standing: Standing,
) -> Evaluation:
    """Measure the saved model on the holdout and by probes, and the champion beside it; once per challenger.

    An evaluation recorded by an earlier, interrupted run of the same training is returned as it stands, unless
    another champion serves by now.

    Raises:
        UntrustedModelError: the challenger's own file is not what was recorded.
    """
    tracking = Tracking(platform)
    done = tracking.document(run.run_id, "evaluation", Evaluation)
    champion = standing.version if isinstance(standing, ChampionRef) else None
    against = (trained.digest, champion, isinstance(standing, NoChampionYet))
    if done is not None and (done.model_digest, done.champion, done.first_version) == against:
        return done
    with limited_threads(openmp_threads(holdout.snapshot.rows, workers=1)):
        held, evaluation = _measure(loaded.spec, platform, trained, development, holdout, standing)
    from tasks.plots import evaluation_plots

    with stage("draw the plots"):
        for name, figure in evaluation_plots(loaded.spec, held.truth, held.said, evaluation).items():
            tracking.client.log_figure(run.run_id, figure, f"plots/{name}.png")
    keep_sample(loaded.spec, tracking, run.run_id, held.inputs)
    keep_answers(loaded.spec, tracking, run.run_id, held.said)
    found = evaluation.metrics.items()
    tracking.log(
        run.run_id,
        metrics={f"holdout_{name}": estimate.value for name, estimate in found}
        | {f"holdout_{name}_low": estimate.low for name, estimate in found}
        | {f"holdout_{name}_high": estimate.high for name, estimate in found},
    )
    tracking.save_document(run.run_id, "evaluation", evaluation)
    return evaluation


HOLDOUT_SAMPLE = "holdout_sample.parquet"
_SAMPLE_ROWS = 500


def keep_sample(spec: ModelSpec, tracking: Tracking, run: str, inputs: pd.DataFrame) -> None:
    """Some inputs of the holdout, spread over it, for serving to compare engines by; no personal data, no truth."""
    columns = spec.feature_contract.columns
    shown = [name for name in inputs.columns if columns[name].pii is None]
    places = np.unique(np.linspace(0, len(inputs) - 1, min(len(inputs), _SAMPLE_ROWS)).astype(int))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / HOLDOUT_SAMPLE
        inputs[shown].iloc[places].to_parquet(path, index=False)
        tracking.client.log_artifact(run, str(path))


def _measure(
    spec: ModelSpec,
    platform: Platform,
    trained: TrainedModel,
    development: Development,
    holdout: Part,
    standing: Standing,
) -> tuple[_Holdout, Evaluation]:
    model = load_logged_model(platform, trained.model_id, trained.digest)
    with stage("evaluate"):
        held = _look_at(holdout, model, platform, spec)
        bootstrap = Bootstrap(spec.evaluation.bootstrap, spec.evaluation.confidence, spec.training.seed)
        weights = bootstrap.weights(held.clusters)
        metrics = {
            name: estimate(name, held.truth, held.said, bootstrap, weights)
            for name in spec.evaluation.metrics
        }
        slices, skipped = slices_of(spec, held, bootstrap)
    with stage("compare with the champion"):
        comparison = _compare(platform, spec, held, standing, bootstrap)
    with stage("probe the model"):
        probes = _probe(platform, spec, model, development)
    return held, Evaluation(
        model_digest=trained.digest,
        first_version=isinstance(standing, NoChampionYet),
        champion=standing.version if isinstance(standing, ChampionRef) else None,
        rows=len(held.truth),
        metrics=metrics,
        train_metrics=trained.train_metrics,
        slices=slices,
        skipped_slices=skipped,
        comparison=comparison,
        groups=groups_of(spec, held),
        calibration=calibration(held.truth, held.said) if spec.target.kind is TaskKind.BINARY else None,
        megabytes=trained.bytes / 1e6,
        deciles=_deciles(held.said) if spec.target.kind is TaskKind.REGRESSION else (),
        **probes,
    )


def _deciles(said: Outputs) -> tuple[float, ...]:
    return tuple(float(edge) for edge in np.unique(np.quantile(said.predictions, np.linspace(0.1, 0.9, 9))))


def _look_at(holdout: Part, model: Any, platform: Platform, spec: ModelSpec) -> _Holdout:
    rows = platform.tables.read(holdout.snapshot)
    inputs, truth = model_inputs(rows, spec), target_values(rows, spec)
    belong = fold_columns(spec)[0] or spec.features.entity
    keys = pd.DataFrame({name: rows.column(name).to_pandas() for name in belong})
    clusters = np.asarray(keys.groupby(list(belong), sort=False, dropna=False).ngroup())
    return _Holdout(rows, truth, outputs_of(model, inputs, spec.target), clusters, inputs)


def slices_of(
    spec: ModelSpec, held: Answered, bootstrap: Bootstrap
) -> tuple[tuple[SliceResult, ...], tuple[str, ...]]:
    """The selection metric on each slice that is large enough, and the names of those that are not."""
    metric, found, skipped = spec.training.metric, [], []
    for column in spec.evaluation.slices:
        values = held.rows.column(column).cast(pa.string()).to_pandas().fillna("(missing)").to_numpy()
        for value in np.unique(values):
            members = np.flatnonzero(values == value)
            if len(members) < spec.evaluation.min_slice_rows:
                skipped.append(f"{column}={value} ({len(members)} rows)")
                continue
            weights = bootstrap.weights(held.clusters[members])
            result = estimate(metric, held.truth[members], held.said.take(members), bootstrap, weights)
            found.append(SliceResult(column=column, value=str(value), metric=metric, estimate=result))
    return tuple(found), tuple(skipped)


def _compare(
    platform: Platform, spec: ModelSpec, held: _Holdout, standing: Standing, bootstrap: Bootstrap
) -> Comparison | None:
    """Score the champion on the same rows; what stands in the way is said in `problem`, and gates refuse on it."""
    match standing:
        case NoChampionYet():
            return None
        case ChampionMissing(reason):
            return Comparison(version="?", rows=0, excluded=0, metrics={}, problem=reason)
    try:
        kept, said = _ask_champion(platform, spec, held, standing)
    except (ContenderError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = f"champion version {standing.version} could not be scored: {first_line(error)}"
        return Comparison(version=standing.version, rows=0, excluded=0, metrics={}, problem=reason)
    truth, challenger = held.truth[kept], held.said.take(kept)
    weights = bootstrap.weights(held.clusters[kept])
    return Comparison(
        version=standing.version,
        rows=len(kept),
        excluded=len(held.truth) - len(kept),
        metrics={
            name: PairedEstimate(
                challenger=measure(name, truth, challenger),
                champion=measure(name, truth, said),
                improvement=estimate_improvement(name, truth, challenger, said, bootstrap, weights),
            )
            for name in spec.evaluation.metrics
        },
    )


def _ask_champion(
    platform: Platform, spec: ModelSpec, held: _Holdout, champion: ChampionRef
) -> tuple[np.ndarray, Outputs]:
    """The holdout rows that the champion has not seen, by index, and what it says of them.

    It is given its own inputs, as its own spec declares them: a column that changed its type in the meantime
    would not fail, but make the champion look bad.

    Raises:
        ContenderError: its files are not what was recorded, or it answers another question.
    """
    theirs = trained_spec(platform, champion)
    if theirs.target != spec.target:
        raise ContenderError("it predicts another target")
    if theirs.row_key != spec.row_key:
        raise ContenderError(f"its rows are told apart by {', '.join(theirs.row_key)}")
    missing = [name for name in theirs.features.columns if name not in held.rows.column_names]
    if missing:
        raise ContenderError(f"it needs {', '.join(missing)}, which the holdout does not have")
    seen = np.isin(held.rows.column(ROW_ID).to_numpy(), training_rows(platform, champion))
    kept = np.flatnonzero(~seen)
    if not len(kept):
        raise ContenderError(f"it was trained on all {len(seen):,} rows of the holdout")
    rows = held.rows.take(pa.array(kept))
    said = outputs_of(load_version(platform, champion), model_inputs(rows, theirs), spec.target)
    ours = held.said.classes
    if ours is not None and said.classes is not None and set(said.classes) != set(ours):
        raise ContenderError(f"it knows the classes {said.classes.tolist()}, and not {ours.tolist()}")
    return kept, said


def groups_of(spec: ModelSpec, held: Answered) -> tuple[Group, ...]:
    """Each group of each attribute that a fairness gate names, by fairlearn's MetricFrame."""
    gates = [gate for gate in spec.gates if isinstance(gate, FairnessGate)]
    wanted: dict[str, set[str]] = {}
    for gate in gates:
        wanted.setdefault(gate.attribute, set()).update({gate.metric} if gate.metric else set())
    found: list[Group] = []
    for attribute, metrics in wanted.items():
        values = held.rows.column(attribute).cast(pa.string()).to_pandas().fillna("(missing)").to_numpy()
        found += _groups_of(attribute, values, sorted(metrics), spec, held)
    return tuple(found)


def _groups_of(
    attribute: str, values: np.ndarray, metrics: list[str], spec: ModelSpec, held: Answered
) -> list[Group]:
    rates: Mapping[str, Mapping[str, float]] = {}
    truth = decided = np.zeros(len(values), dtype=bool)
    if spec.target.kind is TaskKind.BINARY and held.said.finite:
        from fairlearn.metrics import MetricFrame, false_positive_rate, selection_rate, true_positive_rate

        assert held.said.classes is not None
        assert held.said.positive is not None
        positive = held.said.classes[held.said.positive]
        truth, decided = held.truth == positive, held.said.predictions == positive
        frame = MetricFrame(
            metrics={
                "selection_rate": selection_rate,
                "true_positive_rate": true_positive_rate,
                "false_positive_rate": false_positive_rate,
            },
            y_true=truth,
            y_pred=decided,
            sensitive_features=values,
        )
        rates = frame.by_group.to_dict("index")
    groups = []
    for value in np.unique(values):
        members = values == value
        groups.append(
            Group(
                attribute=attribute,
                value=str(value),
                rows=int(members.sum()),
                positives=int(truth[members].sum()),
                negatives=int((~truth[members]).sum()),
                metrics={
                    name: measure(name, held.truth[members], held.said.take(members)) for name in metrics
                },
                **rates.get(value, {}),
            )
        )
    return groups


def calibration(truth: np.ndarray, said: Outputs, bins: int = 10) -> Calibration:
    """Expected calibration error: the mean gap between score and outcome over bins of equal count."""
    assert said.classes is not None
    assert said.positive is not None
    outcome = (truth == said.classes[said.positive]).astype(float)
    order = np.argsort(said.score, kind="stable")
    found = [
        CalibrationBin(
            rows=len(members),
            mean_score=float(said.score[members].mean()),
            positive_share=float(outcome[members].mean()),
        )
        for members in np.array_split(order, bins)
        if len(members)
    ]
    gaps = sum(item.rows * abs(item.mean_score - item.positive_share) for item in found)
    return Calibration(error=gaps / len(truth), bins=tuple(found))


def _probe(platform: Platform, spec: ModelSpec, model: Any, development: Development) -> dict[str, Any]:
    train = platform.tables.read(development.train.snapshot)
    rows = platform.tables.read(development.validation.snapshot)
    inputs, truth = model_inputs(rows, spec), target_values(rows, spec)
    robust = next((gate for gate in spec.gates if isinstance(gate, RobustnessGate)), RobustnessGate())
    quick = next((gate for gate in spec.gates if isinstance(gate, LatencyGate)), None)
    return {
        "latency": probe.latency(model, inputs, quick.requests if quick else 200),
        "swings": probe.robustness(model, inputs, spec, robust),
        "single_features": probe.single_features(
            model_inputs(train, spec), target_values(train, spec), spec.target.kind
        ),
        "importance": probe.importance(model, inputs, truth, spec),
    }
