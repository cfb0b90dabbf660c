import json
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.slow


def test_a_run_prints_its_result_as_json_on_standard_output_alone(command_line, make_model):
    done = command_line("run", "--model", make_model("binary"), "--json")

    assert done.returncode == 0, done.stderr
    found = done.json()
    assert found["champion"]["aliases"] == ["champion"]
    assert {result["verdict"] for result in found["trained"]["gates"]["results"]} == {"pass"}
    assert len(done.stdout.strip().splitlines()) == 1


def test_a_run_prints_a_summary_for_people(command_line, make_model):
    done = command_line("run", "--model", make_model("binary"))

    assert done.returncode == 0, done.stderr
    for said in (
        "Data and contract",
        "Candidates",
        "Holdout",
        "Gates",
        "Registry: ",
        "Scores: ",
        "MLflow UI",
    ):
        assert said in done.stdout
    assert "Traceback" not in done.stderr


def test_a_refused_gate_ends_with_three_and_shows_why(command_line, make_model):
    def ask_too_much(spec):
        spec["gates"].append({"kind": "metric", "metric": "brier", "max": 0.000001})

    model = make_model("binary", ask_too_much)
    told = command_line("train", "--model", model)
    as_json = command_line("train", "--model", model, "--json")

    assert told.returncode == as_json.returncode == 3
    assert "metric brier" in told.stdout
    assert "metric brier: fail" in told.stderr
    assert "Traceback" not in told.stderr
    assert as_json.json()["version"] is None


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["train", "--model", "chrun"], "there is no model 'chrun'"),
        (["train", "--model", "churn", "--env", "prd"], "there is no environment 'prd'"),
        (["train", "--model", "telco", "--source", "nowhere.csv"], "nowhere.csv: there is no such file"),
        (["train", "--model", "churn", "--source", "x.csv"], "TABLE=PATH"),
        (["score", "--model", "churn"], "no champion yet"),
        (["train", "--modl", "churn"], "No such option"),
        (["spec", "check", "nowhere.yaml"], "there is no such file"),
        (["spec", "schema", "modl"], "there is no schema of 'modl'"),
    ],
)
def test_bad_arguments_end_with_two_and_a_sentence(command_line, arguments, said):
    done = command_line(*arguments)

    assert done.returncode == 2, done.stderr
    assert said in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_an_error_is_json_too_when_asked_for(command_line):
    done = command_line("score", "--model", "churn", "--json")

    assert done.returncode == 2
    assert done.json()["exit_code"] == 2
    assert "no champion yet" in done.json()["error"]


def test_a_spec_with_mistakes_is_told_all_of_them_by_line(command_line, make_model):
    model = make_model("binary")
    text = model.read_text().replace("min_rows", "min_row").replace("purpose", "purpos")
    model.write_text(text)

    done = command_line("spec", "check", model)

    assert done.returncode == 2
    assert "did you mean 'min_rows'?" in done.stderr
    assert "did you mean 'purpose'?" in done.stderr
    assert f"{model}:" in done.stderr.replace("\n", "")


def test_a_drafted_spec_trains_as_it_stands(command_line, make_model, tmp_path):
    data = make_model("multiclass").parent / "data.csv"

    drafted = command_line("spec", "init", "wine", "--from", data, "--target", "target", "--folder", tmp_path)
    checked = command_line("spec", "check", tmp_path / "wine" / "model.yaml")
    trained = command_line("train", "--model", tmp_path / "wine" / "model.yaml", "--json")

    assert drafted.returncode == 0, drafted.stderr
    assert checked.returncode == 0, checked.stderr
    assert trained.returncode in {0, 3}, trained.stderr
    assert trained.json()["gold"]["rows"] == 178


def test_the_schema_is_json_schema(command_line):
    done = command_line("spec", "schema")

    assert done.returncode == 0
    assert done.json()["properties"]["contract"]


def test_scores_are_written_once_and_never_over_anything(command_line, make_model, tmp_path):
    model = make_model("binary")
    assert command_line("run", "--model", model).returncode == 0
    output = tmp_path / "scores.csv"
    batch = model.parent / "data.csv"

    first = command_line("score", "--model", model, "--input", batch, "--output", output, "--json")
    again = command_line("score", "--model", model, "--input", batch, "--output", output, "--json")
    output.write_text("something else")
    (tmp_path / "scores.csv.manifest.json").unlink()
    refused = command_line("score", "--model", model, "--input", batch, "--output", output)

    assert first.returncode == 0, first.stderr
    assert first.json()["scored_rows"] == len(pd.read_csv(batch))
    assert again.json()["unchanged"] is True
    assert refused.returncode == 2
    assert "never written over" in refused.stderr
    assert output.read_text() == "something else"


def test_the_audit_finds_a_changed_line_and_a_changed_file(command_line, make_model, home):
    assert command_line("run", "--model", make_model("binary")).returncode == 0
    clean = command_line("audit", "verify", "--json")
    shown = command_line("audit", "show", "--json")

    page = next((home / "dev" / "evidence").rglob("gates.json"))
    page.write_text(page.read_text().replace("pass", "Pass"))
    ledger = home / "dev" / "ledger" / "ledger.jsonl"
    ledger.write_text(ledger.read_text().replace("model.promoted", "model.Promoted"))
    found = command_line("audit", "verify", "--json")

    assert clean.returncode == 0
    assert clean.json() == {"entries": 4, "bundles": 1, "problems": []}
    assert [entry["event"] for entry in shown.json()][-1] == "model.promoted"
    assert found.returncode == 1
    said = "\n".join(found.json()["problems"])
    assert "gates.json: changed" in said
    assert "ledger: " in said


def test_without_any_server_the_line_runs_all_the_same(make_model, home, tmp_path):
    import os

    environment = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}

    done = subprocess.run(
        [sys.executable, "-m", "flows.run", "run", "--model", str(make_model("regression")), "--json"],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=ROOT,
        env={**environment, "CONTENDER_HOME": str(home)},
        check=False,
    )

    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["trained"]["model"] == "regression_model"
    assert "Error" not in done.stderr
