"""Metrics over what a model said, weighted, and their bootstrap intervals.

One implementation serves search, evaluation, slices and gates, so that a name means one thing everywhere. The
arithmetic is scikit-learn's.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import sklearn
from sklearn import metrics as sk

from deployments.declared import Declared
from deployments.measures import MEASURES
from deployments.spec import Target


class Estimate(Declared):
    """A metric, its bootstrap interval, and the rows behind it. NaN means that it could not be computed."""

    value: float
    low: float
    high: float
    rows: int


@dataclass(frozen=True)
class Outputs:
    """What a model said of some rows.

    `predictions` has shape (rows,); `probabilities` has shape (rows, classes), in the order of `classes`, and
    is None for regression. `positive` is the index of the positive class of a binary model.
    """

    predictions: np.ndarray
    probabilities: np.ndarray | None = None
    classes: np.ndarray | None = None
    positive: int | None = None

    @property
    def score(self) -> np.ndarray:
        """One number a row: probability of the positive class, of the predicted class, or the prediction."""
        if self.probabilities is None:
            return self.predictions
        if self.positive is None:
            return np.asarray(self.probabilities.max(axis=1))
        return np.asarray(self.probabilities[:, self.positive])

    def take(self, chosen: np.ndarray) -> "Outputs":
        """The same for some of the rows, by index or mask."""
        probabilities = None if self.probabilities is None else self.probabilities[chosen]
        return Outputs(self.predictions[chosen], probabilities, self.classes, self.positive)


def outputs_of(model: Any, inputs: pd.DataFrame, target: Target) -> Outputs:
    """Ask a model about some rows.

    Raises:
        ValueError: a binary model does not know the positive class.
    """
    predictions = np.asarray(model.predict(inputs))
    if target.kind == "regression":
        return Outputs(predictions.astype(np.float64))
    classes = np.asarray(model.classes_)
    positive = None
    if target.positive is not None:
        places = np.flatnonzero(classes == _like(target.positive, classes))
        if len(places) != 1:
            raise ValueError(f"the model's classes {classes.tolist()} do not include {target.positive!r}")
        positive = int(places[0])
    return Outputs(predictions, np.asarray(model.predict_proba(inputs)), classes, positive)


def _like(value: object, classes: np.ndarray) -> object:
    return str(value) if classes.dtype.kind in "UO" else value


def measure(name: str, truth: np.ndarray, outputs: Outputs, weights: np.ndarray | None = None) -> float:
    """One metric; NaN where it is not defined, as ROC AUC is not with one class.

    Raises:
        KeyError: no metric of that name.
    """
    compute = _METRICS[name]
    if len(truth) == 0 or (MEASURES[name].kinds and _one_class(name, truth, weights)):
        return math.nan
    with sklearn.config_context(skip_parameter_validation=True, assume_finite=True):
        return float(compute(truth, outputs, weights))


_NEEDS_TWO_CLASSES = {"roc_auc", "average_precision", "roc_auc_ovr", "log_loss", "balanced_accuracy"}


def _one_class(name: str, truth: np.ndarray, weights: np.ndarray | None) -> bool:
    if name not in _NEEDS_TWO_CLASSES:
        return False
    seen = truth if weights is None else truth[weights > 0]
    return len(seen) == 0 or bool((seen == seen[0]).all())


def _is_positive(truth: np.ndarray, outputs: Outputs) -> np.ndarray:
    assert outputs.classes is not None
    assert outputs.positive is not None
    return np.asarray(truth == outputs.classes[outputs.positive])


Metric = Callable[[np.ndarray, Outputs, np.ndarray | None], float]


def _of_score(metric: Callable[..., float]) -> Metric:
    return lambda truth, outputs, weights: metric(
        _is_positive(truth, outputs), outputs.score, sample_weight=weights
    )


def _of_decision(metric: Callable[..., float], **options: Any) -> Metric:
    def compute(truth: np.ndarray, outputs: Outputs, weights: np.ndarray | None) -> float:
        decided = _is_positive(outputs.predictions, outputs)
        return metric(_is_positive(truth, outputs), decided, sample_weight=weights, **options)

    return compute


def _of_prediction(metric: Callable[..., float], **options: Any) -> Metric:
    return lambda truth, outputs, weights: metric(
        truth, outputs.predictions, sample_weight=weights, **options
    )


def _log_loss(truth: np.ndarray, outputs: Outputs, weights: np.ndarray | None) -> float:
    return float(sk.log_loss(truth, outputs.probabilities, sample_weight=weights, labels=outputs.classes))


def _roc_auc_ovr(truth: np.ndarray, outputs: Outputs, weights: np.ndarray | None) -> float:
    """Macro average over the classes that are there, each against the rest."""
    assert outputs.classes is not None
    assert outputs.probabilities is not None
    areas = []
    for place, label in enumerate(outputs.classes):
        is_label = truth == label
        shown = is_label if weights is None else is_label[weights > 0]
        if shown.any() and not shown.all():
            areas.append(sk.roc_auc_score(is_label, outputs.probabilities[:, place], sample_weight=weights))
    return float(np.mean(areas)) if areas else math.nan


_METRICS: dict[str, Metric] = {
    "roc_auc": _of_score(sk.roc_auc_score),
    "average_precision": _of_score(sk.average_precision_score),
    "brier": _of_score(sk.brier_score_loss),
    "f1": _of_decision(sk.f1_score, zero_division=0.0),
    "precision": _of_decision(sk.precision_score, zero_division=0.0),
    "recall": _of_decision(sk.recall_score, zero_division=0.0),
    "log_loss": _log_loss,
    "accuracy": _of_prediction(sk.accuracy_score),
    "balanced_accuracy": _of_prediction(sk.balanced_accuracy_score),
    "f1_macro": _of_prediction(sk.f1_score, average="macro", zero_division=0.0),
    "roc_auc_ovr": _roc_auc_ovr,
    "mae": _of_prediction(sk.mean_absolute_error),
    "rmse": _of_prediction(sk.root_mean_squared_error),
    "median_absolute_error": _of_prediction(sk.median_absolute_error),
    "r2": _of_prediction(sk.r2_score),
}


@dataclass(frozen=True)
class Bootstrap:
    """Resampling of rows, whole clusters at a time, by weights; the same seed gives the same resamples.

    `resamples` is lowered on large samples (to 2e7 weights in all, never below 200), where intervals are narrow.
    Intervals are percentile intervals (Efron & Tibshirani, An Introduction to the Bootstrap, 1993, ch. 13).
    """

    resamples: int = 500
    confidence: float = 0.95
    seed: int = 0

    def weights(self, clusters: np.ndarray) -> "list[np.ndarray]":
        """How often each row is in each resample; `clusters` has shape (rows,) and names each row's cluster."""
        names, members = np.unique(clusters, return_inverse=True)
        generator = np.random.default_rng(self.seed)
        count = max(200, min(self.resamples, int(2e7 // max(len(clusters), 1))))
        even = np.full(len(names), 1 / len(names))
        return [generator.multinomial(len(names), even)[members].astype(float) for _ in range(count)]

    def interval(self, values: "list[float]") -> tuple[float, float]:
        """The percentile interval; NaN where more than 5 % of the resamples gave no value."""
        found = np.asarray([value for value in values if not math.isnan(value)])
        if len(found) < 0.95 * len(values) or not len(found):
            return math.nan, math.nan
        tail = (1 - self.confidence) / 2
        low, high = np.quantile(found, [tail, 1 - tail])
        return float(low), float(high)


def estimate(
    name: str, truth: np.ndarray, outputs: Outputs, bootstrap: Bootstrap, weights: "list[np.ndarray]"
) -> Estimate:
    """A metric with its interval; `weights` comes from `bootstrap.weights`."""
    low, high = bootstrap.interval([measure(name, truth, outputs, w) for w in weights])
    return Estimate(value=measure(name, truth, outputs), low=low, high=high, rows=len(truth))


def estimate_improvement(
    name: str,
    truth: np.ndarray,
    challenger: Outputs,
    champion: Outputs,
    bootstrap: Bootstrap,
    weights: "list[np.ndarray]",
) -> Estimate:
    """How much better the challenger is on the same rows, with a paired interval; positive is better."""
    better = MEASURES[name].improvement
    value = better(measure(name, truth, challenger), measure(name, truth, champion))
    resampled = [
        better(measure(name, truth, challenger, w), measure(name, truth, champion, w)) for w in weights
    ]
    low, high = bootstrap.interval(resampled)
    return Estimate(value=value, low=low, high=high, rows=len(truth))
