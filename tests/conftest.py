"""What all tests share: quiet libraries, and a platform in a folder of the test's own."""

import os

os.environ.update(
    {
        "DO_NOT_TRACK": "true",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
        "MLFLOW_LOGGING_LEVEL": "ERROR",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    }
)

import pytest

from deployments.environment import Environment, LocalPlatformConfig
from platforms.local import LocalPlatform


@pytest.fixture
def platform(tmp_path):
    """A local platform under the test's folder, as strict as dev."""
    environment = Environment(
        name="dev",
        platform=LocalPlatformConfig(data_root="data"),
        allow_dirty_tree=True,
    )
    return LocalPlatform(environment, tmp_path / "data")
