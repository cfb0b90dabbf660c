"""What a dashboard is made of, read from where it stands: monitoring table, releases, ledger, costs and evaluations."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from deployments.spec import LoadedSpec
from platforms.platform import Platform
from tasks.champion import ChampionMissing, ChampionRef, standing_champion, version_ref
from tasks.costs import Cost, CostLog, Spent, SpentOn, spent, spent_on, start_of_day, start_of_month
from tasks.drift_ack import DriftAck, acknowledgements
from tasks.evaluate import Evaluation
from tasks.history import HistoryRow, history
from tasks.ledger import Entry
from tasks.metrics import Estimate
from tasks.monitoring_record import MetricRow, MonitoringTable
from tasks.register import PROMOTED, RESTORED, ledger_of
from tasks.tracking import Tracking

__all__ = ["COST_DAYS", "Facts", "champions", "gather"]

COST_DAYS = 30


@dataclass(frozen=True)
class Facts:
    """All that a dashboard is made of; moments have a time zone.

    `champion` is the version that serves and `since` when it began to; `holdouts` are the metrics that versions had on
    theirs; `costs` those of the last `COST_DAYS` days.
    """

    loaded: LoadedSpec
    environment: str
    name: str
    now: datetime
    champion: str | None
    since: datetime | None
    rows: Sequence[MetricRow]
    holdouts: Mapping[str, Mapping[str, Estimate]]
    history: Sequence[HistoryRow]
    entries: Sequence[Entry]
    acks: Sequence[DriftAck]
    costs: Sequence[Cost]
    spent_on: Sequence[SpentOn]
    today: Spent
    month: Spent


def gather(platform: Platform, loaded: LoadedSpec, now: datetime | None = None) -> Facts:
    """Read everything that a dashboard shows, as it is known now.

    Raises:
        BadInputError: a record is none any more.
        LedgerError: the ledger cannot be read.
    """
    now = (now or datetime.now(UTC)).astimezone(UTC)
    standing = standing_champion(platform, loaded.name)
    champion = standing.version if isinstance(standing, ChampionRef) else None
    rows = MonitoringTable(platform, loaded.name).rows()
    entries = tuple(ledger_of(platform).entries(loaded.name))
    began = [at for version, at in champions(entries) if version == champion]
    versions = {row.version for row in rows if row.kind == "quality"}
    since = start_of_day(now) - timedelta(days=COST_DAYS - 1)
    return Facts(
        loaded=loaded,
        environment=platform.environment.name,
        name=platform.registered_model(loaded.name),
        now=now,
        champion=champion,
        since=began[-1] if began else None,
        rows=rows,
        holdouts={version: _holdout(platform, loaded.name, version) for version in sorted(versions)},
        history=history(platform, loaded.name),
        entries=entries,
        acks=acknowledgements(platform, loaded.name, now),
        costs=CostLog(platform, loaded.name).read(since)[0],
        spent_on=spent_on(platform, loaded.name, since),
        today=spent(platform, loaded.name, start_of_day(now)),
        month=spent(platform, loaded.name, start_of_month(now)),
    )


def _holdout(platform: Platform, model: str, version: str) -> Mapping[str, Estimate]:
    ref = version_ref(platform, model, version)
    if isinstance(ref, ChampionMissing):
        return {}
    found = Tracking(platform).document(ref.run_id, "evaluation", Evaluation)
    return found.metrics if found is not None else {}


def champions(entries: Sequence[Entry]) -> list[tuple[str, datetime]]:
    """Which version became champion, and when, oldest first."""
    return [
        (str(entry.details["version"]), datetime.fromisoformat(entry.time))
        for entry in entries
        if entry.event in {PROMOTED, RESTORED}
    ]
