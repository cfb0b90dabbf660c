"""What a person sees: a real Prefect server's UI and MLflow's in a real browser, over a real training and release.

With CONTENDER_SCREENSHOTS=FOLDER in the environment, the pages are kept there as pictures.
"""

import os
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
import yaml
from PIL import Image

from deployments.environment import Environment
from flows import keeper
from flows.database import chosen_database
from platforms.local import LocalPlatform
from tasks import approver_keys
from tests.browser import browser
from tests.browser import program as chromium
from tests.release.conftest import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

WORK = """
import sys
from flows.settings import settle
settle()
spec, env = sys.argv[1:]
from flows.release import release
from flows.train import train
train(spec, env, force=True)
for flow in (train, release):
    flow.to_deployment(
        name="small-dev", parameters={"model": spec, "env": env}, tags=["contender", "small", "dev"]
    ).apply()
"""
"""A training, and two deployments as `prefect deploy` makes them."""


@dataclass(frozen=True)
class Seen:
    """A browser on the UI of a Prefect server."""

    tab: object
    address: str

    def page(self, path, *texts, name=None):
        """A page of the UI, as text; kept as a picture where that is asked for and it has a name."""
        found = self.tab.visit(f"{self.address}/v2/{path}", *texts)
        self.keep(name)
        return found

    def keep(self, name):
        folder = os.environ.get("CONTENDER_SCREENSHOTS")
        if folder and name:
            file = self.tab.picture(Path(folder) / f"{name}.png", whole=False)
            Image.open(file).convert("RGB").quantize(128).save(file, optimize=True)
            assert file.stat().st_size < 150_000

    def asked(self, path, **body):
        answer = httpx.post(f"{self.address}/api/{path}", json=body, timeout=60)
        assert answer.is_success, answer.text
        return answer.json()

    @property
    def outside(self):
        """What the pages asked of anybody else."""
        return [url for url in self.tab.requests if not url.startswith((self.address, "blob:"))]


def run(environment, *command):
    done = subprocess.run(
        [sys.executable, *command], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def approved_by_olga(line, tmp_path):
    """The line's environment, which now asks for an approval."""
    document = yaml.safe_load(line.environment_file.read_text())
    document |= {
        "approvals": ["owner"],
        "approvers": [
            {
                "name": "olga",
                "identities": ["olga@example.com"],
                "roles": ["owner"],
                "public_key": approver_keys.new_key(tmp_path / "olga.pem", None),
            }
        ],
    }
    line.environment_file.write_text(yaml.safe_dump(document))
    line.platform = LocalPlatform(Environment.model_validate(document), line.platform.root)
    return line


@pytest.fixture
def environment(approved_by_olga, monkeypatch):
    """What processes of the line are told; the data plane is up, with an MLflow server."""
    chromium()
    told = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    told |= {"CONTENDER_HOME": str(approved_by_olga.home), "PYTHONPATH": str(ROOT), "DO_NOT_TRACK": "true"}
    run(told, "-m", "flows.run", "up", "--env", str(approved_by_olga.environment_file))
    monkeypatch.setenv("PREFECT_HOME", str(approved_by_olga.home / "prefect"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    standing = keeper.begin(approved_by_olga.home, port, "none", chosen_database(None))
    yield told | {"PREFECT_API_URL": standing.url}
    keeper.end(approved_by_olga.home)


@pytest.fixture
def seen(environment, tmp_path):
    """A browser beside the server."""
    with browser(tmp_path) as tab:
        yield Seen(tab, environment["PREFECT_API_URL"].removesuffix("/api"))


def test_a_person_sees_trainings_releases_and_forms_in_the_browser(seen, environment, approved_by_olga):
    line = approved_by_olga
    run(environment, "-c", WORK, str(line.spec), str(line.environment_file))
    deployed = {one["entrypoint"]: one["id"] for one in seen.asked("deployments/filter")}
    release = next(found for entry, found in deployed.items() if "release" in entry)
    waiting = seen.asked(f"deployments/{release}/create_flow_run")["id"]
    run(environment, "-m", "prefect", "flow-run", "execute", waiting)

    training(seen)
    parameters(seen, next(found for entry, found in deployed.items() if "train" in entry))
    approval(seen, waiting)

    mlflow = line.platform.data_plane.status()["mlflow"]["url"]
    registered(seen, mlflow)


def training(seen):
    found = seen.page("runs", "small · train ·", "small · release ·", "contender", name="prefect-runs")
    assert "Upgrade" not in found
    (trained,) = [
        one["id"] for one in seen.asked("flow_runs/filter") if one["name"].startswith("small · train")
    ]
    run = f"runs/flow-run/{trained}"
    seen.page(run, "small · train ·", "Completed", "Artifacts", name="prefect-training")
    stages = (
        "ingest rows",
        "validate rows",
        "contract",
        "split",
        "candidate logistic",
        "train",
        "evaluate",
        "gate",
    )
    seen.page(f"{run}?tab=TaskRuns", *stages, "register", "report")
    kept = {one["key"]: one["id"] for one in seen.asked("artifacts/filter") if one["flow_run_id"] == trained}
    seen.page(f"{run}?tab=Artifacts", "small-leaderboard", "small-gates", "small-links")
    seen.page(
        f"artifacts/artifact/{kept['small-gates']}",
        "verdict",
        "threshold",
        "roc_auc",
        "pass",
        name="prefect-gates",
    )
    seen.page(f"artifacts/artifact/{kept['small-leaderboard']}", "rank", "logistic")
    seen.page(f"artifacts/artifact/{kept['small-links']}", "MLflow run", "model card")
    links = seen.tab.value("[...document.querySelectorAll('a')].map(one => one.href).join(' ')")
    assert "/#/experiments/" in links
    assert seen.outside == []


def parameters(seen, deployment):
    found = seen.page(
        f"deployments/deployment/{deployment}/run",
        "A model under deployments/models",
        "Train again though nothing has changed.",
        name="prefect-parameters",
    )
    assert "as_of" in found
    seen.tab.click("button[role=combobox], [aria-haspopup=listbox], [aria-haspopup=dialog]", "dev")
    seen.tab.wait_for("demo", "prod", "test")


def approval(seen, waiting):
    seen.page(f"runs/flow-run/{waiting}", "small · release ·", "Suspended")
    seen.tab.click("button", "Resume")
    found = seen.tab.wait_for("approver", "ticket", "signature", "decision", "is proposed for dev")
    seen.keep("prefect-approval")
    assert "The name under" in found


def registered(seen, mlflow):
    found = seen.tab.visit(f"{mlflow}/#/models/small", "small", "Version 1", "champion", "challenger")
    seen.keep("mlflow-model")
    assert "contender" in found.lower()
