"""Whether a converted model answers as the one it was made from: on rows that were seen, and on rows made to part them.

Made rows take a seen one and put into some of its columns what tends to differ: a missing value, a category nobody
has seen, a threshold of a tree and the numbers next to it, numbers far out, moments at both ends.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from deployments.errors import first_line
from serving.engine import Answers, Engine, OnnxEngine, SklearnEngine, UnansweredError, example_columns
from serving.onnx_inputs import LARGEST
from serving.onnx_model import NotConvertibleError, convert, parts
from serving.served_model import ServedColumn, ServedModel

TOLERANCE = 1e-5
"""How far two scores may lie apart: absolutely for probabilities, relative to numbers beyond 1."""

MADE_ROWS = 1500
_UNSEEN = "\x00 nobody has seen this \x00"
_MOMENTS = ("1677-09-22", "1969-12-31T23:59:59.999999", "2024-02-29T23:30", "2024-12-31T12:00", "9999-12-31")

Columns = dict[str, np.ndarray]


@dataclass(frozen=True)
class Difference:
    """What the comparison found: over how many rows, and how far apart scores and predictions were."""

    rows: int
    furthest: float
    other_predictions: int
    refused: bool = False

    @property
    def same(self) -> bool:
        """Whether the converted model may serve."""
        return (
            self.rows > 0 and self.furthest <= TOLERANCE and not self.other_predictions and not self.refused
        )

    def __str__(self) -> str:
        told = f"over {self.rows:,} rows scores differ by at most {self.furthest:.1e}"
        if self.other_predictions:
            told += f", and {self.other_predictions} predictions are others"
        if self.refused:
            told += ", and it answers rows that scikit-learn refuses"
        return told


def prove(model: Any, served: ServedModel, sample: Path) -> tuple[bytes, Difference]:
    """A model's ONNX form, and how far its answers are from the model's.

    Compared on the recorded example, on the run's sample of the holdout where there is one, and on rows made from both.

    Raises:
        NotConvertibleError: there is no such form, or no row to compare by.
    """
    scikit = SklearnEngine(model, served.columns, served.target, served.positive)
    seen = _seen(served, sample)
    rows = len(next(iter(seen.values())))
    if not rows:
        raise NotConvertibleError("no example was recorded that it could be compared by")
    try:
        certain = refused_missing(scikit, seen, served.columns)
        content = convert(model, served.columns, served.target, served.positive, certain)
        converted = OnnxEngine(content, lambda: scikit)
        found = [differences(converted, scikit, seen, rows)]
        made = made_rows(model, seen, served.columns, certain)
        found.append(differences(converted, scikit, made, MADE_ROWS))
    except NotConvertibleError:
        raise
    except UnansweredError as error:
        raise NotConvertibleError(str(error)) from None
    # A model from a version of scikit-learn that nobody has met yet, or an operator that ONNX Runtime lacks: whatever
    # goes wrong, scikit-learn serves.
    except Exception as error:
        raise NotConvertibleError(f"{type(error).__name__}: {first_line(error)}") from error
    return content, Difference(
        rows=sum(one.rows for one in found),
        furthest=max(one.furthest for one in found),
        other_predictions=sum(one.other_predictions for one in found),
        refused=any(one.refused for one in found),
    )


def _seen(served: ServedModel, sample: Path) -> Columns:
    """The recorded example and the run's sample of the holdout, as arrays."""
    example = example_columns(served.example, served.columns)
    if not sample.is_file():
        return example
    import pyarrow.parquet as pq

    kept = example_columns(pq.read_table(sample).to_pylist(), served.columns)
    return {name: np.concatenate([values, kept[name]]) for name, values in example.items()}


def differences(converted: OnnxEngine, model: Engine, columns: Columns, rows: int) -> Difference:
    """Compare two engines on the same rows, those that only the original would be asked left out.

    A prediction may be another where the score is within the tolerance of the threshold, or of the next class.
    """
    fed = converted.inputs.feed(columns, rows)
    if fed is None:
        proven = [converted.inputs.feed(_row(columns, row), 1) is not None for row in range(rows)]
        columns = {name: values[proven] for name, values in columns.items()}
        rows = int(np.sum(proven))
        if not rows:
            return Difference(0, 0.0, 0)
    theirs = converted.predict(columns, rows)
    try:
        ours = model.predict(columns, rows)
    except UnansweredError:
        return Difference(rows, 0.0, 0, refused=True)
    apart = _apart(ours, theirs)
    other = ours.predictions != theirs.predictions if ours.scores is not None else np.zeros(rows, dtype=bool)
    if other.any():
        other &= ~_may_differ(converted, columns, rows, theirs)
    furthest = float(apart.max()) if np.isfinite(apart).all() else float("inf")
    return Difference(rows, furthest, int(other.sum()))


def _apart(ours: Answers, theirs: Answers) -> np.ndarray:
    if ours.scores is None:
        expected = ours.predictions.astype(float)
        return np.asarray(np.abs(theirs.predictions - expected) / np.maximum(1.0, np.abs(expected)))
    assert theirs.scores is not None
    return np.asarray(np.abs(theirs.scores - ours.scores))


def _may_differ(converted: OnnxEngine, columns: Columns, rows: int, theirs: Answers) -> np.ndarray:
    assert theirs.scores is not None
    if converted.inputs.positive is not None:
        threshold = converted.inputs.threshold
        return np.asarray(np.abs(theirs.scores - (0.5 if threshold is None else threshold)) <= TOLERANCE)
    likeliest = np.sort(converted.probabilities(columns, rows), axis=1)
    return np.asarray(likeliest[:, -1] - likeliest[:, -2] <= TOLERANCE)


def _row(columns: Columns, row: int) -> Columns:
    return {name: values[row : row + 1] for name, values in columns.items()}


# Rows made to part them -------------------------------------------------------------------------------------


def refused_missing(model: Engine, seen: Columns, declared: Sequence[ServedColumn]) -> list[str]:
    """The columns of numbers, moments included, without which the model refuses to answer."""
    found = []
    for column in declared:
        if column.kind not in {"float", "double", "datetime"}:
            continue
        row = _row(seen, 0)
        missing = np.datetime64("NaT", "us") if column.kind == "datetime" else np.nan
        row[column.name] = np.array([missing], dtype=seen[column.name].dtype)
        try:
            model.predict(row, 1)
        except UnansweredError:
            found.append(column.name)
    return found


def made_rows(
    model: Any, seen: Columns, declared: Sequence[ServedColumn], certain: Sequence[str], rows: int = MADE_ROWS
) -> Columns:
    """Rows like those seen, with odd values in some of their columns; always the same for the same model."""
    draw = np.random.default_rng(0)
    first = next(iter(seen.values()))
    taken = draw.integers(0, len(first), rows)
    thresholds, categories = _thresholds(model), _categories(model)
    made = {}
    for column in declared:
        values = seen[column.name][taken].copy()
        odd = _odd(column, seen[column.name], thresholds, categories, column.name in certain)
        changed = np.flatnonzero(draw.random(rows) < 0.35)
        if len(odd):
            values[changed] = odd[draw.integers(0, len(odd), len(changed))]
        made[column.name] = values
    return made


def _odd(
    column: ServedColumn,
    seen: np.ndarray,
    thresholds: Mapping[str, np.ndarray],
    categories: Mapping[str, list[str]],
    certain: bool,
) -> np.ndarray:
    if column.kind == "boolean":
        return np.array([False, True])
    if column.kind == "string":
        return np.array([None, _UNSEEN, "", "(missing)", *categories.get(column.name, ())], dtype=object)
    if column.kind == "datetime":
        moments = np.array([*_MOMENTS, *([] if certain else ["NaT"])], dtype="datetime64[us]")
        return np.concatenate([moments, seen[:50]])
    at = thresholds.get(column.name, np.empty(0))
    near = np.concatenate(
        [at, np.nextafter(at, np.inf), np.nextafter(at, -np.inf), at.astype(np.float32).astype(float)]
    )
    if column.kind in {"integer", "long"}:
        bits = 31 if column.kind == "integer" else 53
        ends = np.array([0, 1, -1, 2**bits - 1, -(2**bits) + 1], dtype=np.int64)
        return np.concatenate([ends, np.floor(near[np.abs(near) < 2**bits]).astype(np.int64)])
    ends = np.array([0.0, -0.0, 1e-30, 1e6, -1e6, 1e12, -1e12, LARGEST, -LARGEST])
    kept = ends if column.kind == "double" else ends.astype(np.float32).astype(float)
    # Thresholds as often as everything else together, and missing values more often than any one number.
    near = near if len(near) < 4000 else near[:: len(near) // 4000 + 1]
    missing = np.full(0 if certain else max(4, len(near) // 4), np.nan)
    return np.concatenate([kept, near, missing])


def _categories(model: Any) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for part in parts(model):
        known = getattr(part, "categories_", None)
        names = getattr(part, "feature_names_in_", None)
        if known is None:
            continue
        chosen = names if names is not None else _columns_of(model, part)
        for name, values in zip(chosen, known, strict=False):
            found.setdefault(str(name), []).extend(value for value in values if isinstance(value, str))
    return found


def _columns_of(model: Any, wanted: Any) -> list[str]:
    """The columns that a part within a ColumnTransformer is given."""
    for part in parts(model):
        for _, transformer, names in getattr(part, "transformers_", ()):
            if not isinstance(transformer, str) and any(one is wanted for one in parts(transformer)):
                return [str(name) for name in names]
    return []


def _thresholds(model: Any) -> dict[str, np.ndarray]:
    """The thresholds of all trees by column, where a column of numbers goes straight, or scaled, into a tree."""
    found: dict[str, list[np.ndarray]] = {}
    for pipeline in parts(model):
        steps = getattr(pipeline, "steps", None)
        if not steps or not hasattr(steps[0][1], "transformers_"):
            continue
        features, splits = _splits(steps[-1][1])
        start = 0
        for name, transformer, columns in steps[0][1].transformers_:
            width = steps[0][1].output_indices_[name]
            if isinstance(transformer, str) or not len(columns):
                continue
            start = width.start
            if any(hasattr(part, "categories_") or hasattr(part, "parts") for part in parts(transformer)):
                continue
            for place, column in enumerate(columns):
                back = _unscaled(transformer, place)
                at = splits[features == start + place]
                found.setdefault(str(column), []).append(at * back[0] + back[1])
    return {
        name: at[np.isfinite(at)] for name, some in found.items() for at in [np.unique(np.concatenate(some))]
    }


def _unscaled(transformer: Any, place: int) -> tuple[float, float]:
    """Factor and offset that lead back from what a scaler made of its column at `place`."""
    factor, offset = 1.0, 0.0
    for part in parts(transformer):
        scale = getattr(part, "scale_", None)
        centre = getattr(part, "mean_", getattr(part, "center_", None))
        if scale is not None and place < len(scale):
            factor = float(scale[place])
        if centre is not None and place < len(centre):
            offset = float(centre[place])
    return factor, offset


def _splits(estimator: Any) -> tuple[np.ndarray, np.ndarray]:
    """Features and thresholds of every inner node of every tree of an estimator."""
    features, splits = [], []
    for stage in getattr(estimator, "_predictors", ()):
        for predictor in stage:
            inner = predictor.nodes[predictor.nodes["is_leaf"] == 0]
            features.append(inner["feature_idx"].astype(int))
            splits.append(inner["num_threshold"].astype(float))
    members = getattr(estimator, "estimators_", [estimator])
    for one in np.ravel(np.asarray(members, dtype=object)):
        tree = getattr(one, "tree_", None)
        if tree is not None:
            inner = tree.children_left >= 0
            features.append(np.asarray(tree.feature)[inner])
            splits.append(np.asarray(tree.threshold, dtype=float)[inner])
    if not features:
        return np.empty(0, dtype=int), np.empty(0)
    return np.concatenate(features), np.concatenate(splits)
