import sys
from dataclasses import dataclass, replace

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from deployments.errors import ContenderError
from deployments.model_file import UntrustedModelError
from platforms.lock import BusyError
from tasks import register
from tasks.champion import ChampionMissing, ChampionRef, NoChampionYet, standing_champion, version_ref
from tasks.gate import GateReport, GateResult
from tasks.ledger import Ledger
from tasks.register import (
    PromotionRefusedError,
    Version,
    challenger_of,
    compare_answers,
    integration_gate,
    ledger_of,
    promote,
    record_refusal,
    register_version,
    settle,
)
from tasks.tracking import Tracking
from tasks.verdict import Verdict

MODEL = "patients"


def result(verdict=Verdict.PASS, gate=register.INTEGRATION):
    return GateResult(gate=gate, verdict=verdict, value=0.0, threshold=1e-9, reason="")


def report_of(line, *verdicts, champion=None):
    others = [result(verdict, f"metric {place}") for place, verdict in enumerate(verdicts)]
    return GateReport(
        model_digest=line.trained.digest, champion=champion, results=(*others, result(Verdict.PASS))
    )


def another_run(line):
    """The same model file as of another run, so that it makes another version."""
    run = Tracking(line.platform).create_run(line.run.experiment_id, "again", {})
    return replace(line, run=line.run.model_copy(update={"run_id": run}))


def registered(line):
    return register_version(line.loaded, line.platform, line.run, line.trained, {})


def proposed(line, *verdicts, champion=None):
    """A settled version; one more, where one of the same run stands."""
    version = registered(line)
    if (register.REGISTERED, f"{MODEL}/{version.version}") in events(line):
        line = another_run(line)
        version = registered(line)
    settle(line.loaded, line.platform, line.run, version, report_of(line, *verdicts, champion=champion))
    return version_ref(line.platform, MODEL, version.version)


def client_of(line):
    return Tracking(line.platform).client


def aliases(line):
    found = client_of(line).get_registered_model(MODEL).aliases
    return {alias: str(number) for alias, number in found.items()}


def tag(line, version, name):
    return client_of(line).get_model_version(MODEL, version).tags.get(f"contender.{name}")


def events(line):
    return [(entry.event, entry.subject) for entry in ledger_of(line.platform).entries(MODEL)]


def state(line):
    """All that registry and ledger say, but for times."""
    client = client_of(line)
    model = client.get_registered_model(MODEL)
    versions = client.search_model_versions(f"name = '{MODEL}'")
    return {
        "aliases": aliases(line),
        "tags": dict(model.tags),
        "versions": {str(item.version): dict(item.tags) for item in versions},
        "ledger": [
            (entry.event, entry.subject, entry.details, entry.key)
            for entry in ledger_of(line.platform).entries()
        ],
    }


class Killed(BaseException):
    """Stands for SIGKILL between two calls that change anything."""


WRITES = (
    (MlflowClient, "create_registered_model"),
    (MlflowClient, "create_model_version"),
    (MlflowClient, "set_registered_model_alias"),
    (MlflowClient, "delete_registered_model_alias"),
    (MlflowClient, "set_registered_model_tag"),
    (MlflowClient, "set_model_version_tag"),
    (Ledger, "append"),
)


@dataclass
class Killer:
    left: int | None = None


@pytest.fixture
def killer(monkeypatch):
    """Once `left` is set, raises `Killed` after so many further writes."""
    found = Killer()

    def deadly(write):
        def call(*arguments, **named):
            answer = write(*arguments, **named)
            if found.left is not None:
                found.left -= 1
                if found.left == 0:
                    found.left = None
                    raise Killed
            return answer

        return call

    for owner, name in WRITES:
        monkeypatch.setattr(owner, name, deadly(getattr(owner, name)))
    return found


def killed_everywhere(line, moved_platform, tmp_path, killer, work):
    """What `work` leaves, after having been killed at each of its writes and run again; the first is undisturbed."""
    states, done = [], False
    while not done:
        place = len(states)
        here = replace(line, platform=moved_platform(line.platform, tmp_path / f"killed-{place}"))
        killer.left = place or None
        try:
            work(here)
            done = place > 0
        except Killed:
            work(here)
        killer.left = None
        states.append(state(here))
    return states


# A version, and the gate on its artifact


def test_registering_again_finds_the_version_that_stands(line):
    first = registered(line)

    again = registered(line)

    assert again == first
    assert len(client_of(line).search_model_versions(f"name = '{MODEL}'")) == 1


def test_a_version_that_somebody_else_made_of_the_same_run_is_not_taken_for_ours(line):
    client = client_of(line)
    client.create_registered_model(MODEL)
    where = client.get_logged_model(line.trained.model_id).artifact_location
    client.create_model_version(MODEL, source=where, run_id=line.run.run_id)

    version = registered(line)

    assert version.version == "2"
    assert tag(line, "2", "model_digest") == line.trained.digest


@pytest.mark.slow
def test_a_fresh_process_gives_the_same_answers(line, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    version = registered(line)

    found = integration_gate(line.platform, version, line.trained)

    assert found.verdict is Verdict.PASS, found.reason
    assert found.value == 0.0


@pytest.mark.slow
def test_an_artifact_changed_since_it_was_saved_fails_the_integration_gate(line):
    version = registered(line)
    where = client_of(line).get_logged_model(line.trained.model_id).artifact_location
    folder = line.platform.root / where.partition("/data/")[2]
    (folder / "MLmodel").write_text((folder / "MLmodel").read_text() + "\n")
    (folder / "sitecustomize.py").touch()

    found = integration_gate(line.platform, version, line.trained)

    assert found.verdict is Verdict.FAIL
    assert "MLmodel, sitecustomize.py" in found.reason


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("kill -9 $$", "-9"),
        ("echo no memory >&2; exit 3", "no memory"),
        ("echo nothing that is JSON", "cannot be read"),
        ("true", "cannot be read"),
        ("echo '[1]'", "cannot be read"),
    ],
)
def test_a_fresh_process_that_breaks_fails_the_gate(line, tmp_path, monkeypatch, script, reason):
    version = registered(line)
    broken = tmp_path / "python"
    broken.write_text(f"#!/bin/sh\ncat > /dev/null\n{script}\n")
    broken.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(broken))

    found = integration_gate(line.platform, version, line.trained)

    assert found.verdict is Verdict.FAIL
    assert reason in found.reason


def test_a_fresh_process_that_does_not_answer_in_time_fails_the_gate(line, monkeypatch):
    version = registered(line)
    monkeypatch.setattr(register, "_FRESH_PROCESS_SECONDS", 0.05)

    found = integration_gate(line.platform, version, line.trained)

    assert found.verdict is Verdict.FAIL
    assert "did not answer" in found.reason


def answered(trained, **changed):
    given = {"scores": list(trained.expected), "predictions": list(trained.expected_predictions)}
    return compare_answers(trained, **{**given, **changed})


@pytest.mark.parametrize("place", [0, 1, 4])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 0.123])
def test_another_score_in_any_row_fails_the_gate(first_line, place, value):
    scores = list(first_line.trained.expected)
    scores[place] = value

    assert answered(first_line.trained, scores=scores).verdict is Verdict.FAIL


@pytest.mark.parametrize("other", ["1", "yes", None, True, 0.5, 7])
def test_another_prediction_fails_the_gate(first_line, other):
    predictions = list(first_line.trained.expected_predictions)
    trained = first_line.trained.model_copy(update={"expected_predictions": [0, *predictions[1:]]})

    found = answered(trained, predictions=[other, *predictions[1:]])

    assert found.verdict is Verdict.FAIL


def test_a_row_too_few_fails_the_gate(first_line):
    trained = first_line.trained

    assert answered(trained, scores=trained.expected[:-1]).verdict is Verdict.FAIL
    assert answered(trained, predictions=[]).verdict is Verdict.FAIL


def test_nothing_to_compare_with_decides_nothing(first_line):
    empty = first_line.trained.model_copy(update={"expected": [], "expected_predictions": []})

    assert answered(empty).verdict is Verdict.INCONCLUSIVE


def test_a_model_that_recorded_nan_passes_no_gate(first_line):
    nan = first_line.trained.model_copy(update={"expected": [float("nan")] * 5})

    assert answered(nan).verdict is Verdict.FAIL


# Settling


def test_a_version_whose_gates_passed_becomes_challenger_and_settling_again_changes_nothing(line):
    version, report = registered(line), report_of(line, Verdict.PASS)
    settled = settle(line.loaded, line.platform, line.run, version, report)
    before = state(line)

    again = settle(line.loaded, line.platform, line.run, version, report)

    assert settled.aliases == again.aliases == ("challenger",)
    assert state(line) == before
    assert events(line) == [("model.registered", "patients/1")]


@pytest.mark.parametrize("verdict", [Verdict.FAIL, Verdict.INCONCLUSIVE])
def test_a_version_that_a_gate_did_not_pass_is_no_challenger(line, verdict):
    version = registered(line)

    settled = settle(line.loaded, line.platform, line.run, version, report_of(line, verdict))

    assert settled.aliases == ()
    assert tag(line, "1", "state") == "rejected"
    assert events(line) == [("model.rejected", "patients/1")]


def test_a_report_of_another_model_or_without_the_integration_gate_settles_nothing(line):
    version = registered(line)
    other = report_of(line).model_copy(update={"model_digest": "0" * 64})

    for report in (other, line.gates):
        with pytest.raises(ContenderError, match="gate report"):
            settle(line.loaded, line.platform, line.run, version, report)

    assert events(line) == []
    assert aliases(line) == {}


def test_a_version_judged_again_against_another_champion_is_settled_anew(line):
    version = registered(line)
    settle(line.loaded, line.platform, line.run, version, report_of(line))

    settled = settle(
        line.loaded, line.platform, line.run, version, report_of(line, Verdict.FAIL, champion="7")
    )

    assert settled.aliases == ()
    assert events(line) == [("model.registered", "patients/1"), ("model.rejected", "patients/1")]
    with pytest.raises(PromotionRefusedError, match="its gates say fail"):
        promote(line.platform, MODEL, version_ref(line.platform, MODEL, "1"))


def test_a_refusal_against_another_champion_is_recorded_beside_the_first(line):
    for report in (report_of(line, Verdict.FAIL), report_of(line, Verdict.FAIL, champion="7")) * 2:
        record_refusal(line.loaded, line.platform, line.run, report)

    assert [event for event, _ in events(line)] == ["model.refused", "model.refused"]


def test_settling_a_version_that_serves_leaves_it_champion(line):
    ref = proposed(line)
    promote(line.platform, MODEL, ref)
    version = registered(line)

    settled = settle(line.loaded, line.platform, line.run, version, report_of(line, champion="1"))

    assert settled.aliases == ("champion",)
    assert tag(line, "1", "state") == "champion"


def test_registering_and_settling_survive_being_killed_at_every_write(line, moved_platform, tmp_path, killer):
    def work(here):
        settle(here.loaded, here.platform, here.run, registered(here), report_of(here, Verdict.PASS))

    undisturbed, *others = killed_everywhere(line, moved_platform, tmp_path, killer, work)

    assert len(others) >= 7
    assert all(other == undisturbed for other in others)


# Promotion


def test_the_first_promotion_is_recorded_once_and_leaves_no_challenger(line):
    ref = proposed(line)

    first, again = (promote(line.platform, MODEL, ref) for _ in range(2))

    assert first == again
    assert first.aliases == ("champion",)
    assert aliases(line) == {"champion": "1"}
    assert standing_champion(line.platform, MODEL) == ref
    assert events(line) == [
        ("model.registered", "patients/1"),
        ("promotion.started", "patients/1"),
        ("model.promoted", "patients/1"),
    ]


def test_a_promotion_beside_another_is_refused_and_changes_nothing(line):
    ref = proposed(line)

    with (
        line.platform.alone(f"promotion-{MODEL}", "busy"),
        pytest.raises(BusyError, match="another promotion of patients is under way"),
    ):
        promote(line.platform, MODEL, ref)

    assert aliases(line) == {"challenger": "1"}
    assert promote(line.platform, MODEL, ref).aliases == ("champion",)


def test_a_second_promotion_keeps_the_champion_before_as_previous(line):
    promote(line.platform, MODEL, proposed(line))

    promote(line.platform, MODEL, proposed(line, champion="1"))

    assert aliases(line) == {"champion": "2", "previous": "1"}
    assert [tag(line, version, "state") for version in "12"] == ["replaced", "champion"]


def test_going_back_and_forth_is_recorded_each_time(line):
    first = proposed(line)
    promote(line.platform, MODEL, first)
    second = proposed(line, champion="1")

    for ref in (second, first, second, second, first):
        promote(line.platform, MODEL, ref)

    promoted = [subject for event, subject in events(line) if event == "model.promoted"]
    assert promoted == [f"patients/{version}" for version in "12121"]
    assert aliases(line) == {"champion": "1", "previous": "2"}
    assert [tag(line, version, "state") for version in "12"] == ["champion", "replaced"]
    assert ledger_of(line.platform).verify().ok


@pytest.mark.slow
@pytest.mark.parametrize("serving", [0, 2], ids=["nobody", "second"])
def test_a_promotion_survives_being_killed_at_every_write(line, moved_platform, tmp_path, killer, serving):
    for version in range(serving):
        promote(line.platform, MODEL, proposed(line, champion=str(version) if version else None))
    ref = proposed(line, champion=str(serving) if serving else None)

    undisturbed, *others = killed_everywhere(
        line, moved_platform, tmp_path, killer, lambda here: promote(here.platform, MODEL, ref)
    )

    assert len(others) >= 6
    assert all(other == undisturbed for other in others)


@pytest.mark.parametrize("verdict", [Verdict.FAIL, Verdict.INCONCLUSIVE])
def test_a_version_whose_gates_did_not_pass_is_not_promoted(line, verdict):
    ref = proposed(line, verdict)

    with pytest.raises(PromotionRefusedError, match=f"its gates say {verdict}"):
        promote(line.platform, MODEL, ref)

    assert aliases(line) == {}


def test_a_tag_set_by_hand_promotes_nothing(line):
    ref = proposed(line, Verdict.FAIL)
    client_of(line).set_model_version_tag(MODEL, "1", "contender.gate_verdict", "pass")

    with pytest.raises(PromotionRefusedError, match="ledger does not say"):
        promote(line.platform, MODEL, ref)


def test_a_version_that_was_not_settled_is_not_promoted(line):
    registered(line)

    with pytest.raises(PromotionRefusedError, match="its gates say nothing"):
        promote(line.platform, MODEL, version_ref(line.platform, MODEL, "1"))


def test_a_version_made_by_other_hands_with_all_our_tags_is_not_promoted(line):
    ref = proposed(line)
    client = client_of(line)
    copied = client.create_model_version(
        MODEL,
        source=client.get_logged_model(ref.model_id).artifact_location,
        run_id=ref.run_id,
        model_id=ref.model_id,
        tags=dict(client.get_model_version(MODEL, "1").tags),
    )

    with pytest.raises(PromotionRefusedError, match="ledger does not say"):
        promote(line.platform, MODEL, version_ref(line.platform, MODEL, str(copied.version)))


def test_a_version_made_by_other_hands_is_no_challenger(line):
    proposed(line)
    client = client_of(line)
    where = client.get_logged_model(line.trained.model_id).artifact_location
    client.create_model_version(MODEL, source=where, run_id=line.run.run_id)
    client.set_registered_model_alias(MODEL, "challenger", "2")

    with pytest.raises(PromotionRefusedError, match="was not registered by Contender"):
        challenger_of(line.platform, MODEL)
    assert isinstance(version_ref(line.platform, MODEL, "2"), ChampionMissing)


def test_a_model_file_that_was_tampered_with_is_not_promoted(line):
    ref = proposed(line)
    (skops,) = line.platform.root.rglob("model.skops")
    skops.write_bytes(skops.read_bytes() + b"\0")

    with pytest.raises(UntrustedModelError, match="its digest is"):
        promote(line.platform, MODEL, ref)

    assert aliases(line) == {"challenger": "1"}
    assert [event for event, _ in events(line)] == ["model.registered"]


def test_a_digest_that_was_tampered_with_is_not_promoted(line):
    proposed(line)
    client_of(line).set_model_version_tag(MODEL, "1", "contender.model_digest", "f" * 64)

    with pytest.raises(PromotionRefusedError, match="this model file"):
        promote(line.platform, MODEL, challenger_of(line.platform, MODEL))


def test_an_environment_that_wants_approvals_promotes_nothing(line):
    strict = line.platform.environment.model_copy(update={"approvals": ("model-risk",)})
    here = replace(line, platform=replace(line.platform, environment=strict))

    with pytest.raises(PromotionRefusedError, match="signed approvals by model-risk"):
        promote(here.platform, MODEL, proposed(here))

    assert aliases(here) == {"challenger": "1"}


def test_a_challenger_compared_with_another_champion_is_not_promoted(line):
    first, second = proposed(line), proposed(line)
    promote(line.platform, MODEL, first)

    with pytest.raises(PromotionRefusedError, match="compared it with no champion, and version 1 serves now"):
        promote(line.platform, MODEL, second)

    third = proposed(line, champion="1")
    promote(line.platform, MODEL, third)
    late = proposed(line, champion="1")
    with pytest.raises(PromotionRefusedError, match="with version 1, and version 3 serves now"):
        promote(line.platform, MODEL, late)


def test_a_champion_taken_away_by_hand_stops_promotions_until_it_is_named_again(line):
    promote(line.platform, MODEL, proposed(line))
    ref = proposed(line, champion="1")
    client_of(line).delete_registered_model_alias(MODEL, "champion")

    with pytest.raises(PromotionRefusedError, match="the alias is gone"):
        promote(line.platform, MODEL, ref)

    client_of(line).set_registered_model_alias(MODEL, "champion", "1")
    promote(line.platform, MODEL, ref)
    assert aliases(line) == {"champion": "2", "previous": "1"}


def test_a_champion_moved_by_hand_is_promoted_on_the_record_and_never_its_own_previous(line):
    promote(line.platform, MODEL, proposed(line))
    promote(line.platform, MODEL, proposed(line, champion="1"))
    client_of(line).set_registered_model_alias(MODEL, "champion", "1")

    promote(line.platform, MODEL, version_ref(line.platform, MODEL, "1"))

    assert aliases(line) == {"champion": "1"}
    assert events(line)[-1] == ("model.promoted", "patients/1")


def test_a_model_deleted_from_the_registry_starts_anew(line):
    promote(line.platform, MODEL, proposed(line))
    client_of(line).delete_registered_model(MODEL)
    again = another_run(line)

    version = registered(again)
    settle(again.loaded, again.platform, again.run, version, report_of(again))
    promoted = promote(again.platform, MODEL, challenger_of(again.platform, MODEL))

    assert promoted.version == "1"
    assert [event for event, _ in events(line)].count("model.promoted") == 2


def test_there_is_no_challenger_where_nothing_was_registered(line):
    with pytest.raises(PromotionRefusedError, match="has no challenger"):
        challenger_of(line.platform, MODEL)
    assert isinstance(standing_champion(line.platform, MODEL), NoChampionYet)


def test_a_registry_that_does_not_answer_is_no_missing_challenger(line, monkeypatch):
    def broken(*arguments):
        raise MlflowException("the database is locked")

    monkeypatch.setattr(MlflowClient, "get_model_version_by_alias", broken)

    with pytest.raises(MlflowException, match="locked"):
        challenger_of(line.platform, MODEL)


def test_a_ledger_that_was_changed_stops_promotions_before_any_alias_moves(line):
    ref = proposed(line)
    path = ledger_of(line.platform).path
    path.write_bytes(path.read_bytes().replace(b'"actor":"', b'"actor":"not-'))

    with pytest.raises(ContenderError):
        promote(line.platform, MODEL, ref)

    assert aliases(line) == {"challenger": "1"}


def test_promotion_asks_for_the_version_it_is_given(line):
    ref = proposed(line)
    other = ChampionRef(**{**ref.model_dump(), "run_id": "another"})

    with pytest.raises(PromotionRefusedError):
        promote(line.platform, MODEL, other)
    assert str(Version(name=MODEL, version="1", run_id="r", model_digest="d")) == "patients version 1"
