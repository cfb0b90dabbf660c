"""Quality of a window: what labels say of the answers that were given, against the champion's holdout.

Pure: joined rows and documents go in, rows of metrics come out. Without labels there is an estimate from the scores,
which is told and never judged.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa

from deployments.contract import ColumnContract, ColumnType
from deployments.gates import FairnessGate
from deployments.measures import MEASURES, TaskKind
from deployments.monitoring import QualityPlan
from deployments.spec import ModelSpec
from tasks.classes import class_of
from tasks.evaluate import Answered, Evaluation, groups_of, slices_of
from tasks.gate import judge
from tasks.live_window import PREDICTION, PREDICTION_NUMBER, SCORE, Joined
from tasks.metrics import Bootstrap, Estimate, Outputs, estimate, measure, weighted
from tasks.monitoring_record import MetricRow, Window
from tasks.verdict import Verdict

__all__ = [
    "Looked",
    "answered",
    "estimated_rows",
    "fairness_rows",
    "importance_rows",
    "labels_said",
    "quality_metrics",
    "quality_rows",
    "said_of",
    "slice_rows",
]

_FROM_SCORES = {"roc_auc", "average_precision", "brier", "log_loss"}
_FROM_ALL_PROBABILITIES = {"log_loss", "roc_auc_ovr"}

CALIBRATED = 0.1
"""Beyond this expected calibration error on the holdout, expectations from scores say little."""


@dataclass(frozen=True)
class Looked:
    """What a window's quality is looked at with: its version, plan and spec."""

    version: str
    window: Window
    plan: QualityPlan
    spec: ModelSpec

    @property
    def bootstrap(self) -> Bootstrap:
        """Resamples for intervals, seeded by the spec."""
        return Bootstrap(self.spec.evaluation.bootstrap, self.plan.confidence, self.spec.training.seed)

    def row(self, kind: str, metric: str, subject: str = "", **more: Any) -> MetricRow:
        """A row of this window; numbers that are not finite are none."""
        for name in ("value", "low", "high", "threshold"):
            number = more.get(name)
            more[name] = None if number is None or not math.isfinite(number) else float(number)
        return MetricRow.model_validate(
            {"version": self.version, "window": self.window, "kind": kind, "metric": metric}
            | {"subject": subject}
            | more
        )


def quality_metrics(plan: QualityPlan, spec: ModelSpec) -> tuple[str, ...]:
    """The metrics that windows are judged by: the plan's, or else the one that training chose by."""
    return plan.metrics or (spec.training.metric,)


# Rows as measurements take them ----------------------------------------------------------------------------


def said_of(rows: pa.Table, spec: ModelSpec) -> Outputs:
    """What was answered, out of the log: a binary model's classes are False and True, true being the positive."""
    if spec.target.kind is TaskKind.REGRESSION:
        return Outputs(_numbers(rows.column(PREDICTION_NUMBER)))
    declared = spec.training_contract.columns[spec.target.column]
    said = _classes(rows.column(PREDICTION), declared)
    if spec.target.kind is TaskKind.MULTICLASS:
        return Outputs(said)
    score = _numbers(rows.column(SCORE))
    known = len(score) and np.isfinite(score).all()
    return Outputs(
        predictions=said == _positive(spec, declared.type),
        probabilities=np.column_stack([1 - score, score]) if known else None,
        classes=np.array([False, True]),
        positive=1,
    )


def answered(joined: Joined, spec: ModelSpec) -> Answered:
    """The labelled rows of a window, as evaluation has its own."""
    labels = joined.rows.column("label")
    declared = spec.training_contract.columns[spec.target.column]
    truth: np.ndarray
    if spec.target.kind is TaskKind.REGRESSION:
        truth = _numbers(pa.chunked_array([pl.Series(labels).cast(pl.Float64, strict=False).to_arrow()]))
    else:
        truth = _classes(labels, declared)
        if spec.target.kind is TaskKind.BINARY:
            truth = truth == _positive(spec, declared.type)
    _, clusters = np.unique(np.asarray(joined.rows.column("entity").to_pylist(), str), return_inverse=True)
    return Answered(joined.rows, truth, said_of(joined.rows, spec), clusters)


def _numbers(column: pa.ChunkedArray) -> np.ndarray:
    return np.asarray(column.cast(pa.float64()).to_pandas(), dtype=np.float64)


def _classes(column: pa.ChunkedArray, declared: ColumnContract) -> np.ndarray:
    """Classes as the log and the labels write them; numbers as numbers, so that 1 and 1.0 are one class."""
    if declared.type in {ColumnType.NUMBER, ColumnType.INTEGER}:
        return pl.Series(column).cast(pl.Float64, strict=False).to_numpy()
    return np.asarray(column.to_pylist(), dtype=str)


def _positive(spec: ModelSpec, declared: ColumnType) -> float | str:
    assert spec.target.positive is not None
    return class_of(spec.target.positive, declared)


# Measured on labels ----------------------------------------------------------------------------------------


def quality_rows(looked: Looked, joined: Joined, held: Mapping[str, Estimate]) -> list[MetricRow]:
    """Each metric of the plan on the labelled rows, judged against the champion's holdout, and how many have labels.

    Args:
        looked: version, window, plan and spec.
        joined: the rows that were answered, and those of them with labels.
        held: the champion's metrics on its holdout.
    """
    labelled = joined.rows.num_rows
    coverage = labelled / joined.answered if joined.answered else None
    rows = [
        looked.row(
            "quality",
            "coverage",
            value=coverage,
            threshold=looked.plan.minimum_coverage,
            rows=joined.answered,
            reason=labels_said(labelled, joined.answered, joined.received),
        )
    ]
    lacking = _lacking(looked.plan, labelled, joined.answered)
    if not labelled:
        return rows + [
            looked.row("quality", name, verdict=Verdict.INCONCLUSIVE, reason=lacking)
            for name in quality_metrics(looked.plan, looked.spec)
        ]
    with_labels = answered(joined, looked.spec)
    bootstrap = looked.bootstrap
    weights = bootstrap.weights(with_labels.clusters)
    for name in quality_metrics(looked.plan, looked.spec):
        problem = _not_to_be_had(name, with_labels.said, looked.spec)
        found = Estimate(value=math.nan, low=math.nan, high=math.nan, rows=labelled)
        if not problem:
            found = estimate(name, with_labels.truth, with_labels.said, bootstrap, weights)
        verdict, threshold, reason = _judge(name, found, held.get(name), looked.plan, lacking or problem)
        rows.append(
            looked.row(
                "quality",
                name,
                value=found.value,
                low=found.low,
                high=found.high,
                threshold=threshold,
                verdict=verdict,
                rows=labelled,
                reason=reason,
            )
        )
    return rows


def labels_said(labelled: int, of: int, received: datetime | None) -> str:
    """Which labels a window was judged by: two judgements by the same labels say the same."""
    last = (
        "" if received is None else f", the last received {received.astimezone(UTC):%Y-%m-%d %H:%M:%S.%f} UTC"
    )
    return f"{labelled:,} of {of:,} answered rows have a label{last}"


def _lacking(plan: QualityPlan, labelled: int, of: int) -> str:
    """Why there are too few labels for a verdict; empty where there are enough."""
    if not of:
        return "nothing was answered in this window"
    if not labelled:
        return f"no labels yet: none of {of:,} answered rows has one"
    if labelled < plan.minimum_labels:
        return f"{labelled:,} labels; {plan.minimum_labels:,} are needed"
    if labelled / of < plan.minimum_coverage:
        return f"{labelled / of:.1%} of the answered rows have labels; {plan.minimum_coverage:.0%} are needed"
    return ""


def _not_to_be_had(name: str, said: Outputs, spec: ModelSpec) -> str:
    """Why a metric cannot be computed from what the log has; empty where it can."""
    if spec.target.kind is TaskKind.MULTICLASS and name in _FROM_ALL_PROBABILITIES:
        return f"{name} needs the probability of every class, and the log has that of the answer alone"
    if spec.target.kind is TaskKind.BINARY and name in _FROM_SCORES and said.probabilities is None:
        return f"{name} needs scores, and not all answers have one"
    return ""


def _judge(
    name: str, found: Estimate, held: Estimate | None, plan: QualityPlan, lacking: str
) -> tuple[Verdict, float | None, str]:
    """The verdict, the bound that the interval may not lie wholly beyond, and why."""
    higher = MEASURES[name].higher_is_better
    bound = None if held is None else (held.low - plan.tolerated if higher else held.high + plan.tolerated)
    if lacking:
        return Verdict.INCONCLUSIVE, bound, lacking
    if held is None or bound is None or not math.isfinite(bound):
        return Verdict.INCONCLUSIVE, None, f"the champion's holdout says nothing of {name}"
    if not all(map(math.isfinite, (found.value, found.low, found.high))):
        return Verdict.INCONCLUSIVE, bound, f"{name} is not defined on these rows"
    worse = found.high < bound if higher else found.low > bound
    said = (
        f"{found.value:.4g} [{found.low:.4g}, {found.high:.4g}] where the holdout had "
        f"{held.value:.4g} [{held.low:.4g}, {held.high:.4g}]"
    )
    return (Verdict.FAIL if worse else Verdict.PASS), bound, said


def slice_rows(looked: Looked, joined: Joined, columns: Sequence[str]) -> list[MetricRow]:
    """The selection metric on each slice with rows enough, told and not judged: there may be many of them."""
    metric = looked.spec.training.metric
    with_labels = answered(joined, looked.spec)
    if not columns or not joined.rows.num_rows or _not_to_be_had(metric, with_labels.said, looked.spec):
        return []
    plan = looked.spec.evaluation.model_copy(update={"slices": tuple(columns)})
    spec = looked.spec.model_copy(update={"evaluation": plan})
    found, _ = slices_of(spec, with_labels, looked.bootstrap)
    return [
        looked.row(
            "slice",
            metric,
            f"{one.column}={one.value}",
            value=one.estimate.value,
            low=one.estimate.low,
            high=one.estimate.high,
            rows=one.estimate.rows,
        )
        for one in found
    ]


def fairness_rows(looked: Looked, joined: Joined, columns: Sequence[str]) -> list[MetricRow]:
    """The spec's fairness gates, asked of the labelled rows; those whose attribute is in the log."""
    gates = [gate for gate in looked.spec.gates if isinstance(gate, FairnessGate)]
    there = [gate for gate in gates if gate.attribute in columns]
    rows = [
        looked.row(
            "fairness",
            gate.measure,
            _of_gate(gate),
            verdict=Verdict.INCONCLUSIVE,
            reason=f"{gate.attribute} is no feature, so the log does not have it",
        )
        for gate in gates
        if gate not in there
    ]
    lacking = _lacking(looked.plan, joined.rows.num_rows, joined.answered)
    if lacking or not there:
        return rows + [
            looked.row("fairness", gate.measure, _of_gate(gate), verdict=Verdict.INCONCLUSIVE, reason=lacking)
            for gate in there
        ]
    spec = looked.spec.model_copy(update={"gates": tuple(there)})
    measured = Evaluation(
        model_digest="",
        first_version=False,
        champion=None,
        rows=joined.rows.num_rows,
        metrics={},
        train_metrics={},
        groups=groups_of(spec, answered(joined, spec)),
    )
    report = judge(there, measured)
    return rows + [
        looked.row(
            "fairness",
            gate.measure,
            _of_gate(gate),
            value=result.value,
            threshold=result.threshold,
            verdict=result.verdict,
            rows=joined.rows.num_rows,
            reason=result.reason,
        )
        for gate, result in zip(there, report.results, strict=True)
    ]


def _of_gate(gate: FairnessGate) -> str:
    return gate.attribute + (f" {gate.metric}" if gate.metric else "")


# Estimated without labels ----------------------------------------------------------------------------------


def estimated_rows(looked: Looked, rows: pa.Table, of: int, evaluation: Evaluation | None) -> list[MetricRow]:
    """What the metrics are expected to be if the scores are still right: told, never judged.

    Each row counts as positive with the weight of its score and as negative with the rest (confidence-based
    performance estimation: Kivimäki et al., Performance estimation in binary classification using calibrated
    confidence, 2025). It sees what moved inputs do to a calibrated model and is blind to a changed relation of inputs
    and outcome, so it is no replacement for labels.

    Args:
        looked: version, window, plan and spec.
        rows: answered rows, or a sample of them.
        of: how many were answered.
        evaluation: the champion's, for the calibration that all this rests on.
    """
    if looked.spec.target.kind is not TaskKind.BINARY or not rows.num_rows:
        return []
    metrics = [f"estimated_{name}" for name in quality_metrics(looked.plan, looked.spec)]
    said = said_of(rows, looked.spec)
    error = evaluation.calibration.error if evaluation and evaluation.calibration else math.nan
    problem = ""
    if said.probabilities is None or ((said.score < 0) | (said.score > 1)).any():
        problem = "not all answers have a probability"
    elif not error <= CALIBRATED:
        problem = (
            f"the scores' calibration error on the holdout is {error:.3f}, and {CALIBRATED:g} is the most"
        )
    if problem:
        return [looked.row("estimated_quality", name, rows=rows.num_rows, reason=problem) for name in metrics]
    share = said.score
    doubled = said.take(np.tile(np.arange(len(share)), 2))
    truth = np.repeat([True, False], len(share))
    bootstrap = looked.bootstrap
    resamples = bootstrap.weights(np.arange(len(share)))
    reason = (
        f"expected from the scores of {len(share):,} of {of:,} answered rows, if they are as right as on the holdout "
        f"(calibration error {error:.3f}); an estimate, and blind to a changed relation of inputs and outcome"
    )
    found = []
    for name in quality_metrics(looked.plan, looked.spec):
        metric = weighted(name, truth, doubled)
        values = np.concatenate(
            [metric(np.hstack([counts * share, counts * (1 - share)])) for counts in resamples.chunks()]
        )
        low, high = bootstrap.interval(resamples, values)
        value = measure(name, truth, doubled, np.concatenate([share, 1 - share]))
        found.append(
            looked.row(
                "estimated_quality",
                f"estimated_{name}",
                value=value,
                low=low,
                high=high,
                rows=len(share),
                reason=reason,
            )
        )
    return found


# What the model goes by ------------------------------------------------------------------------------------


def importance_rows(
    looked: Looked, live: Mapping[str, float], before: Mapping[str, float], rows: int
) -> list[MetricRow]:
    """How much each feature matters on labelled live rows, and how far that is from what it was; told, not judged.

    `importance_shift` is the total variation distance of the two, each as shares of its sum: 0 where features matter
    as before, 1 where none does that did. What a feature takes away from the metric counts as nothing.

    Args:
        looked: version, window, plan and spec.
        live: the selection metric's loss without each feature, on labelled rows of the window.
        before: the same on training rows.
        rows: how many labelled rows were looked at.
    """
    found = []
    for name, value in live.items():
        was = before.get(name, math.nan)
        found.append(
            looked.row(
                "importance", "importance", name, value=value, rows=rows, reason=f"{was:.4g} in training"
            )
        )
    shares = [pd.Series(one, dtype=float).clip(lower=0).fillna(0.0) for one in (live, before)]
    if all(one.sum() > 0 for one in shares):
        now, then = (one / one.sum() for one in shares)
        shift = float(now.sub(then, fill_value=0.0).abs().sum() / 2)
        found.append(looked.row("importance", "importance_shift", value=shift, rows=rows))
    return found
