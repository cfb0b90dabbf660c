"""Load on loopback: `wrk` where it is installed, for speed; a client of ours where each answer is looked at."""

import asyncio
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np


@dataclass(frozen=True)
class Speed:
    """What a load tool saw; milliseconds."""

    requests_per_second: float
    p50: float
    p99: float
    errors: int
    tool: str


def speed(url: str, body: bytes, *, connections: int, seconds: float) -> Speed:
    """Ask `url` as fast as it answers, over some connections, for some seconds."""
    if shutil.which("wrk"):
        return _wrk(url, body, connections, seconds)
    seen = asyncio.run(hammer(url, lambda _: (body, {}), connections=connections, seconds=seconds))
    good = np.array([answer.seconds for answer in seen if answer.status == 200]) * 1000
    return Speed(len(good) / seconds, *np.quantile(good, [0.5, 0.99]), len(seen) - len(good), "Python client")


def _wrk(url: str, body: bytes, connections: int, seconds: float) -> Speed:
    with tempfile.TemporaryDirectory() as folder:
        script, content = Path(folder) / "post.lua", Path(folder) / "body"
        content.write_bytes(body)
        script.write_text(
            f'local file = io.open("{content}", "rb")\n'
            'wrk.method, wrk.body = "POST", file:read("*a")\n'
            'wrk.headers["Content-Type"] = "application/json"\n'
            "function done(summary, latency, requests)\n"
            '  io.write(string.format("microseconds %f %f\\n", latency:percentile(50), latency:percentile(99)))\n'
            "end\n"
        )
        command = [
            "wrk",
            "-t",
            "1",
            "-c",
            str(connections),
            "-d",
            f"{seconds:g}s",
            "-s",
            str(script),
        ]
        said = subprocess.run([*command, url], capture_output=True, text=True, check=True).stdout
    p50, p99 = (
        float(value) / 1000 for value in re.findall(r"^microseconds (\S+) (\S+)$", said, re.MULTILINE)[0]
    )
    errors = sum(int(count) for count in re.findall(r"Non-2xx or 3xx responses: (\d+)", said))
    for counts in re.findall(r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)", said):
        errors += sum(int(count) for count in counts)
    rate = float(re.findall(r"Requests/sec:\s+([\d.]+)", said)[0])
    return Speed(rate, p50, p99, errors, "wrk")


@dataclass(frozen=True)
class Answer:
    """One request as its caller saw it; status 0 where there was no answer. Times are of the monotonic clock."""

    asked: float
    seconds: float
    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    sent: Mapping[str, str] = field(default_factory=dict)


Ask = Callable[[int], tuple[bytes, Mapping[str, str]]]
"""Body and headers of the n-th request."""


async def hammer(
    url: str,
    ask: Ask,
    *,
    connections: int,
    seconds: float,
    rate: float | None = None,
    meanwhile: Callable[[], None] | None = None,
) -> list[Answer]:
    """Ask over keep-alive connections; at `rate` requests a second in all, or as fast as answers come.

    `meanwhile` runs in a thread; the load goes on until both it and the time are over.
    """
    answers: list[Answer] = []
    number = _count()
    begin = time.monotonic()
    busy = asyncio.create_task(asyncio.to_thread(meanwhile)) if meanwhile else None

    def over() -> bool:
        return time.monotonic() - begin >= seconds and (busy is None or busy.done())

    async def caller(place: int) -> None:
        connection = _Connection(url)
        turn = 0
        while not over():
            if rate:
                due = begin + (turn * connections + place) / rate
                await asyncio.sleep(max(0.0, due - time.monotonic()))
                turn += 1
            body, headers = ask(next(number))
            answers.append(await connection.ask(body, headers))
            if answers[-1].status == 0:
                await asyncio.sleep(0.005)
        connection.close()

    await asyncio.gather(*(caller(place) for place in range(connections)))
    if busy is not None:
        await busy
    return answers


def _count() -> Iterator[int]:
    number = 0
    while True:
        yield number
        number += 1


class _Connection:
    """One keep-alive connection, opened anew after it broke."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._host, self._port, self._path = parts.hostname or "", parts.port or 80, parts.path
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, body: bytes, headers: Mapping[str, str]) -> Answer:
        asked = time.monotonic()
        try:
            async with asyncio.timeout(30):
                status, answered = await self._exchange(body, headers)
        except (OSError, EOFError, TimeoutError, ValueError):
            self.close()
            status, answered = 0, {}
        return Answer(asked, time.monotonic() - asked, status, answered, headers)

    async def _exchange(self, body: bytes, headers: Mapping[str, str]) -> tuple[int, dict[str, str]]:
        if self._streams is None:
            self._streams = await asyncio.open_connection(self._host, self._port)
        reader, writer = self._streams
        lines = [
            f"POST {self._path} HTTP/1.1",
            f"host: {self._host}:{self._port}",
            f"content-length: {len(body)}",
        ]
        lines += ["content-type: application/json", *(f"{name}: {value}" for name, value in headers.items())]
        writer.write("\r\n".join([*lines, "", ""]).encode() + body)
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        answered = {
            name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:-2])
        }
        await reader.readexactly(int(answered.get("content-length", "0")))
        if answered.get("connection", "").lower() == "close":
            self.close()
        return int(head[0].split()[1]), answered

    def close(self) -> None:
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None
