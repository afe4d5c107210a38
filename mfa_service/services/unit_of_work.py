"""Transactions: the outermost call commits; a refusal commits too; a crash rolls back.

A refused attempt has to be remembered although it is raised: a counter that rolls back with the login it refused
is no counter. So a service refuses before it changes anything but the record of the refusal. The audit's signals
fire after the outermost commit, never for what was rolled back and never twice for a unit that was run again.
"""

import functools
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

from sqlalchemy import Connection, Engine, Row, Select
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.orm import Session, scoped_session

from mfa_service.errors import MFAError, Unavailable
from mfa_service.services.admission import Admission

P = ParamSpec("P")
R = TypeVar("R")

#: How often a unit is run at most when the database says that it collided with another, and how long it rests in
#: between, in seconds: at random, up to the first doubled each time, and never over the second. Of many that want one
#: row SERIALIZABLE lets one through at a time: without a rest the others would only be in each other's way.
TRIES = 25
#: The same where its connection was dead or could only read, or its statement's plan was outdated.
_FEW_TRIES = 2
#: After so many seconds it is not begun again.
_LONGEST_TRYING = 10
_FIRST_REST, _LONGEST_REST = 0.005, 0.2
#: A unit that has taken longer is rolled back, in seconds: what is not committed by then never appears.
LONGEST_SECONDS = 30
#: SQLSTATE of a serialization failure and of a deadlock; CockroachDB and YugabyteDB answer the first one, too.
_COLLISIONS = ("40001", "40P01")
#: The same, and the beginning of the message, of a statement whose plan was made before a migration, and of one whose
#: plan somebody has thrown away or left behind, as poolers do.
_PLAN_OUTDATED = {"0A000": "cached plan must not change", "26000": "prepared statement", "42P05": "prepared statement"}
#: SQLSTATE of a table or a column that is missing.
_NOT_MIGRATED = ("42P01", "42703")
#: The same, of a transaction that may change nothing.
_READ_ONLY = "25006"
#: The same, of a database that takes no changes, and of one that is full.
_OUT_OF_ORDER = (*_NOT_MIGRATED, _READ_ONLY, "53100", "53200", "53300")
#: The same, of somebody who has waited for a lock for as long as he may.
LOCK_NOT_AVAILABLE = "55P03"
#: Execution options of a connection: whether its transaction is going to write, and that it runs single statements.
WRITES, SINGLE = "mfa_writes", "mfa_single"


class UnitOfWork:
    """Runs functions in one transaction of the thread's session. `after_commit` gets what the audit collected."""

    def __init__(
        self,
        session: scoped_session[Session],
        single: Engine,
        after_commit: Callable[[list[Any]], None],
        *,
        isolation_level: str | None = None,
    ) -> None:
        """`single` is for statements by themselves; `isolation_level`: for an engine that may have any other."""
        self._session = session
        self._single = single
        self._after_commit = after_commit
        self._admission = Admission()
        self._options = {"isolation_level": isolation_level} if isolation_level else {}

    def run(self, work: Callable[[], R], *, writes: bool) -> R:
        """Run `work`; within another unit it joins that one.

        Raises what `work` raises, and Unavailable where the database is down, locked or out of connections.
        """
        if self._session.info.get("is_in_unit"):
            return work()
        return self._guarded(lambda: self._outermost(work, writes))

    def fetch(self, statement: Select[Any], values: Mapping[str, Any]) -> Sequence[Row[Any]]:
        """The rows that a statement finds; within a unit as a part of it.

        This is for what every request asks: on a connection by itself, without a session and a transaction, which one
        statement that only reads does not need. Raises Unavailable as `run` does.
        """
        if self._session.info.get("is_in_unit"):
            return self._session.execute(statement, values).all()
        return self._guarded(lambda: self._fetched(statement, values))

    def _fetched(self, statement: Select[Any], values: Mapping[str, Any]) -> Sequence[Row[Any]]:
        with self._admission.one(), self._single.connect() as connection:
            return connection.execute(statement, values).all()

    def _guarded(self, work: Callable[[], R]) -> R:
        ends = time.monotonic() + _LONGEST_TRYING
        for tries in range(1, TRIES + 1):
            try:
                return work()
            except (DBAPIError, PoolTimeout) as error:
                if tries < TRIES and time.monotonic() < ends and self._is_worth_a_try(error, tries):
                    _rest(tries)
                    continue
                if not _is_out_of_order(error):
                    raise
                logging.getLogger("mfa_service").error("the database is out of order: %s%s", cause(error), hint(error))
                raise Unavailable from None
        raise AssertionError("the last try returns or raises")

    def _is_worth_a_try(self, error: SQLAlchemyError, tries: int) -> bool:
        if sqlstate(error) in _COLLISIONS:
            return True
        if _has_outdated_plan(error):
            self._single.dispose()  # plans are kept by connections
            return tries <= _FEW_TRIES
        return (_was_dead(error) or sqlstate(error) == _READ_ONLY) and tries <= _FEW_TRIES

    def _outermost(self, work: Callable[[], R], writes: bool) -> R:
        with self._admission.one():
            outcome, events = self._transaction(work, writes)
        self._after_commit(events)
        if isinstance(outcome, MFAError):
            raise outcome
        return outcome

    def _transaction(self, work: Callable[[], R], writes: bool) -> tuple[R | MFAError, list[Any]]:
        """What came of it, and what the audit is to tell of it."""
        session, began = self._session(), time.monotonic()
        session.info.update(is_in_unit=True, events=[])
        try:
            connection = session.connection(execution_options={WRITES: writes, **self._options})
            with _dropped_if_read_only(connection):
                outcome = _outcome(work)
                session.flush()
            if writes and time.monotonic() - began > LONGEST_SECONDS:
                logging.getLogger("mfa_service").error("a transaction took over %s s: undone", LONGEST_SECONDS)
                raise Unavailable  # rolled back by closing: the audit's seals count on it
            _commit(session)
            return outcome, session.info["events"]
        except BaseException:
            session.rollback()  # before it is closed: what was added is new again then, should the unit be run again
            raise
        finally:
            session.info.clear()
            session.close()


@contextmanager
def _dropped_if_read_only(connection: Connection) -> Iterator[None]:
    """Don't keep a connection that may only read: it was opened when nobody was to write, and stays as it was then."""
    try:
        yield
    except DBAPIError as error:
        if sqlstate(error) == _READ_ONLY:
            connection.invalidate(error)
        raise


def _commit(session: Session) -> None:
    try:
        session.commit()
    except DBAPIError as error:
        if not _was_dead(error):
            raise
        # Nobody knows whether it has happened: such a unit is not run again.
        logging.getLogger("mfa_service").error("the database went away in a commit: %s", cause(error))
        raise Unavailable from None


def _has_outdated_plan(error: SQLAlchemyError) -> bool:
    beginning = _PLAN_OUTDATED.get(sqlstate(error) or "")
    return beginning is not None and cause(error).startswith(beginning)


def _was_dead(error: SQLAlchemyError) -> bool:
    """Whether the connection had been closed by the other side; the pool has dropped all that are as old by now."""
    return isinstance(error, DBAPIError) and error.connection_invalidated


def _rest(tries: int) -> None:
    share = os.urandom(1)[0] / 255  # each its own, or those that collided would collide again
    time.sleep(share * min(_LONGEST_REST, _FIRST_REST * 2**tries))


def _is_out_of_order(error: SQLAlchemyError) -> bool:
    """Whether the database is down, locked, full, out of connections, or not migrated: no bug of ours."""
    return isinstance(error, OperationalError | InterfaceError | PoolTimeout) or sqlstate(error) in _OUT_OF_ORDER


def sqlstate(error: SQLAlchemyError) -> str | None:
    """PostgreSQL's code of what went wrong (its appendix A); None on SQLite."""
    driver_error = getattr(error, "orig", None)
    # psycopg 3 says sqlstate, psycopg 2, which a host may use, pgcode.
    return getattr(driver_error, "sqlstate", None) or getattr(driver_error, "pgcode", None)


def cause(error: SQLAlchemyError) -> str:
    """What the driver said, without the statement and its values."""
    return str(getattr(error, "orig", error)).partition("\n")[0]


def hint(error: SQLAlchemyError) -> str:
    """What an operator can do about it, where that is plain."""
    if sqlstate(error) in _NOT_MIGRATED or "no such table" in cause(error) or "no such column" in cause(error):
        return ": run `flask mfa upgrade`"
    if "unsupported startup parameter" in cause(error):
        return ": PgBouncer has to be told `ignore_startup_parameters = options`"
    is_held = sqlstate(error) == LOCK_NOT_AVAILABLE or "database is locked" in cause(error)
    return ": somebody else writes, and does not commit" if is_held else ""


def _outcome(work: Callable[[], R]) -> R | MFAError:
    """The result or the refusal: both are to be committed. A crash passes through."""
    try:
        return work()
    except MFAError as refusal:
        return refusal


class HasUnit(Protocol):
    """A service whose methods can be units."""

    @property
    def unit(self) -> UnitOfWork:
        """What runs them."""


S = TypeVar("S", bound=HasUnit)


def unit_of_work(method: Callable[Concatenate[S, P], R]) -> Callable[Concatenate[S, P], R]:
    """Make a method a unit that writes."""
    return _as_unit(method, writes=True)


def reading(method: Callable[Concatenate[S, P], R]) -> Callable[Concatenate[S, P], R]:
    """Make a method a unit that only reads, and ends its transaction: hashing may follow."""
    return _as_unit(method, writes=False)


def _as_unit(method: Callable[Concatenate[S, P], R], *, writes: bool) -> Callable[Concatenate[S, P], R]:
    def unit(self: S, /, *args: P.args, **kwargs: P.kwargs) -> R:
        return self.unit.run(lambda: method(self, *args, **kwargs), writes=writes)

    return functools.update_wrapper(unit, method)
