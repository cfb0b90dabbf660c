"""Online features: a key asked online gets what its row of the feature table has, whenever that was built."""

from datetime import UTC, datetime, timedelta

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import yaml

from deployments.errors import BadInputError, ContenderError
from deployments.personal_data import keyed_hash
from deployments.spec import ModelSpec, load_spec
from serving.folders import Folders
from serving.online import OnlineFeatures
from tasks.champion import CHAMPION, ChampionRef
from tasks.features import build_at
from tasks.frame import model_inputs
from tasks.online import online_features, publish_features
from tasks.tracking import Tracking

NOW = datetime(2026, 1, 1, tzinfo=UTC)
CHAMPION_REF = ChampionRef(name="dev-shop", version="3", run_id="r", model_id="m", digest="d")

SPEC = """
name: shop
governance: {owner: shop, purpose: To be tested.}
target: {kind: binary, column: bought, positive: true}
sources:
  members: {kind: delta, path: members}
contract:
  members:
    columns:
      member: {type: string, pii: hash}
      branch: {type: integer}
      visits: {type: integer}
      pages: {type: integer, nullable: true}
      amount: {type: number, nullable: true}
      plan: {type: integer}
      city: {type: string, nullable: true}
      online: {type: boolean}
      abroad: {type: boolean, nullable: true}
      since: {type: date}
      seen: {type: timestamp, nullable: true}
      bought: {type: boolean}
features:
  entity: [member, branch]
  numeric: [visits, pages, amount]
  categorical: [plan, city]
  boolean: [online, abroad]
  dates: [since, seen]
training:
  metric: roc_auc
  candidates: [{name: one, estimator: sklearn.linear_model.LogisticRegression}]
evaluation: {metrics: [roc_auc]}
gates: [{kind: metric, metric: roc_auc, min: 0.5}]
"""

ROWS = pa.table(
    {
        "member": [keyed_hash("ann", b"key"), keyed_hash("bob", b"key")],
        "branch": [1, 1],
        "visits": [(1 << 62) + 1, 2],
        "pages": pa.array([7, None], pa.int64()),
        "amount": pa.array([0.1 + 0.2, None], pa.float64()),
        "plan": [12, 13],
        "city": pa.array(["Århus", None]),
        "online": [True, False],
        "abroad": pa.array([True, None]),
        "since": pa.array([datetime(2024, 2, 29, tzinfo=UTC), datetime(9999, 12, 31, tzinfo=UTC)]).cast(
            pa.date32()
        ),
        "seen": pa.array([NOW - timedelta(microseconds=1), None], pa.timestamp("us", "UTC")),
        "bought": [True, False],
    }
)


@pytest.fixture
def shop(tmp_path, platform, monkeypatch):
    """Write a spec of one table with columns of every type, and its rows; give what publishing takes."""
    monkeypatch.setenv("CONTENDER_PII_KEY", "key")

    def make(rows=ROWS, **changes):
        path = tmp_path / "model.yaml"
        path.write_text(yaml.safe_dump(yaml.safe_load(SPEC) | changes, sort_keys=False))
        silver = platform.tables.write("silver/shop/members", rows.to_reader())
        return load_spec(path), platform, {"members": silver}

    return make


def published(loaded, platform, silver, as_of=NOW):
    outcome = publish_features(loaded, platform, CHAMPION_REF, silver, as_of, "shop")
    features = OnlineFeatures.open(Folders(platform.root).online("shop"), pii_key=platform.pii_key())
    return outcome, features


def frame_of(found, like):
    """What was looked up, as a frame with the types of another."""
    frame = pd.DataFrame({name: [row[name] for row in found] for name in like.columns}, dtype=object)
    frame = frame.where(frame.notna(), np.nan)
    return frame.astype(like.dtypes)


def test_values_of_every_type_are_looked_up_as_the_model_takes_them(shop):
    loaded, platform, silver = shop()

    outcome, features = published(loaded, platform, silver)
    found = features.lookup({"member": ["ann", "bob"], "branch": [1, "1"]})

    assert (outcome.rows, outcome.version, outcome.endpoint) == (2, "3", "shop")
    trained = model_inputs(ROWS, loaded.spec)
    pd.testing.assert_frame_equal(frame_of(found, trained), trained, check_exact=True)
    assert found[0]["visits"] == (1 << 62) + 1
    assert features.lookup({"member": ["ann"], "branch": [2]}) == [None]
    assert features.as_of == NOW.isoformat()


def test_an_unknown_key_has_the_declared_defaults(shop):
    defaults = {"visits": 0, "plan": 9, "online": False, "since": "2020-01-01"}
    loaded, platform, silver = shop(serving={"unknown_key": "default", "defaults": defaults})

    _, features = published(loaded, platform, silver)

    assert features.declared_default() == {
        "visits": 0,
        "pages": None,
        "amount": None,
        "plan": "9",
        "city": None,
        "online": False,
        "abroad": None,
        "since": datetime.fromisoformat("2020-01-01"),
        "seen": None,
    }


def test_an_unknown_key_has_nothing_where_no_default_is_declared(shop):
    _, features = published(*shop())

    assert features.declared_default() is None


def test_a_default_of_a_category_is_the_text_that_training_saw():
    document = yaml.safe_load(SPEC)
    document["features"] |= {"categorical": ["plan", "city", "online"], "boolean": ["abroad"]}
    defaults = {"visits": 0, "plan": 9, "online": True, "since": "2020-01-01"}
    document["serving"] = {"unknown_key": "default", "defaults": defaults}
    spec = ModelSpec.model_validate(document)

    features = online_features(spec, "gold v1", NOW)

    trained = model_inputs(ROWS.slice(0, 1), spec)
    assert features.default["online"] == trained["online"][0] == "true"
    assert features.default["plan"] == "9"


def test_several_rows_of_one_key_are_refused_in_a_sentence(shop):
    loaded, platform, silver = shop(pa.concat_tables([ROWS, ROWS]))

    with pytest.raises(
        BadInputError, match=r"features of shop were not published: .* a key \(member, branch\) stands more"
    ):
        published(loaded, platform, silver)


def test_a_publisher_that_breaks_is_an_error_too(shop):
    loaded, platform, silver = shop()
    published(loaded, platform, silver)
    (Folders(platform.root).online("shop") / "current.json").write_text("{}")

    with pytest.raises(ContenderError, match="this is no pointer to online features"):
        published(loaded, platform, silver)


@pytest.mark.slow
def test_the_flow_publishes_the_champions_features_by_its_own_query(shop, tracked):
    from flows.features import publish_current

    loaded, platform, _ = shop()
    tracking = Tracking(tracked)
    client, name = tracking.client, tracked.registered_model("shop")
    client.create_registered_model(name)
    run = tracking.create_run(tracking.experiment("shop"), "a training", {})
    client.log_artifact(run, str(loaded.path))
    tags = {"contender.model_digest": "d", "contender.model_id": "m"}
    version = client.create_model_version(name, source=loaded.path.parent.as_uri(), run_id=run, tags=tags)
    client.set_registered_model_alias(name, CHAMPION, version.version)

    outcome = publish_current.fn(loaded, tracked, NOW, None)

    assert (outcome.name, outcome.version, outcome.rows) == (name, "1", 2)
    assert OnlineFeatures.open(
        Folders(platform.root).online(tracked.endpoint("shop")), pii_key=platform.pii_key()
    )


@pytest.mark.slow
def test_online_features_are_those_of_training_at_any_moment(platform):
    from deployments.models.churn.simulator import simulate

    loaded = load_spec("churn")
    events = platform.tables.write("silver/churn/events", simulate("events", seed=7, customers=800))
    end = datetime.fromisoformat(loaded.spec.clock)
    draw = np.random.default_rng(0)

    for moment in (end - timedelta(days=200), end - timedelta(days=31, hours=7, microseconds=1), end):
        offline = build_at(loaded, platform, {"events": events}, moment)
        publish_features(loaded, platform, CHAMPION_REF, {"events": events}, moment, "churn")
        online = OnlineFeatures.open(Folders(platform.root).online("churn"))
        places = draw.choice(offline.num_rows, 100, replace=False)
        sampled = offline.take(pa.array(places))

        found = online.lookup({"customer_id": sampled.column("customer_id").to_pylist()})

        names = list(loaded.spec.features.columns)
        assert found == sampled.select(names).to_pylist()
        trained = model_inputs(sampled, loaded.spec)
        pd.testing.assert_frame_equal(frame_of(found, trained), trained, check_exact=True)
        assert online.lookup({"customer_id": ["C9999999"]}) == [None]
