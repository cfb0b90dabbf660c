"""Metrics over what a model said, weighted, and their bootstrap intervals.

One implementation serves search, evaluation, slices and gates, so that a name means one thing everywhere. Each
metric sorts and compares once, and then answers for many weightings of the rows at a time; its numbers are
scikit-learn's.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

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

    @property
    def finite(self) -> bool:
        """Whether every probability, or every prediction of a number, is one."""
        said = self.predictions if self.probabilities is None else self.probabilities
        return said.dtype.kind != "f" or bool(np.isfinite(said).all())

    def take(self, chosen: np.ndarray) -> "Outputs":
        """The same for some of the rows, by index or mask."""
        probabilities = None if self.probabilities is None else self.probabilities[chosen]
        return Outputs(self.predictions[chosen], probabilities, self.classes, self.positive)


def outputs_of(model: Any, inputs: pd.DataFrame, target: Target) -> Outputs:
    """Ask a model about some rows.

    Raises:
        ValueError: a model for a binary target knows another number of classes, or not the positive one.
    """
    if target.kind == "regression":
        return Outputs(np.asarray(model.predict(inputs)).astype(np.float64))
    classes = np.asarray(model.classes_)
    positive = None
    if target.positive is not None:
        places = np.flatnonzero(classes == _like(target.positive, classes))
        if len(places) != 1:
            raise ValueError(f"the model's classes {classes.tolist()} do not include {target.positive!r}")
        if len(classes) != 2:
            raise ValueError(f"the target is binary, and the model knows the classes {classes.tolist()}")
        positive = int(places[0])
    probabilities = np.asarray(model.predict_proba(inputs))
    return Outputs(_decisions(model, inputs, probabilities, positive), probabilities, classes, positive)


def _decisions(
    model: Any, inputs: pd.DataFrame, probabilities: np.ndarray, positive: int | None
) -> np.ndarray:
    """The model's predictions; of a fixed threshold on what was just computed, without asking it again."""
    from sklearn.model_selection import FixedThresholdClassifier

    if positive is None or not isinstance(model, FixedThresholdClassifier):
        return np.asarray(model.predict(inputs))
    yes = probabilities[:, positive] >= model.threshold
    return np.asarray(model.classes_[np.where(yes, positive, 1 - positive)])


def _like(value: object, classes: np.ndarray) -> object:
    return str(value) if classes.dtype.kind in "UO" else value


Weighted = Callable[[np.ndarray], np.ndarray]
"""From weights of shape (weightings, rows) to one value a weighting; NaN where it is not defined."""


def measure(name: str, truth: np.ndarray, outputs: Outputs, weights: np.ndarray | None = None) -> float:
    """One metric; NaN where it is not defined, as ROC AUC is not with one class, or where the model said NaN.

    Raises:
        KeyError: no metric of that name.
    """
    chosen = np.ones(len(truth)) if weights is None else np.asarray(weights, dtype=float)
    return float(weighted(name, truth, outputs)(chosen[np.newaxis])[0])


def weighted(name: str, truth: np.ndarray, outputs: Outputs) -> Weighted:
    """One metric of these rows, to be asked under many weightings; what does not depend on them is done once.

    Raises:
        KeyError: no metric of that name.
    """
    prepare = _METRICS[name]
    if len(truth) == 0 or not outputs.finite or (truth.dtype.kind == "f" and not np.isfinite(truth).all()):
        return _undefined
    return prepare(truth, outputs)


def _undefined(weights: np.ndarray) -> np.ndarray:
    return np.full(len(weights), math.nan)


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """Quotients, NaN where the divisor is not positive."""
    found = np.full(np.broadcast_shapes(above.shape, below.shape), math.nan)
    np.divide(above, below, out=found, where=below > 0)
    return found


def _mean(values: np.ndarray) -> Weighted:
    return lambda weights: _ratio(weights @ values, weights.sum(axis=1))


def _positives(truth: np.ndarray, outputs: Outputs) -> np.ndarray:
    assert outputs.classes is not None
    assert outputs.positive is not None
    return np.asarray(truth == outputs.classes[outputs.positive])


@dataclass(frozen=True)
class _Ranking:
    """Rows from the highest score to the lowest; `starts` are the places where a new score begins."""

    order: np.ndarray
    starts: np.ndarray
    outcome: np.ndarray

    @classmethod
    def of(cls, outcome: np.ndarray, score: np.ndarray) -> "_Ranking":
        order = np.argsort(-score, kind="stable")
        sorted_score = score[order]
        starts = np.flatnonzero(np.r_[True, sorted_score[1:] != sorted_score[:-1]])
        return cls(order, starts, outcome[order].astype(float))

    def weights(self, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The weight of positive and of negative rows at each distinct score; (weightings, scores) each."""
        ranked = np.take(weights, self.order, axis=1)
        yes = ranked * self.outcome
        no = ranked - yes
        if len(self.starts) == len(self.order):
            return yes, no
        return np.add.reduceat(yes, self.starts, axis=1), np.add.reduceat(no, self.starts, axis=1)


def _area(outcome: np.ndarray, score: np.ndarray) -> Weighted:
    """Area under the ROC curve: the share of pairs ranked rightly, ties half (Hanley & McNeil 1982)."""
    ranking = _Ranking.of(outcome, score)

    def compute(weights: np.ndarray) -> np.ndarray:
        yes, no = ranking.weights(weights)
        above = np.cumsum(yes, axis=1)
        right = np.einsum("ij,ij->i", no, above - yes / 2)
        return _ratio(right, above[:, -1] * no.sum(axis=1))

    return compute


def _roc_auc(truth: np.ndarray, outputs: Outputs) -> Weighted:
    return _area(_positives(truth, outputs), outputs.score)


def _average_precision(truth: np.ndarray, outputs: Outputs) -> Weighted:
    """Precision at each distinct score, weighted by the recall it adds; NaN with one class."""
    ranking = _Ranking.of(_positives(truth, outputs), outputs.score)

    def compute(weights: np.ndarray) -> np.ndarray:
        yes, no = ranking.weights(weights)
        found = np.cumsum(yes, axis=1)
        picked = found + np.cumsum(no, axis=1)
        gained = np.einsum(
            "ij,ij->i", yes, np.divide(found, picked, out=np.zeros_like(found), where=picked > 0)
        )
        return np.where(no.sum(axis=1) > 0, _ratio(gained, found[:, -1]), math.nan)

    return compute


def _brier(truth: np.ndarray, outputs: Outputs) -> Weighted:
    return _mean((outputs.score - _positives(truth, outputs)) ** 2)


def _decided(score: Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]) -> "Metric":
    """A metric of the weights of true positives, of all positives, and of all rows answered yes."""

    def prepare(truth: np.ndarray, outputs: Outputs) -> Weighted:
        positive, yes = _positives(truth, outputs), _positives(outputs.predictions, outputs)
        columns = np.column_stack([positive & yes, positive, yes]).astype(float)
        return lambda weights: score(*(weights @ columns).T)

    return prepare


def _precision(hits: np.ndarray, _positive: np.ndarray, yes: np.ndarray) -> np.ndarray:
    """0 for a model that never says yes: the worst, so that silence passes no threshold."""
    return np.where(yes > 0, _ratio(hits, yes), 0.0)


def _recall(hits: np.ndarray, positive: np.ndarray, _yes: np.ndarray) -> np.ndarray:
    """Not defined without positives: there was nothing to find, by any model."""
    return _ratio(hits, positive)


def _f1(hits: np.ndarray, positive: np.ndarray, yes: np.ndarray) -> np.ndarray:
    return np.where(positive > 0, _ratio(2 * hits, positive + yes), math.nan)


def _log_loss(truth: np.ndarray, outputs: Outputs) -> Weighted:
    """NaN with one class, and where the truth has a class that the model does not know."""
    assert outputs.classes is not None
    assert outputs.probabilities is not None
    is_class = truth[:, np.newaxis] == outputs.classes
    if not is_class.any(axis=1).all():
        return _undefined
    given = outputs.probabilities[np.arange(len(truth)), is_class.argmax(axis=1)]
    tiny = np.finfo(given.dtype).eps
    loss = _mean(-np.log(np.clip(given, tiny, 1 - tiny)))
    columns = is_class.astype(float)
    return lambda weights: np.where((weights @ columns > 0).sum(axis=1) > 1, loss(weights), math.nan)


def _accuracy(truth: np.ndarray, outputs: Outputs) -> Weighted:
    return _mean((truth == outputs.predictions).astype(float))


def _balanced_accuracy(truth: np.ndarray, outputs: Outputs) -> Weighted:
    """Mean recall over the classes that are there; NaN with one of them."""
    there = (truth[:, np.newaxis] == np.unique(truth)).astype(float)
    hit = there * (truth == outputs.predictions)[:, np.newaxis]

    def compute(weights: np.ndarray) -> np.ndarray:
        total = weights @ there
        return _mean_of_some(_ratio(weights @ hit, total), total > 0, least=2)

    return compute


def _mean_of_some(values: np.ndarray, chosen: np.ndarray, least: int) -> np.ndarray:
    """The mean of each row over its chosen columns; NaN where there are fewer than `least`."""
    count = chosen.sum(axis=1)
    return np.where(count >= least, _ratio(np.where(chosen, values, 0.0).sum(axis=1), count), math.nan)


def _f1_macro(truth: np.ndarray, outputs: Outputs) -> Weighted:
    """Mean F1 over the classes that are there or were predicted."""
    labels = np.union1d(truth, outputs.predictions)
    there = (truth[:, np.newaxis] == labels).astype(float)
    predicted = (outputs.predictions[:, np.newaxis] == labels).astype(float)

    def compute(weights: np.ndarray) -> np.ndarray:
        total = weights @ there + weights @ predicted
        return _mean_of_some(_ratio(2 * (weights @ (there * predicted)), total), total > 0, least=1)

    return compute


def _roc_auc_ovr(truth: np.ndarray, outputs: Outputs) -> Weighted:
    """Mean over the classes that are there, each against the rest; NaN where the model does not know one."""
    assert outputs.classes is not None
    assert outputs.probabilities is not None
    if not np.isin(truth, outputs.classes).all():
        return _undefined
    areas = [
        _area(truth == label, outputs.probabilities[:, place]) for place, label in enumerate(outputs.classes)
    ]

    def compute(weights: np.ndarray) -> np.ndarray:
        found = np.column_stack([area(weights) for area in areas])
        return _mean_of_some(found, ~np.isnan(found), least=1)

    return compute


def _mae(truth: np.ndarray, outputs: Outputs) -> Weighted:
    return _mean(np.abs(truth - outputs.predictions))


def _rmse(truth: np.ndarray, outputs: Outputs) -> Weighted:
    squared = _mean((truth - outputs.predictions) ** 2)
    return lambda weights: np.sqrt(squared(weights))


def _median_absolute_error(truth: np.ndarray, outputs: Outputs) -> Weighted:
    """The weighted median; halfway between two errors where exactly half of the weight lies on each side."""
    errors = np.abs(truth - outputs.predictions)
    order = np.argsort(errors, kind="stable")
    errors = errors[order]

    def compute(weights: np.ndarray) -> np.ndarray:
        reached = np.cumsum(np.take(weights, order, axis=1), axis=1)
        half = reached[:, -1:] / 2
        lower, upper = (reached < half).sum(axis=1), (reached <= half).sum(axis=1)
        last = len(errors) - 1
        median = (errors[np.minimum(lower, last)] + errors[np.minimum(upper, last)]) / 2
        return np.where(half[:, 0] > 0, median, math.nan)

    return compute


def _r2(truth: np.ndarray, outputs: Outputs) -> Weighted:
    """Not defined where the truth does not vary."""
    centred = truth - truth.mean()
    columns = np.column_stack([np.ones(len(truth)), centred, centred**2, (truth - outputs.predictions) ** 2])

    def compute(weights: np.ndarray) -> np.ndarray:
        total, first, second, missed = (weights @ columns).T
        spread = second - _ratio(first**2, total)
        return 1 - _ratio(missed, np.where(spread > 1e-12 * second, spread, 0.0))

    return compute if np.ptp(truth) > 0 else _undefined


Metric = Callable[[np.ndarray, Outputs], Weighted]

_METRICS: dict[str, Metric] = {
    "roc_auc": _roc_auc,
    "average_precision": _average_precision,
    "brier": _brier,
    "f1": _decided(_f1),
    "precision": _decided(_precision),
    "recall": _decided(_recall),
    "log_loss": _log_loss,
    "accuracy": _accuracy,
    "balanced_accuracy": _balanced_accuracy,
    "f1_macro": _f1_macro,
    "roc_auc_ovr": _roc_auc_ovr,
    "mae": _mae,
    "rmse": _rmse,
    "median_absolute_error": _median_absolute_error,
    "r2": _r2,
}


_CHUNK = 50_000
"""Weights that are worked on at a time: what a processor keeps close by."""

_FEWEST_CLUSTERS = 10


@dataclass(frozen=True)
class Resamples:
    """How often each cluster is in each resample, (resamples, clusters), and each row's cluster, (rows,)."""

    counts: np.ndarray
    members: np.ndarray

    def __len__(self) -> int:
        return len(self.counts)

    def chunks(self) -> Iterator[np.ndarray]:
        """How often each row is in each resample, some resamples at a time; shape (some, rows)."""
        step = max(1, _CHUNK // max(len(self.members), 1))
        for start in range(0, len(self.counts), step):
            yield np.take(self.counts[start : start + step], self.members, axis=1).astype(float)

    def values(self, *metrics: Weighted) -> list[np.ndarray]:
        """Each metric's value in each resample; shape (resamples,) each."""
        found = [[metric(weights) for metric in metrics] for weights in self.chunks()]
        return [np.concatenate(parts) for parts in zip(*found, strict=True)]


@dataclass(frozen=True)
class Bootstrap:
    """Resampling of rows, whole clusters at a time, by weights; the same seed gives the same resamples.

    `resamples` is lowered on large samples (to 2e7 weights in all, never below 200), where intervals are narrow.
    Intervals are percentile intervals (Efron & Tibshirani, An Introduction to the Bootstrap, 1993, ch. 13).
    """

    resamples: int = 500
    confidence: float = 0.95
    seed: int = 0

    def weights(self, clusters: np.ndarray) -> Resamples:
        """Resamples of rows; `clusters` has shape (rows,) and names each row's cluster."""
        names, members = np.unique(clusters, return_inverse=True)
        size = len(names)
        generator = np.random.default_rng(self.seed)
        count = max(200, min(self.resamples, int(2e7 // max(len(clusters), 1))))
        # A cluster is drawn once on average; that one is drawn more than 255 times does not happen.
        counts = np.zeros((count, size), dtype=np.uint8)
        for place in range(count):
            counts[place] = np.bincount(generator.integers(0, size, size), minlength=size)
        return Resamples(counts, members)

    def interval(self, resamples: Resamples, values: np.ndarray) -> tuple[float, float]:
        """The percentile interval of a metric's values.

        NaN where more than 5 % of the resamples gave no value, or where there are too few clusters for their
        spread to say anything: a single one would make the interval a point.
        """
        found = values[np.isfinite(values)]
        if len(found) < 0.95 * len(values) or resamples.counts.shape[1] < _FEWEST_CLUSTERS:
            return math.nan, math.nan
        tail = (1 - self.confidence) / 2
        low, high = np.quantile(found, [tail, 1 - tail])
        return float(low), float(high)


def estimate(
    name: str, truth: np.ndarray, outputs: Outputs, bootstrap: Bootstrap, weights: Resamples
) -> Estimate:
    """A metric with its interval; `weights` comes from `bootstrap.weights`."""
    metric = weighted(name, truth, outputs)
    (values,) = weights.values(metric)
    low, high = bootstrap.interval(weights, values)
    return Estimate(value=_once(metric, truth), low=low, high=high, rows=len(truth))


def estimate_improvement(
    name: str,
    truth: np.ndarray,
    challenger: Outputs,
    champion: Outputs,
    bootstrap: Bootstrap,
    weights: Resamples,
) -> Estimate:
    """How much better the challenger is on the same rows, with a paired interval; positive is better."""
    ours, theirs = (weighted(name, truth, said) for said in (challenger, champion))
    sign = 1.0 if MEASURES[name].higher_is_better else -1.0
    challenged, held = weights.values(ours, theirs)
    low, high = bootstrap.interval(weights, sign * (challenged - held))
    value = sign * (_once(ours, truth) - _once(theirs, truth))
    return Estimate(value=value, low=low, high=high, rows=len(truth))


def _once(metric: Weighted, truth: np.ndarray) -> float:
    return float(metric(np.ones((1, len(truth))))[0])
