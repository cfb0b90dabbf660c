"""The monitoring plan of a model: what live traffic is compared with, when that is an alert, and what follows."""

from collections.abc import Mapping
from typing import Literal, Self

from pydantic import Field, model_validator

from deployments.declared import Declared

NumericTest = Literal["ks", "cramer_von_mises", "mannw", "t_test"]
CategoricalTest = Literal["chisquare", "g_test"]
Distance = Literal["wasserstein", "psi", "jensenshannon", "hellinger"]
CategoricalDistance = Literal["psi", "jensenshannon", "hellinger", "TVD"]

AlertKind = Literal["drift", "prediction_drift", "quality", "service", "inputs", "budget"]

ALERT_EVENTS: Mapping[AlertKind, str] = {
    "drift": "contender.drift.detected",
    "prediction_drift": "contender.prediction_drift.detected",
    "quality": "contender.quality.degraded",
    "service": "contender.slo.breached",
    "inputs": "contender.inputs.invalid",
    "budget": "contender.budget.breached",
}
"""The Prefect event of each kind of alert."""


class NumericDrift(Declared):
    """Columns of numbers: the test's p-value says whether they changed, the distance whether that matters."""

    test: NumericTest = "ks"
    distance: Distance = "wasserstein"
    matters: float = Field(0.3, gt=0, description="A smaller distance is no drift, however certain.")


class CategoricalDrift(Declared):
    """Columns of categories and truth values, in the same way."""

    test: CategoricalTest = "chisquare"
    distance: CategoricalDistance = "jensenshannon"
    matters: float = Field(0.1, gt=0, description="A smaller distance is no drift, however certain.")


class DriftPlan(Declared):
    """When inputs, or predictions, are said to have drifted from the champion's training data.

    A column drifts in a window if its p-value, adjusted for the number of columns, is below `alpha` and its distance
    is at least what matters; it is an alert once it did in `needed` of the last `windows` windows, the newest among
    them. Windows that overlap count once, those of another length not at all.
    """

    alpha: float = Field(0.01, gt=0, lt=1, description="Chance that a window without drift shows any.")
    numeric: NumericDrift = NumericDrift()
    categorical: CategoricalDrift = CategoricalDrift()
    columns: dict[str, float] = Field({}, description="Columns for which another distance matters.")
    ignore: tuple[str, ...] = Field((), description="Columns that nobody looks at, since they always move.")
    sample_rows: int = Field(20_000, ge=100, description="Of a larger window so many are drawn, by a seed.")
    minimum_rows: int = Field(200, ge=2, description="A smaller window is inconclusive.")
    needed: int = Field(2, ge=1)
    windows: int = Field(3, ge=1)

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.needed > self.windows:
            raise ValueError(f"`needed` ({self.needed}) cannot be more than `windows` ({self.windows})")
        if self.sample_rows < self.minimum_rows:
            raise ValueError(
                f"a sample of `sample_rows` ({self.sample_rows}) has fewer rows than `minimum_rows` "
                f"({self.minimum_rows}), so every window would be inconclusive"
            )
        return self


class QualityPlan(Declared):
    """When labelled windows are said to be worse than the champion was on its holdout.

    A window is worse if its whole interval is below the holdout's by more than `tolerated` (above, where lower is
    better).
    """

    metrics: tuple[str, ...] = Field((), description="The metric of training by default.")
    tolerated: float = Field(0.0, ge=0, description="In the unit of the metric.")
    confidence: float = Field(0.95, gt=0, lt=1)
    minimum_labels: int = Field(200, ge=2, description="With fewer a window is inconclusive.")
    minimum_coverage: float = Field(
        0.2, ge=0, le=1, description="The part of a window's rows that has labels; below it is inconclusive."
    )
    look_back_days: float = Field(
        60, ge=0, description="So long after their end windows are judged again as labels come; 0: never."
    )
    look_back_windows: int = Field(
        14, ge=0, description="So many of them in a run at most, the oldest first."
    )


class ServicePlan(Declared):
    """What callers are promised."""

    p95_milliseconds: float = Field(100, gt=0)
    error_rate: float = Field(0.01, gt=0, le=1, description="The part of requests that may fail on our side.")
    availability: float = Field(
        0.99, ge=0, le=1, description="The part of all requests that is answered, refusals included."
    )
    minimum_requests: int = Field(100, ge=1, description="With fewer a window is inconclusive.")


class MonitoringSpec(Declared):
    """What is looked at in each window of the prediction log."""

    window_hours: float = Field(168, gt=0)
    every_hours: float = Field(
        24, gt=0, description="Windows end at multiples of this, counted from midnight UTC."
    )
    drift: DriftPlan = DriftPlan()
    quality: QualityPlan = QualityPlan()
    service: ServicePlan = ServicePlan()
    invalid_share: float = Field(
        0.01, ge=0, le=1, description="The part of live rows that may break the features' contract."
    )


class RetrainSpec(Declared):
    """When an alert may become a training run; whatever is refused is written into the ledger with its reason."""

    on: tuple[AlertKind, ...] = Field(("drift", "quality"), description="Alerts that ask for a retraining.")
    cooldown_hours: float = Field(24, ge=0, description="Since the last retraining began that did not break.")
    minimum_new_labels: int = Field(0, ge=0, description="Labelled rows since the champion was trained.")
    daily_budget: float | None = Field(None, gt=0, description="Of compute, in the environment's currency.")
    monthly_budget: float | None = Field(None, gt=0)
