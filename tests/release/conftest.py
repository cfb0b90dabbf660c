"""A real champion and a real challenger, a real data plane, and callers that ask it over HTTP."""

import csv
import json
import os
import random
import shutil
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import yaml

from deployments.environment import Environment
from deployments.spec import LoadedSpec, load_spec
from platforms.local import LocalPlatform
from serving import control
from serving.folders import Folders
from tasks.labels import add_labels
from tasks.register import ledger_of
from tasks.release_control import controlled
from tasks.release_record import ReleaseStore
from tasks.serve import serve_champion
from tasks.tracking import Tracking
from tests.release.chameleon import BEHAVIOUR, CHALLENGER
from tests.release.kinds import BINARY, Kind, as_text

ROOT = Path(__file__).resolve().parents[2]
MODEL = "small"
PLAN = {
    "shadow": {"minimum_requests": 40, "maximum_seconds": 60},
    "steps": [
        {"percentage": 30, "minimum_requests": 40, "maximum_seconds": 60},
        {"percentage": 60, "minimum_requests": 40, "maximum_seconds": 60},
    ],
    "analysis": {
        "error_rate": {"effect": 0.4},
        "latency": {"effect": 9.0, "tolerated": 3.0, "quantile": 0.5},
        "scores": {"effect": 0.6, "tolerated": 0.2},
        "sample_ratio": {"effect": 0.9, "tolerated": 0.5},
    },
    "lease_seconds": 6,
    "look_seconds": 0.2,
    "rollback_hours": 1,
}
ENVIRONMENT = {
    "name": "dev",
    "platform": {"kind": "local", "data_root": "data"},
    "allow_dirty_tree": True,
    "allowed_packages": ["sklearn", "tests"],
    "serving": {
        "gateway": {"port": 0},
        "mlflow_port": 0,
        "onnx": False,
        "limits": {"drain_seconds": 1},
        "log": {"max_megabytes": 64},
    },
}
MAKE = """
import sys, yaml
from pathlib import Path
from flows.settings import settle
settle()
from flows.server import served
with served(lambda _: None):
    from flows.promote import promote
    from flows.train import train
    spec, environment, parameter, value = sys.argv[1:]
    train(spec, environment)
    promote(spec, environment)
    path = Path(spec)
    other = yaml.safe_load(path.read_text())
    other["training"]["candidates"][0]["params"] = {parameter: float(value)}
    path.write_text(yaml.safe_dump(other))
    train(spec, environment)
from flows.run import leave
leave(0)
"""


@pytest.fixture(scope="session")
def trained(once):
    """`trained(kind)`: a home with version 1 as champion and version 2 as challenger, made by the line itself."""
    return lambda kind: once(f"released-{kind.name}", lambda folder: make(folder, kind))


def make(folder, kind=BINARY):
    (folder / "model.yaml").write_text(yaml.safe_dump(kind.document(MODEL, PLAN)))
    (folder / "env.yaml").write_text(yaml.safe_dump(ENVIRONMENT))
    (folder / "rows.csv").write_text("\n".join(kind.rows(600, random.Random(3))))
    environment = {**os.environ, "CONTENDER_HOME": str(folder / "home")}
    environment.pop("PREFECT_API_URL", None)
    command = [sys.executable, "-c", MAKE, str(folder / "model.yaml"), str(folder / "env.yaml")]
    command += [kind.parameter, str(CHALLENGER)]
    run(command, environment)
    # Fetched once: a copy of the data root has both versions ready to be served.
    root = folder / "home" / "data"
    store, settings = f"sqlite:///{root / 'mlflow.db'}", folder / "serving.json"
    settings.write_text(Environment.model_validate(ENVIRONMENT).serving.model_dump_json())
    for version in ("1", "2"):
        command = [sys.executable, "-m", "serving.fetch", "--name", MODEL, "--version", version]
        command += ["--folder", str(Folders(root).models), "--tracking-uri", store, "--registry-uri", store]
        command += ["--settings", str(settings), "--allowed-packages", "sklearn,tests"]
        run(command, environment)


def run(command, environment):
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@dataclass
class Traffic:
    """Callers that ask the endpoint again and again, each by a name of its own; what was asked, and its labels."""

    url: str
    truth: Callable = BINARY.truth
    statuses: Counter = field(default_factory=Counter)
    versions: Counter = field(default_factory=Counter)
    asked: dict = field(default_factory=dict)
    stop: threading.Event = field(default_factory=threading.Event)

    def ask(self, random_numbers):
        a, b = random_numbers.gauss(0, 2), random_numbers.gauss(0, 2)
        body = json.dumps({"dataframe_records": [{"a": a, "b": b}]}).encode()
        headers = {
            "content-type": "application/json",
            "x-caller-id": f"c{random_numbers.random()}",
            "x-request-id": f"r{random_numbers.random()}",
        }
        try:
            with urllib.request.urlopen(
                urllib.request.Request(self.url, body, headers), timeout=20
            ) as answer:
                self.statuses[answer.status] += 1
                self.versions[answer.headers["x-served-version"]] += 1
                self.asked[answer.headers["x-request-id"]] = self.truth(a - b)
        except urllib.error.HTTPError as error:
            error.read()
            self.statuses[error.code] += 1
        except OSError as error:
            self.statuses[type(error).__name__] += 1

    def go_on(self, seed, pause):
        random_numbers = random.Random(seed)
        while not self.stop.wait(pause):
            self.ask(random_numbers)

    @property
    def failed(self):
        return sum(count for status, count in self.statuses.items() if status != 200)


@dataclass
class Line:
    """One environment with a data plane of its own; the challenger behaves as it is told."""

    home: Path
    spec: Path
    loaded: LoadedSpec
    platform: LocalPlatform
    behaviour: Path
    kind: Kind = BINARY

    @property
    def environment_file(self):
        return self.spec.parent / "env.yaml"

    def behave(self, how):
        staged = self.behaviour.with_suffix(".new")
        staged.write_text(how)
        staged.replace(self.behaviour)

    def plan(self, **changes):
        """Another release plan; sections are replaced key by key."""
        document = yaml.safe_load(self.spec.read_text())
        document["release"] = {**document["release"], **changes}
        self.spec.write_text(yaml.safe_dump(document))
        self.loaded = load_spec(self.spec)

    def up(self):
        """The data plane, without an MLflow server, and the champion behind its endpoint."""
        addresses = self.platform.mlflow
        control.up(
            {
                "root": str(self.platform.root),
                "environment": "dev",
                "tracking_uri": addresses.tracking_uri,
                "registry_uri": addresses.registry_uri,
                "allowed_packages": list(self.platform.environment.allowed_packages),
                "serving": self.platform.environment.serving.model_dump(mode="json"),
                "mlflow_store": None,
                "mlflow_artifacts": None,
            }
        )
        return self.platform.wait_for_endpoint(serve_champion(self.platform, MODEL).endpoint)

    @property
    def endpoint(self):
        return self.platform.endpoints.get_endpoint(self.platform.endpoint(MODEL))

    @property
    def shares(self):
        routes = self.endpoint["config"]["traffic_config"]["routes"]
        return {r["served_entity_name"]: r["traffic_percentage"] for r in routes if r["traffic_percentage"]}

    @property
    def aliases(self):
        registered = Tracking(self.platform).client.get_registered_model(
            self.platform.registered_model(MODEL)
        )
        return {alias: str(number) for alias, number in dict(registered.aliases).items()}

    @property
    def releases(self):
        return ReleaseStore(self.platform, MODEL)

    def events(self):
        return [entry.event for entry in ledger_of(self.platform).entries(MODEL)]

    @contextmanager
    def traffic(self, callers=3, pause=0.02):
        """Callers that each wait for so many seconds between answer and question: what asks for more takes a core."""
        traffic = Traffic(self.endpoint["url"], self.kind.truth)
        threads = [
            threading.Thread(target=traffic.go_on, args=(seed, pause), daemon=True) for seed in range(callers)
        ]
        for thread in threads:
            thread.start()
        try:
            yield traffic
        finally:
            traffic.stop.set()
            for thread in threads:
                thread.join()

    def add_labels(self, labels, **how):
        """Labels by request, as a file of them."""
        path = self.spec.parent / "labels.csv"
        with path.open("w") as file:
            writer = csv.writer(file)
            writer.writerow(["request_id", "label"])
            writer.writerows((request, as_text(label)) for request, label in labels.items())
        return add_labels(self.platform, self.loaded, path, **how)

    @contextmanager
    def labels_of(self, traffic):
        """The labels of what is asked meanwhile come soon after it."""
        stop, known = threading.Event(), set()

        def go_on():
            while not stop.wait(0.5):
                labels = dict(traffic.asked)
                fresh = {request: labels[request] for request in labels.keys() - known}
                if fresh:
                    self.add_labels(fresh, look_up=False)
                    known.update(fresh)

        with ThreadPoolExecutor(1) as thread:
            coming = thread.submit(go_on)
            try:
                yield
            finally:
                stop.set()
            coming.result()

    def release(self, *, until=None, seconds=120, version=None, look=None):
        """Take the release through its plan in this process; stop at a state if one is named."""
        deadline = time.monotonic() + seconds
        with controlled(self.platform, self.loaded, version) as control:
            while not control.ended:
                assert time.monotonic() < deadline, (control.last, control.look)
                began = time.monotonic()
                control.step()
                if look is not None:
                    look(control)
                if until is not None and until(control.release):
                    break
                time.sleep(control.pause_seconds(time.monotonic() - began))
            return control.release


@pytest.fixture
def line_of(trained, copy_data_root, tmp_path, monkeypatch):
    """`line_of(kind)`: a copy of the trained home, with nothing up yet; everything is down afterwards."""
    home, behaviour = tmp_path / "home", tmp_path / "behaviour"

    def made(kind):
        source = trained(kind)
        copy_data_root(source / "home" / "data", home / "data")
        for name in ("model.yaml", "env.yaml", "rows.csv"):
            shutil.copy(source / name, tmp_path / name)
        monkeypatch.setenv("CONTENDER_HOME", str(home))
        monkeypatch.setenv(BEHAVIOUR, str(behaviour))
        environment = Environment.model_validate(yaml.safe_load((tmp_path / "env.yaml").read_text()))
        spec, platform = tmp_path / "model.yaml", LocalPlatform(environment, home / "data")
        line = Line(home, spec, load_spec(spec), platform, behaviour, kind)
        line.behave("good")
        return line

    yield made
    control.down(home / "data")


@pytest.fixture
def line(line_of):
    """The line of a binary model."""
    return line_of(BINARY)
