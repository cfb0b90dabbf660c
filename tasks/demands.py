"""What an environment demands of a promotion, as the ledger knows it: entered at its first use and at each change.

An environment is a file, and any file may be named; so the ledger says by which demands each promotion was made, and
that there were others before. A change is not forbidden, and not hidden either: the audit lists it.
"""

import hashlib
import json
from collections.abc import Iterable
from typing import Any

from deployments.environment import Environment
from tasks.ledger import Entry, Ledger

__all__ = ["CHANGED", "FIRST", "changes", "pin", "standing_demands"]

FIRST, CHANGED = "environment.first_used", "environment.changed"
_DEMANDS = {"name", "approvals", "approvers", "approval_days", "takes_from"}


def pin(ledger: Ledger, environment: Environment, *, actor: str) -> None:
    """Enter what an environment demands of a promotion, unless the ledger's last entry of it says just that.

    Raises:
        LedgerError: the ledger cannot be read, or takes no entries.
    """
    demands = environment.model_dump(mode="json", include=_DEMANDS)
    digest = hashlib.sha256(json.dumps(demands, sort_keys=True).encode()).hexdigest()
    last = standing_demands(ledger.entries(), environment.name)
    if last is not None and last.details["digest"] == digest:
        return
    ledger.append(
        FIRST if last is None else CHANGED,
        model="",
        subject=f"environment/{environment.name}",
        details={"digest": digest, "demands": demands},
        key=f"environment/{environment.name}/{last.seq if last else 0}/{digest[:16]}",
        actor=actor,
    )


def standing_demands(entries: Iterable[Entry], environment: str) -> Entry | None:
    """The last entry of what an environment demands; None where there is none."""
    subject = f"environment/{environment}"
    found = [entry for entry in entries if entry.event in {FIRST, CHANGED} and entry.subject == subject]
    return found[-1] if found else None


def changes(entries: Iterable[Entry]) -> list[str]:
    """Each change of what an environment demands, as a sentence: when, by whom, and what is asked for since."""
    told, before = [], dict[str, Any]()
    for entry in entries:
        if entry.event not in {FIRST, CHANGED}:
            continue
        demands: Any = entry.details["demands"]
        if entry.event == CHANGED:
            asked, had = demands["approvals"], before[entry.subject]["approvals"]
            gone = sorted(set(had) - set(asked))
            told.append(
                f"environment {demands['name']!r} demands something else of promotions since {entry.time} "
                f"({entry.actor}): approvals of {_roles(asked)}"
                + (f"; no longer of {_roles(gone)}" if gone else "")
            )
        before[entry.subject] = demands
    return told


def _roles(names: Iterable[str]) -> str:
    return ", ".join(names) or "nobody"
