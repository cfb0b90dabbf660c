"""A hundred models monitored in one fleet run: how long it takes, and whether exactly those alarm that drifted.

`python -m benchmarks.fleet [--models 100] [--drifted 10] [--at-once 2] [--requests 300]`. The first is trained
and promoted by the line's own flows, with their tasks called bare; the others are champions under names of their own
with its model file, each with a run of its own. Each prediction log is written as a scorer writes it, with the
champion's own answers. The run that is measured is `fleet monitor` as a user starts it: in a
process of its own, with its own Prefect server, folding every log from its segments.
"""

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime, timedelta
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import yaml

from benchmarks.report import write_table

COLUMNS = ("a", "b", "c", "d")
TRAINING_ROWS, TRAINING_SEED = 500, 0
MOVED = 1.0
"""How far the callers of a drifted model are from training in `a`, in its standard deviations."""
KINDS = ("threads", "processes")


def main() -> None:
    """Measure and write benchmarks/results/fleet.md."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=int, default=100)
    parser.add_argument("--drifted", type=int, default=10)
    parser.add_argument("--at-once", type=int, default=2)
    parser.add_argument("--requests", type=int, default=300)
    parser.add_argument("--runner", choices=KINDS, help="Only on this task runner.")
    parser.add_argument(
        "--keep", type=Path, help="Make the models in this folder, and take those that are there."
    )
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = (given.keep or Path(scratch)).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        made(folder, given.models, given.drifted, given.requests)
        rows, notes = [], []
        home, before = folder / "home", folder / "before"
        span = (datetime.now(UTC) - timedelta(days=1), datetime.now(UTC) - timedelta(seconds=1))
        for kind in [given.runner] if given.runner else KINDS:
            # Each begins with logs that nobody has folded, at the same addresses.
            shutil.rmtree(before, ignore_errors=True)
            shutil.copytree(home, before)
            row, note = _measured(folder, kind, given.at_once, span)
            shutil.rmtree(home)
            before.rename(home)
            rows.append(row)
            notes += note
    command = f"python -m benchmarks.fleet --models {given.models} --drifted {given.drifted}"
    write_table(
        "fleet",
        f"{given.models} models monitored in one fleet run",
        f"{command} --at-once {given.at_once} --requests {given.requests}"
        + (f" --runner {given.runner}" if given.runner else ""),
        [
            "task runner",
            "models",
            "at a time",
            "wall s",
            "CPU s",
            "fleet run s",
            "median s of a model",
            "slowest s",
            "peak MB",
            "drifted",
            "alarmed",
            "exactly the drifted",
            "failed",
        ],
        rows,
        note=(
            f"One model of four columns, trained on {TRAINING_ROWS} rows, registered under {given.models} names, each "
            f"with a run and a prediction log of {given.requests} requests of its own; callers of the drifted ones are "
            f"{MOVED:g} standard deviation off in one column. Wall and processor seconds are those of the whole "
            "command, with its start and its Prefect server; peak memory is that of all its processes together, the "
            "server among them. Where the machine has other work, processor seconds are the fairer measure."
            + "".join(f" {note}" for note in notes)
        ),
    )


# The run that is measured -----------------------------------------------------------------------------------


def _measured(
    folder: Path, kind: str, at_once: int, span: tuple[datetime, datetime]
) -> tuple[list[str], list[str]]:
    environment = _environment(folder, kind)
    command = [
        sys.executable,
        "-m",
        "flows.run",
        "fleet",
        "monitor",
        "--json",
        "--under",
        str(folder / "models"),
    ]
    command += ["--env", str(environment), "--at-once", str(at_once)]
    command += ["--since", f"{span[0]:%Y-%m-%dT%H:%M:%S}", "--until", f"{span[1]:%Y-%m-%dT%H:%M:%S}"]
    settings = {**os.environ, "CONTENDER_HOME": str(folder / "home")}
    settings.pop("PREFECT_API_URL", None)
    began, cpu_before = time.perf_counter(), _processor_seconds()
    process = subprocess.Popen(command, env=settings, stdout=subprocess.PIPE, text=True)
    peak: list[float] = [0.0]
    follower = threading.Thread(target=_follow, args=(process, peak), daemon=True)
    follower.start()
    said, _ = process.communicate()
    wall = time.perf_counter() - began
    if not said.strip():
        raise SystemExit(f"the fleet run ended with {process.returncode}, and gave no outcome")
    outcome = json.loads(said)
    drifted = {path.parent.name for path in (folder / "models").glob("*/drifted")}
    alarmed = {row["model"] for row in outcome["rows"] if "contender.drift.detected" in row["alerts"]}
    others = {row["model"] for row in outcome["rows"] if row["alerts"]} - alarmed
    failed = [row for row in outcome["rows"] if row["state"] in {"failed", "refused", "no champion"}]
    taken = [row["seconds"] for row in outcome["rows"]]
    notes = [f"({kind}) {row['model']}: {row['state']}: {row['error']}." for row in failed[:5]]
    if others:
        notes.append(f"({kind}) Alerts of other kinds than drift: {', '.join(sorted(others))}.")
    return [
        kind,
        str(len(outcome["rows"])),
        str(outcome["at_once"]),
        f"{wall:,.0f}",
        f"{_processor_seconds() - cpu_before:,.0f}",
        f"{outcome['seconds']:,.0f}",
        f"{median(taken):.1f}",
        f"{max(taken):.1f}",
        f"{peak[0]:,.0f}",
        str(len(drifted)),
        str(len(alarmed)),
        "yes" if alarmed == drifted else f"no: {', '.join(sorted(alarmed ^ drifted))}",
        str(len(failed)),
    ], notes


def _processor_seconds() -> float:
    """What all processes that were started here, and have ended, took."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _follow(process: "subprocess.Popen[str]", peak: list[float]) -> None:
    """The most memory that the process and all that it started held together, in MB; shared pages count once each."""
    import psutil

    root = psutil.Process(process.pid)
    while process.poll() is None:
        held = 0.0
        try:
            family = [root, *root.children(recursive=True)]
        except psutil.NoSuchProcess:
            return
        for one in family:
            try:
                held += one.memory_info().rss / 1e6
            except psutil.NoSuchProcess:
                continue
        peak[0] = max(peak[0], held)
        time.sleep(0.25)


# Models and their logs --------------------------------------------------------------------------------------


def made(folder: Path, models: int, drifted: int, requests: int) -> None:
    """The models that are not there yet, each a champion that callers of the last half hour asked.

    Their specs are `models/m_000/model.yaml` and so on, `home` is the data home, `threads.yaml` the environment; those
    that drifted have a file `drifted` beside the spec. It is done in a process of its own.
    """
    step = max(1, models // drifted) if drifted else models + 1
    _environment(folder, "threads")
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        for place in range(models):
            moved = drifted > 0 and place % step == 0 and place // step < drifted
            pool.submit(_make, folder, place, moved, requests).result()


def _name(place: int) -> str:
    return f"m_{place:03d}"


def _environment(folder: Path, kind: str) -> Path:
    path = folder / f"{kind}.yaml"
    document = {
        "name": "bench",
        "platform": {"kind": "local", "data_root": "bench"},
        "allow_dirty_tree": True,
        "task_runner": {"kind": kind, "workers": 2},
    }
    path.write_text(yaml.safe_dump(document), encoding="utf-8")
    return path


def _make(folder: Path, place: int, drifted: bool, requests: int) -> None:
    """One model: its spec and data, its champion, and the log of its endpoint."""
    home = folder / "models" / _name(place)
    if (home / "asked").exists():
        return
    os.environ["CONTENDER_HOME"] = str(folder / "home")
    os.environ.pop("PREFECT_API_URL", None)
    from flows.settings import settle

    settle()
    home.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(TRAINING_SEED)
    inputs = random.normal(0, 1, (TRAINING_ROWS, len(COLUMNS)))
    sick = inputs[:, 0] - inputs[:, 1] + random.normal(0, 0.5, TRAINING_ROWS) > 0
    lines = [",".join(["id", *COLUMNS, "sick"])]
    lines += [
        ",".join([f"p{row}", *(f"{value:.4f}" for value in inputs[row]), str(bool(sick[row])).lower()])
        for row in range(TRAINING_ROWS)
    ]
    (home / "rows.csv").write_text("\n".join(lines), encoding="utf-8")
    spec = home / "model.yaml"
    spec.write_text(yaml.safe_dump(_spec(_name(place))), encoding="utf-8")
    environment = str(folder / "threads.yaml")
    if place == 0:
        _champion(str(spec), environment)
    else:
        _champion_like(_name(0), _name(place), spec, environment)
    asked = np.random.default_rng(place).normal(0, 1, (requests, len(COLUMNS)))
    asked[:, 0] += MOVED if drifted else 0.0
    _ask(_name(place), environment, asked)
    if drifted:
        (home / "drifted").touch()
    (home / "asked").touch()


def _spec(name: str) -> dict[str, Any]:
    return {
        "name": name,
        "governance": {"owner": "bench", "purpose": "A measurement."},
        "target": {"kind": "binary", "column": "sick", "positive": True},
        "sources": {"rows": {"kind": "csv", "path": "rows.csv"}},
        "contract": {
            "rows": {
                "columns": {
                    "id": {"type": "string"},
                    **{column: {"type": "number"} for column in COLUMNS},
                    "sick": {"type": "boolean"},
                }
            }
        },
        "features": {"entity": ["id"], "numeric": list(COLUMNS)},
        "split": {"kind": "random", "holdout": 0.3, "validation": 0.2, "min_rows": 20},
        "training": {
            "metric": "roc_auc",
            "folds": 2,
            "threshold": 0.5,
            "candidates": [{"name": "logistic", "estimator": "sklearn.linear_model.LogisticRegression"}],
        },
        "evaluation": {"metrics": ["roc_auc"], "bootstrap": 200},
        "gates": [{"kind": "metric", "metric": "roc_auc", "min": 0.7}],
        "monitoring": {
            # The holdout, with which answers are compared, has 150 rows.
            "drift": {"needed": 1, "windows": 1, "minimum_rows": 100},
            "service": {"p95_milliseconds": 1000},
        },
    }


def _champion(spec: str, environment: str) -> None:
    """Train and promote, by the flows' own order of business without Prefect."""
    from prefect import Task

    import flows.promote
    import flows.train
    from benchmarks.orchestration import _Threads

    Task.__call__ = lambda self, *arguments, **named: self.fn(*arguments, **named)  # type: ignore[method-assign]
    flows.train.task_runner = lambda _: _Threads(1)  # type: ignore[assignment]
    flows.train.train.fn(spec, environment)
    flows.promote.promote.fn(spec, environment)


def _champion_like(trained: str, name: str, spec: Path, environment: str) -> None:
    """Another champion with the model file of the first, and a run of its own with the same documents."""
    from deployments.environment import load_environment
    from platforms import platform_for
    from tasks.champion import CHAMPION, ChampionRef, standing_champion
    from tasks.tracking import TAG, Tracking
    from tasks.unlearned import FILE

    platform = platform_for(load_environment(environment))
    first = standing_champion(platform, trained)
    assert isinstance(first, ChampionRef)
    tracking, registered = Tracking(platform), platform.registered_model(name)
    client = tracking.client
    run = tracking.create_run(tracking.experiment(name), name, {})
    with tempfile.TemporaryDirectory() as documents:
        for item in client.list_artifacts(first.run_id):
            if not item.is_dir and item.path.endswith((".json", ".yaml", FILE)):
                client.download_artifacts(first.run_id, item.path, documents)
        outcome = Path(documents) / "outcome.json"
        outcome.write_text(outcome.read_text(encoding="utf-8").replace(first.run_id, run), encoding="utf-8")
        (Path(documents) / "model.yaml").write_text(spec.read_text(encoding="utf-8"), encoding="utf-8")
        client.log_artifacts(run, documents)
    tracking.finish(run)
    # What an earlier try left half made.
    if client.search_registered_models(f"name = '{registered}'"):
        client.delete_registered_model(registered)
    client.create_registered_model(registered)
    version = client.get_model_version(first.name, first.version)
    client.create_model_version(
        registered, source=version.source, run_id=run, model_id=first.model_id, tags=dict(version.tags)
    )
    client.set_registered_model_alias(registered, CHAMPION, "1")
    client.set_registered_model_tag(registered, f"{TAG}promoted", "true")


def _ask(model: str, environment: str, inputs: np.ndarray) -> None:
    """One request a row, spread over the last half hour, answered by the champion and logged as its scorer would."""
    import pandas as pd

    from deployments.environment import PredictionLogConfig, load_environment
    from platforms import platform_for
    from platforms.local import LocalPlatform
    from serving.folders import Folders
    from serving.prediction_log import PredictionLog, Record
    from serving.served_model import ServedColumn, ServedModel
    from tasks.champion import ChampionRef, load_version, standing_champion

    platform = platform_for(load_environment(environment))
    champion = standing_champion(platform, model)
    assert isinstance(champion, ChampionRef)
    assert isinstance(platform, LocalPlatform)
    scores = load_version(platform, champion).predict_proba(pd.DataFrame(inputs, columns=list(COLUMNS)))[:, 1]
    endpoint = platform.endpoint(model)
    served = ServedModel(
        name=champion.name,
        version=champion.version,
        model=champion.model_id,
        model_digest=champion.digest,
        run_id=champion.run_id,
        flavor="skops",
        engine="sklearn",
        engine_reason="",
        columns=tuple(ServedColumn(name=name, kind="double", required=True) for name in COLUMNS),
        target="binary",
        positive=True,
        entity=("id",),
    )
    log = PredictionLog(
        Folders(platform.root).log(endpoint),
        served,
        endpoint=endpoint,
        entity=f"v{champion.version}",
        worker=0,
        config=PredictionLogConfig(),
        pii_key=platform.pii_key(),
    )
    end = time.time_ns()
    for place, (row, score) in enumerate(zip(inputs, scores, strict=True)):
        log.append(
            Record(
                time_ns=end - (len(inputs) - place) * (1800 * 10**9 // len(inputs)),
                request_id=f"{model}-{place}",
                requester="bench",
                shadow=False,
                status=200,
                milliseconds=1.0,
                rows=1,
                keys={"id": [f"p{place}"]},
                columns={name: np.array([value]) for name, value in zip(COLUMNS, row, strict=True)},
                predictions=np.array([score >= 0.5]),
                scores=np.array([score]),
                error=None,
            )
        )
    log.close()


if __name__ == "__main__":
    main()
