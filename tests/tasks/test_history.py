import pytest

from deployments.errors import BadInputError
from tasks.history import history, release_told
from tasks.register import ledger_of
from tasks.release_record import State
from tests.tasks.made_releases import kept, look, looks, released, told


def wrote(platform, event, key, **details):
    ledger_of(platform).append(
        event, model="patients", subject="dev_patients/6", details=details, key=key, actor="omar@example.com"
    )


def test_a_row_says_how_a_release_went_and_what_the_analysis_saw(platform):
    release = released(State.ROLLED_BACK, approvals=("a" * 64,))
    wrote(
        platform,
        "approval.given",
        "approval/a",
        digest="a" * 64,
        approver="Lin",
        role="compliance",
        ticket="CHG-9",
    )
    kept(platform, told(platform, release), looks(failing=True))

    (row,) = history(platform, "patients")

    assert (row.kind, row.id, row.left, row.version, row.outcome) == (
        "release",
        release.id,
        "6",
        "7",
        "rolled back",
    )
    assert row.approved_by == ("Lin (compliance, CHG-9)",)
    assert row.began_by == "grace@example.com"
    assert row.seconds == pytest.approx(46 * 60 + 0.25)
    assert row.requests == {"challenger": 900, "champion": 930}
    assert row.analysis == "failed in canary 50 %: Error rate +5.00 pp (+2.00 to +8.00 pp)"
    assert row.report is None


def test_a_row_counts_a_state_that_was_entered_again_and_leaves_a_torn_look_out(platform):
    again = [look(seconds=1, requests=100), look(seconds=2, requests=300), look(seconds=9, requests=50)]
    release = kept(platform, released(), again)
    with (platform.folder("releases") / "patients" / release.id / "looks.jsonl").open("a") as file:
        file.write('{"at":"2026')

    assert history(platform, "patients")[0].requests == {"challenger": 350, "champion": 370}


def test_the_newest_comes_first_and_no_more_than_asked_for(platform):
    first = released(State.REJECTED, id="first")
    later = released(id="later", begun=first.begun.replace(month=5), state=State.CANARY, held="no verdict")
    kept(platform, first)
    kept(platform, later)

    rows = history(platform, "patients")

    assert [(row.id, row.outcome) for row in rows] == [
        ("later", "under way: no verdict"),
        ("first", "rejected"),
    ]
    assert [row.seconds is None for row in rows] == [True, False]
    assert [row.id for row in history(platform, "patients", limit=1)] == ["later"]


def test_rollbacks_by_hand_and_drills_are_rows_and_what_a_release_took_back_is_none(platform):
    release = kept(platform, told(platform, released(State.ROLLED_BACK)))
    wrote(platform, "model.restored", f"restored/{release.id}", version="6", leaves="7", reason="harm")
    wrote(platform, "rollback.by_hand", "rollback/1", version="6", left="7", reason="calls came in")
    details = {"seconds_to_previous": 0.31, "seconds_to_champion": 0.1, "requests": 90, "failed": 0}
    wrote(platform, "drill.rollback", "drill/1", champion="7", previous="6", **details)

    drill, by_hand, _ = history(platform, "patients")

    assert (by_hand.kind, by_hand.left, by_hand.version) == ("rollback", "7", "6")
    assert (by_hand.analysis, by_hand.began_by) == ("calls came in", "omar@example.com")
    assert (drill.kind, drill.left, drill.version, drill.seconds) == ("drill", "7", "6", 0.31)
    assert drill.analysis == "0 of 90 requests failed"


def test_a_report_that_was_written_is_named(platform):
    release = kept(platform, released())
    report = platform.folder("releases") / "patients" / release.id / "report.html"
    report.write_text("page")

    assert history(platform, "patients")[0].report == str(report)


def test_one_release_is_told_in_full(platform):
    release = kept(platform, told(platform, released()), looks())

    found = release_told(platform, "patients", release.id)

    assert found.release == release
    assert (found.looks, found.last_look) == (9, looks()[-1])
    assert [entry["event"] for entry in found.entries] == [
        "release.started",
        "release.approved",
        "release.step",
        "release.step",
        "release.step",
        "release.promoted",
    ]
    with pytest.raises(BadInputError, match="there is no release 'another'"):
        release_told(platform, "patients", "another")


def test_a_model_without_releases_has_no_history(platform):
    assert history(platform, "patients") == []
