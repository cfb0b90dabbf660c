"""Which data root a target of the deployments client names."""

from datetime import UTC, datetime

import pytest
from mlflow.deployments import get_deploy_client

from serving.client import EndpointError
from serving.desired import EndpointStore
from serving.endpoint import in_effect
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


def served(name):
    return {"name": name, "entity_name": "small", "entity_version": "1"}


def test_a_served_entity_says_that_it_is_not_there_yet_and_a_told_state_is_no_config(tmp_path):
    client = get_deploy_client(f"contender:{tmp_path}")

    entities = client.create_endpoint("churn", {"served_entities": [served("v1")]})["config"][
        "served_entities"
    ]

    assert entities[0]["state"]["deployment"] == "DEPLOYMENT_CREATING"
    assert entities[0]["state"]["deployment_state_message"] == "the data plane is not up"
    assert entities[0]["restarts"] == 0
    with pytest.raises(EndpointError, match="state"):
        client.update_endpoint_config("churn", {"served_entities": entities})


def test_a_sticky_header_is_a_header_and_stays_when_a_lease_lapses(tmp_path):
    client = get_deploy_client(f"contender:{tmp_path}")
    client.create_endpoint("churn", {"served_entities": [served("v1")]})
    route = {"served_entity_name": "v1", "traffic_percentage": 100}
    traffic = {"routes": [route], "sticky_header": "x-customer"}
    lease = {"expires_at": "2026-01-01T00:00:00Z", "fallback": "v1"}

    with pytest.raises(EndpointError, match="sticky_header"):
        client.update_endpoint_config("churn", {"traffic_config": traffic | {"sticky_header": "X Customer"}})
    client.update_endpoint_config("churn", {"traffic_config": traffic | {"lease": lease}})

    endpoint = EndpointStore(Folders(tmp_path)).get("churn")
    assert in_effect(endpoint, datetime.now(UTC)).sticky_header == "x-customer"
