import json

import pytest

from deployments.errors import BadInputError, ContenderError
from tasks.evidence import bundles, complete_bundle, newest_bundle, read_manifest, verify_bundle, write_bundle
from tasks.register import Version, ledger_of
from tasks.release_record import State
from tests.tasks.made_releases import kept, looks, released, told

VERSION = Version(name="dev_patients", version="7", run_id="run-7", model_digest="7" * 64)
DOCUMENTS = {"gates.json": "{}\n", "plots/roc.png": b"\x89PNG"}


@pytest.fixture
def trained(platform):
    """A platform where the version has the bundle of its training."""
    write_bundle(platform, "patients", VERSION, DOCUMENTS)
    return platform


def rejected(platform, **changed):
    return kept(platform, told(platform, released(State.REJECTED, **changed)))


def test_a_completed_bundle_holds_the_training_the_release_and_the_ledgers_head(trained):
    release = kept(trained, told(trained, released()), looks(1))
    approvals = trained.folder("approvals") / "dev_patients" / "v7"
    approvals.mkdir(parents=True)
    (approvals / "abc.json").write_text("{}")
    before = list(ledger_of(trained).entries())

    folder = complete_bundle(trained, "patients", release)

    files = set(read_manifest(folder).files)
    assert folder.name == "v7.2"
    assert files == {
        *DOCUMENTS,
        f"release/{release.id}/release.json",
        f"release/{release.id}/looks.jsonl",
        f"release/{release.id}/report.html",
        "approvals/abc.json",
        "timeline.json",
        "ledger_head.json",
    }
    assert json.loads((folder / "ledger_head.json").read_text()) == {
        "entries": len(before),
        "last": before[-1].hash,
    }
    timeline = json.loads((folder / "timeline.json").read_text())
    assert [entry["event"] for entry in timeline][:2] == ["evidence.written", "release.started"]
    assert [verify_bundle(trained, one) for one in bundles(trained)] == [(), ()]


def test_completing_again_is_the_bundle_that_stands(trained):
    release = rejected(trained)
    first = complete_bundle(trained, "patients", release)
    count = len(list(ledger_of(trained).entries()))

    again = complete_bundle(trained, "patients", release)

    assert again == first == newest_bundle(trained, "patients")
    assert len(list(ledger_of(trained).entries())) == count
    assert write_bundle(trained, "patients", VERSION, DOCUMENTS).name == "v7"


def test_a_release_that_went_on_and_another_one_have_places_of_their_own(trained):
    release = rejected(trained)
    complete_bundle(trained, "patients", release)
    went_on = kept(trained, release.model_copy(update={"held": "asked"}))
    second = rejected(trained, id="second")

    places = [complete_bundle(trained, "patients", one).name for one in (went_on, second)]
    again = complete_bundle(trained, "patients", went_on)

    assert places == ["v7.3", "v7.4"]
    assert again.name == "v7.4"
    held = {name for name in read_manifest(again).files if name.startswith("release/")}
    assert {name.split("/")[1] for name in held} == {release.id, "second"}
    assert [verify_bundle(trained, one) for one in bundles(trained)] == [()] * 4


def test_nothing_is_built_on_a_bundle_that_was_changed(trained):
    release = rejected(trained)
    (bundles(trained)[0] / "gates.json").write_text("[]")

    with pytest.raises(ContenderError, match=r"none is built on it: gates\.json: changed"):
        complete_bundle(trained, "patients", release)

    assert len(bundles(trained)) == 1


def test_nothing_is_built_on_the_bundle_of_another_model_file(trained):
    ref = released().challenger.model_copy(update={"run_id": "run-9"})

    with pytest.raises(ContenderError, match="of another model file"):
        complete_bundle(trained, "patients", rejected(trained, challenger=ref))


def test_a_version_that_was_not_trained_here_has_evidence_of_its_release_alone(platform):
    folder = complete_bundle(platform, "patients", rejected(platform))

    assert folder.name == "v7"
    assert "gates.json" not in read_manifest(folder).files
    assert verify_bundle(platform, folder) == ()


def test_a_release_without_a_record_is_no_evidence(trained):
    with pytest.raises(BadInputError, match="there is no record of release"):
        complete_bundle(trained, "patients", released())
