"""A release that waits for a signature: refused at the terminal, suspended in Prefect, and resumed by the form."""

import http.server
import json
import os
import subprocess
import sys
import threading
import time

import httpx
import pytest
import yaml
from prefect.settings import PREFECT_API_URL, temporary_settings

from deployments.environment import Environment
from flows.server import OwnServer
from platforms.local import LocalPlatform
from tasks import approvals, approver_keys, register
from tasks.release_record import State
from tests.release.conftest import ROOT

pytestmark = pytest.mark.slow


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A real Prefect server."""
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "prefect"))
    server = OwnServer()
    server.wait()
    monkeypatch.setenv("PREFECT_API_URL", server.url)
    with temporary_settings({PREFECT_API_URL: server.url}):
        yield server.url
    server.stop()


@pytest.fixture
def told():
    """What a webhook was sent."""
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


def asked(method, url, **body):
    answer = httpx.request(method, url, json=body, timeout=60)
    assert answer.is_success, f"{method} {url}: {answer.text}"
    return answer.json() if answer.content else None


def executed(run):
    """Run a flow run in a process of its own, as a worker does; the process ends where the run is suspended."""
    done = subprocess.run(
        [sys.executable, "-m", "prefect", "flow-run", "execute", run],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout + done.stderr


def test_a_suspended_release_is_resumed_by_a_signed_form_though_its_process_is_gone(
    line, server, told, tmp_path
):
    from prefect.blocks.notifications import CustomWebhookNotificationBlock

    webhook, messages = told
    CustomWebhookNotificationBlock(
        name="releases", url=webhook, json_data={"subject": "{{subject}}", "body": "{{body}}"}
    ).save("releases")
    key_file = tmp_path / "olga.pem"
    public = approver_keys.new_key(key_file, None)
    document = yaml.safe_load(line.environment_file.read_text())
    document |= {
        "approvals": ["owner"],
        "approvers": [
            {"name": "olga", "identities": ["olga@example.com"], "roles": ["owner"], "public_key": public}
        ],
        "notify": ["custom-webhook/releases"],
    }
    line.environment_file.write_text(yaml.safe_dump(document))
    line.platform = LocalPlatform(Environment.model_validate(document), line.platform.root)
    line.up()
    flow = asked("POST", f"{server}/flows/", name="release")
    deployment = asked(
        "POST",
        f"{server}/deployments/",
        name="small",
        flow_id=flow["id"],
        entrypoint="flows/release.py:release",
        path=str(ROOT),
        parameters={"model": str(line.spec), "env": str(line.environment_file)},
    )
    run = asked("POST", f"{server}/deployments/{deployment['id']}/create_flow_run")["id"]

    with line.traffic() as traffic:
        first = executed(run)
        suspended = asked("GET", f"{server}/flow_runs/{run}")["state"]
        proposed = line.releases.newest().state
        bare = asked("POST", f"{server}/flow_runs/{run}/resume")
        ref = register.challenger_of(line.platform, "small")
        signed = approvals.sign(
            approvals.draft(
                line.platform,
                "small",
                ref,
                role="owner",
                approver="olga",
                ticket="CHG-1",
                now=line.releases.newest().begun,
            ),
            approver_keys.load_key(key_file, None),
        )
        form = {"decision": "approve", "approver": "olga", "ticket": "CHG-1", "signature": signed.to_token()}
        resumed = asked("POST", f"{server}/flow_runs/{run}/resume", run_input=form)
        second = executed(run)
        ended = asked("GET", f"{server}/flow_runs/{run}")["state"]

    assert (suspended["type"], suspended["name"]) == ("PAUSED", "Suspended"), first
    assert proposed is State.PROPOSED
    assert bare["status"] == "REJECT"
    assert resumed["status"] == "ACCEPT"
    assert ended["type"] == "COMPLETED", second
    assert line.aliases == {"champion": "2", "previous": "1"}
    assert line.releases.newest().approvers == ("olga", "olga@example.com")
    assert traffic.failed == 0
    assert [message["subject"] for message in messages] == [
        "small version 2: started",
        "small version 2: needs approval",
        "small version 2: promoted",
    ]
    assert {f"contender.release.{what}" for what in ("started", "needs_approval", "promoted")} <= events(
        server
    )
    kinds = {artifact["key"] for artifact in asked("POST", f"{server}/artifacts/filter")}
    assert "small-release" in kinds


def events(server, seconds=20):
    """The names of our events; the server writes them a moment after they were sent."""
    deadline, found = time.monotonic() + seconds, set()
    while "contender.release.promoted" not in found and time.monotonic() < deadline:
        page = asked(
            "POST", f"{server}/events/filter", filter={"event": {"prefix": ["contender."]}}, limit=50
        )
        found = {event["event"] for event in page["events"]}
        time.sleep(0.5)
    return found
