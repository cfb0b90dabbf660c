"""Serve: the champion behind its endpoint."""

from collections.abc import Iterator, Mapping
from typing import Any

from deployments.declared import Declared
from platforms.platform import Platform
from tasks.champion import CHAMPION, ChampionRef, standing_champion
from tasks.score import require_champion
from tasks.tracking import TAG, Tracking
from tasks.traffic import all_to, entity_name, workloads


class Served(Declared):
    """An endpoint and the version that it was told to serve; `changed` where it was told something new."""

    endpoint: str
    name: str
    version: str
    changed: bool


def serve_champion(platform: Platform, model: str) -> Served:
    """Have the champion answer everything at the model's endpoint, which is made when it is missing.

    Raises:
        BadInputError: there is no champion.
    """
    champion = require_champion(platform, model, standing_champion(platform, model))
    endpoint, endpoints = platform.endpoint(model), platform.endpoints
    standing = next((found for found in endpoints.list_endpoints() if found["name"] == endpoint), None)
    if standing is None:
        endpoints.create_endpoint(endpoint, all_to(champion, None))
        return _served(endpoint, champion, changed=True)
    if _serves(standing, champion):
        return _served(endpoint, champion, changed=False)
    endpoints.update_endpoint_config(endpoint, all_to(champion, workloads(standing["config"])))
    return _served(endpoint, champion, changed=True)


def unserved_champions(platform: Platform) -> Iterator[str]:
    """Models of this environment that have a champion and no endpoint."""
    served = {found["name"] for found in platform.endpoints.list_endpoints()}
    for registered in _registered_models(Tracking(platform)):
        number = dict(registered.aliases).get(CHAMPION)
        if number is None:
            continue
        version = Tracking(platform).client.get_model_version(registered.name, str(number))
        model = version.tags.get(f"{TAG}model")
        if (
            model
            and platform.registered_model(model) == registered.name
            and platform.endpoint(model) not in served
        ):
            yield model


def _registered_models(tracking: Tracking) -> Iterator[Any]:
    """All of them, page by page."""
    token: str | None = None
    while True:
        page = tracking.client.search_registered_models(page_token=token)
        yield from page
        token = page.token
        if not token:
            return


def _served(endpoint: str, champion: ChampionRef, *, changed: bool) -> Served:
    return Served(endpoint=endpoint, name=champion.name, version=champion.version, changed=changed)


def _serves(standing: Mapping[str, Any], champion: ChampionRef) -> bool:
    """Whether it answers everything already; a version that is kept warm beside it may stay."""
    config, name = standing["config"], entity_name(champion)
    entities = {
        (item["name"], item["entity_name"], item["entity_version"]) for item in config["served_entities"]
    }
    shares = {
        route["served_entity_name"]: route["traffic_percentage"]
        for route in config["traffic_config"]["routes"]
    }
    return (name, champion.name, champion.version) in entities and shares.get(name) == 100
