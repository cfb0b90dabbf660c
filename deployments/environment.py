"""Environments: where the line runs and how strictly, read from one YAML file each."""

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
