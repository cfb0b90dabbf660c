"""A thin router for machines without Envoy: the same paths, split, stickiness, keys and mirror, by one watched file.

`python -m serving.router --files FOLDER --host H --port P --admin-port A` reads `plan.json` in the folder and again
whenever it changes. What it cannot do beside Envoy is listed in `serving.routing.LACKS`.
"""

import argparse
import asyncio
import contextlib
import hashlib
import json
import math
import os
import signal
import sys
import threading
import time
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

import aiohttp
from aiohttp import web
from multidict import CIMultiDict
from yarl import URL

from serving import unanswered
from serving.routing import PLAN, Allowance, Passed, RoutingPlan, Split, read_plan

__all__ = ["Router", "main"]

HOST = "contender"
HOP_BY_HOP = frozenset(
    {
        *("connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "te", "trailer"),
        *("transfer-encoding", "upgrade", "content-length", "host", "expect"),
    }
)
STATUS_PATHS = frozenset({"/", "/health", "/metrics", "/status", "/version"})
LONGEST_KEY = 64
LONGEST_AUTHORIZATION = 128
LONGEST_REQUEST_ID = 128
DRAIN_SECONDS = 10.0


class RefusedError(Exception):
    """A request that the router answers itself; the message is for the caller."""

    def __init__(
        self, status: int, code: str, message: str, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.headers = headers or {}


class Router:
    """Answers requests by asking the workers that the plan in effect names."""

    def __init__(self, plan: RoutingPlan, log: Path | None = None) -> None:
        self.plan = plan
        self._log_path = log
        self._log: IO[str] | None = None
        self._failed: IO[str] | None = None
        self._allowance = Allowance()
        self._passed = Passed()
        self._load: Counter[int] = Counter()
        self._mirrored: set[asyncio.Task[None]] = set()
        self._session: aiohttp.ClientSession | None = None
        self.reopen_log()

    async def __aenter__(self) -> "Router":
        # Connections are given up before a scorer would, so that no request is sent into one just being closed.
        connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=4, use_dns_cache=False)
        self._session = aiohttp.ClientSession(
            connector=connector,
            auto_decompress=False,
            skip_auto_headers=("user-agent", "accept", "accept-encoding", "content-type"),
            timeout=aiohttp.ClientTimeout(total=None),
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._mirrored:
            task.cancel()
        await asyncio.gather(*self._mirrored, return_exceptions=True)
        if self._session:
            await self._session.close()
        self._close_logs()

    def reopen_log(self) -> None:
        """Write to the logs' paths anew, after somebody moved a file away."""
        self._close_logs()
        if self._log_path:
            failed = self._log_path.with_name(unanswered.FILE)
            self._log, self._failed = (
                path.open("a", encoding="utf-8", buffering=1 << 16) for path in (self._log_path, failed)
            )

    def flush_log(self) -> None:
        """Bring what was logged onto the disk."""
        for log in filter(None, (self._log, self._failed)):
            log.flush()

    def _close_logs(self) -> None:
        for log in filter(None, (self._log, self._failed)):
            log.close()

    async def answer(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one request, by a worker or by a refusal in JSON."""
        began = time.perf_counter()
        given = request.headers.get("x-request-id", "")
        request_id = given if _sane(given) else uuid.uuid4().hex
        caller = None
        try:
            caller = self._caller(request)
            response = await self._forwarded(request, request_id, caller)
        except RefusedError as refused:
            content = {"error_code": refused.code, "message": str(refused)}
            response = web.json_response(content, status=refused.status, headers=refused.headers)
        response.headers["x-request-id"] = request_id
        self._note(request, response, request_id, caller, time.perf_counter() - began)
        return response

    def _caller(self, request: web.BaseRequest) -> str | None:
        """Who asks, by the digest of their key; None for anybody, where anybody may ask."""
        if _is_open(request.path):
            return None
        authorization, key = request.headers.get("authorization"), request.headers.get("x-api-key")
        if authorization is not None:
            bearer = authorization[:7].lower() == "bearer "
            key = authorization[7:].strip() if bearer else (key or "")
            if len(authorization) > LONGEST_AUTHORIZATION:
                key = authorization
        if key is None:
            if self.plan.require_key:
                message = (
                    "This needs an API key: send it as 'authorization: Bearer KEY' or as 'x-api-key: KEY'."
                )
                raise RefusedError(401, "UNAUTHENTICATED", message, {"www-authenticate": "Bearer"})
            return None
        digest = hashlib.sha256(key.encode(errors="surrogateescape")).hexdigest()
        caller = self.plan.callers.get(digest) if len(key) <= LONGEST_KEY else None
        if caller is None:
            message = "The API key is not known, or no longer valid."
            raise RefusedError(401, "UNAUTHENTICATED", message, {"www-authenticate": "Bearer"})
        return caller

    async def _forwarded(self, request: web.BaseRequest, request_id: str, caller: str | None) -> web.Response:
        plan = self.plan
        rate = plan.requests_per_second
        who = f"caller {caller}" if caller else f"address {request.remote}"
        if rate and not _is_open(request.path) and not self._allowance.spend(who, rate):
            message = "This caller asks more often than allowed; come again as retry-after says."
            wait = str(max(1, math.ceil(1 / rate)))
            raise RefusedError(429, "REQUEST_LIMIT_EXCEEDED", message, {"retry-after": wait})
        split, path = self._target(request)
        headers = _passed_on(request.headers)
        headers["x-request-id"] = request_id
        if caller:
            headers["x-contender-caller"] = caller
        if split is None:
            groups: tuple[tuple[int, ...], ...] = ((plan.status_port,),) if plan.status_port else ()
        else:
            # By what is passed on, as Envoy does: neither a key nor what only a gateway may say steers anybody.
            groups = split.candidates(headers.get(split.sticky_header))
        ports = self._passed.order(groups, self._load)
        if not ports:
            message = "No worker of this endpoint is ready; come again soon."
            raise RefusedError(503, "TEMPORARILY_UNAVAILABLE", message, {"retry-after": "1"})
        body = await _body(request, plan)
        if split and path.split("?")[0] == "/invocations" and split.mirrored():
            self._mirror(split, request.method, path, headers, body)
        return await self._asked(ports, request.method, path, headers, body)

    def _target(self, request: web.BaseRequest) -> tuple[Split | None, str]:
        """The endpoint that a request is for (None: the supervisor) and the path below it, with the query."""
        raw = request.raw_path
        path = raw.split("?", 1)[0]
        if path in STATUS_PATHS:
            return None, raw
        if any(odd in path.lower() for odd in ("..", "//", "%2e", "%2f", "%5c")):
            message = "The path has '..', '//' or an encoded dot or slash in it; write it plainly."
            raise RefusedError(400, "BAD_REQUEST", message)
        parts = raw.split("/", 3)
        split = (
            self.plan.endpoints.get(parts[2]) if len(parts) == 4 and parts[1] == "serving-endpoints" else None
        )
        if split is None:
            known = ", ".join(sorted(self.plan.endpoints)) or "none"
            message = (
                f"There is nothing at this path; endpoints are /serving-endpoints/NAME/invocations ({known})."
            )
            raise RefusedError(404, "RESOURCE_DOES_NOT_EXIST", message)
        return split, f"/{parts[3]}"

    async def _asked(
        self, ports: list[int], method: str, path: str, headers: CIMultiDict[str], body: bytes
    ) -> web.Response:
        """The answer of the first worker that takes the connection; one that took it is the last that is asked."""
        seconds = self.plan.timeout_seconds + 1
        headers["host"] = HOST
        for port in ports:
            self._load[port] += 1
            try:
                async with asyncio.timeout(seconds):
                    return await self._exchange(port, method, path, headers, body)
            except aiohttp.ClientConnectorError:
                self._passed.add(port)
            except TimeoutError:
                message = f"There was no answer within {self.plan.timeout_seconds:g} seconds."
                raise RefusedError(504, "DEADLINE_EXCEEDED", message) from None
            except aiohttp.ClientError:
                message = (
                    "The worker that had the request ended before it answered; "
                    "whether it predicted is in its log. Ask again."
                )
                raise RefusedError(503, "TEMPORARILY_UNAVAILABLE", message, {"retry-after": "1"}) from None
            finally:
                self._load[port] -= 1
                if not self._load[port]:
                    del self._load[port]
        message = "No worker of this endpoint takes connections; come again soon."
        raise RefusedError(503, "TEMPORARILY_UNAVAILABLE", message, {"retry-after": "1"})

    async def _exchange(
        self, port: int, method: str, path: str, headers: CIMultiDict[str], body: bytes
    ) -> web.Response:
        assert self._session is not None
        url = URL(f"http://127.0.0.1:{port}{path}", encoded=True)
        async with self._session.request(
            method, url, headers=headers, data=body or None, allow_redirects=False
        ) as answer:
            content = await answer.read()
            kept = CIMultiDict(
                (name, value) for name, value in answer.headers.items() if name.lower() not in HOP_BY_HOP
            )
            return web.Response(status=answer.status, body=content, headers=kept)

    def _mirror(self, split: Split, method: str, path: str, headers: CIMultiDict[str], body: bytes) -> None:
        """Send a copy that nobody waits for, unless too many are under way."""
        if len(self._mirrored) >= self.plan.queue:
            return
        port = self._passed.order((split.mirror,), self._load)[0]
        copied = headers.copy()
        copied["host"] = f"{HOST}-shadow"
        task = asyncio.create_task(self._copy(port, method, path, copied, body))
        self._mirrored.add(task)
        task.add_done_callback(self._mirrored.discard)

    async def _copy(self, port: int, method: str, path: str, headers: CIMultiDict[str], body: bytes) -> None:
        with contextlib.suppress(aiohttp.ClientError, TimeoutError):
            async with asyncio.timeout(self.plan.timeout_seconds + 1):
                await self._exchange(port, method, path, headers, body)

    def _note(
        self,
        request: web.BaseRequest,
        response: web.StreamResponse,
        request_id: str,
        caller: str | None,
        seconds: float,
    ) -> None:
        if self._log is None or self._failed is None:
            return
        _, _, name, *below = f"{request.path}///".split("/", 3)
        known = name in self.plan.endpoints
        entry = {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "request_id": request_id,
            "caller": caller,
            "address": request.remote,
            "method": request.method,
            "endpoint": name if known else None,
            "path": f"/{below[0].rstrip('/')}" if known else request.path,
            "status": response.status,
            "served_entity": response.headers.get("x-served-entity"),
            "milliseconds": round(seconds * 1000, 3),
        }
        self._log.write(json.dumps(entry) + "\n")
        if response.status >= 500:
            failed = {name: entry[name] for name in ("endpoint", "path", "served_entity")}
            self._failed.write(json.dumps({"second": int(time.time() - seconds)} | failed) + "\n")


def _sane(request_id: str) -> bool:
    return (
        0 < len(request_id) <= LONGEST_REQUEST_ID
        and request_id.isascii()
        and request_id.isprintable()
        and (" " not in request_id)
    )


def _is_open(path: str) -> bool:
    """Whether a path is answered to anybody, as often as they ask: what load balancers look at."""
    parts = path.split("/")
    return path == "/health" or (len(parts) == 4 and parts[1] == "serving-endpoints" and parts[3] == "ping")


def _passed_on(headers: Mapping[str, str]) -> CIMultiDict[str]:
    """The caller's headers, less those of the connection, the keys, and what only a gateway may say."""
    return CIMultiDict(
        (name, value)
        for name, value in headers.items()
        if (low := name.lower()) not in HOP_BY_HOP
        and low not in {"authorization", "x-api-key"}
        and not low.startswith(("x-contender-", "x-envoy-"))
    )


async def _body(request: web.BaseRequest, plan: RoutingPlan) -> bytes:
    """The whole body, as long as it is neither too large nor too slow."""
    too_large = RefusedError(
        413, "REQUEST_TOO_LARGE", f"The body is larger than the {plan.body_bytes} bytes that are allowed."
    )
    if (request.content_length or 0) > plan.body_bytes:
        raise too_large
    chunks, size = [], 0
    try:
        async with asyncio.timeout(plan.timeout_seconds + 5):
            async for chunk in request.content.iter_any():
                size += len(chunk)
                if size > plan.body_bytes:
                    raise too_large
                chunks.append(chunk)
    except TimeoutError:
        raise RefusedError(408, "REQUEST_TIMEOUT", "The body did not arrive in time.") from None
    return b"".join(chunks)


# The process ------------------------------------------------------------------------------------------------


async def _watch(router: Router, folder: Path) -> None:
    """Take a new plan within milliseconds of its file's move; keep the former where it cannot be read."""
    seen: tuple[int, int] | None = None
    flushed = time.monotonic()
    while True:
        with contextlib.suppress(FileNotFoundError):
            status = (folder / PLAN).stat()
            if (found := (status.st_ino, status.st_mtime_ns)) != seen:
                seen = found
                try:
                    router.plan = read_plan(folder)
                except (ValueError, KeyError, TypeError) as error:
                    print(f"{folder / PLAN}: the plan is refused, the former stays: {error}", file=sys.stderr)  # noqa: T201
        if time.monotonic() - flushed > 1:
            router.flush_log()
            flushed = time.monotonic()
        await asyncio.sleep(0.005)


def _admin(router: Router) -> Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]:
    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        if request.path == "/ready":
            return web.Response(text="LIVE\n")
        if request.path == "/plan":
            return web.json_response({"version": router.plan.version})
        if request.path == "/reopen_logs" and request.method == "POST":
            router.reopen_log()
            return web.Response(text="OK\n")
        return web.Response(status=404)

    return answer


async def _serve(given: argparse.Namespace) -> None:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    if given.tether:
        threading.Thread(target=_until_let_go, args=(loop, stop), daemon=True).start()
    async with Router(read_plan(given.files), given.log) as router:
        servers: list[tuple[web.Server, str, int]] = [
            (web.Server(router.answer, access_log=None), given.host, given.port),
            (web.Server(_admin(router), access_log=None), "127.0.0.1", given.admin_port),
        ]
        listening = [await loop.create_server(server, host, port) for server, host, port in servers]
        watching = asyncio.create_task(_watch(router, given.files))
        await stop.wait()
        watching.cancel()
        for listener in listening:
            listener.close()
        for server, _, _ in servers:
            await server.shutdown(DRAIN_SECONDS)


def _until_let_go(loop: asyncio.AbstractEventLoop, stop: asyncio.Event) -> None:
    """Wait for the end of standard input, which is held open by whoever started this process."""
    # Not through sys.stdin, whose lock a thread that still waits would hold when the interpreter ends.
    while os.read(0, 4096):
        pass
    loop.call_soon_threadsafe(stop.set)


def main(arguments: list[str] | None = None) -> None:
    """Run the router until it is told to end, or is let go of."""
    parser = argparse.ArgumentParser(prog="python -m serving.router", description="A thin router in Python.")
    parser.add_argument("--files", type=Path, required=True, help="the folder with plan.json")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--admin-port", type=int, required=True, help="on 127.0.0.1, for the supervisor")
    parser.add_argument("--log", type=Path, default=None, help="the access log, in JSON lines")
    parser.add_argument("--tether", action="store_true", help="end when standard input does")
    given = parser.parse_args(arguments)
    try:
        _run(_serve(given))
    except OSError as error:
        raise SystemExit(
            f"The router cannot listen on {given.host}:{given.port}: {error.strerror}."
        ) from None


def _run(serving: Coroutine[Any, Any, None]) -> None:
    try:
        import uvloop
    except ImportError:
        asyncio.run(serving)
    else:
        uvloop.run(serving)


if __name__ == "__main__":
    main()
