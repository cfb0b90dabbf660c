"""The champion: never one before, one that stands, or one that is gone; its files are checked before they are used."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from mlflow.exceptions import MlflowException

from deployments.model_file import UntrustedModelError
from deployments.spec import load_spec
from platforms.snapshot import Snapshot
from tasks.champion import (
    CHAMPION,
    PREVIOUS,
    TRAINING_ROWS,
    ChampionMissing,
    ChampionRef,
    NoChampionYet,
    TrainingSnapshots,
    load_version,
    reference_snapshots,
    standing_champion,
    trained_query,
    trained_spec,
    training_rows,
    version_ref,
    write_training_rows,
)
from tasks.split import ROW_ID
from tasks.tracking import Tracking

MODEL = "fruit"


@pytest.fixture
def tracking(tracked):
    return Tracking(tracked)


@pytest.fixture
def registered(tracking, tracked, tmp_path):
    """Registers a version of the fruit model with some tags; returns its number and run."""

    def make(**tags):
        client, name = tracking.client, tracked.registered_model(MODEL)
        if not client.search_registered_models(f"name = '{name}'"):
            client.create_registered_model(name)
        run = tracking.create_run(tracking.experiment(MODEL), "a training", {})
        tags = {f"contender.{key}": value for key, value in tags.items()}
        made = client.create_model_version(name, source=tmp_path.as_uri(), run_id=run, tags=tags)
        return str(made.version), run

    return make


def test_a_model_that_nobody_registered_has_no_champion_yet(tracked):
    assert standing_champion(tracked, MODEL) == NoChampionYet()


def test_a_model_with_versions_but_none_promoted_has_no_champion_yet(tracked, registered):
    registered(model_digest="d", model_id="m-1")

    assert standing_champion(tracked, MODEL) == NoChampionYet()


def test_the_champion_is_whom_the_alias_names(tracked, tracking, registered):
    registered(model_digest="c", model_id="m-1")
    number, run = registered(model_digest="d", model_id="m-2")
    tracking.client.set_registered_model_alias(tracked.registered_model(MODEL), CHAMPION, number)

    found = standing_champion(tracked, MODEL)

    name = tracked.registered_model(MODEL)
    assert found == ChampionRef(name=name, version=number, run_id=run, model_id="m-2", digest="d")


def test_an_alias_that_is_gone_is_not_a_first_version(tracked, tracking, registered):
    registered(model_digest="d", model_id="m-1")
    tracking.client.set_registered_model_tag(tracked.registered_model(MODEL), "contender.promoted", "true")

    found = standing_champion(tracked, MODEL)

    assert isinstance(found, ChampionMissing)
    assert "the alias is gone" in found.reason


def test_a_previous_champion_without_a_champion_is_not_a_first_version(tracked, tracking, registered):
    number, _ = registered(model_digest="d", model_id="m-1")
    tracking.client.set_registered_model_alias(tracked.registered_model(MODEL), PREVIOUS, number)

    assert isinstance(standing_champion(tracked, MODEL), ChampionMissing)


@pytest.mark.parametrize("tags", [{}, {"model_digest": "d"}, {"model_id": "m-1"}])
def test_a_champion_from_elsewhere_is_not_compared_with_unseen(tracked, tracking, registered, tags):
    number, _ = registered(**tags)
    tracking.client.set_registered_model_alias(tracked.registered_model(MODEL), CHAMPION, number)

    found = standing_champion(tracked, MODEL)

    assert isinstance(found, ChampionMissing)
    assert "was not registered by Contender" in found.reason


@pytest.mark.parametrize("number", ["99", "latest"])
def test_a_version_that_is_not_there_is_missing(tracked, registered, number):
    registered(model_digest="d", model_id="m-1")

    assert isinstance(version_ref(tracked, MODEL, number), ChampionMissing)


@pytest.mark.parametrize("call", ["get_registered_model", "get_model_version"])
def test_a_registry_that_fails_is_not_taken_for_an_empty_one(
    tracked, tracking, registered, monkeypatch, call
):
    number, _ = registered(model_digest="d", model_id="m-1")
    tracking.client.set_registered_model_alias(tracked.registered_model(MODEL), CHAMPION, number)

    def unreachable(*_, **__):
        raise MlflowException("the registry does not answer")

    monkeypatch.setattr(f"mlflow.MlflowClient.{call}", unreachable)

    with pytest.raises(MlflowException, match="does not answer"):
        standing_champion(tracked, MODEL)


def test_a_version_is_loaded_when_its_file_is_what_was_recorded(binary_line):
    line, trained = binary_line.line, binary_line.trained

    model = load_version(line.platform, line.reference(trained))

    assert model.classes_.tolist() == [False, True]


def test_a_version_with_another_digest_is_refused(binary_line):
    line, trained = binary_line.line, binary_line.trained
    other = line.reference(trained).model_copy(update={"digest": "0" * 64})

    with pytest.raises(UntrustedModelError, match="000000000000… was recorded"):
        load_version(line.platform, other)


@pytest.mark.parametrize("model_id", ["m-0", "m-ffffffffffffffffffffffffffffffff"])
def test_a_version_whose_files_are_gone_is_refused(binary_line, model_id):
    line = binary_line.line
    other = line.reference(binary_line.trained).model_copy(update={"model_id": model_id})

    with pytest.raises(UntrustedModelError, match="its files cannot be had"):
        load_version(line.platform, other)


def test_the_rows_a_version_has_seen_are_those_of_both_development_parts(binary_line):
    line = binary_line.line
    development = line.parts.development

    found = training_rows(line.platform, line.reference(binary_line.trained))

    seen = [
        line.platform.tables.read(part.snapshot).column(ROW_ID).to_pylist()
        for part in (development.train, development.validation)
    ]
    assert set(found) == {*seen[0], *seen[1]}
    assert len(found) == sum(map(len, seen))


def test_row_ids_made_in_another_way_are_not_compared(tracked, tracking, registered, tmp_path):
    number, run = registered(model_digest="d", model_id="m-1")
    path = tmp_path / TRAINING_ROWS
    write_training_rows(path, pa.chunked_array([np.arange(3)]))
    rows = pq.read_table(path)
    pq.write_table(rows.replace_schema_metadata({"specimen": "1"}), path)
    tracking.client.log_artifact(run, str(path))

    with pytest.raises(UntrustedModelError, match="told apart in another way"):
        training_rows(tracked, version_ref(tracked, MODEL, number))


@pytest.mark.parametrize(
    ("ask", "said"),
    [(training_rows, "which rows it was trained on"), (trained_spec, "the spec it was trained")],
)
def test_what_was_not_recorded_is_an_error_not_nothing(tracked, registered, ask, said):
    number, _ = registered(model_digest="d", model_id="m-1")

    with pytest.raises(UntrustedModelError, match=f"{said}.* was not recorded"):
        ask(tracked, version_ref(tracked, MODEL, number))


def test_the_spec_a_version_was_trained_with_is_read_from_its_run(binary_line):
    line = binary_line.line

    assert trained_spec(line.platform, line.reference(binary_line.trained)) == line.loaded.spec


def test_the_query_a_version_was_trained_with_is_read_from_its_run(tracked, tracking, registered):
    number, run = registered(model_digest="d", model_id="m-1")
    churn = load_spec("churn")
    tracking.client.log_text(run, churn.path.read_text(), "model.yaml")
    tracking.client.log_text(run, "SELECT 1 -- of then, $as_of", "features.sql")

    theirs = trained_query(tracked, version_ref(tracked, MODEL, number))

    assert theirs.spec == churn.spec
    assert theirs.sql == "SELECT 1 -- of then, $as_of"
    assert "fruit version 1" in str(theirs.path)


def test_a_query_that_was_not_recorded_is_an_error(tracked, tracking, registered):
    number, run = registered(model_digest="d", model_id="m-1")
    tracking.client.log_text(run, load_spec("churn").path.read_text(), "model.yaml")

    with pytest.raises(UntrustedModelError, match="the query of its features was not recorded"):
        trained_query(tracked, version_ref(tracked, MODEL, number))


def test_a_recorded_spec_that_is_none_any_more_is_an_error(tracked, tracking, registered):
    number, run = registered(model_digest="d", model_id="m-1")
    tracking.client.log_text(run, "name: fruit\nwhat: else\n", "model.yaml")

    with pytest.raises(UntrustedModelError, match="is none any more") as raised:
        trained_spec(tracked, version_ref(tracked, MODEL, number))

    assert str(Path.cwd()) not in str(raised.value)


def test_reference_snapshots_are_the_champions(tracked, tracking, registered):
    number, run = registered(model_digest="d", model_id="m-1")
    snapshot = Snapshot(table="silver/fruit", uri="/x", version=3, rows=7, digest="d" * 64, columns=("a",))
    tracking.save_document(run, "snapshots", TrainingSnapshots(tables={"fruit": snapshot}))

    assert reference_snapshots(tracked, version_ref(tracked, MODEL, number)) == {"fruit": snapshot}


@pytest.mark.parametrize("standing", [NoChampionYet(), ChampionMissing("gone")])
def test_without_a_champion_there_is_no_reference(tracked, standing):
    assert reference_snapshots(tracked, standing) == {}


def test_a_champion_without_recorded_snapshots_does_not_switch_drift_checks_off(tracked, registered):
    number, _ = registered(model_digest="d", model_id="m-1")

    with pytest.raises(UntrustedModelError, match="the snapshots it was trained on were not recorded"):
        reference_snapshots(tracked, version_ref(tracked, MODEL, number))
