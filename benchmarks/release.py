"""Releases of the embedded model under load: how long a good one takes, and how fast every way back is.

The load is one Python client over loopback at a fixed rate, each request from another caller; what it saw, not what
the release says of itself, is counted as failed and as the last answer of the challenger.
"""

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import orjson
import yaml

from benchmarks.load import Answer, hammer
from benchmarks.report import write_table
from benchmarks.served import settled

RATE = 300.0
ENVIRONMENT = {
    "name": "dev",
    "platform": {"kind": "local", "data_root": "bench"},
    "allow_dirty_tree": True,
    "serving": {"gateway": {"port": 0}, "mlflow_port": 0},
}
MODEL = "churn"


@dataclass
class Bench:
    """A champion and a challenger of the embedded model, and everything that asks or releases them."""

    folder: Path
    spec: Path
    env: Path
    loaded: Any = None
    platform: Any = None
    rows: list[bytes] = field(default_factory=list)

    def ask(self, number: int) -> tuple[bytes, dict[str, str]]:
        """The n-th request: another caller each time."""
        return self.rows[number % len(self.rows)], {"x-caller-id": f"c{number}"}

    def under_load(self, work: Callable[[], Any]) -> tuple[Any, list[Answer]]:
        """What `work` gives, and every answer that callers got before, while and after it ran."""
        url = self.platform.endpoints.get_endpoint(self.platform.endpoint(MODEL))["url"]
        found: list[Any] = []

        def meanwhile() -> None:
            time.sleep(1)
            found.append(work())
            time.sleep(1)

        answers = asyncio.run(hammer(url, self.ask, connections=8, seconds=1, rate=RATE, meanwhile=meanwhile))
        return found[0], answers

    def release(self, look: Callable[[Any], None] | None = None) -> Any:
        """Take version 2 through its plan."""
        from tasks.release_control import controlled

        with controlled(self.platform, self.loaded, "2") as control:
            while not control.ended:
                begun = time.monotonic()
                control.step()
                if look is not None:
                    look(control)
                time.sleep(control.pause_seconds(time.monotonic() - begun))
            return control.release

    def worker(self) -> int:
        """The process id of the challenger's worker."""
        entities = self.platform.data_plane.status()["endpoints"][self.platform.endpoint(MODEL)]["entities"]
        return int(next(one for one in entities if one["name"] == "v2")["workers"][0]["pid"])


def make(folder: Path) -> Bench:
    """Train and promote a champion, and train a challenger."""
    from deployments.environment import load_environment
    from deployments.spec import MODELS, load_spec
    from platforms import platform_for

    shutil.copytree(MODELS / MODEL, folder / MODEL)
    bench = Bench(folder, folder / MODEL / "model.yaml", folder / "dev.yaml")
    bench.env.write_text(yaml.safe_dump(ENVIRONMENT))
    os.environ["CONTENDER_HOME"] = str(folder / "home")
    from flows.settings import settle

    settle()
    from flows.server import served

    with served(lambda _: None):
        from flows.promote import promote
        from flows.train import train

        train(str(bench.spec), str(bench.env))
        promote(str(bench.spec), str(bench.env))
        bench.spec.write_text(bench.spec.read_text().replace("training:\n", "training:\n  seed: 11\n"))
        train(str(bench.spec), str(bench.env))
    bench.loaded = load_spec(bench.spec)
    bench.platform = platform_for(load_environment(bench.env))
    bench.rows = _rows(bench)
    return bench


def _rows(bench: Bench) -> list[bytes]:
    """Requests of one row each, from the champion's feature table."""
    table = bench.platform.tables.read(
        bench.platform.tables.latest(bench.platform.table("gold", MODEL, "features"))
    )
    names = [name for name in bench.loaded.spec.features.columns if name in table.column_names]
    rows = table.select(names).slice(0, 500).to_pylist()
    return [orjson.dumps({"dataframe_records": [row]}) for row in rows]


def seconds_back(release: Any) -> float:
    """From the look that decided it to the champion answering everybody, as the record has it."""
    done = release.history[-1]
    return (done.effective - done.observed).total_seconds()


def last_of(answers: list[Answer], version: str) -> float:
    """When the last request was asked that this version answered."""
    return max((one.asked for one in answers if one.headers.get("x-served-version") == version), default=0.0)


def failed(answers: list[Answer]) -> int:
    """Requests that did not get an answer of 200."""
    return sum(one.status != 200 for one in answers)


def main() -> None:
    """Measure every way, and write the page."""
    with tempfile.TemporaryDirectory() as folder:
        bench = make(Path(folder))
        from tasks.serve import serve_champion

        try:
            bench.platform.data_plane.up()
            bench.platform.wait_for_endpoint(serve_champion(bench.platform, MODEL).endpoint)
            settled(bench.platform)
            rows = [_dead(bench), *_good(bench)]
        finally:
            bench.platform.data_plane.down()
        rows.extend(_harms(Path(folder)))
    write_table(
        "release",
        "Releases of the embedded model under load",
        "python -m benchmarks.release",
        ("what", "seconds", "requests", "failed", "note"),
        rows,
        f"{RATE:g} requests a second from one Python client ({RATE / 2:g} where a challenger does harm), each from "
        "another caller. Seconds of a way back are "
        "those from the look that decided it to the champion answering everybody.",
    )


# Back from harm -----------------------------------------------------------------------------------------------


def _harms(folder: Path) -> list[tuple[str, ...]]:
    """Challengers that are good until callers are given to them: seconds back, and what callers saw of that.

    The model obeys a file, as the tests' own does; its plan has one canary step of 50 %.
    """
    from deployments.environment import Environment
    from deployments.spec import load_spec
    from platforms.local import LocalPlatform
    from tests.release.chameleon import BEHAVIOUR
    from tests.release.conftest import ENVIRONMENT as SMALL
    from tests.release.conftest import Line, make

    made = folder / "harms"
    made.mkdir()
    make(made)
    rows = []
    for how in ("error", "slow", "shift", "stopped"):
        home = folder / f"home-{how}"
        shutil.copytree(made / "home", home)
        os.environ |= {"CONTENDER_HOME": str(home), BEHAVIOUR: str(folder / "behaviour")}
        environment = Environment.model_validate(SMALL)
        loaded = load_spec(made / "model.yaml")
        line = Line(
            home, loaded.path, loaded, LocalPlatform(environment, home / "data"), folder / "behaviour"
        )
        line.plan(
            steps=[{"percentage": 50, "minimum_requests": 1000, "maximum_seconds": 120}],
            analysis={"quality": None},
        )
        line.behave("good")
        line.up()
        try:
            rows.append(_harmed(line, how))
        finally:
            line.platform.data_plane.down()
    return rows


def _harmed(line: Any, how: str) -> tuple[str, ...]:
    began: list[float] = []
    workers: list[int] = []

    def harm(control: Any) -> None:
        if control.release.state != "canary" or not control.look or began:
            return
        began.append(time.time())
        if how != "stopped":
            line.behave(how)
            return
        entities = line.platform.data_plane.status()["endpoints"][control.release.endpoint]["entities"]
        for one in entities:
            if one["name"] == "v2":
                workers.extend(int(worker["pid"]) for worker in one["workers"])
        for pid in workers:
            os.kill(pid, signal.SIGSTOP)

    url = line.endpoint["url"]
    random = Random(1)

    def ask(number: int) -> tuple[bytes, dict[str, str]]:
        row = {"a": random.gauss(0, 2), "b": random.gauss(0, 2)}
        return orjson.dumps({"dataframe_records": [row]}), {"x-caller-id": f"c{number}"}

    found: list[Any] = []
    offset = time.time() - time.monotonic()

    def meanwhile() -> None:
        found.append(line.release(look=harm, seconds=180))
        for pid in workers:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
        time.sleep(2)

    answers = asyncio.run(hammer(url, ask, connections=64, seconds=1, rate=RATE / 2, meanwhile=meanwhile))
    release = found[0]
    assert release.state == "rolled_back", release.history[-1].reason
    effective = release.history[-1].effective.timestamp() - offset
    after = failed([one for one in answers if one.asked > effective])
    assert not after, f"{after} requests failed after the champion had everything"
    seen = release.history[-1].observed.timestamp() - began[0]
    return _row(
        f"back from a challenger: {how}",
        seconds_back(release),
        answers,
        f"seen {seen:.1f} s after it began; failed after the way back: {after}; {release.history[-1].reason}",
    )


def _row(what: str, seconds: float, answers: list[Answer], note: str) -> tuple[str, ...]:
    return (what, f"{seconds:.2f}", f"{len(answers):,}", str(failed(answers)), note)


def _dead(bench: Bench) -> tuple[str, ...]:
    """Kill -9 of the challenger's only worker, among callers."""
    killed: list[float] = []

    def kill(control: Any) -> None:
        if control.release.state == "canary" and control.look and not killed:
            os.kill(bench.worker(), signal.SIGKILL)
            killed.append(time.monotonic())

    release, answers = bench.under_load(lambda: bench.release(kill))
    assert release.state == "rolled_back", release.state
    return _row(
        "back from a challenger killed with -9",
        seconds_back(release),
        answers,
        f"failed: those that it had when it died; {release.history[-1].reason}",
    )


def _good(bench: Bench) -> list[tuple[str, ...]]:
    """A whole release, the drill, and the command that takes it back."""
    from tasks.drill import drill_rollback

    begun = time.monotonic()
    release, answers = bench.under_load(bench.release)
    took = time.monotonic() - begun - 2
    assert release.state == "promoted", release.history[-1].reason
    steps = ", ".join(f"{done.percentage} %" for done in release.history if done.percentage)
    rows = [_row("a whole release", took, answers, f"start of its scorer included; {steps}")]
    drilled, answers = bench.under_load(lambda: drill_rollback(bench.platform, MODEL))
    rows.append(_row("drill: to the former champion", drilled.seconds_to_previous, answers, "still warm"))
    rows.append(
        _row("drill: and back to the champion", drilled.seconds_to_champion, answers, "the same requests")
    )
    command = [sys.executable, "-m", "flows.run", "rollback", "--model", str(bench.spec)]
    command += ["--env", str(bench.env), "--reason", "measured"]
    started: list[float] = []

    def by_command() -> None:
        started.append(time.monotonic())
        subprocess.run(command, check=True, capture_output=True)

    _, answers = bench.under_load(by_command)
    rows.append(
        _row(
            "`rollback`, from Enter to the last answer of the version left",
            last_of(answers, "2") - started[0],
            answers,
            "the command's own start included",
        )
    )
    return rows


if __name__ == "__main__":
    main()
