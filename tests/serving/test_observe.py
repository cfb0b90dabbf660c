"""Observing: every request from a moment on, each exactly once, whatever writes and folds meanwhile."""

import os
import random
import threading
import time
from datetime import UTC, datetime, timedelta

import numpy as np
import orjson
import pytest

from deployments.environment import PredictionLogConfig
from serving import fold as folding
from serving import observe
from serving.fold import fold
from serving.folders import Folders
from serving.observe import SCHEMA, Observer
from serving.prediction_log import PredictionLog, segment_files
from tests.serving.test_fold import NOON, REFUSED, record, served_model

SINCE = datetime(2026, 11, 20, 12, tzinfo=UTC)
BEFORE = {"time_ns": NOON - 1_000}


@pytest.fixture
def opened(tmp_path):
    """Opens logs of the endpoint `churn`, and closes them after the test."""
    logs = []

    def open_log(entity="v3", version="3", columns=None, **config):
        log = PredictionLog(
            Folders(tmp_path).log("churn"),
            served_model(columns or {"visits": "long"}, version),
            endpoint="churn",
            entity=entity,
            worker=0,
            config=PredictionLogConfig(**config),
            pii_key=None,
        )
        logs.append(log)
        return log

    yield open_log
    for log in logs:
        log.close()


@pytest.fixture
def observing(tmp_path):
    """Begins observers of `churn`, and ends them after the test."""
    observers = []

    def begin(since=SINCE):
        observers.append(Observer(tmp_path, "churn", since))
        return observers[-1]

    yield begin
    for observer in observers:
        observer.close()


def ids(table):
    return table["request_id"].to_pylist()


def note(table, name):
    return table.schema.metadata[name.encode()]


def corrupt(table):
    return orjson.loads(note(table, "corrupt"))


def all_of(observer):
    """Everything that there is, poll by poll."""
    found = []
    while True:
        table = observer.poll()
        found += ids(table)
        if note(table, "more") == b"0":
            return found


def segments(root):
    return segment_files(Folders(root).log("churn"))


# What a request is ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("folded", [False, True])
def test_a_request_is_told_the_same_from_a_segment_and_from_the_table(opened, observing, tmp_path, folded):
    log = opened("v7", "7")
    rows = {"rows": 3, "columns": {"visits": np.arange(3)}, "requester": None}
    log.append(record("three", scores=[0.5, None, 1.0], predictions=np.array(["no", None, "yes"]), **rows))
    log.append(record("true", time_ns=NOON + 1_000, shadow=True, predictions=[True]))
    log.append(record("refused", time_ns=NOON + 2_000, error="no such column", **REFUSED))
    log.append(record("number", time_ns=NOON + 3_000, predictions=[1.5], scores=None))
    log.append(record("class", time_ns=NOON + 4_000, predictions=["ripe"], scores=None))
    log.close()
    if folded:
        fold(tmp_path, "churn")

    found = observing().poll()

    assert found.schema.equals(SCHEMA)
    assert found.drop_columns(["time"]).to_pylist() == [
        told("three", rows=3, scores=[0.5, None, 1.0], predictions=["no", None, "yes"], requester=None),
        told("true", shadow=True, scores=[0.75], predictions=["true"]),
        told("refused", status=400, rows=0, scores=None, predictions=None),
        told("number", scores=[1.5], predictions=["1.5"]),
        told("class", scores=None, predictions=["ripe"]),
    ]
    assert found["time"].to_pylist() == [SINCE + timedelta(microseconds=place) for place in range(5)]


def told(request, **changes):
    plain = {"entity": "v7", "version": "7", "shadow": False, "status": 200, "milliseconds": 0.25, "rows": 1}
    return {
        "request_id": request,
        **plain,
        "scores": None,
        "predictions": None,
        "requester": "ada",
        **changes,
    }


def test_a_row_whose_prediction_is_null_does_not_make_a_request_refused(opened, observing, tmp_path):
    log = opened()
    log.append(record("null", rows=2, predictions=[None, "yes"]))
    log.close()
    before = observing().poll().to_pylist()
    fold(tmp_path, "churn")

    assert observing().poll().to_pylist() == before
    assert before[0]["rows"] == 2


# Following --------------------------------------------------------------------------------------------------


def test_each_poll_gives_what_came_since_the_last(opened, observing):
    log, observer = opened(), observing()

    polls = [ids(observer.poll())]
    log.append(record("a"))
    log.append(record("b"))
    polls.append(ids(observer.poll()))
    polls.append(ids(observer.poll()))
    log.append(record("c"))
    other = opened("v4", "4")
    other.append(record("d"))
    polls.append(ids(observer.poll()))

    assert polls == [[], ["a", "b"], [], ["c", "d"]]


def test_requests_from_before_are_left_out_wherever_they_are(opened, observing, tmp_path):
    folded = opened()
    folded.append(record("folded-before", **BEFORE))
    folded.append(record("folded"))
    folded.close()
    fold(tmp_path, "churn")
    log = opened()
    log.append(record("before", **BEFORE))
    log.append(record("after"))

    assert all_of(observing()) == ["folded", "after"]


def test_a_segment_that_ended_before_is_not_even_read(opened, observing, tmp_path):
    log = opened()
    log.append(record("before", **BEFORE))
    log.close()
    (path,) = segments(tmp_path)
    long_ago = (NOON - 60_000_000_000) / 1e9
    os.utime(path, (long_ago, long_ago))
    observer = observing()

    assert ids(observer.poll()) == []
    assert observer._done == {path.stem}


def test_a_record_that_is_half_there_is_waited_for(opened, observing, tmp_path):
    log = opened()
    log.append(record("a"))
    (path,) = segments(tmp_path)
    begun = path.stat().st_size
    log.append(record("b"))
    whole = path.read_bytes()
    os.truncate(path, begun + 30)
    observer = observing()

    half = ids(observer.poll())
    still = observer.poll()
    with path.open("r+b") as file:
        file.seek(begun)
        file.write(whole[begun:])
    then = ids(observer.poll())

    assert (half, ids(still), then) == (["a"], [], ["b"])
    assert corrupt(still) == []


def test_a_record_that_was_cut_off_again_spoils_none_that_follows(opened, observing, tmp_path):
    log = opened()
    log.append(record("a"))
    (path,) = segments(tmp_path)
    begun = path.stat().st_size
    with path.open("ab") as file:
        file.write(b"\xffCPL\x00\x01\x00\x00" + b"?" * 40)
    observer = observing()
    first = ids(observer.poll())

    os.truncate(path, begun)
    log.append(record("b"))
    then = observer.poll()

    assert (first, ids(then), corrupt(then)) == (["a"], ["b"], [])


def test_a_torn_end_of_a_dead_process_is_no_damage_and_damage_inside_is_told_once(
    opened, observing, tmp_path
):
    log = opened()
    log.append(record("a"))
    (path,) = segments(tmp_path)
    place = path.stat().st_size
    for name in ("b", "c"):
        log.append(record(name))
    log.close()
    content = bytearray(path.read_bytes())
    content[place + 20] ^= 0xFF
    path.write_bytes(bytes(content[:-3]))
    log = opened()
    log.append(record("d"))
    observer = observing()

    first = observer.poll()
    again = observer.poll()

    assert ids(first) == ["a", "d"]
    assert [str(path) in said for said in corrupt(first)] == [True]
    assert (ids(again), corrupt(again)) == ([], [])


def test_damage_that_hides_no_later_record_is_told(opened, observing, tmp_path):
    log = opened()
    for name in ("a", "b", "c"):
        log.append(record(name))
    log.close()
    (path,) = segments(tmp_path)
    content = path.read_bytes()
    middle = content.index(b'"b"')
    path.write_bytes(content[:middle] + b"XXX" + content[middle + 3 :])

    found = observing().poll()

    assert ids(found) == ["a", "c"]
    assert len(corrupt(found)) == 1


def test_requests_that_were_not_logged_are_counted_once(opened, observing):
    log = opened(when_full="drop")
    log.append(record("a"))
    observer = observing()
    first = observer.poll()
    log._lost = 4
    log.append(record("b"))

    second, third = observer.poll(), observer.poll()

    assert [note(one, "lost") for one in (first, second, third)] == [b"0", b"4", b"0"]
    assert ids(second) == ["b"]


# Folds ------------------------------------------------------------------------------------------------------


def test_a_fold_between_polls_takes_nothing_away_and_brings_nothing_twice(opened, observing, tmp_path):
    log, other = opened(), opened("v4", "4")
    log.append(record("a"))
    other.append(record("x"))
    observer = observing()
    first = all_of(observer)
    log.append(record("b"))
    log.close()
    other.append(record("y"))
    fold(tmp_path, "churn")
    other.append(record("z"))

    then = all_of(observer)

    assert sorted(first) == ["a", "x"]
    assert sorted(then) == ["b", "y", "z"]
    assert len(segments(tmp_path)) == 1
    assert all_of(observer) == []


def test_a_segment_that_came_and_was_folded_unseen_is_taken_from_the_table(opened, observing, tmp_path):
    observer = observing()
    first = all_of(observer)
    for name in ("a", "b"):
        log = opened(when_full="drop")
        log.append(record(f"{name}-before", **BEFORE))
        log._lost = 2
        log.append(record(name))
        log.close()
        fold(tmp_path, "churn")

    then = observer.poll()

    assert (first, sorted(ids(then)), note(then, "lost")) == ([], ["a", "b"], b"4")
    assert all_of(observer) == []


def test_what_was_folded_in_part_before_is_gone_on_with_after_it(opened, observing, tmp_path):
    log = opened()
    log.append(record("a"))
    fold(tmp_path, "churn")
    observer = observing()
    log.append(record("b"))
    log.close()
    fold(tmp_path, "churn")

    assert segments(tmp_path) == []
    assert all_of(observer) == ["a", "b"]


def test_a_fold_of_several_commits_is_taken_once(opened, observing, tmp_path, monkeypatch):
    monkeypatch.setattr(folding, "_CHUNK_ROWS", 4)
    observer = observing()
    observer.poll()
    for name in ("a", "b"):
        log = opened()
        for place in range(10):
            log.append(record(f"{name}{place}"))
        log.close()
    fold(tmp_path, "churn")

    assert sorted(all_of(observer)) == sorted(f"{name}{place}" for name in "ab" for place in range(10))


def test_what_a_fold_found_lost_or_damaged_since_is_told_to_who_begins_later(opened, observing, tmp_path):
    log = opened(when_full="drop")
    log._lost = 3
    log.append(record("a"))
    log.append(record("b"))
    log.close()
    (path,) = segments(tmp_path)
    content = path.read_bytes()
    path.write_bytes(content.replace(b'"a"', b'"?"'))
    fold(tmp_path, "churn")

    found = observing().poll()
    later = observing(datetime.now(UTC) + timedelta(hours=1)).poll()

    assert (ids(found), note(found, "lost"), len(corrupt(found))) == (["b"], b"3", 1)
    assert (ids(later), note(later, "lost"), corrupt(later)) == ([], b"0", [])


@pytest.mark.parametrize("seed", range(3))
def test_whoever_writes_rotates_and_folds_meanwhile_each_request_is_given_once(
    opened, observing, tmp_path, seed
):
    draw, written, stop = random.Random(seed), [], threading.Event()

    def write():
        log = opened(draw.choice(["v3", "v4"]))
        while not stop.is_set():
            name = f"{len(written)}"
            log.append(record(name, rows=draw.choice([1, 1, 3])))
            written.append(name)
            if draw.random() < 0.02:
                log.close()
                log = opened(draw.choice(["v3", "v4"]))
            if draw.random() < 0.1:
                time.sleep(0.001)
        log.close()

    def folds():
        while not stop.wait(0.01):
            fold(tmp_path, "churn")

    observer, found = observing(), []
    threads = [threading.Thread(target=write), threading.Thread(target=folds)]
    for thread in threads:
        thread.start()
    until = time.monotonic() + 1.2
    while time.monotonic() < until:
        time.sleep(draw.choice([0, 0.01, 0.1]))
        found += ids(observer.poll())
    stop.set()
    for thread in threads:
        thread.join()
    found += all_of(observer)

    assert sorted(found) == sorted(written)


# Bounds -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("folded", [False, True])
@pytest.mark.parametrize("bound", ["MOST_REQUESTS", "MOST_ROWS"])
def test_a_poll_gives_no_more_than_so_many_and_says_that_there_are_more(
    opened, observing, tmp_path, monkeypatch, folded, bound
):
    for _ in range(2):
        log = opened()
        for place in range(5):
            log.append(record(f"{len(segments(tmp_path))}-{place}"))
        log.close()
    names = sorted(all_of(observing()))
    if folded:
        fold(tmp_path, "churn")
    monkeypatch.setattr(observe, bound, 4)
    observer = observing()

    polls = [observer.poll() for _ in range(4)]

    assert sorted(name for poll in polls for name in ids(poll)) == names
    assert note(polls[0], "more") == b"1"
    assert note(polls[-1], "more") == b"0"
    if bound == "MOST_REQUESTS":
        assert [len(poll) for poll in polls] == [4, 4, 2, 0]


def test_a_poll_that_takes_long_answers_with_what_it_has(opened, observing, monkeypatch):
    log = opened()
    for place in range(3):
        log.append(record(str(place)))
    monkeypatch.setattr(observe, "POLL_SECONDS", 0.0)

    found = observing().poll()

    assert note(found, "more") == b"1"


def test_a_reader_that_observes_keeps_no_fold_from_removing_segments(opened, observing, tmp_path):
    log = opened()
    log.append(record("a"))
    observer = observing()
    observer.poll()
    log.close()

    fold(tmp_path, "churn")

    assert segments(tmp_path) == []
