"""Features: what the query can see, and what it can never see."""

from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import pyarrow as pa
import pytest
import yaml

from deployments.errors import BadInputError
from deployments.spec import load_spec
from tasks.features import build_features, build_training_features, clock_of

NOW = datetime(2025, 6, 1, tzinfo=UTC)

SPEC = """
name: shop
governance: {owner: shop, purpose: Tell who buys again.}
target: {kind: binary, column: bought, positive: true}
sources:
  visits: {kind: delta, path: visits, time_column: seen}
  members: {kind: delta, path: members}
  labels: {kind: delta, path: labels}
contract:
  visits:
    columns:
      member: {type: string}
      pages: {type: integer}
      seen: {type: timestamp}
  members:
    columns:
      member: {type: string}
      city: {type: string}
  labels:
    columns:
      member: {type: string}
      as_of: {type: timestamp}
      bought: {type: boolean}
      known_at: {type: timestamp}
  features:
    columns:
      member: {type: string}
      visits: {type: integer}
      pages: {type: number}
features: {sql: features.sql, entity: [member], numeric: [visits, pages]}
labels: {table: labels, as_of: as_of, known_at: known_at, cutoffs: 3}
training:
  metric: roc_auc
  candidates: [{name: one, estimator: sklearn.linear_model.LogisticRegression}]
evaluation: {metrics: [roc_auc]}
gates: [{kind: metric, metric: roc_auc, min: 0.5}]
"""

QUERY = """
SELECT member, COUNT(*) AS visits, SUM(pages) AS pages  -- a comment; with a semicolon
FROM visits WHERE seen <= $as_of GROUP BY member;
"""
FORGETFUL = "SELECT member, COUNT(*) AS visits, SUM(pages) AS pages, $as_of AS at FROM visits GROUP BY member"

UTC_TIME = pa.timestamp("us", "UTC")


def days(*ago: float) -> list[datetime]:
    return [NOW - timedelta(days=some) for some in ago]


def visits(*rows: tuple[str, int, datetime]) -> pa.Table:
    names, pages, seen = zip(*rows, strict=True)
    return pa.table({"member": names, "pages": pages, "seen": pa.array(seen, UTC_TIME)})


def labels(*rows: tuple[str, datetime, bool, datetime]) -> pa.Table:
    names, as_of, bought, known = zip(*rows, strict=True)
    return pa.table(
        {
            "member": names,
            "as_of": pa.array(as_of, UTC_TIME),
            "bought": bought,
            "known_at": pa.array(known, UTC_TIME),
        }
    )


VISITS = visits(
    ("ada", 3, NOW - timedelta(days=40)),
    ("ada", 4, NOW - timedelta(days=20)),
    ("bob", 5, NOW - timedelta(days=35)),
    ("bob", 1, NOW),
)
MEMBERS = pa.table({"member": ["ada", "bob"], "city": ["Paris", "Oslo"]})
CUTOFF_A, CUTOFF_B = NOW - timedelta(days=30), NOW - timedelta(days=10)
LABELS = labels(
    ("ada", CUTOFF_A, True, NOW - timedelta(days=1)),
    ("bob", CUTOFF_A, False, NOW - timedelta(days=1)),
    ("ada", CUTOFF_B, False, NOW),
    ("bob", CUTOFF_B, True, NOW + timedelta(seconds=1)),
)


@pytest.fixture
def shop(tmp_path, platform):
    """Write a spec, its query and its silver tables; give what the feature builders take."""

    def make(
        query: str = QUERY, changes: dict[str, Any] | None = None, **tables: pa.Table
    ) -> tuple[Any, Any, Any]:
        document = yaml.safe_load(SPEC)
        for path, value in (changes or {}).items():
            *parents, last = path.split(".")
            place = document
            for parent in parents:
                place = place[parent]
            if value is None:
                del place[last]
            else:
                place[last] = value
        (tmp_path / "model.yaml").write_text(yaml.safe_dump(document, sort_keys=False))
        (tmp_path / "features.sql").write_text(query)
        loaded = load_spec(tmp_path / "model.yaml")
        known = {"visits": VISITS, "members": MEMBERS, "labels": LABELS} | tables
        silver = {
            name: platform.tables.write(f"silver/shop/{name}", known[name].to_reader())
            for name in loaded.spec.sources
        }
        return loaded, platform, silver

    return make


@pytest.fixture
def rows_of(platform):
    return lambda snapshot: platform.tables.read(snapshot).to_pylist()


# What the query sees ----------------------------------------------------------------------------------------


def test_features_are_of_everyone_known_at_the_moment_in_order(shop, rows_of):
    snapshot = build_features(*shop(), NOW)

    assert rows_of(snapshot) == [
        {"member": "ada", "visits": 2, "pages": 7.0},
        {"member": "bob", "visits": 2, "pages": 6.0},
    ]


@pytest.mark.parametrize("query", [QUERY, FORGETFUL], ids=["with its WHERE", "without"])
def test_planted_rows_of_the_future_never_change_features(shop, query):
    clean = build_features(*shop(query), NOW)

    planted = visits(
        *[tuple(row.values()) for row in VISITS.to_pylist()],
        ("ada", 999, NOW + timedelta(microseconds=1)),
        ("eve", 999, NOW + timedelta(days=300)),
    )

    assert build_features(*shop(query, visits=planted), NOW) == clean


@pytest.mark.parametrize("query", [QUERY, FORGETFUL], ids=["with its WHERE", "without"])
def test_planted_rows_of_the_future_never_change_training_features(shop, query):
    clean = build_training_features(*shop(query), NOW)

    planted = visits(
        *[tuple(row.values()) for row in VISITS.to_pylist()],
        ("ada", 999, CUTOFF_B + timedelta(hours=1)),
        ("bob", 999, NOW + timedelta(days=1)),
    )

    assert build_training_features(*shop(query, visits=planted), NOW) == clean


def test_a_row_without_a_time_was_never_known(shop, rows_of):
    timeless = pa.concat_tables(
        [VISITS, pa.table({"member": ["eve"], "pages": [1], "seen": pa.nulls(1, UTC_TIME)})]
    )

    rows = rows_of(build_features(*shop(FORGETFUL, visits=timeless), NOW))

    assert [row["member"] for row in rows] == ["ada", "bob"]


def test_what_is_dated_with_a_day_is_known_when_the_day_is_over(shop, rows_of):
    dated = pa.table(
        {"member": ["ada", "ada"], "pages": [1, 1], "seen": [date(2025, 5, 30), date(2025, 5, 31)]}
    )
    changes = {"contract.visits.columns.seen": {"type": "date"}}
    noon = datetime(2025, 5, 31, 12, tzinfo=UTC)

    counted = [
        rows_of(build_features(*shop(FORGETFUL, changes, visits=dated), moment))[0]["visits"]
        for moment in (noon, noon + timedelta(hours=12))
    ]

    assert counted == [1, 2]


def test_a_source_without_a_time_is_seen_whole(shop, rows_of):
    query = "SELECT member, 1 AS visits, length(city) AS pages, $as_of AS at FROM members"

    assert [row["pages"] for row in rows_of(build_features(*shop(query), NOW))] == [5.0, 4.0]


@pytest.mark.parametrize("name", ["labels", "silver", "loaded", "tables", "rows", "built", "LABELS"])
def test_the_query_sees_neither_the_labels_nor_the_program_around_it(shop, name):
    query = f"SELECT member, 1 AS visits, 2 AS pages, $as_of AS at FROM {name}"

    with pytest.raises(
        BadInputError, match=rf"features\.sql: Catalog Error: Table with name {name} does not exist"
    ):
        build_features(*shop(query), NOW)


def test_the_query_reads_no_files(shop):
    _, _, silver = shop()
    (file,) = Path(silver["labels"].uri).glob("*.parquet")
    query = f"SELECT member, 1 AS visits, 2 AS pages, $as_of AS at FROM '{file}'"

    with pytest.raises(BadInputError, match=r"features\.sql: Permission Error"):
        build_features(*shop(query), NOW)


@pytest.mark.parametrize("zone", ["UTC", "America/New_York", "Asia/Kolkata"])
def test_the_machines_time_zone_changes_nothing(shop, monkeypatch, zone):
    day = "CAST(epoch(date_trunc('day', MAX(seen))) AS BIGINT)"
    query = f"SELECT member, {day} AS visits, 0 AS pages, $as_of AS at FROM visits GROUP BY 1"
    monkeypatch.setenv("TZ", "UTC")
    expected = build_features(*shop(query), NOW)

    monkeypatch.setenv("TZ", zone)
    there = NOW.astimezone(ZoneInfo(zone))

    assert build_features(*shop(query), there) == expected


def test_the_same_rows_give_the_same_features_to_the_last_bit(shop):
    rows = 400_000
    many = pa.table(
        {
            "member": pa.array(["ada", "bob", "eve"]).take(pa.array(np.arange(rows) % 3)),
            "pages": np.random.default_rng(1).random(rows),
            "seen": pa.array([NOW] * rows, UTC_TIME),
        }
    )
    changes = {"contract.visits.columns.pages": {"type": "number"}}
    loaded, platform, silver = shop(QUERY, changes, visits=many)

    found = {build_features(loaded, platform, silver, NOW).version for _ in range(8)}

    assert found == {0}


# Queries that are wrong -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("SELEC $as_of", "Parser Error"),
        ("SELECT member, nothing, $as_of AS at FROM visits", "Binder Error: .*nothing"),
        ("SELECT member, $as_of AS at FROM visits", r"does not give visits, pages \(it gives member, at\)"),
        (
            "SELECT member, 'many' AS visits, 1 AS pages, $as_of AS at FROM members",
            "'visits' is of type string, and its values do not go into int64",
        ),
        (
            "SELECT member, 1.5::DOUBLE AS visits, 1 AS pages, $as_of AS at FROM members",
            "'visits' is of type double, and its values do not go into int64",
        ),
        ("SELECT member, CAST(member AS INT) AS visits, $as_of AS at FROM visits", "Conversion Error"),
        ("SET VARIABLE a = $as_of", "does not give member"),
    ],
)
def test_a_query_that_is_wrong_is_a_clear_error(shop, query, message):
    with pytest.raises(BadInputError, match=rf"features\.sql: .*{message}"):
        build_features(*shop(query), NOW)


def test_a_query_that_does_not_ask_for_the_moment_is_refused(shop):
    with pytest.raises(BadInputError, match=r"the query does not use \$as_of"):
        shop("SELECT 1")


# Labels -----------------------------------------------------------------------------------------------------


def test_training_features_are_joined_to_the_labels_of_each_cut_off(shop, rows_of):
    rows = rows_of(build_training_features(*shop(), NOW))

    assert rows == [
        {"member": "ada", "visits": 1, "pages": 3.0, "as_of": CUTOFF_A, "bought": True},
        {"member": "bob", "visits": 1, "pages": 5.0, "as_of": CUTOFF_A, "bought": False},
        {"member": "ada", "visits": 2, "pages": 7.0, "as_of": CUTOFF_B, "bought": False},
    ]


def test_a_label_that_was_not_yet_known_is_not_used(shop, rows_of):
    before = rows_of(build_training_features(*shop(), NOW - timedelta(days=1)))
    later = rows_of(build_training_features(*shop(), NOW + timedelta(seconds=1)))

    assert {row["as_of"] for row in before} == {CUTOFF_A}
    assert [(row["member"], row["as_of"]) for row in later][-1] == ("bob", CUTOFF_B)


def test_a_label_for_a_moment_that_is_still_to_come_is_not_used(shop, rows_of):
    early = labels(
        ("ada", CUTOFF_A, True, NOW - timedelta(days=1)),
        ("bob", CUTOFF_A, False, NOW - timedelta(days=1)),
        ("ada", NOW + timedelta(days=5), True, NOW - timedelta(days=1)),
    )

    rows = rows_of(build_training_features(*shop(labels=early), NOW))

    assert {row["as_of"] for row in rows} == {CUTOFF_A}


def test_only_the_latest_cut_offs_are_used(shop, rows_of):
    moments = days(38, 33, 28, 23, 18)
    many = labels(*[("ada", moment, True, moment + timedelta(days=1)) for moment in moments])

    rows = rows_of(build_training_features(*shop(labels=many), NOW))

    assert [row["as_of"] for row in rows] == moments[2:]


def test_labels_dated_with_days_are_known_when_the_day_is_over(shop, rows_of):
    dated = pa.table(
        {
            "member": ["ada", "ada"],
            "as_of": [date(2025, 5, 1), date(2025, 5, 20)],
            "bought": [True, False],
            "known_at": [date(2025, 5, 10), date(2025, 6, 1)],
        }
    )
    changes = {
        "contract.labels.columns.as_of": {"type": "date"},
        "contract.labels.columns.known_at": {"type": "date"},
    }

    rows = rows_of(build_training_features(*shop(changes=changes, labels=dated), NOW))

    assert [row["as_of"] for row in rows] == [datetime(2025, 5, 1, tzinfo=UTC)]


def test_without_any_known_label_there_is_nothing_to_train_on(shop):
    with pytest.raises(BadInputError, match="labels: none was known at 2025-01-01 00:00 UTC"):
        build_training_features(*shop(), datetime(2025, 1, 1, tzinfo=UTC))


def test_labels_of_others_than_those_with_features_are_a_clear_error(shop):
    strangers = labels(("eve", CUTOFF_A, True, NOW))

    with pytest.raises(BadInputError, match="none of them is of an entity that has features"):
        build_training_features(*shop(labels=strangers), NOW)


def test_a_query_that_gives_the_cut_off_itself_does_not_give_it_twice(shop, rows_of):
    query = "SELECT member, 1 AS visits, 1 AS pages, $as_of AS as_of FROM visits GROUP BY member"
    changes = {"contract.features.columns.as_of": {"type": "timestamp"}}

    rows = rows_of(build_training_features(*shop(query, changes), NOW))

    assert list(rows[0]) == ["member", "visits", "pages", "as_of", "bought"]
    assert {row["as_of"] for row in rows} == {CUTOFF_A, CUTOFF_B}


# Without a query --------------------------------------------------------------------------------------------

ONE_TABLE = {
    "sources": {"visits": {"kind": "delta", "path": "visits"}},
    "contract": {
        "visits": {
            "columns": {
                "member": {"type": "string"},
                "pages": {"type": "integer"},
                "seen": {"type": "timestamp"},
                "bought": {"type": "boolean"},
            }
        }
    },
    "features": {"entity": ["member"], "numeric": ["pages"]},
    "labels": None,
}
OUTCOMES = VISITS.append_column("bought", pa.array([True, False, True, False]))


def test_without_a_query_the_source_is_the_feature_table(shop):
    loaded, platform, silver = shop(changes=ONE_TABLE, visits=OUTCOMES)

    assert build_training_features(loaded, platform, silver, NOW) == silver["visits"]
    assert build_features(loaded, platform, silver, NOW) == silver["visits"]


def test_without_a_query_rows_of_the_future_are_left_out_all_the_same(shop, rows_of):
    changes = ONE_TABLE | {"sources": {"visits": {"kind": "delta", "path": "visits", "time_column": "seen"}}}
    loaded, platform, silver = shop(changes=changes, visits=OUTCOMES)

    whole = build_training_features(loaded, platform, silver, NOW)
    earlier = build_training_features(loaded, platform, silver, NOW - timedelta(days=30))

    assert whole == silver["visits"]
    assert [row["seen"] for row in rows_of(earlier)] == days(40, 35)
    with pytest.raises(BadInputError, match="no row of visits was known at 2024-01-01"):
        build_training_features(loaded, platform, silver, datetime(2024, 1, 1, tzinfo=UTC))


# The clock --------------------------------------------------------------------------------------------------


def test_the_moment_asked_for_goes_before_the_specs_and_that_before_now(shop):
    fixed, _, _ = shop(changes={"clock": "2025-03-01T02:00:00+02:00"})
    real, _, _ = shop()

    assert clock_of(fixed, NOW) == NOW
    assert clock_of(fixed, None) == datetime(2025, 3, 1, tzinfo=UTC)
    assert abs(clock_of(real, None) - datetime.now(UTC)) < timedelta(minutes=1)
    assert clock_of(real, NOW.replace(tzinfo=None)) == NOW


def test_features_leave_no_scratch_behind(shop):
    loaded, platform, silver = shop()

    build_training_features(loaded, platform, silver, NOW)

    assert list(platform.folder("scratch").iterdir()) == []
