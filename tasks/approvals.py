"""Approvals: what a person signs about one version, and which signatures count when it is to be released.

An approval is bound to the model file and to the gate report, signed with the approver's ed25519 key, and kept twice:
as a file, and in the ledger. Nothing that was checked when it was given is believed later: `standing` checks it again.
"""

import base64
import binascii
import hashlib
import json
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import AwareDatetime, Field, ValidationError

from deployments.declared import Declared
from deployments.environment import Approver, Environment, same_person
from deployments.errors import BadInputError, ContenderError, first_line
from platforms.platform import Platform
from tasks.approver_keys import public_key_of, write_new
from tasks.champion import ChampionMissing, ChampionRef, version_ref
from tasks.ledger import Entry, LedgerError
from tasks.register import REGISTERED, REJECTED, ledger_of
from tasks.tracking import TAG, Tracking

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

GIVEN, REFUSED = "approval.given", "approval.refused"
_RECEIVED = "transfer.received"
_ENDS_OF_RELEASES = frozenset({"release.promoted", "release.rolled_back", "release.rejected"})
_DOMAIN = b"contender approval 1\n"
"""What the signed bytes begin with, so that a signature made for anything else is none here."""
_CLOCKS_DIFFER = timedelta(seconds=60)
_LONGEST_TOKEN = 32_768

Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Line = Annotated[
    str,
    Field(max_length=200, pattern=r"^[^\x00-\x1f\x7f-\x9f]*[^\s\x00-\x1f\x7f-\x9f][^\x00-\x1f\x7f-\x9f]*$"),
]
"""One line of text, without control characters and not blank."""


class ApprovalRefusedError(ContenderError):
    """An approval that does not count; the message says why."""

    exit_code = 3


class Approval(Declared):
    """What an approver says of one version in one environment; `name` is the registered model's."""

    model: str = Field(pattern=r"^[a-z][a-z0-9_]{0,62}$")
    name: Line
    version: str = Field(pattern=r"^[0-9]{1,18}$")
    environment: Line
    model_digest: Digest
    gate_report: Digest
    role: Line
    approver: Line
    decision: Literal["approve", "reject"]
    ticket: Line
    comment: str = Field("", max_length=2000, pattern=r"^[^\x00-\x1f\x7f-\x9f]*$")
    issued_at: AwareDatetime
    expires_at: AwareDatetime
    nonce: str = Field(pattern=r"^[0-9a-f]{32}$")

    @property
    def signed_bytes(self) -> bytes:
        """What is signed: canonical JSON after a prefix of its own."""
        return _DOMAIN + _canonical(self.model_dump(mode="json"))

    @property
    def digest(self) -> str:
        """SHA-256 of what is signed: the same for any signature of it."""
        return hashlib.sha256(self.signed_bytes).hexdigest()


class SignedApproval(Declared):
    """An approval and the base64 of its ed25519 signature."""

    approval: Approval
    signature: str = Field(pattern=r"^[A-Za-z0-9+/]{86}==$")

    def to_token(self) -> str:
        """One line to be pasted: base64url of the JSON."""
        return base64.urlsafe_b64encode(_canonical(self.model_dump(mode="json"))).decode().rstrip("=")

    @classmethod
    def from_token(cls, token: str) -> "SignedApproval":
        """What a token says; spaces and line ends in it, as pasting leaves them, are taken out.

        Raises:
            BadInputError: it is no token.
        """
        text = "".join(token.split())
        try:
            if not text or len(text) > _LONGEST_TOKEN:
                raise ValueError(f"it has {len(text):,} characters")
            raw = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
            return cls.model_validate_json(raw)
        except ValidationError as error:
            raise BadInputError(f"this is no approval token: {_problem(error)}") from None
        except ValueError as error:
            raise BadInputError(f"this is no approval token: {first_line(error)}") from None


class RoleStanding(Declared):
    """Whose approval counts for a role, or the reason why none does."""

    role: str
    approval: SignedApproval | None = None
    reason: str = ""


class Approvals(Declared):
    """How the approvals of one version stand.

    `problem` says why none could count, whoever gave it; `approvers` are all names of those whose approvals count.
    """

    model: str
    name: str
    version: str
    environment: str
    roles: tuple[RoleStanding, ...]
    rejected: SignedApproval | None = None
    problem: str = ""
    approvers: tuple[str, ...] = ()

    @property
    def complete(self) -> bool:
        """Whether every role that is asked for has approved, and nobody has rejected."""
        return (
            not self.problem
            and self.rejected is None
            and all(standing.approval is not None for standing in self.roles)
        )

    @property
    def digests(self) -> tuple[str, ...]:
        """The digests of the approvals that count."""
        return tuple(
            standing.approval.approval.digest for standing in self.roles if standing.approval is not None
        )

    @property
    def why_not(self) -> str:
        """Why they are not complete, in one line; empty where they are."""
        if self.problem:
            return self.problem
        if self.rejected is not None:
            said = self.rejected.approval
            return f"{said.approver} rejected it as {said.role} ({said.ticket}), until {_moment(said.expires_at)}"
        return "; ".join(f"{one.role}: {one.reason}" for one in self.roles if one.approval is None)


# Who signs


def approver_with(environment: Environment, key: "Ed25519PrivateKey") -> Approver:
    """The approver whose key this is.

    Raises:
        ApprovalRefusedError: it is nobody's; says how to enter it.
    """
    public = public_key_of(key)
    for approver in environment.approvers:
        if approver.public_key == public:
            return approver
    raise ApprovalRefusedError(
        f"this key is of no approver of environment {environment.name!r}; enter its public key {public} under "
        "`approvers` in the environment's YAML, in a change that somebody else reviews"
    )


# Giving


def draft(
    platform: Platform,
    model: str,
    ref: ChampionRef,
    *,
    role: str,
    approver: str,
    ticket: str,
    now: datetime,
    decision: Literal["approve", "reject"] = "approve",
    comment: str = "",
    days: float | None = None,
) -> Approval:
    """An approval of a version as registry and ledger have it, to be signed; valid as long as the environment allows.

    Raises:
        ApprovalRefusedError: registry and ledger do not agree on a version whose gates passed.
        BadInputError: role, approver or ticket is blank, a text is not one line, or the validity is too long.
    """
    environment = platform.environment
    gate_report = _passed_gates(platform, model, ref, _history(platform, model, ref))
    lasts = environment.approval_days if days is None else days
    if not 0 < lasts <= environment.approval_days:
        raise BadInputError(
            f"an approval cannot be valid for {lasts:g} days: environment {environment.name!r} allows more than "
            f"0 and up to {environment.approval_days:g}"
        )
    issued = now.astimezone(UTC).replace(microsecond=0)
    try:
        return Approval(
            model=model,
            name=ref.name,
            version=ref.version,
            environment=environment.name,
            model_digest=ref.digest,
            gate_report=gate_report,
            role=role,
            approver=approver,
            decision=decision,
            ticket=ticket,
            comment=comment,
            issued_at=issued,
            expires_at=issued + timedelta(days=lasts),
            nonce=secrets.token_hex(16),
        )
    except ValidationError as error:
        raise BadInputError(f"this makes no approval: {_problem(error)}") from None


def sign(approval: Approval, key: "Ed25519PrivateKey") -> SignedApproval:
    """The approval with a signature by a key; whose key it is, is for whoever checks."""
    signature = key.sign(approval.signed_bytes)
    return SignedApproval(approval=approval, signature=base64.b64encode(signature).decode())


def check(platform: Platform, signed: SignedApproval, now: datetime | None = None) -> ChampionRef:
    """The version that an approval is of, where the approval counts.

    Raises:
        ApprovalRefusedError: it does not; says why.
    """
    said = signed.approval
    ref = _version_meant(platform, said)
    reason = _refusal(signed, _case(platform, said.model, ref), now or datetime.now(UTC))
    if reason:
        what = "approval" if said.decision == "approve" else "rejection"
        raise ApprovalRefusedError(f"the {what} of {ref.name} version {ref.version} does not count: {reason}")
    return ref


def submit(platform: Platform, signed: SignedApproval, now: datetime | None = None) -> Entry:
    """Check an approval, keep it, and answer its entry in the ledger; one that stands there already changes nothing.

    Raises:
        ApprovalRefusedError: it does not count; the refusal is in the ledger.
        LedgerError: the ledger takes no entries.
    """
    said = signed.approval
    details = {
        "digest": said.digest,
        "decision": said.decision,
        "role": said.role,
        "approver": said.approver,
        "ticket": said.ticket,
        "environment": said.environment,
        "version": said.version,
        "model_digest": said.model_digest,
        "gate_report": said.gate_report,
        "expires_at": said.expires_at.isoformat(),
    }
    try:
        ref = check(platform, signed, now)
    except ApprovalRefusedError as error:
        why = hashlib.sha256(str(error).encode()).hexdigest()[:16]
        ledger_of(platform).append(
            REFUSED,
            model=said.model,
            subject=f"{said.name}/{said.version}",
            details=details | {"reason": str(error)},
            key=f"approval-refused/{said.digest}/{why}",
            actor=platform.identity(),
        )
        raise
    _keep(platform, ref, signed)
    return ledger_of(platform).append(
        GIVEN,
        model=said.model,
        subject=f"{ref.name}/{ref.version}",
        details=details | {"token": signed.to_token()},
        key=f"approval/{said.digest}",
        actor=platform.identity(),
    )


def _version_meant(platform: Platform, said: Approval) -> ChampionRef:
    """The registered version that an approval names, where it names one of this environment."""
    name = platform.registered_model(said.model)
    if said.name != name or said.environment != platform.environment.name:
        raise ApprovalRefusedError(
            f"the approval is of {said.name} in environment {said.environment!r}, and this is {name} in "
            f"{platform.environment.name!r}"
        )
    ref = version_ref(platform, said.model, said.version)
    if isinstance(ref, ChampionMissing):
        raise ApprovalRefusedError(ref.reason)
    return ref


def _keep(platform: Platform, ref: ChampionRef, signed: SignedApproval) -> None:
    path = _folder(platform, ref) / _file(signed.approval.digest)
    path.parent.mkdir(parents=True, exist_ok=True)
    staged = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    try:
        write_new(staged, (signed.model_dump_json(indent=1) + "\n").encode(), mode=0o644)
        staged.replace(path)
    finally:
        staged.unlink(missing_ok=True)


def _folder(platform: Platform, ref: ChampionRef) -> Path:
    return platform.folder("approvals") / ref.name / f"v{ref.version}"


def _file(digest: str) -> str:
    return f"{digest[:16]}.json"


# Standing


@dataclass(frozen=True)
class _Case:
    """What the approvals of a version are held against.

    `makers` trained it or moved it here; `passed` approved it where it came from, None where that is not recorded;
    `used` says which release an approval was used up by.
    """

    environment: Environment
    model: str
    ref: ChampionRef
    gate_report: str
    makers: frozenset[str]
    passed: frozenset[str] | None
    used: Mapping[str, str]
    given: Sequence[Entry]


def standing(
    platform: Platform, model: str, ref: ChampionRef, now: datetime, *, release: str = ""
) -> Approvals:
    """Which approvals of a version count at `now`, role by role; every check is made again.

    `release` names the release that asks: it does not find its own approvals used up. What the registry says is
    compared with the ledger, and an approval must be in its file and in the ledger; a rejection needs the ledger
    alone, so nobody undoes it by taking a file away. A ledger that was changed takes no more entries, so a release
    finds that out at its next step.

    Raises:
        LedgerError: the ledger cannot be read.
    """
    environment = platform.environment
    found = Approvals(model=model, name=ref.name, version=ref.version, environment=environment.name, roles=())
    try:
        case = _case(platform, model, ref, release)
    except ApprovalRefusedError as error:
        reason = str(error)
        roles = tuple(RoleStanding(role=role, reason=reason) for role in environment.approvals)
        return found.model_copy(update={"roles": roles, "problem": reason})
    rejected: list[SignedApproval] = []
    counting: dict[str, list[SignedApproval]] = {role: [] for role in environment.approvals}
    refused: dict[str, list[str]] = {role: [] for role in environment.approvals}
    for signed, problem in _on_record(platform, case):
        said = signed.approval
        reason = problem or _refusal(signed, case, now)
        if said.decision == "reject":
            rejected += [] if reason else [signed]
        elif reason:
            refused.setdefault(said.role, []).append(f"{said.approver} ({said.ticket}): {reason}")
        else:
            counting[said.role].append(signed)
    chosen = _one_person_one_role(counting)
    people = {approver.name: approver for approver in environment.approvers}
    roles = tuple(
        RoleStanding(role=role, approval=chosen[role])
        if role in chosen
        else RoleStanding(role=role, reason=_why_none(case, role, counting[role], refused[role]))
        for role in environment.approvals
    )
    approvers = [people[signed.approval.approver] for signed in chosen.values()]
    return found.model_copy(
        update={
            "roles": roles,
            "rejected": max(rejected, key=lambda signed: signed.approval.expires_at, default=None),
            "approvers": tuple(name for one in approvers for name in (one.name, *one.identities)),
        }
    )


def _case(platform: Platform, model: str, ref: ChampionRef, release: str = "") -> _Case:
    """What registry and ledger say of a version.

    Raises:
        ApprovalRefusedError: they do not agree on a version whose gates passed, or its author is not recorded.
    """
    environment, history = platform.environment, _history(platform, model, ref)
    gate_report = _passed_gates(platform, model, ref, history)
    tags = Tracking(platform).client.get_model_version(ref.name, ref.version).tags
    author = tags.get(f"{TAG}author", "").strip()
    if not author:
        raise ApprovalRefusedError(
            f"{ref.name} version {ref.version}: its author is not recorded, so nobody can be told apart from them"
        )
    # Whoever may write to the registry may name others there; the ledger knows who trained, moved and approved it.
    registered = {entry.actor for entry in history if entry.event == REGISTERED}
    received = [
        entry.details
        for entry in history
        if entry.event == _RECEIVED and entry.details.get("model_digest") == ref.digest
    ]
    makers = {author} | registered | {str(details.get("author")) for details in received}
    passed = {str(name) for details in received for name in _listed(details.get("passed_approvers"))}
    return _Case(
        environment=environment,
        model=model,
        ref=ref,
        gate_report=gate_report,
        makers=frozenset(same_person(name) for name in makers),
        passed=frozenset(same_person(name) for name in passed) if received else None,
        used=_used_up(history, release),
        given=[entry for entry in history if entry.event == GIVEN],
    )


def _used_up(history: Sequence[Entry], release: str) -> dict[str, str]:
    """By which ended release, other than this one, each approval was used up; a release names them at every step."""
    ended = {
        entry.details.get("release"): f"{entry.event.removeprefix('release.')} on {entry.time[:10]}"
        for entry in history
        if entry.event in _ENDS_OF_RELEASES
    }
    return {
        str(digest): ended[entry.details.get("release")]
        for entry in history
        if entry.event.startswith("release.")
        and entry.details.get("release") in ended
        and not (release and entry.details.get("release") == release)
        for digest in _listed(entry.details.get("approvals"))
    }


def _history(platform: Platform, model: str, ref: ChampionRef) -> list[Entry]:
    subject = f"{ref.name}/{ref.version}"
    return [entry for entry in ledger_of(platform).entries(model) if entry.subject == subject]


def _listed(value: object) -> Iterable[object]:
    return value if isinstance(value, list) else ()


def _passed_gates(platform: Platform, model: str, ref: ChampionRef, history: Sequence[Entry]) -> str:
    """The digest of the gate report that a version passed by, where registry and ledger say the same."""
    of = f"{ref.name} version {ref.version}"
    if ref.name != platform.registered_model(model):
        raise ApprovalRefusedError(f"{of} is no version of {model} in {platform.environment.name!r}")
    registered = version_ref(platform, model, ref.version)
    if isinstance(registered, ChampionMissing):
        raise ApprovalRefusedError(registered.reason)
    if registered != ref:
        raise ApprovalRefusedError(f"{of} is not what it was: the registry has another run or model file")
    decided = [
        entry
        for entry in history
        if entry.event in {REGISTERED, REJECTED} and entry.details["run_id"] == ref.run_id
    ]
    if not decided or decided[-1].event != REGISTERED or decided[-1].details["model_digest"] != ref.digest:
        raise ApprovalRefusedError(f"{of}: the ledger does not say that the gates passed this model file")
    tag = Tracking(platform).client.get_model_version(ref.name, ref.version).tags.get(f"{TAG}gate_report")
    if tag != decided[-1].details["gate_report"]:
        raise ApprovalRefusedError(f"{of}: the registry names another gate report than the ledger")
    return str(tag)


def _on_record(platform: Platform, case: _Case) -> list[tuple[SignedApproval, str]]:
    """Everything that was given, and what lies among the files, each with what is wrong with how it is kept."""
    folder = _folder(platform, case.ref)
    found: dict[str, tuple[SignedApproval, str]] = {}
    for entry in case.given:
        signed = _from_ledger(entry)
        said = signed.approval
        problem = "" if said.decision == "reject" else _kept_wrongly(folder / _file(said.digest), signed)
        found[said.digest] = (signed, problem)
    for path in sorted(folder.glob("[!.]*.json")):
        lying = _from_file(path)
        if lying is not None and lying.approval.digest not in found:
            found[lying.approval.digest] = (lying, "the ledger does not say that it was given")
    return list(found.values())


def _from_ledger(entry: Entry) -> SignedApproval:
    try:
        return SignedApproval.from_token(str(entry.details.get("token")))
    except BadInputError:
        raise LedgerError(f"entry {entry.seq} of the ledger holds no approval as one is given") from None


def _from_file(path: Path) -> SignedApproval | None:
    try:
        return SignedApproval.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return None


def _kept_wrongly(path: Path, signed: SignedApproval) -> str:
    """Why the file of an approval that the ledger has does not vouch for it; empty where it does."""
    if not path.exists():
        return f"its file {path.name} was taken away; give it again"
    kept = _from_file(path)
    if kept is None:
        return f"its file {path.name} is torn; give it again"
    return "" if kept == signed else f"its file {path.name} was changed; give it again"


def _refusal(signed: SignedApproval, case: _Case, now: datetime) -> str:
    """Why an approval does not count at `now`; empty where it does.

    A rejection counts whoever made the model, and whatever gate report it was given for: it errs on the safe side.
    """
    said, environment = signed.approval, case.environment
    approver = next((one for one in environment.approvers if one.name == said.approver), None)
    if approver is None:
        return f"{said.approver} is no approver of environment {environment.name!r}"
    if not signed_by(approver, signed):
        return f"the signature is not one by the key of {approver.name}, or what was signed has been changed"
    if not approver.valid(now):
        return f"{approver.name} may approve no more (since {_moment(approver.valid_until)})"
    if said.role not in approver.roles:
        return f"{approver.name} does not have the role {said.role!r}"
    if said.role not in environment.approvals:
        return f"environment {environment.name!r} does not ask for the role {said.role!r}"
    return (
        _not_about(said, case)
        or _not_in_time(said, environment, now)
        or ("" if said.decision == "reject" else _not_independent(approver, said, case))
    )


def signed_by(approver: Approver, signed: SignedApproval) -> bool:
    """Whether the signature is one of just this approval by the approver's key."""
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    try:
        signature = base64.b64decode(signed.signature, validate=True)
        Ed25519PublicKey.from_public_bytes(approver.key).verify(signature, signed.approval.signed_bytes)
    except (InvalidSignature, binascii.Error):
        return False
    return True


def _not_about(said: Approval, case: _Case) -> str:
    ref = case.ref
    for what, is_of, asked in (
        ("in environment", said.environment, case.environment.name),
        ("of model", said.model, case.model),
        ("of registered model", said.name, ref.name),
        ("of version", said.version, ref.version),
    ):
        if is_of != asked:
            return f"it was given {what} {is_of!r}, and this is {asked!r}"
    if said.model_digest != ref.digest:
        return "it was given for another model file"
    if said.gate_report != case.gate_report and said.decision == "approve":
        return "it was given for another gate report"
    return ""


def _not_in_time(said: Approval, environment: Environment, now: datetime) -> str:
    if said.issued_at > now + _CLOCKS_DIFFER:
        return f"it was issued in the future, at {_moment(said.issued_at)}"
    if said.expires_at <= now:
        return f"it expired at {_moment(said.expires_at)}"
    lasts = said.expires_at - said.issued_at
    if lasts > timedelta(days=environment.approval_days):
        return (
            f"it is valid for {lasts.total_seconds() / 86400:g} days, and environment {environment.name!r} allows "
            f"{environment.approval_days:g}"
        )
    return ""


def _not_independent(approver: Approver, said: Approval, case: _Case) -> str:
    if approver.person & case.makers:
        return f"{approver.name} made the model or moved it here, and nobody approves their own"
    source = case.environment.takes_from
    if source is not None and case.passed is None:
        return f"who approved it in {source!r} is not recorded; transfer the version from there"
    if source is not None and approver.person & (case.passed or frozenset()):
        return f"{approver.name} approved it in {source!r} already; another person approves it here"
    if said.digest in case.used:
        return f"it was used up by a release that ended ({case.used[said.digest]}); give a new one"
    return ""


def _one_person_one_role(counting: Mapping[str, Sequence[SignedApproval]]) -> dict[str, SignedApproval]:
    """An approval for as many roles as different people can fill, the latest to expire where there is a choice.

    Augmenting paths in the graph of roles and people (Kuhn 1955).
    """
    taken: dict[str, tuple[str, SignedApproval]] = {}

    def fill(role: str, tried: set[str]) -> bool:
        for signed in sorted(counting[role], key=lambda one: one.approval.expires_at, reverse=True):
            person = signed.approval.approver
            if person in tried:
                continue
            tried.add(person)
            if person not in taken or fill(taken[person][0], tried):
                taken[person] = (role, signed)
                return True
        return False

    for role in counting:
        fill(role, set())
    return {role: signed for role in counting for held, signed in taken.values() if held == role}


def _why_none(case: _Case, role: str, unused: Sequence[SignedApproval], refused: Sequence[str]) -> str:
    if unused:
        people = ", ".join(sorted({signed.approval.approver for signed in unused}))
        return f"{people} approved for another role too, and one person fills one role only"
    if refused:
        return "; ".join(refused)
    if role in case.environment.nobody_for():
        return (
            f"nobody has this role; enter an approver in the YAML of environment {case.environment.name!r} "
            "(`keys new NAME` makes a key, and prints what to enter)"
        )
    return "nobody has approved yet"


def _canonical(content: object) -> bytes:
    """The one way to write `content` as JSON: keys sorted, no spaces, UTF-8."""
    return json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def _moment(moment: datetime | None) -> str:
    return "–" if moment is None else f"{moment.astimezone(UTC):%Y-%m-%d %H:%M} UTC"


def _problem(error: ValidationError) -> str:
    problem = error.errors(include_url=False, include_input=False)[0]
    place = ".".join(str(part) for part in problem["loc"])
    return f"{place}: {problem['msg']}" if place else problem["msg"]
