"""A retraining under real traffic: killed while its challenger is on its way, and carried on; or rejected."""

import json
import os
import signal
import subprocess
import sys

import pytest

from tasks.register import ledger_of
from tasks.release_record import State
from tests.release.chameleon import BEHAVIOUR
from tests.release.conftest import MODEL, ROOT

pytestmark = pytest.mark.slow

KILLED_IN_CANARY = """
import os, signal, sys
from flows.settings import settle
settle()
from flows import run
from flows.release import viewed_by
from tasks.release_record import State

def killed(control, action):
    if control.release.state is State.CANARY:
        os.kill(os.getpid(), signal.SIGKILL)

with viewed_by(killed):
    run.leave(run.main(sys.argv[1:]))
"""


def started(line, *arguments, program=("-m", "flows.run")):
    environment = {**os.environ}
    environment.pop("PREFECT_API_URL", None)
    # What is trained and judged is good; only where it is served it behaves as it is told.
    environment.pop(BEHAVIOUR, None)
    command = [sys.executable, *program, "retrain", *arguments]
    command += ["--model", str(line.spec), "--env", str(line.environment_file)]
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def told(line, event):
    return [entry for entry in ledger_of(line.platform).entries(MODEL) if entry.event == event]


def test_a_retraining_that_is_killed_in_its_release_is_carried_on_to_champion(line):
    line.plan(steps=[{"percentage": 50, "minimum_requests": 40, "maximum_seconds": 90}])
    too_early = started(line, "--reason", "too early")
    _, complaint = too_early.communicate(timeout=240)
    line.up()

    with line.traffic(pause=0.06) as traffic:
        first = started(line, "--reason", "inputs drifted", program=("-c", KILLED_IN_CANARY))
        _, cut_short = first.communicate(timeout=300)
        under_way = line.releases.newest()
        again = started(line, "--reason", "another reason", "--json")
        said, errors = again.communicate(timeout=300)

    assert too_early.returncode == 2
    assert "the data plane is not up" in complaint
    assert first.returncode == -signal.SIGKILL, cut_short
    assert under_way.state is State.CANARY
    assert again.returncode == 0, errors
    outcome = json.loads(said)
    assert (outcome["state"], outcome["reason"]) == ("promoted", "inputs drifted")
    assert outcome["version"] == line.aliases["champion"] != "1"
    assert line.shares == {f"v{outcome['version']}": 100}
    assert outcome["release"] == line.releases.newest().id
    assert [len(told(line, f"retrain.{event}")) for event in ("started", "trained", "ended")] == [1, 1, 1]
    assert traffic.failed == 0


def test_a_retraining_whose_challenger_answers_otherwise_where_it_is_served_leaves_the_champion_in_place(
    line,
):
    rows = line.spec.parent / "rows.csv"
    # Other data: what is trained is another version, which nothing has served yet.
    rows.write_text("\n".join(rows.read_text().splitlines()[:-20]))
    line.behave("shift")
    line.up()

    with line.traffic(pause=0.06):
        done = started(line, "--reason", "inputs drifted")
        _, errors = done.communicate(timeout=300)

    assert done.returncode == 3
    assert "was rejected: the challenger does not start" in errors
    assert line.aliases["champion"] == "1"
    assert line.shares == {"v1": 100}
    (ended,) = told(line, "retrain.ended")
    assert (ended.details["state"], ended.details["release"]) == ("rejected", line.releases.newest().id)
