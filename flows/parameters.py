"""The parameters that flows share, typed so that Prefect renders them as forms with choices."""

from typing import Annotated

from pydantic import Field

from deployments.environment import known_environments
from deployments.spec import shipped_models

__all__ = ["EnvironmentName", "ModelName"]

ModelName = Annotated[str, Field(json_schema_extra={"enum": list(shipped_models())})]
"""A model under deployments/models; in Python and at the command line the path of a model.yaml as well."""

EnvironmentName = Annotated[str, Field(json_schema_extra={"enum": list(known_environments())})]
"""An environment under deployments/environments; in Python and at the command line the path of a YAML file as well."""
