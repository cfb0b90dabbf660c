"""How an environment's flows are deployed with Prefect: where they run, and when by themselves."""

from typing import Any, Literal

from pydantic import Field

from deployments.declared import Declared

ScheduledFlow = Literal["train", "features", "score", "monitor", "retrain"]
"""The flows that may run by the clock; a release, and a way back, are asked for."""


class Schedule(Declared):
    """When a flow runs by itself, where the environment has its schedules active."""

    cron: str = Field(
        pattern=r"^\S+( \S+){4}$", description="Minute, hour, day of the month, month, day of the week."
    )
    timezone: str = "UTC"


class WorkPool(Declared):
    """The Prefect work pool that runs an environment's flows."""

    name: str | None = Field(
        None, min_length=1, description="contender- and the environment's name by default."
    )
    kind: Literal["process", "docker", "kubernetes"] = "process"
    job_variables: dict[str, Any] = Field({}, description="What a run's infrastructure is to be told.")
    directory: str = Field(
        "/opt/contender",
        pattern="^/",
        description="Of docker and kubernetes: the folder of this project within the image.",
    )
