"""Validate: a bronze snapshot against its contract; valid rows become silver, the others go to quarantine.

The declaration is compiled to a pandera schema and run on polars chunks, lazily, so that every failure is found;
what cannot be seen in one chunk (keys, row counts, freshness, distribution) is checked over the whole table.
"""

import uuid
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandera.errors
import pandera.polars as pa_polars
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from deployments.contract import ColumnContract, ColumnType, DistributionCheck, TableContract
from deployments.declared import Declared
from deployments.errors import BadInputError
from platforms.platform import Platform
from platforms.snapshot import Snapshot
from tasks.distribution import distance
from tasks.ingest import arrow_type
from tasks.progress import stage
from tasks.verdict import Verdict, overall

REASONS = "contract_failures"
"""The column that quarantined rows have on top of their own."""

_CHUNK_ROWS = 262_144
_SAMPLES = 5
_DISTRIBUTION_ROWS = 100_000

_POLARS: Mapping[ColumnType, Any] = {
    ColumnType.STRING: pl.String,
    ColumnType.INTEGER: pl.Int64,
    ColumnType.NUMBER: pl.Float64,
    ColumnType.BOOLEAN: pl.Boolean,
    ColumnType.TIMESTAMP: pl.Datetime("us", "UTC"),
    ColumnType.DATE: pl.Date,
}
_TRUE = ("true", "t", "yes", "y", "1")
_FALSE = ("false", "f", "no", "n", "0")


class ContractBroken(BadInputError):
    """The data is not what its contract says; the results tell where."""


class Sample(Declared):
    """One failing row: its place in the source (1 is the first row) and the values that failed."""

    row: int
    values: dict[str, str]


class CheckResult(Declared):
    """One check of a contract: how many rows failed it, or the value it was asked of the whole table."""

    check: str
    column: str | None
    verdict: Verdict
    failures: int = 0
    value: float | None = None
    threshold: float | None = None
    reason: str = ""
    samples: tuple[Sample, ...] = ()


class TableResult(Declared):
    """What the contract of one table found."""

    table: str
    bronze: Snapshot
    silver: Snapshot | None
    quarantine: Snapshot | None
    rows: int
    invalid_rows: int
    max_invalid_share: float
    verdict: Verdict
    checks: tuple[CheckResult, ...]
    notes: tuple[str, ...] = ()

    @property
    def invalid_share(self) -> float:
        """The share of rows that failed at least one check."""
        return self.invalid_rows / self.rows if self.rows else 1.0

    @property
    def failed(self) -> tuple[CheckResult, ...]:
        """The checks that found anything."""
        return tuple(check for check in self.checks if check.verdict is not Verdict.PASS or check.failures)


def compile_schema(
    contract: TableContract, columns: Sequence[str] | None = None
) -> pa_polars.DataFrameSchema:
    """The row-level part of a contract as a pandera schema over polars.

    Args:
        contract: the declaration.
        columns: the columns that are there; all kept ones by default. Rules on absent columns are left out.

    Raises:
        BadInputError: a rule that is not a SQL expression over the table's columns.
    """
    present = [name for name in contract.kept_columns if columns is None or name in columns]
    return pa_polars.DataFrameSchema(
        {
            name: pa_polars.Column(
                _POLARS[contract.columns[name].type],
                checks=_column_checks(contract.columns[name]),
                nullable=contract.columns[name].nullable,
            )
            for name in present
        },
        checks=[
            pa_polars.Check(_rule_check(rule.expression), name=rule.name)
            for rule in contract.rules
            if _rule_columns(contract, rule.name, rule.expression) <= set(present)
        ],
        strict=True,
    )


def _column_checks(column: ColumnContract) -> list[pa_polars.Check]:
    checks = []
    if column.type is ColumnType.NUMBER:
        checks.append(pa_polars.Check(_finite, name="finite"))
    if column.min is not None:
        checks.append(pa_polars.Check.ge(_bound(column, column.min), name="min"))
    if column.max is not None:
        checks.append(pa_polars.Check.le(_bound(column, column.max), name="max"))
    if column.values is not None and column.pii is None:
        checks.append(pa_polars.Check.isin(list(column.values), name="values"))
    if column.pattern is not None and column.pii is None:
        checks.append(pa_polars.Check.str_matches(f"^(?:{column.pattern})$", name="pattern"))
    return checks


def _finite(data: Any) -> pl.LazyFrame:
    return data.lazyframe.select(pl.col(data.key).is_finite().fill_null(True))  # type: ignore[no-any-return]


def _bound(column: ColumnContract, value: float | str) -> Any:
    if column.type is ColumnType.TIMESTAMP:
        moment = datetime.fromisoformat(str(value))
        return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    if column.type is ColumnType.DATE:
        return date.fromisoformat(str(value))
    return value


def _rule_check(expression: str) -> Any:
    condition = pl.sql_expr(expression).fill_null(True)
    return lambda data: data.lazyframe.select(condition)


def _rule_columns(contract: TableContract, name: str, expression: str) -> set[str]:
    try:
        used = set(pl.sql_expr(expression).meta.root_names())
    except pl.exceptions.PolarsError as error:
        raise BadInputError(
            f"contract rule {name!r}: {expression!r} is not a SQL expression ({error})"
        ) from None
    unknown = sorted(used - set(contract.kept_columns))
    if unknown:
        raise BadInputError(
            f"contract rule {name!r} speaks of {', '.join(unknown)}, which the table does not have"
        )
    return used


def coerce(frame: pl.DataFrame, contract: TableContract) -> tuple[pl.DataFrame, dict[str, pl.Series]]:
    """The frame in the contract's types, and for each column a mask of the values that would not go in.

    NaN becomes null; a value that does not fit its type becomes null and is reported.
    """
    expressions = [_coerced(frame.schema[name], contract.columns[name].type, name) for name in frame.columns]
    typed = frame.select(expressions)
    misfits = {}
    for name in frame.columns:
        given, taken = frame[name], typed[name]
        present = given.is_not_null()
        if given.dtype.is_float():
            present &= given.is_not_nan().fill_null(False)
        bad = present & taken.is_null()
        if bad.any():
            misfits[name] = bad
    return typed, misfits


def _coerced(given: pl.DataType, wanted: ColumnType, name: str) -> pl.Expr:
    column, target = pl.col(name), _POLARS[wanted]
    if given.is_float():
        column = column.fill_nan(None)
    if given == target:
        return column
    if isinstance(given, pl.String):
        text = column.str.strip_chars()
        if wanted is ColumnType.BOOLEAN:
            lower = text.str.to_lowercase()
            return pl.when(lower.is_in(_TRUE)).then(True).when(lower.is_in(_FALSE)).then(False).alias(name)
        if wanted is ColumnType.TIMESTAMP:
            return text.str.to_datetime(time_unit="us", time_zone="UTC", strict=False).alias(name)
        if wanted is ColumnType.DATE:
            return text.str.to_date(strict=False).alias(name)
        return text.cast(target, strict=False).alias(name)
    if wanted is ColumnType.INTEGER and (given.is_float() or given.is_decimal()):
        whole = column.cast(pl.Float64)
        return pl.when(whole == whole.round()).then(column.cast(pl.Int64, strict=False)).alias(name)
    if wanted is ColumnType.TIMESTAMP and isinstance(given, pl.Datetime):
        aware = column if given.time_zone else column.dt.replace_time_zone("UTC")
        return aware.dt.convert_time_zone("UTC").dt.cast_time_unit("us").alias(name)
    if wanted is ColumnType.BOOLEAN and given.is_integer():
        return pl.when(column.is_in([0, 1])).then(column == 1).alias(name)
    return column.cast(target, strict=False).alias(name)


@dataclass
class Failures:
    """What the row-level checks found so far: counts and a few samples for each check."""

    counts: dict[tuple[str | None, str], int] = field(default_factory=lambda: defaultdict(int))
    samples: dict[tuple[str | None, str], list[Sample]] = field(default_factory=lambda: defaultdict(list))

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
) -> tuple[pl.DataFrame, dict[tuple[str | None, str], pl.Series]]:
    """Run the row-level checks on one chunk.

    Returns:
        The typed chunk, and a mask of failing rows for each check that found any.
    """
    typed, misfits = coerce(raw, contract)
    found: dict[tuple[str | None, str], pl.Series] = {(name, "type"): mask for name, mask in misfits.items()}
    try:
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


class RepeatedKeys:
    """Finds rows whose unique key has been seen before; only keys that repeat at all are held in memory."""

    def __init__(self, platform: Platform, snapshot: Snapshot, key: tuple[str, ...]) -> None:
        import duckdb

        self.key = key
        self.name = f"unique({', '.join(key)})"
        connection = duckdb.connect()
        connection.execute(f"SET memory_limit = '{platform.environment.budget.memory_megabytes}MB'")
        connection.execute(f"SET temp_directory = '{platform.folder('scratch')}'")
        connection.register("rows_", platform.tables.open(snapshot))
        columns = ", ".join(f'"{name}"' for name in key)
        present = " AND ".join(f'"{name}" IS NOT NULL' for name in key)
        query = f"SELECT {columns} FROM rows_ WHERE {present} GROUP BY ALL HAVING count(*) > 1"
        self._repeated = pl.from_arrow(connection.sql(query).to_arrow_table()).with_columns(seen=False)  # type: ignore[union-attr,operator]

    def mask(self, raw: pl.DataFrame) -> pl.Series:
        """True for each row that repeats the key of an earlier row, in this chunk or before."""
        if self._repeated.is_empty():
            return pl.Series([False] * 1).new_from_index(0, raw.height)
        keys = raw.select(self.key).join(self._repeated, on=list(self.key), how="left", maintain_order="left")
        repeated = keys["seen"].is_not_null()
        first_here = keys.select(pl.struct(self.key).is_first_distinct()).to_series()
        again = repeated & (keys["seen"].fill_null(False) | ~first_here)
        here = keys.filter(repeated).select(self.key).unique().with_columns(here=True)
        self._repeated = self._repeated.join(here, on=list(self.key), how="left").select(
            *self.key, seen=pl.col("seen") | pl.col("here").fill_null(False)
        )
        return again


class Rejected:
    """Rows on their way to quarantine, held on disk: there may be as many as the table has."""

    def __init__(self, scratch: Path) -> None:
        self._path = scratch / f"{uuid.uuid4().hex}.rejected.parquet"
        self._writer: pq.ParquetWriter | None = None

    def add(self, rows: pl.DataFrame) -> None:
        """Put some rows aside."""
        plain = _with_plain_strings(rows.to_arrow())
        if self._writer is None:
            self._writer = pq.ParquetWriter(self._path, plain.schema)
        self._writer.write_table(plain)

    def move_to(self, platform: Platform, table: str) -> Snapshot | None:
        """Write them as the newest version of the quarantine table, if there are any."""
        if self._writer is None:
            return None
        self._writer.close()
        try:
            with pq.ParquetFile(self._path) as rows:
                stream = pa.RecordBatchReader.from_batches(rows.schema_arrow, rows.iter_batches())
                return platform.tables.write(table, stream)
        finally:
            self._path.unlink()


def validate_table(
    contract: TableContract,
    platform: Platform,
    *,
    model: str,
    table: str,
    bronze: Snapshot,
    reference: Snapshot | None = None,
    clock: datetime | None = None,
) -> TableResult:
    """Check one bronze snapshot; write valid rows to silver and the others, with their reasons, to quarantine.

    Args:
        contract: what the table must be.
        platform: where the tables are.
        model: the model's name.
        table: the table's name in the spec.
        bronze: the snapshot to check.
        reference: the champion's training snapshot of the same table, for distribution checks.
        clock: the moment freshness is measured from; now by default.

    Returns:
        All findings. Silver is None where no row was valid; the verdict is fail above `max_invalid_share`.
    """
    failures = Failures()
    schema = compile_schema(contract, bronze.columns)
    repeated = [
        RepeatedKeys(platform, bronze, key) for key in contract.unique if set(key) <= set(bronze.columns)
    ]
    names = [name for name in contract.kept_columns if name in bronze.columns]
    rejected = Rejected(platform.folder("scratch"))
    counts = {"valid": 0, "rows": 0, "invalid": 0}
    nulls = dict.fromkeys(names, 0)
    newest: list[Any] = []

    def valid_rows() -> Iterator[pa.RecordBatch]:
        with stage(f"validate {table}", total=bronze.rows) as advance:
            for batch in platform.tables.batches(bronze, names, rows=_CHUNK_ROWS):
                raw = pl.DataFrame(pl.from_arrow(batch))
                typed, found = check_chunk(raw, contract, schema, failures, counts["rows"])
                for keys in repeated:
                    mask = keys.mask(raw)
                    if mask.any():
                        failures.add(None, keys.name, mask, raw.select(keys.key), counts["rows"])
                        found[None, keys.name] = mask
                for name in names:
                    nulls[name] += typed[name].null_count()
                if contract.freshness is not None:
                    newest.append(typed[contract.freshness.column].max())
                counts["rows"] += raw.height
                if found:
                    bad = _any_of(list(found.values()))
                    rejected.add(_with_reasons(raw, found, bad))
                    counts["invalid"] += int(bad.sum())
                    typed = typed.filter(~bad)
                advance(raw.height)
                if typed.height:
                    counts["valid"] += typed.height
                    yield from typed.to_arrow().cast(silver_schema).to_batches()

    silver_schema = pa.schema([pa.field(name, arrow_type(contract.columns[name].type)) for name in names])
    silver: Snapshot | None = platform.tables.write(
        platform.table("silver", model, table), pa.RecordBatchReader.from_batches(silver_schema, valid_rows())
    )
    quarantine = rejected.move_to(platform, platform.table("quarantine", model, table))
    if counts["valid"] == 0:
        silver = None

    checks = [
        CheckResult(
            check=name,
            column=column,
            verdict=Verdict.PASS if _tolerated(count, counts["rows"], contract) else Verdict.FAIL,
            failures=count,
            samples=tuple(failures.samples[column, name]),
        )
        for (column, name), count in sorted(failures.counts.items(), key=lambda item: -item[1])
    ]
    checks += _table_checks(contract, counts, nulls, newest, clock or datetime.now(UTC))
    notes: list[str] = []
    if contract.distribution and reference is None:
        notes.append(
            f"{len(contract.distribution)} distribution checks not run: there is no champion to compare with"
        )
    elif contract.distribution and silver is not None and reference is not None:
        checks += [distribution_check(platform, check, reference, silver) for check in contract.distribution]
    return TableResult(
        table=table,
        bronze=bronze,
        silver=silver,
        quarantine=quarantine,
        rows=counts["rows"],
        invalid_rows=counts["invalid"],
        max_invalid_share=contract.max_invalid_share,
        verdict=overall([check.verdict for check in checks]),
        checks=tuple(checks),
        notes=tuple(notes),
    )


def _tolerated(failures: int, rows: int, contract: TableContract) -> bool:
    return failures <= contract.max_invalid_share * rows


def _any_of(masks: Sequence[pl.Series]) -> pl.Series:
    bad = masks[0]
    for mask in masks[1:]:
        bad = bad | mask
    return bad


def _with_reasons(
    raw: pl.DataFrame, found: Mapping[tuple[str | None, str], pl.Series], bad: pl.Series
) -> pl.DataFrame:
    reasons = pl.DataFrame({str(i): mask.filter(bad) for i, mask in enumerate(found.values())})
    texts = [f"{column}: {name}" if column else name for column, name in found]
    spelled = [pl.when(pl.col(str(i))).then(pl.lit(text)) for i, text in enumerate(texts)]
    return raw.filter(bad).with_columns(
        reasons.select(pl.concat_str(spelled, separator="; ", ignore_nulls=True).alias(REASONS)).to_series()
    )


def _with_plain_strings(table: pa.Table) -> pa.Table:
    """Polars gives large or view strings; tables hold plain ones."""
    fields = [
        f.with_type(pa.string()) if pa.types.is_large_string(f.type) or pa.types.is_string_view(f.type) else f
        for f in table.schema
    ]
    return table.cast(pa.schema(fields))


def _table_checks(
    contract: TableContract,
    counts: Mapping[str, int],
    nulls: Mapping[str, int],
    newest: Sequence[Any],
    clock: datetime,
) -> list[CheckResult]:
    rows = counts["rows"]
    share = counts["invalid"] / rows if rows else 1.0
    checks = [
        CheckResult(
            check="invalid_share",
            column=None,
            verdict=Verdict.PASS if share <= contract.max_invalid_share else Verdict.FAIL,
            value=share,
            threshold=contract.max_invalid_share,
            reason=f"{counts['invalid']:,} of {rows:,} rows failed at least one check",
        ),
        CheckResult(
            check="rows",
            column=None,
            verdict=Verdict.PASS
            if contract.rows.min <= counts["valid"]
            and (contract.rows.max is None or rows <= contract.rows.max)
            else Verdict.FAIL,
            value=counts["valid"],
            threshold=contract.rows.min,
            reason=f"{counts['valid']:,} valid rows; between {contract.rows.min:,} and "
            + (f"{contract.rows.max:,}" if contract.rows.max is not None else "any number")
            + " are expected",
        ),
    ]
    for name, missing in nulls.items():
        wanted = contract.columns[name].min_completeness
        if wanted is not None:
            complete = 1 - missing / rows if rows else 0.0
            checks.append(
                CheckResult(
                    check="completeness",
                    column=name,
                    verdict=Verdict.PASS if complete >= wanted else Verdict.FAIL,
                    failures=missing,
                    value=complete,
                    threshold=wanted,
                )
            )
    if contract.freshness is not None:
        checks.append(_freshness(contract, newest, clock))
    return checks


def _freshness(contract: TableContract, newest: Sequence[Any], clock: datetime) -> CheckResult:
    assert contract.freshness is not None
    seen = [value for value in newest if value is not None]
    limit = contract.freshness.max_age_days
    if not seen:
        age, reason = None, "no value to tell the age from"
    else:
        latest = max(seen)
        moment = (
            latest if isinstance(latest, datetime) else datetime.combine(latest, datetime.min.time(), UTC)
        )
        age = (clock - moment).total_seconds() / 86_400
        reason = f"the newest row is of {moment:%Y-%m-%d %H:%M} UTC, {age:.1f} days before {clock:%Y-%m-%d}"
    return CheckResult(
        check="freshness",
        column=contract.freshness.column,
        verdict=Verdict.PASS if age is not None and age <= limit else Verdict.FAIL,
        value=age,
        threshold=limit,
        reason=reason,
    )


def distribution_check(
    platform: Platform, check: DistributionCheck, reference: Snapshot, current: Snapshot
) -> CheckResult:
    """One column of `current` against `reference`, on a seeded sample of at most 100,000 rows of each."""
    if check.column not in reference.columns:
        value, reason = float("nan"), "the champion's training snapshot has no such column"
    else:
        samples = [_sample(platform, snapshot, check.column) for snapshot in (reference, current)]
        value = distance(samples[0], samples[1], check.test)
        reason = f"against {reference}"
    if np.isnan(value):
        verdict = Verdict.INCONCLUSIVE
    else:
        verdict = Verdict.PASS if value <= check.max else Verdict.FAIL
    return CheckResult(
        check=check.test,
        column=check.column,
        verdict=verdict,
        value=None if np.isnan(value) else value,
        threshold=check.max,
        reason=reason,
    )


def _sample(platform: Platform, snapshot: Snapshot, column: str) -> Any:
    values = platform.tables.read(snapshot, [column]).column(column)
    if len(values) > _DISTRIBUTION_ROWS:
        chosen = np.random.default_rng(0).choice(len(values), _DISTRIBUTION_ROWS, replace=False)
        values = values.take(pa.array(np.sort(chosen)))
    return values.to_pandas()


def require_contract(results: Sequence[TableResult], report: str = "") -> None:
    """Stop unless every table's contract passed.

    Raises:
        ContractBroken: names each table, its failed checks and counts.
    """
    lines = []
    for result in results:
        if result.verdict is Verdict.PASS:
            continue
        lines.append(
            f"table {result.table!r}: contract {result.verdict}, {result.invalid_rows:,} of {result.rows:,} rows invalid "
            f"({result.invalid_share:.2%}, at most {result.max_invalid_share:.2%} allowed)"
        )
        for check in result.checks:
            if check.verdict is not Verdict.PASS:
                where = f"{check.column}: " if check.column else ""
                count = f"{check.failures:,} rows" if check.failures else check.reason
                shown = f", e.g. row {check.samples[0].row}" if check.samples else ""
                lines.append(f"  {where}{check.check}: {count}{shown}")
    if lines:
        raise ContractBroken("\n".join([*lines, *([f"see {report}"] if report else [])]))
