"""Evaluation: one look at the holdout; a champion compared fairly or not at all; nothing missing is made up."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from fairlearn.metrics import MetricFrame, false_positive_rate, selection_rate, true_positive_rate
from mlflow.exceptions import MlflowException
from sklearn.metrics import roc_auc_score

from deployments.gates import ChampionGate, MetricGate
from deployments.model_file import SKOPS_FILE, UntrustedModelError
from platforms.tables import DeltaTables
from tasks.champion import TRAINING_ROWS, ChampionMissing, NoChampionYet, load_version, write_training_rows
from tasks.evaluate import HOLDOUT_SAMPLE, Evaluation, calibration, keep_sample
from tasks.frame import model_inputs, target_values
from tasks.gate import judge
from tasks.metrics import Bootstrap, Outputs, measure, outputs_of
from tasks.plots import evaluation_plots
from tasks.probe import Latency
from tasks.split import ROW_ID
from tasks.tracking import Tracking
from tasks.verdict import Verdict

GATE = ChampionGate(metric="roc_auc", margin=0.02, min_rows=30)


def quick(document):
    """One candidate, no search."""
    document["training"]["candidates"] = [
        {"name": "logistic", "estimator": "sklearn.linear_model.LogisticRegression"}
    ]


def split_by(seed):
    def change(document):
        quick(document)
        document["split"]["seed"] = seed

    return change


def holdout_of(line):
    return line.platform.tables.read(line.parts.holdout.snapshot)


def verdict_of(gate, evaluation):
    return judge([gate], evaluation).verdict


@pytest.fixture
def only_numbers(monkeypatch):
    """Evaluation draws nothing and times nothing."""
    instant = Latency(requests=50, p50_milliseconds=1.0, p95_milliseconds=1.0)
    monkeypatch.setattr("tasks.plots.evaluation_plots", lambda *_: {})
    monkeypatch.setattr("tasks.probe.latency", lambda *_: instant)


@pytest.fixture
def evaluate_again(only_numbers):
    """Evaluates a finished line once more, for another standing, in a run of its own."""

    def run(finished, standing):
        tracking = Tracking(finished.line.platform)
        again = tracking.create_run(finished.run.experiment_id, "again", {})
        return finished.line.evaluate(
            finished.run.model_copy(update={"run_id": again}), finished.trained, standing
        )

    return run


@dataclass(frozen=True)
class Contest:
    """A champion and a challenger, trained on other splits of the same rows."""

    first: Any
    champion: Any
    second: Any
    run: Any
    trained: Any

    def evaluate(self):
        """The challenger's evaluation, in a run of its own."""
        again = Tracking(self.second.platform).create_run(self.run.experiment_id, "again", {})
        return self.second.evaluate(
            self.run.model_copy(update={"run_id": again}), self.trained, self.champion
        )

    @property
    def champions_model(self):
        return model_file_of(self.first, self.champion.model_id)

    @property
    def champions_rows(self):
        run = Tracking(self.first.platform).client.get_run(self.champion.run_id)
        return Path(run.info.artifact_uri.removeprefix("file://")) / TRAINING_ROWS


def model_file_of(line, model_id):
    location = Tracking(line.platform).client.get_logged_model(model_id).artifact_location
    return Path(location.removeprefix("file://")) / SKOPS_FILE


def hold_contest(make_line, champion=None, challenger=None, kind="binary", rows=(None, None)):
    first = make_line(kind, champion or split_by(1), rows[0])
    reference = first.reference(first.train(first.open()))
    second = make_line(kind, challenger or split_by(2), rows[1])
    run = second.open()
    return Contest(first, reference, second, run, second.train(run))


@pytest.fixture(scope="module")
def contest(tmp_path_factory, make_fruit_line):
    """A contest, to be evaluated but not to be changed."""
    return hold_contest(make_fruit_line(tmp_path_factory.mktemp("contest")))


@pytest.fixture
def broken_contest(contest):
    """The same, whose champion may be damaged: its files are put back."""
    files = {path: path.read_bytes() for path in (contest.champions_model, contest.champions_rows)}
    yield contest
    for path, content in files.items():
        path.write_bytes(content)


# The holdout.


def test_the_holdout_is_opened_once(make_line, only_numbers, monkeypatch):
    line = make_line("binary", quick)
    run = line.open()
    trained = line.train(run)
    opened, plain = [], DeltaTables.read

    def reading(tables, snapshot, *rest):
        opened.append(snapshot.table)
        return plain(tables, snapshot, *rest)

    monkeypatch.setattr(DeltaTables, "read", reading)

    line.evaluate(run, trained)
    line.evaluate(run, trained)

    assert opened.count(line.parts.holdout.snapshot.table) == 1


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["binary", "multiclass", "regression"])
def test_metrics_are_those_of_the_saved_model_on_the_holdout(request, kind):
    finished = request.getfixturevalue(f"{kind}_line")
    line, spec = finished.line, finished.line.loaded.spec
    rows = holdout_of(line)
    model = load_version(line.platform, line.reference(finished.trained))

    said = outputs_of(model, model_inputs(rows, spec), spec.target)

    found = finished.evaluation.metrics
    assert set(found) == set(spec.evaluation.metrics)
    for name, estimate in found.items():
        assert estimate.value == pytest.approx(measure(name, target_values(rows, spec), said))
        assert estimate.low < estimate.value < estimate.high
        assert estimate.rows == rows.num_rows == finished.evaluation.rows


def test_what_is_measured_is_logged_and_read_under_the_same_name(binary_line):
    evaluation, spec = binary_line.evaluation, binary_line.line.loaded.spec
    logged = Tracking(binary_line.line.platform).client.get_run(binary_line.run.run_id).data.metrics

    for name, estimate in evaluation.metrics.items():
        assert logged[f"holdout_{name}"] == estimate.value
        assert logged[f"holdout_{name}_low"] == estimate.low
        assert logged[f"holdout_{name}_high"] == estimate.high
    for result, gate in zip(judge(spec.gates, evaluation).results, spec.gates, strict=True):
        if isinstance(gate, MetricGate):
            assert result.value == evaluation.metrics[gate.metric].value


def test_an_evaluation_is_the_same_when_it_is_made_again(binary_line, evaluate_again):
    first, again = binary_line.evaluation, evaluate_again(binary_line, NoChampionYet())

    assert again.model_copy(update={"latency": first.latency}) == first


def test_an_evaluation_survives_its_document(multiclass_line):
    found = multiclass_line.evaluation

    assert Evaluation.model_validate_json(found.model_dump_json()) == found


@pytest.mark.slow
def test_an_evaluation_killed_after_any_write_is_recorded_once(make_line, killed_after_every_write):
    line = make_line("regression")
    run = line.open()
    trained = line.train(run)

    found, killed = killed_after_every_write(lambda: line.evaluate(run, trained))

    client = Tracking(line.platform).client
    assert set(killed) == {"log_figure", "log_artifact", "log_batch", "log_text"}
    assert line.evaluate(run, trained) == found
    assert len(client.get_metric_history(run.run_id, "holdout_rmse")) == 1
    drawn = {Path(item.path).stem for item in client.list_artifacts(run.run_id, "plots")}
    assert drawn == {"importance", "slices", "residuals"}


def test_a_sample_of_the_holdouts_inputs_is_kept_and_no_truth(binary_line, tmp_path):
    client, spec = Tracking(binary_line.line.platform).client, binary_line.line.loaded.spec

    kept = pd.read_parquet(client.download_artifacts(binary_line.run.run_id, HOLDOUT_SAMPLE, str(tmp_path)))

    held = binary_line.line.platform.tables.read(binary_line.line.parts.holdout.snapshot)
    assert list(kept.columns) == list(spec.features.columns)
    pd.testing.assert_frame_equal(kept, model_inputs(held, spec), check_dtype=False)


def test_a_sample_of_the_holdout_leaves_personal_data_out_and_is_bounded(make_spec, tracked, tmp_path):
    loaded, tracking = make_spec(), Tracking(tracked)
    table = loaded.spec.feature_contract
    hashed = table.columns["shape"].model_copy(update={"pii": "hash"})
    personal = table.model_copy(update={"columns": table.columns | {"shape": hashed}})
    fields = {name: getattr(loaded.spec, name) for name in type(loaded.spec).model_fields}
    spec = type(loaded.spec).model_construct(**(fields | {"contract": {"fruit": personal}}))
    many = pd.DataFrame({"weight": np.arange(20_000.0), "shape": "round"})
    run = tracking.create_run(tracking.experiment(loaded.name), "a run", {})

    keep_sample(spec, tracking, run, many)

    kept = pd.read_parquet(tracking.client.download_artifacts(run, HOLDOUT_SAMPLE, str(tmp_path)))
    assert list(kept.columns) == ["weight"]
    assert len(kept) == 500
    assert (kept["weight"].min(), kept["weight"].max()) == (0, 19_999)


def test_a_challenger_whose_file_has_changed_is_not_evaluated(make_line, only_numbers):
    line = make_line("binary", quick)
    run = line.open()
    trained = line.train(run)
    change_a_byte(model_file_of(line, trained.model_id))

    with pytest.raises(UntrustedModelError, match="was recorded"):
        line.evaluate(run, trained)


def test_a_model_that_says_nan_passes_no_gate_that_measures_it(make_line, only_numbers, monkeypatch):
    line = make_line("binary", quick)
    run = line.open()
    trained = line.train(run)
    model = load_version(line.platform, line.reference(trained))

    class Broken:
        classes_ = model.classes_
        predict = model.predict

        def predict_proba(self, rows):
            return np.full((len(rows), 2), math.nan)

    monkeypatch.setattr("tasks.evaluate.load_logged_model", lambda *_: Broken())

    found = line.evaluate(run, trained)

    assert math.isnan(found.metrics["roc_auc"].value)
    assert verdict_of(MetricGate(metric="roc_auc", min=0.0), found) is Verdict.INCONCLUSIVE
    assert all(math.isnan(swing.swing) for swing in found.swings)


# The champion.


def change_a_byte(file):
    content = bytearray(file.read_bytes())
    content[-30] ^= 1
    file.write_bytes(content)


def test_the_champion_is_not_asked_about_rows_it_has_seen(contest, only_numbers):
    first, second, reference = contest.first, contest.second, contest.champion
    spec, rows = second.loaded.spec, holdout_of(second)
    seen = {
        row
        for part in (first.parts.development.train, first.parts.development.validation)
        for row in second.platform.tables.read(part.snapshot).column(ROW_ID).to_pylist()
    }

    kept = rows.filter(pa.array([row not in seen for row in rows.column(ROW_ID).to_pylist()]))

    found = contest.evaluate()

    compared = found.comparison
    assert compared.problem == ""
    assert 30 <= compared.rows == kept.num_rows < rows.num_rows
    assert compared.excluded == rows.num_rows - kept.num_rows
    score = load_version(second.platform, reference).predict_proba(model_inputs(kept, spec))[:, 1]
    pair = compared.metrics["roc_auc"]
    assert pair.champion == pytest.approx(roc_auc_score(target_values(kept, spec), score))
    assert pair.improvement.value == pytest.approx(pair.challenger - pair.champion)
    assert pair.improvement.rows == kept.num_rows
    assert found.champion == "1"
    assert not found.first_version


def test_too_few_rows_left_are_inconclusive(contest, only_numbers):
    found = contest.evaluate()

    enough = GATE.model_copy(update={"margin": 1.0, "min_rows": found.comparison.rows})
    too_many = enough.model_copy(update={"min_rows": found.comparison.rows + 1})

    assert verdict_of(enough, found) is Verdict.PASS
    assert verdict_of(too_many, found) is Verdict.INCONCLUSIVE


def test_rows_that_chose_the_champion_count_as_seen_though_it_was_not_refitted_on_them(
    make_line, only_numbers
):
    def not_refitted(document):
        split_by(1)(document)
        document["training"]["refit_on"] = "train"

    held = hold_contest(make_line, champion=not_refitted)

    found = held.evaluate()

    tables, development = held.first.platform.tables, held.first.parts.development
    seen = {
        row
        for part in (development.train, development.validation)
        for row in tables.read(part.snapshot).column(ROW_ID).to_pylist()
    }
    asked_about = holdout_of(held.second).column(ROW_ID).to_pylist()
    assert found.comparison.rows == len([row for row in asked_about if row not in seen])


DAMAGES = {
    "was recorded": lambda held: change_a_byte(held.champions_model),
    "there is no model file": lambda held: held.champions_model.unlink(),
    "which rows it was trained on was not recorded": lambda held: held.champions_rows.unlink(),
    "could not be scored": lambda held: held.champions_rows.write_bytes(b"not parquet"),
    "it was trained on all": lambda held: write_training_rows(
        held.champions_rows, holdout_of(held.second).column(ROW_ID)
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("said", DAMAGES)
def test_a_champion_that_is_not_as_recorded_is_not_compared_and_nothing_passes(
    broken_contest, only_numbers, said
):
    DAMAGES[said](broken_contest)

    found = broken_contest.evaluate()

    assert said in found.comparison.problem
    assert found.comparison.metrics == {}
    assert not found.first_version
    assert verdict_of(GATE, found) is Verdict.INCONCLUSIVE


def other_key(document):
    split_by(2)(document)
    document["features"]["entity"] = ["fruit_id", "tree"]


def other_target(document):
    split_by(2)(document)
    document["target"]["positive"] = False


@pytest.mark.slow
@pytest.mark.parametrize(
    ("challenger", "said"),
    [(other_key, "its rows are told apart by fruit_id"), (other_target, "it predicts another target")],
)
def test_a_champion_of_another_question_is_not_compared(make_line, only_numbers, challenger, said):
    found = hold_contest(make_line, challenger=challenger).evaluate()

    assert said in found.comparison.problem
    assert verdict_of(GATE, found) is Verdict.INCONCLUSIVE


@pytest.mark.slow
def test_a_champion_that_knows_other_classes_is_not_compared(make_line, make_rows, only_numbers):
    rows = make_rows("multiclass")
    words = pc.replace_substring(rows.column("ripe"), "fair", "so-so")
    others = rows.set_column(rows.column_names.index("ripe"), "ripe", words)

    found = hold_contest(make_line, quick, split_by(2), "multiclass", (others, rows)).evaluate()

    assert "it knows the classes ['green', 'ripe', 'so-so']" in found.comparison.problem
    gate = ChampionGate(metric="accuracy", margin=1.0, min_rows=30)
    assert verdict_of(gate, found) is Verdict.INCONCLUSIVE


def without_a_feature(document):
    split_by(2)(document)
    document["features"]["numeric"] = ["weight", "spots"]


def with_a_number_as_category(document):
    split_by(2)(document)
    document["features"]["numeric"] = ["weight"]
    document["features"]["categorical"] = ["shape", "sugar", "spots"]


@pytest.mark.slow
@pytest.mark.parametrize("challenger", [without_a_feature, with_a_number_as_category])
def test_a_champion_is_given_its_own_inputs_whatever_the_challenger_uses(
    make_line, contest, only_numbers, challenger
):
    found = hold_contest(make_line, challenger=challenger).evaluate()

    assert found.comparison.problem == ""
    as_ever = contest.evaluate().comparison.metrics["roc_auc"]
    assert found.comparison.metrics["roc_auc"].champion == as_ever.champion


@pytest.mark.slow
def test_a_champion_that_needs_a_column_which_is_gone_is_not_compared(make_line, make_rows, only_numbers):
    def without_sugar(document):
        without_a_feature(document)
        del document["contract"]["fruit"]["columns"]["sugar"]

    rows = make_rows()

    found = hold_contest(
        make_line, challenger=without_sugar, rows=(rows, rows.drop_columns(["sugar"]))
    ).evaluate()

    assert "it needs sugar, which the holdout does not have" in found.comparison.problem


def test_the_first_version_is_said_to_be_the_first(binary_line):
    evaluation = binary_line.evaluation

    assert evaluation.first_version
    assert evaluation.comparison is None
    assert evaluation.champion is None
    (result,) = judge([GATE], evaluation).results
    assert result.verdict is Verdict.PASS
    assert result.value is None
    assert "first version" in result.reason


@pytest.mark.slow
def test_a_champion_that_is_gone_is_not_a_first_version(binary_line, evaluate_again):
    found = evaluate_again(binary_line, ChampionMissing("the alias is gone"))

    assert not found.first_version
    assert found.comparison.problem == "the alias is gone"
    assert verdict_of(GATE, found) is Verdict.INCONCLUSIVE


def test_an_evaluation_as_the_first_does_not_stand_once_the_champion_is_gone(make_line, only_numbers):
    line = make_line("binary", quick)
    run = line.open()
    trained = line.train(run)
    first = line.evaluate(run, trained, NoChampionYet())

    later = line.evaluate(run, trained, ChampionMissing("the alias is gone"))

    assert verdict_of(GATE, first) is Verdict.PASS
    assert verdict_of(GATE, later) is Verdict.INCONCLUSIVE


def test_another_champion_is_compared_anew(contest, only_numbers):
    found = contest.second.evaluate(contest.run, contest.trained, contest.champion)
    other = contest.champion.model_copy(update={"version": "2", "digest": "0" * 64})

    later = contest.second.evaluate(contest.run, contest.trained, other)

    assert found.comparison.problem == ""
    assert "000000000000… was recorded" in later.comparison.problem


def test_a_store_that_fails_is_not_swallowed(contest, only_numbers, monkeypatch):
    def unreachable(*_, **__):
        raise MlflowException("the store does not answer")

    monkeypatch.setattr("tasks.evaluate.trained_spec", unreachable)

    with pytest.raises(MlflowException, match="does not answer"):
        contest.evaluate()


# Slices, groups, calibration.


def sliced(document):
    quick(document)
    document["evaluation"] |= {"slices": ["shape", "washed"], "min_slice_rows": 20}
    document["gates"] = [
        {"kind": "fairness", "attribute": "shape", "measure": "equalized_odds_difference", "max": 0.9},
        {"kind": "fairness", "attribute": "shape", "measure": "group_floor", "metric": "roc_auc", "min": 0.1},
    ]


@pytest.fixture(scope="module")
def in_slices(tmp_path_factory, make_fruit_line):
    """A holdout, what a model says of it, and the model's evaluation with slices and groups."""
    line = make_fruit_line(tmp_path_factory.mktemp("slices"))("binary", sliced)
    run = line.open()
    trained = line.train(run)
    rows, spec = holdout_of(line), line.loaded.spec
    said = outputs_of(
        load_version(line.platform, line.reference(trained)), model_inputs(rows, spec), spec.target
    )
    return rows, target_values(rows, spec), said, line.evaluate(run, trained)


@pytest.mark.slow
def test_slices_are_measured_where_there_are_enough_rows_and_named_where_not(in_slices):
    rows, truth, said, found = in_slices
    shapes = np.array(rows.column("shape").to_pylist(), dtype=object)
    missing = sum(value is None for value in shapes)

    values = {(item.column, item.value): item for item in found.slices}

    assert set(values) == {("shape", "flat"), ("shape", "long"), ("shape", "round")} | {
        ("washed", "false"),
        ("washed", "true"),
    }
    assert found.skipped_slices == (f"shape=(missing) ({missing} rows)",)
    members = np.flatnonzero(shapes == "round")
    estimate = values["shape", "round"].estimate
    assert estimate.value == pytest.approx(roc_auc_score(truth[members], said.score[members]))
    assert estimate.low < estimate.value < estimate.high
    assert estimate.rows == len(members)


def test_groups_are_what_fairlearn_says_and_missing_is_one(in_slices):
    rows, truth, said, found = in_slices
    shapes = np.array([value or "(missing)" for value in rows.column("shape").to_pylist()])
    expected = MetricFrame(
        metrics={"sel": selection_rate, "tpr": true_positive_rate, "fpr": false_positive_rate},
        y_true=truth,
        y_pred=said.predictions,
        sensitive_features=shapes,
    ).by_group

    assert [group.value for group in found.groups] == ["(missing)", "flat", "long", "round"]
    for group in found.groups:
        members = shapes == group.value
        assert (group.rows, group.positives) == (members.sum(), truth[members].sum())
        assert group.negatives == group.rows - group.positives
        rates = (group.selection_rate, group.true_positive_rate, group.false_positive_rate)
        assert rates == pytest.approx(tuple(expected.loc[group.value]))
        assert group.metrics["roc_auc"] == pytest.approx(
            measure("roc_auc", truth[members], said.take(members)), nan_ok=True
        )


def test_calibration_is_the_mean_gap_over_bins_of_equal_count():
    score = np.array([0.1] * 10 + [0.5] * 10 + [0.9] * 10)
    truth = np.array([False] * 10 + [True, False] * 5 + [True] * 10)
    said = Outputs(truth, np.column_stack([1 - score, score]), np.array([False, True]), 1)

    found = calibration(truth, said, bins=3)

    assert [(one.rows, one.mean_score, one.positive_share) for one in found.bins] == [
        (10, pytest.approx(0.1), 0.0),
        (10, pytest.approx(0.5), 0.5),
        (10, pytest.approx(0.9), 1.0),
    ]
    assert found.error == pytest.approx((0.1 + 0.0 + 0.1) / 3)


def test_calibration_of_nan_is_nan():
    score = np.array([0.1, math.nan] * 10)
    said = Outputs(score > 0, np.column_stack([1 - score, score]), np.array([False, True]), 1)

    assert math.isnan(calibration(np.tile([False, True], 10), said).error)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("split", "column"),
    [
        ({"kind": "group", "column": "tree", "holdout": 0.3, "validation": 0.2, "min_rows": 30}, "tree"),
        (None, "fruit_id"),
    ],
)
def test_intervals_draw_whole_groups_where_the_split_keeps_groups_together(
    make_line, only_numbers, monkeypatch, split, column
):
    def change(document):
        quick(document)
        document["split"] = split or document["split"]

    line, drawn, plain = make_line("binary", change), [], Bootstrap.weights

    def watching(bootstrap, clusters):
        drawn.append(clusters)
        return plain(bootstrap, clusters)

    monkeypatch.setattr(Bootstrap, "weights", watching)
    run = line.open()

    line.evaluate(run, line.train(run))

    named = holdout_of(line).column(column).to_pylist()
    pairs = set(zip(drawn[0].tolist(), named, strict=True))
    assert len(pairs) == len(set(named)) == len(set(drawn[0].tolist()))


# Plots.

CURVES = {"roc", "precision_recall", "calibration"}


@pytest.mark.parametrize(
    ("kind", "drawn"),
    [
        ("binary", {"importance", "slices", "confusion"} | CURVES),
        ("multiclass", {"importance", "slices", "confusion"}),
        ("regression", {"importance", "slices", "residuals"}),
    ],
)
def test_the_plots_are_those_of_the_kind_of_target(request, kind, drawn):
    finished = request.getfixturevalue(f"{kind}_line")
    client = Tracking(finished.line.platform).client

    found = {Path(item.path).stem for item in client.list_artifacts(finished.run.run_id, "plots")}

    assert found == drawn


def test_what_is_no_number_is_not_drawn_as_a_curve(binary_line):
    score = np.array([0.1, math.nan] * 10)
    said = Outputs(score > 0, np.column_stack([1 - score, score]), np.array([False, True]), 1)

    drawn = evaluation_plots(
        binary_line.line.loaded.spec, np.tile([False, True], 10), said, binary_line.evaluation
    )

    assert set(drawn) == {"importance", "slices", "confusion"}
