"""Conversion to ONNX: every kind of pipeline that training builds answers as scikit-learn does, oddities included."""

import warnings

import numpy as np
import pytest

from deployments.date_parts import DateParts
from deployments.measures import TaskKind
from deployments.training import CategoricalFeatures, NumericFeatures
from serving.engine import OnnxEngine, SklearnEngine, UnansweredError, frame
from serving.onnx_inputs import DATE_PARTS, DatePart, OnnxInputs
from serving.onnx_model import NotConvertibleError, convert
from serving.onnx_proof import MADE_ROWS, TOLERANCE, Difference, differences, made_rows, refused_missing
from serving.served_model import ServedColumn


@pytest.fixture(scope="module", autouse=True)
def single_threads():
    """Numerical libraries use one thread: several spin while they wait, on a machine that runs other tests."""
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1):
        yield


ROWS = 500
PARTS = ("year", "month", "day", "weekday", "hour", "day_of_year")
COLUMNS = (
    ServedColumn(name="weight", kind="double", required=False),
    ServedColumn(name="sugar", kind="double", required=True),
    ServedColumn(name="spots", kind="long", required=True),
    ServedColumn(name="shape", kind="string", required=False),
    ServedColumn(name="tree", kind="string", required=True),
    ServedColumn(name="washed", kind="boolean", required=True),
    ServedColumn(name="waxed", kind="double", required=False),
    ServedColumn(name="picked", kind="datetime", required=False),
)


def fruit():
    """Columns as an engine is given them, with missing values where they may be, and a target of each kind."""
    draw = np.random.default_rng(1)

    def gaps(values, missing):
        values[draw.random(ROWS) < 0.1] = missing
        return values

    hours = draw.integers(0, 20_000 * 24, ROWS).astype("timedelta64[h]")
    columns = {
        "weight": gaps(draw.normal(100, 20, ROWS), np.nan),
        "sugar": np.round(draw.normal(10, 2, ROWS), 1),
        "spots": draw.integers(0, 9, ROWS),
        "shape": gaps(draw.choice(["long", "round", "flat"], ROWS).astype(object), None),
        "tree": draw.choice([f"tree {place}" for place in range(12)], ROWS).astype(object),
        "washed": draw.random(ROWS) < 0.5,
        "waxed": gaps((draw.random(ROWS) < 0.5).astype(float), np.nan),
        "picked": gaps(np.datetime64("1960-01-01", "us") + hours, np.datetime64("NaT")),
    }
    ripeness = (
        columns["sugar"] - 10 + columns["washed"] + (columns["shape"] == "round") + columns["spots"] / 4
    )
    ripeness = ripeness + draw.normal(0, 0.5, ROWS)
    targets = {
        TaskKind.BINARY: ripeness > np.median(ripeness),
        TaskKind.MULTICLASS: np.choose(
            np.digitize(ripeness, np.quantile(ripeness, [0.3, 0.7])), ["a", "b", "c"]
        ),
        TaskKind.REGRESSION: ripeness,
    }
    return columns, targets


def fitted(
    kind,
    estimator,
    *,
    impute="median",
    indicator=False,
    scale="standard",
    encode="onehot",
    rare=None,
    calibrate=None,
    threshold=0.4,
):
    """A pipeline as training builds it, fitted to the fruit, with a threshold where it is binary."""
    from sklearn.compose import ColumnTransformer
    from sklearn.pipeline import Pipeline

    from tasks.pipeline import _categorical, _imputer, _numeric, calibrated, with_threshold

    columns, targets = fruit()
    numeric = NumericFeatures(impute=impute, missing_indicator=indicator, scale=scale)
    categorical = CategoricalFeatures(encode=encode, min_frequency=rare)
    dates = Pipeline([("parts", DateParts(PARTS)), ("impute", _imputer("median"))])
    preprocess = ColumnTransformer(
        [
            ("numeric", _numeric(numeric), ["weight", "sugar", "spots"]),
            ("boolean", "passthrough", ["washed"]),
            ("boolean_or_null", _imputer("most_frequent"), ["waxed"]),
            ("categorical", _categorical(categorical, kind), ["shape", "tree"]),
            ("dates", dates, ["picked"]),
        ],
        remainder="drop",
        sparse_threshold=0.0,
    )
    model = calibrated(Pipeline([("preprocess", preprocess), ("model", estimator)]), calibrate, 3)
    if kind is TaskKind.BINARY:
        model = with_threshold(model, threshold, True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return model.fit(frame(columns, COLUMNS), targets[kind])


def engines(model, kind):
    positive = True if kind is TaskKind.BINARY else None
    scikit = SklearnEngine(model, COLUMNS, kind.value, positive)
    certain = refused_missing(scikit, fruit()[0], COLUMNS)
    return OnnxEngine(convert(model, COLUMNS, kind.value, positive, certain), lambda: scikit), scikit


def make(path, **parameters):
    from tasks.pipeline import import_estimator

    return import_estimator(f"sklearn.{path}", ["sklearn"])(**parameters)


B, M, R = TaskKind.BINARY, TaskKind.MULTICLASS, TaskKind.REGRESSION
PLAIN = {"impute": "none", "scale": "none", "encode": "ordinal"}
PIPELINES = [
    (B, "ensemble.HistGradientBoostingClassifier", {"max_iter": 20}, {}),
    (B, "ensemble.HistGradientBoostingClassifier", {"max_iter": 20}, PLAIN),
    (B, "ensemble.HistGradientBoostingClassifier", {"max_iter": 20}, {"encode": "target", "indicator": True}),
    (B, "ensemble.HistGradientBoostingClassifier", {"max_iter": 10}, {"calibrate": "isotonic"}),
    (B, "ensemble.GradientBoostingClassifier", {"n_estimators": 20}, {"scale": "none"}),
    (B, "ensemble.GradientBoostingClassifier", {"n_estimators": 10, "loss": "exponential"}, {"rare": 60}),
    (B, "ensemble.RandomForestClassifier", {"n_estimators": 10}, {"encode": "ordinal"}),
    (B, "ensemble.ExtraTreesClassifier", {"n_estimators": 10}, PLAIN),
    (B, "tree.DecisionTreeClassifier", {"max_depth": 4}, {}),
    (B, "tree.DecisionTreeClassifier", {"max_depth": 1, "min_samples_leaf": 400}, {}),
    (
        B,
        "linear_model.LogisticRegression",
        {"max_iter": 200},
        {"scale": "robust", "indicator": True, "rare": 60},
    ),
    (B, "linear_model.LogisticRegression", {"max_iter": 200}, {"calibrate": "sigmoid", "impute": "mean"}),
    (B, "svm.LinearSVC", {}, {"calibrate": "sigmoid"}),
    (B, "neural_network.MLPClassifier", {"hidden_layer_sizes": (8,), "max_iter": 20}, {"impute": "zero"}),
    (B, "naive_bayes.GaussianNB", {}, {}),
    (M, "ensemble.HistGradientBoostingClassifier", {"max_iter": 10}, {"encode": "target"}),
    (M, "ensemble.GradientBoostingClassifier", {"n_estimators": 10}, {}),
    (M, "ensemble.RandomForestClassifier", {"n_estimators": 10}, {"calibrate": "isotonic"}),
    (M, "linear_model.LogisticRegression", {"max_iter": 200}, {"calibrate": "sigmoid"}),
    (
        M,
        "neural_network.MLPClassifier",
        {"hidden_layer_sizes": (8,), "max_iter": 20, "activation": "tanh"},
        {},
    ),
    (R, "ensemble.HistGradientBoostingRegressor", {"max_iter": 20}, PLAIN),
    (R, "ensemble.HistGradientBoostingRegressor", {"max_iter": 10}, {"encode": "target"}),
    (R, "ensemble.GradientBoostingRegressor", {"n_estimators": 10}, {}),
    (R, "ensemble.RandomForestRegressor", {"n_estimators": 10}, PLAIN),
    (R, "tree.DecisionTreeRegressor", {"max_depth": 4}, {}),
    (R, "linear_model.Ridge", {}, {}),
    (R, "linear_model.Lasso", {"alpha": 0.01}, {}),
]


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "name", "parameters", "declared"), PIPELINES)
def test_a_converted_pipeline_answers_as_scikit_learn_does(kind, name, parameters, declared):
    random = (
        {}
        if name in {"naive_bayes.GaussianNB", "linear_model.Ridge", "linear_model.Lasso"}
        else {"random_state": 0}
    )
    model = fitted(kind, make(name, **parameters, **random), **declared)

    converted, scikit = engines(model, kind)

    seen = fruit()[0]
    made = made_rows(model, seen, COLUMNS, ())
    for columns, rows in ((seen, ROWS), (made, MADE_ROWS)):
        found = differences(converted, scikit, columns, rows)
        assert found.rows == rows
        assert found.same
        assert found.furthest < 1e-11


@pytest.fixture(scope="module")
def boosted():
    """A boosted tree on plain numbers, its two engines, and its thresholds by column."""
    model = fitted(B, make("ensemble.HistGradientBoostingClassifier", max_iter=20, random_state=0), **PLAIN)
    return model, *engines(model, B)


def test_calibration_divides_by_sums_however_small_they_are():
    model = fitted(
        M, make("linear_model.LogisticRegression", max_iter=200, random_state=0), calibrate="sigmoid"
    )
    for fold in model.calibrated_classifiers_:
        for place, calibrator in enumerate(fold.calibrators):
            # All probabilities of a row are smaller than what a sum with 1 can tell from nothing.
            calibrator.a_, calibrator.b_ = 0.5 * (place - 1), 60.0 + place
    converted, scikit = engines(model, M)

    found = differences(converted, scikit, fruit()[0], ROWS)

    assert found.same
    assert len(np.unique(scikit.predict(fruit()[0], ROWS).predictions)) > 1


def test_made_rows_hold_what_tends_to_differ(boosted):
    model, _, _ = boosted

    made = made_rows(model, fruit()[0], COLUMNS, ())

    thresholds = np.concatenate(
        [p.nodes["num_threshold"] for (p,) in model.estimator_.named_steps["model"]._predictors]
    )
    assert np.isin(made["sugar"], thresholds).sum() > 50
    assert np.isnan(made["weight"]).sum() > 20
    assert np.isnat(made["picked"]).sum() > 20
    assert {None, "", "(missing)"} < set(made["shape"])
    assert np.nanmax(np.abs(made["weight"])) == 1e30


def test_made_rows_are_the_same_each_time(boosted):
    model, _, _ = boosted

    once, again = (made_rows(model, fruit()[0], COLUMNS, ()) for _ in range(2))

    for name in once:
        np.testing.assert_array_equal(once[name], again[name])


def test_a_number_next_to_a_threshold_goes_the_same_way_as_in_scikit_learn(boosted):
    model, converted, scikit = boosted
    at = model.estimator_.named_steps["model"]._predictors[0][0].nodes["num_threshold"][0]
    row = {name: np.repeat(values[:1], 3) for name, values in fruit()[0].items()}
    for name in ("weight", "sugar"):
        row[name] = np.array([np.nextafter(at, -np.inf), at, np.nextafter(at, np.inf)])

    ours, theirs = converted.predict(row, 3), scikit.predict(row, 3)

    assert len(set(theirs.scores)) > 1
    assert ours.scores == pytest.approx(theirs.scores, abs=1e-14)


@pytest.mark.parametrize("change", ["scores", "predictions", "refusal"])
def test_engines_that_part_are_told_apart(boosted, change):
    _, converted, scikit = boosted

    class Changed:
        name = "changed"

        def predict(self, columns, rows):
            said = scikit.predict(columns, rows)
            if change == "refusal":
                raise UnansweredError("the model cannot answer: no")
            scores = said.scores + (2 * TOLERANCE if change == "scores" else 0)
            predictions = ~said.predictions if change == "predictions" else said.predictions
            return type(said)(predictions, scores)

    found = differences(converted, Changed(), fruit()[0], ROWS)

    assert not found.same
    assert (found.furthest > TOLERANCE, found.other_predictions, found.refused) == {
        "scores": (True, 0, 0),
        "predictions": (False, ROWS, 0),
        "refusal": (False, 0, True),
    }[change]


def test_comparing_no_rows_proves_nothing():
    assert not Difference(rows=0, furthest=0.0, other_predictions=0).same


def test_a_score_that_is_not_a_number_is_no_agreement(boosted):
    _, converted, scikit = boosted

    class Nan:
        name = "nan"

        def predict(self, columns, rows):
            said = scikit.predict(columns, rows)
            return type(said)(said.predictions, np.full(rows, np.nan))

    assert not differences(converted, Nan(), fruit()[0], ROWS).same


@pytest.mark.parametrize(
    ("kind", "name", "parameters", "declared", "problem"),
    [
        (B, "ensemble.VotingClassifier", {}, {}, "skl2onnx cannot convert VotingClassifier"),
        (
            B,
            "linear_model.LogisticRegression",
            {},
            {"calibrate": "temperature"},
            "calibration by temperature has no ONNX form",
        ),
    ],
)
def test_a_pipeline_without_an_onnx_form_says_which_part_has_none(kind, name, parameters, declared, problem):
    from sklearn.linear_model import LogisticRegression

    made = (
        make(name, estimators=[("own", Own())], voting="soft")
        if name == "ensemble.VotingClassifier"
        else LogisticRegression()
    )
    model = fitted(kind, made, **declared)

    with pytest.raises(NotConvertibleError, match=problem):
        engines(model, kind)


def _own():
    from sklearn.base import BaseEstimator, ClassifierMixin

    class Own(ClassifierMixin, BaseEstimator):
        def fit(self, X, y):
            self.classes_ = np.unique(y)
            return self

        def predict_proba(self, X):
            return np.full((len(X), 2), 0.5)

        def predict(self, X):
            return np.full(len(X), self.classes_[0])

    return Own


Own = _own()


def test_date_parts_are_those_of_pandas():
    import pandas as pd

    moments = np.array(
        [
            "1677-09-22",
            "1969-12-31T23:59:59.999999",
            "1970-01-01",
            "2000-02-29T23",
            "2024-12-31",
            "9999-12-31",
            "NaT",
        ],
        dtype="datetime64[us]",
    )
    transformer = DateParts(PARTS).fit(pd.DataFrame({"at": moments}))

    expected = transformer.transform(pd.DataFrame({"at": moments}))

    for place, part in enumerate(PARTS):
        np.testing.assert_array_equal(DATE_PARTS[part](moments), expected[:, place])
        layout = OnnxInputs(numbers=(), dates=(DatePart(column="at", part=part),))
        alone = [layout.feed({"at": moments[i : i + 1]}, 1)["numbers"].item() for i in range(len(moments))]
        np.testing.assert_array_equal(alone, expected[:, place])
