"""Environments: what is declared of a place to run, and that the shipped ones are as strict as they say."""

import base64
from datetime import UTC, datetime
from pathlib import Path

import jsonschema  # type: ignore[import-untyped]
import pytest
from pydantic import JsonValue, RootModel

from deployments.documents import load_document
from deployments.environment import (
    ENVIRONMENTS,
    Approver,
    DaskRunner,
    Environment,
    ProcessRunner,
    ThreadRunner,
    known_environments,
    load_environment,
    same_person,
)
from deployments.errors import BadInputError, SpecError

LEAST = "name: dev\nplatform: {kind: local, data_root: dev}\n"


class Anything(RootModel[dict[str, JsonValue]]):
    pass


def written(folder: Path, text: str) -> Path:
    path = folder / "dev.yaml"
    path.write_text(text)
    return path


def refused(folder: Path, text: str) -> str:
    path = written(folder, text)
    with pytest.raises(SpecError) as caught:
        load_environment(path)
    return str(caught.value).replace(str(path), "dev.yaml")


@pytest.mark.parametrize("name", known_environments())
def test_every_shipped_environment_loads_and_is_named_as_its_file(name: str) -> None:
    assert load_environment(name).name == name


@pytest.mark.parametrize("name", known_environments())
def test_the_json_schema_accepts_every_shipped_environment(name: str) -> None:
    validator = jsonschema.Draft202012Validator(Environment.model_json_schema())

    document = load_document(ENVIRONMENTS / f"{name}.yaml", Anything).root

    assert [error.message for error in validator.iter_errors(document)] == []
    assert not validator.is_valid(document | {"aprovals": []})


def test_no_two_shipped_environments_share_tables_models_or_approvers() -> None:
    shipped = [load_environment(name) for name in known_environments()]

    assert len({environment.platform.data_root for environment in shipped}) == len(shipped)
    assert len({environment.platform.model_prefix for environment in shipped}) == len(shipped)


def test_promotion_needs_more_people_the_nearer_to_production() -> None:
    dev, test, prod = (load_environment(name) for name in ("dev", "test", "prod"))

    assert len(dev.approvals) < len(test.approvals) < len(prod.approvals)
    assert dev.allow_dirty_tree
    assert not test.allow_dirty_tree
    assert not prod.allow_dirty_tree


def test_what_is_not_said_is_strict(tmp_path: Path) -> None:
    environment = load_environment(written(tmp_path, LEAST))

    assert not environment.allow_dirty_tree
    assert environment.allowed_packages == ("sklearn",)
    assert environment.task_runner == ThreadRunner(workers=2)


def test_an_unknown_environment_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(
        BadInputError, match=r"there is no environment 'prd' \(known: demo, dev, prod, test\)"
    ):
        load_environment("prd")


def test_environments_are_found_where_they_are_said_to_be(tmp_path: Path) -> None:
    written(tmp_path, LEAST)

    assert known_environments(tmp_path) == ("dev",)
    assert load_environment("dev", tmp_path) == load_environment(tmp_path / "dev.yaml")


@pytest.mark.parametrize(
    ("line", "runner"),
    [
        ("task_runner: {kind: threads, workers: 3}", ThreadRunner(workers=3)),
        ("task_runner: {kind: processes}", ProcessRunner(workers=2)),
        ("task_runner: {kind: dask, address: 'tcp://here:8786'}", DaskRunner(address="tcp://here:8786")),
    ],
)
def test_candidates_train_in_what_the_environment_names(tmp_path: Path, line: str, runner: object) -> None:
    assert load_environment(written(tmp_path, LEAST + line)).task_runner == runner


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("aprovals: [owner]", "aprovals: unknown key; did you mean 'approvals'?"),
        ("approvals: owner", "approvals: expected a list, found 'owner'"),
        ("allow_dirty_tree: maybe", "allow_dirty_tree: expected true or false, found 'maybe'"),
        (
            "task_runner: {kind: thread}",
            "task_runner.kind: expected 'threads', 'processes' or 'dask', found 'thread'",
        ),
        (
            "task_runner: {kind: threads, workers: 0}",
            "task_runner.workers: must be greater than or equal to 1",
        ),
        ("task_runner: {kind: threads, address: a}", "task_runner.address: unknown key"),
        ("budget: {memory_megabytes: 64}", "budget.memory_megabytes: must be greater than or equal to 256"),
        ("budget: {training_seconds: 0}", "budget.training_seconds: must be greater than 0"),
    ],
)
def test_a_bad_setting_is_refused_at_its_line_and_key(tmp_path: Path, line: str, problem: str) -> None:
    assert refused(tmp_path, LEAST + line).startswith(f"dev.yaml:3: {problem}")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("name: dev\n", "dev.yaml:1: platform: required key is missing"),
        ("name: Dev 1\nplatform: {kind: local, data_root: a}\n", "dev.yaml:1: name: text must match pattern"),
        ("name: dev\nplatform: {kind: local}\n", "dev.yaml:2: platform.data_root: required key is missing"),
        (
            "name: dev\nplatform: {data_root: a, model_prefix: Dev/}\n",
            "dev.yaml:2: platform.model_prefix: text must match pattern",
        ),
    ],
)
def test_an_environment_without_a_place_or_a_name_is_refused(tmp_path: Path, text: str, problem: str) -> None:
    assert refused(tmp_path, text).startswith(problem)


# Approvers


def key(byte: int = 7) -> str:
    return base64.b64encode(bytes([byte] * 32)).decode()


def approver(name: str, public_key: str, **more: str) -> str:
    fields = {"identities": f"[{name.lower()}@example.org]", "roles": "[owner]"} | more
    listed = ", ".join(f"{field}: {value}" for field, value in fields.items())
    return f"  - {{name: {name}, public_key: '{public_key}', {listed}}}\n"


def test_an_approver_is_a_person_with_names_roles_and_a_key(tmp_path: Path) -> None:
    line = approver("Ada", key(), valid_until="2027-01-31T00:00:00Z")

    (found,) = load_environment(written(tmp_path, LEAST + "approvers:\n" + line)).approvers

    assert found.key == bytes([7] * 32)
    assert found.person == {"ada", "ada@example.org"}
    assert found.valid(datetime(2027, 1, 30, tzinfo=UTC))
    assert not found.valid(datetime(2027, 1, 31, tzinfo=UTC))


def test_who_is_who_does_not_hang_on_capitals_spaces_or_how_a_letter_is_written() -> None:
    assert same_person(" Zoë@Example.org ") == same_person("zoe\u0308@example.ORG")
    assert same_person("ada") != same_person("ada2")


def test_a_role_that_nobody_has_may_be_asked_for(tmp_path: Path) -> None:
    text = LEAST + "approvals: [owner, compliance]\napprovers:\n" + approver("Ada", key())

    assert load_environment(written(tmp_path, text)).nobody_for() == ("compliance",)
    assert load_environment("prod").nobody_for() == ("owner", "compliance")


def test_production_takes_what_was_promoted_in_test_alone() -> None:
    assert {name: load_environment(name).takes_from for name in known_environments()} == {
        "demo": None,
        "dev": None,
        "test": None,
        "prod": "test",
    }


@pytest.mark.parametrize(
    ("first", "second", "problem"),
    [
        ("", approver("Ada", "AAAA"), "approvers[0].public_key: this is no ed25519 public key"),
        ("", approver("Ada", key()[:-1]), "approvers[0].public_key: this is no ed25519 public key"),
        ("", approver("Ada", "not base64"), "approvers[0].public_key: this is no ed25519 public key"),
        ("", approver("Ada", key(0)), "approvers[0].public_key: this key takes signatures that nobody made"),
        ("", approver("Ada", key(), identities="[]"), "approvers[0].identities: "),
        ("", approver("Ada", key(), identities="['a,b']"), "approvers[0].identities[0]: "),
        ("", approver("Ada", key(), roles="[]"), "approvers[0].roles: "),
        ("", approver("Ada", key(), valid_until="2027-01-31T00:00:00"), "approvers[0].valid_until: "),
        (
            approver("Bob", key()),
            approver("Ada", key()),
            "approvers[1].public_key: 'Bob' has this key already",
        ),
        (
            approver("Bob", key(8), identities="[ADA]"),
            approver("Ada", key()),
            "approvers[1]: 'Ada' has a name or identity of 'Bob'; one person has one entry",
        ),
    ],
)
def test_an_approver_who_cannot_be_told_from_others_or_has_no_key_is_refused(
    tmp_path: Path, first: str, second: str, problem: str
) -> None:
    assert problem in refused(tmp_path, LEAST + "approvers:\n" + first + second)


@pytest.mark.parametrize("point", [0, 1, 2**255 - 20, 2**255 - 19, 2**255 - 18])
@pytest.mark.parametrize("sign", [0, 1])
def test_a_key_by_which_anybody_can_sign_is_refused(point: int, sign: int) -> None:
    weak = base64.b64encode((point | sign << 255).to_bytes(32, "little")).decode()

    with pytest.raises(ValueError, match="signatures that nobody made"):
        Approver(name="Ada", identities=("ada",), roles=("owner",), public_key=weak)


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("approvals: [owner, owner]", "approvals: 'owner' is named twice"),
        ("approval_days: 0", "approval_days: must be greater than 0"),
        ("approval_days: .inf", "approval_days: must be less than or equal to 366"),
        ("takes_from: dev", "takes_from: an environment cannot take models from itself"),
    ],
)
def test_approvals_that_make_no_sense_are_refused(tmp_path: Path, line: str, problem: str) -> None:
    assert refused(tmp_path, LEAST + line).startswith(f"dev.yaml:3: {problem}")
