"""One small training, run for real once, for tests that read its documents."""

import csv
import shutil
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

from deployments.environment import Environment, LocalPlatformConfig
from platforms.local import LocalPlatform

TUMOURS = """
    name: tumours
    governance:
      owner: pathology
      purpose: Say which samples look malignant, so that they are read first.
      limits: [A teaching data set of 1995., Not for diagnosis.]
      risk: high
      risk_note: A missed sample waits longer.
    target: {kind: binary, column: diagnosis, positive: malignant}
    sources:
      samples: {kind: csv, path: samples.csv}
    contract:
      samples:
        max_invalid_share: 0.05
        unique: [[sample]]
        rows: {min: 100}
        columns:
          sample: {type: string, pattern: 'S\\d{4}'}
          patient: {type: string, pii: drop}
          ward: {type: string}
          site: {type: string, values: [north, "<script>alert('site')</script>"]}
          radius: {type: number, min: 0, max: 1000}
          texture: {type: number, nullable: true, min_completeness: 0.9}
          smoothness: {type: number}
          symmetry: {type: number}
          diagnosis: {type: string, values: [benign, malignant]}
        rules:
          - {name: symmetry_is_small, expression: symmetry < 1}
        distribution:
          - {column: radius, test: psi, max: 0.2}
    features:
      entity: [sample]
      numeric: [radius, texture, smoothness, symmetry]
      categorical: [site]
    split: {kind: random, holdout: 0.3, validation: 0.2}
    training:
      metric: roc_auc
      folds: 3
      candidates:
        - name: logistic
          estimator: sklearn.linear_model.LogisticRegression
          search: {kind: grid, space: {C: [0.1, 1.0]}}
        - name: tree
          estimator: sklearn.tree.DecisionTreeClassifier
          params: {max_depth: 3, class_weight: null}
    evaluation:
      metrics: [roc_auc, brier]
      slices: [site, ward]
      min_slice_rows: 10
      bootstrap: 200
    gates:
      - {kind: metric, metric: roc_auc, min: 0.7}
      - {kind: champion, metric: roc_auc, margin: 0.02, min_rows: 30}
      - {kind: fairness, attribute: ward, measure: demographic_parity_difference, max: 0.9}
      - {kind: fairness, attribute: site, measure: group_floor, metric: recall, min: 0.01}
      - {kind: latency, max_p95_milliseconds: 60000, requests: 50}
      - {kind: robustness, max_swing: 0.9, rows: 50}
"""


@dataclass(frozen=True)
class FinishedTraining:
    """The documents of a training whose champion is the same model again."""

    loaded: Any
    tables: Any
    parts: Any
    leaderboard: Any
    trained: Any
    evaluation: Any
    gates: Any
    plots: Any
    run: Any


def write_samples(path: Path) -> None:
    """scikit-learn's breast cancer data, with people in it, gaps, and a few rows that break the contract."""
    from sklearn.datasets import load_breast_cancer

    data = load_breast_cancer()
    with path.open("w", encoding="utf-8", newline="") as handle:
        rows = csv.writer(handle)
        rows.writerow(
            [
                "sample",
                "patient",
                "ward",
                "site",
                "radius",
                "texture",
                "smoothness",
                "symmetry",
                "diagnosis",
            ]
        )
        for place, (values, label) in enumerate(zip(data.data, data.target, strict=True)):
            rows.writerow(
                [
                    f"S{place:04d}",
                    f"Patient-{place}",
                    ("Ward-Elm", "Ward-Oak")[place % 2],
                    ("north", "<script>alert('site')</script>")[place % 3 == 0],
                    -5.0 if place in {3, 7} else values[0],
                    "" if place % 50 == 0 else values[1],
                    values[4],
                    2.5 if place == 11 else values[8],
                    ("malignant", "benign")[label],
                ]
            )


def with_personal_slices(loaded):
    """The spec with a hashed column among slices and groups, which reading a spec refuses: pages must hide it still."""
    from deployments.spec import LoadedSpec, ModelSpec

    table = loaded.spec.contract["samples"]
    ward = table.columns["ward"].model_copy(update={"pii": "hash"})
    hashed = table.model_copy(update={"columns": table.columns | {"ward": ward}})
    fields = {name: getattr(loaded.spec, name) for name in type(loaded.spec).model_fields}
    spec = ModelSpec.model_construct(**(fields | {"contract": {"samples": hashed}}))
    return LoadedSpec.model_construct(spec=spec, path=loaded.path, sql=loaded.sql)


@pytest.fixture(scope="session")
def finished_training(tmp_path_factory, mlflow_template):
    """A contract, a search, an evaluation against a champion, and the gates, on 569 rows."""
    from deployments.spec import load_spec
    from tasks.champion import ChampionRef
    from tasks.evaluate import evaluate_challenger
    from tasks.gate import judge
    from tasks.ingest import ingest_table
    from tasks.split import split_table
    from tasks.tracking import Tracking
    from tasks.train import open_run, rank, train_candidate, train_winner
    from tasks.validate import validate_table

    folder = tmp_path_factory.mktemp("training")
    (folder / "model.yaml").write_text(dedent(TUMOURS), encoding="utf-8")
    write_samples(folder / "samples.csv")
    environment = Environment(
        name="dev", platform=LocalPlatformConfig(data_root="data"), allow_dirty_tree=True
    )
    (folder / "data").mkdir()
    shutil.copy(mlflow_template, folder / "data" / "mlflow.db")
    platform = LocalPlatform(environment, folder / "data")
    loaded = with_personal_slices(load_spec(folder / "model.yaml"))
    spec, moment = loaded.spec, datetime(2026, 1, 1, tzinfo=UTC)

    bronze = ingest_table(loaded, platform, "samples", spec.sources["samples"])
    table = validate_table(
        spec.contract["samples"], platform, model=loaded.name, table="samples", bronze=bronze, clock=moment
    )
    parts = split_table(loaded, platform, table.silver)
    run = open_run(loaded, platform, table.silver, parts, moment)
    leaderboard = rank(
        loaded,
        [
            train_candidate(loaded, platform, run, parts.development, item)
            for item in spec.training.candidates
        ],
    )
    trained = train_winner(loaded, platform, run, parts.development, leaderboard)
    champion = ChampionRef(
        name=loaded.name, version="1", run_id=run.run_id, model_id=trained.model_id, digest=trained.digest
    )
    evaluation = evaluate_challenger(
        loaded, platform, run, trained, parts.development, parts.holdout, champion
    )
    client = Tracking(platform).client
    plots = {
        Path(item.path).stem: Path(client.download_artifacts(run.run_id, item.path, str(folder))).read_bytes()
        for item in client.list_artifacts(run.run_id, "plots")
    }
    return FinishedTraining(
        loaded=loaded,
        tables=(table,),
        parts=parts,
        leaderboard=leaderboard,
        trained=trained,
        evaluation=evaluation,
        gates=judge(spec.gates, evaluation),
        plots=plots,
        run=run,
    )


FRUIT = """
    name: fruit
    governance: {owner: orchard, purpose: To be tested.}
    target: {kind: binary, column: ripe, positive: true}
    sources:
      fruit: {kind: csv, path: fruit.csv}
    contract:
      fruit:
        columns:
          fruit_id: {type: integer}
          tree: {type: string}
          weight: {type: number}
          sugar: {type: number, nullable: true}
          spots: {type: integer}
          shape: {type: string, nullable: true}
          washed: {type: boolean}
          picked: {type: timestamp}
          ripe: {type: boolean}
    features:
      entity: [fruit_id]
      numeric: [weight, sugar, spots]
      categorical: [shape]
      boolean: [washed]
    split: {kind: random, holdout: 0.3, validation: 0.2, min_rows: 30}
    training:
      metric: roc_auc
      folds: 2
      candidates:
        - name: logistic
          estimator: sklearn.linear_model.LogisticRegression
          search: {kind: grid, space: {C: [0.1, 1.0]}}
        - name: tree
          estimator: sklearn.tree.DecisionTreeClassifier
          params: {max_depth: 2}
    evaluation: {metrics: [roc_auc, brier, recall], slices: [shape], min_slice_rows: 10, bootstrap: 200}
    gates:
      - {kind: metric, metric: roc_auc, min: 0.6}
      - {kind: champion, metric: roc_auc, margin: 0.02, min_rows: 30}
      - {kind: latency, max_p95_milliseconds: 60000, requests: 50}
"""
QUICK = {"kind": "latency", "max_p95_milliseconds": 60000, "requests": 50}
KINDS = {
    "binary": {},
    "multiclass": {
        "target": {"kind": "multiclass", "column": "ripe"},
        "metric": "accuracy",
        "metrics": ["accuracy", "log_loss", "roc_auc_ovr"],
        "ripe": {"type": "string"},
        "estimators": ("sklearn.linear_model.LogisticRegression", "sklearn.tree.DecisionTreeClassifier"),
        "gates": [{"kind": "metric", "metric": "accuracy", "min": 0.5}, QUICK],
    },
    "regression": {
        "target": {"kind": "regression", "column": "ripe"},
        "metric": "rmse",
        "metrics": ["rmse", "mae", "r2"],
        "ripe": {"type": "number"},
        "estimators": ("sklearn.linear_model.Ridge", "sklearn.tree.DecisionTreeRegressor"),
        "gates": [{"kind": "metric", "metric": "r2", "min": 0.1}, QUICK],
    },
}


def fruit_rows(kind: str = "binary", rows: int = 400, seed: int = 0) -> Any:
    """A table of fruit whose ripeness follows from sugar, weight and shape."""
    import numpy as np
    import pyarrow as pa

    draw = np.random.default_rng(seed)
    weight, sugar = draw.normal(100, 20, rows), draw.normal(10, 2, rows)
    shape = draw.choice(["long", "round", "flat"], rows)
    ripeness = (weight - 100) / 20 + (sugar - 10) / 2 + (shape == "round") + draw.normal(0, 0.7, rows)
    ripe = {
        "binary": lambda: ripeness > 0.3,
        "multiclass": lambda: np.choose(np.digitize(ripeness, [-0.3, 0.9]), ["green", "fair", "ripe"]),
        "regression": lambda: ripeness,
    }[kind]()
    days = np.datetime64("2025-01-01", "us") + draw.integers(0, 300, rows).astype("timedelta64[D]")
    return pa.table(
        {
            "fruit_id": np.arange(rows),
            "tree": [f"tree {place // 4}" for place in range(rows)],
            "weight": weight,
            "sugar": pa.array(sugar, mask=draw.random(rows) < 0.05),
            "spots": draw.integers(0, 9, rows),
            "shape": pa.array(shape, mask=draw.random(rows) < 0.05),
            "washed": draw.random(rows) < 0.5,
            "picked": pa.array(days).cast(pa.timestamp("us", "UTC")),
            "ripe": ripe,
        }
    )


@dataclass(frozen=True)
class FruitLine:
    """One model's way through the line, from a gold table on."""

    loaded: Any
    platform: Any
    gold: Any
    parts: Any

    def open(self) -> Any:
        from tasks.train import open_run

        return open_run(self.loaded, self.platform, self.gold, self.parts, datetime(2026, 1, 1, tzinfo=UTC))

    def compete(self, run: Any) -> Any:
        from tasks.train import rank, train_candidate

        loaded, development = self.loaded, self.parts.development
        candidates = loaded.spec.training.candidates
        return rank(
            loaded, [train_candidate(loaded, self.platform, run, development, one) for one in candidates]
        )

    def train(self, run: Any) -> Any:
        from tasks.train import train_winner

        return train_winner(self.loaded, self.platform, run, self.parts.development, self.compete(run))

    def evaluate(self, run: Any, trained: Any, standing: Any = None) -> Any:
        from tasks.champion import NoChampionYet
        from tasks.evaluate import evaluate_challenger

        parts, standing = self.parts, standing or NoChampionYet()
        return evaluate_challenger(
            self.loaded, self.platform, run, trained, parts.development, parts.holdout, standing
        )

    def reference(self, trained: Any, version: str = "1") -> Any:
        """The trained model as if it were a registered version."""
        from tasks.champion import ChampionRef

        return ChampionRef(
            name=self.loaded.name,
            version=version,
            run_id=trained.run_id,
            model_id=trained.model_id,
            digest=trained.digest,
        )


@dataclass(frozen=True)
class FinishedFruitLine:
    """A line that has been gone through once; its documents are to be read only."""

    line: FruitLine
    run: Any
    leaderboard: Any
    trained: Any
    evaluation: Any


def fruit_spec(folder: Path, kind: str = "binary", change: Any = None) -> Any:
    """The spec of the fruit model for one kind of target, after `change` has had its way with it."""
    import yaml

    from deployments.spec import load_spec

    spec, of_kind = yaml.safe_load(dedent(FRUIT)), KINDS[kind]
    if of_kind:
        spec["target"] = of_kind["target"]
        spec["contract"]["fruit"]["columns"]["ripe"] = of_kind["ripe"]
        spec["training"]["metric"] = of_kind["metric"]
        spec["evaluation"]["metrics"] = of_kind["metrics"]
        spec["gates"] = of_kind["gates"]
        for candidate, path in zip(spec["training"]["candidates"], of_kind["estimators"], strict=True):
            candidate["estimator"] = path
        if kind == "regression":
            spec["training"]["candidates"][0]["search"]["space"] = {"alpha": [0.1, 1.0]}
    if change is not None:
        change(spec)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "model.yaml"
    path.write_text(yaml.safe_dump(spec, sort_keys=False), encoding="utf-8")
    return load_spec(path)


def line_over(platform: Any, loaded: Any, rows: Any) -> FruitLine:
    """The line over rows that count as valid: its gold table and its split."""
    from tasks.split import split_table

    gold = platform.tables.write(platform.table("gold", loaded.name, "features"), rows.to_reader())
    return FruitLine(loaded, platform, gold, split_table(loaded, platform, gold))


WRITES = (
    "create_run",
    "log_batch",
    "log_inputs",
    "log_text",
    "log_artifact",
    "log_figure",
    "create_logged_model",
    "log_model_artifacts",
    "finalize_logged_model",
    "set_terminated",
)


class Killed(BaseException):
    """What a test dies of."""


@contextmanager
def killed_after(writes, monkeypatch):
    """Die once so many writes to MLflow are done; a write within a write is part of it."""
    from mlflow import MlflowClient

    done, depth = 0, 0

    def counting(name, plain):
        def write(*arguments, **named):
            nonlocal done, depth
            depth += 1
            result = plain(*arguments, **named)
            depth -= 1
            done += depth == 0
            if depth == 0 and done == writes:
                raise Killed(name)
            return result

        return write

    with monkeypatch.context() as patched:
        for name in WRITES:
            patched.setattr(MlflowClient, name, counting(name, getattr(MlflowClient, name)))
        yield


@pytest.fixture
def killed_after_every_write(monkeypatch):
    """Runs a step again and again, one write further each time, until it gets to its end.

    Returns what it returned then, and the writes after which it was killed. With `times=2` it is killed twice
    after each: where what was made once is found by the next run, that run's first write is the second of all.
    """

    def run(step, times=1):
        killed = []
        for attempt in range(times, 100):
            try:
                with killed_after(attempt // times, monkeypatch):
                    return step(), killed
            except Killed as death:
                killed += death.args
        raise AssertionError

    return run


@pytest.fixture(scope="session", autouse=True)
def single_threads():
    """Numerical libraries use one thread: several spin while they wait, on a machine that runs other tests."""
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1):
        yield


@pytest.fixture
def tracked(platform, mlflow_template):
    """The test's platform, its MLflow database ready."""
    platform.root.mkdir(parents=True, exist_ok=True)
    shutil.copy(mlflow_template, platform.root / "mlflow.db")
    return platform


@pytest.fixture
def make_spec(tmp_path):
    """Makes a spec of the fruit model: `make_spec(kind, change)`; `change` edits the document."""
    return lambda kind="binary", change=None: fruit_spec(tmp_path / "spec", kind, change)


@pytest.fixture
def make_rows():
    """Makes a table of fruit: `make_rows(kind, rows, seed)`."""
    return fruit_rows


@pytest.fixture
def make_line(make_fruit_line, tmp_path):
    """Makes a line: `make_line(kind, change, rows)`; `change` edits the spec, `rows` replaces the table."""
    return make_fruit_line(tmp_path)


@pytest.fixture(scope="session")
def make_fruit_line(mlflow_template):
    """Makes functions that make lines under a folder, one platform for all of them."""

    def under(folder):
        environment = Environment(
            name="dev", platform=LocalPlatformConfig(data_root="data"), allow_dirty_tree=True
        )
        platform = LocalPlatform(environment, folder / "data")
        platform.root.mkdir(parents=True, exist_ok=True)
        shutil.copy(mlflow_template, platform.root / "mlflow.db")

        def make(kind="binary", change=None, rows=None):
            loaded = fruit_spec(folder / "spec", kind, change)
            return line_over(platform, loaded, fruit_rows(kind) if rows is None else rows)

        return make

    return under


def _finished(line: FruitLine) -> FinishedFruitLine:
    run = line.open()
    leaderboard = line.compete(run)
    trained = line.train(run)
    return FinishedFruitLine(line, run, leaderboard, trained, line.evaluate(run, trained))


@pytest.fixture(scope="session")
def binary_line(tmp_path_factory, make_fruit_line):
    return _finished(make_fruit_line(tmp_path_factory.mktemp("binary"))("binary"))


@pytest.fixture(scope="session")
def multiclass_line(tmp_path_factory, make_fruit_line):
    return _finished(make_fruit_line(tmp_path_factory.mktemp("multiclass"))("multiclass"))


@pytest.fixture(scope="session")
def regression_line(tmp_path_factory, make_fruit_line):
    return _finished(make_fruit_line(tmp_path_factory.mktemp("regression"))("regression"))


@dataclass(frozen=True)
class Line:
    """A model trained and logged, not yet registered; `evaluation` and `gates` are None where nobody asked."""

    loaded: Any
    platform: Any
    tables: Any
    gold: Any
    parts: Any
    run: Any
    leaderboard: Any
    trained: Any
    evaluation: Any = None
    gates: Any = None


TARGETS = {
    "integer": {"kind": "binary", "column": "target", "positive": 1},
    "string": {"kind": "binary", "column": "target", "positive": "malignant"},
    "boolean": {"kind": "binary", "column": "target", "positive": True},
    "number": {"kind": "binary", "column": "target", "positive": 1},
    "multiclass": {"kind": "multiclass", "column": "target"},
    "regression": {"kind": "regression", "column": "target"},
}


def patients(target="integer"):
    """scikit-learn's breast cancer rows, with gaps, wards and a target of the wanted type."""
    import numpy as np
    import pandas as pd
    from sklearn.datasets import load_breast_cancer

    data = load_breast_cancer()
    rows, malignant = np.arange(len(data.target)), data.target == 0
    return pd.DataFrame(
        {
            "id": rows,
            "radius": data.data[:, 0],
            "texture": pd.Series(data.data[:, 1]).where(rows % 50 != 0),
            "visits": pd.array(np.where(rows % 40 == 0, None, rows % 7), "Int64"),
            "ward": np.where(rows % 2, "elm", "oak"),
            "insured": rows % 3 == 0,
            "target": {
                "integer": malignant.astype(int),
                "string": np.where(malignant, "malignant", "benign"),
                "boolean": malignant,
                "number": malignant.astype(float),
                "multiclass": np.where(malignant, np.where(rows % 2, "grave", "grim"), "benign"),
                "regression": data.data[:, 2] / 10,
            }[target],
        }
    )


def patients_spec(target="integer"):
    declared = {"multiclass": "string", "regression": "number"}.get(target, target)
    metric = {"multiclass": "accuracy", "regression": "r2"}.get(target, "roc_auc")
    family = "Regressor" if target == "regression" else "Classifier"
    return {
        "name": "patients",
        "governance": {"owner": "tests", "purpose": "To be tested."},
        "target": TARGETS[target],
        "sources": {"rows": {"kind": "csv", "path": "patients.csv"}},
        "contract": {
            "rows": {
                "unique": [["id"]],
                "max_invalid_share": 0.05,
                "columns": {
                    "id": {"type": "integer"},
                    "radius": {"type": "number", "min": 0, "max": 1000},
                    "texture": {"type": "number", "nullable": True},
                    "visits": {"type": "integer", "nullable": True},
                    "ward": {"type": "string", "values": ["elm", "oak"]},
                    "insured": {"type": "boolean"},
                    "target": {"type": declared},
                },
                "rules": [
                    {"name": "smooth", "expression": "radius < texture * 100"},
                    {"name": "told", "expression": "target is not null and radius > 0"},
                ],
            }
        },
        "features": {
            "entity": ["id"],
            "numeric": ["radius", "texture", "visits"],
            "categorical": ["ward"],
            "boolean": ["insured"],
        },
        "split": {"kind": "random", "holdout": 0.3, "validation": 0.2, "min_rows": 20},
        "training": {
            "metric": metric,
            "folds": 3,
            "candidates": [
                {
                    "name": "tree",
                    "estimator": f"sklearn.tree.DecisionTree{family}",
                    "params": {"max_depth": 4},
                }
            ],
        },
        "evaluation": {"metrics": [metric], "bootstrap": 200},
        "gates": [
            {"kind": "metric", "metric": metric, "min": 0.5},
            {"kind": "champion", "metric": metric, "margin": 0.05, "min_rows": 30},
        ],
    }


def train_line(folder, platform, target="integer", change=None):
    """Ingest, validate, split and train, through the pure functions."""
    import yaml

    from deployments.spec import load_spec
    from tasks.ingest import ingest_table
    from tasks.split import split_table
    from tasks.train import open_run, rank, train_candidate, train_winner
    from tasks.validate import validate_table

    spec = patients_spec(target)
    if change is not None:
        change(spec)
    folder.mkdir(parents=True, exist_ok=True)
    patients(target).to_csv(folder / "patients.csv", index=False)
    (folder / "model.yaml").write_text(yaml.safe_dump(spec, sort_keys=False), encoding="utf-8")
    loaded = load_spec(folder / "model.yaml")
    bronze = ingest_table(loaded, platform, "rows", loaded.spec.sources["rows"])
    moment = datetime(2026, 1, 1, tzinfo=UTC)
    table = validate_table(
        loaded.spec.contract["rows"],
        platform,
        model=loaded.name,
        table="rows",
        bronze=bronze,
        clock=moment,
    )
    parts = split_table(loaded, platform, table.silver)
    run = open_run(loaded, platform, table.silver, parts, moment)
    leaderboard = rank(
        loaded,
        [
            train_candidate(loaded, platform, run, parts.development, item)
            for item in loaded.spec.training.candidates
        ],
    )
    trained = train_winner(loaded, platform, run, parts.development, leaderboard)
    return Line(loaded, platform, (table,), table.silver, parts, run, leaderboard, trained)


@pytest.fixture(scope="session")
def moved_platform(copy_data_root):
    """Makes copies of a platform: `moved_platform(platform, root)` has all that the platform has, under that root."""

    def moved(platform, root):
        copy_data_root(platform.root, root)
        return LocalPlatform(platform.environment, root)

    return moved


@pytest.fixture(scope="session")
def first_line(tmp_path_factory, mlflow_template):
    """A first version, judged by its gates; nothing is registered. Not to be written to: ask for `line`."""
    from tasks.champion import NoChampionYet
    from tasks.evaluate import evaluate_challenger
    from tasks.gate import judge

    folder = tmp_path_factory.mktemp("line")
    environment = Environment(
        name="dev", platform=LocalPlatformConfig(data_root="data"), allow_dirty_tree=True
    )
    (folder / "data").mkdir()
    shutil.copy(mlflow_template, folder / "data" / "mlflow.db")
    line = train_line(folder, LocalPlatform(environment, folder / "data"))
    evaluation = evaluate_challenger(
        line.loaded,
        line.platform,
        line.run,
        line.trained,
        line.parts.development,
        line.parts.holdout,
        NoChampionYet(),
    )
    gates = judge(line.loaded.spec.gates, evaluation)
    return replace(line, evaluation=evaluation, gates=gates)


@pytest.fixture
def line(first_line, moved_platform, tmp_path):
    """The first version with a data root of the test's own."""
    return replace(first_line, platform=moved_platform(first_line.platform, tmp_path / "data"))


@pytest.fixture(name="patients", scope="session")
def given_patients():
    """`patients`, for tests that need rows."""
    return patients


@pytest.fixture(name="train_line", scope="session")
def given_train_line():
    """`train_line`, for tests that need a model of another kind."""
    return train_line
