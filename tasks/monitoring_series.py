"""What windows came to as metrics of the version's MLflow run: a series for each figure, a point for each window.

Windows as long as the plan's are `monitoring/<kind>/<metric>`. Those of another length have it in the name, as in
`monitoring/12h/quality/coverage`, so that a look at half a day is no point of a week's series.
"""

import math
from collections.abc import Sequence
from datetime import UTC, datetime

from deployments.monitoring import MonitoringSpec
from platforms.platform import Platform
from tasks.champion import ChampionRef
from tasks.monitoring_record import MetricRow, Window
from tasks.service_levels import of_version
from tasks.tracking import Tracking

__all__ = ["log_window", "series_name"]

_UNITS = {"d": 86_400.0, "h": 3_600.0, "min": 60.0, "s": 1.0}


def series_name(plan: MonitoringSpec, row: MetricRow) -> str:
    """The metric's name for a row: with the window's length where that is not the plan's."""
    seconds = (row.window.end - row.window.start).total_seconds()
    planned = math.isclose(seconds, plan.window_hours * 3600, abs_tol=1e-3)
    length = "" if planned else f"{_length(seconds)}/"
    return f"monitoring/{length}{row.kind}/{row.metric}"


def _length(seconds: float) -> str:
    """A length in the largest unit that it fills, to two digits: 7d, 36h, 90min, 1.5s."""
    for unit, size in _UNITS.items():
        if seconds >= size and seconds % size == 0:
            return f"{seconds / size:g}{unit}"
    unit, size = next((one for one in _UNITS.items() if seconds >= one[1]), ("s", 1.0))
    return f"{seconds / size:.2g}{unit}"


def log_window(
    platform: Platform, ref: ChampionRef, plan: MonitoringSpec, window: Window, rows: Sequence[MetricRow]
) -> list[str]:
    """Put what is of the whole window beside the version's run; what MLflow does not take is told.

    The step is the second in which the window ends, counted from 1970. A value that changed, as when labels came, is
    logged again with a later time; one that did not is not.
    """
    from mlflow.entities import Metric
    from mlflow.exceptions import MlflowException

    client = Tracking(platform).client
    step, now = int(window.end.timestamp()), int(datetime.now(UTC).timestamp() * 1000)
    try:
        new = []
        for row in rows:
            if not _is_of(ref.version, row) or row.value is None or not math.isfinite(row.value):
                continue
            name = series_name(plan, row)
            known = [one for one in client.get_metric_history(ref.run_id, name) if one.step == step]
            if not known or max(known, key=lambda one: one.timestamp).value != row.value:
                new.append(Metric(name, row.value, now, step))
        if new:
            client.log_batch(ref.run_id, metrics=new)
    except (MlflowException, OSError) as error:
        return [f"the run of {ref.name} version {ref.version} did not take the metrics: {error}"]
    return []


def _is_of(version: str, row: MetricRow) -> bool:
    """Whether a row is of the whole window and of that version; service levels are those of the version itself."""
    return row.version == version and row.subject == (of_version(version) if row.kind == "service" else "")
