"""A real registry with a small real model in it, and a real data plane over it, for tests of the whole."""

import json
import os
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import pytest

from deployments.environment import GatewayConfig, PredictionLogConfig, RequestLimits, Serving
from serving import control
from serving.client import ContenderDeploymentClient
from serving.folders import Folders

ROOT = Path(__file__).resolve().parents[2]
MODEL = "small"
SPEC = """
name: small
governance: {owner: tests, purpose: Be served.}
target: {kind: binary, column: sick, positive: true}
sources: {rows: {kind: csv, path: rows.csv}}
contract:
  rows:
    columns:
      id: {type: string}
      a: {type: number}
      b: {type: number, nullable: true}
      ward: {type: string}
      sick: {type: boolean}
features: {entity: [id], numeric: [a, b], categorical: [ward]}
split: {kind: random, holdout: 0.3, validation: 0.2, min_rows: 20}
training:
  metric: roc_auc
  folds: 2
  threshold: 0.5
  candidates: [{name: logistic, estimator: sklearn.linear_model.LogisticRegression}]
evaluation: {metrics: [roc_auc], bootstrap: 200}
gates: [{kind: metric, metric: roc_auc, min: 0.5}]
"""
ENVIRONMENT = """
name: serving-tests
platform: {kind: local, data_root: data}
allow_dirty_tree: true
serving: {gateway: {port: 0}, mlflow_port: 0}
"""
MAKE = """
import sys
from flows.settings import settle
settle()
from flows.server import served
with served(lambda _: None):
    from flows.promote import promote
    from flows.train import train
    train(*sys.argv[1:])
    promote(*sys.argv[1:])
from flows.run import leave
leave(0)
"""


@pytest.fixture(scope="session")
def registered(once, mlflow_template):
    """A data root with version 1 of a small model, champion of its registry, made by the line itself, once for all."""

    def make(folder):
        (folder / "home" / "data").mkdir(parents=True)
        shutil.copy(mlflow_template, folder / "home" / "data" / "mlflow.db")
        make_registered(folder)

    return once("registered", make)


def make_registered(folder):
    (folder / "model.yaml").write_text(SPEC)
    (folder / "env.yaml").write_text(ENVIRONMENT)
    rows = ["id,a,b,ward,sick"]
    for place in range(400):
        a, b = (place * 37 % 100) / 10 - 5, "" if place % 11 == 0 else (place * 53 % 90) / 10
        rows.append(f"p{place},{a},{b},{'xyz'[place % 3]},{str(a + (place * 7 % 5) > 0).lower()}")
    (folder / "rows.csv").write_text("\n".join(rows))
    environment = {**os.environ, "CONTENDER_HOME": str(folder / "home")}
    environment.pop("PREFECT_API_URL", None)
    command = [sys.executable, "-c", MAKE, str(folder / "model.yaml"), str(folder / "env.yaml")]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    # Fetched once: a copy of the data root has the version ready to be served.
    root = folder / "home" / "data"
    store = f"sqlite:///{root / 'mlflow.db'}"
    (folder / "serving.json").write_text(Serving().model_dump_json())
    fetch = [sys.executable, "-m", "serving.fetch", "--name", MODEL, "--version", "1"]
    fetch += ["--folder", str(Folders(root).models), "--tracking-uri", store, "--registry-uri", store]
    fetch += ["--settings", str(folder / "serving.json"), "--allowed-packages", "sklearn"]
    done = subprocess.run(fetch, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@dataclass
class Plane:
    """A data plane of a test's own."""

    root: Path
    given: dict

    @property
    def client(self) -> ContenderDeploymentClient:
        return ContenderDeploymentClient(f"contender:{self.root}")

    def up(self, **changes):
        self.given = {**self.given, **changes}
        return control.up(self.given)

    def status(self):
        return control.status(self.root)

    def serve(self, **shares):
        """Serve the only version under some names, with shares; without shares, the champion alone."""
        shares = shares or {"champion": 100}
        entities = [{"name": name, "entity_name": MODEL, "entity_version": "1"} for name in shares]
        self.client.create_endpoint(
            MODEL, {"served_entities": entities, "traffic_config": {"routes": routes(**shares)}}
        )
        return self.client.wait(MODEL)

    def workers(self, name):
        entities = self.status()["endpoints"][MODEL]["entities"]
        return next(entity["workers"] for entity in entities if entity["name"] == name)

    def ask(self, records=({"a": 1.0, "b": None, "ward": "x"},), path="invocations", **headers):
        """Status, document and headers of an answer through the gateway."""
        url = f"{self.status()['gateway']['url']}/serving-endpoints/{MODEL}/{path}"
        body = json.dumps({"dataframe_records": list(records)}).encode() if path == "invocations" else None
        sent = {"content-type": "application/json"} | {
            name.replace("_", "-"): value for name, value in headers.items()
        }
        try:
            with urllib.request.urlopen(urllib.request.Request(url, body, sent), timeout=20) as answer:
                return answer.status, json.loads(answer.read()), dict(answer.headers)
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read()), dict(error.headers)


def routes(**shares):
    return [{"served_entity_name": name, "traffic_percentage": share} for name, share in shares.items()]


@pytest.fixture
def plane(registered, tmp_path):
    """A data plane over a copy of the registry, down until it is told to be up, and down afterwards."""
    root = tmp_path / "data"
    shutil.copytree(registered / "home" / "data", root)
    serving = Serving(
        gateway=GatewayConfig(port=0),
        limits=RequestLimits(drain_seconds=2),
        log=PredictionLogConfig(max_megabytes=64),
        mlflow_port=0,
    )
    # The copy's registry still names the files of the original, which stand as long as the tests run.
    store = f"sqlite:///{root / 'mlflow.db'}"
    made = Plane(
        root,
        {
            "root": str(root),
            "environment": "tests",
            "tracking_uri": store,
            "registry_uri": store,
            "allowed_packages": ["sklearn"],
            "serving": serving.model_dump(mode="json"),
            "mlflow_store": None,
            "mlflow_artifacts": None,
        },
    )
    yield made
    control.down(root)
