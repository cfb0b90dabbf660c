"""A real `prefect server start`, a real process worker, and what a person would find in the UI."""

import contextlib
import json
import os
import re
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
def server(tmp_path, home):
    """The address of a server, and the environment in which commands reach it."""
    port = free_port()
    address = f"http://127.0.0.1:{port}/api"
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")},
        "PREFECT_HOME": str(tmp_path / "prefect"),
        "PREFECT_API_URL": address,
        "OMP_NUM_THREADS": "1",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_WORKER_QUERY_SECONDS": "2",
        "CONTENDER_HOME": str(home),
        "PYTHONPATH": str(ROOT),
    }
    log = tmp_path / "server.log"
    with background(PREFECT, "server", "start", "--port", port, environment=environment, log=log):
        wait_until(lambda: httpx.get(f"{address}/health").status_code == 200, 120, "the server's start", log)
        yield address, environment, log


def asked(method, url, **body):
    """What the server answers; anything but success fails the test."""
    answer = httpx.request(method, url, json=body, timeout=30)
    assert answer.is_success, f"{method} {url}: {answer.text}"
    return answer.json() if answer.content else None


def test_every_deployment_in_prefect_yaml_deploys_runs_on_schedule_and_shows_its_artifacts(
    server, make_model, tmp_path
):
    address, environment, log = server
    model = str(make_model("binary", one_candidate))
    declared = yaml.safe_load((ROOT / "prefect.yaml").read_text())
    pools = [sys.executable, "-m", "flows.run", "deployments", "pools"]
    made = subprocess.run(pools, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stdout + made.stderr

    done = subprocess.run(
        [PREFECT, "--no-prompt", "deploy", "--all"],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )

    assert done.returncode == 0, done.stdout + done.stderr
    deployed = asked("POST", f"{address}/deployments/filter")
    assert len(deployed) == len(declared["deployments"])
    by_flow = {item["entrypoint"]: item for item in deployed if item["name"] == "churn-dev"}
    train = by_flow["flows/train.py:train"]
    parameters = train["parameter_openapi_schema"]["properties"]
    assert {"model", "env", "source", "as_of", "force"} <= set(parameters)
    assert parameters["model"]["description"]
    assert {"churn", "claims", "telco"} == set(parameters["model"]["enum"])
    assert {"dev", "test", "prod"} <= set(parameters["env"]["enum"])

    (weekly,) = train["schedules"]
    schedule = f"{address}/deployments/{train['id']}/schedules/{weekly['id']}"
    asked("PATCH", schedule, active=True)
    scheduled = {
        "deployments": {"id": {"any_": [train["id"]]}},
        "flow_runs": {"state": {"type": {"any_": ["SCHEDULED"]}}},
    }
    wait_until(
        lambda: asked("POST", f"{address}/flow_runs/filter", **scheduled),
        90,
        "a run made by the schedule",
        log,
    )
    asked("PATCH", schedule, active=False)

    run_of = by_flow["flows/deliver.py:deliver"]["id"]
    # A model that is not shipped is no choice of the form.
    asked("PATCH", f"{address}/deployments/{run_of}", enforce_parameter_schema=False)
    wanted = {"parameters": {"model": model, "env": "dev"}, "state": {"type": "SCHEDULED"}}
    made = asked("POST", f"{address}/deployments/{run_of}/create_flow_run", **wanted)
    worker_log = tmp_path / "worker.log"
    command = (PREFECT, "worker", "start", "--pool", "contender-dev")
    with background(*command, environment=environment, log=worker_log) as worker:

        def ended():
            run = asked("GET", f"{address}/flow_runs/{made['id']}")
            return run if run["state_type"] in {"COMPLETED", "FAILED", "CRASHED"} else None

        run = wait_until(ended, 300, "the deployed run's end", worker_log, worker)

    assert run["state_type"] == "COMPLETED", worker_log.read_text()[-3000:]
    named = {run["name"]: set(run["tags"]) for run in asked("POST", f"{address}/flow_runs/filter", limit=100)}
    (trained,) = [
        name for name in named if re.fullmatch(r"binary_model · train · \d{4}-\d\d-\d\d · v1", name)
    ]
    assert {"contender", "binary_model", "dev"} <= named[trained]
    artifacts = asked("POST", f"{address}/artifacts/filter", limit=100)
    kept = {item["key"]: item for item in artifacts if item["key"]}
    assert {
        f"binary-model-{name}" for name in ("contract", "leaderboard", "metrics", "gates", "links")
    } <= set(kept)
    gates = json.loads(kept["binary-model-gates"]["data"])
    assert {row["verdict"] for row in gates} == {"pass"}


def one_candidate(spec):
    del spec["training"]["candidates"][1:]
