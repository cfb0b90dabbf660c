"""Personal data: one key a data root, and one digest a value under it."""

import threading

from deployments.personal_data import keyed_hash, personal_data_key


def test_equal_values_have_equal_digests_under_one_key_only():
    assert keyed_hash("Ann", b"key") == keyed_hash("Ann", b"key")
    assert len({keyed_hash("Ann", b"key"), keyed_hash("ann", b"key"), keyed_hash("Ann", b"other")}) == 3
    assert keyed_hash("Ann", b"key") == "28492470066575718888055fac51a695"


def test_a_key_is_made_once_and_for_its_owner_alone(tmp_path, monkeypatch):
    monkeypatch.delenv("CONTENDER_PII_KEY", raising=False)
    found = []

    threads = [threading.Thread(target=lambda: found.append(personal_data_key(tmp_path))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(set(found)) == 1
    assert len(found[0]) == 64
    (path,) = (tmp_path / "secrets").iterdir()
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_key_that_is_given_goes_before_the_one_that_is_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("CONTENDER_PII_KEY", "given")

    assert personal_data_key(tmp_path) == b"given"
    assert list(tmp_path.iterdir()) == []
