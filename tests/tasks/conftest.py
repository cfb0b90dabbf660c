"""One small training, run for real once, for tests that read its documents."""

import csv
from dataclasses import dataclass
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
          ward: {type: string, pii: hash, values: [Ward-Elm, Ward-Oak]}
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
      bootstrap: 100
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


@pytest.fixture(scope="session")
def finished_training(tmp_path_factory):
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
    platform, loaded = LocalPlatform(environment, folder / "data"), load_spec(folder / "model.yaml")
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
