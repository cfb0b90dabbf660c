"""Metrics: scikit-learn's numbers, weighted or not; not defined is NaN; intervals cover and hold clusters together."""

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import FixedThresholdClassifier

from deployments.measures import MEASURES, TaskKind, measures_for
from deployments.spec import Target
from tasks.metrics import (
    _METRICS,
    Bootstrap,
    Outputs,
    estimate,
    estimate_improvement,
    measure,
    outputs_of,
    weighted,
)

BINARY = {
    "roc_auc": lambda y, said, w: sk.roc_auc_score(y, said.score, sample_weight=w),
    "average_precision": lambda y, said, w: sk.average_precision_score(y, said.score, sample_weight=w),
    "brier": lambda y, said, w: sk.brier_score_loss(y, said.score, sample_weight=w),
    "f1": lambda y, said, w: sk.f1_score(y, said.predictions, sample_weight=w),
    "precision": lambda y, said, w: sk.precision_score(
        y, said.predictions, sample_weight=w, zero_division=0.0
    ),
    "recall": lambda y, said, w: sk.recall_score(y, said.predictions, sample_weight=w),
    "log_loss": lambda y, said, w: sk.log_loss(y, said.probabilities, sample_weight=w),
    "accuracy": lambda y, said, w: sk.accuracy_score(y, said.predictions, sample_weight=w),
    "balanced_accuracy": lambda y, said, w: sk.balanced_accuracy_score(y, said.predictions, sample_weight=w),
}
MULTICLASS = {
    "log_loss": lambda y, said, w: sk.log_loss(y, said.probabilities, sample_weight=w, labels=said.classes),
    "accuracy": BINARY["accuracy"],
    "balanced_accuracy": BINARY["balanced_accuracy"],
    "f1_macro": lambda y, said, w: sk.f1_score(y, said.predictions, sample_weight=w, average="macro"),
    "roc_auc_ovr": lambda y, said, w: np.mean(
        [
            sk.roc_auc_score(y == label, said.probabilities[:, place], sample_weight=w)
            for place, label in enumerate(said.classes)
        ]
    ),
}
REGRESSION = {
    "mae": lambda y, said, w: sk.mean_absolute_error(y, said.predictions, sample_weight=w),
    "rmse": lambda y, said, w: sk.root_mean_squared_error(y, said.predictions, sample_weight=w),
    "median_absolute_error": lambda y, said, w: sk.median_absolute_error(
        y, said.predictions, sample_weight=w
    ),
    "r2": lambda y, said, w: sk.r2_score(y, said.predictions, sample_weight=w),
}
ALL = [(kind, name) for kind in TaskKind for name in measures_for(kind)]
EXPECTED = {TaskKind.BINARY: BINARY, TaskKind.MULTICLASS: MULTICLASS, TaskKind.REGRESSION: REGRESSION}


def binary(rows=300, seed=0, decimals=2):
    draw = np.random.default_rng(seed)
    score = np.round(draw.random(rows), decimals)
    truth = draw.random(rows) < score
    said = Outputs(score >= 0.4, np.column_stack([1 - score, score]), np.array([False, True]), 1)
    return truth, said


def multiclass(rows=300, seed=0):
    draw = np.random.default_rng(seed)
    classes = np.array(["a", "b", "c"])
    odds = np.round(draw.random((rows, 3)), 1) + 0.1
    probabilities = odds / odds.sum(axis=1, keepdims=True)
    truth = np.array([draw.choice(classes, p=p) for p in probabilities])
    return truth, Outputs(classes[probabilities.argmax(axis=1)], probabilities, classes)


def regression(rows=300, seed=0):
    draw = np.random.default_rng(seed)
    truth = 1000 + 3 * draw.normal(size=rows)
    return truth, Outputs(truth + np.round(draw.normal(size=rows), 1))


MAKE = {TaskKind.BINARY: binary, TaskKind.MULTICLASS: multiclass, TaskKind.REGRESSION: regression}


def test_every_declared_metric_is_computed_and_no_other():
    assert set(_METRICS) == set(MEASURES)
    assert {(kind, name) for kind, names in EXPECTED.items() for name in names} == set(ALL)


@pytest.mark.parametrize(("kind", "name"), ALL)
@pytest.mark.parametrize("weighting", ["none", "fractions", "counts"])
def test_metrics_are_scikit_learns(kind, name, weighting):
    truth, said = MAKE[kind]()
    draw = np.random.default_rng(1)
    weights = {
        "none": None,
        "fractions": draw.random(len(truth)) + 0.01,
        "counts": draw.integers(0, 4, len(truth)).astype(float),
    }[weighting]

    found = measure(name, truth, said, weights)

    assert found == pytest.approx(EXPECTED[kind][name](truth, said, weights), rel=1e-10, abs=1e-10)


@pytest.mark.parametrize(("kind", "name"), ALL)
def test_a_weight_says_how_often_a_row_is_there(kind, name):
    truth, said = MAKE[kind](rows=40)
    counts = np.random.default_rng(3).integers(0, 3, 40)
    repeated = np.repeat(np.arange(40), counts)

    found = measure(name, truth, said, counts.astype(float))

    assert found == pytest.approx(measure(name, truth[repeated], said.take(repeated)), rel=1e-10)


@pytest.mark.parametrize(("kind", "name"), ALL)
def test_many_weightings_at_once_are_the_same_as_one_by_one(kind, name):
    truth, said = MAKE[kind](rows=60)
    weights = np.random.default_rng(3).integers(0, 3, (7, 60)).astype(float)

    together = weighted(name, truth, said)(weights)

    assert together == pytest.approx([measure(name, truth, said, w) for w in weights], rel=1e-12)


@given(
    scores=st.lists(st.sampled_from([0.0, 0.1, 0.5, 0.5000000001, 1.0]), min_size=4, max_size=30),
    data=st.data(),
)
@settings(max_examples=150, deadline=None)
def test_ranking_metrics_hold_for_any_ties_and_weights(scores, data):
    rows = len(scores)
    truth = np.array(data.draw(st.lists(st.booleans(), min_size=rows, max_size=rows)))
    weights = np.array(data.draw(st.lists(st.integers(0, 3), min_size=rows, max_size=rows)), dtype=float)
    score = np.array(scores)
    said = Outputs(score >= 0.5, np.column_stack([1 - score, score]), np.array([False, True]), 1)

    area, precision = (measure(name, truth, said, weights) for name in ("roc_auc", "average_precision"))

    if len(set(truth[weights > 0])) < 2:
        assert math.isnan(area)
        assert math.isnan(precision)
    else:
        assert area == pytest.approx(BINARY["roc_auc"](truth, said, weights), abs=1e-10)
        assert precision == pytest.approx(BINARY["average_precision"](truth, said, weights), abs=1e-10)


@pytest.mark.parametrize(("kind", "name"), ALL)
def test_no_rows_give_no_value(kind, name):
    truth, said = MAKE[kind]()
    none = np.array([], dtype=int)

    assert math.isnan(measure(name, truth[none], said.take(none)))


@pytest.mark.parametrize(("kind", "name"), ALL)
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_model_that_says_nan_has_no_metric(kind, name, value):
    truth, said = MAKE[kind]()
    broken = said.predictions.copy() if kind is TaskKind.REGRESSION else said.probabilities.copy()
    broken[3] = value
    said = (
        Outputs(broken)
        if kind is TaskKind.REGRESSION
        else Outputs(said.predictions, broken, said.classes, said.positive)
    )

    assert math.isnan(measure(name, truth, said))


@pytest.mark.parametrize("name", ["roc_auc", "average_precision", "log_loss", "balanced_accuracy"])
def test_one_class_has_no_ranking(name):
    truth, said = binary()

    assert math.isnan(measure(name, np.ones_like(truth), said))
    assert math.isnan(measure(name, truth, said, truth.astype(float)))


@pytest.mark.parametrize("name", ["recall", "f1"])
def test_without_positives_there_was_nothing_to_find(name):
    truth, said = binary()

    assert math.isnan(measure(name, np.zeros_like(truth), said))


def test_a_model_that_never_says_yes_has_the_worst_precision():
    truth, said = binary()
    silent = Outputs(np.zeros_like(truth), said.probabilities, said.classes, said.positive)

    assert measure("precision", truth, silent) == 0.0
    assert measure("recall", truth, silent) == 0.0
    assert measure("f1", truth, silent) == 0.0


@pytest.mark.parametrize("name", ["log_loss", "roc_auc_ovr"])
def test_a_class_the_model_does_not_know_leaves_probabilities_without_a_metric(name):
    truth, said = multiclass()
    truth = truth.astype("U8")
    truth[0] = "unknown"

    assert math.isnan(measure(name, truth, said))
    assert measure("accuracy", truth, said) < 1


def test_r2_of_a_truth_that_does_not_vary_is_not_defined():
    assert math.isnan(measure("r2", np.full(20, 0.1), Outputs(np.full(20, 0.1))))
    assert math.isnan(
        measure("r2", np.array([1.0, 1.0, 5.0]), Outputs(np.zeros(3)), np.array([1.0, 2.0, 0.0]))
    )


def test_an_unknown_metric_is_an_error():
    with pytest.raises(KeyError):
        measure("auc", *binary())


@pytest.mark.parametrize(
    ("values", "positive"),
    [
        ((False, True), True),
        ((False, True), False),
        ((0, 1), 1),
        ((0, 1), 0),
        (("No", "Yes"), "Yes"),
        (("No", "Yes"), "No"),
        ((1.0, 2.0), 2),
        (("0", "1"), "1"),
    ],
)
def test_the_positive_class_is_found_by_name_wherever_it_sorts(values, positive):
    draw = np.random.default_rng(0)
    inputs = pd.DataFrame({"x": draw.normal(size=200)})
    is_high = inputs["x"].to_numpy() + draw.normal(size=200) > 0
    truth = np.where(is_high, positive, next(value for value in values if value != positive))
    target = Target(kind="binary", column="y", positive=positive)

    said = outputs_of(LogisticRegression().fit(inputs, truth), inputs, target)

    assert np.corrcoef(said.score, inputs["x"])[0, 1] > 0.9
    assert measure("roc_auc", truth, said) == pytest.approx(sk.roc_auc_score(is_high, said.score))
    assert measure("recall", truth, said) == pytest.approx(
        sk.recall_score(truth, said.predictions, pos_label=positive)
    )
    assert measure("brier", truth, said) == pytest.approx(sk.brier_score_loss(is_high, said.score))


@pytest.mark.parametrize("positive", ["No", "Yes"])
def test_decisions_behind_a_threshold_are_the_models_own(positive):
    draw = np.random.default_rng(0)
    inputs = pd.DataFrame({"x": draw.normal(size=300)})
    truth = np.where(inputs["x"] + draw.normal(size=300) > 0, "Yes", "No")
    model = FixedThresholdClassifier(
        LogisticRegression(), threshold=0.31, pos_label=positive, response_method="predict_proba"
    ).fit(inputs, truth)

    said = outputs_of(model, inputs, Target(kind="binary", column="y", positive=positive))

    assert (said.predictions == model.predict(inputs)).all()
    assert ((said.score >= 0.31) == (said.predictions == positive)).all()


def test_a_binary_model_without_the_positive_class_is_refused():
    inputs, truth = pd.DataFrame({"x": [0.0, 1.0, 2.0, 3.0]}), np.array(["a", "b", "a", "b"])
    model = LogisticRegression().fit(inputs, truth)

    with pytest.raises(ValueError, match=r"\['a', 'b'\] do not include 'c'"):
        outputs_of(model, inputs, Target(kind="binary", column="y", positive="c"))


def test_a_binary_target_with_a_third_class_is_refused():
    inputs, truth = pd.DataFrame({"x": [0.0, 1.0, 2.0]}), np.array(["a", "b", "c"])
    model = LogisticRegression().fit(inputs, truth)

    with pytest.raises(ValueError, match="the target is binary"):
        outputs_of(model, inputs, Target(kind="binary", column="y", positive="c"))


def test_the_same_seed_gives_the_same_interval():
    truth, said = binary()
    bootstrap = Bootstrap(200, 0.95, seed=7)
    clusters = np.arange(300)

    first, again = (
        estimate("roc_auc", truth, said, bootstrap, bootstrap.weights(clusters)) for _ in range(2)
    )

    assert first == again
    assert first.low < first.value < first.high
    assert first.rows == 300


def test_rows_of_one_cluster_are_drawn_together():
    clusters = np.repeat(np.arange(50), 4)

    resamples = Bootstrap(200).weights(clusters)
    counts = np.concatenate(list(resamples.chunks()))

    assert counts.shape == (200, 200)
    assert (counts.sum(axis=1) == 200).all()
    assert (counts.reshape(200, 50, 4) == counts[:, ::4, np.newaxis]).all()


def test_large_samples_are_resampled_less_often_but_not_too_little():
    assert len(Bootstrap(1000).weights(np.arange(30_000))) == 666
    assert len(Bootstrap(1000).weights(np.arange(200_000))) == 200


def test_intervals_cover_the_truth_when_clusters_are_held_together():
    draw = np.random.default_rng(0)
    bootstrap, clusters = Bootstrap(200, 0.95), np.repeat(np.arange(40), 5)
    covered = {"by cluster": 0, "by row": 0}

    for _ in range(300):
        # Whole clusters are right or wrong, seven times in ten.
        right = np.repeat(draw.random(40) < 0.7, 5)
        truth, said = right, Outputs(np.ones(200, dtype=bool), None, np.array([False, True]), 1)
        for way, names in (("by cluster", clusters), ("by row", np.arange(200))):
            found = estimate("accuracy", truth, said, bootstrap, bootstrap.weights(names))
            covered[way] += found.low <= 0.7 <= found.high

    assert covered["by cluster"] / 300 > 0.9
    assert covered["by row"] / 300 < 0.75


def test_a_handful_of_clusters_gives_no_interval():
    truth, said = binary()
    bootstrap = Bootstrap(200)

    found = estimate("roc_auc", truth, said, bootstrap, bootstrap.weights(np.arange(300) % 9))

    assert not math.isnan(found.value)
    assert math.isnan(found.low)
    assert math.isnan(found.high)


def test_an_interval_is_refused_where_resamples_often_lack_a_class():
    truth, said = binary(rows=30)
    truth = np.zeros_like(truth)
    truth[0] = True
    bootstrap = Bootstrap(200)

    found = estimate("roc_auc", truth, said, bootstrap, bootstrap.weights(np.arange(30)))

    assert not math.isnan(found.value)
    assert math.isnan(found.low)


@pytest.mark.parametrize(("kind", "name"), ALL)
def test_an_improvement_is_positive_where_the_challenger_is_better(kind, name):
    truth, champion = MAKE[kind]()
    if kind is TaskKind.REGRESSION:
        challenger = Outputs((truth + champion.predictions) / 2)
    else:
        sure = (truth[:, np.newaxis] == champion.classes) * 0.8
        probabilities = 0.2 * champion.probabilities + sure
        challenger = Outputs(truth, probabilities, champion.classes, champion.positive)
    bootstrap = Bootstrap(200)

    found = estimate_improvement(
        name, truth, challenger, champion, bootstrap, bootstrap.weights(np.arange(len(truth)))
    )

    better = measure(name, truth, challenger) - measure(name, truth, champion)
    assert found.value == pytest.approx(better if MEASURES[name].higher_is_better else -better)
    assert found.low > 0


def test_a_paired_interval_of_a_model_with_itself_is_a_point():
    truth, said = binary()
    bootstrap = Bootstrap(200)

    found = estimate_improvement("roc_auc", truth, said, said, bootstrap, bootstrap.weights(np.arange(300)))

    assert (found.value, found.low, found.high) == (0, 0, 0)
