"""API keys: shown once, kept as digests, two at a time, expiring and revocable."""

import hashlib
import multiprocessing
import stat
from datetime import UTC, datetime, timedelta

import pytest

from deployments.errors import BadInputError
from serving.keys import callers, digest_of, listed, new_key, revoke


@pytest.fixture
def path(tmp_path):
    return tmp_path / "serving" / "keys.json"


def now() -> datetime:
    return datetime.now(UTC)


def test_a_new_key_opens_for_its_caller(path):
    key = new_key(path, "shop")

    assert callers(path, now()) == {hashlib.sha256(key.encode()).hexdigest(): "shop"}


def test_no_key_is_on_disk_and_only_the_owner_reads_the_file(path):
    key = new_key(path, "shop")

    assert all(key.encode() not in file.read_bytes() for file in path.parent.iterdir())
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_key_is_256_random_bits_in_at_most_64_bytes(path):
    keys = {new_key(path, f"caller{number}") for number in range(5)}

    assert len(keys) == 5
    assert all(len(key) <= 64 and len(key.split("_", 1)[1]) == 43 for key in keys)


def test_two_keys_overlap_and_a_third_is_refused(path):
    first, second = new_key(path, "shop"), new_key(path, "shop")

    with pytest.raises(BadInputError, match="holds 2 valid keys already"):
        new_key(path, "shop")

    assert set(callers(path, now())) == {digest_of(first), digest_of(second)}


def test_a_revoked_key_is_gone_and_the_other_stays(path):
    first, second = new_key(path, "shop"), new_key(path, "shop")

    ended = revoke(path, "shop", digest_of(first)[:12])

    assert [key.digest for key in ended] == [digest_of(first)]
    assert callers(path, now()) == {digest_of(second): "shop"}


def test_revoking_a_caller_ends_all_their_keys_and_no_others(path):
    new_key(path, "shop")
    new_key(path, "shop")
    kept = new_key(path, "call-centre")

    assert len(revoke(path, "shop")) == 2
    assert callers(path, now()) == {digest_of(kept): "call-centre"}


@pytest.mark.parametrize(("caller", "name"), [("nobody", None), ("shop", "000000000000")])
def test_revoking_what_is_not_there_is_an_error(path, caller, name):
    key = new_key(path, "shop")

    with pytest.raises(BadInputError, match="nothing to revoke"):
        revoke(path, caller, name)

    assert digest_of(key) in callers(path, now())


def test_a_key_opens_until_it_expires_and_makes_room_then(path, monkeypatch):
    moment = now() + timedelta(hours=1)
    key = new_key(path, "shop", expires=moment)

    assert callers(path, moment - timedelta(microseconds=1)) == {digest_of(key): "shop"}
    assert callers(path, moment) == {}
    assert [one.caller for one in listed(path)] == ["shop"]


@pytest.mark.parametrize("caller", ["", " shop", "sh\nop", "shöp", "a" * 64, "-shop", "x: y"])
def test_a_name_that_cannot_stand_in_a_header_is_refused(path, caller):
    with pytest.raises(BadInputError, match="cannot be a caller's name"):
        new_key(path, caller)

    assert listed(path) == ()


def test_an_expiry_without_zone_or_in_the_past_is_refused(path):
    with pytest.raises(BadInputError, match="no time zone"):
        new_key(path, "shop", expires=datetime(2199, 1, 1))  # noqa: DTZ001
    with pytest.raises(BadInputError, match="in the past"):
        new_key(path, "shop", expires=now() - timedelta(seconds=1))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b'{"keys": [{"digest": "abc", "caller": "shop", "created_at": "2026-01-01T00:00:00Z"}]}',
        b"[]",
    ],
)
def test_a_spoilt_file_is_named_and_never_written_over(path, content):
    path.parent.mkdir(parents=True)
    path.write_bytes(content)

    with pytest.raises(BadInputError, match=r"keys\.json"):
        new_key(path, "shop")

    assert path.read_bytes() == content


def test_no_file_means_no_callers(path):
    assert callers(path, now()) == {}


def _make(path, caller):
    new_key(path, caller)


def test_keys_made_at_once_are_all_kept(path):
    context = multiprocessing.get_context("fork")
    makers = [context.Process(target=_make, args=(path, f"caller{number}")) for number in range(6)]

    for maker in makers:
        maker.start()
    for maker in makers:
        maker.join()

    assert set(callers(path, now()).values()) == {f"caller{number}" for number in range(6)}
    assert not list(path.parent.glob("*.partial"))
