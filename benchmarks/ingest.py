"""Ingest's memory as files grow: a file larger than the memory its process may have, beside pandas.

`python -m benchmarks.ingest [--megabytes 1500] [--cap 1024]`. Each side reads CSV files, smaller and larger, in a
process that may allocate no more than the cap (RLIMIT_DATA, which needs no privileges, unlike a control group).
"""

import argparse
import tempfile
from pathlib import Path

from benchmarks.fresh_process import measure, reported
from benchmarks.report import write_table

SMALLER = (100, 500)
SIDES = {"ours": "ours, stored as a bronze version", "pandas": "pandas.read_csv, one frame, nothing stored"}

SPEC = """
name: bench
governance: {owner: bench, purpose: A measurement.}
target: {kind: regression, column: amount}
sources: {visits: {kind: csv, path: visits.csv}}
contract:
  visits:
    columns:
      visit: {type: string}
      mail: {type: string, pii: hash}
      city: {type: string}
      note: {type: string}
      amount: {type: number}
      pages: {type: integer}
      seen: {type: timestamp}
features: {entity: [visit], numeric: [pages]}
training:
  metric: rmse
  candidates: [{name: one, estimator: sklearn.linear_model.Ridge}]
evaluation: {metrics: [rmse]}
gates: [{kind: metric, metric: rmse, max: 1.0}]
"""


def main() -> None:
    """Measure and write benchmarks/results/ingest.md."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=1_500)
    parser.add_argument("--cap", type=int, default=1_024, help="in megabytes")
    parser.add_argument("--side", choices=list(SIDES), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.side:
        {"ours": _ours, "pandas": _pandas}[given.side](given.folder)
        return
    rows = []
    smallest: dict[str, float] = {}
    for megabytes in (*SMALLER, given.megabytes):
        with tempfile.TemporaryDirectory() as folder:
            count = _write(Path(folder), megabytes)
            for side, name in SIDES.items():
                one = measure(
                    "benchmarks.ingest", "--side", side, "--folder", folder, memory_megabytes=given.cap
                )
                smallest.setdefault(side, one.peak_megabytes)
                rows.append(
                    [
                        f"{megabytes:,} MB, {count:,} rows",
                        name,
                        f"ended by the cap: {one.failed}" if one.failed else f"{one.seconds:.1f}",
                        "" if one.failed else f"{one.peak_megabytes:,.0f}",
                        "" if one.failed else f"{one.peak_megabytes / smallest[side]:.2f}",
                    ]
                )
    write_table(
        "ingest",
        "Peak memory of ingest as the file grows",
        f"python -m benchmarks.ingest --megabytes {given.megabytes} --cap {given.cap}",
        ["CSV file", "side", "s", "peak MB (resident)", "of the smallest file's"],
        rows,
        note=(
            f"Every process may allocate {given.cap:,} MB at most (RLIMIT_DATA: heap and private mappings, touched "
            "or not). Ours hashes one column, digests all of them and writes a Delta version."
        ),
    )


def _write(folder: Path, megabytes: int) -> int:
    """A file of visits, each with a key and an address of its own; returns how many."""
    (folder / "model.yaml").write_text(SPEC, encoding="utf-8")
    rows = 0
    with (folder / "visits.csv").open("w", encoding="utf-8") as file:
        file.write("visit,mail,city,note,amount,pages,seen\n")
        while file.tell() < megabytes << 20:
            file.writelines(
                f'v{row:010d},someone{row}@example.org,city {row % 1000},"a note, of no '
                f'great length, on visit {row}",{row % 99991}.25,{row % 37},2025-06-{row % 30 + 1:02d}T12:00:00Z\n'
                for row in range(rows, rows + 50_000)
            )
            rows += 50_000
    return rows


def _ours(folder: Path) -> None:
    from deployments.environment import Environment, LocalPlatformConfig
    from deployments.spec import load_spec
    from platforms.local import LocalPlatform
    from tasks.ingest import ingest_table

    environment = Environment(name="bench", platform=LocalPlatformConfig(data_root="bench"))
    platform, loaded = LocalPlatform(environment, folder / "data"), load_spec(folder / "model.yaml")
    with reported() as said:
        said["rows"] = ingest_table(loaded, platform, "visits", loaded.spec.sources["visits"]).rows


def _pandas(folder: Path) -> None:
    import pandas as pd

    with reported() as said:
        said["rows"] = len(pd.read_csv(folder / "visits.csv"))


if __name__ == "__main__":
    main()
