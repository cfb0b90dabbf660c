"""Tracking: every call names its run, logging again adds nothing, and a failing store is not an empty one."""

import math

import mlflow
import pytest
from mlflow.exceptions import MlflowException

from deployments.declared import Declared
from platforms.snapshot import Snapshot
from tasks.tracking import Tracking


class Note(Declared):
    """A document."""

    text: str
    value: float = 0.0


@pytest.fixture
def tracking(tracked):
    return Tracking(tracked)


@pytest.fixture
def run(tracking):
    return tracking.create_run(tracking.experiment("fruit"), "a run", {"contender.kind": "test"})


def test_an_experiment_is_made_once_and_keeps_its_files_under_the_data_root(tracking, tracked):
    first, again = (tracking.experiment("fruit") for _ in range(2))

    assert first == again
    assert tracking.client.get_experiment(first).artifact_location.startswith(tracked.root.as_uri())


def test_a_run_is_found_by_all_its_tags_and_the_newest_first(tracking):
    experiment = tracking.experiment("fruit")
    for number in "12":
        tracking.create_run(experiment, number, {"contender.key": "a", "contender.state": "open"})
    tracking.create_run(experiment, "other", {"contender.key": "a", "contender.state": "done"})

    found = tracking.find_run(experiment, {"contender.key": "a", "contender.state": "open"})

    assert found.info.run_name == "2"
    assert tracking.find_run(experiment, {"contender.key": "b"}) is None


def test_metrics_that_are_no_number_are_left_out(tracking, run):
    tracking.log(run, metrics={"good": 1.5, "nan": math.nan, "inf": math.inf})

    assert tracking.client.get_run(run).data.metrics == {"good": 1.5}


def test_logging_again_adds_nothing(tracking, run):
    for _ in range(2):
        tracking.log(run, params={"rows": 10}, metrics={"auc": 0.5}, tags={"state": "open"})
        tracking.log_series(run, "fold", [0.1, 0.2])

    assert len(tracking.client.get_metric_history(run, "auc")) == 1
    assert [point.value for point in tracking.client.get_metric_history(run, "fold")] == [0.1, 0.2]
    assert tracking.client.get_run(run).data.params == {"rows": "10"}


def test_datasets_name_the_table_its_version_and_its_use_once(tracking, run):
    snapshot = Snapshot(table="gold/fruit", uri="/x", version=3, rows=7, digest="d" * 64, columns=("a",))

    for _ in range(2):
        tracking.log_datasets(run, {"train": snapshot})

    (found,) = tracking.client.get_run(run).inputs.dataset_inputs
    assert (found.dataset.name, found.dataset.digest) == ("gold/fruit", "d" * 36)
    assert '"version": 3' in found.dataset.source
    assert [(tag.key, tag.value) for tag in found.tags] == [("mlflow.data.context", "train")]


def test_a_document_is_read_as_it_was_kept(tracking, run):
    tracking.save_document(run, "note", Note(text="ripe · reif", value=0.1))

    assert tracking.document(run, "note", Note) == Note(text="ripe · reif", value=0.1)
    assert tracking.document(run, "other", Note) is None


def test_numbers_that_are_none_survive_a_document(tracking, run):
    tracking.save_document(run, "note", Note(text="", value=math.nan))

    assert math.isnan(tracking.document(run, "note", Note).value)


@pytest.mark.parametrize("content", ["", '{"text": "cut sh', '{"text": "x", "unknown": 1}'])
def test_a_document_cut_short_or_of_another_shape_is_not_there(tracking, run, content):
    tracking.client.log_text(run, content, "note.json")

    assert tracking.document(run, "note", Note) is None


def test_a_store_that_fails_is_not_taken_for_a_missing_document(tracking, run, monkeypatch):
    tracking.save_document(run, "note", Note(text="x"))

    def unreachable(*_, **__):
        raise MlflowException("the store does not answer")

    monkeypatch.setattr(tracking.client, "download_artifacts", unreachable)

    with pytest.raises(MlflowException, match="does not answer"):
        tracking.document(run, "note", Note)


def test_no_run_is_left_active_and_no_other_store_is_touched(tracking, run, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")

    tracking.log(run, metrics={"auc": 0.5})
    tracking.save_document(run, "note", Note(text="x"))
    tracking.document(run, "note", Note)

    assert mlflow.active_run() is None
    assert {path.name for path in tmp_path.iterdir()} == {"data"}
    assert tracking.client.get_run(run).info.status == "RUNNING"


def test_a_finished_run_is_finished(tracking, run):
    tracking.finish(run)

    assert tracking.client.get_run(run).info.status == "FINISHED"
