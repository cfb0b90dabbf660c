"""A real Prefect server, a real process worker, and what a person would find in the UI."""

import contextlib
import json
import os
import re
import socket
import sqlite3
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
import pytest
import yaml

from tests.prefect_api import asked

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

ROOT = Path(__file__).resolve().parents[2]


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_until(found, seconds, what, logs):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with contextlib.suppress(httpx.TransportError):
            answer = found()
            if answer:
                return answer
        time.sleep(0.5)
    said = "\n".join(f"{log.name}: {log.read_text()[-3000:]}" for log in sorted(logs.glob("*.log")))
    raise AssertionError(f"{what} did not happen within {seconds} s:\n{said}")


@dataclass(frozen=True)
class Server:
    """What `prefect up` made: the server's address, where its logs are, and how commands reach it."""

    address: str
    logs: Path
    environment: dict

    def run(self, *command):
        line = [sys.executable, "-m", "flows.run", *command]
        done = subprocess.run(
            line, env=self.environment, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False
        )
        return done.returncode, done.stdout + done.stderr


@pytest.fixture
def server(tmp_path, home):
    """A server, a worker and everything of dev deployed, by the one command; all ended afterwards."""
    port = free_port()
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")},
        "OMP_NUM_THREADS": "1",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_WORKER_QUERY_SECONDS": "2",
        "CONTENDER_HOME": str(home),
        "PYTHONPATH": str(ROOT),
    }
    made = Server(f"http://127.0.0.1:{port}/api", home / "prefect" / "logs", environment)
    code, said = made.run("prefect", "up", "--port", str(port))
    try:
        assert code == 0, said
        yield made
    finally:
        assert made.run("prefect", "down")[0] == 0


def test_one_command_deploys_everything_which_runs_on_schedule_and_is_kept_running(
    server, make_model, tmp_path
):
    address = server.address
    model = str(make_model("binary", one_candidate))
    declared = yaml.safe_load((ROOT / "prefect.yaml").read_text())

    deployed = asked("POST", f"{address}/deployments/filter")
    wanted = [one["name"] for one in declared["deployments"] if one["name"].endswith("-dev")]
    assert sorted(item["name"] for item in deployed) == sorted(wanted)
    (watching,) = [
        one
        for one in asked("POST", f"{address}/automations/filter")
        if one["actions"][0]["type"] == "change-flow-run-state"
    ]
    assert (watching["enabled"], watching["actions"][0]["state"]) == (True, "CRASHED")
    assert "prefect.flow-run.Suspended" in watching["trigger"]["expect"]
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
        240,
        "a run made by the schedule",
        server.logs,
    )
    asked("PATCH", schedule, active=False)

    run_of = by_flow["flows/deliver.py:deliver"]["id"]
    # A model that is not shipped is no choice of the form.
    asked("PATCH", f"{address}/deployments/{run_of}", enforce_parameter_schema=False)
    wanted = {"parameters": {"model": model, "env": "dev"}, "state": {"type": "SCHEDULED"}}
    made = asked("POST", f"{address}/deployments/{run_of}/create_flow_run", **wanted)

    def ended():
        run = asked("GET", f"{address}/flow_runs/{made['id']}")
        return run if run["state_type"] in {"COMPLETED", "FAILED", "CRASHED"} else None

    run = wait_until(ended, 300, "the deployed run's end", server.logs)

    assert run["state_type"] == "COMPLETED", (server.logs / "worker.log").read_text()[-3000:]
    named = {run["name"]: set(run["tags"]) for run in asked("POST", f"{address}/flow_runs/filter", limit=100)}
    (trained,) = [
        name for name in named if re.fullmatch(r"binary_model · train · \d{4}-\d\d-\d\d · v1", name)
    ]
    assert {"contender", "binary_model", "dev"} <= named[trained]
    artifacts = asked("POST", f"{address}/artifacts/filter", limit=100)
    kept = {item["key"]: item for item in artifacts if item["key"]}
    assert {
        f"dev-binary-model-{name}" for name in ("contract", "leaderboard", "metrics", "gates", "links")
    } <= set(kept)
    gates = json.loads(kept["dev-binary-model-gates"]["data"])
    assert {row["verdict"] for row in gates} == {"pass"}
    assert_kept(server)
    assert_runs_end_first(server, tmp_path)


def one_candidate(spec):
    del spec["training"]["candidates"][1:]


def assert_kept(server):
    """A server that dies is started again, knows the places that runs have, and another is not begun beside it."""
    limits = f"{server.address}/v2/concurrency_limits"
    asked("POST", f"{limits}/", name="place", limit=1)
    taken = {"names": ["place"], "slots": 1, "lease_duration": 300}
    lease = asked("POST", f"{limits}/increment-with-lease", **taken)["lease_id"]
    port = int(server.address.rsplit(":", 1)[1].split("/")[0])
    (listening,) = [
        connection.pid
        for connection in psutil.net_connections("tcp")
        if connection.laddr.port == port and connection.status == psutil.CONN_LISTEN
    ]

    psutil.Process(listening).kill()

    wait_until(
        lambda: httpx.get(f"{server.address}/health", timeout=5).status_code == 200,
        120,
        "the server's return",
        server.logs,
    )
    asked("POST", f"{limits}/leases/{lease}/renew", lease_duration=300)
    # The worker is heard of again once it has asked for work.
    wait_until(lambda: server.run("prefect", "status")[0] == 0, 120, "the worker's return", server.logs)
    _, said = server.run("prefect", "status")
    assert "a worker of contender-dev" in said.replace("\n", " ")
    code, said = server.run("prefect", "up", "--port", str(free_port()))
    assert (code, f"up on port {port}" in said.replace("\n", " ")) == (2, True)
    code, said = server.run("prefect", "up", "--port", str(port), "--at-once", "99")
    assert (code, "runs at a time" in said.replace("\n", " ")) == (2, True)


SLOW_FLOW = """
import time
from pathlib import Path
from prefect import flow
from prefect.exceptions import TerminationSignal

@flow
def slow():
    try:
        (Path(__file__).parent / "begun").touch()
        time.sleep(300)
    except TerminationSignal:
        (Path(__file__).parent / "put back").touch()
        raise
"""


def assert_runs_end_first(server, folder):
    """A run under way when all is ended puts back what it has to, and its server hears that it ended."""
    (folder / "slow.py").write_text(SLOW_FLOW)
    flow = asked("POST", f"{server.address}/flows/", name="slow")["id"]
    pull = [{"prefect.deployments.steps.set_working_directory": {"directory": str(folder)}}]
    deployment = asked(
        "POST",
        f"{server.address}/deployments/",
        name="slow",
        flow_id=flow,
        entrypoint="slow.py:slow",
        pull_steps=pull,
        work_pool_name="contender-dev",
    )
    run = asked("POST", f"{server.address}/deployments/{deployment['id']}/create_flow_run")["id"]
    wait_until((folder / "begun").exists, 120, "the run's begin", server.logs)

    code, said = server.run("prefect", "down")

    assert (code, "Down." in said) == (0, True)
    assert (folder / "put back").exists()
    with contextlib.closing(sqlite3.connect(server.logs.parent / "prefect.db")) as database:
        found = database.execute("select state_name from flow_run where id = ?", [run]).fetchone()
    assert found == ("Crashed",)
