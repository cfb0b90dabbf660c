"""Holdout ROC AUC of the telco spec over ten seeded splits, beside a plain gradient boosting on the same splits.

`python -m benchmarks.telco --source PATH [--splits 10]`; everything runs in a temporary data root.
"""

import argparse
import os
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.report import write_table


def main() -> None:
    """Measure and write benchmarks/results/telco.md."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--source", required=True, type=Path, help="the Telco churn csv")
    parser.add_argument("--splits", type=int, default=10)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["CONTENDER_HOME"] = folder
        from flows.settings import settle

        settle()
        rows = [_one_split(given.source, seed) for seed in range(1, given.splits + 1)]
    ours, plain = (np.asarray([row[column] for row in rows]) for column in (2, 3))
    summary = [
        "mean ± sd",
        "",
        f"{ours.mean():.4f} ± {ours.std(ddof=1):.4f}",
        f"{plain.mean():.4f} ± {plain.std(ddof=1):.4f}",
        "",
    ]
    write_table(
        "telco",
        "Holdout ROC AUC of the telco spec over seeded splits",
        f"python -m benchmarks.telco --source telco-churn.csv --splits {given.splits}",
        ["split seed", "winner", "telco spec", "plain gradient boosting", "seconds"],
        [[str(row[0]), row[1], f"{row[2]:.4f}", f"{row[3]:.4f}", f"{row[4]:.0f}"] for row in rows]
        + [summary],
        "Plain gradient boosting: scikit-learn's GradientBoostingClassifier with its defaults on one-hot columns, "
        "trained on the same train and validation rows. The split that ships is another seed (20250101).",
    )


def _one_split(source: Path, seed: int) -> tuple[int, str, float, float, float]:
    from datetime import UTC, datetime

    import pyarrow as pa
    from sklearn.ensemble import GradientBoostingClassifier

    from deployments.source import source_at
    from flows.prepare import prepare
    from tasks.champion import load_logged_model
    from tasks.frame import model_inputs, target_values
    from tasks.ingest import ingest_table
    from tasks.metrics import measure, outputs_of
    from tasks.pipeline import make_pipeline
    from tasks.split import split_table
    from tasks.train import open_run, rank, train_candidate, train_winner
    from tasks.validate import validate_table

    started = time.perf_counter()
    loaded, platform = prepare("telco", "dev")
    spec = loaded.spec.model_copy(update={"split": loaded.spec.split.model_copy(update={"seed": seed})})
    loaded = loaded.model_copy(update={"spec": spec})
    bronze = ingest_table(loaded, platform, "customers", source_at(str(source), spec.sources["customers"]))
    silver = validate_table(
        spec.contract["customers"], platform, model="telco", table="customers", bronze=bronze
    ).silver
    assert silver is not None
    parts = split_table(loaded, platform, silver)
    run = open_run(loaded, platform, silver, parts, datetime.now(UTC))
    results = [
        train_candidate(loaded, platform, run, parts.development, item) for item in spec.training.candidates
    ]
    trained = train_winner(loaded, platform, run, parts.development, rank(loaded, results))
    model = load_logged_model(platform, trained.model_id, trained.digest)
    development = pa.concat_tables(
        [
            platform.tables.read(part.snapshot)
            for part in (parts.development.train, parts.development.validation)
        ]
    )
    plain = make_pipeline(spec, GradientBoostingClassifier(random_state=0))
    plain.fit(model_inputs(development, spec), target_values(development, spec))
    held = platform.tables.read(parts.holdout.snapshot)
    inputs, truth = model_inputs(held, spec), target_values(held, spec)
    scores = [measure("roc_auc", truth, outputs_of(item, inputs, spec.target)) for item in (model, plain)]
    return seed, trained.candidate, scores[0], scores[1], time.perf_counter() - started


if __name__ == "__main__":
    main()
