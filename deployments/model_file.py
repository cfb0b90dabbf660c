"""Model files: saved the same way every time, and loaded only after their digest and their types were checked."""

import hashlib
import json
import zipfile
from collections.abc import Collection
from pathlib import Path
from typing import Any

from deployments.errors import ContenderError

SKOPS_FILE = "model.skops"

TRUSTED_TYPES = frozenset(
    {
        "deployments.date_parts.DateParts",
        "numpy.dtype",
        "sklearn._loss.link.HalfLogitLink",
        "sklearn._loss.link.IdentityLink",
        "sklearn._loss.link.Interval",
        "sklearn._loss.link.LogLink",
        "sklearn._loss.link.LogitLink",
        "sklearn._loss.link.MultinomialLogit",
        "sklearn._loss.loss.AbsoluteError",
        "sklearn._loss.loss.ExponentialLoss",
        "sklearn._loss.loss.HalfBinomialLoss",
        "sklearn._loss.loss.HalfGammaLoss",
        "sklearn._loss.loss.HalfMultinomialLoss",
        "sklearn._loss.loss.HalfPoissonLoss",
        "sklearn._loss.loss.HalfSquaredError",
        "sklearn._loss.loss.HalfTweedieLoss",
        "sklearn._loss.loss.HalfTweedieLossIdentity",
        "sklearn._loss.loss.HuberLoss",
        "sklearn._loss.loss.PinballLoss",
        "sklearn.calibration._CalibratedClassifier",
        "sklearn.calibration._SigmoidCalibration",
        "sklearn.compose._column_transformer._RemainderColsList",
        "sklearn.ensemble._hist_gradient_boosting.binning._BinMapper",
        "sklearn.ensemble._hist_gradient_boosting.predictor.TreePredictor",
        "sklearn.metrics._dist_metrics.ChebyshevDistance64",
        "sklearn.metrics._dist_metrics.EuclideanDistance64",
        "sklearn.metrics._dist_metrics.ManhattanDistance64",
        "sklearn.metrics._dist_metrics.MinkowskiDistance64",
        "sklearn.neighbors._ball_tree.BallTree",
        "sklearn.neighbors._kd_tree.KDTree",
        "sklearn.neural_network._stochastic_optimizers.AdamOptimizer",
        "sklearn.neural_network._stochastic_optimizers.SGDOptimizer",
        "sklearn.tree._tree.Tree",
    }
)
"""Types that a model file may hold beyond skops' own defaults; none of them runs code of its own on loading."""


class UntrustedModelError(ContenderError):
    """A model file that is not what was recorded, or that holds types nobody vouched for."""


def canonicalise(path: Path) -> None:
    """Rewrite a skops file so that the same model is the same bytes.

    skops names objects by their memory addresses and stamps files with the time; both are replaced, addresses by
    the order in which they first appear. Plain values lose theirs: whether two equal numbers are one object
    differs between processes. The threads that gradient boosting was fitted with are no part of the model.
    """
    with zipfile.ZipFile(path) as archive:
        schema = json.loads(archive.read("schema.json"))
        members = {name: archive.read(name) for name in archive.namelist() if name != "schema.json"}
    renamed: dict[str, str] = {}
    _renumber(schema, {}, renamed)
    staged = path.with_suffix(".rewritten")
    with zipfile.ZipFile(staged, "w", zipfile.ZIP_DEFLATED) as archive:
        content = {"schema.json": json.dumps(schema, indent=1).encode()}
        content |= {fresh: members[name] for name, fresh in renamed.items()}
        for name, part in content.items():
            archive.writestr(zipfile.ZipInfo(name), part, zipfile.ZIP_DEFLATED)
    staged.replace(path)


def _renumber(node: Any, numbers: dict[int, int], files: dict[str, str]) -> None:
    """Give the objects and files of a schema numbers in the order in which they appear, in place."""
    if isinstance(node, list):
        for item in node:
            _renumber(item, numbers, files)
    if not isinstance(node, dict):
        return
    if node.get("__loader__") == "JsonNode":
        node.pop("__id__", None)
        return
    if "__id__" in node:
        node["__id__"] = numbers.setdefault(node["__id__"], len(numbers) + 1)
    if isinstance(node.get("file"), str):
        name = node["file"]
        node["file"] = files.setdefault(name, f"part-{len(files):05d}{Path(name).suffix}")
    if node.get("__class__") == "_BinMapper":
        node["content"]["content"]["n_threads"]["content"] = "1"
    for item in node.values():
        _renumber(item, numbers, files)


def file_digest(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def folder_digests(folder: Path) -> dict[str, str]:
    """SHA-256 of each file in a folder, by its path inside it."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): file_digest(path) for path in files}


def untrusted_types(file: Path | bytes, allowed_packages: Collection[str] = ()) -> list[str]:
    """The types in a skops file that neither skops, nor our list, nor an allowed package vouches for.

    scikit-learn's own internals are vouched for one by one; other allowed packages by their name.
    """
    import skops.io

    content = file if isinstance(file, bytes) else file.read_bytes()
    packages = {package for package in allowed_packages if package != "sklearn"}
    found: list[str] = skops.io.get_untrusted_types(data=content)
    return [name for name in found if name not in TRUSTED_TYPES and name.partition(".")[0] not in packages]


def load_model(path: Path, *, digest: str, allowed_packages: Collection[str] = ()) -> Any:
    """Load a skops file, once it has the recorded digest and holds nothing but trusted types.

    Raises:
        UntrustedModelError: no such file, another digest, or a type nobody vouched for.
    """
    import skops.io

    if not path.is_file():
        raise UntrustedModelError(f"{path}: there is no model file")
    # Read once: what is checked is what is loaded, whatever happens to the file in the meantime.
    content = path.read_bytes()
    found = hashlib.sha256(content).hexdigest()
    if found != digest:
        raise UntrustedModelError(f"{path}: its digest is {found[:12]}…, and {digest[:12]}… was recorded")
    strangers = untrusted_types(content, allowed_packages)
    if strangers:
        raise UntrustedModelError(
            f"{path}: it holds types that are not on the allow-list: {', '.join(strangers)}"
        )
    return skops.io.loads(content, trusted=skops.io.get_untrusted_types(data=content))


def read_json(path: Path) -> Any:
    """A JSON file's content."""
    return json.loads(path.read_text(encoding="utf-8"))
