"""What all tests share: quiet libraries, a platform in a folder of the test's own, and what is made once for all."""

import fcntl
import os
import shutil
import sqlite3
import tempfile
from contextlib import closing

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

TEMPORARY = pytest.StashKey[str]()


def pytest_configure(config):
    """A folder for all that tests, and what they start and kill, would leave among the machine's temporary files."""
    if not hasattr(config, "workerinput"):
        config.stash[TEMPORARY] = tempfile.mkdtemp(prefix="contender-")
        os.environ["TMPDIR"], tempfile.tempdir = config.stash[TEMPORARY], None


def pytest_sessionfinish(session, exitstatus):
    """It stays where there is something to look into."""
    if exitstatus not in {pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED}:
        session.config.stash[TEMPORARY] = ""


def pytest_unconfigure(config):
    """It goes once nothing writes into it any more."""
    if folder := config.stash.get(TEMPORARY, ""):
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def platform(tmp_path):
    """A local platform under the test's folder, as strict as dev."""
    environment = Environment(
        name="dev",
        platform=LocalPlatformConfig(data_root="data"),
        allow_dirty_tree=True,
    )
    return LocalPlatform(environment, tmp_path / "data")


@pytest.fixture(scope="session")
def once(tmp_path_factory):
    """Makes a folder once for all workers: `once(name, make)` has `make(folder)` fill it, and returns it."""
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent

    def made(name, make):
        folder = shared / name
        with (shared / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not (folder / "made").exists():
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir()
                make(folder)
                (folder / "made").touch()
        return folder

    return made


@pytest.fixture(scope="session")
def mlflow_template(once):
    """An MLflow database with its tables made, to be copied: making them takes seconds."""

    def make(folder):
        from mlflow import MlflowClient

        MlflowClient(f"sqlite:///{folder / 'mlflow.db'}").search_experiments()

    return once("mlflow_template", make) / "mlflow.db"


@pytest.fixture(scope="session")
def copy_data_root():
    """Copies a whole data root, with MLflow's absolute addresses put right: `copy_data_root(root, target)`."""

    def copy(root, target):
        from mlflow.tracking._tracking_service.utils import _artifact_repos_cache

        shutil.copytree(root, target, dirs_exist_ok=True)
        with closing(sqlite3.connect(target / "mlflow.db")) as database:
            for table, column in (
                ("experiments", "artifact_location"),
                ("runs", "artifact_uri"),
                ("logged_models", "artifact_location"),
                ("model_versions", "source"),
                ("model_versions", "storage_location"),
            ):
                database.execute(
                    f"update {table} set {column} = replace({column}, ?, ?)", (f"{root}/", f"{target}/")
                )
            database.commit()
        # MLflow remembers where the files of a run are, by the run's id alone.
        _artifact_repos_cache.clear()

    return copy


@pytest.fixture(scope="session")
def prefect_server(tmp_path_factory):
    """A real Prefect server for the whole session, as a run brings along; yields its address.

    All tests of one process share it: Prefect's sender of events keeps to the server that it began with.
    """
    from prefect.settings import PREFECT_API_URL, PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings

    from flows.server import OwnServer

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PREFECT_HOME", str(tmp_path_factory.mktemp("prefect")))
        server = OwnServer()
    server.wait()
    with temporary_settings({PREFECT_API_URL: server.url, PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}):
        yield server.url
    server.stop()
