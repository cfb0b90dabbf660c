"""Run a command that ends, with all it started, when whoever holds our standard input ends.

`python -m serving.tether -- COMMAND…`. A supervisor that is killed cannot end its children any more; a closed pipe can.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence

GRACE_SECONDS = 5.0


def run(command: Sequence[str]) -> int:
    """Run the command in a process group of its own; its exit code, or 0 if it was ended from outside."""
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
    _end_group(child)
    return 0 if asked else child.returncode


def _until_eof(ended: threading.Event) -> None:
    while os.read(0, 4096):
        pass
    ended.set()


def _end_group(child: "subprocess.Popen[bytes]") -> None:
    """End the whole group: politely, then not; also what outlives the process that was started."""
    for wish in (signal.SIGTERM, signal.SIGKILL):
        deadline = time.monotonic() + GRACE_SECONDS
        try:
            os.killpg(child.pid, wish)
            while time.monotonic() < deadline:
                child.poll()
                os.killpg(child.pid, 0)
                time.sleep(0.05)
        except ProcessLookupError:
            break
    child.wait()


if __name__ == "__main__":
    sys.exit(run(sys.argv[sys.argv.index("--") + 1 :]))
