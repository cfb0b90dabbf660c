"""Many models in one run: one drifted, one calm, one without champion, one broken; on threads and on Dask."""

import json
import shutil
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psutil
import pytest
import yaml
from prefect import task
from prefect.cache_policies import NO_CACHE

from benchmarks.fleet import made
from deployments.errors import BadInputError
from flows import fleet as module
from flows.fleet import fleet
from platforms.lock import held
from tasks.fleet import FleetError, FleetRow
from tests.prefect_api import asked

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("prefect_server")]

ALERTS = ("contender.drift.detected", "contender.prediction_drift.detected")
DRIFTED, CALM, NEW, BROKEN = "m_000", "m_001", "m_new", "m_broken"


@pytest.fixture(scope="session")
def fleet_once(once):
    """Two champions with logs that nobody has folded: one of callers who drifted, one of calm ones."""
    return once("fleet", lambda folder: made(folder, models=2, drifted=1, requests=300))


@pytest.fixture
def models(fleet_once, home, copy_data_root, tmp_path, monkeypatch, prefect_server):
    """The folder of the specs: those two, one that was never trained, and one that is none."""
    # A worker process that finds no server would start one of its own.
    monkeypatch.setenv("PREFECT_API_URL", prefect_server)
    copy_data_root(fleet_once / "home" / "bench", home / "bench")
    folder = tmp_path / "models"
    shutil.copytree(fleet_once / "models", folder)
    shutil.copytree(folder / CALM, folder / NEW)
    spec = yaml.safe_load((folder / NEW / "model.yaml").read_text())
    (folder / NEW / "model.yaml").write_text(yaml.safe_dump(spec | {"name": NEW}))
    (folder / BROKEN).mkdir()
    (folder / BROKEN / "model.yaml").write_text(yaml.safe_dump(spec | {"name": BROKEN, "colour": "red"}))
    return folder


def environment(models, kind, workers=2):
    path = models.parent / f"{kind}.yaml"
    document = {
        "name": "bench",
        "platform": {"kind": "local", "data_root": "bench"},
        "allow_dirty_tree": True,
        "task_runner": {"kind": kind, "workers": workers},
    }
    path.write_text(yaml.safe_dump(document))
    return str(path)


def yesterday():
    """Since then the models were asked, up to now."""
    return datetime.now(UTC) - timedelta(days=1)


def specs(models, *names):
    return [str(models / name / "model.yaml") for name in names]


def test_one_drifts_one_is_calm_one_has_no_champion_one_is_broken(models, prefect_server):
    with pytest.raises(FleetError) as refused:
        fleet(specs(models, BROKEN, DRIFTED, NEW, CALM), environment(models, "threads"), since=yesterday())

    outcome = refused.value.outcome
    rows = {row.model: row for row in outcome.rows}
    assert list(rows) == [BROKEN, DRIFTED, NEW, CALM]
    assert {name: row.state for name, row in rows.items()} == {
        BROKEN: "failed",
        DRIFTED: "alerts",
        NEW: "no champion",
        CALM: "done",
    }
    assert refused.value.exit_code == 1
    assert "colour" in rows[BROKEN].error
    assert "\n" not in rows[BROKEN].error
    assert rows[DRIFTED].alerts == ALERTS
    assert (rows[CALM].requests, rows[CALM].verdicts["drift"]) == (300, "pass")
    # Without a label nothing is known of quality.
    assert rows[CALM].verdicts["quality"] == "inconclusive"
    assert_shown(prefect_server, outcome)


def assert_shown(server, outcome):
    """The run, its task runs and the runs of the models in the UI, and the rows as a table."""
    (run,) = asked(
        "POST",
        f"{server}/flow_runs/filter",
        flows={"name": {"any_": ["fleet"]}},
        sort="START_TIME_DESC",
        limit=1,
    )
    assert run["name"].startswith("fleet · monitor · 20")
    assert {"contender", "fleet", "bench"} <= set(run["tags"])
    assert not {CALM, DRIFTED} & set(run["tags"])
    of_run = {"flow_runs": {"id": {"any_": [run["id"]]}}}
    wanted = {f"monitor {row.model}": row.error or "" for row in outcome.rows}
    deadline = time.monotonic() + 60
    while True:
        # States reach the server in their own time.
        tasks = [
            one for one in asked("POST", f"{server}/task_runs/filter", **of_run) if one["name"] in wanted
        ]
        if len(tasks) == 4 and all(one["state_type"] in {"FAILED", "COMPLETED"} for one in tasks):
            break
        assert time.monotonic() < deadline, [(one["name"], one["state_type"]) for one in tasks]
        time.sleep(0.2)
    failed = {one["name"]: one["state"]["message"] for one in tasks if one["state_type"] == "FAILED"}
    assert failed == {f"monitor {BROKEN}": wanted[f"monitor {BROKEN}"]}
    (table,) = asked(
        "POST",
        f"{server}/artifacts/filter",
        artifacts={"key": {"any_": ["fleet-monitor-bench"]}},
        sort="CREATED_DESC",
        limit=1,
    )
    shown = json.loads(table["data"])
    assert [one["model"] for one in shown] == [BROKEN, DRIFTED, NEW, CALM]


def test_a_model_that_somebody_else_monitors_stops_no_other(models, home):
    lock = home / "bench" / "locks" / f"monitor-{CALM}.lock"

    with held(lock, "ours"), pytest.raises(FleetError) as refused:
        fleet(specs(models, CALM, DRIFTED), environment(models, "threads"), since=yesterday(), at_once=1)

    calm, drifted = refused.value.outcome.rows
    assert (calm.state, drifted.state) == ("failed", "alerts")
    assert "is being monitored by another process" in calm.error


def test_on_dask_models_are_monitored_and_retrained_and_its_workers_end_with_the_run(models):
    # Other data: a retraining trains another model.
    file = models / DRIFTED / "rows.csv"
    file.write_text("\n".join(file.read_text().splitlines()[:-20]))
    before = {one.pid for one in psutil.Process().children(recursive=True)}
    seen, ended = set(), threading.Event()

    def look():
        while not ended.wait(0.2):
            for one in psutil.Process().net_connections(kind="inet"):
                if one.status == psutil.CONN_LISTEN:
                    seen.add(one.laddr.port)

    watching = threading.Thread(target=look, daemon=True)
    watching.start()

    outcome = fleet(
        specs(models, DRIFTED, CALM),
        environment(models, "dask"),
        since=yesterday(),
        retrain=True,
        release=False,
    )
    ended.set()
    watching.join()

    drifted, calm = outcome.rows
    assert (drifted.state, drifted.alerts) == ("alerts", ALERTS)
    assert "version 2: proposed" in drifted.retrained
    assert (calm.state, calm.retrained) == ("done", "")
    assert 8787 not in seen
    deadline = time.monotonic() + 30
    while left := {one.pid for one in psutil.Process().children(recursive=True)} - before:
        names = [psutil.Process(pid).cmdline() for pid in left if psutil.pid_exists(pid)]
        if not any("distributed" in " ".join(one) or "spawn_main" in " ".join(one) for one in names):
            break
        assert time.monotonic() < deadline, names
        time.sleep(0.2)


@pytest.fixture
def counted(monkeypatch):
    """In place of the work on a model, something that counts how many are at it; some of it breaks."""
    lock, state = threading.Lock(), {"now": 0, "most": 0}

    @task(name="model", cache_policy=NO_CACHE)
    def one_model(name, model, env, asked):
        with lock:
            state["now"] += 1
            state["most"] = max(state["most"], state["now"])
        time.sleep(0.1)
        with lock:
            state["now"] -= 1
        if name == "lost":
            raise RuntimeError("the worker is gone")
        return FleetRow(model=name, spec=model, state="done")

    monkeypatch.setattr(module, "one_model", one_model)
    return state


@pytest.mark.usefixtures("home")
def test_no_more_are_worked_on_at_once_than_asked_for_and_a_lost_one_has_a_row(counted):
    names = [f"m_{place}" for place in range(7)] + ["lost"]

    with pytest.raises(FleetError) as failed:
        fleet(names, at_once=3)

    rows = failed.value.outcome.rows
    assert [row.model for row in rows] == names
    assert [row.state for row in rows] == ["done"] * 7 + ["failed"]
    assert rows[-1].error == "RuntimeError: the worker is gone"
    assert counted["most"] == 3


@pytest.mark.usefixtures("home", "counted")
def test_each_model_is_worked_on_once_and_by_default_all_that_are_shipped():
    assert [row.model for row in fleet(["m_1", "m_0", "m_1"]).rows] == ["m_1", "m_0"]
    assert [row.model for row in fleet().rows] == ["churn", "claims", "telco"]


@pytest.mark.usefixtures("home")
def test_a_fleet_of_nothing_and_a_window_for_training_are_refused():
    with pytest.raises(BadInputError, match="there are no models"):
        fleet([])
    with pytest.raises(BadInputError, match="is said of fleets that are monitored"):
        fleet(["churn"], work="retrain", window="1d")


def test_the_command_says_who_needs_a_person_and_ends_accordingly(models, commands, tmp_path):
    env = environment(models, "threads")
    for name in (BROKEN, DRIFTED):
        shutil.rmtree(models / name)

    calm = commands("fleet", "monitor", "--under", models, "--env", env, "--since", f"{yesterday():%Y-%m-%d}")
    untrained = commands("fleet", "retrain", "--under", models, "--env", env, "--no-release", "--json")
    empty = commands("fleet", "monitor", "--under", tmp_path / "nowhere", "--env", env)

    assert calm.returncode == 0, calm.stderr
    assert "1 done, 1 no champion" in calm.stdout
    assert calm.stdout.index(NEW) < calm.stdout.index(CALM)
    assert "inconclusive: quality" in calm.stdout
    assert untrained.returncode == 3, untrained.stderr
    states = {row["model"]: row["state"] for row in untrained.json()["rows"]}
    assert states[NEW] == "refused"
    assert "refused: " in untrained.stderr
    assert empty.returncode == 2
    assert "there is no model.yaml in any folder of it" in empty.stderr


def test_the_files_of_a_fleet_are_where_the_benchmark_says(fleet_once):
    assert sorted(path.parent.name for path in Path(fleet_once).glob("models/*/drifted")) == [DRIFTED]
