"""Labels: each counted once, the last received of each row, and no file taken in half."""

from datetime import UTC, datetime, timedelta
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from deployments.environment import PredictionLogConfig
from deployments.errors import BadInputError
from platforms.lock import BusyError
from serving.folders import Folders
from serving.prediction_log import PredictionLog
from tasks.labels import Added, add_labels, labels_for
from tests.serving.test_fold import record, served_model

NOON = datetime(2026, 11, 20, 12, tzinfo=UTC)


@pytest.fixture
def fruit(make_spec):
    return make_spec()


@pytest.fixture
def add(platform, fruit, tmp_path):
    """Adds labels given as rows of csv or as a table, at an hour after noon; without a look at the log."""

    def adds(rows, hour=None, loaded=fruit, name="labels", **options):
        if isinstance(rows, pa.Table):
            file = tmp_path / f"{name}.parquet"
            pq.write_table(rows, file)
        else:
            file = tmp_path / f"{name}.csv"
            file.write_text("\n".join(rows) + "\n")
        moment = None if hour is None else NOON + timedelta(hours=hour)
        return add_labels(platform, loaded, file, **{"received_at": moment, "look_up": False, **options})

    return adds


def counts(added: Added):
    return (added.rows, added.new, added.corrected, added.unchanged, added.repeated)


def test_labels_are_added_and_found_by_request_and_row(add, platform):
    added = add(["request_id,row,label", "a,0,true", "a,1,false", "b,0,true"])

    found = labels_for(platform, "fruit", ["a", "nobody"])

    assert counts(added) == (3, 3, 0, 0, 0)
    assert found == {("a", 0): "true", ("a", 1): "false"}
    assert labels_for(platform, "fruit", []) == {}
    assert labels_for(platform, "other", ["a"]) == {}


def test_the_same_file_again_adds_nothing(add, platform):
    first = add(["request_id,label", "a,true", "b,false"])

    again = add(["request_id,label", "b,false", "a,true"])

    assert counts(again) == (2, 0, 0, 2, 0)
    assert again.snapshot == first.snapshot


def test_a_corrected_label_replaces_the_one_before_and_may_be_corrected_back(add, platform):
    find = partial(labels_for, platform, "fruit", ["a", "b"])
    add(["request_id,label", "a,true", "b,false"], 0)

    corrected = add(["request_id,label", "a,false", "c,true"], 1)
    after = find()
    add(["request_id,label", "a,true"], 2)

    assert counts(corrected) == (2, 1, 1, 0, 0)
    assert after == {("a", 0): "false", ("b", 0): "false"}
    assert find() == {("a", 0): "true", ("b", 0): "false"}


def test_of_two_labels_the_one_received_last_counts_in_whatever_order_they_are_added(add, platform):
    add(["request_id,label", "a,true"], 5)

    late = add(["request_id,label", "a,false", "b,true"], 3)

    assert counts(late) == (2, 1, 0, 1, 0)
    assert labels_for(platform, "fruit", ["a", "b"]) == {("b", 0): "true", ("a", 0): "true"}


def test_labels_come_in_the_order_in_which_they_were_received(add, platform):
    for hour, name in enumerate("cab"):
        add(["request_id,label", f"{name},true"], hour)

    assert [request for request, _ in labels_for(platform, "fruit", {"a", "b", "c"})] == ["c", "a", "b"]


def test_of_labels_of_one_row_in_one_file_the_last_counts(add, platform):
    added = add(["request_id,label", "a,true", "b,true", "a,false"])

    assert counts(added) == (3, 2, 0, 0, 1)
    assert labels_for(platform, "fruit", ["a"]) == {("a", 0): "false"}


@pytest.mark.parametrize(
    ("kind", "given", "kept"),
    [
        ("binary", pa.array([True, False]), ["true", "false"]),
        ("multiclass", pa.array(["green", "ripe"]).dictionary_encode(), ["green", "ripe"]),
        ("regression", pa.array([0.1, 2.0]), ["0.1", "2.0"]),
        ("regression", pa.array([3, -4]), ["3.0", "-4.0"]),
    ],
)
def test_labels_are_kept_as_the_log_has_predictions(add, platform, make_spec, kind, given, kept):
    add(pa.table({"label": given, "request_id": ["a", "b"]}), loaded=make_spec(kind))

    assert list(labels_for(platform, "fruit", ["a", "b"]).values()) == kept


def limited(spec):
    spec["contract"]["fruit"]["columns"]["ripe"]["values"] = ["green", "fair", "ripe"]


@pytest.mark.parametrize(
    ("kind", "rows", "said"),
    [
        ("binary", ["request_id,ripe", "a,true"], "missing columns: label (found: request_id, ripe)"),
        ("binary", ["request_id,rows,label", "a,1,true"], "columns that labels do not have: rows"),
        (
            "binary",
            ["request_id,label", "a,true", ",true"],
            "'request_id': 1 of 2 rows have no value, first row 2",
        ),
        ("binary", ["request_id,label", "a,", "b,true"], "'label': 1 of 2 rows have no value, first row 1"),
        (
            "binary",
            ["request_id,label", "a,true", "b,maybe"],
            "'label': 1 of 2 rows hold no boolean, first row 2",
        ),
        ("regression", ["request_id,label", "a,1", "b,inf"], "hold no finite number, first row 2 (inf)"),
        ("regression", ["request_id,label", "a,ripe"], "hold no number, first row 1 ('ripe')"),
        (
            "multiclass",
            ["request_id,label", "a,ripe", "b,rotten", "c,old"],
            "2 of 3 rows hold none of the values",
        ),
        ("binary", ["request_id,row,label", "a,-1,true"], "'row': 1 of 1 rows hold no place in a request"),
        ("binary", ["request_id,row,label", "a,,true"], "'row': 1 of 1 rows have no value"),
        ("binary", ["request_id,row,label", "a,first,true"], "'row': 1 of 1 rows hold no integer"),
        ("binary", ["request_id,label"], "a header and no rows"),
    ],
)
def test_a_file_that_is_wrong_somewhere_is_refused_as_a_whole(add, platform, make_spec, kind, rows, said):
    loaded = make_spec(kind, limited if kind == "multiclass" else None)

    with pytest.raises(BadInputError) as refused:
        add(rows, loaded=loaded)

    assert said in str(refused.value)
    assert "labels.csv" in str(refused.value)
    assert platform.tables.latest(platform.table("labels", "fruit", "labels")) is None


def test_a_fault_far_down_a_long_file_is_found_at_its_row(add):
    missing = np.zeros(300_000, bool)
    missing[[200_000, 299_999]] = True
    ids = [str(place) for place in range(300_000)]
    labels = pa.array(np.ones(300_000, bool), mask=missing)

    with pytest.raises(BadInputError, match=r"'label': 2 of 300,000 rows have no value, first row 200,001"):
        add(pa.table({"request_id": ids, "label": labels}))


def test_a_file_of_another_kind_or_none_is_refused(platform, fruit, tmp_path):
    (tmp_path / "labels.json").write_text("{}")

    for name, said in (("labels.json", "are read from .csv"), ("labels.csv", "there is no such file")):
        with pytest.raises(BadInputError, match=said):
            add_labels(platform, fruit, tmp_path / name, look_up=False)


def test_two_who_add_labels_at_once_do_not_overwrite_each_other(add, platform):
    with (
        platform.alone("labels-labels-fruit-labels", "somebody is at it"),
        pytest.raises(BusyError, match="labels of fruit are being added already"),
    ):
        add(["request_id,label", "a,true"])


def test_labels_of_requests_that_nobody_logged_are_counted(add, platform):
    log = PredictionLog(
        Folders(platform.root).log(platform.endpoint("fruit")),
        served_model({"visits": "long"}),
        endpoint=platform.endpoint("fruit"),
        entity="v3",
        worker=0,
        config=PredictionLogConfig(),
        pii_key=None,
    )
    for name in ("a", "b"):
        log.append(record(name))

    added = add(["request_id,label", "a,true", "x,true", "x,false", "y,true"], look_up=True)
    log.close()

    assert added.unknown == 2
    assert labels_for(platform, "fruit", ["x"]) == {("x", 0): "false"}
