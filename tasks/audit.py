"""The audit: whether ledger, evidence bundles and release records are as they were written, and agree.

It reads, and changes nothing. What it cannot find out stands in `tasks.ledger`.
"""

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from deployments.declared import Declared
from deployments.errors import BadInputError
from platforms.platform import Platform
from tasks.demands import changes
from tasks.evidence import LEDGER_HEAD, bundles, verify_bundle
from tasks.ledger import GENESIS, Entry, LedgerError
from tasks.promotion_audit import promotion_problems
from tasks.register import ledger_of
from tasks.release_record import Release, ReleaseStore, State, Transition

__all__ = ["Audit", "audit", "audit_release", "release_problems"]

_STARTED = "release.started"
_STATES = {
    "release.approved": State.APPROVED,
    "release.promoted": State.PROMOTED,
    "release.rolled_back": State.ROLLED_BACK,
    "release.rejected": State.REJECTED,
}
"""The states that events stand for by their names; a step says its state among its details."""

_TRIES = 3


class Audit(Declared):
    """What was looked at, how much of it, and each thing that is wrong.

    `changes` are allowed, and to be known: how the demands that promotions are made by changed.
    """

    entries: int
    bundles: int
    releases: int
    problems: tuple[str, ...]
    changes: tuple[str, ...] = ()


def audit(platform: Platform) -> Audit:
    """Check the ledger's chain, the approvals of every promotion, every evidence bundle, and every release record."""
    verification = ledger_of(platform).verify()
    problems = [f"ledger: {problem}" for problem in verification.problems]
    folders = bundles(platform)
    for folder in folders:
        problems += [f"{folder}: {problem}" for problem in verify_bundle(platform, folder)]
    problems += _rewritten(platform, folders)
    releases, found = _releases(platform)
    try:
        entries = list(ledger_of(platform).entries())
    except LedgerError:
        entries = []
    problems += promotion_problems(entries, platform.environment.name)
    return Audit(
        entries=verification.entries,
        bundles=len(folders),
        releases=releases,
        problems=(*problems, *found),
        changes=tuple(changes(entries)),
    )


def audit_release(platform: Platform, model: str, release: str) -> list[str]:
    """What is wrong with one release's record, or how it contradicts the ledger.

    A release that goes on while it is looked at is looked at again.
    """
    store, problems = ReleaseStore(platform, model), list[str]()
    for _ in range(_TRIES):
        try:
            record = store.load(release)
            problems = release_problems(record, list(ledger_of(platform).entries(model)))
            if not problems or store.load(release) == record:
                return problems
        except LedgerError:
            return ["its record cannot be compared: the ledger cannot be read"]
        except BadInputError as error:
            return [str(error)]
    return problems


def release_problems(release: Release, entries: Sequence[Entry]) -> list[str]:
    """How a release's record contradicts the ledger's entries of it.

    A transition stands in the ledger before the record says that it was made, so each that the record tells of must
    stand there, in that order; the ledger may be one ahead, where a controller died between the two.
    """
    ours = [
        entry
        for entry in entries
        if entry.event.startswith("release.") and entry.details.get("release") == release.id
    ]
    problems = _another(release, ours)
    made = [(entry, told) for entry in ours if (told := _told(entry)) is not None]
    if not made and not release.history and release.state is State.PROPOSED:
        return problems
    place = 0
    for one in release.history:
        at = next((n for n in range(place, len(made)) if _same(one, *made[n])), None)
        if at is None:
            problems.append(f"its record says {_named(one)}, and the ledger does not say so")
        else:
            place = at + 1
    said = (release.state, release.step)
    recorded = (
        (release.history[-1].state, release.history[-1].step) if release.history else (State.PROPOSED, 0)
    )
    if said != recorded:
        problems.append(
            f"its record says that it is {release.state}, and its own history ends with {recorded[0]}"
        )
    last = made[-1][1] if made else (State.PROPOSED, 0)
    underway = (release.intent.state, release.intent.step) if release.intent else None
    if last not in {said, underway}:
        problems.append(
            f"its record says that it is {release.state}, and the ledger's last entry says {last[0]}"
        )
    return problems


def _another(release: Release, ours: Sequence[Entry]) -> list[str]:
    """What the ledger says of whose release it is."""
    problems = []
    if ours and any(entry.subject != release.subject for entry in ours):
        problems.append(
            f"its record is of {release.subject}, and the ledger's entries are of {ours[0].subject}"
        )
    elif any(
        entry.details.get("model_digest", release.challenger.digest) != release.challenger.digest
        for entry in ours
    ):
        problems.append("its record is of another model file than the ledger's entries")
    started = next((entry for entry in ours if entry.event == _STARTED), None)
    if started is None and (release.history or release.state is not State.PROPOSED):
        problems.append("the ledger does not say that it was started")
    elif started is not None and "replaces" in started.details:
        replaced = release.champion.version if release.champion else None
        if started.details["replaces"] != replaced:
            problems.append(
                f"its record replaces version {replaced}, and the ledger says {started.details['replaces']}"
            )
    known = {digest for entry in ours for digest in _listed(entry.details.get("approvals"))}
    # The record names them before the transition that rests on them is in the ledger.
    problems += [
        f"its record rests on approval {digest[:16]}, and the ledger does not say so"
        for digest in release.approvals
        if digest not in known and release.intent is None
    ]
    return problems


def _listed(found: Any) -> list[str]:
    return [str(item) for item in found] if isinstance(found, list) else []


def _told(entry: Entry) -> tuple[State, int] | None:
    """The state that an entry says a release came into; None where it says nothing of the kind."""
    said, step = entry.details.get("state"), entry.details.get("step")
    if entry.event != "release.step" and entry.event not in _STATES:
        return None
    try:
        state = State(str(said)) if said is not None else _STATES[entry.event]
    except (ValueError, KeyError):
        return None
    return state, step if isinstance(step, int) else 0


def _same(one: Transition, entry: Entry, told: tuple[State, int]) -> bool:
    """Whether an entry tells of this transition, in all that it tells."""
    wanted: Mapping[str, Any] = {"percentage": one.percentage, "reason": one.reason}
    alike = all(entry.details.get(name, value) == value for name, value in wanted.items())
    took = entry.details.get("seconds")
    if isinstance(took, int | float) and one.effective is not None:
        alike &= abs((one.effective - one.observed).total_seconds() - took) < 0.01
    return alike and told == (one.state, one.step)


def _named(one: Transition) -> str:
    share = f" at {one.percentage} %" if one.state in {State.SHADOW, State.CANARY} else ""
    return f"{one.state}{share} ({one.reason})"


def _releases(platform: Platform) -> tuple[int, list[str]]:
    """How many releases there are by records and ledger, and what is wrong with any."""
    root = platform.folder("releases")
    known: dict[tuple[str, str], None] = {}
    for path in sorted(root.glob("*/*/release.json")):
        known[path.parent.parent.name, path.parent.name] = None
    problems: dict[tuple[str, str], list[str]] = defaultdict(list)
    for model, release in known:
        problems[model, release] += audit_release(platform, model, release)
    for model, release in _started(platform):
        if (model, release) not in known:
            known[model, release] = None
            problems[model, release].append("the ledger knows it, and its record is missing")
    return len(known), [
        f"release {model}/{release}: {problem}"
        for (model, release), found in problems.items()
        for problem in found
    ]


def _started(platform: Platform) -> Iterator[tuple[str, str]]:
    try:
        for entry in ledger_of(platform).entries():
            if entry.event == _STARTED and isinstance(entry.details.get("release"), str):
                yield entry.model, str(entry.details["release"])
    except LedgerError:
        return


def _rewritten(platform: Platform, folders: Sequence[Path]) -> list[str]:
    """Bundles that remember another ledger than the one that stands: it was cut or written anew, head and all."""
    try:
        hashes = [GENESIS, *(entry.hash for entry in ledger_of(platform).entries())]
    except LedgerError:
        return []
    problems = []
    for folder in folders:
        try:
            head = json.loads((folder / LEDGER_HEAD).read_bytes())
            entries, last = int(head["entries"]), str(head["last"])
        except (OSError, ValueError, KeyError, TypeError):
            continue
        if not 0 <= entries < len(hashes) or hashes[entries] != last:
            problems.append(f"ledger: entry {entries} is not the one that {folder / LEDGER_HEAD} remembers")
    return problems
