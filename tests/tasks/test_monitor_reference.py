"""What live rows are compared with: rows of training, where they are here, and an error that says so where not."""

import numpy as np
import pyarrow as pa
import pytest

from deployments.errors import ContenderError
from deployments.spec import FEATURES
from tasks import monitor_reference
from tasks.champion import ChampionRef, load_version
from tasks.frame import model_inputs
from tasks.live_window import inputs_frame
from tasks.metrics import Outputs, outputs_of
from tasks.monitor_reference import known_categories, training_reference, training_tables
from tasks.unlearned import said_column

REF = ChampionRef(name="dev-fruit", version="3", run_id="r", model_id="m", digest="d")


@pytest.fixture
def carried(platform, monkeypatch):
    """What came along of a version's training data, of which no training of this environment tells."""

    class NoRuns:
        def __init__(self, _platform):
            pass

        def document(self, *_):
            return None

    def keep(table):
        found = {}
        if table is not None:
            found = {FEATURES: platform.tables.write("gold/fruit/reference", table.to_reader())}
        monkeypatch.setattr(monitor_reference, "Tracking", NoRuns)
        monkeypatch.setattr(monitor_reference, "reference_snapshots", lambda *_: found)
        return found

    return keep


def fruit(count=6, **changes):
    columns = {
        "weight": np.full(count, 100.0),
        "sugar": np.full(count, 10.0),
        "spots": pa.array([3] * count),
        "shape": pa.array((["round", None, "long"] * count)[:count]),
        "washed": pa.array([True] * count),
    }
    return pa.table(columns | changes)


def test_a_version_from_elsewhere_is_compared_with_what_came_along(platform, carried, make_spec):
    found = carried(fruit())

    assert training_tables(platform, REF) == (found[FEATURES],)
    assert known_categories(platform, REF, make_spec().spec) == {"shape": frozenset({"round", "long"})}


def test_data_that_did_not_come_along_is_an_error_that_says_so(platform, carried, make_spec):
    spec = make_spec().spec

    carried(None)
    with pytest.raises(ContenderError, match="dev-fruit version 3: the data it was trained on is not here"):
        training_tables(platform, REF)
    carried(fruit().drop_columns(["sugar", "spots"]))
    with pytest.raises(ContenderError, match="spots, sugar did not come along"):
        known_categories(platform, REF, spec)


def test_a_forest_that_knows_its_training_rows_by_heart_is_compared_with_its_holdout(
    make_line, make_rows, monkeypatch
):
    from scipy.stats import wasserstein_distance

    def one_forest(spec):
        forest = {"name": "forest", "estimator": "sklearn.ensemble.RandomForestClassifier"}
        spec["training"]["candidates"] = [forest | {"params": {"n_estimators": 30}}]

    rows = make_rows("binary", 3000, 1)
    by_chance = pa.array(np.random.default_rng(3).random(3000) < 0.3)
    line = make_line(
        "binary", one_forest, rows.set_column(rows.column_names.index("ripe"), "ripe", by_chance)
    )
    run = line.open()
    trained = line.train(run)
    line.evaluate(run, trained)
    ref, spec = line.reference(trained), line.loaded.spec
    monkeypatch.setattr(
        monitor_reference, "reference_snapshots", lambda *_: {FEATURES: line.parts.development.train.snapshot}
    )
    live, learned = (
        outputs_of(load_version(line.platform, ref), model_inputs(rows, spec), spec.target).score
        for rows in (
            make_rows("binary", 3000, 2),
            line.platform.tables.read(line.parts.development.train.snapshot),
        )
    )

    found = training_reference(line.platform, ref, spec, rows=2000, seed=1)

    said = found.unlearned.said
    assert found.unlearned.rows == line.parts.holdout.snapshot.rows == len(said)
    # By what matters in drift: as many standard deviations apart.
    assert wasserstein_distance(said, live) / said.std() < 0.1
    assert wasserstein_distance(learned, live) / learned.std() > 0.3


def test_a_version_of_which_no_answers_were_kept_has_nothing_to_compare_its_answers_with(
    platform, carried, make_spec, monkeypatch
):
    carried(fruit())
    monkeypatch.setattr(monitor_reference, "kept_answers", lambda *_: None)

    found = training_reference(platform, REF, make_spec().spec, rows=100, seed=1)

    assert (len(found.frame), found.rows, found.unlearned) == (6, 6, None)


def test_what_is_compared_of_predictions_depends_on_the_target(make_spec):
    yes_no = Outputs(np.array([True]), np.array([[0.2, 0.8]]), np.array([False, True]), 1)
    classes = Outputs(np.array(["ripe"]), np.array([[0.2, 0.8]]), np.array(["green", "ripe"]))

    assert said_column(yes_no, make_spec().spec).tolist() == [0.8]
    assert said_column(classes, make_spec("multiclass").spec).tolist() == ["ripe"]
    assert said_column(Outputs(np.array([4.5])), make_spec("regression").spec).tolist() == [4.5]


def test_live_rows_are_typed_as_in_training_and_what_is_missing_is_nan(make_spec):
    spec = make_spec().spec

    whole = inputs_frame(fruit(), spec)
    lacking = inputs_frame(fruit(2, spots=pa.array([3, None]), washed=pa.array([None, True])), spec)

    assert whole["spots"].dtype == np.int64
    assert whole["washed"].dtype == bool
    assert lacking["spots"].tolist()[0] == 3.0
    assert np.isnan(lacking["spots"][1])
    assert np.isnan(lacking["washed"][0])
    assert lacking["washed"][1] == 1.0
