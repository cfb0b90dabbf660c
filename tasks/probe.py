"""Probes: what can only be found by running a model. None of them sees the holdout."""

import math
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from deployments.declared import Declared
from deployments.errors import first_line
from deployments.gates import RobustnessGate
from deployments.measures import MEASURES, TaskKind
from deployments.spec import ModelSpec
from tasks.metrics import Outputs, measure, outputs_of
from tasks.threads import limited_threads

UNSEEN = "(never seen before)"


class Latency(Declared):
    """One-row predictions of the saved and reloaded model, in milliseconds."""

    requests: int
    p50_milliseconds: float
    p95_milliseconds: float


class Swing(Declared):
    """How far one perturbation moved the scores, on average; `error` is set where the model failed on it."""

    perturbation: str
    swing: float
    error: str = ""


class SingleFeature(Declared):
    """How well one feature alone predicts the target."""

    feature: str
    score: float


def latency(model: Any, inputs: pd.DataFrame, requests: int) -> Latency:
    """Time one-row predictions, each of another row, after ten to warm up.

    A slow model is asked less often: it takes at most `_LATENCY_SECONDS`, once there are 50 answers. It has one
    thread, as where it is served: two that wait for each other on a busy machine take many times as long.
    """
    predict = getattr(model, "predict_proba", model.predict)
    measured: list[float] = []
    with limited_threads(1):
        for place in range(_WARM_UP):
            predict(inputs.iloc[[place % len(inputs)]])
        while len(measured) < requests and (len(measured) < 50 or sum(measured) < _LATENCY_SECONDS):
            row = inputs.iloc[[(_WARM_UP + len(measured)) % len(inputs)]]
            started = time.perf_counter()
            predict(row)
            measured.append(time.perf_counter() - started)
    return Latency(
        requests=len(measured),
        p50_milliseconds=float(np.quantile(measured, 0.5)) * 1000,
        p95_milliseconds=float(np.quantile(measured, 0.95)) * 1000,
    )


_WARM_UP, _LATENCY_SECONDS = 10, 2.0


def robustness(model: Any, inputs: pd.DataFrame, spec: ModelSpec, gate: RobustnessGate) -> tuple[Swing, ...]:
    """Perturb a sample of rows in each way, and see how far the scores move.

    The swing is the mean absolute difference of the score; for regression it is over the standard deviation of
    the unperturbed predictions.
    """
    sample = inputs.sample(min(gate.rows, len(inputs)), random_state=0).reset_index(drop=True)
    kind = spec.target.kind
    before = _scores(model, sample, spec)
    unit = float(np.std(before)) or 1.0 if kind is TaskKind.REGRESSION else 1.0
    swings = []
    for name, perturb in _perturbations(spec, gate).items():
        try:
            after = _scores(model, perturb(sample.copy(), np.random.default_rng(0)), spec)
        except (ValueError, TypeError) as error:
            swings.append(Swing(perturbation=name, swing=math.nan, error=first_line(error)[:200]))
            continue
        swings.append(Swing(perturbation=name, swing=float(np.mean(np.abs(after - before)) / unit)))
    return tuple(swings)


def _scores(model: Any, inputs: pd.DataFrame, spec: ModelSpec) -> np.ndarray:
    """What is compared: all class probabilities where there are any, so that a changed class counts."""
    said = outputs_of(model, inputs, spec.target)
    return said.score if spec.target.kind is not TaskKind.MULTICLASS else np.asarray(said.probabilities)


Perturbation = Callable[[pd.DataFrame, np.random.Generator], pd.DataFrame]


def _perturbations(spec: ModelSpec, gate: RobustnessGate) -> dict[str, Perturbation]:
    """Noise on numbers; values missing wherever the pipeline or the contract provides for it; unseen categories."""
    features, declared = spec.features, spec.feature_contract.columns
    numbers, categories = features.numeric.columns, features.categorical.columns
    share = gate.missing_share
    nullable = {name for name in features.columns if declared[name].nullable}
    blanks = {
        "missing numbers": [n for n in numbers if n in nullable or features.numeric.impute != "none"],
        "missing categories": list(categories),
        "missing booleans": [n for n in features.boolean if n in nullable],
        "missing dates": list(features.dates.columns),
    }
    ways: dict[str, Perturbation] = {}
    if numbers:
        ways["noise on numbers"] = lambda rows, draw: _noisy(rows, numbers, gate.noise, draw)
    for name, columns in blanks.items():
        if columns:
            ways[name] = partial(_blanked, columns, share)
    if categories:
        ways["unseen categories"] = lambda rows, draw: _unseen(rows, categories, share, draw)
    return ways


def _noisy(
    rows: pd.DataFrame, columns: tuple[str, ...], noise: float, draw: np.random.Generator
) -> pd.DataFrame:
    for name in columns:
        values = rows[name].astype(float)
        rows[name] = values + draw.normal(0, noise * (float(values.std()) or 0.0) + 1e-12, len(rows))
    return rows


def _blanked(
    columns: Sequence[str], share: float, rows: pd.DataFrame, draw: np.random.Generator
) -> pd.DataFrame:
    for name in columns:
        gone = draw.random(len(rows)) < share
        values = rows[name].astype(float) if rows[name].dtype.kind in "biu" else rows[name]
        rows[name] = values.where(~gone)
    return rows


def _unseen(
    rows: pd.DataFrame, columns: tuple[str, ...], share: float, draw: np.random.Generator
) -> pd.DataFrame:
    for name in columns:
        rows[name] = rows[name].where(draw.random(len(rows)) >= share, UNSEEN)
    return rows


def single_features(
    inputs: pd.DataFrame, truth: np.ndarray, kind: TaskKind, rows: int = 5000
) -> tuple[SingleFeature, ...]:
    """The cross-validated score of a small tree on each feature alone, best first.

    The score is ROC AUC (one class against the rest, macro average), or R² for regression; at most `rows` rows
    of training data are looked at, and classes with fewer than three of them are left out.
    """
    from sklearn.model_selection import KFold, StratifiedKFold

    chosen = np.sort(np.random.default_rng(0).permutation(len(inputs))[:rows])
    if kind is not TaskKind.REGRESSION:
        _, places, counts = np.unique(truth[chosen], return_inverse=True, return_counts=True)
        chosen = chosen[counts[places] >= _FOLDS]
        if (counts >= _FOLDS).sum() < 2:
            return tuple(SingleFeature(feature=name, score=math.nan) for name in inputs.columns)
    inputs, truth = inputs.iloc[chosen], truth[chosen]
    splitter = (KFold if kind is TaskKind.REGRESSION else StratifiedKFold)(
        _FOLDS, shuffle=True, random_state=0
    )
    folds = list(splitter.split(inputs, truth))
    found = []
    for name in inputs.columns:
        values = _numbers(inputs[name])
        scores = [_score_alone(values, truth, train, test, kind) for train, test in folds]
        found.append(SingleFeature(feature=name, score=float(np.mean(scores))))
    return tuple(sorted(found, key=lambda item: math.inf if math.isnan(item.score) else -item.score))


_FOLDS = 3


def _numbers(column: pd.Series) -> np.ndarray:
    """A feature as floats of shape (rows, 1): dates as microseconds, categories numbered by name."""
    if pd.api.types.is_datetime64_any_dtype(column):
        values = column.astype("int64").astype(float).where(column.notna()).to_numpy()
    elif pd.api.types.is_numeric_dtype(column):
        values = column.to_numpy(dtype=float)
    else:
        codes = pd.factorize(column, sort=True)[0].astype(float)
        values = np.where(codes < 0, np.nan, codes)
    return values[:, np.newaxis]


def _score_alone(
    values: np.ndarray, truth: np.ndarray, train: np.ndarray, test: np.ndarray, kind: TaskKind
) -> float:
    """The score of a tree on one feature; that of a guess where the feature has no value to learn from."""
    from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor

    if np.isnan(values[train]).all():
        return 0.0 if kind is TaskKind.REGRESSION else 0.5
    small = {"max_depth": 4, "min_samples_leaf": 20, "random_state": 0}
    if kind is TaskKind.REGRESSION:
        said = DecisionTreeRegressor(**small).fit(values[train], truth[train]).predict(values[test])
        return measure("r2", truth[test], Outputs(said))
    tree = DecisionTreeClassifier(**small).fit(values[train], truth[train])
    said = Outputs(truth[test], tree.predict_proba(values[test]), tree.classes_)
    return measure("roc_auc_ovr", truth[test], said)


def importance(
    model: Any, inputs: pd.DataFrame, truth: np.ndarray, spec: ModelSpec, rows: int = 1000
) -> dict[str, float]:
    """Permutation importance (Breiman 2001): how much the selection metric loses without each feature, best first.

    The mean of three permutations of each feature, on a seeded sample of at most `rows` rows.
    """
    draw, metric = np.random.default_rng(0), spec.training.metric
    chosen = np.sort(draw.permutation(len(inputs))[:rows])
    inputs, truth = inputs.iloc[chosen], truth[chosen]
    whole = measure(metric, truth, outputs_of(model, inputs, spec.target))
    thrice = pd.concat([inputs] * _PERMUTATIONS, ignore_index=True)
    lost = {}
    for name in inputs.columns:
        shuffled = np.concatenate([draw.permutation(len(inputs)) for _ in range(_PERMUTATIONS)])
        permuted = thrice.assign(**{name: inputs[name].iloc[shuffled].reset_index(drop=True)})
        said = outputs_of(model, permuted, spec.target)
        parts = np.array_split(np.arange(len(permuted)), _PERMUTATIONS)
        without = [measure(metric, truth, said.take(part)) for part in parts]
        lost[str(name)] = MEASURES[metric].improvement(whole, float(np.mean(without)))
    return dict(sorted(lost.items(), key=lambda pair: math.inf if math.isnan(pair[1]) else -pair[1]))


_PERMUTATIONS = 3
