"""The page of one monitored window: what to act on first, then each part with its numbers, then the windows before.

Rows go in and text comes out, whole by itself like every page of `tasks.report`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from deployments.measures import MEASURES
from tasks.monitoring_alerts import told_apart
from tasks.monitoring_record import Kind, MetricRow, MonitorOutcome, Window, verdict_of
from tasks.release_report import duration, moment
from tasks.report import MISSING, label, number, percent, templates
from tasks.verdict import Verdict, overall

__all__ = ["monitoring_markdown", "monitoring_page", "name_of", "shown"]

_MOST_WINDOWS = 14
_MOST_COLUMNS = 60
_SHARES = ("_share", "coverage", "error_rate", "availability", "refused")
_NAMES = {
    "p50_milliseconds": "Latency, median",
    "p95_milliseconds": "Latency, 95th percentile",
    "error_rate": "Error rate",
    "availability": "Availability",
    "refused": "Refused (4xx)",
    "requests": "Requests",
    "predicted_rows": "Predicted rows",
    "lost": "Requests that were not logged",
    "unanswered": "Requests that no scorer answered",
    "coverage": "Rows with labels",
    "invalid_share": "Rows that break the contract",
    "drifted_columns": "Drifted columns",
    "importance_shift": "Shift of importance",
    "spent": "Spent",
}
_PARTS: dict[Kind, str] = {
    "drift": "Data drift",
    "prediction_drift": "Prediction drift",
    "quality": "Quality",
    "service": "Service levels",
    "inputs": "Live inputs",
    "fairness": "Fairness",
    "budget": "Budget",
}


@dataclass(frozen=True)
class _Earlier:
    """A window as the table of windows shows it."""

    window: Window
    version: str
    verdicts: dict[str, Verdict]
    figures: tuple[str, ...]


@dataclass(frozen=True)
class _Tile:
    name: str
    value: str
    note: str


def name_of(metric: str) -> str:
    """A metric's name for people."""
    if metric.startswith("estimated_"):
        return f"{label(metric.removeprefix('estimated_'))}, estimated"
    return _NAMES.get(metric) or label(metric).replace("_", " ")


def shown(metric: str, value: float | None) -> str:
    """A metric's value in its unit."""
    if metric.endswith("_milliseconds"):
        return MISSING if value is None else f"{number(value)} ms"
    if metric.endswith(_SHARES):
        return percent(value)
    if (
        metric in {"requests", "predicted_rows", "lost", "unanswered", "drifted_columns"}
        and value is not None
    ):
        return f"{value:,.0f}"
    return number(value)


def monitoring_page(
    outcome: MonitorOutcome,
    rows: Sequence[MetricRow],
    standing: Sequence[MetricRow],
    *,
    drift: str | None = None,
) -> str:
    """What one window came to.

    Args:
        outcome: its verdicts and alerts.
        rows: all that was found in it.
        standing: the rows of all windows of the model, for those before this one.
        drift: the file with the distributions of the columns, beside the page; None where there is none.
    """
    ours = [row for row in rows if row.version == outcome.version]
    parts = {
        kind: (
            name,
            outcome.verdicts.get(kind),
            [row for row in ours if row.kind == kind and not (kind == "service" and row.subject)],
        )
        for kind, name in _PARTS.items()
    }
    # Of one version alone the figures are those of the endpoint.
    by_version = [row for row in rows if row.kind == "service" and row.subject]
    versions = by_version if len({row.version for row in by_version}) > 1 else []
    return (
        templates()
        .get_template("monitoring.html.j2")
        .render(
            outcome=outcome,
            verdict=overall(outcome.verdicts.values()),
            lead=told_apart(outcome.verdicts),
            length=duration((outcome.window.end - outcome.window.start).total_seconds()),
            tiles=_tiles(outcome, ours),
            parts=parts,
            drifted=_worst_first(parts["drift"][2] + parts["prediction_drift"][2]),
            estimated=[row for row in ours if row.kind == "estimated_quality"],
            slices=[row for row in ours if row.kind == "slice"],
            importance=_important(ours),
            versions=versions,
            earlier=_earlier(outcome, standing),
            drift=drift,
            moment=moment,
            name_of=name_of,
            shown=shown,
            between=_between,
            kinds=_PARTS,
            most=_MOST_COLUMNS,
        )
    )


def monitoring_markdown(outcome: MonitorOutcome) -> str:
    """The window in Markdown, for an artifact in the Prefect UI."""
    lines = [
        f"# {outcome.model}, version {outcome.version}: {overall(outcome.verdicts.values())}",
        "",
        (
            f"{moment(outcome.window.start)} to {moment(outcome.window.end)}: {outcome.requests:,} requests, "
            f"{outcome.rows:,} rows, {outcome.labelled:,} with labels. {told_apart(outcome.verdicts)}"
        ),
        "",
        "| part | verdict |",
        "| --- | --- |",
    ]
    lines += [f"| {_PARTS.get(kind, kind)} | {verdict} |" for kind, verdict in outcome.verdicts.items()]  # type: ignore[call-overload]
    for alert in outcome.alerts:
        said = f" (acknowledged: {alert.acknowledged})" if alert.acknowledged else ""
        lines += ["", f"**{alert.event}**{said}: {alert.reason}"]
    for one in outcome.again:
        quality = one.verdicts.get("quality", Verdict.INCONCLUSIVE)
        said = f"{moment(one.window.start)} to {moment(one.window.end)}, {one.labelled:,} labels: quality {quality}"
        lines += ["", f"Judged again by labels that came late: {said} (`{one.report}`)"]
    lines += [f"\n{problem}" for problem in outcome.problems]
    return "\n".join([*lines, "", f"Report: `{outcome.report}`", ""])


def _worst_first(rows: Sequence[MetricRow]) -> list[MetricRow]:
    order = (Verdict.FAIL, Verdict.INCONCLUSIVE, Verdict.PASS, None)
    return sorted(
        (row for row in rows if row.subject),
        key=lambda row: (order.index(row.verdict), -(row.value or 0.0) / (row.threshold or 1.0)),
    )


def _important(rows: Sequence[MetricRow]) -> list[MetricRow]:
    return sorted(
        (row for row in rows if row.kind == "importance" and row.subject), key=lambda row: -(row.value or 0.0)
    )


def _between(row: MetricRow) -> str:
    if row.low is None or row.high is None:
        return "–"
    return f"[{shown(row.metric, row.low)}, {shown(row.metric, row.high)}]"


def _service(rows: Sequence[MetricRow], metric: str) -> MetricRow | None:
    """A service level of the whole endpoint."""
    return next(
        (row for row in rows if row.kind == "service" and row.metric == metric and not row.subject), None
    )


def _tiles(outcome: MonitorOutcome, rows: Sequence[MetricRow]) -> tuple[_Tile, ...]:
    def find(kind: Kind, *but: str) -> MetricRow | None:
        return next((one for one in rows if one.kind == kind and one.metric not in but), None)

    quality, coverage = find("quality", "coverage"), next((r for r in rows if r.metric == "coverage"), None)
    latency, errors = _service(rows, "p95_milliseconds"), _service(rows, "error_rate")
    drifted = [row for row in rows if row.kind == "drift" and row.subject]
    fell = {row.subject for row in drifted if row.verdict is Verdict.FAIL}
    return (
        _Tile(
            "Requests",
            f"{outcome.requests:,}",
            f"{outcome.rows:,} rows predicted",
        ),
        _Tile(
            "Drifted columns",
            f"{len(fell)} of {len({row.subject for row in drifted})}" if drifted else "–",
            "against training data" if drifted else "not compared",
        ),
        _Tile(
            name_of(quality.metric) if quality else "Quality",
            shown(quality.metric, quality.value) if quality else "–",
            f"labels for {shown('coverage', coverage.value)}" if coverage else "no labels",
        ),
        _Tile(
            "95th percentile",
            shown("p95_milliseconds", latency.value if latency else None),
            f"{shown('error_rate', errors.value if errors else None)} failed",
        ),
    )


def _earlier(outcome: MonitorOutcome, standing: Sequence[MetricRow]) -> list[_Earlier]:
    """This window and those before it, the newest first."""
    windows: dict[tuple[datetime, datetime, str], list[MetricRow]] = {}
    for row in standing:
        if row.window.end <= outcome.window.end:
            windows.setdefault((row.window.end, row.window.start, row.version), []).append(row)
    judged = {
        key: rows
        for key, rows in sorted(windows.items(), reverse=True)
        if any(row.kind == "drift" for row in rows)
    }
    found = []
    for (_, _, version), rows in list(judged.items())[:_MOST_WINDOWS]:
        verdicts: dict[str, Verdict] = {
            kind: verdict_of(row for row in rows if row.kind == kind)
            for kind in _PARTS
            if any(row.kind == kind and row.verdict is not None for row in rows)
        }
        quality = next((row for row in rows if row.kind == "quality" and row.metric in MEASURES), None)
        requests, latency = _service(rows, "requests"), _service(rows, "p95_milliseconds")
        figures = (
            shown("requests", requests.value if requests else None),
            f"{shown(quality.metric, quality.value)} {_between(quality)}" if quality else "–",
            shown("p95_milliseconds", latency.value if latency else None),
        )
        found.append(_Earlier(rows[0].window, version, verdicts, figures))
    return found
