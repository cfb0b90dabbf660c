"""The metrics a spec may name: what each is for and which direction is better. Their arithmetic is in tasks.metrics."""

from dataclasses import dataclass
from enum import StrEnum


class TaskKind(StrEnum):
    """What a model predicts."""

    BINARY = "binary"
    MULTICLASS = "multiclass"
    REGRESSION = "regression"


@dataclass(frozen=True)
class Measure:
    """One metric: `higher_is_better` fixes the direction of every threshold and comparison on it."""

    name: str
    higher_is_better: bool
    kinds: frozenset[TaskKind]
    label: str

    def improvement(self, challenger: float, champion: float) -> float:
        """How much better the challenger is, in the metric's own unit; negative means worse."""
        return challenger - champion if self.higher_is_better else champion - challenger


_BINARY = frozenset({TaskKind.BINARY})
_CLASSES = frozenset({TaskKind.BINARY, TaskKind.MULTICLASS})
_MULTICLASS = frozenset({TaskKind.MULTICLASS})
_REGRESSION = frozenset({TaskKind.REGRESSION})

MEASURES: dict[str, Measure] = {
    measure.name: measure
    for measure in (
        Measure("roc_auc", True, _BINARY, "ROC AUC"),
        Measure("average_precision", True, _BINARY, "Average precision"),
        Measure("brier", False, _BINARY, "Brier score"),
        Measure("f1", True, _BINARY, "F1"),
        Measure("precision", True, _BINARY, "Precision"),
        Measure("recall", True, _BINARY, "Recall"),
        Measure("log_loss", False, _CLASSES, "Log loss"),
        Measure("accuracy", True, _CLASSES, "Accuracy"),
        Measure("balanced_accuracy", True, _CLASSES, "Balanced accuracy"),
        Measure("f1_macro", True, _MULTICLASS, "F1 (macro)"),
        Measure("roc_auc_ovr", True, _MULTICLASS, "ROC AUC (one against the rest)"),
        Measure("mae", False, _REGRESSION, "Mean absolute error"),
        Measure("rmse", False, _REGRESSION, "Root mean squared error"),
        Measure("median_absolute_error", False, _REGRESSION, "Median absolute error"),
        Measure("r2", True, _REGRESSION, "R²"),
    )
}


def measures_for(kind: TaskKind) -> tuple[str, ...]:
    """The names of the metrics that exist for one kind of task."""
    return tuple(name for name, measure in MEASURES.items() if kind in measure.kinds)
