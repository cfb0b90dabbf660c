"""What flows and tasks ask of the place they run in, and nothing more."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import pyarrow as pa
import pyarrow.dataset as ds

from deployments.environment import Environment
from platforms.snapshot import Snapshot


@dataclass(frozen=True)
class MlflowAddresses:
    """Where runs are tracked, where models are registered, and where a new experiment keeps its files."""

    tracking_uri: str
    registry_uri: str
    artifact_root: str | None


class Tables(Protocol):
    """Versioned tables by name."""

    def write(self, table: str, stream: pa.RecordBatchReader) -> Snapshot:
        """Make `stream` the newest version; the same content again is the version that stands."""
        ...

    def latest(self, table: str) -> Snapshot | None:
        """The newest version, if there is any."""
        ...

    def open(self, snapshot: Snapshot) -> ds.Dataset:
        """The rows of one version, to be scanned."""
        ...

    def batches(
        self, snapshot: Snapshot, columns: Sequence[str] | None = None, rows: int = ...
    ) -> Iterator[pa.RecordBatch]:
        """The rows of one version, in order, in batches."""
        ...

    def read(self, snapshot: Snapshot, columns: Sequence[str] | None = None) -> pa.Table:
        """All rows of one version, in memory."""
        ...


class Platform(Protocol):
    """A place to run: names, tables, MLflow, identity, secrets and folders for files.

    Names of models, experiments and tables come from here and are never put together in a task. An instance is
    cheap, has no open connection, and can be pickled to a worker.
    """

    @property
    def environment(self) -> Environment:
        """The environment that named this platform."""
        ...

    @property
    def mlflow(self) -> MlflowAddresses:
        """Addresses of the tracking store and the registry."""
        ...

    @property
    def tables(self) -> Tables:
        """The tables of this environment."""
        ...

    def registered_model(self, model: str) -> str:
        """The name of a model in the registry."""
        ...

    def experiment(self, model: str) -> str:
        """The name of a model's experiment."""
        ...

    def table(self, layer: str, model: str, name: str) -> str:
        """The name of a table; layers are bronze, silver, quarantine, gold and scores."""
        ...

    def identity(self) -> str:
        """Who is running this, as the platform knows them."""
        ...

    def secret(self, name: str) -> str:
        """The value of a secret.

        Raises:
            BadInputError: there is none of that name.
        """
        ...

    def pii_key(self) -> bytes:
        """The key with which personal data is hashed."""
        ...

    def folder(self, purpose: str) -> Path:
        """A folder for files of one purpose (reports, evidence, ledger, scratch), made when it is missing."""
        ...

    def alone(self, work: str, busy: str) -> AbstractContextManager[None]:
        """Hold what `work` names for this process alone, here and wherever else this environment is worked on.

        Raises:
            BusyError: says `busy`; somebody else is at it.
        """
        ...

    def resolve(self, path: str, beside: Path) -> str:
        """The address of a source's file: URIs and absolute paths as they are, others from the spec's folder."""
        ...
