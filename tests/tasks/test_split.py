"""Splits: who is in which part, for good; and what is refused rather than trained on."""

from datetime import UTC, date, datetime, timedelta
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from deployments.errors import BadInputError
from deployments.spec import load_spec
from deployments.training import GroupSplit, RandomSplit, TimeSplit
from tasks.split import ROW_ID, Parts, assign, row_ids, split_table

SPEC = """
name: shop
governance: {owner: shop, purpose: Tell who buys again.}
target: {kind: binary, column: bought, positive: "yes"}
sources: {visits: {kind: delta, path: visits}}
contract:
  visits:
    columns:
      member: {type: string}
      city: {type: string, nullable: true}
      pages: {type: integer}
      seen: {type: timestamp, nullable: true}
      bought: {type: string}
features: {entity: [member], numeric: [pages]}
split: {kind: random, holdout: 0.2, validation: 0.15, min_rows: 10}
training:
  metric: roc_auc
  candidates: [{name: one, estimator: sklearn.linear_model.LogisticRegression}]
evaluation: {metrics: [roc_auc]}
gates: [{kind: metric, metric: roc_auc, min: 0.5}]
"""
NOW = datetime(2025, 6, 1, tzinfo=UTC)
NAMES = ("train", "validation", "holdout")


def visits(rows: int, first: int = 0, share: float = 0.3) -> pa.Table:
    numbers = range(first, first + rows)
    return pa.table(
        {
            "member": [f"m{number}" for number in numbers],
            "city": [f"city {number % 40}" for number in numbers],
            "pages": list(numbers),
            "seen": pa.array(
                [NOW + timedelta(hours=number // 10) for number in numbers], pa.timestamp("us", "UTC")
            ),
            "bought": ["yes" if (number * 37) % 100 < share * 100 else "no" for number in numbers],
        }
    )


@pytest.fixture
def split(tmp_path, platform):
    """Split a table by a plan; gives the parts and their rows."""

    def run(
        table: pa.Table, plan: dict[str, Any] | None = None, **changes: Any
    ) -> tuple[Parts, dict[str, pa.Table]]:
        document = yaml.safe_load(SPEC) | changes
        document["split"] = document["split"] | (plan or {})
        (tmp_path / "model.yaml").write_text(yaml.safe_dump(document))
        loaded = load_spec(tmp_path / "model.yaml")
        parts = split_table(loaded, platform, platform.tables.write("gold", table.to_reader()))
        found = (parts.development.train, parts.development.validation, parts.holdout)
        return parts, {
            name: platform.tables.read(part.snapshot) for name, part in zip(NAMES, found, strict=True)
        }

    return run


def members(part: pa.Table) -> set[str]:
    return set(part.column("member").to_pylist())


def test_every_row_is_in_one_part_as_it_was(split):
    table = visits(1_000)

    _, rows = split(table)

    together = pa.concat_tables(rows.values()).drop_columns([ROW_ID]).sort_by("pages")
    assert together.equals(table)


def test_parts_have_their_shares_and_keep_the_tables_order(split):
    _, rows = split(visits(4_000))

    assert [part.num_rows / 4_000 for part in rows.values()] == pytest.approx([0.65, 0.15, 0.2], abs=0.02)
    for part in rows.values():
        assert part.column("pages").to_pylist() == sorted(part.column("pages").to_pylist())


def test_the_same_table_is_split_the_same_way(split):
    first, _ = split(visits(500))

    again, _ = split(visits(500))

    assert again == first


def test_another_seed_is_another_split(split):
    _, rows = split(visits(500))

    _, other = split(visits(500), {"seed": 7})

    assert members(other["holdout"]) != members(rows["holdout"])


def test_a_row_keeps_its_part_when_the_data_grows(split):
    _, before = split(visits(500))

    _, after = split(pa.concat_tables([visits(700, first=500, share=0.9), visits(500)]))

    for name in NAMES:
        assert members(before[name]) <= members(after[name])


@pytest.mark.parametrize("share", [0.05, 0.3, 0.5])
def test_each_class_is_divided_in_the_same_shares(split, share):
    table = visits(8_000, share=share)

    parts, _ = split(table)

    overall = table.column("bought").to_pylist().count("yes") / 8_000
    for part in (parts.development.train, parts.development.validation, parts.holdout):
        error = (overall * (1 - overall) / part.snapshot.rows) ** 0.5
        assert abs(part.balance["yes"] - overall) < 4 * error
        assert sum(part.balance.values()) == pytest.approx(1.0)


def test_all_rows_of_an_entity_are_in_one_part():
    table = pa.table({"member": [f"m{number % 50}" for number in range(600)], "as_of": range(600)})

    parts = assign(table, RandomSplit(), ["member"])

    found = {}
    for member, part in zip(table.column("member").to_pylist(), parts, strict=True):
        found.setdefault(member, set()).add(int(part))
    assert all(len(places) == 1 for places in found.values())
    assert set(parts) == {0, 1, 2}


@settings(max_examples=30, deadline=None)
@given(groups=st.lists(st.integers(0, 30), min_size=1, max_size=200), seed=st.integers(0, 100))
def test_groups_are_never_torn_whatever_they_are(groups, seed):
    table = pa.table({"member": range(len(groups)), "city": groups})

    parts = assign(table, GroupSplit(column="city", seed=seed), ["member"])

    assert len(set(zip(groups, parts.tolist(), strict=True))) == len(set(groups))


def test_a_group_split_writes_whole_groups(split):
    _, rows = split(visits(2_000), {"kind": "group", "column": "city"})

    cities = [set(part.column("city").to_pylist()) for part in rows.values()]
    assert sum(map(len, cities)) == len(set.union(*cities)) == 40


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(0, 25), min_size=1, max_size=120),
    st.floats(0.05, 0.5),
    st.floats(0.05, 0.4),
)
def test_times_are_ordered_and_never_torn_whatever_they_are(hours, holdout, validation):
    moments = [NOW + timedelta(hours=hour) for hour in hours]
    table = pa.table({"member": range(len(hours)), "seen": pa.array(moments, pa.timestamp("us", "UTC"))})

    if len(set(hours)) < 3:
        with pytest.raises(BadInputError, match="three are needed"):
            assign(table, TimeSplit(column="seen"), ["member"])
        return

    parts = assign(table, TimeSplit(column="seen", holdout=holdout, validation=validation), ["member"])

    spans = [
        [moment for moment, part in zip(moments, parts, strict=True) if part == index] for index in range(3)
    ]
    for earlier, later in ((0, 1), (1, 2), (0, 2)):
        if spans[earlier] and spans[later]:
            assert max(spans[earlier]) < min(spans[later])
    assert all(spans)


def test_a_time_split_has_about_its_shares(split):
    _, rows = split(visits(1_000), {"kind": "time", "column": "seen"})

    assert [part.num_rows for part in rows.values()] == [650, 150, 200]
    assert max(rows["train"]["seen"].to_pylist()) < min(rows["validation"]["seen"].to_pylist())
    assert max(rows["validation"]["seen"].to_pylist()) < min(rows["holdout"]["seen"].to_pylist())


def test_days_are_times_too():
    table = pa.table(
        {"member": range(100), "day": [date(2025, 1, 1) + timedelta(days=n // 5) for n in range(100)]}
    )

    parts = assign(table, TimeSplit(column="day", holdout=0.2, validation=0.2), ["member"])

    assert np.bincount(parts).tolist() == [60, 20, 20]


# Rows have names --------------------------------------------------------------------------------------------


def test_a_rows_id_is_the_same_wherever_it_is_computed():
    table = pa.table({"member": ["ada", "bob"], "as_of": pa.array([NOW, NOW], pa.timestamp("us", "UTC"))})

    ids = row_ids(table, ["member", "as_of"])

    assert ids.dtype == np.int64
    assert ids.tolist() == [-7_125_253_567_456_358_501, -7_827_493_545_574_640_873]
    assert row_ids(table.take([1]), ["member", "as_of"])[0] == ids[1]


def test_ids_of_many_rows_are_stored_and_differ(split):
    _, rows = split(visits(3_000))

    ids = np.concatenate([part.column(ROW_ID).to_numpy() for part in rows.values()])

    assert len(np.unique(ids)) == 3_000
    assert ids.min() < 0 < ids.max()


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"a": ["x\x1fy"], "b": ["z"]}, {"a": ["x"], "b": ["y\x1fz"]}),
        ({"a": ["x', 'y"], "b": ["z"]}, {"a": ["x"], "b": ["y', 'z"]}),
        ({"a": [None], "b": ["z"]}, {"a": ["None"], "b": ["z"]}),
        ({"a": ["1"], "b": ["12"]}, {"a": ["11"], "b": ["2"]}),
    ],
)
def test_keys_that_differ_have_ids_that_differ(one, other):
    assert row_ids(pa.table(one), ["a", "b"])[0] != row_ids(pa.table(other), ["a", "b"])[0]


# What is refused --------------------------------------------------------------------------------------------


def test_too_few_rows_are_refused_before_anything_is_written(split, platform):
    with pytest.raises(
        BadInputError, match=r"split: holdout would have 8 of 50 rows; at least 10 are asked for"
    ):
        split(visits(50))

    assert platform.tables.latest("gold/shop/train") is None


def test_one_class_is_refused(split):
    with pytest.raises(BadInputError, match=r"train would have only one class among \d+ rows of 'bought'"):
        split(visits(500, share=0.0))


def test_a_class_that_a_part_lacks_is_named(split):
    table = visits(500)
    late = [
        "rare" if number >= 490 else value for number, value in enumerate(table.column("bought").to_pylist())
    ]
    kinds = {"target": {"kind": "multiclass", "column": "bought"}, "training": None}

    document = yaml.safe_load(SPEC)
    kinds["training"] = document["training"] | {"metric": "accuracy"}
    kinds["evaluation"] = {"metrics": ["accuracy"]}
    kinds["gates"] = [{"kind": "metric", "metric": "accuracy", "min": 0.1}]

    with pytest.raises(BadInputError, match=r"train would have no row of class 'rare' among 3\d\d rows"):
        split(
            table.set_column(4, "bought", [late]),
            {"kind": "time", "column": "seen"},
            **kinds,
        )


def test_one_single_moment_cannot_be_split_by_time(split):
    table = visits(500)
    table = table.set_column(3, "seen", pa.array([NOW] * 500, pa.timestamp("us", "UTC")))

    with pytest.raises(BadInputError, match="'seen' has only 1 different times; three are needed"):
        split(table, {"kind": "time", "column": "seen"})


@pytest.mark.parametrize(("kind", "column"), [("time", "seen"), ("group", "city")])
def test_rows_without_a_time_or_group_are_refused(split, kind, column):
    table = visits(500)
    values = table.column(column).to_pylist()[:-3] + [None] * 3
    position = table.column_names.index(column)

    with pytest.raises(BadInputError, match=f"3 rows have no '{column}' to split by"):
        split(
            table.set_column(position, column, pa.array(values, table.schema.field(column).type)),
            {"kind": kind, "column": column},
        )


def test_text_tells_no_time():
    table = pa.table({"member": ["a"], "city": ["Oslo"]})

    with pytest.raises(BadInputError, match="'city' is of type string and tells no time"):
        assign(table, TimeSplit(column="city"), ["member"])


def test_numbers_have_a_mean_and_a_deviation(split):
    regression = {
        "target": {"kind": "regression", "column": "pages"},
        "features": {"entity": ["member"], "categorical": ["city"]},
        "training": {
            "metric": "rmse",
            "candidates": [{"name": "one", "estimator": "sklearn.linear_model.Ridge"}],
        },
        "evaluation": {"metrics": ["rmse"]},
        "gates": [{"kind": "metric", "metric": "rmse", "max": 100.0}],
    }

    parts, _ = split(visits(1_000), **regression)

    assert parts.holdout.balance["mean"] == pytest.approx(500, rel=0.15)
    assert parts.holdout.balance["deviation"] == pytest.approx(289, rel=0.15)
