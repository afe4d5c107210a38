"""The engine and the sessions that services work on: a host's engine borrowed, never its session.

SQLite runs in WAL with a busy timeout, and units that write begin with BEGIN IMMEDIATE: a read that grows into a
write fails at once with "database is locked", whatever the timeout. These are settings of a connection, so on
SQLite we open an engine of our own on the same file and leave the host's alone.
"""

from typing import Any, cast

from sqlalchemy import Connection, CursorResult, Engine, Update, create_engine, event
from sqlalchemy.orm import Session, scoped_session, sessionmaker

from mfa_service.errors import ConfigurationError
from mfa_service.services.unit_of_work import WRITES

#: How long SQLite waits for another writer, in seconds.
_BUSY_SECONDS = 5


def engine_for(host: Engine) -> Engine:
    """The engine to work on: the host's own, or on SQLite a new one on the same file.

    Raises ConfigurationError for a database in memory, which every connection would have for itself.
    """
    if host.dialect.name != "sqlite":
        return host
    if host.url.database in (None, "", ":memory:") or host.url.query.get("mode") == "memory":
        raise ConfigurationError(
            ["MFA_DATABASE_URL: SQLite needs a file, :memory: is another database in every thread"]
        )
    engine = create_engine(
        host.url, pool_size=20, max_overflow=20, hide_parameters=True, connect_args={"timeout": _BUSY_SECONDS}
    )
    event.listen(engine, "connect", _configure_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def sessions_on(engine: Engine) -> scoped_session[Session]:
    """One session for each thread; what was loaded stays readable after the commit."""
    return scoped_session(sessionmaker(engine, expire_on_commit=False))


def changes_one(session: scoped_session[Session], statement: Update) -> bool:
    """Run a conditional UPDATE and say whether it found its one row: this is how races are settled."""
    return cast("CursorResult[Any]", session.execute(statement)).rowcount == 1


def _configure_sqlite(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # the driver begins no transaction behind our back
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {pragma}")


def _begin_sqlite(connection: Connection) -> None:
    writes = connection.get_execution_options().get(WRITES)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
