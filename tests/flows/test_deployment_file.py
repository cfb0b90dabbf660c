"""prefect.yaml is what the specs say, and every flow in it takes what it is told."""

import importlib
import inspect
from pathlib import Path

import pytest
import yaml

from deployments.errors import BadInputError
from flows.deployment_file import changes, names_of, prefect_yaml
from flows.run import main

ROOT = Path(__file__).resolve().parents[2]


def declared():
    return yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]


def test_the_file_here_is_what_the_specs_say():
    assert (ROOT / "prefect.yaml").read_text() == prefect_yaml()


@pytest.mark.parametrize("deployment", declared(), ids=lambda one: f"{one['entrypoint']}-{one['name']}")
def test_a_deployment_tells_its_flow_what_it_takes(deployment):
    module, function = deployment["entrypoint"].split(":")
    flow = getattr(importlib.import_module(module.removesuffix(".py").replace("/", ".")), function)
    taken = inspect.signature(flow.fn).parameters

    for told in (deployment["parameters"], *(one["parameters"] for one in deployment.get("triggers", ()))):
        assert set(told) <= set(taken)
        required = {name for name, one in taken.items() if one.default is inspect.Parameter.empty}
        assert required <= set(told)
    # These last as long as the plan, the people or the models of them need.
    bounded = flow.name not in {"release", "retrain", "deliver", "lifecycle", "fleet"}
    assert bool(flow.timeout_seconds) == bounded


def test_an_alert_has_a_model_retrained_where_it_is_trained():
    told = {}
    for one in declared():
        for trigger in one.get("triggers", ()):
            told[trigger["match"]["prefect.resource.id"], trigger["parameters"]["alert"]] = (
                one["name"],
                trigger["parameters"]["env"],
                trigger["parameters"]["reason"],
            )

    reason = "{{ event.payload.reason }}"
    assert told["contender.model.prod.churn", "drift"] == ("churn-test", "test", f"in prod: {reason}")
    assert told["contender.model.dev.churn", "drift"] == ("churn-dev", "dev", reason)


def test_what_differs_is_named_by_deployment():
    wanted = prefect_yaml()
    document = yaml.safe_load(wanted)
    document["deployments"] = document["deployments"][1:]
    document["deployments"][0]["description"] = "another"

    assert changes(yaml.safe_dump(document), wanted) == [
        "lifecycle/churn-demo: is missing",
        "train/churn-dev: is another",
    ]
    assert changes(wanted, wanted) == []


def test_a_file_that_is_none_is_refused():
    with pytest.raises(BadInputError, match=r"prefect.yaml: this is no file of deployments"):
        changes("deployments: 3", prefect_yaml())


def test_a_check_writes_nothing_and_sync_writes_what_is_asked_for(tmp_path, capsys):
    path = tmp_path / "prefect.yaml"

    assert main(["deployments", "sync", "--check", "--out", str(path)]) == 1
    assert not path.exists()
    assert main(["deployments", "sync", "--out", str(path)]) == 0
    assert main(["deployments", "sync", "--check", "--out", str(path)]) == 0

    assert path.read_text() == prefect_yaml()
    assert "up to date" in capsys.readouterr().out


def test_an_environment_has_each_name_once(monkeypatch):
    monkeypatch.chdir(ROOT)

    assert sorted(names_of("dev")) == sorted(
        {one["name"] for one in declared() if one["parameters"]["env"] == "dev"}
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [(None, "cannot be read"), ("a: [", "no file of deployments"), ("deployments: []", "environment dev")],
)
def test_a_file_without_deployments_of_the_environment_says_so(tmp_path, monkeypatch, text, said):
    monkeypatch.chdir(tmp_path)
    if text is not None:
        (tmp_path / "prefect.yaml").write_text(text)

    with pytest.raises(BadInputError, match=f"prefect.yaml: .*{said}"):
        names_of("dev")
