"""What becomes of a tethered command's children that lead sessions of their own."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).resolve().parents[2]
CHILD = """
import signal, sys, time
from pathlib import Path
here = Path(sys.argv[1])
def told(*_):
    (here / "cleaned").touch()
    sys.exit(0)
signal.signal(signal.SIGTERM, told if sys.argv[2] == "polite" else signal.SIG_IGN)
(here / "begun").touch()
time.sleep(60)
"""
PARENT = """
import subprocess, sys, time
subprocess.Popen([sys.executable, "-c", *sys.argv[1:]], start_new_session=True)
time.sleep(60)
"""


@pytest.mark.parametrize("manner", ["polite", "deaf"])
@pytest.mark.parametrize("how", ["signal", "closed pipe"])
def test_a_session_that_the_command_began_is_ended_before_the_command(tmp_path, manner, how):
    command = [sys.executable, "-m", "serving.tether", "--sessions", "1.5", "--"]
    command += [sys.executable, "-c", PARENT, CHILD, str(tmp_path), manner]
    tether = subprocess.Popen(command, stdin=subprocess.PIPE, cwd=ROOT)
    deadline = time.monotonic() + 20
    while not (tmp_path / "begun").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    family = psutil.Process(tether.pid).children(recursive=True)
    assert len(family) == 2

    if how == "signal":
        tether.send_signal(signal.SIGTERM)
    else:
        tether.stdin.close()
    code = tether.wait(20)

    assert code == 0
    assert (tmp_path / "cleaned").exists() == (manner == "polite")
    _, left = psutil.wait_procs(family, timeout=5)
    assert left == []
