"""What a supervisor is started with, in one file."""

from deployments.declared import Declared
from deployments.environment import Serving


class Instructions(Declared):
    """What a supervisor is started with."""

    root: str
    environment: str
    tracking_uri: str
    registry_uri: str
    allowed_packages: tuple[str, ...]
    serving: Serving
    mlflow_store: str | None = None
    """The store that our own MLflow server serves; none is started where tracking is elsewhere."""
    mlflow_artifacts: str | None = None
