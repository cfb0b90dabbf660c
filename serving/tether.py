"""Run a command that ends, with all it started, when whoever holds our standard input ends.

`python -m serving.tether -- COMMAND…`. A supervisor that is killed cannot end its children any more; a closed pipe can.
`--sessions SECONDS` before the dashes is for a command whose children lead sessions of their own, as the runs of a
Prefect worker do: they are ended first, and have so long for it.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress

GRACE_SECONDS = 5.0


def run(command: Sequence[str], session_seconds: float | None = None) -> int:
    """Run the command in a process group of its own; its exit code, or 0 if it was ended from outside.

    Ended from outside, children of the command that lead sessions are ended first, within `session_seconds`; None
    leaves them alone.
    """
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
    ended = threading.Event()

    def end(*_: object) -> None:
        ended.set()

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, end)
    threading.Thread(target=_until_eof, args=(ended,), daemon=True).start()
    while child.poll() is None and not ended.wait(0.1):
        pass
    asked = ended.is_set()
    if asked and session_seconds is not None and child.poll() is None:
        _end_sessions(child.pid, session_seconds)
    _end_group(child)
    return 0 if asked else child.returncode


def _until_eof(ended: threading.Event) -> None:
    while os.read(0, 4096):
        pass
    ended.set()


def _end_sessions(parent: int, seconds: float) -> None:
    """End the children of a process that lead sessions: politely, then not. It stands still, and starts no more."""
    import psutil

    os.kill(parent, signal.SIGSTOP)
    sessions = [one.pid for one in psutil.Process(parent).children() if _leads_session(one.pid)]
    for leader in sessions:
        _signal_group(leader, signal.SIGTERM)
    deadline = time.monotonic() + seconds
    while any(_runs(leader) for leader in sessions) and time.monotonic() < deadline:
        time.sleep(0.1)
    for leader in sessions:
        _signal_group(leader, signal.SIGKILL)


def _leads_session(process: int) -> bool:
    try:
        return os.getsid(process) == process
    except ProcessLookupError:
        return False


def _runs(process: int) -> bool:
    """Whether it has not ended; its parent, which stands still, has not taken note of that."""
    import psutil

    try:
        return psutil.Process(process).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _signal_group(leader: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.killpg(leader, number)


def _end_group(child: "subprocess.Popen[bytes]") -> None:
    """End the whole group: politely, then not; also what outlives the process that was started."""
    for wish in (signal.SIGTERM, signal.SIGKILL):
        deadline = time.monotonic() + GRACE_SECONDS
        try:
            os.killpg(child.pid, wish)
            # Who was made to stand still hears of nothing before.
            os.killpg(child.pid, signal.SIGCONT)
            while time.monotonic() < deadline:
                child.poll()
                os.killpg(child.pid, 0)
                time.sleep(0.05)
        except ProcessLookupError:
            break
    child.wait()


if __name__ == "__main__":
    dashes = sys.argv.index("--")
    options = sys.argv[1:dashes]
    sys.exit(run(sys.argv[dashes + 1 :], float(options[1]) if options else None))
