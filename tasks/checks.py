"""Checks: the row-level part of a contract as a pandera schema, and what it finds in one chunk of rows."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from typing import Any

import pandera.errors
import pandera.polars as pa_polars
import polars as pl
from pandera.config import ValidationDepth, config_context

from deployments.contract import ColumnContract, ColumnType, Rule, TableContract
from deployments.declared import Declared
from deployments.errors import BadInputError
from tasks.coercion import POLARS, coerce

_SAMPLES = 5

RowCheck = tuple[str | None, str]
"""A row-level check: the column, if it is about one, and its name."""


def compile_schema(
    contract: TableContract, columns: Sequence[str] | None = None
) -> pa_polars.DataFrameSchema:
    """The row-level part of a contract as a pandera schema over polars.

    Args:
        contract: the declaration.
        columns: the columns that are there; all kept ones by default. Rules on absent columns are left out.

    Raises:
        BadInputError: a bound, value or pattern that does not go with its column's type, or a rule that is
            not a SQL condition on one row's columns.
    """
    present = [name for name in contract.kept_columns if columns is None or name in columns]
    types = {name: POLARS[column.type] for name, column in contract.kept_columns.items()}
    names = [rule.name for rule in contract.rules]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise BadInputError(f"contract: several rules are called {', '.join(map(repr, twice))}")
    conditions = {rule.name: _condition(rule, types) for rule in contract.rules}
    return pa_polars.DataFrameSchema(
        {
            name: pa_polars.Column(
                types[name],
                checks=_column_checks(name, contract.columns[name]),
                nullable=contract.columns[name].nullable,
            )
            for name in present
        },
        checks=[
            # One failure case is enough: the failing rows are in the check's output.
            pa_polars.Check(_rule_check(condition), name=name, n_failure_cases=1)
            for name, condition in conditions.items()
            if set(condition.meta.root_names()) <= set(present)
        ],
        strict=True,
    )


def _column_checks(name: str, column: ColumnContract) -> list[pa_polars.Check]:
    checks = []
    if column.type is ColumnType.NUMBER:
        checks.append(pa_polars.Check(_finite, name="finite", n_failure_cases=1))
    if column.min is not None:
        bound = _bound(name, column, column.min)
        checks.append(pa_polars.Check.ge(bound, name="min", n_failure_cases=1))
    if column.max is not None:
        bound = _bound(name, column, column.max)
        checks.append(pa_polars.Check.le(bound, name="max", n_failure_cases=1))
    if column.values is not None:
        values = _values(name, column)
        checks.append(pa_polars.Check.isin(values, name="values", n_failure_cases=1))
    if column.pattern is not None:
        whole = f"^(?:{column.pattern})$"
        try:
            pl.Series([""]).str.contains(whole)
        except pl.exceptions.PolarsError:
            raise BadInputError(
                f"contract: column {name!r}: {column.pattern!r} is not a regular expression (of Rust's kind, "
                "which has no look-around and no back-references)"
            ) from None
        checks.append(pa_polars.Check.str_matches(whole, name="pattern", n_failure_cases=1))
    return checks


def _finite(data: Any) -> pl.LazyFrame:
    return data.lazyframe.select(pl.col(data.key).is_finite().fill_null(True))  # type: ignore[no-any-return]


def _bound(name: str, column: ColumnContract, value: float | str) -> Any:
    try:
        if column.type is ColumnType.TIMESTAMP:
            moment = datetime.fromisoformat(str(value))
            return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
        if column.type is ColumnType.DATE:
            return date.fromisoformat(str(value))
        number = float(value)
    except ValueError:
        raise BadInputError(f"contract: column {name!r}: the bound {value!r} is no {column.type}") from None
    return int(number) if column.type is ColumnType.INTEGER and number.is_integer() else number


def _values(name: str, column: ColumnContract) -> list[Any]:
    try:
        if column.type in {ColumnType.TIMESTAMP, ColumnType.DATE}:
            return [_bound(name, column, str(value)) for value in column.values or ()]
        return pl.Series(column.values, dtype=POLARS[column.type], strict=True).to_list()
    except (TypeError, pl.exceptions.PolarsError):
        raise BadInputError(
            f"contract: column {name!r}: not all of the values {list(column.values or ())} are of type "
            f"{column.type}"
        ) from None


def _rule_check(condition: pl.Expr) -> Any:
    return lambda data: data.lazyframe.select(condition)


def _condition(rule: Rule, types: Mapping[str, Any]) -> pl.Expr:
    """A rule as an expression that is true for each row which keeps it."""
    said = f"contract: rule {rule.name!r}: {rule.expression!r}"
    try:
        expression = pl.sql_expr(rule.expression)
        unknown = sorted(set(expression.meta.root_names()) - set(types))
        if unknown:
            raise BadInputError(f"{said} speaks of {', '.join(unknown)}, which the table does not have")
        answer = pl.DataFrame(schema=dict(types)).select(expression.alias("answer"))
    except pl.exceptions.PolarsError as error:
        raise BadInputError(f"{said} is not a SQL condition: {str(error).splitlines()[0]}") from None
    if answer.schema["answer"] != pl.Boolean:
        raise BadInputError(f"{said} gives a value of type {answer.schema['answer']}, not true or false")
    if not expression.meta.root_names() or _looks_at_other_rows(rule.expression):
        raise BadInputError(f"{said} does not judge each row by its own columns")
    return expression.fill_null(True)


def _looks_at_other_rows(expression: str) -> bool:
    """Whether a condition aggregates: what it said of a row would depend on the chunk it is checked in."""
    import sqlglot
    from sqlglot import errors, expressions

    try:
        parsed = sqlglot.parse_one(expression, dialect="duckdb")
    except errors.SqlglotError:
        return True
    return parsed.find(expressions.AggFunc, expressions.Window) is not None


class Sample(Declared):
    """One failing row: its place in the source (1 is the first row) and the values that failed."""

    row: int
    values: dict[str, str]


@dataclass
class Failures:
    """What the row-level checks found so far: counts and a few samples for each check."""

    counts: dict[RowCheck, int] = field(default_factory=lambda: defaultdict(int))
    samples: dict[RowCheck, list[Sample]] = field(default_factory=lambda: defaultdict(list))

    def add(self, column: str | None, check: str, mask: pl.Series, raw: pl.DataFrame, first_row: int) -> None:
        """Count the failing rows of one check in one chunk, and keep a few of them."""
        self.counts[column, check] += int(mask.sum())
        kept = self.samples[column, check]
        for position in mask.arg_true().head(_SAMPLES - len(kept)).to_list() if len(kept) < _SAMPLES else ():
            values = raw.row(position, named=True)
            shown = {column: values[column]} if column else values
            kept.append(Sample(row=first_row + position + 1, values={k: _short(v) for k, v in shown.items()}))


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:39]}…"


def check_chunk(
    raw: pl.DataFrame,
    contract: TableContract,
    schema: pa_polars.DataFrameSchema,
    failures: Failures,
    first_row: int,
) -> tuple[pl.DataFrame, dict[RowCheck, pl.Series]]:
    """Run the row-level checks on one chunk.

    Returns:
        The typed chunk, and a mask of failing rows for each check that found any.
    """
    typed, misfits = coerce(raw, contract)
    found: dict[RowCheck, pl.Series] = {(name, "type"): mask for name, mask in misfits.items()}
    try:
        # Said here because pandera would otherwise let environment variables switch its checks off.
        with config_context(validation_enabled=True, validation_depth=ValidationDepth.SCHEMA_AND_DATA):
            schema.validate(typed, lazy=True)
    except pandera.errors.SchemaErrors as errors:
        for error in errors.schema_errors:
            if error.check_output is None:
                raise BadInputError(f"the contract cannot be checked: {str(error).splitlines()[0]}") from None
            column = error.schema.name if isinstance(error.schema, pa_polars.Column) else None
            mask = ~error.check_output.to_series()
            name = "not_null" if isinstance(error.check, str) else str(error.check.name)
            if name == "not_null" and column in misfits:
                mask &= ~misfits[column]
            if mask.any():
                found[column, name] = mask
    for (column, name), mask in found.items():
        failures.add(column, name, mask, raw, first_row)
    return typed, found
