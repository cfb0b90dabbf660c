"""Live inputs of a window against the contract that training data had to keep."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import polars as pl
import pyarrow as pa

from deployments.contract import TableContract
from deployments.spec import ModelSpec
from tasks.checks import Failures, check_chunk, compile_schema
from tasks.monitoring_record import MetricRow, Window
from tasks.verdict import Verdict

__all__ = ["Inputs", "input_rows", "look_at_inputs"]


@dataclass
class Inputs:
    """What was counted on the way through live rows: all, those that break any check, and by column."""

    rows: int = 0
    invalid: int = 0
    nulls: Counter[str] = field(default_factory=Counter)
    unseen: Counter[str] = field(default_factory=Counter)
    failures: Mapping[tuple[str | None, str], int] = field(default_factory=dict)


def look_at_inputs(
    spec: ModelSpec, batches: Iterable[pa.RecordBatch], known: Mapping[str, frozenset[str]]
) -> Inputs:
    """Check rows, batch by batch, against the feature contract; only counts are kept, and no values.

    Args:
        spec: the spec that the version was trained with.
        batches: live rows; each has the features that the log has.
        known: the categories that training data had, of the columns where that is known.
    """
    found, failures = Inputs(), Failures()
    contract = live_contract(spec)
    schema = None
    for batch in batches:
        raw = pl.DataFrame(pl.from_arrow(batch))
        schema = schema or compile_schema(contract, raw.columns)
        typed, masks = check_chunk(raw, contract, schema, failures, found.rows)
        if masks:
            found.invalid += int(pl.any_horizontal([pl.Series(mask) for mask in masks.values()]).pipe(_true))
        for name in typed.columns:
            found.nulls[name] += raw[name].null_count() + _nans(raw[name])
            if name in known:
                said = raw[name].cast(pl.String)
                found.unseen[name] += int((~said.is_in(list(known[name]))).fill_null(False).sum())
        found.rows += batch.num_rows
        failures.samples.clear()
    found.failures = dict(failures.counts)
    return found


def _true(mask: pl.Expr) -> int:
    return int(pl.select(mask).to_series().sum())


def _nans(column: pl.Series) -> int:
    return int(column.is_nan().sum()) if column.dtype.is_float() else 0


def live_contract(spec: ModelSpec) -> TableContract:
    """What a live row must be: the features' part of the contract, and the rules that speak of nothing else."""
    contract, features = spec.feature_contract, set(spec.features.columns)
    return TableContract(
        columns={name: column for name, column in contract.columns.items() if name in features},
        rules=tuple(
            rule for rule in contract.rules if set(pl.sql_expr(rule.expression).meta.root_names()) <= features
        ),
    )


def input_rows(
    found: Inputs, spec: ModelSpec, window: Window, version: str, *, allowed: float, minimum: int
) -> list[MetricRow]:
    """The share of rows that break the contract, which is judged, and what is behind it, which is told.

    Args:
        found: what was counted.
        spec: the spec that the version was trained with.
        window: where the rows are from.
        version: the version that they were sent to.
        allowed: the largest share of rows that may break the contract.
        minimum: with fewer rows there is no verdict.
    """

    def row(metric: str, value: float | None, subject: str = "", **more: object) -> MetricRow:
        return MetricRow.model_validate(
            {"version": version, "window": window, "kind": "inputs", "metric": metric, "subject": subject}
            | {"value": value, "rows": found.rows}
            | more
        )

    share = found.invalid / found.rows if found.rows else None
    if share is None or found.rows < minimum:
        verdict = Verdict.INCONCLUSIVE
        reason = f"{found.rows:,} rows with inputs in the window; {minimum:,} are needed"
    else:
        verdict = Verdict.PASS if share <= allowed else Verdict.FAIL
        worst = ", ".join(
            f"{column or 'rule'}: {check} ({count:,})" for (column, check), count in _most(found.failures)
        )
        reason = f"{found.invalid:,} of {found.rows:,} rows break the contract" + (
            f", most by {worst}" if worst else ""
        )
    rows = [row("invalid_share", share, threshold=allowed, verdict=verdict, reason=reason)]
    if not found.rows:
        return rows
    rows += [
        row(f"{check}_share", count / found.rows, column or check)
        for (column, check), count in sorted(found.failures.items(), key=lambda item: str(item[0]))
    ]
    rows += [
        row("null_share", found.nulls[name] / found.rows, name)
        for name in spec.features.columns
        if name in found.nulls
    ]
    rows += [row("unseen_share", count / found.rows, name) for name, count in sorted(found.unseen.items())]
    return rows


def _most(
    failures: Mapping[tuple[str | None, str], int], most: int = 3
) -> list[tuple[tuple[str | None, str], int]]:
    return sorted(failures.items(), key=lambda item: (-item[1], str(item[0])))[:most]
