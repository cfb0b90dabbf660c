"""What answers: a version's model in memory, by whichever engine its folder names.

Columns go in as arrays, predictions and scores come out; nothing here asks a tracking server.
`python -m serving.engine FOLDER` answers the recorded example, which shows that a version works in its environment.
"""

import json
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from deployments import model_file
from deployments.errors import ContenderError, first_line
from serving.onnx_inputs import OnnxInputs
from serving.served_model import ServedColumn, ServedModel, read_served

MODEL, ONNX = "model", "model.onnx"
"""The MLflow model and the converted one in the folder of a version."""

_CHUNK = 4096
"""Rows that ONNX Runtime is given at a time: what stays close to a processor."""


class UnansweredError(ContenderError):
    """The model refuses these rows, or has no answer to them that could be passed on."""


@dataclass(frozen=True)
class Answers:
    """What a model said: `predictions` and `scores` have shape (rows,); there are no scores for regression.

    A score is the probability of the positive class, or with more than two classes of the predicted one.
    """

    predictions: np.ndarray
    scores: np.ndarray | None


class Engine(Protocol):
    """Answers rows."""

    name: str

    def predict(self, columns: Mapping[str, np.ndarray], rows: int) -> Answers:
        """The answers to so many rows; every column of the model is there, with shape (rows,).

        Booleans are bool, integers int64, floats float64 with NaN for missing, texts objects with None, moments
        datetime64[us] with NaT.

        Raises:
            UnansweredError: the model refuses them.
        """
        ...


def load_engine(folder: Path) -> Engine:
    """The engine of a fetched version.

    Raises:
        UntrustedModelError: a file is missing, changed, or holds types nobody vouched for.
    """
    served = read_served(folder)
    if served.engine == "pyfunc":
        return _load_pyfunc(folder, served)
    if served.engine == "sklearn":
        return _load_sklearn(folder, served)
    path = folder / ONNX
    if not path.is_file():
        raise model_file.UntrustedModelError(f"{path}: there is no model file")
    content = path.read_bytes()
    return OnnxEngine(verified(content, served.onnx_digest, path), lambda: _load_sklearn(folder, served))


def verified(content: bytes, digest: str, path: Path) -> bytes:
    """A file's content, if it has the recorded digest.

    Raises:
        UntrustedModelError: it has another.
    """
    import hashlib

    found = hashlib.sha256(content).hexdigest()
    if found != digest:
        raise model_file.UntrustedModelError(
            f"{path}: its digest is {found[:12]}…, and {digest[:12]}… was recorded"
        )
    return content


# scikit-learn -----------------------------------------------------------------------------------------------


def _load_sklearn(folder: Path, served: ServedModel) -> "SklearnEngine":
    model = model_file.load_model(
        folder / MODEL / model_file.SKOPS_FILE,
        digest=served.model_digest,
        allowed_packages=served.allowed_packages,
    )
    return SklearnEngine(model, served.columns, served.target, served.positive)


class SklearnEngine:
    """A scikit-learn model on a frame, as it was trained."""

    name = "sklearn"

    def __init__(
        self, model: Any, columns: Sequence[ServedColumn], target: str | None, positive: object = None
    ) -> None:
        self._model, self._columns = model, tuple(columns)
        self._regression = target == "regression"
        self._classes = np.asarray(model.classes_) if target in {"binary", "multiclass"} else None
        self._positive = None
        if target == "binary":
            assert self._classes is not None
            wanted = str(positive) if self._classes.dtype.kind in "UO" else positive
            places = np.flatnonzero(self._classes == wanted)
            if len(places) != 1 or len(self._classes) != 2:
                raise ContenderError(
                    f"the model's classes {self._classes.tolist()} are not {positive!r} and one other"
                )
            self._positive = int(places[0])
        from sklearn.model_selection import FixedThresholdClassifier

        self._threshold = float(model.threshold) if isinstance(model, FixedThresholdClassifier) else None

    def predict(self, columns: Mapping[str, np.ndarray], rows: int) -> Answers:  # noqa: ARG002
        """See `Engine`."""
        inputs = frame(columns, self._columns)
        with warnings.catch_warnings():
            # An encoder warns of each category that it does not know, which is an ordinary thing to be asked.
            warnings.simplefilter("ignore", UserWarning)
            try:
                return self._answers(inputs)
            except ValueError as error:
                raise UnansweredError(f"the model cannot answer: {first_line(error)}") from None

    def _answers(self, inputs: Any) -> Answers:
        model, classes, positive = self._model, self._classes, self._positive
        if classes is None:
            said = np.asarray(model.predict(inputs))
            return Answers(said.astype(np.float64) if self._regression else said, None)
        probabilities = np.asarray(model.predict_proba(inputs))
        if positive is None:
            return Answers(np.asarray(model.predict(inputs)), np.asarray(probabilities.max(axis=1)))
        scores = np.asarray(probabilities[:, positive])
        if self._threshold is None:
            return Answers(np.asarray(model.predict(inputs)), scores)
        return Answers(classes[np.where(scores >= self._threshold, positive, 1 - positive)], scores)


_DTYPES = {
    "boolean": np.dtype(bool),
    "integer": np.dtype(np.int32),
    "long": np.dtype(np.int64),
    "float": np.dtype(np.float32),
    "double": np.dtype(np.float64),
    "datetime": np.dtype("datetime64[us]"),
}


def frame(columns: Mapping[str, np.ndarray], declared: Sequence[ServedColumn]) -> Any:
    """The pandas frame that a model is given: texts are objects with NaN for missing; shape (rows, columns)."""
    import pandas as pd

    found: dict[str, Any] = {}
    for column in declared:
        values = columns[column.name]
        if column.kind == "string":
            values = np.array([np.nan if text is None else text for text in values], dtype=object)
            found[column.name] = pd.Series(values, dtype=object)
        else:
            found[column.name] = pd.Series(np.asarray(values).astype(_DTYPES[column.kind], copy=False))
    return pd.DataFrame(found)


# ONNX Runtime -----------------------------------------------------------------------------------------------


class OnnxEngine:
    """A converted model in ONNX Runtime, on one thread.

    Rows with a number beyond `LARGEST` or infinite, and missing or unknown values where scikit-learn refused them
    when the model was converted, are not answered by ONNX but by the engine that `spare` loads, once it is needed.
    """

    name = "onnx"

    def __init__(self, content: bytes, spare: Callable[[], Engine]) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        properties = self._session.get_modelmeta().custom_metadata_map
        self.inputs = OnnxInputs.model_validate_json(properties["contender.inputs"])
        self._run = self._session.run
        self._load_spare = spare
        self._spare: Engine | None = None

    def predict(self, columns: Mapping[str, np.ndarray], rows: int) -> Answers:
        """See `Engine`."""
        if rows <= _CHUNK:
            return self._answers(columns, rows)
        parts = []
        for start in range(0, rows, _CHUNK):
            some = {name: values[start : start + _CHUNK] for name, values in columns.items()}
            parts.append(self._answers(some, min(_CHUNK, rows - start)))
        scores = [part.scores for part in parts if part.scores is not None]
        return Answers(
            np.concatenate([part.predictions for part in parts]),
            np.concatenate(scores) if scores else None,
        )

    def _answers(self, columns: Mapping[str, np.ndarray], rows: int) -> Answers:
        fed = self.inputs.feed(columns, rows)
        if fed is None:
            return self._spared().predict(columns, rows)
        (said,) = self._run(["scores"], fed)
        return Answers(*self.inputs.answers(said))

    def probabilities(self, columns: Mapping[str, np.ndarray], rows: int) -> np.ndarray:
        """What the graph says of rows that it may be asked about, as it says it."""
        return np.asarray(self._run(["scores"], self.inputs.feed(columns, rows))[0])

    def _spared(self) -> Engine:
        if self._spare is None:
            self._spare = self._load_spare()
        return self._spare


# Other MLflow flavours --------------------------------------------------------------------------------------


def _load_pyfunc(folder: Path, served: ServedModel) -> "PyfuncEngine":
    import mlflow.pyfunc

    return PyfuncEngine(mlflow.pyfunc.load_model(str(folder / MODEL)), served.columns)


class PyfuncEngine:
    """Any MLflow model, by MLflow's own loader."""

    name = "pyfunc"

    def __init__(self, model: Any, columns: Sequence[ServedColumn]) -> None:
        self._model, self._columns = model, tuple(columns)

    def predict(self, columns: Mapping[str, np.ndarray], rows: int) -> Answers:
        """See `Engine`."""
        inputs = frame(columns, self._columns)
        # What a model of others' making raises is not known beforehand, and a row must not end the process.
        try:
            said = np.asarray(self._model.predict(inputs))
        except Exception as error:  # noqa: BLE001
            raise UnansweredError(f"the model cannot answer: {first_line(error)}") from None
        if said.ndim == 2 and said.shape[1] == 1:
            said = said[:, 0]
        if said.shape != (rows,):
            raise UnansweredError(
                f"the model answered with an array of shape {said.shape} for {rows} rows; one value a row is served"
            )
        return Answers(said, None)


# The recorded example ---------------------------------------------------------------------------------------


def example_columns(
    example: Sequence[Mapping[str, Any]], columns: Sequence[ServedColumn]
) -> dict[str, np.ndarray]:
    """Rows that were recorded as JSON, as the arrays that an engine is given."""
    found: dict[str, np.ndarray] = {}
    for column in columns:
        values = [row.get(column.name) for row in example]
        if column.kind == "string":
            found[column.name] = np.array(values, dtype=object)
        elif column.kind == "datetime":
            texts = ["NaT" if value is None else str(value).removesuffix("Z") for value in values]
            found[column.name] = np.array(texts, dtype="datetime64[us]")
        elif column.kind in {"float", "double"}:
            found[column.name] = np.array(
                [np.nan if value is None else value for value in values], dtype=float
            )
        else:
            kind = bool if column.kind == "boolean" else np.int64
            found[column.name] = np.array(values, dtype=kind)
    return found


def main(arguments: Sequence[str]) -> int:
    """Answer the recorded example of a folder, as one line of JSON."""
    folder = Path(arguments[0])
    try:
        served = read_served(folder)
        said = load_engine(folder).predict(
            example_columns(served.example, served.columns), len(served.example)
        )
    except ContenderError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    scores = None if said.scores is None else said.scores.tolist()
    sys.stdout.write(json.dumps({"predictions": said.predictions.tolist(), "scores": scores}) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
