"""The decisions of the router in Python, without its sockets: the plan as a file, who answers, who may ask."""

import hashlib
import json
import random
import time
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from deployments.environment import GatewayConfig, RequestLimits
from serving.endpoint import fallback_of
from serving.plan import GatewayPlan, arms, salt_of

__all__ = ["LACKS", "PLAN", "Allowance", "RoutingPlan", "Split", "read_plan"]

PLAN = "plan.json"

LACKS = (
    "active health checks: a worker that hangs without dying is asked until the request times out",
    "ejection of workers that answer with errors again and again; only those that refuse connections are passed over",
    "circuit breakers: how many requests one worker is sent at a time is not bounded",
    "HTTP/2, and the normalisation of odd paths, which are refused",
    "speed: each request passes through Python once more",
)
"""What the router in Python does not do and Envoy does."""


@dataclass(frozen=True)
class Split:
    """The traffic of one endpoint: ports and shares along the line from 0 to 100, and who stands behind them.

    `sticky_header` is the one that holds a caller's id.
    """

    salt: str
    sticky_header: str
    arms: tuple[tuple[tuple[int, ...], int], ...]
    fallback: tuple[int, ...]
    mirror: tuple[int, ...] = ()
    mirror_share: int = 0

    def candidates(self, caller: str | None) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The ports that a request is for, and those behind them; a caller's id always has the same, None has any."""
        if caller is None:
            place = random.random() * 100
        else:
            digest = hashlib.blake2b(f"{self.salt}:{caller}".encode(errors="surrogateescape"), digest_size=8)
            place = int.from_bytes(digest.digest()) % 100
        for ports, share in self.arms:
            place -= share
            if place < 0:
                return ports, self.fallback
        return self.fallback, ()

    def mirrored(self) -> bool:
        """Whether this request is sent to the mirror as well."""
        return bool(self.mirror) and random.random() * 100 < self.mirror_share


@dataclass(frozen=True)
class RoutingPlan:
    """A gateway plan as the router reads it, with the settings that hold for all endpoints."""

    version: int
    require_key: bool
    requests_per_second: float | None
    body_bytes: int
    timeout_seconds: float
    queue: int
    status_port: int | None
    callers: Mapping[str, str]
    endpoints: Mapping[str, Split]

    @classmethod
    def of(cls, plan: GatewayPlan, config: GatewayConfig, limits: RequestLimits) -> Self:
        """A gateway's plan and settings in one."""
        endpoints = {}
        for name, traffic in plan.endpoints.items():
            mirror = traffic.mirror
            endpoints[name] = Split(
                salt=salt_of(name, traffic),
                sticky_header=traffic.sticky_header or config.sticky_header,
                arms=tuple((arm.ports, arm.share) for arm in arms(plan, name)),
                fallback=plan.ready.get((name, fallback_of(traffic)), ()),
                mirror=plan.ready.get((name, mirror.served_entity_name), ()) if mirror else (),
                mirror_share=mirror.traffic_percentage if mirror else 0,
            )
        return cls(
            version=plan.version,
            require_key=config.require_key,
            requests_per_second=config.requests_per_second,
            body_bytes=limits.body_bytes,
            timeout_seconds=limits.timeout_seconds,
            queue=limits.queue,
            status_port=plan.status_port,
            callers=dict(plan.callers),
            endpoints=endpoints,
        )


def read_plan(folder: Path) -> RoutingPlan:
    """The plan that stands in a folder, as `PythonGateway` writes it."""
    content: dict[str, Any] = json.loads((folder / PLAN).read_bytes())
    endpoints = {
        name: Split(
            salt=given["salt"],
            sticky_header=given["sticky_header"],
            arms=tuple((tuple(ports), share) for ports, share in given["arms"]),
            fallback=tuple(given["fallback"]),
            mirror=tuple(given["mirror"]),
            mirror_share=given["mirror_share"],
        )
        for name, given in content["endpoints"].items()
    }
    return RoutingPlan(**content | {"endpoints": endpoints})


@dataclass
class Allowance:
    """How often each caller may ask: a bucket of one second's requests for each of those seen last."""

    most: int = 10_000
    _buckets: OrderedDict[str, tuple[float, float]] = field(default_factory=OrderedDict)

    def spend(self, caller: str, rate: float, now: float | None = None) -> bool:
        """Take one request from a caller's bucket, which fills by `rate` a second; false where it is empty."""
        now = time.monotonic() if now is None else now
        room = max(1.0, rate)
        left, since = self._buckets.pop(caller, (room, now))
        left = min(room, left + (now - since) * rate)
        allowed = left >= 1
        self._buckets[caller] = (left - 1 if allowed else left, now)
        if len(self._buckets) > self.most:
            self._buckets.popitem(last=False)
        return allowed


class Passed:
    """Ports that refused a connection lately; they are asked last for a second, then in turn again."""

    def __init__(self, seconds: float = 1.0) -> None:
        self._seconds = seconds
        self._until: dict[int, float] = {}

    def add(self, port: int) -> None:
        """Note a refusal."""
        self._until[port] = time.monotonic() + self._seconds

    def order(self, groups: Iterable[tuple[int, ...]], load: Mapping[int, int]) -> list[int]:
        """The ports in the order in which to try them: groups in turn, idle ports first, refusers last."""
        now = time.monotonic()
        self._until = {port: until for port, until in self._until.items() if until > now}
        ordered = [
            port
            for group in groups
            for port in sorted(group, key=lambda port: (load.get(port, 0), random.random()))
        ]
        return sorted(dict.fromkeys(ordered), key=lambda port: port in self._until)
