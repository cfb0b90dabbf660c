"""The one transformer of ours that travels inside models: it takes dates apart into numbers."""

from collections.abc import Sequence
from typing import Any, Self

import numpy as np
import pandas as pd
from sklearn.base import BaseEstimator, TransformerMixin


class DateParts(TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """Turns each timestamp column into the named parts, as floats; a missing date gives missing parts."""

    def __init__(self, parts: Sequence[str] = ("month", "weekday")) -> None:
        self.parts = parts

    def fit(self, X: pd.DataFrame, y: Any = None) -> Self:  # noqa: ARG002, N803
        """Remember the column names."""
        self.feature_names_in_ = np.asarray(list(X.columns), dtype=object)
        self.n_features_in_ = len(self.feature_names_in_)
        return self

    def transform(self, X: pd.DataFrame) -> np.ndarray:  # noqa: N803
        """An array of shape (rows, columns x parts)."""
        columns = []
        for name in X.columns:
            moments = pd.to_datetime(X[name], utc=True).dt
            columns += [getattr(moments, part).to_numpy(dtype=float, na_value=np.nan) for part in self.parts]
        return np.column_stack(columns)

    def get_feature_names_out(self, input_features: Any = None) -> np.ndarray:  # noqa: ARG002
        """`column_part` for each output."""
        return np.asarray(
            [f"{name}_{part}" for name in self.feature_names_in_ for part in self.parts], dtype=object
        )
