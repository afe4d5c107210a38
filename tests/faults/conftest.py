"""The whole stack on a PostgreSQL and a Redis of its own, which may be harmed."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import NullPool, create_engine, text

from mfa_service.services import schema
from tests.conftest import empty
from tests.faults.servers import PostgreSQL, Redis
from tests.faults.servers import own_redis as redis_of_ones_own
from tests.services import Rows
from tests.stack import Settings, Start, settings_of, stacks


@pytest.fixture(scope="session")
def _own_postgresql() -> Iterator[PostgreSQL]:
    own = PostgreSQL()
    try:
        own.start()
        engine = create_engine(own.url, poolclass=NullPool)
        schema.upgrade(engine)
        yield own
    finally:
        own.close()


@pytest.fixture
def postgresql(_own_postgresql: PostgreSQL) -> Iterator[PostgreSQL]:
    """With nothing in its tables; after the test it is well again."""
    empty(_own_postgresql.url)
    yield _own_postgresql
    _own_postgresql.heal()


@pytest.fixture
def own_redis() -> Iterator[Redis]:
    with redis_of_ones_own() as own:
        yield own


@pytest.fixture
def database(request: pytest.FixtureRequest, postgresql: PostgreSQL, tmp_path: Path) -> str:
    """Of that PostgreSQL; an SQLite where a test asks for one."""
    if getattr(request, "param", "") != "sqlite":
        return postgresql.url
    copy = shutil.copy(request.getfixturevalue("_migrated_sqlite"), tmp_path / "mfa.db")
    return f"sqlite:///{copy}"


@pytest.fixture
def rows(database: str) -> Rows:
    """As of other tests, on a connection that is as old as its statement."""
    engine = create_engine(database, poolclass=NullPool)

    def run(statement: str, **values: Any) -> list[dict[str, Any]]:
        with engine.begin() as connection:
            result = connection.execute(text(statement), values)
            return [dict(row) for row in result.mappings()] if result.returns_rows else []

    return run


@pytest.fixture
def settings(config: dict[str, Any], own_redis: Redis) -> Settings:
    return settings_of(config, own_redis.url) | {"MFA_METRICS": "127.0.0.0/8"}


@pytest.fixture
def start(settings: Settings) -> Iterator[Start]:
    with stacks(settings) as begin:
        yield begin
