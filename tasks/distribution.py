"""How far two samples of one column lie apart: PSI, Kolmogorov-Smirnov, Jensen-Shannon."""

import numpy as np
import pandas as pd

_FLOOR = 1e-4
"""Share that an empty bin counts as in PSI; a bin that is empty on one side would make it infinite."""


def distance(reference: pd.Series, current: pd.Series, test: str) -> float:
    """The distance between two samples by `psi`, `ks` or `jensen_shannon`; NaN where one has no value.

    PSI sums (p - q) ln(p / q) over bins (Siddiqi, Credit Risk Scorecards, 2006); bins are the reference's
    deciles for numbers and times, and the categories otherwise. Jensen-Shannon is the distance (square root) to
    base 2, 0 to 1.

    Raises:
        ValueError: an unknown test, or `ks` on something that is not a number or time.
    """
    reference, current = reference.dropna(), current.dropna()
    if reference.empty or current.empty:
        return float("nan")
    numeric = _as_numbers(reference), _as_numbers(current)
    if test == "ks":
        if numeric[0] is None or numeric[1] is None:
            raise ValueError("the Kolmogorov-Smirnov test needs numbers or times")
        from scipy.stats import ks_2samp

        return float(ks_2samp(numeric[0], numeric[1], method="asymp").statistic)
    if numeric[0] is not None and numeric[1] is not None:
        p, q = _decile_shares(numeric[0], numeric[1])
    else:
        p, q = _category_shares(reference.astype(str), current.astype(str))
    if test == "psi":
        p, q = np.maximum(p, _FLOOR), np.maximum(q, _FLOOR)
        return float(np.sum((p - q) * np.log(p / q)))
    if test == "jensen_shannon":
        from scipy.special import rel_entr

        middle = (p + q) / 2
        divergence = (rel_entr(p, middle).sum() + rel_entr(q, middle).sum()) / 2 / np.log(2)
        # Rounding can bring it just below zero, and its root to NaN, where the samples are all but equal.
        return float(np.sqrt(max(divergence, 0.0)))
    raise ValueError(f"there is no distribution test called {test!r}")


def _as_numbers(sample: pd.Series) -> np.ndarray | None:
    if pd.api.types.is_bool_dtype(sample):
        return None
    if pd.api.types.is_datetime64_any_dtype(sample):
        return np.asarray(sample.dt.as_unit("us").astype("int64"), dtype=float)
    return sample.to_numpy(dtype=float) if pd.api.types.is_numeric_dtype(sample) else None


def _decile_shares(reference: np.ndarray, current: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    edges = np.unique(np.quantile(reference, np.linspace(0.1, 0.9, 9)))
    p, q = (
        np.bincount(np.searchsorted(edges, sample, side="right"), minlength=len(edges) + 1) / len(sample)
        for sample in (reference, current)
    )
    return p, q


def _category_shares(reference: pd.Series, current: pd.Series) -> tuple[np.ndarray, np.ndarray]:
    counts = [sample.value_counts(normalize=True) for sample in (reference, current)]
    names = counts[0].index.union(counts[1].index)
    p, q = (count.reindex(names, fill_value=0.0).to_numpy(dtype=float) for count in counts)
    return p, q
