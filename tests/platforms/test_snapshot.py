"""Digests speak for content: for all of it, and for nothing else."""

from datetime import UTC, date, datetime
from decimal import Decimal

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deployments.errors import BadInputError
from platforms.snapshot import ContentDigest, Snapshot


def digest(table: pa.Table, rows_per_batch: int | None = None) -> str:
    content = ContentDigest(table.schema)
    for batch in table.to_batches(max_chunksize=rows_per_batch):
        content.update(batch)
    return content.hexdigest()


MIXED = pa.table(
    {
        "text": ["ab", None, "", "c", "ab"],
        "whole": pa.array([1, None, 3, 4, 5], pa.int64()),
        "number": pa.array([1.5, None, float("inf"), -0.0, 2.5]),
        "flag": [True, None, False, True, True],
        "day": [date(2024, 1, 1), None, date(1969, 1, 1), date(2024, 1, 2), date(2024, 1, 1)],
        "moment": pa.array([datetime(2024, 1, 1, tzinfo=UTC)] * 4 + [None], pa.timestamp("us", "UTC")),
        "price": [Decimal("1.50"), None, Decimal("-2.00"), Decimal("0.00"), Decimal("1.50")],
        "nothing": pa.nulls(5),
    }
)


@pytest.mark.parametrize("rows_per_batch", [1, 2, 3, 5])
def test_where_batches_end_does_not_matter(rows_per_batch):
    whole = digest(MIXED)

    cut = digest(MIXED, rows_per_batch)

    assert cut == whole


@settings(max_examples=40, deadline=None)
@given(
    values=st.lists(st.one_of(st.none(), st.text(max_size=4)), min_size=1, max_size=12),
    rows_per_batch=st.integers(1, 12),
)
def test_any_text_in_any_batches_has_one_digest(values, rows_per_batch):
    table = pa.table({"text": pa.array(values, pa.string())})

    assert digest(table, rows_per_batch) == digest(table)


def test_a_slice_of_a_larger_batch_counts_for_itself_alone():
    sliced = MIXED.combine_chunks().slice(1, 3)

    alone = pa.Table.from_pylist(sliced.to_pylist(), schema=MIXED.schema)

    assert digest(sliced) == digest(alone)


def test_what_lies_in_a_null_slot_does_not_matter():
    mask = pa.array([False, True])

    one = pa.table({"a": pa.Array.from_buffers(pa.int64(), 2, [_validity(), _numbers(7, 8)])})
    other = pa.table({"a": pa.Array.from_buffers(pa.int64(), 2, [_validity(), _numbers(7, 9)])})

    assert one.column("a").is_null().to_pylist() == mask.to_pylist()
    assert digest(one) == digest(other)


def _validity() -> pa.Buffer:
    return pa.py_buffer(bytes([0b01]))


def _numbers(*values: int) -> pa.Buffer:
    return pa.py_buffer(b"".join(value.to_bytes(8, "little") for value in values))


@pytest.mark.parametrize("kind", [pa.large_string(), pa.string_view()])
def test_how_text_is_held_does_not_matter(kind):
    plain = pa.table({"text": ["ab", None, ""]})

    held = plain.cast(pa.schema([pa.field("text", kind)]))

    assert digest(held) == digest(plain)


@pytest.mark.parametrize(
    "other",
    [
        pytest.param(pa.table({"a": ["ab", "c"]}), id="a boundary between texts moved"),
        pytest.param(pa.table({"a": ["bc", "a"]}), id="order"),
        pytest.param(pa.table({"b": ["a", "bc"]}), id="name"),
        pytest.param(pa.table({"a": ["a", None]}), id="a null"),
        pytest.param(pa.table({"a": ["a", "bc", ""]}), id="one more row"),
        pytest.param(pa.table({"a": ["a", "bc"], "b": pa.nulls(2)}), id="one more column"),
    ],
)
def test_other_content_has_another_digest(other):
    content = pa.table({"a": ["a", "bc"]})

    assert digest(other) != digest(content)


def test_a_null_is_neither_nought_nor_empty_text():
    nulls = pa.table({"a": pa.array([None], pa.int64()), "b": pa.array([None], pa.string())})

    values = pa.table({"a": pa.array([0], pa.int64()), "b": [""]})

    assert digest(nulls) != digest(values)


def test_the_type_counts():
    narrow = pa.table({"a": pa.array([1], pa.int32())})

    wide = pa.table({"a": pa.array([1], pa.int64())})

    assert digest(narrow) != digest(wide)


def test_rows_are_counted_where_there_is_nothing_else():
    two, three = pa.table({"a": pa.nulls(2)}), pa.table({"a": pa.nulls(3)})

    assert digest(two) != digest(three)


def test_a_nested_column_is_refused_by_name():
    nested = pa.table({"tags": [["a"], ["b"]]})

    with pytest.raises(BadInputError, match="column 'tags' has the type list"):
        digest(nested)


def test_a_snapshot_says_what_it_is():
    snapshot = Snapshot(
        table="silver/churn/events",
        uri="/data/silver",
        version=3,
        rows=12_345,
        digest="0123456789abcdef",
        columns=("a",),
    )

    assert str(snapshot) == "silver/churn/events v3 (12,345 rows, 0123456789ab)"
