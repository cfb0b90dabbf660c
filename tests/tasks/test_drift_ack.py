from datetime import UTC, datetime, timedelta

import pytest

from deployments.errors import BadInputError
from deployments.spec import load_spec
from tasks.drift_ack import acknowledge, acknowledged, acknowledgements
from tasks.monitoring_record import Alert, Window
from tasks.register import ledger_of

NOW = datetime(2026, 12, 1, 9, tzinfo=UTC)
UNTIL = datetime(2027, 1, 7, tzinfo=UTC)
WINDOW = Window(start=NOW - timedelta(days=7), end=NOW)


def alert(*subjects, kind="drift"):
    return Alert(kind=kind, event="contender.drift.detected", reason="2 of 3 windows", subjects=subjects)


@pytest.fixture
def churn():
    return load_spec("churn")


def test_an_alert_is_acknowledged_where_every_column_is_covered(platform, churn):
    acknowledge(platform, churn, ["total_events"], UNTIL, "Christmas", NOW)
    acknowledge(platform, churn, ["recency_tier", "prediction"], UNTIL, "sale", NOW)

    whole, part, answers = acknowledged(
        platform,
        "churn",
        [
            alert("total_events", "recency_tier"),
            alert("total_events", "engagement_score"),
            alert("prediction", kind="prediction_drift"),
        ],
        WINDOW,
    )

    assert "Christmas" in whole.acknowledged
    assert "sale" in whole.acknowledged
    assert part.acknowledged == ""
    assert answers.acknowledged.startswith("sale (")
    assert "2027-01-07" in answers.acknowledged


def test_all_columns_cover_every_drift_and_nothing_else(platform, churn):
    acknowledge(platform, churn, [], UNTIL, "moving house", NOW)
    alerts = [alert("total_events"), alert(), alert("roc_auc", kind="quality"), alert("p95", kind="service")]

    found = acknowledged(platform, "churn", alerts, WINDOW)

    assert [bool(one.acknowledged) for one in found] == [True, True, False, False]


def test_a_window_that_ends_later_is_not_covered_and_neither_is_another_model(platform, churn):
    acknowledge(platform, churn, ["total_events"], UNTIL, "Christmas", NOW)
    given = [alert("total_events")]

    def covered(model, end):
        return acknowledged(platform, model, given, Window(start=NOW, end=end))[0].acknowledged

    assert covered("churn", UNTIL)
    assert not covered("churn", UNTIL + timedelta(microseconds=1))
    assert not covered("claims", UNTIL)


def test_an_alert_without_columns_needs_an_acknowledgement_of_all(platform, churn):
    acknowledge(platform, churn, ["total_events"], UNTIL, "Christmas", NOW)

    assert acknowledged(platform, "churn", [alert()], WINDOW) == (alert(),)


def test_acknowledgements_stand_in_the_ledger_with_their_reason(platform, churn):
    ack = acknowledge(platform, churn, ["total_events", "total_events"], UNTIL, " Christmas ", NOW)

    (entry,) = ledger_of(platform).entries("churn")
    assert (entry.event, entry.details["reason"]) == ("drift.acknowledged", "Christmas")
    assert ack.columns == ("total_events",)
    assert acknowledgements(platform, "churn") == (ack,)
    assert acknowledgements(platform, "churn", UNTIL) == (ack,)
    assert acknowledgements(platform, "churn", UNTIL + timedelta(days=1)) == ()


@pytest.mark.parametrize(
    ("columns", "until", "reason", "said"),
    [
        (["no_such"], UNTIL, "why", "'no_such': churn has no such feature"),
        (["total_events"], NOW, "why", "has passed"),
        (["total_events"], UNTIL, "  ", "say why"),
    ],
)
def test_an_acknowledgement_that_says_too_little_is_refused(platform, churn, columns, until, reason, said):
    with pytest.raises(BadInputError, match=said):
        acknowledge(platform, churn, columns, until, reason, NOW)

    assert not list(ledger_of(platform).entries())
