"""Features: one query, run by DuckDB for one moment, over tables that end at that moment.

Each source with a time column is shown to the query only up to `as_of`, so a row from the future cannot leak in
even where the query forgets to say so. With labels, the query runs once per cut-off and is joined to the labels
that were known by the run's own `as_of`.
"""

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from deployments.contract import ColumnType
from deployments.errors import BadInputError
from deployments.spec import LoadedSpec
from platforms.platform import Platform
from platforms.snapshot import Snapshot
from tasks.ingest import arrow_type
from tasks.progress import stage

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


def _connect(platform: Platform) -> duckdb.DuckDBPyConnection:
    """DuckDB in UTC, within the environment's memory; what does not fit goes to disk."""
    connection = duckdb.connect()
    connection.execute("SET TimeZone = 'UTC'")
    connection.execute(f"SET memory_limit = '{platform.environment.budget.memory_megabytes}MB'")
    connection.execute(f"SET temp_directory = '{platform.folder('scratch')}'")
    return connection


def build_at(
    loaded: LoadedSpec, platform: Platform, silver: Mapping[str, Snapshot], as_of: datetime
) -> pa.Table:
    """The feature table at one moment: the query over what was known then, ordered by entity.

    The query's connection holds each source up to `as_of`, and of the labels nothing.

    Raises:
        BadInputError: the query fails, or does not give the columns the contract names.
    """
    connection = _connect(platform)
    for name, source in loaded.spec.sources.items():
        if loaded.spec.labels is not None and name == loaded.spec.labels.table:
            continue
        rows = platform.tables.open(silver[name])
        if source.time_column is not None:
            rows = rows.filter(pc.field(source.time_column) <= pa.scalar(as_of, pa.timestamp("us", "UTC")))
        connection.register(name, rows)
    assert loaded.sql is not None
    try:
        built = connection.execute(loaded.sql, {"as_of": as_of}).to_arrow_table()
    except duckdb.Error as error:
        raise BadInputError(f"{_query(loaded)}: {str(error).strip().splitlines()[0]}") from None
    columns = [*loaded.spec.features.entity, *_carried(loaded)]
    missing = [name for name in columns if name not in built.column_names]
    if missing:
        raise BadInputError(
            f"{_query(loaded)}: the query does not give {', '.join(missing)} (it gives {', '.join(built.column_names)})"
        )
    typed = built.select(columns).cast(_schema(loaded, columns))
    return typed.sort_by([(name, "ascending") for name in loaded.spec.features.entity])


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


def _quoted(name: str | None) -> str:
    return '"' + str(name).replace('"', '""') + '"'


def build_training_features(
    loaded: LoadedSpec, platform: Platform, silver: Mapping[str, Snapshot], as_of: datetime
) -> Snapshot:
    """The gold table to train and evaluate on: entity, features, target, and the cut-off where there are several.

    Raises:
        BadInputError: no label was known at `as_of`, or the query fails.
    """
    if loaded.spec.features.sql is None:
        return next(iter(silver.values()))
    labels = loaded.spec.labels
    if labels is None:
        gold = build_at(loaded, platform, silver, as_of)
        return platform.tables.write(platform.table("gold", loaded.name, "features"), gold.to_reader())
    stream = _labelled(loaded, platform, silver, as_of)
    return platform.tables.write(platform.table("gold", loaded.name, "features"), stream)


def build_features(
    loaded: LoadedSpec, platform: Platform, silver: Mapping[str, Snapshot], as_of: datetime
) -> Snapshot:
    """The gold table to score: entity and features of everyone known at `as_of`, without a target."""
    if loaded.spec.features.sql is None:
        return next(iter(silver.values()))
    current = build_at(loaded, platform, silver, as_of)
    return platform.tables.write(platform.table("gold", loaded.name, "current"), current.to_reader())


def known_cutoffs(
    loaded: LoadedSpec, connection: duckdb.DuckDBPyConnection, as_of: datetime
) -> list[datetime]:
    """The latest cut-offs whose labels were known at `as_of`, oldest first; at most as many as the spec asks for.

    `connection` holds the label table as `labels`.
    """
    labels = loaded.spec.labels
    assert labels is not None
    rows = connection.execute(
        f"SELECT DISTINCT {_quoted(labels.as_of)} FROM labels WHERE {_quoted(labels.known_at or labels.as_of)} <= $as_of "
        f"ORDER BY 1 DESC LIMIT {labels.cutoffs}",
        {"as_of": as_of},
    ).fetchall()
    if not rows:
        raise BadInputError(f"{loaded.path}: labels: none was known at {as_of:%Y-%m-%d %H:%M} UTC")
    return [row[0].astimezone(UTC) for row in reversed(rows)]


def _labelled(
    loaded: LoadedSpec, platform: Platform, silver: Mapping[str, Snapshot], as_of: datetime
) -> pa.RecordBatchReader:
    labels, entity = loaded.spec.labels, loaded.spec.features.entity
    assert labels is not None
    target = loaded.spec.target.column
    target_type = loaded.spec.contract[labels.table].columns[target].type
    schema = _schema(loaded, [*entity, *_carried(loaded)])
    schema = schema.append(pa.field(labels.as_of, arrow_type(ColumnType.TIMESTAMP)))
    schema = schema.append(pa.field(target, arrow_type(target_type)))
    connection = _connect(platform)
    connection.register("labels", platform.tables.open(silver[labels.table]))
    cutoffs = known_cutoffs(loaded, connection, as_of)
    join = " AND ".join(f"f.{_quoted(name)} = l.{_quoted(name)}" for name in entity)
    query = (
        f"SELECT f.*, l.{_quoted(labels.as_of)}, l.{_quoted(target)} FROM built f JOIN labels l ON {join} "
        f"WHERE l.{_quoted(labels.as_of)} = $cutoff AND l.{_quoted(labels.known_at or labels.as_of)} <= $as_of "
        f"ORDER BY {', '.join(f'f.{_quoted(name)}' for name in entity)}"
    )

    def batches() -> Iterator[pa.RecordBatch]:
        with stage("features", total=len(cutoffs)) as advance:
            for cutoff in cutoffs:
                connection.register("built", build_at(loaded, platform, silver, cutoff))
                found = connection.execute(query, {"cutoff": cutoff, "as_of": as_of}).to_arrow_table()
                connection.unregister("built")
                yield from found.cast(schema).to_batches(_BATCH_ROWS)
                advance(1)

    return pa.RecordBatchReader.from_batches(schema, batches())
