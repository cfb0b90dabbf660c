"""What a life of the embedded business came to, month by month, and where it is kept while it goes on.

Each step of a life is kept as one JSON file when it is done, so a life that was killed carries on behind its last step.
"""

import os
import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, TypeVar

from pydantic import ValidationError

from deployments.declared import Declared
from platforms.platform import Platform
from tasks.monitoring_record import MetricRow, MonitorOutcome, Window
from tasks.release_record import Release
from tasks.verdict import Verdict

__all__ = [
    "LabelsCame",
    "LifeRecord",
    "LifecycleOutcome",
    "Monitored",
    "Month",
    "Released",
    "Retrained",
    "Serving",
    "TrafficSent",
    "Trained",
]

S = TypeVar("S", bound=Declared)


class Trained(Declared):
    """A training as of a moment: its winner, and the metric of the spec on the holdout with its interval.

    `version` is None where gates refused it, and `why` says why. `champion_value` is what the champion had on the rows
    that both were compared on, where there was one.
    """

    as_of: datetime
    candidate: str
    metric: str
    value: float
    low: float
    high: float
    rows: int
    verdict: Verdict
    why: str = ""
    version: str | None
    compared_with: str | None = None
    champion_value: float | None = None
    report: str
    evidence: str | None


class TrafficSent(Declared):
    """What simulated callers asked in a month: so many customers as of a moment, in so many requests, by window."""

    as_of: datetime
    customers: int
    requests: int
    failed: int
    windows: tuple[Window, ...]


class Monitored(Declared):
    """What `monitor` found in one window of a month, and the rows of its table that the timeline shows."""

    month: int
    outcome: MonitorOutcome
    rows: tuple[MetricRow, ...]

    def of(self, kind: str, metric: str | None = None) -> tuple[MetricRow, ...]:
        """The rows of a kind, and of a metric if it is named, of the version that was judged."""
        return tuple(
            row
            for row in self.rows
            if row.kind == kind and metric in {None, row.metric} and row.version == self.outcome.version
        )


class Serving(Declared):
    """Which version was champion at the end of a month."""

    version: str


class LabelsCame(Declared):
    """Labels of the requests of a month, known at a moment: how many came, and how many of those were positive."""

    of_month: int
    known: datetime
    labels: int
    positive: int


class Released(Declared):
    """How a release went under live traffic, and what callers got meanwhile."""

    release: Release
    requests: int
    failed: int
    answered: dict[str, int] = {}
    report: str | None

    @property
    def promoted(self) -> bool:
        """Whether the challenger became champion."""
        return str(self.release.state) == "promoted"


class Retrained(Declared):
    """How a retraining ended, what it trained, and how its release went."""

    state: str
    why: tuple[str, ...]
    trained: Trained | None
    released: Released | None


class Month(Declared):
    """One month of a life; what is None, or empty, was no part of it."""

    number: int
    title: str
    begins: datetime
    trained: Trained | None = None
    released: Released | None = None
    retrained: Retrained | None = None
    traffic: TrafficSent | None = None
    labels: tuple[LabelsCame, ...] = ()
    monitored: tuple[Monitored, ...] = ()
    champion: str | None = None

    @property
    def alerts(self) -> tuple[str, ...]:
        """The events of all alerts that its windows raised."""
        return tuple(alert.event for one in self.monitored for alert in one.outcome.alerts)

    @property
    def in_order(self) -> tuple[Declared, ...]:
        """All its facts, in the order in which it was lived."""
        first = self.released is not None and self.released.release.champion is None
        offered = [self.trained, self.released]
        early = [one for one in self.labels if one.known <= self.begins]
        late = [one for one in self.labels if one.known > self.begins]
        judged = [one for one in self.monitored if one.outcome.labelled]
        found = [
            *(offered if first else []),
            *early,
            *(judged if early else []),
            self.traffic,
            *(one for one in self.monitored if not one.outcome.labelled),
            *late,
            *([] if early else judged),
            self.retrained,
            *([] if first else offered),
        ]
        return tuple(one for one in found if one is not None)

    @property
    def release(self) -> Released | None:
        """The release of the month, by whatever it came."""
        return self.released or (self.retrained.released if self.retrained else None)


class LifecycleOutcome(Declared):
    """A whole life: every month, all requests and failures, and where to read on."""

    model: str
    environment: str
    begun: datetime
    ended: datetime
    months: tuple[Month, ...]
    champion: str
    requests: int
    failed: int
    surprises: tuple[str, ...] = ()
    timeline: str
    dashboard: str | None = None
    evidence: str | None = None
    endpoint: str | None = None
    known: bool = False

    @property
    def seconds(self) -> float:
        """How long it took, from its first beginning to its end."""
        return (self.ended - self.begun).total_seconds()


class _Begun(Declared):
    """When a life began, and of which model."""

    model: str
    begun: datetime


Wanted = Literal["go on", "afresh"]


class LifeRecord:
    """The steps of the life in one environment that are done, each a file; and the life itself once it is."""

    def __init__(self, platform: Platform, model: str) -> None:
        self.folder = platform.folder("lifecycle") / model
        self.folder.mkdir(parents=True, exist_ok=True)
        begun = self._read("begun", _Begun)
        if begun is None:
            begun = self._keep("begun", _Begun(model=model, begun=datetime.now(UTC)))
        self.begun = begun.begun

    def step(self, name: str, kind: type[S], make: Callable[[], S]) -> S:
        """What a step came to: as it was kept, or made now and kept."""
        return self._read(name, kind) or self._keep(name, make())

    def done(self, name: str) -> bool:
        """Whether a step is done."""
        return (self.folder / f"{name}.json").exists()

    def finished(self) -> LifecycleOutcome | None:
        """The life, if it has come to its end."""
        found = self._read("life", LifecycleOutcome)
        return found.model_copy(update={"known": True}) if found else None

    def finish(self, outcome: LifecycleOutcome) -> LifecycleOutcome:
        """Keep the whole of it."""
        return self._keep("life", outcome)

    def _read(self, name: str, kind: type[S]) -> S | None:
        path = self.folder / f"{name}.json"
        try:
            return kind.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            return None
        except ValidationError:
            # Written by another version of this code: the step is taken again.
            return None

    def _keep(self, name: str, found: S) -> S:
        staged = self.folder / f"{name}.partial"
        with staged.open("w", encoding="utf-8") as file:
            file.write(found.model_dump_json(indent=1))
            file.flush()
            os.fsync(file.fileno())
        staged.replace(self.folder / f"{name}.json")
        return found


def forget(root: Path) -> None:
    """Remove a data root with everything in it."""
    shutil.rmtree(root, ignore_errors=True)
