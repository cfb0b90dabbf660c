"""A seeded sample: which rows it has does not depend on how the stream is cut."""

from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from tasks.sampling import sample


def stream(total, cuts=(), read=None):
    table = pa.table({"n": np.arange(total), "text": [f"row {n}" for n in range(total)]})
    edges = sorted({0, total, *(cut for cut in cuts if cut < total)})
    for start, end in pairwise(edges):
        if read is not None:
            read.append(end)
        yield from table.slice(start, end - start).to_batches()


def chosen(table):
    return table.column("n").to_pylist()


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 3_000),
    st.lists(st.integers(1, 3_000), max_size=30),
    st.integers(1, 300),
    st.integers(0, 9),
)
def test_the_same_seed_gives_the_same_rows_however_the_stream_is_cut(total, cuts, rows, seed):
    whole = sample(stream(total), rows, seed)
    cut = sample(stream(total, cuts), rows, seed)

    assert chosen(whole) == chosen(cut)
    assert whole.num_rows == min(rows, total)
    assert chosen(whole) == sorted(set(chosen(whole)))
    assert whole.column("text").to_pylist() == [f"row {n}" for n in chosen(whole)]


def test_another_seed_gives_other_rows():
    assert chosen(sample(stream(1_000), 100, 1)) != chosen(sample(stream(1_000), 100, 2))


def test_a_small_stream_comes_back_whole():
    assert chosen(sample(stream(50, cuts=(7, 30)), 50, 0)) == list(range(50))


def test_each_row_is_as_likely_as_any_other():
    counts = np.zeros(200)
    for seed in range(2_000):
        counts[chosen(sample(stream(200, cuts=range(0, 200, 37)), 20, seed))] += 1

    # Drawn without replacement, the counts vary a little less than the test supposes.
    assert chisquare(counts).pvalue > 1e-4


def test_what_is_held_is_bounded_by_the_sample_and_not_by_the_stream():
    most = []

    def big():
        for start in range(0, 400_000, 1_000):
            most.append(pa.total_allocated_bytes())
            yield pa.record_batch({"n": np.arange(start, start + 1_000), "wide": np.zeros(1_000)})

    before = pa.total_allocated_bytes()
    found = sample(big(), 500, 0)

    assert found.num_rows == 500
    # Sixteen bytes a row: at most four samples and the table made of them, never 6.4 MB.
    assert max(most) - before < 500 * 16 * 4 * 4


def test_the_stream_is_read_once():
    read = []

    sample(stream(1_000, cuts=range(0, 1_000, 100), read=read), 10, 0)

    assert read == list(range(100, 1_001, 100))


def test_no_rows_keep_their_columns_and_no_batch_has_none():
    empty = pa.record_batch({"n": pa.array([], pa.int64())})

    assert sample(iter([empty]), 10, 0).schema == empty.schema
    assert sample(iter([]), 10, 0).num_columns == 0


def test_a_sample_of_nothing_is_refused():
    with pytest.raises(ValueError, match="at least one row"):
        sample(stream(10), 0, 0)
