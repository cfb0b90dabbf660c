"""What a process that runs a flow has set, whoever started it."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ASKED = """
import runpy
runpy.run_path("flows/train.py")
from mlflow.environment_variables import MLFLOW_HTTP_REQUEST_MAX_RETRIES as retries
from mlflow.telemetry.utils import is_telemetry_disabled
print(is_telemetry_disabled(), retries.get())
"""


def test_a_flow_that_a_worker_loads_has_mlflow_without_telemetry_and_with_few_retries():
    told = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("MLFLOW_", "PREFECT_"))
        and name not in {"DO_NOT_TRACK", "CI", "PYTEST_CURRENT_TEST"}
    }

    done = subprocess.run(
        [sys.executable, "-c", ASKED], env=told, cwd=ROOT, capture_output=True, text=True, check=False
    )

    assert done.stdout.split() == ["True", "3"], done.stderr
