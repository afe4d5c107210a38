"""Migrations lead to the models, up and down, with data; and the wheel contains them."""

import ast
import os
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Engine, create_engine, inspect
from sqlalchemy.orm import Session

from mfa_service.config import Settings
from mfa_service.models import Base, User
from mfa_service.services import Services, schema
from mfa_service.services.audit import ClientInfo
from tests.conftest import ROOT, Clock
from tests.factories import PASSWORD

#: The last revision that was not deployed anywhere by itself.
BEFORE_RELEASE = "0003"
ON_POSTGRESQL = pytest.mark.parametrize(
    "engine", [pytest.param("postgresql", marks=pytest.mark.services)], indirect=True
)


def test_the_newest_revision_equals_the_models(engine: Engine) -> None:
    schema.upgrade(engine)
    with engine.connect() as connection:
        context = MigrationContext.configure(
            connection, opts={"version_table": schema.VERSION_TABLE, "compare_type": True}
        )
        assert compare_metadata(context, Base.metadata) == []


def test_a_new_database_holds_no_account(engine: Engine) -> None:
    schema.upgrade(engine)
    with Session(engine) as session:
        assert session.query(User).count() == 0


def test_up_down_and_up_again_with_data(engine: Engine) -> None:
    schema.upgrade(engine)
    _add_user(engine)
    schema.downgrade(engine, "base")
    assert [table for table in inspect(engine).get_table_names() if table != schema.VERSION_TABLE] == []
    schema.upgrade(engine)
    _add_user(engine)
    assert schema.find_current(engine) == schema.newest()


def test_upgrading_twice_changes_nothing(engine: Engine) -> None:
    schema.upgrade(engine)
    _add_user(engine)
    schema.upgrade(engine)
    with Session(engine) as session:
        assert session.query(User).count() == 1


def test_what_a_newer_version_has_migrated_is_left_to_it(engine: Engine) -> None:
    schema.upgrade(engine)
    assert not schema.is_ahead(engine)
    with engine.begin() as connection:
        connection.exec_driver_sql(f"UPDATE {schema.VERSION_TABLE} SET version_num = '9999'")
    schema.upgrade(engine)
    assert schema.is_ahead(engine)
    assert schema.find_current(engine) == "9999"


def test_of_replicas_that_start_together_one_migrates_and_all_go_on(engine: Engine, tmp_path: Path) -> None:
    url = engine.url.render_as_string(hide_password=False)
    command = [sys.executable, "-m", "flask", "mfa", "upgrade"]
    environment = os.environ | {"MFA_DATABASE_URL": url, "MFA_INSTANCE": str(tmp_path)}
    started = [
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=tmp_path)
        for _ in range(4)
    ]
    told = [process.communicate(timeout=60)[0].decode() for process in started]
    assert [process.returncode for process in started] == [0] * 4, told
    assert schema.find_current(engine) == schema.newest()


@ON_POSTGRESQL
def test_a_migration_that_can_not_have_its_table_steps_aside_for_the_service_and_tries_again(engine: Engine) -> None:
    schema.upgrade(engine, "0003")
    other = create_engine(engine.url)
    with other.connect() as writing, ThreadPoolExecutor(1) as pool:
        writing.exec_driver_sql("LOCK TABLE mfa_secrets IN ROW EXCLUSIVE MODE")  # as a write does, until its commit
        migrating = pool.submit(schema.upgrade, engine)
        time.sleep(1)
        began = time.monotonic()
        with other.begin() as request:
            request.exec_driver_sql("LOCK TABLE mfa_secrets IN ROW EXCLUSIVE MODE")
        assert time.monotonic() - began < 5  # what a request waits for a lock
        writing.rollback()
        migrating.result()
    other.dispose()
    assert schema.find_current(engine) == schema.newest()


@ON_POSTGRESQL
def test_a_table_that_is_never_let_go_is_named_as_the_reason(engine: Engine, tmp_path: Path) -> None:
    schema.upgrade(engine, "0003")
    command = [sys.executable, "-m", "flask", "mfa", "upgrade"]
    url = engine.url.render_as_string(hide_password=False)
    environment = os.environ | {"MFA_DATABASE_URL": url, "MFA_INSTANCE": str(tmp_path)}
    with engine.connect() as writing:
        writing.exec_driver_sql("LOCK TABLE mfa_secrets IN ROW EXCLUSIVE MODE")
        told = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert told.returncode == 1
    assert told.stderr == (
        "error: the database says 'canceling statement due to lock timeout':"
        " somebody else writes, and does not commit\n"
    )
    assert schema.find_current(engine) == "0003"


def test_a_host_keeps_its_own_version_table_and_tables(engine: Engine) -> None:
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE alembic_version (version_num VARCHAR(32))")
        connection.exec_driver_sql("INSERT INTO alembic_version VALUES ('theirs')")
    schema.upgrade(engine)
    with engine.connect() as connection:
        assert connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalar() == "theirs"


def test_revisions_are_one_chain() -> None:
    scripts = ScriptDirectory(str(ROOT / "migrations"))
    assert len(scripts.get_heads()) == len(scripts.get_bases()) == 1


def test_since_the_first_release_a_migration_only_adds_so_that_the_version_before_gets_on_with_it() -> None:
    added = {"create_table", "create_index", "add_column"}
    newer = [path for path in sorted((ROOT / "migrations/versions").glob("0*.py")) if path.name[:4] > BEFORE_RELEASE]
    assert newer
    for path in newer:
        [upgrade] = [node for node in ast.parse(path.read_text()).body if getattr(node, "name", "") == "upgrade"]
        calls = [ast.unparse(node) for node in ast.walk(upgrade) if isinstance(node, ast.Call)]
        done = [call for call in calls if call.startswith("op.")]
        other = [call for call in done if call.removeprefix("op.").partition("(")[0] not in added]
        assert other == [], f"{path.name}: what the version before uses goes in a later release than its last use"
        columns = [call for call in done if call.startswith("op.add_column(")]
        wanted = [call for call in columns if "nullable=True" not in call and "server_default=" not in call]
        assert wanted == [], f"{path.name}: the version before does not know what to put there"


def test_the_wheel_holds_the_migrations_the_pages_and_the_type_marker(wheel: zipfile.ZipFile) -> None:
    names = set(wheel.namelist())
    wanted = {
        f"mfa_service/migrations/{path.relative_to(ROOT / 'migrations')}"
        for path in (ROOT / "migrations").rglob("*.py")
    }
    assert wanted | {"mfa_service/py.typed"} <= names
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "mfa_service").rglob("*.py")}
    assert modules <= names
    loaded = {str(path.relative_to(ROOT)) for path in (ROOT / "mfa_service").glob("[st]*/mfa_service/*")}
    assert loaded <= names
    assert loaded
    assert not [name for name in names if name.startswith(("tests", "migrations"))]


def test_a_service_works_on_the_migrated_tables(engine: Engine, instance: Path, clock: Clock) -> None:
    schema.upgrade(engine)
    url = engine.url.render_as_string(hide_password=False)
    settings = Settings.load({"MFA_INSTANCE": str(instance), "MFA_DATABASE_URL": url})
    services = Services(settings, engine, clock)
    services.accounts.register("ada", PASSWORD, "ada@example.com", ClientInfo())
    services.close()


# ── means ────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.services)])
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Engine]:
    """A database without tables."""
    if request.param == "sqlite":
        made = create_engine(f"sqlite:///{tmp_path / 'empty.db'}")
        yield made
        made.dispose()
        return
    address = request.getfixturevalue("postgresql")
    admin = create_engine(address, isolation_level="AUTOCOMMIT")
    with admin.connect() as connection:
        connection.exec_driver_sql("DROP DATABASE IF EXISTS migrations WITH (FORCE)")
        connection.exec_driver_sql("CREATE DATABASE migrations")
    admin.dispose()
    made = create_engine(address.replace("/postgres?", "/migrations?"))
    yield made
    made.dispose()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[zipfile.ZipFile]:
    """The wheel, built from a copy without what building leaves behind."""
    copy = tmp_path_factory.mktemp("wheel") / "source"
    leave: Callable[..., set[str]] = shutil.ignore_patterns(".*", "instance", "build", "*.egg-info", "__pycache__")
    shutil.copytree(ROOT, copy, ignore=leave)
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "-q",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        str(copy / "out"),
        str(copy),
    ]
    subprocess.run(command, check=True, capture_output=True)
    with zipfile.ZipFile(next((copy / "out").glob("*.whl"))) as archive:
        yield archive


def _add_user(engine: Engine) -> None:
    now = datetime.now(UTC)
    with Session(engine) as session:
        session.add(
            User(
                id="a",
                username="ada",
                username_key="ada",
                email="",
                email_key="",
                seen_at=now,
                sealed_password=b"",
                password_set_at=now,
                created_at=now,
            )
        )
        session.commit()
