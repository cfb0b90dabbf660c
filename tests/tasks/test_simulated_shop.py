"""The shop as its life meets it: labels as they were known, and a query that goes by weeks where it went by days."""

import csv
import shutil
from datetime import UTC, datetime, timedelta

import duckdb
import pytest

import deployments.models.churn.simulator as churn
from deployments.errors import BadInputError
from deployments.spec import MODELS, load_spec
from tasks.simulated_shop import skewed_spec, true_labels, write_labels

FEBRUARY, APRIL = datetime(2025, 2, 1, tzinfo=UTC), datetime(2025, 4, 1, tzinfo=UTC)


@pytest.fixture
def loaded(tmp_path):
    """The shop with few customers, whose query may be changed."""
    folder = shutil.copytree(MODELS / "churn", tmp_path / "churn")
    text = (folder / "model.yaml").read_text()
    assert text.count("customers: 4000") == 2
    (folder / "model.yaml").write_text(text.replace("customers: 4000", "customers: 200"))
    return load_spec(folder / "model.yaml")


def test_labels_of_a_cut_off_are_those_of_the_shop(loaded, platform):
    found = true_labels(loaded, platform, FEBRUARY, APRIL)

    shop = churn.simulate("labels", seed=7, customers=200, end="2025-03-31").read_all().to_pylist()
    assert found == {row["customer_id"]: row["churned"] for row in shop if row["as_of"] == FEBRUARY}
    assert 0 < sum(found.values()) < len(found)


def test_what_is_not_known_yet_is_no_label(loaded, platform):
    with pytest.raises(BadInputError, match="no label of 2025-02-01 was known at 2025-03-01"):
        true_labels(loaded, platform, FEBRUARY, FEBRUARY + timedelta(days=28))


def test_labels_are_written_for_those_who_asked_and_of_whom_something_is_known(tmp_path):
    asked = {"r1": "C1", "r2": "C2", "r3": "C9"}

    count = write_labels(tmp_path / "made" / "labels.csv", asked, {"C1": True, "C2": False, "C3": True})

    with (tmp_path / "made" / "labels.csv").open() as file:
        assert list(csv.reader(file)) == [["request_id", "label"], ["r1", "true"], ["r2", "false"]]
    assert count == 2


def test_the_skewed_query_goes_by_weeks_in_two_columns_and_changes_no_other(loaded, tmp_path):
    skewed = load_spec(skewed_spec(loaded, tmp_path / "skewed", "demo"))
    events = churn.simulate("events", seed=7, customers=200, end="2025-03-31").read_all()

    def features(sql):
        with duckdb.connect() as connection:
            connection.execute("SET TimeZone = 'UTC'")
            connection.register("events", events)
            return connection.sql(sql, params={"as_of": APRIL}).to_arrow_table()

    right, wrong = features(loaded.sql), features(skewed.sql)
    (candidate,) = skewed.spec.training.candidates
    assert candidate == loaded.spec.training.candidates[-1]
    training = loaded.spec.training.model_copy(update={"candidates": (candidate,)})
    plan = loaded.spec.release.plan_for("demo").model_copy(update={"strategy": "canary"})
    assert skewed.spec.release.plan_for("demo") == plan
    assert skewed.spec.release.plan_for("prod") == loaded.spec.release.plan_for("prod")
    unchanged = {"training": training, "release": skewed.spec.release}
    assert skewed.spec == loaded.spec.model_copy(update=unchanged)
    assert wrong["days_since_last_event"].to_pylist() == [
        days // 7 for days in right["days_since_last_event"].to_pylist()
    ]
    assert max(right["days_since_last_event"].to_pylist()) > 7
    assert wrong["avg_events_per_day"].to_pylist() == pytest.approx(
        [7 * rate for rate in right["avg_events_per_day"].to_pylist()]
    )
    changed = {"days_since_last_event", "avg_events_per_day"}
    others = [name for name in right.column_names if name not in changed]
    assert wrong.select(others).equals(right.select(others))


def test_a_query_without_that_line_cannot_be_skewed(loaded, tmp_path):
    query = loaded.path.parent / "features.sql"
    query.write_text(
        query.read_text().replace("  days_since_last_event,\n", "  1 AS days_since_last_event,\n")
    )

    with pytest.raises(BadInputError, match="there is no single line 'days_since_last_event,'"):
        skewed_spec(load_spec(loaded.path), tmp_path / "skewed", "demo")
