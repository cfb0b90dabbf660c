"""A window of the log: by version, without copies, with labels, and the same whenever it is looked at."""

from datetime import timedelta

import numpy as np
import pytest

from tasks.labels import add_labels
from tasks.live_window import (
    answered_batches,
    columns_of,
    endpoint_calls,
    join_labels,
    labelled_inputs,
    labels_within,
    received_batches,
)
from tasks.monitoring_record import Window
from tests.serving.test_fold import REFUSED
from tests.tasks.live_logs import DAY, NOON, at, predictions, write_log


def rows_of(batches):
    return [row for batch in batches for row in batch.to_pylist()]


@pytest.fixture
def labelled(platform, make_spec, tmp_path):
    """Adds labels of requests of the fruit model."""

    def add(**labels):
        file = tmp_path / "labels.csv"
        file.write_text("\n".join(["request_id,label", *(f"{k},{v}" for k, v in labels.items())]))
        add_labels(platform, make_spec(), file, look_up=False)

    return add


def test_requests_are_counted_by_version_and_how_they_ended(platform):
    failed = {"status": 500, "predictions": None, "scores": None, "error": "it broke"}
    write_log(platform, "fruit", [at(0, "a", rows=3), at(1, "b", **REFUSED), at(2, "c", **failed)])
    write_log(platform, "fruit", [at(0, "a", shadow=True), at(3, "d")], version="10")

    calls = endpoint_calls(platform, predictions(platform, "fruit"), DAY).versions

    assert [(one.version, one.shadow) for one in calls] == [("3", False), ("10", False), ("10", True)]
    assert (calls[0].requests, calls[0].failed, calls[0].refused, calls[0].rows) == (3, 1, 1, 3)
    assert [(one.requests, one.rows) for one in calls[1:]] == [(1, 1), (1, 1)]


def test_the_whole_endpoint_is_all_versions_together_without_copies(platform):
    failed = {"status": 500, "predictions": None, "scores": None, "error": "it broke"}
    write_log(platform, "fruit", [at(0, "a", milliseconds=10.0), at(1, "b", **failed)])
    write_log(platform, "fruit", [at(0, "a", shadow=True), at(2, "c", milliseconds=30.0)], version="4")

    whole = endpoint_calls(platform, predictions(platform, "fruit"), DAY).whole

    assert (whole.version, whole.requests, whole.failed, whole.rows) == ("", 3, 1, 2)
    assert whole.p50 == 20.0


def test_a_window_in_which_nobody_asked_is_empty(platform):
    write_log(platform, "fruit", [at(0, "a")])
    window = Window(start=NOON + timedelta(hours=1), end=NOON + timedelta(hours=2))

    found = endpoint_calls(platform, predictions(platform, "fruit"), window)

    assert (found.whole.requests, found.versions) == (0, ())


def test_latency_is_that_of_answered_requests_each_once(platform):
    records = [at(0, f"r{place}", milliseconds=float(place), rows=1 + place % 3) for place in range(101)]
    write_log(platform, "fruit", [*records, at(1, "slow", milliseconds=9999.0, **REFUSED)])

    (calls,) = endpoint_calls(platform, predictions(platform, "fruit"), DAY).versions

    assert (calls.p50, calls.p95) == (50.0, 95.0)
    assert 85 < calls.p95_low < 95 < calls.p95_high <= 100


def test_a_version_that_answered_nothing_has_no_latency(platform):
    write_log(platform, "fruit", [at(0, "a", **REFUSED)])

    (calls,) = endpoint_calls(platform, predictions(platform, "fruit"), DAY).versions

    assert (calls.requests, calls.rows, calls.p50, calls.p95) == (1, 0, None, None)


def test_a_window_begins_at_its_first_moment_and_ends_before_its_last(platform):
    write_log(platform, "fruit", [at(minute, f"m{minute}") for minute in (-1, 0, 1, 9, 10)])
    window = Window(start=NOON, end=NOON + timedelta(minutes=10))

    (calls,) = endpoint_calls(platform, predictions(platform, "fruit"), window).versions

    assert calls.requests == 3


def test_a_window_over_midnight_has_both_days(platform):
    write_log(platform, "fruit", [at(minute, f"m{minute}") for minute in (0, 719, 720, 1000, 2160)])
    window = Window(start=NOON, end=NOON + timedelta(hours=24))

    (calls,) = endpoint_calls(platform, predictions(platform, "fruit"), window).versions

    assert calls.requests == 4


def test_answered_rows_have_inputs_and_what_was_said_and_no_copies_or_refusals(platform):
    columns = {"visits": np.array([7, 8])}
    write_log(platform, "fruit", [at(0, "a", rows=2, columns=columns), at(1, "b", **REFUSED)])
    write_log(platform, "fruit", [at(0, "a", shadow=True), at(1, "c")], version="4")

    rows = rows_of(answered_batches(predictions(platform, "fruit"), DAY, "3", ["visits"]))

    assert rows == [
        {"visits": 7, "prediction": "true", "prediction_number": None, "score": 0.75},
        {"visits": 8, "prediction": "true", "prediction_number": None, "score": 0.75},
    ]


def test_inputs_that_were_read_count_though_the_model_failed_on_them(platform):
    failed = {"status": 500, "predictions": None, "scores": None, "error": "it broke"}
    write_log(platform, "fruit", [at(0, "a"), at(1, "b", **failed), at(2, "c", **REFUSED)])

    log = predictions(platform, "fruit")

    assert len(rows_of(received_batches(log, DAY, "3", ["visits"]))) == 2
    assert len(rows_of(answered_batches(log, DAY, "3", ["visits"]))) == 1


def test_a_column_whose_type_changed_is_read_for_each_version_as_it_has_it(platform):
    write_log(platform, "fruit", [at(0, "a", columns={"visits": np.array([7])})])
    write_log(
        platform,
        "fruit",
        [at(0, "b", columns={"visits": np.array([0.5])})],
        columns={"visits": "double"},
        version="4",
    )

    log = predictions(platform, "fruit")

    assert rows_of(received_batches(log, DAY, "3", ["visits"])) == [{"visits": 7.0}]
    assert rows_of(received_batches(log, DAY, "4", ["visits"])) == [{"visits": 0.5}]


def test_a_column_is_not_read_from_another_that_looks_like_it(platform):
    columns = {"visits": "long", "visits_double": "double"}
    given = {"visits": np.array([7]), "visits_double": np.array([0.5])}
    write_log(platform, "fruit", [at(0, "a", columns=given)], columns=columns)

    rows = rows_of(received_batches(predictions(platform, "fruit"), DAY, "3", list(columns)))

    assert rows == [{"visits": 7, "visits_double": 0.5}]


def test_columns_that_only_older_versions_had_are_null_in_later_rows(platform):
    write_log(platform, "fruit", [at(0, "a")])
    columns = {"weight": "double", "a name, with marks": "string"}
    given = {"weight": np.array([1.5]), "a name, with marks": np.array(["x"], object)}
    write_log(platform, "fruit", [at(0, "b", columns=given)], columns=columns, version="4")

    log = predictions(platform, "fruit")
    wanted = ["visits", "weight", "a name, with marks"]

    assert rows_of(received_batches(log, DAY, "3", wanted)) == [
        {"visits": 0, "weight": None, "a name, with marks": None}
    ]
    assert rows_of(received_batches(log, DAY, "4", wanted)) == [
        {"visits": None, "weight": 1.5, "a name, with marks": "x"}
    ]
    assert columns_of(log, [*wanted, "nobody"]) == tuple(wanted)


def test_labels_are_joined_by_request_and_row_whenever_they_came(platform, labelled):
    write_log(platform, "fruit", [at(0, "a", rows=2), at(1, "b"), at(2, "c"), at(3, "d", **REFUSED)])
    log = predictions(platform, "fruit")
    before = join_labels(platform, log, DAY, "3", "fruit")
    labelled(c="false", a="true", x="true", d="true")

    after = join_labels(platform, log, DAY, "3", "fruit", ["visits"])
    labelled(a="false", b="true")
    corrected = join_labels(platform, log, DAY, "3", "fruit")

    assert (before.answered, before.rows.num_rows) == (4, 0)
    found = after.rows.select(["request_id", "row", "label", "score", "visits"]).to_pylist()
    assert after.answered == 4
    assert found == [
        {"request_id": "a", "row": 0, "label": "true", "score": 0.75, "visits": 0},
        {"request_id": "c", "row": 0, "label": "false", "score": 0.75, "visits": 0},
    ]
    assert corrected.rows.column("label").to_pylist() == ["false", "true", "false"]


def test_a_request_that_was_answered_twice_counts_once_as_answered_last(platform, labelled):
    write_log(platform, "fruit", [at(0, "a", scores=[0.1]), at(5, "a", scores=[0.9])])
    write_log(platform, "fruit", [at(9, "a", scores=[0.4])], version="4")
    labelled(a="true")

    joined = join_labels(platform, predictions(platform, "fruit"), DAY, "3", "fruit")

    assert joined.answered == 1
    assert joined.rows.column("score").to_pylist() == [0.9]


def test_rows_of_one_entity_are_told_by_its_key_and_others_by_their_request(platform, labelled):
    named = {"keys": {"customer": ["C7"]}}
    write_log(platform, "fruit", [at(0, "a", **named), at(1, "b", **named), at(2, "c", keys=None)])
    labelled(a="true", b="true", c="true")

    joined = join_labels(platform, predictions(platform, "fruit"), DAY, "3", "fruit")

    assert len(set(joined.rows.column("entity").to_pylist())) == 2
    assert joined.rows.column("entity").to_pylist()[2] == "c"


def test_a_sample_of_labelled_rows_has_their_inputs(platform, labelled):
    records = [at(0, f"r{place}", columns={"visits": np.array([place])}) for place in range(50)]
    write_log(platform, "fruit", records)
    labelled(**{f"r{place}": "true" if place % 2 else "false" for place in range(40)})
    log = predictions(platform, "fruit")
    joined = join_labels(platform, log, DAY, "3", "fruit")

    drawn = [
        labelled_inputs(platform, log, DAY, "3", joined, ["visits"], rows=10, seed=seed).to_pylist()
        for seed in (1, 1, 2)
    ]

    assert drawn[0] == drawn[1] != drawn[2]
    assert len(drawn[0]) == 10
    assert all(row["label"] == ("true" if row["visits"] % 2 else "false") for row in drawn[0])


def test_labels_are_counted_for_many_windows_at_once_as_they_are_joined_for_each(platform, labelled):
    write_log(platform, "fruit", [at(0, "a", rows=2), at(20, "b"), at(20, "b"), at(40, "c"), at(50, "d")])
    write_log(platform, "fruit", [at(5, "e", shadow=True), at(6, "f")], version="4")
    labelled(a="true", b="true", c="false", e="true", f="true")
    log = predictions(platform, "fruit")
    half_hours = [
        Window(start=NOON + timedelta(minutes=m), end=NOON + timedelta(minutes=m + 30)) for m in (0, 30, 60)
    ]
    asked = [(window, version) for window in half_hours for version in ("3", "4")]

    found = labels_within(platform, log, "fruit", asked)

    assert [count for count, _ in found] == [2, 1, 1, 0, 0, 0]
    for (window, version), (count, received) in zip(asked, found, strict=True):
        joined = join_labels(platform, log, window, version, "fruit")
        assert (joined.rows.num_rows, joined.received) == (count, received)
