"""The model spec: everything the line needs to know about one model, read from one YAML file."""

import difflib
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from deployments.contract import ColumnContract, ColumnType, Scalar, TableContract
from deployments.declared import Declared
from deployments.documents import load_document
from deployments.errors import BadInputError
from deployments.explanations import DeclarationError
from deployments.gates import ChampionGate, FairnessGate, Gate, MetricGate, OverfitGate
from deployments.measures import MEASURES, TaskKind, measures_for
from deployments.monitoring import MonitoringSpec, RetrainSpec
from deployments.orchestration import Schedule, ScheduledFlow
from deployments.release import ReleaseSpec
from deployments.source import Source
from deployments.training import EvaluationPlan, Features, Labels, RandomSplit, Split, Training

FEATURES = "features"
"""The name under which the contract speaks of the table that `features.sql` builds."""

MODELS = Path(__file__).parent / "models"

_TIMES = {ColumnType.TIMESTAMP, ColumnType.DATE}
_NUMBERS = {ColumnType.INTEGER, ColumnType.NUMBER}


class Target(Declared):
    """What is predicted. `positive` is the class a binary model gives the probability of."""

    kind: TaskKind
    column: str
    positive: Scalar | None = None

    @model_validator(mode="after")
    def _positive_is_for_binary(self) -> Self:
        if (self.kind is TaskKind.BINARY) != (self.positive is not None):
            raise ValueError("`positive` is required for binary targets, and only for them")
        return self


class Governance(Declared):
    """Who answers for the model, what it is for and where it must not be used."""

    owner: str = Field(min_length=1)
    purpose: str = Field(min_length=1)
    limits: tuple[str, ...] = ()
    risk: Literal["low", "medium", "high"] = "low"
    risk_note: str = ""


class ServingSpec(Declared):
    """What an endpoint answers where it looks features up by key, and does not know the key.

    With `default`, each feature is as `defaults` says, or null where it may be.
    """

    unknown_key: Literal["refuse", "default"] = "refuse"
    defaults: dict[str, Scalar] = {}


class ModelSpec(Declared):
    """One model: its data, what that must be, features, split, candidates, evaluation, gates and governance.

    Read with `load_spec`; every reference between sections (columns, tables, metrics) is checked on reading.
    """

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,62}$")]
    governance: Governance
    target: Target
    clock: str | None = Field(
        None, description="A fixed `now` for data that has an end (ISO 8601); else real time."
    )
    sources: dict[str, Source] = Field(min_length=1)
    contract: dict[str, TableContract]
    features: Features
    labels: Labels | None = None
    split: Split = RandomSplit()
    training: Training
    evaluation: EvaluationPlan
    gates: tuple[Gate, ...] = Field(min_length=1)
    serving: ServingSpec = ServingSpec()
    release: ReleaseSpec = ReleaseSpec()
    monitoring: MonitoringSpec = MonitoringSpec()
    retrain: RetrainSpec = RetrainSpec()
    schedules: dict[ScheduledFlow, Schedule] = {}

    @cached_property
    def feature_contract(self) -> TableContract:
        """The contract of the feature table: what training sees and what scoring is given."""
        return self.contract[self._feature_table]

    @property
    def _feature_table(self) -> str:
        return FEATURES if self.features.sql else next(iter(self.sources))

    @cached_property
    def training_contract(self) -> TableContract:
        """The feature table's contract with what the labels add to it: one row per entity and cut-off."""
        if self.labels is None:
            return self.feature_contract
        labelled = self.contract[self.labels.table].columns
        added = {name: labelled[name] for name in (self.labels.as_of, self.target.column)}
        return self.feature_contract.model_copy(
            update={"columns": self.feature_contract.columns | added, "unique": (self.row_key,)}
        )

    @property
    def row_key(self) -> tuple[str, ...]:
        """The columns that identify one training row: the entity, and the cut-off where there are several."""
        return self.features.entity + ((self.labels.as_of,) if self.labels else ())

    @model_validator(mode="after")
    def _tables_are_known(self) -> Self:
        if FEATURES in self.sources and self.features.sql:
            raise DeclarationError(
                ("sources", FEATURES),
                "this is the name of the table that features.sql builds; choose another",
            )
        expected = set(self.sources) | ({FEATURES} if self.features.sql else set())
        for name in sorted(expected - set(self.contract)):
            raise DeclarationError(("contract",), f"nothing is said about table {name!r}")
        for name in sorted(set(self.contract) - expected):
            raise DeclarationError(
                ("contract", name), f"{name!r} is not among the sources ({', '.join(sorted(expected))})"
            )
        if not self.features.sql and len(self.sources) > 1:
            raise DeclarationError(
                ("features", "sql"), "several sources need a query that makes one feature table of them"
            )
        if self.labels and self.labels.table not in self.sources:
            raise DeclarationError(
                ("labels", "table"),
                f"{self.labels.table!r} is not among the sources ({', '.join(sorted(self.sources))})",
            )
        if self.labels and not self.features.sql:
            raise DeclarationError(
                ("labels",), "a label table goes with a features.sql that is run once per cut-off"
            )
        return self

    @model_validator(mode="after")
    def _columns_are_known(self) -> Self:
        for name, source in self.sources.items():
            if source.time_column:
                _must_have(self.contract[name], source.time_column, ("sources", name, "time_column"))
            for place, column in enumerate(source.clustering):
                _must_have(self.contract[name], column, ("sources", name, "clustering", place))
        table = self.feature_contract
        for place, column in enumerate(self.features.entity):
            _must_have(table, column, ("features", "entity", place))
        for place, column in enumerate(self.evaluation.slices):
            _must_show(table, column, ("evaluation", "slices", place))
        for place, gate in enumerate(self.gates):
            if isinstance(gate, FairnessGate):
                _must_show(table, gate.attribute, ("gates", place, "attribute"))
        return self

    @model_validator(mode="after")
    def _features_fit_their_groups(self) -> Self:
        table, features = self.feature_contract, self.features
        for group, columns, types in (
            ("numeric", features.numeric.columns, _NUMBERS | {ColumnType.BOOLEAN}),
            ("categorical", features.categorical.columns, set(ColumnType)),
            ("boolean", features.boolean, {ColumnType.BOOLEAN}),
            ("dates", features.dates.columns, _TIMES),
        ):
            for column in columns:
                _must_have(table, column, ("features", group))
                if column == self.target.column:
                    raise DeclarationError(
                        ("features", group), f"{column!r} is the target; a model may not see it"
                    )
                if table.columns[column].type not in types:
                    raise DeclarationError(
                        ("features", group), f"{column!r} is of type {table.columns[column].type}"
                    )
        return self

    @model_validator(mode="after")
    def _target_is_known(self) -> Self:
        name = self.labels.table if self.labels else self._feature_table
        where, column = self.contract[name], self.target.column
        _must_show(where, column, ("target", "column"))
        if self.labels:
            for key, named in (("as_of", self.labels.as_of), ("known_at", self.labels.known_at)):
                if named is not None:
                    _must_have(where, named, ("labels", key))
            for place, entity in enumerate(self.features.entity):
                _must_have(where, entity, ("features", "entity", place))
        declared = where.columns[column]
        if declared.nullable:
            raise DeclarationError(
                ("contract", name, "columns", column, "nullable"),
                f"{column!r} is the target, which may not be null",
            )
        if self.target.kind is TaskKind.REGRESSION and declared.type not in _NUMBERS:
            raise DeclarationError(
                ("target", "kind"), f"{column!r} is of type {declared.type}; regression predicts numbers"
            )
        if (
            self.target.positive is not None
            and declared.values
            and self.target.positive not in declared.values
        ):
            raise DeclarationError(
                ("target", "positive"),
                f"{self.target.positive!r} is not among the values {list(declared.values)} of {column!r}",
            )
        split_column = getattr(self.split, "column", None)
        if split_column is not None and not (self.labels and split_column == self.labels.as_of):
            _must_have(self.feature_contract, split_column, ("split", "column"))
            found = self.feature_contract.columns[split_column].type
            if self.split.kind == "time" and found not in _TIMES:
                raise DeclarationError(
                    ("split", "column"),
                    f"{split_column!r} is of type {found}; a split by time needs a moment",
                )
        return self

    @model_validator(mode="after")
    def _metrics_exist_and_point_the_right_way(self) -> Self:
        kind = self.target.kind
        _must_measure(self.training.metric, kind, ("training", "metric"))
        for place, name in enumerate(self.evaluation.metrics):
            _must_measure(name, kind, ("evaluation", "metrics", place))
        for place, gate in enumerate(self.gates):
            if isinstance(gate, MetricGate | ChampionGate | OverfitGate | FairnessGate) and gate.metric:
                _must_measure(gate.metric, kind, ("gates", place, "metric"))
            if isinstance(gate, MetricGate | FairnessGate) and gate.metric:
                wrong = "max" if MEASURES[gate.metric].higher_is_better else "min"
                if getattr(gate, wrong) is not None:
                    better = "higher" if wrong == "max" else "lower"
                    raise DeclarationError(
                        ("gates", place, wrong),
                        f"{better} {gate.metric} is better, so `{wrong}` would wave through bad models",
                    )
            if (
                isinstance(gate, MetricGate | ChampionGate | OverfitGate)
                and gate.metric not in self.evaluation.metrics
            ):
                raise DeclarationError(
                    ("gates", place, "metric"),
                    f"{gate.metric!r} is not measured; add it to evaluation.metrics",
                )
            if kind is not TaskKind.BINARY and (
                gate.kind == "calibration"
                or (isinstance(gate, FairnessGate) and gate.measure != "group_floor")
            ):
                raise DeclarationError(
                    ("gates", place, "kind"), f"{gate.kind} as declared is for binary targets"
                )
        return self

    @model_validator(mode="after")
    def _losses_fit_the_target(self) -> Self:
        fitting = {
            TaskKind.BINARY: ("zero_one", "brier"),
            TaskKind.MULTICLASS: ("zero_one",),
            TaskKind.REGRESSION: ("absolute", "squared"),
        }[self.target.kind]
        for environment in (None, *self.release.environments):
            plan = self.release if environment is None else self.release.plan_for(environment)
            quality = plan.analysis.quality
            if quality and quality.loss not in fitting:
                among = () if environment is None else ("environments", environment)
                raise DeclarationError(
                    ("release", *among, "analysis", "quality", "loss"),
                    f"{quality.loss} is no loss of a {self.target.kind} target (known: {', '.join(fitting)})",
                )
        return self

    @model_validator(mode="after")
    def _what_is_monitored_is_there(self) -> Self:
        drift = self.monitoring.drift
        for key, columns in (("columns", tuple(drift.columns)), ("ignore", drift.ignore)):
            for column in columns:
                path = ("monitoring", "drift", key)
                _must_have(self.feature_contract, column, path)
                if column not in self.features.columns:
                    raise DeclarationError(path, f"{column!r} is no feature, so live requests do not have it")
        for place, name in enumerate(self.monitoring.quality.metrics):
            _must_measure(name, self.target.kind, ("monitoring", "quality", "metrics", place))
        return self

    @model_validator(mode="after")
    def _unknown_keys_have_features(self) -> Self:
        serving, columns = self.serving, self.feature_contract.columns
        if serving.unknown_key == "refuse":
            if serving.defaults:
                raise DeclarationError(
                    ("serving", "defaults"), "unknown keys are refused, so nothing would use these"
                )
            return self
        for name, value in serving.defaults.items():
            path = ("serving", "defaults", name)
            _must_show(self.feature_contract, name, path)
            if name not in self.features.columns:
                raise DeclarationError(path, f"{name!r} is no feature, and the model would not see it")
            _must_hold(columns[name], value, path)
        missing = [
            name
            for name in self.features.columns
            if name not in serving.defaults and not columns[name].nullable
        ]
        if missing:
            raise DeclarationError(
                ("serving", "defaults"), f"nothing is said for {', '.join(missing)}, which may not be null"
            )
        return self


def _must_have(table: TableContract, column: str, path: tuple[str | int, ...]) -> None:
    if column not in table.columns:
        near = difflib.get_close_matches(column, table.columns, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise DeclarationError(
            path, f"{column!r} is not a column of the contract{hint} (known: {', '.join(table.columns)})"
        )
    if table.columns[column].pii == "drop":
        raise DeclarationError(path, f"{column!r} is personal data that is dropped at ingest (pii: drop)")


def _must_show(table: TableContract, column: str, path: tuple[str | int, ...]) -> None:
    """The column must be there, and its values may stand in reports and logs."""
    _must_have(table, column, path)
    if table.columns[column].pii is not None:
        raise DeclarationError(
            path, f"{column!r} is personal data (pii), and its values would be shown in reports"
        )


def _must_hold(column: ColumnContract, value: Scalar, path: tuple[str | int, ...]) -> None:
    """The value must be one that the column's contract allows, as far as one value tells."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    fits = {
        ColumnType.STRING: isinstance(value, str),
        ColumnType.INTEGER: isinstance(value, int) and not isinstance(value, bool),
        ColumnType.NUMBER: number,
        ColumnType.BOOLEAN: isinstance(value, bool),
        ColumnType.TIMESTAMP: _is_moment(value),
        ColumnType.DATE: _is_moment(value),
    }
    if not fits[column.type]:
        raise DeclarationError(path, f"{value!r} is no {column.type}, as the contract wants it")
    if column.values is not None and value not in column.values:
        raise DeclarationError(path, f"{value!r} is not among the values {list(column.values)}")
    for bound, beyond in ((column.min, float.__lt__), (column.max, float.__gt__)):
        if number and isinstance(bound, int | float) and beyond(float(value), float(bound)):
            raise DeclarationError(path, f"{value!r} is beyond {bound:g}, where the contract ends")


def _is_moment(value: Scalar) -> bool:
    try:
        return isinstance(value, str) and datetime.fromisoformat(value) is not None
    except ValueError:
        return False


def _must_measure(metric: str, kind: TaskKind, path: tuple[str | int, ...]) -> None:
    if metric not in measures_for(kind):
        choices = ", ".join(measures_for(kind))
        raise DeclarationError(path, f"{metric!r} is no metric for a {kind} target (known: {choices})")


class LoadedSpec(Declared):
    """A spec with the folder it was read from and the text of its feature query."""

    spec: ModelSpec
    path: Path
    sql: str | None

    @property
    def name(self) -> str:
        """The model's name."""
        return self.spec.name


def shipped_models(root: Path = MODELS) -> tuple[str, ...]:
    """The names of the models that have a folder with a model.yaml under `root`."""
    return tuple(sorted(path.parent.name for path in root.glob("*/model.yaml")))


def load_spec(model: str | Path, root: Path = MODELS) -> LoadedSpec:
    """Read the spec of a model, by name or by the path of its YAML file.

    Raises:
        BadInputError: no such model, or no such query file.
        SpecError: the file does not say what a spec must.
    """
    path = Path(model)
    if path.suffix not in {".yaml", ".yml"}:
        path = root / str(model) / "model.yaml"
        if not path.is_file():
            raise BadInputError(
                f"there is no model {str(model)!r} (known: {', '.join(shipped_models(root)) or 'none'})"
            )
    spec = load_document(path, ModelSpec)
    sql = None
    if spec.features.sql:
        query = path.parent / spec.features.sql
        if not query.is_file():
            raise BadInputError(f"{path}: features.sql: there is no file {query}")
        try:
            sql = query.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise BadInputError(f"{query}: is no UTF-8 text ({error})") from None
        if "$as_of" not in sql:
            raise BadInputError(
                f"{query}: the query does not use $as_of, so it cannot be built for a moment in time"
            )
    return LoadedSpec(spec=spec, path=path, sql=sql)
