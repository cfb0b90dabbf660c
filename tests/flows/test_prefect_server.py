"""A real `prefect server start`, a real process worker, and what a person would find in the UI."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
import yaml

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

ROOT = Path(__file__).resolve().parents[2]
PREFECT = Path(sys.executable).with_name("prefect")


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def background(*command, environment, log):
    """A process group of its own that is gone afterwards, with everything it started."""
    with log.open("w") as output:
        process = subprocess.Popen(
            list(map(str, command)),
            env=environment,
            cwd=ROOT,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
        try:
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait(20)


def wait_until(found, seconds, what, log, process=None):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and (process is None or process.poll() is None):
        with contextlib.suppress(httpx.TransportError):
            answer = found()
            if answer:
                return answer
        time.sleep(0.5)
    raise AssertionError(f"{what} did not happen within {seconds} s:\n{log.read_text()[-3000:]}")


@pytest.fixture
def server(tmp_path):
    """The address of a server, and the environment in which commands reach it."""
    port = free_port()
    address = f"http://127.0.0.1:{port}/api"
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")},
        "PREFECT_HOME": str(tmp_path / "prefect"),
        "PREFECT_API_URL": address,
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_WORKER_QUERY_SECONDS": "2",
        "CONTENDER_HOME": str(tmp_path / "home"),
        "PYTHONPATH": str(ROOT),
    }
    log = tmp_path / "server.log"
    with background(PREFECT, "server", "start", "--port", port, environment=environment, log=log):
        wait_until(lambda: httpx.get(f"{address}/health").status_code == 200, 120, "the server's start", log)
        yield address, environment, log


def prefect(environment, *arguments):
    done = subprocess.run(
        [PREFECT, *arguments],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_every_deployment_in_prefect_yaml_deploys_runs_on_schedule_and_shows_its_artifacts(
    server, make_model, tmp_path
):
    address, environment, log = server
    model = str(make_model("binary"))
    declared = yaml.safe_load((ROOT / "prefect.yaml").read_text())
    prefect(environment, "work-pool", "create", "contender", "--type", "process")

    prefect(environment, "--no-prompt", "deploy", "--all")

    deployed = httpx.post(f"{address}/deployments/filter", json={}).json()
    assert len(deployed) == len(declared["deployments"])
    by_flow = {item["entrypoint"]: item for item in deployed}
    train = by_flow["flows/train.py:train"]
    parameters = train["parameter_openapi_schema"]["properties"]
    assert {"model", "env", "source", "as_of", "force"} <= set(parameters)
    assert parameters["model"]["description"]

    prefect(environment, "deployment", "schedule", "clear", "-y", "train/churn-dev")
    prefect(environment, "deployment", "schedule", "create", "train/churn-dev", "--interval", "3600")
    scheduled = {
        "deployments": {"id": {"any_": [train["id"]]}},
        "flow_runs": {"state": {"type": {"any_": ["SCHEDULED"]}}},
    }
    wait_until(
        lambda: httpx.post(f"{address}/flow_runs/filter", json=scheduled).json(),
        90,
        "a run made by the schedule",
        log,
    )
    prefect(environment, "deployment", "schedule", "clear", "-y", "train/churn-dev")

    asked = httpx.post(
        f"{address}/deployments/{by_flow['flows/lifecycle.py:lifecycle']['id']}/create_flow_run",
        json={"parameters": {"model": model, "env": "dev"}, "state": {"type": "SCHEDULED"}},
    ).json()
    worker_log = tmp_path / "worker.log"
    command = (PREFECT, "worker", "start", "--pool", "contender")
    with background(*command, environment=environment, log=worker_log) as worker:

        def ended():
            run = httpx.get(f"{address}/flow_runs/{asked['id']}").json()
            return run if run["state_type"] in {"COMPLETED", "FAILED", "CRASHED"} else None

        run = wait_until(ended, 300, "the deployed run's end", worker_log, worker)

    assert run["state_type"] == "COMPLETED", worker_log.read_text()[-3000:]
    artifacts = httpx.post(f"{address}/artifacts/filter", json={"limit": 100}).json()
    kept = {item["key"]: item for item in artifacts if item["key"]}
    assert {
        f"binary-model-{name}" for name in ("contract", "leaderboard", "metrics", "gates", "links")
    } <= set(kept)
    gates = json.loads(kept["binary-model-gates"]["data"])
    assert {row["verdict"] for row in gates} == {"pass"}
