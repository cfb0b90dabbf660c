"""The local platform: one machine, nothing but files and SQLite."""

import getpass
import os
import socket
import subprocess
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from deployments.environment import Environment, home
from deployments.errors import BadInputError
from deployments.online_features import OnlineFeatureSet, PublishedFeatures
from deployments.personal_data import personal_data_key
from platforms.data_plane import LocalDataPlane
from platforms.lock import held
from platforms.observations import LocalObservations
from platforms.online_store import publish_online
from platforms.platform import MlflowAddresses, Predictions, TrafficLease
from platforms.predictions import folded
from platforms.snapshot import Snapshot
from platforms.tables import DeltaTables


@dataclass(frozen=True)
class LocalPlatform:
    """Everything under one data root."""

    environment: Environment
    root: Path

    @cached_property
    def mlflow(self) -> MlflowAddresses:
        """SQLite and a folder under the data root, where the environment names nothing else."""
        config = self.environment.platform
        tracking = config.tracking_uri or f"sqlite:///{self._made(self.root) / 'mlflow.db'}"
        return MlflowAddresses(
            tracking_uri=tracking,
            registry_uri=config.registry_uri or tracking,
            artifact_root=None if config.tracking_uri else (self.root / "artifacts").as_uri(),
        )

    @cached_property
    def tables(self) -> DeltaTables:
        """Delta tables in folders."""
        return DeltaTables(self.root / "tables", self.folder("scratch"))

    def registered_model(self, model: str) -> str:
        """The environment's prefix and the model's name."""
        return f"{self.environment.platform.model_prefix}{model}"

    def experiment(self, model: str) -> str:
        """The same name as the registered model."""
        return self.registered_model(model)

    def table(self, layer: str, model: str, name: str) -> str:
        """A folder `layer/model/name`."""
        return f"{layer}/{model}/{name}"

    def endpoint(self, model: str) -> str:
        """The same name as the registered model: no two environments may answer at one name."""
        return self.registered_model(model)

    @property
    def endpoints(self) -> Any:
        """Our plugin's client, over this data root."""
        from mlflow.deployments import get_deploy_client

        return get_deploy_client(f"contender:{self._made(self.root)}")

    def wait_for_endpoint(self, name: str, timeout_seconds: float = 180) -> Mapping[str, Any]:
        """Asks until it is so."""
        found: Mapping[str, Any] = self.endpoints.wait(name, timeout_seconds)
        return found

    @property
    def data_plane(self) -> LocalDataPlane:
        """A supervisor of this data root."""
        return LocalDataPlane(self.root, self.environment, self.mlflow)

    def shift_traffic(self, endpoint: str, entity: str, lease: TrafficLease | None = None) -> float:
        """By a process of its own, which imports little: the way back must be short."""
        return self.data_plane.shift(endpoint, entity, lease)

    def publish_online(
        self, endpoint: str, snapshot: Snapshot, features: OnlineFeatureSet
    ) -> PublishedFeatures:
        """A key-value store under this data root."""
        return publish_online(self.root, endpoint, snapshot, features)

    def observations(self, endpoint: str, since: datetime, timeout_seconds: float = 10) -> LocalObservations:
        """A process that reads the prediction log under this data root."""
        return LocalObservations(self.root, endpoint, since, timeout_seconds)

    def predictions(self, endpoint: str) -> Predictions | None:
        """The table that the prediction log under this data root is folded into, by a process of its own."""
        return folded(self.root, endpoint)

    def identity(self) -> str:
        """The git user's address, or the login name and host."""
        asked = subprocess.run(
            ["git", "config", "user.email"], capture_output=True, text=True, check=False, timeout=10
        )
        return asked.stdout.strip() or f"{getpass.getuser()}@{socket.gethostname()}"

    def secret(self, name: str) -> str:
        """An environment variable, or else a Prefect Secret block, of that name."""
        value = os.environ.get(name)
        if value is None:
            from prefect.blocks.system import Secret

            try:
                value = str(Secret.load(name.lower().replace("_", "-")).get())  # type: ignore[union-attr]
            except ValueError:
                raise BadInputError(
                    f"secret {name!r} is neither an environment variable nor a Prefect Secret block"
                ) from None
        return value

    def pii_key(self) -> bytes:
        """CONTENDER_PII_KEY, or a random key made once and kept under the data root for its owner's eyes only."""
        return personal_data_key(self.root)

    def folder(self, purpose: str) -> Path:
        """A folder under the data root."""
        return self._made(self.root / purpose)

    def alone(self, work: str, busy: str) -> AbstractContextManager[None]:
        """A locked file under the data root."""
        return held(self.folder("locks") / f"{work}.lock", busy)

    def resolve(self, path: str, beside: Path) -> str:
        """Relative paths start at the working directory if the file is there, else at the spec's folder."""
        if "://" in path or Path(path).is_absolute():
            return path
        here = Path(path).absolute()
        return str(here if here.exists() else (beside / path).absolute())

    @staticmethod
    def _made(path: Path) -> Path:
        path.mkdir(parents=True, exist_ok=True)
        return path


def local_platform(environment: Environment) -> LocalPlatform:
    """The local platform for an environment, rooted under `home()`."""
    return LocalPlatform(environment, home() / environment.platform.data_root)
