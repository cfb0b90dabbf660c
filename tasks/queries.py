"""DuckDB for one task: in UTC, within the environment's memory, and blind to what nobody registered."""

from collections.abc import Iterator
from contextlib import contextmanager

import duckdb

from platforms.platform import Platform
from platforms.scratch import scratch_folder


@contextmanager
def query_session(
    platform: Platform, database: str | None = None, threads: int | None = None
) -> Iterator[duckdb.DuckDBPyConnection]:
    """A connection for one task; what does not fit in memory goes to disk, and is gone afterwards.

    Args:
        platform: whose memory budget and scratch folder it uses.
        database: a DuckDB file to read. Without one the connection sees the tables registered with it and
            nothing else: no files, no variables of the program around it.
        threads: at most so many. With more than one, sums of floating-point numbers differ in their last bits
            from run to run, as the order of addition does.
    """
    with scratch_folder(platform.folder("scratch")) as folder:
        connection = duckdb.connect(
            database or ":memory:",
            read_only=database is not None,
            config={
                "memory_limit": f"{platform.environment.budget.memory_megabytes}MB",
                "temp_directory": str(folder),
                "python_enable_replacements": False,
            },
        )
        try:
            connection.execute("SET TimeZone = 'UTC'")
            if threads is not None:
                connection.execute(f"SET threads = {threads}")
            if database is None:
                connection.execute("SET enable_external_access = false")
                connection.execute("SET lock_configuration = true")
            yield connection
        finally:
            connection.close()


def quoted(name: str) -> str:
    """A column's name as SQL writes it."""
    return '"' + name.replace('"', '""') + '"'
