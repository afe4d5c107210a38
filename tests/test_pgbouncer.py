"""The service behind a real PgBouncer that pools transactions, with the configuration of the documentation."""

import contextlib
import json
import os
import pwd
import re
import shutil
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy import URL, Engine, create_engine, make_url

from mfa_service.config import Settings
from mfa_service.services import Services
from mfa_service.services.audit import ClientInfo
from mfa_service.services.database import engine_of_command, options_for
from tests.bursts import Answer, Call, burst, post, together
from tests.conftest import ROOT, free_port, new_database, program, running
from tests.factories import PASSWORD, totp
from tests.services import Rows
from tests.shell import Done, flask_mfa
from tests.stack import within

Flask = Callable[..., Done]

pytestmark = pytest.mark.services
#: What the documentation allows PgBouncer to open.
SERVER_CONNECTIONS = 10
TIMEOUTS = {"statement_timeout": "20s", "lock_timeout": "5s", "idle_in_transaction_session_timeout": "1min"}
#: What PgBouncer itself carries from one server connection to the next.
CARRIED = {"client_encoding", "DateStyle", "TimeZone", "application_name", "standard_conforming_strings"}


def test_the_walk_from_registering_to_logging_out_goes_over_four_workers(server: str) -> None:
    phone = register(server, "ada")
    verified = verify(server, "ada", phone)
    assert profile(server, verified["accessToken"]).json["username"] == "ada"
    refreshed = post(server, "/auth/refresh", {"refreshToken": verified["refreshToken"]}).json
    assert profile(server, refreshed["accessToken"]).status == 200
    assert post(server, "/auth/logout", {}, refreshed["accessToken"]).status == 204
    assert profile(server, verified["accessToken"]).status == 401


def test_of_twenty_equal_codes_at_once_one_succeeds(server: str) -> None:
    for number in range(5):
        code = now_on(register(server, f"burst{number}"))
        tokens = [log_in(server, f"burst{number}") for _ in range(20)]
        answers = burst(server, "/auth/verify-mfa", [{"tempToken": token, "totpCode": code} for token in tokens])
        assert Counter(answer.status for answer in answers) == {200: 1, 401: 19}


def test_more_clients_than_server_connections_are_all_served(server: str, pooler: "Pooler") -> None:
    token = verify(server, "many", register(server, "many"))["accessToken"]
    for _ in range(5):
        answers = together(server, [Call("/api/profile", token=token, method="GET")] * 60)
        assert Counter(answer.status for answer in answers) == {200: 60}
    clients, servers = pooler.connections()
    assert clients > SERVER_CONNECTIONS >= servers


def test_nothing_stays_in_a_session_that_the_next_client_would_find(server: str, pooler: "Pooler") -> None:
    verify(server, "tidy", register(server, "tidy"))
    with pooler.all_taken() as connections:
        for connection in connections:
            count = "SELECT (SELECT count(*) FROM pg_prepared_statements) + (SELECT count(*) FROM pg_locks WHERE {})"
            mine = "locktype = 'advisory' AND pid = pg_backend_pid()"
            assert connection.execute(count.format(mine)).fetchone() == (0,)
            changed = connection.execute("SELECT name FROM pg_settings WHERE source = 'session'").fetchall()
            assert {name for (name,) in changed} - CARRIED == set(TIMEOUTS)


@pytest.mark.parametrize("opened", [engine_of_command, lambda url: create_engine(url, **options_for(url))])
def test_what_is_asked_again_and_again_is_not_prepared(pooler: "Pooler", opened: Callable[[str], Engine]) -> None:
    engine = opened(pooler.url)
    with engine.connect() as connection:
        asked = [connection.exec_driver_sql("SELECT count(*) FROM pg_prepared_statements").scalar() for _ in range(10)]
    engine.dispose()
    assert set(asked) == {0}


def test_the_timeouts_of_a_service_hold_behind_the_pool(pooler: "Pooler") -> None:
    engine = create_engine(pooler.url, **options_for(pooler.url))
    with engine.connect() as connection:
        assert {name: connection.exec_driver_sql(f"SHOW {name}").scalar() for name in TIMEOUTS} == TIMEOUTS
    engine.dispose()


def test_a_request_that_gets_no_connection_is_answered_with_503(server: str, pooler: "Pooler") -> None:
    register(server, "late")
    with pooler.all_taken():
        answer = post(server, "/auth/login", {"username": "late", "password": PASSWORD})
        assert (answer.status, answer.json["code"]) == (503, "unavailable")
    assert log_in(server, "late")


def test_a_pool_that_was_restarted_is_used_again_at_once(server: str, pooler: "Pooler") -> None:
    register(server, "again")
    pooler.restart()
    assert log_in(server, "again")


# ── commands ─────────────────────────────────────────────────────────────────────────────────────


def test_migrating_and_rotating_and_sealing_and_pruning_go_through_it(server: str, flask: Flask) -> None:
    assert "is at revision" in flask("upgrade").stdout
    phone = register(server, "before")
    flask("rotate-keys")
    assert verify(server, "before", phone)["accessToken"]
    assert "before" in flask("list").stdout
    for command in (
        ["audit", "seal"],
        ["audit", "verify"],
        ["audit", "prune", "--older-than", "1d", "--yes"],
        ["prune"],
    ):
        flask(*command)


def test_sealing_and_removing_what_is_old_go_through_it(inside: Services, server: str, rows: Rows) -> None:
    register(server, "old")
    assert inside.seals.seal()
    assert sum(inside.seals.prune(timedelta(days=1), ClientInfo())) > 0
    assert len(rows("SELECT id FROM mfa_events WHERE event = 'audit.pruned'")) == 1


def test_a_migration_may_wait_longer_than_a_request(flask: Flask, pooler: "Pooler", own_database: str) -> None:
    waiting = "SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
    another = create_engine(own_database)
    shorter = pooler.configured(r"SET (statement|lock)_timeout = \d+", r"SET \1_timeout = 500")
    with shorter, another.connect() as connection, ThreadPoolExecutor(1) as thread:
        connection.exec_driver_sql("SELECT pg_advisory_xact_lock(7169633)")
        migration = thread.submit(flask, "upgrade")
        assert within(30, lambda: connection.exec_driver_sql(waiting).first())
        time.sleep(1)
        connection.rollback()
        assert "is at revision" in migration.result().stdout
    another.dispose()


def test_a_doctor_is_content_with_the_documented_pooler(flask: Flask) -> None:
    report = flask("doctor").stdout
    assert "database: postgresql at revision" in report
    assert "pooler" not in report


def test_a_doctor_notices_that_the_timeouts_are_lost(flask: Flask, pooler: "Pooler") -> None:
    with pooler.configured(r" connect_query='[^']*'", ""):
        assert "a pooler ignores our timeouts" in flask("doctor").stdout


def test_a_pooler_that_refuses_the_startup_parameter_is_told_what_to_do(flask: Flask, pooler: "Pooler") -> None:
    with pooler.configured(r"ignore_startup_parameters.*\n", ""):
        assert "ignore_startup_parameters = options" in flask("doctor", code=1).stdout


# ── means ────────────────────────────────────────────────────────────────────────────────────────


class Pooler:
    """A PgBouncer as `docs/` configures it, in front of one database, with these places in the configuration."""

    def __init__(self, database: URL) -> None:
        self._database = database
        self._port = free_port()
        self._folder = Path(tempfile.mkdtemp(prefix="mfa-pgbouncer-"))
        self._running = contextlib.ExitStack()
        name, password = database.username or "postgres", database.password or "trusted"
        self._address = make_url(f"postgresql+psycopg://{name}:{password}@127.0.0.1:{self._port}/mfa")
        self.url = self._address.render_as_string(hide_password=False)
        (self._folder / "userlist.txt").write_text(f'"{name}" "{password}"\n')

    def start(self, pattern: str = "$^", replacement: str = "") -> None:
        """`pattern` and `replacement`: what is configured otherwise."""
        configuration = self._folder / "pgbouncer.ini"
        configuration.write_text(re.sub(pattern, replacement, self._configuration()))
        command = [program("pgbouncer"), str(configuration), *self._as_somebody()]
        self._running.enter_context(running(command, ready=self._greets))

    def _configuration(self) -> str:
        pages = "".join(page.read_text() for page in (ROOT / "docs").glob("*.md"))
        [shipped] = re.findall(r"```ini\n(\[databases\].*?)```", pages, re.DOTALL)
        host = self._database.query.get("host") or self._database.host
        places = {
            "db.example": str(host),
            "port=5432": f"port={self._database.port or 5432}",
            "dbname=mfa": f"dbname={self._database.database}",
            "listen_port = 6432": f"listen_port = {self._port}",
            "/etc/pgbouncer": str(self._folder),
        }
        for written, real in places.items():
            assert written in shipped
            shipped = shipped.replace(written, real)
        return f"{shipped}stats_users = {self._address.username}\n"

    def _as_somebody(self) -> list[str]:
        """PgBouncer does not run as root: then it is who may open the server's socket."""
        if os.getuid():
            return []
        socket = Path(str(self._database.query.get("host", "")))
        somebody = socket.owner() if socket.is_absolute() else "nobody"
        for path in (self._folder, *self._folder.iterdir()):
            os.chown(path, pwd.getpwnam(somebody).pw_uid, -1)
        return ["-u", somebody]

    def _greets(self) -> None:
        try:
            self._open("pgbouncer").close()
        except psycopg.OperationalError as error:
            raise OSError(str(error)) from None

    def stop(self) -> None:
        self._running.close()

    def restart(self, *configured: str) -> None:
        self.stop()
        self.start(*configured)

    def close(self) -> None:
        self.stop()
        shutil.rmtree(self._folder)

    @contextlib.contextmanager
    def configured(self, pattern: str, replacement: str) -> Iterator[None]:
        """Run with another configuration meanwhile."""
        assert re.search(pattern, self._configuration())
        self.restart(pattern, replacement)
        try:
            yield
        finally:
            self.restart()

    def connections(self) -> tuple[int, int]:
        """How many clients are connected, and how many connections to PostgreSQL they share."""
        with self._open("pgbouncer", cursor_factory=psycopg.ClientCursor) as console:
            clients, servers = (console.execute(f"SHOW {what}").fetchall() for what in ("CLIENTS", "SERVERS"))
        return sum(row[2] == "mfa" for row in clients), sum(row[2] == "mfa" for row in servers)

    @contextlib.contextmanager
    def all_taken(self) -> Iterator[list["psycopg.Connection[Any]"]]:
        """As many transactions as there are connections to PostgreSQL, open for the length of the block."""
        with contextlib.ExitStack() as stack:
            connections = [stack.enter_context(self._open("mfa", autocommit=False)) for _ in range(SERVER_CONNECTIONS)]
            for connection in connections:
                connection.execute("SELECT 1")
            yield connections

    def _open(self, name: str, **options: Any) -> "psycopg.Connection[Any]":
        address = self._address.set(drivername="postgresql", database=name).render_as_string(hide_password=False)
        return psycopg.connect(address, **{"autocommit": True, "prepare_threshold": None} | options)


@pytest.fixture(scope="module")
def own_database(postgresql: str) -> str:
    """Not yet migrated, and nobody else's."""
    return new_database(postgresql, "mfa_behind_a_pool")


@pytest.fixture(scope="module")
def pooler(own_database: str) -> Iterator[Pooler]:
    pooler = Pooler(make_url(own_database))
    pooler.start()
    yield pooler
    pooler.close()


@pytest.fixture(scope="module")
def settings(pooler: Pooler, instance: Path, redis: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of the service and of its commands, with keys that may be rotated."""
    folder = tmp_path_factory.mktemp("pooled") / "instance"
    shutil.copytree(instance, folder)
    for key in folder.glob("*/*.pem"):
        key.chmod(0o600)
    (folder / "keyring.json").chmod(0o600)
    limits = ("MFA_AUTH_RATE_LIMIT", "MFA_SESSION_RATE_LIMIT", "MFA_REGISTRATION_RATE_LIMIT")
    own = {"MFA_INSTANCE": str(folder), "MFA_DATABASE_URL": pooler.url, "MFA_REDIS_URL": redis}
    own |= {"MFA_KEY_REREAD_SECONDS": "1", "MFA_SEALS_OUTPUT": "none", "MFA_HASHING_QUEUE": "50"}
    return own | dict.fromkeys(limits, "100000 per minute")


@pytest.fixture(scope="module")
def flask(settings: dict[str, str]) -> Flask:
    """Run `flask mfa <words>` and expect this exit code."""

    def run(*words: str, code: int = 0) -> Done:
        answer = flask_mfa(*words, environment={"PATH": os.environ["PATH"]} | settings)
        assert answer.returncode == code, answer.stdout + answer.stderr
        return answer

    return run


@pytest.fixture(scope="module")
def server(settings: dict[str, str], flask: Flask) -> Iterator[str]:
    """Four worker processes, on a database that was migrated through the pool."""
    flask("upgrade")
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    config = settings | {"TESTING": True, "MFA_BCRYPT_COST": 4, "MFA_PUBLIC_URL": address}
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MFA_")}
    environment |= {"PORT": str(port), "WEB_CONCURRENCY": "4", "MFA_REDIS_URL": settings["MFA_REDIS_URL"]}
    environment |= {"TEST_CONFIG": json.dumps(config)}
    command = [sys.executable, "-m", "gunicorn", "tests.served:app", "--log-level", "warning"]
    ready = lambda: urllib.request.urlopen(f"{address}/readyz", timeout=2).close()  # noqa: E731
    with running(command, ready=ready, env=environment, cwd=ROOT):
        yield address


@pytest.fixture
def database(own_database: str) -> str:
    """What `rows` looks into: past the pool."""
    return own_database


@pytest.fixture
def inside(settings: dict[str, str]) -> Iterator[Services]:
    """The services in this process, two days from now, behind the pool as well."""
    url = settings["MFA_DATABASE_URL"]
    made = Services(Settings.load(settings), create_engine(url, **options_for(url)), lambda: time.time() + 2 * 86400)
    yield made
    made.close()


def register(server: str, username: str) -> str:
    account = {"username": username, "password": PASSWORD, "email": "someone@example.com"}
    answer = post(server, "/auth/register", account)
    assert answer.status == 200, answer
    return str(answer.json["manualEntryKey"])


def log_in(server: str, username: str) -> str:
    answer = post(server, "/auth/login", {"username": username, "password": PASSWORD})
    assert answer.status == 200, answer
    return str(answer.json["tempToken"])


def verify(server: str, username: str, phone: str) -> dict[str, Any]:
    answer = post(server, "/auth/verify-mfa", {"tempToken": log_in(server, username), "totpCode": now_on(phone)})
    assert answer.status == 200, answer
    return answer.json


def profile(server: str, token: str) -> Answer:
    return together(server, [Call("/api/profile", token=token, method="GET")])[0]


def now_on(phone: str) -> str:
    return totp(phone, int(time.time()) // 30)
