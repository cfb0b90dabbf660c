"""The audit holds promotions against what their environment demanded, and says when that was changed."""

import base64
from datetime import UTC, datetime, timedelta

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from deployments.environment import Approver, Environment, LocalPlatformConfig
from platforms.local import LocalPlatform
from tasks.approvals import GIVEN, Approval, sign
from tasks.approver_keys import public_key_of
from tasks.audit import audit
from tasks.demands import pin
from tasks.register import ledger_of

KEYS = {name: Ed25519PrivateKey.generate() for name in ("Ada", "Bob", "Eve")}


def person(name, key):
    return Approver(
        name=name,
        identities=(f"{name.lower()}@example.org",),
        roles=("owner", "compliance"),
        public_key=public_key_of(key),
    )


@pytest.fixture
def platform(tmp_path):
    environment = Environment(
        name="prod",
        platform=LocalPlatformConfig(data_root="data"),
        approvals=("owner", "compliance"),
        approvers=(person("Ada", KEYS["Ada"]), person("Bob", KEYS["Bob"])),
    )
    return LocalPlatform(environment, tmp_path)


def given(platform, who, role, *, key=None, **changes):
    """An approval in the ledger; its digest."""
    now = datetime.now(UTC)
    fields = {
        "model": "churn",
        "name": "churn",
        "version": "7",
        "environment": "prod",
        "model_digest": "7" * 64,
        "gate_report": "e" * 64,
        "role": role,
        "approver": who,
        "decision": "approve",
        "ticket": "CHG-1",
        "issued_at": now,
        "expires_at": now + timedelta(days=1),
        "nonce": base64.b16encode(role.encode().ljust(16)[:16]).decode().lower(),
    }
    signed = sign(Approval(**(fields | changes)), key or KEYS[who])
    digest = signed.approval.digest
    write(platform, GIVEN, {"digest": digest, "token": signed.to_token()}, digest)
    return digest


def write(platform, event, details, key):
    return ledger_of(platform).append(
        event, model="churn", subject="churn/7", details=details, key=key, actor="grace"
    )


def promoted(platform, *approvals):
    """What a promotion leaves in the ledger."""
    pin(ledger_of(platform), platform.environment, actor="grace")
    details = {"model_digest": "7" * 64, "approvals": list(approvals)}
    started = write(platform, "promotion.started", details, "started")
    write(platform, "model.promoted", details | {"started": started.seq}, "promoted")


def test_a_promotion_with_all_approvals_is_in_order(platform):
    promoted(platform, given(platform, "Ada", "owner"), given(platform, "Bob", "compliance"))

    assert audit(platform).problems == ()


def test_a_promotion_that_lacks_an_approval_is_found(platform):
    promoted(platform, given(platform, "Ada", "owner"))

    (found,) = audit(platform).problems

    assert "nobody approved as compliance" in found


def test_a_promotion_that_does_not_say_what_it_rests_on_is_found(platform):
    pin(ledger_of(platform), platform.environment, actor="grace")
    write(platform, "model.promoted", {"model_digest": "7" * 64}, "promoted")

    (found,) = audit(platform).problems

    assert "does not say which approvals it rests on" in found


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"key": KEYS["Eve"]}, "is not signed by the key of an approver named 'Bob'"),
        ({"version": "6"}, "of another version"),
        ({"model_digest": "6" * 64}, "of another version, model file"),
        ({"environment": "test"}, "or environment"),
        ({"decision": "reject"}, "is another one than was named"),
        ({"expires_at": datetime(2020, 1, 1, tzinfo=UTC)}, "had expired"),
        ({"role": "janitor"}, "could not approve as janitor"),
        ({"role": "owner", "nonce": "0" * 32}, "nobody approved as compliance"),
    ],
)
def test_an_approval_that_does_not_count_is_found(platform, changes, said):
    bad = given(platform, "Bob", **({"role": "compliance"} | changes))

    promoted(platform, given(platform, "Ada", "owner"), bad)

    assert any(said in problem for problem in audit(platform).problems)


def test_one_person_in_two_roles_is_found(platform):
    promoted(platform, given(platform, "Ada", "owner"), given(platform, "Ada", "compliance"))

    assert any("Ada approved in two roles" in problem for problem in audit(platform).problems)


def test_a_laxer_environment_of_the_same_name_is_told(platform):
    pin(ledger_of(platform), platform.environment, actor="ada")
    lax = LocalPlatform(platform.environment.model_copy(update={"approvals": ()}), platform.root)
    promoted(lax)

    found = audit(platform)

    (change,) = found.changes
    assert "approvals of nobody; no longer of compliance, owner" in change
    assert "(grace)" in change


def test_demands_that_did_not_change_are_entered_once(platform):
    for _ in range(3):
        pin(ledger_of(platform), platform.environment, actor="ada")

    assert [entry.event for entry in ledger_of(platform).entries("")] == ["environment.first_used"]
