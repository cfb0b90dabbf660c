"""A small real HTTP server in the place of a scorer: says what it was sent, and remembers it.

`python echo_backend.py NAME [--delay SECONDS] [--port PORT] [--ping STATUS]` prints its port. `/ping` is 200 unless
told otherwise; `/seen` lists what came to /invocations; `?status=N` answers with that status, `?sleep=S` after that
long; everything else is echoed.
"""

import argparse
import asyncio
import sys

from aiohttp import web


async def serve(name: str, delay: float, port: int, ping: int) -> None:
    seen: list[dict[str, object]] = []

    async def answer(request: web.BaseRequest) -> web.Response:
        if request.path == "/ping":
            return web.Response(status=ping)
        if request.path == "/seen":
            return web.json_response(seen)
        body = await request.read() if request.can_read_body else b""
        headers = {key.lower(): value for key, value in request.headers.items()}
        told = {
            "name": name,
            "path": request.raw_path,
            "method": request.method,
            "headers": headers,
            "bytes": len(body),
        }
        if request.path == "/invocations":
            seen.append(told)
        await asyncio.sleep(float(request.query.get("sleep", delay)))
        status = int(request.query.get("status", 200))
        kept = {
            "x-served-entity": name,
            "x-served-version": "3",
            "x-request-id": headers.get("x-request-id", ""),
        }
        return web.json_response(told, status=status, headers=kept)

    def unlimited(*given: object) -> web.BaseRequest:
        return web.BaseRequest(*given, loop=asyncio.get_running_loop(), client_max_size=1 << 30)

    server = web.Server(answer, request_factory=unlimited, keepalive_timeout=75)
    listening = await asyncio.get_running_loop().create_server(server, "127.0.0.1", port, reuse_address=True)
    print(listening.sockets[0].getsockname()[1], flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("name")
    parser.add_argument("--delay", type=float, default=0.0)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--ping", type=int, default=200)
    given = parser.parse_args()
    asyncio.run(serve(given.name, given.delay, given.port, given.ping))
