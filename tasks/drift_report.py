"""One Evidently run over prepared columns: the statistics that decide, and the page that shows the very same ones.

Importing this module imports Evidently, which takes seconds: import it where it is used.

Evidently's statistics are taken as they are, but for those that would mislead, which are registered with it under
names of ours: its chi-square and G tests take the reference for the truth rather than for a sample, and alarm several
times as often as they say; its Mann-Whitney test sees a shift in one direction only; its "TVD" is a p-value; its
Wasserstein distance never divides by less than 0.001, and sees nothing in columns of small numbers.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from evidently import DataDefinition, Dataset, Report
from evidently.core.metric_types import (
    ColumnMetric,
    SingleValue,
    SingleValueCalculation,
    SingleValueMetric,
    render_widgets,
)
from evidently.core.report import Snapshot
from evidently.legacy.calculations.stattests.registry import (
    StatTest,
    get_registered_stattest,
    register_stattest,
)
from evidently.legacy.core import ColumnType
from evidently.legacy.renderers.html_widgets import group_widget, table_data
from evidently.metrics import ValueDrift
from scipy import stats

from deployments.monitoring import DriftPlan
from tasks.drift_columns import Column
from tasks.monitoring_record import MetricRow


@dataclass(frozen=True)
class Statistics:
    """Of one column: the p-value of having the same distribution on both sides, and how far the two are apart.

    Either is NaN where the statistic is not defined.
    """

    p: float
    distance: float


class Comparison:
    """What one run found."""

    def __init__(self, snapshot: Snapshot, metrics: dict[str, tuple[str, str]]) -> None:
        """`metrics` names the metrics of p-value and distance by column."""
        self._results, self._metrics = snapshot.metric_results, metrics

    @property
    def statistics(self) -> dict[str, Statistics]:
        """By the name of the column."""
        return {
            name: Statistics(self._results[p].value, self._results[distance].value)
            for name, (p, distance) in self._metrics.items()
        }

    def page(self, title: str, rows: Sequence[MetricRow]) -> str:
        """A page that needs nothing but itself: what was decided on top, and how each column looked below."""
        decided = table_data(
            title=title,
            column_names=["column", "metric", "value", "matters from", "verdict", "why"],
            data=[
                [
                    row.subject or "all",
                    row.metric,
                    "" if row.value is None else f"{row.value:.4g}",
                    "" if row.threshold is None else f"{row.threshold:.4g}",
                    row.verdict or "",
                    row.reason,
                ]
                for row in rows
            ],
        )
        drawn = [
            widget for _, distance in self._metrics.values() for widget in self._results[distance].widget
        ]
        page: str = render_widgets([group_widget(title="", widgets=[decided, *drawn])], as_iframe=False)
        return page


def compare(plan: DriftPlan, columns: Sequence[Column], *, draw: bool) -> Comparison:
    """Run Evidently over columns that have values on both sides; `draw` adds the pictures that a page needs.

    The same statistics come with and without pictures, which take most of the time.
    """
    metrics, named = [], {}
    for column in columns:
        kind = plan.numeric if column.numeric else plan.categorical
        distance_class = ValueDrift if draw else ColumnStatistic
        p = ColumnStatistic(column=column.name, method=_registered(kind.test))
        distance = distance_class(
            column=column.name, method=_registered(kind.distance), threshold=matters(plan, column)
        )
        metrics += [p, distance]
        named[column.name] = (p.metric_id, distance.metric_id)
    live, reference = (
        Dataset.from_pandas(
            # Answers have a reference of their own, which need not be as long: what is missing at the end is left out.
            pd.DataFrame({column.name: getattr(column, side).reset_index(drop=True) for column in columns}),
            data_definition=DataDefinition(
                numerical_columns=[column.name for column in columns if column.numeric],
                categorical_columns=[column.name for column in columns if not column.numeric],
            ),
        )
        for side in ("live", "reference")
    )
    return Comparison(Report(metrics).run(live, reference), named)


def matters(plan: DriftPlan, column: Column) -> float:
    """From which distance on a column has drifted; `plan.columns` speaks of values, not of missing ones."""
    kind = plan.numeric if column.numeric else plan.categorical
    return kind.matters if column.tells_missing else plan.columns.get(column.subject, kind.matters)


class ColumnStatistic(ColumnMetric, SingleValueMetric):  # type: ignore[misc]
    """One registered statistic of one column, without a picture."""

    method: str
    threshold: float = 0.05


class ColumnStatisticCalculation(SingleValueCalculation[ColumnStatistic]):  # type: ignore[misc]
    """How Evidently computes it: nulls left out, as it does for its own."""

    def calculate(
        self,
        context: object,  # noqa: ARG002
        current_data: Dataset,
        reference_data: Dataset | None,
    ) -> SingleValue:
        """The statistic as a single value."""
        assert reference_data is not None
        live, reference = (
            side.column(self.metric.column).data.dropna() for side in (current_data, reference_data)
        )
        kind = current_data.column(self.metric.column).type
        test = get_registered_stattest(self.metric.method, kind)
        return self.result(float(test(reference, live, kind, self.metric.threshold).drift_score))

    def display_name(self) -> str:
        """As a report would call it."""
        return f"{self.metric.method} of {self.metric.column}"


def _chisquare(reference: pd.Series, live: pd.Series, _: object, threshold: float) -> tuple[float, bool]:
    return _homogeneity(reference, live, "pearson", threshold)


def _g_test(reference: pd.Series, live: pd.Series, _: object, threshold: float) -> tuple[float, bool]:
    return _homogeneity(reference, live, "log-likelihood", threshold)


def _homogeneity(
    reference: pd.Series, live: pd.Series, statistic: str, threshold: float
) -> tuple[float, bool]:
    """The p-value of both samples coming from the same shares; 1 where there is one category alone."""
    counts = _counts(reference, live)
    if len(counts) < 2:
        return 1.0, False
    p = float(stats.chi2_contingency(counts, correction=False, lambda_=statistic).pvalue)
    return p, p < threshold


def _total_variation(
    reference: pd.Series, live: pd.Series, _: object, threshold: float
) -> tuple[float, bool]:
    """Half of the summed differences of shares: the part of rows that would have to change category."""
    shares = _counts(reference, live) / (len(reference), len(live))
    distance = float(np.abs(shares[:, 0] - shares[:, 1]).sum() / 2)
    return distance, distance >= threshold


def _counts(reference: pd.Series, live: pd.Series) -> np.ndarray:
    counts = pd.concat([reference.value_counts(), live.value_counts()], axis=1)
    return np.asarray(counts.fillna(0), dtype=np.float64)


def _mann_whitney(reference: pd.Series, live: pd.Series, _: object, threshold: float) -> tuple[float, bool]:
    p = float(stats.mannwhitneyu(reference, live, alternative="two-sided").pvalue)
    return p, p < threshold


def _wasserstein(reference: pd.Series, live: pd.Series, _: object, threshold: float) -> tuple[float, bool]:
    """The first Wasserstein distance in standard deviations of the reference; of both, where it is constant."""
    constant = reference.min() == reference.max()
    deviation = float(np.std(pd.concat([reference, live]) if constant else reference))
    moved = float(stats.wasserstein_distance(reference, live))
    distance = moved / deviation if moved else 0.0
    return distance, distance >= threshold


_PREFIX = "contender_"
_NUMBERS, _CATEGORIES = [ColumnType.Numerical], [ColumnType.Categorical]
_OURS = {
    "chisquare": ("two-sample chi-square p_value", _CATEGORIES, _chisquare),
    "g_test": ("two-sample G-test p_value", _CATEGORIES, _g_test),
    "TVD": ("total variation distance", _CATEGORIES, _total_variation),
    "mannw": ("two-sided Mann-Whitney p_value", _NUMBERS, _mann_whitney),
    "wasserstein": ("Wasserstein distance in standard deviations", _NUMBERS, _wasserstein),
}

for _name, (_title, _kinds, _function) in _OURS.items():
    register_stattest(
        StatTest(name=_PREFIX + _name, display_name=_title, allowed_feature_types=_kinds),
        default_impl=_function,
    )


def _registered(name: str) -> str:
    """What the plan's name is called in Evidently's registry."""
    return _PREFIX + name if name in _OURS else name
