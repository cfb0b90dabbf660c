"""Slices, fairness and importance over windows, as figures of the dashboard.

Rows of the monitoring table go in; names, what to see, figures and their keys come out. Of slices and features there
may be many, so each is a row of cells; a fairness gate is a line with its bound.
"""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from deployments.measures import MEASURES
from tasks.dashboard_plots import heat_strip, windows_plot
from tasks.monitoring_record import MetricRow, Window

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["group_plots", "important", "lagging"]

_JUST_BELOW = 1 - 1e-9


def group_plots(
    rows: Sequence[MetricRow], windows: Sequence[Window]
) -> "Iterator[tuple[str, str, Figure, *tuple[tuple[str, str], ...]]]":
    """A figure of slices, one for each fairness gate, and two of importance; those of which there are rows."""
    slices = heat_strip(windows, lagging(rows))
    if slices is not None:
        yield (
            "Slices",
            "how much worse than its window each slice is",
            slices,
            ("calm", "within its interval"),
            ("hot", "beyond it, up to four times"),
        )
    gates = dict.fromkeys((row.metric, row.subject) for row in rows if row.kind == "fairness")
    for metric, subject in gates:
        lines = {
            metric: [
                row for row in rows if (row.kind, row.metric, row.subject) == ("fairness", metric, subject)
            ]
        }
        if any(row.value is not None for row in lines[metric]):
            name = f"Fairness: {metric.replace('_', ' ')} by {subject}"
            figure = windows_plot(windows, lines, limit=metric, from_zero=True)
            yield name, "", figure, ("line", "on labels"), ("limit", "the gate's bound")
    features = heat_strip(windows, important(rows))
    if features is not None:
        yield (
            "What the model goes by",
            "each feature's permutation importance",
            features,
            ("calm", "as a part of the largest in its window"),
        )
    shifts = [row for row in rows if row.metric == "importance_shift" and row.value is not None]
    if shifts:
        figure = windows_plot(windows, {"importance_shift": shifts}, from_zero=True)
        yield "Shift of importance", "0: as in training; 1: nothing matters that did", figure


def lagging(rows: Sequence[MetricRow]) -> list[MetricRow]:
    """Slices with how much worse they are than the whole window, and, as a threshold, how far their interval reaches.

    The whole is the window's own metric; where that was not measured, the mean of the column's slices by their rows.
    """
    whole = {(row.window, row.metric): row.value for row in rows if row.kind == "quality"}
    slices = [row for row in rows if row.kind == "slice" and row.value is not None]
    found = []
    for row in slices:
        column = row.subject.partition("=")[0]
        of_column = [
            one for one in slices if one.window == row.window and one.subject.partition("=")[0] == column
        ]
        usual = whole.get((row.window, row.metric))
        if usual is None:
            usual = float(
                np.average([one.value for one in of_column], weights=[one.rows or 1 for one in of_column])
            )
        higher = MEASURES[row.metric].higher_is_better
        reach = row.high if higher else row.low
        if row.value is None or reach is None or reach == row.value:
            continue
        worse = usual - row.value if higher else row.value - usual
        found.append(row.model_copy(update={"value": max(worse, 0.0), "threshold": abs(reach - row.value)}))
    return found


def important(rows: Sequence[MetricRow]) -> list[MetricRow]:
    """Features with their importance and, as a threshold, the largest of their window."""
    features = [row for row in rows if row.kind == "importance" and row.subject and row.value is not None]
    largest: dict[Window, float] = {}
    for row in features:
        largest[row.window] = max(largest.get(row.window, 0.0), row.value or 0.0)
    return [
        row.model_copy(
            update={"value": max(row.value or 0.0, 0.0) * _JUST_BELOW, "threshold": largest[row.window]}
        )
        for row in features
        if largest[row.window] > 0
    ]
