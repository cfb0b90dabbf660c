"""The champion as a training run meets it: absent for the first time, loaded, or standing and not to be had."""

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from deployments import model_file
from deployments.declared import Declared
from deployments.documents import load_document
from deployments.errors import SpecError
from deployments.spec import LoadedSpec, ModelSpec
from platforms.platform import Platform
from platforms.snapshot import Snapshot
from tasks.split import ROW_ID, row_ids
from tasks.tracking import TAG, Tracking

CHAMPION, CHALLENGER, PREVIOUS = "champion", "challenger", "previous"


class ChampionRef(Declared):
    """A version that serves: its number, and the run, logged model and model file digest behind it."""

    name: str
    version: str
    run_id: str
    model_id: str
    digest: str


@dataclass(frozen=True)
class NoChampionYet:
    """The model has never had a champion: the first version competes with nobody."""


@dataclass(frozen=True)
class ChampionMissing:
    """There was a champion, and it cannot be told which or how it is: nothing may be promoted past it unseen."""

    reason: str


Standing = ChampionRef | NoChampionYet | ChampionMissing


def standing_champion(platform: Platform, model: str) -> Standing:
    """Who serves now, by the registry's alias.

    An absent alias means "never had one" only where no version was ever promoted.
    """
    from mlflow.exceptions import MlflowException

    client, name = Tracking(platform).client, platform.registered_model(model)
    try:
        registered = client.get_registered_model(name)
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return NoChampionYet()
        raise
    number = dict(registered.aliases).get(CHAMPION)
    if number is None:
        if PREVIOUS in registered.aliases or f"{TAG}promoted" in registered.tags:
            return ChampionMissing(f"{name} had a champion before, and the alias is gone")
        return NoChampionYet()
    return version_ref(platform, model, str(number))


def version_ref(platform: Platform, model: str, number: str) -> ChampionRef | ChampionMissing:
    """One registered version, with what is needed to load it safely."""
    from mlflow.exceptions import MlflowException

    name = platform.registered_model(model)
    try:
        found = Tracking(platform).client.get_model_version(name, number)
    except MlflowException as error:
        if error.error_code not in {"RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"}:
            raise
        return ChampionMissing(f"{name} version {number} cannot be read from the registry")
    digest, model_id = (found.tags.get(f"{TAG}{name}") for name in ("model_digest", "model_id"))
    if not digest or not found.run_id or not model_id:
        return ChampionMissing(
            f"{name} version {number} was not registered by Contender: its model digest is missing"
        )
    return ChampionRef(name=name, version=str(number), run_id=found.run_id, model_id=model_id, digest=digest)


def load_version(platform: Platform, ref: ChampionRef) -> Any:
    """The model of a registered version, its file checked against the recorded digest.

    Raises:
        UntrustedModelError: the file is missing, changed, or holds types nobody vouched for.
    """
    return load_logged_model(platform, ref.model_id, ref.digest)


def load_logged_model(platform: Platform, model_id: str, digest: str) -> Any:
    """A logged model by its id, checked against a digest.

    Raises:
        UntrustedModelError: the file is missing, changed, or holds types nobody vouched for.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = download_model(platform, model_id, Path(folder))
        return model_file.load_model(
            path / model_file.SKOPS_FILE,
            digest=digest,
            allowed_packages=platform.environment.allowed_packages,
        )


def download_model(platform: Platform, model_id: str, folder: Path) -> Path:
    """Fetch a logged model's files into `folder`.

    Raises:
        UntrustedModelError: they are not there.
    """
    import mlflow.artifacts
    from mlflow.exceptions import MlflowException

    try:
        location = Tracking(platform).client.get_logged_model(model_id).artifact_location
        return Path(
            mlflow.artifacts.download_artifacts(
                artifact_uri=location, dst_path=str(folder), tracking_uri=platform.mlflow.tracking_uri
            )
        )
    except (MlflowException, OSError) as error:
        raise model_file.UntrustedModelError(f"model {model_id}: its files cannot be had ({error})") from None


TRAINING_ROWS = "training_rows.parquet"
_SPECIMEN = "specimen"


def specimen_id() -> str:
    """The row id of a made-up key: it changes when row ids are no longer made as they were."""
    return str(row_ids(pa.table({"key": [_SPECIMEN]}), ["key"])[0])


def write_training_rows(path: Path, ids: pa.ChunkedArray) -> None:
    """Keep the ids of the rows that a model has seen, and how such ids are made."""
    import pyarrow.parquet as pq

    pq.write_table(pa.table({ROW_ID: ids}).replace_schema_metadata({_SPECIMEN: specimen_id()}), path)


def training_rows(platform: Platform, ref: ChampionRef) -> np.ndarray:
    """The ids of the rows a version was trained on or chosen by; shape (rows,).

    Raises:
        UntrustedModelError: they were not recorded, or as ids of another making, which match none of today's.
    """
    import pyarrow.parquet as pq

    with tempfile.TemporaryDirectory() as folder:
        rows = pq.read_table(_recorded(platform, ref, TRAINING_ROWS, "which rows it was trained on", folder))
    if (rows.schema.metadata or {}).get(_SPECIMEN.encode()) != specimen_id().encode():
        raise model_file.UntrustedModelError(
            f"{ref.name} version {ref.version}: its training rows were told apart in another way than today's"
        )
    return np.asarray(rows.column(ROW_ID))


def trained_spec(platform: Platform, ref: ChampionRef) -> ModelSpec:
    """The spec that a version was trained with.

    Raises:
        UntrustedModelError: it was not recorded, or is none any more.
    """
    with tempfile.TemporaryDirectory() as folder:
        try:
            return load_document(
                _recorded(platform, ref, "model.yaml", "the spec it was trained with", folder), ModelSpec
            )
        except SpecError as error:
            raise model_file.UntrustedModelError(
                f"{ref.name} version {ref.version}: the spec it was trained with is none any more "
                f"({str(error).strip().splitlines()[-1].strip()})"
            ) from None


def trained_query(platform: Platform, ref: ChampionRef) -> LoadedSpec:
    """The spec and the feature query that a version was trained with, named after the version in messages.

    Raises:
        UntrustedModelError: they were not recorded, or are none any more.
    """
    spec = trained_spec(platform, ref)
    sql = None
    if spec.features.sql:
        with tempfile.TemporaryDirectory() as folder:
            recorded = _recorded(platform, ref, "features.sql", "the query of its features", folder)
            sql = recorded.read_text(encoding="utf-8")
    return LoadedSpec(spec=spec, path=Path(f"{ref.name} version {ref.version}") / "model.yaml", sql=sql)


def _recorded(platform: Platform, ref: ChampionRef, file: str, what: str, folder: str) -> Path:
    """A file that a version's run kept, fetched into `folder`."""
    from mlflow.exceptions import MlflowException

    try:
        return Path(Tracking(platform).client.download_artifacts(ref.run_id, file, folder))
    except (MlflowException, OSError):
        raise model_file.UntrustedModelError(
            f"{ref.name} version {ref.version}: {what} was not recorded"
        ) from None


class TrainingSnapshots(Declared):
    """The silver and gold snapshots that a run trained on, by table; what later data is compared with."""

    tables: dict[str, Snapshot]


def reference_snapshots(platform: Platform, standing: Standing) -> dict[str, Snapshot]:
    """The champion's training snapshots by table; empty where there is no champion to ask.

    Raises:
        UntrustedModelError: there is one, and what it was trained on was not recorded: without it, checks
            against it would not run and nobody would know.
    """
    if not isinstance(standing, ChampionRef):
        return {}
    found = Tracking(platform).document(standing.run_id, "snapshots", TrainingSnapshots)
    if found is None:
        raise model_file.UntrustedModelError(
            f"{standing.name} version {standing.version}: the snapshots it was trained on were not recorded"
        )
    return found.tables
