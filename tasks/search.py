"""Search: the best parameters of one candidate by cross-validation on the training part."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from deployments.measures import MEASURES, TaskKind
from deployments.spec import ModelSpec, Target
from deployments.training import (
    GridSearch,
    GroupSplit,
    HalvingSearch,
    OptunaSearch,
    RandomSearch,
    Range,
    TimeSplit,
    Values,
)
from tasks.metrics import measure, outputs_of
from tasks.pipeline import Folds, model_prefix

if TYPE_CHECKING:
    from sklearn.base import BaseEstimator


@dataclass(frozen=True)
class SearchResult:
    """The parameters found, and the metric of each fold with them."""

    params: dict[str, Any]
    folds: tuple[float, ...]
    tried: int


def make_folds(
    spec: ModelSpec, truth: np.ndarray, groups: np.ndarray | None, times: np.ndarray | None
) -> Folds:
    """Row indices of the cross-validation folds, honest to how the data is split.

    Rows of one group are never in two folds; without groups, a split by time gives folds that run forward.

    Args:
        spec: the model spec.
        truth: the target, shape (rows,).
        groups: what may not be torn apart, shape (rows,), or None.
        times: the time of each row, shape (rows,), or None.
    """
    from sklearn.model_selection import (
        GroupKFold,
        KFold,
        StratifiedGroupKFold,
        StratifiedKFold,
        TimeSeriesSplit,
    )

    count, seed = spec.training.folds, spec.training.seed
    classes = spec.target.kind is not TaskKind.REGRESSION
    rows = np.zeros(len(truth))
    if groups is not None:
        kind = StratifiedGroupKFold if classes else GroupKFold
        return list(kind(count, shuffle=True, random_state=seed).split(rows, truth, groups))
    if times is not None:
        order = np.argsort(times, kind="stable")
        return [(order[train], order[test]) for train, test in TimeSeriesSplit(count).split(order)]
    kind = StratifiedKFold if classes else KFold
    return list(kind(count, shuffle=True, random_state=seed).split(rows, truth))


def fold_columns(spec: ModelSpec) -> tuple[tuple[str, ...], str | None]:
    """The columns that say which rows belong together, and the one that says when; empty and None for neither."""
    if isinstance(spec.split, GroupSplit):
        return (spec.split.column,), None
    if spec.labels is not None:
        return spec.features.entity, None
    return (), spec.split.column if isinstance(spec.split, TimeSplit) else None


def make_scorer(metric: str, target: Target) -> Callable[[Any, pd.DataFrame, np.ndarray], float]:
    """A scikit-learn scorer for one of our metrics: higher is better, whatever the metric."""
    sign = 1.0 if MEASURES[metric].higher_is_better else -1.0
    return lambda model, inputs, truth: sign * measure(metric, truth, outputs_of(model, inputs, target))


def search(
    spec: ModelSpec,
    pipeline: "BaseEstimator",
    plan: GridSearch | RandomSearch | HalvingSearch | OptunaSearch | None,
    inputs: pd.DataFrame,
    truth: np.ndarray,
    folds: Folds,
) -> SearchResult:
    """Try what the plan says and return the best; the same seed gives the same result.

    Raises:
        ValueError: an estimator refuses its parameters or the data, or the metric is not defined on a fold.
    """
    found = _search(spec, pipeline, plan, inputs, truth, folds)
    undefined = [str(place) for place, score in enumerate(found.folds, 1) if math.isnan(score)]
    if undefined:
        raise ValueError(
            f"{spec.training.metric} is not defined on fold {', '.join(undefined)} of {len(folds)}: "
            "a class is missing there, or the model gives NaN; fewer folds may help"
        )
    return found


def _search(
    spec: ModelSpec,
    pipeline: "BaseEstimator",
    plan: GridSearch | RandomSearch | HalvingSearch | OptunaSearch | None,
    inputs: pd.DataFrame,
    truth: np.ndarray,
    folds: Folds,
) -> SearchResult:
    from sklearn.model_selection import GridSearchCV, RandomizedSearchCV

    metric, seed = spec.training.metric, spec.training.seed
    sign = 1.0 if MEASURES[metric].higher_is_better else -1.0
    scorer = make_scorer(metric, spec.target)
    prefix = model_prefix(pipeline)
    space = {} if plan is None else _prefixed(plan.space, prefix)
    match plan:
        case None:
            scores = [_fold_score(pipeline, {}, inputs, truth, fold, scorer) for fold in folds]
            return SearchResult({}, tuple(sign * score for score in scores), 1)
        case OptunaSearch():
            return _optuna(pipeline, plan, inputs, truth, folds, scorer, seed, sign)
        case GridSearch():
            searcher = GridSearchCV(
                pipeline, space, scoring=scorer, cv=folds, refit=False, error_score="raise"
            )
        case RandomSearch():
            searcher = RandomizedSearchCV(
                pipeline,
                space,
                n_iter=min(plan.iterations, _size(plan.space)),
                scoring=scorer,
                cv=folds,
                refit=False,
                error_score="raise",
                random_state=seed,
            )
        case HalvingSearch():
            survivor, tried = _halving(pipeline, plan, space, inputs, truth, folds, scorer, seed)
            scores = [_fold_score(pipeline, survivor, inputs, truth, fold, scorer) for fold in folds]
            return SearchResult(_plain(survivor, prefix), tuple(sign * score for score in scores), tried)
    searcher.fit(inputs, truth)
    results = searcher.cv_results_
    best = int(np.argmin(results["rank_test_score"]))
    scores = [results[f"split{i}_test_score"][best] for i in range(len(folds))]
    return SearchResult(
        _plain(results["params"][best], prefix),
        tuple(sign * float(score) for score in scores),
        len(results["params"]),
    )


def _halving(
    pipeline: "BaseEstimator",
    plan: HalvingSearch,
    space: Mapping[str, Any],
    inputs: pd.DataFrame,
    truth: np.ndarray,
    folds: Folds,
    scorer: Callable[..., float],
    seed: int,
) -> tuple[dict[str, Any], int]:
    """scikit-learn's successive halving over rows; returns the survivor and how many set out."""
    from sklearn.experimental import enable_halving_search_cv  # noqa: F401
    from sklearn.model_selection import HalvingRandomSearchCV

    searcher = HalvingRandomSearchCV(
        pipeline,
        space,
        n_candidates=min(plan.iterations, _size(plan.space)),
        factor=plan.factor,
        min_resources=min(len(truth), max(100, len(truth) // plan.factor**2)),
        aggressive_elimination=True,
        scoring=scorer,
        cv=folds,
        refit=False,
        error_score="raise",
        random_state=seed,
    )
    searcher.fit(inputs, truth)
    return dict(searcher.best_params_), int(searcher.n_candidates_[0])


def _optuna(
    pipeline: "BaseEstimator",
    plan: OptunaSearch,
    inputs: pd.DataFrame,
    truth: np.ndarray,
    folds: Folds,
    scorer: Callable[..., float],
    seed: int,
    sign: float,
) -> SearchResult:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    prefix = model_prefix(pipeline)

    def objective(trial: optuna.Trial) -> float:
        params = {prefix + name: _suggest(trial, name, space) for name, space in plan.space.items()}
        scores = [_fold_score(pipeline, params, inputs, truth, fold, scorer) for fold in folds]
        trial.set_user_attr("folds", scores)
        mean = float(np.mean(scores))
        return -math.inf if math.isnan(mean) else mean

    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=seed))
    study.optimize(objective, n_trials=plan.iterations)
    scores = study.best_trial.user_attrs["folds"]
    return SearchResult(dict(study.best_params), tuple(sign * score for score in scores), plan.iterations)


def _suggest(trial: Any, name: str, space: Values | Range) -> Any:
    if not isinstance(space, Range):
        return trial.suggest_categorical(name, list(space))
    if space.integer:
        return trial.suggest_int(name, int(space.low), int(space.high), log=space.log)
    return trial.suggest_float(name, space.low, space.high, log=space.log)


def _fold_score(
    pipeline: "BaseEstimator",
    params: Mapping[str, Any],
    inputs: pd.DataFrame,
    truth: np.ndarray,
    fold: tuple[np.ndarray, np.ndarray],
    scorer: Callable[..., float],
) -> float:
    from sklearn.base import clone

    train, test = fold
    model = clone(pipeline).set_params(**params).fit(inputs.iloc[train], truth[train])
    return float(scorer(model, inputs.iloc[test], truth[test]))


def _prefixed(space: Mapping[str, Values | Range] | Mapping[str, Values], prefix: str) -> dict[str, Any]:
    return {
        prefix + name: _distribution(values) if isinstance(values, Range) else list(values)
        for name, values in space.items()
    }


def _distribution(values: Range) -> Any:
    from scipy.stats import loguniform, randint, uniform

    if values.log:
        return _LogIntegers(values) if values.integer else loguniform(values.low, values.high)
    if values.integer:
        return randint(int(values.low), int(values.high) + 1)
    return uniform(values.low, values.high - values.low)


class _LogIntegers:
    """Whole numbers, uniform in their logarithm."""

    def __init__(self, values: Range) -> None:
        from scipy.stats import loguniform

        self._continuous = loguniform(values.low, values.high)

    def rvs(self, random_state: Any = None) -> int:
        """One draw."""
        return round(float(self._continuous.rvs(random_state=random_state)))


def _size(space: Mapping[str, Values | Range]) -> int:
    """How many different draws there are; a great many where any parameter has a range."""
    size = 1
    for values in space.values():
        if isinstance(values, Range):
            return 10**9
        size *= len(values)
    return size


def _plain(params: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    return {name.removeprefix(prefix): _python(value) for name, value in params.items()}


def _python(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value
