"""Whether live inputs still look like the champion's training data, and its answers like those about its holdout.

Frames in, monitoring rows out. A column has drifted if its p-value, adjusted for the number of columns, is below the
plan's `alpha`, and its distance is at least what matters: the first says that it changed, the second that the change
is large enough for anybody to care.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from deployments.monitoring import DriftPlan
from deployments.spec import ModelSpec
from tasks.drift_columns import PREDICTION, Column, compared_features, feature_columns, prediction_columns
from tasks.drift_decision import alert_of, holm
from tasks.monitoring_record import Kind, MetricRow, Window, verdict_of
from tasks.unlearned import Unlearned
from tasks.verdict import Verdict

if TYPE_CHECKING:
    from tasks.drift_report import Statistics

__all__ = ["DRIFTED_COLUMNS", "alert_of", "drift_rows"]

DRIFTED_COLUMNS = "drifted_columns"
"""The metric of the row that speaks of all inputs together."""


def drift_rows(
    plan: DriftPlan,
    spec: ModelSpec,
    *,
    version: str,
    window: Window,
    reference: pd.DataFrame,
    live: pd.DataFrame,
    reference_rows: int,
    live_rows: int,
    html: Path | None,
    unlearned: Unlearned | None = None,
) -> list[MetricRow]:
    """What drifted in a window, against the training data of `version`.

    Both frames hold features by name, one row a request (a training row); of larger tables they are samples, and
    `reference_rows` and `live_rows` say how large those are. Where `live` has a column `prediction`, the answers are
    compared, too: probabilities of the positive class for binary models, as floats. Their reference is `unlearned`, or
    else the column `prediction` of `reference`, whose rows must then be none that the model learned.

    Kind `drift` has a row for each feature: metric, value and threshold are the plan's distance, the distance found
    and what matters; where numbers were missing on either side, a second row, `missing_<distance>`, compares how many.
    The row `drifted_columns`, with no subject, counts features. Kind `prediction_drift` has the subject `prediction`. A
    column with less than `plan.minimum_rows` values on either side is inconclusive; so is all of a smaller window,
    on which Evidently is not run.

    `html`, a file in a folder that exists, gets Evidently's page of the same run; it is not written where nothing
    could be compared.
    """
    at = _At(plan, version, window, reference_rows, live_rows)
    inputs = _Family(at, "drift")
    features = compared_features(plan, spec)
    if unlearned is None and PREDICTION in reference and PREDICTION not in features:
        unlearned = Unlearned(reference[PREDICTION], reference_rows)
    answers = _Family(
        replace(at, reference_rows=unlearned.rows) if unlearned else at,
        "prediction_drift",
    )
    predicted = unlearned is not None and PREDICTION in live and PREDICTION not in features
    short = next(
        (
            f"{name} has {len(frame):,} rows; drift is judged from {plan.minimum_rows:,} on"
            for name, frame in (("the window", live), ("the reference", reference))
            if len(frame) < plan.minimum_rows
        ),
        None,
    )
    if short:
        for name in features:
            inputs.give_up(name, short, len(live))
        if predicted:
            answers.give_up(PREDICTION, short, len(live))
        return [*inputs.rows, inputs.summary(short, len(live)), *answers.rows]
    for name in features:
        absent = [side for side, frame in (("window", live), ("reference", reference)) if name not in frame]
        if absent:
            inputs.give_up(name, f"the {' and the '.join(absent)} has no such column", len(live))
        else:
            inputs.take(feature_columns(spec, name, reference[name], live[name]))
    if unlearned is not None and predicted:
        answers.take(prediction_columns(spec, unlearned.said, live[PREDICTION]))
    comparable = [*inputs.columns, *answers.columns]
    if comparable:
        # Evidently takes seconds to import.
        from tasks.drift_report import compare, matters

        comparison = compare(plan, comparable, draw=html is not None)
        for family in (inputs, answers):
            family.judge(comparison.statistics, {column.name: matters(plan, column) for column in comparable})
    rows = [*inputs.rows, inputs.summary("no input was compared", len(live)), *answers.rows]
    if comparable and html is not None:
        title = (
            f"Drift of version {version}, {window.start:%Y-%m-%d %H:%M} to {window.end:%Y-%m-%d %H:%M} {window.end:%Z}"
            " (what the pictures below call detected is the distance alone)"
        )
        html.write_text(comparison.page(title, rows), encoding="utf-8")
    return rows


@dataclass(frozen=True)
class _At:
    """What all rows of one call have in common."""

    plan: DriftPlan
    version: str
    window: Window
    reference_rows: int
    live_rows: int

    def row(self, kind: Kind, metric: str, subject: str, rows: int, **found: object) -> MetricRow:
        return MetricRow.model_validate(
            {
                "version": self.version,
                "window": self.window,
                "kind": kind,
                "metric": metric,
                "subject": subject,
                "rows": rows,
                **found,
            }
        )

    def metric(self, column: Column) -> str:
        distance = (self.plan.numeric if column.numeric else self.plan.categorical).distance
        return f"missing_{distance}" if column.tells_missing else distance


@dataclass
class _Family:
    """Columns whose p-values are adjusted for one another, and the rows that come of them."""

    at: _At
    kind: Kind
    columns: list[Column] = field(default_factory=list)
    rows: list[MetricRow] = field(default_factory=list)

    def take(self, columns: Iterable[Column]) -> None:
        """Keep those that can be compared; say of the others why not."""
        for column in columns:
            least = self.at.plan.minimum_rows
            counts = {"the window": column.live.count(), "the reference": column.reference.count()}
            metric, rows = self.at.metric(column), len(column.live)
            if not any(counts.values()):
                reason = "no row has a value, in the window or in the reference"
                self.rows.append(
                    self.at.row(self.kind, metric, column.subject, rows, verdict=Verdict.PASS, reason=reason)
                )
            elif min(counts.values()) < least:
                few = min(counts, key=lambda side: counts[side])
                reason = f"{few} has {counts[few]:,} values; drift is judged from {least:,} on"
                self.give_up(column.subject, reason, rows, metric)
            else:
                self.columns.append(column)

    def give_up(self, subject: str, reason: str, rows: int, metric: str = "") -> None:
        self.rows.append(
            self.at.row(
                self.kind,
                metric or "distance",
                subject,
                rows,
                verdict=Verdict.INCONCLUSIVE,
                reason=reason,
            )
        )

    def judge(self, statistics: dict[str, "Statistics"], matters: dict[str, float]) -> None:
        """A row for each column, and the order of columns as it was."""
        found = [statistics[column.name] for column in self.columns]
        adjusted = holm([one.p for one in found])
        for column, one, p in zip(self.columns, found, adjusted, strict=True):
            threshold = matters[column.name]
            known = math.isfinite(one.distance) and not math.isnan(p)
            drifted = known and p < self.at.plan.alpha and one.distance >= threshold
            reason = (
                f"p {one.p:.2g}, {p:.2g} adjusted for {len(found)} {'test' if len(found) == 1 else 'tests'}; "
                f"{len(column.live):,} of {self.at.live_rows:,} rows against {len(column.reference):,} of "
                f"{self.at.reference_rows:,}"
                if known
                else "the statistic is not defined for these values"
            )
            verdict = Verdict.FAIL if drifted else Verdict.PASS if known else Verdict.INCONCLUSIVE
            self.rows.append(
                self.at.row(
                    self.kind,
                    self.at.metric(column),
                    column.subject,
                    len(column.live),
                    value=one.distance if known else None,
                    threshold=threshold,
                    verdict=verdict,
                    reason=reason,
                )
            )

    def summary(self, otherwise: str, rows: int) -> MetricRow:
        """The row of all features; `otherwise` is the reason where there is none to give."""
        drifted = _subjects(self.rows, Verdict.FAIL)
        unknown = _subjects(self.rows, Verdict.INCONCLUSIVE)
        judged = _subjects(self.rows, Verdict.FAIL, Verdict.PASS)
        said = [f"{len(drifted)} of {len(_subjects(self.rows, *Verdict))} features drifted"]
        said += [f"drifted: {', '.join(drifted)}"] if drifted else []
        said += [f"inconclusive: {', '.join(unknown)}"] if unknown else []
        return self.at.row(
            self.kind,
            DRIFTED_COLUMNS,
            "",
            rows,
            value=float(len(drifted)) if judged else None,
            threshold=1.0,
            verdict=verdict_of(self.rows),
            reason="; ".join(said) if judged else otherwise,
        )


def _subjects(rows: Sequence[MetricRow], *verdicts: Verdict) -> list[str]:
    return list(dict.fromkeys(row.subject for row in rows if row.verdict in verdicts))
