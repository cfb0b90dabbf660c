"""One measurement in a process of its own: seconds, processor seconds and peak memory, without what was before it."""

import json
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Measured:
    """What one process took; `said` is whatever it had to tell besides, `failed` why it came to nothing."""

    seconds: float = float("nan")
    cpu_seconds: float = float("nan")
    peak_megabytes: float = float("nan")
    said: Any = None
    failed: str = ""


def measure(module: str, *arguments: str, memory_megabytes: int | None = None) -> Measured:
    """Run `python -m module arguments` and read what its `reported` block printed.

    With `memory_megabytes` the process may allocate no more than that (RLIMIT_DATA: its heap and its private
    writable mappings, touched or not, stacks of threads among them; mapped files and libraries do not count).
    """

    def cap() -> None:
        if memory_megabytes is not None:
            resource.setrlimit(resource.RLIMIT_DATA, (memory_megabytes << 20, memory_megabytes << 20))

    done = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        check=False,
        capture_output=True,
        text=True,
        preexec_fn=cap,
    )
    lines = done.stdout.strip().splitlines()
    if done.returncode == 0 and lines:
        return Measured(**json.loads(lines[-1]))
    complaint = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
    return Measured(failed=complaint[:100])


@contextmanager
def reported() -> Any:
    """Measure the block, and print it as the last line for the process that waits; imports go before it."""
    said: dict[str, Any] = {}
    before = resource.getrusage(resource.RUSAGE_SELF)
    started = time.perf_counter()
    yield said
    seconds = time.perf_counter() - started
    after = resource.getrusage(resource.RUSAGE_SELF)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    print(json.dumps(asdict(Measured(seconds, cpu, after.ru_maxrss / 1024, said))))


def best(taken: Sequence[Measured]) -> Measured:
    """The quickest of several rounds: what else a machine does only ever adds to the time."""
    return min(taken, key=lambda one: (bool(one.failed), one.seconds))
