"""Environments: where the line runs and how strictly, read from one YAML file each."""

import os
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from deployments.declared import Declared
from deployments.documents import load_document
from deployments.errors import BadInputError

ENVIRONMENTS = Path(__file__).parent / "environments"


class LocalPlatformConfig(Declared):
    """Everything on this machine; MLflow in SQLite and a folder unless a URI says otherwise."""

    kind: Literal["local"] = "local"
    data_root: str = Field(
        description="Folder for tables, MLflow, reports and ledger; relative to CONTENDER_HOME."
    )
    tracking_uri: str | None = None
    registry_uri: str | None = None
    model_prefix: str = Field("", pattern=r"^[a-z0-9_-]*$", description="Put before registered model names.")


PlatformConfig = Annotated[LocalPlatformConfig, Field()]


class ThreadRunner(Declared):
    """Candidates train in threads of the flow's own process."""

    kind: Literal["threads"] = "threads"
    workers: int = Field(2, ge=1)


class ProcessRunner(Declared):
    """Candidates train in processes of their own."""

    kind: Literal["processes"] = "processes"
    workers: int = Field(2, ge=1)


class DaskRunner(Declared):
    """Candidates train on a Dask cluster: a local one, or the scheduler at `address`."""

    kind: Literal["dask"] = "dask"
    workers: int = Field(2, ge=1)
    address: str | None = None


TaskRunnerConfig = Annotated[ThreadRunner | ProcessRunner | DaskRunner, Field(discriminator="kind")]


class Budget(Declared):
    """What a run may use."""

    memory_megabytes: int = Field(
        2048, ge=256, description="For queries and chunks; larger work goes to disk."
    )
    training_seconds: float = Field(1800, gt=0, description="No further candidate starts after this long.")


class RequestLimits(Declared):
    """What one request, and all of them at once, may ask of a scorer."""

    body_bytes: int = Field(16 * 1024 * 1024, ge=1024, description="A larger body is refused with 413.")
    rows: int = Field(100_000, ge=1, description="More rows in one request are refused with 413.")
    queue: int = Field(
        256,
        ge=1,
        description="Requests that may wait in one worker; the next is told 429 and when to come again.",
    )
    timeout_seconds: float = Field(30, gt=0)
    drain_seconds: float = Field(
        10, ge=0, description="How long a worker that is stopped finishes what it has."
    )


class PredictionLogConfig(Declared):
    """The log of every request served."""

    max_megabytes: int = Field(2048, ge=1, description="Of one endpoint, before it is folded into its table.")
    when_full: Literal["refuse", "drop"] = Field(
        "refuse",
        description="Answer 503 rather than answer unlogged, or answer and count what was not logged.",
    )
    segment_megabytes: int = Field(32, ge=1)
    sync_milliseconds: int = Field(
        50, ge=1, description="How often what was written is forced onto the disk."
    )


class GatewayConfig(Declared):
    """The one address of all endpoints."""

    kind: Literal["auto", "envoy", "python"] = Field(
        "auto", description="Envoy where there is a wheel of it, else the thin router in Python."
    )
    host: str = "127.0.0.1"
    port: int = Field(8500, ge=0, le=65535, description="0 takes any that is free.")
    sticky_header: str = Field("x-caller-id", pattern=r"^[a-z0-9-]+$")
    require_key: bool = Field(False, description="Whether a request without a known API key is refused.")
    requests_per_second: float | None = Field(None, gt=0, description="Of one caller; more are told 429.")


class Serving(Declared):
    """The data plane of an environment."""

    gateway: GatewayConfig = GatewayConfig()
    limits: RequestLimits = RequestLimits()
    log: PredictionLogConfig = PredictionLogConfig()
    mlflow_port: int = Field(
        5000, ge=0, le=65535, description="Of the MLflow server that `up` starts; 0: any."
    )
    other_flavors: bool = Field(
        False,
        description="Whether models other than skops files are served. Loading one runs code that it brings.",
    )
    onnx: bool = Field(True, description="Whether ONNX Runtime serves models for which it answers the same.")


class Environment(Declared):
    """One place to run: its platform and its strictness."""

    name: str = Field(pattern=r"^[a-z][a-z0-9_-]*$")
    description: str = ""
    platform: PlatformConfig
    approvals: tuple[str, ...] = Field((), description="Roles whose signed approval a promotion needs.")
    allow_dirty_tree: bool = Field(False, description="Whether a model may be trained from uncommitted code.")
    allowed_packages: tuple[str, ...] = Field(
        ("sklearn",),
        description="Packages that candidates, and the types inside saved models, may come from.",
    )
    task_runner: TaskRunnerConfig = ThreadRunner()
    budget: Budget = Budget()
    serving: Serving = Serving()


def home() -> Path:
    """The folder that data roots are relative to: CONTENDER_HOME, or `.contender` in the working directory."""
    return Path(os.environ.get("CONTENDER_HOME", ".contender")).absolute()


def known_environments(root: Path = ENVIRONMENTS) -> tuple[str, ...]:
    """The names of the environments under `root`."""
    return tuple(sorted(path.stem for path in root.glob("*.yaml")))


def load_environment(name: str | Path, root: Path = ENVIRONMENTS) -> Environment:
    """Read an environment by name, or by the path of its YAML file.

    Raises:
        BadInputError: no such environment.
        SpecError: the file does not say what an environment must.
    """
    path = Path(name)
    if path.suffix not in {".yaml", ".yml"}:
        path = root / f"{name}.yaml"
        if not path.is_file():
            raise BadInputError(
                f"there is no environment {str(name)!r} (known: {', '.join(known_environments(root))})"
            )
    return load_document(path, Environment)
