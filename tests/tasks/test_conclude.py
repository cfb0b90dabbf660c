from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from deployments.spec import load_spec
from tasks import conclude as concluding
from tasks.champion import CHAMPION, ChampionMissing, NoChampionYet, standing_champion, version_ref
from tasks.code_version import CodeVersion, code_version
from tasks.conclude import conclude, find_outcome, version_tags, without_credentials, write_page
from tasks.evidence import bundles, verify_bundle
from tasks.gate import GateResult
from tasks.register import INTEGRATION, promote, register_version, settle
from tasks.tracking import Tracking
from tasks.verdict import Verdict

MODEL = "patients"


def conclusion(line, version, gates):
    return conclude(
        line.loaded,
        line.platform,
        line.run,
        tables=line.tables,
        gold=line.gold,
        parts=line.parts,
        leaderboard=line.leaderboard,
        trained=line.trained,
        evaluation=line.evaluation,
        gates=gates,
        version=version,
    )


def finished(line):
    """The whole of a training but for the process that loads the artifact."""
    passed = GateResult(gate=INTEGRATION, verdict=Verdict.PASS, value=0.0, threshold=1e-9, reason="as it was")
    gates = line.gates.plus(passed)
    tags = version_tags(line.loaded, line.platform, line.run, line.tables, line.gold, line.trained)
    version = register_version(line.loaded, line.platform, line.run, line.trained, tags)
    version = settle(line.loaded, line.platform, line.run, version, gates)
    return conclusion(line, version, gates)


def found(line, standing=None, **changed):
    given = {"loaded": line.loaded, "gold": line.gold} | changed
    return find_outcome(
        given["loaded"], line.platform, given["gold"], standing or standing_champion(line.platform, MODEL)
    )


@pytest.fixture
def done(line):
    return finished(line)


def test_a_finished_training_leaves_pages_evidence_and_an_outcome(line, done):
    assert done.verdict is Verdict.PASS
    assert Path(done.reports.training).is_file()
    assert Path(done.reports.contract).is_file()
    (bundle,) = bundles(line.platform)
    assert str(bundle) == done.reports.evidence
    assert verify_bundle(line.platform, bundle) == ()
    assert {path.name for path in bundle.iterdir()} >= {"gates.json", "data.json", "model_card.md"}


def test_the_same_training_is_found_done_and_says_which_aliases_stand_now(line, done):
    again = found(line)

    assert again == done.model_copy(update={"unchanged": True})
    assert again.version.aliases == ("challenger",)

    promote(line.platform, MODEL, version_ref(line.platform, MODEL, "1"))
    assert found(line).version.aliases == ("champion",)


def test_nothing_is_found_before_a_training_is_finished(line):
    assert found(line) is None


def test_concluding_again_after_a_crash_changes_no_evidence(line, done):
    again = finished(line)

    assert again == done
    (bundle,) = bundles(line.platform)
    assert verify_bundle(line.platform, bundle) == ()


def test_a_changed_spec_is_another_training(line, done, tmp_path):
    said = yaml.safe_load(line.loaded.path.read_text())
    said["gates"][0]["min"] = 0.6
    (tmp_path / "model.yaml").write_text(yaml.safe_dump(said))

    assert found(line, loaded=load_spec(tmp_path / "model.yaml")) is None


def test_changed_data_is_another_training(line, done):
    assert found(line, gold=line.gold.model_copy(update={"digest": "0" * 64})) is None


def test_changed_code_is_another_training(line, done, monkeypatch):
    other = CodeVersion(**{**code_version().model_dump(), "digest": "0" * 64})
    monkeypatch.setattr(concluding, "code_version", lambda: other)

    assert found(line) is None


def test_another_champion_makes_it_another_training(line, done):
    promote(line.platform, MODEL, version_ref(line.platform, MODEL, "1"))
    serving = standing_champion(line.platform, MODEL)

    assert found(line, standing=serving) is not None
    assert found(line, standing=serving.model_copy(update={"version": "2"})) is None
    assert found(line, standing=serving.model_copy(update={"digest": "0" * 64})) is None
    assert found(line, standing=ChampionMissing("it is gone")) is None


def test_an_outcome_against_a_champion_holds_while_that_champion_stands(line):
    against = line.evaluation.model_copy(update={"champion": "7", "first_version": False})
    line = replace(line, evaluation=against)
    finished(line)
    serving = version_ref(line.platform, MODEL, "1").model_copy(update={"version": "7", "digest": "0" * 64})

    assert found(line, standing=serving) is not None
    assert found(line, standing=serving.model_copy(update={"version": "8"})) is None
    assert found(line, standing=NoChampionYet()) is None


def test_an_outcome_without_a_champion_to_compare_with_is_no_first_version(line):
    finished(replace(line, evaluation=line.evaluation.model_copy(update={"first_version": False})))

    assert found(line, standing=NoChampionYet()) is None


def test_a_version_that_was_taken_out_of_the_registry_is_trained_again(line, done):
    Tracking(line.platform).client.delete_registered_model(MODEL)

    assert found(line) is None


def test_a_refused_training_is_found_refused(line):
    failed = GateResult(gate="size", verdict=Verdict.FAIL, value=2.0, threshold=1.0, reason="too large")
    conclusion(line, None, line.gates.plus(failed))

    again = found(line)

    assert again.unchanged
    assert again.version is None
    assert again.verdict is Verdict.FAIL
    assert bundles(line.platform) == []


def test_a_page_is_replaced_as_a_whole(platform):
    first = write_page(platform, MODEL, "training-v1", "one")

    second = write_page(platform, MODEL, "training-v1", "two")

    assert first == second
    assert Path(second).read_text() == "two"
    assert [path.name for path in Path(second).parent.iterdir()] == ["training-v1.html"]


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("sqlite:////home/me@work/data/mlflow.db", "sqlite:////home/me@work/data/mlflow.db"),
        ("http://localhost:5000", "http://localhost:5000"),
        ("https://me:secret@mlflow.example/api", "https://mlflow.example/api"),
        ("https://token@mlflow.example", "https://mlflow.example"),
        ("postgresql://me:se/cr?et@db:5432/mlflow", "postgresql://db:5432/mlflow"),
        ("postgresql://me:s[e]c@ret@db/mlflow", "postgresql://db/mlflow"),
        ("postgresql://db/mlflow?user=me&password=secret", "postgresql://db/mlflow"),
        ("databricks", "databricks"),
        ("databricks://profile", "databricks://profile"),
        ("/data/mlruns", "/data/mlruns"),
    ],
)
def test_credentials_are_not_shown(uri, shown):
    assert without_credentials(uri) == shown


def test_the_champion_of_another_name_is_nobody_here(line, done):
    client = Tracking(line.platform).client
    client.create_registered_model("others")

    assert CHAMPION not in client.get_registered_model("others").aliases
    assert isinstance(standing_champion(line.platform, "others"), NoChampionYet)
