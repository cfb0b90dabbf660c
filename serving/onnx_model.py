"""From a fitted scikit-learn model to an ONNX graph that computes as scikit-learn does: in double precision.

Trees, linear models, networks and calibration are written out here, since ONNX's older tree operators, which general
converters use, compare and add in single precision and so go the other way at some thresholds. Other estimators
are left to skl2onnx. Encoders become tables of what the fitted encoder says of each of its categories.
"""

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from deployments.errors import ContenderError
from serving.onnx_inputs import DATE_PARTS, CategoryCodes, DatePart, OnnxInputs
from serving.served_model import ServedColumn

INPUTS = "contender.inputs"
"""The key of the layout among the ONNX file's properties."""

_OPSET, _TREE_OPSET, _IR = 17, 5, 10
_UNSEEN = "\x00 no such category \x00"
_LARGEST_TABLE = 20_000_000


class NotConvertibleError(ContenderError):
    """A model that has no ONNX form here; the message is a clause that says why."""


def convert(
    model: Any,
    columns: Sequence[ServedColumn],
    target: str | None,
    positive: object,
    certain: Collection[str] = (),
) -> bytes:
    """The ONNX file of a fitted model; rows without a value in a `certain` column will not be given to it.

    Its outputs are `scores`: the probability of the positive class, shape (rows,), where one is declared, else the
    probability of each class, shape (rows, classes), or the predicted number, shape (rows,).

    Raises:
        NotConvertibleError: says which part of the model has no ONNX form.
    """
    import onnx
    from onnx import TensorProto, helper

    builder = _Model(_Columns.of(model, columns))
    inner, threshold = model, None
    if _name(model) == "FixedThresholdClassifier":
        inner, threshold = model.estimator_, float(model.threshold)
    classes = getattr(model, "classes_", None)
    said = builder.answer(inner)
    place = None
    if classes is None:
        if said.value is None:
            raise NotConvertibleError(f"{_name(model)} predicts no number")
        scores = said.value
    else:
        if said.probabilities is None:
            raise NotConvertibleError(f"{_name(model)} gives no probabilities")
        place = _place(positive, classes) if target == "binary" else None
        if threshold is not None and place is None:
            raise NotConvertibleError("its positive class is not declared")
        if place is None:
            scores = said.probabilities
        elif said.positive is None:
            scores = builder.graph.add("Gather", said.probabilities, np.array([place]), axis=1)
        else:
            scores = said.positive if place else builder.graph.add("Sub", np.array(1.0), said.positive)
    graph = builder.graph
    if classes is None or place is not None:
        scores = graph.add("Reshape", scores, np.array([-1], dtype=np.int64))
    graph.add("Identity", scores, named="scores")
    numbers, codes = builder.columns.width, len(builder.columns.categories)
    fed = [helper.make_tensor_value_info("numbers", TensorProto.DOUBLE, [None, numbers])] if numbers else []
    fed += [helper.make_tensor_value_info("codes", TensorProto.INT64, [None, codes])] if codes else []
    shape = [None] if classes is None or place is not None else [None, len(classes)]
    made = helper.make_model(
        helper.make_graph(
            graph.nodes,
            "contender",
            fed,
            [helper.make_tensor_value_info("scores", TensorProto.DOUBLE, shape)],
            list(graph.constants.values()),
        ),
        opset_imports=[helper.make_opsetid(domain, number) for domain, number in graph.opsets.items()],
        ir_version=_IR,
        producer_name="contender",
    )
    labels = None if classes is None else np.asarray(classes).tolist()
    layout = builder.columns.layout(labels, place, threshold, certain)
    helper.set_model_props(made, {INPUTS: layout.model_dump_json()})
    onnx.checker.check_model(made)
    return bytes(made.SerializeToString())


def _place(positive: object, classes: np.ndarray) -> int | None:
    if positive is None:
        return None
    found = np.flatnonzero(classes == (str(positive) if classes.dtype.kind in "UO" else positive))
    return int(found[0]) if len(found) == 1 else None


def _name(part: Any) -> str:
    """The class of one of scikit-learn's own parts, or of another with its module."""
    kind = type(part)
    ours = kind.__module__.startswith(("sklearn.", "deployments."))
    return kind.__name__ if ours else f"{kind.__module__}.{kind.__qualname__}"


# Parts of a model -------------------------------------------------------------------------------------------


def parts(model: Any) -> Iterable[Any]:
    """A model and everything fitted inside it that it passes its rows to."""
    yield model
    kind = _name(model)
    inside: list[Any] = []
    if kind == "FixedThresholdClassifier":
        inside = [model.estimator_]
    elif kind == "CalibratedClassifierCV":
        inside = [one.estimator for one in model.calibrated_classifiers_]
    elif kind == "FrozenEstimator":
        inside = [model.estimator]
    elif kind == "Pipeline":
        inside = [step for _, step in model.steps if step not in {None, "passthrough"}]
    elif kind == "ColumnTransformer":
        inside = [one for _, one, _ in model.transformers_ if not isinstance(one, str)]
    for part in inside:
        yield from parts(part)


@dataclass(frozen=True)
class _Columns:
    """How the request's columns lie in the two matrices."""

    numbers: tuple[str, ...]
    dates: tuple[DatePart, ...]
    categories: dict[str, dict[str, int]]
    refused: dict[str, set[str]] = field(default_factory=dict)

    @property
    def width(self) -> int:
        return len(self.numbers) + len(self.dates)

    @classmethod
    def of(cls, model: Any, columns: Sequence[ServedColumn]) -> "_Columns":
        """Every category that any encoder of the model knows gets a code of its own."""
        kinds = {column.name: column.kind for column in columns}
        categories: dict[str, dict[str, int]] = {name: {} for name, kind in kinds.items() if kind == "string"}
        dates: dict[tuple[str, str], None] = {}
        for part in parts(model):
            if _name(part) != "ColumnTransformer":
                continue
            for _, transformer, chosen in part.transformers_:
                if isinstance(transformer, str) and transformer == "drop":
                    continue
                names = _names_of(part, chosen)
                for inner in parts(transformer):
                    if _name(inner) == "DateParts":
                        dates |= {(name, item): None for name in names for item in inner.parts}
                    known = getattr(inner, "categories_", None)
                    if known is None:
                        continue
                    for name, values in zip(names, known, strict=True):
                        if name not in categories:
                            raise NotConvertibleError(f"{_name(inner)} encodes {name!r}, which is no text")
                        codes = categories[name]
                        for value in values:
                            if isinstance(value, str):
                                codes.setdefault(value, len(codes))
        return cls(
            numbers=tuple(name for name, kind in kinds.items() if kind not in {"string", "datetime"}),
            dates=tuple(DatePart(column=name, part=part) for name, part in dates),
            categories={name: codes for name, codes in categories.items() if codes},
        )

    def place(self, name: str) -> int:
        """Where a column of numbers lies in the matrix."""
        if name not in self.numbers:
            raise NotConvertibleError(f"{name!r} is used as a number and is none")
        return self.numbers.index(name)

    def layout(
        self,
        classes: list[Any] | None,
        positive: int | None,
        threshold: float | None,
        certain: Collection[str],
    ) -> OnnxInputs:
        """What travels in the file."""
        names = [*self.numbers, *(part.column for part in self.dates)]
        refused = self.refused
        return OnnxInputs(
            numbers=self.numbers,
            dates=self.dates,
            certain=tuple(place for place, name in enumerate(names) if name in certain),
            categories=tuple(
                CategoryCodes(
                    column=name,
                    values=tuple(codes),
                    missing=None if "missing" in refused.get(name, ()) else len(codes),
                    unknown=None if "unknown" in refused.get(name, ()) else len(codes) + 1,
                )
                for name, codes in self.categories.items()
            ),
            classes=None if classes is None else tuple(classes),
            positive=positive,
            threshold=threshold,
        )


def _names_of(transformer: Any, columns: Any) -> list[str]:
    known = getattr(transformer, "feature_names_in_", None)
    if isinstance(columns, str):
        return [columns]
    chosen = np.asarray(columns)
    if chosen.dtype.kind in "UO":
        return [str(name) for name in columns]
    if known is None:
        raise NotConvertibleError("its columns have no names")
    return [str(name) for name in np.asarray(known)[columns]]


# The graph --------------------------------------------------------------------------------------------------


class _Graph:
    """Nodes and constants; results are known by their names."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.constants: dict[str, Any] = {}
        self.opsets = {"": _OPSET}

    def add(
        self, operator: str, *given: str | np.ndarray, named: str = "", domain: str = "", **attributes: Any
    ) -> str:
        """One node with one result; arrays become constants."""
        from onnx import helper

        result = named or f"r{len(self.nodes)}"
        inputs = [one if isinstance(one, str) else self.constant(one) for one in given]
        self.nodes.append(helper.make_node(operator, inputs, [result], domain=domain, **attributes))
        return result

    def constant(self, value: np.ndarray) -> str:
        """The name of a constant."""
        from onnx import numpy_helper

        array = np.array(value, order="C")
        name = f"c{len(self.constants)}"
        self.constants[name] = numpy_helper.from_array(array, name)
        return name

    def concat(self, results: Sequence[str]) -> str:
        """Columns beside each other."""
        return results[0] if len(results) == 1 else self.add("Concat", *results, axis=1)

    def split(self, rows: str, columns: int) -> list[str]:
        """The columns one by one; shape (rows, 1) each."""
        from onnx import helper

        results = [f"r{len(self.nodes)}_{place}" for place in range(columns)]
        sizes = self.constant(np.ones(columns, dtype=np.int64))
        self.nodes.append(helper.make_node("Split", [rows, sizes], results, axis=1))
        return results

    def repeat(self, values: np.ndarray, rows: str) -> str:
        """The same values for each of the rows."""
        shape = self.add("Concat", self.add("Shape", rows, start=0, end=1), np.array([len(values)]), axis=0)
        return self.add("Expand", values[np.newaxis], shape)

    def single(self, rows: str) -> str:
        """The rows rounded to single precision, as scikit-learn's trees see them, in doubles again."""
        from onnx import TensorProto

        return self.add("Cast", self.add("Cast", rows, to=TensorProto.FLOAT), to=TensorProto.DOUBLE)

    def logistic(self, rows: str) -> str:
        """1 / (1 + exp(-x)), exact in its tails: ONNX Runtime's Sigmoid is 0 below -37.

        What is divided by a sum of such values afterwards needs them, however small they are.
        """
        one = np.array(1.0)
        small = self.add("Exp", self.add("Neg", self.add("Abs", rows)))
        above = self.add("Where", self.add("GreaterOrEqual", rows, np.array(0.0)), one, small)
        return self.add("Div", above, self.add("Add", one, small))

    def inline(self, model: Any, rows: str, output: str) -> str:
        """Another model's nodes, its only input being `rows`; the name of its output here."""
        from onnx import numpy_helper

        graph, prefix = model.graph, f"m{len(self.nodes)}_"
        for item in model.opset_import:
            self.opsets[item.domain] = item.version
        renamed = {graph.input[0].name: rows, "": ""}
        for constant in graph.initializer:
            renamed[constant.name] = self.constant(numpy_helper.to_array(constant))
        for node in graph.node:
            for result in node.output:
                renamed[result] = prefix + result
        for node in graph.node:
            copied = type(node)()
            copied.CopyFrom(node)
            copied.name = ""
            copied.input[:] = [renamed[name] for name in node.input]
            copied.output[:] = [renamed[name] for name in node.output]
            self.nodes.append(copied)
        return renamed[output]


@dataclass(frozen=True)
class _Answer:
    """What an estimator says: a number (rows, 1), probabilities (rows, classes), or what calibration is given.

    `positive` is the probability of the second of two classes, shape (rows, 1), where it is known by itself;
    `decision` has shape (rows, 1) for two classes and (rows, classes) for more.
    """

    value: str | None = None
    probabilities: str | None = None
    positive: str | None = None
    decision: str | None = None


@dataclass(frozen=True)
class _Tree:
    """One decision tree as arrays of nodes, in doubles; `left` is -1 at a leaf, whose `value` counts for `target`."""

    target: int
    feature: np.ndarray
    threshold: np.ndarray
    left: np.ndarray
    right: np.ndarray
    missing_left: np.ndarray
    value: np.ndarray


class _Model:
    """Writes one model's graph."""

    def __init__(self, columns: _Columns) -> None:
        self.graph = _Graph()
        self.columns = columns

    # Preprocessing

    def answer(self, model: Any) -> _Answer:
        """The model on the request's columns."""
        kind = _name(model)
        if kind == "CalibratedClassifierCV":
            return self._calibrated(model)
        if kind == "FrozenEstimator":
            return self.answer(model.estimator)
        if kind != "Pipeline":
            return self._estimator(model, self._plain(model))
        steps = [step for _, step in model.steps if step is not None and step != "passthrough"]
        before, last = steps[:-1], steps[-1]
        if before and _name(before[0]) == "ColumnTransformer":
            rows = self.graph.concat(self._transformed(before[0]))
            before = before[1:]
        else:
            rows = self._plain(model)
        return self._estimator(last, self._numeric(before, rows))

    def _plain(self, model: Any) -> str:
        """All columns as they come, where every one of them is a number."""
        names = getattr(model, "feature_names_in_", None)
        if self.columns.categories or self.columns.dates or names is None:
            raise NotConvertibleError(
                f"{_name(model)} is not a pipeline that begins with a ColumnTransformer"
            )
        return self._picked([str(name) for name in names])

    def _picked(self, names: Sequence[str]) -> str:
        return self._gathered([self.columns.place(name) for name in names])

    def _gathered(self, places: Sequence[int]) -> str:
        if list(places) == list(range(self.columns.width)):
            return "numbers"
        return self.graph.add("Gather", "numbers", np.array(places, dtype=np.int64), axis=1)

    def _transformed(self, transformer: Any) -> list[str]:
        found = []
        if getattr(transformer, "transformer_weights", None):
            raise NotConvertibleError("its ColumnTransformer weighs its parts")
        for _, part, chosen in transformer.transformers_:
            names = [] if isinstance(part, str) and part == "drop" else _names_of(transformer, chosen)
            if not names:
                continue
            steps = _steps(part)
            if any(hasattr(step, "categories_") for step in steps):
                found += self._encoded(part, names)
            elif steps and _name(steps[0]) == "DateParts":
                first = len(self.columns.numbers)
                places = [
                    first + self.columns.dates.index(DatePart(column=name, part=item))
                    for name in names
                    for item in steps[0].parts
                ]
                unknown = [item for item in steps[0].parts if item not in DATE_PARTS]
                if unknown:
                    raise NotConvertibleError(f"DateParts takes {unknown[0]!r} from a moment")
                found.append(self._numeric(steps[1:], self._gathered(places)))
            else:
                found.append(self._numeric(steps, self._picked(names)))
        if not found:
            raise NotConvertibleError("its ColumnTransformer passes nothing on")
        return found

    def _numeric(self, steps: Sequence[Any], rows: str) -> str:
        for step in steps:
            write = _NUMERIC.get(_name(step))
            if write is None:
                raise NotConvertibleError(f"there is no ONNX form of {_name(step)} here")
            rows = write(self.graph, step, rows)
        return rows

    def _encoded(self, transformer: Any, names: Sequence[str]) -> list[str]:
        """Each text column's code looked up in the table of what the fitted encoder makes of it."""
        tables = _tables(
            transformer, {name: self.columns.categories[name] for name in names}, self.columns.refused
        )
        known = list(self.columns.categories)
        places = [known.index(name) for name in names]
        codes = (
            "codes"
            if places == list(range(len(known)))
            else self.graph.add("Gather", "codes", np.array(places, dtype=np.int64), axis=1)
        )
        widths = {table.shape[1] for table in tables}
        if len(widths) == 1:
            # One look-up for all columns: their tables lie below each other.
            (width,) = widths
            starts = np.cumsum([0, *(len(table) for table in tables[:-1])])
            found = self.graph.add(
                "Gather", np.concatenate(tables), self.graph.add("Add", codes, starts[np.newaxis]), axis=0
            )
            shape = np.array([-1, width * len(tables)], dtype=np.int64)
            return [self.graph.add("Reshape", found, shape)]
        parted = self.graph.split(codes, len(tables))
        return [
            self.graph.add(
                "Reshape", self.graph.add("Gather", table, code, axis=0), np.array([-1, table.shape[1]])
            )
            for table, code in zip(tables, parted, strict=True)
            if table.shape[1]
        ]

    # Estimators

    def _estimator(self, model: Any, rows: str) -> _Answer:
        kind = _name(model)
        if kind == "FrozenEstimator":
            return self._estimator(model.estimator, rows)
        if kind == "CalibratedClassifierCV":
            raise NotConvertibleError("calibration inside a pipeline has no ONNX form here")
        write = _ESTIMATORS.get(kind)
        return _general(self.graph, model, rows) if write is None else write(self.graph, model, rows)

    def _calibrated(self, model: Any) -> _Answer:
        """The mean of what the calibrated folds say."""
        graph, folds = self.graph, model.calibrated_classifiers_
        classes = len(model.classes_)
        total = None
        for fold in folds:
            if fold.method not in {"sigmoid", "isotonic"}:
                raise NotConvertibleError(f"calibration by {fold.method} has no ONNX form here")
            if list(fold.estimator.classes_) != list(model.classes_):
                raise NotConvertibleError("a fold of its calibration lacks a class")
            said = self.answer(fold.estimator)
            if said.decision is None and hasattr(fold.estimator, "decision_function"):
                raise NotConvertibleError("what its calibration is given has no ONNX form here")
            given = said.decision or said.probabilities
            if given is None:
                raise NotConvertibleError(f"{_name(fold.estimator)} gives no probabilities")
            if said.decision is None and classes == 2:
                given = graph.add("Gather", given, np.array([1]), axis=1)
            found = graph.concat(
                [
                    self._calibrator(calibrator, self._column(given, place, len(fold.calibrators)))
                    for place, calibrator in enumerate(fold.calibrators)
                ]
            )
            if classes > 2:
                whole = graph.add("ReduceSum", found, np.array([1]), keepdims=1)
                none = graph.add("Equal", whole, np.array(0.0))
                shares = graph.add("Div", found, graph.add("Where", none, np.array(1.0), whole))
                found = graph.add("Where", none, np.array(1 / classes), shares)
            total = found if total is None else graph.add("Add", total, found)
        assert total is not None
        mean = graph.add("Div", total, np.array(float(len(folds))))
        return _of_two(graph, mean) if classes == 2 else _Answer(probabilities=mean)

    def _column(self, rows: str, place: int, width: int) -> str:
        return rows if width == 1 else self.graph.add("Gather", rows, np.array([place]), axis=1)

    def _calibrator(self, calibrator: Any, rows: str) -> str:
        graph, kind = self.graph, _name(calibrator)
        if kind == "_SigmoidCalibration":
            scaled = graph.add("Mul", rows, np.array(-float(calibrator.a_)))
            return graph.logistic(graph.add("Sub", scaled, np.array(float(calibrator.b_))))
        if kind == "IsotonicRegression" and calibrator.out_of_bounds == "clip":
            x, y = (
                np.asarray(one, dtype=float) for one in (calibrator.X_thresholds_, calibrator.y_thresholds_)
            )
            if len(x) < 2:
                return graph.repeat(y[:1], rows)
            # A sum of ramps, one for each segment between two knots.
            lengths = np.diff(x)
            climbed = graph.add("Max", graph.add("Sub", rows, x[np.newaxis, :-1]), np.array(0.0))
            climbed = graph.add("Min", climbed, lengths[np.newaxis])
            slopes = np.diff(y) / lengths
            return graph.add("Add", graph.add("MatMul", climbed, slopes[:, np.newaxis]), np.array(y[0]))
        raise NotConvertibleError(f"calibration by {kind} has no ONNX form here")


def _steps(part: Any) -> list[Any]:
    """The steps of one part of a ColumnTransformer, those that do nothing left out."""
    if isinstance(part, str):
        return []
    inside = [step for _, step in part.steps] if _name(part) == "Pipeline" else [part]
    return [
        step
        for step in inside
        if step is not None
        and not (isinstance(step, str) and step == "passthrough")
        and not (_name(step) == "FunctionTransformer" and step.func is None)
    ]


def _of_two(graph: _Graph, positive: str, decision: str | None = None) -> _Answer:
    """The answer of a model of two classes, from the probability of the second; shape (rows, 1)."""
    both = graph.concat([graph.add("Sub", np.array(1.0), positive), positive])
    return _Answer(probabilities=both, positive=positive, decision=decision)


# Steps of numbers


def _impute(graph: _Graph, imputer: Any, rows: str) -> str:
    fill = np.asarray(imputer.statistics_, dtype=float)
    if not (isinstance(imputer.missing_values, float) and np.isnan(imputer.missing_values)):
        raise NotConvertibleError(f"SimpleImputer takes {imputer.missing_values!r} for missing")
    if np.isnan(fill).any():
        raise NotConvertibleError("SimpleImputer leaves out columns that had no value")
    missing = graph.add("IsNaN", rows)
    filled = graph.add("Where", missing, fill[np.newaxis], rows)
    flagged = imputer.indicator_.features_ if imputer.add_indicator else ()
    if not len(flagged):
        return filled
    from onnx import TensorProto

    flags = graph.add("Gather", missing, np.asarray(flagged, dtype=np.int64), axis=1)
    return graph.concat([filled, graph.add("Cast", flags, to=TensorProto.DOUBLE)])


def _scale(graph: _Graph, scaler: Any, rows: str) -> str:
    centre = scaler.mean_ if _name(scaler) == "StandardScaler" and scaler.with_mean else None
    if _name(scaler) == "RobustScaler" and scaler.with_centering:
        centre = scaler.center_
    if centre is not None:
        rows = graph.add("Sub", rows, np.asarray(centre, dtype=float)[np.newaxis])
    if scaler.scale_ is not None:
        rows = graph.add("Div", rows, np.asarray(scaler.scale_, dtype=float)[np.newaxis])
    return rows


_NUMERIC: dict[str, Callable[[_Graph, Any, str], str]] = {
    "SimpleImputer": _impute,
    "StandardScaler": _scale,
    "RobustScaler": _scale,
}


# Steps of texts


def _tables(
    transformer: Any, categories: dict[str, dict[str, int]], refused: dict[str, set[str]]
) -> list[np.ndarray]:
    """What a fitted encoder makes of each code of each column; shape (values + missing + other, outputs) each.

    Each output depends on one column: on the one that changes it when all others stay as they are.
    """
    names = list(categories)
    first = {name: next(iter(codes)) for name, codes in categories.items()}
    base = _ask(transformer, [first])[0]
    entries = sum(len(codes) + 2 for codes in categories.values()) * len(base)
    if entries > _LARGEST_TABLE:
        raise NotConvertibleError(f"its encoder has a table of {entries:,} numbers")
    owner = np.full(len(base), -1)
    answers = []
    for place, name in enumerate(names):
        values = list(categories[name])
        rows = _ask(transformer, [first | {name: value} for value in values])
        for what, value in (("missing", np.nan), ("unknown", _UNSEEN)):
            try:
                found = _ask(transformer, [first | {name: value}])
            except ValueError:
                refused.setdefault(name, set()).add(what)
                found = np.zeros((1, len(base)))
            rows = np.concatenate([rows, found])
        answered = np.ones(len(rows), dtype=bool)
        answered[len(values) :] = [what not in refused.get(name, ()) for what in ("missing", "unknown")]
        changed = (rows[answered] != base).any(axis=0)
        if (changed & (owner >= 0)).any():
            raise NotConvertibleError("its encoder mixes columns")
        owner[changed] = place
        answers.append(rows)
    # Outputs that never change count to the column before them, so that columns keep their order.
    ordered = np.maximum.accumulate(np.maximum(owner, 0))
    if (owner[owner >= 0] != ordered[owner >= 0]).any():
        raise NotConvertibleError("its encoder gives columns another order")
    return [rows[:, ordered == place] for place, rows in enumerate(answers)]


def _ask(transformer: Any, rows: Sequence[dict[str, Any]]) -> np.ndarray:
    import warnings

    import pandas as pd

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        found = transformer.transform(pd.DataFrame(rows, dtype=object))
    return np.asarray(found, dtype=float)


# Estimators


def _linear(graph: _Graph, model: Any, rows: str) -> str:
    weights = np.atleast_2d(np.asarray(model.coef_, dtype=float)).T
    return graph.add("Add", graph.add("MatMul", rows, weights), np.atleast_1d(model.intercept_).astype(float))


def _linear_regression(graph: _Graph, model: Any, rows: str) -> _Answer:
    if np.asarray(model.coef_).ndim > 1 and len(model.coef_) > 1:
        raise NotConvertibleError(f"{_name(model)} predicts several numbers")
    return _Answer(value=_linear(graph, model, rows))


def _linear_classifier(graph: _Graph, model: Any, rows: str) -> _Answer:
    return _Answer(decision=_linear(graph, model, rows))


def _logistic_regression(graph: _Graph, model: Any, rows: str) -> _Answer:
    decision = _linear(graph, model, rows)
    if len(model.classes_) == 2:
        return _of_two(graph, graph.add("Sigmoid", decision), decision)
    return _Answer(decision=decision, probabilities=graph.add("Softmax", decision, axis=1))


def _trees(graph: _Graph, rows: str, trees: Sequence[_Tree], constant: np.ndarray) -> str:
    """The sum of trees for each target, plus a constant; shape (rows, targets)."""
    from onnx import helper

    constant = constant.astype(float).copy()
    standing = []
    for tree in trees:
        if tree.left[0] < 0:
            constant[tree.target] += tree.value[0]
        else:
            standing.append(tree)
    if not standing:
        return graph.repeat(constant, rows)
    nodes: dict[str, list[np.ndarray]] = {name: [] for name in _NODES}
    leaf_targets, leaf_weights, roots = [], [], []
    first_node = first_leaf = 0
    for tree in standing:
        leaf = tree.left < 0
        inner = np.flatnonzero(~leaf)
        number = np.where(leaf, first_leaf + np.cumsum(leaf) - 1, first_node + np.cumsum(~leaf) - 1)
        roots.append(first_node)
        for side, children in (("true", tree.left[inner]), ("false", tree.right[inner])):
            nodes[f"nodes_{side}nodeids"].append(number[children])
            nodes[f"nodes_{side}leafs"].append(leaf[children].astype(np.int64))
        nodes["nodes_featureids"].append(tree.feature[inner])
        nodes["nodes_splits"].append(tree.threshold[inner])
        nodes["nodes_missing_value_tracks_true"].append(tree.missing_left[inner])
        leaf_targets.append(np.full(leaf.sum(), tree.target))
        leaf_weights.append(tree.value[leaf])
        first_node, first_leaf = first_node + len(inner), first_leaf + int(leaf.sum())
    joined = {name: np.concatenate(found) for name, found in nodes.items()}
    splits = joined.pop("nodes_splits").astype(float)
    weights = np.concatenate(leaf_weights).astype(float)
    modes = np.zeros(first_node, dtype=np.uint8)
    graph.opsets["ai.onnx.ml"] = _TREE_OPSET
    summed = graph.add(
        "TreeEnsemble",
        rows,
        domain="ai.onnx.ml",
        n_targets=len(constant),
        aggregate_function=1,
        post_transform=0,
        tree_roots=[int(root) for root in roots],
        nodes_modes=helper.make_tensor("modes", 2, modes.shape, modes.tobytes(), raw=True),
        nodes_splits=helper.make_tensor("splits", 11, splits.shape, splits.tobytes(), raw=True),
        leaf_weights=helper.make_tensor("weights", 11, weights.shape, weights.tobytes(), raw=True),
        leaf_targetids=np.concatenate(leaf_targets).astype(int).tolist(),
        **{name: found.astype(int).tolist() for name, found in joined.items()},
    )
    return graph.add("Add", summed, constant[np.newaxis])


_NODES = (
    "nodes_truenodeids",
    "nodes_falsenodeids",
    "nodes_trueleafs",
    "nodes_falseleafs",
    "nodes_featureids",
    "nodes_splits",
    "nodes_missing_value_tracks_true",
)


def _sklearn_tree(tree: Any, target: int, value: np.ndarray) -> _Tree:
    left = np.asarray(tree.children_left)
    return _Tree(
        target=target,
        feature=np.asarray(tree.feature),
        threshold=np.asarray(tree.threshold, dtype=float),
        left=left,
        right=np.asarray(tree.children_right),
        missing_left=np.asarray(tree.missing_go_to_left, dtype=np.int64),
        value=value,
    )


def _class_trees(tree: Any, classes: int) -> list[_Tree]:
    """A classification tree as one tree for each class, or for the second of two."""
    if tree.n_outputs != 1:
        raise NotConvertibleError("it predicts several targets")
    shares = np.asarray(tree.value, dtype=float)[:, 0, :]
    wanted = [1] if classes == 2 else range(classes)
    return [_sklearn_tree(tree, place, shares[:, label]) for place, label in enumerate(wanted)]


def _forest_classifier(graph: _Graph, model: Any, rows: str) -> _Answer:
    members = list(model.estimators_) if hasattr(model, "estimators_") else [model]
    classes = len(model.classes_)
    trees = [tree for one in members for tree in _class_trees(one.tree_, classes)]
    total = _trees(graph, graph.single(rows), trees, np.zeros(1 if classes == 2 else classes))
    mean = total if len(members) == 1 else graph.add("Div", total, np.array(float(len(members))))
    return _of_two(graph, mean) if classes == 2 else _Answer(probabilities=mean)


def _forest_regressor(graph: _Graph, model: Any, rows: str) -> _Answer:
    members = list(model.estimators_) if hasattr(model, "estimators_") else [model]
    if any(one.tree_.n_outputs != 1 for one in members):
        raise NotConvertibleError("it predicts several numbers")
    trees = [
        _sklearn_tree(one.tree_, 0, np.asarray(one.tree_.value, dtype=float)[:, 0, 0]) for one in members
    ]
    total = _trees(graph, graph.single(rows), trees, np.zeros(1))
    return _Answer(
        value=total if len(members) == 1 else graph.add("Div", total, np.array(float(len(members))))
    )


def _gradient_boosting_raw(graph: _Graph, model: Any, rows: str) -> str:
    if model.init_ != "zero" and _name(model.init_) not in {"DummyClassifier", "DummyRegressor"}:
        raise NotConvertibleError(f"{_name(model)} begins with a {_name(model.init_)}")
    constant = model._raw_predict_init(np.zeros((1, model.n_features_in_), dtype=np.float32))[0]
    trees = [
        _sklearn_tree(
            one.tree_, target, model.learning_rate * np.asarray(one.tree_.value, dtype=float)[:, 0, 0]
        )
        for stage in model.estimators_
        for target, one in enumerate(stage)
    ]
    return _trees(graph, graph.single(rows), trees, constant)


def _boosted_classifier(graph: _Graph, model: Any, raw: str) -> _Answer:
    kind = _name(model._loss)
    if kind == "HalfMultinomialLoss":
        return _Answer(decision=raw, probabilities=graph.add("Softmax", raw, axis=1))
    if kind not in {"HalfBinomialLoss", "ExponentialLoss"}:
        raise NotConvertibleError(f"{_name(model)} with {kind} has no ONNX form here")
    logit = graph.add("Mul", raw, np.array(2.0)) if kind == "ExponentialLoss" else raw
    return _of_two(graph, graph.add("Sigmoid", logit), raw)


def _gradient_boosting_classifier(graph: _Graph, model: Any, rows: str) -> _Answer:
    return _boosted_classifier(graph, model, _gradient_boosting_raw(graph, model, rows))


def _gradient_boosting_regressor(graph: _Graph, model: Any, rows: str) -> _Answer:
    return _Answer(value=_gradient_boosting_raw(graph, model, rows))


def _hist_gradient_boosting_raw(graph: _Graph, model: Any, rows: str) -> str:
    if model.is_categorical_ is not None and np.any(model.is_categorical_):
        raise NotConvertibleError(f"{_name(model)} splits by categories, which has no ONNX form here")
    trees = []
    for stage in model._predictors:
        for target, predictor in enumerate(stage):
            nodes = predictor.nodes
            leaf = nodes["is_leaf"].astype(bool)
            trees.append(
                _Tree(
                    target=target,
                    feature=nodes["feature_idx"].astype(np.int64),
                    threshold=nodes["num_threshold"].astype(float),
                    left=np.where(leaf, -1, nodes["left"].astype(np.int64)),
                    right=nodes["right"].astype(np.int64),
                    missing_left=nodes["missing_go_to_left"].astype(np.int64),
                    value=nodes["value"].astype(float),
                )
            )
    return _trees(graph, rows, trees, np.asarray(model._baseline_prediction, dtype=float).ravel())


def _hist_gradient_boosting_classifier(graph: _Graph, model: Any, rows: str) -> _Answer:
    return _boosted_classifier(graph, model, _hist_gradient_boosting_raw(graph, model, rows))


def _hist_gradient_boosting_regressor(graph: _Graph, model: Any, rows: str) -> _Answer:
    raw, link = _hist_gradient_boosting_raw(graph, model, rows), _name(model._loss.link)
    if link == "IdentityLink":
        return _Answer(value=raw)
    if link == "LogLink":
        return _Answer(value=graph.add("Exp", raw))
    raise NotConvertibleError(f"{_name(model)} with {link} has no ONNX form here")


_ACTIVATIONS = {"relu": "Relu", "tanh": "Tanh", "logistic": "Sigmoid", "softmax": "Softmax", "identity": ""}


def _network(graph: _Graph, model: Any, rows: str) -> str:
    last = len(model.coefs_) - 1
    for place, (weights, offsets) in enumerate(zip(model.coefs_, model.intercepts_, strict=True)):
        rows = graph.add("MatMul", rows, np.asarray(weights, dtype=float))
        rows = graph.add("Add", rows, np.asarray(offsets, dtype=float))
        operator = _ACTIVATIONS[model.out_activation_ if place == last else model.activation]
        rows = graph.add(operator, rows) if operator else rows
    return rows


def _network_classifier(graph: _Graph, model: Any, rows: str) -> _Answer:
    said = _network(graph, model, rows)
    return _of_two(graph, said) if model.n_outputs_ == 1 else _Answer(probabilities=said)


def _network_regressor(graph: _Graph, model: Any, rows: str) -> _Answer:
    if model.n_outputs_ != 1:
        raise NotConvertibleError("it predicts several numbers")
    return _Answer(value=_network(graph, model, rows))


def _general(graph: _Graph, model: Any, rows: str) -> _Answer:
    """What skl2onnx makes of an estimator that is given doubles."""
    import skl2onnx
    from skl2onnx.common.data_types import DoubleTensorType

    classifies = hasattr(model, "classes_")
    if classifies and not hasattr(model, "predict_proba"):
        raise NotConvertibleError(f"{_name(model)} gives no probabilities")
    try:
        made = skl2onnx.convert_sklearn(
            model,
            initial_types=[("X", DoubleTensorType([None, int(model.n_features_in_)]))],
            options={id(model): {"zipmap": False}} if classifies else None,
            target_opset={"": _OPSET, "ai.onnx.ml": 3},
        )
    # Converters raise what they like; whatever it is, the model has no ONNX form.
    except Exception as error:  # noqa: BLE001
        said = " ".join(str(error).split())[:120]
        raise NotConvertibleError(f"skl2onnx cannot convert {_name(model)} ({said})") from None
    if graph.opsets.get("ai.onnx.ml", 3) != 3:
        raise NotConvertibleError(f"{_name(model)} stands beside trees, which has no ONNX form here")
    from onnx import TensorProto

    output = made.graph.output[1 if classifies else 0].name
    found = graph.add("Cast", graph.inline(made, rows, output), to=TensorProto.DOUBLE)
    return _Answer(probabilities=found) if classifies else _Answer(value=found)


_ESTIMATORS: dict[str, Callable[[_Graph, Any, str], _Answer]] = {
    "DecisionTreeClassifier": _forest_classifier,
    "DecisionTreeRegressor": _forest_regressor,
    "ElasticNet": _linear_regression,
    "ExtraTreesClassifier": _forest_classifier,
    "ExtraTreesRegressor": _forest_regressor,
    "GradientBoostingClassifier": _gradient_boosting_classifier,
    "GradientBoostingRegressor": _gradient_boosting_regressor,
    "HistGradientBoostingClassifier": _hist_gradient_boosting_classifier,
    "HistGradientBoostingRegressor": _hist_gradient_boosting_regressor,
    "HuberRegressor": _linear_regression,
    "Lasso": _linear_regression,
    "LinearRegression": _linear_regression,
    "LinearSVC": _linear_classifier,
    "LogisticRegression": _logistic_regression,
    "MLPClassifier": _network_classifier,
    "MLPRegressor": _network_regressor,
    "RandomForestClassifier": _forest_classifier,
    "RandomForestRegressor": _forest_regressor,
    "Ridge": _linear_regression,
    "RidgeClassifier": _linear_classifier,
    "SGDClassifier": _linear_classifier,
}
