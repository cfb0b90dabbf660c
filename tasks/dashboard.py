"""The dashboard of a model: health, quality, drift, service, releases, costs and delivery, as one HTML page.

The monitoring table, the release records, the ledger, the costs and the champions' evaluations go in; text comes out,
whole by itself like every page of `tasks.report`. Nothing is measured or decided here.
"""

import base64
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from deployments.errors import BadInputError
from deployments.measures import MEASURES
from deployments.spec import LoadedSpec
from platforms.platform import Platform
from tasks.conclude import write_page
from tasks.costs import Spent, start_of_day
from tasks.dashboard_facts import COST_DAYS, Facts, champions, gather
from tasks.delivery import Delivery, delivery
from tasks.ledger import Entry
from tasks.monitoring_record import Kind, MetricRow, Window, verdict_of
from tasks.release_report import duration, moment
from tasks.verdict import Verdict

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from tasks.dashboard_plots import Mark, Reign

__all__ = ["dashboard_page", "write_dashboard"]

_MOST_RELEASES, _MOST_REASONS, _MOST_RETRAININGS = 15, 3, 10
_NAMES: dict[Kind, str] = {
    "quality": "Quality on labels",
    "drift": "Drift of inputs",
    "prediction_drift": "Drift of predictions",
    "inputs": "Validity of inputs",
    "service": "Service levels",
    "fairness": "Fairness",
    "slice": "Slices",
    "importance": "Importance of features",
    "estimated_quality": "Estimated quality",
    "budget": "Costs against budget",
}
_WORST_FIRST = (Verdict.FAIL, Verdict.INCONCLUSIVE, Verdict.PASS, None)


def write_dashboard(platform: Platform, loaded: LoadedSpec, out: Path | None = None) -> Path:
    """Write a model's dashboard to `out`, or among the environment's reports, whole or not at all.

    Raises:
        BadInputError: the file cannot be written.
    """
    page = dashboard_page(gather(platform, loaded))
    if out is None:
        return Path(write_page(platform, loaded.name, "dashboard", page))
    staged = out.with_name(f".{out.name}.{os.getpid()}.partial")
    try:
        staged.write_text(page, encoding="utf-8")
        staged.replace(out)
    except OSError as error:
        staged.unlink(missing_ok=True)
        raise BadInputError(f"--out {out}: cannot be written ({error.strerror})") from None
    return out.absolute()


def dashboard_page(facts: Facts) -> str:
    """The page: what needs somebody first, then how it came to be, then what it costs and how it is delivered."""
    from tasks.dashboard_groups import group_plots
    from tasks.dashboard_plots import MOST_COLUMNS, MOST_WINDOWS, flow_colour, release_plot
    from tasks.report import templates

    judged = _judged(facts.rows)
    windows = sorted({row.window for row in judged}, key=lambda one: (one.end, one.start))[-MOST_WINDOWS:]
    kept = [row for row in judged if row.window in set(windows)]
    delivered = delivery(facts.entries)
    reigns, marks = _reigns(facts), _marks(facts)
    days, flows = _cost_days(facts)
    health = _health(kept)
    return (
        templates()
        .get_template("dashboard.html.j2")
        .render(
            facts=facts,
            spec=facts.loaded.spec,
            lead=_lead(facts, health, windows),
            overall=_worst([one.verdict for one in health]),
            tiles=_tiles(facts, windows, delivered),
            health=health,
            windows=windows,
            quality=[_shown(*one) for one in _quality_plots(facts, kept, windows)],
            groups=[_shown(*one) for one in group_plots(kept, windows)],
            drift=_drift(kept, windows),
            most_columns=MOST_COLUMNS,
            service=[_shown(*one) for one in _service_plots(kept, windows)],
            latest=_latest(kept),
            releases=_image(release_plot(reigns, marks)) if reigns or marks else None,
            history=facts.history[:_MOST_RELEASES],
            costs=_cost_image(days, flows, facts) if facts.costs else None,
            flows=[
                (name, sum(amounts), flow_colour(place))
                for place, (name, amounts) in enumerate(flows.items())
            ],
            budgets=_budgets(facts),
            cost_days=COST_DAYS,
            delivery=delivered,
            lately=delivered.lately(facts.now),
            retrainings=_retrainings(facts.entries),
            names=_NAMES,
            moment=moment,
            duration=duration,
        )
    )


# Health -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Health:
    """What the last window of one kind said."""

    kind: Kind
    name: str
    verdict: Verdict
    version: str
    window: Window
    reasons: tuple[str, ...]
    more: int


def _judged(rows: Sequence[MetricRow]) -> list[MetricRow]:
    """The rows of the version that a window judged; others served in it as well, and are told elsewhere."""
    counts: dict[Window, dict[str, int]] = {}
    for row in rows:
        of_window = counts.setdefault(row.window, {})
        of_window[row.version] = of_window.get(row.version, 0) + (row.verdict is not None)
    chosen = {window: max(sorted(found), key=lambda one: found[one]) for window, found in counts.items()}
    return [row for row in rows if chosen[row.window] == row.version]


def _health(rows: Sequence[MetricRow]) -> list[_Health]:
    found = []
    for kind, name in _NAMES.items():
        of_kind = [row for row in rows if row.kind == kind and row.verdict is not None]
        if not of_kind:
            continue
        last = max((row.window for row in of_kind), key=lambda one: (one.end, one.start))
        latest = [row for row in of_kind if row.window == last]
        verdict = verdict_of(latest)
        reasons = [_reason(row) for row in latest if row.verdict is verdict]
        if verdict is Verdict.PASS:
            reasons = ["it passed" if len(latest) == 1 else f"all {len(latest):,} figures passed"]
        found.append(
            _Health(
                kind,
                name,
                verdict,
                latest[0].version,
                last,
                tuple(reasons[:_MOST_REASONS]),
                max(0, len(reasons) - _MOST_REASONS),
            )
        )
    return sorted(found, key=lambda one: _WORST_FIRST.index(one.verdict))


def _reason(row: MetricRow) -> str:
    what = f"{row.subject}: " if row.subject else ""
    return f"{what}{row.metric.replace('_', ' ')}{f': {row.reason}' if row.reason else ''}"


def _worst(verdicts: Sequence[Verdict]) -> Verdict | None:
    return next((one for one in _WORST_FIRST if one in verdicts), None)


def _lead(facts: Facts, health: Sequence[_Health], windows: Sequence[Window]) -> str:
    if facts.champion is None:
        return "No version serves. Train one, and release it."
    since = f" since {moment(facts.since)}" if facts.since else ""
    said = f"Version {facts.champion} serves{since}."
    if not windows:
        return f"{said} No window was looked at yet."
    failing = [one.name.lower() for one in health if one.verdict is Verdict.FAIL]
    unknown = [one.name.lower() for one in health if one.verdict is Verdict.INCONCLUSIVE]
    told = [f"{', '.join(failing)} failed" if failing else "nothing failed"]
    told += [f"{', '.join(unknown)} could not be decided"] if unknown else []
    return f"{said} When last looked at, {'; '.join(told)}."


def _latest(rows: Sequence[MetricRow]) -> list[MetricRow]:
    """All figures of the last window, the worst first."""
    if not rows:
        return []
    last = max((row.window for row in rows), key=lambda one: (one.end, one.start))
    order = list(_NAMES)
    return sorted(
        (row for row in rows if row.window == last),
        key=lambda row: (_WORST_FIRST.index(row.verdict), order.index(row.kind), row.metric, row.subject),
    )


# Over windows -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Shown:
    """A figure with what its lines mean."""

    name: str
    what: str
    image: str
    keys: tuple[tuple[str, str], ...]


def _shown(name: str, what: str, figure: "Figure", *keys: tuple[str, str]) -> _Shown:
    return _Shown(name, what, _image(figure), keys)


def _image(figure: "Figure") -> str:
    from tasks.release_plots import as_svg

    return f"data:image/svg+xml;base64,{base64.b64encode(as_svg(figure)).decode('ascii')}"


def _quality_plots(
    facts: Facts, rows: Sequence[MetricRow], windows: Sequence[Window]
) -> "Iterator[tuple[str, str, Figure, *tuple[tuple[str, str], ...]]]":
    from tasks.dashboard_plots import Band, windows_plot

    quality = [row for row in rows if row.kind == "quality"]
    for metric in dict.fromkeys(row.metric for row in quality if row.metric != "coverage"):
        bands = {
            version: Band(found[metric].low, found[metric].high)
            for version, found in facts.holdouts.items()
            if metric in found
        }
        lines = {metric: [row for row in quality if row.metric == metric]}
        estimated = [row for row in rows if row.metric == f"estimated_{metric}" and row.value is not None]
        if all(row.value is None for row in lines[metric]) and not estimated:
            continue
        keys = [("line", "on labels"), ("band", "champion's holdout")] + (
            [("estimate", "estimated from scores")] if estimated else []
        )
        if estimated:
            lines[f"estimated_{metric}"] = estimated
        known = MEASURES.get(metric)
        better = "" if known is None else f"{'higher' if known.higher_is_better else 'lower'} is better"
        yield known.label if known else metric, better, windows_plot(windows, lines, bands=bands), *keys
    coverage = [row for row in quality if row.metric == "coverage" and row.value is not None]
    if coverage:
        figure = windows_plot(windows, {"coverage": coverage}, scale=100, unit=" %", bars=True)
        yield "Labels", "the part of answered rows whose label has come", figure


def _service_plots(
    rows: Sequence[MetricRow], windows: Sequence[Window]
) -> "Iterator[tuple[str, str, Figure, *tuple[tuple[str, str], ...]]]":
    from tasks.dashboard_plots import windows_plot

    found: dict[str, list[MetricRow]] = {}
    for row in rows:
        if row.kind == "service" and row.value is not None and not row.subject:
            found.setdefault(row.metric, []).append(row)
    quantiles = ("p95_milliseconds", "p50_milliseconds")
    latency: dict[str, Sequence[MetricRow]] = {name: found[name] for name in quantiles if name in found}
    promised = ("limit", "promised")
    if latency:
        figure = windows_plot(windows, latency, limit="p95_milliseconds", unit=" ms", from_zero=True)
        yield "Latency", "the scorer's own times", figure, ("line", "p95"), ("second", "p50"), promised
    if "error_rate" in found:
        lines = {"error_rate": found["error_rate"]}
        figure = windows_plot(windows, lines, limit="error_rate", scale=100, unit=" %", from_zero=True)
        yield (
            "Error rate",
            "requests that failed on our side",
            figure,
            ("line", "rate and interval"),
            promised,
        )
    if "availability" in found:
        lines = {"availability": found["availability"]}
        figure = windows_plot(windows, lines, limit="availability", scale=100, unit=" %")
        yield (
            "Availability",
            "of all requests, those that found no scorer among them",
            figure,
            ("line", "rate and interval"),
            promised,
        )
    if "requests" in found:
        figure = windows_plot(windows, {"requests": found["requests"]}, bars=True)
        yield "Traffic", "requests in the window", figure


@dataclass(frozen=True)
class _Drift:
    image: str
    columns: int
    drifted: tuple[str, ...]


def _drift(rows: Sequence[MetricRow], windows: Sequence[Window]) -> _Drift | None:
    from tasks.dashboard_plots import heat_strip

    moved = [row for row in rows if row.kind in {"drift", "prediction_drift"} and row.subject]
    figure = heat_strip(windows, moved)
    if figure is None:
        return None
    last = max((row.window for row in moved), key=lambda one: (one.end, one.start))
    drifted = sorted(row.subject for row in moved if row.window == last and row.verdict is Verdict.FAIL)
    return _Drift(_image(figure), len({row.subject for row in moved}), tuple(drifted))


# Releases ---------------------------------------------------------------------------------------------------


def _reigns(facts: Facts) -> "list[Reign]":
    from tasks.dashboard_plots import Reign

    became = champions(facts.entries)
    ends = [at for _, at in became[1:]] + [facts.now][: len(became)]
    return [Reign(version, at, end) for (version, at), end in zip(became, ends, strict=True)]


def _marks(facts: Facts) -> "list[Mark]":
    from tasks.dashboard_plots import Mark

    return [
        Mark(row.began + timedelta(seconds=row.seconds or 0), row.version, row.outcome)
        for row in facts.history
        if row.kind == "release" and row.seconds is not None
    ]


def _retrainings(entries: Sequence[Entry]) -> list[tuple[Entry, str]]:
    """The last entries about retraining and acknowledged drift, newest first, each in a sentence."""
    told = []
    for entry in entries:
        said = {name: entry.details.get(name) for name in ("reason", "reasons", "state", "why", "version")}
        why = "; ".join(map(str, said["reasons"] or said["why"] or ()))  # type: ignore[arg-type]
        match entry.event:
            case "retrain.started":
                told.append((entry, f"Began: {said['reason']}"))
            case "retrain.refused":
                told.append((entry, f"Refused: {why}"))
            case "retrain.ended":
                version = f"version {said['version']} " if said["version"] else ""
                state = str(said["state"]).replace("_", " ")
                told.append((entry, f"Ended: {version}{state}{f'. {why}' if why else ''}"))
            case "drift.acknowledged":
                until = str(entry.details["until"])[:16].replace("T", " ")
                told.append((entry, f"{entry.subject} until {until}: {said['reason']}"))
    return told[::-1][:_MOST_RETRAININGS]


# Costs and delivery -----------------------------------------------------------------------------------------


def _cost_days(facts: Facts) -> tuple[list[date], dict[str, list[float]]]:
    """The last days, and what each flow cost on each of them, the dearest flow first; the rest is one."""
    today = start_of_day(facts.now).date()
    days = [today - timedelta(days=back) for back in range(COST_DAYS - 1, -1, -1)]
    place = {day: number for number, day in enumerate(days)}
    ours = [
        cost for cost in facts.costs if cost.currency == facts.today.currency and cost.heard.date() in place
    ]
    flows: dict[str, list[float]] = {}
    for cost in ours:
        flows.setdefault(cost.flow, [0.0] * len(days))[place[cost.heard.date()]] += cost.amount
    ordered = dict(sorted(flows.items(), key=lambda item: (-sum(item[1]), item[0])))
    names = list(ordered)
    if len(names) > 6:
        rest = [sum(values) for values in zip(*(ordered[name] for name in names[5:]), strict=True)]
        ordered = {name: ordered[name] for name in names[:5]} | {"others": rest}
    return days, ordered


def _cost_image(days: Sequence[date], flows: Mapping[str, Sequence[float]], facts: Facts) -> str:
    from tasks.dashboard_plots import cost_plot

    return _image(cost_plot(days, flows, facts.loaded.spec.retrain.daily_budget))


@dataclass(frozen=True)
class _BudgetShown:
    name: str
    spent: Spent
    budget: float | None
    verdict: Verdict | None


def _budgets(facts: Facts) -> tuple[_BudgetShown, ...]:
    policy = facts.loaded.spec.retrain
    return tuple(
        _BudgetShown(name, found, budget, _within(found, budget))
        for name, found, budget in (
            ("Today", facts.today, policy.daily_budget),
            ("This month", facts.month, policy.monthly_budget),
        )
    )


def _within(found: Spent, budget: float | None) -> Verdict | None:
    if budget is None:
        return None
    if found.amount >= budget:
        return Verdict.FAIL
    return Verdict.INCONCLUSIVE if found.unknown else Verdict.PASS


@dataclass(frozen=True)
class _Tile:
    name: str
    value: str
    note: str


def _tiles(facts: Facts, windows: Sequence[Window], delivered: Delivery) -> tuple[_Tile, ...]:
    month, policy = facts.month, facts.loaded.spec.retrain
    last = windows[-1] if windows else None
    rollbacks = len(delivered.rollbacks)
    return (
        _Tile(
            "Champion",
            f"version {facts.champion}" if facts.champion else "none",
            f"since {moment(facts.since)}" if facts.since else "nothing was promoted yet",
        ),
        _Tile(
            "Since the last window",
            duration((facts.now - last.end).total_seconds()) if last else "–",
            f"{len(windows):,} windows shown" if last else "nothing was monitored yet",
        ),
        _Tile(
            "Promotions, 30 days",
            f"{delivered.lately(facts.now):,}",
            f"{rollbacks:,} rollbacks ever" if rollbacks else "no rollback ever",
        ),
        _Tile(
            "Cost this month",
            str(month),
            f"of {policy.monthly_budget:g} {month.currency}"
            if policy.monthly_budget
            else "no monthly budget",
        ),
    )
