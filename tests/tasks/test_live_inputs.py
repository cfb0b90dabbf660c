"""Live inputs: the features' part of the contract, whatever batches they come in."""

import numpy as np
import pyarrow as pa
import pytest

from tasks.live_inputs import input_rows, look_at_inputs
from tasks.verdict import Verdict
from tests.tasks.live_logs import DAY

COUNT = 400


def bounded(spec):
    columns = spec["contract"]["fruit"]["columns"]
    columns["weight"] |= {"min": 0, "max": 500}
    columns["shape"] |= {"values": ["round", "long"]}
    spec["contract"]["fruit"]["rules"] = [
        {"name": "sweet_is_heavy", "expression": "sugar IS NULL OR sugar <= weight"},
        {"name": "of_the_tree", "expression": "tree <> 'none'"},
    ]


def live(count=COUNT, **changes):
    columns = {
        "weight": np.full(count, 100.0),
        "sugar": np.full(count, 10.0),
        "spots": pa.array([3] * count),
        "shape": pa.array(["round"] * count),
        "washed": pa.array([True] * count),
    }
    return pa.table(columns | changes)


def bad(column, places, values):
    """A column with these values in these places."""
    given = live()[column].to_pylist()
    for place, value in zip(places, values, strict=True):
        given[place] = value
    return {column: pa.array(given)}


@pytest.fixture
def judged(make_spec):
    """The rows of metrics for a table of live rows."""

    def rows_of(table, known=None, size=64, allowed=0.01):
        spec = make_spec("binary", bounded).spec
        found = look_at_inputs(spec, table.to_batches(size), known or {})
        return input_rows(found, spec, DAY, "3", allowed=allowed, minimum=100)

    return rows_of


def value(rows, metric, subject=""):
    (found,) = [row for row in rows if (row.metric, row.subject) == (metric, subject)]
    return found


def test_rows_that_keep_the_contract_pass(judged):
    rows = judged(live())

    assert value(rows, "invalid_share").verdict is Verdict.PASS
    assert value(rows, "invalid_share").value == 0
    assert {row.verdict for row in rows if row.metric != "invalid_share"} == {None}


@pytest.mark.parametrize(
    ("changes", "metric", "subject", "count"),
    [
        (bad("weight", range(8), [-1.0] * 8), "min_share", "weight", 8),
        (bad("weight", range(8), [501.0] * 8), "max_share", "weight", 8),
        (bad("weight", range(8), [None] * 8), "not_null_share", "weight", 8),
        (bad("shape", range(8), ["flat"] * 8), "values_share", "shape", 8),
        (bad("sugar", range(8), [200.0] * 8), "sweet_is_heavy_share", "sweet_is_heavy", 8),
        ({"spots": pa.array(["many"] * 8 + ["3"] * (COUNT - 8))}, "type_share", "spots", 8),
    ],
)
def test_rows_that_break_it_fail_by_their_share_and_are_told_by_check(
    judged, changes, metric, subject, count
):
    rows = judged(live(**changes))
    tolerated = judged(live(**changes), allowed=0.02)

    assert value(rows, "invalid_share").verdict is Verdict.FAIL
    assert value(rows, "invalid_share").value == count / COUNT
    assert value(rows, metric, subject).value == count / COUNT
    assert value(tolerated, "invalid_share").verdict is Verdict.PASS


def test_a_row_that_breaks_several_checks_is_one_row(judged):
    changes = bad("weight", [0], [-1.0]) | bad("shape", [0], ["flat"])

    assert value(judged(live(**changes)), "invalid_share").value == 1 / COUNT


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_the_batches_make_no_difference(judged, size):
    table = live(**bad("weight", range(0, 300, 11), [-1.0] * 28))

    assert judged(table, size=size) == judged(table)


def test_nulls_are_told_and_where_they_may_be_they_break_nothing(judged):
    rows = judged(live(**bad("sugar", range(100), [None] * 50 + [float("nan")] * 50)))

    assert value(rows, "null_share", "sugar").value == 0.25
    assert value(rows, "invalid_share").verdict is Verdict.PASS


def test_categories_that_training_never_saw_are_told(judged):
    rows = judged(
        live(**bad("shape", range(4), ["long"] * 3 + [None])), known={"shape": frozenset({"round"})}
    )

    assert value(rows, "unseen_share", "shape").value == 3 / COUNT
    assert value(rows, "invalid_share").verdict is Verdict.PASS


@pytest.mark.parametrize("count", [0, 99])
def test_few_rows_are_inconclusive_however_bad(judged, count):
    rows = judged(live(count, weight=np.full(count, -1.0)))

    found = value(rows, "invalid_share")
    assert found.verdict is Verdict.INCONCLUSIVE
    assert f"{count} rows with inputs in the window; 100 are needed" in found.reason
