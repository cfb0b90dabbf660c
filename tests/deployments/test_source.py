"""Sources: which kind a file given by hand is, and what a declared source may not say."""

import pytest
from pydantic import TypeAdapter, ValidationError

from deployments.source import (
    CsvSource,
    DeltaSource,
    ParquetSource,
    SimulatorSource,
    Source,
    SqlSource,
    source_at,
)

SIMULATOR = SimulatorSource(
    function="package.module:simulate", table="events", time_column="at", clustering=("id",)
)


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("rows.csv", CsvSource),
        ("rows.txt", CsvSource),
        ("ROWS.CSV", CsvSource),
        ("rows.tsv", CsvSource),
        ("rows.parquet", ParquetSource),
        ("rows.pq", ParquetSource),
        ("tables/rows", DeltaSource),
        ("s3://bucket/rows", DeltaSource),
    ],
)
def test_a_file_given_by_hand_is_what_its_name_says(path: str, kind: type) -> None:
    source = source_at(path, SIMULATOR)

    assert isinstance(source, kind)
    assert source.path == path  # type: ignore[union-attr]


def test_tabs_divide_a_tsv_file() -> None:
    assert source_at("rows.tsv", SIMULATOR).delimiter == "\t"  # type: ignore[union-attr]


@pytest.mark.parametrize("path", ["rows.csv", "rows.parquet", "rows"])
def test_the_time_and_the_order_of_the_declared_source_are_kept(path: str) -> None:
    source = source_at(path, SIMULATOR)

    assert (source.time_column, source.clustering) == ("at", ("id",))


def test_one_csv_file_in_place_of_another_is_read_in_the_same_way() -> None:
    declared = CsvSource(
        path="a.csv", delimiter=";", encoding="latin-1", null_values=("", "?"), time_column="at"
    )

    assert source_at("b.csv", declared) == declared.model_copy(update={"path": "b.csv"})


@pytest.mark.parametrize(
    ("declared", "kind"),
    [
        ({"kind": "csv", "path": "a"}, CsvSource),
        ({"kind": "parquet", "path": "a"}, ParquetSource),
        ({"kind": "delta", "path": "a", "version": 3}, DeltaSource),
        ({"kind": "sql", "url": "sqlite:///a.db", "query": "SELECT 1"}, SqlSource),
        ({"kind": "sql", "url": {"secret": "DATABASE_URL"}, "query": "SELECT 1"}, SqlSource),
        ({"kind": "simulator", "function": "a.b:c", "table": "t"}, SimulatorSource),
    ],
)
def test_the_kind_decides_what_a_source_is(declared: dict[str, object], kind: type) -> None:
    assert isinstance(TypeAdapter(Source).validate_python(declared), kind)


@pytest.mark.parametrize(
    ("declared", "problem"),
    [
        ({"kind": "csv", "path": "a", "delimiter": "::"}, "at most 1 character"),
        ({"kind": "parquet", "path": "a", "delimiter": ","}, "Extra inputs are not permitted"),
        ({"kind": "delta", "path": "a", "version": -1}, "greater than or equal to 0"),
        ({"kind": "sql", "url": "sqlite:///a.db"}, "query"),
        ({"kind": "sql", "url": {"secret": "no spaces"}, "query": "q"}, "match pattern"),
        ({"kind": "simulator", "function": "simulate", "table": "t"}, "match pattern"),
        ({"kind": "excel", "path": "a"}, "does not match any of the expected tags"),
    ],
)
def test_a_source_of_no_known_shape_is_refused(declared: dict[str, object], problem: str) -> None:
    with pytest.raises(ValidationError, match=problem):
        TypeAdapter(Source).validate_python(declared)


def test_a_password_does_not_stand_in_a_url_and_is_not_repeated() -> None:
    declared = {"kind": "sql", "url": "postgresql://me:hunter2@host/db", "query": "SELECT 1"}

    with pytest.raises(ValidationError, match=r"write `url: \{secret: NAME\}`") as caught:
        TypeAdapter(Source).validate_python(declared)

    assert "hunter2" not in caught.value.errors()[0]["msg"]
