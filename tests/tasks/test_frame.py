"""Frames: one set of types for training, scoring and serving, whatever a sample of the rows looks like."""

from datetime import UTC, date, datetime

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from mlflow.models.utils import _enforce_schema

from tasks.frame import input_schema, model_inputs, target_values

COLUMNS = {
    "whole": {"type": "integer"},
    "whole_or_null": {"type": "integer", "nullable": True},
    "number": {"type": "number"},
    "number_or_null": {"type": "number", "nullable": True},
    "text": {"type": "string"},
    "text_or_null": {"type": "string", "nullable": True},
    "code_or_null": {"type": "integer", "nullable": True},
    "flag": {"type": "boolean"},
    "flag_or_null": {"type": "boolean", "nullable": True},
    "moment": {"type": "timestamp"},
    "day_or_null": {"type": "date", "nullable": True},
}
ROWS = {
    "whole": pa.array([1, 2, 3], pa.int64()),
    "whole_or_null": pa.array([1, None, 3], pa.int64()),
    "number": pa.array([0.5, 1.5, 2.5]),
    "number_or_null": pa.array([None, 1.5, 2.5]),
    "text": pa.array(["a", "b", "c"]),
    "text_or_null": pa.array(["a", None, "c"]),
    "code_or_null": pa.array([7, None, 9], pa.int64()),
    "flag": pa.array([True, False, True]),
    "flag_or_null": pa.array([None, True, False]),
    "moment": pa.array([datetime(2024, 5, 1, 12, tzinfo=UTC)] * 3, pa.timestamp("us", "UTC")),
    "day_or_null": pa.array([date(1700, 1, 1), None, date(9999, 12, 31)]),
}
FEATURES = {
    "numeric": ["whole", "whole_or_null", "number", "number_or_null"],
    "categorical": ["text", "text_or_null", "code_or_null"],
    "boolean": ["flag", "flag_or_null"],
    "dates": ["moment", "day_or_null"],
}
TYPES = {
    "whole": "int64",
    "whole_or_null": "float64",
    "number": "float64",
    "number_or_null": "float64",
    "text": "object",
    "text_or_null": "object",
    "code_or_null": "object",
    "flag": "bool",
    "flag_or_null": "float64",
    "moment": "datetime64[us]",
    "day_or_null": "datetime64[us]",
}


@pytest.fixture
def spec(make_spec):
    def change(document):
        columns = document["contract"]["fruit"]["columns"]
        columns.update(COLUMNS)
        document["features"] = {"entity": ["fruit_id"]} | FEATURES

    return make_spec("binary", change).spec


def test_inputs_have_the_declared_types_in_the_declared_order(spec):
    found = model_inputs(pa.table(ROWS), spec)

    assert {name: str(kind) for name, kind in found.dtypes.items()} == TYPES
    assert list(found) == list(TYPES)


@pytest.mark.parametrize("rows", [0, 1])
def test_types_do_not_depend_on_the_rows(spec, rows):
    found = model_inputs(pa.table(ROWS).slice(0, rows), spec)

    assert {name: str(kind) for name, kind in found.dtypes.items()} == TYPES


def test_a_column_of_nulls_only_keeps_its_type(spec):
    empty = {
        name: pa.nulls(3, ROWS[name].type) if column.get("nullable") else ROWS[name]
        for name, column in COLUMNS.items()
    }

    found = model_inputs(pa.table(empty), spec)

    assert {name: str(kind) for name, kind in found.dtypes.items()} == TYPES
    assert found["text_or_null"].isna().all()


def test_arrow_types_of_other_widths_are_the_same_inputs(spec):
    narrow = {pa.int64(): pa.int32(), pa.float64(): pa.float32(), pa.string(): pa.large_string()}
    rows = pa.table(
        {name: column.cast(narrow.get(column.type, column.type)) for name, column in ROWS.items()}
    )

    pd.testing.assert_frame_equal(model_inputs(rows, spec), model_inputs(pa.table(ROWS), spec))


def test_missing_categories_are_nan_and_whole_codes_are_text(spec):
    found = model_inputs(pa.table(ROWS), spec)

    assert found["code_or_null"].tolist()[::2] == ["7", "9"]
    assert found["text_or_null"].tolist()[::2] == ["a", "c"]
    assert all(isinstance(found[name][1], float) for name in ("code_or_null", "text_or_null"))


def test_dates_far_away_and_missing_ones_are_dates(spec):
    found = model_inputs(pa.table(ROWS), spec)

    assert found["day_or_null"][0] == pd.Timestamp("1700-01-01")
    assert found["day_or_null"][2] == pd.Timestamp("9999-12-31")
    assert found["day_or_null"].isna().tolist() == [False, True, False]
    assert found["moment"][0] == pd.Timestamp("2024-05-01 12:00")


def test_the_schema_says_optional_by_contract_not_by_sample(spec):
    found = {column.name: (column.type.name, column.required) for column in input_schema(spec).inputs}

    assert found == {
        "whole": ("long", True),
        "whole_or_null": ("double", False),
        "number": ("double", True),
        "number_or_null": ("double", False),
        "text": ("string", True),
        "text_or_null": ("string", False),
        "code_or_null": ("string", False),
        "flag": ("boolean", True),
        "flag_or_null": ("double", False),
        "moment": ("datetime", True),
        "day_or_null": ("datetime", False),
    }


def test_mlflow_accepts_the_inputs_by_the_schema_and_changes_no_value(spec):
    near = pa.array([date(1700, 1, 1), None, date(2024, 5, 1)])
    inputs = model_inputs(pa.table(ROWS | {"day_or_null": near}), spec)

    enforced = _enforce_schema(inputs, input_schema(spec))

    # MLflow counts moments in nanoseconds.
    pd.testing.assert_frame_equal(enforced.astype(inputs.dtypes), inputs)


@pytest.mark.parametrize(
    ("kind", "column", "expected"),
    [
        ("binary", pa.array([True, False]), np.array([True, False])),
        ("binary", pa.array([1, 0], pa.int64()), np.array([1, 0])),
        ("binary", pa.array(["Yes", "No"]), np.array(["Yes", "No"])),
        ("binary", pa.array(["Yes", "No"], pa.large_string()), np.array(["Yes", "No"])),
        ("binary", pa.array(["Yes", "No"], pa.string_view()), np.array(["Yes", "No"])),
        ("regression", pa.array([3, 4], pa.int64()), np.array([3.0, 4.0])),
    ],
)
def test_targets_are_the_classes_as_they_are_or_floats(make_spec, kind, column, expected):
    found = target_values(pa.table({"ripe": column}), make_spec(kind).spec)

    assert found.dtype == expected.dtype
    assert found.tolist() == expected.tolist()
