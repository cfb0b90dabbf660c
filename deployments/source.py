"""Where a table comes from: one small model a kind, chosen by `kind`."""

from pathlib import PurePosixPath
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator

from deployments.declared import Declared


class Secret(Declared):
    """The name of a secret; its value comes from an environment variable or a Prefect Secret block of that name."""

    secret: str = Field(pattern=r"^[A-Za-z][A-Za-z0-9_-]*$")


class _Source(Declared):
    time_column: str | None = Field(
        None,
        description="When a row became known. Features at an `as_of` see no row after it.",
    )
    clustering: tuple[str, ...] = Field(
        (), description="Columns to order the rows by, for sources that promise no order."
    )


class CsvSource(_Source):
    """A delimited text file; every column is read as text and typed by the contract."""

    kind: Literal["csv"] = "csv"
    path: str
    delimiter: str = Field(",", min_length=1, max_length=1)
    encoding: str = "utf-8"
    null_values: tuple[str, ...] = ("",)


class ParquetSource(_Source):
    """One Parquet file, or a folder of them."""

    kind: Literal["parquet"] = "parquet"
    path: str


class DeltaSource(_Source):
    """A Delta table, by folder or URI; `version` pins one version of it."""

    kind: Literal["delta"] = "delta"
    path: str
    version: int | None = Field(None, ge=0)


class SqlSource(_Source):
    """A query against any database that SQLAlchemy or DuckDB reaches."""

    kind: Literal["sql"] = "sql"
    url: str | Secret = Field(description="SQLAlchemy URL; `duckdb:///file.duckdb` is read by DuckDB itself.")
    query: str

    @field_validator("url")
    @classmethod
    def _no_password(cls, url: str | Secret) -> str | Secret:
        if isinstance(url, str) and urlsplit(url).password:
            message = "a URL with a password does not belong in YAML; write `url: {secret: NAME}`"
            raise ValueError(message)
        return url


class SimulatorSource(_Source):
    """A function `simulate(table, *, seed, **options)` that returns Arrow record batches.

    If it has a parameter `until`, it is told the moment that the run looks from, and gives what was known then.
    """

    kind: Literal["simulator"] = "simulator"
    function: str = Field(pattern=r"^[\w.]+:\w+$", description="`package.module:function`")
    table: str
    seed: int = 0
    options: dict[str, Any] = {}


Source = Annotated[
    CsvSource | ParquetSource | DeltaSource | SqlSource | SimulatorSource,
    Field(discriminator="kind"),
]


def source_at(path: str, like: Source) -> Source:
    """The source for a file given by hand: its kind is read off the name, its options are kept where they fit.

    A folder is a Delta table when it has a `_delta_log`; the caller's platform decides that on reading.
    """
    suffix = PurePosixPath(path).suffix.lower()
    shared = {"time_column": like.time_column, "clustering": like.clustering}
    if suffix in {".csv", ".txt", ".tsv"}:
        if isinstance(like, CsvSource):
            return like.model_copy(update={"path": path})
        return CsvSource(path=path, delimiter="\t" if suffix == ".tsv" else ",", **shared)
    if suffix in {".parquet", ".pq"}:
        return ParquetSource(path=path, **shared)
    return DeltaSource(path=path, **shared)
