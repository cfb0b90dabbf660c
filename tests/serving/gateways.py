"""Real gateways before real backends: what the tests of both gateways are run on."""

import asyncio
import http.client
import json
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from deployments.environment import GatewayConfig, RequestLimits
from serving.endpoint import Mirror, Route, TrafficConfig
from serving.gateway import Gateway, GatewayPlan, chosen_gateway

BACKEND = Path(__file__).with_name("echo_backend.py")
PATIENCE = 20.0


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def until(done: Callable[[], Any], what: str) -> Any:
    end = time.monotonic() + PATIENCE
    while not (found := done()):
        assert time.monotonic() < end, f"waited in vain until {what}"
        time.sleep(0.005)
    return found


class Backend:
    """A process that echoes; killed at the latest when the test ends."""

    def __init__(self, name: str, *, delay: float = 0.0, port: int = 0, ping: int = 200) -> None:
        options = ["--delay", str(delay), "--port", str(port), "--ping", str(ping)]
        command = [sys.executable, str(BACKEND), name, *options]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.port = int(self.process.stdout.readline())

    def seen(self) -> list[dict[str, Any]]:
        return json.loads(ask(self.port, "GET", "/seen").body)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        assert self.headers["content-type"].startswith("application/json"), self.body
        return json.loads(self.body)


def ask(
    port: int,
    method: str = "POST",
    path: str = "/serving-endpoints/churn/invocations",
    body: bytes | None = b"{}",
    headers: Mapping[str, str] | None = None,
) -> Answer:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    try:
        connection.request(method, path, body if method == "POST" else None, dict(headers or {}))
        answer = connection.getresponse()
        return Answer(answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read())
    finally:
        connection.close()


def traffic(
    *, salt: str = "release-1", mirror: tuple[str, int] | None = None, **shares: int
) -> TrafficConfig:
    return TrafficConfig(
        routes=tuple(
            Route(served_entity_name=name, traffic_percentage=share) for name, share in shares.items()
        ),
        mirror=Mirror(served_entity_name=mirror[0], traffic_percentage=mirror[1]) if mirror else None,
        salt=salt,
    )


@dataclass
class Running:
    """A gateway that runs, and the plan it was given last."""

    gateway: Gateway
    plan: GatewayPlan
    port: int
    process: subprocess.Popen
    folder: Path

    def ask(self, *given: Any, **named: Any) -> Answer:
        return ask(self.port, *given, **named)

    def apply(self, **changes: Any) -> None:
        """Another plan, and wait until it is in effect."""
        self.apply_at_once(**changes)
        until(lambda: self.gateway.version_in_effect() == self.plan.version, "the plan is in effect")
        time.sleep(0.02)  # Envoy's worker thread has it a moment after its main thread says so.

    def apply_at_once(self, **changes: Any) -> None:
        self.plan = GatewayPlan(**{**vars(self.plan), **changes, "version": self.plan.version + 1})
        self.gateway.apply(self.plan)

    def end(self) -> None:
        self.process.terminate()
        self.process.wait(PATIENCE)
        self.process.stdin.close()


def start(
    folder: Path,
    kind: str,
    plan: GatewayPlan,
    config: Mapping[str, Any] | None = None,
    limits: Mapping[str, Any] | None = None,
) -> Running:
    given = GatewayConfig(kind=kind, **(config or {}))
    gateway = chosen_gateway(folder, given, RequestLimits(**(limits or {})))
    port, admin = free_port(), free_port()
    command = gateway.prepare(plan, port, admin)
    with (folder / "gateway.err").open("wb") as errors:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=errors, stderr=errors, cwd=Path(__file__).parents[2]
        )
    running = Running(gateway, plan, port, process, folder)
    until(lambda: gateway.healthy() or process.poll() is not None, "the gateway is healthy")
    assert process.poll() is None, (folder / "gateway.err").read_text()
    return running


def plan_of(*endpoints: tuple[str, TrafficConfig], **changes: Any) -> GatewayPlan:
    return GatewayPlan(
        **{
            "endpoints": dict(endpoints),
            "ready": {},
            "status_port": None,
            "callers": {},
            "version": 1,
            **changes,
        }
    )


@dataclass
class Load:
    """Callers that ask over and over, each on a connection of its own, until told to stop."""

    port: int
    connections: int = 16
    path: str = "/serving-endpoints/churn/invocations"
    callers: Iterable[str] = ()
    statuses: Counter = field(default_factory=Counter)
    names: dict[str, set[str]] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    async def run(self, meanwhile: Callable[[], Any]) -> Any:
        """Ask until `meanwhile`, run in a thread, is done."""
        stop = asyncio.Event()
        ids = list(self.callers) or [f"caller-{number}" for number in range(self.connections * 20)]
        parts = [ids[number :: self.connections] for number in range(self.connections)]
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
            asking = [asyncio.create_task(self._ask(session, part, stop)) for part in parts]
            try:
                return await asyncio.to_thread(meanwhile)
            finally:
                stop.set()
                await asyncio.gather(*asking)

    async def _ask(self, session: aiohttp.ClientSession, ids: list[str], stop: asyncio.Event) -> None:
        while not stop.is_set():
            for caller in ids:
                if stop.is_set():
                    return
                try:
                    async with session.post(
                        f"http://127.0.0.1:{self.port}{self.path}",
                        data=b"{}",
                        headers={"x-caller-id": caller},
                    ) as answer:
                        text = await answer.text()
                except aiohttp.ClientError as error:
                    self.statuses["broken"] += 1
                    self.failures.append(repr(error))
                    continue
                self.statuses[answer.status] += 1
                if answer.status == 200:
                    self.names.setdefault(caller, set()).add(answer.headers["x-served-entity"])
                else:
                    self.failures.append(text)

    @property
    def failed(self) -> int:
        return sum(count for status, count in self.statuses.items() if status != 200)

    @property
    def answered(self) -> int:
        return self.statuses[200]
