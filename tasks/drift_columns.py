"""Columns as they are compared: numbers as numbers, dates as days, everything else as a few categories."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd

from deployments.contract import ColumnType
from deployments.measures import TaskKind
from deployments.monitoring import DriftPlan
from deployments.spec import ModelSpec

PREDICTION = "prediction"
"""The column of both frames that holds what the model answered."""

MISSING, OTHER = "(missing)", "(other)"
CATEGORIES = 40
EXPECTED = 5
"""A category is told apart where at least so many of its rows are expected on the smaller side (Cochran, 1954)."""

_MOMENTS = {ColumnType.TIMESTAMP, ColumnType.DATE}
_NUMBERS = {ColumnType.INTEGER, ColumnType.NUMBER}
_MICROSECONDS_PER_DAY = 86_400 * 10**6
# Callers choose the values, and Evidently's page would take them for markup.
_NO_MARKUP = str.maketrans("<>", "‹›")
_WORDS = {"true": "true", "false": "false", "True": "true", "False": "false", 1: "true", 0: "false"}


@dataclass(frozen=True)
class Column:
    """One column of both sides, ready to be compared.

    `name` is what the report calls it, `subject` the feature that it is of. A column with `tells_missing` says for each
    row whether that feature was missing; any other column of numbers has NaN there, and one of categories has none.
    """

    name: str
    subject: str
    numeric: bool
    tells_missing: bool
    reference: pd.Series
    live: pd.Series


def compared_features(plan: DriftPlan, spec: ModelSpec) -> tuple[str, ...]:
    """The features that are looked at: all but those that the plan ignores and personal data.

    The values of columns stand in reports, so those of personal data, hashed or not, are left out.
    """
    declared = spec.feature_contract.columns
    return tuple(
        name for name in spec.features.columns if name not in plan.ignore and declared[name].pii is None
    )


def feature_columns(spec: ModelSpec, name: str, reference: pd.Series, live: pd.Series) -> Iterator[Column]:
    """A feature as one or two columns: its values and, where any number is missing, whether it was.

    A missing category is a category of its own, so a changed share of nulls is seen in either kind.
    """
    declared = spec.feature_contract.columns[name].type
    if name not in spec.features.categorical.columns and declared in _NUMBERS | _MOMENTS:
        convert = _days if declared in _MOMENTS else _numbers
        yield from _numeric(name, convert(reference), convert(live))
    else:
        yield _categorical(name, name, _texts(reference, declared), _texts(live, declared))


def prediction_columns(spec: ModelSpec, reference: pd.Series, live: pd.Series) -> Iterator[Column]:
    """What the model answered: numbers for regression and for scores of a binary model, classes otherwise."""
    scores = spec.target.kind is TaskKind.BINARY and all(_is_float(side) for side in (reference, live))
    if spec.target.kind is TaskKind.REGRESSION or scores:
        yield from _numeric(PREDICTION, _numbers(reference), _numbers(live))
    else:
        texts = (_texts(side, ColumnType.STRING) for side in (reference, live))
        yield _categorical(PREDICTION, PREDICTION, *texts)


def _is_float(side: pd.Series) -> bool:
    return bool(pd.api.types.is_float_dtype(side))


def _numeric(name: str, reference: pd.Series, live: pd.Series) -> Iterator[Column]:
    yield Column(name, name, True, False, reference, live)
    missing = [side.isna() for side in (reference, live)]
    if any(side.any() for side in missing):
        texts = (side.map({True: MISSING, False: "there"}).astype(object) for side in missing)
        yield Column(f"{name} {MISSING}", name, False, True, *texts)


def _numbers(side: pd.Series) -> pd.Series:
    """Floats; what is no finite number counts as missing."""
    numbers = pd.to_numeric(side, errors="coerce").astype(np.float64)
    return numbers.where(np.isfinite(numbers))


def _days(side: pd.Series) -> pd.Series:
    """Days since 1970 in UTC, with their fractions."""
    moments = pd.to_datetime(side, errors="coerce", utc=True, format="ISO8601")
    days = moments.dt.as_unit("us").astype("int64") / _MICROSECONDS_PER_DAY
    return days.where(moments.notna())


def _texts(side: pd.Series, declared: ColumnType) -> pd.Series:
    """Categories as text, alike on both sides whatever type a null or a file format has made of them."""
    numbers = declared in _NUMBERS
    codes, values = pd.factorize(_numbers(side) if numbers else side.astype(object))
    if declared is ColumnType.BOOLEAN:
        names = [_WORDS.get(value) for value in values]
    else:
        names = [f"{value:.15g}" if numbers else str(value).translate(_NO_MARKUP) for value in values]
    # What is missing has the code -1, the last place.
    return pd.Series(np.array([*names, None], dtype=object)[codes], index=side.index, dtype=object)


def _categorical(name: str, subject: str, reference: pd.Series, live: pd.Series) -> Column:
    """The commonest categories of both sides together; the rest, too rare to compare, are one.

    They are chosen from both sides at once: categories chosen from one side alone would be commoner there by choice,
    and a column of many rare ones would seem to drift.
    """
    reference, live = (side.astype(object).fillna(MISSING) for side in (reference, live))
    counts = reference.value_counts().add(live.value_counts(), fill_value=0)
    smaller = min(len(reference), len(live)) / (len(reference) + len(live))
    # By name where counts are equal, so that the same rows always give the same categories.
    common = counts[counts * smaller >= EXPECTED].sort_index().sort_values(ascending=False, kind="stable")
    kept = set(common.index[:CATEGORIES])
    return Column(
        name, subject, False, False, *(side.where(side.isin(kept), OTHER) for side in (reference, live))
    )
