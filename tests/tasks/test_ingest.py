"""Ingest: every kind of source, the same content twice, and whatever can be wrong with a file."""

import gzip
import sqlite3
import threading
import uuid
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import write_deltalake
from pydantic import ValidationError

from deployments.contract import TableContract
from deployments.errors import BadInputError, SpecError
from deployments.source import (
    CsvSource,
    DeltaSource,
    ParquetSource,
    SimulatorSource,
    SqlSource,
    source_at,
)
from deployments.spec import load_spec
from tasks import csv_source, ingest, sql_source
from tasks.ingest import arrow_type, describe, ingest_table, read_source

TELCO = Path(__file__).parents[2].parent / "shared/data/telco-churn.csv"

SPEC = """
name: shop
governance: {owner: shop, purpose: Tell who buys again.}
target: {kind: binary, column: bought, positive: "yes"}
sources:
  visits: {kind: csv, path: visits.csv}
contract:
  visits:
    extra_columns: forbid
    columns:
      visit: {type: string}
      pages: {type: integer}
      bought: {type: string}
features: {entity: [visit], numeric: [pages]}
training:
  metric: roc_auc
  candidates: [{name: one, estimator: sklearn.linear_model.LogisticRegression}]
evaluation: {metrics: [roc_auc]}
gates: [{kind: metric, metric: roc_auc, min: 0.5}]
"""

CSV = "visit,pages,bought\nv1,3,yes\nv2,5,no\n"
ROWS = [
    {"visit": "v1", "pages": "3", "bought": "yes"},
    {"visit": "v2", "pages": "5", "bought": "no"},
]


@dataclass
class Shop:
    """A spec in a folder of its own, its contract and sources changed as a test needs."""

    folder: Path
    platform: Any

    def ingest(self, source: Any = None, contract: dict[str, Any] | None = None) -> Any:
        loaded = load_spec(self.folder / "model.yaml")
        if contract is not None:
            spec = loaded.spec.model_copy(update={"contract": {"visits": TableContract(**contract)}})
            loaded = loaded.model_copy(update={"spec": spec})
        return ingest_table(loaded, self.platform, "visits", source or CsvSource(path="visits.csv"))

    def rows(self, source: Any = None, contract: dict[str, Any] | None = None) -> list[dict[str, Any]]:
        return self.platform.tables.read(self.ingest(source, contract)).to_pylist()

    def write(self, content: str | bytes, name: str = "visits.csv") -> Path:
        path = self.folder / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path


@pytest.fixture
def shop(tmp_path, platform, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model.yaml").write_text(SPEC)
    return Shop(folder, platform)


COLUMNS = {"visit": {"type": "string"}, "pages": {"type": "integer"}, "bought": {"type": "string"}}
TABLE = pa.table({"visit": ["v1", "v2"], "pages": [3, 5], "bought": ["yes", "no"]})
TYPED = TABLE.to_pylist()


# Kinds of sources -------------------------------------------------------------------------------------------


def test_a_csv_is_stored_as_text_as_it_was_received(shop):
    shop.write(CSV)

    assert shop.rows() == ROWS


def test_a_tsv_is_a_csv_with_another_delimiter(shop):
    path = shop.write(CSV.replace(",", "\t"), "visits.tsv")

    assert shop.rows(source_at(str(path), like=ParquetSource(path="visits"))) == ROWS
    assert shop.rows(CsvSource(path="visits.tsv", delimiter="\t")) == ROWS


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(CSV.replace("\n", "\r\n"), id="Windows line ends"),
        pytest.param(b"\xef\xbb\xbf" + CSV.encode(), id="byte order mark"),
        pytest.param(b"\xef\xbb\xbf" + CSV.replace("visit,", '"visit",').encode(), id="and a quoted header"),
        pytest.param(CSV.rstrip("\n"), id="no last line end"),
        pytest.param(CSV + "\n\n", id="blank lines at the end"),
        pytest.param(CSV.replace("yes", '"yes"'), id="quotes"),
    ],
)
def test_a_csv_may_be_written_in_many_ways(shop, content):
    shop.write(content)

    assert shop.rows() == ROWS


def test_quoted_values_keep_their_line_ends_quotes_and_delimiters(shop):
    shop.write('visit,pages,bought\n"v\n1",3,"y""e,s"\n')

    assert shop.rows() == [{"visit": "v\n1", "pages": "3", "bought": 'y"e,s'}]


def test_a_header_may_be_quoted_over_two_lines(shop):
    shop.write('"visit\nid",pages,bought\nv1,3,yes\n')

    rows = shop.rows(
        contract={"columns": {"visit\nid": {"type": "string"}, **dict(list(COLUMNS.items())[1:])}}
    )

    assert rows == [{"visit\nid": "v1", "pages": "3", "bought": "yes"}]


def test_quotes_in_the_middle_of_a_value_are_part_of_it(shop):
    shop.write('visit,pages,bought\n5" pipe,3,yes\n')

    assert shop.rows()[0]["visit"] == '5" pipe'


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252", "utf-16", "utf-8"])
def test_a_csv_is_read_in_the_encoding_that_its_source_names(shop, encoding):
    shop.write(CSV.replace("yes", "où").encode(encoding))

    rows = shop.rows(CsvSource(path="visits.csv", encoding=encoding))

    assert rows[0]["bought"] == "où"


def test_null_values_are_those_that_the_source_names(shop):
    shop.write('visit,pages,bought\nv1,,NA\nv2," ","NA"\n')

    rows = shop.rows(CsvSource(path="visits.csv", null_values=("", "NA", " ")))

    assert [(row["pages"], row["bought"]) for row in rows] == [(None, None), (None, None)]


def test_a_parquet_file_keeps_its_types(shop):
    pq.write_table(TABLE, shop.folder / "visits.parquet")

    snapshot = shop.ingest(ParquetSource(path="visits.parquet"))

    assert shop.platform.tables.read(snapshot).equals(TABLE)


def test_a_folder_of_parquet_files_is_one_table_in_the_order_of_names(shop):
    (shop.folder / "visits/later").mkdir(parents=True)
    pq.write_table(TABLE.slice(1), shop.folder / "visits/later/b.parquet")
    pq.write_table(TABLE.slice(0, 1), shop.folder / "visits/a.parquet")
    (shop.folder / "visits/_temporary").mkdir()
    (shop.folder / "visits/_temporary/c.parquet").write_bytes(b"")
    (shop.folder / "visits/.a.parquet.crc.parquet").write_bytes(b"x")

    assert shop.rows(ParquetSource(path="visits")) == TYPED


def test_categories_and_odd_widths_of_other_tools_are_understood(shop):
    odd = pa.table(
        {
            "visit": pa.array(["v1", "v2"]).dictionary_encode(),
            "pages": pa.array([3, 200], pa.uint8()),
            "bought": pa.array(["yes", "no"], pa.large_string()),
        }
    )
    pq.write_table(odd, shop.folder / "visits.parquet")

    rows = shop.rows(ParquetSource(path="visits.parquet"))

    assert rows == [
        {"visit": "v1", "pages": 3, "bought": "yes"},
        {"visit": "v2", "pages": 200, "bought": "no"},
    ]


def test_a_delta_table_is_read_at_its_newest_version_or_the_one_pinned(shop):
    write_deltalake(shop.folder / "visits", TABLE.slice(0, 1))
    write_deltalake(shop.folder / "visits", TABLE, mode="overwrite")

    assert shop.rows(DeltaSource(path="visits")) == TYPED
    assert shop.rows(DeltaSource(path="visits", version=0)) == TYPED[:1]
    with pytest.raises(BadInputError, match="there is no version 5 of this Delta table"):
        shop.ingest(DeltaSource(path="visits", version=5))


def test_a_query_is_read_from_sqlite_by_sqlalchemy(shop):
    database = shop.folder / "shop.db"
    with sqlite3.connect(database) as connection:
        connection.execute("CREATE TABLE visits (visit TEXT, pages INTEGER, bought TEXT)")
        connection.executemany("INSERT INTO visits VALUES (?, ?, ?)", [("v1", 3, "yes"), ("v2", 5, "no")])
    connection.close()

    source = SqlSource(url=f"sqlite:///{database}", query="SELECT * FROM visits WHERE bought <> ':none'")

    assert shop.rows(source) == TYPED


def test_a_query_is_read_from_a_duckdb_file_beside_the_spec(shop):
    with duckdb.connect(str(shop.folder / "shop.duckdb")) as connection:
        connection.execute("CREATE TABLE visits AS SELECT 'v' || i AS visit, i AS pages FROM range(3) t(i)")
    query = "SELECT *, 'no' AS bought FROM visits ORDER BY pages"

    relative = shop.rows(SqlSource(url="duckdb:///shop.duckdb", query=query))
    absolute = shop.rows(SqlSource(url=f"duckdb:///{shop.folder}/shop.duckdb", query=query))

    assert relative == absolute
    assert [row["visit"] for row in relative] == ["v0", "v1", "v2"]


def test_a_query_may_need_no_table_at_all(shop):
    source = SqlSource(url="sqlite://", query="SELECT 'v1' AS visit, 3 AS pages, 'yes' AS bought")

    assert shop.rows(source) == TYPED[:1]


def simulate(table, *, seed, rows=2):
    """A simulator for these tests."""
    if table != "visits":
        raise ValueError(f"unknown table {table!r}")
    named = [f"v{seed}-{row}" for row in range(rows)]
    return pa.table({"visit": named, "pages": range(rows), "bought": ["no"] * rows}).to_reader(1)


@pytest.fixture
def simulator(monkeypatch):
    module = type(ingest)("shop_simulator")
    module.simulate = simulate
    monkeypatch.setitem(__import__("sys").modules, "shop_simulator", module)
    return "shop_simulator:simulate"


def test_a_simulator_is_called_with_its_seed_and_options(shop, simulator):
    rows = shop.rows(SimulatorSource(function=simulator, table="visits", seed=7, options={"rows": 3}))

    assert [row["visit"] for row in rows] == ["v7-0", "v7-1", "v7-2"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"function": "nowhere.at_all:simulate"}, "there is no such function"),
        ({"function": "shop_simulator:other"}, "there is no such function"),
        ({"table": "orders"}, "unknown table 'orders'"),
        ({"options": {"colour": 1}}, "unexpected keyword argument 'colour'"),
    ],
)
def test_a_simulator_that_cannot_be_called_is_a_clear_error(shop, simulator, change, message):
    source = SimulatorSource(**{"function": simulator, "table": "visits", **change})

    with pytest.raises(BadInputError, match=message):
        shop.ingest(source)


# The same content -------------------------------------------------------------------------------------------


def test_the_same_file_again_is_the_same_version(shop):
    shop.write(CSV)
    first = shop.ingest()

    shop.write(CSV)

    assert shop.ingest() == first


def test_the_same_content_in_batches_of_another_size_is_the_same_version(shop, monkeypatch):
    shop.write("visit,pages,bought\n" + "".join(f"v{i},{i},no\n" for i in range(5_000)))
    first = shop.ingest()

    monkeypatch.setattr(csv_source, "_BLOCK_BYTES", 1_000)

    assert shop.ingest() == first


def test_the_same_content_from_another_kind_of_file_is_the_same_version(shop):
    shop.write(CSV)
    first = shop.ingest()
    pq.write_table(pa.Table.from_pylist(ROWS), shop.folder / "a.parquet", row_group_size=1)
    write_deltalake(shop.folder / "delta", pa.Table.from_pylist(ROWS))

    assert shop.ingest(ParquetSource(path="a.parquet")) == first
    assert shop.ingest(DeltaSource(path="delta")) == first


def test_rows_in_another_order_are_the_same_version_where_the_source_orders_them(shop):
    names = ["visit", "pages", "bought"]
    rows = [("v2", 1, "b"), ("v1", 2, "a"), ("v1", 1, "z"), ("v1", 1, "a")]
    for name, some in (("a", rows), ("b", rows[::-1])):
        pq.write_table(pa.table(list(zip(*some, strict=True)), names=names), shop.folder / f"{name}.parquet")

    first = shop.ingest(ParquetSource(path="a.parquet", clustering=("visit",)))
    second = shop.ingest(ParquetSource(path="b.parquet", clustering=("visit",)))

    assert second == first
    stored = [tuple(row.values()) for row in shop.platform.tables.read(first).to_pylist()]
    assert stored == [("v1", 1, "a"), ("v1", 1, "z"), ("v1", 2, "a"), ("v2", 1, "b")]


def test_an_error_in_a_source_that_is_ordered_is_still_the_sources_own(shop):
    shop.write(CSV + "v3,4\n")

    with pytest.raises(BadInputError, match=r"row 3 \(line 4\) has 2 values and the header 3"):
        shop.ingest(CsvSource(path="visits.csv", clustering=("visit",)))


def test_new_content_is_a_new_version(shop):
    shop.write(CSV)
    first = shop.ingest()

    shop.write(CSV + "v3,1,no\n")
    second = shop.ingest()

    assert (first.version, second.version) == (0, 1)
    assert second.rows == 3


# What can be wrong with a file ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param("", r"visits\.csv: the file is empty", id="empty"),
        pytest.param("visit,pages,bought\n", "the file has a header and no rows", id="header only"),
        pytest.param("visit,pages,bought\n\n\n", "there are no rows", id="header and blank lines"),
        pytest.param("\n\nvisit,pages\n", "the first line is blank", id="no header"),
        pytest.param("visit,pages,visit\n1,2,3\n", "the header names 'visit' more than once", id="twice"),
        pytest.param("visit, ,bought\n1,2,3\n", "column 2 of the header has no name", id="no name"),
        pytest.param(CSV + "v3,4", r"row 3 \(line 4\) has 2 values and the header 3", id="half a row"),
        pytest.param(CSV + "v3,4,no,1\nv4,1,no\n", r"row 3 .* has 4 values", id="too many values"),
        pytest.param(CSV + 'v3,4,"no\nv4,1,no\n', "a quote opened in row 3 is never closed", id="open quote"),
        pytest.param(CSV + 'v3,4,"no', "a quote opened in row 3 is never closed", id="open at the end"),
        pytest.param(CSV + 'v3,4,"n"o"\n', "row 3 has a quote inside a quoted value", id="stray quote"),
        pytest.param(CSV.encode() + b"v3,4,\xff\n", "not utf-8 text at byte 42, line 4", id="encoding"),
        pytest.param(
            b"visit,p\xe4ges\n1,2\n", "not utf-8 text at byte 8, line 1", id="encoding of the header"
        ),
        pytest.param(gzip.compress(CSV.encode()), "not utf-8 text at byte 2, line 1", id="compressed"),
    ],
)
def test_a_csv_that_is_not_whole_says_where(shop, content, message):
    shop.write(content)

    with pytest.raises(BadInputError, match=message):
        shop.ingest()

    assert shop.platform.tables.latest("bronze/shop/visits") is None


def test_a_byte_that_is_no_text_is_found_far_into_a_file(shop):
    rows = b"v1,3,yes\n" * 600_000
    shop.write(b"visit,pages,bought\n" + rows + b"v2,5,\xe9\n")

    with pytest.raises(BadInputError, match=r"at byte 5,400,025, line 600,002; name the file's encoding"):
        shop.ingest()


def test_the_wrong_encoding_is_found_where_the_source_names_one(shop):
    shop.write(CSV.replace("yes", "où").encode())

    with pytest.raises(BadInputError, match="not ascii text at byte 26, line 2"):
        shop.ingest(CsvSource(path="visits.csv", encoding="ascii"))
    with pytest.raises(BadInputError, match="there is no encoding called 'klingon'"):
        shop.ingest(CsvSource(path="visits.csv", encoding="klingon"))


def test_the_wrong_delimiter_names_the_columns_it_found(shop):
    shop.write(CSV.replace(",", ";"))

    with pytest.raises(
        BadInputError, match=r"missing columns: visit, pages, bought \(found: visit;pages;bought\)"
    ):
        shop.ingest()


def test_a_row_longer_than_a_block_is_a_clear_error(shop, monkeypatch):
    monkeypatch.setattr(csv_source, "_BLOCK_BYTES", 1 << 20)
    wide = {f"c{i}": {"type": "string"} for i in range(40)}
    shop.write(",".join(wide) + "\n" + ",".join(["v" * 100_000] * 40) + "\n")

    with pytest.raises(BadInputError, match="a row is longer than 1 MB"):
        shop.ingest(contract={"columns": wide})


def test_a_file_that_grows_while_it_is_read_is_refused(shop):
    path = shop.write(CSV)
    contract = TableContract(columns=COLUMNS)
    stream = read_source(CsvSource(path=str(path)), contract, shop.platform, shop.folder)

    with path.open("a") as writer:
        writer.write("v3,1,no\n")

    with pytest.raises(
        BadInputError, match=r"the file changed while it was read; is it still being written\?"
    ):
        stream.read_all()


def test_a_file_replaced_while_it_is_read_is_refused(shop):
    path = shop.folder / "visits.parquet"
    pq.write_table(TABLE, path)
    stream = read_source(
        ParquetSource(path=str(path)), TableContract(columns=COLUMNS), shop.platform, shop.folder
    )

    pq.write_table(TABLE.slice(1), shop.folder / "new")
    (shop.folder / "new").replace(path)

    with pytest.raises(BadInputError, match="changed while it was read"):
        stream.read_all()


def test_a_csv_that_somebody_writes_on_and_on_is_never_stored_in_part(shop):
    path = shop.write("visit,pages,bought\n" + "v1,3,yes\n" * 200_000)
    stop = threading.Event()

    def write_on():
        with path.open("a") as writer:
            while not stop.is_set():
                writer.write("v1,3,yes\n")
                writer.flush()

    writer = threading.Thread(target=write_on)
    writer.start()
    try:
        with pytest.raises(BadInputError, match="changed while it was read"):
            shop.ingest()
    finally:
        stop.set()
        writer.join()

    assert shop.platform.tables.latest("bronze/shop/visits") is None


@pytest.mark.parametrize(
    "source",
    [CsvSource(path="no.csv"), ParquetSource(path="no.parquet"), DeltaSource(path="no/table")],
    ids=lambda source: source.kind,
)
def test_a_file_that_is_not_there_is_named(shop, source):
    with pytest.raises(BadInputError, match=r"model/no.*: there is no such file"):
        shop.ingest(source)


def test_a_folder_is_no_csv(shop):
    with pytest.raises(BadInputError, match="this is a folder; a csv source is one file"):
        shop.ingest(CsvSource(path=str(shop.folder)))


def test_half_a_parquet_file_is_refused(shop):
    pq.write_table(TABLE, shop.folder / "visits.parquet")
    whole = (shop.folder / "visits.parquet").read_bytes()

    shop.write(whole[:-10], "visits.parquet")
    with pytest.raises(BadInputError, match="not a whole Parquet file"):
        shop.ingest(ParquetSource(path="visits.parquet"))

    shop.write(b"", "visits.parquet")
    with pytest.raises(BadInputError, match="the file is empty"):
        shop.ingest(ParquetSource(path="visits.parquet"))


def test_a_parquet_file_damaged_inside_is_refused(shop):
    path = shop.folder / "visits.parquet"
    many = pa.table(
        {"visit": [str(uuid.uuid4()) for _ in range(5_000)], "pages": range(5_000), "bought": ["no"] * 5_000}
    )
    pq.write_table(many, path, use_dictionary=False)
    damaged = bytearray(path.read_bytes())
    damaged[100:2_000] = b"\0" * 1_900
    shop.write(bytes(damaged), "visits.parquet")

    with pytest.raises(BadInputError, match=r"visits\.parquet: the Parquet file is damaged"):
        shop.ingest(ParquetSource(path="visits.parquet"))


def test_parquet_files_of_a_folder_must_agree(shop):
    (shop.folder / "visits").mkdir()
    pq.write_table(TABLE, shop.folder / "visits/a.parquet")
    pq.write_table(
        TABLE.cast(pa.schema([*list(TABLE.schema)[:2], pa.field("bought", pa.large_string())])),
        shop.folder / "visits/b.parquet",
    )

    with pytest.raises(
        BadInputError, match=r"b\.parquet: its columns or types differ from those of .*a\.parquet"
    ):
        shop.ingest(ParquetSource(path="visits"))


def test_an_empty_folder_and_a_delta_table_are_no_parquet(shop):
    (shop.folder / "empty").mkdir()
    write_deltalake(shop.folder / "delta", TABLE)

    with pytest.raises(BadInputError, match="there is no Parquet file in this folder"):
        shop.ingest(ParquetSource(path="empty"))
    with pytest.raises(BadInputError, match="this is a Delta table; name it with kind: delta"):
        shop.ingest(ParquetSource(path="delta"))
    with pytest.raises(BadInputError, match="there is no Delta table here"):
        shop.ingest(DeltaSource(path="empty"))


@pytest.mark.parametrize("kind", ["parquet", "delta", "sql"])
def test_a_source_without_rows_is_refused(shop, kind):
    empty = TABLE.slice(0, 0)
    pq.write_table(empty, shop.folder / "visits.parquet")
    write_deltalake(shop.folder / "delta", empty)
    source = {
        "parquet": ParquetSource(path="visits.parquet"),
        "delta": DeltaSource(path="delta"),
        "sql": SqlSource(
            url="sqlite://", query="SELECT 'a' AS visit, 1 AS pages, 'no' AS bought WHERE 1 = 0"
        ),
    }[kind]

    with pytest.raises(BadInputError, match=r"(there are|returned) no rows"):
        shop.ingest(source)


# Columns ----------------------------------------------------------------------------------------------------


def test_columns_that_are_missing_are_named_with_those_found(shop):
    shop.write("visit,page,bought\nv1,3,yes\n")

    with pytest.raises(
        BadInputError,
        match=r"visits\.csv \(table 'visits'\): missing columns: pages \(found: bought, page, visit\)",
    ):
        shop.ingest()


def test_columns_that_the_contract_does_not_know_are_refused_or_dropped(shop):
    shop.write("visit,colour,pages,bought\nv1,red,3,yes\n")

    with pytest.raises(BadInputError, match="columns the contract does not know: colour"):
        shop.ingest()
    rows = shop.rows(contract={"columns": COLUMNS, "extra_columns": "drop"})

    assert rows == ROWS[:1]


def test_columns_are_stored_in_the_contracts_order(shop):
    shop.write("bought,visit,pages\nyes,v1,3\n")

    assert list(shop.rows()[0]) == ["visit", "pages", "bought"]


def test_a_column_that_stands_twice_in_a_query_is_refused(shop):
    source = SqlSource(url="sqlite://", query="SELECT 'a' AS visit, 1 AS pages, 'no' AS bought, 2 AS pages")

    with pytest.raises(BadInputError, match="columns that stand more than once: pages"):
        shop.ingest(source)


@pytest.mark.parametrize("value", [[1, 2], {"a": 1}, b"bytes"], ids=["list", "struct", "bytes"])
def test_a_column_of_a_type_that_no_table_holds_is_refused_by_name(shop, value):
    pq.write_table(TABLE.set_column(1, "pages", [[value, value]]), shop.folder / "visits.parquet")

    with pytest.raises(BadInputError, match="column 'pages' has the type"):
        shop.ingest(ParquetSource(path="visits.parquet"))


# SQL --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (
            SqlSource(url="sqlite://", query="SELECT * FROM nowhere"),
            "the SQL source failed: no such table: nowhere",
        ),
        (SqlSource(url="sqlite://", query="SELEC 1"), 'the SQL source failed: near "SELEC": syntax error'),
        (
            SqlSource(url="sqlite://", query="CREATE TABLE t (a INT)"),
            "the query gives no rows|query gives no rows",
        ),
        (SqlSource(url="sqlite:///no.db", query="SELECT 1"), "no.db: there is no such file"),
        (SqlSource(url="duckdb:///no.duckdb", query="SELECT 1"), "no.duckdb: there is no such file"),
        (SqlSource(url="duckdb://", query="SELECT 1"), "names no database file"),
        (SqlSource(url="nonsense", query="SELECT 1"), "the SQL source failed: ArgumentError"),
        (SqlSource(url="oracle+nosuch://x", query="SELECT 1"), "the SQL source failed"),
        (SqlSource(url="postgresql+psycopg2://x/y", query="SELECT 1"), "needs the Python package 'psycopg2'"),
    ],
    ids=lambda value: value.url if isinstance(value, SqlSource) else "",
)
def test_bad_sql_is_a_clear_error(shop, source, message):
    with pytest.raises(BadInputError, match=message):
        shop.ingest(source)

    assert not (shop.folder.parent / "no.db").exists()


@pytest.mark.parametrize("query", ["SELECT * FROM nowhere", "SELEC 1", "SELECT 'x'::INT AS pages"])
def test_bad_sql_for_duckdb_is_a_clear_error(shop, query):
    duckdb.connect(str(shop.folder / "shop.duckdb")).close()

    with pytest.raises(BadInputError, match="the SQL source failed: "):
        shop.ingest(
            SqlSource(url="duckdb:///shop.duckdb", query=query),
            contract={"columns": {"pages": {"type": "integer"}}},
        )


def test_a_failure_after_the_first_rows_is_a_clear_error(shop):
    with duckdb.connect(str(shop.folder / "shop.duckdb")) as connection:
        connection.execute(
            "CREATE TABLE t AS SELECT 'v' AS visit, 'no' AS bought, "
            "CASE WHEN i = 999999 THEN 'x' ELSE '1' END AS pages FROM range(1000000) r(i)"
        )
    source = SqlSource(url="duckdb:///shop.duckdb", query="SELECT visit, pages::INT AS pages, bought FROM t")

    with pytest.raises(BadInputError, match=r"the SQL source failed: .*Could not convert"):
        shop.ingest(source)


def test_a_password_does_not_belong_in_a_url():
    with pytest.raises(ValidationError, match="a URL with a password does not belong in YAML"):
        SqlSource(url="postgresql://me:hunter2@host/db", query="SELECT 1")


def test_the_spec_refuses_a_password_without_repeating_it(shop):
    text = SPEC.replace(
        "{kind: csv, path: visits.csv}", "{kind: sql, url: 'pg://me:hunter2@h/d', query: SELECT 1}"
    )
    (shop.folder / "model.yaml").write_text(text)

    with pytest.raises(SpecError) as refused:
        shop.ingest()

    assert "password" in str(refused.value)
    assert "hunter2" not in str(refused.value)


def test_the_url_may_be_a_secret_and_is_never_shown(shop, monkeypatch):
    monkeypatch.setenv("SHOP_URL", "sqlite:////nowhere/hunter2.db?password=hunter2")
    source = SqlSource(url={"secret": "SHOP_URL"}, query="SELECT * FROM visits")

    with pytest.raises(BadInputError) as refused:
        shop.ingest(source)

    assert "password=hunter2" not in str(refused.value)
    assert describe(source) == "the SQL query"


def test_a_secret_that_is_not_there_is_named(shop, monkeypatch):
    from prefect.blocks.system import Secret

    def not_found(name):
        raise ValueError(f"Unable to find block document named {name}")

    monkeypatch.delenv("SHOP_URL", raising=False)
    monkeypatch.setattr(Secret, "load", not_found)

    with pytest.raises(BadInputError, match="secret 'SHOP_URL' is neither an environment variable nor"):
        shop.ingest(SqlSource(url={"secret": "SHOP_URL"}, query="SELECT 1"))


def sqlite_source(shop, rows, create="CREATE TABLE visits (visit, pages, bought)"):
    database = shop.folder / "shop.db"
    connection = sqlite3.connect(database)
    connection.execute(create)
    connection.executemany("INSERT INTO visits VALUES (?, ?, ?)", rows)
    connection.commit()
    connection.close()
    return SqlSource(url=f"sqlite:///{database}", query="SELECT * FROM visits ORDER BY rowid")


def test_a_column_that_begins_with_many_nulls_has_the_contracts_type(shop, monkeypatch):
    monkeypatch.setattr(sql_source, "_PAGE_ROWS", 2)
    source = sqlite_source(shop, [("a", None, "no"), ("b", None, "no"), ("c", 7, "no")])

    snapshot = shop.ingest(source)

    assert shop.platform.tables.read(snapshot).column("pages").to_pylist() == [None, None, 7]


def test_numbers_that_are_whole_at_first_are_still_numbers(shop, monkeypatch):
    monkeypatch.setattr(sql_source, "_PAGE_ROWS", 2)
    source = sqlite_source(shop, [("a", 1, "no"), ("b", 2, "no"), ("c", 2.5, "no")])

    rows = shop.rows(source, contract={"columns": COLUMNS | {"pages": {"type": "number"}}})

    assert [row["pages"] for row in rows] == [1.0, 2.0, 2.5]


def test_a_column_of_several_kinds_is_text_for_the_contract_to_judge(shop):
    source = sqlite_source(shop, [("a", 1, "no"), ("b", "many", "no"), ("c", 2.5, None)])

    rows = shop.rows(source)

    assert [row["pages"] for row in rows] == ["1", "many", "2.5"]
    assert rows[2]["bought"] is None


def test_a_column_that_changes_its_kind_later_says_where(shop, monkeypatch):
    monkeypatch.setattr(sql_source, "_PAGE_ROWS", 2)
    source = sqlite_source(shop, [("a", 1, "no"), ("b", 2, "no"), ("c", "many", "no")])

    with pytest.raises(BadInputError, match="column 'pages' has a value after row 2 that is no int64"):
        shop.ingest(source)


def test_whole_numbers_beyond_64_bits_are_text_for_the_contract_to_judge():
    assert sql_source._sql_type([2**70, 1], None) == pa.string()
    assert sql_source._sql_type([Decimal("1.5")], None) == pa.decimal128(38, 1)


# Personal data ----------------------------------------------------------------------------------------------

PERSONAL = {
    "columns": {
        "visit": {"type": "string"},
        "name": {"type": "string", "pii": "drop"},
        "mail": {"type": "string", "pii": "hash"},
    }
}
PEOPLE = """visit,name,mail
v1,Ada Lovelace,ada@example.org
v2,Alan Turing,alan@example.org
v3,Ada L,ada@example.org
v4,,
"""


def test_personal_data_is_dropped_or_hashed_before_anything_is_stored(shop):
    shop.write(PEOPLE)

    rows = shop.rows(contract=PERSONAL)

    assert [list(row) for row in rows] == [["visit", "mail"]] * 4
    mails = [row["mail"] for row in rows]
    assert mails[0] == mails[2] != mails[1]
    assert mails[3] is None
    assert all(len(mail) == 32 and int(mail, 16) for mail in mails[:3])


def test_no_file_under_the_data_root_holds_personal_data(shop):
    shop.write(PEOPLE)

    shop.ingest(CsvSource(path="visits.csv", clustering=("visit",)), contract=PERSONAL)

    for path in (file for file in shop.platform.root.rglob("*") if file.is_file()):
        content = path.read_bytes()
        assert not any(text in content for text in (b"Lovelace", b"Turing", b"example.org")), path


def test_hashes_are_stable_under_one_key_and_differ_under_another(shop, monkeypatch):
    shop.write(PEOPLE)
    monkeypatch.setenv("CONTENDER_PII_KEY", "first")
    first = shop.ingest(contract=PERSONAL)
    again = shop.ingest(contract=PERSONAL)

    monkeypatch.setenv("CONTENDER_PII_KEY", "second")
    other = shop.ingest(contract=PERSONAL)

    assert again == first
    assert other.digest != first.digest
    assert shop.platform.tables.read(first)["mail"][0].as_py() == hashed("first")


def hashed(key: str) -> str:
    import hashlib
    import hmac

    return hmac.new(key.encode(), b"ada@example.org", hashlib.sha256).hexdigest()[:32]


def test_the_key_is_made_once_and_kept_for_its_owner_alone(shop, monkeypatch):
    monkeypatch.delenv("CONTENDER_PII_KEY", raising=False)
    shop.write(PEOPLE)

    first = shop.ingest(contract=PERSONAL)

    (key,) = shop.platform.folder("secrets").iterdir()
    assert key.stat().st_mode & 0o077 == 0
    assert shop.ingest(contract=PERSONAL) == first


def test_a_number_that_is_hashed_is_hashed_as_its_text(shop):
    people = pa.table({"visit": ["v1"], "name": ["Ada"], "mail": [42]})
    pq.write_table(people, shop.folder / "people.parquet")
    shop.write("visit,name,mail\nv1,Ada,42\n")

    assert shop.ingest(ParquetSource(path="people.parquet"), contract=PERSONAL) == shop.ingest(
        contract=PERSONAL
    )


def test_a_dropped_column_of_an_odd_type_does_no_harm(shop):
    people = pa.table({"visit": ["v1"], "name": [b"a photograph"], "mail": ["a"]})
    pq.write_table(people, shop.folder / "people.parquet")

    assert shop.rows(ParquetSource(path="people.parquet"), contract=PERSONAL)[0]["visit"] == "v1"


# The rest ---------------------------------------------------------------------------------------------------


def test_every_contract_type_has_an_arrow_type():
    values = {"string": "a", "integer": 1, "number": 1.5, "boolean": True}
    moments = {"timestamp": datetime(2024, 1, 1, tzinfo=UTC), "date": date(2024, 1, 1)}

    for kind, value in (values | moments).items():
        assert pa.array([value], arrow_type(kind)).to_pylist() == [value]


@pytest.mark.skipif(not TELCO.exists(), reason=f"the public telecom file is not at {TELCO}")
def test_the_public_telecom_file_is_stored_row_by_row(platform):
    loaded = load_spec("telco")

    source = loaded.spec.sources["customers"].model_copy(update={"path": str(TELCO)})
    snapshot = ingest_table(loaded, platform, "customers", source)

    assert snapshot.rows == 7_043
    assert platform.tables.read(snapshot)["TotalCharges"].null_count == 11
