"""Whether each promotion in the ledger had all approvals that its environment demanded then, each verified anew.

All of it is read from the ledger: the demands (`tasks.demands`), the promotion, and the signed approvals it names.
"""

import json
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from pydantic import ValidationError

from deployments.environment import Approver
from deployments.errors import BadInputError
from tasks.approvals import GIVEN, SignedApproval, signed_by
from tasks.demands import standing_demands
from tasks.ledger import Entry
from tasks.register import PROMOTED

__all__ = ["promotion_problems"]


def promotion_problems(entries: Sequence[Entry], environment: str) -> list[str]:
    """What is wrong with the approvals of any promotion; `entries` are all of an environment's ledger, in order.

    A promotion from before the ledger knew what the environment demands is not judged.
    """
    given = {str(entry.details.get("digest")): entry for entry in entries if entry.event == GIVEN}
    begun = {entry.seq: entry for entry in entries if entry.event == "promotion.started"}
    problems = []
    for entry in entries:
        if entry.event != PROMOTED:
            continue
        started = begun.get(_number(entry.details.get("started")), entry)
        demanded = standing_demands(entries[: started.seq - 1], environment)
        if demanded is not None:
            problems += [
                f"promotion of {entry.subject} (entry {entry.seq}): {problem}"
                for problem in _problems(started, demanded.details["demands"], given)
            ]
    return problems


def _problems(started: Entry, demands: Any, given: dict[str, Entry]) -> list[str]:
    """What is wrong with the approvals of one promotion."""
    roles = {str(role) for role in demands["approvals"]}
    if not roles:
        return []
    named = started.details.get("approvals")
    if not isinstance(named, list):
        return [f"it does not say which approvals it rests on, and {', '.join(sorted(roles))} had to approve"]
    try:
        approvers = {
            one["name"]: Approver.model_validate_json(json.dumps(one)) for one in demands["approvers"]
        }
    except (ValidationError, KeyError, TypeError):
        return ["the ledger does not say who could approve"]
    problems, filled = list[str](), dict[str, str]()
    for digest in map(str, named):
        entry = given.get(digest)
        if entry is None or entry.seq >= started.seq:
            problems.append(f"approval {digest[:16]} was not given before it")
            continue
        try:
            signed = SignedApproval.from_token(str(entry.details.get("token")))
        except BadInputError:
            problems.append(f"approval {digest[:16]} stands in the ledger as none that was signed")
            continue
        problem = _refusal(signed, digest, started, demands["name"], approvers)
        if problem:
            problems.append(f"approval {digest[:16]} {problem}")
        elif signed.approval.approver in filled.values():
            problems.append(f"{signed.approval.approver} approved in two roles")
        else:
            filled[signed.approval.role] = signed.approval.approver
    return [*problems, *(f"nobody approved as {role}" for role in sorted(roles - filled.keys()))]


def _refusal(
    signed: SignedApproval, digest: str, started: Entry, environment: str, approvers: dict[str, Approver]
) -> str:
    """Why an approval does not count for a promotion; empty where it does."""
    said, at = signed.approval, datetime.fromisoformat(started.time)
    approver = approvers.get(said.approver)
    if said.digest != digest or said.decision != "approve":
        return "is another one than was named"
    if approver is None or not signed_by(approver, signed):
        return f"is not signed by the key of an approver named {said.approver!r}"
    if said.role not in approver.roles or not approver.valid(at):
        return f"is of somebody who could not approve as {said.role}"
    of = (said.environment, f"{said.name}/{said.version}", said.model_digest)
    if of != (environment, started.subject, started.details.get("model_digest")):
        return "is of another version, model file or environment"
    return "had expired" if said.expires_at <= at else ""


def _number(found: Any) -> int:
    return found if isinstance(found, int) else 0
