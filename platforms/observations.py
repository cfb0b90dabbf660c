"""What the endpoints of one machine answer, as seen from outside: `python -m serving.observe`, asked over pipes."""

import json
import os
import select
import subprocess
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import IO, Self

import pyarrow as pa

from deployments.errors import ContenderError
from platforms.platform import NewRequests

_START_SECONDS = 30.0
"""How long the first answer may take at least, since the child starts meanwhile."""

_END_SECONDS = 3.0
_SAID_BYTES = 4096


class ObservationError(ContenderError):
    """An observation that ended or does not answer; another one may be begun."""


class LocalObservations:
    """The requests of one endpoint under a data root, from a moment on; to be used in a `with` block."""

    def __init__(self, root: Path, endpoint: str, since: datetime, timeout_seconds: float = 10) -> None:
        self._endpoint, self._timeout = endpoint, timeout_seconds
        self._command = [sys.executable, "-m", "serving.observe", "--root", str(root)]
        self._command += ["--endpoint", endpoint, "--since", since.isoformat()]
        self._started = False
        self._child: subprocess.Popen[bytes] | None = None
        self._errors: IO[bytes] | None = None

    def __enter__(self) -> Self:
        self._errors = tempfile.TemporaryFile()
        pipe = subprocess.PIPE
        self._child = subprocess.Popen(self._command, stdin=pipe, stdout=pipe, stderr=self._errors, bufsize=0)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()
        if self._errors is not None:
            self._errors.close()

    def poll(self) -> NewRequests:
        """Everything logged since the last poll, or as much of it as is given at once.

        Raises:
            ObservationError: it ended, or there was no answer in time; says what it said last.
        """
        if self._child is None:
            raise ObservationError(f"the requests of {self._endpoint} are not observed any more")
        seconds = self._timeout if self._started else max(self._timeout, _START_SECONDS)
        deadline = time.monotonic() + seconds
        try:
            assert self._child.stdin is not None
            self._child.stdin.write(b"poll\n")
            size = int.from_bytes(self._read(8, deadline), "big")
            answer = self._read(size, deadline)
        except (EOFError, BrokenPipeError, TimeoutError) as error:
            slow = isinstance(error, TimeoutError)
            self._end(0 if slow else _END_SECONDS)
            what = f"gave no answer within {seconds:g} s" if slow else "ended"
            said = self._said_last()
            raise ObservationError(
                f"the observation of {self._endpoint} {what}" + (f": {said}" if said else "")
            ) from None
        self._started = True
        with pa.ipc.open_stream(answer) as stream:
            table = stream.read_all()
        notes = table.schema.metadata
        return NewRequests(
            table=table.replace_schema_metadata(),
            more=notes[b"more"] == b"1",
            lost=int(notes[b"lost"]),
            corrupt=tuple(json.loads(notes[b"corrupt"])),
        )

    def _read(self, size: int, deadline: float) -> bytes:
        """So many bytes of the answer.

        Raises:
            EOFError: there will not be so many.
            TimeoutError: there are not so many in time.
        """
        assert self._child is not None
        assert self._child.stdout is not None
        descriptor = self._child.stdout.fileno()
        ready = select.poll()
        ready.register(descriptor, select.POLLIN)
        parts = []
        while size:
            left = deadline - time.monotonic()
            if left <= 0 or not ready.poll(left * 1000):
                raise TimeoutError
            part = os.read(descriptor, min(size, 1 << 20))
            if not part:
                raise EOFError
            parts.append(part)
            size -= len(part)
        return b"".join(parts)

    def _end(self, grace_seconds: float = _END_SECONDS) -> None:
        """End the child: it goes by itself once its standard input ends, unless it hangs."""
        child, self._child = self._child, None
        if child is None:
            return
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdin.close()
        child.stdout.close()
        try:
            child.wait(grace_seconds)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()

    def _said_last(self) -> str:
        assert self._errors is not None
        size = self._errors.seek(0, os.SEEK_END)
        self._errors.seek(max(0, size - _SAID_BYTES))
        lines = self._errors.read().decode("utf-8", "replace").strip().splitlines()
        return lines[-1] if lines else ""
