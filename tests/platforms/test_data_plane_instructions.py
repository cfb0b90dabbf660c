"""What the data plane is told to start."""

import json
from pathlib import Path

import pytest

from deployments.environment import Environment
from platforms.local import LocalPlatform


@pytest.mark.parametrize("wanted", [True, False])
def test_an_mlflow_server_is_started_only_where_the_environment_wants_one(tmp_path, monkeypatch, wanted):
    environment = Environment.model_validate(
        {
            "name": "dev",
            "platform": {"kind": "local", "data_root": "data"},
            "serving": {"mlflow": wanted},
        }
    )
    plane, told = LocalPlatform(environment, tmp_path / "data").data_plane, []
    monkeypatch.setattr(
        type(plane), "_ask", lambda self, what, file: told.append(json.loads(Path(file).read_text())) or {}
    )

    plane.up()

    (instructions,) = told
    assert bool(instructions["mlflow_store"]) is wanted
