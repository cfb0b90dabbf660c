"""What a gateway is to do: the traffic of every endpoint, which workers are ready, and who may call."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

from serving.endpoint import TrafficConfig, fallback_of

__all__ = ["Arm", "GatewayPlan", "arms", "salt_of"]


@dataclass(frozen=True)
class GatewayPlan:
    """One state of the gateway, complete.

    `endpoints` are the traffic configs in effect now; `ready` has the loopback ports of the workers of each (endpoint,
    served entity) that may be asked; `status_port` is where the supervisor answers for itself; `callers` are names
    by the SHA-256 of their API keys; `version` grows with every plan.
    """

    endpoints: Mapping[str, TrafficConfig]
    ready: Mapping[tuple[str, str], tuple[int, ...]]
    status_port: int | None
    callers: Mapping[str, str]
    version: int


@dataclass(frozen=True)
class Arm:
    """One served entity in the split: its share in percent, who answers for it, and their ports.

    `entity` is the fallback where the entity that has the share has no worker that is ready.
    """

    entity: str
    share: int
    ports: tuple[int, ...]


def arms(plan: GatewayPlan, endpoint: str) -> tuple[Arm, ...]:
    """The split of an endpoint, in the order in which the shares lie on the line from 0 to 100.

    A caller's hash is a place on that line. The fallback lies in the middle, one other entity below it and the rest
    above, so that raising the share of one entity takes callers from the fallback and moves nobody back; with
    more than two others this holds for the outermost.
    """
    traffic = plan.endpoints[endpoint]
    fallback = fallback_of(traffic)
    shares = {route.served_entity_name: route.traffic_percentage for route in traffic.routes}
    others = sorted(name for name in shares if name != fallback)
    found = []
    for name in (*others[1:2], fallback, *others[2:], *others[:1]):
        if shares.get(name, 0) > 0:
            answers = name if plan.ready.get((endpoint, name)) else fallback
            found.append(Arm(answers, shares[name], plan.ready.get((endpoint, answers), ())))
    return tuple(found)


def salt_of(endpoint: str, traffic: TrafficConfig) -> str:
    """What is put before a caller's id before it is hashed: other releases, and other endpoints, draw others."""
    return hashlib.sha256(f"{endpoint}\n{traffic.salt}".encode()).hexdigest()[:16]
