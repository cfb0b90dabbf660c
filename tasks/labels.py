"""Labels: what the answers to served requests should have been, as it becomes known, in a table of its own.

A label belongs to one row of one request of the prediction log. It may come late, again, or corrected: the one that
was received last counts, and when the first was received is kept beside it.
"""

from collections.abc import Collection, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from deployments.declared import Declared
from deployments.spec import LoadedSpec
from platforms.platform import Platform
from platforms.snapshot import Snapshot
from tasks.label_files import LABEL, REQUEST, ROW, read_labels
from tasks.monitoring_record import Window
from tasks.queries import query_session, quoted

if TYPE_CHECKING:
    import duckdb

__all__ = ["WITHIN_HOURS", "Added", "add_labels", "labelled_since", "labels_for"]

FIRST = "first_received_at"

_SCHEMA = pa.schema(
    [
        (REQUEST, pa.string()),
        (ROW, pa.int32()),
        (LABEL, pa.string()),
        ("received_at", pa.timestamp("us", "UTC")),
        (FIRST, pa.timestamp("us", "UTC")),
    ]
)
_BATCH_ROWS = 131_072

WITHIN_HOURS = 24.0
"""How long before its moment the request of a label by entity may have been answered."""

_BEGINNING = datetime(1970, 1, 1, tzinfo=UTC)


class Added(Declared):
    """What a file of labels brought.

    Of its `rows`, so many are `new`, so many `corrected` another label, so many were known as they are
    (`unchanged`), and so many are `repeated` further down in the file. `unknown` counts requests that stand in no
    prediction log; None where nobody looked. `unmatched` counts labels by entity and moment that are of no request;
    None where the file names requests.
    """

    rows: int
    new: int
    corrected: int
    unchanged: int
    repeated: int
    unknown: int | None
    unmatched: int | None = None
    snapshot: Snapshot


def add_labels(
    platform: Platform,
    loaded: LoadedSpec,
    file: Path,
    *,
    received_at: datetime | None = None,
    look_up: bool = True,
    within_hours: float = WITHIN_HOURS,
) -> Added:
    """Add the labels of a file, all of them or none; of labels of one row, the one received last counts.

    A file that names entities is joined with the log: each label is of the newest request about its entity that was
    answered to a caller at its moment or before, by at most `within_hours`. One that finds none is counted and not
    kept; the same file may be added again once the request is there, which changes nothing of the others.

    Args:
        platform: whose table of labels it is.
        loaded: the model; its contract says what a label may be.
        file: csv or Parquet, with the columns request_id, label, and row where requests have several (else 0); or with
            the columns of the entity, label, and the moment that the label is about as `as_of` or `time`.
        received_at: when they came, with a time zone; now by default.
        look_up: whether to look in the prediction log for requests that a file names.
        within_hours: how long before its moment a label's request may have been answered.

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
        given = read_labels(platform, loaded, file, connection, moment)
        unknown = unmatched = None
        if given.entity:
            within = timedelta(hours=within_hours)
            _match(platform, platform.endpoint(name), given.entity, within, connection)
            ((matched,),) = connection.sql("SELECT count(*) FROM received").fetchall()
            unmatched = given.rows - matched
        else:
            connection.execute("ALTER TABLE given RENAME TO received")
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
        rows=given.rows,
        new=new,
        corrected=corrected,
        unchanged=unchanged,
        repeated=given.rows - (unmatched or 0) - new - corrected - unchanged,
        unknown=unknown,
        unmatched=unmatched,
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
        for batch in platform.tables.batches(snapshot, [REQUEST, ROW, LABEL, "received_at"])
    ]
    labels = pa.Table.from_batches(found).sort_by("received_at")
    keys = zip(labels[REQUEST].to_pylist(), labels[ROW].to_pylist(), strict=True)
    return dict(zip(keys, labels[LABEL].to_pylist(), strict=True))


def labelled_since(platform: Platform, model: str, since: datetime) -> int:
    """How many rows that were answered to callers had their first label from a moment (with a time zone) on.

    A label that was corrected or sent again is the same row's, and one of a request that stands in no prediction log
    is of none.

    Raises:
        ContenderError: the log cannot be read now.
    """
    snapshot = platform.tables.latest(platform.table("labels", model, "labels"))
    log = platform.predictions(platform.endpoint(model)) if snapshot is not None else None
    if log is None:
        return 0
    answered = ~ds.field("shadow") & (ds.field("status_code") < 400)
    with query_session(platform) as connection:
        connection.register("labels", _standing(platform, snapshot))
        connection.execute(
            f'CREATE TABLE fresh AS SELECT {REQUEST}, "{ROW}" FROM labels WHERE {FIRST} >= $since',
            {"since": since},
        )
        logged = log.dataset.scanner(
            ["databricks_request_id", "row"], filter=answered, batch_size=_BATCH_ROWS
        )
        connection.register("log", logged.to_reader())
        ((count,),) = connection.sql(
            f"""
            SELECT count(*) FROM fresh
            SEMI JOIN log ON log.databricks_request_id = fresh.{REQUEST} AND log."row" = fresh."{ROW}"
            """
        ).fetchall()
    return int(count)


# Which request a label is of ---------------------------------------------------------------------------------


def _match(
    platform: Platform,
    endpoint: str,
    entity: Mapping[str, str],
    within: timedelta,
    connection: "duckdb.DuckDBPyConnection",
) -> None:
    """Make the table `received` of `given`, by the newest answered request of each entity up to each moment.

    Where several moments find the same request, the label of the latest of them is the last of it.
    """
    from tasks.live_window import answered_entities

    connection.execute(
        f'CREATE TABLE received ({REQUEST} VARCHAR, "{ROW}" INTEGER, {LABEL} VARCHAR, place BIGINT)'
    )
    log = platform.predictions(endpoint)
    if log is None:
        return
    ((first, last),) = connection.sql("SELECT min(moment), max(moment) FROM given").fetchall()
    span = Window(start=first - within, end=last + timedelta(microseconds=1))
    connection.register("log", answered_entities(log, span))
    keys = {name: f"try_cast(entity[{_text(name)}] AS {kind})" for name, kind in entity.items()}
    connection.execute(
        f"""
        CREATE TABLE answered AS
        SELECT {", ".join(f"{key} AS {quoted(name)}" for name, key in keys.items())}, request_time,
            max(struct_pack(id := databricks_request_id, place := "row")) AS request
        FROM log GROUP BY ALL
        """
    )
    same = " AND ".join(f"given.{quoted(name)} = answered.{quoted(name)}" for name in entity)
    connection.execute(
        f"""
        INSERT INTO received
        SELECT answered.request.id, answered.request.place, {LABEL}, row_number() OVER (ORDER BY moment, given.place)
        FROM given ASOF JOIN answered ON {same} AND given.moment >= answered.request_time
        WHERE given.moment - answered.request_time <= $within
        """,
        {"within": within},
    )
    connection.unregister("log")


def _text(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"


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
    connection.register("standing", _standing(platform, standing))
    connection.execute(
        f"""
        CREATE TABLE merged AS
        WITH last AS (
            SELECT {REQUEST}, "{ROW}", arg_max({LABEL}, place) AS {LABEL}, $moment::TIMESTAMPTZ AS received_at
            FROM received GROUP BY {REQUEST}, "{ROW}"
        ),
        both_of_them AS (
            SELECT {REQUEST}, "{ROW}", standing.{LABEL} AS former, last.{LABEL} AS latter,
                standing.received_at AS then_, last.received_at AS now_, coalesce({FIRST}, now_) AS {FIRST},
                latter IS NOT NULL AS received,
                received AND (former IS NULL OR (former <> latter AND now_ >= then_)) AS changed
            FROM standing FULL JOIN last USING ({REQUEST}, "{ROW}")
        )
        SELECT {REQUEST}, "{ROW}", CASE WHEN changed THEN latter ELSE former END AS {LABEL},
            CASE WHEN changed THEN now_ ELSE then_ END AS received_at, {FIRST}, former, received
        FROM both_of_them
        """,
        {"moment": moment},
    )
    connection.unregister("standing")


def _standing(platform: Platform, snapshot: Snapshot | None) -> pa.RecordBatchReader:
    """The labels of a version of the table; one without first moments knows none before the last."""

    def batches() -> Iterator[pa.RecordBatch]:
        if snapshot is None:
            return
        names = [name if name in snapshot.columns else "received_at" for name in _SCHEMA.names]
        for batch in platform.tables.batches(snapshot, list(dict.fromkeys(names)), _BATCH_ROWS):
            columns = [batch.column(name) for name in names]
            yield pa.RecordBatch.from_arrays(columns, names=_SCHEMA.names).cast(_SCHEMA)

    return pa.RecordBatchReader.from_batches(_SCHEMA, batches())


def _merged(connection: "duckdb.DuckDBPyConnection") -> pa.RecordBatchReader:
    """The labels in an order that their content decides."""
    rows = connection.sql(
        f'SELECT {REQUEST}, "{ROW}", {LABEL}, received_at, {FIRST} FROM merged ORDER BY {REQUEST}, "{ROW}"'
    ).to_arrow_reader(_BATCH_ROWS)

    def batches() -> Iterator[pa.RecordBatch]:
        for batch in rows:
            yield batch.cast(_SCHEMA)

    return pa.RecordBatchReader.from_batches(_SCHEMA, batches())
