"""What a person sees: a real Prefect server's UI and MLflow's in a real browser, over a real training and release.

With CONTENDER_SCREENSHOTS=FOLDER in the environment, pages are kept there as pictures.
"""

import os
import subprocess
import sys

import pytest
import yaml

from deployments.environment import Environment
from platforms.local import LocalPlatform
from tasks import approver_keys
from tests.browser import browser
from tests.browser import program as chromium
from tests.prefect_ui import Seen, kept_server
from tests.release.conftest import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

TICKET = "CHG-2026-1"
WORK = """
import sys
from flows.settings import settle
settle()
spec, env, folder = sys.argv[1:]
from prefect.client.orchestration import get_client
from prefect.utilities.callables import parameter_schema
from flows.release import release
from flows.train import train
train(spec, env, force=True)
with get_client(sync_client=True) as client:
    for flow in (train, release):
        client.create_deployment(
            flow_id=client.create_flow(flow),
            name="small-dev",
            entrypoint=f"flows/{flow.name}.py:{flow.name}",
            pull_steps=[{"prefect.deployments.steps.set_working_directory": {"directory": folder}}],
            parameters={"model": spec, "env": env},
            parameter_openapi_schema=parameter_schema(flow).model_dump(),
            tags=["contender", "small", "dev"],
            # A model that is not shipped is no choice of the form.
            enforce_parameter_schema=False,
        )
from flows.run import leave
leave(0)
"""
"""A training, and two deployments as `prefect deploy` makes them."""


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
def environment(approved_by_olga):
    """What processes of the line are told; the data plane is up, with an MLflow server."""
    chromium()
    told = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    told |= {"CONTENDER_HOME": str(approved_by_olga.home), "PYTHONPATH": str(ROOT), "DO_NOT_TRACK": "true"}
    run(told, "-m", "flows.run", "up", "--env", str(approved_by_olga.environment_file))
    with kept_server(approved_by_olga.home) as url:
        yield told | {"PREFECT_API_URL": url}


@pytest.fixture
def seen(environment, tmp_path):
    """A browser beside the server."""
    with browser(tmp_path) as tab:
        yield Seen(tab, environment["PREFECT_API_URL"])


def test_a_person_sees_trainings_releases_and_forms_in_the_browser(seen, environment, approved_by_olga):
    line = approved_by_olga
    run(environment, "-c", WORK, str(line.spec), str(line.environment_file), str(ROOT))
    deployed = {one["entrypoint"]: one["id"] for one in seen.asked("deployments/filter")}
    release = next(found for entry, found in deployed.items() if "release" in entry)
    waiting = seen.asked(f"deployments/{release}/create_flow_run")["id"]
    run(environment, "-m", "prefect", "flow-run", "execute", waiting)

    training(seen)
    parameters(seen, next(found for entry, found in deployed.items() if "train" in entry))
    approval(seen, waiting, token(environment, line))
    with line.traffic(pause=0.06) as traffic:
        run(environment, "-m", "prefect", "flow-run", "execute", waiting)
    promoted(seen, waiting)
    assert (line.aliases["champion"], traffic.failed) == ("3", 0)

    mlflow = line.platform.data_plane.status()["mlflow"]["url"]
    registered(seen, mlflow)


def training(seen):
    seen.page("runs", "small · train ·", "small · release ·", "contender", name="prefect-runs")
    # An advertisement, which Prefect shows until it has read that it should not.
    seen.tab.wait_without("Upgrade")
    trained = seen.run_called("small · train")
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
    seen.page(f"{run}?tab=Artifacts", "small-leaderboard", "small-gates", "small-links")
    seen.page(
        f"artifacts/artifact/{seen.artifact('small-gates', trained)}",
        "verdict",
        "threshold",
        "roc_auc",
        "pass",
        name="prefect-gates",
    )
    seen.page(f"artifacts/artifact/{seen.artifact('small-leaderboard', trained)}", "rank", "logistic")
    seen.page(f"artifacts/artifact/{seen.artifact('small-links', trained)}", "MLflow run", "model card")
    seen.tab.wait_until(
        "[...document.querySelectorAll('a')].some(one => one.href.includes('/#/experiments/'))"
    )
    assert seen.outside == []
    drawn(seen, "small-calibration", trained)


def drawn(seen, key, run):
    """The picture of an artifact is one that the browser can show."""
    seen.page(f"artifacts/artifact/{seen.artifact(key, run)}", key)
    seen.tab.wait_until(
        "[...document.querySelectorAll('img')].some(one => one.src.startsWith('data:') && one.naturalWidth > 200)"
    )
    seen.keep(f"prefect-{key}")


def parameters(seen, deployment):
    found = seen.page(
        f"deployments/deployment/{deployment}/run",
        "A model under deployments/models",
        "Train again though nothing has changed.",
        name="prefect-parameters",
    )
    assert "as_of" in found
    seen.tab.click("button[role=combobox], [aria-haspopup=listbox], [aria-haspopup=dialog]", "env.yaml")
    seen.tab.wait_for("demo", "prod", "test")


def token(environment, line):
    """What olga's signature of the newest version prints, to be pasted into the form."""
    named = ["--model", str(line.spec), "--env", str(line.environment_file), "--version", "3"]
    signed = ["--role", "owner", "--ticket", TICKET, "--key", str(line.spec.parent / "olga.pem"), "--token"]
    return run(environment, "-m", "flows.run", "approve", *named, *signed).split()[-1]


def approval(seen, waiting, signature):
    seen.page(f"runs/flow-run/{waiting}", "small · release ·", "Suspended")
    seen.tab.click("button", "Open menu")
    seen.tab.click("[role=menuitem]", "Resume")
    found = seen.tab.wait_for("approver", "ticket", "signature", "decision", "is proposed for dev")
    assert "The name under" in found
    seen.tab.choose("Decision", "approve")
    seen.tab.fill("Approver", "olga")
    seen.tab.fill("Ticket", TICKET)
    seen.keep("prefect-approval")
    seen.tab.fill("Signature", signature)
    seen.tab.click("[role=dialog] button", "Resume")
    seen.tab.wait_for("Flow run resumed")


def promoted(seen, waiting):
    seen.page(f"runs/flow-run/{waiting}", "small · release ·", "v3", "Completed")
    seen.page(
        f"artifacts/artifact/{seen.artifact('small-release', waiting)}",
        "promoted",
        "olga",
        "all tests passed",
    )
    drawn(seen, "small-share", waiting)


def registered(seen, mlflow):
    found = seen.tab.visit(f"{mlflow}/#/models/small", "small", "Version 1", "champion", "challenger")
    seen.keep("mlflow-model")
    assert "contender" in found.lower()
