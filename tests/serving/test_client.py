"""Which data root a target of the deployments client names."""

import pytest
from mlflow.deployments import get_deploy_client

from serving.client import EndpointError
from serving.folders import Folders


def root_of(target):
    return get_deploy_client(target)._folders.root


def test_a_target_names_an_environment_its_yaml_or_a_data_root(tmp_path, monkeypatch):
    monkeypatch.setenv("CONTENDER_HOME", str(tmp_path / "home"))
    yaml = tmp_path / "mine.yaml"
    yaml.write_text("name: mine\nplatform: {kind: local, data_root: elsewhere}\n")
    (tmp_path / "root").mkdir()

    # On most machines there is a folder /dev.
    assert root_of("contender:/dev") == tmp_path / "home" / "dev"
    assert root_of(f"contender:{yaml}") == tmp_path / "home" / "elsewhere"
    assert root_of(f"contender:{tmp_path / 'root'}") == tmp_path / "root"


@pytest.mark.parametrize(
    ("target", "said"),
    [("contender:/nowhere", "no environment 'nowhere'"), ("contender", "name an environment")],
)
def test_a_target_that_names_nothing_is_refused(target, said):
    with pytest.raises(EndpointError, match=said):
        get_deploy_client(target)


def test_asking_what_there_is_makes_no_endpoint(tmp_path):
    client = get_deploy_client(f"contender:{tmp_path}")

    assert client.list_endpoints() == []
    assert not list(Folders(tmp_path).endpoints.glob("*.json"))
