"""What the supervisor answers over HTTP, on loopback, for the gateway to pass on: health, versions, metrics, status."""

import asyncio
import re
from collections.abc import Callable, Iterable
from importlib.metadata import version
from typing import Any

import aiohttp
from aiohttp import web


class StatusServer:
    """A small server over `status()`."""

    def __init__(self, status: Callable[[], dict[str, Any]]) -> None:
        self._status = status
        self._runner: web.AppRunner | None = None

    async def start(self) -> int:
        """Begin to answer; the port."""
        app = web.Application()
        app.router.add_get("/", self._index)
        app.router.add_get("/ping", self._ping)
        app.router.add_get("/health", self._health)
        app.router.add_get("/version", self._version)
        app.router.add_get("/status", self._whole)
        app.router.add_get("/metrics", self._metrics)
        self._runner = web.AppRunner(app, access_log=None)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        port: int = self._runner.addresses[0][1]
        return port

    async def stop(self) -> None:
        """Answer no more."""
        if self._runner is not None:
            await self._runner.cleanup()

    async def _ping(self, _: web.Request) -> web.Response:
        return web.Response(text="\n")

    async def _index(self, _: web.Request) -> web.Response:
        names = self._status()["endpoints"]
        paths = [
            f"/serving-endpoints/{name}/{what}"
            for name in names
            for what in ("invocations", "docs", "health")
        ]
        return web.json_response({"paths": ["/health", "/version", "/metrics", "/status", *paths]})

    async def _health(self, _: web.Request) -> web.Response:
        endpoints = self._status()["endpoints"]
        ready = {name: said["ready"] for name, said in endpoints.items()}
        return web.json_response(
            {"ready": all(ready.values()), "endpoints": ready}, status=200 if all(ready.values()) else 503
        )

    async def _version(self, _: web.Request) -> web.Response:
        served = {
            name: {entity["name"]: entity["entity_version"] for entity in said["entities"]}
            for name, said in self._status()["endpoints"].items()
        }
        return web.json_response({"contender": version("contender"), "served": served})

    async def _whole(self, _: web.Request) -> web.Response:
        status = self._status()
        # Where files lie and what our processes are called is for this machine's people, not for callers.
        endpoints = {
            name: {key: said[key] for key in ("ready", "config_update", "generation_in_effect", "traffic")}
            for name, said in status["endpoints"].items()
        }
        return web.json_response(
            {"environment": status["environment"], "started": status["started"], "endpoints": endpoints}
        )

    async def _metrics(self, _: web.Request) -> web.Response:
        status = self._status()
        ports = [
            worker["port"]
            for said in status["endpoints"].values()
            for entity in said["entities"]
            for worker in entity["workers"]
            if worker["ready"]
        ]
        timeout = aiohttp.ClientTimeout(total=2)
        async with aiohttp.ClientSession(timeout=timeout) as session:
            pages = await asyncio.gather(*(_page(session, port) for port in ports))
        return web.Response(text=merged(pages) + _own(status), content_type="text/plain")


async def _page(session: aiohttp.ClientSession, port: int) -> str:
    try:
        async with session.get(f"http://127.0.0.1:{port}/metrics") as answer:
            return await answer.text() if answer.status == 200 else ""
    except (aiohttp.ClientError, TimeoutError):
        return ""


_FAMILY = re.compile(r"# (?:HELP|TYPE) (\S+)")


def merged(pages: Iterable[str]) -> str:
    """Prometheus pages of several processes as one: each family's help and type stand once, before all its samples."""
    heads: dict[str, list[str]] = {}
    samples: dict[str, list[str]] = {}
    for page in pages:
        family = ""
        for line in page.splitlines():
            found = _FAMILY.match(line)
            if found:
                family = found[1]
                if line not in heads.setdefault(family, []):
                    heads[family].append(line)
            elif line and not line.startswith("#"):
                samples.setdefault(family, []).append(line)
    return "".join("\n".join([*heads[family], *samples.get(family, [])]) + "\n" for family in heads)


def _own(status: dict[str, Any]) -> str:
    """What the supervisor counts itself."""
    lines = [
        "# HELP contender_ready Whether workers are ready to answer.",
        "# TYPE contender_ready gauge",
    ]
    lines += [
        f'contender_ready{{endpoint="{name}",served_entity="{entity["name"]}",version="{entity["entity_version"]}"}} '
        f"{sum(worker['ready'] for worker in entity['workers'])}"
        for name, said in status["endpoints"].items()
        for entity in said["entities"]
    ]
    lines += [
        "# HELP contender_restarts_total How often a process was started again.",
        "# TYPE contender_restarts_total counter",
        f'contender_restarts_total{{process="gateway"}} {status["gateway"]["restarts"]}',
    ]
    lines += [
        f'contender_restarts_total{{process="{name}/{entity["name"]}/{place}"}} {worker["restarts"]}'
        for name, said in status["endpoints"].items()
        for entity in said["entities"]
        for place, worker in enumerate(entity["workers"])
    ]
    return "\n".join(lines) + "\n"
