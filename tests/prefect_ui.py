"""The UI of a Prefect server that `prefect up` keeps, in a real browser.

With CONTENDER_SCREENSHOTS=FOLDER in the environment, pages that have a name are kept there as pictures.
"""

import os
import socket
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image

from flows import keeper
from flows.database import chosen_database
from tests.prefect_api import asked

DRAWN_SECONDS = 4
"""Graphs are drawn a while after a page has its text; only pictures need them."""
SMALL_BYTES = 150_000
"""Pictures are for docs."""


@contextmanager
def kept_server(home):
    """A server as `prefect up` keeps it, in a home, without deployments; its API's address."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PREFECT_HOME", str(home / "prefect"))
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        standing = keeper.begin(home, port, "none", chosen_database(None))
    try:
        yield standing.url
    finally:
        keeper.end(home)


@dataclass(frozen=True)
class Seen:
    """A browser on the UI of a Prefect server; `api` is the server's address."""

    tab: object
    api: str

    @property
    def address(self):
        return self.api.removesuffix("/api")

    def page(self, path, *texts, name=None):
        """A page of the UI, as text, once it has some texts."""
        found = self.tab.visit(f"{self.address}/v2/{path}", *texts)
        self.keep(name)
        return found

    def keep(self, name):
        folder = os.environ.get("CONTENDER_SCREENSHOTS")
        if folder and name:
            time.sleep(DRAWN_SECONDS)
            file = self.tab.picture(Path(folder) / f"{name}.png", whole=False)
            Image.open(file).convert("RGB").quantize(128).save(file, optimize=True)
            assert file.stat().st_size < SMALL_BYTES

    def asked(self, path, **body):
        return asked("POST", f"{self.api}/{path}", **body)

    def run_called(self, beginning):
        """The id of the flow run whose name begins so; the newest of several."""
        found = self.asked("flow_runs/filter", sort="START_TIME_DESC", limit=200)
        return next(one["id"] for one in found if one["name"].startswith(beginning))

    def artifact(self, key, run=None):
        """The id of the newest artifact of a key, and of a run where that is named."""
        wanted = {"key": {"any_": [key]}} | ({"flow_run_id": {"any_": [run]}} if run else {})
        (found,) = self.asked("artifacts/filter", artifacts=wanted, sort="CREATED_DESC", limit=1)
        return found["id"]

    @property
    def outside(self):
        """What the pages asked of anybody else."""
        return [url for url in self.tab.requests if not url.startswith((self.address, "blob:"))]
