"""Approvals: which signatures count, and that nothing forged, replayed, worn out or self-made does."""

import base64
import json
import shutil
import stat
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from deployments.environment import Approver, Environment, LocalPlatformConfig
from deployments.errors import BadInputError
from deployments.spec import load_spec
from platforms.local import LocalPlatform
from tasks.approvals import (
    GIVEN,
    REFUSED,
    Approval,
    ApprovalRefusedError,
    SignedApproval,
    approver_with,
    check,
    draft,
    sign,
    standing,
    submit,
)
from tasks.approver_keys import PassphraseNeededError, load_key, new_key, public_key_of
from tasks.cargo import RECEIVED
from tasks.champion import ChampionRef, version_ref
from tasks.code_version import CodeVersion
from tasks.gate import GateReport, GateResult
from tasks.ledger import Ledger, LedgerError
from tasks.register import INTEGRATION, Version, ledger_of, settle
from tasks.tracking import TAG, Tracking
from tasks.train import TrainingRun
from tasks.verdict import Verdict

MODEL = "churn"
CHURN = load_spec(MODEL)
DIGEST = "d" * 64
NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
AUTHOR = "tess@example.org"


@dataclass(frozen=True)
class Case:
    """A registered version whose gates passed, and those who may approve it."""

    platform: Any
    run: TrainingRun
    ref: ChampionRef
    keys: dict[str, Ed25519PrivateKey]

    def approval(self, who="Ada", role="owner", **changes):
        """A signed approval as it should be, with some fields changed before it is signed."""
        issued = changes.pop("issued_at", NOW)
        made = draft(
            self.platform, MODEL, self.ref, role=role, approver=who, ticket="CHG-1", now=issued, comment="ok"
        )
        return sign(made.model_copy(update=changes), self.keys[who])

    def give(self, who="Ada", role="owner", **changes):
        signed = self.approval(who, role, **changes)
        submit(self.platform, signed, NOW)
        return signed

    def standing(self, now=NOW, **named):
        return standing(self.platform, MODEL, self.ref, now, **named)

    def reason(self, role="owner", now=NOW):
        """Why no approval counts for a role."""
        (found,) = (one for one in self.standing(now).roles if one.role == role)
        assert found.approval is None
        return found.reason

    def strict(self, **changes):
        """The same case in an environment with other settings."""
        environment = self.platform.environment.model_copy(update=changes)
        return replace(self, platform=replace(self.platform, environment=environment))

    def with_approver(self, name, **changes):
        approvers = tuple(
            one.model_copy(update=changes) if one.name == name else one
            for one in self.platform.environment.approvers
        )
        return self.strict(approvers=approvers)

    def files(self):
        return sorted((self.platform.root / "approvals").rglob("*.json"))

    def events(self):
        return [entry.event for entry in ledger_of(self.platform).entries(MODEL)]

    def tag(self, name, value):
        Tracking(self.platform).client.set_model_version_tag(
            self.ref.name, self.ref.version, f"{TAG}{name}", value
        )

    def judge(self, gate="metric"):
        """Settle the version by a report in which a gate of that name passed."""
        results = [
            GateResult(gate=name, verdict=Verdict.PASS, value=0.0, threshold=1.0, reason="")
            for name in (gate, INTEGRATION)
        ]
        settle(
            CHURN,
            self.platform,
            self.run,
            Version(
                name=self.ref.name, version=self.ref.version, run_id=self.run.run_id, model_digest=DIGEST
            ),
            GateReport(model_digest=DIGEST, champion=None, results=tuple(results)),
        )

    def record(self, event, **details):
        """An entry of the ledger about this version."""
        ledger_of(self.platform).append(
            event, model=MODEL, subject=self.subject, details=details, key=f"{event} by hand", actor=AUTHOR
        )

    @property
    def subject(self):
        return f"{self.ref.name}/{self.ref.version}"

    @property
    def folder(self):
        return self.platform.folder("approvals") / self.ref.name / f"v{self.ref.version}"

    def lay(self, signed):
        """Put an approval among the files, as somebody else than `submit` would."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"{signed.approval.digest[:16]}.json"
        path.write_text(signed.model_dump_json())


def person(name, key, *roles):
    return Approver(
        name=name,
        identities=(f"{name.lower()}@example.org",),
        roles=roles,
        public_key=public_key_of(key),
    )


@pytest.fixture(scope="module")
def keys():
    return {name: Ed25519PrivateKey.generate() for name in ("Ada", "Bob", "Cy", "Eve")}


@pytest.fixture(scope="module")
def registry(mlflow_template, tmp_path_factory):
    """The address of a registry that these tests share, each with a model of its own."""
    path = tmp_path_factory.mktemp("registry") / "mlflow.db"
    shutil.copy(mlflow_template, path)
    return f"sqlite:///{path}"


@pytest.fixture
def case(registry, keys, tmp_path, monkeypatch):
    monkeypatch.setattr(LocalPlatform, "identity", lambda self: AUTHOR)
    environment = Environment(
        name="prod",
        platform=LocalPlatformConfig(
            data_root="data", tracking_uri=registry, model_prefix=f"model{next(NUMBERS)}-"
        ),
        approvals=("owner", "compliance"),
        approvers=(
            person("Ada", keys["Ada"], "owner", "compliance"),
            person("Bob", keys["Bob"], "compliance"),
            person("Cy", keys["Cy"], "owner", "compliance", "audit"),
        ),
    )
    platform = LocalPlatform(environment, tmp_path / "data")
    Tracking(platform).client.create_registered_model(platform.registered_model(MODEL))
    return registered(platform, keys)


NUMBERS = count()


def registered(platform, keys):
    """A version that was trained by AUTHOR and whose gates passed."""
    tracking, name = Tracking(platform), platform.registered_model(MODEL)
    run = TrainingRun(
        run_id=tracking.create_run("0", "a training", {}),
        experiment_id="0",
        key="key",
        as_of=NOW,
        started=0.0,
        code=CodeVersion(commit=None, dirty=True, digest=DIGEST),
    )
    made = tracking.client.create_model_version(
        name,
        source=platform.root.as_uri(),
        run_id=run.run_id,
        tags={f"{TAG}author": AUTHOR, f"{TAG}model_digest": DIGEST, f"{TAG}model_id": "m-1"},
    )
    case = Case(platform, run, version_ref(platform, MODEL, str(made.version)), keys)
    case.judge()
    return case


# What counts


def test_a_version_is_approved_once_each_role_is_by_another_person(case):
    assert not case.standing().complete

    first = case.give("Ada", "owner")
    halfway = case.standing()
    second = case.give("Bob", "compliance")
    found = case.standing()

    assert (halfway.complete, halfway.why_not) == (False, "compliance: nobody has approved yet")
    assert found.complete
    assert found.why_not == ""
    assert found.digests == (first.approval.digest, second.approval.digest)
    assert found.approvers == ("Ada", "ada@example.org", "Bob", "bob@example.org")
    assert ledger_of(case.platform).verify().ok


def test_the_ledger_says_who_approved_what_by_which_ticket(case):
    signed = case.give("Ada", "owner")

    *_, entry = ledger_of(case.platform).entries(MODEL)

    assert (entry.event, entry.subject) == (GIVEN, case.subject)
    assert entry.details["digest"] == signed.approval.digest
    assert (entry.details["role"], entry.details["ticket"]) == ("owner", "CHG-1")
    assert entry.details["model_digest"] == case.ref.digest
    assert SignedApproval.from_token(entry.details["token"]) == signed


def test_an_approval_given_twice_is_one(case):
    signed = case.give()
    before = case.events(), case.files()

    submit(case.platform, signed, NOW)

    assert (case.events(), case.files()) == before
    assert len(case.files()) == 1


def test_an_approval_cut_short_before_the_ledger_has_it_does_not_count_until_it_is_given_again(
    case, monkeypatch
):
    signed = case.approval()
    with monkeypatch.context() as patch:
        patch.setattr(Ledger, "append", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            submit(case.platform, signed, NOW)
    assert "Ada (CHG-1): the ledger does not say that it was given" in case.reason()

    submit(case.platform, signed, NOW)

    assert case.standing().digests == (signed.approval.digest,)


def test_where_nobody_is_asked_nothing_is_missing(case):
    found = case.strict(approvals=(), approvers=()).standing()

    assert found.complete
    assert found.roles == ()


def test_a_role_that_nobody_has_is_said(case):
    nobody = case.strict(approvers=case.platform.environment.approvers[1:2])

    assert "nobody has this role; enter an approver" in nobody.reason("owner")
    assert nobody.reason("compliance") == "nobody has approved yet"


# What was signed


@pytest.mark.parametrize("field", sorted(set(Approval.model_fields)))
def test_an_approval_with_any_field_edited_is_refused(case, field):
    signed = case.approval(role="compliance")
    said = signed.approval
    other: Any = {
        "version": "2",
        "decision": "reject",
        "role": "owner",
        "approver": "Bob",
        "issued_at": said.issued_at - timedelta(seconds=1),
        "expires_at": said.expires_at - timedelta(seconds=1),
    }.get(field) or ("0" * len(getattr(said, field)) if field != "model" else "other")
    edited = signed.model_copy(update={"approval": said.model_copy(update={field: other})})

    with pytest.raises(ApprovalRefusedError):
        submit(case.platform, edited, NOW)

    assert case.files() == []
    assert [entry.event for entry in ledger_of(case.platform).entries()][-1] == REFUSED


def test_a_signature_by_another_key_is_refused_and_the_ledger_says_so(case):
    forged = sign(case.approval().approval, case.keys["Eve"])

    for _ in range(2):
        with pytest.raises(ApprovalRefusedError, match="the signature is not one by the key of Ada"):
            submit(case.platform, forged, NOW)

    *_, entry = ledger_of(case.platform).entries(MODEL)
    assert case.events().count(REFUSED) == 1
    assert entry.details["digest"] == forged.approval.digest
    assert "signature" in entry.details["reason"]


def test_a_signature_of_the_same_words_for_another_purpose_is_none(case):
    said = case.approval().approval
    bare = said.signed_bytes.partition(b"\n")[2]
    signature = base64.b64encode(case.keys["Ada"].sign(bare)).decode()

    with pytest.raises(ApprovalRefusedError, match="signature"):
        submit(case.platform, SignedApproval(approval=said, signature=signature), NOW)


def test_a_key_that_the_environment_does_not_know_is_refused(case):
    stranger = sign(case.approval().approval.model_copy(update={"approver": "Eve"}), case.keys["Eve"])

    with pytest.raises(ApprovalRefusedError, match="Eve is no approver of environment"):
        submit(case.platform, stranger, NOW)
    with pytest.raises(ApprovalRefusedError, match="this key is of no approver"):
        approver_with(case.platform.environment, case.keys["Eve"])
    assert approver_with(case.platform.environment, case.keys["Bob"]).name == "Bob"


def test_approvals_by_a_key_that_was_replaced_or_a_person_who_left_no_longer_count(case):
    case.give()

    replaced = case.with_approver("Ada", public_key=public_key_of(case.keys["Eve"]))
    gone = case.strict(approvers=case.platform.environment.approvers[1:])
    ended = case.with_approver("Ada", valid_until=NOW)

    assert "signature" in replaced.reason()
    assert "Ada is no approver" in gone.reason()
    assert "Ada may approve no more (since 2026-11-21 12:00 UTC)" in ended.reason()
    assert case.with_approver("Ada", valid_until=NOW + timedelta(seconds=1)).standing().digests


def test_a_role_that_is_not_theirs_or_not_asked_for_is_refused(case):
    with pytest.raises(ApprovalRefusedError, match="Bob does not have the role 'owner'"):
        case.give("Bob", "owner")
    with pytest.raises(ApprovalRefusedError, match="does not ask for the role 'audit'"):
        case.give("Cy", "audit")


def test_a_role_taken_away_later_no_longer_counts(case):
    case.give("Ada", "owner")

    assert "Ada does not have the role 'owner'" in case.with_approver("Ada", roles=("compliance",)).reason()


# What it is of


def test_an_approval_of_another_environment_or_model_is_refused(case):
    for field in ("environment", "name"):
        with pytest.raises(ApprovalRefusedError, match="the approval is of"):
            case.give(**{field: "elsewhere"})


def test_an_approval_replayed_for_another_version_is_refused(case):
    signed = case.give("Ada", "owner")
    other = registered(case.platform, case.keys)
    other.lay(signed)
    edited = signed.model_copy(update={"approval": signed.approval.model_copy(update={"version": "2"})})

    assert other.reason() == "Ada (CHG-1): the ledger does not say that it was given"
    with pytest.raises(ApprovalRefusedError, match="signature"):
        submit(case.platform, edited, NOW)


def test_an_approval_entered_in_the_ledger_under_another_version_does_not_count(case):
    signed = case.approval(version="7")
    case.lay(signed)
    ledger_of(case.platform).append(
        GIVEN,
        model=MODEL,
        subject=case.subject,
        details={"token": signed.to_token()},
        key="by hand",
        actor="eve",
    )

    assert "it was given of version '7', and this is '1'" in case.reason()


def test_an_approval_of_another_model_file_is_refused(case):
    with pytest.raises(ApprovalRefusedError, match="it was given for another model file"):
        case.give(model_digest="0" * 64)


def test_an_approval_ends_with_the_gate_report_it_was_given_for(case):
    case.give()
    case.judge("another")

    assert "it was given for another gate report" in case.reason()


def test_registry_and_ledger_must_say_the_same_of_a_version(case):
    case.give("Ada", "owner")
    case.give("Bob", "compliance")
    case.tag("gate_report", "0" * 64)

    found = case.standing()

    assert not found.complete
    assert "the registry names another gate report than the ledger" in found.why_not
    assert all("another gate report" in one.reason for one in found.roles)
    with pytest.raises(ApprovalRefusedError, match="another gate report"):
        draft(case.platform, MODEL, case.ref, role="owner", approver="Ada", ticket="CHG-1", now=NOW)


def test_a_version_that_the_registry_says_another_digest_of_cannot_be_approved(case):
    case.give("Ada", "owner")
    case.tag("model_digest", "0" * 64)

    assert "is not what it was" in case.standing().problem
    with pytest.raises(ApprovalRefusedError, match="does not say that the gates passed this model file"):
        draft(
            case.platform,
            MODEL,
            version_ref(case.platform, MODEL, case.ref.version),
            role="owner",
            approver="Ada",
            ticket="CHG-1",
            now=NOW,
        )


def test_a_version_that_is_gone_has_no_approvals(case):
    case.give("Ada", "owner")
    Tracking(case.platform).client.delete_model_version(case.ref.name, "1")

    assert "cannot be read from the registry" in case.standing().why_not


# When


def test_an_approval_counts_until_it_expires(case):
    signed = case.give()
    until = signed.approval.expires_at

    assert case.standing(until - timedelta(seconds=1)).digests
    assert "it expired at 2026-11-28 12:00 UTC" in case.reason(now=until)
    with pytest.raises(ApprovalRefusedError, match="it expired"):
        submit(case.platform, signed, until)


def test_an_approval_from_the_future_is_refused_beyond_what_clocks_differ(case):
    with pytest.raises(ApprovalRefusedError, match="issued in the future"):
        case.give(issued_at=NOW + timedelta(seconds=61))

    assert case.give(issued_at=NOW + timedelta(seconds=60))


def test_an_approval_valid_for_longer_than_the_environment_allows_is_refused(case):
    with pytest.raises(ApprovalRefusedError, match="valid for 8 days, and environment 'prod' allows 7"):
        case.give(expires_at=NOW + timedelta(days=8))
    with pytest.raises(BadInputError, match="cannot be valid for 8 days"):
        draft(case.platform, MODEL, case.ref, role="owner", approver="Ada", ticket="C", now=NOW, days=8)


def test_a_shorter_validity_set_later_ends_longer_approvals(case):
    case.give()

    assert "valid for 7 days" in case.strict(approval_days=1).reason()


@pytest.mark.parametrize("event", ["release.promoted", "release.rolled_back", "release.rejected"])
def test_an_approval_is_used_up_by_the_release_that_ended_on_it(case, event):
    digest = case.give("Ada", "owner").approval.digest
    case.record(event, release="one", approvals=[digest])

    assert f"it was used up by a release that ended ({event.removeprefix('release.')}" in case.reason()
    assert case.standing(release="one").digests == (digest,)
    anew = case.give("Ada", "owner", nonce="0" * 32)
    assert case.standing().digests == (anew.approval.digest,)


def test_an_approval_is_used_up_by_whatever_step_of_an_ended_release_named_it(case):
    digest = case.give("Ada", "owner").approval.digest
    case.record("release.approved", release="one", approvals=[digest])
    assert case.standing().digests == (digest,)

    case.record("release.rolled_back", release="one", approvals=[])

    assert "it was used up" in case.reason()


# Who


@pytest.mark.parametrize("author", ["ADA@example.org", "ada", "Ada"])
def test_nobody_approves_what_they_made(case, author):
    case.tag("author", author)

    with pytest.raises(ApprovalRefusedError, match="nobody approves their own"):
        case.give("Ada", "owner")


def test_whoever_registered_it_by_the_ledger_does_not_approve_it_whatever_its_tag_says(case, monkeypatch):
    tess = person("Tess", case.keys["Eve"], "owner")
    here = case.strict(approvers=(tess,))
    here = replace(here, keys={"Tess": case.keys["Eve"]})
    here.tag("author", "somebody@example.org")

    with pytest.raises(ApprovalRefusedError, match="Tess made the model or moved it here"):
        here.give("Tess", "owner")


def test_a_version_whose_author_is_not_recorded_cannot_be_approved(case):
    Tracking(case.platform).client.delete_model_version_tag(case.ref.name, "1", f"{TAG}author")

    with pytest.raises(ApprovalRefusedError, match="its author is not recorded"):
        case.give()


def test_one_person_fills_one_role_only(case):
    case.give("Ada", "owner")
    case.give("Ada", "compliance")

    found = case.standing()

    assert len(found.digests) == 1
    assert "compliance: Ada approved for another role too" in found.why_not


def test_roles_are_given_to_people_so_that_as_many_as_can_be_are_filled(case):
    case.give("Ada", "owner")
    case.give("Ada", "compliance")
    assert not case.standing().complete

    cy = case.give("Cy", "owner")

    found = case.standing()
    assert found.complete
    assert {one.role: one.approval.approval.approver for one in found.roles} == {
        "owner": "Cy",
        "compliance": "Ada",
    }
    assert cy.approval.digest in found.digests


def received(case, **details):
    case.record(RECEIVED, **{"model_digest": DIGEST, "author": AUTHOR, "passed_approvers": []} | details)


def test_whoever_approved_it_where_it_came_from_does_not_approve_it_here(case):
    case.give("Ada", "owner")
    here = case.strict(takes_from="test")
    assert "who approved it in 'test' is not recorded" in here.reason()

    received(case, passed_approvers=["somebody", "ADA@Example.org"])

    assert "Ada approved it in 'test' already" in here.reason()
    assert here.standing().digests == ()
    case.give("Cy", "owner")
    assert here.standing().approvers == ("Cy", "cy@example.org")
    assert case.standing().digests


def test_a_tag_that_says_who_approved_it_elsewhere_is_not_believed(case):
    case.give("Ada", "owner")
    received(case, passed_approvers=["Ada"])
    case.tag("passed_approvers", "[]")

    assert "Ada approved it in 'test' already" in case.strict(takes_from="test").reason()


def test_a_transfer_of_another_model_file_says_nothing_of_this_one(case):
    case.give("Ada", "owner")
    received(case, model_digest="0" * 64)

    assert "is not recorded" in case.strict(takes_from="test").reason()


def test_the_author_of_a_transferred_version_is_whom_the_ledger_names(case):
    received(case, author="ada@example.org")

    with pytest.raises(ApprovalRefusedError, match="nobody approves their own"):
        case.give("Ada", "owner")


# Rejections


def test_a_rejection_outweighs_every_approval_until_it_expires(case):
    case.give("Ada", "owner")
    case.give("Bob", "compliance")
    rejection = case.give("Cy", "compliance", decision="reject", expires_at=NOW + timedelta(days=1))

    found = case.standing()

    assert not found.complete
    assert found.rejected == rejection
    assert found.why_not == "Cy rejected it as compliance (CHG-1), until 2026-11-22 12:00 UTC"
    assert case.standing(NOW + timedelta(days=1)).complete


def test_a_rejection_stands_though_its_file_is_taken_away_and_its_gates_are_judged_again(case):
    case.give("Cy", "owner", decision="reject")
    (file,) = case.files()
    file.unlink()
    case.judge("another")

    assert case.standing().rejected is not None


def test_an_author_may_reject_and_a_stranger_may_not(case):
    case.tag("author", "ada@example.org")
    case.give("Ada", "owner", decision="reject")
    assert case.standing().rejected is not None

    forged = sign(case.approval("Bob", "compliance", decision="reject").approval, case.keys["Eve"])
    with pytest.raises(ApprovalRefusedError, match="signature"):
        submit(case.platform, forged, NOW)


# How it is kept


def test_an_approval_that_the_ledger_does_not_have_does_not_count(case):
    signed = case.approval()
    case.lay(signed)

    assert case.reason() == "Ada (CHG-1): the ledger does not say that it was given"


@pytest.mark.parametrize(
    ("harm", "reason"),
    [
        (lambda path: path.unlink(), "was taken away"),
        (lambda path: path.write_bytes(path.read_bytes()[:200]), "is torn"),
        (lambda path: path.write_text(""), "is torn"),
        (lambda path: path.write_text(path.read_text().replace("CHG-1", "CHG-2")), "was changed"),
        (lambda path: path.write_bytes(b"\xff\xfe"), "is torn"),
    ],
    ids=["away", "cut", "empty", "edited", "binary"],
)
def test_an_approval_counts_only_with_its_file_and_may_be_given_again(case, harm, reason):
    signed = case.give()
    (path,) = case.files()
    harm(path)

    assert reason in case.reason()
    submit(case.platform, signed, NOW)

    assert case.standing().digests == (signed.approval.digest,)
    assert case.files() == [path]


def test_a_ledger_that_was_changed_takes_no_approval_and_shows_none(case):
    case.give("Ada", "owner")
    path = ledger_of(case.platform).path
    path.write_bytes(path.read_bytes().replace(b'"ticket":"CHG-1"', b'"ticket":"CHG-2"'))

    with pytest.raises(LedgerError):
        case.standing()
    with pytest.raises(LedgerError):
        case.give("Bob", "compliance")


def test_a_ledger_entry_that_holds_no_approval_is_said(case):
    ledger_of(case.platform).append(
        GIVEN, model=MODEL, subject=case.subject, details={"digest": "0" * 64}, key="by hand", actor="eve"
    )

    with pytest.raises(LedgerError, match="holds no approval"):
        case.standing()


# Drafts and tokens


@pytest.mark.parametrize(
    ("field", "text"),
    [
        ("ticket", ""),
        ("ticket", "  "),
        ("approver", ""),
        ("role", "\t"),
        ("ticket", "CHG-1\nCHG-2"),
        ("ticket", "\x1b[2Jgone"),
        ("comment", "two\nlines"),
        ("comment", "\ud800"),
        ("ticket", "x" * 201),
    ],
)
def test_a_draft_with_a_text_that_is_blank_or_not_one_line_is_refused_by_name(case, field, text):
    said = {"role": "owner", "approver": "Ada", "ticket": "CHG-1", "comment": ""} | {field: text}

    with pytest.raises(BadInputError, match=f"this makes no approval: {field}: "):
        draft(case.platform, MODEL, case.ref, now=NOW, **said)


def some_approval(**changes):
    fields = {
        "model": MODEL,
        "name": MODEL,
        "version": "1",
        "environment": "prod",
        "model_digest": "a" * 64,
        "gate_report": "b" * 64,
        "role": "owner",
        "approver": "Ada",
        "decision": "approve",
        "ticket": "CHG-1",
        "issued_at": NOW,
        "expires_at": NOW + timedelta(days=1),
        "nonce": "c" * 32,
    }
    return Approval.model_validate(fields | changes)


def test_what_is_signed_is_canonical_json_after_a_prefix_of_its_own():
    said = some_approval(comment='größer, "höher"')

    prefix, _, document = said.signed_bytes.partition(b"\n")

    assert prefix == b"contender approval 1"
    assert document.startswith(b'{"approver":"Ada","comment":"gr\xc3\xb6\xc3\x9fer')
    assert list(json.loads(document)) == sorted(Approval.model_fields)
    assert json.loads(document)["issued_at"] == "2026-11-21T12:00:00Z"


line_of_text = st.text(st.characters(exclude_categories=("Cc", "Cs")), min_size=1, max_size=40).filter(
    str.strip
)


@settings(max_examples=60, deadline=None)
@given(ticket=line_of_text, comment=st.text(st.characters(exclude_categories=("Cc", "Cs")), max_size=60))
def test_a_token_says_what_was_signed_however_it_was_wrapped(ticket, comment):
    key = Ed25519PrivateKey.generate()
    signed = sign(some_approval(ticket=ticket, comment=comment), key)
    token = signed.to_token()
    wrapped = "\r\n ".join(token[place : place + 60] for place in range(0, len(token), 60))

    again = SignedApproval.from_token(wrapped)

    assert again == signed
    key.public_key().verify(base64.b64decode(again.signature), again.approval.signed_bytes)


@pytest.mark.parametrize(
    "token",
    ["", "   ", "abc", "!!!!", "e30", "bnVsbA", "//8", "é", "A" * 40_000],
    ids=lambda token: token[:5],
)
def test_what_is_no_token_is_said_to_be_none(token):
    with pytest.raises(BadInputError, match="this is no approval token"):
        SignedApproval.from_token(token)


def test_checking_an_approval_writes_nothing(case):
    before = case.events()

    assert check(case.platform, case.approval(), NOW) == case.ref

    assert case.events() == before
    assert case.files() == []


# Keys


@pytest.mark.parametrize("passphrase", [None, b"correct horse"])
def test_a_key_is_made_for_its_owner_alone_and_is_read_again(tmp_path, passphrase):
    path = tmp_path / "keys" / "ada.pem"

    public = new_key(path, passphrase)

    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert public_key_of(load_key(path, passphrase)) == public
    assert len(base64.b64decode(public)) == 32
    assert [item.name for item in path.parent.iterdir()] == ["ada.pem"]


def test_a_key_is_never_written_over(tmp_path):
    path = tmp_path / "ada.pem"
    public = new_key(path, None)

    with pytest.raises(BadInputError, match="there is a file already"):
        new_key(path, None)

    assert public_key_of(load_key(path, None)) == public
    assert [item.name for item in tmp_path.iterdir()] == ["ada.pem"]


def test_a_folder_that_takes_no_key_is_said(tmp_path):
    (tmp_path / "file").touch()

    with pytest.raises(BadInputError, match="the key cannot be written"):
        new_key(tmp_path / "file" / "ada.pem", None)


def test_a_passphrase_is_asked_for_and_a_wrong_one_is_refused(tmp_path):
    path = tmp_path / "ada.pem"
    public = new_key(path, b"correct horse")

    with pytest.raises(PassphraseNeededError, match="has a passphrase"):
        load_key(path, None)
    with pytest.raises(BadInputError, match="the passphrase is wrong"):
        load_key(path, b"battery staple")
    assert public_key_of(load_key(path, b"correct horse")) == public


def test_a_key_that_others_may_read_is_refused(tmp_path):
    path = tmp_path / "ada.pem"
    new_key(path, None)
    path.chmod(0o640)

    with pytest.raises(BadInputError, match=r"others than its owner may use this key \(mode 640\)"):
        load_key(path, None)


def test_what_is_no_ed25519_key_is_refused(tmp_path):
    path = tmp_path / "key.pem"
    other = generate_private_key(SECP256R1()).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    for content, reason in ((other, "of another kind"), (b"none", "no private key"), (b"", "no private key")):
        path.write_bytes(content)
        path.chmod(0o600)

        with pytest.raises(BadInputError, match=reason):
            load_key(path, None)
    with pytest.raises(BadInputError, match="cannot be read"):
        load_key(tmp_path / "absent.pem", None)
    with pytest.raises(BadInputError, match="cannot be read"):
        load_key(tmp_path, None)
