"""The shop's declared changes: what comes before them stays, and each changes what its name says and nothing else."""

import hashlib
from datetime import UTC, datetime
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import deployments.models.churn.simulator as churn
import deployments.models.claims.simulator as claims
from deployments.models.churn.changes import KINDS, Change, today

FEATURES_SQL = Path(churn.__file__).with_name("features.sql").read_text(encoding="utf-8")
BEHAVIOUR = ["events_last_30d", "events_last_90d", "days_since_last_event", "avg_events_per_day"]
CHANGED = "2025-06-02"
DECLARED = {
    "channel": {"size": 3},
    "growth": {"size": 2},
    "price": {"size": 0.5},
    "outage": {"size": 0.9, "over_days": 10},
    "season": {"size": 1.0, "over_days": 30},
    "churn_concept": {"size": 0.8},
}


def shop(table="events", seed=5, customers=600, until=(2025, 9, 1), **options):
    moment = datetime(*until, tzinfo=UTC)
    return churn.simulate(table, seed=seed, customers=customers, until=moment, **options).read_all()


def changed(kind, day=CHANGED, **named):
    return [{"kind": kind, "day": day, **DECLARED[kind], **named}]


def before(table, day=CHANGED):
    column = "event_time" if "event_time" in table.schema.names else "known_at"
    moment = pa.scalar(datetime.fromisoformat(day).replace(tzinfo=UTC), pa.timestamp("us", "UTC"))
    return table.filter(pc.less(table[column], moment))


def daily(table):
    days = pd.Series(table["event_time"].to_pandas().dt.date)
    return days.value_counts().sort_index()


def mean_between(table, begin, end):
    counted = daily(table)
    return counted[
        (counted.index >= pd.Timestamp(begin).date()) & (counted.index < pd.Timestamp(end).date())
    ].mean()


def digest(table):
    return hashlib.sha256(repr(table.to_pylist()).encode()).hexdigest()


def features(events, as_of):
    with duckdb.connect() as connection:
        connection.execute("SET TimeZone = 'UTC'")
        connection.register("events", events)
        found = connection.sql(FEATURES_SQL, params={"as_of": as_of}).df()
    return found[found["events_last_90d"] > 0].assign(as_of=pd.Timestamp(as_of))


def test_without_changes_the_shop_is_what_it_was_before_there_were_any():
    # Digests of the simulator's first release.
    events = churn.simulate("events", seed=3, customers=333, end="2025-05-17").read_all()
    labels = churn.simulate("labels", seed=3, customers=333, end="2025-05-17").read_all()

    assert digest(events) == "bcd74fbe5ce99b7322075389e4938d51a94eb6a64d1e032467b55db4ee3adf97"
    assert digest(labels) == "f889faa6a7cc608fad2efcb3060464b503f697c7381ddc7a588210ed64dc7456"


@pytest.mark.parametrize("table", ["events", "labels"])
def test_until_the_end_of_a_year_is_that_year(table):
    whole = churn.simulate(table, seed=3, customers=333).read_all()

    assert shop(table, seed=3, customers=333, until=(2026, 1, 1)).equals(whole)


@pytest.mark.parametrize("table", ["events", "labels"])
def test_a_later_moment_adds_rows_and_changes_none(table):
    changes = [one for kind in DECLARED for one in changed(kind)]

    earlier = shop(table, until=(2025, 7, 20, 13, 30), changes=changes)
    later = shop(table, changes=changes)

    assert 0 < len(earlier) < len(later)
    assert later.slice(0, len(earlier)).equals(earlier)
    assert before(earlier, "2025-07-21").equals(earlier)


def test_an_end_that_is_declared_holds_whatever_the_moment():
    declared = churn.simulate("events", seed=5, customers=100, end="2025-03-31").read_all()

    assert shop(customers=100, end="2025-03-31").equals(declared)


@pytest.mark.parametrize("table", ["events", "labels"])
@pytest.mark.parametrize("kind", list(KINDS))
def test_what_comes_before_a_change_is_as_without_it(kind, table):
    plain, other = shop(table), shop(table, changes=changed(kind))

    assert before(plain).equals(before(other))
    assert not plain.equals(other)


@pytest.mark.parametrize("kind", list(KINDS))
def test_a_change_that_is_to_come_changes_nothing(kind):
    assert shop(until=(2025, 6, 2), changes=changed(kind)).equals(shop(until=(2025, 6, 2)))


def test_a_channel_brings_customers_who_visit_more():
    plain, other = shop(), shop(changes=changed("channel"))

    known = set(plain["customer_id"].to_pylist())
    assert len(set(other["customer_id"].to_pylist()) - known) > 100
    assert mean_between(other, "2025-08-01", "2025-09-01") > 1.4 * mean_between(
        plain, "2025-08-01", "2025-09-01"
    )


def test_growth_brings_customers_of_the_same_kind():
    new = [
        table.to_pandas().groupby("customer_id")["event_time"].agg(["min", "size"])
        for table in (
            shop(customers=1500),
            shop(customers=1500, changes=changed("growth")),
            shop(customers=1500, changes=changed("channel", size=2)),
        )
    ]
    begin = pd.Timestamp("2025-07-01", tz="UTC")
    plain, grown, channel = (found[found["min"] >= begin]["size"] for found in new)

    assert len(grown) > 1.5 * len(plain)
    assert grown.mean() < 1.4 * plain.mean() < channel.mean()


def test_a_price_change_raises_amounts_and_keeps_customers_away():
    plain, other = shop().to_pandas(), shop(changes=changed("price")).to_pandas()
    bought = [
        table[(table["amount"] > 0) & (table["event_time"] >= pd.Timestamp(CHANGED, tz="UTC"))]
        for table in (plain, other)
    ]

    assert bought[1]["amount"].mean() == pytest.approx(1.5 * bought[0]["amount"].mean(), rel=0.15)
    assert len(bought[1]) < 0.6 * len(bought[0])
    visits = [
        mean_between(table, "2025-08-01", "2025-09-01") for table in (shop(), shop(changes=changed("price")))
    ]
    assert visits[1] < 0.75 * visits[0]


def test_an_outage_lasts_as_long_as_declared():
    plain, other = (
        daily(shop()),
        daily(shop(changes=changed("outage"))).reindex(daily(shop()).index, fill_value=0),
    )
    share = other / plain
    days = pd.to_datetime(share.index)

    during = share[(days >= "2025-06-02") & (days < "2025-06-12")]
    after = share[days >= "2025-06-13"]
    assert during.mean() < 0.25
    assert after.mean() > 0.9


def test_a_season_comes_and_goes():
    plain, other = shop(), shop(changes=changed("season"))

    ratio = [
        mean_between(other, *span) / mean_between(plain, *span)
        for span in (("2025-06-02", "2025-06-05"), ("2025-06-13", "2025-06-21"), ("2025-07-05", "2025-08-20"))
    ]
    assert ratio[1] > 1.6 > 1.25 > ratio[0]
    assert ratio[2] == pytest.approx(1, abs=0.1)


def test_a_gradual_change_grows_day_by_day():
    abrupt = Change("price", pd.Timestamp("2025-06-02").date(), 0.5)
    gradual = Change("price", pd.Timestamp("2025-06-02").date(), 0.5, over_days=29)

    def progress(change, day):
        return change.progress(pd.Timestamp(day).date())

    assert [progress(abrupt, day) for day in ("2025-06-01", "2025-06-02")] == [0, 1]
    assert progress(gradual, "2025-06-01") == 0
    assert progress(gradual, "2025-06-16") == pytest.approx(0.5)
    assert progress(gradual, "2025-07-01") == progress(gradual, "2025-08-01") == 1
    assert today([gradual], pd.Timestamp("2025-06-16").date()).prices == pytest.approx(1.25)


@pytest.mark.slow
def test_concept_drift_leaves_behaviour_alone_and_makes_it_say_less():
    moments = [datetime(2025, month, 1, tzinfo=UTC) for month in (3, 4, 5, 6)]
    drift = changed("churn_concept", day="2025-06-01", size=1.0)
    found = {}
    for name, changes in (("plain", []), ("concept", drift)):
        events = shop(customers=3000, changes=changes)
        labels = shop("labels", customers=3000, changes=changes).to_pandas()
        labels["as_of"] = labels["as_of"].dt.as_unit("us")
        rows = pd.concat(
            [features(events, moment) for moment in [*moments, datetime(2025, 7, 1, tzinfo=UTC)]]
        )
        rows["as_of"] = rows["as_of"].dt.as_unit("us")
        found[name] = rows.merge(labels, on=["customer_id", "as_of"])
    past = found["plain"][found["plain"]["as_of"] < pd.Timestamp(moments[-1])]
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=500))
    model.fit(np.log1p(past[BEHAVIOUR]), past["churned"])

    def at(name, day):
        rows = found[name][found[name]["as_of"] == pd.Timestamp(day, tz="UTC")]
        scores = model.predict_proba(np.log1p(rows[BEHAVIOUR]))[:, 1]
        return rows, roc_auc_score(rows["churned"], scores)

    plain, concept = at("plain", "2025-06-01"), at("concept", "2025-06-01")
    assert plain[0][BEHAVIOUR].reset_index(drop=True).equals(concept[0][BEHAVIOUR].reset_index(drop=True))
    assert concept[0]["churned"].mean() == pytest.approx(plain[0]["churned"].mean(), abs=0.03)
    assert concept[1] < plain[1] - 0.08
    later, later_concept = at("plain", "2025-07-01"), at("concept", "2025-07-01")
    assert later_concept[1] < later[1] - 0.06
    for column in BEHAVIOUR:
        deciles = later[0][column].quantile([0.25, 0.5, 0.75]).to_numpy()
        there = later_concept[0][column].quantile([0.25, 0.5, 0.75]).to_numpy()
        assert np.abs(deciles - there).max() < 0.2 * later[0][column].std(), column


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ("more", "`changes` must be a list"),
        (["more"], "each is a mapping"),
        ([{"kind": "price", "size": 1}], "'day' is missing"),
        ([{"kind": "price", "day": "soon", "size": 1}], "must be a day such as"),
        ([{"kind": "price", "day": "2025-06-02", "size": 1, "over": 3}], "unknown key 'over'"),
        ([{"kind": "prise", "day": "2025-06-02", "size": 1}], "no change of kind 'prise' .known: channel"),
        ([{"kind": "outage", "day": "2025-06-02", "size": 0.5}], "`over_days` must be a whole number from 1"),
        ([{"kind": "outage", "day": "2025-06-02", "size": 1.5, "over_days": 2}], "from 0 to 1, not 1.5"),
        ([{"kind": "price", "day": "2025-06-02", "size": float("nan")}], "`size` must be a number"),
        ([{"kind": "price", "day": "2025-06-02", "size": True}], "`size` must be a number"),
        ([{"kind": "price", "day": "2024-06-02", "size": 0.2}], "lies before `start`"),
    ],
)
def test_a_change_that_makes_no_sense_is_refused_with_a_sentence(changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        churn.simulate("events", seed=1, changes=changes)


def test_more_customers_than_there_are_numbers_are_refused():
    with pytest.raises(ValueError, match=r"bring [\d,]+ customers; the most is"):
        shop(customers=9_000_000, changes=[{"kind": "growth", "day": "2025-01-01", "size": 50}])


def test_before_the_shop_opened_there_is_nothing():
    with pytest.raises(ValueError, match="nothing had happened yet: it starts on 2025-01-01"):
        shop(until=(2025, 1, 1))


def test_claims_end_at_the_moment_too():
    whole = claims.simulate("claims", seed=7, claims=2000).read_all()
    moment = datetime(2025, 7, 1, tzinfo=UTC)

    half = claims.simulate("claims", seed=7, claims=2000, until=moment).read_all()

    assert 0 < len(half) < len(whole)
    assert whole.slice(0, len(half)).equals(half)
    assert max(half["received_date"].to_pylist()) <= moment
    assert (
        claims.simulate("claims", seed=7, claims=2000, until=datetime(2026, 1, 1, tzinfo=UTC))
        .read_all()
        .equals(whole)
    )
