"""The supervisor: owns the gateway, the scorers and an MLflow server, and makes what is match what is desired.

One process a data root. It watches the desired states, has versions fetched, starts and restarts what dies, puts a
worker into rotation once it has answered a warm-up prediction, and restores the fallback when a lease lapses. All
that it knows of itself is in `status.json`; nothing is lost with it, since what should be is on disk.
"""

import asyncio
import contextlib
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from deployments.errors import BadInputError, ContenderError
from serving.desired import EndpointStore
from serving.endpoint import Endpoint, TrafficConfig, in_effect
from serving.folders import Folders
from serving.gateway import Gateway, chosen_gateway
from serving.instructions import Instructions
from serving.keys import callers
from serving.plan import GatewayPlan
from serving.process import Child
from serving.unit import Sources, Unit

if TYPE_CHECKING:
    import aiohttp

TICK_SECONDS = 0.02
LOOK_SECONDS = 0.5
"""How often workers that serve are asked how they are; those that start are asked at every tick or so."""
STATUS_SECONDS = 1.0
MLFLOW_WAITS_SECONDS = 20.0
LOCK_SECONDS = 0.5
"""How long the root's lock is waited for: whoever asks whether it is held has it for a moment."""
LEAVE_SECONDS = 0.5
"""How long a worker that no plan names any more still answers: the gateway may have sent somebody to it just before."""


@dataclass
class _Served:
    """One endpoint as it is: its desired state, the last one that all was ready for, and what the gateway routes by."""

    desired: Endpoint
    applied: Endpoint | None = None
    in_effect: Endpoint | None = None

    def traffic(self, now: datetime) -> TrafficConfig:
        """What the gateway is to do now."""
        return in_effect(self.applied or self.desired, now)


class Supervisor:
    """Runs until it is told to stop."""

    def __init__(self, given: Instructions) -> None:
        self._given = given
        self.folders = Folders(Path(given.root))
        self._store = EndpointStore(self.folders)
        settings = self.folders.run / "settings.json"
        settings.write_text(given.serving.model_dump_json(), encoding="utf-8")
        self._sources = Sources(
            given.tracking_uri, given.registry_uri, given.allowed_packages, given.serving, settings
        )
        self._endpoints: dict[str, _Served] = {}
        self._units: dict[tuple[str, str, str, str], Unit] = {}
        self._retiring: list[Callable[[], Awaitable[None]]] = []
        self._leaving: set[asyncio.Task[None]] = set()
        self._problems: dict[str, str] = {}
        self._gateway: Gateway = chosen_gateway(self.folders.run, given.serving.gateway, given.serving.limits)
        self._gateway_child = Child("gateway", self.folders.logs / "gateway.log")
        self._gateway_command: list[str] = []
        self._mlflow_child = Child("mlflow", self.folders.logs / "mlflow.log")
        self._mlflow_port = 0
        self._port = self._admin_port = 0
        self._plan = GatewayPlan({}, {}, None, {}, 0)
        self._status_port: int | None = None
        self._planned: GatewayPlan | None = None
        self._seen: tuple[object, ...] = ()
        self._stop = asyncio.Event()
        self._changed = asyncio.Event()
        self._started = datetime.now(UTC)

    async def run(self) -> None:
        """Serve until SIGTERM or SIGINT; then drain and end everything.

        Raises:
            BadInputError: a port is taken.
        """
        loop = asyncio.get_running_loop()
        for wish in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(wish, self._stop.set)
        gateway = self._given.serving.gateway
        self._port = _free_port(gateway.host, gateway.port, "the gateway", "serving.gateway.port")
        self._admin_port = _free_port("127.0.0.1", 0, "", "")
        if self._given.mlflow_store:
            wanted = self._given.serving.mlflow_port
            self._mlflow_port = _free_port("127.0.0.1", wanted, "MLflow", "serving.mlflow_port")
        self._read_desired()
        self._gateway_command = self._gateway.prepare(self._next_plan(), self._port, self._admin_port)
        self._plan = self._planned or self._plan
        await self._gateway_child.start(self._gateway_command)
        self._units = self._wanted()
        await asyncio.gather(*(unit.tend() for unit in self._units.values()))
        # Imported late: what is started above starts meanwhile.
        import aiohttp

        from serving.status_server import StatusServer

        server = StatusServer(self.status)
        self._status_port = await server.start()
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=2)) as session:
            works = {
                "reconciling": self._reconcile,
                "looking": lambda: self._look(session),
                "reporting": self._report,
                "the gateway": self._keep_gateway,
            }
            if self._given.mlflow_store:
                works["MLflow"] = self._keep_mlflow
            tasks = [asyncio.create_task(self._kept(name, work)) for name, work in works.items()]
            try:
                await self._stop.wait()
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
                await self._end()
                await server.stop()

    async def _kept(self, name: str, work: Callable[[], Awaitable[None]]) -> None:
        """Do a work that never ends; what breaks it is told, and it is begun again, since callers are being served."""
        while True:
            try:
                await work()
            except Exception as error:  # noqa: BLE001 - a full disk, say, must not end what serves
                traceback.print_exc()
                self._problems[name] = f"{type(error).__name__} at {datetime.now(UTC):%H:%M:%S} UTC: {error}"
                await asyncio.sleep(STATUS_SECONDS)

    # What should be

    def _read_desired(self) -> None:
        seen = (self._store.signature(), _stamp(self.folders.keys))
        if seen == self._seen:
            return
        self._seen = seen
        self._problems = {}
        found: dict[str, Endpoint] = {}
        for name in self._store.names():
            try:
                found[name] = self._store.get(name)
            except BadInputError as error:
                self._problems[name] = str(error)
                if name in self._endpoints:
                    found[name] = self._endpoints[name].desired
        for name, endpoint in found.items():
            if name in self._endpoints:
                self._endpoints[name].desired = endpoint
            else:
                self._endpoints[name] = _Served(endpoint)
        for name in set(self._endpoints) - set(found):
            del self._endpoints[name]

    def _wanted(self) -> dict[tuple[str, str, str, str], Unit]:
        """A unit for every version that is desired or still applied."""
        wanted: dict[tuple[str, str, str, str], Unit] = {}
        for name, served in self._endpoints.items():
            for endpoint in filter(None, (served.applied, served.desired)):
                for entity in endpoint.config.served_entities:
                    unit = Unit(name, entity, self.folders, self._sources)
                    standing = self._units.get(unit.key, unit)
                    standing.entity = entity
                    wanted[unit.key] = standing
        return wanted

    def _apply_desired(self) -> None:
        """Bring a new config into effect once everything that it gives traffic to is ready."""
        for name, served in self._endpoints.items():
            if served.applied is served.desired:
                continue
            traffic = in_effect(served.desired, datetime.now(UTC))
            needed = {route.served_entity_name for route in traffic.routes if route.traffic_percentage}
            needed |= {traffic.mirror.served_entity_name} if traffic.mirror else set()
            units = [self._unit(name, served.desired, entity) for entity in needed]
            if all(unit is not None and unit.ready for unit in units):
                served.applied = served.desired

    def _unit(self, name: str, endpoint: Endpoint, entity: str) -> Unit | None:
        wanted = endpoint.config.entity(entity)
        return self._units.get((name, entity, wanted.entity_name, wanted.entity_version))

    # What is

    async def _reconcile(self) -> None:
        while True:
            self._read_desired()
            wanted = self._wanted()
            self._retiring += [unit.stop for key, unit in self._units.items() if key not in wanted]
            self._units = wanted
            for unit in self._units.values():
                await unit.tend()
                if released := unit.released():
                    self._retiring.append(partial(unit.end, released))
            self._apply_desired()
            if await self._bring_into_effect():
                # Not before: until then the gateway may send requests to them.
                self._leaving |= {asyncio.create_task(_later(end)) for end in self._retiring}
                self._retiring = []
            self._leaving = {task for task in self._leaving if not task.done()}
            await asyncio.sleep(TICK_SECONDS)

    async def _look(self, session: "aiohttp.ClientSession") -> None:
        looked = 0.0
        while True:
            all_of_them = time.monotonic() - looked >= LOOK_SECONDS
            if all_of_them:
                looked = time.monotonic()
            units = [
                unit
                for unit in self._units.values()
                if all_of_them or any(worker.child.alive and not worker.ready for worker in unit.workers)
            ]
            await asyncio.gather(*(unit.look(session) for unit in units))
            await asyncio.sleep(TICK_SECONDS * 2)

    def _next_plan(self) -> GatewayPlan:
        """What the gateway is to do now; remembered, and with a version of its own if it is another than before."""
        now = datetime.now(UTC)
        ready: dict[tuple[str, str], tuple[int, ...]] = {}
        for name, served in self._endpoints.items():
            endpoint = served.applied or served.desired
            for entity in endpoint.config.served_entities:
                unit = self._unit(name, endpoint, entity.name)
                ready[name, entity.name] = unit.ready if unit else ()
        former = self._planned or self._plan
        plan = replace(
            former,
            endpoints={name: served.traffic(now) for name, served in self._endpoints.items()},
            ready=ready,
            status_port=self._status_port,
            callers=self._callers(now),
        )
        if plan != former or self._planned is None:
            # Never a number twice, also where the gateway did not take the plan before: it is asked for the number.
            plan = replace(plan, version=former.version + 1)
        self._planned = plan
        return plan

    def _callers(self, now: datetime) -> Mapping[str, str]:
        """Who may call; those who might before, where the file of keys cannot be read."""
        try:
            found = callers(self.folders.keys, now)
        except BadInputError as error:
            self._problems["callers"] = str(error)
            return self._plan.callers
        self._problems.pop("callers", None)
        return found

    async def _bring_into_effect(self) -> bool:
        """Have the gateway do what it is to do now; whether it does."""
        plan = self._next_plan()
        if plan.version != self._plan.version:
            try:
                await asyncio.to_thread(self._gateway.apply, plan)
            except ContenderError as error:
                self._problems["gateway"] = str(error)
                return False
            self._problems.pop("gateway", None)
            self._plan = plan
            self._changed.set()
        for served in self._endpoints.values():
            if served.in_effect is not served.applied:
                served.in_effect = served.applied
                self._changed.set()
        return True

    async def _keep_gateway(self) -> None:
        while True:
            if self._gateway_child.may_start:
                await self._gateway_child.start(self._gateway_command)
            await asyncio.to_thread(self._gateway.tidy)
            await asyncio.sleep(TICK_SECONDS)

    async def _keep_mlflow(self) -> None:
        store, artifacts = self._given.mlflow_store, self._given.mlflow_artifacts
        assert store is not None
        command = [sys.executable, "-m", "serving.tether", "--", sys.executable, "-m", "mlflow", "server"]
        command += ["--backend-store-uri", store, "--host", "127.0.0.1", "--port", str(self._mlflow_port)]
        command += ["--default-artifact-root", artifacts, "--no-serve-artifacts"] if artifacts else []
        command += ["--workers", "1"]
        while True:
            # It takes a core for seconds to start, and nobody waits for it: endpoints come first.
            waited = datetime.now(UTC) - self._started
            if self._mlflow_child.may_start and (
                self._settled() or waited.total_seconds() > MLFLOW_WAITS_SECONDS
            ):
                await self._mlflow_child.start(command)
            await asyncio.sleep(LOOK_SECONDS)

    async def _end(self) -> None:
        """Drain and end everything; the gateway after the scorers, since their last answers go through it."""
        retiring = [end() for end in self._retiring]
        await asyncio.gather(*(unit.stop() for unit in self._units.values()), *retiring, *self._leaving)
        await self._gateway_child.stop(2)
        await self._mlflow_child.stop(15)
        self.folders.status.unlink(missing_ok=True)

    # What is said of it

    async def _report(self) -> None:
        while True:
            status = self.folders.status
            staged = status.with_suffix(".partial")
            staged.write_bytes(orjson.dumps(self.status(), option=orjson.OPT_INDENT_2))
            staged.replace(status)
            self._changed.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(STATUS_SECONDS if self._settled() else TICK_SECONDS * 5):
                    await self._changed.wait()

    def _settled(self) -> bool:
        return all(served.in_effect is served.desired for served in self._endpoints.values())

    def status(self) -> dict[str, Any]:
        """Everything there is to say, as JSON-like data."""
        gateway = self._given.serving.gateway
        return {
            "pid": os.getpid(),
            "environment": self._given.environment,
            "started": self._started.isoformat(),
            "reported": datetime.now(UTC).isoformat(),
            "plan": self._plan.version,
            "gateway": {
                "kind": type(self._gateway).__name__,
                "url": f"http://{gateway.host}:{self._port}",
                "admin": f"http://127.0.0.1:{self._admin_port}",
                "pid": self._gateway_child.pid,
                "restarts": self._gateway_child.restarts,
                "lacks": list(self._gateway.lacks),
                "problem": self._problems.get("gateway", ""),
                "log": str(self._gateway_child.log),
            },
            "mlflow": {
                "url": f"http://127.0.0.1:{self._mlflow_port}"
                if self._mlflow_port
                else self._given.tracking_uri,
                "ours": bool(self._mlflow_port),
                "pid": self._mlflow_child.pid,
                "restarts": self._mlflow_child.restarts,
                "log": str(self._mlflow_child.log),
            },
            "endpoints": {name: self._endpoint_status(name) for name in sorted(self._endpoints)},
            "problems": {name: said for name, said in self._problems.items() if name != "gateway"},
            "logs": str(self.folders.logs),
        }

    def _endpoint_status(self, name: str) -> dict[str, Any]:
        served = self._endpoints[name]
        # What the gateway does, not what it is to do next: callers wait for this.
        traffic = self._plan.endpoints.get(name) or served.traffic(datetime.now(UTC))
        units = [unit for unit in self._units.values() if unit.endpoint == name]
        names = {route.served_entity_name for route in traffic.routes if route.traffic_percentage}
        answering = any(self._plan.ready.get((name, entity)) for entity in names)
        failed = [said for unit in units if not unit.ready and (said := unit.said_problem())]
        up_to_date = served.in_effect is served.desired
        return {
            "ready": answering,
            "config_update": "NOT_UPDATING" if up_to_date else "UPDATE_FAILED" if failed else "IN_PROGRESS",
            "problem": self._problems.get(name) or (failed[0] if failed else ""),
            "generation": served.desired.generation,
            "generation_in_effect": served.in_effect.generation if served.in_effect else 0,
            "created_at": served.desired.created_at.isoformat(),
            "created_at_in_effect": served.in_effect.created_at.isoformat() if served.in_effect else None,
            "traffic": traffic.model_dump(mode="json"),
            "entities": [unit.status() for unit in units],
        }


async def _later(end: Callable[[], Awaitable[None]]) -> None:
    await asyncio.sleep(LEAVE_SECONDS)
    await end()


def _stamp(path: Path) -> tuple[int, int]:
    try:
        seen = path.stat()
    except FileNotFoundError:
        return (0, 0)
    return (seen.st_mtime_ns, seen.st_ino)


def _free_port(host: str, wanted: int, whose: str, key: str) -> int:
    """The wanted port, or any that is free for 0.

    Raises:
        BadInputError: it is taken.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, wanted))
        except OSError as error:
            raise BadInputError(
                f"port {wanted} of {host}, which {whose} is to have, cannot be had ({error.strerror}); "
                f"free it, or name another in the environment's {key}"
            ) from None
        return int(probe.getsockname()[1])


def main() -> int:
    """Supervise as the instructions in the file given as the only argument say; hold the root's lock meanwhile."""
    import fcntl

    given = Instructions.model_validate_json(Path(sys.argv[1]).read_bytes())
    # Its eight processes for jobs (of language models' traces) take two gigabytes, and cores for half a minute.
    os.environ.setdefault("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false")
    folders = Folders(Path(given.root))
    lock = os.open(folders.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    deadline = time.monotonic() + LOCK_SECONDS
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            if time.monotonic() > deadline:
                print(f"another supervisor serves {given.root}", file=sys.stderr)  # noqa: T201 - its log
                return 2
            time.sleep(0.01)
    os.ftruncate(lock, 0)
    os.write(lock, str(os.getpid()).encode())

    async def serve() -> None:
        await Supervisor(given).run()

    try:
        with contextlib.suppress(KeyboardInterrupt):
            asyncio.run(serve())
    except ContenderError as error:
        print(error, file=sys.stderr)  # noqa: T201 - its log
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
