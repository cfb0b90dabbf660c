"""Releases on a real Prefect server by real workers, which are killed, cancelled and lied to on the way."""

import http.server
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time

import httpx
import pytest
import yaml
from prefect.settings import PREFECT_API_URL, temporary_settings

from deployments.environment import Environment
from flows.server import empty_database
from platforms.local import LocalPlatform
from tasks import approvals, approver_keys
from tasks.audit import audit, audit_release
from tasks.champion import version_ref
from tasks.register import ledger_of
from tasks.release_record import State
from tests.release.deployed import POOL, Deployed, Weather, start_mlflow, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

LONG = {"percentage": 30, "minimum_requests": 40, "minimum_seconds": 300, "maximum_seconds": 600}
"""A step that nobody in these tests waits for."""
SHORT = {"percentage": 60, "minimum_requests": 40, "maximum_seconds": 60}


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def deployed(tmp_path_factory):
    """One real server for all of these, and a worker that is being started."""
    home = tmp_path_factory.mktemp("server")
    settings = {
        "PREFECT_HOME": str(home / "prefect"),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_DEPLOYMENTS_CONCURRENCY_SLOT_WAIT_SECONDS": "1",
        "OMP_NUM_THREADS": "1",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("PREFECT_")]:
            patch.delenv(name)
        for name, value in settings.items():
            patch.setenv(name, value)
        (home / "prefect").mkdir()
        if empty_database().exists():
            shutil.copy(empty_database(), home / "prefect" / "prefect.db")
        port = free_port()
        prefect = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1"]
        logs = home / "logs"
        logs.mkdir()
        with (logs / "server.log").open("w") as log:
            server = subprocess.Popen(
                [sys.executable, "-m", "serving.tether", "--", *prefect, "--port", str(port)],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
            )
        url = f"http://127.0.0.1:{port}/api"
        environment = {
            **os.environ,
            "PREFECT_API_URL": url,
            "PREFECT_WORKER_QUERY_SECONDS": "1",
            "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3",
        }
    made = Deployed(url, environment, logs)
    try:
        wait_until(lambda: made.ask("GET", "health"), 400, "the server's start", made.said)
        made.ask("POST", "work_pools/", name=POOL, type="process")
        made.start_worker()
        yield made
    finally:
        made.kill_worker(with_runs=True)
        server.terminate()
        server.wait()


def in_canary(line):
    """The newest release, once it is in a canary that the gateway routes by."""
    newest = line.releases.newest()
    there = newest is not None and newest.state is State.CANARY and newest.intent is None
    return newest if there else None


def routed(line):
    """Who has which share, as the gateway routes by now."""
    found = line.platform.data_plane.status()["endpoints"][line.platform.endpoint("small")]
    return {
        route["served_entity_name"]: route["traffic_percentage"]
        for route in found["traffic"]["routes"]
        if route["traffic_percentage"]
    }


def agree(line, state, version):
    """Record, registry, endpoint and ledger say the same."""
    newest = line.releases.newest()
    assert routed(line) == {f"v{version}": 100}
    assert (newest.state, newest.intent) == (state, None)
    assert line.aliases["champion"] == version
    assert line.shares == {f"v{version}": 100}
    assert audit_release(line.platform, "small", newest.id) == []
    return newest


def strict(line, tmp_path):
    """Make the line's environment one that asks for an approval; the key to sign it with."""
    public = approver_keys.new_key(tmp_path / "olga.pem", None)
    olga = {"name": "olga", "identities": ["olga@example.com"], "roles": ["owner"], "public_key": public}
    change_environment(line, approvals=["owner"], approvers=[olga])
    return approver_keys.load_key(tmp_path / "olga.pem", None)


def change_environment(line, **changes):
    document = yaml.safe_load(line.environment_file.read_text()) | changes
    line.environment_file.write_text(yaml.safe_dump(document))
    line.platform = LocalPlatform(Environment.model_validate(document), line.platform.root)


def filled_in(line, key, decision, ticket):
    """The form as a person fills it in who has signed."""
    draft = approvals.draft(
        line.platform,
        "small",
        version_ref(line.platform, "small", "2"),
        role="owner",
        approver="olga",
        ticket=ticket,
        decision=decision,
        now=line.releases.newest().begun,
    )
    signature = approvals.sign(draft, key).to_token()
    said = {"decision": decision, "approver": "olga", "ticket": ticket, "comment": "seen"}
    return {**said, "signature": signature}


def test_a_rejected_form_ends_the_release_and_changes_nothing(line, deployed, tmp_path):
    key = strict(line, tmp_path)
    line.up()
    deployment = deployed.deploy(line, "rejected")
    deployed.start_worker()

    with line.traffic(pause=0.06) as traffic:
        run = deployed.begin(deployment)
        deployed.wait_for(run, "Suspended")
        assert deployed.answer(run, **filled_in(line, key, "reject", "CHG-1"))["status"] == "ACCEPT"
        ended = deployed.wait_for(run)
    rejected = agree(line, State.REJECTED, "1")

    assert ended["type"] == "FAILED"
    assert "rejected" in ended["message"]
    assert "olga" in rejected.history[-1].reason
    assert set(traffic.versions) == {"1"}
    assert traffic.failed == 0


@pytest.fixture
def told():
    """A webhook's address, and what it was sent."""
    found = []

    class Listener(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            found.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_):
            pass

    listener = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Listener)
    threading.Thread(target=listener.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{listener.server_port}/", found
    listener.shutdown()
    listener.server_close()


def tell_webhook(line, deployed, url):
    """Have the line's environment tell of releases at an address, by a notification block of the server's."""
    from prefect.blocks.notifications import CustomWebhookNotificationBlock

    said = {"subject": "{{subject}}", "body": "{{body}}"}
    with temporary_settings({PREFECT_API_URL: deployed.url}):
        CustomWebhookNotificationBlock(name="releases", url=url, json_data=said).save("releases")
    change_environment(line, notify=["custom-webhook/releases"])


def events(deployed, run):
    """The names of our events of a run, in no order."""
    of_the_run = {"event": {"prefix": ["contender."]}, "related": {"id": [f"prefect.flow-run.{run}"]}}
    page = deployed.ask("POST", "events/filter", filter=of_the_run, limit=50)
    return {event["event"] for event in page["events"]}


def test_an_approved_form_promotes_though_the_worker_that_asked_for_it_was_killed(
    line, deployed, told, tmp_path
):
    webhook, messages = told
    tell_webhook(line, deployed, webhook)
    key = strict(line, tmp_path)
    line.up()
    deployment = deployed.deploy(line, "approved")
    deployed.start_worker()

    with line.traffic(pause=0.06) as traffic:
        run = deployed.begin(deployment)
        deployed.wait_for(run, "Suspended")
        deployed.kill_worker()
        assert deployed.ask("POST", f"flow_runs/{run}/resume")["status"] == "REJECT"
        assert deployed.answer(run, **filled_in(line, key, "approve", "CHG-2"))["status"] == "ACCEPT"
        assert line.releases.newest().state is State.PROPOSED
        deployed.start_worker()
        ended = deployed.wait_for(run)
    promoted = agree(line, State.PROMOTED, "2")

    assert ended["type"] == "COMPLETED", deployed.said()
    assert promoted.approvers == ("olga", "olga@example.com")
    entry = next(e for e in ledger_of(line.platform).entries("small") if e.event == "release.promoted")
    assert entry.details["approvers"] == ["olga", "olga@example.com"]
    assert traffic.failed == 0
    assert audit(line.platform).problems == ()
    steps = ("started", "needs approval", "promoted")
    assert [message["subject"] for message in messages] == [f"small version 2: {what}" for what in steps]
    # The server writes them a moment after they were sent.
    wanted = {f"contender.release.{what.replace(' ', '_')}" for what in steps}
    wait_until(lambda: wanted <= events(deployed, run), 30, f"{wanted}", lambda: events(deployed, run))
    shown = deployed.ask("POST", "artifacts/filter", artifacts={"flow_run_id": {"any_": [run]}})
    assert {"small-release", "small-release-progress", "small-release-tests"} <= {one["key"] for one in shown}


def test_cancelled_or_killed_in_mid_canary_the_champion_is_back_and_a_run_again_carries_on(line, deployed):
    line.plan(steps=[LONG, SHORT], lease_seconds=900)
    line.up()
    deployment = deployed.deploy(line, "interrupted")
    deployed.start_worker()

    with line.traffic(pause=0.06) as traffic:
        cancelled = deployed.begin(deployment)
        wait_until(lambda: in_canary(line), 300, "the canary", deployed.said)
        deployed.ask(
            "POST", f"flow_runs/{cancelled}/set_state", state={"type": "CANCELLING", "name": "Cancelling"}
        )
        deployed.wait_for(cancelled, "Cancelled")
        # By the flow itself: the lease lasts for longer than this test.
        back = agree(line, State.ROLLED_BACK, "1")
        name = deployed.ask("GET", f"flow_runs/{cancelled}")["name"]
        assert f"flow run '{name}' was cancelled" in back.history[-1].reason

        line.plan(steps=[{**LONG, "minimum_seconds": 8}, SHORT], lease_seconds=6)
        killed = deployed.begin(deployment, version="2")
        left = wait_until(lambda: in_canary(line), 300, "the canary", deployed.said)
        deployed.kill_worker(with_runs=True)
        # By the lease alone: nobody controls the release.
        wait_until(lambda: routed(line) == {"v1": 100}, 60, "the lease's end", deployed.said)
        assert line.releases.newest() == left
        assert line.aliases["champion"] == "1"

        deployed.start_worker()
        again = deployed.begin(deployment)
        # Prefect holds the place of a run whose process is gone, until it is told or its own lease is over.
        deployed.wait_for(again, "AwaitingConcurrencySlot")
        crashed = {"type": "CRASHED", "name": "Crashed"}
        deployed.ask("POST", f"flow_runs/{killed}/set_state", state=crashed, force=True)
        ended = deployed.wait_for(again)

    assert ended["type"] == "COMPLETED", deployed.said()
    promoted = agree(line, State.PROMOTED, "2")
    assert promoted.id == left.id
    assert any("begins anew" in past.reason for past in promoted.history)
    assert traffic.failed == 0
    assert audit(line.platform).problems == ()


@pytest.fixture
def weather(line, tmp_path):
    """MLflow as a server over the line's own database, behind a proxy that can fail."""
    port = free_port()
    server = start_mlflow(line.home / "data" / "mlflow.db", port, tmp_path / "mlflow.log")
    proxy = Weather(port)
    proxy.start()

    def ready():
        return httpx.get(f"http://127.0.0.1:{port}/health", timeout=5).is_success

    try:
        wait_until(ready, 400, "MLflow's start", (tmp_path / "mlflow.log").read_text)
        yield proxy
    finally:
        proxy.stop()
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def test_a_release_gets_through_an_mlflow_that_fails_now_and_then_and_goes_away_for_a_while(
    line, weather, deployed
):
    change_environment(line, platform={"kind": "local", "data_root": "data", "tracking_uri": weather.url})
    line.plan(steps=[{**SHORT, "minimum_seconds": 6}])
    line.up()
    deployment = deployed.deploy(line, "flaky")
    deployed.start_worker()
    weather.faults.extend([503, "drop", 503])
    before = len(weather.met)

    with line.traffic(pause=0.06) as traffic:
        run = deployed.begin(deployment)
        wait_until(lambda: in_canary(line), 300, "the canary", deployed.said)
        at_once = weather.met[before:]
        weather.down = True
        time.sleep(8)
        during = line.releases.newest()
        weather.down = False
        ended = deployed.wait_for(run)

    assert [fault for fault, *_ in at_once] == [503, "drop", 503]
    assert len(weather.met) > len(at_once)
    assert during.state is State.CANARY
    assert line.shares == {"v2": 100}
    assert ended["type"] == "COMPLETED", deployed.said()
    promoted = agree(line, State.PROMOTED, "2")
    # The lease was renewed all the while: a step whose lease lapsed is begun anew.
    assert [str(done.state) for done in promoted.history].count("canary") == 1
    assert traffic.failed == 0
