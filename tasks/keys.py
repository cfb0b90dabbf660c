"""Keys: which rows of a table repeat the unique key of an earlier one."""

from collections.abc import Iterator

import polars as pl
import pyarrow as pa

from deployments.contract import TableContract
from platforms.platform import Platform
from platforms.snapshot import Snapshot
from tasks.coercion import coerce
from tasks.queries import query_session


class RepeatedKeys:
    """Finds rows whose unique key, in the contract's types, has been seen before.

    A first pass over the key's columns finds the hashes that repeat, out of core; only rows with such a hash
    are compared as they are, so only they are held in memory.
    """

    def __init__(
        self, platform: Platform, snapshot: Snapshot, contract: TableContract, key: tuple[str, ...]
    ) -> None:
        self.key = key
        self.name = f"unique({', '.join(key)})"
        hashes = pa.schema([pa.field("hash", pa.uint64())])

        def hashed() -> Iterator[pa.RecordBatch]:
            for batch in platform.tables.batches(snapshot, key):
                typed, _ = coerce(pl.DataFrame(pl.from_arrow(batch)), contract)
                present = self._hashes(typed).drop_nulls()
                yield pa.RecordBatch.from_arrays([present.to_arrow()], schema=hashes)

        with query_session(platform) as connection:
            connection.register("keys", pa.RecordBatchReader.from_batches(hashes, hashed()))
            query = "SELECT hash FROM keys GROUP BY hash HAVING count(*) > 1"
            self._suspects = pl.Series(connection.sql(query).to_arrow_table().column("hash"), dtype=pl.UInt64)
        self._seen: pl.DataFrame | None = None

    def mask(self, typed: pl.DataFrame) -> pl.Series | None:
        """True for each row that repeats the key of an earlier one, in this chunk or before; None: none does."""
        if self._suspects.is_empty():
            return None
        suspect = self._hashes(typed).is_in(self._suspects.implode()).fill_null(False)
        keys = typed.select(self.key).with_row_index("_row").filter(suspect)
        again = ~keys.select(pl.struct(self.key).is_first_distinct()).to_series()
        if self._seen is not None:
            before = keys.join(self._seen, on=list(self.key), how="semi")["_row"]
            again |= keys["_row"].is_in(before.implode())
        if not again.any():
            repeated = None
        else:
            repeated = (
                pl.Series([False]).new_from_index(0, typed.height).scatter(keys["_row"].filter(again), True)
            )
        new = keys.filter(~again).select(self.key)
        self._seen = new if self._seen is None else pl.concat([self._seen, new])
        return repeated

    def _hashes(self, typed: pl.DataFrame) -> pl.Series:
        """A 64-bit hash of each row's key; null where a part of it is missing."""
        keys = typed.select(self.key)
        missing = keys.select(pl.any_horizontal(pl.all().is_null())).to_series()
        hashes = keys.hash_rows()
        return hashes.set(missing, None) if missing.any() else hashes
