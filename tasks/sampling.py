"""A seeded sample of a table too big to hold: a stream of batches in, one small table out."""

from collections.abc import Iterable

import numpy as np
import pyarrow as pa

_ROOM = 4
"""How many times the sample's rows are held before those that lost are let go."""


def sample(batches: Iterable[pa.RecordBatch], rows: int, seed: int) -> pa.Table:
    """Up to `rows` rows of a stream, each set of that size equally likely, in the order of the stream.

    One pass. Each row draws a number and the smallest stay ("bottom-k", one of the reservoir methods: Vitter,
    Random sampling with a reservoir, 1985), so the same rows come of the same seed and order, however the stream is
    cut into batches, and a stream of no more than `rows` rows comes back whole. At most `_ROOM` times `rows` rows and
    one batch are held.

    A stream of no batch at all is a table of no columns. Raises ValueError if `rows` is below 1.
    """
    if rows < 1:
        raise ValueError(f"a sample has at least one row, not {rows}")
    random = np.random.default_rng(seed)
    held: list[pa.RecordBatch] = []
    numbers = np.empty(0)
    bound = 1.0
    schema = None
    for batch in batches:
        schema = schema or batch.schema
        drawn = random.random(batch.num_rows)
        (kept,) = np.nonzero(drawn < bound)
        if not len(kept):
            continue
        # Taken, not sliced: a slice would keep its whole batch in memory.
        held.append(batch.take(pa.array(kept)))
        numbers = np.concatenate([numbers, drawn[kept]])
        if len(numbers) > _ROOM * rows:
            table, numbers = _smallest(held, numbers, rows)
            held, bound = table.to_batches(), float(numbers.max())
    if schema is None:
        return pa.table({})
    if not held:
        return schema.empty_table()
    return _smallest(held, numbers, rows)[0]


def _smallest(held: list[pa.RecordBatch], numbers: np.ndarray, rows: int) -> tuple[pa.Table, np.ndarray]:
    table = pa.Table.from_batches(held)
    # Stable, so that of equal numbers the earlier row wins wherever the stream was cut.
    chosen = np.sort(np.argsort(numbers, kind="stable")[:rows])
    return table.take(pa.array(chosen)).combine_chunks(), numbers[chosen]
