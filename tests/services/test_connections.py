"""Connections to PostgreSQL: what they remember, and what happens when the other side has closed them."""

import time
from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import Column, Engine, MetaData, String, Table, create_engine, select, text

from mfa_service.config import Settings
from mfa_service.errors import Unavailable
from mfa_service.services import Services, database
from mfa_service.services.database import options_for
from tests.conftest import Clock

pytestmark = [
    pytest.mark.services,
    pytest.mark.parametrize("database", ["postgresql"], indirect=True),
]
NOTES = Table("notes_of_a_test", MetaData(), Column("note", String(5)))


def test_plans_are_kept_where_the_database_itself_answers(served: Services) -> None:
    look(served, 6)
    with served.engine.connect() as connection:
        kept = connection.execute(text("SELECT statement FROM pg_prepared_statements")).scalars().all()
    assert [statement for statement in kept if "notes_of_a_test" in statement] != []


def test_a_plan_from_before_a_migration_is_made_anew(served: Services, other: Engine) -> None:
    look(served, 6)
    with other.begin() as connection:
        connection.execute(text("ALTER TABLE notes_of_a_test ALTER COLUMN note TYPE varchar(9)"))
    assert look(served) == [("early",)]


def test_plans_that_somebody_threw_away_are_made_anew(served: Services) -> None:
    # As a pooler does that hands a connection on; in a block and without a transaction, or the driver would see it.
    look(served, 6)
    with served.engine.execution_options(isolation_level="AUTOCOMMIT").connect() as connection:
        connection.execute(text("DO $$ BEGIN EXECUTE 'DEALLOCATE ALL'; END $$"))
    assert look(served) == [("early",)]


def test_connections_from_when_nobody_was_to_write_are_replaced_once_one_may(served: Services, other: Engine) -> None:
    with other.connect().execution_options(isolation_level="AUTOCOMMIT") as operator:
        name = operator.execute(text("SELECT current_database()")).scalar()
        operator.execute(text(f'ALTER DATABASE "{name}" SET default_transaction_read_only = on'))
        try:
            close_all(other)
            with served.engine.connect(), served.engine.connect():
                pass  # two of them, for the pool to keep
            with pytest.raises(Unavailable):
                served.unit.run(lambda: add(served, "never"), writes=True)
            with served.engine.connect(), served.engine.connect():
                pass
        finally:
            operator.execute(text(f'ALTER DATABASE "{name}" RESET default_transaction_read_only'))
    other.dispose()
    served.unit.run(lambda: add(served, "later"), writes=True)
    assert look(served) == [("early",), ("later",)]


@pytest.mark.parametrize("idle_seconds", [0, 1.1])
def test_a_connection_that_was_closed_meanwhile_is_replaced(
    served: Services, other: Engine, idle_seconds: float
) -> None:
    look(served)
    served.unit.run(lambda: add(served, "first"), writes=True)
    time.sleep(idle_seconds)
    close_all(other)
    assert look(served) == [("early",), ("first",)]
    close_all(other)
    served.unit.run(lambda: add(served, "later"), writes=True)
    assert look(served) == [("early",), ("first",), ("later",)]


def test_a_unit_whose_connection_dies_under_it_is_run_again_and_counts_once(served: Services, other: Engine) -> None:
    tries: list[str] = []

    def work() -> None:
        add(served, "once")
        tries.append("")
        if len(tries) == 1:
            close_all(other)
            add(served, "never")

    served.unit.run(work, writes=True)
    assert (len(tries), look(served)) == (2, [("early",), ("once",)])


def test_a_unit_whose_connection_dies_in_the_commit_is_not_run_again(served: Services, other: Engine) -> None:
    tries: list[str] = []

    def work() -> None:
        add(served, "maybe")
        tries.append("")
        close_all(other)

    with pytest.raises(Unavailable):
        served.unit.run(work, writes=True)
    assert (len(tries), look(served)) == (1, [("early",)])


def test_a_connection_that_says_nothing_for_too_long_is_closed_and_another_one_goes_on(
    served: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "_LONGEST_SILENCE", 0.5)
    look(served)
    began = time.monotonic()
    with pytest.raises(Unavailable):
        served.unit.run(lambda: served.session.connection().execute(text("SELECT pg_sleep(10)")), writes=False)
    assert 0.5 <= time.monotonic() - began < 5
    assert look(served) == [("early",)]


def look(served: Services, times: int = 1) -> list[Any]:
    return [served.unit.fetch(select(NOTES.c.note).order_by(NOTES.c.note), {}) for _ in range(times)][-1]  # type: ignore[return-value]


def add(served: Services, note: str) -> None:
    served.session.connection().execute(NOTES.insert(), {"note": note})


def close_all(other: Engine) -> None:
    """End every other connection, as a restart of the database does."""
    others = text(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()"
        " AND datname = current_database() AND application_name = 'test_connections'"
    )
    with other.begin() as connection:
        connection.execute(others)
    time.sleep(0.1)


@pytest.fixture
def other(postgresql: str) -> Iterator[Engine]:
    engine = create_engine(postgresql)
    with engine.begin() as connection:
        NOTES.create(connection)
        connection.execute(NOTES.insert(), {"note": "early"})
    yield engine
    with engine.begin() as connection:
        NOTES.drop(connection)
    engine.dispose()


@pytest.fixture
def served(other: Engine, config: dict[str, Any], postgresql: str, clock: Clock) -> Iterator[Services]:
    options = options_for(postgresql)
    options["connect_args"]["application_name"] = "test_connections"
    engine = create_engine(postgresql, **options)
    services = Services(Settings.load(config | {"MFA_DATABASE_URL": postgresql}), engine, clock)
    yield services
    services.close()
