"""Features: one query, run by DuckDB for one moment, over tables that end at that moment.

Each source with a time column is shown to the query only up to `as_of`, so a row from the future cannot leak
in even where the query forgets to say so. With labels, the query runs once per cut-off and is joined to the
labels that were known by the run's own `as_of`.
"""

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from deployments.contract import ColumnType
from deployments.errors import BadInputError
from deployments.spec import LoadedSpec
from platforms.platform import Platform
from platforms.snapshot import Snapshot
from tasks.arrow_types import arrow_type
from tasks.progress import stage
from tasks.queries import query_session, quoted

_BATCH_ROWS = 131_072


def clock_of(loaded: LoadedSpec, as_of: datetime | None) -> datetime:
    """The moment a run looks from: the one asked for, or the spec's clock, or now; in UTC.

    Raises:
        BadInputError: the spec's clock is no ISO 8601 moment.
    """
    if as_of is None and loaded.spec.clock is not None:
        try:
            as_of = datetime.fromisoformat(loaded.spec.clock)
        except ValueError:
            raise BadInputError(
                f"{loaded.path}: clock: {loaded.spec.clock!r} is no ISO 8601 moment"
            ) from None
    moment = as_of or datetime.now(UTC)
    return moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)


def build_at(
    loaded: LoadedSpec, platform: Platform, silver: Mapping[str, Snapshot], as_of: datetime
) -> pa.Table:
    """The feature table at one moment: the query over what was known then, ordered by entity.

    The query sees each source up to `as_of`, and of the labels nothing.

    Raises:
        BadInputError: the query fails, or does not give the columns the contract names.
    """
    tables = {
        name: _known_at(loaded, platform, name, silver[name], as_of)
        for name in loaded.spec.sources
        if loaded.spec.labels is None or name != loaded.spec.labels.table
    }
    return run_query(loaded, platform, tables, as_of)


def _known_at(
    loaded: LoadedSpec, platform: Platform, name: str, snapshot: Snapshot, as_of: datetime
) -> ds.Dataset:
    """The rows of a source that were known at a moment; those that tell no time were not."""
    rows, column = platform.tables.open(snapshot), loaded.spec.sources[name].time_column
    if column is None:
        return rows
    kind = loaded.spec.contract[name].columns[column].type
    return rows.filter(_until(kind, pc.field(column), as_of, where=f"sources.{name}.time_column"))


def _until(kind: ColumnType, time: Any, as_of: datetime, where: str) -> Any:
    """The condition that a row was known at a moment; what is dated with a day is known when the day is over."""
    if kind is ColumnType.TIMESTAMP:
        return time <= pa.scalar(as_of, pa.timestamp("us", "UTC"))
    if kind is ColumnType.DATE:
        return time < pa.scalar(as_of.astimezone(UTC).date(), pa.date32())
    raise BadInputError(f"{where}: a column of type {kind} tells no time")


def run_query(
    loaded: LoadedSpec, platform: Platform, tables: Mapping[str, ds.Dataset | pa.Table], as_of: datetime
) -> pa.Table:
    """The spec's query over `tables`, which are all that it can see; typed and ordered as the contract says.

    Raises:
        BadInputError: the query fails, or does not give the columns the contract names.
    """
    assert loaded.sql is not None
    # On one thread, so that the same rows give the same features to the last bit, and no new version.
    with query_session(platform, threads=1) as connection:
        for name, rows in tables.items():
            connection.register(name, rows)
        try:
            built: pa.Table = connection.sql(loaded.sql, params={"as_of": as_of}).to_arrow_table()
        except duckdb.Error as error:
            raise BadInputError(f"{_query(loaded)}: {str(error).strip().splitlines()[0]}") from None
    columns = [*loaded.spec.features.entity, *_carried(loaded)]
    missing = [name for name in columns if name not in built.column_names]
    if missing:
        raise BadInputError(
            f"{_query(loaded)}: the query does not give {', '.join(missing)} "
            f"(it gives {', '.join(built.column_names)})"
        )
    typed = pa.table(
        [_typed(loaded, field, built.column(field.name)) for field in _schema(loaded, columns)],
        schema=_schema(loaded, columns),
    )
    return typed.sort_by([(name, "ascending") for name in loaded.spec.features.entity])


def _typed(loaded: LoadedSpec, field: pa.Field, column: pa.ChunkedArray) -> pa.ChunkedArray:
    try:
        return column.cast(field.type)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        raise BadInputError(
            f"{_query(loaded)}: {field.name!r} is of type {column.type}, and its values do not go into "
            f"{field.type}, as the contract says: cast it in the query"
        ) from None


def _carried(loaded: LoadedSpec) -> list[str]:
    """The feature table's columns other than the entity, as the contract orders them."""
    return [
        name for name in loaded.spec.feature_contract.kept_columns if name not in loaded.spec.features.entity
    ]


def _schema(loaded: LoadedSpec, columns: list[str]) -> pa.Schema:
    declared = loaded.spec.feature_contract.columns
    return pa.schema([pa.field(name, arrow_type(declared[name].type)) for name in columns])


def _query(loaded: LoadedSpec) -> str:
    return str(loaded.path.parent / str(loaded.spec.features.sql))


def build_training_features(
    loaded: LoadedSpec, platform: Platform, silver: Mapping[str, Snapshot], as_of: datetime
) -> Snapshot:
    """The gold table to train and evaluate on: entity, features, target, and the cut-off where there are several.

    Raises:
        BadInputError: no label was known at `as_of`, or the query fails.
    """
    if loaded.spec.features.sql is None:
        return _as_it_is(loaded, platform, silver, as_of, "features")
    stream = (
        _labelled(loaded, platform, silver, as_of)
        if loaded.spec.labels is not None
        else build_at(loaded, platform, silver, as_of).to_reader()
    )
    return platform.tables.write(platform.table("gold", loaded.name, "features"), stream)


def build_features(
    loaded: LoadedSpec, platform: Platform, silver: Mapping[str, Snapshot], as_of: datetime
) -> Snapshot:
    """The gold table to score: entity and features of everyone known at `as_of`, without a target."""
    if loaded.spec.features.sql is None:
        return _as_it_is(loaded, platform, silver, as_of, "current")
    current = build_at(loaded, platform, silver, as_of)
    return platform.tables.write(platform.table("gold", loaded.name, "current"), current.to_reader())


def _as_it_is(
    loaded: LoadedSpec, platform: Platform, silver: Mapping[str, Snapshot], as_of: datetime, name: str
) -> Snapshot:
    """The only source, which is the feature table; a table of its own only where some rows were not yet known."""
    ((source, snapshot),) = silver.items()
    known = _known_at(loaded, platform, source, snapshot, as_of)
    rows = known.count_rows()
    if rows == snapshot.rows:
        return snapshot
    if rows == 0:
        raise BadInputError(f"{loaded.path}: no row of {source} was known at {as_of:%Y-%m-%d %H:%M} UTC")
    return platform.tables.write(platform.table("gold", loaded.name, name), known.scanner().to_reader())


def known_cutoffs(
    loaded: LoadedSpec, connection: duckdb.DuckDBPyConnection, as_of: datetime
) -> list[datetime]:
    """The latest cut-offs with labels that were known at `as_of`, oldest first; as many as the spec asks for.

    `connection` holds the label table as `labels`.

    Raises:
        BadInputError: there is none.
    """
    labels = loaded.spec.labels
    assert labels is not None
    found = (
        connection.table("labels")
        .filter(_label_known(loaded, as_of))
        .project(f"CAST({quoted(labels.as_of)} AS TIMESTAMPTZ) AS cutoff")
        .distinct()
        .order("cutoff DESC")
        .limit(labels.cutoffs)
        .to_arrow_table()
    )
    if found.num_rows == 0:
        raise BadInputError(f"{loaded.path}: labels: none was known at {as_of:%Y-%m-%d %H:%M} UTC")
    return [cutoff.astimezone(UTC) for cutoff in reversed(found.column("cutoff").to_pylist())]


def _label_known(loaded: LoadedSpec, as_of: datetime) -> str:
    """The SQL condition that a label was known, and its cut-off past, at a moment."""
    labels = loaded.spec.labels
    assert labels is not None
    moment = f"TIMESTAMPTZ '{as_of.astimezone(UTC).isoformat()}'"
    known = f"CAST({quoted(labels.as_of)} AS TIMESTAMPTZ) <= {moment}"
    if labels.known_at is not None:
        known += f" AND CAST({quoted(labels.known_at)} AS TIMESTAMPTZ)"
        if loaded.spec.contract[labels.table].columns[labels.known_at].type is ColumnType.DATE:
            known += " + INTERVAL 24 HOUR"  # A day's labels are known when the day is over.
        known += f" <= {moment}"
    return known


def _labelled(
    loaded: LoadedSpec, platform: Platform, silver: Mapping[str, Snapshot], as_of: datetime
) -> pa.RecordBatchReader:
    """The features at each cut-off, joined to the labels of that cut-off."""
    labels, entity, target = loaded.spec.labels, loaded.spec.features.entity, loaded.spec.target.column
    assert labels is not None
    features = [name for name in _carried(loaded) if name not in {labels.as_of, target}]
    schema = _schema(loaded, [*entity, *features])
    schema = schema.append(pa.field(labels.as_of, arrow_type(ColumnType.TIMESTAMP)))
    schema = schema.append(
        pa.field(target, arrow_type(loaded.spec.contract[labels.table].columns[target].type))
    )
    label_table = platform.tables.open(silver[labels.table])
    with query_session(platform) as connection:
        connection.register("labels", label_table)
        cutoffs = known_cutoffs(loaded, connection, as_of)

    def batches() -> Iterator[pa.RecordBatch]:
        rows = 0
        with stage("features", total=len(cutoffs)) as advance, query_session(platform) as connection:
            connection.register("labels", label_table)
            known = connection.table("labels").filter(_label_known(loaded, as_of))
            for cutoff in cutoffs:
                at_cutoff = (
                    f"CAST({quoted(labels.as_of)} AS TIMESTAMPTZ) = TIMESTAMPTZ '{cutoff.isoformat()}'"
                )
                connection.register("built", build_at(loaded, platform, silver, cutoff))
                found = (
                    connection.table("built")
                    .set_alias("f")
                    .join(known.filter(at_cutoff).set_alias("l"), _same_entity(entity))
                    .project(
                        ", ".join(
                            [f"f.{quoted(name)}" for name in (*entity, *features)]
                            + [f"l.{quoted(name)}" for name in (labels.as_of, target)]
                        )
                    )
                    .order(", ".join(quoted(name) for name in entity))
                    .to_arrow_table()
                )
                connection.unregister("built")
                rows += found.num_rows
                yield from found.cast(schema).to_batches(_BATCH_ROWS)
                advance(1)
        if rows == 0:
            raise BadInputError(f"{loaded.path}: labels: none of them is of an entity that has features")

    return pa.RecordBatchReader.from_batches(schema, batches())


def _same_entity(entity: tuple[str, ...]) -> str:
    return " AND ".join(f"f.{quoted(name)} = l.{quoted(name)}" for name in entity)
