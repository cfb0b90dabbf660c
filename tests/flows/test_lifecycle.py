"""The whole life on real processes and HTTP: killed once, carried on, and every month's outcome looked at."""

import csv
import json
import os
import signal
import socket
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import httpx
import psutil
import pytest

from deployments.environment import load_environment
from deployments.errors import BadInputError
from flows.lifecycle import begin_afresh
from platforms import platform_for
from tasks.audit import audit
from tasks.life import LifecycleOutcome
from tasks.monitoring_record import MonitoringTable
from tasks.register import ledger_of
from tasks.release_record import State
from tasks.tracking import Tracking
from tasks.verdict import Verdict
from tests.browser import browser
from tests.prefect_ui import Seen, kept_server

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 1500


def of_this_home(home):
    """Every process that was started for a home, by its command line."""
    return [
        (process.info["pid"], process.info["cmdline"])
        for process in psutil.process_iter(["pid", "cmdline"])
        if any(str(home) in word for word in process.info["cmdline"] or [])
    ]


def killed_behind(step, command, environment, log):
    """Start a life and kill it, as with -9, once a step of it is done."""
    with log.open("w") as output:
        life = subprocess.Popen(
            command, env=environment, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=output, stderr=output
        )
        deadline = time.monotonic() + SECONDS
        while not step.exists():
            assert life.poll() is None, log.read_text()[-3000:]
            assert time.monotonic() < deadline, log.read_text()[-3000:]
            time.sleep(0.05)
        os.kill(life.pid, signal.SIGKILL)
        life.wait()


@pytest.fixture
def ui_server(tmp_path):
    """A Prefect server with its UI, in a home of its own; its address."""
    with kept_server(tmp_path / "server") as url:
        yield url


@pytest.mark.slow
@pytest.mark.timeout(2 * SECONDS)
def test_a_life_that_was_killed_carries_on_and_every_month_comes_out_as_told(
    home, furnish, ui_server, tmp_path, command_line, subtests
):
    furnish(home / "demo")
    folder = home / "demo" / "lifecycle" / "churn"
    environment = {
        **os.environ,
        "CONTENDER_HOME": str(home),
        "PREFECT_API_URL": ui_server,
        "PREFECT_HOME": str(tmp_path / "prefect"),
    }
    killed_behind(
        folder / "1-traffic.json", [sys.executable, "-m", "flows.run"], environment, tmp_path / "killed.log"
    )
    # Who was killed could end nothing: the data plane serves on.
    assert of_this_home(home)
    trained_before = json.loads((folder / "1-train.json").read_text())

    done = command_line("--json", timeout=SECONDS, PREFECT_API_URL=ui_server)

    assert done.returncode == 0, (done.stderr[-3000:], done.stdout[-3000:])
    life = LifecycleOutcome.model_validate_json(done.stdout)
    platform = platform_for(load_environment("demo"))
    assert life.surprises == ()
    first_month(life.months[0], trained_before)
    second_month(life.months[1], folder)
    third_month(life.months[2])
    fourth_month(life.months[3])
    what_stands_after_it(life, platform)
    assert of_this_home(home) == []
    told_again(life, command_line)
    with subtests.test("in a browser"), browser(tmp_path) as tab:
        seen = Seen(tab, ui_server)
        prefect_shows_it(seen)
        mlflow_shows_it(seen, platform, tmp_path)


def first_month(month, trained_before):
    assert month.trained.model_dump(mode="json") == trained_before
    assert month.trained.verdict is Verdict.PASS
    assert (month.trained.version, month.champion) == ("1", "1")
    assert month.released.promoted
    assert month.released.release.champion is None
    assert (month.traffic.requests, month.traffic.failed) == (900, 0)
    (seen,) = month.monitored
    assert seen.outcome.requests == 900
    assert seen.outcome.labelled == 0
    assert seen.outcome.verdicts["drift"] is Verdict.PASS
    assert seen.outcome.verdicts["quality"] is Verdict.INCONCLUSIVE


def second_month(month, folder):
    (labels,) = month.labels
    with (folder / "labels-1.csv").open() as file:
        assert labels.labels == len(list(csv.DictReader(file))) == 900
    assert labels.known == month.begins
    january, february = month.monitored
    assert (january.month, january.outcome.labelled) == (1, 900)
    assert january.outcome.verdicts["quality"] is Verdict.PASS
    assert (february.month, february.outcome.labelled) == (2, 0)
    assert february.outcome.verdicts["drift"] is Verdict.PASS
    assert month.alerts == ()
    assert (month.champion, month.release) == ("1", None)


def third_month(month):
    assert len(month.traffic.windows) == 2
    first, second, *judged = month.monitored
    assert [one.outcome.verdicts["drift"] for one in (first, second)] == [Verdict.FAIL, Verdict.FAIL]
    # One window is not enough: it takes two of the last three, and the latest.
    assert not any(alert.kind == "drift" for alert in first.outcome.alerts)
    # The same windows once more, and February's, by the labels that came meanwhile.
    assert [(one.month, one.outcome.labelled) for one in judged] == [(2, 900), (3, 450), (3, 450)]
    assert [one.outcome.window for one in judged[1:]] == [first.outcome.window, second.outcome.window]
    assert judged[0].outcome.verdicts["quality"] is Verdict.PASS
    assert all(one.outcome.verdicts["quality"] is not Verdict.INCONCLUSIVE for one in judged)
    assert month.in_order[-2] == judged[-1]
    assert "contender.drift.detected" in month.alerts
    assert month.retrained.state == "promoted"
    assert month.retrained.trained.compared_with == "1"
    assert month.retrained.trained.as_of == datetime(2026, 4, 1, tzinfo=UTC)
    released = month.retrained.released
    assert [(str(done.state), done.percentage) for done in released.release.history] == [
        ("approved", 0),
        ("shadow", 100),
        ("canary", 25),
        ("canary", 50),
        ("promoted", 100),
    ]
    assert released.release.champion.version == "1"
    assert released.requests > 500
    assert released.failed == 0
    assert set(released.answered) == {"1", "2"}
    assert month.champion == "2"


def fourth_month(month):
    assert month.trained.verdict is Verdict.PASS
    assert month.trained.version == "3"
    # It is better than the champion on the rows held out: nothing offline could tell.
    assert month.trained.value > month.trained.champion_value
    released = month.released
    assert released.release.state is State.ROLLED_BACK
    assert "scores: " in released.release.history[-1].reason
    assert [(str(done.state), done.percentage) for done in released.release.history] == [
        ("approved", 0),
        ("canary", 25),
        ("rolled_back", 0),
    ]
    assert released.failed == 0
    assert 0 < released.answered["3"] < released.answered["2"]
    assert month.champion == "2"


def what_stands_after_it(life, platform):
    registered = Tracking(platform).client.get_registered_model("demo-churn")
    aliases = {alias: str(number) for alias, number in dict(registered.aliases).items()}
    assert aliases["champion"] == life.champion == "2"
    assert aliases["previous"] == "1"
    assert life.failed == 0
    assert life.requests >= 4 * 900
    events = [entry.event for entry in ledger_of(platform).entries("churn")]
    assert [event for event in events if event in {"release.promoted", "release.rolled_back"}] == [
        "release.promoted",
        "release.promoted",
        "release.rolled_back",
    ]
    assert {"retrain.started", "retrain.ended"} <= set(events)
    assert audit(platform).problems == ()
    windows = {row.window for row in MonitoringTable(platform, "churn").rows()}
    assert windows == {one.outcome.window for month in life.months for one in month.monitored}
    page = Path(life.timeline).read_text()
    assert "Good offline, bad online" in page
    assert "http://" not in page
    assert "no budget is set" not in Path(life.dashboard).read_text()
    assert Path(life.evidence, "manifest.json").exists()


def told_again(life, command_line):
    again = command_line("--json")

    assert again.returncode == 0, again.stderr
    known = LifecycleOutcome.model_validate_json(again.stdout)
    assert known.known
    assert known == life.model_copy(update={"known": True})
    said = command_line()
    assert said.returncode == 0, said.stderr
    for words in ("Month 4 · April 2026", "rolled back in canary 25 %", "--fresh lives it anew"):
        assert words in said.stdout
    # A path that is longer than the frame is folded.
    assert life.timeline in "".join(said.stdout.replace("│", "").split())


def prefect_shows_it(seen):
    """Runs by their names, the stages of the retraining, and what the gates, windows and releases came to."""
    seen.page("runs", "churn · lifecycle", "churn · release", "demo", name="prefect-runs")
    # An advertisement, which Prefect shows until it has read that it should not.
    seen.tab.wait_without("Upgrade")
    life = seen.run_called("churn · lifecycle")
    seen.page(f"runs/flow-run/{life}", "churn · lifecycle", "Completed")
    seen.page(f"runs/flow-run/{life}?tab=SubflowRuns", "churn · train", "churn · retrain", "churn · monitor")
    trained = seen.run_called("churn · train")
    seen.page(f"runs/flow-run/{trained}", "churn · train", "Completed", "v3", name="prefect-training")
    stages = ("ingest events", "validate events", "contract", "features", "split", "candidate boosting")
    seen.page(f"runs/flow-run/{trained}?tab=TaskRuns", *stages, "evaluate", "gate", "register", "report")
    seen.page(f"artifacts/artifact/{seen.artifact('demo-churn-contract')}", "verdict", "failing rows")
    seen.page(f"artifacts/artifact/{seen.artifact('demo-churn-leaderboard')}", "rank", "boosting")
    gates = seen.artifact("demo-churn-gates")
    seen.page(f"artifacts/artifact/{gates}", "threshold", "roc_auc", "pass", name="prefect-gates")
    window = seen.artifact("demo-churn-monitoring")
    seen.page(f"artifacts/artifact/{window}", "Data drift", "fail", "drift.detected", name="prefect-drift")
    released = seen.artifact("demo-churn-release")
    seen.page(f"artifacts/artifact/{released}", "rolled back", "scores", name="prefect-release")
    seen.page(f"artifacts/artifact/{seen.artifact('demo-churn-release-progress')}", "rolled back", "Progress")
    seen.page(f"artifacts/artifact/{seen.artifact('demo-churn-release-tests')}", "scores", "latency")
    assert seen.outside == []


def answers(url):
    try:
        return httpx.get(url, timeout=5).is_success
    except httpx.TransportError:
        return False


def mlflow_shows_it(seen, platform, folder):
    """The versions with their aliases, in the UI that the summary of a training names a command for."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "ui", "--backend-store-uri", platform.mlflow.tracking_uri]
    command += ["--port", str(port), "--workers", "1"]
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with (folder / "mlflow.log").open("w") as log:
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        url = f"http://127.0.0.1:{port}"
        deadline = time.monotonic() + 120
        while not answers(f"{url}/health"):
            assert time.monotonic() < deadline, (folder / "mlflow.log").read_text()[-3000:]
            time.sleep(0.5)
        seen.tab.visit(f"{url}/#/models/demo-churn", "Version 2", "champion", "previous")
        seen.keep("mlflow-model")
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(30)


@pytest.mark.usefixtures("home")
def test_afresh_removes_the_demo_alone(home, prefect_server):
    demo, dev = home / "demo" / "tables", home / "dev" / "tables"
    for folder in (demo, dev):
        folder.mkdir(parents=True)

    begin_afresh("churn", "demo")

    assert not demo.parent.exists()
    with pytest.raises(BadInputError, match="for the one called demo alone, and not for 'dev'"):
        begin_afresh("churn", "dev")
    assert dev.exists()


@pytest.mark.slow
def test_a_life_is_refused_where_the_model_has_a_champion_already(commands, promoted):
    done = commands("lifecycle", "--model", promoted.model, "--env", "dev")

    assert done.returncode == 2
    assert "has a champion in dev already; a life begins in an environment of its own" in done.stderr


def test_fresh_behind_another_command_is_refused(commands):
    done = commands("--fresh", "status", "--env", "dev")

    assert done.returncode == 2
    assert "--fresh and --keep-up go with no command" in done.stderr
