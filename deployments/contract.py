"""What data must be: the declaration that tasks.validate compiles to pandera."""

from enum import StrEnum
from typing import Literal, Self

from pydantic import Field, model_validator

from deployments.declared import Declared

Scalar = bool | int | float | str


class ColumnType(StrEnum):
    """The types a contract speaks; a platform maps them to its own."""

    STRING = "string"
    INTEGER = "integer"
    NUMBER = "number"
    BOOLEAN = "boolean"
    TIMESTAMP = "timestamp"
    DATE = "date"


class ColumnContract(Declared):
    """One column: type, nullability, range, allowed values, pattern, completeness and how personal data is treated."""

    type: ColumnType
    nullable: bool = False
    min: float | str | None = None
    max: float | str | None = None
    values: tuple[Scalar, ...] | None = None
    pattern: str | None = Field(None, description="A regular expression that the whole text must match.")
    min_completeness: float | None = Field(
        None,
        ge=0,
        le=1,
        description="The least share of rows with a value; below it the contract fails as a whole.",
    )
    pii: Literal["drop", "hash"] | None = Field(
        None, description="Personal data: dropped, or replaced by a keyed hash, before anything is stored."
    )
    description: str | None = None

    @model_validator(mode="after")
    def _fits_its_type(self) -> Self:
        textual = self.type is ColumnType.STRING
        if self.pattern is not None and not textual:
            raise ValueError("`pattern` is for columns of type string")
        if textual and (self.min is not None or self.max is not None):
            raise ValueError("`min` and `max` are not for columns of type string")
        if self.type is ColumnType.BOOLEAN and (self.min is not None or self.max is not None):
            raise ValueError("`min` and `max` are not for columns of type boolean")
        if self.min_completeness is not None and not self.nullable:
            raise ValueError("`min_completeness` is for nullable columns; this one may not be null at all")
        if self.pii is not None and (self.values is not None or self.pattern is not None):
            raise ValueError(
                "`values` and `pattern` cannot be checked on personal data: it is never stored as it was"
            )
        if self.pii == "hash" and not textual:
            raise ValueError("`pii: hash` is for columns of type string")
        return self


class Rule(Declared):
    """A condition across columns, as a SQL expression; a row fails where it is false (null passes, as in SQL)."""

    name: str = Field(pattern=r"^[a-z][a-z0-9_]*$")
    expression: str
    description: str | None = None


class RowBounds(Declared):
    """How many rows the table may have."""

    min: int = Field(1, ge=0)
    max: int | None = Field(None, ge=1)


class Freshness(Declared):
    """The newest value of `column` may be at most `max_age_days` older than the run's clock."""

    column: str
    max_age_days: float = Field(gt=0)


class DistributionCheck(Declared):
    """One column against the champion's training snapshot.

    `psi` is the population stability index over the reference's deciles (or categories), `ks` the two-sample
    Kolmogorov-Smirnov statistic, `jensen_shannon` the base-2 Jensen-Shannon distance.
    """

    column: str
    test: Literal["psi", "ks", "jensen_shannon"] = "psi"
    max: float = Field(gt=0)


class TableContract(Declared):
    """What one table must be."""

    columns: dict[str, ColumnContract] = Field(min_length=1)
    extra_columns: Literal["forbid", "drop"] = "forbid"
    unique: tuple[tuple[str, ...], ...] = ()
    rules: tuple[Rule, ...] = ()
    rows: RowBounds = RowBounds()
    freshness: Freshness | None = None
    distribution: tuple[DistributionCheck, ...] = ()
    max_invalid_share: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="The largest share of rows that may go to quarantine before the run stops.",
    )

    @model_validator(mode="after")
    def _names_known_columns(self) -> Self:
        named = [("unique", column) for key in self.unique for column in key]
        named += [("distribution", check.column) for check in self.distribution]
        named += [("freshness", self.freshness.column)] if self.freshness else []
        for where, column in named:
            if column not in self.columns:
                raise ValueError(f"`{where}` names {column!r}, which is not among the columns")
            if self.columns[column].pii == "drop":
                raise ValueError(f"`{where}` names {column!r}, which is dropped at ingest (pii: drop)")
        return self

    @property
    def kept_columns(self) -> dict[str, ColumnContract]:
        """The columns that are stored: all but those dropped as personal data."""
        return {name: column for name, column in self.columns.items() if column.pii != "drop"}
