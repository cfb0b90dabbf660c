"""Engines: the same frame, predictions and scores as training's, and which rows ONNX Runtime leaves to scikit-learn."""

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from serving.engine import OnnxEngine, PyfuncEngine, SklearnEngine, UnansweredError, example_columns, frame
from serving.onnx_inputs import LARGEST
from serving.onnx_model import convert
from serving.onnx_proof import refused_missing
from serving.served_model import ServedColumn


@pytest.fixture(scope="module", autouse=True)
def single_threads():
    """Numerical libraries use one thread: several spin while they wait, on a machine that runs other tests."""
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1):
        yield


COLUMNS = (
    ServedColumn(name="weight", kind="double", required=False),
    ServedColumn(name="sugar", kind="double", required=True),
    ServedColumn(name="spots", kind="long", required=True),
    ServedColumn(name="shape", kind="string", required=False),
    ServedColumn(name="washed", kind="boolean", required=True),
    ServedColumn(name="picked", kind="datetime", required=False),
)

ROWS = 60


def columns():
    draw = np.random.default_rng(3)
    weight, shape = draw.normal(100, 20, ROWS), draw.choice(["long", "round"], ROWS).astype(object)
    picked = np.datetime64("2025-01-01", "us") + np.arange(ROWS).astype("timedelta64[D]")
    weight[::9], shape[::7], picked[::8] = np.nan, None, np.datetime64("NaT")
    return {
        "weight": weight,
        "sugar": draw.normal(10, 2, ROWS),
        "spots": draw.integers(0, 9, ROWS),
        "shape": shape,
        "washed": draw.random(ROWS) < 0.5,
        "picked": picked,
    }


def spec_of(kind="binary", positive="true"):
    from deployments.documents import parse_document
    from deployments.spec import ModelSpec

    target = (
        f"{{kind: binary, column: ripe, positive: {positive}}}"
        if kind == "binary"
        else f"{{kind: {kind}, column: ripe}}"
    )
    metric = {"binary": "roc_auc", "multiclass": "accuracy", "regression": "rmse"}[kind]
    ripe = {"binary": "boolean", "multiclass": "string", "regression": "number"}[kind]
    return parse_document(
        f"""
name: fruit
governance: {{owner: orchard, purpose: To be tested.}}
target: {target}
sources: {{fruit: {{kind: csv, path: fruit.csv}}}}
contract:
  fruit:
    columns:
      id: {{type: integer}}
      weight: {{type: number, nullable: true}}
      sugar: {{type: number}}
      spots: {{type: integer}}
      shape: {{type: string, nullable: true}}
      washed: {{type: boolean}}
      picked: {{type: timestamp, nullable: true}}
      ripe: {{type: {ripe}}}
features:
  entity: [id]
  numeric: [weight, sugar, spots]
  categorical: [shape]
  boolean: [washed]
  dates: [picked]
split: {{kind: random, holdout: 0.3, validation: 0.2}}
training: {{metric: {metric}, candidates: [{{name: a, estimator: sklearn.linear_model.Ridge}}]}}
evaluation: {{metrics: [{metric}]}}
gates: [{{kind: champion, metric: {metric}, margin: 0.1}}]
""",
        ModelSpec,
        "model.yaml",
    )


def fitted(kind="binary", estimator=None):
    from sklearn.linear_model import LogisticRegression, Ridge

    from tasks.pipeline import make_pipeline, with_threshold

    given = columns()
    ripeness = given["sugar"] + given["spots"]
    truth = {
        "binary": ripeness > 14,
        "multiclass": np.choose(np.digitize(ripeness, [12, 16]), ["green", "fair", "ripe"]),
        "regression": ripeness,
    }[kind]
    estimator = estimator or (Ridge() if kind == "regression" else LogisticRegression())
    model = make_pipeline(spec_of(kind), estimator)
    if kind == "binary":
        model = with_threshold(model, 0.3, True)
    return model.fit(frame(given, COLUMNS), truth)


def as_table(given):
    return pa.table(
        {
            name: pa.array(values, from_pandas=True)
            if name != "picked"
            else pa.array(values).cast(pa.timestamp("us", "UTC"))
            for name, values in given.items()
        }
    )


def test_the_frame_is_the_one_that_training_makes():
    from tasks.frame import input_schema, model_inputs

    spec = spec_of()

    expected = model_inputs(as_table(columns()), spec)

    pd.testing.assert_frame_equal(frame(columns(), COLUMNS), expected)
    assert [(c.name, c.type.name, c.required) for c in input_schema(spec).inputs] == [
        (column.name, column.kind, column.required) for column in COLUMNS
    ]


@pytest.mark.parametrize("kind", ["binary", "multiclass", "regression"])
def test_answers_are_those_that_evaluation_measures(kind):
    from tasks.metrics import outputs_of

    model = fitted(kind)
    expected = outputs_of(model, frame(columns(), COLUMNS), spec_of(kind).target)

    said = SklearnEngine(model, COLUMNS, kind, True if kind == "binary" else None).predict(columns(), ROWS)

    np.testing.assert_array_equal(said.predictions, expected.predictions)
    if kind == "regression":
        assert said.scores is None
    else:
        np.testing.assert_array_equal(said.scores, expected.score)


def both(kind="binary", estimator=None):
    model = fitted(kind, estimator)
    positive = True if kind == "binary" else None
    scikit = SklearnEngine(model, COLUMNS, kind, positive)
    loaded = []

    def spare():
        loaded.append(scikit)
        return scikit

    certain = refused_missing(scikit, columns(), COLUMNS)
    return OnnxEngine(convert(model, COLUMNS, kind, positive, certain), spare), scikit, loaded


@pytest.mark.parametrize("kind", ["binary", "multiclass", "regression"])
@pytest.mark.parametrize("rows", [1, 2, ROWS, 10_000])
def test_onnx_answers_like_scikit_learn_for_any_number_of_rows(kind, rows):
    converted, scikit, loaded = both(kind)
    given = {name: np.resize(values, rows) for name, values in columns().items()}

    ours, theirs = converted.predict(given, rows), scikit.predict(given, rows)

    assert loaded == []
    assert ours.predictions.dtype == theirs.predictions.dtype
    if kind == "regression":
        assert ours.predictions == pytest.approx(theirs.predictions, abs=1e-9)
        assert ours.scores is None
    else:
        np.testing.assert_array_equal(ours.predictions, theirs.predictions)
        assert ours.scores == pytest.approx(theirs.scores, abs=1e-12)


def test_missing_and_unknown_categories_are_answered_by_onnx():
    converted, scikit, loaded = both()
    given = {name: values[:3].copy() for name, values in columns().items()}
    given["shape"] = np.array([None, "square", "(missing)"], dtype=object)

    ours = [
        converted.predict(given, 3).scores,
        *(
            converted.predict({name: values[i : i + 1] for name, values in given.items()}, 1).scores
            for i in range(3)
        ),
    ]

    expected = scikit.predict(given, 3).scores
    assert ours[0] == pytest.approx(expected, abs=1e-12)
    assert np.concatenate(ours[1:]) == pytest.approx(expected, abs=1e-12)
    assert loaded == []


@pytest.mark.parametrize("rows", [1, 5])
def test_numbers_beyond_what_was_proven_go_to_scikit_learn(rows):
    converted, scikit, loaded = both()
    given = {name: values[1 : rows + 1].copy() for name, values in columns().items()}
    given["sugar"][-1] = 2 * LARGEST

    said = converted.predict(given, rows)

    assert loaded == [scikit]
    np.testing.assert_array_equal(said.scores, scikit.predict(given, rows).scores)


def test_an_infinite_number_is_refused_as_scikit_learn_refuses_it():
    converted, _, loaded = both()
    given = {name: values[:1].copy() for name, values in columns().items()}
    given["sugar"][0] = np.inf

    with pytest.raises(UnansweredError, match="the model cannot answer: Input X contains infinity"):
        converted.predict(given, 1)

    assert len(loaded) == 1


@pytest.mark.parametrize("rows", [1, 5])
def test_a_missing_number_that_scikit_learn_refuses_is_left_to_it(rows):
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    given = {"a": np.arange(8.0), "b": np.arange(8.0)[::-1] ** 2}
    declared = tuple(ServedColumn(name=name, kind="double", required=False) for name in given)
    model = make_pipeline(LogisticRegression()).fit(frame(given, declared), np.arange(8) > 4)
    scikit = SklearnEngine(model, declared, "binary", True)
    certain = refused_missing(scikit, given, declared)
    converted = OnnxEngine(convert(model, declared, "binary", True, certain), lambda: scikit)
    asked = {name: values[:rows].copy() for name, values in given.items()}

    whole = converted.predict(asked, rows)
    asked["b"][-1] = np.nan

    assert certain == ["a", "b"]
    assert whole.scores == pytest.approx(scikit.predict({n: v[:rows] for n, v in given.items()}, rows).scores)
    with pytest.raises(UnansweredError, match="Input X contains NaN"):
        converted.predict(asked, rows)


@pytest.mark.parametrize("rows", [1, 3])
def test_a_category_that_an_encoder_refuses_is_left_to_it(rows):
    from sklearn.compose import ColumnTransformer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import Pipeline
    from sklearn.preprocessing import OneHotEncoder

    given = {"kind": np.array(["a", "b", "c", "a", "b", "c"], dtype=object)}
    declared = (ServedColumn(name="kind", kind="string", required=True),)
    encode = ColumnTransformer([("kind", OneHotEncoder(sparse_output=False), ["kind"])])
    model = Pipeline([("encode", encode), ("model", LogisticRegression())]).fit(
        frame(given, declared), np.array([1, 0, 0, 1, 0, 1])
    )
    scikit = SklearnEngine(model, declared, "binary", 1)
    converted = OnnxEngine(convert(model, declared, "binary", 1), lambda: scikit)

    known = converted.predict({"kind": given["kind"][:rows]}, rows)

    assert known.scores == pytest.approx(scikit.predict({"kind": given["kind"][:rows]}, rows).scores)
    for stranger in ("z", None):
        asked = np.array(["a", "b", stranger][-rows:], dtype=object)
        with pytest.raises(UnansweredError, match="Found unknown categories"):
            converted.predict({"kind": asked}, rows)


def test_a_tie_is_decided_as_scikit_learn_decides_it():
    from sklearn.tree import DecisionTreeClassifier

    given = {"a": np.zeros(4)}
    declared = (ServedColumn(name="a", kind="double", required=True),)
    truth = np.array(["no", "yes", "no", "yes"])
    for positive in ("yes", "no"):
        model = DecisionTreeClassifier().fit(frame(given, declared), truth)
        scikit = SklearnEngine(model, declared, "binary", positive)
        converted = OnnxEngine(convert(model, declared, "binary", positive), lambda scikit=scikit: scikit)

        said = converted.predict(given, 4)

        assert said.predictions.tolist() == scikit.predict(given, 4).predictions.tolist() == ["no"] * 4
        assert said.scores.tolist() == [0.5] * 4


def test_a_model_of_others_that_raises_is_an_answer_in_a_sentence():
    class Broken:
        def predict(self, inputs):
            raise KeyError("no such thing")

    with pytest.raises(UnansweredError, match="the model cannot answer: 'no such thing'"):
        PyfuncEngine(Broken(), COLUMNS).predict(columns(), ROWS)


def test_a_model_of_others_that_answers_with_several_values_a_row_is_refused():
    class Wide:
        def predict(self, inputs):
            return np.zeros((len(inputs), 2))

    with pytest.raises(UnansweredError, match=r"an array of shape \(60, 2\) for 60 rows"):
        PyfuncEngine(Wide(), COLUMNS).predict(columns(), ROWS)


def test_a_recorded_example_comes_back_as_it_was():
    import json

    given = {name: values[:9] for name, values in columns().items()}
    recorded = json.loads(
        frame(given, COLUMNS).to_json(orient="records", date_format="iso", double_precision=15)
    )

    found = example_columns(recorded, COLUMNS)

    for name, values in given.items():
        assert found[name].dtype == values.dtype
        if values.dtype.kind == "f":
            assert found[name] == pytest.approx(values, nan_ok=True)
        else:
            np.testing.assert_array_equal(found[name], values)
