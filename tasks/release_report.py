"""The report of a release: what was decided, when and why, and what the analysis saw, as one HTML page.

A release, its looks and ledger entries go in and text comes out, whole by itself like every page of
`tasks.report`. Writing it keeps a copy with the challenger's run.
"""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from deployments.errors import first_line
from platforms.platform import Platform
from tasks.ledger import Entry
from tasks.readings import Test, interval, last_readings, measured, requests_seen, stage, threshold
from tasks.register import ledger_of
from tasks.release_record import ENDED, LIVE, Look, Reading, Release, ReleaseStore, State, Transition
from tasks.tracking import Tracking

__all__ = [
    "REPORT",
    "ApprovalSeen",
    "WrittenReport",
    "approvals_of",
    "duration",
    "ended_at",
    "of_release",
    "release_artifacts",
    "release_page",
    "share_picture",
    "write_page",
    "write_release_report",
]

REPORT = "report.html"
GIVEN = "approval.given"
_MISSING = "–"

_BADGES = {
    State.PROMOTED: ("pass", "✓", "promoted"),
    State.ROLLED_BACK: ("fail", "↩", "rolled back"),
    State.REJECTED: ("fail", "✕", "rejected"),
}


@dataclass(frozen=True)
class WrittenReport(os.PathLike[str]):
    """Where a report lies; `unlogged` says why MLflow has no copy of it, and is empty where it has."""

    path: Path
    unlogged: str = ""

    def __str__(self) -> str:
        return str(self.path)

    def __fspath__(self) -> str:
        return str(self.path)


@dataclass(frozen=True)
class ApprovalSeen:
    """An approval as the ledger tells of it."""

    approver: str
    role: str
    ticket: str
    time: str
    digest: str


def release_page(release: Release, looks: Sequence[Look], entries: Sequence[Entry]) -> str:
    """What one release came to: the outcome first, then what callers saw, what the tests said, and who did what.

    Args:
        release: its record.
        looks: what the analysis saw, oldest first; none where the challenger never had traffic.
        entries: the ledger; of it, what tells of this release.
    """
    from tasks.release_plots import as_svg, confidence_plots, scores_plot, traffic_plots
    from tasks.report import templates

    told = of_release(release, entries)
    scores = scores_plot(looks)
    requests = requests_seen(looks)
    found = last_readings(looks)
    tone, sign, outcome = _BADGES.get(
        release.state, ("inconclusive", "…", f"under way: {release.state.value}")
    )
    return (
        templates()
        .get_template("release.html.j2")
        .render(
            release=release,
            tone=tone,
            sign=sign,
            outcome=outcome,
            lead=_lead(release),
            tiles=_tiles(release, looks, requests),
            traffic={name: _image(as_svg(figure)) for name, figure in traffic_plots(release, looks).items()},
            scores=_image(as_svg(scores)) if scores is not None else None,
            tests=[
                _TestShown.of(name, _image(as_svg(figure)), release, looks)
                for name, figure in confidence_plots(release, looks).items()
            ],
            readings=[(look, one, Test.named(one.test)) for look, one in found],
            timeline=_timeline(release),
            approvals=approvals_of(release, told),
            entries=told,
            looks=len(looks),
            notes=_notes(looks),
            moment=moment,
            stage=stage,
            interval=interval,
            measured=measured,
        )
    )


def write_release_report(platform: Platform, release: Release) -> WrittenReport:
    """Write the page into the release's folder, and a copy to the challenger's run in MLflow.

    That MLflow does not take it is no reason to stop a release: the answer says so.
    """
    path = write_page(platform, release)
    return WrittenReport(path, _log(platform, release, path.read_text(encoding="utf-8")))


def write_page(platform: Platform, release: Release) -> Path:
    """Write the page into the release's folder, whole or not at all."""
    store = ReleaseStore(platform, release.model)
    entries = list(ledger_of(platform).entries(release.model))
    page = release_page(release, list(store.looks(release.id)), entries)
    folder = store.folder(release.id)
    folder.mkdir(parents=True, exist_ok=True)
    staged = folder / "report.partial"
    with staged.open("w", encoding="utf-8") as file:
        file.write(page)
        file.flush()
        os.fsync(file.fileno())
    return staged.replace(folder / REPORT)


def _log(platform: Platform, release: Release, page: str) -> str:
    from mlflow.exceptions import MlflowException

    try:
        Tracking(platform).client.log_text(release.challenger.run_id, page, f"releases/{release.id}/{REPORT}")
    except (MlflowException, OSError) as error:
        return f"MLflow has no copy of the report: {first_line(error)}"
    return ""


def release_artifacts(release: Release, looks: Sequence[Look]) -> str:
    """Transitions and last readings in Markdown, for an artifact in the Prefect UI."""
    lines = [f"# {release.model}: {_BADGES.get(release.state, ('', '', release.state.value))[2]}", ""]
    approved = f" Approved by {', '.join(release.approvers)}." if release.approvers else ""
    lines += [
        f"{_lead(release)}{approved}",
        "",
        "| state | share | decided | in effect | why |",
        "| --- | --- | --- | --- | --- |",
    ]
    lines += [
        _row(
            stage(one.state, one.percentage),
            _share(one.state, one.percentage),
            moment(one.at),
            moment(one.effective),
            one.reason,
        )
        for one in release.history
    ]
    found = last_readings(looks)
    if not found:
        return "\n".join([*lines, "", "Nothing was analysed.", ""])
    lines += [
        "",
        "| test | verdict | estimate | interval | challenger | champion | in |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    lines += [
        _row(
            Test.named(one.test).label,
            f"**{one.verdict}**",
            measured(Test.named(one.test), one.estimate),
            interval(one),
            f"{one.challenger:,}",
            f"{one.champion:,}",
            stage(look.state, look.percentage),
        )
        for look, one in found
    ]
    return "\n".join([*lines, ""])


def _row(*cells: str) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|').replace(chr(10), ' ') for cell in cells)} |"


# Times ------------------------------------------------------------------------------------------------------


def moment(when: datetime | None) -> str:
    """A moment in UTC, to the second."""
    if when is None:
        return _MISSING
    return _utc(when).strftime("%Y-%m-%d %H:%M:%S UTC")


def duration(seconds: float | None) -> str:
    """How long something took, in the two units that say most."""
    if seconds is None or not math.isfinite(seconds):
        return _MISSING
    if seconds < 1:
        return f"{1000 * seconds:.0f} ms"
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    for name, size, below, below_size in (
        ("d", 86400, "h", 3600),
        ("h", 3600, "min", 60),
        ("min", 60, "s", 1),
    ):
        if whole >= size:
            rest = whole % size // below_size
            return f"{whole // size} {name} {rest} {below}" if rest else f"{whole // size} {name}"
    return f"{whole} s"


def ended_at(release: Release) -> datetime | None:
    """When the outcome that stands was in effect; None while the release is under way."""
    if not release.ended or not release.history:
        return None
    last = next((one for one in reversed(release.history) if one.state is release.state), None)
    return (last.effective or last.at) if last else None


def _utc(when: datetime) -> datetime:
    return when.replace(tzinfo=UTC) if when.tzinfo is None else when.astimezone(UTC)


def _seconds(begin: datetime, end: datetime | None) -> float | None:
    return None if end is None else (_utc(end) - _utc(begin)).total_seconds()


# What the page shows ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Tile:
    name: str
    value: str
    note: str


@dataclass(frozen=True)
class _Step:
    """One transition as the timeline shows it."""

    state: State
    label: str
    share: str
    observed: str
    decided: str
    effective: str
    took: str
    stayed: str
    reason: str
    pending: bool = False


@dataclass(frozen=True)
class _TestShown:
    """The confidence sequence of one test, and what the plan says of it."""

    test: Test
    image: str
    last: Reading
    effect: str
    tolerated: str

    @classmethod
    def of(cls, name: str, image: str, release: Release, looks: Sequence[Look]) -> "_TestShown":
        test = Test.named(name)
        look, last = next(
            (look, reading) for look in reversed(looks) for reading in look.readings if reading.test == name
        )
        harm = test.harm(release.plan, look)
        if harm is None:
            return cls(test, image, last, _MISSING, _MISSING)
        return cls(test, image, last, threshold(test, harm.effect), threshold(test, harm.tolerated))


def share_picture(release: Release, looks: Sequence[Look]) -> str | None:
    """The challenger's share over time, as a data URI; None where it never had traffic."""
    from tasks.release_plots import as_svg, traffic_plots

    drawn = traffic_plots(release, looks).get("share")
    return _image(as_svg(drawn)) if drawn is not None else None


def _image(svg: bytes) -> str:
    from tasks.report import data_uri

    return data_uri(svg, "svg+xml")


def _lead(release: Release) -> str:
    """The outcome in a sentence or two."""
    ours, theirs = release.challenger.version, release.champion.version if release.champion else None
    why = next((one.reason for one in reversed(release.history) if one.state is release.state), "")
    if release.state is State.PROMOTED:
        said = f"Version {ours} " + (f"replaced version {theirs}" if theirs else "became the first champion")
    elif release.state in ENDED:
        had = (
            "was rolled back"
            if release.state is State.ROLLED_BACK
            else "was rejected before it had any traffic"
        )
        said = f"Version {ours} {had}; " + (f"version {theirs} serves on" if theirs else "no version serves")
    else:
        return f"Version {ours} is under way" + (f" against version {theirs}." if theirs else ".")
    return f"{said}. {why[:1].upper()}{why[1:].rstrip('.')}." if why else f"{said}."


def _tiles(release: Release, looks: Sequence[Look], requests: dict[str, int]) -> tuple[_Tile, ...]:
    end = ended_at(release)
    live = sum(
        (_utc(after.effective or after.at) - _utc(one.effective or one.at)).total_seconds()
        for one, after in zip(release.history, release.history[1:], strict=False)
        if one.state in LIVE
    )
    theirs = release.champion.version if release.champion else "none"
    return (
        _Tile("Versions", f"{theirs} → {release.challenger.version}", f"{release.challenger.name}"),
        _Tile(
            "Begin to outcome",
            duration(_seconds(release.begun, end)),
            f"{duration(live)} with traffic" if live else "no traffic",
        ),
        _Tile(
            "Requests of the challenger",
            f"{requests['challenger']:,}" if looks else _MISSING,
            f"{requests['champion']:,} of the champion in the same time" if looks else "none was analysed",
        ),
        _Tile(
            "Looks of the analysis",
            f"{len(looks):,}" if looks else _MISSING,
            f"{len(release.plan.analysis.tests)} tests, α = {release.plan.analysis.alpha:g} over all",
        ),
    )


def _timeline(release: Release) -> tuple[_Step, ...]:
    steps = []
    for place, one in enumerate(release.history):
        after = release.history[place + 1] if place + 1 < len(release.history) else None
        since = one.effective or one.at
        steps.append(
            _Step(
                state=one.state,
                label=_label(one),
                share=_share(one.state, one.percentage),
                observed=moment(one.observed),
                decided=moment(one.at),
                effective=moment(one.effective),
                took=duration(_seconds(one.at, one.effective)),
                stayed=duration(_seconds(since, after.effective or after.at)) if after else _MISSING,
                reason=one.reason,
            )
        )
    if release.intent is not None:
        one = release.intent
        steps.append(
            _Step(
                one.state,
                _label(one),
                _share(one.state, one.percentage),
                moment(one.observed),
                moment(one.at),
                "not confirmed",
                _MISSING,
                _MISSING,
                one.reason,
                pending=True,
            )
        )
    return tuple(steps)


def _label(one: Transition) -> str:
    if one.state is State.CANARY:
        return f"canary, step {one.step + 1}"
    return stage(one.state, one.percentage)


def _share(state: State, percentage: int) -> str:
    """Which part of the callers, or of copies, the challenger has in a state."""
    if state is State.SHADOW:
        return f"{percentage} % of copies"
    return {State.CANARY: f"{percentage} %", State.PROMOTED: "100 %"}.get(state, "0 %")


def of_release(release: Release, entries: Sequence[Entry]) -> list[Entry]:
    """The entries that tell of a release: those that name it, and the approvals it was begun on."""
    return [
        entry
        for entry in entries
        if entry.details.get("release") == release.id
        or (entry.event == GIVEN and entry.details.get("digest") in release.approvals)
    ]


def approvals_of(release: Release, entries: Sequence[Entry]) -> tuple[ApprovalSeen, ...]:
    """The approvals a release was begun on, as the ledger tells of them; one it does not know has no approver."""
    given = {
        str(entry.details["digest"]): entry
        for entry in entries
        if entry.event == GIVEN and "digest" in entry.details
    }
    found = []
    for digest in release.approvals:
        entry = given.get(digest)
        if entry is None:
            found.append(ApprovalSeen("unknown", _MISSING, _MISSING, _MISSING, digest))
            continue
        told = {name: str(entry.details.get(name) or _MISSING) for name in ("role", "ticket")}
        found.append(
            ApprovalSeen(
                str(entry.details.get("approver") or entry.actor),
                told["role"],
                told["ticket"],
                entry.time[:19],
                digest,
            )
        )
    return tuple(found)


def _notes(looks: Sequence[Look], most: int = 8) -> list[str]:
    """What looks had to say besides readings, each once."""
    return list(dict.fromkeys(look.note for look in looks if look.note))[:most]
