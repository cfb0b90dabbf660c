"""The endpoint config of each state of a release: who is served, and who gets which share of the requests.

Versions are served under names made of their numbers, never of their roles: a version that becomes champion, or
falls back, is the same worker under the same name, and only the shares change, which takes milliseconds.
"""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from tasks.champion import ChampionRef

__all__ = ["all_to", "champion_with_idle", "entity_name", "served", "shadowed", "shared", "workloads"]

Config = dict[str, Any]


def entity_name(ref: ChampionRef) -> str:
    """The name under which a version is served."""
    return f"v{ref.version}"


def served(ref: ChampionRef, workload: str | None = None) -> Config:
    """A version as an endpoint's config names it; `workload` is its workload size, Databricks' default if None."""
    size = {"workload_size": workload} if workload else {}
    return {"name": entity_name(ref), "entity_name": ref.name, "entity_version": ref.version, **size}


def workloads(config: Mapping[str, Any]) -> str | None:
    """The workload size that a standing config gives to who answers most: what a newcomer gets, too."""
    routes = config["traffic_config"]["routes"]
    most = max(routes, key=lambda route: route["traffic_percentage"])["served_entity_name"]
    found = next(item for item in config["served_entities"] if item["name"] == most)
    size: str | None = found.get("workload_size")
    return size


def all_to(ref: ChampionRef, workload: str | None, *, warm: ChampionRef | None = None) -> Config:
    """One version answers everything; `warm` is kept ready beside it."""
    entities = [served(ref, workload), *([served(warm, workload)] if warm else [])]
    routes = [_route(ref, 100), *([_route(warm, 0)] if warm else [])]
    return {"served_entities": entities, "traffic_config": {"routes": routes}}


def champion_with_idle(
    champion: ChampionRef, challenger: ChampionRef, workload: str | None, *, salt: str
) -> Config:
    """The champion answers everything; the challenger is started, and asked by nobody."""
    config = all_to(champion, workload, warm=challenger)
    config["traffic_config"]["salt"] = salt
    return config


def shadowed(
    champion: ChampionRef,
    challenger: ChampionRef,
    workload: str | None,
    *,
    percentage: int,
    salt: str,
    until: datetime,
    sticky: str | None,
) -> Config:
    """The champion answers everything, and the challenger gets copies of `percentage` % of it."""
    config = shared(champion, challenger, workload, percentage=0, salt=salt, until=until, sticky=sticky)
    mirror = {"served_entity_name": entity_name(challenger), "traffic_percentage": percentage}
    config["traffic_config"]["mirror"] = mirror
    return config


def shared(
    champion: ChampionRef,
    challenger: ChampionRef,
    workload: str | None,
    *,
    percentage: int,
    salt: str,
    until: datetime,
    sticky: str | None,
) -> Config:
    """The challenger answers `percentage` % of the callers, until the lease ends; then the champion all of them.

    With 100 % the champion gets copies, so that there is still somebody to compare with.
    """
    traffic: Config = {
        "routes": [_route(champion, 100 - percentage), _route(challenger, percentage)],
        "salt": salt,
        "lease": {"expires_at": until.isoformat(), "fallback": entity_name(champion)},
    }
    if percentage == 100:
        traffic["mirror"] = {"served_entity_name": entity_name(champion), "traffic_percentage": 100}
    if sticky:
        traffic["sticky_header"] = sticky
    entities = [served(champion, workload), served(challenger, workload)]
    return {"served_entities": entities, "traffic_config": traffic}


def _route(ref: ChampionRef, share: int) -> Config:
    return {"served_entity_name": entity_name(ref), "traffic_percentage": share}
