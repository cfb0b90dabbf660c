"""Retraining a real champion: what the policy refuses, what training finds, and what the ledger says of it."""

import csv
import json
import signal
from datetime import UTC, datetime, timedelta
from pathlib import Path
from unittest.mock import Mock

import pytest
import yaml

from deployments.environment import load_environment
from deployments.errors import BadInputError, ContenderError
from deployments.spec import load_spec
from flows.retrain import RetrainRefusedError, retrain, retrain_for
from platforms import platform_for
from tasks.costs import CostLog, spent_on
from tasks.monitoring_record import Alert, MonitorOutcome, Window
from tasks.outcome import GatesRefusedError
from tasks.register import ledger_of
from tasks.release_record import ReleaseStore
from tasks.retrain_record import begin_retraining, open_retraining, record_trained
from tasks.tracking import Tracking
from tests.tasks.made_releases import released
from tests.tasks.test_costs import cost

pytestmark = pytest.mark.slow

MODEL = "binary_model"
KILLER = Path(__file__).with_name("kill_after.py")


@pytest.fixture
def platform(promoted):
    return platform_for(load_environment("dev"))


def changed(path, **sections):
    """Change sections of a model.yaml key by key."""
    document = yaml.safe_load(path.read_text())
    for name, values in sections.items():
        document[name] = {**document.get(name, {}), **values}
    path.write_text(yaml.safe_dump(document, sort_keys=False))


def other_data(path):
    """The model's data with some rows less: whatever is trained on it is another model."""
    file = path.parent / "data.csv"
    with file.open() as lines:
        rows = list(csv.reader(lines))
    with file.open("w", newline="") as lines:
        csv.writer(lines).writerows(rows[:-20])


def told(platform, event="retrain."):
    return [entry for entry in ledger_of(platform).entries(MODEL) if entry.event.startswith(event)]


def test_a_challenger_is_proposed_and_not_promoted_and_then_the_cooldown_refuses(promoted, platform):
    other_data(promoted.model)

    outcome = retrain(str(promoted.model), reason="data moved", alert="drift", release=False)

    assert (outcome.state, outcome.version, outcome.reason) == ("proposed", "2", "data moved")
    assert [entry.event for entry in told(platform)] == [
        "retrain.started",
        "retrain.trained",
        "retrain.ended",
    ]
    assert told(platform)[0].details["alert"] == "drift"
    assert not [entry for entry in told(platform, "model.promoted") if entry.subject.endswith("/2")]
    with pytest.raises(RetrainRefusedError, match=r"cooldown of 24 h") as refused:
        retrain(str(promoted.model), release=False)
    assert refused.value.exit_code == 3
    (entry,) = told(platform, "retrain.refused")
    assert entry.details["reasons"] == list(refused.value.refused.why)
    by_flow = {one.flow for one in spent_on(platform, MODEL, datetime.now(UTC) - timedelta(hours=1))}
    assert "train" in by_flow


def test_the_same_data_and_code_make_no_challenger(promoted, platform):
    outcome = retrain(str(promoted.model), release=False)

    assert outcome.state == "unchanged"
    assert "no challenger" in outcome.why[0]


def test_with_a_clock_in_the_spec_it_says_as_of_when_it_trained_and_what_would_be_new(promoted, platform):
    document = yaml.safe_load(promoted.model.read_text())
    promoted.model.write_text(yaml.safe_dump(document | {"clock": "2026-01-01T00:00:00+00:00"}))
    changed(promoted.model, retrain={"cooldown_hours": 0})
    model = str(promoted.model)
    first = retrain(model, release=False)
    Tracking(platform).client.delete_registered_model_alias("dev-binary_model", "challenger")

    again = retrain(model, release=False)
    later = retrain(model, release=False, as_of=datetime(2026, 2, 1, tzinfo=UTC))

    assert (first.state, again.state, later.state) == ("proposed", "unchanged", "unchanged")
    assert str(again).startswith(
        "binary_model: retrained as of 2026-01-01 00:00 UTC, version 2: unchanged (version 2 was trained on the same"
    )
    assert "the spec's `clock` is where its data ends" in again.why[1]
    assert later.as_of == datetime(2026, 2, 1, tzinfo=UTC)
    assert len(later.why) == 1


def test_what_gates_refuse_is_not_proposed(promoted, platform):
    document = yaml.safe_load(promoted.model.read_text())
    document["gates"][0]["min"] = 0.9999
    promoted.model.write_text(yaml.safe_dump(document))

    with pytest.raises(GatesRefusedError):
        retrain(str(promoted.model), release=False)

    assert told(platform)[-1].details["state"] == "gates_refused"
    assert open_retraining(platform, MODEL) is None


def test_data_that_break_their_contract_end_it_as_failed(promoted, platform):
    (promoted.model.parent / "data.csv").write_text("id,target\nx,y\n")

    with pytest.raises(ContenderError):
        retrain(str(promoted.model), release=False)

    assert told(platform)[-1].details["state"] == "failed"
    assert open_retraining(platform, MODEL) is None


def test_without_a_data_plane_it_says_so_before_it_trains_and_the_ledger_has_the_refusal(promoted, platform):
    other_data(promoted.model)

    with pytest.raises(BadInputError, match=r"data plane is not up.*python -m flows.run up --env dev"):
        retrain(str(promoted.model), reason="it drifted", alert="drift")

    (entry,) = told(platform)
    assert entry.event == "retrain.refused"
    assert (entry.details["reason"], entry.details["alert"]) == ("it drifted", "drift")
    assert "data plane is not up" in entry.details["reasons"][0]


def test_one_that_was_killed_weeks_ago_expires_and_another_begins_as_of_now(promoted, platform, monkeypatch):
    weeks_ago = datetime.now(UTC) - timedelta(days=21)
    loaded = load_spec(promoted.model)
    with monkeypatch.context() as then:
        then.setattr("tasks.ledger.datetime", Mock(now=Mock(return_value=weeks_ago)))
        old = begin_retraining(platform, loaded, "forgotten", "drift", weeks_ago)
    assert old.began == weeks_ago
    other_data(promoted.model)

    began = datetime.now(UTC)
    outcome = retrain(str(promoted.model), reason="new prices", release=False)

    assert (outcome.state, outcome.reason, outcome.version) == ("proposed", "new prices", "2")
    started = [entry.details for entry in told(platform, "retrain.started")]
    assert [details["reason"] for details in started] == ["forgotten", "new prices"]
    assert datetime.fromisoformat(started[1]["as_of"]) >= began
    first, _ = told(platform, "retrain.ended")
    assert (first.details["retraining"], first.details["state"]) == (old.id, "expired")


def test_one_whose_release_was_ended_by_hand_does_not_swallow_the_next_alert(promoted, platform):
    other_data(promoted.model)
    loaded = load_spec(promoted.model)
    waiting = begin_retraining(platform, loaded, "first alert", "drift", None)
    record_trained(platform, waiting, "7", "f" * 64)
    by_hand = released(model=MODEL, begun=datetime.now(UTC))
    ReleaseStore(platform, MODEL).save(by_hand)
    changed(promoted.model, retrain={"cooldown_hours": 0})

    outcome = retrain(str(promoted.model), reason="second alert", alert="quality", release=False)

    assert (outcome.reason, outcome.alert, outcome.version) == ("second alert", "quality", "2")
    first, second = told(platform, "retrain.ended")
    assert (first.details["state"], first.details["release"]) == ("promoted", by_hand.id)
    assert second.details["retraining"] == outcome.id != waiting.id


def test_a_used_up_budget_refuses_with_its_figures_and_stops_a_plain_training_as_well(promoted, platform):
    changed(promoted.model, retrain={"daily_budget": 0.5, "minimum_new_labels": 10})
    CostLog(platform, MODEL).write(cost(at=datetime.now(UTC) - timedelta(seconds=1), amount=0.75))

    with pytest.raises(RetrainRefusedError) as refused:
        retrain(str(promoted.model), release=False)

    labels, budget = refused.value.refused.why
    assert labels.startswith("0 labelled rows came since the champion was trained, and 10 are wanted")
    assert "0.75" in budget
    assert "of 0.5 EUR" in budget


def test_a_training_starts_no_candidate_once_the_budget_is_used_up(promoted, platform, commands):
    changed(promoted.model, retrain={"monthly_budget": 0.5})
    other_data(promoted.model)
    CostLog(platform, MODEL).write(cost(at=datetime.now(UTC) - timedelta(seconds=1), amount=0.75))

    done = commands("train", "--model", promoted.model)

    assert done.returncode == 3
    assert "the monthly budget is used up" in done.stderr
    assert "candidate '" in done.stderr


def test_a_model_without_a_champion_is_not_retrained(home, make_model, prefect_server):
    with pytest.raises(RetrainRefusedError, match="has no champion to retrain"):
        retrain(str(make_model("binary")), release=False)


def test_two_at_once_are_one_and_a_refusal_in_the_ledger(promoted, platform):
    with (
        platform.alone(f"retrain-{platform.registered_model(MODEL)}", "busy"),
        pytest.raises(RetrainRefusedError, match="another retraining of dev-binary_model is under way"),
    ):
        retrain(str(promoted.model), release=False)

    assert [entry.event for entry in told(platform)] == ["retrain.refused"]


def window_with(*alerts, model):
    now = datetime.now(UTC)
    return MonitorOutcome(
        model=str(model),
        environment="dev",
        name="dev-binary_model",
        version="1",
        window=Window(start=now - timedelta(hours=1), end=now),
        requests=10,
        rows=10,
        labelled=0,
        verdicts={},
        alerts=alerts,
        report="",
    )


def test_in_process_an_alert_retrains_where_the_policy_names_it_and_nobody_acknowledged(promoted, platform):
    changed(promoted.model, retrain={"on": ["quality"], "cooldown_hours": 0})
    drift = Alert(kind="drift", event="contender.drift.detected", reason="moved")
    quality = Alert(kind="quality", event="contender.quality.degraded", reason="worse")
    expected = quality.model_copy(update={"acknowledged": "sale"})

    nothing = window_with(drift, expected, model=promoted.model)
    assert retrain_for(nothing, "dev", release=False) is None
    assert told(platform) == []

    outcome = retrain_for(
        window_with(drift, quality, model="elsewhere"), "dev", str(promoted.model), release=False
    )

    assert (outcome.reason, outcome.alert, outcome.state) == ("worse", "quality", "unchanged")
    changed(promoted.model, retrain={"minimum_new_labels": 5})
    refused = retrain_for(window_with(quality, model=promoted.model), "dev", release=False)
    assert refused.state == "refused"


def test_killed_at_any_task_it_carries_on_with_its_own_reason(promoted, platform, command_line):
    other_data(promoted.model)
    tasks = ("policy", "candidate", "register", "report")

    done = command_line(
        ",".join(tasks),
        *("retrain", "--model", promoted.model, "--no-release", "--reason", "first of all", "--json"),
        program=(KILLER,),
    )

    assert done.returncode == 0, done.stderr
    *said, ended = done.stdout.strip().splitlines()
    assert json.loads(ended) == [-signal.SIGKILL] * 4 + [0], done.stderr
    outcome = json.loads(said[-1])
    assert (outcome["state"], outcome["version"], outcome["reason"]) == ("proposed", "2", "first of all")
    assert [entry.event for entry in told(platform)] == [
        "retrain.started",
        "retrain.trained",
        "retrain.ended",
    ]
    costs, damaged = CostLog(platform, MODEL).read(datetime(2026, 1, 1, tzinfo=UTC))
    assert damaged == ()
    assert {"candidate", "register", "report"} <= {one.task for one in costs if one.flow == "train"}


# The commands -----------------------------------------------------------------------------------------------


def test_the_commands_show_costs_and_write_the_dashboard(promoted, platform, commands, tmp_path):
    retrain(str(promoted.model), release=False)

    said = commands("costs", "--model", promoted.model, "--json").json()
    shown = commands("costs", "--model", promoted.model).stdout
    page = commands("dashboard", "--model", promoted.model, "--out", tmp_path / "page.html", "--json")
    nowhere = commands("dashboard", "--model", promoted.model, "--out", tmp_path / "none" / "page.html")

    assert said["total"]["tasks"] > 5
    assert {part["task"] for part in said["parts"]} >= {"ingest", "candidate", "train", "evaluate"}
    assert said["total"]["amount"] == pytest.approx(sum(part["amount"] for part in said["parts"]))
    ingest = next(part for part in said["parts"] if (part["flow"], part["task"]) == ("train", "ingest"))
    assert ingest["rows"] % 400 == 0
    assert ingest["rows"] > 0
    assert "In all" in shown
    assert "(no budget is set)" in shown
    text = (tmp_path / "page.html").read_text()
    assert page.returncode == 0
    assert "Version 1 serves since" in text
    assert "no window of the prediction log was looked at" in text
    assert "median of 1 versions" in text
    assert nowhere.returncode == 2
    assert "cannot be written" in nowhere.stderr


def test_acknowledgements_are_given_shown_and_refused(promoted, platform, commands):
    model = ("--model", str(promoted.model))
    column = load_spec(promoted.model).spec.features.columns[0]
    assert commands("drift", "acks", *model).stdout.startswith("No drift of binary_model is acknowledged")

    given = commands("drift", "ack", *model, "--columns", column, "--days", "3", "--reason", "sale", "--json")
    shown = commands("drift", "acks", *model, "--json").json()
    table = commands("drift", "acks", *model).stdout

    assert given.json()["columns"] == [column]
    assert [one["reason"] for one in shown] == ["sale"]
    assert "sale" in table
    for arguments, expected in (
        (("--days", "3"), "say which columns"),
        (("--all", "--columns", column, "--days", "3"), "say which columns"),
        (("--all",), "say how long"),
        (("--all", "--until", "2020-01-01"), "has passed"),
        (("--columns", "nobody", "--days", "1"), "no such feature"),
    ):
        refused = commands("drift", "ack", *model, *arguments, "--reason", "why")
        assert refused.returncode == 2
        assert expected in refused.stderr


def test_the_command_says_how_it_ended_and_ends_with_three_where_it_is_refused(promoted, commands):
    model = ("--model", str(promoted.model), "--no-release")

    done = commands("retrain", *model)
    again = commands("retrain", *model, "--json")
    silent = commands("retrain", *model, "--reason", " ")

    assert done.returncode == 0
    assert f"binary_model: retrained as of {datetime.now(UTC):%Y-%m-%d}" in done.stdout
    assert "version 1: unchanged" in done.stdout
    assert again.returncode == 3
    assert again.json()["exit_code"] == 3
    assert "cooldown" in again.json()["error"]
    assert silent.returncode == 2
