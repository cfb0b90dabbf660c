"""How a model is made, as declared: features, split, candidates and their search, evaluation."""

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from deployments.contract import Scalar
from deployments.declared import Declared


def _columns_alone(value: Any) -> Any:
    """Let `numeric: [a, b]` stand for `numeric: {columns: [a, b]}`."""
    return {"columns": value} if isinstance(value, list | tuple) else value


class NumericFeatures(Declared):
    """Numbers: imputed, optionally flagged where they were missing, scaled."""

    columns: tuple[str, ...] = ()
    impute: Literal["median", "mean", "zero", "none"] = "median"
    missing_indicator: bool = False
    scale: Literal["standard", "robust", "none"] = "standard"


class CategoricalFeatures(Declared):
    """Categories: a missing value is a category of its own; unknown ones are met without failing."""

    columns: tuple[str, ...] = ()
    encode: Literal["onehot", "ordinal", "target"] = "onehot"
    min_frequency: int | None = Field(None, ge=1, description="Rarer categories share one column.")
    max_categories: int | None = Field(None, ge=2)


class DateFeatures(Declared):
    """Dates and times, taken apart into numbers."""

    columns: tuple[str, ...] = ()
    parts: tuple[Literal["year", "month", "day", "weekday", "hour", "day_of_year"], ...] = (
        "month",
        "weekday",
    )


class Features(Declared):
    """What the model sees. `sql` builds it from the sources; without it the only source is the feature table."""

    sql: str | None = Field(
        None, description="A DuckDB query file beside model.yaml, with the parameter $as_of."
    )
    entity: tuple[str, ...] = Field(min_length=1, description="The key of one row: who or what is predicted.")
    numeric: Annotated[
        NumericFeatures, BeforeValidator(_columns_alone, json_schema_input_type=NumericFeatures | list[str])
    ] = NumericFeatures()
    categorical: Annotated[
        CategoricalFeatures,
        BeforeValidator(_columns_alone, json_schema_input_type=CategoricalFeatures | list[str]),
    ] = CategoricalFeatures()
    boolean: tuple[str, ...] = ()
    dates: Annotated[
        DateFeatures, BeforeValidator(_columns_alone, json_schema_input_type=DateFeatures | list[str])
    ] = DateFeatures()

    @property
    def columns(self) -> tuple[str, ...]:
        """All model inputs, in the order the model is given them."""
        return self.numeric.columns + self.categorical.columns + self.boolean + self.dates.columns

    @model_validator(mode="after")
    def _each_column_once(self) -> Self:
        twice = sorted({name for name in self.columns if self.columns.count(name) > 1})
        if twice:
            raise ValueError(f"named in more than one group of features: {', '.join(twice)}")
        if not self.columns:
            raise ValueError("no feature is named: fill numeric, categorical, boolean or dates")
        return self


class Labels(Declared):
    """Where the target is, when it is not in the feature table: one row per entity and cut-off.

    Features are built once per cut-off; a label counts only once it was known.
    """

    table: str
    as_of: str = Field("as_of", description="The column that holds the cut-off.")
    known_at: str | None = Field(None, description="The column that says when the label became known.")
    cutoffs: int = Field(12, ge=1, description="How many of the latest cut-offs to train and evaluate on.")


class _Split(Declared):
    holdout: float = Field(0.2, gt=0, lt=0.9, description="Share of rows that only evaluation sees.")
    validation: float = Field(0.15, gt=0, lt=0.9, description="Share of rows that choose among candidates.")
    min_rows: int = Field(100, ge=10, description="The least number of rows in each part.")

    @model_validator(mode="after")
    def _leaves_rows_to_train_on(self) -> Self:
        if self.holdout + self.validation >= 0.95:
            raise ValueError("holdout and validation together leave less than 5 % to train on")
        return self


class RandomSplit(_Split):
    """By a seeded hash of the entity, stratified by target: a row keeps its part when the data grows."""

    kind: Literal["random"] = "random"
    seed: int = 20250101


class GroupSplit(_Split):
    """By a seeded hash of `column`: all rows of one group are in one part."""

    kind: Literal["group"] = "group"
    column: str
    seed: int = 20250101


class TimeSplit(_Split):
    """By `column`: the earliest rows train, the latest are the holdout; equal times are never torn apart."""

    kind: Literal["time"] = "time"
    column: str


Split = Annotated[RandomSplit | GroupSplit | TimeSplit, Field(discriminator="kind")]


class Range(Declared):
    """An interval to draw a hyperparameter from."""

    low: float
    high: float
    log: bool = False
    integer: bool = False

    @model_validator(mode="after")
    def _runs_upwards(self) -> Self:
        if self.low >= self.high:
            raise ValueError(f"low ({self.low}) is not below high ({self.high})")
        if self.log and self.low <= 0:
            raise ValueError("a logarithmic range starts above 0")
        return self


Values = tuple[Scalar | None, ...]


class GridSearch(Declared):
    """Every combination of the listed values."""

    kind: Literal["grid"] = "grid"
    space: dict[str, Values] = Field(min_length=1)


class RandomSearch(Declared):
    """`iterations` seeded draws from the space."""

    kind: Literal["random"] = "random"
    space: dict[str, Values | Range] = Field(min_length=1)
    iterations: int = Field(10, ge=1)


class HalvingSearch(Declared):
    """Successive halving: many draws on few rows, the best third goes on to three times the rows."""

    kind: Literal["halving"] = "halving"
    space: dict[str, Values | Range] = Field(min_length=1)
    iterations: int = Field(18, ge=3)
    factor: int = Field(3, ge=2)


class OptunaSearch(Declared):
    """Optuna's seeded tree-structured Parzen estimator."""

    kind: Literal["optuna"] = "optuna"
    space: dict[str, Values | Range] = Field(min_length=1)
    iterations: int = Field(20, ge=1)


Search = Annotated[GridSearch | RandomSearch | HalvingSearch | OptunaSearch, Field(discriminator="kind")]


class Candidate(Declared):
    """One estimator to try, by import path, with fixed parameters and a search over others."""

    name: str = Field(pattern=r"^[a-z][a-z0-9_-]*$")
    estimator: str = Field(pattern=r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)+$")
    params: dict[str, Any] = {}
    search: Search | None = None
    calibrate: Literal["sigmoid", "isotonic"] | None = Field(
        None, description="Wrap the classifier in cross-validated probability calibration."
    )

    @model_validator(mode="after")
    def _searches_what_is_free(self) -> Self:
        fixed = sorted(set(self.params) & set(self.search.space)) if self.search else []
        if fixed:
            raise ValueError(f"both fixed in params and searched: {', '.join(fixed)}")
        return self


class Threshold(Declared):
    """How the probability above which a binary model answers yes is chosen, on the validation part."""

    maximise: Literal["f1", "balanced_accuracy", "accuracy"] = "f1"


class Training(Declared):
    """Which candidates compete, on what, and by which metric."""

    metric: str
    folds: int = Field(5, ge=2, le=20)
    seed: int = 0
    refit_on: Literal["train", "train_and_validation"] = "train_and_validation"
    threshold: float | Threshold = Field(
        0.5, description="Binary only: a fixed probability, or how to choose it."
    )
    candidates: tuple[Candidate, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _candidates_have_names_of_their_own(self) -> Self:
        names = [candidate.name for candidate in self.candidates]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"two candidates are called {', '.join(twice)}")
        return self


class EvaluationPlan(Declared):
    """What is measured on the holdout."""

    metrics: tuple[str, ...] = Field(min_length=1)
    slices: tuple[str, ...] = ()
    min_slice_rows: int = Field(50, ge=10)
    bootstrap: int = Field(500, ge=200, le=10_000, description="Resamples behind each interval.")
    confidence: float = Field(0.95, gt=0.5, lt=1)
