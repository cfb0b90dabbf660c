"""The embedded data: reproducible, honest about the future, and neither trivial nor hopeless to learn."""

import hashlib
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import sqlglot
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.metrics import roc_auc_score
from sqlglot import exp

import deployments.models.churn.simulator as churn
import deployments.models.claims.simulator as claims

ROOT = Path(churn.__file__).parents[3]
FEATURES_SQL = Path(churn.__file__).with_name("features.sql").read_text(encoding="utf-8")
FEATURE_TYPES = {
    "customer_id": pa.string(),
    "total_events": pa.int64(),
    "total_sessions": pa.int64(),
    "distinct_products": pa.int64(),
    "events_last_30d": pa.int64(),
    "events_last_90d": pa.int64(),
    "days_since_last_event": pa.int64(),
    "customer_tenure_days": pa.int64(),
    "avg_events_per_day": pa.float64(),
    "recency_tier": pa.string(),
    "engagement_score": pa.float64(),
}
NUMERIC_FEATURES = [name for name, kind in FEATURE_TYPES.items() if kind != pa.string()]
AS_OF = datetime(2025, 4, 1, tzinfo=UTC)

Simulate = Callable[..., pa.RecordBatchReader]


def digest(table: pa.Table) -> str:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table.combine_chunks())
    return hashlib.sha256(sink.getvalue()).hexdigest()


def features(events: pa.Table, as_of: datetime, time_zone: str = "UTC") -> pa.Table:
    with duckdb.connect() as connection:
        connection.execute(f"SET TimeZone = '{time_zone}'")
        connection.register("events", events)
        return connection.sql(FEATURES_SQL, params={"as_of": as_of}).to_arrow_table()


def history(*times: datetime, customer: str = "C0000001") -> pa.Table:
    """One customer's views at `times`, each in a session of its own, on three products in turn."""
    rows = [
        {
            "event_id": f"E{n:010d}",
            "customer_id": customer,
            "session_id": f"S{n:09d}",
            "product_id": f"P{n % 3:03d}",
            "event_type": "view",
            "amount": 0.0,
            "event_time": time,
        }
        for n, time in enumerate(times)
    ]
    return pa.Table.from_pylist(rows, schema=churn.EVENTS_SCHEMA)


@pytest.fixture(scope="module")
def events() -> pa.Table:
    return churn.simulate("events", seed=11, customers=300, end="2025-06-30").read_all()


@pytest.fixture(scope="module")
def labels() -> pa.Table:
    return churn.simulate("labels", seed=11, customers=300, end="2025-06-30").read_all()


@pytest.fixture(scope="module")
def examples() -> pd.DataFrame:
    """Every label of the default scenario with its features at the cut-off."""
    everything = churn.simulate("events", seed=7).read_all()
    labels: pd.DataFrame = churn.simulate("labels", seed=7).read_all().to_pandas()
    known = [
        features(everything, as_of.to_pydatetime()).to_pandas().assign(as_of=as_of)
        for as_of in labels["as_of"].unique()
    ]
    return labels.merge(pd.concat(known), on=["customer_id", "as_of"], how="left", validate="one_to_one")


@pytest.fixture(scope="module")
def book() -> pa.Table:
    return claims.simulate("claims", seed=7).read_all()


@pytest.mark.parametrize(
    ("simulate", "table", "options"),
    [
        (churn.simulate, "events", {"customers": 200}),
        (churn.simulate, "labels", {"customers": 200}),
        (claims.simulate, "claims", {"claims": 2_000}),
    ],
)
def test_the_same_arguments_give_the_same_table_in_a_fresh_process(
    simulate: Simulate, table: str, options: dict[str, Any]
) -> None:
    here = simulate(table, seed=5, **options).read_all()

    script = f"""
import hashlib, pyarrow as pa
from {simulate.__module__} import simulate
table = simulate({table!r}, seed=5, **{options!r}).read_all()
sink = pa.BufferOutputStream()
with pa.ipc.new_stream(sink, table.schema) as writer:
    writer.write_table(table.combine_chunks())
print(hashlib.sha256(sink.getvalue()).hexdigest())
"""
    there = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.strip()

    assert there == digest(here)
    assert digest(simulate(table, seed=6, **options).read_all()) != digest(here)


@pytest.mark.parametrize("table", ["events", "labels"])
def test_a_later_end_adds_rows_and_changes_none(table: str) -> None:
    shorter = churn.simulate(table, seed=3, customers=333, end="2025-05-17").read_all()

    longer = churn.simulate(table, seed=3, customers=333, end="2025-08-02").read_all()

    assert len(longer) > len(shorter) > 0
    assert longer.slice(0, len(shorter)).equals(shorter)


@pytest.mark.parametrize(
    ("simulate", "table", "options"),
    [
        (churn.simulate, "events", {"customers": 1_500}),
        (claims.simulate, "claims", {"claims": 2 * 65_536 + 1}),
    ],
)
def test_a_table_streams_in_batches_of_65536_rows(
    simulate: Simulate, table: str, options: dict[str, Any]
) -> None:
    reader = simulate(table, seed=1, **options)

    sizes = [len(batch) for batch in reader]

    assert len(sizes) > 1
    assert set(sizes[:-1]) == {65_536}
    assert 0 < sizes[-1] <= 65_536


def test_the_smallest_scenarios_keep_the_schema() -> None:
    a_day = {"customers": 1, "start": "2025-01-01", "end": "2025-01-01"}

    assert churn.simulate("events", seed=0, **a_day).read_all().schema == churn.EVENTS_SCHEMA
    assert churn.simulate("labels", seed=0, **a_day).read_all().schema == churn.LABELS_SCHEMA
    assert len(claims.simulate("claims", seed=0, claims=1).read_all()) == 1


def test_events_are_unique_ordered_and_within_the_scenario(events: pa.Table) -> None:
    frame = events.to_pandas()

    assert events.schema == churn.EVENTS_SCHEMA
    assert not any(column.null_count for column in events.columns)
    assert frame["event_id"].is_unique
    assert frame[["event_time", "event_id"]].apply(tuple, axis=1).is_monotonic_increasing
    assert frame["event_time"].min() >= pd.Timestamp("2025-01-01", tz="UTC")
    assert frame["event_time"].max() < pd.Timestamp("2025-07-01", tz="UTC")
    assert frame["customer_id"].str.fullmatch(r"C\d{7}").all()
    assert set(frame["event_type"]) == {"view", "cart", "purchase", "support"}


def test_only_purchases_have_an_amount_and_each_buys_what_was_put_in_the_cart(events: pa.Table) -> None:
    frame = events.to_pandas().sort_values(["session_id", "event_time", "event_id"])
    bought = frame["event_type"] == "purchase"

    before = frame.groupby("session_id")[["event_type", "product_id", "customer_id"]].shift(1)[bought]

    assert (frame["amount"] > 0).equals(bought)
    assert (before["event_type"] == "cart").all()
    assert (before["product_id"] == frame.loc[bought, "product_id"]).all()
    assert (before["customer_id"] == frame.loc[bought, "customer_id"]).all()


def test_a_few_products_draw_most_of_the_interest(events: pa.Table) -> None:
    share = events.to_pandas()["product_id"].value_counts(normalize=True)

    assert len(share) == 40
    assert share.iloc[:8].sum() > 0.4


def test_labels_follow_from_the_events_alone(events: pa.Table, labels: pa.Table) -> None:
    times: dict[str, list[datetime]] = {}
    for customer, time in zip(
        events["customer_id"].to_pylist(), events["event_time"].to_pylist(), strict=True
    ):
        times.setdefault(customer, []).append(time)
    cut_offs = [datetime(2025, month, 1, tzinfo=UTC) for month in range(2, 6)]

    expected = {
        (customer, as_of): not any(as_of < time <= as_of + timedelta(days=30) for time in seen)
        for customer, seen in times.items()
        for as_of in cut_offs
        if any(as_of - timedelta(days=90) < time <= as_of for time in seen)
    }

    rows = labels.to_pylist()
    assert labels.schema == churn.LABELS_SCHEMA
    assert {(row["customer_id"], row["as_of"]): row["churned"] for row in rows} == expected
    assert len(rows) == len(expected)
    assert all(row["known_at"] == row["as_of"] + timedelta(days=30) for row in rows)


def test_a_label_waits_until_its_outcome_is_known() -> None:
    def last_cut_off(end: str) -> Any:
        known = churn.simulate("labels", seed=2, customers=50, inactivity_days=14, end=end).read_all()
        return max(known["as_of"].to_pylist())

    assert last_cut_off("2025-04-14") == datetime(2025, 3, 1, tzinfo=UTC)
    assert last_cut_off("2025-04-15") == datetime(2025, 4, 1, tzinfo=UTC)


def test_the_default_scenario_is_of_the_promised_size(examples: pd.DataFrame) -> None:
    events = sum(len(batch) for batch in churn.simulate("events", seed=7))

    assert 150_000 < events < 350_000
    assert examples["as_of"].nunique() >= 6
    assert 0.10 < examples["churned"].mean() < 0.25


def test_churn_can_be_learnt_from_the_past_but_no_feature_gives_it_away(examples: pd.DataFrame) -> None:
    last = examples["as_of"].max()
    past, holdout = examples[examples["as_of"] < last], examples[examples["as_of"] == last]

    model = HistGradientBoostingClassifier(learning_rate=0.05, random_state=0)
    model.fit(past[NUMERIC_FEATURES], past["churned"])
    auc = roc_auc_score(holdout["churned"], model.predict_proba(holdout[NUMERIC_FEATURES])[:, 1])
    alone = [roc_auc_score(holdout["churned"], holdout[name]) for name in NUMERIC_FEATURES]

    assert 0.80 < auc < 0.90
    assert max(max(score, 1 - score) for score in alone) < 0.88


def test_every_label_has_features(examples: pd.DataFrame) -> None:
    assert not examples.isna().any().any()
    assert (examples["events_last_90d"] > 0).all()
    assert examples["engagement_score"].between(0, 100).all()


def test_features_are_one_typed_row_a_customer(events: pa.Table) -> None:
    table = features(events, AS_OF)

    seen = events.filter(pc.less_equal(events["event_time"], pa.scalar(AS_OF)))
    assert dict(zip(table.schema.names, table.schema.types, strict=True)) == FEATURE_TYPES
    assert table["customer_id"].to_pylist() == sorted(set(seen["customer_id"].to_pylist()))


def test_features_count_elapsed_days_and_open_windows() -> None:
    times = [AS_OF - timedelta(days=days) for days in (100, 90, 89, 30, 29, 12.5)] + [
        AS_OF - timedelta(days=12)
    ]

    (row,) = features(history(*times), AS_OF).to_pylist()

    assert row == {
        "customer_id": "C0000001",
        "total_events": 7,
        "total_sessions": 7,
        "distinct_products": 3,
        "events_last_30d": 3,
        "events_last_90d": 5,
        "days_since_last_event": 12,
        "customer_tenure_days": 100,
        "avg_events_per_day": pytest.approx(7 / 101),
        "recency_tier": "recent",
        "engagement_score": pytest.approx(100 * (0.5 * 30 / 42 + 0.3 * 3 / 13 + 0.2 * 3 / 13)),
    }


@pytest.mark.parametrize(
    ("days", "tier"),
    [
        (0, "active"),
        (7, "active"),
        (8, "recent"),
        (30, "recent"),
        (31, "lapsing"),
        (90, "lapsing"),
        (91, "dormant"),
    ],
)
def test_the_recency_tier_follows_the_days_since_the_last_event(days: int, tier: str) -> None:
    table = features(history(AS_OF - timedelta(days=days)), AS_OF)

    assert table["recency_tier"].to_pylist() == [tier]


def test_rows_from_the_future_change_no_feature(events: pa.Table) -> None:
    past = events.filter(pc.less_equal(events["event_time"], pa.scalar(AS_OF)))
    planted = history(AS_OF + timedelta(microseconds=1), AS_OF + timedelta(days=400), customer="C0000009")
    stranger = history(AS_OF + timedelta(days=1), customer="C9999999")

    table = features(pa.concat_tables([stranger, events, planted]), AS_OF)

    assert table.equals(features(past, AS_OF))


@pytest.mark.parametrize("time_zone", ["America/New_York", "Asia/Kathmandu", "Australia/Lord_Howe"])
def test_features_do_not_depend_on_the_time_zone_of_the_session(time_zone: str) -> None:
    # New York put its clocks forward on 9 March 2025, so a calendar day in both windows had 23 hours there.
    every_half_hour = history(*(AS_OF - timedelta(minutes=30 * n) for n in range(48 * 95)))

    table = features(every_half_hour, AS_OF, time_zone)

    assert table.equals(features(every_half_hour, AS_OF))
    assert table["events_last_30d"].to_pylist() == [48 * 30]
    assert table["events_last_90d"].to_pylist() == [48 * 90]


def test_the_features_translate_to_databricks() -> None:
    (translated,) = sqlglot.transpile(FEATURES_SQL, read="duckdb", write="databricks")

    tree = sqlglot.parse_one(translated, read="databricks")
    assert isinstance(tree, exp.Select)
    assert tree.named_selects == list(FEATURE_TYPES)
    assert [table.name for table in tree.find_all(exp.Table) if table.name not in {"history", "aged"}] == [
        "events"
    ]
    # A function that sqlglot does not know is handed through as it is, and fails only over there.
    assert not list(tree.find_all(exp.Anonymous))
    assert "EPOCH" not in translated
    assert ":as_of" in translated


@pytest.mark.parametrize(
    ("simulate", "table", "options", "sentence"),
    [
        (churn.simulate, "orders", {}, "unknown table 'orders'; the churn simulator has events, labels"),
        (churn.simulate, "events", {"custmers": 5}, "unknown option 'custmers'; .* knows customers, start"),
        (churn.simulate, "events", {"customers": 0}, "`customers` must be a whole number from 1 to"),
        (churn.simulate, "events", {"customers": 2.5}, "`customers` must be a whole number"),
        (churn.simulate, "events", {"customers": True}, "`customers` must be a whole number"),
        (churn.simulate, "labels", {"inactivity_days": -1}, "`inactivity_days` must be a whole number"),
        (churn.simulate, "events", {"products": "many"}, "`products` must be a whole number"),
        (churn.simulate, "events", {"sessions_per_week": float("nan")}, "`sessions_per_week` must be a num"),
        (churn.simulate, "events", {"start": "01/02/2025"}, "`start` must be a day such as 2025-01-01"),
        (churn.simulate, "events", {"end": datetime(2025, 1, 1, tzinfo=UTC)}, "`end` must be a day from"),
        (churn.simulate, "events", {"start": "2025-02-01", "end": "2025-01-31"}, "lies before `start`"),
        (churn.simulate, "events", {"seed": -1}, "`seed` must be a whole number"),
        (claims.simulate, "members", {}, "unknown table 'members'; the claims simulator has claims"),
        (claims.simulate, "claims", {"rows": 5}, "unknown option 'rows'; .* knows claims, start, end"),
        (claims.simulate, "claims", {"claims": 0}, "`claims` must be a whole number from 1 to"),
        (claims.simulate, "claims", {"start": "soon"}, "`start` must be a day such as 2025-01-01"),
        (claims.simulate, "claims", {"end": "2024-12-31"}, "lies before `start`"),
        (claims.simulate, "claims", {"seed": "x"}, "`seed` must be a whole number"),
    ],
)
def test_nonsense_is_refused_at_once_with_a_sentence(
    simulate: Simulate, table: str, options: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence):
        simulate(table, **{"seed": 1, **options})


def test_a_day_may_be_a_date_or_its_text() -> None:
    texts = claims.simulate("claims", seed=1, claims=50, start="2025-02-03", end="2025-02-05").read_all()

    days = {"start": pd.Timestamp("2025-02-03").date(), "end": pd.Timestamp("2025-02-05").date()}
    dates = claims.simulate("claims", seed=1, claims=50, **days).read_all()

    assert dates.equals(texts)


def test_claims_are_well_formed_and_in_order_of_receipt(book: pa.Table) -> None:
    frame = book.to_pandas()

    assert book.schema == claims.CLAIMS_SCHEMA
    assert len(frame) == 12_000
    assert frame["claim_id"].is_unique
    assert frame[["received_date", "claim_id"]].apply(tuple, axis=1).is_monotonic_increasing
    assert frame["received_date"].between("2025-01-01 00:00+00:00", "2025-12-31 00:00+00:00").all()
    patterns = {
        "claim_id": r"CLM-\d{7}",
        "national_id": r"\d{3}-\d{2}-\d{4}",
        "member_id": r"M\d{6}",
        "provider_id": r"PRV-\d{4}",
        "diagnosis_code": r"[A-Z]\d{2}(\.\d)?",
    }
    for column, pattern in patterns.items():
        assert frame[column].str.fullmatch(pattern).all(), column
    levels = {"sex": 2, "age_band": 4, "region": 5, "plan": 4, "provider_specialty": 8, "diagnosis_code": 60}
    assert frame[list(levels)].nunique().to_dict() == levels


def test_the_facts_of_a_claim_agree_with_each_other(book: pa.Table) -> None:
    frame = book.to_pandas()
    days = (frame["received_date"] - frame["service_date"]).dt.days

    assert (days == frame["days_to_submit"]).all()
    assert (days >= 0).all()
    assert frame["paid_amount"].between(0, frame["billed_amount"]).all()
    assert (frame["procedure_count"] >= 1).all()
    assert (frame.groupby("diagnosis_code")["provider_specialty"].nunique() == 1).all()
    assert (frame.groupby("provider_id")[["provider_specialty", "in_network"]].nunique() == 1).all().all()


def test_a_member_is_one_person_with_a_number_that_is_never_issued(book: pa.Table) -> None:
    frame = book.to_pandas()
    person = ["member_name", "national_id", "sex", "age_band", "region", "plan"]

    assert (frame.groupby("member_id")[person].nunique() == 1).all().all()
    assert frame["national_id"].nunique() == frame["member_id"].nunique()
    assert frame["national_id"].str.fullmatch(r"9\d\d-[0-4]\d-\d{4}").all()
    assert not frame["national_id"].str.contains("-00-|-0000", regex=True).any()


def test_review_can_be_learnt_and_falls_evenly_on_sexes_and_ages(book: pa.Table) -> None:
    frame = book.to_pandas()
    personal = ["claim_id", "member_name", "national_id", "member_id", "provider_id"]
    inputs = frame.drop(columns=[*personal, "service_date", "received_date", "needs_review"])
    text = inputs.select_dtypes(exclude=["number", "bool"]).columns
    inputs = inputs.astype(dict.fromkeys(text, "category"))
    held_out = np.arange(len(frame)) >= 9_000

    model = HistGradientBoostingClassifier(learning_rate=0.05, random_state=0)
    model.fit(inputs[~held_out], frame["needs_review"][~held_out])
    score = pd.Series(model.predict_proba(inputs[held_out])[:, 1], index=frame.index[held_out])

    assert 0.17 < frame["needs_review"].mean() < 0.23
    assert 0.80 < roc_auc_score(frame["needs_review"][held_out], score) < 0.92
    for threshold in (0.5, score.quantile(0.8)):
        chosen = score >= threshold
        by_sex = chosen.groupby(frame["sex"][held_out]).mean()
        by_age = chosen.groupby(frame["age_band"][held_out]).mean()
        assert by_sex.max() - by_sex.min() < 0.1
        assert by_age.max() - by_age.min() < 0.15
