"""From a table to what a model is given: one set of types, the same in training, scoring and serving."""

import numpy as np
import pandas as pd
import pyarrow as pa

from deployments.contract import ColumnType
from deployments.spec import ModelSpec


def model_inputs(rows: pa.Table, spec: ModelSpec) -> pd.DataFrame:
    """The model's inputs in the spec's order; shape (rows, features).

    Integers that are never null stay int64, other numbers are float64 with NaN for null; categories are text
    with NaN for null, whatever their type in the table; booleans are bool, or float64 where they may be null;
    dates are naive UTC nanoseconds.
    """
    columns = spec.feature_contract.columns
    categorical = set(spec.features.categorical.columns)
    inputs = {}
    for name in spec.features.columns:
        column, declared = rows.column(name), columns[name]
        if name in categorical:
            text = column.cast(pa.string()).to_pandas().astype(object)
            inputs[name] = text.where(text.notna(), np.nan)
        elif declared.type in {ColumnType.TIMESTAMP, ColumnType.DATE}:
            moments = column.cast(pa.timestamp("us")).to_pandas()
            inputs[name] = moments.astype("datetime64[ns]")
        elif declared.nullable or declared.type is ColumnType.NUMBER:
            inputs[name] = column.cast(pa.float64()).to_pandas().astype(np.float64)
        elif declared.type is ColumnType.BOOLEAN:
            inputs[name] = column.to_pandas().astype(bool)
        else:
            inputs[name] = column.to_pandas().astype(np.int64)
    return pd.DataFrame(inputs)


def target_values(rows: pa.Table, spec: ModelSpec) -> np.ndarray:
    """The target; shape (rows,). Floats for regression, else the classes as they are in the table."""
    column = rows.column(spec.target.column)
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        return np.asarray(column.to_pylist(), dtype=np.str_)
    values: np.ndarray = column.to_numpy()
    return values.astype(np.float64) if spec.target.kind == "regression" else values
