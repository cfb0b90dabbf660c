"""From a table to what a model is given: one set of types, the same in training, scoring and serving."""

from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from deployments.contract import ColumnType
from deployments.spec import ModelSpec


def model_inputs(rows: pa.Table, spec: ModelSpec) -> pd.DataFrame:
    """The model's inputs in the spec's order; shape (rows, features).

    Integers that are never null stay int64, other numbers are float64 with NaN for null; categories are text
    with NaN for null, whatever their type in the table; booleans are bool, or float64 where they may be null;
    dates are naive UTC microseconds, so that `9999-12-31` is one.
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
            inputs[name] = column.cast(pa.timestamp("us")).to_pandas().astype("datetime64[us]")
        elif declared.nullable or declared.type is ColumnType.NUMBER:
            inputs[name] = column.cast(pa.float64()).to_pandas().astype(np.float64)
        elif declared.type is ColumnType.BOOLEAN:
            inputs[name] = column.to_pandas().astype(bool)
        else:
            inputs[name] = column.to_pandas().astype(np.int64)
    return pd.DataFrame(inputs)


def input_schema(spec: ModelSpec) -> Any:
    """The same types as an MLflow schema; what may be null is optional, whether or not a sample of it is."""
    from mlflow.types import ColSpec, DataType, Schema

    declared = spec.feature_contract.columns
    kinds = {
        ColumnType.TIMESTAMP: DataType.datetime,
        ColumnType.DATE: DataType.datetime,
        ColumnType.NUMBER: DataType.double,
        ColumnType.INTEGER: DataType.long,
        ColumnType.BOOLEAN: DataType.boolean,
    }
    columns = []
    for name in spec.features.columns:
        column = declared[name]
        kind = DataType.string if name in spec.features.categorical.columns else kinds[column.type]
        if column.nullable and kind in {DataType.long, DataType.boolean}:
            kind = DataType.double
        columns.append(ColSpec(kind, name, required=not column.nullable))
    return Schema(columns)


_TEXTS = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)


def target_values(rows: pa.Table, spec: ModelSpec) -> np.ndarray:
    """The target; shape (rows,). Floats for regression, else the classes as they are in the table."""
    column = rows.column(spec.target.column)
    if any(is_text(column.type) for is_text in _TEXTS):
        return np.asarray(column.to_pylist(), dtype=np.str_)
    values: np.ndarray = column.to_numpy()
    return values.astype(np.float64) if spec.target.kind == "regression" else values
