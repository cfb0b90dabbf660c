"""The timeline of a life as one HTML page with a picture: champions, drift, quality and releases, month by month."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.life import LifecycleOutcome, Monitored, Month
from tasks.life_told import Told, quality_of, told_of_month
from tasks.release_record import State
from tasks.verdict import Verdict

__all__ = ["timeline_page", "write_timeline"]

_INK, _SOFT, _PALE = "#22313f", "#57656f", "#ced4da"
_VERDICTS = {Verdict.PASS: "#2b8a3e", Verdict.FAIL: "#c92a2a", Verdict.INCONCLUSIVE: "#d08700"}
_REIGNS = ("#cfe6ea", "#e6ddd9", "#ddd9f0")


@dataclass(frozen=True)
class _Chapter:
    """A month as the page shows it."""

    month: Month
    lines: list[Told]
    links: list[tuple[str, str]]


def write_timeline(outcome: LifecycleOutcome, path: Path) -> Path:
    """Write the page, whole or not at all."""
    staged = path.with_suffix(".partial")
    staged.write_text(timeline_page(outcome), encoding="utf-8")
    staged.replace(path)
    return path


def timeline_page(outcome: LifecycleOutcome) -> str:
    """A life in one page that needs nothing beside it: the picture, the months in sentences, and where to read on."""
    from tasks.report import templates

    return (
        templates()
        .get_template("timeline.html.j2")
        .render(
            life=outcome,
            picture=_as_svg(picture(outcome.months)),
            tiles=_tiles(outcome),
            chapters=[_Chapter(month, told_of_month(month), _links(month)) for month in outcome.months],
        )
    )


def _tiles(outcome: LifecycleOutcome) -> list[tuple[str, str, str]]:
    releases = [month.release for month in outcome.months if month.release]
    promoted = sum(one.promoted for one in releases)
    back = [one for one in releases if one.release.state is State.ROLLED_BACK]
    alerts = sum(len(month.alerts) for month in outcome.months)
    return [
        ("Requests over HTTP", f"{outcome.requests:,}", f"{outcome.failed:,} failed"),
        ("Releases", f"{len(releases)}", f"{promoted} promoted, {len(back)} rolled back"),
        ("Alerts", f"{alerts}", "each became an event"),
        ("Champion in the end", f"version {outcome.champion}", f"in {outcome.environment}"),
    ]


def _links(month: Month) -> list[tuple[str, str]]:
    trained = month.trained or (month.retrained.trained if month.retrained else None)
    found = [("training report", trained.report)] if trained else []
    found += [("evidence", trained.evidence)] if trained and trained.evidence else []
    found += [("release report", month.release.report)] if month.release and month.release.report else []
    found += [(f"monitoring report, month {one.month}", one.outcome.report) for one in month.monitored]
    return found


# The picture ------------------------------------------------------------------------------------------------


def picture(months: Sequence[Month]) -> Any:
    """Three strips over the months: who is champion and what was released, how far inputs drifted, how good it was."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10.4, 6.0), layout="constrained")
    reigns, drift, quality = figure.subplots(3, 1, sharex=True, height_ratios=[1.15, 1.5, 1.5])
    for panel in (reigns, drift, quality):
        panel.spines[["top", "right"]].set_visible(False)
        panel.spines[["left", "bottom"]].set_color(_PALE)
        panel.tick_params(labelsize=9, colors=_SOFT, length=0)
        panel.set_xlim(0.5, len(months) + 0.5)
        for number in range(1, len(months)):
            panel.axvline(number + 0.5, color=_PALE, linewidth=0.8, zorder=0)
    _reigns(reigns, months)
    _drift(drift, months)
    _quality(quality, months)
    quality.set_xticks(
        range(1, len(months) + 1), [f"{month.begins:%B %Y}\n{month.title}" for month in months]
    )
    quality.tick_params(axis="x", colors=_INK, labelsize=9.5, pad=8)
    return figure


def _title(panel: Any, text: str) -> None:
    panel.set_title(text, loc="left", fontsize=10, color=_INK, fontweight="bold", pad=6)


def _reigns(panel: Any, months: Sequence[Month]) -> None:
    _title(panel, "Champion, and releases")
    panel.set_ylim(0, 1.2)
    panel.set_yticks([])
    begin, champion = 0.5, ""
    for month in months:
        release = month.release
        at = month.number + (0.3 if month.number > 1 else -0.4)
        if release is not None and release.promoted:
            if champion:
                _reign(panel, begin, at, champion)
            begin, champion = at, release.release.challenger.version
    if champion:
        _reign(panel, begin, len(months) + 0.5, champion)
    for month in months:
        release = month.release
        if release is None:
            continue
        at = month.number + (0.3 if month.number > 1 else -0.4)
        version = release.release.challenger.version
        colour = _VERDICTS[Verdict.PASS if release.promoted else Verdict.FAIL]
        state = "promoted" if release.promoted else str(release.release.state).replace("_", " ")
        panel.plot([at], [0.82], marker="^" if release.promoted else "X", markersize=10, color=colour)
        panel.annotate(
            f"v{version} {state}",
            (at, 0.82),
            xytext=(9, 0) if month.number == 1 else (-9, 0),
            textcoords="offset points",
            ha="left" if month.number == 1 else "right",
            va="center",
            fontsize=9.5,
            color=colour,
        )


def _reign(panel: Any, begin: float, end: float, version: str) -> None:
    colour = _REIGNS[(int(version) - 1) % len(_REIGNS)] if version.isdigit() else _REIGNS[0]
    panel.barh([0.32], [end - begin], left=begin, height=0.42, color=colour, zorder=1)
    panel.text(
        (begin + end) / 2, 0.32, f"version {version}", ha="center", va="center", fontsize=10, color=_INK
    )


def _placed(months: Sequence[Month]) -> list[tuple[float, Monitored]]:
    """The windows of each month's own traffic side by side, as they were looked at last."""
    last = {(one.month, one.outcome.window): one for month in months for one in month.monitored}
    found = []
    for month in months:
        own = [one for (number, _), one in last.items() if number == month.number]
        own.sort(key=lambda one: one.outcome.window.end)
        for place, one in enumerate(own):
            found.append((month.number + (place - (len(own) - 1) / 2) * 0.3, one))
    return found


def _drift(panel: Any, months: Sequence[Month]) -> None:
    _title(panel, "Drift of inputs: the furthest column of each window, as a part of what matters")
    panel.axhline(1, color=_VERDICTS[Verdict.FAIL], linewidth=1, linestyle="--")
    highest = 1.0
    named: dict[tuple[int, str], list[tuple[float, float]]] = {}
    for at, one in _placed(months):
        parts = [
            (row.value / row.threshold, row)
            for row in one.of("drift")
            if row.subject and row.value is not None and row.threshold
        ]
        if not parts:
            continue
        most, row = max(parts, key=lambda pair: pair[0])
        highest = max(highest, most)
        verdict = one.outcome.verdicts.get("drift", Verdict.INCONCLUSIVE)
        panel.bar([at], [most], width=0.22, color=_VERDICTS[verdict], zorder=2)
        named.setdefault((one.month, row.subject), []).append((at, most))
    # A column that is the furthest in several windows of a month is named once, over all of them.
    for (_, subject), places in named.items():
        panel.annotate(
            subject.replace("_", " "),
            (sum(at for at, _ in places) / len(places), max(most for _, most in places)),
            xytext=(0, 3),
            textcoords="offset points",
            ha="center",
            fontsize=8,
            color=_SOFT,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.6},
        )
    panel.set_ylim(0, highest * 1.25)


def _quality(panel: Any, months: Sequence[Month]) -> None:
    judged = [(at, row) for at, one in _placed(months) if (row := quality_of(one)) is not None]
    metric = judged[0][1].metric if judged else "quality"
    _title(
        panel,
        f"{metric} once labels are known, with its interval; dashed: what the holdout promised at least",
    )
    for at, row in judged:
        assert row.value is not None
        colour = _VERDICTS[row.verdict or Verdict.INCONCLUSIVE]
        if row.low is not None and row.high is not None:
            panel.plot([at, at], [row.low, row.high], color=colour, linewidth=2.5, solid_capstyle="round")
        panel.plot([at], [row.value], marker="o", markersize=7, color=colour)
        panel.annotate(
            f"{row.value:.3f}",
            (at, row.value),
            xytext=(8, 0),
            textcoords="offset points",
            va="center",
            fontsize=9,
            color=_INK,
        )
        if row.threshold is not None:
            panel.plot([at - 0.3, at + 0.3], [row.threshold] * 2, color=_SOFT, linewidth=1, linestyle="--")
    if not judged:
        panel.text(0.5, 0.5, "no labels yet", transform=panel.transAxes, ha="center", color=_SOFT)
        panel.set_yticks([])
    panel.margins(y=0.25)


def _as_svg(figure: Any) -> str:
    import matplotlib as mpl

    with mpl.rc_context({"svg.hashsalt": "contender"}), io.BytesIO() as file:
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
        return f"data:image/svg+xml;base64,{base64.b64encode(file.getvalue()).decode()}"
