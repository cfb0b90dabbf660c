"""A snapshot names one immutable version of a table; its digest speaks for the content."""

import hashlib

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from deployments.declared import Declared
from deployments.errors import BadInputError


class Snapshot(Declared):
    """One immutable version of a table. Tasks exchange these instead of frames."""

    table: str
    uri: str
    version: int
    rows: int
    digest: str
    columns: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.table} v{self.version} ({self.rows:,} rows, {self.digest[:12]})"


class ContentDigest:
    """SHA-256 over the content of a stream of record batches: names, types, order and values of all rows.

    Where one batch ends and the next begins does not matter, nor does what lies in a null slot. Each column
    has a hash for the places of its nulls, its lengths (text) and its values.
    """

    def __init__(self, schema: pa.Schema) -> None:
        self._schema = schema
        self._hashes = [(hashlib.sha256(), hashlib.sha256(), hashlib.sha256()) for _ in schema]
        self.rows = 0

    def update(self, batch: pa.RecordBatch) -> None:
        """Take in the next rows.

        Raises:
            BadInputError: a column of a type that a table cannot hold.
        """
        if batch.num_rows == 0:
            return
        for (nulls, lengths, values), name, column in zip(
            self._hashes, batch.schema.names, batch.columns, strict=True
        ):
            if column.null_count:
                places = np.flatnonzero(pc.is_null(column).to_numpy(zero_copy_only=False)) + self.rows
                nulls.update(places.astype("<i8").data)
            plain = _plain(column, name)
            if _is_text(plain.type):
                width = np.int64 if pa.types.is_large_string(plain.type) else np.int32
                starts = np.frombuffer(plain.buffers()[1], width)[
                    plain.offset : plain.offset + len(plain) + 1
                ]
                lengths.update(np.diff(starts).astype("<i4", copy=False).data)
                data = plain.buffers()[2]
                if data is not None:
                    values.update(memoryview(data)[starts[0] : starts[-1]])
            else:
                values.update(np.ascontiguousarray(plain.to_numpy(zero_copy_only=False)).data)
        self.rows += batch.num_rows

    def hexdigest(self) -> str:
        """The digest of everything taken in so far."""
        whole = hashlib.sha256(f"{self.rows}\0".encode())
        for field, hashes in zip(self._schema, self._hashes, strict=True):
            whole.update(f"{field.name}\0{_type_name(field.type)}\0".encode())
            for part in hashes:
                whole.update(part.digest())
        return whole.hexdigest()


def _plain(column: pa.Array, name: str) -> pa.Array:
    """The column without nulls, as numbers or as text with offsets."""
    kind = column.type
    if pa.types.is_dictionary(kind):
        return _plain(column.dictionary_decode(), name)
    if pa.types.is_null(kind):
        return pa.array(np.zeros(len(column), np.uint8))
    if pa.types.is_decimal(kind) or pa.types.is_string_view(kind):
        return _filled(column.cast(pa.large_string()), "")
    if _is_text(kind):
        return _filled(column, "")
    if pa.types.is_boolean(kind):
        return _filled(column, False).cast(pa.uint8())
    if pa.types.is_date(kind) or pa.types.is_time(kind) or pa.types.is_timestamp(kind):
        return _filled(column.cast(pa.int32() if kind.bit_width == 32 else pa.int64()), 0)
    if pa.types.is_integer(kind) or pa.types.is_floating(kind):
        return _filled(column, 0)
    message = (
        f"column {name!r} has the type {kind}, which a table cannot hold: flatten it or make it text first"
    )
    raise BadInputError(message)


def _filled(column: pa.Array, value: object) -> pa.Array:
    return pc.fill_null(column, pa.scalar(value, column.type)) if column.null_count else column


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _type_name(kind: pa.DataType) -> str:
    return "string" if _is_text(kind) else str(kind)
