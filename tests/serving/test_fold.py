"""Folding: segments become rows of one table, each exactly once, wherever a fold is stopped."""

import json
import os
import subprocess
import sys
import threading
import time
from datetime import UTC, date, datetime
from pathlib import Path

import numpy as np
import pytest
from deltalake import DeltaTable

from deployments.environment import PredictionLogConfig
from deployments.errors import ContenderError
from serving import fold as folding
from serving.fold import fold, joined
from serving.folders import Folders
from serving.prediction_log import PredictionLog, Record, read_segment, segment_files
from serving.served_model import ServedColumn, ServedModel

NOON = int(datetime(2026, 11, 20, 12, tzinfo=UTC).timestamp() * 1e9)


def served_model(columns, version="3", **changes):
    given = {
        "name": "dev-churn",
        "version": version,
        "model": "m-1",
        "model_digest": "0" * 64,
        "run_id": "r",
        "flavor": "skops",
        "engine": "sklearn",
        "engine_reason": "",
        "columns": tuple(
            ServedColumn(name=name, kind=kind, required=False) for name, kind in columns.items()
        ),
        "target": "binary",
        "positive": True,
        "entity": ("customer",),
    }
    return ServedModel(**(given | changes))


def record(request="r1", rows=1, **changes):
    given = {
        "time_ns": NOON,
        "request_id": request,
        "requester": "ada",
        "shadow": False,
        "status": 200,
        "milliseconds": 0.25,
        "rows": rows,
        "keys": {"customer": [f"C{row}" for row in range(rows)]},
        "columns": {"visits": np.arange(rows)},
        "predictions": np.array([True] * rows),
        "scores": np.full(rows, 0.75),
        "error": None,
    }
    return Record(**(given | changes))


REFUSED = {"status": 400, "rows": 0, "keys": None, "columns": None, "predictions": None, "scores": None}


@pytest.fixture
def opened(tmp_path):
    """Opens logs of the endpoint `churn`, and closes them after the test."""
    logs = []

    def open_log(columns=None, entity="champion", version="3", served=None, **config):
        log = PredictionLog(
            Folders(tmp_path).log("churn"),
            served or served_model(columns or {"visits": "long"}, version),
            endpoint="churn",
            entity=entity,
            worker=0,
            config=PredictionLogConfig(**config),
            pii_key=b"key",
        )
        logs.append(log)
        return log

    yield open_log
    for log in logs:
        log.close()


def table_rows(root, *columns):
    table = DeltaTable(Folders(root).predictions("churn")).to_pyarrow_table()
    rows = (table.select(columns) if columns else table).to_pylist()
    return sorted(rows, key=lambda row: str(list(row.values())))


def ids(root):
    return [row["databricks_request_id"] for row in table_rows(root, "databricks_request_id")]


def segments(root):
    return segment_files(Folders(root).log("churn"))


def written(opened, count, name="r", **changes):
    log = opened(**changes)
    for place in range(count):
        log.append(record(f"{name}{place}"))
    log.close()


# Rows -------------------------------------------------------------------------------------------------------


def test_each_predicted_row_is_a_row_of_the_table(opened, tmp_path):
    log = opened({"visits": "long", "amount": "double", "since": "datetime", "plan": "string"})
    columns = {
        "visits": np.array([7, 8]),
        "amount": np.array([0.1, np.nan]),
        "since": np.array(["2025-01-01T00:00:00.000001", "NaT"], "datetime64[us]"),
        "plan": np.array(["full", None], object),
    }

    log.append(record(rows=2, columns=columns, shadow=True, scores=[0.75, 0.5]))
    log.close()
    result = fold(tmp_path, "churn")

    assert (result.rows, result.requests, result.segments, result.corrupt) == (2, 1, 1, ())
    first, second = sorted(
        DeltaTable(Folders(tmp_path).predictions("churn")).to_pyarrow_table().to_pylist(),
        key=lambda row: row["row"],
    )
    assert first.pop("log_segment").startswith("champion-v3-w0-")
    assert first.pop("log_offset") > 0
    assert first == {
        "request_date": date(2026, 11, 20),
        "databricks_request_id": "r1",
        "request_time": datetime(2026, 11, 20, 12, tzinfo=UTC),
        "status_code": 200,
        "execution_duration_ms": 0.25,
        "requester": "ada",
        "served_entity_id": "churn-champion-v3",
        "endpoint": "churn",
        "served_entity_name": "champion",
        "model_name": "dev-churn",
        "model_version": "3",
        "shadow": True,
        "row": 0,
        "entity": [("customer", "C0")],
        "prediction": "true",
        "prediction_number": None,
        "score": 0.75,
        "error": None,
        "features": {
            "visits": 7,
            "amount": 0.1,
            "since": datetime(2025, 1, 1, 0, 0, 0, 1, tzinfo=UTC),
            "plan": "full",
        },
    }
    assert second["features"] == {"visits": 8, "amount": None, "since": None, "plan": None}
    assert (second["row"], second["entity"], second["score"]) == (1, [("customer", "C1")], 0.5)


def test_a_refused_request_is_one_row_without_features(opened, tmp_path):
    log = opened()

    log.append(record("r1", **REFUSED, error="no rows"))
    log.append(record("r2"))
    log.close()
    fold(tmp_path, "churn")

    refused, answered = table_rows(
        tmp_path, "databricks_request_id", "status_code", "error", "features", "prediction", "entity"
    )
    assert refused == {
        "databricks_request_id": "r1",
        "status_code": 400,
        "error": "no rows",
        "features": None,
        "prediction": None,
        "entity": None,
    }
    assert answered["features"] == {"visits": 0}


def test_a_request_that_failed_in_the_model_keeps_its_features(opened, tmp_path):
    log = opened()

    log.append(record(rows=2, status=500, predictions=None, scores=None, error="the model failed"))
    log.close()
    fold(tmp_path, "churn")

    rows = table_rows(tmp_path, "row", "features", "prediction", "error")
    assert [row["features"]["visits"] for row in rows] == [0, 1]
    assert {row["prediction"] for row in rows} == {None}


@pytest.mark.parametrize(
    ("answers", "texts", "numbers"),
    [
        (np.array([0.1, 2.5]), ["0.1", "2.5"], [0.1, 2.5]),
        (np.array([3, 4]), ["3", "4"], [3.0, 4.0]),
        (np.array(["yes", "no"]), ["yes", "no"], [None, None]),
        (np.array([True, False]), ["true", "false"], [None, None]),
        ([None, [1, 2]], [None, "[1,2]"], [None, None]),
    ],
)
def test_predictions_are_text_and_where_they_are_numbers_numbers_too(
    opened, tmp_path, answers, texts, numbers
):
    log = opened()

    log.append(record(rows=2, predictions=answers))
    log.close()
    fold(tmp_path, "churn")

    rows = table_rows(tmp_path, "row", "prediction", "prediction_number")
    assert [row["prediction"] for row in rows] == texts
    assert [row["prediction_number"] for row in rows] == numbers


def test_days_are_partitions(opened, tmp_path):
    log = opened()

    log.append(record("r1", time_ns=NOON))
    log.append(record("r2", time_ns=NOON + 86_400 * 10**9))
    log.close()
    fold(tmp_path, "churn")

    folders = {path.name for path in Folders(tmp_path).predictions("churn").glob("request_date=*")}
    assert folders == {"request_date=2026-11-20", "request_date=2026-11-21"}


# Versions that take different columns -----------------------------------------------------------------------


def test_versions_with_other_columns_share_the_table(opened, tmp_path):
    one = opened({"visits": "long"}, version="3")
    one.append(record("r1"))
    one.close()
    fold(tmp_path, "churn")

    two = opened({"plan": "string", "visits": "integer"}, version="4")
    two.append(record("r2", columns={"plan": np.array(["full"], object), "visits": np.array([5])}))
    two.close()
    fold(tmp_path, "churn")
    three = opened({"visits": "long"}, version="3")
    three.append(record("r3"))
    three.close()
    fold(tmp_path, "churn")

    assert [row["features"] for row in table_rows(tmp_path, "databricks_request_id", "features")] == [
        {"visits": 0, "plan": None},
        {"visits": 5, "plan": "full"},
        {"visits": 0, "plan": None},
    ]


def test_versions_with_other_columns_go_into_one_commit(opened, tmp_path):
    written(opened, 1, "a", version="3")
    two = opened({"plan": "string"}, entity="challenger", version="4")
    two.append(record("b", columns={"plan": np.array(["full"], object)}))
    two.append(record("c", **REFUSED))
    two.close()

    fold(tmp_path, "churn")

    assert [row["features"] for row in table_rows(tmp_path, "databricks_request_id", "features")] == [
        {"visits": 0, "plan": None},
        {"visits": None, "plan": "full"},
        None,
    ]


def test_a_column_whose_type_changed_gets_a_field_of_its_own(opened, tmp_path):
    written(opened, 1, "a")
    changed = opened({"visits": "double"}, version="4")
    changed.append(record("b", columns={"visits": np.array([0.5])}))
    changed.close()

    fold(tmp_path, "churn")

    assert [row["features"] for row in table_rows(tmp_path, "databricks_request_id", "features")] == [
        {"visits": 0, "visits_double": None},
        {"visits": None, "visits_double": 0.5},
    ]


def test_columns_that_delta_cannot_name_get_a_name_that_it_can(opened, tmp_path):
    names = ["a b", "a_b", "A_B", "x;y", "visits"]
    log = opened(dict.fromkeys(names, "long"))
    log.append(record(columns={name: np.array([place]) for place, name in enumerate(names)}))
    log.close()

    fold(tmp_path, "churn")

    (row,) = table_rows(tmp_path, "features")
    assert row["features"] == {"a_b": 0, "a_b_long": 1, "A_B_long_2": 2, "x_y": 3, "visits": 4}


def test_a_version_without_columns_is_folded(opened, tmp_path):
    log = opened(served=served_model({}))
    log.append(record(columns={}))
    log.close()

    fold(tmp_path, "churn")

    assert ids(tmp_path) == ["r1"]


# Exactly once -----------------------------------------------------------------------------------------------


def test_finished_segments_are_gone_once_they_are_in_the_table(opened, tmp_path):
    written(opened, 3)

    first, second = fold(tmp_path, "churn"), fold(tmp_path, "churn")

    assert segments(tmp_path) == []
    assert (first.rows, second.rows, second.segments) == (3, 0, 0)
    assert second.table_version == first.table_version
    assert ids(tmp_path) == ["r0", "r1", "r2"]


def test_a_segment_that_is_still_written_to_is_folded_as_far_as_it_goes(opened, tmp_path):
    log = opened()
    log.append(record("r0"))
    assert fold(tmp_path, "churn").rows == 1
    assert fold(tmp_path, "churn").rows == 0

    log.append(record("r1"))
    assert fold(tmp_path, "churn").rows == 1
    log.append(record("r2"))
    log.close()
    assert fold(tmp_path, "churn").rows == 1

    assert ids(tmp_path) == ["r0", "r1", "r2"]
    assert segments(tmp_path) == []


def test_a_record_that_is_not_whole_yet_is_folded_when_it_is(opened, tmp_path):
    log = opened()
    log.append(record("r0"))
    (path,) = segments(tmp_path)
    whole = path.stat().st_size
    log.append(record("r1"))
    coming = path.read_bytes()[whole:]
    os.truncate(path, whole + 20)

    early = fold(tmp_path, "churn")
    os.truncate(path, whole)
    with path.open("ab") as handle:
        handle.write(coming)
    late = fold(tmp_path, "churn")

    assert (early.rows, early.corrupt, late.rows, late.corrupt) == (1, (), 1, ())
    assert ids(tmp_path) == ["r0", "r1"]


def test_a_fold_that_stops_before_its_commit_is_begun_again(opened, tmp_path, monkeypatch):
    written(opened, 3)

    with monkeypatch.context() as stopped:
        stopped.setattr(folding.PredictionTable, "append", _stop)
        with pytest.raises(KeyboardInterrupt):
            fold(tmp_path, "churn")

    assert fold(tmp_path, "churn").rows == 3
    assert ids(tmp_path) == ["r0", "r1", "r2"]


def test_a_fold_that_stops_between_commit_and_removal_folds_nothing_twice(opened, tmp_path, monkeypatch):
    written(opened, 3)

    with monkeypatch.context() as stopped:
        stopped.setattr(folding, "_remove", _stop)
        with pytest.raises(KeyboardInterrupt):
            fold(tmp_path, "churn")

    assert len(segments(tmp_path)) == 1
    assert fold(tmp_path, "churn").rows == 0
    assert segments(tmp_path) == []
    assert ids(tmp_path) == ["r0", "r1", "r2"]


def _stop(*_, **__):
    raise KeyboardInterrupt


def test_a_long_log_is_folded_in_several_commits_each_of_them_once(opened, tmp_path, monkeypatch):
    written(opened, 10, "a")
    written(opened, 10, "b")
    monkeypatch.setattr(folding, "_CHUNK_ROWS", 4)
    commits = []
    append = folding.PredictionTable.append

    def counted(table, *given):
        append(table, *given)
        commits.append(given)
        if len(commits) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(folding.PredictionTable, "append", counted)
    with pytest.raises(KeyboardInterrupt):
        fold(tmp_path, "churn")
    assert len(ids(tmp_path)) == 12

    assert fold(tmp_path, "churn").rows == 8

    assert ids(tmp_path) == sorted([f"{name}{place}" for name in "ab" for place in range(10)])
    assert segments(tmp_path) == []


def test_two_folds_at_once_fold_nothing_twice(opened, tmp_path):
    written(opened, 200)
    results = []

    threads = [threading.Thread(target=lambda: results.append(fold(tmp_path, "churn"))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sorted(result.rows for result in results) == [0, 0, 200]
    assert len(ids(tmp_path)) == 200


def test_progress_is_still_known_when_its_notes_have_expired(opened, tmp_path, monkeypatch):
    log = opened()
    log.append(record("r0"))
    monkeypatch.setattr(
        folding, "_CONFIGURATION", {"delta.setTransactionRetentionDuration": "interval 1 days"}
    )
    long_ago = time.time() - 100 * 86_400
    with monkeypatch.context() as then:
        then.setattr(folding.time, "time", lambda: long_ago)
        fold(tmp_path, "churn")
    (path,) = segments(tmp_path)
    with read_segment(path) as segment:
        header = segment.header
    delta = DeltaTable(Folders(tmp_path).predictions("churn"))
    assert delta.transaction_version(header.segment) is None

    log.append(record("r1"))
    with monkeypatch.context() as later:
        now = time.time()
        later.setattr(folding.time, "time", lambda: now + 100 * 86_400)
        assert fold(tmp_path, "churn").rows == 1

    assert ids(tmp_path) == ["r0", "r1"]


KILLED = """
import os, signal, sys
from pathlib import Path
from serving import fold

step = sys.argv[2]
fold._CHUNK_ROWS = 5
owner, name = {"commit": (fold.PredictionTable, "append"), "remove": (fold, "_remove")}[step.split("-")[1]]
done = getattr(owner, name)

def killing(*given, **named):
    if step.startswith("before"):
        os.kill(os.getpid(), signal.SIGKILL)
    done(*given, **named)
    os.kill(os.getpid(), signal.SIGKILL)

setattr(owner, name, killing)
fold.fold(Path(sys.argv[1]), "churn")
"""


@pytest.mark.slow
def test_a_fold_that_is_killed_again_and_again_folds_everything_once(opened, tmp_path):
    written(opened, 12, "a")
    written(opened, 12, "b")
    steps = ["before-commit", "after-commit", "before-remove", "after-remove"] * 2

    for step in steps:
        done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path), step], check=False)
        assert done.returncode in {0, -9}
    fold(tmp_path, "churn")

    assert ids(tmp_path) == sorted(f"{name}{place}" for name in "ab" for place in range(12))
    assert segments(tmp_path) == []


def test_the_tables_log_is_checkpointed_now_and_then(opened, tmp_path):
    log = opened()

    for place in range(22):
        log.append(record(f"r{place}"))
        fold(tmp_path, "churn")

    assert list(Folders(tmp_path).predictions("churn").glob("_delta_log/*.checkpoint.parquet"))
    assert fold(tmp_path, "churn").rows == 0
    assert len(ids(tmp_path)) == 22


# Damage -----------------------------------------------------------------------------------------------------


def test_damage_is_reported_the_rest_is_folded_and_the_file_is_kept(opened, tmp_path):
    written(opened, 5)
    (path,) = segments(tmp_path)
    with read_segment(path) as segment:
        ends = [end for end, _ in segment.records()]
    content = bytearray(path.read_bytes())
    content[ends[1] + 30] ^= 0xFF
    path.write_bytes(content)

    first, second = fold(tmp_path, "churn"), fold(tmp_path, "churn")

    assert ids(tmp_path) == ["r0", "r1", "r3", "r4"]
    (damage,) = first.corrupt
    assert str(path) in damage
    assert f"offset {ends[1]:,}" in damage
    assert second.corrupt == ()
    assert [kept.suffix for kept in path.parent.glob("champion*")] == [".damaged"]


def test_a_segment_without_a_header_is_reported_and_set_aside(opened, tmp_path):
    written(opened, 2)
    broken = Folders(tmp_path).log("churn") / "broken.segment"
    broken.write_bytes(b"nothing of the kind")

    result = fold(tmp_path, "churn")

    assert result.rows == 2
    assert "broken.segment: the header of this segment cannot be read" in result.corrupt[0]
    assert broken.with_suffix(".damaged").exists()


def test_a_segment_of_another_release_is_reported_and_left_where_it_is(opened, tmp_path, monkeypatch):
    with monkeypatch.context() as newer:
        newer.setattr("serving.prediction_log.FORMAT", 2)
        written(opened, 2)
    (path,) = segments(tmp_path)

    result = fold(tmp_path, "churn")

    assert result.rows == 0
    assert result.corrupt == (f"{path}: this segment has format 2, and only 1 is known here",)
    assert segments(tmp_path) == [path]


def test_what_a_process_left_before_its_segment_had_a_name_is_swept_up_in_time(opened, tmp_path):
    folder = Folders(tmp_path).log("churn")
    for name, age in (("old.partial", 7200), ("new.partial", 0)):
        (folder / name).touch()
        os.utime(folder / name, (time.time() - age, time.time() - age))

    fold(tmp_path, "churn")

    assert [path.name for path in folder.glob("*.partial")] == ["new.partial"]


def test_requests_that_were_not_logged_are_counted(opened, tmp_path):
    log = opened(when_full="drop")
    log._budget = 0
    log.append(record("lost"))
    log._budget = 1 << 20
    log.append(record("r1"))
    log.close()

    result = fold(tmp_path, "churn")

    assert (result.lost, result.rows) == (1, 1)
    commit = DeltaTable(Folders(tmp_path).predictions("churn")).history(1)[0]
    assert commit["contender.lost"] == "1"


def test_an_endpoint_that_logged_nothing_is_folded_to_nothing(tmp_path):
    result = fold(tmp_path, "churn")

    assert (result.rows, result.table_version) == (0, None)
    assert not Folders(tmp_path).predictions("churn").exists()


def test_a_table_of_something_else_is_left_alone(opened, tmp_path):
    import pyarrow as pa
    from deltalake import write_deltalake

    written(opened, 1)
    write_deltalake(Folders(tmp_path).predictions("churn"), pa.table({"a": [1]}))

    with pytest.raises(ContenderError, match="was not made by folding a prediction log"):
        fold(tmp_path, "churn")

    assert len(segments(tmp_path)) == 1


# Answers side by side ---------------------------------------------------------------------------------------


def test_champion_challenger_and_shadow_stand_side_by_side(opened, tmp_path):
    champion, challenger = opened(), opened(entity="challenger", version="4")
    champion.append(record("both", rows=2, scores=[0.1, 0.2]))
    challenger.append(record("both", rows=2, scores=[0.3, 0.4], shadow=True))
    challenger.append(record("fell back", status=503, predictions=None, scores=None))
    champion.append(record("fell back", scores=[0.5], time_ns=NOON + 1000))
    champion.append(record("old", time_ns=NOON - 10 * 86_400 * 10**9))
    fold(tmp_path, "churn")

    rows = joined(tmp_path, "churn", since=date(2026, 11, 20)).to_pylist()

    found = {(row["databricks_request_id"], row["row"]): row for row in rows}
    assert sorted(found) == [("both", 0), ("both", 1), ("fell back", 0)]
    second = found["both", 1]
    assert (second["champion_version"], second["champion_score"]) == ("3", 0.2)
    assert (second["shadow_version"], second["shadow_score"]) == ("4", 0.4)
    assert (second["challenger_version"], second["entity"]) == (None, [("customer", "C1")])
    fell_back = found["fell back", 0]
    assert (fell_back["challenger_status"], fell_back["challenger_prediction"]) == (503, None)
    assert (fell_back["champion_status"], fell_back["champion_score"]) == (200, 0.5)
    assert fell_back["request_time"] == datetime(2026, 11, 20, 12, tzinfo=UTC)


def test_of_an_arm_asked_twice_the_latest_success_counts(opened, tmp_path):
    log = opened()
    for later, status, score in ((1, 200, 0.1), (2, 200, 0.2), (3, 503, 0.9)):
        log.append(record(status=status, scores=[score], time_ns=NOON + later * 10**6))
    fold(tmp_path, "churn")

    (row,) = joined(tmp_path, "churn").to_pylist()

    assert (row["champion_status"], row["champion_score"]) == (200, 0.2)


def test_nothing_stands_side_by_side_before_a_fold(tmp_path):
    with pytest.raises(ContenderError, match="nothing was folded yet"):
        joined(tmp_path, "churn")


# The command line -------------------------------------------------------------------------------------------


def test_the_command_says_in_a_line_of_json_what_came_of_it(opened, tmp_path, capsys):
    written(opened, 2)

    code = folding.main(["--root", str(tmp_path), "--endpoint", "churn"])

    said = json.loads(capsys.readouterr().out)
    assert code == 0
    assert (said["rows"], said["requests"], said["table_version"], said["corrupt"]) == (2, 2, 1, [])


def test_the_command_tells_of_requests_that_no_scorer_answered(opened, tmp_path, capsys):
    written(opened, 1)
    noted = {"second": 1_800_000_000, "endpoint": "churn", "path": "/invocations", "served_entity": None}
    others = [noted | {"endpoint": "other"}, noted | {"path": "/ping"}, noted | {"served_entity": "v1"}]
    lines = [json.dumps(one) for one in (noted, *others, noted | {"second": "1800000002"})]
    (Folders(tmp_path).logs / "failed.log").write_text("\n".join([*lines, '{"second": 18']))

    folding.main(["--root", str(tmp_path), "--endpoint", "churn"])

    assert json.loads(capsys.readouterr().out)["unanswered_at"] == [[1_800_000_000, 1], [1_800_000_002, 1]]


def test_the_command_says_in_a_sentence_what_stopped_it(opened, tmp_path, capsys):
    import pyarrow as pa
    from deltalake import write_deltalake

    write_deltalake(Folders(tmp_path).predictions("churn"), pa.table({"a": [1]}))

    code = folding.main(["--root", str(tmp_path), "--endpoint", "churn"])

    assert code == 1
    assert "was not made by folding" in capsys.readouterr().err


def test_a_segment_goes_only_after_what_replaces_it_is_on_the_disk(opened, tmp_path, monkeypatch):
    written(opened, 3)
    forced, sync = set(), os.fsync
    at_removal = []

    def noted(descriptor):
        forced.add(os.path.realpath(f"/proc/self/fd/{descriptor}"))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", noted)
    remove = folding._remove
    monkeypatch.setattr(
        folding, "_remove", lambda *given, **how: (at_removal.append(set(forced)), remove(*given, **how))
    )

    fold(tmp_path, "churn")

    table = Folders(tmp_path).predictions("churn").resolve()
    files = [str(path) for path in table.rglob("*") if path.suffix in {".parquet", ".json"}]
    assert len(files) == 3
    assert at_removal
    assert at_removal[0] >= {*files, *(str(Path(file).parent) for file in files)}
