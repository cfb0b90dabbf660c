"""Plots of a model over time: metrics of windows, a heat strip of drift, champions and releases, costs by day.

Rows of the monitoring table, release records and sums of costs go in; figures that belong to no window come out.
Windows stand side by side, evenly, in the order of their ends.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any

from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from tasks.monitoring_record import MetricRow, Window
from tasks.verdict import Verdict

__all__ = [
    "MOST_COLUMNS",
    "MOST_WINDOWS",
    "Band",
    "Mark",
    "Reign",
    "cost_plot",
    "flow_colour",
    "heat_strip",
    "release_plot",
    "windows_plot",
]

MOST_WINDOWS = 60
MOST_COLUMNS = 30

_INK, _SOFT, _PALE = "#22313f", "#57656f", "#ced4da"
_LINE, _SECOND, _ESTIMATE = "#0b7285", "#8d6e63", "#6741d9"
_BAND, _LIMIT = "#dbe7ea", "#c92a2a"
_VERDICTS = {Verdict.PASS: "#2b8a3e", Verdict.FAIL: "#c92a2a", Verdict.INCONCLUSIVE: "#d08700"}
_SHAPES = {Verdict.PASS: "o", Verdict.FAIL: "X", Verdict.INCONCLUSIVE: "D"}
_FLOWS = ("#0b7285", "#8d6e63", "#6741d9", "#d08700", "#2b8a3e", "#868e96")
_REIGNS = ("#cfe6ea", "#e6ddd9")
_ENDS = {"promoted": ("^", "#2b8a3e"), "rolled back": ("X", "#c92a2a"), "rejected": ("s", "#c92a2a")}
_WIDTH = 10.4


@dataclass(frozen=True)
class Band:
    """The interval that a version's metric had on its holdout."""

    low: float
    high: float


@dataclass(frozen=True)
class Reign:
    """How long a version was champion."""

    version: str
    begin: datetime
    end: datetime


@dataclass(frozen=True)
class Mark:
    """How something ended for a version, and when: promoted, rolled back, rejected, drilled."""

    at: datetime
    version: str
    outcome: str


# Over windows -----------------------------------------------------------------------------------------------


def windows_plot(
    windows: Sequence[Window],
    lines: Mapping[str, Sequence[MetricRow]],
    *,
    bands: Mapping[str, Band] | None = None,
    limit: str = "",
    scale: float = 1.0,
    unit: str = "",
    bars: bool = False,
    from_zero: bool = False,
) -> Figure:
    """Metrics over windows, with the interval and verdict of each, where it has them.

    Args:
        windows: all windows to be shown, the oldest first.
        lines: rows of each line by its name, drawn in this order; a name that begins with `estimated` is dashed.
        bands: for each version an interval to compare with, drawn behind its windows.
        limit: which line's thresholds are drawn.
        scale: what values are multiplied by.
        unit: what follows numbers at the axis.
        bars: whether values are bars from zero.
        from_zero: whether the axis begins at zero.
    """
    figure, panel = _panel(2.6 if not bars else 1.7)
    places = {window: place for place, window in enumerate(windows)}
    low, high = math.inf, -math.inf

    def seen(*values: float | None) -> None:
        nonlocal low, high
        known = [scale * value for value in values if value is not None and math.isfinite(value)]
        low, high = min([low, *known]), max([high, *known])

    versions = {row.window: row.version for rows in lines.values() for row in rows}
    for place, window in enumerate(windows):
        band = (bands or {}).get(versions.get(window, ""))
        if band is not None:
            edges = [scale * band.low, scale * band.high]
            panel.fill_between([place - 0.5, place + 0.5], *edges, color=_BAND, linewidth=0, zorder=1)
            seen(band.low, band.high)
    for number, (name, rows) in enumerate(lines.items()):
        known = [row for row in rows if row.window in places and row.value is not None]
        ordered = sorted(known, key=lambda row: places[row.window])
        xs = [places[row.window] for row in ordered]
        ys = [scale * (row.value or 0.0) for row in ordered]
        estimate = name.startswith("estimated")
        colour = _ESTIMATE if estimate else (_LINE, _SECOND)[min(number, 1)]
        seen(*(row.value for row in ordered))
        if bars:
            panel.bar(xs, ys, width=0.6, color=colour, alpha=0.85, linewidth=0)
            continue
        panel.plot(xs, ys, color=colour, linewidth=1.8, linestyle=(0, (4, 2)) if estimate else "-", zorder=3)
        for row, x, y in zip(ordered, xs, ys, strict=True):
            if row.low is not None and row.high is not None:
                panel.plot(
                    [x, x], [scale * row.low, scale * row.high], color=colour, linewidth=1.2, zorder=2.5
                )
                seen(row.low, row.high)
            _verdict_mark(panel, x, y, row.verdict, colour)
        if name == limit:
            for row, x in zip(ordered, xs, strict=True):
                if row.threshold is not None:
                    y = scale * row.threshold
                    panel.plot([x - 0.5, x + 0.5], [y, y], color=_LIMIT, linewidth=1.3, linestyle=(0, (3, 2)))
                    seen(row.threshold)
    _versions(panel, windows, [row for rows in lines.values() for row in rows])
    _window_axis(panel, windows)
    room = 0.12 * (high - low) or 0.1 * abs(high) or 1.0
    if math.isfinite(low) and math.isfinite(high):
        panel.set_ylim(0 if bars or from_zero else low - room, high + room)
    panel.yaxis.set_major_locator(MaxNLocator(4))
    panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.4g}{unit}"))
    return figure


def _verdict_mark(panel: Any, x: float, y: float, verdict: Verdict | None, colour: str) -> None:
    if verdict is None:
        panel.plot([x], [y], marker="o", markersize=3.5, color=colour, linewidth=0, zorder=4)
        return
    panel.plot(
        [x],
        [y],
        marker=_SHAPES[verdict],
        markersize=8 if verdict is Verdict.FAIL else 6.5,
        color=_VERDICTS[verdict],
        markeredgecolor="white",
        markeredgewidth=0.8,
        linewidth=0,
        zorder=5,
    )


def _versions(panel: Any, windows: Sequence[Window], rows: Sequence[MetricRow]) -> None:
    """A thin line where another version is judged, with its name."""
    by_window = {row.window: row.version for row in rows}
    before = None
    for place, window in enumerate(windows):
        version = by_window.get(window)
        if version is None or version == before:
            continue
        if before is not None:
            panel.axvline(place - 0.5, color=_SOFT, linewidth=0.9, linestyle=(0, (1, 2)), zorder=1.5)
        panel.text(
            place - 0.45, 1.02, f"v{version}", transform=panel.get_xaxis_transform(), fontsize=8, color=_SOFT
        )
        before = version


def heat_strip(windows: Sequence[Window], rows: Sequence[MetricRow]) -> Figure | None:
    """Drift by column and window: the distance as a part of what matters, a cross where the column drifted.

    The columns that moved most come first, and no more than `MOST_COLUMNS`; None where no row has a distance.
    """
    places = {window: place for place, window in enumerate(windows)}
    ratios: dict[str, dict[int, tuple[float, Verdict | None]]] = {}
    for row in rows:
        if not row.subject or row.window not in places or row.value is None or not row.threshold:
            continue
        ratios.setdefault(row.subject, {})[places[row.window]] = (row.value / row.threshold, row.verdict)
    if not ratios:
        return None
    worst = sorted(ratios, key=lambda name: (-max(ratio for ratio, _ in ratios[name].values()), name))
    shown = worst[:MOST_COLUMNS]
    height = 0.24 * len(shown) + 0.75
    figure = Figure(figsize=(_WIDTH, height), dpi=100)
    left = 0.3 + 0.074 * min(30, max(map(len, shown)))
    figure.subplots_adjust(
        left=left / _WIDTH, right=1 - 0.1 / _WIDTH, bottom=0.46 / height, top=1 - 0.24 / height
    )
    panel = figure.subplots()
    for y, name in enumerate(shown):
        for x, (ratio, verdict) in ratios[name].items():
            panel.add_patch(_cell(x, y, _heat(ratio)))
            if verdict is Verdict.FAIL:
                panel.plot([x], [y], marker="X", markersize=6, color="white", linewidth=0)
            elif verdict is Verdict.INCONCLUSIVE:
                panel.text(x, y, "?", ha="center", va="center", fontsize=8, color=_INK)
    panel.set_ylim(len(shown) - 0.5, -0.5)
    panel.set_yticks(range(len(shown)), [_short(name) for name in shown])
    _versions(panel, windows, rows)
    _style(panel)
    _window_axis(panel, windows)
    panel.spines[["left", "bottom"]].set_visible(False)
    panel.grid(visible=False)
    panel.tick_params(axis="y", length=0, labelcolor=_INK, labelsize=8.5)
    return figure


def _cell(x: int, y: int, colour: str) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle((x - 0.47, y - 0.44), 0.94, 0.88, color=colour, linewidth=0)


def _heat(ratio: float) -> str:
    """Pale up to what matters, then from orange to a dark red at four times that."""
    from matplotlib.colors import LinearSegmentedColormap, to_hex

    calm = LinearSegmentedColormap.from_list("calm", ["#eef3f4", "#bcd3d8"])
    hot = LinearSegmentedColormap.from_list("hot", ["#f0a35e", "#d9480f", "#8a1c1c"])
    return to_hex(calm(max(ratio, 0.0)) if ratio < 1 else hot(min((ratio - 1) / 3, 1.0)))


def _short(name: str) -> str:
    return name if len(name) <= 30 else f"{name[:14]}…{name[-15:]}"


def _window_axis(panel: Any, windows: Sequence[Window]) -> None:
    panel.set_xlim(-0.6, max(len(windows), 4) - 0.4)
    step = max(1, math.ceil(len(windows) / 9))
    ticks = list(range(len(windows) - 1, -1, -step))[::-1]
    panel.set_xticks(ticks, [_ends(windows[place], windows) for place in ticks])


def _ends(window: Window, windows: Sequence[Window]) -> str:
    """The end of a window, as precisely as windows of one day differ."""
    ends = [one.end.astimezone(UTC) for one in windows]
    end = window.end.astimezone(UTC)
    if all(one == one.replace(hour=0, minute=0, second=0, microsecond=0) for one in ends):
        return f"{end:%d %b}"
    closest = min((after - one for one, after in itertools.pairwise(ends)), default=timedelta(hours=1))
    return f"{end:%d %b}\n{end:%H:%M:%S}" if closest < timedelta(minutes=1) else f"{end:%d %b}\n{end:%H:%M}"


# Over time --------------------------------------------------------------------------------------------------


def release_plot(reigns: Sequence[Reign], marks: Sequence[Mark]) -> Figure:
    """Which version was champion when, as bands, and how releases ended, as marks."""
    figure, panel = _panel(1.75)
    for place, reign in enumerate(reigns):
        panel.axvspan(reign.begin, reign.end, ymin=0.0, ymax=0.5, color=_REIGNS[place % 2], linewidth=0)
    begin = min([one.begin for one in reigns] + [one.at for one in marks])
    end = max([one.end for one in reigns] + [one.at for one in marks])
    whole = max((end - begin).total_seconds(), 1.0)
    for reign in reigns:
        part = (reign.end - reign.begin).total_seconds() / whole
        label = f"v{reign.version}"
        if part > 0.012 * len(label):
            middle = reign.begin + (reign.end - reign.begin) / 2
            panel.text(middle, 0.25, label, ha="center", va="center", fontsize=9, color=_INK)
    labelled: datetime | None = None
    for mark in sorted(marks, key=lambda one: one.at):
        shape, colour = _ENDS.get(mark.outcome, ("d", _SOFT))
        panel.plot([mark.at], [0.68], marker=shape, markersize=8, color=colour, linewidth=0, clip_on=False)
        if labelled is None or (mark.at - labelled).total_seconds() > 0.03 * whole:
            panel.text(mark.at, 0.88, f"v{mark.version}", ha="center", va="center", fontsize=8, color=_SOFT)
            labelled = mark.at
    margin = timedelta(seconds=0.02 * whole)
    panel.set_xlim(begin - margin, end + margin)
    panel.set_ylim(0, 1)
    panel.set_yticks([])
    panel.spines["left"].set_visible(False)
    _time_axis(panel)
    return figure


def cost_plot(days: Sequence[date], flows: Mapping[str, Sequence[float]], budget: float | None) -> Figure:
    """What each day cost, by flow, and the daily budget; `flows` has one amount a day."""
    figure, panel = _panel(2.2)
    bottom = [0.0] * len(days)
    for place, (_, amounts) in enumerate(flows.items()):
        colour = _FLOWS[min(place, len(_FLOWS) - 1)]
        panel.bar(range(len(days)), amounts, bottom=bottom, width=0.72, color=colour, linewidth=0)
        bottom = [below + amount for below, amount in zip(bottom, amounts, strict=True)]
    if budget is not None:
        panel.axhline(budget, color=_LIMIT, linewidth=1.3, linestyle=(0, (3, 2)))
    highest = max([*bottom, budget or 0.0])
    panel.set_ylim(0, 1.15 * highest or 1.0)
    panel.set_xlim(-0.6, len(days) - 0.4)
    step = max(1, math.ceil(len(days) / 8))
    ticks = list(range(len(days) - 1, -1, -step))[::-1]
    panel.set_xticks(ticks, [f"{days[place]:%d %b}" for place in ticks])
    panel.yaxis.set_major_locator(MaxNLocator(4))
    panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))
    return figure


def flow_colour(place: int) -> str:
    """The colour of the flow drawn at that place."""
    return _FLOWS[min(place, len(_FLOWS) - 1)]


def _time_axis(panel: Any) -> None:
    locator = AutoDateLocator(minticks=3, maxticks=8, tz=UTC)  # type: ignore[no-untyped-call]
    panel.xaxis.set_major_locator(locator)
    panel.xaxis.set_major_formatter(ConciseDateFormatter(locator, tz=UTC))  # type: ignore[no-untyped-call]
    panel.xaxis.get_offset_text().set(fontsize=8, color=_SOFT)


def _panel(height: float) -> tuple[Figure, Any]:
    """A figure of one panel, with margins in inches that fit the text around it."""
    figure = Figure(figsize=(_WIDTH, height), dpi=100)
    figure.subplots_adjust(
        left=0.75 / _WIDTH, right=1 - 0.12 / _WIDTH, bottom=0.46 / height, top=1 - 0.24 / height
    )
    panel = figure.subplots()
    _style(panel)
    return figure, panel


def _style(panel: Any) -> None:
    panel.tick_params(labelsize=8.5, colors=_SOFT, length=3)
    panel.spines[["top", "right"]].set_visible(False)
    panel.spines[["left", "bottom"]].set_color(_PALE)
    panel.grid(axis="y", color="#22313f", alpha=0.08, linewidth=0.8)
    panel.set_axisbelow(True)
