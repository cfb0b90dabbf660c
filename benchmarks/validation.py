"""Our validation against plain pandera on pandas: the same rows, the same checks, each side in a process of its own.

`python -m benchmarks.validation [--rows 10000000] [--rounds 3]`. Ours reads a bronze snapshot in chunks, checks
it, writes valid rows as a silver version with its digest, and the others with their reasons to quarantine. The
other side reads the same Parquet file into one frame and validates it lazily; it writes nothing.
"""

import argparse
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.fresh_process import Measured, best, measure, reported
from benchmarks.report import write_table

REGIONS = ["north", "south", "east", "west"]
PLANS = ["bronze", "silver", "gold", "platinum"]
CHANNELS = ["web", "shop", "phone"]
COUNTS = [f"count_{number}" for number in range(5)]
AMOUNTS = [f"amount_{number}" for number in range(4)]
BATCH_ROWS = 262_144
BAD_SHARE = 0.001

SIDES = {
    "plain": "pandera on pandas, in memory",
    "ours": "ours, silver and quarantine written",
    "checks": "ours, checks alone",
}


def main() -> None:
    """Measure and write benchmarks/results/validation.md."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--step", choices=["make", *SIDES], help=argparse.SUPPRESS)
    parser.add_argument("--data", choices=["clean", "dirty"], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.step:
        {"make": _make, "plain": _plain, "ours": _ours, "checks": _checks}[given.step](
            given.folder, given.data, given.rows
        )
        return
    with tempfile.TemporaryDirectory() as folder:
        found = {
            data: _measured(data, ["--rows", str(given.rows), "--folder", folder], given.rounds)
            for data in ("clean", "dirty")
        }
    rows = []
    for data, sides in found.items():
        base = sides["plain"]
        for side, one in sides.items():
            rows.append(
                [
                    data if data == "clean" else f"{BAD_SHARE:.1%} bad rows",
                    SIDES[side],
                    f"{one.seconds:.1f}",
                    f"{one.cpu_seconds:.1f}",
                    f"{one.peak_megabytes:,.0f}",
                    f"{one.seconds / base.seconds:.2f}",
                    f"{one.peak_megabytes / base.peak_megabytes:.2f}",
                    f"{one.said['failing']:,}" if one.said else one.failed,
                ]
            )
    write_table(
        "validation",
        f"Validating {given.rows:,} rows of 20 columns",
        f"python -m benchmarks.validation --rows {given.rows} --rounds {given.rounds}",
        ["data", "side", "s", "CPU s", "peak MB", "time ratio", "memory ratio", "failing values found"],
        rows,
        note=(
            "Types, nulls, ranges, allowed values, patterns, one unique key and one rule across columns, on both "
            f"sides; the best of {given.rounds} rounds, sides in turn. Ratios are to pandera on pandas of the same "
            "data."
        ),
    )


def _measured(data: str, arguments: list[str], rounds: int) -> dict[str, Measured]:
    module = "benchmarks.validation"
    made = measure(module, "--step", "make", "--data", data, *arguments)
    if made.failed:
        raise SystemExit(made.failed)
    taken: dict[str, list[Measured]] = {side: [] for side in SIDES}
    for _ in range(rounds):
        for side, rounds_of_side in taken.items():
            rounds_of_side.append(measure(module, "--step", side, "--data", data, *arguments))
    return {side: best(rounds_of_side) for side, rounds_of_side in taken.items()}


def _platform(folder: Path, data: str) -> Any:
    from deployments.environment import Environment, LocalPlatformConfig
    from platforms.local import LocalPlatform

    environment = Environment(name="bench", platform=LocalPlatformConfig(data_root="bench"))
    return LocalPlatform(environment, folder / data)


def _make(folder: Path, data: str, rows: int) -> None:
    """Write the bronze snapshot, a batch at a time."""
    import pyarrow as pa

    for other in folder.iterdir():
        shutil.rmtree(other)
    batches = _batches(rows, BAD_SHARE if data == "dirty" else 0.0)
    first = next(batches)

    def stream() -> Iterator[Any]:
        yield first
        yield from batches

    with reported() as said:
        made = _platform(folder, data).tables.write(
            "bronze/m/t", pa.RecordBatchReader.from_batches(first.schema, stream())
        )
        said["rows"] = made.rows


def _batches(rows: int, bad_share: float) -> Iterator[Any]:
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    random = np.random.default_rng(0)

    def picked(values: list[str], count: int) -> Any:
        return pa.array(values).take(pa.array(random.integers(0, len(values), count)))

    def padded(numbers: Any, width: int) -> Any:
        return pc.utf8_lpad(pa.array(numbers).cast(pa.string()), width, "0")

    for start in range(0, rows, BATCH_ROWS):
        count = min(BATCH_ROWS, rows - start)
        ids = np.arange(start, start + count)
        bad = random.random(count) < bad_share
        fault = random.integers(0, 5, count)
        ids = np.where(bad & (fault == 0), np.maximum(ids - 1, 0), ids)
        billed = np.round(random.gamma(2, 50, count), 2)
        paid = np.where(bad & (fault == 1), billed + 1, np.round(billed * random.random(count), 2))
        columns = {
            "id": pc.binary_join_element_wise("C", padded(ids, 9), ""),
            "region": pc.if_else(pa.array(bad & (fault == 2)), pa.scalar("nowhere"), picked(REGIONS, count)),
            "plan": picked(PLANS, count),
            "channel": picked(CHANNELS, count),
            "postcode": padded(random.integers(0, 99_999, count), 5),
            **{name: pa.array(random.integers(0, 1_000, count)) for name in COUNTS},
            **{name: pa.array(np.round(random.gamma(2, 50, count), 2)) for name in AMOUNTS},
            "billed": pa.array(billed),
            "paid": pa.array(paid),
            "score": pa.array(
                np.where(bad & (fault == 3), 1.5, random.random(count)), mask=random.random(count) < 0.05
            ),
            "active": pa.array(random.random(count) < 0.5, mask=bad & (fault == 4)),
            "insured": pa.array(random.random(count) < 0.5),
            "seen": pa.array(1_700_000_000_000_000 + random.integers(0, 10**13, count)).cast(
                pa.timestamp("us", "UTC")
            ),
        }
        yield pa.record_batch(columns)


def _contract() -> Any:
    from deployments.contract import TableContract

    columns: dict[str, Any] = {
        "id": {"type": "string", "pattern": r"C\d{9}"},
        "region": {"type": "string", "values": REGIONS},
        "plan": {"type": "string", "values": PLANS},
        "channel": {"type": "string", "values": CHANNELS},
        "postcode": {"type": "string", "pattern": r"\d{5}"},
        **{name: {"type": "integer", "min": 0, "max": 1_000} for name in COUNTS},
        **{name: {"type": "number", "min": 0, "max": 10_000} for name in (*AMOUNTS, "billed", "paid")},
        "score": {"type": "number", "min": 0, "max": 1, "nullable": True},
        "active": {"type": "boolean"},
        "insured": {"type": "boolean"},
        "seen": {"type": "timestamp"},
    }
    rule = {"name": "paid_within_bill", "expression": "paid <= billed"}
    return TableContract(columns=columns, unique=(("id",),), rules=(rule,), max_invalid_share=0.01)


def _ours(folder: Path, data: str, _: int) -> None:
    _validate(_platform(folder, data))


def _checks(folder: Path, data: str, _: int) -> None:
    """The same way through, with tables that write nothing."""
    from platforms.tables import DeltaTables

    class ReadOnly(DeltaTables):
        def write(self, table: str, stream: Any) -> Any:
            rows = sum(batch.num_rows for batch in stream)
            return self.latest("bronze/m/t").model_copy(update={"table": table, "rows": rows})

    platform = _platform(folder, data)
    platform.__dict__["tables"] = ReadOnly(platform.root / "tables", platform.folder("scratch"))
    _validate(platform)


def _validate(platform: Any) -> None:
    from tasks.validate import validate_table

    shutil.rmtree(platform.root / "tables/silver", ignore_errors=True)
    shutil.rmtree(platform.root / "tables/quarantine", ignore_errors=True)
    contract, bronze = _contract(), platform.tables.latest("bronze/m/t")
    with reported() as said:
        result = validate_table(contract, platform, model="m", table="t", bronze=bronze)
        said["failing"] = sum(check.failures for check in result.checks)


def _plain(folder: Path, data: str, _: int) -> None:
    import pandas as pd
    import pandera.pandas as pandera
    from pandera.errors import SchemaErrors

    (file,) = (folder / data / "tables/bronze/m/t").glob("*.parquet")
    column, check = pandera.Column, pandera.Check
    schema = pandera.DataFrameSchema(
        {
            "id": column(str, check.str_matches(r"^C\d{9}$")),
            "region": column(str, check.isin(REGIONS)),
            "plan": column(str, check.isin(PLANS)),
            "channel": column(str, check.isin(CHANNELS)),
            "postcode": column(str, check.str_matches(r"^\d{5}$")),
            **{name: column("int64", [check.ge(0), check.le(1_000)]) for name in COUNTS},
            **{name: column(float, [check.ge(0), check.le(10_000)]) for name in (*AMOUNTS, "billed", "paid")},
            "score": column(float, [check.ge(0), check.le(1)], nullable=True),
            # With a missing value pandas makes the column one of objects: its type is then not checked.
            "active": column(bool if data == "clean" else object),
            "insured": column(bool),
            "seen": column("datetime64[us, UTC]"),
        },
        checks=check(lambda frame: frame["paid"] <= frame["billed"], name="paid_within_bill"),
        # As in ours, the first of several equal keys is not at fault.
        report_duplicates="exclude_first",
        unique=["id"],
        strict=True,
    )
    with reported() as said:
        said["failing"] = 0
        try:
            schema.validate(pd.read_parquet(file), lazy=True)
        except SchemaErrors as errors:
            cases = errors.failure_cases
            # A rule across columns is reported once for each of them.
            cases["column"] = cases["column"].where(cases["schema_context"] == "Column")
            said["failing"] = len(cases.drop_duplicates(["column", "check", "index"]))


if __name__ == "__main__":
    main()
