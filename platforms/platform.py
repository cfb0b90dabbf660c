"""What flows and tasks ask of the place they run in, and nothing more."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol, Self

import pyarrow as pa
import pyarrow.dataset as ds

from deployments.environment import Environment
from deployments.online_features import OnlineFeatureSet, PublishedFeatures
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


class Endpoints(Protocol):
    """Served versions and their traffic, in Databricks' shape: the methods of its `mlflow.deployments` client."""

    def create_endpoint(self, name: str, config: Mapping[str, Any]) -> Mapping[str, Any]:
        """Serve versions under a new name."""
        ...

    def update_endpoint_config(self, endpoint: str, config: Mapping[str, Any]) -> Mapping[str, Any]:
        """Serve others, or in other shares."""
        ...

    def get_endpoint(self, endpoint: str) -> Mapping[str, Any]:
        """What an endpoint should be, and whether it is."""
        ...

    def list_endpoints(self) -> Sequence[Mapping[str, Any]]:
        """All of them."""
        ...

    def delete_endpoint(self, endpoint: str) -> None:
        """Serve it no more."""
        ...

    def predict(
        self, deployment_name: str | None = ..., inputs: Any = ..., endpoint: str | None = ...
    ) -> Any:
        """Ask an endpoint."""
        ...


class DataPlane(Protocol):
    """What serves endpoints, where a platform leaves it to us to run it."""

    def up(self) -> Mapping[str, Any]:
        """Start it unless it runs; what it says of itself, and whether it was `started_now`."""
        ...

    def down(self) -> bool:
        """Drain and end it; False where it did not run."""
        ...

    def status(self) -> Mapping[str, Any] | None:
        """What it says of itself; None where it does not run."""
        ...

    def callers(self) -> Sequence[Mapping[str, Any]]:
        """Who may call, one entry a key."""
        ...

    def add_caller(self, name: str, expires: datetime | None = None) -> str:
        """A new key for a caller; nobody can be told it again."""
        ...

    def revoke_caller(self, name: str, key: str | None = None) -> Sequence[Mapping[str, Any]]:
        """End one key of a caller, or all; those that were ended."""
        ...

    def logs(self) -> Path:
        """The folder of its text logs."""
        ...


@dataclass(frozen=True)
class TrafficLease:
    """Until when (with a time zone) traffic stays as it is given, and which served version has it afterwards."""

    until: datetime
    fallback: str


@dataclass(frozen=True)
class NewRequests:
    """What one poll of an endpoint's requests gave.

    `table` has a row for each request, by the time that it came: request_id, time (UTC), entity (the served
    entity's name), version, shadow (a copy whose answer nobody saw), status, milliseconds, rows (how many were
    predicted, 0 where it was refused), scores and predictions (lists, one value a predicted row, or null), requester.
    Scores are the model's, or its predictions where they are numbers and it gives no scores; predictions are text,
    as JSON has them but for quotes (`true`, `1`, `0.5`, `malignant`).

    `more` says that the next poll has more already. `lost` requests were answered and not logged, at most so many;
    `corrupt` says where the log is damaged.
    """

    table: pa.Table
    more: bool
    lost: int
    corrupt: tuple[str, ...]


class Observations(Protocol):
    """The requests of one endpoint as they are logged, each once; to be used in a `with` block."""

    def poll(self) -> NewRequests:
        """What came since the last poll, or as much of it as is given at once.

        Raises:
            ContenderError: the observation ended, or does not answer; another one may be begun.
        """
        ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: Any) -> None: ...


@dataclass(frozen=True)
class Predictions:
    """The prediction log of one endpoint as a table, with everything that was logged until it was asked for.

    `dataset` has one row a predicted row, and one for a request that was refused: request_date, databricks_request_id,
    request_time (UTC), status_code, execution_duration_ms, requester, served_entity_name, model_version, shadow (a
    copy whose answer nobody saw), row (its place in the request), entity (a map of the keys, as text), prediction (as
    text: JSON but for quotes), prediction_number, score, error, and `features`, a struct of the inputs of all versions.
    Rows stand in an order that later ones do not change.

    `new_rows` and `new_requests` were not in it before, `corrupt` says where the log was found to be damaged now,
    `lost` when how many requests were found to have been answered and not logged, and `unanswered` when how many were
    failed by the gateway itself, since nobody was there to answer; both as far back as that is kept.
    """

    dataset: ds.Dataset
    new_rows: int
    new_requests: int
    corrupt: tuple[str, ...]
    lost: tuple[tuple[datetime, int], ...]
    unanswered: tuple[tuple[datetime, int], ...] = ()


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
        """The name of a table; layers are bronze, silver, quarantine, gold, scores and labels."""
        ...

    def endpoint(self, model: str) -> str:
        """The name of a model's endpoint."""
        ...

    @property
    def endpoints(self) -> Endpoints:
        """The endpoints of this environment."""
        ...

    def wait_for_endpoint(self, name: str, timeout_seconds: float = ...) -> Mapping[str, Any]:
        """The endpoint once its newest config is in effect; elsewhere than here this takes minutes.

        Raises:
            BadInputError: the update failed or took too long; says why.
        """
        ...

    def shift_traffic(self, endpoint: str, entity: str, lease: TrafficLease | None = None) -> float:
        """Give all traffic to one version that is served already, by the shortest way; the seconds it took.

        With a lease it has it until that ends, and then the lease's fallback, which is served already, too.

        Raises:
            BadInputError: there is no such endpoint, or nothing is served under that name.
            ContenderError: it was not done in time.
        """
        ...

    @property
    def data_plane(self) -> DataPlane:
        """What serves the endpoints."""
        ...

    def publish_online(
        self, endpoint: str, snapshot: Snapshot, features: OnlineFeatureSet
    ) -> PublishedFeatures:
        """Make a snapshot's features those that an endpoint looks up by key.

        Raises:
            BadInputError: a column is missing or not of its kind, or a key stands twice.
        """
        ...

    def observations(self, endpoint: str, since: datetime, timeout_seconds: float = ...) -> Observations:
        """The requests that an endpoint answers, from a moment (with a time zone) on by the time that they came.

        They are followed as they are logged: a poll takes milliseconds once what came before is read. One that has
        no answer in time raises.
        """
        ...

    def predictions(self, endpoint: str) -> Predictions | None:
        """Every request that an endpoint has answered until now; None where it never logged any.

        Raises:
            ContenderError: the log cannot be read now; nothing of it is lost.
        """
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
