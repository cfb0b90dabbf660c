"""The command that adds labels: what it says, and what it refuses."""

import json

import pytest
import typer
from typer.testing import CliRunner

from deployments.errors import BadInputError
from flows.label_commands import labels_app


@pytest.fixture
def labels(tmp_path, monkeypatch):
    """Runs `labels` with arguments on a file of these lines, in a home of the test's own."""
    monkeypatch.setenv("CONTENDER_HOME", str(tmp_path / "home"))

    def run(*lines, options=("--no-look-up",)):
        (tmp_path / "labels.csv").write_text("\n".join(lines) + "\n")
        arguments = ["labels", "add", str(tmp_path / "labels.csv"), "--model", "churn", *options]
        app = typer.Typer()
        app.add_typer(labels_app, name="labels")
        return CliRunner().invoke(app, arguments)

    return run


def test_adding_labels_says_what_came_of_each(labels, monkeypatch):
    monkeypatch.setattr("flows.session.session.as_json", False)

    first = labels("request_id,label", "a,true", "b,false")
    again = labels("request_id,label", "a,false", "b,false", options=["--no-look-up", "--json"])

    assert first.exit_code == again.exit_code == 0
    said = json.loads(again.stdout)
    assert (said["new"], said["corrected"], said["unchanged"], said["unknown"]) == (0, 1, 1, None)


def test_what_is_no_label_is_bad_input(labels):
    refused = labels("request_id,label", "a,perhaps")

    assert isinstance(refused.exception, BadInputError)
    assert "'perhaps'" in str(refused.exception)


def test_labels_of_entities_that_nobody_asked_for_are_counted(labels, monkeypatch):
    monkeypatch.setattr("flows.session.session.as_json", False)
    rows = ("customer_id,as_of,label", "C0000001,2026-01-01,true", "C0000002,2026-01-01,false")

    told = labels(*rows, options=("--within", "48"))
    said = labels(*rows, options=("--json",))

    assert told.exit_code == said.exit_code == 0
    found = json.loads(said.stdout)
    assert (found["rows"], found["new"], found["unmatched"], found["unknown"]) == (2, 0, 2, None)
