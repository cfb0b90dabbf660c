"""A real headless Chromium, told what to do over its own DevTools protocol: open a page, measure it, take a picture."""

import base64
import fcntl
import itertools
import json
import os
import shutil
import signal
import subprocess
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from websockets.sync.client import connect

PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
SECONDS = 120


def program():
    """Where Chromium is; in CI it is installed where it can be, elsewhere the test is skipped without one."""
    found = _installed() or (_install() if os.environ.get("CI") else None)
    if found is None:
        pytest.skip("no Chromium is installed (apt-get install chromium, or name one in CHROMIUM)")
    return found


def _installed():
    return os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, PROGRAMS)), None)


def _install():
    """Debian's Chromium, by one process at a time; None where this machine cannot be given it."""
    if os.geteuid() or shutil.which("apt-get") is None:
        return None
    with Path(__file__).open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if _installed() is None:
            environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
            for command in (["update"], ["install", "--yes", "--no-install-recommends", "chromium"]):
                done = subprocess.run(
                    ["apt-get", "-qq", *command], env=environment, capture_output=True, check=False
                )
                if done.returncode:
                    return None
    return _installed()


@dataclass
class Browser:
    """One tab. `said` are the console messages, exceptions, log entries and requests of its pages."""

    socket: object
    said: list = field(default_factory=list)
    _numbers: itertools.count = field(default_factory=lambda: itertools.count(1))

    def ask(self, method, **params):
        number = next(self._numbers)
        self.socket.send(json.dumps({"id": number, "method": method, "params": params}))
        while True:
            answer = self._receive()
            if answer.get("id") == number:
                assert "error" not in answer, (method, answer["error"])
                return answer["result"]

    def _receive(self):
        message = json.loads(self.socket.recv(timeout=SECONDS))
        if message.get("method") in {
            "Runtime.consoleAPICalled",
            "Runtime.exceptionThrown",
            "Log.entryAdded",
            "Network.requestWillBeSent",
            "Network.loadingFailed",
        }:
            self.said.append(message)
        return message

    def open(self, path, width, height=900):
        """Show a file at a width, as a phone or a screen would."""
        self.ask(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        self.said.clear()
        self.ask("Page.navigate", url=path.absolute().as_uri())
        while self._receive().get("method") != "Page.loadEventFired":
            pass

    def visit(self, url, *texts, width=1280, height=800, seconds=SECONDS):
        """Show an address and wait until its page, which scripts may make, has the texts; what it then reads as."""
        self.ask(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )
        self.said.clear()
        self.ask("Page.navigate", url=url)
        return self.wait_for(*texts, seconds=seconds)

    def wait_for(self, *texts, seconds=SECONDS):
        """Wait until the page that is open has the texts; what it then reads as."""
        deadline = time.monotonic() + seconds
        while True:
            found = self.value("document.body ? document.body.innerText : ''")
            missing = [text for text in texts if text.lower() not in found.lower()]
            if not missing:
                return found
            assert time.monotonic() < deadline, (missing, found)
            time.sleep(0.2)

    def wait_without(self, text, seconds=SECONDS):
        """Wait until the page that is open has a text no more."""
        deadline = time.monotonic() + seconds
        while text in (found := self.value("document.body.innerText")):
            assert time.monotonic() < deadline, found
            time.sleep(0.2)

    def wait_until(self, expression, seconds=SECONDS):
        """Wait until a JavaScript expression is true of the page that is open."""
        deadline = time.monotonic() + seconds
        while not self.value(expression):
            assert time.monotonic() < deadline, (expression, self.value("document.body.innerHTML"))
            time.sleep(0.2)

    def click(self, selector, text=""):
        """Click as a person would on the first element of a selector that has a text, once it is there and rests."""
        place = f"""(() => {{
            const found = [...document.querySelectorAll({json.dumps(selector)})]
                .find(one => one.innerText.includes({json.dumps(text)}) && one.getBoundingClientRect().width);
            if (!found) return null;
            found.scrollIntoView({{block: "center"}});
            const box = found.getBoundingClientRect();
            return [box.x + box.width / 2, box.y + box.height / 2];
        }})()"""
        deadline = time.monotonic() + SECONDS
        before, point = None, self.value(place)
        while point is None or point != before:
            assert time.monotonic() < deadline, (selector, text, self.value("document.body.innerText"))
            time.sleep(0.2)
            before, point = point, self.value(place)
        where = {"x": point[0], "y": point[1], "button": "left", "clickCount": 1}
        for kind in ("mousePressed", "mouseReleased"):
            self.ask("Input.dispatchMouseEvent", type=kind, **where)

    def fill(self, label, text):
        """Write into the field that a label is of, as a person would who clicked on it first."""
        self.click(self._field_of(label))
        self.ask("Input.insertText", text=text)

    def choose(self, label, option):
        """Choose an option of the list that a label is of."""
        self.click(self._field_of(label))
        self.click("[role=option]", option)

    def _field_of(self, label):
        named = f"[...document.querySelectorAll('label')].find(one => one.innerText === {json.dumps(label)})"
        return f"[id={json.dumps(self.value(f'{named}.htmlFor'))}]"

    def value(self, expression):
        """What a JavaScript expression is; the page itself may forbid scripts."""
        found = self.ask("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def picture(self, path, whole=True):
        """The page, or what of it is in view, as a PNG file."""
        shot = self.ask("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(shot["data"]))
        return path

    @property
    def complaints(self):
        """Errors and warnings of the page: exceptions, console, log, and what was not to be had."""
        found = []
        for message in self.said:
            params = message["params"]
            match message["method"]:
                case "Runtime.exceptionThrown" | "Network.loadingFailed":
                    found.append(params)
                case "Runtime.consoleAPICalled" if params["type"] in {"error", "warning", "assert"}:
                    found.append(params)
                case "Log.entryAdded" if params["entry"]["level"] in {"error", "warning"}:
                    found.append(params["entry"])
        return found

    @property
    def requests(self):
        """The addresses that the page asked for, data that it holds itself left out."""
        sent = [one for one in self.said if one["method"] == "Network.requestWillBeSent"]
        urls = [one["params"]["request"]["url"] for one in sent]
        return [url for url in urls if not url.startswith("data:")]


@contextmanager
def browser(folder):
    """A browser with a profile of its own in a folder; it and all its processes end with the block."""
    command = [program(), "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
    command += [
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
    ]
    command += [f"--user-data-dir={folder / 'profile'}", "--remote-debugging-port=0", "about:blank"]
    with (folder / "browser.log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    try:
        address = _page_address(folder, process)
        # A tab that shows something while a test does something else is not read, and answers no ping then.
        with connect(address, max_size=None, open_timeout=SECONDS, ping_interval=None) as socket:
            tab = Browser(socket)
            for domain in ("Page", "Runtime", "Log", "Network"):
                tab.ask(f"{domain}.enable")
            yield tab
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _page_address(folder, process):
    """Where the first tab is spoken to; the browser writes its port into its profile once it listens."""
    from urllib.request import urlopen

    said, deadline = folder / "profile" / "DevToolsActivePort", time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        assert process.poll() is None, (folder / "browser.log").read_text()
        if said.exists() and len(said.read_text().splitlines()) == 2:
            port = said.read_text().splitlines()[0]
            with urlopen(f"http://127.0.0.1:{port}/json/list", timeout=SECONDS) as answer:
                pages = [one for one in json.load(answer) if one["type"] == "page"]
            if pages:
                return pages[0]["webSocketDebuggerUrl"]
        time.sleep(0.1)
    raise AssertionError(f"Chromium did not listen: {(folder / 'browser.log').read_text()}")
