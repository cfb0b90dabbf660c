"""Records of releases on disk: which one is the newest, and what was done before."""

from datetime import timedelta

import pytest

from deployments.errors import BadInputError
from tasks.release_record import ReleaseStore, State
from tests.tasks.made_releases import BEGUN, released

OLD, NEW = "dev_patients-6-20260301t090000000", "dev_patients-7-20260302t090000000"


@pytest.fixture
def store(platform):
    found = ReleaseStore(platform, "patients")
    found.save(released(State.PROMOTED, id=OLD, begun=BEGUN - timedelta(days=1)))
    found.save(released(State.ROLLED_BACK, id=NEW, begun=BEGUN))
    return found


@pytest.mark.parametrize(
    "written",
    ['{"id": "old", "begun": "2026-03-01T09:00:00Z", "a_field_of_another_release": 1}', "{ torn", "[]", ""],
)
def test_an_old_record_that_cannot_be_read_does_not_hide_the_newest(store, written):
    (store.folder(OLD) / "release.json").write_text(written)

    assert store.newest().id == NEW


def test_the_newest_record_must_be_readable(store):
    (store.folder(NEW) / "release.json").write_text("{ torn")

    with pytest.raises(BadInputError, match="this is no release record"):
        store.newest()


def test_a_record_that_tells_no_moment_counts_as_the_newest(store):
    (store.folder(OLD)).rename(store.folder("unknown"))
    (store.folder("unknown") / "release.json").write_text("{ torn")

    with pytest.raises(BadInputError, match="unknown"):
        store.newest()
