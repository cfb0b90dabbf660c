"""Addresses of pages in the MLflow UI, where tracking is a server that a browser can reach."""

from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import quote, urlsplit

from deployments.errors import ContenderError
from platforms.platform import Platform
from tasks.tracking import Tracking

__all__ = ["MlflowPages", "mlflow_pages", "run_links"]


@dataclass(frozen=True)
class MlflowPages:
    """The MLflow UI at an address."""

    address: str

    def run(self, experiment: str, run: str, artifact: str = "") -> str:
        """A run's page, or one of its artifacts there."""
        page = f"{self.address}/#/experiments/{experiment}/runs/{run}"
        return f"{page}/artifacts/{quote(artifact)}" if artifact else page

    def version(self, name: str, version: str) -> str:
        """A registered version's page."""
        return f"{self.address}/#/models/{quote(name)}/versions/{version}"


def mlflow_pages(platform: Platform) -> MlflowPages | None:
    """The UI over an environment's tracking store; None where there is no address to go to.

    It is the tracking server itself, or the server that the data plane keeps over a store in a file here.
    """
    address = platform.mlflow.tracking_uri
    if not _reachable(address):
        standing = platform.data_plane.status() or {}
        address = str(standing.get("mlflow", {}).get("url", ""))
    return MlflowPages(address.rstrip("/")) if _reachable(address) else None


def run_links(platform: Platform, run: str, artifacts: Mapping[str, str]) -> dict[str, str]:
    """Addresses by what they show: the run itself, and artifacts of it; empty where there is no UI to be had."""
    from mlflow.exceptions import MlflowException

    try:
        pages = mlflow_pages(platform)
        if pages is None:
            return {}
        experiment = Tracking(platform).client.get_run(run).info.experiment_id
    except (ContenderError, MlflowException):
        return {}
    links = {"MLflow run": pages.run(experiment, run)}
    return links | {what: pages.run(experiment, run, path) for what, path in artifacts.items()}


def _reachable(address: str) -> bool:
    """Whether a browser may be sent there: an address over HTTP, without a password in it."""
    parts = urlsplit(address)
    return parts.scheme in {"http", "https"} and parts.password is None
