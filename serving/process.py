"""One child process: its command, its log, whether it lives, and when it may be started again."""

import asyncio
import os
import signal
import socket
import time
from collections.abc import Sequence
from pathlib import Path

FIRST_BACK_OFF, LONGEST_BACK_OFF = 0.1, 10.0
STEADY_SECONDS = 30.0
"""After living this long, a process that dies is started again at once."""
NEVER_STARTED = 127
"""The exit code of what could not be started, as shells have it."""


class Child:
    """A process that is kept alive; its output goes to a log file, and its standard input is a pipe that we hold."""

    def __init__(self, name: str, log: Path) -> None:
        self.name = name
        self.log = log
        self.restarts = 0
        self.last_exit: int | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._started = 0.0
        self._back_off = 0.0
        self._not_before = 0.0

    @property
    def pid(self) -> int | None:
        """The process id, while it lives."""
        return self._process.pid if self._process is not None else None

    @property
    def alive(self) -> bool:
        """Whether the process runs; notes it when it has ended."""
        if self._process is None:
            return False
        if self._process.returncode is None:
            return True
        self._ended(self._process.returncode)
        return False

    @property
    def may_start(self) -> bool:
        """Whether it is dead, and has been for as long as its back-off asks."""
        return not self.alive and time.monotonic() >= self._not_before

    def _ended(self, code: int) -> None:
        lived = time.monotonic() - self._started
        self._process = None
        self.last_exit = code
        self.restarts += 1
        first_or_steady = self._back_off == 0.0 or lived >= STEADY_SECONDS
        self._back_off = FIRST_BACK_OFF if first_or_steady else min(self._back_off * 2, LONGEST_BACK_OFF)
        self._not_before = time.monotonic() + (0.0 if lived >= STEADY_SECONDS else self._back_off)

    async def start(self, command: Sequence[str], listening: socket.socket | None = None) -> None:
        """Start it from the calling thread; `listening` is passed on, and closed here.

        Raises:
            OSError: it cannot be started; it may be tried again after its back-off.
        """
        self._started = time.monotonic()
        try:
            with self.log.open("ab") as output:
                self._process = await asyncio.create_subprocess_exec(
                    *command,
                    stdin=asyncio.subprocess.PIPE,
                    stdout=output,
                    stderr=output,
                    pass_fds=() if listening is None else (listening.fileno(),),
                    env={**os.environ, "PYTHONUNBUFFERED": "1"},
                )
        except OSError:
            self._ended(NEVER_STARTED)
            raise
        finally:
            if listening is not None:
                listening.close()

    async def stop(self, grace_seconds: float) -> None:
        """Ask it to end, and end it if it does not within `grace_seconds`."""
        process = self._process
        if process is None or process.returncode is not None:
            return
        process.send_signal(signal.SIGTERM)
        try:
            await asyncio.wait_for(process.wait(), grace_seconds)
        except TimeoutError:
            process.kill()
            await process.wait()
        self._process = None

    def kill(self) -> None:
        """End it at once, unasked."""
        if self._process is not None and self._process.returncode is None:
            self._process.kill()

    def said_last(self) -> str:
        """The last line in its log, for people."""
        try:
            with self.log.open("rb") as file:
                file.seek(max(0, self.log.stat().st_size - 4096))
                lines = file.read().decode("utf-8", "replace").strip().splitlines()
        except OSError:
            return ""
        return lines[-1] if lines else ""
