"""Simulated callers: customers' rows asked of an endpoint as real HTTP requests, at a bounded rate, and what came back.

Each answer is a line of a csv file: request_id, customer, time (UTC), status, version. A status of 0 says that there
was no answer. Labels find their requests in that file later.
"""

import csv
import http.client
import json
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

from deployments.errors import ContenderError
from tasks.monitoring_record import Window

__all__ = ["Asked", "Callers", "answers_since", "asked_within"]

TIMEOUT_SECONDS = 30.0
COLUMNS = ("request_id", "customer", "time", "status", "version")


@dataclass(frozen=True)
class Asked:
    """What callers asked for a while: how many requests, how many of them failed (no answer of 200), and when."""

    requests: int
    failed: int
    window: Window


@dataclass
class Callers:
    """Several connections that ask one endpoint for row after row, in turn; to be used as a context that ends them.

    `rows` are customers with their request bodies, `sticky` is the header by which the gateway tells callers apart,
    `rate` how many requests a second all of them make at most, and `file` where the answers are kept.
    """

    url: str
    rows: Sequence[tuple[str, bytes]]
    sticky: str
    file: Path
    rate: float = 60.0
    connections: int = 4
    counted: Counter[str] = field(default_factory=Counter)
    _next: int = 0
    _due: float = 0.0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def ask(self, count: int) -> Asked:
        """Make so many requests, and return once all were answered or failed.

        Raises:
            ContenderError: more than half of them failed; whoever counts on them should not go on.
        """
        limit = threading.Semaphore(count)
        began, failed = datetime.now(UTC), self.counted["failed"]
        with self._asking(lambda: limit.acquire(blocking=False)) as threads:
            for thread in threads:
                thread.join()
        found = Asked(count, self.counted["failed"] - failed, Window(start=began, end=datetime.now(UTC)))
        if found.failed * 2 > count:
            raise ContenderError(f"{self.url}: {found.failed:,} of {count:,} requests failed")
        return found

    @contextmanager
    def keep_asking(self) -> Iterator[None]:
        """Within it requests go on."""
        ended = threading.Event()
        with self._asking(lambda: not ended.is_set()):
            try:
                yield
            finally:
                ended.set()

    @contextmanager
    def _asking(self, goes_on: Any) -> Iterator[list[threading.Thread]]:
        """Threads that ask for as long as they may; all have ended behind it."""
        self.file.parent.mkdir(parents=True, exist_ok=True)
        self._due = time.monotonic()
        ended = threading.Event()
        fresh = not self.file.exists() or not self.file.stat().st_size
        # A process that was killed may have left half a line.
        cut = not fresh and not self.file.read_bytes().endswith(b"\n")
        # By lines, so that a process that is killed leaves what its callers got.
        with self.file.open("a", buffering=1, encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            if cut:
                file.write("\n")
            if fresh:
                writer.writerow(COLUMNS)
            threads = [
                threading.Thread(
                    target=self._call, args=(lambda: goes_on() and not ended.is_set(), writer), daemon=True
                )
                for _ in range(self.connections)
            ]
            for thread in threads:
                thread.start()
            try:
                yield threads
            finally:
                ended.set()
                for thread in threads:
                    thread.join()

    def _call(self, goes_on: Any, writer: Any) -> None:
        address = urlsplit(self.url)
        connection = http.client.HTTPConnection(address.netloc, timeout=TIMEOUT_SECONDS)
        try:
            while self._turn() and goes_on():
                with self._lock:
                    customer, body = self.rows[self._next % len(self.rows)]
                    self._next += 1
                self._one(connection, address.path, customer, body, writer)
        finally:
            connection.close()

    def _turn(self) -> bool:
        """Wait for this caller's turn, so that all together keep to the rate; what was missed is not made up for."""
        with self._lock:
            now = time.monotonic()
            self._due = max(self._due, now - 1 / self.rate) + 1 / self.rate
            wait = self._due - now
        if wait > 0:
            time.sleep(wait)
        return True

    def _one(
        self, connection: http.client.HTTPConnection, path: str, customer: str, body: bytes, writer: Any
    ) -> None:
        request, asked = uuid4().hex, datetime.now(UTC)
        headers = {"content-type": "application/json", "x-request-id": request, self.sticky: customer}
        status, version = 0, ""
        try:
            connection.request("POST", path, body, headers)
            answer = connection.getresponse()
            answer.read()
            status, version = answer.status, answer.headers.get("x-served-version", "")
        except (OSError, http.client.HTTPException):
            connection.close()
        with self._lock:
            self.counted["asked"] += 1
            self.counted["failed"] += status != 200
            if version:
                self.counted[f"version {version}"] += 1
            with suppress(ValueError):
                writer.writerow([request, customer, asked.isoformat(), status, version])


def asked_within(file: Path, window: Window) -> Mapping[str, str]:
    """The customers of the answered requests of a window, by request."""
    found = {}
    with file.open(encoding="utf-8", newline="") as lines:
        for row in csv.DictReader(lines):
            # The last line of a process that was killed may be cut.
            if not row["status"] or not row["time"]:
                continue
            if row["status"] == "200" and window.start <= datetime.fromisoformat(row["time"]) < window.end:
                found[row["request_id"]] = row["customer"]
    return found


def answers_since(file: Path, moment: datetime) -> Counter[str]:
    """How many requests were `asked` from a moment (with a time zone) on, `failed`, and answered by each `version N`.

    They are all that stand in the file, by whichever process they were asked.
    """
    found: Counter[str] = Counter()
    if not file.exists():
        return found
    with file.open(encoding="utf-8", newline="") as lines:
        for row in csv.DictReader(lines):
            # The last line of a process that was killed may be cut.
            if row["version"] is None or datetime.fromisoformat(row["time"]) < moment:
                continue
            found["asked"] += 1
            found["failed"] += row["status"] != "200"
            if row["version"]:
                found[f"version {row['version']}"] += 1
    return found


def body_of(row: Mapping[str, Any]) -> bytes:
    """One row as a request, in MLflow's protocol."""
    return json.dumps({"dataframe_records": [row]}).encode()
