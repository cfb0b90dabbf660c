"""What a work pool tells its runs by default, and what is said where its kind cannot be had."""

import json
import os
from importlib.util import find_spec
from pathlib import Path

import prefect.server.api
import pytest
import yaml

from deployments.environment import Environment, LocalPlatformConfig, load_environment
from deployments.errors import BadInputError
from deployments.orchestration import WorkPool
from deployments.spec import load_spec
from flows.deployment_file import _deployments
from flows.work_pools import _template, with_defaults

METADATA = Path(prefect.server.api.__file__).parent / "collections_data" / "views"


def shipped_template(kind):
    """The job template that Prefect itself ships for a kind of worker."""
    known = json.loads((METADATA / "aggregate-worker-metadata.json").read_text())
    return known[f"prefect-{kind}"][kind]["default_base_job_configuration"]


def environment(kind, **more):
    return Environment(
        name="boxed",
        platform=LocalPlatformConfig(data_root="boxed"),
        work_pool=WorkPool(kind=kind, **more),
    )


def test_a_container_has_the_data_home_at_the_path_that_is_recorded(monkeypatch, tmp_path):
    monkeypatch.setenv("CONTENDER_HOME", str(tmp_path))
    template = shipped_template("docker")
    template["variables"]["properties"]["container_create_kwargs"] = {"type": "object"}

    made = with_defaults(template, "docker")

    told = {name: one.get("default") for name, one in made["variables"]["properties"].items()}
    assert told["volumes"] == [f"{tmp_path}:{tmp_path}"]
    assert told["env"]["CONTENDER_HOME"] == str(tmp_path)
    assert told["container_create_kwargs"] == {"user": f"{os.getuid()}:{os.getgid()}"}
    assert told["network_mode"] is None
    assert "default" not in template["variables"]["properties"]["volumes"]


def test_only_what_a_template_knows_is_set():
    for kind in ("docker", "kubernetes"):
        template = shipped_template(kind)

        made = with_defaults(template, kind)

        assert set(made["variables"]["properties"]) == set(template["variables"]["properties"])
        assert made["variables"]["properties"]["image"]["default"] == "contender:latest"
        assert made["job_configuration"] == template["job_configuration"]


@pytest.mark.skipif(find_spec("prefect_docker") is not None, reason="prefect-docker is installed")
def test_a_kind_whose_worker_is_not_installed_is_refused_with_what_to_install():
    with pytest.raises(BadInputError, match=r"needs the package prefect-docker.*contender\[docker\]"):
        _template(environment("docker"))


def test_a_run_in_a_container_finds_the_project_where_the_image_has_it(tmp_path):
    file = tmp_path / "boxed.yaml"
    boxed = {"name": "boxed", "platform": {"kind": "local", "data_root": "boxed"}}
    file.write_text(yaml.safe_dump(boxed | {"work_pool": {"kind": "docker", "directory": "/srv/line"}}))

    there, local = load_environment(str(file)), environment("process")
    made = list(_deployments(load_spec("churn"), there, [there]))
    here = list(_deployments(load_spec("churn"), local, [local]))

    (step,) = made[0]["pull"]
    assert list(step.values()) == [{"directory": "/srv/line"}]
    assert not [one for one in here if "pull" in one]
