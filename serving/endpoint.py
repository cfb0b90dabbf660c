"""What an endpoint should be: Databricks' own config shape, checked, and kept on disk as the desired state.

`served_entities` names versions of registered models, `traffic_config.routes` says who gets which share of the
requests. Four things are ours: a mirror (shadow traffic), the header and the name by which callers stick, and a lease.
"""

from datetime import datetime
from typing import Literal, Self

from pydantic import Field, model_validator

from deployments.declared import Declared

Name = r"^[A-Za-z0-9][A-Za-z0-9_-]{0,62}$"

WORKERS = {"Small": 1, "Medium": 2, "Large": 4}
"""Processes that serve one version, by workload size."""


class ServedEntity(Declared):
    """One served version, and how many workers it gets."""

    name: str = Field(pattern=Name)
    entity_name: str = Field(min_length=1, description="The registered model's name.")
    entity_version: str = Field(pattern=r"^[0-9]+$")
    workload_size: Literal["Small", "Medium", "Large"] = "Small"
    scale_to_zero_enabled: bool = False

    @property
    def workers(self) -> int:
        """How many processes serve it."""
        return WORKERS[self.workload_size]


class Route(Declared):
    """The share of one served entity, in whole percent."""

    served_entity_name: str
    traffic_percentage: int = Field(ge=0, le=100)


class Mirror(Declared):
    """Copies of requests to a served entity whose answers nobody waits for."""

    served_entity_name: str
    traffic_percentage: int = Field(ge=0, le=100)


class Lease(Declared):
    """Until when the routes hold unless somebody renews them; then `fallback` gets everything."""

    expires_at: datetime = Field(description="With a time zone.")
    fallback: str

    @model_validator(mode="after")
    def _aware(self) -> Self:
        if self.expires_at.tzinfo is None:
            message = "expires_at has no time zone"
            raise ValueError(message)
        return self


class TrafficConfig(Declared):
    """Who gets which share of the requests."""

    routes: tuple[Route, ...] = Field(min_length=1)
    mirror: Mirror | None = None
    salt: str = Field("", description="The release's name: another release draws other callers.")
    sticky_header: str | None = Field(
        None,
        pattern=r"^[a-z0-9-]+$",
        description="By which callers stay with a version; the gateway's by default.",
    )
    lease: Lease | None = None


class EndpointConfig(Declared):
    """Served versions and their traffic; one entity alone gets everything unless routes say otherwise."""

    served_entities: tuple[ServedEntity, ...] = Field(min_length=1)
    traffic_config: TrafficConfig

    @model_validator(mode="before")
    @classmethod
    def _all_to_the_only_one(cls, given: object) -> object:
        if isinstance(given, dict) and given.get("traffic_config") is None:
            entities = given.get("served_entities")
            if isinstance(entities, list | tuple) and len(entities) == 1 and isinstance(entities[0], dict):
                route = {"served_entity_name": entities[0].get("name"), "traffic_percentage": 100}
                return given | {"traffic_config": {"routes": [route]}}
        return given

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        names = [entity.name for entity in self.served_entities]
        traffic = self.traffic_config
        routed = [route.served_entity_name for route in traffic.routes]
        for what, given in (("served entity", names), ("route", routed)):
            twice = sorted({name for name in given if given.count(name) > 1})
            if twice:
                message = f"{what} {twice[0]!r} stands more than once"
                raise ValueError(message)
        total = sum(route.traffic_percentage for route in traffic.routes)
        if total != 100:
            message = f"the routes' traffic percentages add up to {total}, not to 100"
            raise ValueError(message)
        referred = [*routed]
        referred += [traffic.mirror.served_entity_name] if traffic.mirror else []
        referred += [traffic.lease.fallback] if traffic.lease else []
        for name in referred:
            if name not in names:
                message = f"{name!r} is not among the served entities ({', '.join(names)})"
                raise ValueError(message)
        return self

    def entity(self, name: str) -> ServedEntity:
        """The served entity of that name."""
        return next(entity for entity in self.served_entities if entity.name == name)


class Endpoint(Declared):
    """The desired state of one endpoint, as it stands on disk; `generation` grows with each change."""

    name: str = Field(pattern=Name)
    config: EndpointConfig
    generation: int = Field(1, ge=1)
    creator: str = ""
    created_at: datetime
    updated_at: datetime
    tags: dict[str, str] = {}


def in_effect(endpoint: Endpoint, now: datetime) -> TrafficConfig:
    """The traffic that holds at `now` (with a time zone): as declared, or the lease's fallback alone once it lapsed."""
    traffic = endpoint.config.traffic_config
    lease = traffic.lease
    if lease is None or now < lease.expires_at:
        return traffic
    return TrafficConfig(
        routes=(Route(served_entity_name=lease.fallback, traffic_percentage=100),),
        salt=traffic.salt,
        sticky_header=traffic.sticky_header,
    )


def fallback_of(traffic: TrafficConfig) -> str:
    """Who answers when another is down: the lease's fallback, else the champion, else the largest share."""
    if traffic.lease:
        return traffic.lease.fallback
    names = {route.served_entity_name for route in traffic.routes}
    if "champion" in names:
        return "champion"
    return max(traffic.routes, key=lambda route: route.traffic_percentage).served_entity_name
