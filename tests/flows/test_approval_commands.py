"""The commands of approvals: keys, approvals and rejections, and what stands, as a person at a terminal meets them."""

import json
import os
import subprocess
import sys
from datetime import UTC, datetime
from itertools import count
from pathlib import Path

import pytest
import yaml
from mlflow import MlflowClient

from deployments.environment import Approver, load_environment
from deployments.spec import load_spec
from flows.run import main
from platforms import platform_for
from platforms.local import LocalPlatform
from tasks.approvals import SignedApproval, standing, submit
from tasks.approver_keys import new_key
from tasks.champion import version_ref
from tasks.code_version import CodeVersion
from tasks.gate import GateReport, GateResult
from tasks.register import INTEGRATION, Version, ledger_of, settle
from tasks.tracking import TAG, Tracking
from tasks.train import TrainingRun
from tasks.verdict import Verdict

ROOT = Path(__file__).parents[2]
MODEL, DIGEST, AUTHOR = "churn", "d" * 64, "tess@example.org"
NUMBERS = count()


class Person:
    """Somebody with a key, and their entry in an environment."""

    def __init__(self, folder, name, *roles, passphrase=None):
        self.key = folder / f"{name}.pem"
        self.entry = {
            "name": name,
            "identities": [f"{name.lower()}@example.org"],
            "roles": list(roles),
            "public_key": new_key(self.key, passphrase),
        }


@pytest.fixture(scope="module")
def registry(tmp_path_factory):
    """The address of a registry that these tests share, each with a model of its own."""
    address = f"sqlite:///{tmp_path_factory.mktemp('registry') / 'mlflow.db'}"
    MlflowClient(address).search_experiments()
    return address


@pytest.fixture
def people(tmp_path):
    return Person(tmp_path, "Ada", "owner"), Person(
        tmp_path, "Bob", "compliance", passphrase=b"correct horse"
    )


@pytest.fixture
def env(registry, people, home, tmp_path, monkeypatch):
    """The path of an environment that asks two people, with a challenger whose gates passed."""
    monkeypatch.setattr(LocalPlatform, "identity", lambda self: AUTHOR)
    path = tmp_path / "strict.yaml"
    document = {
        "name": "strict",
        "platform": {
            "data_root": "strict",
            "tracking_uri": registry,
            "model_prefix": f"model{next(NUMBERS)}-",
        },
        "approvals": ["owner", "compliance"],
        "approvers": [person.entry for person in people],
    }
    path.write_text(yaml.safe_dump(document))
    platform = platform_for(load_environment(path))
    tracking, name = Tracking(platform), platform.registered_model(MODEL)
    tracking.client.create_registered_model(name)
    code = CodeVersion(commit=None, dirty=True, digest=DIGEST)
    run = TrainingRun(
        run_id=tracking.create_run("0", "a training", {}),
        experiment_id="0",
        key="key",
        as_of=datetime.now(UTC),
        started=0.0,
        code=code,
    )
    tags = {f"{TAG}author": AUTHOR, f"{TAG}model_digest": DIGEST, f"{TAG}model_id": "m-1"}
    tracking.client.create_model_version(name, source=tmp_path.as_uri(), run_id=run.run_id, tags=tags)
    passed = GateResult(gate=INTEGRATION, verdict=Verdict.PASS, value=0.0, threshold=1.0, reason="")
    settle(
        load_spec(MODEL),
        platform,
        run,
        Version(name=name, version="1", run_id=run.run_id, model_digest=DIGEST),
        GateReport(model_digest=DIGEST, champion=None, results=(passed,)),
    )
    return str(path)


@pytest.fixture
def say(env, capsys):
    """Runs a command about the challenger; gives its exit code, standard output and standard error."""

    def run(command, *arguments):
        capsys.readouterr()
        code = main([command, "--model", MODEL, "--env", env, *map(str, arguments)])
        return code, *capsys.readouterr()

    return run


def approve(say, person, role, *more):
    return say("approve", "--role", role, "--ticket", "CHG-123", "--key", person.key, *more)


def events(env):
    return [entry.event for entry in ledger_of(platform_for(load_environment(env))).entries(MODEL)]


def test_two_people_approve_and_the_table_says_so(say, people, monkeypatch):
    ada, bob = people
    monkeypatch.setenv("BOBS", "correct horse")

    code, out, _ = approve(say, ada, "owner", "--comment", "read it")
    assert code == 0
    assert "Ada approved" in out
    assert "Not approved yet: compliance missing." in out
    code, out, _ = approve(say, bob, "compliance", "--version", "1", "--passphrase-env", "BOBS")
    assert code == 0
    assert "Complete: it may be released." in out

    code, out, _ = say("approvals")
    assert code == 0
    assert all(word in out for word in ("Ada", "Bob", "CHG-123", "owner", "compliance", "UTC"))


def test_approvals_are_shown_as_json_with_what_is_missing(say, people):
    approve(say, people[0], "owner", "--days", "1")

    code, out, _ = say("approvals", "--json")

    found = json.loads(out)
    assert code == 0
    assert not found["complete"]
    assert found["why_not"] == "compliance: nobody has approved yet"
    owner, compliance = found["roles"]
    assert (owner["counts"], owner["approver"], owner["ticket"]) == (True, "Ada", "CHG-123")
    assert datetime.fromisoformat(owner["until"]) > datetime.now(UTC)
    assert (compliance["counts"], compliance["approver"]) == (False, None)


def test_an_approval_as_json_says_what_was_given_and_how_it_stands(say, people):
    code, out, _ = approve(say, people[0], "owner", "--json")

    found = json.loads(out)
    assert code == 0
    assert found["given"]["role"] == "owner"
    assert found["given"]["digest"] == found["standing"]["roles"][0]["digest"]


def test_a_rejection_is_shown_above_all_approvals(say, people):
    approve(say, people[0], "owner")

    code, out, _ = approve(say, people[0], "owner", "--reject", "--comment", "the data is stale")

    assert code == 0
    assert "Ada rejected" in out
    assert "Not approved: Ada rejected it as owner (CHG-123)" in out
    assert json.loads(say("approvals", "--json")[1])["rejected"]["comment"] == "the data is stale"


def test_a_token_is_one_line_that_gives_the_same_approval_elsewhere(say, env, people):
    before = events(env)

    code, out, _ = approve(say, people[0], "owner", "--token")

    assert code == 0
    assert events(env) == before
    (token,) = out.splitlines()
    platform = platform_for(load_environment(env))
    submit(platform, SignedApproval.from_token(token))
    ref = version_ref(platform, MODEL, "1")
    assert len(standing(platform, MODEL, ref, datetime.now(UTC)).digests) == 1


@pytest.mark.parametrize("more", [(), ("--token",)])
def test_a_role_that_is_not_theirs_is_refused_with_exit_code_3(say, people, more):
    code, out, err = approve(say, people[0], "compliance", *more)

    assert code == 3
    assert out == ""
    assert "Ada does not have the role 'compliance'" in err


def test_a_key_of_nobody_is_refused_with_what_to_enter(say, tmp_path):
    eve = Person(tmp_path, "Eve")

    code, _, err = approve(say, eve, "owner")

    assert code == 3
    assert f"enter its public key {eve.entry['public_key']}" in err


def test_a_ticket_that_is_blank_and_a_key_that_is_not_there_are_bad_input(say, people, tmp_path):
    assert say("approve", "--role", "owner", "--ticket", " ", "--key", people[0].key)[0] == 2
    assert say("approve", "--role", "owner", "--ticket", "C", "--key", tmp_path / "none.pem")[0] == 2
    assert say("approvals", "--version", "9")[0] == 2


def test_a_passphrase_is_never_guessed_where_nobody_can_be_asked(say, people, monkeypatch):
    code, _, err = approve(say, people[1], "compliance")
    assert code == 2
    assert "--passphrase-env" in err

    code, _, err = approve(say, people[1], "compliance", "--passphrase-env", "NOT_SET")
    assert code == 2
    assert "NOT_SET is not set" in err

    monkeypatch.setenv("WRONG", "battery staple")
    code, _, err = approve(say, people[1], "compliance", "--passphrase-env", "WRONG")
    assert code == 2
    assert "the passphrase is wrong" in err
    assert "battery" not in err


def test_a_new_key_prints_an_entry_that_fits_once_it_has_roles(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PASSPHRASE", "correct horse")
    path = tmp_path / "ada.pem"

    assert main(["keys", "new", "Ada Lovelace", "--out", str(path), "--passphrase-env", "PASSPHRASE"]) == 0
    out, err = capsys.readouterr()
    assert main(["keys", "show", str(path), "--passphrase-env", "PASSPHRASE"]) == 0

    (entry,) = yaml.safe_load(out)["approvers"]
    assert entry["public_key"] == capsys.readouterr().out.strip()
    assert "with a passphrase" in err
    assert Approver.model_validate(entry | {"roles": ("owner",)}).name == "Ada Lovelace"
    assert entry["identities"]


def test_keys_lie_under_the_home_folder_and_are_not_written_over(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))

    assert main(["keys", "new", "Ada Lovelace"]) == 0
    assert main(["keys", "new", "Ada Lovelace"]) == 2

    (path,) = (tmp_path / ".config" / "contender" / "keys").iterdir()
    assert path.name == "ada-lovelace.pem"
    assert "there is a file already" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["", "Ada, Lovelace", "two\nlines"])
def test_a_name_that_cannot_stand_on_an_approval_makes_no_key(tmp_path, capsys, name):
    assert main(["keys", "new", name, "--out", str(tmp_path / "key.pem")]) == 2

    assert list(tmp_path.iterdir()) == []
    assert "cannot stand as an approver's name" in capsys.readouterr().err


@pytest.mark.slow
def test_a_passphrase_is_asked_for_at_a_terminal_and_not_shown(tmp_path):
    path = tmp_path / "ada.pem"
    public = new_key(path, b"correct horse")
    master, terminal = os.openpty()
    try:
        with subprocess.Popen(
            [sys.executable, "-m", "flows.run", "keys", "show", str(path)],
            stdin=terminal,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=ROOT,
            start_new_session=True,
        ) as asked:
            try:
                # What is typed before the prompt is thrown away.
                prompt = asked.stderr.read(len(f"Passphrase of {path}: "))
                os.write(master, b"correct horse\n")
                out, err = asked.communicate(timeout=60)
            finally:
                asked.kill()
    finally:
        os.close(master)
        os.close(terminal)

    assert asked.returncode == 0, err
    assert prompt.decode() == f"Passphrase of {path}: "
    assert out.decode().strip() == public
    assert b"correct horse" not in out + err
