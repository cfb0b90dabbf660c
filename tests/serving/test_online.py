"""Online features: what is looked up is what was published, to the last bit, and never half of it."""

import io
import json
import math
import struct
import subprocess
import sys
import threading
from datetime import UTC, date, datetime

import numpy as np
import pyarrow as pa
import pytest
from deltalake import write_deltalake

from deployments.errors import BadInputError, ContenderError
from deployments.online_features import OnlineFeatureSet
from deployments.personal_data import keyed_hash
from serving import online
from serving.online import OnlineFeatures, publish

CUSTOMERS = pa.table(
    {
        "customer": ["ann", "bob"],
        "visits": pa.array([(1 << 62) + 1, None], pa.int64()),
        "amount": pa.array([0.1 + 0.2, None], pa.float64()),
        "plan": pa.array(["Füll", None]),
        "member": pa.array([True, None]),
        "since": pa.array([datetime(2025, 1, 1, 0, 0, 0, 1, tzinfo=UTC), None], pa.timestamp("us", "UTC")),
    }
)
KINDS = {"visits": "long", "amount": "double", "plan": "string", "member": "boolean", "since": "datetime"}


def feature_set(entity=None, columns=None, **changes):
    given = {"snapshot": "gold v3", "as_of": "2026-01-01T00:00:00+00:00"} | changes
    return OnlineFeatureSet(entity=entity or {"customer": "string"}, columns=columns or KINDS, **given)


def published(folder, table=CUSTOMERS, **features):
    return publish(folder, table.to_batches(), feature_set(**features))


# What is looked up ------------------------------------------------------------------------------------------


def test_values_come_back_as_they_were_published(tmp_path):
    result = published(tmp_path)

    features = OnlineFeatures.open(tmp_path)
    ann, bob, nobody = features.lookup({"customer": ["ann", "bob", "eve"]})

    assert (result.rows, result.unkeyed) == (2, 0)
    assert ann == {
        "visits": (1 << 62) + 1,
        "amount": 0.1 + 0.2,
        "plan": "Füll",
        "member": True,
        "since": datetime.fromisoformat("2025-01-01T00:00:00.000001"),
    }
    assert [type(value) for value in ann.values()] == [int, float, str, bool, datetime]
    assert bob == dict.fromkeys(KINDS)
    assert nobody is None


@pytest.mark.parametrize(
    "bits", [0, 1 << 63, 1, 0x7FEFFFFFFFFFFFFF, 0x7FF0000000000000, 0xFFF0000000000000, 0x7FF8000000000001]
)
def test_numbers_come_back_to_the_last_bit(tmp_path, bits):
    (number,) = struct.unpack("<d", struct.pack("<Q", bits))
    table = pa.table({"customer": ["ann"], "amount": [number]})

    published(tmp_path, table, columns={"amount": "double"})

    (found,) = OnlineFeatures.open(tmp_path).lookup({"customer": ["ann"]})
    assert struct.pack("<d", found["amount"]) == struct.pack("<Q", bits)


def test_columns_are_published_as_the_model_takes_them(tmp_path):
    table = pa.table(
        {
            "customer": ["ann"],
            "code": [7],
            "flag": pa.array([True]),
            "day": pa.array([date(9999, 12, 31)]),
            "kind": pa.array(["x"]).dictionary_encode(),
        }
    )

    published(
        tmp_path, table, columns={"code": "string", "flag": "double", "day": "datetime", "kind": "string"}
    )

    (found,) = OnlineFeatures.open(tmp_path).lookup({"customer": ["ann"]})
    assert found == {"code": "7", "flag": 1.0, "day": datetime.fromisoformat("9999-12-31"), "kind": "x"}


def test_more_than_eight_columns_of_texts_and_nulls_keep_their_places(tmp_path):
    names = [f"c{place}" for place in range(20)]
    row = {name: None if place % 3 == 0 else "x" * place for place, name in enumerate(names)}
    table = pa.table({"customer": ["ann"]} | {name: pa.array([row[name]], pa.string()) for name in names})

    published(tmp_path, table, columns=dict.fromkeys(names, "string"))

    assert OnlineFeatures.open(tmp_path).lookup({"customer": ["ann"]}) == [row]


def test_a_store_grows_with_its_rows(tmp_path, monkeypatch):
    monkeypatch.setattr(online, "_FIRST_MAP_BYTES", 1 << 16)
    count = 20_000
    table = pa.table({"customer": [f"C{row}" for row in range(count)], "visits": list(range(count))})

    result = publish(tmp_path, table.to_batches(3_000), feature_set(columns={"visits": "long"}))

    features = OnlineFeatures.open(tmp_path)
    rows = features.lookup({"customer": [f"C{row}" for row in range(count)]})
    assert result.rows == count
    assert [row["visits"] for row in rows] == list(range(count))


# Keys -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "stored", "asked"),
    [
        ("long", [1, -5, (1 << 63) - 1], [[1, "1", 1.0, np.int64(1), "+1"], [-5, "-5"], [(1 << 63) - 1]]),
        ("string", ["1", "", "ä"], [["1", 1], [""], ["ä"]]),
        ("double", [0.5, 0.0, 3.0], [[0.5, "0.5"], [0.0, -0.0, 0], [3, "3"]]),
        ("boolean", [True, False], [[True, "true", np.True_], [False, "false"]]),
        (
            "datetime",
            [datetime(2025, 1, 1, tzinfo=UTC), datetime(2025, 1, 1, 0, 0, 0, 1, tzinfo=UTC)],
            [
                [
                    "2025-01-01",
                    "2025-01-01T00:00:00Z",
                    "2025-01-01T01:00:00+01:00",
                    date(2025, 1, 1),
                    datetime.fromisoformat("2025-01-01"),
                    np.datetime64("2025-01-01"),
                ],
                ["2025-01-01T00:00:00.000001"],
            ],
        ),
    ],
)
def test_a_key_is_found_however_its_value_is_written(tmp_path, kind, stored, asked):
    table = pa.table({"key": stored, "place": list(range(len(stored)))})
    published(tmp_path, table, entity={"key": kind}, columns={"place": "long"})

    features = OnlineFeatures.open(tmp_path)

    for place, values in enumerate(asked):
        assert features.lookup({"key": values}) == [{"place": place}] * len(values)


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("long", "one"),
        ("long", "1.0"),
        ("long", 1.5),
        ("long", True),
        ("long", 1 << 63),
        ("long", float("inf")),
        ("long", None),
        ("string", 1.5),
        ("string", True),
        ("string", None),
        ("string", ["ann"]),
        ("double", "x"),
        ("double", True),
        ("double", float("nan")),
        ("boolean", "yes"),
        ("boolean", 1),
        ("boolean", []),
        ("datetime", "yesterday"),
        ("datetime", 5),
        ("datetime", None),
    ],
)
def test_a_key_of_another_kind_is_refused_by_column_and_row(tmp_path, kind, value):
    good = {"long": 1, "string": "a", "double": 0.5, "boolean": True, "datetime": date(2025, 1, 1)}[kind]
    published(tmp_path, pa.table({"key": [good], "n": [1]}), entity={"key": kind}, columns={"n": "long"})

    with pytest.raises(BadInputError, match=rf"'key', row 1: .* is no key of type {kind}"):
        OnlineFeatures.open(tmp_path).lookup({"key": [good, value]})


def test_keys_of_several_columns_are_told_apart(tmp_path):
    table = pa.table({"a": ["x", "xy", "x"], "b": ["yz", "z", "z"], "n": [1, 2, 2], "v": [1, 2, 3]})
    published(tmp_path, table, entity={"a": "string", "b": "string", "n": "long"}, columns={"v": "long"})

    features = OnlineFeatures.open(tmp_path)

    found = features.lookup({"n": [1, 2, 2, 1], "a": ["x", "xy", "x", "xy"], "b": ["yz", "z", "z", "z"]})
    assert found == [{"v": 1}, {"v": 2}, {"v": 3}, None]


def test_keys_longer_than_a_store_holds_are_found_all_the_same(tmp_path):
    keys = ["k" * 499, "k" * 5_000, "k" * 5_001]
    published(
        tmp_path, pa.table({"key": keys, "n": [1, 2, 3]}), entity={"key": "string"}, columns={"n": "long"}
    )

    found = OnlineFeatures.open(tmp_path).lookup({"key": [*keys, "k" * 5_002]})

    assert found == [{"n": 1}, {"n": 2}, {"n": 3}, None]


def test_a_key_column_that_is_missing_or_short_is_refused(tmp_path):
    table = pa.table({"a": ["x"], "b": ["y"], "v": [1]})
    published(tmp_path, table, entity={"a": "string", "b": "string"}, columns={"v": "long"})
    features = OnlineFeatures.open(tmp_path)

    with pytest.raises(BadInputError, match="the key column 'b' is missing"):
        features.lookup({"a": ["x"]})
    with pytest.raises(BadInputError, match=r"\(a, b\) are not equally long"):
        features.lookup({"a": ["x"], "b": ["y", "z"]})


def test_text_that_is_no_unicode_is_an_unknown_key(tmp_path):
    published(tmp_path)

    assert OnlineFeatures.open(tmp_path).lookup({"customer": ["\ud800"]}) == [None]


def test_rows_without_a_whole_key_are_left_out_and_counted(tmp_path):
    table = pa.table({"a": pa.array(["x", None, "z"]), "b": pa.array([1.0, 2.0, math.nan]), "v": [1, 2, 3]})

    result = published(tmp_path, table, entity={"a": "string", "b": "double"}, columns={"v": "long"})

    assert (result.rows, result.unkeyed) == (1, 2)


@pytest.mark.parametrize("batch_rows", [1, 10])
def test_a_key_that_stands_twice_is_refused_and_nothing_changes(tmp_path, batch_rows):
    published(tmp_path)
    table = pa.table({"customer": ["ann", "bob", "ann"], "visits": [1, 2, 3]})

    with pytest.raises(BadInputError, match=r"gold v4: a key \(customer\) stands more than once"):
        publish(
            tmp_path,
            table.to_batches(batch_rows),
            feature_set(columns={"visits": "long"}, snapshot="gold v4"),
        )

    assert OnlineFeatures.open(tmp_path).snapshot == "gold v3"
    assert not list(tmp_path.glob("*.partial"))


def test_personal_keys_are_hashed_before_they_are_looked_up(tmp_path):
    table = pa.table({"customer": [keyed_hash("ann", b"key")], "visits": [1]})
    published(tmp_path, table, columns={"visits": "long"}, hashed=("customer",))

    features = OnlineFeatures.open(tmp_path, pii_key=b"key")

    assert features.lookup({"customer": ["ann", keyed_hash("ann", b"key")]}) == [{"visits": 1}, None]
    with pytest.raises(BadInputError, match="'customer', row 0: the value is no key of type string"):
        features.lookup({"customer": [1.5]})
    with pytest.raises(BadInputError, match="customer: personal data, and there is no key"):
        OnlineFeatures.open(tmp_path)


# Publishing -------------------------------------------------------------------------------------------------


def test_before_anything_is_published_there_is_nothing_to_open(tmp_path):
    assert OnlineFeatures.open(tmp_path) is None


def test_what_is_published_later_is_noticed_and_the_old_store_still_answers(tmp_path):
    published(tmp_path)
    first = OnlineFeatures.open(tmp_path)
    assert not first.stale()

    for visits in (5, 6, 7):
        published(tmp_path, pa.table({"customer": ["ann"], "visits": [visits]}), columns={"visits": "long"})

    assert first.stale()
    assert first.lookup({"customer": ["ann"]})[0]["visits"] == (1 << 62) + 1
    second = OnlineFeatures.open(tmp_path)
    assert not second.stale()
    assert second.lookup({"customer": ["ann"]}) == [{"visits": 7}]


def test_only_the_store_that_serves_and_the_one_before_are_kept(tmp_path):
    names = [published(tmp_path).store for _ in range(4)]

    assert {path.name for path in tmp_path.glob("store-*")} == set(names[2:])


def test_a_store_can_be_opened_twice_in_one_process(tmp_path):
    published(tmp_path)

    first, second = OnlineFeatures.open(tmp_path), OnlineFeatures.open(tmp_path)
    del first

    assert second.lookup({"customer": ["ann"]})[0]["plan"] == "Füll"


KILLED = """
import os, signal, sys
from pathlib import Path
import pyarrow as pa
from deployments.online_features import OnlineFeatureSet
from serving.online import publish

def rows():
    yield pa.record_batch({"customer": ["ann"], "visits": [1]})
    os.kill(os.getpid(), signal.SIGKILL)

kinds = {"entity": {"customer": "string"}, "columns": {"visits": "long"}}
publish(Path(sys.argv[1]), rows(), OnlineFeatureSet(snapshot="never", as_of="never", **kinds))
"""


def test_a_publisher_that_is_killed_changes_nothing_and_the_next_sweeps_up(tmp_path):
    published(tmp_path)
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], check=False)
    assert done.returncode == -9
    assert len(list(tmp_path.glob("store-*.partial"))) == 1

    assert OnlineFeatures.open(tmp_path).snapshot == "gold v3"
    published(tmp_path)

    assert len(list(tmp_path.glob("store-*"))) == 2
    assert not list(tmp_path.glob("*.partial"))


def test_two_publishers_at_once_are_one_too_many(tmp_path):
    begun, go_on = threading.Event(), threading.Event()

    def rows():
        begun.set()
        go_on.wait(30)
        yield from CUSTOMERS.to_batches()

    first = threading.Thread(target=lambda: publish(tmp_path, rows(), feature_set()))
    first.start()
    begun.wait(30)
    try:
        with pytest.raises(ContenderError, match="are being published already"):
            published(tmp_path)
    finally:
        go_on.set()
        first.join()

    assert OnlineFeatures.open(tmp_path).lookup({"customer": ["ann"]})[0] is not None


def test_a_pointer_to_a_store_that_is_gone_is_a_clear_error(tmp_path):
    result = published(tmp_path)
    (tmp_path / result.store).unlink()

    with pytest.raises(ContenderError, match=f"{result.store}: this store is missing"):
        OnlineFeatures.open(tmp_path)


def test_damaged_files_are_clear_errors(tmp_path):
    result = published(tmp_path)
    (tmp_path / result.store).write_bytes(b"nothing of the kind")
    with pytest.raises(ContenderError, match="this store is damaged"):
        OnlineFeatures.open(tmp_path)

    (tmp_path / "current.json").write_text("{}")
    with pytest.raises(ContenderError, match=r"current\.json: this is no pointer to online features"):
        OnlineFeatures.open(tmp_path)


def test_columns_that_are_missing_or_of_another_kind_are_refused(tmp_path):
    with pytest.raises(BadInputError, match="no column 'pages'"):
        published(tmp_path, columns={"pages": "long"})
    with pytest.raises(
        BadInputError, match="column 'plan' is of type string, and its values do not go into long"
    ):
        published(tmp_path, columns={"plan": "long"})


# Unknown keys -----------------------------------------------------------------------------------------------


def test_the_declared_default_has_every_column_in_its_kind(tmp_path):
    published(tmp_path, default={"visits": 0, "amount": 1, "since": "2025-01-01", "plan": "none"})

    assert OnlineFeatures.open(tmp_path).declared_default() == {
        "visits": 0,
        "amount": 1.0,
        "plan": "none",
        "member": None,
        "since": datetime.fromisoformat("2025-01-01"),
    }


def test_without_a_declared_default_there_is_none(tmp_path):
    published(tmp_path)

    assert OnlineFeatures.open(tmp_path).declared_default() is None


@pytest.mark.parametrize(
    ("default", "message"),
    [
        ({"pages": 1}, "the default names 'pages'"),
        ({"visits": "many"}, "the default of 'visits', 'many', is not of type long"),
    ],
)
def test_a_default_that_does_not_fit_is_refused(tmp_path, default, message):
    with pytest.raises(BadInputError, match=message):
        published(tmp_path, default=default)


# The command line -------------------------------------------------------------------------------------------


def run(monkeypatch, root, *arguments, said="{}"):
    monkeypatch.setattr("sys.stdin", io.StringIO(said))
    return online.main(["publish", "--root", str(root), "--endpoint", "churn", *arguments])


def test_the_command_publishes_one_version_of_a_delta_table(tmp_path, monkeypatch, capsys):
    table = tmp_path / "gold of churn"
    write_deltalake(table, CUSTOMERS)
    write_deltalake(table, CUSTOMERS.slice(0, 1), mode="overwrite")

    code = run(
        monkeypatch, tmp_path, "--table", str(table), "--version", "0", said=feature_set().model_dump_json()
    )

    said = json.loads(capsys.readouterr().out)
    assert code == 0
    assert (said["endpoint"], said["rows"]) == ("churn", 2)
    features = OnlineFeatures.open(tmp_path / "serving" / "online" / "churn")
    assert features.lookup({"customer": ["ann"]})[0]["amount"] == 0.1 + 0.2


@pytest.mark.parametrize(
    ("version", "said", "message"),
    [
        ("7", feature_set().model_dump_json(), "there is no version 7 of a Delta table here"),
        ("0", "{}", "standard input does not say what to publish"),
        ("0", feature_set(columns={"pages": "long"}).model_dump_json(), "no column 'pages'"),
    ],
)
def test_the_command_says_in_a_sentence_what_is_wrong(tmp_path, monkeypatch, capsys, version, said, message):
    table = tmp_path / "gold"
    write_deltalake(table, CUSTOMERS)

    code = run(monkeypatch, tmp_path, "--table", str(table), "--version", version, said=said)

    assert code == 2
    assert message in capsys.readouterr().err
