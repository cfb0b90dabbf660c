"""The embedded shop as its lifecycle meets it: who asks in a month, what became of them, and a mistake somebody makes.

Callers send what the champion's own feature query says of a customer at that moment; labels come from the simulated
label table, once they are known.
"""

import csv
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from random import Random

import pyarrow as pa
import pyarrow.compute as pc
import yaml

from deployments.errors import BadInputError
from deployments.spec import LoadedSpec
from platforms.platform import Platform
from platforms.snapshot import Snapshot
from tasks.champion import ChampionRef, trained_query
from tasks.features import build_at
from tasks.ingest import read_source
from tasks.simulated_callers import body_of

__all__ = ["customers_at", "skewed_spec", "true_labels", "write_labels"]

SCOPE = "events_last_90d"
"""The model is for customers with an event in the last 90 days, as its governance says; nobody asks about others."""

IN_WEEKS = {
    "  days_since_last_event,\n": "  days_since_last_event // 7 AS days_since_last_event,\n",
    "  CAST(total_events AS DOUBLE) / CAST(customer_tenure_days + 1 AS DOUBLE) AS avg_events_per_day,\n": (
        "  7 * CAST(total_events AS DOUBLE) / CAST(customer_tenure_days + 1 AS DOUBLE) AS avg_events_per_day,\n"
    ),
}
"""What somebody changes in `features.sql`: two columns that go by weeks, under the names that they had by days."""


def customers_at(
    platform: Platform, champion: ChampionRef, silver: Mapping[str, Snapshot], as_of: datetime, seed: int
) -> list[tuple[str, bytes]]:
    """The customers of a moment, in a seeded order, each with the request that their caller sends."""
    theirs = trained_query(platform, champion)
    built = build_at(theirs, platform, silver, as_of)
    if SCOPE in built.column_names:
        built = built.filter(pc.greater(built.column(SCOPE), 0))
    (key,) = theirs.spec.features.entity
    rows = built.select([key, *theirs.spec.features.columns]).to_pylist()
    Random(seed).shuffle(rows)
    return [(str(row[key]), body_of(row)) for row in rows]


def true_labels(loaded: LoadedSpec, platform: Platform, cutoff: datetime, known: datetime) -> dict[str, bool]:
    """What became of the customers of a cut-off, as far as it was known at a moment.

    Raises:
        BadInputError: the model has no label table, or nothing of that cut-off was known.
    """
    labels = loaded.spec.labels
    if labels is None or labels.known_at is None:
        raise BadInputError(f"{loaded.path}: labels: a life needs a label table with `known_at`")
    source, contract = loaded.spec.sources[labels.table], loaded.spec.contract[labels.table]
    stream = read_source(source, contract, platform, beside=loaded.path.parent, until=known)
    moment = pa.scalar(cutoff, pa.timestamp("us", "UTC"))
    (key,) = loaded.spec.features.entity
    found: dict[str, bool] = {}
    for batch in stream:
        of_cutoff = batch.filter(pc.equal(batch.column(labels.as_of), moment))
        values = (of_cutoff.column(name).to_pylist() for name in (key, loaded.spec.target.column))
        found.update(zip(*values, strict=True))
    if not found:
        raise BadInputError(f"{loaded.path}: no label of {cutoff:%Y-%m-%d} was known at {known:%Y-%m-%d}")
    return found


def write_labels(path: Path, asked: Mapping[str, str], labels: Mapping[str, bool]) -> int:
    """A file of labels by request, for `labels add`; how many it has."""
    path.parent.mkdir(parents=True, exist_ok=True)
    known = [(request, labels[customer]) for request, customer in asked.items() if customer in labels]
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["request_id", "label"])
        writer.writerows((request, str(label).lower()) for request, label in known)
    return len(known)


def skewed_spec(loaded: LoadedSpec, folder: Path, environment: str) -> Path:
    """A copy of the model, with its last candidate alone, whose `features.sql` goes by weeks where it went by days.

    Trained and evaluated on its own features it is as good as ever. Callers go on sending days, so what it is told
    online is not what it has learnt from: train/serve skew. Its owner is in a hurry as well: in the environment its
    release leaves the shadow out. Returns the path of its model.yaml.

    Raises:
        BadInputError: the query has no such lines by now.
    """
    assert loaded.sql is not None
    sql = loaded.sql
    for days, weeks in IN_WEEKS.items():
        if sql.count(days) != 1:
            raise BadInputError(
                f"{loaded.path.parent / 'features.sql'}: there is no single line {days.strip()!r}"
            )
        sql = sql.replace(days, weeks)
    spec = loaded.spec.model_dump(mode="json", by_alias=True, exclude_unset=True)
    del spec["training"]["candidates"][:-1]
    plans = spec.setdefault("release", {}).setdefault("environments", {})
    plans.setdefault(environment, {})["strategy"] = "canary"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "model.yaml"
    path.write_text(yaml.safe_dump(spec, sort_keys=False, allow_unicode=True), encoding="utf-8")
    query = folder / str(loaded.spec.features.sql)
    query.write_text(sql, encoding="utf-8")
    return path
