"""What Ctrl-C asks a person at a real terminal, and that each answer does what it says."""

import os
import pty
import subprocess
import sys
import threading
import time

import pytest

from tasks.audit import audit_release
from tasks.release_record import State
from tests.release.conftest import ROOT

pytestmark = pytest.mark.slow

ON_TERMINAL = """
import fcntl, os, sys, termios
os.setsid()
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""
CTRL_C = b"\x03"
LONG = {"percentage": 50, "minimum_requests": 40, "minimum_seconds": 300, "maximum_seconds": 600}


class Terminal:
    """A command on a terminal of its own, where keys can be pressed and everything shown is kept."""

    def __init__(self, *arguments):
        self.ours, theirs = pty.openpty()
        environment = {**os.environ, "TERM": "xterm", "COLUMNS": "160", "LINES": "50"}
        environment.pop("PREFECT_API_URL", None)
        self.process = subprocess.Popen(
            [sys.executable, "-c", ON_TERMINAL, "-m", "flows.run", *arguments],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            cwd=ROOT,
            env=environment,
        )
        os.close(theirs)
        self.shown = ""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self):
        while True:
            try:
                said = os.read(self.ours, 65536)
            except OSError:
                return
            if not said:
                return
            self.shown += said.decode(errors="replace")

    def press(self, keys):
        os.write(self.ours, keys)

    def choose(self, key):
        """Ctrl-C, and one of what is offered then."""
        asked = self.shown.count("> ")
        self.press(CTRL_C)
        self.until(lambda: self.shown.count("> ") > asked)
        self.press(f"{key}\n".encode())

    def until(self, condition, seconds=400):
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, self.shown[-3000:]
            time.sleep(0.05)

    def ended(self):
        """The exit code."""
        code = self.process.wait(timeout=400)
        self._reader.join(timeout=5)
        return code

    def close(self):
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self.ours)


@pytest.fixture
def terminal():
    """Starts commands on terminals of their own."""
    begun = []

    def begin(*arguments):
        begun.append(Terminal(*arguments))
        return begun[-1]

    yield begin
    for one in begun:
        one.close()


def routed(line):
    found = line.platform.data_plane.status()["endpoints"][line.platform.endpoint("small")]
    return {
        route["served_entity_name"]: route["traffic_percentage"]
        for route in found["traffic"]["routes"]
        if route["traffic_percentage"]
    }


def test_ctrl_c_asks_whether_to_hold_to_go_on_to_roll_back_or_to_leave_it_to_the_lease(line, terminal):
    def newest():
        return line.releases.newest()

    def in_canary():
        found = newest()
        return found is not None and found.state is State.CANARY and found.intent is None

    line.plan(steps=[LONG], lease_seconds=10)
    line.up()
    named = ("--model", str(line.spec), "--env", str(line.environment_file), "--version", "2")

    with line.traffic(pause=0.06) as traffic:
        first = terminal("release", *named)
        first.until(in_canary)
        first.press(CTRL_C)
        first.until(lambda: "The release goes on until you choose" in first.shown)
        first.press(b"x\n")
        first.until(lambda: first.shown.count("> ") > 1)
        time.sleep(11)  # Longer than the lease, which is renewed while nobody answers.
        assert routed(line) == {"v1": 50, "v2": 50}
        first.press(b"h\n")
        first.until(lambda: newest().held)
        assert routed(line) == {"v1": 50, "v2": 50}

        first.choose("g")
        first.until(lambda: not newest().held and newest().attempt == 2)
        assert "a person asked to go on" in newest().history[-1].reason

        first.choose("r")
        assert first.ended() == 3, first.shown[-3000:]
        assert "rolled back" in first.shown
        assert newest().state is State.ROLLED_BACK
        assert routed(line) == {"v1": 100}
        assert audit_release(line.platform, "small", newest().id) == []

        second = terminal("release", *named)
        second.until(in_canary)
        second.choose("l")
        assert second.ended() == 130, second.shown[-3000:]
        assert "the champion has all traffic again within 10 s" in " ".join(second.shown.split())
        left = newest()
        second.until(lambda: routed(line) == {"v1": 100})
        assert newest() == left
        assert left.state is State.CANARY

    assert line.aliases["champion"] == "1"
    assert traffic.failed == 0
    assert "Traceback" not in first.shown + second.shown
