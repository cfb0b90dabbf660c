"""A release in the Prefect UI while it runs, on a real server; and with a server that is gone."""

import json
import socket
import time
from types import SimpleNamespace

import pytest
from prefect import flow
from prefect.settings import PREFECT_API_URL, temporary_settings

from flows import release_artifacts
from flows.release_artifacts import LiveArtifacts, shown_live
from tasks.decide import Wait
from tasks.release_record import State
from tests.prefect_api import asked
from tests.tasks.made_releases import look, released

pytestmark = pytest.mark.slow

WAITS = Wait("the test goes on")


@pytest.fixture
def quick(monkeypatch):
    """Updates follow one another at once."""
    monkeypatch.setattr(release_artifacts, "PAUSES", (0.01, 0.02))


def at(state, history, requests=None):
    """What a controller says at one look."""
    whole = released()
    release = whole.model_copy(update={"state": state, "history": whole.history[:history]})
    seen = look(State.CANARY, 0, 5, seconds=1, requests=requests) if requests else None
    return SimpleNamespace(release=release, look=seen)


def artifacts(server, run):
    found = asked("POST", f"{server}/artifacts/filter", artifacts={"flow_run_id": {"any_": [run]}})
    return {one["key"]: one for one in found}


def wait_until(found, seconds=30):
    deadline = time.monotonic() + seconds
    while not found():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_bar_and_table_of_a_run_are_brought_up_to_date_in_place(prefect_server, quick):
    seen = []

    @flow
    def watched():
        from prefect.runtime import flow_run

        run = str(flow_run.id)
        with shown_live(released()) as live:
            for control in (at(State.APPROVED, 1), at(State.CANARY, 3, 20), at(State.CANARY, 3, 90)):
                live(control, WAITS)
                percent = len(seen)
                wait_until(lambda n=percent: len(artifacts(prefect_server, run)) >= min(n + 1, 2))
                seen.append(artifacts(prefect_server, run))
            live(at(State.PROMOTED, 5), WAITS)
        return run

    run = watched()

    kept = artifacts(prefect_server, run)
    bar, table = kept["dev-patients-release-progress"], kept["dev-patients-release-tests"]
    assert bar["id"] == seen[0]["dev-patients-release-progress"]["id"]
    assert seen[0]["dev-patients-release-progress"]["data"] == 20
    assert (bar["type"], bar["data"]) == ("progress", 100)
    assert "promoted" in bar["description"]
    assert table["id"] == seen[1]["dev-patients-release-tests"]["id"]
    assert {row["test"] for row in json.loads(table["data"])} == {"Error rate", "Latency p90"}


def test_another_process_of_the_same_run_goes_on_with_its_bar(prefect_server, quick):
    @flow
    def twice():
        from prefect.runtime import flow_run

        found = []
        for control in (at(State.APPROVED, 1), at(State.PROMOTED, 5)):
            with shown_live(released()) as live:
                live(control, WAITS)
            found.append(artifacts(prefect_server, str(flow_run.id)))
        return found

    first, second = twice()

    (before,), (after,) = first.values(), second.values()
    assert before["id"] == after["id"]
    assert (before["data"], after["data"]) == (20, 100)


def test_a_server_that_does_not_answer_holds_up_no_look(prefect_server, quick, monkeypatch):
    monkeypatch.setattr(release_artifacts, "LAST_SECONDS", 0.1)
    monkeypatch.setattr(release_artifacts, "ANSWER_SECONDS", 3.0)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        nowhere = f"http://127.0.0.1:{silent.getsockname()[1]}/api"

        @flow
        def watched():
            with temporary_settings({PREFECT_API_URL: nowhere}):
                live = LiveArtifacts(released())
                for _ in range(100):
                    live(at(State.APPROVED, 1), WAITS)
                live.close()
            return live

        live = watched()

        # It waits for the server still, and nobody waited for it.
        assert live._thread.is_alive()
    wait_until(lambda: not live._thread.is_alive(), 120)
