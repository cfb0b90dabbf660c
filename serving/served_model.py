"""A version as it lies ready to be served: what `served.json` in its folder says of it.

A folder of a served version holds `served.json`, the MLflow model in `model/`, and `model.onnx` where ONNX Runtime
answers the same. It is written once by `serving.fetch`, and a scorer needs nothing else.
"""

from pathlib import Path
from typing import Any, Literal

from deployments.declared import Declared

SERVED = "served.json"

ColumnKind = Literal["boolean", "integer", "long", "float", "double", "string", "datetime"]
"""MLflow's names for column types; integer has 32 bits, long 64."""


class ServedColumn(Declared):
    """One input of the model; one that is not required may be null or absent."""

    name: str
    kind: ColumnKind
    required: bool


class ServedModel(Declared):
    """Which version this is, what it takes, what it answers, and how it is run.

    `hashed` and `hidden` are columns of the request that hold personal data: they are logged as keyed digests, or
    not at all. `example` holds rows as JSON records; `expected` what the model said of them when it was trained.
    """

    name: str
    version: str
    model: str
    model_digest: str
    run_id: str
    flavor: Literal["skops", "pyfunc"]
    engine: Literal["onnx", "sklearn", "pyfunc"]
    engine_reason: str
    columns: tuple[ServedColumn, ...]
    target: Literal["binary", "multiclass", "regression"] | None = None
    positive: str | int | bool | None = None
    entity: tuple[str, ...] = ()
    hashed: tuple[str, ...] = ()
    hidden: tuple[str, ...] = ()
    example: tuple[dict[str, Any], ...] = ()
    expected: tuple[float, ...] = ()
    allowed_packages: tuple[str, ...] = ("sklearn",)
    onnx_digest: str = ""
    requirements_digest: str = ""
    python: str = ""
    """The interpreter of the version's own environment; empty where ours will do."""


def read_served(folder: Path) -> ServedModel:
    """What stands in a folder."""
    return ServedModel.model_validate_json((folder / SERVED).read_bytes())


def write_served(folder: Path, served: ServedModel) -> None:
    """Write `served.json`, whole or not at all."""
    staged = folder / (SERVED + ".partial")
    staged.write_text(served.model_dump_json(indent=2), encoding="utf-8")
    staged.replace(folder / SERVED)
