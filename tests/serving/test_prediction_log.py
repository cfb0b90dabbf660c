"""The prediction log: what stands in a segment, what is left out of it, and what becomes of torn and full ones."""

import multiprocessing
import os
import resource
import threading
import time
from contextlib import contextmanager

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deployments.environment import PredictionLogConfig
from deployments.errors import BadInputError
from deployments.personal_data import keyed_hash
from serving.prediction_log import (
    CorruptSegmentError,
    LogFullError,
    PredictionLog,
    Record,
    read_segment,
    segment_files,
)
from serving.served_model import ServedColumn, ServedModel

KINDS = {
    "visits": "long",
    "amount": "double",
    "plan": "string",
    "member": "boolean",
    "since": "datetime",
}


def served_model(version="3", kinds=KINDS, **changes):
    given = {
        "name": "churn",
        "version": version,
        "model": "m-1",
        "model_digest": "0" * 64,
        "run_id": "r",
        "flavor": "skops",
        "engine": "sklearn",
        "engine_reason": "",
        "columns": tuple(ServedColumn(name=name, kind=kind, required=True) for name, kind in kinds.items()),
        "target": "binary",
        "positive": True,
        "entity": ("customer",),
    }
    return ServedModel(**(given | changes))


def record(request="r1", rows=1, **changes):
    given = {
        "time_ns": 1_760_000_000_123_456_789,
        "request_id": request,
        "requester": "ada",
        "shadow": False,
        "status": 200,
        "milliseconds": 0.25,
        "rows": rows,
        "keys": {"customer": [f"C{row}" for row in range(rows)]},
        "columns": {
            "visits": np.arange(rows),
            "amount": np.linspace(0.1, 1, rows),
            "plan": np.array([None, "full"] * rows, dtype=object)[:rows],
            "member": np.ones(rows, bool),
            "since": np.array(["2025-01-01T00:00:00.000001"] * rows, "datetime64[us]"),
        },
        "predictions": np.array([True] * rows),
        "scores": np.full(rows, 0.75),
        "error": None,
    }
    return Record(**(given | changes))


@pytest.fixture
def opened(tmp_path):
    """Opens a log, and closes it after the test."""
    logs = []

    def open_log(served=None, key=None, worker=0, **config):
        log = PredictionLog(
            tmp_path,
            served or served_model(),
            endpoint="churn",
            entity="champion",
            worker=worker,
            config=PredictionLogConfig(**config),
            pii_key=key,
        )
        logs.append(log)
        return log

    yield open_log
    for log in logs:
        log.close()


def records_of(path):
    with read_segment(path) as segment:
        return [content for _, content in segment.records()]


def all_records(folder):
    return [content for path in segment_files(folder) for content in records_of(path)]


def small_segment(log):
    """A megabyte is the smallest segment that can be declared; here a thousand bytes are one."""
    log._config = log._config.model_copy(update={"segment_megabytes": 1_000 / (1 << 20)})


# Writing and reading ----------------------------------------------------------------------------------------


def test_a_record_is_read_back_as_it_was_while_its_process_still_writes(opened, tmp_path):
    log = opened()

    log.append(record(rows=2))

    (path,) = segment_files(tmp_path)
    with read_segment(path) as segment:
        ((end, found),) = segment.records()
        assert segment.live
        assert segment.end == end == path.stat().st_size
        assert segment.header.version == "3"
        assert [column.name for column in segment.header.columns] == list(KINDS)
    assert found == {
        "time": 1_760_000_000_123_456_789,
        "id": "r1",
        "requester": "ada",
        "shadow": False,
        "status": 200,
        "ms": 0.25,
        "rows": 2,
        "keys": {"customer": ["C0", "C1"]},
        "columns": [[0, 1], [0.1, 1.0], [None, "full"], [True, True], [1735689600000001] * 2],
        "predictions": [True, True],
        "scores": [0.75, 0.75],
        "error": None,
    }


def test_many_rows_are_written_as_few_are(opened, tmp_path):
    log = opened()

    log.append(record(rows=16))
    log.append(record(rows=17))

    few, many = all_records(tmp_path)
    assert many["columns"][0][:16] == few["columns"][0] == list(range(16))
    assert many["columns"][2][:16] == few["columns"][2]
    assert many["columns"][4][0] == few["columns"][4][0]
    assert len(many["scores"]) == len(many["predictions"]) == 17


def test_missing_values_and_answers_that_are_no_numbers_are_null(opened, tmp_path):
    log = opened()
    columns = record().columns | {
        "amount": np.array([np.nan]),
        "since": np.array(["NaT"], "datetime64[us]"),
    }

    log.append(record(columns=columns, predictions=[float("nan")], scores=None))

    (found,) = all_records(tmp_path)
    assert found["columns"][1] == [None]
    assert found["columns"][4] == [-(1 << 63)]
    assert (found["predictions"], found["scores"]) == ([None], None)


def test_a_refused_request_is_a_record_without_columns(opened, tmp_path):
    log = opened()

    log.append(record(status=400, columns=None, keys=None, predictions=None, scores=None, error="no rows"))

    (found,) = all_records(tmp_path)
    assert (found["status"], found["columns"], found["error"]) == (400, None, "no rows")


def test_a_column_that_the_request_lacked_is_null_and_the_others_keep_their_places(opened, tmp_path):
    log = opened()
    columns = {name: values for name, values in record().columns.items() if name != "amount"}

    log.append(record(columns=columns))

    (found,) = all_records(tmp_path)
    assert found["columns"] == [[0], None, [None], [True], [1735689600000001]]


def test_what_json_cannot_say_is_said_otherwise_and_not_lost(opened, tmp_path):
    log = opened()

    log.append(record(keys={"customer": [1 << 70, "\ud800"]}, error="\udfff"))

    (found,) = all_records(tmp_path)
    assert found["keys"] == {"customer": [str(1 << 70), "?"]}
    assert found["error"] == "?"


def test_workers_write_segments_of_their_own(opened, tmp_path):
    logs = [opened(worker=worker) for worker in range(3)]

    threads = [
        threading.Thread(target=lambda log=log: [log.append(record(f"{place}")) for place in range(200)])
        for log in logs
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert [len(records_of(path)) for path in segment_files(tmp_path)] == [400] * 3


def test_a_segment_that_is_full_is_followed_by_another(opened, tmp_path):
    log = opened()
    small_segment(log)

    for place in range(10):
        log.append(record(f"r{place}"))
    log.close()

    names = [path.name for path in segment_files(tmp_path)]
    assert len(names) > 2
    assert [found["id"] for found in all_records(tmp_path)] == [f"r{place}" for place in range(10)]


def test_a_log_that_is_closed_without_a_record_leaves_no_file(opened, tmp_path):
    opened().close()

    assert list(tmp_path.iterdir()) == []


def test_what_was_written_is_forced_onto_the_disk_in_groups(opened, monkeypatch):
    forced = threading.Event()
    monkeypatch.setattr("serving.prediction_log._force", lambda descriptor: forced.set())
    log = opened(sync_milliseconds=1)

    log.append(record())

    assert forced.wait(10)


def test_a_disk_that_cannot_be_forced_does_not_end_the_log(opened, tmp_path, monkeypatch, caplog):
    tried = threading.Event()

    def fails(descriptor):
        tried.set()
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("serving.prediction_log._force", fails)
    log = opened(sync_milliseconds=1)

    log.append(record("r1"))
    assert tried.wait(10)
    log.append(record("r2"))
    log.close()

    assert [found["id"] for found in all_records(tmp_path)] == ["r1", "r2"]
    assert "could not be forced onto the disk: Input/output error" in caplog.text


# Segments of the dead ---------------------------------------------------------------------------------------


def _dies_after_writing(folder, count):
    log = PredictionLog(
        folder,
        served_model(),
        endpoint="churn",
        entity="champion",
        worker=0,
        config=PredictionLogConfig(),
        pii_key=None,
    )
    for place in range(count):
        log.append(record(f"r{place}"))
    os.kill(os.getpid(), 9)


def test_what_a_killed_process_appended_is_there_and_its_segment_is_nobodys(tmp_path):
    process = multiprocessing.get_context("fork").Process(target=_dies_after_writing, args=(tmp_path, 50))

    process.start()
    process.join()

    (path,) = segment_files(tmp_path)
    with read_segment(path) as segment:
        assert not segment.live
        assert [found["id"] for _, found in segment.records()] == [f"r{place}" for place in range(50)]
        assert segment.corrupt == []


@pytest.fixture
def finished(opened, tmp_path):
    """A closed segment of five records, and the offsets where they end."""
    log = opened()
    for place in range(5):
        log.append(record(f"r{place}"))
    log.close()
    (path,) = segment_files(tmp_path)
    with read_segment(path) as segment:
        ends = [end for end, _ in segment.records()]
    return path, ends


def ids_and_damage(path):
    with read_segment(path) as segment:
        return [found["id"] for _, found in segment.records()], segment


@pytest.mark.parametrize("kept", [1, 3, 4, 11, 12, 50])
def test_a_torn_last_record_is_left_out_without_a_word(finished, kept):
    path, ends = finished
    os.truncate(path, ends[3] + kept)

    found, segment = ids_and_damage(path)

    assert found == ["r0", "r1", "r2", "r3"]
    assert segment.corrupt == []
    assert segment.end == ends[3]


def test_room_that_was_never_filled_is_left_out_without_a_word(finished):
    path, ends = finished
    os.truncate(path, ends[4] + 5000)

    found, segment = ids_and_damage(path)

    assert len(found) == 5
    assert segment.corrupt == []


@pytest.mark.parametrize("at", [0, 5, 9, 20, 100], ids=["mark", "length", "checksum", "first byte", "within"])
def test_a_damaged_record_is_reported_by_its_place_and_what_follows_is_read(finished, at):
    path, ends = finished
    content = bytearray(path.read_bytes())
    content[ends[1] + at] ^= 0xFF
    path.write_bytes(content)

    found, segment = ids_and_damage(path)

    assert found == ["r0", "r1", "r3", "r4"]
    (damage,) = segment.corrupt
    assert (damage.file, damage.offset, damage.bytes) == (path, ends[1], ends[2] - ends[1])
    assert str(damage).startswith(f"{path}: {damage.bytes:,} bytes from offset {damage.offset:,}")


def test_damage_in_the_last_record_of_a_finished_segment_is_reported(finished):
    path, ends = finished
    content = bytearray(path.read_bytes())
    content[-1] ^= 0xFF
    path.write_bytes(content)

    found, segment = ids_and_damage(path)

    assert found == ["r0", "r1", "r2", "r3"]
    assert [damage.offset for damage in segment.corrupt] == [ends[3]]


def test_records_are_found_behind_damage_of_any_length(finished):
    path, ends = finished
    content = path.read_bytes()
    path.write_bytes(content[: ends[1]] + b"\xff" * 700_000 + content[ends[1] :])

    found, segment = ids_and_damage(path)

    assert found == ["r0", "r1", "r2", "r3", "r4"]
    assert [(damage.offset, damage.bytes) for damage in segment.corrupt] == [(ends[1], 700_000)]


def test_reading_goes_on_from_where_it_ended(finished):
    path, ends = finished

    with read_segment(path) as segment:
        assert [found["id"] for _, found in segment.records(ends[2])] == ["r3", "r4"]


@settings(
    max_examples=200,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    database=None,
)
@given(data=st.data())
def test_whatever_is_damaged_every_other_record_is_read_and_none_is_made_up(finished, data):
    path, ends = finished
    whole = path.read_bytes()
    with read_segment(path) as segment:
        begins = [segment.start, *ends[:-1]]
    at = data.draw(st.integers(begins[0], len(whole) - 1))
    with_bytes = data.draw(st.binary(min_size=1, max_size=300))
    damaged = (whole[:at] + with_bytes + whole[at + len(with_bytes) :])[: len(whole)]
    path.write_bytes(damaged)

    found, _ = ids_and_damage(path)
    path.write_bytes(whole)

    untouched = [
        f"r{place}"
        for place, (begin, end) in enumerate(zip(begins, ends, strict=True))
        if damaged[begin:end] == whole[begin:end]
    ]
    assert found == untouched


@pytest.mark.parametrize("content", [b"", b"\xffCPL", b"nothing of the kind" * 9])
def test_a_segment_without_a_header_is_refused_by_name(tmp_path, content):
    path = tmp_path / "x.segment"
    path.write_bytes(content)

    with pytest.raises(CorruptSegmentError, match=r"x\.segment: the header of this segment cannot be read"):
        read_segment(path)


# Full -------------------------------------------------------------------------------------------------------


@contextmanager
def files_end_at(size):
    """The system refuses to make any file of this process longer: writes are cut short, then fail."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_record_that_is_cut_short_is_taken_back_and_refused(opened, tmp_path):
    log = opened(when_full="refuse")
    log.append(record("r1"))
    (path,) = segment_files(tmp_path)
    whole = path.stat().st_size

    with files_end_at(whole + 100), pytest.raises(LogFullError, match="cannot be written"):
        log.append(record("r2"))

    assert path.stat().st_size == whole
    log.append(record("r3"))
    lost, kept = all_records(tmp_path)[1:]
    assert lost["lost"] == 1
    assert kept["id"] == "r3"


def test_records_that_are_dropped_are_counted_and_noted_in_the_log(opened, tmp_path):
    log = opened(when_full="drop")
    log.append(record("r1"))
    (path,) = segment_files(tmp_path)

    with files_end_at(path.stat().st_size + 100):
        for place in range(3):
            log.append(record(f"dropped {place}"))
    log.append(record("r2"))

    assert log.dropped == 3
    first, lost, last = all_records(tmp_path)
    assert (first["id"], lost["lost"], last["id"]) == ("r1", 3, "r2")


def test_a_segment_that_cannot_be_mended_is_followed_by_another(opened, tmp_path, monkeypatch):
    log = opened(when_full="drop")
    log.append(record("r1"))
    (path,) = segment_files(tmp_path)

    def fails(descriptor, size):
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as broken, files_end_at(path.stat().st_size + 100):
        broken.setattr(os, "ftruncate", fails)
        log.append(record("dropped"))
    log.append(record("r2"))
    log.close()

    assert [found.get("id", found.get("lost")) for found in all_records(tmp_path)] == ["r1", 1, "r2"]
    assert len(segment_files(tmp_path)) == 2


def test_a_log_over_its_budget_refuses_by_name_until_there_is_room(opened, tmp_path):
    log = opened(max_megabytes=1)
    log.append(record("r1"))
    others = tmp_path / "other.segment"
    others.write_bytes(b"\0" * (1 << 20))
    log._measured_at = -1e9

    with pytest.raises(LogFullError, match="log of churn has reached its 1 MB"):
        log.append(record("r2"))

    others.unlink()
    log._measured_at = -1e9
    log.append(record("r3"))
    assert [found.get("id", found.get("lost")) for found in all_records(tmp_path)] == ["r1", 1, "r3"]


def test_a_full_log_measures_again_by_itself(opened, tmp_path):
    log = opened(max_megabytes=1, when_full="drop")
    others = tmp_path / "other.segment"
    others.write_bytes(b"\0" * (1 << 20))
    log.append(record("dropped"))
    assert log.dropped == 1

    others.unlink()
    deadline = time.monotonic() + 30
    while not all_records(tmp_path) and time.monotonic() < deadline:
        log.append(record("again"))

    assert all_records(tmp_path)[-1]["id"] == "again"


def test_a_log_grows_no_larger_than_its_budget(opened, tmp_path):
    log = opened(max_megabytes=1, when_full="drop")

    for _ in range(40):
        log.append(record(rows=1_000))

    assert log.dropped > 0
    assert sum(path.stat().st_size for path in segment_files(tmp_path)) <= 1 << 20


# Personal data ----------------------------------------------------------------------------------------------

PERSONAL = {"visits": "long", "email": "string", "street": "string"}
ANN = {
    "visits": np.array([1]),
    "email": np.array(["ann@example.org"], object),
    "street": np.array(["Elm Street"], object),
}


def personal(**changes):
    return served_model(
        kinds=PERSONAL,
        entity=("customer", "phone"),
        hashed=("email", "customer"),
        hidden=("street", "phone"),
        **changes,
    )


def test_personal_data_is_hashed_as_at_ingest_or_left_out_of_columns_and_keys(opened, tmp_path):
    log = opened(personal(), key=b"key")

    log.append(record(columns=ANN, keys={"customer": ["C1"], "phone": ["555-1234"]}))
    log.append(record(columns=ANN | {"email": np.array([None], object)}, keys={"customer": [None]}))

    (path,) = segment_files(tmp_path)
    with read_segment(path) as segment:
        (_, first), (_, second) = segment.records()
        assert [column.name for column in segment.header.columns] == ["visits", "email"]
        assert segment.header.entity_columns == ("customer",)
    assert first["columns"] == [[1], [keyed_hash("ann@example.org", b"key")]]
    assert first["keys"] == {"customer": [keyed_hash("C1", b"key")]}
    assert (second["columns"], second["keys"]) == ([[1], [None]], {"customer": [None]})
    content = path.read_bytes()
    assert not any(secret in content for secret in (b"ann@example", b"Elm", b"555-1234", b"C1"))


def test_online_features_that_are_digests_are_not_hashed_again(opened, tmp_path):
    log = opened(personal(), key=b"key")

    log.append(record(columns=ANN | {"email": np.array(["digest"], object)}, keys=None, hashed=True))

    (found,) = all_records(tmp_path)
    assert found["columns"] == [[1], ["digest"]]


def test_a_message_that_might_quote_personal_data_is_not_kept(opened, tmp_path):
    log = opened(personal(), key=b"key")

    log.append(record(columns=None, keys=None, error="email, row 3: ann@example.org is no street"))

    (found,) = all_records(tmp_path)
    assert "not kept" in found["error"]
    assert found["error"].endswith("It names: email, street.")
    assert "ann" not in found["error"]


def test_personal_data_without_a_key_is_refused(opened):
    with pytest.raises(BadInputError, match=r"takes personal data \(email, customer\), and there is no key"):
        opened(personal())
