"""Plots of one evaluation, as matplotlib figures that belong to no window and no global state."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from sklearn import metrics as sk

from deployments.measures import MEASURES, TaskKind
from deployments.spec import ModelSpec
from tasks.evaluate import Evaluation
from tasks.metrics import Outputs

_INK, _ACCENT, _PALE = "#22313f", "#0b7285", "#adb5bd"


def evaluation_plots(
    spec: ModelSpec, truth: np.ndarray, said: Outputs, evaluation: Evaluation
) -> dict[str, Figure]:
    """The figures that fit the kind of target, by name."""
    drawn: dict[str, Figure] = {"importance": importance_plot(evaluation)}
    if evaluation.slices:
        drawn["slices"] = slices_plot(evaluation)
    if spec.target.kind is TaskKind.REGRESSION:
        drawn["residuals"] = residuals_plot(truth, said)
        return drawn
    drawn["confusion"] = confusion_plot(truth, said)
    if spec.target.kind is TaskKind.BINARY and said.finite:
        assert said.classes is not None
        assert said.positive is not None
        outcome = truth == said.classes[said.positive]
        drawn["roc"] = roc_plot(outcome, said.score)
        drawn["precision_recall"] = precision_recall_plot(outcome, said.score)
        drawn["calibration"] = calibration_plot(evaluation)
    return drawn


def _figure(title: str, x: str, y: str, width: float = 5.0, height: float = 4.0) -> tuple[Figure, Any]:
    figure = Figure(figsize=(width, height), dpi=110, layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(title, color=_INK, fontsize=11, loc="left")
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def roc_plot(outcome: np.ndarray, score: np.ndarray) -> Figure:
    """True against false positive rate; `outcome` is bool, shape (rows,)."""
    figure, axes = _figure("ROC on the holdout", "false positive rate", "true positive rate")
    false, true, _ = sk.roc_curve(outcome, score)
    axes.plot([0, 1], [0, 1], color=_PALE, linestyle="--")
    axes.plot(false, true, color=_ACCENT, label=f"area {sk.auc(false, true):.3f}")
    axes.legend(frameon=False, loc="lower right")
    return figure


def precision_recall_plot(outcome: np.ndarray, score: np.ndarray) -> Figure:
    """Precision against recall, with the base rate."""
    figure, axes = _figure("Precision and recall on the holdout", "recall", "precision")
    precision, recall, _ = sk.precision_recall_curve(outcome, score)
    axes.axhline(float(outcome.mean()), color=_PALE, linestyle="--", label=f"base rate {outcome.mean():.2f}")
    axes.plot(recall, precision, color=_ACCENT, label=f"AP {sk.average_precision_score(outcome, score):.3f}")
    axes.set_ylim(0, 1.02)
    axes.legend(frameon=False)
    return figure


def calibration_plot(evaluation: Evaluation) -> Figure:
    """Share of positives against mean score, in ten bins of equal count."""
    figure, axes = _figure("Calibration on the holdout", "mean score", "share of positives")
    axes.plot([0, 1], [0, 1], color=_PALE, linestyle="--")
    if evaluation.calibration is not None:
        bins = evaluation.calibration.bins
        axes.plot(
            [b.mean_score for b in bins],
            [b.positive_share for b in bins],
            marker="o",
            color=_ACCENT,
            label=f"expected error {evaluation.calibration.error:.3f}",
        )
        axes.legend(frameon=False)
    return figure


def confusion_plot(truth: np.ndarray, said: Outputs) -> Figure:
    """Counts of true against predicted classes."""
    assert said.classes is not None
    matrix = sk.confusion_matrix(truth, said.predictions, labels=said.classes)
    figure, axes = _figure("Confusion on the holdout", "predicted", "true")
    axes.imshow(matrix, cmap="GnBu")
    names = [str(name) for name in said.classes]
    axes.set_xticks(range(len(names)), names, rotation=45 if len(names) > 4 else 0)
    axes.set_yticks(range(len(names)), names)
    for (row, column), count in np.ndenumerate(matrix):
        shade = "white" if count > matrix.max() * 0.6 else _INK
        axes.text(column, row, f"{count:,}", ha="center", va="center", color=shade)
    return figure


def residuals_plot(truth: np.ndarray, said: Outputs) -> Figure:
    """Residuals against predictions."""
    figure, axes = _figure("Residuals on the holdout", "predicted", "true - predicted")
    shown = np.random.default_rng(0).permutation(len(truth))[:5000]
    predicted, residuals = said.predictions[shown], (truth - said.predictions)[shown]
    axes.axhline(0, color=_PALE, linestyle="--")
    axes.scatter(predicted, residuals, s=8, alpha=0.4, color=_ACCENT, edgecolors="none")
    return figure


def importance_plot(evaluation: Evaluation, most: int = 15) -> Figure:
    """Permutation importance, the largest on top."""
    ranked = list(evaluation.importance.items())[:most][::-1]
    figure, axes = _figure(
        "Permutation importance (validation)",
        "loss of the metric without the feature",
        "",
        6,
        0.8 + 0.28 * max(len(ranked), 3),
    )
    axes.barh([name for name, _ in ranked], [value for _, value in ranked], color=_ACCENT)
    return figure


def slices_plot(evaluation: Evaluation) -> Figure:
    """The metric and its interval on each slice, against the whole holdout."""
    slices = evaluation.slices[::-1]
    metric = slices[0].metric
    figure, axes = _figure(
        f"{MEASURES[metric].label} by slice", MEASURES[metric].label, "", 6, 0.8 + 0.3 * max(len(slices), 3)
    )
    whole = evaluation.metrics.get(metric)
    if whole is not None:
        axes.axvline(whole.value, color=_PALE, linestyle="--", label="whole holdout")
    zero_if_nan: Callable[[float], float] = lambda value: 0.0 if math.isnan(value) else max(value, 0.0)  # noqa: E731
    for place, item in enumerate(slices):
        found = item.estimate
        spread = [[zero_if_nan(found.value - found.low)], [zero_if_nan(found.high - found.value)]]
        axes.errorbar([found.value], [place], xerr=spread, fmt="o", color=_ACCENT, capsize=3)
    axes.set_yticks(range(len(slices)), [f"{item.column} = {item.value}" for item in slices])
    return figure
