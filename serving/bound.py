"""Become another program, one that the kernel ends when the process that started it ends, however that happens.

`python -m serving.bound PARENT -- COMMAND…`, with the parent's process id. Linux only. It is the parent's thread that
counts: whoever starts this must do so from a thread that lives as long as the process.
"""

import ctypes
import os
import signal
import sys

SET_PARENT_DEATH_SIGNAL = 1
"""PR_SET_PDEATHSIG of prctl(2); it holds across the exec."""


def become(parent: int, command: list[str]) -> None:
    """Replace this process by `command`, unless the parent is gone already."""
    if ctypes.CDLL(None, use_errno=True).prctl(SET_PARENT_DEATH_SIGNAL, signal.SIGTERM) != 0:
        raise SystemExit(f"{command[0]} cannot be bound to its parent: {os.strerror(ctypes.get_errno())}.")
    if os.getppid() != parent:
        raise SystemExit(f"{command[0]} is not started: process {parent}, which it belongs to, has ended.")
    os.execv(command[0], command)  # noqa: S606


if __name__ == "__main__":
    become(int(sys.argv[1]), sys.argv[sys.argv.index("--") + 1 :])
