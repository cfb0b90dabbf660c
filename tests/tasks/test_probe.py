"""Probes: what is found by running a model, without the holdout; a model that fails is told, not swallowed."""

import math

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LogisticRegression, Ridge

from deployments.gates import RobustnessGate
from deployments.measures import TaskKind
from tasks.frame import model_inputs, target_values
from tasks.pipeline import make_pipeline
from tasks.probe import importance, latency, robustness, single_features

GATE = RobustnessGate(rows=200)


@pytest.fixture
def task(make_spec, make_rows):
    """Makes a spec, its inputs, its target, and a fitted pipeline."""

    def make(kind="binary", change=None):
        spec, rows = make_spec(kind, change).spec, make_rows(kind)
        inputs, truth = model_inputs(rows, spec), target_values(rows, spec)
        estimator = Ridge() if kind == "regression" else LogisticRegression()
        return spec, inputs, truth, make_pipeline(spec, estimator).fit(inputs, truth)

    return make


class Counting:
    """Answers at once, and counts."""

    asked = 0

    def predict(self, rows):
        self.asked += 1
        assert len(rows) == 1
        return np.zeros(1)


def test_latency_is_of_one_row_and_of_as_many_requests_as_asked(task):
    _, inputs, _, _ = task()
    model = Counting()

    found = latency(model, inputs.head(7), requests=60)

    assert found.requests == 60
    assert model.asked == 70
    assert 0 < found.p50_milliseconds <= found.p95_milliseconds


def test_a_slow_model_is_asked_less_often_but_often_enough(task, monkeypatch):
    _, inputs, _, _ = task()
    monkeypatch.setattr("tasks.probe._LATENCY_SECONDS", 0.0)

    assert latency(Counting(), inputs, requests=200).requests == 50


@pytest.mark.parametrize("kind", ["binary", "multiclass", "regression"])
def test_each_perturbation_moves_the_scores_a_little_and_always_alike(task, kind):
    spec, inputs, _, model = task(kind)

    first, again = (robustness(model, inputs, spec, GATE) for _ in range(2))

    assert first == again
    assert [swing.perturbation for swing in first] == [
        "noise on numbers",
        "missing numbers",
        "missing categories",
        "unseen categories",
    ]
    assert all(0 < swing.swing < 0.5 for swing in first)


def test_whatever_may_be_missing_is_taken_away(task):
    def change(document):
        columns = document["contract"]["fruit"]["columns"]
        columns["washed"]["nullable"] = columns["picked"]["nullable"] = True
        document["features"] = {"entity": ["fruit_id"], "boolean": ["washed"], "dates": ["picked"]}

    spec, inputs, _, model = task(change=change)

    found = robustness(model, inputs, spec, GATE)

    assert [swing.perturbation for swing in found] == ["missing booleans", "missing dates"]
    assert all(swing.swing > 0 for swing in found)


def test_a_model_that_cannot_meet_an_unseen_category_is_told(task):
    spec, inputs, _, model = task()
    model.named_steps["preprocess"].named_transformers_["categorical"]["encode"].handle_unknown = "error"

    found = {swing.perturbation: swing for swing in robustness(model, inputs, spec, GATE)}

    assert math.isnan(found["unseen categories"].swing)
    assert "unknown categories" in found["unseen categories"].error
    assert found["missing categories"].error == ""


def test_an_error_without_a_message_is_told_by_its_name(task):
    spec, inputs, _, model = task()

    class Silent:
        classes_ = model.classes_
        failing = False

        def predict(self, rows):
            return model.predict(rows)

        def predict_proba(self, rows):
            if self.failing:
                raise ValueError
            self.failing = True
            return model.predict_proba(rows)

    found = robustness(Silent(), inputs, spec, GATE)

    assert {swing.error for swing in found} == {"ValueError"}


@pytest.mark.parametrize("kind", list(TaskKind))
def test_a_feature_that_knows_the_answer_stands_out(task, kind):
    _, inputs, truth, _ = task(kind.value)
    answer = truth if kind is TaskKind.REGRESSION else pd.Series(truth).astype(str).to_numpy(object)
    inputs = inputs.assign(answer=answer, noise=np.random.default_rng(99).normal(size=len(inputs)))

    found = single_features(inputs, truth, kind)

    scores = {item.feature: item.score for item in found}
    assert found[0].feature == "answer"
    assert scores["answer"] > 0.95
    assert scores["noise"] < 0.65
    assert 0.55 < scores["weight"] < 0.9 or kind is TaskKind.REGRESSION


def test_a_value_that_is_missing_when_the_answer_is_yes_stands_out(task):
    _, inputs, truth, _ = task()
    leak = pd.Series(1.0, index=inputs.index).where(~truth)

    found = single_features(inputs.assign(leak=leak), truth, TaskKind.BINARY)

    assert found[0].feature == "leak"
    assert found[0].score > 0.99


@pytest.mark.parametrize(("kind", "guess"), [(TaskKind.BINARY, 0.5), (TaskKind.REGRESSION, 0.0)])
def test_a_feature_without_any_value_is_worth_a_guess(task, kind, guess):
    _, inputs, truth, _ = task(kind.value)
    empty = pd.Series([np.nan] * len(inputs), dtype=object)

    found = single_features(inputs.assign(none=np.nan, empty=empty), truth, kind)

    scores = {item.feature: item.score for item in found}
    assert scores["none"] == scores["empty"] == guess


def test_a_class_with_hardly_a_row_does_not_hide_a_leak(task):
    _, inputs, truth, _ = task("multiclass")
    truth = truth.astype("U8")
    truth[0] = "rotten"

    found = single_features(inputs.assign(answer=truth.astype(object)), truth, TaskKind.MULTICLASS)

    assert found[0].feature == "answer"
    assert all(not math.isnan(item.score) for item in found)


def test_one_class_alone_gives_no_score(task):
    _, inputs, truth, _ = task()

    found = single_features(inputs, np.ones_like(truth), TaskKind.BINARY)

    assert all(math.isnan(item.score) for item in found)


@pytest.mark.parametrize("kind", ["binary", "multiclass", "regression"])
def test_importance_ranks_what_the_model_uses(task, kind):
    spec, inputs, truth, model = task(kind)

    first, again = (importance(model, inputs, truth, spec) for _ in range(2))

    assert first == again
    assert set(list(first)[:2]) == {"weight", "sugar"}
    assert list(first.values()) == sorted(first.values(), reverse=True)
    assert first["weight"] > 0.02 > abs(first["washed"])
