"""Search: folds that tear nothing apart, the same result for the same seed, and the best by the metric's direction."""

import math

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.svm import SVC
from sklearn.tree import DecisionTreeClassifier

from deployments.training import GridSearch, HalvingSearch, OptunaSearch, RandomSearch, Range
from tasks.frame import model_inputs, target_values
from tasks.pipeline import calibrated, make_pipeline
from tasks.search import fold_columns, make_folds, make_scorer, search

PLANS = {
    "grid": GridSearch(space={"C": (0.001, 1.0), "class_weight": (None, "balanced")}),
    "random": RandomSearch(space={"C": Range(low=0.001, high=10, log=True)}, iterations=4),
    "halving": HalvingSearch(space={"C": Range(low=0.001, high=10, log=True)}, iterations=3),
    "optuna": OptunaSearch(space={"C": Range(low=0.001, high=10, log=True)}, iterations=4),
}


@pytest.fixture
def task(make_spec, make_rows):
    """Makes a spec, its inputs, its target and folds."""

    def make(kind="binary", change=None):
        spec, rows = make_spec(kind, change).spec, make_rows(kind)
        inputs, truth = model_inputs(rows, spec), target_values(rows, spec)
        return spec, inputs, truth, make_folds(spec, truth, None, None)

    return make


def with_metric(metric):
    def change(document):
        document["training"]["metric"] = metric
        document["evaluation"]["metrics"].append(metric)

    return change


@pytest.mark.parametrize("plan", PLANS)
def test_the_same_seed_finds_the_same(task, plan):
    spec, inputs, truth, folds = task()
    pipeline = make_pipeline(spec, LogisticRegression())

    first, again = (search(spec, pipeline, PLANS[plan], inputs, truth, folds) for _ in range(2))

    assert first == again
    assert set(first.params) == set(PLANS[plan].space)
    assert len(first.folds) == len(folds)
    assert first.tried >= 3


@pytest.mark.parametrize("plan", PLANS)
def test_what_is_found_scores_on_each_fold_what_it_says(task, plan):
    spec, inputs, truth, folds = task()
    pipeline = make_pipeline(spec, LogisticRegression())

    found = search(spec, pipeline, PLANS[plan], inputs, truth, folds)

    chosen = make_pipeline(spec, LogisticRegression(**found.params))
    alone = search(spec, chosen, None, inputs, truth, folds)
    assert alone.folds == pytest.approx(found.folds)


@pytest.mark.parametrize(("metric", "better"), [("roc_auc", max), ("brier", min)])
@pytest.mark.parametrize("plan", ["grid", "optuna"])
def test_the_best_is_the_best_whichever_way_the_metric_points(task, metric, better, plan):
    spec, inputs, truth, folds = task(change=with_metric(metric))
    pipeline, plan = make_pipeline(spec, LogisticRegression()), PLANS[plan]

    found = search(spec, pipeline, plan, inputs, truth, folds)

    poor = make_pipeline(spec, LogisticRegression(C=0.0001))
    worst = search(spec, poor, None, inputs, truth, folds)
    assert all(score >= 0 for score in found.folds)
    assert better(np.mean(found.folds), np.mean(worst.folds)) == np.mean(found.folds)


def test_a_scorer_is_higher_for_the_better_model(make_rows, task):
    spec, inputs, truth, _ = task("regression")
    good, poor = (make_pipeline(spec, Ridge(alpha=alpha)).fit(inputs, truth) for alpha in (1.0, 1e6))

    scorer = make_scorer("rmse", spec.target)

    assert scorer(good, inputs, truth) > scorer(poor, inputs, truth)


def test_whole_numbers_are_drawn_as_whole_numbers(task):
    spec, inputs, truth, folds = task()
    pipeline = make_pipeline(spec, DecisionTreeClassifier(random_state=0))
    spaces = {
        "max_depth": Range(low=1, high=3, integer=True),
        "min_samples_leaf": Range(low=1, high=50, log=True, integer=True),
    }

    for plan in (RandomSearch(space=spaces, iterations=3), OptunaSearch(space=spaces, iterations=3)):
        found = search(spec, pipeline, plan, inputs, truth, folds)

        assert all(type(value) is int for value in found.params.values())
        assert 1 <= found.params["max_depth"] <= 3
        assert 1 <= found.params["min_samples_leaf"] <= 50


def test_a_combination_that_cannot_be_trained_stops_the_search(task):
    spec, inputs, truth, folds = task()
    pipeline = make_pipeline(spec, LogisticRegression())

    for plan in (GridSearch(space={"C": (1.0, -1.0)}), RandomSearch(space={"C": (1.0, -1.0)}, iterations=2)):
        with pytest.raises(ValueError, match="'C' parameter"):
            search(spec, pipeline, plan, inputs, truth, folds)


@pytest.mark.parametrize("plan", [None, *PLANS.values()], ids=["none", *PLANS])
def test_a_metric_that_is_not_defined_on_a_fold_stops_the_search(task, plan):
    spec, inputs, truth, _ = task()
    ones = np.flatnonzero(truth)
    rest = np.setdiff1d(np.arange(len(truth)), ones[:20])
    folds = [(rest, ones[:20]), (rest[::2], rest[1::2])]

    with pytest.raises(ValueError, match="not defined on fold 1 of 2"):
        search(spec, make_pipeline(spec, LogisticRegression()), plan, inputs, truth, folds)


def test_an_estimator_without_probabilities_is_searched_as_it_will_serve(task):
    spec, inputs, truth, folds = task()
    model = calibrated(make_pipeline(spec, SVC()), "sigmoid", 2)

    found = search(spec, model, GridSearch(space={"C": (0.001, 1.0)}), inputs, truth, folds)

    assert found.params == {"C": 1.0}
    assert not any(math.isnan(score) for score in found.folds)


def test_folds_never_tear_a_group_apart(make_spec):
    spec = make_spec().spec
    truth, groups = np.tile([False, True, False], 100), np.repeat(np.arange(60), 5)

    folds = make_folds(spec, truth, groups, None)

    assert sorted(np.concatenate([test for _, test in folds])) == list(range(300))
    for train, test in folds:
        assert not set(groups[train]) & set(groups[test])
        assert set(truth[test]) == {False, True}


def test_folds_of_a_split_by_time_run_forward(make_spec):
    spec = make_spec().spec
    times = np.random.default_rng(0).permutation(300)

    for train, test in make_folds(spec, np.tile([False, True], 150), None, times):
        assert times[train].max() < times[test].min()


@pytest.mark.parametrize("kind", ["binary", "multiclass", "regression"])
def test_folds_are_the_same_for_the_same_seed(task, kind):
    spec, _, truth, folds = task(kind)

    again = make_folds(spec, truth, None, None)

    assert all(
        (a == b).all() for one, two in zip(folds, again, strict=True) for a, b in zip(one, two, strict=True)
    )


@pytest.mark.parametrize(
    ("split", "expected"),
    [
        ({"kind": "group", "column": "tree"}, (("tree",), None)),
        ({"kind": "time", "column": "picked"}, ((), "picked")),
        ({"kind": "random"}, ((), None)),
    ],
)
def test_what_belongs_together_follows_from_the_split(make_spec, split, expected):
    spec = make_spec("binary", lambda document: document.update(split=split | {"min_rows": 30})).spec

    assert fold_columns(spec) == expected


def test_optuna_survives_a_trial_that_has_no_score(task, monkeypatch):
    spec, inputs, truth, folds = task()
    plan = OptunaSearch(space={"C": (0.5, 1.0)}, iterations=6)
    scores = iter([math.nan] * len(folds))
    plain = make_scorer(spec.training.metric, spec.target)
    monkeypatch.setattr(
        "tasks.search.make_scorer", lambda *_: lambda *asked: next(scores, None) or plain(*asked)
    )

    found = search(spec, make_pipeline(spec, LogisticRegression()), plan, inputs, truth, folds)

    assert all(0.5 < score < 1 for score in found.folds)


def test_rows_outside_the_folds_are_not_looked_at(task):
    spec, inputs, truth, folds = task()
    inside = np.sort(np.concatenate([test for _, test in folds]))[:200]
    chosen = make_folds(spec, truth[inside], None, None)
    poisoned = pd.concat([inputs.iloc[inside], inputs.iloc[:50].assign(weight=np.inf)], ignore_index=True)

    found = search(
        spec,
        make_pipeline(spec, LogisticRegression()),
        None,
        poisoned,
        np.concatenate([truth[inside], truth[:50]]),
        chosen,
    )

    assert all(math.isfinite(score) for score in found.folds)
