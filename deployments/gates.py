"""The gates a challenger must pass, as declared: one small model a kind, chosen by `kind`."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from deployments.declared import Declared


class MetricGate(Declared):
    """A holdout metric against a fixed threshold; `on: bound` asks it of the interval's worse end."""

    kind: Literal["metric"] = "metric"
    metric: str
    min: float | None = None
    max: float | None = None
    on: Literal["estimate", "bound"] = "estimate"

    @model_validator(mode="after")
    def _has_one_threshold(self) -> Self:
        if (self.min is None) == (self.max is None):
            raise ValueError("give either `min` or `max`")
        return self


class ChampionGate(Declared):
    """Paired comparison with the champion on holdout rows it was not trained on.

    Passes when the whole interval of the improvement lies above `-margin` (non-inferiority) or above 0
    (superiority); fails when it lies below; anything between is inconclusive.
    """

    kind: Literal["champion"] = "champion"
    metric: str
    test: Literal["non_inferiority", "superiority"] = "non_inferiority"
    margin: float = Field(0.01, ge=0)
    min_rows: int = Field(200, ge=30)


class FairnessGate(Declared):
    """Groups of `attribute` compared by fairlearn.

    `max` bounds demographic parity or equalized odds difference; `min` is the floor of `metric` in each group
    (`max` where lower is better).
    """

    kind: Literal["fairness"] = "fairness"
    attribute: str
    measure: Literal["demographic_parity_difference", "equalized_odds_difference", "group_floor"]
    metric: str | None = None
    min: float | None = None
    max: float | None = None
    min_group_rows: int = Field(50, ge=10)

    @model_validator(mode="after")
    def _has_the_bounds_of_its_measure(self) -> Self:
        if self.measure == "group_floor":
            if self.metric is None or (self.min is None) == (self.max is None):
                raise ValueError("`group_floor` needs `metric` and either `min` or `max`")
        elif self.max is None or self.min is not None or self.metric is not None:
            raise ValueError(f"`{self.measure}` needs `max`, and takes neither `min` nor `metric`")
        return self


class LatencyGate(Declared):
    """95th percentile of one-row predictions, measured on the saved and reloaded model."""

    kind: Literal["latency"] = "latency"
    max_p95_milliseconds: float = Field(gt=0)
    requests: int = Field(200, ge=50)


class RobustnessGate(Declared):
    """Noise, missing values and unseen categories may neither crash the model nor swing it.

    `max_swing` bounds the mean absolute change of the score (of the prediction over its standard deviation, for
    regression) under each perturbation.
    """

    kind: Literal["robustness"] = "robustness"
    max_swing: float = Field(0.15, gt=0)
    noise: float = Field(0.05, gt=0, description="Noise on numbers, in standard deviations.")
    missing_share: float = Field(0.1, gt=0, lt=1, description="Share of values taken away.")
    rows: int = Field(1000, ge=50)


class CalibrationGate(Declared):
    """Expected calibration error over ten bins of equal count."""

    kind: Literal["calibration"] = "calibration"
    max_error: float = Field(gt=0, lt=1)


class LeakageGate(Declared):
    """No single feature may predict the target too well by itself: such a feature usually knows the answer.

    `max_score` bounds the cross-validated score of a small tree on each feature alone: ROC AUC (one against the
    rest), or R² for regression.
    """

    kind: Literal["leakage"] = "leakage"
    max_score: float = Field(0.95, gt=0.5, le=1)


class OverfitGate(Declared):
    """How much better the model is on what it was trained on than on the holdout."""

    kind: Literal["overfit"] = "overfit"
    metric: str
    max_gap: float = Field(gt=0)


class SizeGate(Declared):
    """Size of the saved model."""

    kind: Literal["size"] = "size"
    max_megabytes: float = Field(gt=0)


Gate = Annotated[
    MetricGate
    | ChampionGate
    | FairnessGate
    | LatencyGate
    | RobustnessGate
    | CalibrationGate
    | LeakageGate
    | OverfitGate
    | SizeGate,
    Field(discriminator="kind"),
]
