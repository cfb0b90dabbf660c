"""Keys: which rows of a table repeat the unique key of an earlier one."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import polars as pl

from deployments.contract import TableContract
from platforms.platform import Platform
from platforms.scratch import scratch_folder
from platforms.snapshot import Snapshot
from tasks.coercion import coerce

_SHARE_ROWS = 2_000_000
_MOST_SHARES = 256
"""Hashes are looked through in shares of about so many rows; every share has a file, and all are open at once."""


class RepeatedKeys:
    """Finds rows whose unique key, in the contract's types, has been seen before.

    A first pass over the key's columns finds the hashes that repeat; only rows with such a hash are compared as
    they are, so only they are held in memory.
    """

    def __init__(
        self, platform: Platform, snapshot: Snapshot, contract: TableContract, key: tuple[str, ...]
    ) -> None:
        self.key = key
        self.name = f"unique({', '.join(key)})"

        def hashes() -> Iterator[np.ndarray]:
            for batch in platform.tables.batches(snapshot, key):
                typed, _ = coerce(pl.DataFrame(pl.from_arrow(batch)), contract)
                yield self._hashes(typed).drop_nulls().to_numpy()

        with scratch_folder(platform.folder("scratch")) as folder:
            self._suspects = pl.Series(_repeated(hashes(), snapshot.rows, folder), dtype=pl.UInt64)
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


def _repeated(hashes: Iterator[np.ndarray], rows: int, folder: Path) -> np.ndarray:
    """The hashes that stand more than once; sorted by their highest bits into files, one of them in memory."""
    bits = min(max(rows // _SHARE_ROWS, 1).bit_length() - 1, _MOST_SHARES.bit_length() - 1)
    borders = np.array([share << (64 - bits) for share in range(1, 1 << bits)], dtype=np.uint64)
    paths = [folder / f"{share}.hashes" for share in range(1 << bits)]
    with ExitStack() as files:
        shares = [files.enter_context(path.open("wb")) for path in paths]
        for some in hashes:
            ordered = np.sort(some)
            for file, share in zip(shares, np.split(ordered, np.searchsorted(ordered, borders)), strict=True):
                share.tofile(file)
    found = []
    for path in paths:
        ordered = np.sort(np.fromfile(path, dtype=np.uint64))
        found.append(np.unique(ordered[1:][ordered[1:] == ordered[:-1]]))
    return np.concatenate(found)
