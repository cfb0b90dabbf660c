"""MLflow, explicitly: every call names its run, and nothing rests on an active one."""

import json
import math
import tempfile
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from platforms.platform import Platform
from platforms.snapshot import Snapshot

D = TypeVar("D", bound=BaseModel)

TAG = "contender."
"""What our tags begin with, on runs and on model versions."""


@lru_cache(maxsize=8)
def _client(tracking_uri: str, registry_uri: str) -> Any:
    """Clients are kept: making one opens three stores."""
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=tracking_uri, registry_uri=registry_uri)


class Tracking:
    """One platform's MLflow client, and the documents that runs carry."""

    def __init__(self, platform: Platform) -> None:
        self._platform = platform

    @property
    def client(self) -> Any:
        """An `MlflowClient` for the platform's addresses."""
        addresses = self._platform.mlflow
        return _client(addresses.tracking_uri, addresses.registry_uri)

    def experiment(self, model: str) -> str:
        """The id of a model's experiment, made when it is missing."""
        from mlflow.exceptions import MlflowException

        name = self._platform.experiment(model)
        found = self.client.get_experiment_by_name(name)
        if found is None:
            root = self._platform.mlflow.artifact_root
            try:
                return str(self.client.create_experiment(name, artifact_location=root and f"{root}/{name}"))
            except MlflowException:
                found = self.client.get_experiment_by_name(name)
                if found is None:
                    raise
        return str(found.experiment_id)

    def find_run(self, experiment: str, tags: Mapping[str, str]) -> Any | None:
        """The newest run with all these tags, if there is one."""
        wanted = " and ".join(f"tags.`{name}` = '{value}'" for name, value in tags.items())
        runs = self.client.search_runs(
            [experiment], wanted, max_results=1, order_by=["attributes.start_time DESC"]
        )
        return runs[0] if runs else None

    def create_run(
        self, experiment: str, name: str, tags: Mapping[str, str], parent: str | None = None
    ) -> str:
        """A new run's id."""
        tags = dict(tags) | ({"mlflow.parentRunId": parent} if parent else {})
        return str(self.client.create_run(experiment, tags=tags, run_name=name).info.run_id)

    def log(
        self,
        run: str,
        *,
        params: Mapping[str, Any] | None = None,
        metrics: Mapping[str, float] | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> None:
        """Params, metrics and tags of one run, in one call; metrics that are not finite are left out."""
        from mlflow.entities import Metric, Param, RunTag

        moment = self._moment(run) if metrics else 0
        self.client.log_batch(
            run,
            metrics=[Metric(k, float(v), moment, 0) for k, v in (metrics or {}).items() if math.isfinite(v)],
            params=[Param(k, str(v)[:6000]) for k, v in (params or {}).items()],
            tags=[RunTag(k, str(v)[:5000]) for k, v in (tags or {}).items()],
        )

    def log_series(self, run: str, name: str, values: Sequence[float]) -> None:
        """A metric with one value a step."""
        from mlflow.entities import Metric

        moment = self._moment(run)
        self.client.log_batch(
            run,
            metrics=[Metric(name, float(v), moment, i) for i, v in enumerate(values) if math.isfinite(v)],
        )

    def _moment(self, run: str) -> int:
        """When the run began: a metric logged again by a resumed run is then the same point, not a second one."""
        return int(self.client.get_run(run).info.start_time)

    def log_datasets(self, run: str, snapshots: Mapping[str, Snapshot]) -> None:
        """Snapshots as the run's dataset inputs, by what they were used for."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        self.client.log_inputs(
            run,
            datasets=[
                DatasetInput(
                    Dataset(
                        name=snapshot.table,
                        digest=snapshot.digest[:36],
                        source_type="delta",
                        source=json.dumps({"uri": snapshot.uri, "version": snapshot.version}),
                        profile=json.dumps({"num_rows": snapshot.rows}),
                    ),
                    tags=[InputTag("mlflow.data.context", context)],
                )
                for context, snapshot in snapshots.items()
            ],
        )

    def save_document(self, run: str, name: str, document: BaseModel) -> None:
        """Keep a document as `<name>.json` among the run's artifacts."""
        self.client.log_text(run, document.model_dump_json(indent=1), f"{name}.json")

    def document(self, run: str, name: str, kind: type[D]) -> D | None:
        """A document kept earlier; None where there is none, or where writing it was cut short.

        A store that does not answer is an error: it must not look like a document that was never written.
        """
        file = f"{name}.json"
        if all(item.path != file for item in self.client.list_artifacts(run)):
            return None
        with tempfile.TemporaryDirectory() as folder:
            path = self.client.download_artifacts(run, file, folder)
            try:
                return kind.model_validate_json(Path(path).read_bytes())
            except ValidationError:
                return None

    def finish(self, run: str, status: str = "FINISHED") -> None:
        """Close a run."""
        self.client.set_terminated(run, status)
