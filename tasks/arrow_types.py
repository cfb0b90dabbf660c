"""The Arrow type of each contract type."""

from collections.abc import Mapping

import pyarrow as pa

from deployments.contract import ColumnType

_ARROW: Mapping[ColumnType, pa.DataType] = {
    ColumnType.STRING: pa.string(),
    ColumnType.INTEGER: pa.int64(),
    ColumnType.NUMBER: pa.float64(),
    ColumnType.BOOLEAN: pa.bool_(),
    ColumnType.TIMESTAMP: pa.timestamp("us", "UTC"),
    ColumnType.DATE: pa.date32(),
}


def arrow_type(kind: ColumnType) -> pa.DataType:
    """The Arrow type of a contract type; timestamps are microseconds in UTC."""
    return _ARROW[kind]
