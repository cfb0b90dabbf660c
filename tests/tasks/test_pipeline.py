"""Pipelines: preprocessing that meets whatever the contract lets in, and candidates refused by name."""

import warnings

import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.linear_model import LogisticRegression
from sklearn.svm import SVC

from deployments.errors import BadInputError
from deployments.measures import TaskKind
from tasks.frame import model_inputs, target_values
from tasks.pipeline import (
    calibrated,
    import_estimator,
    make_estimator,
    make_pipeline,
    model_prefix,
    with_threshold,
    without_folds,
)

SKLEARN = ("sklearn",)


def with_features(**features):
    def change(document):
        document["features"] |= features
        columns = document["contract"]["fruit"]["columns"]
        columns["washed"]["nullable"] = columns["picked"]["nullable"] = True

    return change


def everything(encode="onehot", **numeric):
    return with_features(
        numeric={"columns": ["weight", "sugar", "spots"], **numeric},
        categorical={"columns": ["shape", "tree"], "encode": encode, "min_frequency": 3},
        dates=["picked"],
    )


def fitted(spec, rows):
    inputs, truth = model_inputs(rows, spec), target_values(rows, spec)
    return make_pipeline(spec, LogisticRegression(max_iter=1000)).fit(inputs, truth), inputs


@pytest.mark.parametrize("encode", ["onehot", "ordinal"])
@pytest.mark.parametrize("impute", ["median", "mean", "zero"])
def test_missing_values_and_unknown_categories_are_met_without_failing(make_spec, make_rows, encode, impute):
    spec = make_spec("binary", everything(encode, impute=impute, missing_indicator=True)).spec
    model, inputs = fitted(spec, make_rows())
    strange = inputs.head(4).copy()
    strange.loc[0, ["shape", "tree"]] = "never seen"
    strange.loc[1, ["shape", "tree", "weight", "sugar"]] = np.nan
    strange["washed"] = [np.nan, 1.0, 0.0, np.nan]
    strange.loc[2, "picked"] = pd.NaT

    found = model.predict_proba(strange)

    assert np.isfinite(found).all()


@pytest.mark.parametrize("kind", list(TaskKind))
def test_target_encoding_is_for_every_kind_of_target(make_spec, make_rows, kind):
    estimator = {"regression": "sklearn.linear_model.Ridge"}.get(
        kind, "sklearn.linear_model.LogisticRegression"
    )
    spec, rows = make_spec(kind.value, everything("target")).spec, make_rows(kind.value)
    made = make_estimator(estimator, {}, SKLEARN, kind, seed=0)

    model = make_pipeline(spec, made).fit(model_inputs(rows, spec), target_values(rows, spec))

    assert len(model.predict(model_inputs(rows, spec))) == rows.num_rows


def test_a_column_without_any_value_in_training_does_not_change_the_shape(make_spec, make_rows):
    spec = make_spec("binary", everything()).spec
    rows = make_rows()
    inputs, truth = model_inputs(rows, spec), target_values(rows, spec)
    empty = inputs.assign(
        sugar=np.nan,
        shape=pd.Series([np.nan] * len(inputs), dtype=object),
        washed=np.nan,
        picked=pd.Series(pd.NaT, index=inputs.index, dtype="datetime64[us]"),
    )

    with warnings.catch_warnings():
        warnings.simplefilter("error", category=FutureWarning)
        model = make_pipeline(spec, LogisticRegression(max_iter=1000)).fit(empty, truth)

    assert np.isfinite(model.predict_proba(inputs)).all()
    names = model[:-1].get_feature_names_out()
    assert {"dates__picked_month", "dates__picked_weekday", "boolean_or_null__washed"} <= set(names)


def test_booleans_may_stand_among_numbers(make_spec, make_rows):
    change = with_features(numeric=["washed", "weight"], boolean=[])
    spec = make_spec("binary", change).spec

    model, inputs = fitted(spec, make_rows())

    assert np.isfinite(model.predict_proba(inputs)).all()


def test_texts_of_the_newer_pandas_type_are_categories_all_the_same(make_spec, make_rows):
    spec = make_spec("binary", everything()).spec
    model, inputs = fitted(spec, make_rows())
    served = inputs.astype({"shape": "str", "tree": "str"})

    assert model.predict_proba(served) == pytest.approx(model.predict_proba(inputs))


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("os.system", "package 'os' is not allowed here"),
        ("sklearn_evil.Model", "package 'sklearn_evil' is not allowed here"),
        ("sklearn.linear_model.Logistic", "there is no such class"),
        ("sklearn.nowhere.Model", "there is no such class"),
        ("sklearn.preprocessing.StandardScaler", "not an estimator with fit and predict"),
        ("sklearn.metrics.roc_auc_score", "not an estimator with fit and predict"),
    ],
)
def test_what_is_no_estimator_is_refused_by_its_path(path, said):
    with pytest.raises(BadInputError, match=said):
        import_estimator(path, SKLEARN)


@pytest.mark.parametrize(
    ("path", "params", "kind", "said"),
    [
        ("sklearn.linear_model.Ridge", {}, TaskKind.BINARY, "is not for a binary target"),
        (
            "sklearn.linear_model.LogisticRegression",
            {},
            TaskKind.REGRESSION,
            "is not for a regression target",
        ),
        ("sklearn.tree.DecisionTreeClassifier", {"max_dept": 3}, TaskKind.BINARY, "did you mean 'max_depth'"),
        ("sklearn.ensemble.VotingClassifier", {}, TaskKind.BINARY, "cannot be made from parameters in YAML"),
    ],
)
def test_an_estimator_that_cannot_be_what_is_asked_is_refused(path, params, kind, said):
    with pytest.raises(BadInputError, match=said):
        make_estimator(path, params, SKLEARN, kind, seed=0)


def test_the_seed_goes_where_nothing_else_is_said():
    path = "sklearn.tree.DecisionTreeClassifier"

    assert make_estimator(path, {}, SKLEARN, TaskKind.BINARY, seed=5).random_state == 5
    chosen = make_estimator(path, {"random_state": 2}, SKLEARN, TaskKind.BINARY, seed=5)
    assert chosen.random_state == 2


def test_a_calibrated_model_forgets_the_rows_it_was_calibrated_by():
    draw = np.random.default_rng(0)
    inputs, truth = draw.normal(size=(60, 2)), np.tile([False, True], 30)
    halves = [(np.arange(0, 30), np.arange(30, 60)), (np.arange(30, 60), np.arange(0, 30))]
    model = with_threshold(calibrated(SVC(), "sigmoid", halves), 0.4, True).fit(inputs, truth)
    before = model.predict_proba(inputs)

    model = without_folds(model, 2)

    assert model.estimator.cv == model.estimator_.cv == 2
    assert (model.predict_proba(inputs) == before).all()
    assert clone(model).estimator.cv == 2


def test_parameters_of_the_estimator_are_found_inside_a_calibrated_pipeline(make_spec):
    pipeline = make_pipeline(make_spec().spec, SVC())
    wrapped = calibrated(pipeline, "sigmoid", 2)

    assert isinstance(wrapped, CalibratedClassifierCV)
    for model in (pipeline, wrapped):
        model.set_params(**{f"{model_prefix(model)}C": 7.0})
        assert model.get_params()[f"{model_prefix(model)}C"] == 7.0


def test_without_a_method_nothing_is_calibrated(make_spec):
    pipeline = make_pipeline(make_spec().spec, LogisticRegression())

    assert calibrated(pipeline, None, 2) is pipeline
