"""The release as people start it: a process of its own, killed on the way, and the lease that stands in for it."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from tasks.release_record import State
from tests.release.conftest import ROOT

pytestmark = pytest.mark.slow


def command(line, *arguments):
    environment = {**os.environ}
    environment.pop("PREFECT_API_URL", None)
    asked = [sys.executable, "-m", "flows.run", *arguments]
    asked += ["--model", str(line.spec), "--env", str(line.environment_file)]
    return subprocess.Popen(
        asked, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def until(condition, seconds=120.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came to be"
        time.sleep(0.05)


def test_a_release_whose_process_is_killed_is_put_back_by_its_lease_and_taken_up_by_the_next(line):
    line.plan(steps=[{"percentage": 50, "minimum_requests": 40, "minimum_seconds": 8, "maximum_seconds": 90}])
    line.up()

    with line.traffic(pause=0.06) as traffic:
        first = command(line, "release")
        until(lambda: "v2" in line.shares and line.releases.newest().state is State.CANARY)
        first.send_signal(signal.SIGKILL)
        first.communicate()
        until(lambda: status(line)["traffic"]["routes"] == [share("v1", 100)])
        registered = line.aliases["champion"]
        again = command(line, "release")
        said, errors = again.communicate(timeout=240)

    assert registered == "1"
    assert again.returncode == 0, errors
    assert "promoted" in said
    assert line.aliases == {"champion": "2", "previous": "1"}
    assert line.shares == {"v2": 100}
    assert traffic.failed == 0
    states = [str(done.state) for done in line.releases.newest().history]
    assert states == ["approved", "shadow", "canary", "canary", "promoted"]
    verified, _ = command_done(line, "audit", "verify", "--json")
    told, _ = command_done(line, "history", "--json")
    assert json.loads(verified)["problems"] == []
    assert json.loads(told)


def status(line):
    return line.platform.data_plane.status()["endpoints"][line.platform.endpoint("small")]


def share(name, percentage):
    return {"served_entity_name": name, "traffic_percentage": percentage}


def command_done(line, *arguments):
    asked = [sys.executable, "-m", "flows.run", *arguments, "--env", str(line.environment_file)]
    asked += ["--model", str(line.spec)] if arguments[0] == "history" else []
    done = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout, done.stderr
