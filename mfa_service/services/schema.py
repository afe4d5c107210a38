"""The schema's migrations: where the database stands, and the way to the newest.

The scripts are the top-level `migrations/` of the repository, shipped as the package `mfa_service.migrations`.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import OperationalError

from mfa_service.services.unit_of_work import LOCK_NOT_AVAILABLE, WRITES, sqlstate

VERSION_TABLE = "mfa_alembic_version"
#: Any number that nobody else uses for an advisory lock of PostgreSQL: the bytes of "mfa".
_LOCK = 0x6D6661
#: How long a step waits for a table, in seconds, and how often all of it is tried. Whoever comes meanwhile waits behind
#: it, and a request of the service gives up after five.
_PATIENCE, _TRIES = 3, 5


def upgrade(engine: Engine, revision: str = "head") -> None:
    """Bring the tables to `revision`; what a newer version has migrated stays as it is, for this one gets on with it.

    Raises OperationalError, with nothing changed, where a table is never let go.
    """
    _migrate(engine, _up, revision)


def downgrade(engine: Engine, revision: str) -> None:
    """Take the tables back to `revision`, or to `base`: no tables at all. Raises as `upgrade` does."""
    _migrate(engine, command.downgrade, revision)


def _up(config: Config, revision: str) -> None:
    if not _is_ahead(config.attributes["connection"]):
        command.upgrade(config, revision)


def _migrate(engine: Engine, steps: Callable[[Config, str], None], revision: str) -> None:
    for tries in range(1, _TRIES + 1):
        try:
            with _migrating(engine) as connection:
                steps(_config(connection=connection), revision)
        except OperationalError as error:
            if tries == _TRIES or sqlstate(error) != LOCK_NOT_AVAILABLE:
                raise
            time.sleep(_PATIENCE)  # those who have queued up behind us go first
        else:
            return


@contextmanager
def _migrating(engine: Engine) -> Iterator[Connection]:
    """One transaction for all steps.

    SQLite alters a table by making it anew, and dropping the old one would take the rows that refer to it along: so
    foreign keys are off meanwhile, and looked at before the end.
    """
    with engine.connect().execution_options(**{WRITES: True}) as connection:
        is_sqlite = engine.dialect.name == "sqlite"
        driver: Any = connection.connection.driver_connection
        if is_sqlite:
            driver.execute("PRAGMA foreign_keys=OFF")
        try:
            with connection.begin():
                if not is_sqlite:
                    # A pooler may have timeouts for requests; these of ours take as long as the tables are large.
                    connection.exec_driver_sql("SET LOCAL statement_timeout = 0")
                    connection.exec_driver_sql("SET LOCAL lock_timeout = 0")
                    # Of replicas that start together one migrates; the others wait, and find it done.
                    connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})
                    connection.exec_driver_sql(f"SET LOCAL lock_timeout = '{_PATIENCE}s'")
                yield connection
                if is_sqlite and connection.exec_driver_sql("PRAGMA foreign_key_check").first():
                    raise RuntimeError("the migration broke a reference: nothing was changed")
        finally:
            if is_sqlite:
                driver.execute("PRAGMA foreign_keys=ON")


def find_current(engine: Engine) -> str | None:
    """The revision that the database is at, or None for one that was never migrated."""
    with engine.connect() as connection:
        return _current(connection)


def is_ahead(engine: Engine) -> bool:
    """Whether a newer version has migrated the database, to a revision that this one does not know."""
    with engine.connect() as connection:
        return _is_ahead(connection)


def _is_ahead(connection: Connection) -> bool:
    known = {script.revision for script in ScriptDirectory.from_config(_config()).walk_revisions()}
    return _current(connection) not in known | {None}


def _current(connection: Connection) -> str | None:
    return MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE}).get_current_revision()


def newest() -> str | None:
    """The revision that this version of the package wants."""
    return ScriptDirectory.from_config(_config()).get_current_head()


def _config(**attributes: object) -> Config:
    config = Config()
    config.set_main_option("script_location", str(_folder()))
    config.attributes.update(attributes)
    return config


def _folder() -> Path:
    spec = find_spec("mfa_service.migrations")
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError("the package holds no migrations")
    return Path(next(iter(spec.submodule_search_locations)))
