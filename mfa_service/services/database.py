"""The engine and the sessions that services work on: a host's engine borrowed, never its session.

SQLite runs in WAL with a busy timeout, and units that write begin with BEGIN IMMEDIATE: a read that grows into a
write fails at once with "database is locked", whatever the timeout. These are settings of a connection, so on
SQLite we open an engine of our own on the same file and leave the host's alone.
"""

import os
import re
import time
import weakref
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

from sqlalchemy import (
    URL,
    BigInteger,
    ColumnElement,
    Connection,
    CursorResult,
    Engine,
    Executable,
    Integer,
    Select,
    and_,
    create_engine,
    event,
    false,
    or_,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import InvalidatePoolError
from sqlalchemy.orm import InstrumentedAttribute, scoped_session, sessionmaker
from sqlalchemy.orm import Session as Transaction

from mfa_service.errors import ConfigurationError
from mfa_service.services.unit_of_work import SINGLE, WRITES

T = TypeVar("T")

_EPOCH, _MICROSECOND = datetime.fromtimestamp(0, UTC), timedelta(microseconds=1)
_CURSOR = re.compile(r"(?P<time>[0-9]{1,17})-(?P<id>[A-Za-z0-9_-]{1,22})", re.ASCII)
#: Rows on a page of a list.
PAGE = 50
#: So that a request which waits for the database is answered before gunicorn or the proxy gives up, in seconds.
_POSTGRESQL_TIMEOUTS = {"statement_timeout": 20, "lock_timeout": 5, "idle_in_transaction_session_timeout": 60}
#: How long a connection is believed to be alive after it was used, in seconds; and where that is noted.
_TRUSTED_SECONDS, _USED_AT = 1.0, "mfa_used_at"
#: How long PostgreSQL may be silent, in seconds, and where that is noted: it is to give up each statement before, so it
#: is frozen, while its machine goes on acknowledging what it is sent. An idle connection answers a ping at once.
_LONGEST_SILENCE, _LONGEST_PING, _SILENCE = 25, 5, "mfa_silence"
#: How often a statement is run on one connection before its plan is kept.
_PREPARED_AFTER = 5
#: A peer that is gone without a word is noticed in so many seconds, and so is one that takes nothing any more.
_KEEPALIVE = {"keepalives_idle": 5, "keepalives_interval": 2, "keepalives_count": 3, "tcp_user_timeout": 25_000}
#: Whether statements may be prepared shows later: `_prepare_if_direct`.
_POSTGRESQL: dict[str, Any] = {"connect_timeout": 5, "prepare_threshold": None, **_KEEPALIVE}
#: How long SQLite waits for another writer, in seconds.
_BUSY_SECONDS = 5


def engine_for(host: Engine) -> Engine:
    """The engine to work on: the host's own, or on SQLite a new one on the same file.

    Raises ConfigurationError for a database in memory, which every connection would have for itself, and for one of
    another kind.
    """
    if host.dialect.name not in ("sqlite", "postgresql"):
        raise ConfigurationError([f"the database must be SQLite or PostgreSQL, not {host.dialect.name}"])
    if host.dialect.name != "sqlite":
        return host
    if host.url.database in (None, "", ":memory:") or host.url.query.get("mode") == "memory":
        raise ConfigurationError(["SQLite needs a file (each thread has a :memory: of its own): set MFA_DATABASE_URL"])
    engine = _sqlite_at(host.url)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def single_on(engine: Engine) -> Engine:
    """The engine for single statements that only read: the same database, and each by itself, without a transaction.

    On SQLite its connections are its own: an engine whose transactions begin in a way of ours looks after each of
    its statements. On PostgreSQL they are those of `engine`, which may be of any isolation level otherwise.
    """
    if engine.dialect.name == "sqlite":
        return _sqlite_at(engine.url, execution_options={SINGLE: True})
    return engine.execution_options(isolation_level="AUTOCOMMIT", **{SINGLE: True})


def _sqlite_at(url: URL, **options: Any) -> Engine:
    options |= {"pool_size": 20, "max_overflow": 20, "hide_parameters": True}
    engine = create_engine(url, connect_args={"timeout": _BUSY_SECONDS}, **options)
    event.listen(engine, "connect", _configure_sqlite)
    return engine


def options_for(url: str) -> dict[str, Any]:
    """How a running service opens an engine of its own; on SQLite `engine_for` does the rest."""
    if url.startswith("sqlite"):
        return {}
    timeouts = " ".join(f"-c {name}={seconds}s" for name, seconds in _POSTGRESQL_TIMEOUTS.items())
    return {
        "pool_size": 10,
        "max_overflow": 20,
        "pool_timeout": 5,
        "hide_parameters": True,
        "connect_args": {**_POSTGRESQL, "options": timeouts},
    }


def look_after(engine: Engine) -> None:
    """Care for the connections of an engine that is ours; a host cares for its own."""
    _forget_in_children(engine)
    if engine.dialect.name == "postgresql":
        _give_up_on_silence(engine)
        _ping_idle(engine)
        _prepare_if_direct(engine)


def _give_up_on_silence(engine: Engine) -> None:
    """Close a connection to a database that hangs: neither libpq nor the driver would ever stop waiting."""

    def limit(connection: Any, record: Any) -> None:
        wait = connection.wait

        def wait_in_time(*args: Any, **options: Any) -> Any:
            options.setdefault("timeout", record.info.get(_SILENCE, _LONGEST_SILENCE))
            try:
                return wait(*args, **options)
            except engine.dialect.loaded_dbapi.Error:
                if connection.info.transaction_status.name == "ACTIVE":  # the answer is still to come
                    connection.close()
                raise

        connection.wait = wait_in_time

    if engine.driver == "psycopg":
        event.listen(engine, "connect", limit)


def _ping_idle(engine: Engine) -> None:
    """Find out whether a connection is alive before it is used, where nobody has used it for a while.

    SQLAlchemy's own `pool_pre_ping` asks every time, which costs as much as the statement that follows.
    """

    def note(_connection: Any, record: Any) -> None:
        record.info[_USED_AT] = time.monotonic()

    def ensure_alive(connection: Any, record: Any, _proxy: Any) -> None:
        if time.monotonic() - record.info.get(_USED_AT, 0) <= _TRUSTED_SECONDS:
            return
        record.info[_SILENCE] = _LONGEST_PING
        if not _is_alive(engine, connection):
            raise InvalidatePoolError
        record.info[_SILENCE] = _LONGEST_SILENCE

    event.listen(engine, "connect", note)
    event.listen(engine, "checkin", note)
    event.listen(engine, "checkout", ensure_alive)


def _prepare_if_direct(engine: Engine) -> None:
    """Let PostgreSQL remember the plans of statements, which takes longer to make than to follow.

    Not behind a pooler such as PgBouncer: there each transaction may meet another server process, which remembers
    nothing. It shows by the process id that a connection was told at the start, which is not the one that answers.
    """

    def look(connection: Any, _record: Any) -> None:
        connection.autocommit = True  # so that no transaction is left behind
        (answering,) = connection.execute("SELECT pg_backend_pid()").fetchone()
        connection.autocommit = False
        if answering == connection.info.backend_pid:
            connection.prepare_threshold = _PREPARED_AFTER

    if engine.driver == "psycopg":
        event.listen(engine, "connect", look)


def _is_alive(engine: Engine, connection: Any) -> bool:
    try:
        return engine.dialect.do_ping(connection)
    except engine.dialect.loaded_dbapi.Error:
        return False


def engine_of_service(url: str) -> Engine:
    """The engine of a running service, of our own."""
    return create_engine(url, **options_for(url))


def engine_of_command(url: str) -> Engine:
    """An engine for a command of an operator, which may take its time: without the timeouts of a service."""
    return create_engine(url, connect_args={} if url.startswith("sqlite") else _POSTGRESQL)


def loses_timeouts(engine: Engine) -> bool:
    """Whether a pooler in between has kept the timeouts to itself: PgBouncer ignores them where it is told to."""
    with engine.connect() as connection:
        return any(connection.exec_driver_sql(f"SHOW {name}").scalar() == "0" for name in _POSTGRESQL_TIMEOUTS)


def _forget_in_children(engine: Engine) -> None:
    """Let a process that is forked off have connections of its own, whatever was open at that moment."""
    known = weakref.ref(engine)

    def forget() -> None:
        if (inherited := known()) is not None:
            inherited.dispose(close=False)

    os.register_at_fork(after_in_child=forget)


def sessions_on(engine: Engine) -> scoped_session[Transaction]:
    """One session for each thread; what was loaded stays readable after the commit."""
    return scoped_session(sessionmaker(engine, expire_on_commit=False))


def execute(session: scoped_session[Transaction], statement: Executable, **values: Any) -> CursorResult[Any]:
    """Run a statement in the running unit, after what was added. Objects that are loaded already don't notice.

    On the connection: the session would spend longer on finding out which of its objects are meant than this takes.
    A statement that is run all the time is made once, with a bindparam for each of its values.
    """
    session.flush()
    return session.connection().execute(statement, values or None, execution_options={"preserve_rowcount": True})


def rows_changed(session: scoped_session[Transaction], statement: Executable, **values: Any) -> int:
    """Run a statement that changes rows, and say how many it found."""
    return execute(session, statement, **values).rowcount


def changes_one(session: scoped_session[Transaction], statement: Executable, **values: Any) -> bool:
    """Run a conditional statement and say whether it found its one row: this is how races are settled."""
    return rows_changed(session, statement, **values) == 1


def insert_on(dialect: str, table: type[Any]) -> postgresql.Insert | sqlite.Insert:
    """An INSERT that can say what to do ON CONFLICT, which both databases know and SQLAlchemy spells for each."""
    return sqlite.insert(table) if dialect == "sqlite" else postgresql.insert(table)


def rested(steps: Iterable[T]) -> Iterator[T]:
    """The same steps, with a rest after each for as long as it took.

    Batch after batch without a gap would keep everybody else from writing: SQLite lets one writer in at a time, and
    those who wait ask now and then, not in a queue.
    """
    began = time.monotonic()
    for step in steps:
        took = time.monotonic() - began
        yield step
        time.sleep(took)
        began = time.monotonic()


def page(
    session: scoped_session[Transaction],
    query: Select[Any],
    time: InstrumentedAttribute[datetime],
    row_id: InstrumentedAttribute[Any],
    cursor: str | None,
) -> tuple[Sequence[Any], str | None]:
    """A page of rows, newest first by `time` and `row_id`, and the cursor of the next one, if there are more rows.

    The cursor is the place of the last row, so it holds even when that row is gone; one that can't be read leads
    nowhere.
    """
    if cursor is not None:
        place = _CURSOR.fullmatch(cursor)
        query = query.where(_is_past(time, row_id, place["time"], place["id"]) if place else false())
    rows = session.scalars(query.order_by(time.desc(), row_id.desc()).limit(PAGE + 1)).all()
    return rows[:PAGE], _cursor(rows[PAGE - 1], time, row_id) if len(rows) > PAGE else None


def older_than(
    time: InstrumentedAttribute[datetime], row_id: InstrumentedAttribute[Any], at: datetime, after: Any
) -> ColumnElement[bool]:
    """What comes after the row at this place, newest first. The first condition is there for the index."""
    return and_(time <= at, or_(time < at, row_id < after))


def _cursor(row: Any, time: InstrumentedAttribute[datetime], row_id: InstrumentedAttribute[Any]) -> str:
    return f"{(getattr(row, time.key) - _EPOCH) // _MICROSECOND}-{getattr(row, row_id.key)}"


def _is_past(
    time: InstrumentedAttribute[datetime], row_id: InstrumentedAttribute[Any], microseconds: str, after: str
) -> ColumnElement[bool]:
    is_number = isinstance(row_id.type, BigInteger | Integer)
    if is_number and not re.fullmatch("[0-9]{1,18}", after):
        return false()
    at = _EPOCH + int(microseconds) * _MICROSECOND
    return older_than(time, row_id, at, int(after) if is_number else after)


def _configure_sqlite(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # the driver begins no transaction behind our back
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {pragma}")


def _begin_sqlite(connection: Connection) -> None:
    is_writing = connection.get_execution_options().get(WRITES)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if is_writing else "BEGIN")
