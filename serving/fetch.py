"""`python -m serving.fetch`: bring one registered version to this machine and make it ready to be served.

The only part of serving that asks the registry. What it writes is a folder that a scorer needs nothing else for; it
appears whole, by one rename, and a version that was fetched before is found without asking anybody. Prints one line
of JSON: the folder, the engine, and why that engine.
"""

import argparse
import fcntl
import json
import math
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_args
from urllib.parse import quote

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from deployments import model_file
from deployments.documents import load_document
from deployments.environment import Serving
from deployments.errors import BadInputError, ContenderError, SpecError, first_line
from deployments.spec import ModelSpec
from serving import virtual_environment
from serving.engine import MODEL, ONNX, example_columns, load_engine, verified
from serving.served_model import SERVED, ColumnKind, ServedColumn, ServedModel, read_served, write_served

TAG = "contender."
SAMPLE = "holdout_sample.parquet"
"""Rows of the holdout that a run keeps, by which a converted model is compared with its original."""

_EXACT = 1e-9
_FRESH_PROCESS_SECONDS = 180


class NotServableError(BadInputError):
    """A version that may or can not be served; the message says why."""


class RegistryError(ContenderError):
    """The registry or its files did not answer."""


class _Trained(BaseModel):
    """What a training run says of its model, as far as serving asks."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    digest: str
    example: tuple[dict[str, Any], ...] = ()
    expected: tuple[float, ...] = ()
    expected_predictions: tuple[Any, ...] = ()


def fetch(
    name: str,
    version: str,
    *,
    tracking_uri: str,
    registry_uri: str,
    folder: Path,
    serving: Serving,
    allowed_packages: Collection[str],
    environments: Path | None = None,
) -> Path:
    """The folder of a version under `folder`, made where it does not stand; the files of one that does are checked.

    `environments` is where virtual environments are kept; beside `folder` unless it is said.

    Raises:
        NotServableError: the version is of a kind that is not served here.
        UntrustedModelError: a file is not what was recorded, or holds types nobody vouched for.
        RegistryError: the version stands nowhere and the registry cannot be asked.
        ContenderError: it answers its recorded example with other numbers, or its environment cannot be built.
    """
    standing = find(name, version, folder)
    if standing is not None:
        check_files(standing)
        served = read_served(standing)
        _require_allowed(served.flavor, serving, f"{name} version {version}")
        if not _has_interpreter(served):
            ours = served.model_copy(update={"python": "", "requirements_digest": ""})
            served = _with_environment(ours, standing, environments or folder.parent / "environments")
            _rehearse(standing, choose_engine(standing, served, serving), None)
        elif not _wanted(served, serving):
            choose_engine(standing, served, serving)
        return standing
    folder.mkdir(parents=True, exist_ok=True)
    with _staging(folder) as staged:
        registered = _download(name, version, tracking_uri, registry_uri, staged)
        served = _describe(name, version, registered, staged, serving, tuple(allowed_packages))
        served = _with_environment(served, staged, environments or folder.parent / "environments")
        served = choose_engine(staged, served, serving)
        _rehearse(staged, served, registered.trained)
        final = folder / f"{_prefix(name, version)}{served.model_digest[:16]}"
        try:
            staged.rename(final)
        except OSError:
            # Somebody else was first, and it is the same version of the same file.
            if not (final / SERVED).is_file():
                raise
    return final


def find(name: str, version: str, folder: Path) -> Path | None:
    """The folder of a version that was fetched before, by name and version alone."""
    prefix = _prefix(name, version)
    for path in sorted(folder.glob("*/" + SERVED)):
        if re.fullmatch(re.escape(prefix) + "[0-9a-f]{16}", path.parent.name):
            return path.parent
    return None


def ready_folder(name: str, version: str, folder: Path, serving: Serving) -> Path | None:
    """The folder of a version that was fetched before, where nothing is left to do to it.

    Raises:
        UntrustedModelError: a file in it was changed.
    """
    standing = find(name, version, folder)
    if standing is None:
        return None
    check_files(standing)
    served = read_served(standing)
    allowed = served.flavor == "skops" or serving.other_flavors
    return standing if allowed and _wanted(served, serving) and _has_interpreter(served) else None


def _prefix(name: str, version: str) -> str:
    return f"{quote(name, safe='')}-v{version}-"


def check_files(folder: Path) -> None:
    """Check that the model's files are what was fetched.

    Raises:
        UntrustedModelError: names the file that is missing or changed.
    """
    served = read_served(folder)
    try:
        found = _digest(folder / MODEL, served.flavor)
    except OSError as error:
        raise model_file.UntrustedModelError(f"{error.filename}: there is no model file") from None
    if found != served.model_digest:
        raise model_file.UntrustedModelError(
            f"{folder / MODEL}: its digest is {found[:12]}…, and {served.model_digest[:12]}… was recorded; "
            "remove the folder to have the version fetched again"
        )
    if served.engine == "onnx":
        path = folder / ONNX
        verified(path.read_bytes() if path.is_file() else b"", served.onnx_digest, path)


def _digest(model: Path, flavor: str) -> str:
    """The digest of a model: of its file, or of all files of a flavour that has more than one."""
    import hashlib

    if flavor == "skops":
        return model_file.file_digest(model / model_file.SKOPS_FILE)
    said = json.dumps(model_file.folder_digests(model), sort_keys=True)
    return hashlib.sha256(said.encode()).hexdigest()


@contextmanager
def _staging(folder: Path) -> Iterator[Path]:
    """A folder to work in, gone unless it was renamed; what killed fetches left there goes too.

    Its owner holds a lock on it, which the system lets go of when the process dies.
    """
    for left in folder.glob(".staged-*"):
        try:
            handle = os.open(left, os.O_RDONLY)
        except FileNotFoundError:
            continue
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pass
        else:
            shutil.rmtree(left, ignore_errors=True)
        finally:
            os.close(handle)
    staged = Path(tempfile.mkdtemp(prefix=".staged-", dir=folder))
    handle = os.open(staged, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    staged.chmod(0o755)
    try:
        yield staged
    finally:
        shutil.rmtree(staged, ignore_errors=True)
        os.close(handle)


# From the registry ------------------------------------------------------------------------------------------


class _Registered(BaseModel):
    """What the registry and the run say of a version; `spec` and `trained` are None where Contender did not make it."""

    model_config = ConfigDict(frozen=True)

    model: str
    run_id: str
    digest: str
    spec: ModelSpec | None = None
    trained: _Trained | None = None


def _download(name: str, version: str, tracking_uri: str, registry_uri: str, staged: Path) -> _Registered:
    import mlflow.artifacts
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    what = f"{name} version {version}"
    try:
        client = MlflowClient(tracking_uri, registry_uri)
        found = client.get_model_version(name, version)
        location = client.get_model_version_download_uri(name, version)
    except MlflowException as error:
        if error.error_code in {"RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"}:
            raise NotServableError(f"the registry has no {what}") from None
        raise RegistryError(
            f"{what} was not fetched before, and the registry at {registry_uri} cannot be asked: {first_line(error)}"
        ) from None
    # Drivers, sockets and file systems raise errors of their own.
    except Exception as error:
        raise RegistryError(
            f"{what} was not fetched before, and the registry at {registry_uri} cannot be asked: {first_line(error)}"
        ) from error
    tags, run_id = dict(found.tags), str(found.run_id or "")
    try:
        downloaded = mlflow.artifacts.download_artifacts(
            artifact_uri=location, dst_path=str(staged / "download"), tracking_uri=tracking_uri
        )
    except (MlflowException, OSError) as error:
        raise model_file.UntrustedModelError(
            f"{what}: its files cannot be had ({first_line(error)})"
        ) from None
    Path(downloaded).rename(staged / MODEL)
    shutil.rmtree(staged / "download", ignore_errors=True)
    digest = str(tags.get(f"{TAG}model_digest", ""))
    if not digest or not run_id:
        return _Registered(model=name, run_id=run_id, digest="")
    run = _RunFiles(client, run_id, staged, what)
    spec, trained = run.spec(), run.trained()
    if trained.digest != digest:
        raise model_file.UntrustedModelError(
            f"{what}: its tag says that its model file is {digest[:12]}…, and its run says {trained.digest[:12]}…"
        )
    run.fetch_sample()
    return _Registered(model=spec.name, run_id=run_id, digest=digest, spec=spec, trained=trained)


class _RunFiles:
    """What the run behind a version kept."""

    def __init__(self, client: Any, run_id: str, staged: Path, what: str) -> None:
        self._client, self._run_id, self._staged, self._what = client, run_id, staged, what

    def spec(self) -> ModelSpec:
        """The spec it was trained with."""
        with self._file("model.yaml") as path:
            try:
                return load_document(path, ModelSpec)
            except SpecError as error:
                said = str(error).strip().splitlines()[-1].strip()
                raise model_file.UntrustedModelError(
                    f"{self._what}: the spec it was trained with is none any more ({said})"
                ) from None

    def trained(self) -> _Trained:
        """What it said of its example."""
        with self._file("trained.json") as path:
            try:
                return _Trained.model_validate_json(path.read_bytes())
            except ValidationError:
                raise model_file.UntrustedModelError(
                    f"{self._what}: what it answered when it was trained cannot be read"
                ) from None

    def fetch_sample(self) -> None:
        """Keep the run's sample of the holdout beside the model, where there is one."""
        if any(item.path == SAMPLE for item in self._client.list_artifacts(self._run_id)):
            with self._file(SAMPLE) as path:
                shutil.copy(path, self._staged / SAMPLE)

    @contextmanager
    def _file(self, file: str) -> Iterator[Path]:
        from mlflow.exceptions import MlflowException

        with tempfile.TemporaryDirectory() as scratch:
            try:
                path = Path(self._client.download_artifacts(self._run_id, file, scratch))
            except (MlflowException, OSError):
                raise model_file.UntrustedModelError(f"{self._what}: its run did not keep {file}") from None
            yield path


# What it is -------------------------------------------------------------------------------------------------


def _describe(
    name: str,
    version: str,
    registered: _Registered,
    staged: Path,
    serving: Serving,
    allowed_packages: tuple[str, ...],
) -> ServedModel:
    what, model = f"{name} version {version}", staged / MODEL
    described = _mlmodel(model, what)
    skops = (model / model_file.SKOPS_FILE).is_file()
    if not registered.digest and not serving.other_flavors:
        raise NotServableError(
            f"{what} was not registered by Contender: its model digest is missing, so nobody can tell whether the "
            "file is what was meant; `serving.other_flavors: true` in the environment serves such versions"
        )
    flavor = "skops" if skops else "pyfunc"
    _require_allowed(flavor, serving, what)
    digest = _digest(model, flavor)
    if registered.digest and digest != registered.digest:
        raise model_file.UntrustedModelError(
            f"{what}: the digest of its model file is {digest[:12]}…, and {registered.digest[:12]}… was recorded"
        )
    spec, trained = registered.spec, registered.trained
    columns = signature_columns(described, what)
    facts: dict[str, Any] = {}
    if spec is not None and trained is not None:
        pii = {
            (column, declared.pii)
            for table in spec.contract.values()
            for column, declared in table.columns.items()
        }
        hidden = sorted(column for column, treatment in pii if treatment == "drop")
        positive = spec.target.positive
        facts = {
            "target": spec.target.kind.value,
            "positive": int(positive) if isinstance(positive, float) and positive.is_integer() else positive,
            "entity": spec.features.entity,
            "hashed": tuple(
                sorted(column for column, treatment in pii if treatment == "hash" and column not in hidden)
            ),
            "hidden": tuple(hidden),
            "example": trained.example,
            "expected": trained.expected,
        }
    return ServedModel(
        name=name,
        version=str(version),
        model=registered.model,
        model_digest=digest,
        run_id=registered.run_id,
        flavor=flavor,
        engine="sklearn" if skops else "pyfunc",
        engine_reason="",
        columns=columns,
        allowed_packages=allowed_packages,
        **facts,
    )


def _require_allowed(flavor: str, serving: Serving, what: str) -> None:
    if flavor == "pyfunc" and not serving.other_flavors:
        raise NotServableError(
            f"{what} is no skops file, and loading any other MLflow flavour runs code that it brings; "
            "`serving.other_flavors: true` in the environment allows that"
        )


def _mlmodel(model: Path, what: str) -> dict[str, Any]:
    try:
        found = yaml.safe_load((model / "MLmodel").read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        found = None
    if not isinstance(found, dict):
        raise NotServableError(f"{what} has no MLmodel file that can be read, so it is no MLflow model")
    return found


def signature_columns(described: dict[str, Any], what: str) -> tuple[ServedColumn, ...]:
    """The inputs that an MLmodel document declares.

    Raises:
        NotServableError: there is no signature, or an input that is no column of plain values.
    """
    signature = described.get("signature") or {}
    try:
        inputs = json.loads(signature.get("inputs") or "[]")
    except (ValueError, TypeError, AttributeError):
        inputs = []
    if not isinstance(inputs, list) or not inputs:
        raise NotServableError(f"{what} has no signature, so requests cannot be checked; log it with one")
    known, columns = set(get_args(ColumnKind)), []
    for place, column in enumerate(inputs, start=1):
        kind, name = column.get("type"), column.get("name")
        if name is None or kind not in known:
            told = "has no name" if name is None else f"{name!r} is of type {kind!r}"
            raise NotServableError(
                f"{what}: input {place} of its signature {told}; served are named columns of type "
                f"{', '.join(sorted(known))}"
            )
        columns.append(ServedColumn(name=name, kind=kind, required=bool(column.get("required", True))))
    return tuple(columns)


# Its environment --------------------------------------------------------------------------------------------


def _with_environment(served: ServedModel, staged: Path, environments: Path) -> ServedModel:
    """The version with the interpreter it needs, built where ours will not do."""
    what, model = f"{served.name} version {served.version}", staged / MODEL
    listed = model / "requirements.txt"
    text = listed.read_text(encoding="utf-8") if listed.is_file() else ""
    # The scorer loads skops files without MLflow.
    left_out = ("mlflow",) if served.flavor == "skops" else ()
    requirements = virtual_environment.read_requirements(text, f"{what}: requirements.txt", left_out)
    python = _trained_python(model)
    differing = virtual_environment.differences(requirements, python)
    if not differing:
        return served
    packages = virtual_environment.contents(requirements, virtual_environment.installed_version)
    try:
        found = virtual_environment.interpreter(environments, packages, python)
    except virtual_environment.EnvironmentNotBuiltError as error:
        raise virtual_environment.EnvironmentNotBuiltError(
            f"{what} needs {'; '.join(differing)}, and an environment with that cannot be built: {error}"
        ) from None
    return served.model_copy(
        update={
            "python": str(found),
            "requirements_digest": virtual_environment.digest_of(packages, python),
            "engine_reason": f"its environment differs from ours: {'; '.join(differing)}",
        }
    )


def _trained_python(model: Path) -> str:
    try:
        said = yaml.safe_load((model / "python_env.yaml").read_text(encoding="utf-8"))
        return str(said["python"])
    except (OSError, UnicodeDecodeError, yaml.YAMLError, KeyError, TypeError):
        return ""


def _has_interpreter(served: ServedModel) -> bool:
    """Whether the interpreter that a version needs is still there."""
    return not served.python or Path(served.python).exists()


# Its engine -------------------------------------------------------------------------------------------------


def _wanted(served: ServedModel, serving: Serving) -> bool:
    """Whether a version's engine is what the environment wants by now."""
    off = served.engine_reason == _SWITCHED_OFF
    return not ((served.engine == "onnx" and not serving.onnx) or (off and serving.onnx))


_SWITCHED_OFF = "ONNX is switched off in this environment"


def choose_engine(folder: Path, served: ServedModel, serving: Serving) -> ServedModel:
    """Decide how a version is run, and write that down as the last thing; ONNX only where it is proven to agree."""
    if served.flavor == "pyfunc":
        chosen = served.model_copy(update={"engine_reason": "it is no skops file, so MLflow loads it"})
    elif served.python:
        chosen = served.model_copy(update={"engine": "sklearn"})
    elif not serving.onnx:
        chosen = served.model_copy(update={"engine": "sklearn", "engine_reason": _SWITCHED_OFF})
    else:
        chosen = _converted(folder, served)
    write_served(folder, chosen)
    return chosen


def _converted(folder: Path, served: ServedModel) -> ServedModel:
    import hashlib

    from serving.onnx_model import NotConvertibleError
    from serving.onnx_proof import prove

    scikit = served.model_copy(update={"engine": "sklearn", "onnx_digest": ""})
    model = model_file.load_model(
        folder / MODEL / model_file.SKOPS_FILE,
        digest=served.model_digest,
        allowed_packages=served.allowed_packages,
    )
    try:
        content, found = prove(model, served, folder / SAMPLE)
    except NotConvertibleError as error:
        return scikit.model_copy(update={"engine_reason": f"it was not converted to ONNX: {error}"})
    if not found.same:
        return scikit.model_copy(update={"engine_reason": f"its ONNX form does not answer the same: {found}"})
    staged = folder / (ONNX + ".partial")
    staged.write_bytes(content)
    staged.replace(folder / ONNX)
    return served.model_copy(
        update={
            "engine": "onnx",
            "engine_reason": f"its ONNX form answers the same: {found}",
            "onnx_digest": hashlib.sha256(content).hexdigest(),
        }
    )


# Whether it answers -----------------------------------------------------------------------------------------


def _rehearse(folder: Path, served: ServedModel, trained: _Trained | None) -> None:
    """Have the version answer its recorded example, in its own environment, with the recorded numbers."""
    what = f"{served.name} version {served.version}"
    predictions, scores = _asked_there(folder, served) if served.python else _asked_here(folder, served)
    if trained is None or not trained.expected:
        return
    said = predictions if served.target == "regression" else scores
    tolerance = _EXACT
    if served.engine == "onnx":
        from serving.onnx_proof import TOLERANCE as tolerance  # noqa: N811
    if said is None or len(said) != len(trained.expected):
        raise ContenderError(f"{what} does not answer its recorded example row by row")
    apart = [abs(float(a) - b) / max(1.0, abs(b)) for a, b in zip(said, trained.expected, strict=True)]
    if not all(math.isfinite(one) and one <= tolerance for one in apart):
        raise ContenderError(
            f"{what} answers its recorded example with other numbers than when it was trained: "
            f"{[float(a) for a in said]} instead of {list(trained.expected)}"
        )
    if served.target != "regression" and [str(a) for a in predictions] != [
        str(b) for b in trained.expected_predictions
    ]:
        raise ContenderError(
            f"{what} answers its recorded example with other predictions than when it was trained: "
            f"{predictions} instead of {list(trained.expected_predictions)}"
        )


def _asked_here(folder: Path, served: ServedModel) -> tuple[list[Any], list[float] | None]:
    engine = load_engine(folder)
    if not served.example:
        return [], None
    said = engine.predict(example_columns(served.example, served.columns), len(served.example))
    return said.predictions.tolist(), None if said.scores is None else said.scores.tolist()


def _asked_there(folder: Path, served: ServedModel) -> tuple[list[Any], list[float] | None]:
    try:
        asked = subprocess.run(
            [served.python, "-P", "-m", "serving.engine", str(folder)],
            capture_output=True,
            text=True,
            check=False,
            timeout=_FRESH_PROCESS_SECONDS,
            env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        )
    except subprocess.TimeoutExpired:
        raise ContenderError(
            f"{served.name} version {served.version} did not answer in its own environment within "
            f"{_FRESH_PROCESS_SECONDS} s"
        ) from None
    try:
        answer = json.loads(asked.stdout.strip().rpartition("\n")[2])
    except ValueError:
        said = asked.stderr.strip().splitlines()
        raise ContenderError(
            f"{served.name} version {served.version} does not work in its own environment: "
            f"{said[-1] if said else asked.returncode}"
        ) from None
    return answer["predictions"], answer["scores"]


# The command ------------------------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> int:
    """Fetch one version; a sentence on standard error and exit code 1, or 2 for bad input, where that fails."""
    parser = argparse.ArgumentParser(
        prog="python -m serving.fetch", description=(__doc__ or "").split("\n")[0]
    )
    for option in ("--name", "--version", "--tracking-uri", "--registry-uri"):
        parser.add_argument(option, required=True)
    parser.add_argument("--folder", required=True, type=Path, help="Where fetched versions are kept.")
    parser.add_argument(
        "--settings", required=True, type=Path, help="The environment's serving section, as JSON."
    )
    parser.add_argument("--allowed-packages", default="sklearn", help="Names, parted by commas.")
    asked = parser.parse_args(arguments)
    # A registry that is gone is to be told within seconds, and MLflow would try for minutes.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    # Read when scikit-learn is imported, which it is later: its threads would only be in the way of the scorers.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    try:
        made = fetch(
            asked.name,
            asked.version,
            tracking_uri=asked.tracking_uri,
            registry_uri=asked.registry_uri,
            folder=asked.folder,
            serving=_settings(asked.settings),
            allowed_packages=[item.strip() for item in asked.allowed_packages.split(",") if item.strip()],
        )
    except ContenderError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    served = read_served(made)
    said = {"folder": str(made), "engine": served.engine, "reason": served.engine_reason}
    sys.stdout.write(json.dumps(said) + "\n")
    return 0


def _settings(path: Path) -> Serving:
    try:
        return Serving.model_validate_json(path.read_bytes())
    except OSError as error:
        raise BadInputError(f"{path}: the settings cannot be read ({error.strerror})") from None
    except ValidationError as error:
        raise BadInputError(f"{path}: these are no serving settings ({first_line(error)})") from None


if __name__ == "__main__":
    sys.exit(main())
