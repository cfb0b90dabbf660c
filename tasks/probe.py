"""Probes: what can only be found by running a model. None of them sees the holdout."""

import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
from sklearn.model_selection import KFold, StratifiedKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OrdinalEncoder
from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor

from deployments.declared import Declared
from deployments.gates import RobustnessGate
from deployments.measures import TaskKind
from deployments.spec import ModelSpec
from tasks.metrics import outputs_of

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
    """Time one-row predictions, each of another row, after ten to warm up."""
    rows = [inputs.iloc[[place % len(inputs)]] for place in range(requests + 10)]
    predict = getattr(model, "predict_proba", model.predict)
    seconds = []
    for row in rows:
        started = time.perf_counter()
        predict(row)
        seconds.append(time.perf_counter() - started)
    measured = np.asarray(seconds[10:]) * 1000
    return Latency(
        requests=requests,
        p50_milliseconds=float(np.quantile(measured, 0.5)),
        p95_milliseconds=float(np.quantile(measured, 0.95)),
    )


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
            swings.append(
                Swing(perturbation=name, swing=math.nan, error=str(error).strip().splitlines()[0][:200])
            )
            continue
        swings.append(Swing(perturbation=name, swing=float(np.mean(np.abs(after - before)) / unit)))
    return tuple(swings)


def _scores(model: Any, inputs: pd.DataFrame, spec: ModelSpec) -> np.ndarray:
    """What is compared: all class probabilities where there are any, so that a changed class counts."""
    said = outputs_of(model, inputs, spec.target)
    return said.score if spec.target.kind is not TaskKind.MULTICLASS else np.asarray(said.probabilities)


Perturbation = Callable[[pd.DataFrame, np.random.Generator], pd.DataFrame]


def _perturbations(spec: ModelSpec, gate: RobustnessGate) -> dict[str, Perturbation]:
    features = spec.features
    ways: dict[str, Perturbation] = {}
    if features.numeric.columns:
        ways["noise on numbers"] = lambda rows, draw: _noisy(rows, features.numeric.columns, gate.noise, draw)
        if features.numeric.impute != "none":
            ways["missing numbers"] = lambda rows, draw: _blanked(
                rows, features.numeric.columns, gate.missing_share, draw
            )
    if features.categorical.columns:
        ways["missing categories"] = lambda rows, draw: _blanked(
            rows, features.categorical.columns, gate.missing_share, draw
        )
        ways["unseen categories"] = lambda rows, draw: _unseen(
            rows, features.categorical.columns, gate.missing_share, draw
        )
    return ways


def _noisy(
    rows: pd.DataFrame, columns: tuple[str, ...], noise: float, draw: np.random.Generator
) -> pd.DataFrame:
    for name in columns:
        values = rows[name].astype(float)
        rows[name] = values + draw.normal(0, noise * (float(values.std()) or 0.0) + 1e-12, len(rows))
    return rows


def _blanked(
    rows: pd.DataFrame, columns: tuple[str, ...], share: float, draw: np.random.Generator
) -> pd.DataFrame:
    for name in columns:
        gone = draw.random(len(rows)) < share
        values = rows[name] if rows[name].dtype == object else rows[name].astype(float)
        rows[name] = values.where(~gone, np.nan)
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
    of training data are looked at.
    """
    chosen = np.sort(np.random.default_rng(0).permutation(len(inputs))[:rows])
    inputs, truth = inputs.iloc[chosen], truth[chosen]
    regression = kind is TaskKind.REGRESSION
    tree = (DecisionTreeRegressor if regression else DecisionTreeClassifier)(
        max_depth=4, min_samples_leaf=20, random_state=0
    )
    folds = (KFold if regression else StratifiedKFold)(3, shuffle=True, random_state=0)
    scoring = "r2" if regression else "roc_auc_ovr" if kind is TaskKind.MULTICLASS else "roc_auc"
    found = []
    for name in inputs.columns:
        column = inputs[[name]]
        if column[name].dtype == object:
            encoder = OrdinalEncoder(
                handle_unknown="use_encoded_value", unknown_value=-1, encoded_missing_value=-2
            )
            model: Any = make_pipeline(encoder, tree)
        else:
            column = column.assign(**{name: _numbers(column[name])})
            model = tree
        scores = cross_val_score(model, column, truth, cv=folds, scoring=scoring, error_score=np.nan)
        found.append(SingleFeature(feature=name, score=float(np.mean(scores))))
    return tuple(sorted(found, key=lambda item: -item.score if not math.isnan(item.score) else -math.inf))


def _numbers(values: pd.Series) -> pd.Series:
    if pd.api.types.is_datetime64_any_dtype(values):
        return values.astype("int64").astype(float)
    return values.astype(float)


def importance(model: Any, inputs: pd.DataFrame, truth: np.ndarray, spec: ModelSpec) -> dict[str, float]:
    """Permutation importance (Breiman 2001): how much the selection metric loses without each feature, best first."""
    from sklearn.inspection import permutation_importance

    from tasks.search import make_scorer

    found = permutation_importance(
        model,
        inputs,
        truth,
        scoring=make_scorer(spec.training.metric, spec.target),
        n_repeats=3,
        random_state=0,
        max_samples=min(len(inputs), 2000),
    )
    ranked = sorted(zip(inputs.columns, found.importances_mean, strict=True), key=lambda pair: -pair[1])
    return {str(name): float(value) for name, value in ranked}
