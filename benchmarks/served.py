"""What the serving benchmarks are about: a model of 20 columns, trained by the line, and a data plane for it."""

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import orjson
import psutil

MODEL = "bench"
SPEC = """
name: bench
governance: {{owner: benchmarks, purpose: Measure serving.}}
target: {{kind: binary, column: label, positive: "yes"}}
sources: {{rows: {{kind: parquet, path: rows.parquet}}}}
contract:
  rows:
    columns:
      id: {{type: string}}
      label: {{type: string, values: ["yes", "no"]}}
{columns}
features:
  entity: [id]
  numeric: [{numeric}]
  categorical: [{categorical}]
split: {{kind: random, holdout: 0.2, validation: 0.1}}
training:
  metric: roc_auc
  folds: 2
  threshold: 0.5
  candidates:
    - {{name: boosting, estimator: sklearn.ensemble.GradientBoostingClassifier}}
evaluation: {{metrics: [roc_auc], bootstrap: 200}}
gates:
  - {{kind: metric, metric: roc_auc, min: 0.5}}
"""
ENVIRONMENT = """
name: bench
platform: {{kind: local, data_root: bench}}
allow_dirty_tree: true
serving:
  gateway: {{port: 0}}
  mlflow_port: 0
  log: {{max_megabytes: {log_megabytes}}}
"""
NUMERIC = tuple(f"number_{place}" for place in range(14))
CATEGORICAL = tuple(f"word_{place}" for place in range(6))


@dataclass(frozen=True)
class Bench:
    """A data root with a champion, and the environment and the spec that made it."""

    folder: Path
    env: Path
    spec: Path

    @cached_property
    def platform(self) -> Any:
        """The platform of the benchmark's own environment."""
        from deployments.environment import load_environment
        from platforms import platform_for

        return platform_for(load_environment(self.env))

    @cached_property
    def row(self) -> bytes:
        """One row as `dataframe_split`."""
        import pandas as pd

        frame = pd.read_parquet(self.folder / "rows.parquet").head(1)[[*NUMERIC, *CATEGORICAL]]
        return orjson.dumps({"dataframe_split": orjson.loads(frame.to_json(orient="split", index=False))})


def make_bench(folder: Path, *, log_megabytes: int = 8192) -> Bench:
    """Train and promote the model under a folder."""
    import numpy as np
    import pandas as pd

    random = np.random.default_rng(0)
    rows = 6_000
    frame = pd.DataFrame({name: random.normal(size=rows) for name in NUMERIC})
    for place, name in enumerate(CATEGORICAL):
        frame[name] = random.choice([f"{letter}{place}" for letter in "abcdef"], size=rows)
    signal = frame[NUMERIC[0]] + frame[NUMERIC[1]] * frame[NUMERIC[2]] + (frame[CATEGORICAL[0]] == "a0")
    frame["label"] = np.where(signal + random.normal(size=rows) > 0, "yes", "no")
    frame["id"] = [f"r{place}" for place in range(rows)]
    frame.to_parquet(folder / "rows.parquet")
    columns = [f"      {name}: {{type: number}}" for name in NUMERIC]
    columns += [f"      {name}: {{type: string}}" for name in CATEGORICAL]
    spec, env = folder / "model.yaml", folder / "bench.yaml"
    spec.write_text(
        SPEC.format(
            columns="\n".join(columns), numeric=", ".join(NUMERIC), categorical=", ".join(CATEGORICAL)
        )
    )
    env.write_text(ENVIRONMENT.format(log_megabytes=log_megabytes))
    os.environ["CONTENDER_HOME"] = str(folder / "home")
    from flows.settings import settle

    settle()
    from flows.server import served

    with served(lambda _: None):
        from flows.promote import promote
        from flows.train import train

        train(str(spec), str(env))
        promote(str(spec), str(env))
    return Bench(folder, env, spec)


@contextmanager
def data_plane(bench: Bench, config: Mapping[str, Any] | None = None) -> Iterator[Mapping[str, Any]]:
    """The data plane up, serving the champion, or what `config` says; its status. It is down afterwards."""
    platform = bench.platform
    try:
        platform.data_plane.up()
        platform.endpoints.create_endpoint(MODEL, config or {"served_entities": [entity("champion")]})
        platform.wait_for_endpoint(MODEL)
        yield settled(platform)
    finally:
        for endpoint in platform.endpoints.list_endpoints():
            platform.endpoints.delete_endpoint(endpoint["name"])
        platform.data_plane.down()


def settled(platform: Any) -> Mapping[str, Any]:
    """The status once the MLflow server has started, too: that takes a core for many seconds, and is not measured."""
    until(lambda: answers(f"{platform.data_plane.status()['mlflow']['url']}/health"), 120, 0.2)
    found: Mapping[str, Any] = platform.data_plane.status()
    return found


def answers(url: str) -> bool:
    """Whether a GET is answered with 200."""
    try:
        with urlopen(url, timeout=2) as answer:
            return bool(answer.status == 200)
    except (OSError, ValueError):
        return False


def entity(name: str) -> dict[str, str]:
    """The only version there is, served under a name."""
    return {"name": name, "entity_name": MODEL, "entity_version": "1"}


def split(champion: int) -> dict[str, Any]:
    """Champion and challenger with their shares."""
    shares = {"champion": champion, "challenger": 100 - champion}
    routes = [{"served_entity_name": name, "traffic_percentage": share} for name, share in shares.items()]
    return {"routes": routes}


def both(champion: int) -> dict[str, Any]:
    """A config that serves the version twice, as champion and as challenger."""
    return {"served_entities": [entity("champion"), entity("challenger")], "traffic_config": split(champion)}


def invocations(status: Mapping[str, Any]) -> str:
    """The endpoint's address at the gateway."""
    return f"{status['gateway']['url']}/serving-endpoints/{MODEL}/invocations"


def workers(status: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    """The workers of one served entity."""
    entities = status["endpoints"][MODEL]["entities"]
    found: list[dict[str, Any]] = next(item["workers"] for item in entities if item["name"] == name)
    return found


def resident_megabytes(*roots: int, without: tuple[int, ...] = ()) -> float:
    """Resident memory of processes and all their children, less those of others."""
    left_out = {pid for root in without for pid in _tree(root)}
    pids = {pid for root in roots for pid in _tree(root)} - left_out
    return sum(psutil.Process(pid).memory_info().rss for pid in pids) / 2**20


def _tree(root: int) -> set[int]:
    process = psutil.Process(root)
    return {root, *(child.pid for child in process.children(recursive=True))}


def until(condition: Any, seconds: float = 60.0, pause: float = 0.005) -> float:
    """Wait for a condition; the seconds it took."""
    begin = time.perf_counter()
    while not condition():
        if time.perf_counter() - begin > seconds:
            raise TimeoutError(f"not so after {seconds:g} s")
        time.sleep(pause)
    return time.perf_counter() - begin
