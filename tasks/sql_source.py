"""A query's rows as a stream, from DuckDB or whatever SQLAlchemy reaches."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa

from deployments.contract import ColumnType, TableContract
from deployments.errors import BadInputError
from deployments.source import SqlSource
from platforms.platform import Platform
from tasks.arrow_types import arrow_type
from tasks.files import existing
from tasks.queries import query_session

_BATCH_ROWS = 131_072
_PAGE_ROWS = 16_384
"""Rows fetched at once where they come as Python values, which are many times larger than Arrow's."""


def read_sql(
    source: SqlSource, contract: TableContract, platform: Platform, beside: Path
) -> pa.RecordBatchReader:
    """Run a query and stream its rows.

    Raises:
        BadInputError: the query fails, gives no rows, or a column changes its type; also while it is read.
    """
    url = source.url if isinstance(source.url, str) else platform.secret(source.url.secret)
    if url.startswith("duckdb:"):
        return _read_duckdb(source, url, platform, beside)
    return _read_sqlalchemy(source, url, contract)


def _read_duckdb(source: SqlSource, url: str, platform: Platform, beside: Path) -> pa.RecordBatchReader:
    import duckdb

    named = url.removeprefix("duckdb://").removeprefix("/")
    if not named or named == ":memory:":
        raise BadInputError("the SQL source names no database file: write duckdb:///file.duckdb")
    database = str(existing(Path(platform.resolve(named, beside))))
    with ExitStack() as until_read:
        try:
            connection = until_read.enter_context(query_session(platform, database))
            found = connection.sql(source.query)
            if found is None:
                raise BadInputError("the SQL source's query gives no rows: it is no SELECT")
            reader = found.to_arrow_reader(_BATCH_ROWS)
        except duckdb.Error as error:
            raise BadInputError(f"the SQL source failed: {_first_line(error)}") from None
        held = until_read.pop_all()

    def batches() -> Iterator[pa.RecordBatch]:
        with held:
            try:
                yield from reader
            except (duckdb.Error, pa.ArrowException, OSError) as error:
                raise BadInputError(f"the SQL source failed: {_first_line(error)}") from None

    return pa.RecordBatchReader.from_batches(reader.schema, batches())


def _read_sqlalchemy(source: SqlSource, url: str, contract: TableContract) -> pa.RecordBatchReader:
    """Rows fetched in pages through a server-side cursor; contract and first page settle the types."""
    from sqlalchemy import create_engine, make_url, text
    from sqlalchemy.exc import SQLAlchemyError
    from sqlalchemy.pool import NullPool

    with ExitStack() as until_read:
        try:
            address = make_url(url)
            sqlite = address.get_backend_name() == "sqlite"
            if sqlite and address.database not in {None, "", ":memory:"}:
                existing(Path(str(address.database)))
            # The stream is read by another thread than the one that opens it.
            options = {"check_same_thread": False} if sqlite else {}
            engine = create_engine(address, poolclass=NullPool, connect_args=options)
            connection = until_read.enter_context(engine.connect()).execution_options(
                stream_results=True, max_row_buffer=_PAGE_ROWS
            )
            # Colons are escaped: the query has no parameters, and times have colons.
            result = connection.execute(text(source.query.replace(":", "\\:")))
            if not result.returns_rows:
                raise BadInputError("the SQL source's query gives no rows: it is no SELECT")
            names, pages = list(result.keys()), result.partitions(_PAGE_ROWS)
            first = next(pages, None)
        except ImportError as error:
            raise BadInputError(
                f"the SQL source needs the Python package {error.name!r}, which is not installed"
            ) from None
        except SQLAlchemyError as error:
            raise _sql_error(error) from None
        if first is None:
            raise BadInputError("the SQL source returned no rows")
        held = until_read.pop_all()
    schema = pa.schema(
        [
            pa.field(
                name, _sql_type(values, contract.columns[name].type if name in contract.columns else None)
            )
            for name, values in zip(names, zip(*first, strict=True), strict=True)
        ]
    )

    def batches() -> Iterator[pa.RecordBatch]:
        page: Any = first
        rows = 0
        with held:
            while page is not None:
                columns = zip(schema, zip(*page, strict=True), strict=True)
                yield pa.RecordBatch.from_arrays([_sql_column(f, v, rows) for f, v in columns], schema=schema)
                rows += len(page)
                try:
                    page = next(pages, None)
                except SQLAlchemyError as error:
                    raise _sql_error(error) from None

    return pa.RecordBatchReader.from_batches(schema, batches())


def _sql_type(values: Sequence[Any], declared: ColumnType | None) -> pa.DataType:
    """What a column is stored as: text where its values are of several kinds, for the contract to judge."""
    try:
        found = pa.array(values).type
    except (pa.ArrowException, OverflowError):
        return pa.string()
    if pa.types.is_null(found):
        return pa.string() if declared is None else arrow_type(declared)
    if pa.types.is_timestamp(found):
        return pa.timestamp("us", "UTC" if found.tz else None)
    if declared is ColumnType.NUMBER and (pa.types.is_integer(found) or pa.types.is_decimal(found)):
        return pa.float64()
    if pa.types.is_decimal(found):
        return pa.decimal128(38, found.scale)
    return found


def _sql_column(field: pa.Field, values: Sequence[Any], rows_before: int) -> pa.Array:
    if pa.types.is_string(field.type):
        values = [value if value is None or isinstance(value, str) else str(value) for value in values]
    if pa.types.is_float64(field.type):
        values = [float(value) if isinstance(value, Decimal) else value for value in values]
    try:
        return pa.array(values, field.type)
    except (pa.ArrowException, OverflowError):
        raise BadInputError(
            f"the SQL source's column {field.name!r} has a value after row {rows_before:,} that is no "
            f"{field.type}, as the values before it are: cast the column in the query"
        ) from None


def _sql_error(error: Exception) -> BadInputError:
    """The database's own words; SQLAlchemy's would repeat the query, and its address."""
    return BadInputError(
        f"the SQL source failed: {_first_line(getattr(error, 'orig', None) or type(error).__name__)}"
    )


def _first_line(error: object) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
