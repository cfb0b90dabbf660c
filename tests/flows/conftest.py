"""Small real models, one of them promoted once for all, and the command line."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import pytest
import yaml
from sklearn import datasets

from flows.deliver import DeliveryOutcome, deliver
from flows.run import main

ROOT = Path(__file__).resolve().parents[2]
TELCO = ROOT.parent / "shared" / "data" / "telco-churn.csv"


@pytest.fixture(scope="session")
def furnish(mlflow_template):
    """Makes a data root with an MLflow database that has its tables, which a run would need seconds to make."""

    def furnished(root):
        root.mkdir(parents=True)
        shutil.copy(mlflow_template, root / "mlflow.db")

    return furnished


@pytest.fixture
def home(tmp_path, monkeypatch, furnish):
    """A home of the test's own: the data roots of dev and test, and nothing in them."""
    path = tmp_path / "home"
    furnish(path / "dev")
    furnish(path / "test")
    monkeypatch.setenv("CONTENDER_HOME", str(path))
    return path


KINDS = {
    "binary": (
        datasets.load_breast_cancer,
        "sklearn.linear_model.LogisticRegression",
        "roc_auc",
        {"min": 0.9},
    ),
    "multiclass": (datasets.load_wine, "sklearn.linear_model.LogisticRegression", "accuracy", {"min": 0.8}),
    "regression": (datasets.load_diabetes, "sklearn.linear_model.Ridge", "r2", {"min": 0.2}),
}
METRICS = {
    "binary": ["roc_auc", "log_loss", "brier", "f1"],
    "multiclass": ["accuracy", "log_loss", "f1_macro", "roc_auc_ovr"],
    "regression": ["r2", "mae", "rmse"],
}


def write_model(parent, kind="binary", change=None, rows=None):
    """A model.yaml and its csv in a folder under `parent`; `change` edits the spec. Returns the spec's path."""
    load, estimator, metric, threshold = KINDS[kind]
    frame = load(as_frame=True).frame.rename(columns=lambda name: name.replace(" ", "_").replace("/", "_"))
    frame = frame.iloc[:rows].reset_index(names="id")
    features = [name for name in frame.columns if name not in {"id", "target"}]
    folder = parent / f"{kind}_model"
    folder.mkdir(exist_ok=True)
    frame.to_csv(folder / "data.csv", index=False)
    params = {"max_iter": 500} if kind != "regression" else {}
    space = {"C": [0.1, 1.0]} if kind != "regression" else {"alpha": [0.1, 1.0]}
    spec = {
        "name": f"{kind}_model",
        "governance": {"owner": "tests", "purpose": "To be tested."},
        "target": {"kind": kind, "column": "target"} | ({"positive": 1} if kind == "binary" else {}),
        "sources": {"rows": {"kind": "csv", "path": "data.csv"}},
        "contract": {
            "rows": {
                "unique": [["id"]],
                "columns": {"id": {"type": "integer"}}
                | {name: {"type": "number"} for name in features}
                | {"target": {"type": "number" if kind == "regression" else "integer"}},
            }
        },
        "features": {"entity": ["id"], "numeric": features},
        "split": {"kind": "random", "holdout": 0.25, "validation": 0.2, "min_rows": 20},
        "training": {
            "metric": metric,
            "folds": 3,
            "candidates": [
                {
                    "name": "linear",
                    "estimator": estimator,
                    "params": params,
                    "search": {"kind": "grid", "space": space},
                },
                {
                    "name": "tree",
                    "estimator": "sklearn.tree.DecisionTree"
                    + ("Regressor" if kind == "regression" else "Classifier"),
                    "params": {"max_depth": 3},
                },
            ],
        },
        "evaluation": {"metrics": METRICS[kind], "bootstrap": 200},
        "gates": [
            {"kind": "metric", "metric": metric, **threshold},
            {"kind": "champion", "metric": metric, "margin": 0.05, "min_rows": 30},
            {"kind": "size", "max_megabytes": 10},
        ],
    }
    if change is not None:
        change(spec)
    path = folder / "model.yaml"
    path.write_text(yaml.safe_dump(spec, sort_keys=False))
    return path


@pytest.fixture
def make_model(tmp_path):
    """Writes a model.yaml and a csv from one of scikit-learn's bundled data sets; returns the spec's path."""
    return lambda *given, **named: write_model(tmp_path, *given, **named)


@dataclass(frozen=True)
class Promoted:
    """A model whose first version is champion of dev in the test's own home, and the run that made it so."""

    model: Path
    outcome: DeliveryOutcome


@pytest.fixture(scope="session")
def promoted_once(once, prefect_server, furnish):
    """The binary model on 400 rows, taken through the whole line once for all workers. Ask for `promoted`."""

    def make(folder):
        model = write_model(folder, "binary", rows=400)
        furnish(folder / "home" / "dev")
        with pytest.MonkeyPatch.context() as patched:
            patched.setenv("CONTENDER_HOME", str(folder / "home"))
            outcome = deliver(str(model))
        (folder / "outcome.json").write_text(outcome.model_dump_json())

    return once("promoted", make)


@pytest.fixture
def promoted(promoted_once, home, copy_data_root, tmp_path):
    """The binary model on 400 rows, champion in a copy of the home that it was promoted in."""
    shutil.copytree(promoted_once / "binary_model", tmp_path / "binary_model")
    copy_data_root(promoted_once / "home" / "dev", home / "dev")
    outcome = DeliveryOutcome.model_validate_json((promoted_once / "outcome.json").read_bytes())
    return Promoted(tmp_path / "binary_model" / "model.yaml", outcome)


@dataclass(frozen=True)
class Said:
    """How a command ended, and what it said."""

    returncode: int
    stdout: str
    stderr: str

    def json(self):
        return json.loads(self.stdout)


@pytest.fixture
def commands(home, prefect_server, tmp_path, capsys):
    """Runs the command line in this process, against the session's server: `commands("score", …)`."""
    environment = {"PREFECT_API_URL": prefect_server, "PREFECT_HOME": str(tmp_path / "prefect")}

    def run(*arguments):
        capsys.readouterr()
        with patch.dict(os.environ, environment):
            code = main([str(argument) for argument in arguments])
        return Said(code, *capsys.readouterr())

    return run


@pytest.fixture
def command_line(home, prefect_server, tmp_path):
    """Runs `python -m flows.run …` in a process of its own, against the session's server."""

    def run(*arguments, program=("-m", "flows.run"), cwd=None, timeout=240, **environment):
        done = subprocess.run(
            [sys.executable, *program, *map(str, arguments)],
            capture_output=True,
            text=True,
            timeout=timeout,
            cwd=cwd or ROOT,
            env={
                **os.environ,
                "CONTENDER_HOME": str(home),
                "PREFECT_API_URL": prefect_server,
                "PREFECT_HOME": str(tmp_path / "prefect"),
                **environment,
            },
            check=False,
        )
        done.json = lambda: json.loads(done.stdout)
        return done

    return run
