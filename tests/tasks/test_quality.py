"""Quality of windows: worse only where the whole interval is, and not known where labels are too few."""

import math

import numpy as np
import pyarrow as pa
import pytest

from deployments.monitoring import QualityPlan
from tasks.evaluate import Calibration, Evaluation
from tasks.live_window import Joined
from tasks.metrics import Estimate
from tasks.quality import (
    Looked,
    estimated_rows,
    fairness_rows,
    importance_rows,
    quality_rows,
    slice_rows,
)
from tasks.verdict import Verdict
from tests.tasks.live_logs import DAY


def looked(make_spec, kind="binary", change=None, **plan):
    return Looked("3", DAY, QualityPlan(minimum_labels=100, **plan), make_spec(kind, change).spec)


def joined(rows=400, of=None, noise=1.0, seed=0, flip=False, **columns):
    """Labelled rows whose scores are right but for noise; with `flip` the other way round."""
    draw = np.random.default_rng(seed)
    sure = draw.normal(0, 2, rows)
    score = 1 / (1 + np.exp(-sure))
    truth = draw.random(rows) < 1 / (1 + np.exp(-sure / noise))
    truth = ~truth if flip else truth
    table = {
        "request_id": [f"r{place}" for place in range(rows)],
        "row": pa.array([0] * rows, pa.int32()),
        "prediction": [str(one).lower() for one in (score > 0.5).tolist()],
        "prediction_number": pa.array([None] * rows, pa.float64()),
        "score": score,
        "label": [str(one).lower() for one in truth.tolist()],
        "entity": [f"r{place}" for place in range(rows)],
    }
    return Joined(rows if of is None else of, pa.table(table | columns))


def held(value=0.9, low=0.85, high=0.95):
    return {"roc_auc": Estimate(value=value, low=low, high=high, rows=1000)}


def row_of(rows, metric):
    (found,) = [row for row in rows if row.metric == metric]
    return found


def test_a_window_as_good_as_the_holdout_passes(make_spec):
    rows = quality_rows(looked(make_spec), joined(), held())

    found, coverage = row_of(rows, "roc_auc"), row_of(rows, "coverage")
    assert (found.verdict, found.threshold, found.rows) == (Verdict.PASS, 0.85, 400)
    assert found.low < found.value < found.high
    assert (coverage.value, coverage.verdict) == (1.0, None)


def test_a_window_that_is_wholly_worse_fails_and_what_is_tolerated_does_not(make_spec):
    worse = joined(noise=4.0)

    found = row_of(quality_rows(looked(make_spec), worse, held()), "roc_auc")
    tolerated = row_of(quality_rows(looked(make_spec, tolerated=0.3), worse, held()), "roc_auc")

    assert found.verdict is Verdict.FAIL
    assert found.high < 0.85
    assert tolerated.verdict is Verdict.PASS


@pytest.mark.parametrize(("noise", "verdict"), [(1.0, Verdict.PASS), (6.0, Verdict.FAIL)])
def test_where_lower_is_better_a_higher_value_fails(make_spec, noise, verdict):
    brier = {"brier": Estimate(value=0.12, low=0.1, high=0.14, rows=1000)}

    found = row_of(quality_rows(looked(make_spec, metrics=("brier",)), joined(noise=noise), brier), "brier")

    assert (found.verdict, found.threshold) == (verdict, 0.14)


def test_a_window_that_is_better_passes_in_either_direction(make_spec):
    before = {
        "roc_auc": Estimate(value=0.3, low=0.2, high=0.4, rows=1000),
        "brier": Estimate(value=0.6, low=0.5, high=0.7, rows=1000),
    }

    rows = quality_rows(looked(make_spec, metrics=("roc_auc", "brier")), joined(), before)

    assert {row.verdict for row in rows if row.metric != "coverage"} == {Verdict.PASS}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (joined(rows=0, of=5000), "no labels yet: none of 5,000 answered rows has one"),
        (joined(rows=0, of=0), "nothing was answered"),
        (joined(rows=99, flip=True), "99 labels; 100 are needed"),
        (joined(rows=150, of=1000, flip=True), "15.0% of the answered rows have labels; 20% are needed"),
    ],
)
def test_too_few_labels_are_inconclusive_however_bad(make_spec, given, said):
    found = row_of(quality_rows(looked(make_spec), given, held()), "roc_auc")

    assert found.verdict is Verdict.INCONCLUSIVE
    assert said in found.reason


def test_what_the_holdout_says_nothing_of_is_inconclusive(make_spec):
    nan = {"roc_auc": Estimate(value=math.nan, low=math.nan, high=math.nan, rows=3)}

    for before in ({}, nan):
        found = row_of(quality_rows(looked(make_spec), joined(), before), "roc_auc")
        assert found.verdict is Verdict.INCONCLUSIVE
        assert "holdout says nothing of roc_auc" in found.reason


def test_one_class_of_labels_is_inconclusive(make_spec):
    given = joined()
    table = given.rows.set_column(5, "label", pa.array(["true"] * 400))

    found = row_of(quality_rows(looked(make_spec), Joined(400, table), held()), "roc_auc")

    assert (found.verdict, found.value) == (Verdict.INCONCLUSIVE, None)
    assert "not defined" in found.reason


def test_missing_scores_are_inconclusive_where_scores_are_needed_and_only_there(make_spec):
    table = joined().rows
    scores = pa.array([None, *table["score"].to_pylist()[1:]], pa.float64())
    given = Joined(400, table.set_column(4, "score", scores))
    before = held() | {"f1": Estimate(value=0.5, low=0.4, high=0.6, rows=1000)}

    rows = quality_rows(looked(make_spec, metrics=("roc_auc", "f1")), given, before)

    assert row_of(rows, "roc_auc").verdict is Verdict.INCONCLUSIVE
    assert "needs scores" in row_of(rows, "roc_auc").reason
    assert row_of(rows, "f1").verdict is Verdict.PASS


def test_the_same_window_gives_the_same_rows(make_spec):
    assert quality_rows(looked(make_spec), joined(), held()) == quality_rows(
        looked(make_spec), joined(), held()
    )


def test_several_classes_are_judged_by_what_was_answered(make_spec):
    table = joined().rows
    classes = pa.array(["green", "fair", "ripe", "ripe"] * 100)
    wrong = pa.array(["ripe", "fair", "ripe", "ripe"] * 100)
    given = Joined(400, table.set_column(2, "prediction", wrong).set_column(5, "label", classes))
    before = {name: Estimate(value=0.7, low=0.6, high=0.8, rows=9) for name in ("accuracy", "log_loss")}

    rows = quality_rows(looked(make_spec, "multiclass", metrics=("accuracy", "log_loss")), given, before)

    assert (row_of(rows, "accuracy").value, row_of(rows, "accuracy").verdict) == (0.75, Verdict.PASS)
    assert row_of(rows, "log_loss").verdict is Verdict.INCONCLUSIVE
    assert "probability of every class" in row_of(rows, "log_loss").reason


def test_numbers_are_judged_as_numbers(make_spec):
    table = joined().rows
    labels = pa.array([str(float(place)) for place in range(400)])
    said = pa.array([place + 2.0 for place in range(400)])
    given = Joined(400, table.set_column(3, "prediction_number", said).set_column(5, "label", labels))
    before = {"mae": Estimate(value=1.0, low=0.9, high=1.1, rows=9)}

    found = row_of(quality_rows(looked(make_spec, "regression", metrics=("mae",)), given, before), "mae")

    assert (found.value, found.verdict) == (2.0, Verdict.FAIL)


def test_rows_of_one_entity_widen_the_interval(make_spec):
    apart = joined()
    together = Joined(400, apart.rows.set_column(6, "entity", pa.array([f"c{i % 20}" for i in range(400)])))
    copies = pa.concat_tables([apart.rows.slice(0, 40)] * 10)

    widths = [
        row.high - row.low
        for given in (apart, Joined(400, copies))
        for row in [row_of(quality_rows(looked(make_spec), given, held()), "roc_auc")]
    ]

    assert widths[1] > 2 * widths[0]
    assert row_of(quality_rows(looked(make_spec), together, held()), "roc_auc").low is not None


# Slices, fairness, importance -------------------------------------------------------------------------------


def test_slices_with_rows_enough_are_told(make_spec):
    shape = pa.array(["round"] * 200 + ["long"] * 195 + [None] * 5)

    rows = slice_rows(looked(make_spec), joined(shape=shape), ["shape"])

    assert {row.subject for row in rows} == {"shape=round", "shape=long"}
    assert {row.verdict for row in rows} == {None}


FAIR = {"kind": "fairness", "attribute": "shape", "measure": "demographic_parity_difference", "max": 0.2}


def fair(spec):
    spec["gates"].append({**FAIR, "min_group_rows": 50})


@pytest.mark.parametrize(("apart", "verdict"), [(False, Verdict.PASS), (True, Verdict.FAIL)])
def test_fairness_gates_are_asked_of_labelled_rows(make_spec, apart, verdict):
    given = joined()
    said = np.asarray(given.rows["prediction"].to_pylist()) == "true"
    shape = np.where(said, "round", "long") if apart else np.where(np.arange(400) % 2, "round", "long")

    (found,) = fairness_rows(looked(make_spec, change=fair), joined(shape=pa.array(shape)), ["shape"])

    assert (found.verdict, found.threshold) == (verdict, 0.2)


def test_fairness_without_labels_or_without_the_attribute_is_inconclusive(make_spec):
    none = fairness_rows(looked(make_spec, change=fair), joined(rows=0, of=500), ["shape"])
    absent = fairness_rows(looked(make_spec, change=fair), joined(), [])

    assert [row.verdict for row in none + absent] == [Verdict.INCONCLUSIVE] * 2
    assert "no labels yet" in none[0].reason
    assert "shape is no feature" in absent[0].reason


def test_a_shift_of_importance_is_nothing_where_all_is_as_before_and_all_where_nothing_is(make_spec):
    def shift(live, before):
        return row_of(importance_rows(looked(make_spec), live, before, 300), "importance_shift").value

    assert shift({"a": 0.2, "b": 0.1}, {"a": 0.4, "b": 0.2}) == pytest.approx(0.0)
    assert shift({"a": 0.2, "b": 0.0}, {"a": 0.0, "b": 0.2}) == 1.0
    assert shift({"a": 0.1, "b": 0.1, "c": -0.3}, {"a": 0.2, "b": 0.0, "c": 0.0}) == pytest.approx(0.5)
    assert len(importance_rows(looked(make_spec), {"a": 0.0}, {"a": 0.0}, 300)) == 1


# Estimates --------------------------------------------------------------------------------------------------


def evaluation(error):
    calibrated = None if error is None else Calibration(error=error, bins=())
    return Evaluation(
        model_digest="",
        first_version=True,
        champion=None,
        rows=1000,
        metrics={},
        train_metrics={},
        calibration=calibrated,
    )


@pytest.mark.parametrize("metric", ["roc_auc", "brier", "f1", "precision", "recall", "log_loss"])
def test_an_estimate_from_right_scores_is_what_labels_say(make_spec, metric):
    given = joined(rows=20_000)
    plan = looked(make_spec, metrics=(metric,))
    before = {metric: Estimate(value=0.5, low=0.4, high=0.6, rows=1000)}

    measured = row_of(quality_rows(plan, given, before), metric)
    (estimated,) = estimated_rows(plan, given.rows, 20_000, evaluation(0.02))

    assert estimated.metric == f"estimated_{metric}"
    assert estimated.value == pytest.approx(measured.value, abs=0.015)
    assert estimated.low < estimated.value < estimated.high
    assert estimated.verdict is None


def test_an_estimate_does_not_see_that_the_relation_changed(make_spec):
    plan = looked(make_spec)

    measured = row_of(quality_rows(plan, joined(noise=6.0), held()), "roc_auc")
    (estimated,) = estimated_rows(plan, joined(noise=6.0).rows, 400, evaluation(0.02))

    assert measured.verdict is Verdict.FAIL
    assert estimated.value > measured.high
    assert "blind to a changed relation" in estimated.reason


@pytest.mark.parametrize("error", [0.2, None])
def test_scores_that_are_not_calibrated_give_no_estimate(make_spec, error):
    (found,) = estimated_rows(looked(make_spec), joined().rows, 400, evaluation(error))

    assert (found.value, found.verdict) == (None, None)
    assert "calibration error" in found.reason


def test_missing_scores_give_no_estimate(make_spec):
    table = joined().rows
    table = table.set_column(4, "score", pa.array([None] * 400, pa.float64()))

    (found,) = estimated_rows(looked(make_spec), table, 400, evaluation(0.02))

    assert found.value is None
    assert "not all answers have a probability" in found.reason
    assert estimated_rows(looked(make_spec), table.slice(0, 0), 0, evaluation(0.02)) == []
    assert estimated_rows(looked(make_spec, "regression", metrics=("mae",)), table, 400, None) == []
