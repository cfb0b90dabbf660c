"""The audit finds each thing that was tampered with, and finds nothing where nothing was."""

import hashlib
import json
import shutil

import pytest

from tasks.audit import audit, release_problems
from tasks.evidence import complete_bundle, write_bundle
from tasks.register import Version, ledger_of
from tasks.release_record import ReleaseStore, State
from tests.tasks.made_releases import kept, looks, released, told, transition, version_ref

VERSION = Version(name="dev_patients", version="7", run_id="run-7", model_digest="7" * 64)


@pytest.fixture
def audited(platform):
    """A version with evidence, and its release: promoted, in the ledger, and in the evidence."""
    write_bundle(platform, "patients", VERSION, {"gates.json": "{}", "plots/roc.png": b"\x89PNG"})
    release = kept(platform, told(platform, released(State.REJECTED)))
    complete_bundle(platform, "patients", release)
    kept(platform, told(platform, released(id="second")), looks())
    return platform


def lines(platform):
    return ledger_of(platform).path.read_text().splitlines(keepends=True)


def write_lines(platform, those):
    ledger_of(platform).path.write_text("".join(those))


def edit_record(platform, **changed):
    store = ReleaseStore(platform, "patients")
    store.save(store.load("second").model_copy(update=changed))


def bundle(platform, name="v7.2"):
    return platform.folder("evidence") / "dev_patients" / name


def test_what_nobody_touched_is_in_order(audited):
    found = audit(audited)

    assert found.problems == ()
    assert (found.bundles, found.releases) == (2, 2)
    assert found.entries == len(lines(audited))


def edited(platform):
    write_lines(platform, [line.replace("grace@", "grade@") for line in lines(platform)])


def deleted(platform):
    write_lines(platform, [*lines(platform)[:3], *lines(platform)[4:]])


def reordered(platform):
    first, second, *rest = lines(platform)
    write_lines(platform, [second, first, *rest])


def truncated(platform):
    write_lines(platform, lines(platform)[:-2])


def cut_with_its_head(platform):
    """As somebody would who knows how the ledger is made."""
    ledger = ledger_of(platform)
    data = "".join(lines(platform)[:2])
    entry = json.loads(data.splitlines()[-1])
    ledger.path.write_text(data)
    head = {
        "entries": 2,
        "last": entry["hash"],
        "digest": hashlib.sha256(data.encode()).hexdigest(),
    }
    ledger.path.with_suffix(".head.json").write_text(json.dumps(head))


def without_a_ledger(platform):
    shutil.rmtree(platform.folder("ledger"))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (edited, "ledger: line"),
        (deleted, "a line was dropped, moved or put in"),
        (reordered, "a line was dropped, moved or put in"),
        (truncated, "from here they were cut off"),
        (cut_with_its_head, "ledger: entry 3 is not the one that"),
        (without_a_ledger, "the ledger knows nothing of it"),
    ],
)
def test_a_ledger_that_was_tampered_with_is_found(audited, damage, said):
    damage(audited)

    assert any(said in problem for problem in audit(audited).problems)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda of: (bundle(of) / "gates.json").write_text("[]"), "v7.2: gates.json: changed"),
        (lambda of: (bundle(of) / "timeline.json").unlink(), "v7.2: timeline.json: missing"),
        (lambda of: (bundle(of) / "plots" / "new.png").touch(), "v7.2: plots/new.png: not in the manifest"),
        (lambda of: (bundle(of, "v7") / "plots" / "roc.png").write_bytes(b""), "v7: plots/roc.png: changed"),
        (lambda of: shutil.rmtree(bundle(of)), "v7.2: "),
    ],
)
def test_a_bundle_that_was_tampered_with_is_found(audited, damage, said):
    damage(audited)

    (found,) = audit(audited).problems
    assert said in found


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"state": State.ROLLED_BACK}, "its record says that it is rolled_back"),
        ({"history": released().history[:-1]}, "its own history ends with canary"),
        (
            {
                "history": (
                    *released().history[:-1],
                    transition(State.PROMOTED, percentage=100, minute=46, reason="so be it"),
                )
            },
            "its record says promoted (so be it), and the ledger does not say so",
        ),
        ({"challenger": version_ref("8")}, "its record is of dev_patients/8"),
        ({"challenger": version_ref().model_copy(update={"digest": "0" * 64})}, "another model file"),
        ({"champion": version_ref("5")}, "its record replaces version 5, and the ledger says 6"),
        ({"approvals": ("c" * 64,)}, "rests on approval cccccccccccccccc"),
    ],
)
def test_a_release_record_that_contradicts_the_ledger_is_found(audited, changed, said):
    edit_record(audited, **changed)

    problems = audit(audited).problems

    assert all(problem.startswith("release patients/second: ") for problem in problems)
    assert any(said in problem for problem in problems)


def test_a_release_record_that_is_gone_or_is_none_is_found(audited):
    folder = ReleaseStore(audited, "patients").folder("second")
    (folder / "release.json").write_text("{}")

    (torn,) = audit(audited).problems
    shutil.rmtree(folder)
    (gone,) = audit(audited).problems

    assert "this is no release record" in torn
    assert gone == "release patients/second: the ledger knows it, and its record is missing"


def test_a_promotion_that_the_ledger_does_not_know_is_found(platform):
    kept(platform, told(platform, released(), without={"release.promoted"}))

    problems = audit(platform).problems

    assert any("its record says promoted" in problem for problem in problems)
    assert any("the ledger's last entry says canary" in problem for problem in problems)


def test_a_release_made_up_beside_the_ledger_is_found(platform):
    kept(platform, released())

    assert any(
        "the ledger does not say that it was started" in problem for problem in audit(platform).problems
    )


def entries(platform):
    return list(ledger_of(platform).entries())


def test_a_release_cut_short_between_ledger_and_record_is_in_order(platform):
    whole = told(platform, released())
    before = whole.model_copy(
        update={"state": State.CANARY, "step": 1, "history": whole.history[:-1], "intent": whole.history[-1]}
    )

    assert release_problems(before, entries(platform)) == []
    assert release_problems(before.model_copy(update={"intent": None}), entries(platform)) != []


def test_a_rollback_by_hand_that_names_a_release_is_no_part_of_its_record(platform):
    release = told(platform, released())
    ledger_of(platform).append(
        "rollback.by_hand",
        model="patients",
        subject="dev_patients/6",
        details={"release": release.id, "model_digest": "6" * 64},
        key="rollback/1",
        actor="grace@example.com",
    )

    assert release_problems(release, entries(platform)) == []


def test_a_release_that_was_just_proposed_is_in_order_before_the_ledger_knows_it(platform):
    proposed = released(history=(), state=State.PROPOSED, closed=False)

    assert release_problems(proposed, []) == []


def test_a_release_taken_up_again_in_another_state_is_in_order(platform):
    """The step that was cut short stands in the ledger alone, and what came of it in both."""
    cut = told(platform, released(after=2))
    ended = transition(State.ROLLED_BACK, minute=50, reason="the lease lapsed")
    release = cut.model_copy(
        update={"state": State.ROLLED_BACK, "history": (*cut.history[:-1], ended), "closed": True}
    )
    ledger_of(platform).append(
        "release.rolled_back",
        model="patients",
        subject=release.subject,
        details={"release": release.id, "state": "rolled_back", "step": 0, "reason": "the lease lapsed"},
        key="again",
        actor="grace@example.com",
    )

    assert release_problems(release, entries(platform)) == []
