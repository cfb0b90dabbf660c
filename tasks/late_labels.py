"""Labels that came after their window was looked at: which windows are judged again, and what that says of them.

A label often comes weeks after its answer, when nobody looks at the window any more. What stands in the monitoring
table says how many labels a window had and when the last of them came; where the table of labels says otherwise by
now, its quality is measured anew. Everything else of the window stays as it was found.
"""

from dataclasses import dataclass
from datetime import timedelta

from deployments.spec import LoadedSpec
from platforms.platform import Platform
from tasks.champion import ChampionRef, standing_champion
from tasks.live_window import labels_within
from tasks.monitor import quality_part, reported
from tasks.monitor_window import Watched, watch
from tasks.monitoring_record import Alert, Kind, MetricRow, MonitoringTable, MonitorOutcome, Window
from tasks.quality import labels_said

__all__ = ["Late", "judged_again", "late_windows"]

_FROM_LABELS: frozenset[Kind] = frozenset({"quality", "slice", "fairness", "importance"})


@dataclass(frozen=True)
class Late:
    """A window whose labels are others than when it was last judged, and the version that was judged in it."""

    window: Window
    version: str


def late_windows(loaded: LoadedSpec, platform: Platform, newest: Watched) -> list[Late]:
    """The windows before `newest`, as long as that, whose labels changed since they were judged; the oldest first.

    They go back as far, and are as many, as the plan's `look_back_days` and `look_back_windows` let them.
    """
    plan, span = loaded.spec.monitoring.quality, newest.window
    earliest = span.end - timedelta(days=plan.look_back_days)
    judged = [
        row
        for row in MonitoringTable(platform, loaded.name).rows()
        if row.kind == "quality"
        and row.metric == "coverage"
        and row.window.end - row.window.start == span.end - span.start
        and earliest <= row.window.end < span.end
    ]
    if newest.log is None or not judged:
        return []
    asked = [(row.window, row.version) for row in judged]
    labels = labels_within(platform, newest.log, loaded.name, asked)
    late = [
        Late(row.window, row.version)
        for row, (count, received) in zip(judged, labels, strict=True)
        if row.reason != labels_said(count, row.rows, received)
    ]
    ordered = sorted(late, key=lambda one: (one.window.end, one.version))
    return ordered[: plan.look_back_windows]


def judged_again(
    loaded: LoadedSpec, platform: Platform, late: Late
) -> tuple[MonitorOutcome, list[MetricRow]]:
    """What a window comes to by the labels that are known now, with its page; and its rows, to be put into the table.

    The outcome's alerts are of quality alone, and of today's champion: of a version that answers nobody any more
    there is nothing that anybody could do.

    Raises:
        ContenderError: the log cannot be read, or the version's files are not what was recorded.
    """
    watched = watch(platform, loaded, late.window, late.version)
    standing = [
        row
        for row in MonitoringTable(platform, loaded.name).rows()
        if row.window == late.window
        and row.kind not in _FROM_LABELS
        and (row.version == late.version or row.kind == "service")
    ]
    rows = [*standing, *quality_part(loaded, platform, watched)]
    outcome = reported(loaded, platform, watched, rows)
    alerts = _worth_telling(platform, loaded.name, outcome)
    return outcome.model_copy(update={"alerts": alerts}), rows


def _worth_telling(platform: Platform, model: str, outcome: MonitorOutcome) -> tuple[Alert, ...]:
    standing = standing_champion(platform, model)
    if not isinstance(standing, ChampionRef) or standing.version != outcome.version:
        return ()
    return tuple(alert for alert in outcome.alerts if alert.kind == "quality")
