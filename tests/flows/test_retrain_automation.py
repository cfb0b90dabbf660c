"""An alert becomes a Prefect event, and the automation of prefect.yaml makes a retrain run of it, on a real server."""

import os
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta

import pytest
from prefect.workers.process import ProcessWorker

from deployments.environment import load_environment
from flows.events import emit
from platforms import platform_for
from tasks.monitoring_record import Alert, MonitorOutcome, Window
from tests.flows.conftest import ROOT
from tests.prefect_api import asked

pytestmark = pytest.mark.slow


def outcome():
    now = datetime.now(UTC)
    return MonitorOutcome(
        model="churn",
        environment="dev",
        name="dev-churn",
        version="3",
        window=Window(start=now - timedelta(days=7), end=now),
        requests=900,
        rows=900,
        labelled=0,
        verdicts={},
        alerts=(),
        report="",
    )


def test_an_alert_of_drift_makes_a_retrain_run_with_its_reason(prefect_server, home, tmp_path):
    template = ProcessWorker.get_default_base_job_template()
    asked(
        "POST",
        f"{prefect_server}/work_pools/",
        name="contender-dev",
        type="process",
        base_job_template=template,
    )
    environment = {**os.environ, "PREFECT_API_URL": prefect_server, "PREFECT_HOME": str(tmp_path / "prefect")}
    command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "-n", "retrain/churn-dev"]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (deployment,) = asked(
        "POST", f"{prefect_server}/deployments/filter", deployments={"name": {"any_": ["churn-dev"]}}
    )
    form = deployment["parameter_openapi_schema"]["properties"]
    assert {"model", "env", "reason", "alert", "release", "as_of"} == set(form)
    assert form["reason"]["default"] == "asked for by hand"
    assert "drift" in str(form["alert"])
    platform = platform_for(load_environment("dev"))
    reason = 'columns "a" & <b> drifted: 2 of 3 windows'
    drift = Alert(kind="drift", event="contender.drift.detected", reason=reason, subjects=("a",))
    expected = drift.model_copy(update={"acknowledged": "sale", "subjects": ("b",)})
    service = Alert(kind="service", event="contender.slo.breached", reason="slow")

    told = [emit(platform, alert, outcome()) for alert in (service, expected, drift)]

    assert told == [True, False, True]
    wanted = {"deployments": {"id": {"any_": [deployment["id"]]}}}
    deadline = time.monotonic() + 90
    while not (runs := asked("POST", f"{prefect_server}/flow_runs/filter", **wanted)):
        assert time.monotonic() < deadline, "no run was made of the event"
        time.sleep(0.3)
    (run,) = runs
    assert run["parameters"] == {"model": "churn", "env": "dev", "reason": reason, "alert": "drift"}
