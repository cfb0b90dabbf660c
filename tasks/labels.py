"""Labels: what the answers to served requests should have been, as it becomes known, in a table of its own.

A label belongs to one row of one request of the prediction log. It may come late, again, or corrected: the one that
was received last counts.
"""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from deployments.contract import ColumnContract, ColumnType, TableContract
from deployments.declared import Declared
from deployments.errors import BadInputError
from deployments.source import CsvSource, ParquetSource
from deployments.spec import LoadedSpec
from platforms.platform import Platform
from platforms.snapshot import Snapshot
from tasks.queries import query_session

if TYPE_CHECKING:
    import duckdb
    import polars as pl

__all__ = ["Added", "add_labels", "labels_for"]

REQUEST, ROW, LABEL = "request_id", "row", "label"

_SCHEMA = pa.schema(
    [
        (REQUEST, pa.string()),
        (ROW, pa.int32()),
        (LABEL, pa.string()),
        ("received_at", pa.timestamp("us", "UTC")),
    ]
)
_BATCH_ROWS = 131_072
_MOST_ROWS = 2**31 - 1
_BEGINNING = datetime(1970, 1, 1, tzinfo=UTC)


class Added(Declared):
    """What a file of labels brought.

    Of its `rows`, so many are `new`, so many `corrected` another label, so many were known as they are
    (`unchanged`), and so many are `repeated` further down in the file. `unknown` counts requests that stand in no
    prediction log; None where nobody looked.
    """

    rows: int
    new: int
    corrected: int
    unchanged: int
    repeated: int
    unknown: int | None
    snapshot: Snapshot


def add_labels(
    platform: Platform,
    loaded: LoadedSpec,
    file: Path,
    *,
    received_at: datetime | None = None,
    look_up: bool = True,
) -> Added:
    """Add the labels of a file, all of them or none; of labels of one row, the one received last counts.

    Args:
        platform: whose table of labels it is.
        loaded: the model; its contract says what a label may be.
        file: csv or Parquet, with the columns request_id, label, and row where requests have several (else 0).
        received_at: when they came, with a time zone; now by default.
        look_up: whether to look in the prediction log for the requests.

    Raises:
        BadInputError: the file cannot be read, lacks a column or has another, or has values that are no labels.
        BusyError: labels of this model are being added already.
    """
    moment = (received_at or datetime.now(UTC)).astimezone(UTC)
    name = loaded.name
    table = platform.table("labels", name, "labels")
    with (
        platform.alone(f"labels-{table.replace('/', '-')}", f"labels of {name} are being added already"),
        query_session(platform) as connection,
    ):
        rows = _receive(platform, loaded, file, connection)
        unknown = _unknown(platform, platform.endpoint(name), connection) if look_up else None
        standing = platform.tables.latest(table)
        _merge(platform, standing, connection, moment)
        ((new, corrected, unchanged),) = connection.sql(
            "SELECT count(*) FILTER (former IS NULL), count(*) FILTER (former <> label), "
            "count(*) FILTER (former = label) FROM merged WHERE received"
        ).fetchall()
        snapshot = standing
        if snapshot is None or new or corrected:
            snapshot = platform.tables.write(table, _merged(connection))
    return Added(
        rows=rows,
        new=new,
        corrected=corrected,
        unchanged=unchanged,
        repeated=rows - new - corrected - unchanged,
        unknown=unknown,
        snapshot=snapshot,
    )


def labels_for(platform: Platform, model: str, requests: Collection[str]) -> Mapping[tuple[str, int], str]:
    """The labels of some requests by request and row, in the order in which they were received.

    A label is text, as the prediction log has predictions: JSON but for quotes (`true`, `1`, `0.5`, `malignant`).
    """
    snapshot = platform.tables.latest(platform.table("labels", model, "labels"))
    if snapshot is None or not requests:
        return {}
    wanted = pa.array(list(requests), pa.string())
    found = [
        batch.filter(pc.is_in(batch.column(REQUEST).cast(pa.string()), value_set=wanted))
        for batch in platform.tables.batches(snapshot, _SCHEMA.names)
    ]
    labels = pa.Table.from_batches(found).sort_by("received_at")
    keys = zip(labels[REQUEST].to_pylist(), labels[ROW].to_pylist(), strict=True)
    return dict(zip(keys, labels[LABEL].to_pylist(), strict=True))


# What a file says -------------------------------------------------------------------------------------------


def _receive(
    platform: Platform, loaded: LoadedSpec, file: Path, connection: "duckdb.DuckDBPyConnection"
) -> int:
    """Read a file into the table `received`; the number of its rows."""
    stream = _opened(platform, file)
    declared = loaded.spec.training_contract.columns[loaded.spec.target.column]
    _expect_columns(stream.schema.names, file)
    connection.execute(
        f'CREATE TABLE received ({REQUEST} VARCHAR, "{ROW}" INTEGER, {LABEL} VARCHAR, place BIGINT)'
    )
    faults, rows = _Faults(file), 0
    for batch in stream:
        labels = _labels(batch, declared, faults, rows)
        rows += batch.num_rows
        if not faults.found:
            connection.register("batch", labels)
            connection.execute("INSERT INTO received SELECT * FROM batch")
            connection.unregister("batch")
    faults.expect_none(rows)
    if not rows:
        raise BadInputError(f"{file}: there are no rows")
    return rows


def _opened(platform: Platform, file: Path) -> pa.RecordBatchReader:
    from tasks.ingest import read_source

    path = str(file.absolute())
    sources: dict[str, CsvSource | ParquetSource] = {
        ".csv": CsvSource(path=path),
        ".tsv": CsvSource(path=path, delimiter="\t"),
        ".parquet": ParquetSource(path=path),
    }
    if file.suffix.lower() not in sources:
        raise BadInputError(f"{file}: labels are read from {', '.join(sources)} files")
    any_columns = TableContract(columns={REQUEST: ColumnContract(type=ColumnType.STRING)})
    return read_source(sources[file.suffix.lower()], any_columns, platform, beside=file.parent)


def _expect_columns(found: list[str], file: Path) -> None:
    missing = [name for name in (REQUEST, LABEL) if name not in found]
    if missing:
        raise BadInputError(f"{file}: missing columns: {', '.join(missing)} (found: {', '.join(found)})")
    others = [name for name in found if name not in {REQUEST, LABEL, ROW}]
    if others:
        raise BadInputError(
            f"{file}: columns that labels do not have: {', '.join(others)} (known: {REQUEST}, {LABEL}, {ROW})"
        )


@dataclass
class _Faults:
    """Values of a file that are no labels: for each kind of fault how many, and the first."""

    file: Path
    found: dict[tuple[str, str], tuple[int, int, Any]] = field(default_factory=dict)

    def note(self, column: str, what: str, wrong: "pl.Series", given: "pl.Series", before: int) -> None:
        """Note the values of a batch where `wrong` is true; `before` rows came before the batch."""
        places = wrong.arg_true()
        if not len(places):
            return
        count, first, value = self.found.get((column, what), (0, before + places[0] + 1, given[places[0]]))
        self.found[column, what] = (count + len(places), first, value)

    def expect_none(self, rows: int) -> None:
        """Raise BadInputError if there is any."""
        if not self.found:
            return
        said = [
            f"column {column!r}: {count:,} of {rows:,} rows {what}, first row {first:,}"
            + ("" if value is None else f" ({value!r})")
            for (column, what), (count, first, value) in self.found.items()
        ]
        raise BadInputError(f"{self.file}: {'; '.join(said)}; nothing was added")


def _labels(batch: pa.RecordBatch, declared: ColumnContract, faults: _Faults, before: int) -> pa.Table:
    """A batch as it is kept: request, row, label as text, and its place in the file."""
    import polars as pl

    from tasks.coercion import POLARS, coerce

    given: Any = pl.from_arrow(batch)
    if ROW not in given.columns:
        given = given.with_columns(pl.lit(0, pl.Int64).alias(ROW))
    wanted = {REQUEST: ColumnType.STRING, ROW: ColumnType.INTEGER, LABEL: declared.type}
    contract = TableContract(columns={name: ColumnContract(type=kind) for name, kind in wanted.items()})
    typed, misfits = coerce(given.select(list(wanted)), contract)
    for name, kind in wanted.items():
        column, wrong = typed[name], misfits.get(name)
        if wrong is not None:
            faults.note(name, f"hold no {kind}", wrong, given[name], before)
        missing = column.is_null() if wrong is None else column.is_null() & ~wrong
        if kind is ColumnType.STRING:
            missing |= (column == "").fill_null(False)
        faults.note(name, "have no value", missing, column, before)
    label, row = typed[LABEL], typed[ROW]
    faults.note(
        ROW, "hold no place in a request", ((row < 0) | (row > _MOST_ROWS)).fill_null(False), row, before
    )
    if declared.type is ColumnType.NUMBER:
        faults.note(LABEL, "hold no finite number", label.is_infinite().fill_null(False), label, before)
    if declared.values is not None:
        values = pl.Series(list(declared.values), dtype=POLARS[declared.type], strict=False)
        other = ~label.is_in(values.implode()).fill_null(True)
        known = ", ".join(str(value) for value in declared.values)
        faults.note(LABEL, f"hold none of the values {known}", other, label, before)
    return pa.table(
        {
            REQUEST: typed[REQUEST].to_arrow(),
            ROW: row.to_arrow(),
            LABEL: label.cast(pl.String).to_arrow(),
            "place": pa.array(range(before, before + batch.num_rows), pa.int64()),
        }
    )


def _unknown(platform: Platform, endpoint: str, connection: "duckdb.DuckDBPyConnection") -> int:
    """How many of the received labels' requests stand in no prediction log."""
    connection.execute(f"CREATE TABLE known ({REQUEST} VARCHAR)")
    with platform.observations(endpoint, _BEGINNING) as requests:
        more = True
        while more:
            found = requests.poll()
            more = found.more
            connection.register("logged", found.table.select([REQUEST]))
            connection.execute(
                f"INSERT INTO known SELECT DISTINCT {REQUEST} FROM logged SEMI JOIN received USING ({REQUEST})"
            )
            connection.unregister("logged")
    ((unknown,),) = connection.sql(
        f"SELECT count(DISTINCT {REQUEST}) FROM received ANTI JOIN known USING ({REQUEST})"
    ).fetchall()
    return int(unknown)


# What stands after it ---------------------------------------------------------------------------------------


def _merge(
    platform: Platform,
    standing: Snapshot | None,
    connection: "duckdb.DuckDBPyConnection",
    moment: datetime,
) -> None:
    """Make the table `merged`: every label, what it was before, and whether the file has it."""
    rows = platform.tables.batches(standing, _SCHEMA.names, _BATCH_ROWS) if standing is not None else iter(())
    stream = pa.RecordBatchReader.from_batches(_SCHEMA, (batch.cast(_SCHEMA) for batch in rows))
    connection.register("standing", stream)
    connection.execute(
        f"""
        CREATE TABLE merged AS
        WITH last AS (
            SELECT {REQUEST}, "{ROW}", arg_max({LABEL}, place) AS {LABEL}, $moment::TIMESTAMPTZ AS received_at
            FROM received GROUP BY {REQUEST}, "{ROW}"
        ),
        both_of_them AS (
            SELECT {REQUEST}, "{ROW}", standing.{LABEL} AS former, last.{LABEL} AS latter,
                standing.received_at AS then_, last.received_at AS now_,
                latter IS NOT NULL AS received,
                received AND (former IS NULL OR (former <> latter AND now_ >= then_)) AS changed
            FROM standing FULL JOIN last USING ({REQUEST}, "{ROW}")
        )
        SELECT {REQUEST}, "{ROW}", CASE WHEN changed THEN latter ELSE former END AS {LABEL},
            CASE WHEN changed THEN now_ ELSE then_ END AS received_at, former, received
        FROM both_of_them
        """,
        {"moment": moment},
    )
    connection.unregister("standing")


def _merged(connection: "duckdb.DuckDBPyConnection") -> pa.RecordBatchReader:
    """The labels in an order that their content decides."""
    rows = connection.sql(
        f'SELECT {REQUEST}, "{ROW}", {LABEL}, received_at FROM merged ORDER BY {REQUEST}, "{ROW}"'
    ).to_arrow_reader(_BATCH_ROWS)

    def batches() -> Iterator[pa.RecordBatch]:
        for batch in rows:
            yield batch.cast(_SCHEMA)

    return pa.RecordBatchReader.from_batches(_SCHEMA, batches())
