"""The history of a model's releases: who released what, how it went, and who took it back; newest first.

Release records, their looks and the ledger go in; rows come out.
"""

import json
from collections.abc import Sequence
from datetime import datetime
from typing import Literal

from deployments.declared import Declared
from platforms.platform import Platform
from tasks.ledger import Entry
from tasks.readings import goes_on, requests_seen, summary
from tasks.register import ledger_of
from tasks.release_record import Look, Release, ReleaseStore
from tasks.release_report import REPORT, approvals_of, ended_at

__all__ = ["HistoryRow", "ReleaseTold", "history", "release_told"]

DRILL, BY_HAND = "drill.rollback", "rollback.by_hand"


class HistoryRow(Declared):
    """A release, a rollback by hand, or a drill.

    `seconds` is how long it took to its outcome, None while it is under way; `analysis` what the tests saw, or
    why somebody went back. `requests` counts each arm's, the challenger's copies in shadow among them.
    """

    kind: Literal["release", "rollback", "drill"]
    id: str
    model: str
    environment: str
    left: str | None
    version: str
    outcome: str
    approved_by: tuple[str, ...] = ()
    began_by: str
    began: datetime
    seconds: float | None = None
    requests: dict[str, int] = {}
    analysis: str = ""
    report: str | None = None


class ReleaseTold(Declared):
    """One release in full: its row, its record, the last look, and what the ledger says of it."""

    row: HistoryRow
    release: Release
    last_look: Look | None
    looks: int
    entries: tuple[dict[str, object], ...]


def history(platform: Platform, model: str, limit: int | None = None) -> list[HistoryRow]:
    """Releases, rollbacks by hand and drills of a model, newest first, `limit` of them at most.

    Raises:
        BadInputError: a record is none any more.
        LedgerError: the ledger cannot be read.
    """
    store, entries = ReleaseStore(platform, model), list(ledger_of(platform).entries(model))
    found: list[tuple[datetime, Release | Entry]] = [(release.begun, release) for release in store.all()]
    found += [
        (datetime.fromisoformat(entry.time), entry) for entry in entries if entry.event in {DRILL, BY_HAND}
    ]
    newest = sorted(found, key=lambda item: item[0], reverse=True)[:limit]
    return [
        _of_release(store, item, _closing_looks(store, item.id), entries)
        if isinstance(item, Release)
        else _of_entry(item, platform.environment.name)
        for _, item in newest
    ]


def release_told(platform: Platform, model: str, release: str) -> ReleaseTold:
    """One release in full.

    Raises:
        BadInputError: there is none of that name.
    """
    store, entries = ReleaseStore(platform, model), list(ledger_of(platform).entries(model))
    record, looks = store.load(release), list(store.looks(release))
    return ReleaseTold(
        row=_of_release(store, record, looks, entries),
        release=record,
        last_look=looks[-1] if looks else None,
        looks=len(looks),
        entries=tuple(
            entry.model_dump(mode="json") for entry in entries if entry.details.get("release") == record.id
        ),
    )


def _closing_looks(store: ReleaseStore, release: str) -> list[Look]:
    """The last look of each stretch, which is all that a row tells of; a release may have tens of thousands."""
    path = store.folder(release) / "looks.jsonl"
    if not path.exists():
        return []
    closing: list[bytes] = []
    before: tuple[str, int, int] | None = None
    with path.open("rb") as file:
        for line in file:
            if not line.endswith(b"\n"):
                break
            said = json.loads(line)
            mark = (said["state"], said["step"], sum(said["requests"].values()))
            if before is not None and goes_on(before, mark):
                closing[-1] = line
            else:
                closing.append(line)
            before = mark
    return [Look.model_validate_json(line) for line in closing]


def _of_release(
    store: ReleaseStore, release: Release, looks: Sequence[Look], entries: Sequence[Entry]
) -> HistoryRow:
    report = store.folder(release.id) / REPORT
    end = ended_at(release)
    state = release.state.value.replace("_", " ")
    return HistoryRow(
        kind="release",
        id=release.id,
        model=release.model,
        environment=release.environment,
        left=release.champion.version if release.champion else None,
        version=release.challenger.version,
        outcome=state if release.ended else f"under way: {release.held or state}",
        approved_by=tuple(
            f"{one.approver} ({one.role}, {one.ticket})" for one in approvals_of(release, entries)
        ),
        began_by=release.started_by,
        began=release.begun,
        seconds=(end - release.begun).total_seconds() if end else None,
        requests=requests_seen(looks) if looks else {},
        analysis=summary(looks),
        report=str(report) if report.is_file() else None,
    )


def _of_entry(entry: Entry, environment: str) -> HistoryRow:
    """A rollback by hand, or a drill, as the ledger tells of it."""
    told, drill = entry.details, entry.event == DRILL
    # A drill goes to the version before and back: its time to restore is that of the way to it.
    left = told.get("champion" if drill else "left")
    version = told.get("previous" if drill else "version")
    seconds = told.get("seconds_to_previous" if drill else "seconds")
    failed = f"{told.get('failed')} of {told.get('requests')} requests failed" if drill else ""
    return HistoryRow(
        kind="drill" if drill else "rollback",
        id=f"ledger {entry.seq}",
        model=entry.model,
        environment=environment,
        left=str(left) if left is not None else None,
        version=str(version or entry.subject.rpartition("/")[2]),
        outcome="drilled" if drill else "rolled back by hand",
        began_by=entry.actor,
        began=datetime.fromisoformat(entry.time),
        seconds=float(seconds) if isinstance(seconds, int | float) else None,
        analysis=failed or str(told.get("reason") or ""),
    )
