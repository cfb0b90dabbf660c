"""Validate: a bronze snapshot against its contract; valid rows become silver, the others go to quarantine.

The declaration is compiled to a pandera schema and run on polars chunks, lazily, so that every failure is
found; what cannot be seen in one chunk (keys, row counts, freshness, distribution) is checked over the whole
table.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from deployments.contract import ColumnType, DistributionCheck, Freshness, TableContract
from deployments.declared import Declared
from deployments.errors import BadInputError
from platforms.platform import Platform
from platforms.scratch import scratch_folder
from platforms.snapshot import Snapshot
from tasks.arrow_types import arrow_type
from tasks.checks import Failures, RowCheck, Sample, check_chunk, compile_schema
from tasks.coercion import POLARS, coerce
from tasks.keys import RepeatedKeys
from tasks.progress import stage
from tasks.verdict import Verdict, overall

__all__ = [
    "REASONS",
    "CheckResult",
    "ContractBroken",
    "Failures",
    "Sample",
    "TableResult",
    "check_chunk",
    "coerce",
    "compile_schema",
    "distribution_check",
    "require_contract",
    "validate_table",
]

REASONS = "contract_failures"
"""The column that quarantined rows have on top of their own."""

_CHUNK_ROWS = 262_144
_CHUNK_CELLS = 8_000_000
"""Wide tables are checked in shorter chunks, so that a chunk's memory does not grow with their width."""
_DISTRIBUTION_ROWS = 100_000
_ARROW_OF = {POLARS[kind]: arrow_type(kind) for kind in ColumnType}


class ContractBroken(BadInputError):  # noqa: N818  (a state of the data, as the command line reports it)
    """The data is not what its contract says; the results tell where."""


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


class Rejected:
    """Rows on their way to quarantine, held on disk: there may be as many as the table has."""

    def __init__(self, scratch: Path) -> None:
        self._path = scratch / "rejected.parquet"
        self._writer: pq.ParquetWriter | None = None

    def add(self, rows: pl.DataFrame) -> None:
        """Put some rows aside."""
        plain = rows.to_arrow()
        if self._writer is None:
            self._writer = pq.ParquetWriter(self._path, plain.schema)
        self._writer.write_table(plain)

    def move_to(self, platform: Platform, table: str) -> Snapshot | None:
        """Write them as the newest version of the quarantine table, if there are any."""
        if self._writer is None:
            return None
        self._writer.close()
        with pq.ParquetFile(self._path) as rows:
            stream = pa.RecordBatchReader.from_batches(rows.schema_arrow, rows.iter_batches())
            return platform.tables.write(table, stream)


@dataclass
class _Tally:
    """What was counted on the way through a table: nulls in all rows, the newest moment in valid ones."""

    rows: int = 0
    invalid: int = 0
    nulls: Counter[str] = field(default_factory=Counter)
    newest: date | datetime | None = None

    @property
    def valid(self) -> int:
        return self.rows - self.invalid


class _NothingValidError(Exception):
    """No row passed, so there is nothing to write."""


class _Pass:
    """One way through a bronze table: gives the valid rows, puts the others aside, and counts as it goes."""

    def __init__(
        self, contract: TableContract, platform: Platform, bronze: Snapshot, clock: datetime, scratch: Path
    ) -> None:
        self.names = [name for name in contract.kept_columns if name in bronze.columns]
        self.failures = Failures()
        self.rejected = Rejected(scratch)
        self.tally = _Tally()
        self._contract = contract
        self._platform = platform
        self._bronze = bronze
        self._clock = clock
        self._schema = compile_schema(contract, bronze.columns)

    def valid(self, table: str) -> pa.RecordBatchReader:
        """The rows that pass every row-level check, in the contract's types."""
        columns = self._contract.columns
        stored = pa.schema([pa.field(name, arrow_type(columns[name].type)) for name in self.names])
        return pa.RecordBatchReader.from_batches(stored, self._batches(table))

    def _batches(self, table: str) -> Iterator[pa.RecordBatch]:
        keys = [
            RepeatedKeys(self._platform, self._bronze, self._contract, key)
            for key in self._contract.unique
            if set(key) <= set(self.names)
        ]
        rows = min(_CHUNK_ROWS, max(1, _CHUNK_CELLS // max(1, len(self.names))))
        with stage(f"validate {table}", total=self._bronze.rows) as advance:
            for batch in self._platform.tables.batches(self._bronze, self.names, rows=rows):
                valid = self._check(batch, keys)
                advance(batch.num_rows)
                if valid.num_rows:
                    yield valid
        if self.tally.valid == 0:
            raise _NothingValidError

    def _check(self, batch: pa.RecordBatch, keys: Sequence[RepeatedKeys]) -> pa.RecordBatch:
        """The valid rows of a batch."""
        raw, tally = pl.DataFrame(pl.from_arrow(batch)), self.tally
        typed, found = check_chunk(raw, self._contract, self._schema, self.failures, tally.rows)
        for key in keys:
            mask = key.mask(typed)
            if mask is not None:
                self.failures.add(None, key.name, mask, raw.select(key.key), tally.rows)
                found[None, key.name] = mask
        tally.nulls.update({name: typed[name].null_count() for name in self.names})
        tally.rows += raw.height
        valid = _arrow(batch, raw, typed)
        if found:
            bad = _any_of(list(found.values()))
            self.rejected.add(_with_reasons(raw, found, bad))
            tally.invalid += int(bad.sum())
            valid, typed = valid.filter((~bad).to_arrow()), typed.filter(~bad)
        fresh = self._contract.freshness
        if fresh is not None and fresh.column in self.names:
            _note_newest(tally, typed[fresh.column], self._clock)
        return valid


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
    """Check one bronze snapshot; valid rows go to silver, the others to quarantine with their reasons.

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

    Raises:
        BadInputError: the contract asks for something that cannot be checked.
    """
    clock = clock or datetime.now(UTC)
    _expect_checkable(contract)
    with scratch_folder(platform.folder("scratch")) as scratch:
        checked = _Pass(contract, platform, bronze, clock, scratch)
        silver: Snapshot | None
        try:
            silver = platform.tables.write(platform.table("silver", model, table), checked.valid(table))
        except _NothingValidError:
            silver = None
        quarantine = checked.rejected.move_to(platform, platform.table("quarantine", model, table))
    tally = checked.tally
    checks = [
        CheckResult(check="present", column=name, verdict=Verdict.FAIL, reason="the table has no such column")
        for name in contract.kept_columns
        if name not in checked.names
    ]
    checks += _row_checks(contract, checked.failures, tally)
    checks += _table_checks(contract, tally, checked.names, clock)
    notes: list[str] = []
    if contract.distribution and reference is None:
        notes.append(
            f"{len(contract.distribution)} distribution checks not run: there is no champion to compare with"
        )
    elif reference is not None and silver is not None:
        checks += [distribution_check(platform, check, reference, silver) for check in contract.distribution]
    return TableResult(
        table=table,
        bronze=bronze,
        silver=silver,
        quarantine=quarantine,
        rows=tally.rows,
        invalid_rows=tally.invalid,
        max_invalid_share=contract.max_invalid_share,
        verdict=overall([check.verdict for check in checks]),
        checks=tuple(checks),
        notes=tuple(notes),
    )


def _expect_checkable(contract: TableContract) -> None:
    moments = {ColumnType.TIMESTAMP, ColumnType.DATE}
    if contract.freshness is not None:
        fresh = contract.freshness.column
        if contract.columns[fresh].type not in moments:
            raise BadInputError(
                f"contract: freshness: {fresh!r} is of type {contract.columns[fresh].type}, not a time"
            )
    for check in contract.distribution:
        kind = contract.columns[check.column].type
        if check.test == "ks" and kind not in moments | {ColumnType.INTEGER, ColumnType.NUMBER}:
            raise BadInputError(
                f"contract: distribution: {check.column!r} is of type {kind}; ks compares numbers and times"
            )


def _arrow(batch: pa.RecordBatch, raw: pl.DataFrame, typed: pl.DataFrame) -> pa.RecordBatch:
    """The typed rows as Arrow; columns that were already what they should be are not copied."""
    columns = []
    for column, given, taken in zip(batch.columns, raw, typed, strict=True):
        kind = _ARROW_OF[taken.dtype]
        same = column.type == kind and given.null_count() == taken.null_count()
        columns.append(column if same else taken.to_arrow().cast(kind))
    return pa.RecordBatch.from_arrays(columns, names=batch.schema.names)


def _note_newest(tally: _Tally, moments: pl.Series, clock: datetime) -> None:
    """Remember the newest moment that is not after the clock: a row from the future makes no table fresh."""
    limit = clock if isinstance(moments.dtype, pl.Datetime) else clock.astimezone(UTC).date()
    newest: Any = moments.filter((moments <= limit).fill_null(False)).max()
    if newest is not None and (tally.newest is None or newest > tally.newest):
        tally.newest = newest


def _row_checks(contract: TableContract, failures: Failures, tally: _Tally) -> list[CheckResult]:
    return [
        CheckResult(
            check=name,
            column=column,
            verdict=_at_most(count / tally.rows, contract.max_invalid_share),
            failures=count,
            samples=tuple(failures.samples[column, name]),
        )
        for (column, name), count in sorted(
            failures.counts.items(), key=lambda item: (-item[1], item[0][0] or "", item[0][1])
        )
    ]


def _at_most(value: float, limit: float) -> Verdict:
    return Verdict.PASS if value <= limit else Verdict.FAIL


def _any_of(masks: Sequence[pl.Series]) -> pl.Series:
    bad = masks[0]
    for mask in masks[1:]:
        bad = bad | mask
    return bad


def _with_reasons(raw: pl.DataFrame, found: Mapping[RowCheck, pl.Series], bad: pl.Series) -> pl.DataFrame:
    reasons = pl.DataFrame({str(i): mask.filter(bad) for i, mask in enumerate(found.values())})
    texts = [f"{column}: {name}" if column else name for column, name in found]
    spelled = [pl.when(pl.col(str(i))).then(pl.lit(text)) for i, text in enumerate(texts)]
    return raw.filter(bad).with_columns(
        reasons.select(pl.concat_str(spelled, separator="; ", ignore_nulls=True).alias(REASONS)).to_series()
    )


def _table_checks(
    contract: TableContract, tally: _Tally, names: Sequence[str], clock: datetime
) -> list[CheckResult]:
    rows, bounds = tally.rows, contract.rows
    share = tally.invalid / rows if rows else 1.0
    enough = bounds.min <= tally.valid and (bounds.max is None or rows <= bounds.max)
    most = f"{bounds.max:,}" if bounds.max is not None else "any number of"
    checks = [
        CheckResult(
            check="invalid_share",
            column=None,
            verdict=_at_most(share, contract.max_invalid_share),
            value=share,
            threshold=contract.max_invalid_share,
            reason=f"{tally.invalid:,} of {rows:,} rows failed at least one check",
        ),
        CheckResult(
            check="rows",
            column=None,
            verdict=Verdict.PASS if enough else Verdict.FAIL,
            value=tally.valid,
            threshold=bounds.min,
            reason=f"{tally.valid:,} of {rows:,} rows are valid; {bounds.min:,} to {most} are expected",
        ),
    ]
    for name in names:
        wanted = contract.columns[name].min_completeness
        if wanted is not None:
            missing = tally.nulls[name]
            complete = (rows - missing) / rows if rows else 0.0
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
        checks.append(_freshness(contract.freshness, tally.newest, clock))
    return checks


def _freshness(freshness: Freshness, newest: Any, clock: datetime) -> CheckResult:
    """The age of the newest valid row; no row that is not after the clock has no age, and fails."""
    age, reason = None, "no valid row has a value that is not after the clock"
    if newest is not None:
        moment = (
            newest if isinstance(newest, datetime) else datetime.combine(newest, datetime.min.time(), UTC)
        )
        age = (clock - moment).total_seconds() / 86_400
        reason = f"the newest row is of {moment:%Y-%m-%d %H:%M} UTC, {age:.1f} days before {clock:%Y-%m-%d}"
    return CheckResult(
        check="freshness",
        column=freshness.column,
        verdict=Verdict.FAIL if age is None else _at_most(age, freshness.max_age_days),
        value=age,
        threshold=freshness.max_age_days,
        reason=reason,
    )


def distribution_check(
    platform: Platform, check: DistributionCheck, reference: Snapshot, current: Snapshot
) -> CheckResult:
    """One column of `current` against `reference`, on a seeded sample of at most 100,000 rows of each."""
    from tasks.distribution import distance

    value, reason = float("nan"), f"against {reference}"
    if check.column not in reference.columns:
        reason = "the champion's training snapshot has no such column"
    elif check.column not in current.columns:
        reason = "the table has no such column"
    else:
        samples = [_sample(platform, snapshot, check.column) for snapshot in (reference, current)]
        value = distance(samples[0], samples[1], check.test)
        if np.isnan(value):
            reason = f"no values to compare with {reference}"
    return CheckResult(
        check=check.test,
        column=check.column,
        verdict=Verdict.INCONCLUSIVE if np.isnan(value) else _at_most(value, check.max),
        value=None if np.isnan(value) else value,
        threshold=check.max,
        reason=reason,
    )


def _sample(platform: Platform, snapshot: Snapshot, column: str) -> Any:
    """Rows chosen beforehand and taken as they stream by; dates as times, so that they can be measured."""
    chosen = np.arange(snapshot.rows)
    if snapshot.rows > _DISTRIBUTION_ROWS:
        random = np.random.default_rng(0)
        chosen = np.sort(random.choice(snapshot.rows, _DISTRIBUTION_ROWS, replace=False, shuffle=False))
    taken, before = [], 0
    for batch in platform.tables.batches(snapshot, [column]):
        after = before + batch.num_rows
        here = chosen[np.searchsorted(chosen, before) : np.searchsorted(chosen, after)] - before
        taken.append(batch.column(0).take(pa.array(here)))
        before = after
    values = pa.chunked_array(taken)
    return (values.cast(pa.timestamp("us")) if pa.types.is_date(values.type) else values).to_pandas()


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
            f"table {result.table!r}: contract {result.verdict}, {result.invalid_rows:,} of {result.rows:,} "
            f"rows invalid ({result.invalid_share:.2%}, at most {result.max_invalid_share:.2%} allowed)"
        )
        # Those within the tolerance too: it may be their sum that is not.
        for check in result.failed:
            where = f"{check.column}: " if check.column else ""
            count = f"{check.failures:,} rows" if check.failures else check.reason
            shown = f", e.g. row {check.samples[0].row}" if check.samples else ""
            lines.append(f"  {where}{check.check}: {count}{shown}")
    if lines:
        raise ContractBroken("\n".join([*lines, *([f"see {report}"] if report else [])]))
