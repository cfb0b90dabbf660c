"""Plots of one release, as matplotlib figures that belong to no window and no global state.

A release and its looks go in, oldest first; figures by name come out. However many looks there are, a figure holds
no more points than it can show.
"""

import io
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from tasks.readings import ARMS, Test, stage, stretches
from tasks.release_record import LIVE, Look, Reading, Release, State
from tasks.verdict import Verdict

__all__ = ["Span", "as_svg", "confidence_plots", "scores_plot", "spans", "thinned", "traffic_plots"]

_INK, _SOFT, _PALE = "#22313f", "#57656f", "#ced4da"
_ARMS = {"challenger": "#0b7285", "champion": "#8d6e63"}
_VERDICTS = {Verdict.PASS: "#2b8a3e", Verdict.FAIL: "#c92a2a", Verdict.INCONCLUSIVE: "#d08700"}
_EFFECT, _TOLERATED = "#c92a2a", "#868e96"
_BANDS = {
    State.SHADOW: "#efeaf7",
    State.PROMOTED: "#e3f4e8",
    State.ROLLED_BACK: "#fbe4e6",
    State.REJECTED: "#fbe4e6",
}
_CANARIES = ("#e8f4f6", "#d8ecef")

_Point = tuple[Look, Reading]

_MOST_POINTS = 400
_MOST_PANELS = 8


@dataclass(frozen=True)
class Span:
    """How long a release was in one state."""

    state: State
    step: int
    percentage: int
    begin: datetime
    end: datetime

    @property
    def label(self) -> str:
        """What it is called above a plot."""
        return f"{self.percentage} %" if self.state is State.CANARY else stage(self.state, self.percentage)


def spans(release: Release, looks: Sequence[Look]) -> tuple[Span, ...]:
    """The states a release was in, from when each was in effect; the last lasts to the last thing known."""
    began = [(State.PROPOSED, 0, 0, _utc(release.begun))] + [
        (one.state, one.step, one.percentage, _utc(one.effective or one.at)) for one in release.history
    ]
    known = began[-1][3]
    if looks:
        known = max(known, _utc(looks[-1].at))
    ends = [begin for *_, begin in began[1:]] + [known]
    return tuple(
        Span(state, step, percentage, begin, max(begin, end))
        for (state, step, percentage, begin), end in zip(began, ends, strict=True)
    )


def thinned(looks: Sequence[Look], most: int = _MOST_POINTS) -> list[list[Look]]:
    """Stretches of looks with at most about `most` looks in all; first and last of each are kept."""
    found = stretches(looks)
    share = max(2, most // max(1, len(found)))
    return [
        one
        if len(one) <= share
        else [one[place] for place in np.unique(np.linspace(0, len(one) - 1, share).round().astype(int))]
        for one in found
    ]


def as_svg(figure: Figure) -> bytes:
    """A figure as SVG, its text as paths; the same figure is the same bytes."""
    with mpl.rc_context({"svg.hashsalt": "contender"}), io.BytesIO() as file:
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
        return file.getvalue()


def traffic_plots(release: Release, looks: Sequence[Look]) -> dict[str, Figure]:
    """Share, error rate and latency over time; empty where the challenger never had traffic."""
    windows = _windows(release, looks)
    if not windows:
        return {}
    states, kept = spans(release, looks), thinned(looks)
    drawn = {"share": _share_plot(states, windows)}
    if looks:
        drawn["errors"] = _errors_plot(states, windows, kept)
        drawn["latency"] = _latency_plot(states, windows, kept)
    return drawn


def confidence_plots(release: Release, looks: Sequence[Look]) -> dict[str, Figure]:
    """For each test its confidence sequence over time, by the name of the test."""
    kept, states = thinned(looks), spans(release, looks)
    found: dict[str, list[list[_Point]]] = {}
    for one in kept:
        points: dict[str, list[_Point]] = {}
        for look in one:
            for reading in look.readings:
                points.setdefault(reading.test, []).append((look, reading))
        for name, these in points.items():
            found.setdefault(name, []).append(these)
    return {
        name: _confidence_plot(
            release, states, _windows(release, [look for these in points for look, _ in these]), points, name
        )
        for name, points in found.items()
    }


# Time -------------------------------------------------------------------------------------------------------


def _utc(moment: datetime) -> datetime:
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


def _windows(release: Release, looks: Sequence[Look]) -> list[tuple[datetime, datetime]]:
    """The stretches of time worth drawing: while it was live, and apart from that the watch after, where looked at.

    Waiting for approvals may take days and the watch a day, where the canary took minutes.
    """
    states = spans(release, looks)
    watched = [_utc(look.at) for look in looks if look.state is State.PROMOTED]
    marks = [_utc(look.at) for look in looks if look.state is not State.PROMOTED]
    windows = []
    if marks or not watched:
        marks += [moment for one in states if one.state in LIVE for moment in (one.begin, one.end)]
    if marks:
        begin, end = min(marks), max(marks)
        margin = max((end - begin) * 0.08, timedelta(seconds=1))
        windows.append((begin - margin * 0.15, end + margin))
    if watched:
        promoted = next((one.begin for one in states if one.state is State.PROMOTED), watched[0])
        begin, end = min(promoted, watched[0]), watched[-1]
        windows.append((begin, end + max((end - begin) * 0.06, timedelta(seconds=1))))
    return windows


def _timed(
    states: Sequence[Span],
    windows: Sequence[tuple[datetime, datetime]],
    *,
    width: float = 10.4,
    height: float = 2.5,
) -> tuple[Figure, list[Any]]:
    """A figure with one panel for each stretch of time, the states as bands behind it."""
    figure = _figure(width, height, top=0.24)
    panels = figure.subplots(
        1,
        len(windows),
        sharey=True,
        squeeze=False,
        width_ratios=[3.0, *[1.2] * (len(windows) - 1)],
    )[0]
    for panel, (begin, end) in zip(panels, windows, strict=True):
        panel.set_xlim(begin, end)  # type: ignore[arg-type]
        most = (8 if width > 8 else 5) if panel is panels[0] else (4 if width > 8 else 2)
        locator = AutoDateLocator(minticks=min(3, most), maxticks=most, tz=UTC)  # type: ignore[no-untyped-call]
        panel.xaxis.set_major_locator(locator)
        panel.xaxis.set_major_formatter(ConciseDateFormatter(locator, tz=UTC))  # type: ignore[no-untyped-call]
        panel.tick_params(labelsize=8.5, colors=_SOFT, length=3)
        panel.xaxis.get_offset_text().set(fontsize=8, color=_SOFT)
        panel.spines[["top", "right"]].set_visible(False)
        panel.spines[["left", "bottom"]].set_color(_PALE)
        panel.grid(axis="y", color="#22313f", alpha=0.08, linewidth=0.8)
        panel.set_axisbelow(True)
        _bands(panel, states, begin, end, narrow=width < 8)
    return figure, list(panels)


def _figure(width: float, height: float, *, top: float, hspace: float = 0.0) -> Figure:
    """A figure with margins in inches that fit the text around its panels: measuring it takes half a second."""
    figure = Figure(figsize=(width, height), dpi=100)
    figure.subplots_adjust(
        left=0.66 / width,
        right=1 - 0.1 / width,
        bottom=0.46 / height,
        top=1 - top / height,
        wspace=0.06,
        hspace=hspace,
    )
    return figure


def _bands(panel: Any, states: Sequence[Span], begin: datetime, end: datetime, *, narrow: bool) -> None:
    whole = (end - begin).total_seconds()
    for place, one in enumerate(states):
        last = place == len(states) - 1
        left, right = max(one.begin, begin), end if last else min(one.end, end)
        if left >= right or one.state in {State.PROPOSED, State.APPROVED}:
            continue
        if not narrow:
            colour = _BANDS.get(one.state, _CANARIES[one.step % 2])
            panel.axvspan(left, right, color=colour, linewidth=0, zorder=0)
        panel.axvline(left, color=_PALE if narrow else "white", linewidth=1, zorder=0.5)
        part, middle = (right - left).total_seconds() / whole, left + (right - left) / 2
        fits = part > len(one.label) * (0.021 if narrow else 0.0105)
        if fits or (last and not narrow):
            panel.text(
                middle if fits else right,
                1.02,
                one.label,
                transform=panel.get_xaxis_transform(),
                ha="center" if fits else "right",
                va="bottom",
                fontsize=8,
                color=_SOFT,
                clip_on=False,
            )


# Traffic ----------------------------------------------------------------------------------------------------


def _share_plot(states: Sequence[Span], windows: Sequence[tuple[datetime, datetime]]) -> Figure:
    """The challenger's share of callers, and in shadow its share of copies."""
    figure, panels = _timed(states, windows, height=1.9)
    moments = [one.begin for one in states] + [max(states[-1].end, windows[-1][1])]
    callers = [_callers(one) for one in states]
    copies = [one.percentage if one.state is State.SHADOW else math.nan for one in states]
    for panel in panels:
        panel.step(moments, [*callers, callers[-1]], where="post", color=_ARMS["challenger"], linewidth=2)
        panel.fill_between(
            moments,  # type: ignore[arg-type]
            [*callers, callers[-1]],
            step="post",
            color=_ARMS["challenger"],
            alpha=0.18,
            linewidth=0,
        )
        if any(one.state is State.SHADOW for one in states):
            panel.step(
                moments,
                [*copies, copies[-1]],
                where="post",
                color="#6741d9",
                linewidth=1.6,
                linestyle=(0, (4, 2)),
            )
        panel.set_ylim(0, 108)
        panel.set_yticks([0, 25, 50, 75, 100])
        panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g} %"))
    return figure


def _callers(one: Span) -> float:
    """The percentage of callers that the challenger answers in a state."""
    if one.state is State.CANARY:
        return float(one.percentage)
    return 100.0 if one.state is State.PROMOTED else 0.0


def _errors_plot(
    states: Sequence[Span], windows: Sequence[tuple[datetime, datetime]], kept: Sequence[Sequence[Look]]
) -> Figure:
    figure, panels = _timed(states, windows)
    settled = [one[len(one) // 5 :] for one in kept]
    rates = [_error_rate(look, arm) or 0.0 for one in settled for look in one for arm in ARMS]
    for panel in panels:
        for arm, moments, values in _lines(kept, _error_rate):
            panel.plot(moments, values, **_style(arm))
        # One error among the first requests is a rate that nobody saw; it is cut off.
        panel.set_ylim(0, max(1.3 * max(rates), 0.01))
        panel.yaxis.set_major_locator(MaxNLocator(5))
        panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.3g} %"))
    return figure


def _latency_plot(
    states: Sequence[Span], windows: Sequence[tuple[datetime, datetime]], kept: Sequence[Sequence[Look]]
) -> Figure:
    figure, panels = _timed(states, windows)
    highest = 0.0
    for panel in panels:
        for quantile, style in (("p50", {}), ("p95", {"linestyle": (0, (4, 2)), "linewidth": 1.3})):
            of_look = _latency_p50 if quantile == "p50" else _latency_p95
            for arm, moments, values in _lines(kept, of_look):
                panel.plot(moments, values, **(_style(arm) | style))
                highest = max([highest, *(value for value in values if not math.isnan(value))])
        panel.set_ylim(0, highest * 1.15 or 1.0)
        panel.yaxis.set_major_locator(MaxNLocator(5))
        panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g} ms"))
    return figure


def _error_rate(look: Look, arm: str) -> float | None:
    requests = look.requests.get(arm, 0)
    return look.errors.get(arm, 0) / requests if requests else None


def _latency_p50(look: Look, arm: str) -> float | None:
    return look.latency_p50.get(arm)


def _latency_p95(look: Look, arm: str) -> float | None:
    return look.latency_p95.get(arm)


def _lines(
    kept: Sequence[Sequence[Look]], of_look: Callable[[Look, str], float | None]
) -> Iterator[tuple[str, list[datetime], list[float]]]:
    """Each arm's values over time, broken where a stretch ends; no arm that has none."""
    for arm in reversed(ARMS):
        moments: list[datetime] = []
        values: list[float] = []
        for one in kept:
            for look in one:
                found = of_look(look, arm)
                moments.append(_utc(look.at))
                values.append(math.nan if found is None else found)
            moments.append(_utc(one[-1].at))
            values.append(math.nan)
        if not all(map(math.isnan, values)):
            yield arm, moments, values


def _style(arm: str) -> dict[str, Any]:
    width = 2.0 if arm == "challenger" else 1.7
    return {"color": _ARMS[arm], "linewidth": width, "solid_capstyle": "round"}


# Scores -----------------------------------------------------------------------------------------------------


def scores_plot(looks: Sequence[Look]) -> Figure | None:
    """How the scores of each arm were distributed at the last look of each state; None where there are none."""
    last: dict[tuple[State, int], Look] = {}
    for one in stretches(looks):
        if _binned(one[-1]):
            last[one[-1].state, one[-1].step] = one[-1]
    shown = list(last.values())[-_MOST_PANELS:]
    if not shown:
        return None
    columns = min(4, len(shown))
    rows = math.ceil(len(shown) / columns)
    # As wide as four panels even where there are fewer, so that the text of all figures has one size.
    figure = _figure(10.4, 0.1 + 2.3 * rows, top=0.3, hspace=0.55)
    panels = figure.subplots(rows, 4, squeeze=False, sharey=True)
    for place, panel in enumerate(panels.flat):
        row, column = divmod(place, 4)
        index = row * columns + column
        if column >= columns or index >= len(shown):
            panel.set_visible(False)
            continue
        look = shown[index]
        for arm, edges, parts in _binned(look):
            panel.stairs(
                parts, edges, color=_ARMS[arm], fill=arm == "champion", alpha=0.3 if arm == "champion" else 1
            )
            panel.stairs(
                parts, edges, color=_ARMS[arm], linewidth=1.8 if arm == "challenger" else 1.0, label=arm
            )
        panel.set_title(stage(look.state, look.percentage), fontsize=9, color=_SOFT, loc="left")
        panel.tick_params(labelsize=8.5, colors=_SOFT, length=3)
        panel.spines[["top", "right"]].set_visible(False)
        panel.spines[["left", "bottom"]].set_color(_PALE)
        panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g} %"))
        panel.set_xlabel("score", fontsize=8.5, color=_SOFT)
    return figure


def _binned(look: Look) -> list[tuple[str, np.ndarray, np.ndarray]]:
    """Each arm's parts of its scores by bin, the champion first; counts outside the edges have bins of their own."""
    edges, found = np.asarray(look.score_edges, dtype=np.float64), []
    if len(edges) < 2 or not np.isfinite(edges).all():
        return []
    for arm in reversed(ARMS):
        counts = np.asarray(look.scores.get(arm, ()), dtype=np.float64)
        if not counts.sum():
            continue
        drawn = edges
        if len(counts) == len(edges) + 1:
            drawn = np.concatenate([[2 * edges[0] - edges[1]], edges, [2 * edges[-1] - edges[-2]]])
        if len(counts) == len(drawn) - 1:
            found.append((arm, drawn, counts / counts.sum()))
    return found


# Confidence sequences ---------------------------------------------------------------------------------------


def _confidence_plot(
    release: Release,
    states: Sequence[Span],
    windows: Sequence[tuple[datetime, datetime]],
    found: Sequence[Sequence[_Point]],
    name: str,
) -> Figure:
    """The estimate, its interval in the colour of the verdict, and what the plan says of it."""
    figure, panels = _timed(states, windows, width=5.6, height=3.0)
    test = Test.named(name)
    low, high = _limits(test, release, [point for points in found for point in points])

    def told(value: float, _: object) -> str:
        return f"{value * test.scale + 0.0:{'+' if test.signed and value else ''}.3g}{test.unit}"

    for panel in panels:
        for points in found:
            _sequence(panel, points, low, high)
            _harm(panel, test, release, points)
        if low < 0 < high:
            panel.axhline(0, color=_INK, linewidth=0.8, alpha=0.5)
        panel.set_ylim(low, high)
        panel.yaxis.set_major_locator(MaxNLocator(6))
        panel.yaxis.set_major_formatter(FuncFormatter(told))
    return figure


def _limits(test: Test, release: Release, seen: Sequence[_Point]) -> tuple[float, float]:
    """What of the vertical axis to show: thresholds and estimates, and of intervals what is not far beyond them."""
    marks: list[float] = [0.0] if test.signed or test.kind == "scores" else []
    for look, _ in (seen[0], seen[-1]):
        harm = test.harm(release.plan, look)
        if harm is not None:
            centre = test.centre(look)
            marks += [centre + 1.25 * harm.effect]
            marks += [centre - 1.25 * harm.effect] if test.two_sided else []
    settled = seen[len(seen) // 10 :]
    marks += [reading.estimate for _, reading in settled if math.isfinite(reading.estimate)]
    least, most = (min(marks), max(marks)) if marks else (-1.0, 1.0)
    reach = (most - least) or 1.0
    ends = [end for _, reading in settled[len(settled) // 2 :] for end in (reading.low, reading.high)]
    near = [end for end in ends if math.isfinite(end) and least - reach <= end <= most + reach]
    least, most = min([least, *near]), max([most, *near])
    margin = 0.06 * (most - least) or 1.0
    return least - margin, most + margin


def _sequence(panel: Any, points: Sequence[_Point], low: float, high: float) -> None:
    """The band and the line of one stretch, in pieces of one verdict, each joined to the piece before it."""
    begin = 0
    for place in range(1, len(points) + 1):
        if place < len(points) and points[place][1].verdict is points[begin][1].verdict:
            continue
        piece = points[max(0, begin - 1) : place]
        moments = [_utc(look.at) for look, _ in piece]
        colour = _VERDICTS[points[begin][1].verdict]
        # An end at infinity cannot be drawn; one far out can, and is cut off.
        lows = [min(max(reading.low, low - (high - low)), high + (high - low)) for _, reading in piece]
        highs = [max(min(reading.high, high + (high - low)), low - (high - low)) for _, reading in piece]
        panel.fill_between(moments, lows, highs, color=colour, alpha=0.22, linewidth=0, zorder=2)
        panel.plot(moments, [reading.estimate for _, reading in piece], color=colour, linewidth=1.9, zorder=3)
        begin = place
    look, reading = points[-1]
    if math.isfinite(reading.estimate):
        panel.plot(
            [_utc(look.at)],
            [reading.estimate],
            marker="o",
            markersize=5,
            color=_VERDICTS[reading.verdict],
            markeredgecolor="white",
            zorder=4,
        )


def _harm(panel: Any, test: Test, release: Release, points: Sequence[_Point]) -> None:
    """The effect that matters and what is tolerated, over one stretch."""
    first = points[0][0]
    harm, centre = test.harm(release.plan, first), test.centre(first)
    if harm is None:
        return
    # Scores of pairs may differ in either direction; the distance of distributions is never below zero.
    either = test.two_sided or (test.kind == "scores" and any(reading.low < 0 for _, reading in points))
    begin, end = _utc(first.at), _utc(points[-1][0].at)
    for value, colour, style in (
        (harm.effect, _EFFECT, (0, (5, 3))),
        (harm.tolerated, _TOLERATED, (0, (1, 2))),
    ):
        for side in (1.0, -1.0) if either else (1.0,):
            if value or test.around_share:
                panel.plot(
                    [begin, end],
                    [centre + side * value] * 2,
                    color=colour,
                    linestyle=style,
                    linewidth=1.3,
                    zorder=2.5,
                )
