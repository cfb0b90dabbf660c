"""Training: never sees the holdout, finds the same model again, and carries on wherever it was killed."""

import json
import math
import shutil
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from mlflow.models import Model
from sklearn.metrics import f1_score

from deployments.environment import Budget
from deployments.errors import BadInputError, ContenderError
from deployments.model_file import SKOPS_FILE, UntrustedModelError, file_digest
from platforms.local import LocalPlatform
from tasks.champion import load_version
from tasks.code_version import CodeVersion
from tasks.frame import model_inputs, target_values
from tasks.metrics import Outputs, measure, outputs_of
from tasks.tracking import Tracking
from tasks.train import (
    BudgetExceededError,
    CandidateResult,
    DirtyTreeError,
    check_candidates,
    choose_threshold,
    open_run,
    rank,
    train_candidate,
    training_key,
)

ROOT = Path(__file__).parents[2]
CODE = CodeVersion(commit="c" * 40, dirty=False, digest="e" * 64)


def runs_of(line):
    client = Tracking(line.platform).client
    experiment = client.get_experiment_by_name(line.platform.experiment(line.loaded.name))
    return client.search_runs([experiment.experiment_id])


def logged_models_of(line):
    client = Tracking(line.platform).client
    experiment = client.get_experiment_by_name(line.platform.experiment(line.loaded.name))
    return client.search_logged_models([experiment.experiment_id])


def candidates(*given):
    return lambda document: document["training"].update(candidates=list(given))


def one_candidate(estimator="sklearn.linear_model.LogisticRegression", **named):
    return candidates({"name": "only", "estimator": estimator} | named)


def test_the_winner_is_the_best_on_the_validation_part(binary_line):
    board = binary_line.leaderboard

    assert [result.name for result in board.candidates] == ["logistic", "tree"]
    assert board.candidates[0].validation > board.candidates[1].validation
    assert binary_line.trained.candidate == "logistic"
    assert binary_line.trained.params == board.winner.params


def test_the_validation_score_is_that_of_the_train_part_alone(binary_line):
    line, winner = binary_line.line, binary_line.leaderboard.winner
    spec, tables = line.loaded.spec, line.platform.tables
    train, validation = (
        tables.read(part.snapshot)
        for part in (line.parts.development.train, line.parts.development.validation)
    )
    from sklearn.linear_model import LogisticRegression

    from tasks.pipeline import make_pipeline

    model = make_pipeline(spec, LogisticRegression(random_state=0, **winner.params))
    model.fit(model_inputs(train, spec), target_values(train, spec))
    said = outputs_of(model, model_inputs(validation, spec), spec.target)
    expected = measure("roc_auc", target_values(validation, spec), said)
    assert winner.validation == pytest.approx(expected, rel=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["binary", "multiclass", "regression"])
def test_every_kind_of_target_is_trained_saved_and_loaded(request, kind):
    finished = request.getfixturevalue(f"{kind}_line")
    line, trained = finished.line, finished.trained

    model = load_version(line.platform, line.reference(trained))
    rows = line.platform.tables.read(line.parts.development.train.snapshot)
    said = outputs_of(model, model_inputs(rows, line.loaded.spec).head(5), line.loaded.spec.target)

    assert said.score.tolist() == trained.expected
    assert said.predictions.tolist() == trained.expected_predictions
    assert trained.training_rows == 270
    assert all(math.isfinite(value) for value in trained.train_metrics.values())


def test_training_does_not_need_the_holdout(make_line):
    line = make_line()
    shutil.rmtree(line.parts.holdout.snapshot.uri)

    trained = line.train(line.open())

    assert trained.candidate == "logistic"


def test_training_again_gives_the_same_model_and_the_same_scores(make_line, binary_line):
    line = make_line()

    board = line.compete(line.open())
    trained = line.train(line.open())

    assert [(one.name, one.params, one.folds, one.validation) for one in board.candidates] == [
        (one.name, one.params, one.folds, one.validation) for one in binary_line.leaderboard.candidates
    ]
    assert trained.digest == binary_line.trained.digest
    assert trained.train_metrics == binary_line.trained.train_metrics


def test_the_recorded_digest_is_of_the_file_that_was_logged(binary_line, tmp_path):
    line, trained = binary_line.line, binary_line.trained
    location = Tracking(line.platform).client.get_logged_model(trained.model_id).artifact_location

    folder = Path(mlflow.artifacts.download_artifacts(location, dst_path=str(tmp_path)))

    assert trained.digest == trained.files[SKOPS_FILE] == file_digest(folder / SKOPS_FILE)
    assert all(file_digest(folder / name) == digest for name, digest in trained.files.items())
    assert trained.bytes == sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_mlflow_shows_one_training_with_its_candidates_below(binary_line):
    line, run = binary_line.line, binary_line.run
    client = Tracking(line.platform).client
    parents = [one for one in runs_of(line) if one.data.tags.get("contender.kind") == "training"]
    children = [one for one in runs_of(line) if one.data.tags.get("mlflow.parentRunId") == run.run_id]
    (model,) = logged_models_of(line)

    assert [one.info.run_id for one in parents] == [run.run_id]
    assert {one.info.run_name: one.info.status for one in children} == {
        "logistic": "FINISHED",
        "tree": "FINISHED",
    }
    assert (model.model_id, model.source_run_id, str(model.status)) == (
        binary_line.trained.model_id,
        run.run_id,
        "READY",
    )
    data = client.get_run(run.run_id).data
    assert data.tags["contender.model_digest"] == binary_line.trained.digest
    assert data.params["rows_holdout"] == str(line.parts.holdout.snapshot.rows)
    assert data.metrics["balance_train_True"] == pytest.approx(line.parts.development.train.balance["True"])


def test_an_opened_run_says_what_went_in(binary_line):
    client, run = Tracking(binary_line.line.platform).client, binary_line.run
    used = {
        item.tags[0].value: item.dataset.digest for item in client.get_run(run.run_id).inputs.dataset_inputs
    }

    assert set(used) == {"gold", "train", "validation", "holdout"}
    assert used["gold"] == binary_line.line.gold.digest[:36]
    assert {item.path for item in client.list_artifacts(run.run_id)} >= {"model.yaml", "environment.txt"}


# Killed anywhere: one parent, one child for each candidate, one logged model, the same digest.


@pytest.mark.slow
def test_a_candidate_killed_after_any_write_is_finished_by_the_next_run(
    make_line, binary_line, killed_after_every_write
):
    line = make_line()
    run, candidate = line.open(), line.loaded.spec.training.candidates[0]

    result, killed = killed_after_every_write(
        lambda: train_candidate(line.loaded, line.platform, run, line.parts.development, candidate), times=2
    )

    expected = binary_line.leaderboard.winner
    assert set(killed) == {"create_run", "log_batch", "log_text", "set_terminated"}
    assert (result.params, result.folds, result.validation) == (
        expected.params,
        expected.folds,
        expected.validation,
    )
    (child,) = [one for one in runs_of(line) if "mlflow.parentRunId" in one.data.tags]
    client = Tracking(line.platform).client
    assert child.info.status == "FINISHED"
    assert len(client.get_metric_history(child.info.run_id, "validation_roc_auc")) == 1
    assert len(client.get_metric_history(child.info.run_id, "fold_roc_auc")) == 2


@pytest.mark.slow
def test_a_winner_killed_after_any_write_is_logged_once_with_the_same_digest(
    make_line, binary_line, killed_after_every_write, tmp_path
):
    line = make_line()
    run = line.open()
    line.compete(run)

    trained, killed = killed_after_every_write(lambda: line.train(run), times=2)

    assert set(killed) == {
        "log_text",
        "create_logged_model",
        "log_model_artifacts",
        "finalize_logged_model",
        "log_artifact",
        "log_batch",
    }
    assert trained.digest == binary_line.trained.digest
    (model,) = logged_models_of(line)
    assert (model.model_id, str(model.status)) == (trained.model_id, "READY")
    assert len(runs_of(line)) == 3
    folder = Path(mlflow.artifacts.download_artifacts(model.artifact_location, dst_path=str(tmp_path)))
    assert all(file_digest(folder / name) == digest for name, digest in trained.files.items())
    assert line.train(run) == trained


def test_a_run_killed_while_it_is_opened_is_opened_by_the_next(make_line, killed_after_every_write):
    line = make_line()

    run, killed = killed_after_every_write(line.open, times=2)

    assert set(killed) == {"create_run", "log_batch", "log_inputs", "log_text"}
    assert [one.info.run_id for one in runs_of(line)] == [run.run_id]
    assert len(Tracking(line.platform).client.get_run(run.run_id).inputs.dataset_inputs) == 4


def test_a_run_is_opened_again_at_another_moment_and_over_another_version_of_the_same_data(make_line):
    line = make_line()
    run = line.open()
    again = line.gold.model_copy(update={"version": line.gold.version + 2})

    resumed = open_run(line.loaded, line.platform, again, line.parts, datetime(2026, 2, 1, tzinfo=UTC))

    assert resumed.run_id == run.run_id
    assert resumed.as_of == run.as_of


def test_a_run_that_is_done_is_not_opened_again(make_line):
    line = make_line()
    first = line.open()
    Tracking(line.platform).log(first.run_id, tags={"contender.state": "done"})

    assert line.open().run_id != first.run_id


KILL_ONE_WRITE = """
import importlib.util, os, signal, sys
from pathlib import Path
import matplotlib.figure, mlflow.pyfunc, mlflow.sklearn, skops.io, sklearn.linear_model, sklearn.tree
from mlflow import MlflowClient
described = importlib.util.spec_from_file_location("shared", sys.argv[1])
shared = importlib.util.module_from_spec(described); sys.modules["shared"] = shared
described.loader.exec_module(shared)
from deployments.spec import load_spec

def kill_after(name):
    plain = getattr(MlflowClient, name)
    def write(*arguments, **named):
        plain(*arguments, **named)
        os.kill(os.getpid(), signal.SIGKILL)
    setattr(MlflowClient, name, write)

def go():
    environment = shared.Environment(
        name="dev", platform=shared.LocalPlatformConfig(data_root="data"), allow_dirty_tree=True
    )
    folder = Path(sys.argv[2])
    platform = shared.LocalPlatform(environment, folder / "data")
    line = shared.line_over(platform, load_spec(folder / "spec" / "model.yaml"), shared.fruit_rows())
    run = line.open()
    trained = line.train(run)
    line.evaluate(run, trained)
    print(run.run_id, trained.digest, flush=True)

# Each is a process of its own, forked from one that has imported what they all need.
for write in (*sys.argv[3:], None):
    child = os.fork()
    if not child:
        if write:
            kill_after(write)
        go()
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.mark.slow
def test_a_process_killed_for_real_leaves_nothing_doubled(make_line, binary_line, tmp_path):
    line = make_line()
    shared = Path(__file__).with_name("conftest.py")
    command = [sys.executable, "-c", KILL_ONE_WRITE, shared, tmp_path, "log_model_artifacts", "log_figure"]

    asked = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)

    assert asked.returncode == 0, asked.stderr
    *killed, made, ended = asked.stdout.splitlines()
    assert (killed, ended) == (["-9", "-9"], "0"), asked.stderr
    parents = [one for one in runs_of(line) if "mlflow.parentRunId" not in one.data.tags]
    assert [[one.info.run_id, binary_line.trained.digest] for one in parents] == [made.split()]
    assert len(runs_of(line)) == 3
    assert len(logged_models_of(line)) == 1


# What a saved model is for others.


def test_saving_needs_no_active_run_and_no_default_store(make_line, monkeypatch, tmp_path):
    line = make_line("regression")
    empty = tmp_path / "empty"
    empty.mkdir()
    monkeypatch.chdir(empty)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")

    line.train(line.open())

    assert mlflow.active_run() is None
    assert list(empty.iterdir()) == []


def test_the_signature_is_the_contracts_and_the_input_example_is_answered(binary_line, tmp_path):
    line, trained = binary_line.line, binary_line.trained
    location = Tracking(line.platform).client.get_logged_model(trained.model_id).artifact_location
    folder = mlflow.artifacts.download_artifacts(location, dst_path=str(tmp_path))

    described = Model.load(folder)
    served = mlflow.pyfunc.load_model(folder)

    assert {column.name: column.required for column in described.signature.inputs} == {
        "weight": True,
        "sugar": False,
        "spots": True,
        "shape": False,
        "washed": True,
    }
    assert served.predict(described.load_input_example(folder)).tolist() == trained.expected_predictions
    missing = pd.DataFrame(
        {"weight": [1.0], "sugar": [None], "spots": [1], "shape": [None], "washed": [True]}
    ).astype({"sugar": float})
    assert served.predict(missing).tolist() in ([True], [False])
    assert described.metadata == {"contender": {"model": "fruit", "positive": "True"}}


LOAD_ELSEWHERE = """
import json, sys
sys.path[:] = [path for path in sys.path if path not in ("", sys.argv[2])]
sys.meta_path[:] = [finder for finder in sys.meta_path if "editable" not in repr(finder).lower()]
try:
    import deployments
    raise SystemExit(f"this process knows {deployments.__file__}")
except ImportError:
    pass
import mlflow, numpy as np
from mlflow.models import Model
served = mlflow.pyfunc.load_model(sys.argv[1])
example = Model.load(sys.argv[1]).load_input_example(sys.argv[1])
print(json.dumps(np.asarray(served.predict(example)).tolist()))
"""


@pytest.mark.slow
def test_a_model_with_dates_is_loaded_by_mlflow_alone_where_contender_is_not(make_line, tmp_path):
    line = make_line("binary", lambda document: document["features"].update(dates=["picked"]))
    trained = line.train(line.open())
    location = Tracking(line.platform).client.get_logged_model(trained.model_id).artifact_location
    folder = mlflow.artifacts.download_artifacts(location, dst_path=str(tmp_path / "elsewhere"))

    asked = subprocess.run(
        [sys.executable, "-c", LOAD_ELSEWHERE, folder, str(ROOT)],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )

    assert asked.returncode == 0, asked.stderr
    assert json.loads(asked.stdout.splitlines()[-1]) == trained.expected_predictions


# Thresholds.


@pytest.mark.parametrize(("labels", "positive"), [((False, True), True), (("No", "Yes"), "No"), ((0, 1), 0)])
def test_the_chosen_threshold_is_the_best_whichever_class_is_positive(labels, positive):
    draw = np.random.default_rng(0)
    score = draw.random(500)
    negative = next(label for label in labels if label != positive)
    truth = np.where(draw.random(500) < score**2, positive, negative)
    place = labels.index(positive)
    probabilities = np.column_stack([score, 1 - score] if place == 0 else [1 - score, score])
    said = Outputs(truth, probabilities, np.array(labels), place)

    chosen = choose_threshold("f1", truth, said)

    def f1(threshold):
        decided = np.where(score >= threshold, positive, negative)
        return f1_score(truth, decided, pos_label=positive)

    assert f1(chosen) == pytest.approx(max(f1(t) for t in np.quantile(score, np.linspace(0.01, 0.99, 99))))


@pytest.mark.parametrize("broken", ["no positives", "NaN"])
def test_no_threshold_is_chosen_where_none_can_be(broken):
    truth = np.tile([False, True], 20)
    score = np.linspace(0, 1, 40)
    if broken == "NaN":
        score[3] = math.nan
    else:
        truth[:] = False
    said = Outputs(truth, np.column_stack([1 - score, score]), np.array([False, True]), 1)

    with pytest.raises(ContenderError, match="no threshold can be chosen"):
        choose_threshold("f1", truth, said)


def test_a_threshold_is_chosen_on_the_validation_part_and_travels_in_the_model(make_line):
    def change(document):
        document["training"]["threshold"] = {"maximise": "f1"}

    line = make_line("binary", change)
    trained = line.train(line.open())
    model = load_version(line.platform, line.reference(trained))
    rows = line.platform.tables.read(line.parts.development.validation.snapshot)
    inputs = model_inputs(rows, line.loaded.spec)

    assert model.threshold == trained.threshold != 0.5
    assert (model.predict(inputs) == (model.predict_proba(inputs)[:, 1] >= trained.threshold)).all()


def test_a_positive_class_that_sorts_first_is_what_the_model_says_yes_to(make_line, make_rows):
    def change(document):
        document["target"] = {"kind": "binary", "column": "ripe", "positive": "No"}
        document["contract"]["fruit"]["columns"]["ripe"] = {"type": "string"}

    rows = make_rows()
    words = pc.if_else(rows.column("ripe"), "Yes", "No")
    rows = rows.set_column(rows.column_names.index("ripe"), "ripe", words.cast(pa.string()))
    line = make_line("binary", change, rows)

    trained = line.train(line.open())
    model = load_version(line.platform, line.reference(trained))

    train = line.platform.tables.read(line.parts.development.train.snapshot)
    inputs, truth = model_inputs(train, line.loaded.spec), target_values(train, line.loaded.spec)
    assert model.pos_label == "No"
    assert trained.train_metrics["roc_auc"] > 0.85
    assert trained.train_metrics["recall"] > 0.7
    assert np.mean(model.predict(inputs) == truth) > 0.8
    assert (model.predict(inputs) == np.where(model.predict_proba(inputs)[:, 0] >= 0.5, "No", "Yes")).all()


def test_whole_numbers_are_classes_too(make_line, make_rows):
    def change(document):
        document["target"]["positive"] = 1
        document["contract"]["fruit"]["columns"]["ripe"] = {"type": "integer"}

    rows = make_rows()
    ripe = rows.column("ripe").cast(pa.int64())
    line = make_line("binary", change, rows.set_column(rows.column_names.index("ripe"), "ripe", ripe))

    trained = line.train(line.open())

    assert trained.train_metrics["roc_auc"] > 0.85
    assert set(trained.expected_predictions) <= {0, 1}


# Refusals.


def result(name, validation):
    return CandidateResult(
        name=name,
        run_id="r",
        estimator="e",
        params={},
        tried=1,
        folds=(0.5,),
        validation=validation,
        seconds=1.0,
    )


@pytest.mark.parametrize(("kind", "best"), [("binary", "high"), ("regression", "low")])
def test_candidates_are_ranked_by_the_metrics_direction_and_nan_never_wins(make_spec, kind, best):
    results = [result("low", 0.1), result("none", math.nan), result("high", 0.9), result("huge", math.inf)]

    board = rank(make_spec(kind), results)

    assert board.winner.name == best
    assert {one.name for one in board.candidates[2:]} == {"none", "huge"}
    assert len(board.candidates) == 4


def test_equal_candidates_are_ranked_by_name_whoever_came_first(make_spec):
    assert rank(make_spec(), [result("b", 0.5), result("a", 0.5)]).winner.name == "a"


def test_candidates_without_any_score_have_no_winner(make_spec):
    with pytest.raises(ContenderError, match="no candidate has a roc_auc"):
        rank(make_spec(), [result("none", math.nan)])


@pytest.mark.parametrize(
    ("candidate", "said"),
    [
        ({"estimator": "os.path.join"}, "package 'os' is not allowed"),
        ({"estimator": "sklearn.linear_model.Ridge"}, "not for a binary target"),
        ({"params": {"c": 1}}, "has no parameter 'c'"),
        ({"search": {"kind": "grid", "space": {"D": [1]}}}, "has no parameter 'D'"),
        ({"estimator": "sklearn.svm.LinearSVC"}, "gives no probabilities; add `calibrate: sigmoid`"),
    ],
)
def test_a_bad_candidate_is_found_before_anything_is_trained(make_spec, tracked, candidate, said):
    with pytest.raises(BadInputError, match=f"candidate 'only': .*{said}"):
        check_candidates(make_spec("binary", one_candidate(**candidate)), tracked)


def test_good_candidates_are_let_be(make_spec, tracked):
    check_candidates(
        make_spec("binary", one_candidate("sklearn.svm.LinearSVC", calibrate="sigmoid")), tracked
    )


def test_a_candidate_that_cannot_be_trained_is_named(make_line):
    line = make_line("binary", one_candidate(params={"C": -1.0}))

    with pytest.raises(BadInputError, match="candidate 'only' cannot be trained: The 'C' parameter"):
        line.compete(line.open())


def test_more_folds_than_groups_is_told_to_people(make_line, make_rows):
    def change(document):
        one_candidate()(document)
        document["training"]["folds"] = 20
        document["split"] = {
            "kind": "group",
            "column": "tree",
            "holdout": 0.3,
            "validation": 0.3,
            "min_rows": 10,
        }

    rows = make_rows()
    few = pa.array([f"tree {place % 20}" for place in range(rows.num_rows)])
    line = make_line("binary", change, rows.set_column(rows.column_names.index("tree"), "tree", few))

    with pytest.raises(BadInputError, match=r"candidate 'only' cannot be trained: .*n_splits=20"):
        line.compete(line.open())


def test_a_model_of_types_nobody_vouched_for_is_not_logged(make_line):
    path = "sklearn.gaussian_process.GaussianProcessClassifier"
    line = make_line("binary", one_candidate(path, params={"max_iter_predict": 2}))

    with pytest.raises(UntrustedModelError, match=r"not on the allow-list: .*kernels\.RBF"):
        line.train(line.open())

    assert logged_models_of(line) == []


def test_no_further_candidate_starts_beyond_the_budget(make_line):
    line = make_line()
    run = line.open().model_copy(update={"started": 0.0})
    environment = line.platform.environment.model_copy(update={"budget": Budget(training_seconds=5)})
    platform = LocalPlatform(environment, line.platform.root)
    first = line.loaded.spec.training.candidates[0]

    with pytest.raises(BudgetExceededError, match="'logistic' was not started: training has used up its 5 s"):
        train_candidate(line.loaded, platform, run, line.parts.development, first)


def test_a_strict_environment_trains_from_committed_code_only(make_line, monkeypatch):
    line = make_line()
    strict = line.platform.environment.model_copy(update={"allow_dirty_tree": False})
    platform = LocalPlatform(strict, line.platform.root)
    moment = datetime(2026, 1, 1, tzinfo=UTC)

    for code, said in (
        (CODE.model_copy(update={"dirty": True}), "commit or discard the changes"),
        (CodeVersion(commit=None, dirty=True, digest="e"), "this is no git checkout"),
    ):
        monkeypatch.setattr("tasks.train.code_version", lambda code=code: code)
        with pytest.raises(DirtyTreeError, match=said):
            open_run(line.loaded, platform, line.gold, line.parts, moment)

    monkeypatch.setattr("tasks.train.code_version", lambda: CODE)
    assert open_run(line.loaded, platform, line.gold, line.parts, moment).code == CODE


def test_the_key_of_a_training_changes_with_whatever_decides_its_outcome(make_line):
    line = make_line()
    key = training_key(line.loaded, line.platform, line.gold, CODE)
    spec = line.loaded.spec
    reseeded = spec.model_copy(update={"training": spec.training.model_copy(update={"seed": 1})})
    stricter = line.platform.environment.model_copy(update={"name": "prod"})

    others = {
        training_key(line.loaded.model_copy(update={"spec": reseeded}), line.platform, line.gold, CODE),
        training_key(line.loaded.model_copy(update={"sql": "SELECT 1"}), line.platform, line.gold, CODE),
        training_key(line.loaded, LocalPlatform(stricter, line.platform.root), line.gold, CODE),
        training_key(line.loaded, line.platform, line.gold.model_copy(update={"digest": "0"}), CODE),
        training_key(line.loaded, line.platform, line.gold, CODE.model_copy(update={"digest": "0"})),
    }

    assert len(others) == 5
    assert key not in others
    moved = line.gold.model_copy(update={"version": 9, "uri": "/elsewhere"})
    assert training_key(line.loaded, line.platform, moved, CODE) == key
    retrained = spec.model_copy(update={"retrain": spec.retrain.model_copy(update={"cooldown_hours": 1.0})})
    same = line.loaded.model_copy(update={"spec": retrained})
    assert training_key(same, line.platform, line.gold, CODE) == key


# Groups and calibration.


def test_calibration_tears_no_group_apart_and_leaves_no_rows_in_the_file(make_line, monkeypatch):
    import tasks.train

    def change(document):
        one_candidate("sklearn.svm.LinearSVC", calibrate="sigmoid")(document)
        document["split"] = {
            "kind": "group",
            "column": "tree",
            "holdout": 0.3,
            "validation": 0.2,
            "min_rows": 30,
        }

    line, seen = make_line("binary", change), []
    plain = tasks.train.calibrated

    def watching(pipeline, method, folds):
        seen.append(folds)
        return plain(pipeline, method, folds)

    monkeypatch.setattr("tasks.train.calibrated", watching)

    trained = line.train(line.open())

    tables, development = line.platform.tables, line.parts.development
    train, validation = (tables.read(part.snapshot) for part in (development.train, development.validation))
    trees = {train.num_rows: train.column("tree").to_pylist()}
    trees[train.num_rows + validation.num_rows] = (
        trees[train.num_rows] + validation.column("tree").to_pylist()
    )
    torn = [folds for folds in seen if not isinstance(folds, int)]
    assert len(torn) == 2
    for folds in torn:
        named = np.array(trees[sum(len(test) for _, test in folds)])
        assert all(not set(named[fit]) & set(named[test]) for fit, test in folds)
    model = load_version(line.platform, line.reference(trained))
    assert model.estimator.cv == model.estimator_.cv == 2
