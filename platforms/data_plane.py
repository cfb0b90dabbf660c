"""The data plane of one machine, as seen from outside: `python -m serving`, which knows nothing of flows and tasks."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from deployments.environment import Environment
from deployments.errors import BadInputError, ContenderError
from platforms.platform import MlflowAddresses, TrafficLease


class DataPlaneError(ContenderError):
    """The data plane did not do what it was asked to."""


@dataclass(frozen=True)
class LocalDataPlane:
    """The supervisor of one data root."""

    root: Path
    environment: Environment
    mlflow: MlflowAddresses

    def up(self) -> Mapping[str, Any]:
        """Start it unless it runs, with an MLflow server where tracking is in a file here.

        Raises:
            BadInputError: a port is taken, or it runs with other settings.
            DataPlaneError: it did not start.
        """
        ours = self.mlflow.tracking_uri.startswith("sqlite:") and self.environment.serving.mlflow
        instructions = {
            "root": str(self.root),
            "environment": self.environment.name,
            "tracking_uri": self.mlflow.tracking_uri,
            "registry_uri": self.mlflow.registry_uri,
            "allowed_packages": self.environment.allowed_packages,
            "serving": self.environment.serving.model_dump(mode="json"),
            "mlflow_store": self.mlflow.tracking_uri if ours else None,
            "mlflow_artifacts": self.mlflow.artifact_root if ours else None,
        }
        with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
            json.dump(instructions, file)
            file.flush()
            said: Mapping[str, Any] = self._ask("up", file.name)
        return said

    def down(self) -> bool:
        """Drain and end it; False where it did not run."""
        return bool(self._ask("down", str(self.root)))

    def status(self) -> Mapping[str, Any] | None:
        """What it says of itself; None where it does not run."""
        said: Mapping[str, Any] | None = self._ask("status", str(self.root))
        return said

    def shift(self, endpoint: str, entity: str, lease: TrafficLease | None = None) -> float:
        """Give one served entity all traffic, for as long as the lease lasts if there is one; the seconds it took.

        Raises:
            BadInputError: there is no such endpoint or entity.
            DataPlaneError: it was not done.
        """
        until = [lease.fallback, lease.until.isoformat()] if lease else []
        return float(self._ask("shift", str(self.root), endpoint, entity, *until)["seconds"])

    def callers(self) -> Sequence[Mapping[str, Any]]:
        """Who may call, one entry a key."""
        said: Sequence[Mapping[str, Any]] = self._ask("callers", str(self.root))
        return said

    def add_caller(self, name: str, expires: datetime | None = None) -> str:
        """A new key for a caller; nobody can be told it again.

        Raises:
            BadInputError: the name or the expiry will not do, or two valid keys are held already.
        """
        until = [expires.isoformat()] if expires else []
        return str(self._ask("callers", str(self.root), "add", name, *until))

    def revoke_caller(self, name: str, key: str | None = None) -> Sequence[Mapping[str, Any]]:
        """End one key of a caller, or all; those that were ended.

        Raises:
            BadInputError: there is no such key.
        """
        said: Sequence[Mapping[str, Any]] = self._ask(
            "callers", str(self.root), "revoke", name, *([key] if key else [])
        )
        return said

    def logs(self) -> Path:
        """The folder of its text logs."""
        return self.root / "serving" / "run" / "logs"

    def _ask(self, *arguments: str) -> Any:
        done = subprocess.run(
            [sys.executable, "-m", "serving", *arguments], capture_output=True, text=True, check=False
        )
        if done.returncode:
            said = done.stderr.strip().splitlines() or [f"it ended with {done.returncode}, and said nothing"]
            bad_input = done.returncode == BadInputError.exit_code
            raise (BadInputError if bad_input else DataPlaneError)(said[-1])
        return json.loads(done.stdout)
