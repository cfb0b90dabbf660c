"""What a fleet run says of its models: how each ended, what the whole comes to, and who stands first."""

import pickle
from datetime import UTC, datetime

import pytest

from deployments.errors import BadInputError, ContenderError
from platforms.lock import BusyError
from tasks.fleet import FleetError, FleetOutcome, FleetRow, as_table, told, verdicts_said, why
from tasks.monitoring_record import Alert, MonitorOutcome, Window
from tasks.retrain_record import RetrainOutcome
from tasks.verdict import Verdict

NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)


class RefusedError(ContenderError):
    exit_code = 3


def row(model="churn", state="done", **given):
    return FleetRow(model=model, spec=model, state=state, **given)


def outcome(*rows):
    return FleetOutcome(environment="dev", work="monitor", at_once=2, rows=rows, seconds=12.5)


def looked(*alerts, **verdicts):
    return MonitorOutcome(
        model="churn",
        environment="dev",
        name="dev-churn",
        version="4",
        window=Window(start=NOW, end=NOW),
        requests=300,
        rows=300,
        labelled=0,
        verdicts=verdicts,
        alerts=alerts,
        report="page.html",
    )


def drift(**given):
    return Alert(kind="drift", event="contender.drift.detected", reason="a moved", **given)


@pytest.mark.parametrize(
    ("error", "state", "said"),
    [
        (BadInputError("model.yaml:3: no such key\nand more"), "failed", "model.yaml:3: no such key"),
        (BusyError("it is being monitored"), "failed", "it is being monitored"),
        (RefusedError("a gate did not pass"), "refused", "a gate did not pass"),
        (ZeroDivisionError("division by zero"), "failed", "ZeroDivisionError: division by zero"),
        (MemoryError(), "failed", "MemoryError"),
    ],
)
def test_what_stopped_a_model_is_told_in_a_line_and_only_a_refusal_is_one(error, state, said):
    stopped = row().stopped(error)

    assert (stopped.state, stopped.error) == (state, said)


def test_an_alert_that_was_acknowledged_is_none():
    known, new = drift(acknowledged="a campaign"), drift()

    assert row().monitored(looked(known, drift=Verdict.FAIL)).state == "done"
    found = row().monitored(looked(known, new, drift=Verdict.FAIL))
    assert (found.state, found.alerts, found.version) == ("alerts", ("contender.drift.detected",), "4")


def test_alerts_stay_to_be_seen_after_a_retraining_was_refused():
    refused = RetrainOutcome(
        model="churn",
        environment="dev",
        id="1",
        reason="a moved",
        alert="drift",
        state="refused",
        why=("too soon",),
        ended=NOW,
    )

    found = row().monitored(looked(drift(), drift=Verdict.FAIL)).retrained_as(refused)

    assert (found.state, found.version) == ("alerts", "4")
    assert why(found) == "drift.detected; churn: not retrained (too soon)"


def test_too_little_data_is_never_shown_as_a_pass():
    found = row(verdicts={"drift": Verdict.PASS, "quality": Verdict.INCONCLUSIVE, "inputs": Verdict.FAIL})

    assert verdicts_said(found) == "fail: inputs; inconclusive: quality"
    assert verdicts_said(row(verdicts={"drift": Verdict.PASS})) == "pass"
    assert verdicts_said(row()) == ""


@pytest.mark.parametrize(
    ("states", "code"),
    [(("failed", "done"), 1), (("refused", "done"), 3), (("refused", "failed"), 1)],
)
def test_a_failure_outweighs_a_refusal(states, code):
    error = FleetError(outcome(*(row(state=state) for state in states)))

    assert error.exit_code == code
    assert pickle.loads(pickle.dumps(error)).exit_code == code


def test_a_hundred_failures_are_counted_and_a_few_of_them_named():
    rows = [row(f"m_{place}", "failed") for place in range(100)] + [row("gated", "refused")]

    assert str(FleetError(outcome(*rows))) == (
        "not every one of 101 models in dev could be monitored; "
        "failed: 100 (m_0, m_1, m_2, m_3, m_4, …); refused: 1 (gated)"
    )


def test_who_needs_a_person_stands_first_and_the_outcome_keeps_the_order_asked_for():
    states = ("done", "no champion", "alerts", "refused", "failed", "done")
    found = outcome(*(row(f"m_{place}", state, seconds=1.0) for place, state in enumerate(states)))

    assert [one["model"] for one in as_table(found)] == ["m_4", "m_3", "m_2", "m_1", "m_0", "m_5"]
    assert [one.model for one in found.rows] == [f"m_{place}" for place in range(6)]
    assert told(found) == (
        "6 models in 12.5 s, 2 at a time (1.0 s for the median model): "
        "2 done, 1 no champion, 1 alerts, 1 refused, 1 failed"
    )
