"""The rows of one window of the prediction log: who answered what, with which inputs, and what was true.

Everything is read by the version that answered and streamed: of a window of any size only the columns that are asked
for are read, and only what is asked to be kept is held.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from deployments.contract import ColumnType
from deployments.spec import ModelSpec
from platforms.platform import Platform, Predictions
from tasks.arrow_types import arrow_type
from tasks.frame import model_inputs
from tasks.monitoring_record import Window
from tasks.queries import query_session, quoted

__all__ = [
    "PREDICTION",
    "PREDICTION_NUMBER",
    "SCORE",
    "Calls",
    "EndpointCalls",
    "Joined",
    "answered_batches",
    "answered_entities",
    "columns_of",
    "endpoint_calls",
    "inputs_frame",
    "join_labels",
    "labelled_inputs",
    "labels_within",
    "received_batches",
]

PREDICTION, PREDICTION_NUMBER, SCORE = "prediction", "prediction_number", "score"
_SAID = (PREDICTION, PREDICTION_NUMBER, SCORE)

_NEWEST = """
    QUALIFY row_number() OVER (PARTITION BY log.databricks_request_id, log."row"
        ORDER BY log.request_time DESC, log.log_segment DESC, log.log_offset DESC) = 1
"""
"""Of a row that was answered twice, as after a retry, the last answer."""

_BATCH_ROWS = 65_536
_KINDS = "boolean|integer|long|float|double|string|datetime"
_FORBIDDEN = str.maketrans(dict.fromkeys(" ,;{}()\n\t=", "_"))
"""Characters that the log's table does not allow in names."""


@dataclass(frozen=True)
class Calls:
    """What one version, or all of an endpoint, answered in a window; `shadow` are copies, whose answers nobody saw.

    Of `requests`, `failed` ended on our side (5xx) and `refused` on the caller's (4xx); the others were answered,
    and `rows` were predicted in them. Milliseconds are of those that were answered, None where there are none; `low`
    and `high` are the ends of the 95 % interval of the 95th percentile. `version` is empty where it is all of them.
    """

    version: str = ""
    shadow: bool = False
    requests: int = 0
    failed: int = 0
    refused: int = 0
    rows: int = 0
    p50: float | None = None
    p95: float | None = None
    p95_low: float | None = None
    p95_high: float | None = None


@dataclass(frozen=True)
class EndpointCalls:
    """What an endpoint answered in a window: `whole` to callers, whichever version did, and `versions` one by one.

    Versions stand in their order, what they answered to callers before copies.
    """

    whole: Calls = Calls()
    versions: tuple[Calls, ...] = ()


def endpoint_calls(platform: Platform, log: Predictions, window: Window) -> EndpointCalls:
    """What was answered in a window, by all versions together and by each."""
    columns = ["model_version", "shadow", "row", "status_code", "execution_duration_ms"]
    with query_session(platform) as connection:
        connection.register("log", _scan(log, window, columns))
        connection.execute("CREATE TABLE calls AS SELECT * FROM log")
        found = connection.sql(
            """
            SELECT coalesce(model_version, ''), shadow, count(*) FILTER ("row" = 0),
                count(*) FILTER ("row" = 0 AND status_code >= 500),
                count(*) FILTER ("row" = 0 AND status_code BETWEEN 400 AND 499), count(*) FILTER (status_code < 400)
            FROM calls GROUP BY GROUPING SETS ((model_version, shadow), (shadow))
            """
        ).fetchall()
        calls = []
        for version, shadow, requests, failed, refused, rows in sorted(found, key=_by_version):
            cuts = [0.5, 0.95, *_interval_of_quantile(0.95, requests - failed - refused)]
            ((latencies,),) = connection.execute(
                """
                SELECT quantile_cont(execution_duration_ms, [$0, $1, $2, $3]) FROM calls
                WHERE $version IN ('', model_version) AND shadow = $shadow AND "row" = 0 AND status_code < 400
                """.replace("$0, $1, $2, $3", ", ".join(f"{cut:.9f}" for cut in cuts)),
                {"version": version, "shadow": shadow},
            ).fetchall()
            p50, p95, low, high = latencies or (None,) * 4
            calls.append(Calls(version, shadow, requests, failed, refused, rows, p50, p95, low, high))
    return EndpointCalls(
        whole=next((one for one in calls if not one.version and not one.shadow), Calls()),
        versions=tuple(one for one in calls if one.version),
    )


def _by_version(found: Sequence[Any]) -> tuple[bool, int, str]:
    return found[1], len(found[0]), found[0]


def _interval_of_quantile(quantile: float, count: int) -> tuple[float, float]:
    """The sample's quantiles between which the population's lies with a chance of 95 %.

    By the binomial's normal limit (David & Nagaraja, Order Statistics, 2003, section 7.1).
    """
    spread = 1.96 * float(np.sqrt(quantile * (1 - quantile) / max(count, 1)))
    return max(0.0, quantile - spread), min(1.0, quantile + spread)


def answered_batches(
    log: Predictions, window: Window, version: str, columns: Sequence[str]
) -> Iterator[pa.RecordBatch]:
    """The rows that a version answered to callers: these inputs, prediction (text and number) and score."""
    condition = _answered(version)
    for batch in _scan(log, window, [*_SAID, "features"], condition):
        said = [batch.column(name) for name in _SAID]
        inputs = _inputs(batch.column("features"), columns)
        yield pa.RecordBatch.from_arrays([*inputs, *said], [*columns, *_SAID])


def received_batches(
    log: Predictions, window: Window, version: str, columns: Sequence[str]
) -> Iterator[pa.RecordBatch]:
    """These inputs of all rows that callers sent a version and that could be read, whatever was answered."""
    for batch in _scan(log, window, ["features"], _of_version(version)):
        sent = batch.column("features").drop_null()
        if len(sent):
            yield pa.RecordBatch.from_arrays(_inputs(sent, columns), list(columns))


def answered_entities(log: Predictions, window: Window) -> pa.RecordBatchReader:
    """Each row that any version answered to callers and that named its entity: request, row, time and entity."""
    columns = ["databricks_request_id", "row", "request_time", "entity"]
    condition = ~ds.field("shadow") & (ds.field("status_code") < 400) & ds.field("entity").is_valid()
    return _scan(log, window, columns, condition)


def columns_of(log: Predictions, columns: Sequence[str]) -> tuple[str, ...]:
    """Those of the columns that the log has."""
    there = _fields(log.dataset.schema)
    return tuple(name for name in columns if _standing_for(name, columns, there))


def inputs_frame(rows: pa.Table, spec: ModelSpec) -> pd.DataFrame:
    """Inputs as a model is given them; what is null though it may not be is NaN, and its column of floats."""
    declared, categorical = spec.feature_contract.columns, set(spec.features.categorical.columns)
    strict = {ColumnType.INTEGER, ColumnType.BOOLEAN}
    lacking = {}
    for place, name in enumerate(rows.column_names):
        if name not in spec.features.columns or name in categorical or declared[name].type not in strict:
            continue
        column = rows.column(name)
        if column.null_count and not declared[name].nullable:
            lacking[name] = column.is_null().to_numpy()
            nothing = 0 if declared[name].type is ColumnType.INTEGER else False
            filled = column.cast(arrow_type(declared[name].type)).fill_null(nothing)
            rows = rows.set_column(place, name, filled)
    frame = model_inputs(rows, spec)
    for name, missing in lacking.items():
        frame[name] = frame[name].astype(np.float64).mask(missing)
    return frame


# Labels -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Joined:
    """The labels of a window: `answered` rows may have one, and `rows` has those that do.

    `received` is when the last of them came, None where there are none. The columns: request_id, row, prediction,
    prediction_number, score, label (text), entity (text; the request where it named none), and the inputs that were
    asked for. A row that was answered twice counts once, as answered last.
    """

    answered: int
    rows: pa.Table
    received: datetime | None = None


def join_labels(
    platform: Platform,
    log: Predictions,
    window: Window,
    version: str,
    model: str,
    columns: Sequence[str] = (),
) -> Joined:
    """Join what a version answered to callers in a window with the labels that are known by now."""
    wanted = ["databricks_request_id", "row", "request_time", "log_segment", "log_offset", "entity", *_SAID]
    condition = _answered(version) & ds.field(PREDICTION).is_valid()
    inputs = ", ".join(f"inputs.{quoted(name)}" for name in columns)
    with query_session(platform) as connection:
        reader = _scan(log, window, [*wanted, *(["features"] if columns else [])], condition)
        connection.register("log", _with_inputs(reader, wanted, columns))
        connection.execute(f"CREATE TABLE answered AS SELECT * FROM log {_NEWEST}")
        ((answered,),) = connection.sql("SELECT count(*) FROM answered").fetchall()
        connection.register("labels", _labels(platform, model))
        rows = connection.sql(
            f"""
            SELECT databricks_request_id AS request_id, "row", prediction, prediction_number, score, label, received_at,
                coalesce(entity::VARCHAR, databricks_request_id) AS entity{", " + inputs if inputs else ""}
            FROM answered AS inputs JOIN labels
                ON labels.request_id = inputs.databricks_request_id AND labels.place = inputs."row"
            ORDER BY request_id, "row"
            """
        ).to_arrow_table()
    return Joined(
        int(answered), rows.drop_columns(["received_at"]), pc.max(rows.column("received_at")).as_py()
    )


def labels_within(
    platform: Platform, log: Predictions, model: str, asked: Sequence[tuple[Window, str]]
) -> list[tuple[int, datetime | None]]:
    """How many rows that a version answered in a window have labels by now, and when the last of those came.

    Args:
        platform: whose labels.
        log: what was answered.
        model: whose labels.
        asked: windows, each with a version; the answer has a pair for each.
    """
    if not asked:
        return []
    whole = Window(start=min(window.start for window, _ in asked), end=max(window.end for window, _ in asked))
    columns = ["databricks_request_id", "row", "request_time", "model_version"]
    condition = ~ds.field("shadow") & (ds.field("status_code") < 400) & ds.field(PREDICTION).is_valid()
    spans = pa.table(
        {
            "span": pa.array(range(len(asked)), pa.int64()),
            "version": pa.array([version for _, version in asked], pa.string()),
            "start": pa.array([window.start for window, _ in asked], pa.timestamp("us", "UTC")),
            "end": pa.array([window.end for window, _ in asked], pa.timestamp("us", "UTC")),
        }
    )
    with query_session(platform) as connection:
        connection.register("log", _scan(log, whole, columns, condition))
        connection.register("labels", _labels(platform, model))
        connection.register("spans", spans)
        connection.execute(
            """
            CREATE TABLE labelled AS
            SELECT log.*, received_at FROM log JOIN labels
                ON labels.request_id = log.databricks_request_id AND labels.place = log."row"
            """
        )
        found = connection.sql(
            """
            SELECT span, count(DISTINCT (databricks_request_id, "row")), max(received_at)
            FROM spans JOIN labelled
                ON model_version = version AND request_time >= spans.start AND request_time < spans."end"
            GROUP BY span
            """
        ).fetchall()
    by_span = {span: (int(count), received) for span, count, received in found}
    return [by_span.get(place, (0, None)) for place in range(len(asked))]


def labelled_inputs(
    platform: Platform,
    log: Predictions,
    window: Window,
    version: str,
    joined: Joined,
    columns: Sequence[str],
    *,
    rows: int,
    seed: int,
) -> pa.Table:
    """These inputs of at most `rows` labelled rows, drawn by a seed, with `label`."""
    count = joined.rows.num_rows
    places = np.sort(np.random.default_rng(seed).permutation(count)[:rows])
    drawn = joined.rows.select(["request_id", "row", "label"]).take(pa.array(places))
    key = ["databricks_request_id", "row", "request_time", "log_segment", "log_offset"]
    condition = _answered(version) & ds.field("databricks_request_id").isin(
        drawn["request_id"].combine_chunks()
    )
    with query_session(platform) as connection:
        connection.register(
            "log", _with_inputs(_scan(log, window, [*key, "features"], condition), key, columns)
        )
        connection.register("drawn", drawn)
        return connection.sql(
            f"""
            SELECT {", ".join(f"log.{quoted(name)}" for name in columns)}, drawn.label AS label
            FROM log JOIN drawn ON drawn.request_id = log.databricks_request_id AND drawn."row" = log."row"
            {_NEWEST}
            ORDER BY drawn.request_id, drawn."row"
            """
        ).to_arrow_table()


def _labels(platform: Platform, model: str) -> pa.RecordBatchReader:
    schema = pa.schema(
        [
            ("request_id", pa.string()),
            ("place", pa.int32()),
            ("label", pa.string()),
            ("received_at", pa.timestamp("us", "UTC")),
        ]
    )
    snapshot = platform.tables.latest(platform.table("labels", model, "labels"))
    batches = (
        platform.tables.batches(snapshot, ["request_id", "row", "label", "received_at"])
        if snapshot
        else iter(())
    )
    renamed = (
        pa.RecordBatch.from_arrays(
            [column.cast(field.type) for column, field in zip(batch.columns, schema, strict=True)],
            schema=schema,
        )
        for batch in batches
    )
    return pa.RecordBatchReader.from_batches(schema, renamed)


def _with_inputs(
    reader: pa.RecordBatchReader, wanted: Sequence[str], columns: Sequence[str]
) -> pa.RecordBatchReader:
    plain = pa.schema([reader.schema.field(name) for name in wanted])
    if not columns:
        return reader
    features = pa.schema([reader.schema.field("features")])
    kinds = [one.type for one in _inputs(features.empty_table().column(0).combine_chunks(), columns)]
    schema = pa.schema([*plain, *map(pa.field, columns, kinds)])

    def batches() -> Iterator[pa.RecordBatch]:
        for batch in reader:
            inputs = _inputs(batch.column("features"), columns)
            yield pa.RecordBatch.from_arrays(
                [*(batch.column(name) for name in wanted), *inputs], schema=schema
            )

    return pa.RecordBatchReader.from_batches(schema, batches())


# Reading ----------------------------------------------------------------------------------------------------


def _of_version(version: str) -> ds.Expression:
    return (ds.field("model_version") == version) & ~ds.field("shadow")


def _answered(version: str) -> ds.Expression:
    return _of_version(version) & (ds.field("status_code") < 400)


def _scan(
    log: Predictions, window: Window, columns: Sequence[str], condition: ds.Expression | None = None
) -> pa.RecordBatchReader:
    """Some columns of a window, in the log's order; its partitions are days, and only those it touches are read."""
    start, end = window.start.astimezone(UTC), window.end.astimezone(UTC)
    moment = pa.timestamp("us", "UTC")
    inside = (ds.field("request_date") >= pa.scalar(start.date())) & (
        ds.field("request_date") <= pa.scalar((end - timedelta(microseconds=1)).date())
    )
    inside &= (ds.field("request_time") >= pa.scalar(start, moment)) & (
        ds.field("request_time") < pa.scalar(end, moment)
    )
    there = [name for name in columns if name in log.dataset.schema.names]
    scanner = log.dataset.scanner(
        there,
        filter=inside if condition is None else inside & condition,
        batch_size=_BATCH_ROWS,
        batch_readahead=2,
        fragment_readahead=1,
    )
    if len(there) == len(columns):
        return scanner.to_reader()
    # A log in which no version ever had an input has no column of them.
    schema = pa.schema([_field(log.dataset.schema, name) for name in columns])
    padded = (
        pa.RecordBatch.from_arrays(
            [
                batch.column(name) if name in there else pa.nulls(batch.num_rows, schema.field(name).type)
                for name in columns
            ],
            schema=schema,
        )
        for batch in scanner.to_reader()
    )
    return pa.RecordBatchReader.from_batches(schema, padded)


def _field(schema: pa.Schema, name: str) -> pa.Field:
    return schema.field(name) if name in schema.names else pa.field(name, pa.struct([]))


def _fields(schema: pa.Schema) -> tuple[str, ...]:
    kind = _field(schema, "features").type
    return tuple(kind.field(place).name for place in range(kind.num_fields))


def _standing_for(name: str, columns: Sequence[str], there: Sequence[str]) -> tuple[str, ...]:
    """The fields of the log that may hold a column.

    They have its own name, or that with a type, where an earlier version had another type under the name. What is
    another column's own name is none of them.
    """
    plain = name.translate(_FORBIDDEN) or "_"
    others = {one.translate(_FORBIDDEN) for one in columns if one != name}
    pattern = re.compile(rf"{re.escape(plain)}(_({_KINDS})(_\d+)?)?", re.IGNORECASE)
    return tuple(one for one in there if pattern.fullmatch(one) and one not in others)


def _inputs(features: Any, columns: Sequence[str]) -> list[pa.Array]:
    """Columns out of the log's struct; of a row's fields for one column, the one that its version filled."""
    kind = features.type
    there = [kind.field(place).name for place in range(kind.num_fields)]
    found = []
    for name in columns:
        values = [pc.struct_field(features, one) for one in _standing_for(name, columns, there)]
        if not values:
            found.append(pa.nulls(len(features), pa.string()))
            continue
        kinds: Mapping[Any, None] = dict.fromkeys(value.type for value in values)
        if len(kinds) > 1:
            numbers = all(pa.types.is_integer(one) or pa.types.is_floating(one) for one in kinds)
            values = [value.cast(pa.float64() if numbers else pa.string()) for value in values]
        found.append(pc.coalesce(*values))
    return found
