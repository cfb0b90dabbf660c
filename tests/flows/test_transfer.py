"""From a csv in one environment to a champion, scores and a served version in another, by the command line."""

import shutil

import pandas as pd
import pytest

from deployments.environment import Serving, load_environment
from flows.deliver import deliver
from flows.promote import promote
from flows.score import score
from platforms import platform_for
from serving.fetch import fetch
from serving.served_model import read_served

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("prefect_server", "home")]

STAGE = """
name: stage
platform: {kind: local, data_root: stage, model_prefix: stage-}
allow_dirty_tree: true
"""


@pytest.fixture
def stage(tmp_path):
    path = tmp_path / "stage.yaml"
    path.write_text(STAGE)
    return path


def test_a_transferred_champion_scores_and_is_served_without_its_source(
    command_line, make_model, home, stage, tmp_path
):
    model = make_model("binary")
    digest = deliver(str(model)).champion.model_digest

    moved = command_line("transfer", "--model", model, "--from", "dev", "--env", stage, "--json")

    assert moved.returncode == 0, moved.stderr
    assert moved.json()["version"]["name"] == "stage-binary_model"
    assert moved.json()["version"]["aliases"] == ["challenger"]
    shutil.rmtree(home / "dev")
    champion = promote(str(model), str(stage))
    assert champion.model_digest == digest
    rows = pd.read_csv(model.parent / "data.csv").drop(columns="target")
    rows.to_csv(tmp_path / "rows.csv", index=False)
    scored = score(str(model), str(stage), str(tmp_path / "rows.csv"), str(tmp_path / "scores.parquet"))
    assert (scored.scored_rows, scored.name) == (len(rows), "stage-binary_model")
    platform = platform_for(load_environment(stage))
    folder = fetch(
        champion.name,
        champion.version,
        tracking_uri=platform.mlflow.tracking_uri,
        registry_uri=platform.mlflow.registry_uri,
        folder=tmp_path / "models",
        serving=Serving(),
        allowed_packages=["sklearn"],
    )
    assert (read_served(folder).model_digest, read_served(folder).engine) == (digest, "onnx")


def test_a_source_without_a_champion_ends_with_2_and_says_so(command_line, make_model, stage):
    asked = command_line(
        "transfer", "--model", make_model("binary"), "--from", "dev", "--env", stage, "--json"
    )

    assert asked.returncode == 2
    assert asked.json() == {
        "error": "dev-binary_model has no champion to transfer; promote one, or name a version",
        "exit_code": 2,
    }
