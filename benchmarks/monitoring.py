"""Drift of a window of a million logged requests: Evidently plainly on all rows, and ours on a seeded sample.

`python -m benchmarks.monitoring [--rows 1000000]`. The training table and each window are Delta tables of 20 columns.
The plain side reads them into frames and runs Evidently's `DataDriftPreset` with a `DataDefinition`; ours draws a
sample of each in one pass and runs `tasks.drift.drift_rows`. Both write Evidently's page; each in a process of its
own. Columns drift by different amounts, some close to what matters, so that decisions have something to differ about.
"""

import argparse
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.fresh_process import Measured, measure, reported
from benchmarks.report import write_table

BATCH_ROWS = 131_072
NUMBERS = [f"number_{place}" for place in range(12)]
CATEGORIES = [f"category_{place}" for place in range(5)]
FLAGS = ["flag_0", "flag_1"]
WINDOWS = {"calm": 0.0, "near": 1.2, "far": 2.5}
"""By how much the last of the columns moves, in what matters; the others move by less, in equal steps."""
USUAL = 0.1
"""Evidently's own threshold for both distances at this size."""


def main() -> None:
    """Measure and write benchmarks/results/monitoring.md."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--step", choices=["make", "plain", "ours"], help=argparse.SUPPRESS)
    parser.add_argument("--window", choices=list(WINDOWS), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.step:
        {"make": _make, "plain": _plain, "ours": _ours}[given.step](given.folder, given.window, given.rows)
        return
    table: list[list[str]] = []
    compared: list[tuple[float, float, float, bool]] = []
    with tempfile.TemporaryDirectory() as folder:
        here = ["--rows", str(given.rows), "--folder", folder]
        _must(measure("benchmarks.monitoring", "--step", "make", *here))
        for window in WINDOWS:
            plain, ours = (
                _must(measure("benchmarks.monitoring", "--step", side, "--window", window, *here))
                for side in ("plain", "ours")
            )
            for title, one in (("Evidently on all rows", plain), ("ours", ours)):
                table.append(
                    [
                        window,
                        title,
                        f"{one.seconds:.1f}",
                        f"{one.cpu_seconds:.1f}",
                        f"{one.peak_megabytes:,.0f}",
                        f"{one.seconds / plain.seconds:.3f}",
                        f"{one.cpu_seconds / plain.cpu_seconds:.3f}",
                        f"{one.peak_megabytes / plain.peak_megabytes:.2f}",
                    ]
                )
            compared += [
                (plain.said[column], distance, matters, failed)
                for column, (distance, matters, failed) in ours.said.items()
            ]
    write_table(
        "monitoring",
        f"Drift of {given.rows:,} logged requests of 20 columns",
        f"python -m benchmarks.monitoring --rows {given.rows}",
        ["window", "side", "s", "CPU s", "peak MB", "time ratio", "CPU ratio", "memory ratio"],
        table,
        note=_note(compared),
    )


def _must(measured: Measured) -> Measured:
    if measured.failed:
        raise SystemExit(measured.failed)
    return measured


def _note(compared: list[tuple[float, float, float, bool]]) -> str:
    ours_alike = sum((whole >= matters) == failed for whole, _, matters, failed in compared)
    usual_alike = sum((whole >= USUAL) == (drawn >= USUAL) for whole, drawn, _, _ in compared)
    off = [abs(whole - drawn) for whole, drawn, _, _ in compared]
    parted = [
        abs(whole / matters - 1) for whole, _, matters, failed in compared if (whole >= matters) != failed
    ]
    where = (
        f" (where they differ, the distance is within {max(parted):.0%} of what matters)" if parted else ""
    )
    drifted = sum(whole >= matters for whole, _, matters, _ in compared)
    return (
        f"Reference and window have as many rows each; a page is written by both. Of {len(compared)} columns in "
        f"{len(WINDOWS)} windows {drifted} are beyond what our plan says matters, by the distances of all rows; our "
        f"decision, p-values and their adjustment included, agrees on {ours_alike}{where}. At Evidently's default "
        f"threshold of {USUAL} the distances of sample and whole agree on {usual_alike}. Sampled distances are off by "
        f"{np.mean(off):.4f} on average and {max(off):.4f} at most. Seconds leave out imports; where the machine "
        f"has other work, processor seconds are the fairer measure."
    )


# Tables -------------------------------------------------------------------------------------------------------


def _platform(folder: Path) -> Any:
    from deployments.environment import Environment, LocalPlatformConfig
    from platforms.local import LocalPlatform

    return LocalPlatform(Environment(name="bench", platform=LocalPlatformConfig(data_root="b")), folder)


def _make(folder: Path, _: str, rows: int) -> None:
    """The training table, and a table for each window."""
    import pyarrow as pa

    with reported():
        for seed, (name, moved) in enumerate({"training": 0.0, **WINDOWS}.items()):
            random = np.random.default_rng(seed)
            sizes = [min(BATCH_ROWS, rows - start) for start in range(0, rows, BATCH_ROWS)]
            schema = _batch(np.random.default_rng(0), 1, 0.0).schema
            stream = pa.RecordBatchReader.from_batches(
                schema, (_batch(random, size, moved) for size in sizes)
            )
            _platform(folder).tables.write(f"bench/{name}", stream)


def _batch(random: np.random.Generator, rows: int, moved: float) -> Any:
    """Columns of different shapes; `moved` is how far the last of each kind moves, in what matters."""
    import pyarrow as pa

    draw = (
        lambda: random.normal(50, 10, rows),
        lambda: random.lognormal(2, 0.5, rows),
        lambda: random.poisson(20, rows).astype(float),
        lambda: random.beta(2, 5, rows) * 100,
    )
    deviations = (10.0, 4.5, 4.47, 15.97)
    columns: dict[str, Any] = {}
    for place, name in enumerate(NUMBERS):
        step = moved * (place + 1) / len(NUMBERS)
        columns[name] = draw[place % 4]() + 0.3 * step * deviations[place % 4]
    for place, name in enumerate(CATEGORIES):
        shift = 0.12 * moved * (place + 1) / len(CATEGORIES)
        shares = np.array([0.4 - shift, 0.25, 0.2, 0.1, 0.05 + shift])
        columns[name] = pa.array(list("abcde")).take(pa.array(random.choice(5, rows, p=shares)))
    for place, name in enumerate(FLAGS):
        columns[name] = pa.array(random.random(rows) < 0.3 + 0.12 * moved * (place + 1) / len(FLAGS))
    days = random.integers(0, 365 * 86_400, rows) + int(0.3 * moved * 105 * 86_400)
    columns["seen"] = pa.array((1_700_000_000 + days) * 1_000_000).cast(pa.timestamp("us", "UTC"))
    return pa.record_batch(columns)


# Sides --------------------------------------------------------------------------------------------------------


def _plain(folder: Path, window: str, _: int) -> None:
    from evidently import DataDefinition, Dataset, Report
    from evidently.presets import DataDriftPreset

    tables = _platform(folder).tables
    definition = DataDefinition(
        numerical_columns=[*NUMBERS, "seen"], categorical_columns=[*CATEGORIES, *FLAGS]
    )
    with reported() as said:
        live, reference = (
            tables.read(tables.latest(f"bench/{name}")).to_pandas() for name in (window, "training")
        )
        sides = []
        for frame in (live, reference):
            frame["seen"] = frame["seen"].astype("int64")
            sides.append(Dataset.from_pandas(frame, data_definition=definition))
        found = Report([DataDriftPreset()]).run(*sides)
        found.save_html(str(folder / "plain.html"))
        for metric in found.dict()["metrics"]:
            if "column" in metric["config"]:
                said[metric["config"]["column"]] = float(metric["value"])


def _ours(folder: Path, window: str, rows: int) -> None:
    import tasks.drift_report  # noqa: F401 - imported before the clock starts, as by the other side
    from tasks.drift import drift_rows
    from tasks.monitoring_record import Window
    from tasks.sampling import sample

    spec, tables = _spec(), _platform(folder).tables
    plan = spec.monitoring.drift
    with reported() as said:
        live, reference = (
            sample(
                tables.open(tables.latest(f"bench/{name}")).to_batches(), plan.sample_rows, seed=0
            ).to_pandas()
            for name in (window, "training")
        )
        found = drift_rows(
            plan,
            spec,
            version="1",
            window=Window(start=datetime(2026, 1, 1, tzinfo=UTC), end=datetime(2026, 1, 8, tzinfo=UTC)),
            reference=reference,
            live=live,
            reference_rows=rows,
            live_rows=rows,
            html=folder / "ours.html",
        )
        for row in found:
            if row.subject:
                said[row.subject] = (row.value, row.threshold, row.verdict == "fail")


def _spec() -> Any:
    from deployments.spec import ModelSpec

    number, text = {"type": "number"}, {"type": "string"}
    columns = {
        "id": text,
        "target": number,
        **dict.fromkeys(NUMBERS, number),
        **dict.fromkeys(CATEGORIES, text),
        **{name: {"type": "boolean"} for name in FLAGS},
        "seen": {"type": "timestamp"},
    }
    return ModelSpec.model_validate(
        {
            "name": "bench",
            "governance": {"owner": "bench", "purpose": "A measurement."},
            "target": {"kind": "regression", "column": "target"},
            "sources": {"log": {"kind": "csv", "path": "log.csv"}},
            "contract": {"log": {"columns": columns}},
            "features": {
                "entity": ["id"],
                "numeric": NUMBERS,
                "categorical": CATEGORIES,
                "boolean": FLAGS,
                "dates": ["seen"],
            },
            "training": {
                "metric": "rmse",
                "candidates": [{"name": "one", "estimator": "sklearn.linear_model.Ridge"}],
            },
            "evaluation": {"metrics": ["rmse"]},
            "gates": [{"kind": "metric", "metric": "rmse", "max": 1.0}],
        }
    )


if __name__ == "__main__":
    main()
