"""Which champions have no endpoint yet."""

import pytest

from tasks.champion import CHAMPION
from tasks.serve import unserved_champions
from tasks.tracking import Tracking


@pytest.mark.slow
def test_a_champion_is_found_among_more_models_than_one_page_of_the_registry_has(tracked, tmp_path):
    client = Tracking(tracked).client
    for number in range(100):
        client.create_registered_model(f"another-{number:03d}")
    name = tracked.registered_model("fruit")
    client.create_registered_model(name)
    made = client.create_model_version(name, source=tmp_path.as_uri(), tags={"contender.model": "fruit"})
    client.set_registered_model_alias(name, CHAMPION, made.version)
    first_page = [model.name for model in client.search_registered_models()]

    found = list(unserved_champions(tracked))

    assert name not in first_page
    assert found == ["fruit"]
