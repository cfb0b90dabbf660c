"""The model spec: everything the line needs to know about one model, read from one YAML file."""

from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from deployments.contract import ColumnType, Scalar, TableContract
from deployments.declared import Declared
from deployments.documents import load_document
from deployments.errors import BadInputError
from deployments.gates import ChampionGate, FairnessGate, Gate, MetricGate, OverfitGate
from deployments.measures import MEASURES, TaskKind, measures_for
from deployments.source import Source
from deployments.training import EvaluationPlan, Features, Labels, RandomSplit, Split, Training

FEATURES = "features"
"""The name under which the contract speaks of the table that `features.sql` builds."""

MODELS = Path(__file__).parent / "models"


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


class ModelSpec(Declared):
    """One model: its data and what that must be, features, split, candidates, evaluation, gates and governance.

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

    @cached_property
    def feature_contract(self) -> TableContract:
        """The contract of the feature table: what training sees and what scoring is given."""
        return self.contract[FEATURES if self.features.sql else next(iter(self.sources))]

    @property
    def row_key(self) -> tuple[str, ...]:
        """The columns that identify one training row: the entity, and the cut-off where there are several."""
        return self.features.entity + ((self.labels.as_of,) if self.labels else ())

    @model_validator(mode="after")
    def _tables_are_known(self) -> Self:
        if FEATURES in self.sources and self.features.sql:
            raise ValueError(f"sources: {FEATURES!r} is the name of the table that features.sql builds")
        expected = set(self.sources) | ({FEATURES} if self.features.sql else set())
        for name in sorted(expected - set(self.contract)):
            raise ValueError(f"contract: nothing is said about table {name!r}")
        for name in sorted(set(self.contract) - expected):
            raise ValueError(f"contract: {name!r} is not among the sources ({', '.join(sorted(expected))})")
        if not self.features.sql and len(self.sources) > 1:
            raise ValueError(
                "features.sql: several sources need a query that makes one feature table of them"
            )
        if self.labels and self.labels.table not in self.sources:
            raise ValueError(f"labels.table: {self.labels.table!r} is not among the sources")
        if self.labels and not self.features.sql:
            raise ValueError("labels: a label table goes with a features.sql that is run once per cut-off")
        return self

    @model_validator(mode="after")
    def _columns_are_known(self) -> Self:
        for name, source in self.sources.items():
            named = [("time_column", source.time_column)] if source.time_column else []
            for where, column in named + [("clustering", column) for column in source.clustering]:
                self._must_have(self.contract[name], column, f"sources.{name}.{where}")
        table = self.feature_contract
        for column in (*self.features.entity, *self.features.columns):
            self._must_have(table, column, "features")
        for column in self.evaluation.slices:
            self._must_have(table, column, "evaluation.slices")
        for gate in self.gates:
            if isinstance(gate, FairnessGate):
                self._must_have(table, gate.attribute, "gates.fairness.attribute")
        for column in self.features.numeric.columns:
            if table.columns[column].type not in {ColumnType.INTEGER, ColumnType.NUMBER, ColumnType.BOOLEAN}:
                raise ValueError(f"features.numeric: {column!r} is of type {table.columns[column].type}")
        for column in self.features.dates.columns:
            if table.columns[column].type not in {ColumnType.TIMESTAMP, ColumnType.DATE}:
                raise ValueError(f"features.dates: {column!r} is of type {table.columns[column].type}")
        for column in self.features.boolean:
            if table.columns[column].type is not ColumnType.BOOLEAN:
                raise ValueError(f"features.boolean: {column!r} is of type {table.columns[column].type}")
        if self.target.column in self.features.columns:
            raise ValueError(f"features: {self.target.column!r} is the target; a model may not see it")
        return self

    @model_validator(mode="after")
    def _target_is_known(self) -> Self:
        where = self.contract[self.labels.table] if self.labels else self.feature_contract
        column = self.target.column
        self._must_have(where, column, "target.column")
        if self.labels:
            for name in (self.labels.as_of, self.labels.known_at, *self.features.entity):
                if name is not None:
                    self._must_have(where, name, "labels")
        declared = where.columns[column]
        if declared.nullable:
            raise ValueError(f"contract: the target {column!r} may not be nullable")
        if self.target.kind is TaskKind.REGRESSION and declared.type not in {
            ColumnType.NUMBER,
            ColumnType.INTEGER,
        }:
            raise ValueError(f"target: {column!r} is of type {declared.type}; regression predicts numbers")
        if (
            self.target.positive is not None
            and declared.values
            and self.target.positive not in declared.values
        ):
            raise ValueError(
                f"target.positive: {self.target.positive!r} is not among the values {list(declared.values)}"
            )
        split_column = getattr(self.split, "column", None)
        if split_column is not None and not (self.labels and split_column == self.labels.as_of):
            self._must_have(self.feature_contract, split_column, "split.column")
        return self

    @model_validator(mode="after")
    def _metrics_exist_and_point_the_right_way(self) -> Self:
        kind = self.target.kind
        named = [("training.metric", self.training.metric)]
        named += [("evaluation.metrics", name) for name in self.evaluation.metrics]
        named += [
            (f"gates.{gate.kind}.metric", gate.metric)
            for gate in self.gates
            if isinstance(gate, MetricGate | ChampionGate | OverfitGate | FairnessGate) and gate.metric
        ]
        for where, name in named:
            if name not in measures_for(kind):
                choices = ", ".join(measures_for(kind))
                raise ValueError(f"{where}: {name!r} is no metric for a {kind} target (known: {choices})")
        for gate in self.gates:
            if isinstance(gate, MetricGate | FairnessGate) and gate.metric:
                wrong = "max" if MEASURES[gate.metric].higher_is_better else "min"
                if getattr(gate, wrong) is not None:
                    better = "higher" if wrong == "max" else "lower"
                    raise ValueError(
                        f"gates: {better} {gate.metric} is better, so `{wrong}` would wave through bad models"
                    )
            if (
                isinstance(gate, MetricGate | ChampionGate | OverfitGate)
                and gate.metric not in self.evaluation.metrics
            ):
                raise ValueError(f"gates: {gate.metric!r} is not measured; add it to evaluation.metrics")
            if kind is not TaskKind.BINARY and (
                gate.kind == "calibration"
                or (isinstance(gate, FairnessGate) and gate.measure != "group_floor")
            ):
                raise ValueError(f"gates: {gate.kind} as declared is for binary targets")
        return self

    def _must_have(self, table: TableContract, column: str, where: str) -> None:
        if column not in table.columns:
            raise ValueError(
                f"{where}: {column!r} is not a column of the contract ({', '.join(table.columns)})"
            )
        if table.columns[column].pii == "drop":
            raise ValueError(f"{where}: {column!r} is personal data that is dropped at ingest (pii: drop)")


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
        sql = query.read_text(encoding="utf-8")
        if "$as_of" not in sql:
            raise BadInputError(
                f"{query}: the query does not use $as_of, so it cannot be built for a moment in time"
            )
    return LoadedSpec(spec=spec, path=path, sql=sql)
