import pandas as pd
import pytest

pytestmark = pytest.mark.slow


def test_without_any_server_a_run_ends_with_a_champion_and_prints_its_result_alone(
    command_line, make_model, tmp_path
):
    model, bare = make_model("regression"), tmp_path / "bare"

    done = command_line("run", "--model", model, "--json", CONTENDER_HOME=str(bare), PREFECT_API_URL="")

    assert done.returncode == 0, done.stderr
    assert "Error" not in done.stderr
    assert len(done.stdout.strip().splitlines()) == 1
    found = done.json()
    assert found["champion"]["aliases"] == ["champion"]
    assert found["trained"]["model"] == "regression_model"
    assert {result["verdict"] for result in found["trained"]["gates"]["results"]} == {"pass"}
    scored = pd.read_parquet(found["scored"]["output"])
    assert len(scored) == found["scored"]["scored_rows"] == found["trained"]["gold"]["rows"] == 442
    assert set(scored["model_version"]) == {"1"}


def test_a_process_ends_with_the_exit_code_and_one_sentence(command_line):
    done = command_line("spec", "check", "nowhere.yaml")

    assert (done.returncode, done.stdout) == (2, "")
    assert "there is no such file" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_run_prints_a_summary_for_people(commands, promoted):
    done = commands("run", "--model", promoted.model)

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


def test_a_refused_gate_ends_with_three_and_shows_why(commands, make_model):
    def ask_too_much(spec):
        spec["gates"].append({"kind": "metric", "metric": "brier", "max": 0.000001})

    model = make_model("binary", ask_too_much)
    told = commands("train", "--model", model)
    as_json = commands("train", "--model", model, "--json")

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
        (["spec", "schema", "modl"], "there is no schema of 'modl'"),
    ],
)
def test_bad_arguments_end_with_two_and_a_sentence(commands, arguments, said):
    done = commands(*arguments)

    assert done.returncode == 2, done.stderr
    assert said in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_an_error_is_json_too_when_asked_for(commands):
    done = commands("score", "--model", "churn", "--json")

    assert done.returncode == 2
    assert done.json()["exit_code"] == 2
    assert "no champion yet" in done.json()["error"]


def test_a_spec_with_mistakes_is_told_all_of_them_by_line(commands, make_model):
    model = make_model("binary")
    text = model.read_text().replace("min_rows", "min_row").replace("purpose", "purpos")
    model.write_text(text)

    done = commands("spec", "check", model)

    assert done.returncode == 2
    assert "did you mean 'min_rows'?" in done.stderr
    assert "did you mean 'purpose'?" in done.stderr
    assert f"{model}:" in done.stderr.replace("\n", "")


def test_a_drafted_spec_checks_as_it_stands(commands, make_model, tmp_path):
    data = make_model("multiclass").parent / "data.csv"

    drafted = commands("spec", "init", "wine", "--from", data, "--target", "target", "--folder", tmp_path)
    checked = commands("spec", "check", tmp_path / "wine" / "model.yaml", "--json")

    assert drafted.returncode == 0, drafted.stderr
    assert checked.returncode == 0, checked.stderr
    assert checked.json()["model"] == "wine"


def test_the_schema_is_json_schema(commands):
    done = commands("spec", "schema")

    assert done.returncode == 0
    assert done.json()["properties"]["contract"]


def test_scores_are_written_once_and_never_over_anything(commands, promoted, tmp_path):
    output = tmp_path / "scores.csv"
    batch = promoted.model.parent / "data.csv"
    asked = ("score", "--model", promoted.model, "--input", batch, "--output", output)

    first = commands(*asked, "--json")
    again = commands(*asked, "--json")
    output.write_text("something else")
    (tmp_path / "scores.csv.manifest.json").unlink()
    refused = commands(*asked)

    assert first.returncode == 0, first.stderr
    assert first.json()["scored_rows"] == len(pd.read_csv(batch))
    assert first.json()["unchanged"] is False
    assert again.json()["unchanged"] is True
    assert refused.returncode == 2
    assert "never written over" in refused.stderr
    assert output.read_text() == "something else"


def test_the_audit_finds_a_changed_line_and_a_changed_file(commands, promoted, home):
    clean = commands("audit", "verify", "--json")
    shown = commands("audit", "show", "--json")

    page = next((home / "dev" / "evidence").rglob("gates.json"))
    page.write_text(page.read_text().replace("pass", "Pass"))
    ledger = home / "dev" / "ledger" / "ledger.jsonl"
    ledger.write_text(ledger.read_text().replace("model.promoted", "model.Promoted"))
    found = commands("audit", "verify", "--json")

    assert clean.returncode == 0
    assert clean.json() == {"entries": 5, "bundles": 1, "releases": 0, "problems": [], "changes": []}
    assert [entry["event"] for entry in shown.json()][-1] == "model.promoted"
    assert found.returncode == 1
    said = "\n".join(found.json()["problems"])
    assert "gates.json: changed" in said
    assert "ledger: " in said
