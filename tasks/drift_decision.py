"""From statistics to a decision: several tests at once, and several windows before anybody is told."""

import math
from collections.abc import Iterable, Sequence

from deployments.monitoring import ALERT_EVENTS, AlertKind, DriftPlan
from tasks.monitoring_record import Alert, MetricRow, Window
from tasks.verdict import Verdict

_KINDS: tuple[AlertKind, ...] = ("drift", "prediction_drift")

ALIKE = 1.5
"""Windows count together where the longer one is at most so many times as long as the other.

Windows of a schedule are equally long; those that are given by their moments, as those of a life, are nearly so.
"""


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values adjusted so that any of them is below alpha by chance with a probability of at most alpha.

    Holm, A simple sequentially rejective multiple test procedure, 1979; the tests may depend on one another. One that
    is NaN stays NaN and counts as a test.
    """
    order = sorted(range(len(p_values)), key=lambda place: (math.isnan(p_values[place]), p_values[place]))
    adjusted = [math.nan] * len(p_values)
    largest = 0.0
    for rank, place in enumerate(order):
        if not math.isnan(p_values[place]):
            largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[place]))
            adjusted[place] = largest
    return adjusted


def alert_of(plan: DriftPlan, history: Sequence[Sequence[MetricRow]]) -> Alert | None:
    """The alert that the newest window gives rise to, if any.

    `history` has the rows of each window that was looked at, the oldest first: those of `drift`, or those of
    `prediction_drift`. A column is alerted to if it failed in the newest window and in `plan.needed` of the last
    `plan.windows`. Those are counted backwards from the newest, each ending where the one after it begins or
    earlier: windows that overlap share rows, and are not evidence twice. Windows of other versions do not count,
    since those were compared with another reference, nor do windows of another length (see `ALIKE`): a look at half a
    day neither confirms nor clears what weeks show. Inconclusive ones count as without drift.

    Raises:
        ValueError: the rows are of no such kind, or of both.
    """
    if not history or not history[-1]:
        return None
    kinds = {row.kind for rows in history for row in rows}
    kind = next((kind for kind in _KINDS if kinds == {kind}), None)
    if kind is None:
        raise ValueError(f"an alert is of rows of one kind of drift, not {', '.join(sorted(kinds))}")
    counted = list(_apart(history))[: plan.windows]
    newest = history[-1]
    times = {column: sum(column in _failed(rows) for rows in counted) for column in sorted(_failed(newest))}
    subjects = tuple(column for column, number in times.items() if number >= plan.needed)
    if not subjects:
        return None
    said = "; ".join(f"{column} in {times[column]}: {_worst(newest, column)}" for column in subjects)
    return Alert(
        kind=kind,
        event=ALERT_EVENTS[kind],
        reason=f"drift in the newest window and in {plan.needed} or more of the last {len(counted)}: {said}",
        subjects=subjects,
    )


def _apart(history: Sequence[Sequence[MetricRow]]) -> Iterable[Sequence[MetricRow]]:
    """The windows that count, the newest first."""
    newest = history[-1][0]
    last: Window | None = None
    for rows in filter(None, reversed(history)):
        first = rows[0]
        comparable = first.version == newest.version and _as_long(first.window, newest.window)
        if comparable and (last is None or first.window.end <= last.start):
            last = first.window
            yield rows


def _as_long(one: Window, other: Window) -> bool:
    shorter, longer = sorted((one.end - one.start, other.end - other.start))
    return longer <= ALIKE * shorter


def _failed(rows: Sequence[MetricRow]) -> set[str]:
    return {row.subject for row in rows if row.subject and row.verdict is Verdict.FAIL}


def _worst(rows: Sequence[MetricRow], column: str) -> str:
    """The measurement of a failed column that is furthest beyond what matters."""
    worst = max(
        (row for row in rows if row.subject == column and row.verdict is Verdict.FAIL),
        key=lambda row: (row.value or 0.0) / (row.threshold or math.inf),
    )
    return f"{worst.metric} {worst.value or 0.0:.3g} of {worst.threshold or 0.0:.3g}"
