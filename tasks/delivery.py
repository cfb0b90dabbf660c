"""How well a model is delivered: lead time, frequency, rollbacks and time to restore, and what gates refuse.

The four keys of software delivery (Forsgren, Humble and Kim, Accelerate, 2018), read from the ledger alone, as it has
them: entries of one model go in, oldest first, and figures come out.
"""

import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from tasks.ledger import Entry
from tasks.register import PROMOTED, REGISTERED, REJECTED

__all__ = ["MONTH", "Delivery", "LeadTime", "Refusal", "Restored", "delivery"]

MONTH = timedelta(days=30)
ROLLED_BACK, RELEASED = "release.rolled_back", "release.promoted"
BY_HAND = "rollback.by_hand"
REFUSED = "model.refused"


@dataclass(frozen=True)
class LeadTime:
    """From a version whose gates passed (registered) to the first time that it was champion."""

    version: str
    ready: datetime
    live: datetime

    @property
    def seconds(self) -> float:
        """How long it took."""
        return (self.live - self.ready).total_seconds()


@dataclass(frozen=True)
class Restored:
    """A rollback: which version left, and the seconds from what was seen (or asked for) to the traffic being back.

    `caught` says that the version never had all traffic; `seconds` is None where nothing was up.
    """

    version: str
    at: datetime
    seconds: float | None
    caught: bool
    by_hand: bool


@dataclass(frozen=True)
class Refusal:
    """A gate, and in how many of all gate decisions it did not pass: it failed, or could not be decided."""

    gate: str
    failed: int
    undecided: int
    decisions: int

    @property
    def share(self) -> float:
        """The part of all decisions that it refused."""
        return (self.failed + self.undecided) / self.decisions


@dataclass(frozen=True)
class Delivery:
    """All figures of one model, with what they are computed from.

    `promotions` are the moments at which a version became champion, `decisions` how often gates decided, and
    `refused` how many of those did not pass.
    """

    lead_times: tuple[LeadTime, ...]
    promotions: tuple[datetime, ...]
    rollbacks: tuple[Restored, ...]
    decisions: int
    refused: int
    refusals: tuple[Refusal, ...]

    @property
    def lead_seconds(self) -> float | None:
        """The median lead time."""
        return statistics.median(one.seconds for one in self.lead_times) if self.lead_times else None

    @property
    def restore_seconds(self) -> float | None:
        """The median time to restore, over rollbacks that moved traffic."""
        known = [one.seconds for one in self.rollbacks if one.seconds is not None]
        return statistics.median(known) if known else None

    @property
    def failure_share(self) -> float | None:
        """The part of versions that got all traffic and were taken back; None where none ever did."""
        taken_back = sum(not one.caught for one in self.rollbacks)
        return min(1.0, taken_back / len(self.promotions)) if self.promotions else None

    def lately(self, now: datetime, span: timedelta = MONTH) -> int:
        """How many promotions there were in the span before `now`."""
        return sum(now - span < at <= now for at in self.promotions)


def delivery(entries: Sequence[Entry]) -> Delivery:
    """Read the figures from a model's ledger entries, oldest first."""
    ready: dict[str, datetime] = {}
    lead_times: dict[str, LeadTime] = {}
    promotions, rollbacks = [], []
    promoted: set[object] = set()
    gates: Counter[tuple[str, bool]] = Counter()
    decisions = refused = 0
    for entry in entries:
        at, subject = datetime.fromisoformat(entry.time), entry.subject
        match entry.event:
            case event if event in {REGISTERED, REJECTED, REFUSED}:
                decisions += 1
                refused += event != REGISTERED
                for said in entry.details.get("refused_by") or ():  # type: ignore[union-attr]
                    gate, _, verdict = str(said).rpartition(": ")
                    gates[gate, verdict == "fail"] += 1
                if event == REGISTERED:
                    ready.setdefault(subject, at)
            case event if event == PROMOTED:
                promotions.append(at)
                if subject in ready and subject not in lead_times:
                    lead_times[subject] = LeadTime(_version(subject), ready[subject], at)
            case event if event == RELEASED:
                promoted.add(entry.details.get("release"))
            case event if event == ROLLED_BACK:
                caught = entry.details.get("release") not in promoted
                rollbacks.append(Restored(_version(subject), at, _seconds(entry), caught, by_hand=False))
            case event if event == BY_HAND:
                left = str(entry.details.get("left") or "?")
                rollbacks.append(Restored(left, at, _seconds(entry), caught=False, by_hand=True))
    names = sorted(
        {gate for gate, _ in gates}, key=lambda gate: (-(gates[gate, True] + gates[gate, False]), gate)
    )
    return Delivery(
        lead_times=tuple(lead_times.values()),
        promotions=tuple(promotions),
        rollbacks=tuple(rollbacks),
        decisions=decisions,
        refused=refused,
        refusals=tuple(Refusal(gate, gates[gate, True], gates[gate, False], decisions) for gate in names),
    )


def _version(subject: str) -> str:
    return subject.rpartition("/")[2]


def _seconds(entry: Entry) -> float | None:
    seconds = entry.details.get("seconds")
    return float(seconds) if isinstance(seconds, int | float) else None
