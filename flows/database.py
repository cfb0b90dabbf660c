"""The database of a Prefect server: which one is meant, what may be said of it, and whether it can be used.

An address may hold a password. It goes to the server in its environment, never on a command line or into a file,
and what is shown has three stars in its place.
"""

import asyncio
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from deployments.errors import BadInputError, ContenderError

__all__ = ["DATABASE_VARIABLE", "Database", "check_database", "chosen_database", "without_database"]

DATABASE_VARIABLE = "PREFECT_SERVER_DATABASE_CONNECTION_URL"
CONNECT_SECONDS = 10.0

_DRIVERS = {
    "postgresql": "postgresql+asyncpg",
    "postgres": "postgresql+asyncpg",
    "postgresql+asyncpg": "postgresql+asyncpg",
    "sqlite": "sqlite+aiosqlite",
    "sqlite+aiosqlite": "sqlite+aiosqlite",
}
_OLDEST = 14  # PostgreSQL versions before it are out of support


@dataclass(frozen=True)
class Database:
    """A database by its SQLAlchemy address, as Prefect takes it, and as people may see it.

    `chosen` tells one that somebody asked for from the file that Prefect takes where nobody says anything.
    """

    url: str = field(repr=False)
    shown: str
    chosen: bool = True

    @property
    def file(self) -> Path | None:
        """The file of SQLite; None for PostgreSQL."""
        from sqlalchemy.engine import make_url

        url = make_url(self.url)
        return Path(url.database or "") if url.drivername.startswith("sqlite") else None


def chosen_database(given: str | None) -> Database:
    """The database that is asked for: by `given`, or as Prefect's own settings say, which is SQLite by default.

    `postgresql://user@host:port/name` and `sqlite:///path` are enough; the drivers that Prefect needs are filled in.

    Raises:
        BadInputError: this is no address, or of a database that Prefect does not know.
    """
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    whence = "--database" if given else DATABASE_VARIABLE
    try:
        url = make_url(given or _prefects_own())
    except (ArgumentError, ValueError):
        # What was given is not repeated: it may hold a password.
        raise BadInputError(
            f"{whence}: this is no address of a database; write postgresql://user@host:5432/name or sqlite:///path"
        ) from None
    driver = _DRIVERS.get(url.drivername)
    if driver is None:
        raise BadInputError(
            f"{whence}: Prefect keeps its data in PostgreSQL or SQLite, not in {url.drivername!r}"
        )
    url = url.set(drivername=driver)
    if driver == "sqlite+aiosqlite":
        if not url.database or ":memory:" in url.database:
            raise BadInputError(
                f"{whence}: name a file, as in sqlite:////var/lib/prefect.db; a database in memory ends with the server"
            )
        url = url.set(database=str(Path(url.database).expanduser().absolute()))
    elif "sslmode" in url.query:
        # As libpq calls it; the driver's own word for the same is ssl.
        url = url.difference_update_query(["sslmode"]).update_query_dict({"ssl": url.query["sslmode"]})
    by_default = f"sqlite+aiosqlite:///{Path(os.environ['PREFECT_HOME']).absolute() / 'prefect.db'}"
    open_url, shown = url.render_as_string(hide_password=False), url.render_as_string(hide_password=True)
    return Database(open_url, shown, chosen=given is not None or open_url != by_default)


def _prefects_own() -> str:
    from prefect.settings import get_current_settings

    found = get_current_settings().server.database.connection_url
    assert found is not None
    return found.get_secret_value()


def without_database(environment: Mapping[str, str]) -> dict[str, str]:
    """An environment for those who have no business with the database: workers, and the flows that they run."""
    named = ("PREFECT_SERVER_DATABASE_", "PREFECT_API_DATABASE_")
    return {name: value for name, value in environment.items() if not name.startswith(named)}


def check_database(database: Database) -> None:
    """Try the database before a server is begun on it.

    Raises:
        BadInputError: it does not answer, refuses the user, is too old, or lacks what Prefect needs; says which.
    """
    path = database.file
    if path is None:
        asyncio.run(_check_postgresql(database))
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInputError(f"{path.parent}: no folder for Prefect's database: {error.strerror}") from None
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise BadInputError(f"{path}: Prefect's database cannot be written")


async def _check_postgresql(database: Database) -> None:
    import asyncpg
    from sqlalchemy import text
    from sqlalchemy.ext.asyncio import create_async_engine
    from sqlalchemy.pool import NullPool

    engine = create_async_engine(
        database.url, poolclass=NullPool, connect_args={"timeout": CONNECT_SECONDS, "command_timeout": 10}
    )
    try:
        async with engine.connect() as connection:
            found = (await connection.execute(text(_QUESTION))).one()
    except asyncpg.InvalidAuthorizationSpecificationError as error:
        hint = "the password goes into the address, PGPASSWORD or ~/.pgpass"
        raise BadInputError(f"{database.shown} refuses us: {error} ({hint})") from None
    except asyncpg.InvalidCatalogNameError as error:
        raise BadInputError(f"{database.shown}: {error}; make it first, with createdb") from None
    except asyncpg.PostgresError as error:
        raise ContenderError(f"{database.shown}: {error}") from None
    except (OSError, TimeoutError) as error:
        said = str(error) or f"no answer within {CONNECT_SECONDS:g} s"
        raise BadInputError(f"{database.shown} cannot be reached: {said}") from None
    except (TypeError, ValueError, asyncpg.InterfaceError) as error:
        raise BadInputError(f"{database.shown}: the driver asyncpg does not take this: {error}") from None
    finally:
        await engine.dispose()
    if found.version < _OLDEST * 10_000:
        raise BadInputError(
            f"{database.shown} is PostgreSQL {found.version // 10_000}; Prefect needs {_OLDEST} or newer"
        )
    if not found.has_trigrams:
        raise BadInputError(
            f"{database.shown} lacks the extension pg_trgm, which Prefect needs (Debian: postgresql-contrib)"
        )
    if not found.may_create:
        raise BadInputError(
            f"{database.shown}: this user may not make tables in its schema; let it own the database, "
            "or GRANT CREATE ON SCHEMA public TO it"
        )


_QUESTION = """
select current_setting('server_version_num')::int as version,
       exists (select from pg_available_extensions where name = 'pg_trgm') as has_trigrams,
       coalesce(has_schema_privilege(current_schema(), 'CREATE'), false) as may_create
"""
