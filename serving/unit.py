"""One version served for one endpoint: its files fetched, its workers started, watched and replaced."""

import asyncio
import contextlib
import json
import socket
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deployments.environment import Serving
from deployments.errors import ContenderError, first_line
from serving.endpoint import ServedEntity
from serving.fetch import ready_folder
from serving.folders import Folders
from serving.process import FIRST_BACK_OFF, LONGEST_BACK_OFF, Child
from serving.served_model import ServedModel, read_served

if TYPE_CHECKING:
    import aiohttp


@dataclass(frozen=True)
class Sources:
    """Where versions are fetched from, and with what settings they are served."""

    tracking_uri: str
    registry_uri: str
    allowed_packages: tuple[str, ...]
    serving: Serving
    settings: Path
    """The file that holds `serving`."""


SILENT_ASKS = 3
"""A worker counts as silent only if it left so many questions unanswered: time alone may have been our own pause."""


class Worker:
    """One scorer process."""

    def __init__(self, child: Child) -> None:
        self.child = child
        self.port = 0
        self.ready = False
        self.health: dict[str, Any] = {}
        self._unanswered = 0
        self._answered_at = 0.0

    def answered(self, health: dict[str, Any], *, ready: bool) -> None:
        """It said how it is."""
        self.health, self.ready = health, ready
        self._unanswered, self._answered_at = 0, time.monotonic()

    def silent(self, seconds: float) -> bool:
        """It did not, once more; whether it was ready and has now been silent for so long."""
        self._unanswered += 1
        late = time.monotonic() - self._answered_at
        return self.ready and self._unanswered >= SILENT_ASKS and late >= seconds

    def status(self) -> dict[str, Any]:
        """For people and metrics."""
        return {
            "pid": self.child.pid,
            "port": self.port,
            "ready": self.ready,
            "restarts": self.child.restarts,
            "log": str(self.child.log),
            "health": self.health,
        }


class Unit:
    """A served version of an endpoint: `ready` lists the ports of those workers that may be asked."""

    def __init__(self, endpoint: str, entity: ServedEntity, folders: Folders, sources: Sources) -> None:
        self.endpoint, self.entity = endpoint, entity
        self._folders, self._sources = folders, sources
        self.folder: Path | None = None
        self.served: ServedModel | None = None
        self.problem = ""
        self.workers: list[Worker] = []
        self._surplus: list[Worker] = []
        self._fetching: asyncio.Task[None] | None = None
        self._fetch_back_off, self._fetch_not_before = FIRST_BACK_OFF, 0.0
        self.stopping = False

    @property
    def key(self) -> tuple[str, str, str, str]:
        """Endpoint, served name, registered name and version."""
        return (self.endpoint, self.entity.name, self.entity.entity_name, self.entity.entity_version)

    @property
    def ready(self) -> tuple[int, ...]:
        """Ports of workers that live and have answered a warm-up prediction."""
        return tuple(worker.port for worker in self.workers if worker.ready and worker.child.alive)

    async def tend(self) -> None:
        """Do what there is to do now, without waiting for it: fetch, start, restart, adjust the number of workers."""
        try:
            await self._tended()
        except OSError as error:
            # Whatever becomes of this version, the others are to be tended, and leases to lapse.
            self.problem = f"a worker cannot be started: {error}"
            if isinstance(error, FileNotFoundError):
                # Its interpreter is gone: to be made ready anew.
                self.folder = None

    async def _tended(self) -> None:
        if self.stopping:
            return
        if self.folder is None:
            self._fetch()
            return
        while len(self.workers) < self.entity.workers:
            number = len(self.workers)
            name = f"{self.endpoint}-{self.entity.name}-v{self.entity.entity_version}-{number}"
            self.workers.append(Worker(Child(name, self._folders.logs / f"{name}.log")))
        while len(self.workers) > self.entity.workers:
            surplus = self.workers.pop()
            surplus.ready = False
            self._surplus.append(surplus)
        for number, worker in enumerate(self.workers):
            if not worker.child.alive:
                worker.ready = False
                if worker.child.may_start:
                    await self._start(number, worker)

    async def _start(self, number: int, worker: Worker) -> None:
        assert self.served is not None
        listening = socket.create_server(("127.0.0.1", 0), backlog=1024)
        listening.set_inheritable(True)
        worker.port = listening.getsockname()[1]
        command = [self.served.python or sys.executable, "-m", "serving.scorer", "--model", str(self.folder)]
        command += ["--endpoint", self.endpoint, "--entity", self.entity.name, "--worker", str(number)]
        command += ["--root", str(self._folders.root), "--settings", str(self._sources.settings)]
        command += ["--fd", str(listening.fileno()), "--tether"]
        await worker.child.start(command, listening)
        self.problem = ""

    async def look(self, session: "aiohttp.ClientSession") -> None:
        """Ask every worker how it is; one that does not say that it is ready is taken out."""
        await asyncio.gather(*(self._ask(worker, session) for worker in self.workers if worker.child.alive))

    async def _ask(self, worker: Worker, session: "aiohttp.ClientSession") -> None:
        import aiohttp

        try:
            async with session.get(f"http://127.0.0.1:{worker.port}/health") as answer:
                health = await answer.json()
                worker.answered(health, ready=answer.status == 200)
            if health.get("status") == "stuck":
                worker.child.kill()
        except (aiohttp.ClientError, TimeoutError, ValueError):
            # One that is busy may be late to answer; one that died is seen by its process.
            if worker.silent(self._sources.serving.limits.silent_seconds):
                worker.child.kill()
            worker.ready = worker.ready and worker.child.alive

    def _fetch(self) -> None:
        if self._fetching is None and time.monotonic() >= self._fetch_not_before:
            self._fetching = asyncio.create_task(self._fetched())

    async def _fetched(self) -> None:
        try:
            self._found(await self._made_ready())
        except ContenderError as error:
            self._failed(str(error))
        except Exception as error:  # noqa: BLE001 - whatever it is, it is told, and tried again
            self._failed(f"{type(error).__name__}: {first_line(error)}")

    async def _made_ready(self) -> Path:
        """The folder of the version, fetched where it does not stand."""
        entity, sources = self.entity, self._sources
        standing = await asyncio.to_thread(
            ready_folder, entity.entity_name, entity.entity_version, self._folders.models, sources.serving
        )
        if standing is not None:
            return standing
        # Tethered, so that neither it nor what it starts outlives us.
        command = [sys.executable, "-m", "serving.tether", "--"]
        command += [sys.executable, "-m", "serving.fetch", "--name", entity.entity_name]
        command += ["--version", entity.entity_version, "--folder", str(self._folders.models)]
        command += ["--tracking-uri", sources.tracking_uri, "--registry-uri", sources.registry_uri]
        command += [
            "--settings",
            str(sources.settings),
            "--allowed-packages",
            ",".join(sources.allowed_packages),
        ]
        code, said, errors = await _ran(command)
        with (self._folders.logs / "fetch.log").open("ab") as log:
            log.write(errors)
        if code:
            lines = errors.decode("utf-8", "replace").strip().splitlines() or ["the fetch said nothing"]
            raise ContenderError(lines[-1])
        return Path(json.loads(said.decode().strip().splitlines()[-1])["folder"])

    def _found(self, folder: Path) -> None:
        self.served = read_served(folder)
        self.folder, self.problem = folder, ""
        self._fetching = None

    def _failed(self, problem: str) -> None:
        self.problem = problem
        self._fetch_back_off = min(self._fetch_back_off * 2, LONGEST_BACK_OFF)
        self._fetch_not_before = time.monotonic() + self._fetch_back_off
        self._fetching = None

    async def stop(self) -> None:
        """Drain and end all workers."""
        self.stopping = True
        if self._fetching is not None:
            self._fetching.cancel()
            await asyncio.gather(self._fetching, return_exceptions=True)
        await self.end([*self.workers, *self.released()])

    def released(self) -> list[Worker]:
        """Workers that are too many by now, to be ended by the caller once nobody is sent to them any more."""
        released, self._surplus = self._surplus, []
        return released

    async def end(self, workers: Sequence[Worker]) -> None:
        """Drain and end some workers."""
        grace = self._sources.serving.limits.drain_seconds + 2
        await asyncio.gather(*(worker.child.stop(grace) for worker in workers))

    def said_problem(self) -> str:
        """What keeps it from answering, or from answering with all workers; empty where nothing does."""
        problem = self.problem
        for worker in self.workers:
            if not worker.ready and worker.child.restarts:
                problem = problem or f"worker ended with {worker.child.last_exit}: {worker.child.said_last()}"
        return problem

    def status(self) -> dict[str, Any]:
        """For people and metrics."""
        return {
            "name": self.entity.name,
            "entity_name": self.entity.entity_name,
            "entity_version": self.entity.entity_version,
            "engine": self.served.engine if self.served else None,
            "engine_reason": self.served.engine_reason if self.served else None,
            "ready": bool(self.ready),
            "problem": self.said_problem(),
            "workers": [worker.status() for worker in self.workers],
        }


async def _ran(command: Sequence[str]) -> tuple[int, bytes, bytes]:
    """The exit code, output and errors of a tethered command; cancelled, it is ended, and waited for."""
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe, stderr=pipe)
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        # Not by communicate(), which closes the standard input that the tether watches.
        said, errors = await asyncio.gather(process.stdout.read(), process.stderr.read())
        return await process.wait(), said, errors
    except asyncio.CancelledError:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        await process.wait()
        raise
