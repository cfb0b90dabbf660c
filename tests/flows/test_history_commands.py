"""What the commands for releases and audits print, over records that were made up."""

import json

import pytest

from deployments.environment import load_environment
from flows.run import main
from flows.session import session
from platforms import platform_for
from tasks.evidence import complete_bundle
from tasks.release_record import State
from tests.tasks.made_releases import kept, looks, released, told


@pytest.fixture
def recorded(home, monkeypatch):
    """Two releases of the shipped model: one promoted, one rolled back; the evidence of the first."""
    monkeypatch.setattr(session, "as_json", False)
    platform = platform_for(load_environment("dev"))
    promoted = released(model="churn", id="first")
    rolled_back = released(State.ROLLED_BACK, model="churn", id="second")
    kept(platform, told(platform, promoted), looks())
    kept(platform, told(platform, rolled_back), looks(failing=True))
    complete_bundle(platform, "churn", promoted)
    return platform


def test_history_prints_rows_for_people_and_as_json(recorded, capsys):
    assert main(["history", "--model", "churn"]) == 0
    shown = capsys.readouterr().out
    assert main(["history", "--model", "churn", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)

    assert "6 → 7  promoted" in shown
    assert "failed in canary 50 %: Error rate +5.00 pp (+2.00 to +8.00 pp)" in shown
    assert {row["id"]: row["outcome"] for row in rows} == {"first": "promoted", "second": "rolled back"}


def test_history_limits_and_shows_one_in_full(recorded, capsys):
    assert main(["history", "--limit", "1", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)) == 1
    assert main(["history", "--release", "second"]) == 0
    shown = capsys.readouterr().out

    assert "canary 50 %" in shown
    assert "release.rolled_back" in shown
    assert "fail" in shown


def test_history_of_nothing_says_so_and_an_unknown_release_is_bad_input(home, capsys, monkeypatch):
    monkeypatch.setattr(session, "as_json", False)

    assert main(["history"]) == 0
    assert "churn has no release yet" in capsys.readouterr().out
    assert main(["history", "--release", "nobody"]) == 2
    assert "there is no release 'nobody'" in capsys.readouterr().err


def test_the_audit_counts_releases_and_fails_where_a_record_contradicts_the_ledger(recorded, capsys):
    assert main(["audit", "verify", "--json"]) == 0
    clean = json.loads(capsys.readouterr().out)
    record = recorded.folder("releases") / "churn" / "second" / "release.json"
    record.write_text(record.read_text().replace('"state": "rolled_back"', '"state": "promoted"'))
    assert main(["audit", "verify", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)

    assert (clean["bundles"], clean["releases"], clean["problems"]) == (1, 2, [])
    assert all("release churn/second: " in problem for problem in found["problems"])
    assert found["problems"]


def test_an_export_is_written_where_asked_and_never_over_a_file(recorded, capsys, tmp_path):
    out = tmp_path / "evidence.zip"

    assert main(["audit", "export", "--model", "churn", "--out", str(out), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert main(["audit", "export", "--model", "churn", "--out", str(out)]) == 2
    assert "a file stands here" in capsys.readouterr().err

    assert said["path"] == str(out)
    assert (said["version"], said["problems"]) == ("7", [])


def test_an_export_of_damaged_evidence_ends_with_one(recorded, capsys, tmp_path):
    (recorded.folder("evidence") / "dev_patients" / "v7" / "timeline.json").write_text("[]")

    assert main(["audit", "export", "--out", str(tmp_path / "evidence.zip")]) == 1
    assert "evidence/timeline.json: changed" in capsys.readouterr().err
    assert (tmp_path / "evidence.zip").is_file()
