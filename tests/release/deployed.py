"""What deployed releases run on: a real Prefect server, process workers to be killed, and MLflow behind bad weather."""

import contextlib
import http.client
import os
import subprocess
import sys
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import psutil

from tests.prefect_api import asked
from tests.release.conftest import ROOT

POOL = "releases"
FINAL = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}


def wait_until(found, seconds, what, said=str):
    """What `found` answers once that is true; a server that is not there yet answers nothing."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with contextlib.suppress(httpx.TransportError):
            answer = found()
            if answer:
                return answer
        time.sleep(0.2)
    raise AssertionError(f"{what} did not happen within {seconds} s:\n{said()}")


@dataclass
class Deployed:
    """A Prefect server with one pool, and the workers that a test starts and kills."""

    url: str
    environment: dict
    logs: Path
    worker: psutil.Popen | None = None
    workers: int = 0

    def ask(self, method, path, **body):
        return asked(method, f"{self.url}/{path}", **body)

    def deploy(self, line, name):
        """The release flow of a line, one run at a time, as prefect.yaml has it; the deployment's id."""
        flow = self.ask("POST", "flows/", name="release")["id"]
        environment = {name: os.environ[name] for name in ("CONTENDER_HOME", "CHAMELEON")}
        return self.ask(
            "POST",
            "deployments/",
            name=name,
            flow_id=flow,
            entrypoint="flows/release.py:release",
            pull_steps=[{"prefect.deployments.steps.set_working_directory": {"directory": str(ROOT)}}],
            parameters={"model": str(line.spec), "env": str(line.environment_file)},
            work_pool_name=POOL,
            job_variables={"env": {**environment, "PYTHONPATH": str(ROOT)}},
            concurrency_limit=1,
            concurrency_options={"collision_strategy": "ENQUEUE"},
        )["id"]

    def begin(self, deployment, **parameters):
        """A run of a deployment, to be taken up by a worker; its id."""
        made = self.ask("POST", f"deployments/{deployment}/create_flow_run", parameters=parameters)
        return made["id"]

    def state(self, run):
        return self.ask("GET", f"flow_runs/{run}")["state"]

    def wait_for(self, run, *names, seconds=400):
        """The state of a run once it is one of these names; any end where none is named."""

        def there():
            state = self.state(run)
            wanted = state["name"] in names if names else state["type"] in FINAL
            assert wanted or state["type"] not in FINAL, (state, self.said())
            return state if wanted else None

        return wait_until(there, seconds, f"{' or '.join(names) or 'the end'} of the run", self.said)

    def answer(self, run, **form):
        """Answer the form that a suspended run waits for, as the UI does."""
        return self.ask("POST", f"flow_runs/{run}/resume", run_input=form)

    def start_worker(self):
        """A worker of the pool, unless one is alive."""
        if self.worker is not None and self.worker.is_running():
            return
        self.workers += 1
        command = [sys.executable, "-m", "prefect", "worker", "start", "--pool", POOL, "--type", "process"]
        with (self.logs / f"worker{self.workers}.log").open("w") as log:
            self.worker = psutil.Popen(
                command, env=self.environment, cwd=ROOT, stdout=log, stderr=log, start_new_session=True
            )

    def kill_worker(self, *, with_runs=False):
        """Kill -9 the worker, and what it runs where asked to."""
        if self.worker is None:
            return
        found = self.worker.children(recursive=True) if with_runs else []
        for process in (self.worker, *found):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self.worker.wait()
        self.worker = None
        psutil.wait_procs(found, timeout=10)

    def said(self):
        """The end of each log."""
        return "\n".join(f"{log.name}: {log.read_text()[-3000:]}" for log in sorted(self.logs.glob("*.log")))


@dataclass
class Weather:
    """A proxy before MLflow: requests meet what is next in `faults` (a status, or "drop"), or all are dropped."""

    port_behind: int
    faults: deque = field(default_factory=deque)
    down: bool = False
    met: list = field(default_factory=list)
    passed: int = 0
    server: ThreadingHTTPServer | None = None

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server.server_port}"

    def start(self):
        weather = self

        class Proxy(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def pass_on(self):
                body = self.rfile.read(int(self.headers.get("content-length", 0)))
                fault = "drop" if weather.down else weather.faults.popleft() if weather.faults else None
                if fault is not None:
                    weather.met.append((fault, self.command, self.path))
                if fault == "drop":
                    self.close_connection = True
                    return
                if fault is not None:
                    self.send_response(fault)
                    self.send_header("content-length", "0")
                    self.end_headers()
                    return
                behind = http.client.HTTPConnection("127.0.0.1", weather.port_behind, timeout=60)
                headers = {name: value for name, value in self.headers.items() if name.lower() != "host"}
                behind.request(self.command, self.path, body, headers)
                answer = behind.getresponse()
                said = answer.read()
                weather.passed += 1
                self.send_response(answer.status)
                for name, value in answer.getheaders():
                    if name.lower() not in {"transfer-encoding", "content-length", "connection"}:
                        self.send_header(name, value)
                self.send_header("content-length", str(len(said)))
                self.end_headers()
                self.wfile.write(said)
                behind.close()

            do_GET = do_POST = do_PATCH = do_PUT = do_DELETE = pass_on

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Proxy)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def stop(self):
        self.server.shutdown()
        self.server.server_close()


def start_mlflow(database, port, log):
    """A real MLflow server over a line's own database, in a process group of its own."""
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--backend-store-uri", f"sqlite:///{database}", "--workers", "1"]
    quiet = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with log.open("w") as file:
        return subprocess.Popen(
            command, stdout=file, stderr=file, cwd=log.parent, env=quiet, start_new_session=True
        )
