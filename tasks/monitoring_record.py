"""What monitoring found: one row for each metric, window and served version, in a table of its own.

A window that is looked at again, as when labels came, replaces its rows: nothing stands there twice.
"""

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Literal

import pyarrow as pa

from deployments.declared import Declared
from deployments.monitoring import AlertKind
from platforms.platform import Platform
from tasks.verdict import Verdict, overall

__all__ = ["Alert", "Kind", "MetricRow", "MonitorOutcome", "MonitoringTable", "Window", "verdict_of"]

Kind = Literal[
    "drift",
    "prediction_drift",
    "inputs",
    "quality",
    "estimated_quality",
    "service",
    "slice",
    "fairness",
    "importance",
    "budget",
]

_SCHEMA = pa.schema(
    [
        ("version", pa.string()),
        ("window_start", pa.timestamp("us", "UTC")),
        ("window_end", pa.timestamp("us", "UTC")),
        ("kind", pa.string()),
        ("metric", pa.string()),
        ("subject", pa.string()),
        ("value", pa.float64()),
        ("low", pa.float64()),
        ("high", pa.float64()),
        ("threshold", pa.float64()),
        ("verdict", pa.string()),
        ("rows", pa.int64()),
        ("reason", pa.string()),
    ]
)


class Window(Declared):
    """A span of the prediction log, from `start` on and before `end`; both have a time zone."""

    start: datetime
    end: datetime


class MetricRow(Declared):
    """One metric of one window: its value, its interval and threshold where it has them, and what that means.

    `subject` is the column, slice or group that it is of, empty for the whole window; `rows` is how many rows it was
    computed from. A metric that is told and not judged has no verdict.
    """

    version: str
    window: Window
    kind: Kind
    metric: str
    subject: str = ""
    value: float | None = None
    low: float | None = None
    high: float | None = None
    threshold: float | None = None
    verdict: Verdict | None = None
    rows: int = 0
    reason: str = ""

    @property
    def key(self) -> tuple[object, ...]:
        """What a second look at the same window replaces."""
        return (self.version, self.window.start, self.window.end, self.kind, self.metric, self.subject)


class Alert(Declared):
    """Something a person, or an automation, should act on; `event` is the name of its Prefect event."""

    kind: AlertKind
    event: str
    reason: str
    subjects: tuple[str, ...] = ()
    acknowledged: str = ""


class MonitorOutcome(Declared):
    """What one look at one window found, and where its report is; `again` are earlier windows with late labels."""

    model: str
    environment: str
    name: str
    version: str
    window: Window
    requests: int
    rows: int
    labelled: int
    verdicts: dict[str, Verdict]
    alerts: tuple[Alert, ...]
    report: str
    problems: tuple[str, ...] = ()
    again: tuple["MonitorOutcome", ...] = ()

    @property
    def with_late_alerts(self) -> "MonitorOutcome":
        """The same with the alerts of the windows that were judged again behind its own."""
        late = tuple(alert for one in self.again for alert in one.alerts)
        return self.model_copy(update={"alerts": (*self.alerts, *late)})


class MonitoringTable:
    """The rows of one model in one environment."""

    def __init__(self, platform: Platform, model: str) -> None:
        self._platform, self._model = platform, model
        self._name = platform.table("monitoring", model, "metrics")

    def put(self, rows: Sequence[MetricRow]) -> None:
        """Write rows, all or none; those of windows that are looked at again replace what stood there.

        Raises:
            BusyError: somebody else is writing.
        """
        lock = f"monitoring-{self._name.replace('/', '-')}"
        with self._platform.alone(
            lock, f"the monitoring of {self._model} is being written by another process"
        ):
            ordered = self.beside(rows)
            table = pa.Table.from_pylist([_record(row) for row in ordered], _SCHEMA)
            self._platform.tables.write(self._name, table.to_reader())

    def beside(self, rows: Sequence[MetricRow]) -> list[MetricRow]:
        """All rows as they stand once these have replaced those of their windows."""
        looked_at = {(row.version, row.window) for row in rows}
        standing = [row for row in self.rows() if (row.version, row.window) not in looked_at]
        return sorted([*standing, *rows], key=lambda row: tuple(map(str, row.key)))

    def rows(self) -> list[MetricRow]:
        """All rows, ordered by version, window and metric."""
        snapshot = self._platform.tables.latest(self._name)
        if snapshot is None:
            return []
        return [_row(record) for record in self._platform.tables.read(snapshot).to_pylist()]

    def windows(self, kind: Kind, version: str | None = None) -> dict[Window, list[MetricRow]]:
        """The rows of one kind by window, the oldest first; of one version where it is named."""
        found: dict[Window, list[MetricRow]] = {}
        for row in self.rows():
            if row.kind == kind and version in {None, row.version}:
                found.setdefault(row.window, []).append(row)
        return dict(sorted(found.items(), key=lambda item: (item[0].end, item[0].start)))


def _record(row: MetricRow) -> dict[str, object]:
    said = row.model_dump(exclude={"window"})
    return {
        **said,
        "window_start": row.window.start.astimezone(UTC),
        "window_end": row.window.end.astimezone(UTC),
        "verdict": None if row.verdict is None else str(row.verdict),
    }


def _row(record: dict[str, object]) -> MetricRow:
    window = {"start": record.pop("window_start"), "end": record.pop("window_end")}
    return MetricRow.model_validate({**record, "window": window})


def verdict_of(rows: Iterable[MetricRow]) -> Verdict:
    """Fail where any row fails, else inconclusive where any is, else pass; rows that are not judged do not count."""
    return overall(row.verdict for row in rows if row.verdict is not None)
