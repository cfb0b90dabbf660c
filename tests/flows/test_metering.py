"""What tasks of a real flow cost, as a run of it writes it down."""

import json
import os
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psutil
import pytest
from prefect import flow, task
from prefect.cache_policies import NO_CACHE

from deployments.environment import Environment, LocalPlatformConfig, Rates
from platforms.local import LocalPlatform
from platforms.snapshot import Snapshot
from tasks import metering
from tasks.costs import CostLog, price, spent_on

MODEL = "patients"
ROOT = Path(__file__).resolve().parents[2]
RATES = Rates(currency="CHF", hour=0.6, gigabyte_hour=0.1, million_rows=2.0)


@pytest.fixture
def priced(tmp_path):
    environment = Environment(
        name="dev",
        platform=LocalPlatformConfig(data_root="data"),
        allow_dirty_tree=True,
        rates=RATES,
    )
    return LocalPlatform(environment, tmp_path / "data")


def lines(platform):
    return [
        json.loads(line)
        for path in CostLog(platform, MODEL).folder.glob("*.jsonl")
        for line in path.read_text().splitlines()
        if line
    ]


def test_outside_of_a_run_nothing_is_measured(priced):
    @metering.metered()
    def work(platform, model):
        return 5

    assert work(priced, model=MODEL) == 5
    assert not CostLog(priced, MODEL).folder.exists()


def test_tasks_of_a_flow_are_measured_in_threads_and_where_they_fail(priced, prefect_server, monkeypatch):
    monkeypatch.setattr(metering, "BEAT_SECONDS", 0.15)
    table = Snapshot(table="gold", uri="u", version=1, rows=700, digest="d", columns=("a",))
    other = table.model_copy(update={"table": "train", "rows": 50})

    @task(name="make", cache_policy=NO_CACHE)
    @metering.metered()
    def make(platform, model, tables):
        held = bytearray(120_000_000)
        time.sleep(0.5)
        return {"made": other, "again": tables[0]} if held else {}

    @task(name="break", cache_policy=NO_CACHE)
    @metering.metered(rows=False)
    def broken(platform, model, tables):
        raise ValueError("broken")

    @flow(name="works")
    def works():
        futures = [make.submit(priced, MODEL, (table,)) for _ in range(2)]
        states = [future.result() for future in futures]
        broken(priced, MODEL, (table,), return_state=True)
        return states

    before = psutil.Process().memory_info().rss / 1e6
    assert works()[0]["made"] == other

    found = spent_on(priced, MODEL, datetime.now(UTC) - timedelta(hours=1))
    by_task = {one.task: one for one in found}
    assert {one.flow for one in found} == {"works"}
    assert (by_task["make"].runs, by_task["make"].rows) == (2, 2 * 750)
    assert by_task["make"].seconds >= 1.0
    assert by_task["make"].peak_megabytes >= before + 100
    assert (by_task["break"].runs, by_task["break"].rows) == (1, 0)
    written = lines(priced)
    assert len({line["flow_run"] for line in written}) == 1
    assert len([line for line in written if line["task"] == "make" and not line["ended"]]) >= 4
    ended = [line for line in written if line["ended"]]
    assert len(ended) == 3
    for line in ended:
        used = {name: line[name] for name in ("peak_megabytes", "rows")}
        assert line["amount"] == pytest.approx(
            price(RATES, seconds=line["seconds"], **used), rel=0.01, abs=1e-6
        )
        assert line["currency"] == "CHF"


KILLED = """
import sys
from pathlib import Path
from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from deployments.environment import Environment, LocalPlatformConfig
from platforms.local import LocalPlatform
from tasks import metering

metering.BEAT_SECONDS = 0.2

@task(name="wait", cache_policy=NO_CACHE)
@metering.metered()
def wait(platform, model):
    import time
    time.sleep(600)

@flow(name="waits")
def waits(root):
    environment = Environment(name="dev", platform=LocalPlatformConfig(data_root="data"))
    wait(LocalPlatform(environment, Path(root)), "patients")

waits(sys.argv[1])
"""


@pytest.mark.slow
def test_a_task_that_is_killed_has_cost_what_it_was_known_to_use(priced, prefect_server, tmp_path):
    log = CostLog(priced, MODEL)
    command = [sys.executable, "-c", KILLED, str(priced.root)]
    environment = {**os.environ, "PREFECT_API_URL": prefect_server, "PREFECT_HOME": str(tmp_path / "prefect")}
    process = subprocess.Popen(command, cwd=ROOT, env=environment)
    try:
        deadline = time.monotonic() + 120
        while len(lines(priced)) < 4:
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.05)
    finally:
        process.kill()
        process.wait()

    (found,), damaged = log.read(datetime.now(UTC) - timedelta(hours=1))
    assert (found.flow, found.task, found.ended, damaged) == ("waits", "wait", False, ())
    assert found.seconds >= 0.4
    assert found.amount > 0
    assert found.peak_megabytes > 10
