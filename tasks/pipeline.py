"""From a candidate's declaration to a scikit-learn pipeline: preprocessing and estimator in one object."""

import difflib
import importlib
import inspect
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from deployments.errors import BadInputError
from deployments.measures import TaskKind
from deployments.spec import ModelSpec
from deployments.training import CategoricalFeatures, NumericFeatures

if TYPE_CHECKING:
    from sklearn.base import BaseEstimator
    from sklearn.impute import SimpleImputer
    from sklearn.pipeline import Pipeline

MISSING = "(missing)"
"""The category that stands for a missing value."""

Folds = list[tuple[np.ndarray, np.ndarray]]
"""Row indices of the two sides of each fold."""

MODEL = "model"
"""The name of the estimator's step in the pipeline."""


def import_estimator(path: str, allowed_packages: Collection[str]) -> "type[BaseEstimator]":
    """The estimator class at an import path.

    Raises:
        BadInputError: the package is not allowed here, or there is no such class in it.
    """
    package = path.partition(".")[0]
    if package not in allowed_packages:
        raise BadInputError(
            f"estimator {path!r}: package {package!r} is not allowed here (allowed: {', '.join(allowed_packages)})"
        )
    module, _, name = path.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError):
        raise BadInputError(f"estimator {path!r}: there is no such class") from None
    if not (inspect.isclass(found) and hasattr(found, "fit") and hasattr(found, "predict")):
        raise BadInputError(f"estimator {path!r}: this is not an estimator with fit and predict")
    return found


def make_estimator(
    path: str, params: Mapping[str, Any], allowed_packages: Collection[str], kind: TaskKind, seed: int
) -> "BaseEstimator":
    """An unfitted estimator with its parameters set; `random_state` gets the seed where nothing else is said.

    Raises:
        BadInputError: an unknown parameter, or a regressor where classes are predicted (or the reverse).
    """
    from sklearn.base import is_classifier, is_regressor

    found = import_estimator(path, allowed_packages)
    try:
        estimator = found()
    except TypeError as error:
        raise BadInputError(f"estimator {path!r} cannot be made from parameters in YAML: {error}") from None
    known = estimator.get_params()
    for name in params:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise BadInputError(f"estimator {path!r} has no parameter {name!r}{hint}")
    fits = is_regressor(estimator) if kind is TaskKind.REGRESSION else is_classifier(estimator)
    if not fits:
        raise BadInputError(f"estimator {path!r} is not for a {kind} target")
    settings = dict(params)
    if "random_state" in known and "random_state" not in settings:
        settings["random_state"] = seed
    return estimator.set_params(**settings)


def make_pipeline(spec: ModelSpec, estimator: "BaseEstimator") -> "Pipeline":
    """Preprocessing as the spec declares it, and the estimator."""
    from sklearn.compose import ColumnTransformer
    from sklearn.pipeline import Pipeline

    from deployments.date_parts import DateParts

    features = spec.features
    steps: list[tuple[str, Any, list[str]]] = []
    if features.numeric.columns:
        steps.append(("numeric", _numeric(features.numeric), list(features.numeric.columns)))
    if features.boolean:
        certain = [name for name in features.boolean if not spec.feature_contract.columns[name].nullable]
        unsure = [name for name in features.boolean if name not in certain]
        steps += [("boolean", "passthrough", certain)] if certain else []
        steps += [("boolean_or_null", _imputer("most_frequent"), unsure)] if unsure else []
    if features.categorical.columns:
        encoder = _categorical(features.categorical, spec.target.kind)
        steps.append(("categorical", encoder, list(features.categorical.columns)))
    if features.dates.columns:
        parts = Pipeline([("parts", DateParts(features.dates.parts)), ("impute", _imputer("median"))])
        steps.append(("dates", parts, list(features.dates.columns)))
    preprocess = ColumnTransformer(steps, remainder="drop", sparse_threshold=0.0)
    return Pipeline([("preprocess", preprocess), (MODEL, estimator)])


def _imputer(strategy: str, **options: Any) -> "SimpleImputer":
    """An imputer that keeps columns without any value, so that a fold or a slow month cannot lose one."""
    from sklearn.impute import SimpleImputer

    return SimpleImputer(strategy=strategy, keep_empty_features=True, **options)


def _numeric(numeric: NumericFeatures) -> Any:
    from sklearn.pipeline import Pipeline
    from sklearn.preprocessing import RobustScaler, StandardScaler

    steps: list[tuple[str, Any]] = []
    if numeric.impute != "none":
        zero = numeric.impute == "zero"
        steps.append(
            (
                "impute",
                _imputer(
                    "constant" if zero else numeric.impute,
                    fill_value=0 if zero else None,
                    add_indicator=numeric.missing_indicator,
                ),
            )
        )
    if numeric.scale != "none":
        steps.append(("scale", StandardScaler() if numeric.scale == "standard" else RobustScaler()))
    return Pipeline(steps) if steps else "passthrough"


def _categorical(categorical: CategoricalFeatures, kind: TaskKind) -> Any:
    from sklearn.pipeline import Pipeline
    from sklearn.preprocessing import OneHotEncoder, OrdinalEncoder, TargetEncoder

    limits = {"min_frequency": categorical.min_frequency, "max_categories": categorical.max_categories}
    encoder: Any
    if categorical.encode == "onehot":
        encoder = OneHotEncoder(handle_unknown="infrequent_if_exist", sparse_output=False, **limits)
    elif categorical.encode == "ordinal":
        encoder = OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1, **limits)
    else:
        encoder = TargetEncoder(
            target_type="continuous" if kind is TaskKind.REGRESSION else kind.value, random_state=0
        )
    return Pipeline([("fill", _imputer("constant", fill_value=MISSING)), ("encode", encoder)])


def calibrated(pipeline: "BaseEstimator", method: str | None, folds: int | Folds) -> "BaseEstimator":
    """The pipeline, wrapped in cross-validated calibration where a method is named."""
    from sklearn.calibration import CalibratedClassifierCV

    return CalibratedClassifierCV(pipeline, method=method, cv=folds) if method else pipeline


def without_folds(model: "BaseEstimator", count: int) -> "BaseEstimator":
    """A fitted model without the row numbers that it was calibrated by: they would travel in its file."""
    from sklearn.calibration import CalibratedClassifierCV

    for part in (model, getattr(model, "estimator", None), getattr(model, "estimator_", None)):
        if isinstance(part, CalibratedClassifierCV):
            part.set_params(cv=count)
    return model


def model_prefix(model: "BaseEstimator") -> str:
    """What the names of the estimator's own parameters begin with, in a pipeline or a calibrated one."""
    from sklearn.calibration import CalibratedClassifierCV

    return f"estimator__{MODEL}__" if isinstance(model, CalibratedClassifierCV) else f"{MODEL}__"


def with_threshold(model: "BaseEstimator", threshold: float, positive: object) -> "BaseEstimator":
    """A binary classifier that answers yes from `threshold` on, so that every way of serving it agrees."""
    from sklearn.model_selection import FixedThresholdClassifier

    return FixedThresholdClassifier(
        model, threshold=threshold, pos_label=positive, response_method="predict_proba"
    )
