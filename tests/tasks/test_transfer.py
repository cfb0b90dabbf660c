"""A version that one environment promoted, taken into another: what travels, what is refused, what a crash leaves."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import yaml
from mlflow import MlflowClient

from deployments.environment import load_environment
from deployments.errors import BadInputError
from deployments.model_file import SKOPS_FILE, UntrustedModelError, folder_digests
from platforms import platform_for
from platforms.lock import BusyError
from platforms.platform import Platform
from tasks.cargo import require_one_key, require_passed
from tasks.champion import (
    CHALLENGER,
    ChampionRef,
    NoChampionYet,
    TrainingSnapshots,
    load_version,
    reference_snapshots,
    standing_champion,
    trained_spec,
    training_rows,
    version_ref,
)
from tasks.conclude import conclude, version_tags
from tasks.evidence import bundles, verify_bundle, write_bundle
from tasks.gate import GateReport, GateResult
from tasks.ledger import Ledger
from tasks.reference import SAMPLE_ROWS, carry_references, compared_columns
from tasks.register import (
    INTEGRATION,
    PromotionRefusedError,
    challenger_of,
    integration_gate,
    ledger_of,
    promote,
    register_version,
    settle,
)
from tasks.tracking import Tracking
from tasks.train import TrainedModel
from tasks.transfer import PASSED_APPROVERS, TRANSFERRED_FROM, transfer_version
from tasks.validate import distribution_check
from tasks.verdict import Verdict

MODEL = "patients"
DEV = """
name: dev
platform: {kind: local, data_root: data}
allow_dirty_tree: true
"""
PROD = """
name: prod
platform: {kind: local, data_root: prod, model_prefix: prod-}
allow_dirty_tree: true
"""
INTACT = GateResult(gate=INTEGRATION, verdict=Verdict.PASS, value=0.0, threshold=1e-9, reason="")


def finish(line, gate=integration_gate):
    """Register, judge, conclude and promote a line's model, as the flows do; gives it with its version."""
    platform, run = line.platform, line.run
    tracking = Tracking(platform)
    tracking.save_document(run.run_id, "snapshots", TrainingSnapshots(tables={"rows": line.gold}))
    tags = version_tags(line.loaded, platform, run, line.tables, line.gold, line.trained)
    version = register_version(line.loaded, platform, run, line.trained, tags)
    gates = line.gates.plus(gate(platform, version, line.trained))
    tracking.save_document(run.run_id, "gates", gates)
    version = settle(line.loaded, platform, run, version, gates)
    conclude(
        line.loaded,
        platform,
        run,
        tables=line.tables,
        gold=line.gold,
        parts=line.parts,
        leaderboard=line.leaderboard,
        trained=line.trained,
        evaluation=line.evaluation,
        gates=gates,
        version=version,
    )
    return replace(line, gates=gates)


@pytest.fixture(scope="session")
def settled_line(first_line, moved_platform, tmp_path_factory):
    """A model trained, judged and proposed; not to be written to: ask for `places`."""
    root = tmp_path_factory.mktemp("settled") / "data"
    return finish(replace(first_line, platform=moved_platform(first_line.platform, root)))


@dataclass
class Places:
    """A source with a champion, an empty target, and the training that the champion is of."""

    source: Platform
    target: Platform
    line: Any
    declare: Callable[..., Platform]

    def transfer(self, number=None):
        return transfer_version(self.source, self.target, MODEL, number)

    def arrived(self, number="1"):
        return version_ref(self.target, MODEL, number)


@pytest.fixture
def places(settled_line, moved_platform, mlflow_template, tmp_path, monkeypatch):
    """Environments declared in files of the test's own; `declare(takes_from="dev")` changes the target."""
    home, declared = tmp_path / "home", tmp_path / "environments"
    declared.mkdir()
    (declared / "dev.yaml").write_text(DEV)
    (declared / "prod.yaml").write_text(PROD)
    monkeypatch.setenv("CONTENDER_HOME", str(home))
    monkeypatch.setattr("tasks.cargo.load_environment", partial(load_environment, root=declared))
    source = moved_platform(settled_line.platform, home / "data")
    promote(source, MODEL, version_ref(source, MODEL, "1"))
    (home / "prod").mkdir()
    shutil.copy(mlflow_template, home / "prod" / "mlflow.db")

    def declare(**changes):
        said = {**yaml.safe_load(PROD), **changes}
        (declared / "prod.yaml").write_text(yaml.safe_dump(said))
        return platform_for(load_environment("prod", root=declared))

    return Places(source, declare(), replace(settled_line, platform=source), declare)


@pytest.fixture
def intact(monkeypatch):
    """The fresh process that tries the artifact takes seconds; where it is not what is tested, it says that it held."""
    monkeypatch.setattr("tasks.transfer.integration_gate", lambda *_: INTACT)


def tags(platform, number="1"):
    return Tracking(platform).client.get_model_version(platform.registered_model(MODEL), number).tags


def aliases(platform):
    found = Tracking(platform).client.get_registered_model(platform.registered_model(MODEL)).aliases
    return {alias: str(number) for alias, number in dict(found).items()}


def events(platform):
    return [entry.event for entry in ledger_of(platform).entries(MODEL)]


def details(platform, event):
    return next(entry.details for entry in ledger_of(platform).entries(MODEL) if entry.event == event)


def edit(ledger, old, new):
    """What somebody with a text editor does to a ledger."""
    text = ledger.path.read_text()
    assert old in text
    ledger.path.write_text(text.replace(old, new))


def files_of(platform, model_id):
    location = Tracking(platform).client.get_logged_model(model_id).artifact_location
    return Path(location.removeprefix("file://"))


# What arrives


@pytest.mark.slow
def test_a_transferred_version_is_judged_and_used_where_its_source_is_gone(places):
    before = places.line.platform.tables.read(places.line.gold).slice(0, 20)

    found = places.transfer()

    shutil.rmtree(places.source.root)
    ref = places.arrived()
    assert found.gates.verdict is Verdict.PASS
    assert [result.gate for result in found.gates.results][-1] == INTEGRATION
    assert found.gates.results[-1].value == pytest.approx(0)
    assert aliases(places.target) == {CHALLENGER: "1"}
    assert ref == challenger_of(places.target, MODEL)
    assert (ref.name, ref.digest) == ("prod-patients", places.line.trained.digest)
    model = load_version(places.target, ref)
    inputs = before.select(["radius", "texture", "visits", "ward", "insured"]).to_pandas()
    assert len(model.predict(inputs)) == 20
    assert trained_spec(places.target, ref) == places.line.loaded.spec
    assert len(training_rows(places.target, ref)) == places.line.trained.training_rows
    promote(places.target, MODEL, ref)
    assert aliases(places.target) == {"champion": "1"}


def test_every_file_of_the_model_arrives_as_it_was_saved(places, intact):
    places.transfer()

    theirs, ours = places.line.trained, places.arrived()
    assert folder_digests(files_of(places.target, ours.model_id)) == theirs.files
    assert ours.model_id != theirs.model_id
    assert Tracking(places.target).document(ours.run_id, "trained", TrainedModel).model_id == ours.model_id


def test_both_ledgers_say_what_was_sent_and_received(places, intact):
    places.transfer()

    assert details(places.source, "transfer.sent") == {
        "to": "prod/prod-patients/1",
        "model_digest": places.line.trained.digest,
    }
    received = details(places.target, "transfer.received")
    assert received["from"] == "dev/patients/1"
    assert received["model_digest"] == places.line.trained.digest
    assert received["source_run_id"] == places.line.run.run_id
    assert events(places.target) == ["model.registered", "evidence.written", "transfer.received"]
    assert ledger_of(places.source).verify().ok
    assert ledger_of(places.target).verify().ok


def test_lineage_and_author_travel_with_the_version(places, intact):
    theirs = tags(places.source)
    author = details_actor(places.source, "model.registered")

    places.transfer()

    ours = tags(places.target)
    kept = ("snapshot_digest", "commit", "training_key", "candidate", "owner", "risk", "contract_digest")
    assert {name: ours[f"contender.{name}"] for name in kept} == {
        name: theirs[f"contender.{name}"] for name in kept
    }
    assert ours["contender.author"] == author
    assert ours[TRANSFERRED_FROM] == "dev/patients/1"
    assert ours["contender.environment"] == "prod"
    assert ours["contender.transferred_run"] == places.line.run.run_id
    run = Tracking(places.target).client.get_run(places.arrived().run_id)
    assert run.data.tags[TRANSFERRED_FROM] == "dev/patients/1"
    assert run.info.status == "FINISHED"


def details_actor(platform, event):
    return next(entry.actor for entry in ledger_of(platform).entries(MODEL) if entry.event == event)


def test_an_author_changed_in_the_registry_is_not_believed(places, intact):
    author = details_actor(places.source, "model.registered")
    Tracking(places.source).client.set_model_version_tag(MODEL, "1", "contender.author", "somebody else")

    places.transfer()

    assert tags(places.target)["contender.author"] == author


def test_the_sources_address_is_told_without_what_may_be_secret_in_it(places, intact):
    store = f"sqlite:///{places.source.root / 'mlflow.db'}"
    config = places.source.environment.platform.model_copy(update={"tracking_uri": f"{store}?timeout=20"})
    environment = places.source.environment.model_copy(update={"platform": config})

    transfer_version(replace(places.source, environment=environment), places.target, MODEL)

    assert tags(places.target)["contender.transferred_tracking"] == store
    assert details(places.target, "transfer.received")["tracking"] == store


def test_who_approved_the_release_in_the_source_is_told_in_the_target(places, intact):
    ledger_of(places.source).append(
        "release.promoted",
        model=MODEL,
        subject="patients/1",
        details={"approvers": ["Ana", "ana@example.com"]},
        key="release",
        actor="tests",
    )

    places.transfer()

    assert json.loads(tags(places.target)[PASSED_APPROVERS]) == ["Ana", "ana@example.com"]
    assert details(places.target, "transfer.received")["passed_approvers"] == ["Ana", "ana@example.com"]


def test_where_nobody_had_to_approve_nobody_is_named(places, intact):
    places.transfer()

    assert json.loads(tags(places.target)[PASSED_APPROVERS]) == []


def test_the_target_has_an_evidence_bundle_of_its_own_without_rows(places, intact):
    places.transfer()

    (bundle,) = bundles(places.target)
    assert verify_bundle(places.target, bundle) == ()
    names = set(folder_digests(bundle))
    assert {"gates.json", "model.yaml", "report.html", "model_card.md", "from-dev/gates.json"} <= names
    assert not [name for name in names if name.endswith(".parquet")]


def test_a_version_passes_on_through_a_third_environment(places, intact, tmp_path, mlflow_template):
    environment = places.target.environment
    config = environment.platform.model_copy(update={"data_root": "last", "model_prefix": "last-"})
    third = platform_for(environment.model_copy(update={"name": "last", "platform": config}))
    third.root.mkdir()
    shutil.copy(mlflow_template, third.root / "mlflow.db")
    places.transfer()
    promote(places.target, MODEL, places.arrived())

    transfer_version(places.target, third, MODEL)

    ref = version_ref(third, MODEL, "1")
    assert folder_digests(files_of(third, ref.model_id)) == places.line.trained.files
    assert tags(third)[TRANSFERRED_FROM] == "prod/prod-patients/1"
    assert tags(third)["contender.author"] == details_actor(places.source, "model.registered")


# Reference data


def test_what_later_data_is_compared_with_lies_in_the_target(places, intact):
    places.transfer()

    found = reference_snapshots(places.target, places.arrived())["rows"]
    assert Path(found.uri).is_relative_to(places.target.root)
    assert set(found.columns) == {"radius", "texture", "visits", "ward", "insured"}
    theirs = places.source.tables.read(places.line.gold, ["radius"])
    assert places.target.tables.read(found, ["radius"]) == theirs


def test_a_sample_of_a_large_table_gives_the_distance_that_the_whole_gives(platform, tmp_path, make_spec):
    def change(spec):
        spec["contract"]["fruit"]["distribution"] = [{"column": "weight", "test": "psi", "max": 0.2}]

    loaded, random = make_spec("binary", change), np.random.default_rng(1)
    rows = SAMPLE_ROWS + 20_000
    whole = platform.tables.write(
        "silver/fruit/fruit", pa.table({"weight": random.normal(size=rows), "tree": ["x"] * rows}).to_reader()
    )
    newer = platform.tables.write(
        "silver/fruit/new", pa.table({"weight": random.normal(0.3, 1, 5000)}).to_reader()
    )
    target = replace(platform, root=tmp_path / "target")

    carried = carry_references(loaded.spec, platform, target, {"fruit": whole}).tables["fruit"]

    (check,) = loaded.spec.contract["fruit"].distribution
    assert (carried.rows, carried.columns) == (SAMPLE_ROWS, ("weight",))
    expected = distribution_check(platform, check, whole, newer).value
    assert distribution_check(target, check, carried, newer).value == expected > 0


def test_personal_data_keys_and_target_are_not_carried(make_spec, platform):
    def change(spec):
        spec["contract"]["fruit"]["columns"]["shape"] |= {"pii": "hash"}
        spec["evaluation"]["slices"] = []

    loaded = make_spec("binary", change)
    rows = pa.table({name: [1] for name in loaded.spec.contract["fruit"].columns})
    snapshot = platform.tables.write("silver/fruit/fruit", rows.to_reader())

    assert compared_columns(loaded.spec, "fruit", snapshot) == ("weight", "sugar", "spots", "washed")


# Against the target's champion


def proposed_again(places, champion, outcome=True):
    """Another version of the same file in the source, whose gates compared it with `champion`."""
    line, tracking = places.line, Tracking(places.source)
    run = line.run.model_copy(update={"run_id": tracking.create_run(line.run.experiment_id, "again", {})})
    kept = Path(tracking.client.download_artifacts(line.run.run_id, ""))
    tracking.client.log_artifacts(run.run_id, str(kept))
    if not outcome:
        moved = (kept / "outcome.json").read_text().replace(line.parts.holdout.snapshot.uri, "/nowhere")
        tracking.client.log_text(run.run_id, moved, "outcome.json")
    tracking.log(run.run_id, params=tracking.client.get_run(line.run.run_id).data.params)
    version = register_version(
        line.loaded, places.source, run, line.trained, {"contender.dirty": "true", "contender.again": "yes"}
    )
    gates = line.gates.model_copy(update={"champion": champion})
    tracking.save_document(run.run_id, "gates", gates)
    version = settle(line.loaded, places.source, run, version, gates)
    documents = {"gates.json": gates.model_dump_json(indent=1)}
    documents |= {name: (kept / name).read_bytes() for name in ("trained.json", "model.yaml")}
    write_bundle(places.source, MODEL, version, documents)
    return version.version


def a_version_from_elsewhere(platform):
    """So that numbers in the target are not those of the source."""
    client, name = Tracking(platform).client, platform.registered_model(MODEL)
    client.create_registered_model(name)
    client.create_model_version(name, source=platform.root.as_uri())


def test_the_sources_comparison_holds_where_the_target_has_the_same_champion(places, intact):
    a_version_from_elsewhere(places.target)
    promote(places.target, MODEL, places.arrived(places.transfer().version.version))
    number = proposed_again(places, champion="1")

    found = places.transfer(number)

    assert (number, found.version.version) == ("2", "3")
    assert found.gates.champion == "2"
    assert found.gates.results[:-1] == places.line.gates.results[:-1]
    promote(places.target, MODEL, places.arrived("3"))
    assert aliases(places.target) == {"champion": "3", "previous": "2"}


def test_a_version_compared_with_nobody_is_measured_beside_the_targets_champion(places, intact):
    promote(places.target, MODEL, places.arrived(places.transfer().version.version))
    number = proposed_again(places, champion=None)

    found = places.transfer(number)

    assert found.gates.champion == "1"
    against = next(result for result in found.gates.results if result.gate.startswith("champion"))
    assert (against.verdict, against.value) == (Verdict.PASS, 0)
    assert found.version.aliases == (CHALLENGER,)


def test_where_the_rows_to_compare_on_are_gone_the_version_is_refused(places, intact):
    promote(places.target, MODEL, places.arrived(places.transfer().version.version))
    number = proposed_again(places, champion=None, outcome=False)

    with pytest.raises(PromotionRefusedError, match="the rows on which it could be cannot be had"):
        places.transfer(number)

    assert aliases(places.target) == {"champion": "1"}


# What is refused


def refused(places, match, error=PromotionRefusedError, number=None, target=None):
    """Nothing of the version is in the target afterwards."""
    target = target or places.target
    with pytest.raises(error, match=match):
        transfer_version(places.source, target, MODEL, number)

    assert events(target) == []
    assert isinstance(standing_champion(target, MODEL), NoChampionYet)
    assert Tracking(target).client.search_registered_models() == []
    assert '"transfer.sent"' not in ledger_of(places.source).path.read_text()


def test_a_version_that_was_not_promoted_in_the_named_environment_is_refused(places):
    number = proposed_again(places, champion=None)

    refused(
        places,
        f"patients version {number} has not passed in environment 'dev': its ledger holds no promotion",
        number=number,
        target=places.declare(takes_from="dev"),
    )


def test_a_version_that_was_rolled_back_has_not_passed(places):
    ledger_of(places.source).append(
        "release.rolled_back", model=MODEL, subject="patients/1", details={}, key="back", actor="tests"
    )

    refused(places, "it was rolled back there", target=places.declare(takes_from="dev"))


@pytest.mark.parametrize(("back", "expected"), [(False, "it was rolled back there"), (True, None)])
def test_a_version_that_was_left_for_another_has_passed_once_it_is_back(places, back, expected):
    for subject, leaves in [("patients/0", "1"), ("patients/1", "0")][: 2 if back else 1]:
        ledger_of(places.source).append(
            "model.restored",
            model=MODEL,
            subject=subject,
            details={"leaves": leaves},
            key=subject,
            actor="tests",
        )
    target = places.declare(takes_from="dev")

    if expected:
        with pytest.raises(PromotionRefusedError, match=expected):
            require_passed(target, MODEL, fresh(places))
    else:
        require_passed(target, MODEL, fresh(places))


def test_a_source_that_asks_for_approvals_and_cannot_say_who_gave_them_is_refused(places):
    strict = places.source.environment.model_copy(update={"approvals": ("reviewer",)})

    refused(replace(places, source=replace(places.source, environment=strict)), "does not say who approved")


def test_an_environment_takes_only_from_the_one_it_names(places):
    other = places.source.environment.model_copy(update={"approvals": ("anybody",)})
    posing = replace(places, source=replace(places.source, environment=other))

    refused(
        posing,
        "takes models from environment 'dev' as it is declared",
        target=places.declare(takes_from="dev"),
    )


def test_a_source_whose_ledger_was_edited_is_not_believed(places):
    ledger = ledger_of(places.source)
    text = ledger.path.read_text()
    ledger.path.write_text(text.replace("model.promoted", "model.Promoted"))

    refused(places, "the ledger of environment 'dev' does not verify")


def test_a_gate_report_that_the_ledger_does_not_know_is_refused(places):
    run = places.line.run.run_id
    tracking = Tracking(places.source)
    tracking.save_document(run, "gates", tracking.document(run, "gates", GateReport).plus(INTACT))

    refused(places, "does not say that the gates passed this model file with this report")


@pytest.mark.parametrize("file", [SKOPS_FILE, "MLmodel", "an_extra.py"])
def test_a_changed_or_added_file_is_refused(places, file):
    path = files_of(places.source, places.line.trained.model_id) / file
    with path.open("ab") as handle:
        handle.write(b" ")

    refused(places, f"changed, missing or added since it was saved: {file}", UntrustedModelError)


@pytest.mark.parametrize("document", ["model.yaml", "trained.json"])
def test_a_document_that_differs_from_the_evidence_is_refused(places, document):
    tracking, run = Tracking(places.source), places.line.run.run_id
    text = Path(tracking.client.download_artifacts(run, document)).read_text()
    tracking.client.log_text(run, f"{text}\n", document)

    refused(places, f"other documents than its evidence: {document}", UntrustedModelError)


def test_a_version_without_evidence_is_refused(places):
    shutil.rmtree(bundles(places.source)[0])

    refused(places, "is not as it was written")


def test_a_digest_changed_in_the_registry_is_refused(places):
    Tracking(places.source).client.set_model_version_tag(MODEL, "1", "contender.model_digest", "0" * 64)

    refused(places, "is of another model file", UntrustedModelError)


def test_a_model_from_uncommitted_code_is_refused_where_code_must_be_committed(places):
    Tracking(places.source).client.set_model_version_tag(MODEL, "1", "contender.dirty", "true")

    refused(places, "trained from uncommitted code", target=places.declare(allow_dirty_tree=False))


@pytest.mark.parametrize("number", ["7", "latest"])
def test_an_unknown_version_is_refused(places, number):
    refused(places, f"version {number} cannot be read", BadInputError, number)


def test_a_source_without_a_champion_has_nothing_to_send(places):
    posing = replace(places, source=places.target, target=places.source)

    with pytest.raises(BadInputError, match="prod-patients has no champion to transfer"):
        posing.transfer()


def test_an_environment_is_not_transferred_into_itself(places):
    with pytest.raises(BadInputError, match="there is nothing to transfer"):
        transfer_version(places.source, places.source, MODEL)


def test_hashes_made_with_another_key_are_refused(places, make_spec):
    def change(spec):
        spec["contract"]["fruit"]["columns"]["shape"] |= {"pii": "hash"}
        spec["evaluation"]["slices"] = []

    spec = make_spec("binary", change).spec

    with pytest.raises(
        PromotionRefusedError, match="it knows shape as hashes, and environments 'dev' and 'prod'"
    ):
        require_one_key(spec, places.source, places.target, "fruit version 1")


def test_hashes_made_with_the_same_key_are_taken(places, make_spec, monkeypatch):
    monkeypatch.setenv("CONTENDER_PII_KEY", "the same")

    def change(spec):
        spec["contract"]["fruit"]["columns"]["shape"] |= {"pii": "hash"}
        spec["evaluation"]["slices"] = []

    require_one_key(make_spec("binary", change).spec, places.source, places.target, "fruit version 1")


def test_one_transfer_of_a_model_at_a_time(places):
    with places.target.alone("transfer-prod-patients", "busy"):
        refused(places, "another transfer of prod-patients is under way", BusyError)


# What may be promoted


def fresh(places, digest=None):
    """A reference to a version of the target, of the file that passed or of another."""
    return ChampionRef(
        name="prod-patients",
        version="1",
        run_id="r",
        model_id="m",
        digest=digest or places.line.trained.digest,
    )


def test_a_file_that_passed_may_be_promoted(places):
    require_passed(places.declare(takes_from="dev"), MODEL, fresh(places))


def test_an_environment_that_takes_from_nowhere_asks_nobody(places):
    require_passed(places.target, MODEL, fresh(places, "0" * 64))


def test_a_file_that_did_not_pass_may_not_be_promoted(places):
    with pytest.raises(
        PromotionRefusedError, match="the model file 000000000000… has not passed in environment"
    ):
        require_passed(places.declare(takes_from="dev"), MODEL, fresh(places, "0" * 64))


def test_a_broken_ledger_lets_nothing_pass(places):
    ledger = ledger_of(places.source)
    ledger.path.write_bytes(ledger.path.read_bytes()[:-200])

    with pytest.raises(PromotionRefusedError, match="does not verify, and nothing is taken on its word"):
        require_passed(places.declare(takes_from="dev"), MODEL, fresh(places))


def test_a_former_champion_comes_back_also_while_the_other_environment_is_gone(places):
    shutil.rmtree(places.source.root)
    target = places.declare(takes_from="dev")
    ledger_of(target).append(
        "model.promoted",
        model=MODEL,
        subject="prod-patients/1",
        details={"model_digest": places.line.trained.digest},
        key="promoted",
        actor="tests",
    )

    require_passed(target, MODEL, fresh(places))
    with pytest.raises(PromotionRefusedError, match="has not passed"):
        require_passed(target, MODEL, fresh(places).model_copy(update={"version": "2"}))


def test_a_whole_new_history_in_the_source_is_noticed(places, intact, tmp_path):
    target = places.declare(takes_from="dev")
    transfer_version(places.source, target, MODEL)
    ref = version_ref(target, MODEL, "1")
    require_passed(target, MODEL, ref)
    theirs = ledger_of(places.source)
    entries = list(theirs.entries())
    for path in theirs.path.parent.iterdir():
        path.unlink()
    for entry in entries:
        told = {name: getattr(entry, name) for name in ("model", "subject", "details", "key", "actor")}
        theirs.append(entry.event, **told)

    with pytest.raises(
        PromotionRefusedError, match="no longer holds the promotion that it was transferred on"
    ):
        require_passed(target, MODEL, ref)


# Again, and after a crash


def everything(places):
    """All that the target's registry and both ledgers say, but for times."""
    client, name = Tracking(places.target).client, "prod-patients"
    return {
        "aliases": aliases(places.target),
        "versions": [found.version for found in client.search_model_versions(f"name = '{name}'")],
        "runs": len(client.search_runs([client.get_experiment_by_name(name).experiment_id])),
        "models": len(client.search_logged_models([client.get_experiment_by_name(name).experiment_id])),
        "state": tags(places.target)["contender.state"],
        "received": events(places.target),
        "sent": events(places.source).count("transfer.sent"),
        "bundles": [verify_bundle(places.target, bundle) for bundle in bundles(places.target)],
    }


UNDISTURBED = {
    "aliases": {CHALLENGER: "1"},
    "versions": [1],
    "runs": 1,
    "models": 1,
    "state": "challenger",
    "received": ["model.registered", "evidence.written", "transfer.received"],
    "sent": 1,
    "bundles": [()],
}


def test_a_version_that_was_transferred_is_answered_as_it_stands(places, intact):
    first = places.transfer()

    again = places.transfer()

    assert not first.unchanged
    assert again.unchanged
    assert again.model_copy(update={"unchanged": False}) == first
    assert everything(places) == UNDISTURBED


def test_a_version_that_became_champion_is_not_proposed_again(places, intact):
    promote(places.target, MODEL, places.arrived(places.transfer().version.version))

    again = places.transfer()

    assert again.unchanged
    assert again.version.aliases == ("champion",)


def test_a_proposal_is_judged_again_once_another_champion_serves(places, intact):
    places.transfer()
    promote(
        places.target, MODEL, places.arrived(places.transfer(proposed_again(places, None)).version.version)
    )

    again = places.transfer()

    assert not again.unchanged
    assert again.gates.champion == "2"


class Killed(BaseException):
    """Stands for SIGKILL after a call that changes something."""


STEPS = (
    (MlflowClient, "create_run"),
    (MlflowClient, "log_artifacts"),
    (MlflowClient, "create_logged_model"),
    (MlflowClient, "log_model_artifacts"),
    (MlflowClient, "finalize_logged_model"),
    (MlflowClient, "log_text"),
    (MlflowClient, "create_registered_model"),
    (MlflowClient, "create_model_version"),
    (Ledger, "append"),
    (MlflowClient, "set_model_version_tag"),
    (MlflowClient, "set_registered_model_alias"),
    (MlflowClient, "update_model_version"),
    (MlflowClient, "set_terminated"),
)


@pytest.mark.slow
def test_a_transfer_killed_after_each_step_in_turn_ends_like_one_that_was_not(places, intact, monkeypatch):
    for owner, name in STEPS:
        write = getattr(owner, name)

        def deadly(*arguments, write=write, **named):
            write(*arguments, **named)
            raise Killed

        with monkeypatch.context() as patch:
            patch.setattr(owner, name, deadly)
            with pytest.raises(Killed):
                places.transfer()

    again = places.transfer()

    assert again.version.aliases == (CHALLENGER,)
    assert everything(places) == UNDISTURBED
