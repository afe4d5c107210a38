"""A hundred thousand users, a million events: every listing finds its page by an index, whatever it is asked for."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, create_engine, event, make_url, text

from mfa_service.config import Settings
from mfa_service.services import Services, schema
from mfa_service.services.administration import By, Changes
from mfa_service.services.audit_log import EventFilter
from mfa_service.services.directory import UserFilter
from mfa_service.services.policy import Deadline, Rules
from tests.conftest import Clock
from tests.services import CLIENT, identity_of, register, sign_in

pytestmark = pytest.mark.services

USERS, EVENTS = 100_000, 1_000_000
BIG = ("mfa_users", "mfa_events", "mfa_sessions", "mfa_devices", "mfa_seals")
#: Rows of a big table that one page may look at: a page has fifty, and a filter passes some by.
MOST_ROWS = 5_000
#: What has no index of its own walks the index that orders the list until the page is full: each row once at most.
WALKS = {
    "users by a beginning that many have",
    "users by all of it",
    "report of the late",
    "report of the due",
}

SOMEBODY = "u" + f"{77_777:021}"
MIDDLE = datetime.fromtimestamp(1_650_050_000, UTC)
LATE = datetime.fromtimestamp(1_650_099_990, UTC)

Listing = Callable[[Services, str | None], tuple[object, str | None]]


def users(**which: Any) -> Listing:
    return lambda services, cursor: services.directory.search(UserFilter(**which), cursor)


def audit(**which: Any) -> Listing:
    return lambda services, cursor: services.audit_log.search(EventFilter(**which), cursor)


def report(standing: Any) -> Listing:
    return lambda services, cursor: services.directory.report(standing, cursor)


LISTINGS: dict[str, Listing] = {
    "users": users(),
    "users by the beginning of a name": users(text="user777"),
    "users by a whole name": users(text="user77777"),
    "users by the beginning of an address": users(text="mail444"),
    "users by a beginning that many have": users(text="mail4"),
    "users that no name or address begins with": users(text="zzz"),
    "users by a common role": users(role="staff"),
    "users by a rare role": users(role="admin"),
    "users of a role that nobody has": users(role="nobody"),
    "users without a factor": users(factor="none"),
    "users with a factor": users(factor="enabled"),
    "users with a disabled factor": users(factor="disabled"),
    "users seen before": users(seen_before=MIDDLE),
    "users seen since": users(seen_since=LATE),
    "users seen before the first": users(seen_before=datetime.fromtimestamp(1_600_000_000, UTC)),
    "users by all of it": users(text="user7", role="staff", factor="enabled", seen_since=MIDDLE),
    "audit": audit(),
    "audit by a common event": audit(event="event.7"),
    "audit by a rare event": audit(event="event.rare"),
    "audit by an event that never happened": audit(event="event.never"),
    "audit by user": audit(user_id=SOMEBODY),
    "audit by actor": audit(actor="actor7"),
    "audit since": audit(since=MIDDLE),
    "audit before": audit(before=MIDDLE),
    "audit between": audit(since=MIDDLE, before=LATE),
    "audit by user and event": audit(user_id=SOMEBODY, event="event.7"),
    "seals": lambda services, cursor: services.seals.chain.page(cursor),
    "own sessions": lambda services, cursor: services.sessions.list(SOMEBODY, cursor),
    "own devices": lambda services, cursor: services.devices.list(SOMEBODY, cursor),
    "activity": audit(user_id=SOMEBODY),
    "report": report(None),
    "report of the enrolled": report("enrolled"),
    "report of the late": report("late"),
    "report of the due": report("due"),
    "report of the free": report("free"),
}


@pytest.mark.parametrize("name", LISTINGS)
def test_a_page_and_the_next_one_are_found_by_an_index(filled: Services, name: str) -> None:
    cursor = None
    for _ in range(3):
        with explained(filled) as plans:
            _, cursor = LISTINGS[name](filled, cursor)
        assert plans
        for plan in plans:
            assert_by_index(plan, USERS if name in WALKS else MOST_ROWS)
        if cursor is None:
            break


def test_a_batch_of_an_export_is_found_by_an_index(filled: Services) -> None:
    with explained(filled) as plans:
        entries = filled.audit_log.export(EventFilter())
        for _ in range(2001):
            next(entries)
    assert len(plans) == 3
    for plan in plans:
        assert_by_index(plan)


@pytest.mark.parametrize("standing", [None, "enrolled", "late", "due", "free"])
def test_a_batch_of_the_whole_report_is_found_by_an_index(filled: Services, standing: Any) -> None:
    with explained(filled) as plans:
        rows = filled.directory.whole_report(standing)
        for _ in range(1001):
            next(rows, None)
    for plan in plans:
        assert_by_index(plan, most_rows=USERS)


def test_one_account_is_found_by_an_index(filled: Services) -> None:
    with explained(filled) as plans:
        assert filled.directory.find_id("user77777") == SOMEBODY
        assert filled.directory.show(SOMEBODY).sessions
    for plan in plans:
        assert_by_index(plan)


def test_all_that_a_sign_in_and_a_request_ask_for_is_found_by_an_index(filled: Services) -> None:
    newcomer = register(filled, "newcomer")
    required = Changes(mfa_required=True)
    filled.administration.change(By(CLIENT), str(filled.directory.find_id("newcomer")), required)
    with explained(filled, *BIG, "mfa_secrets") as plans:
        signed_in = sign_in(filled, newcomer)
        identity = identity_of(filled, signed_in)
        assert filled.login.find_account(identity)
        filled.login.refresh(signed_in.refresh_token, CLIENT)
        filled.login.sign_out(identity, CLIENT, everywhere=True)
    for table in ("mfa_users", "mfa_secrets", "mfa_sessions"):
        assert any(f" on {table}" in plan for plan in plans), table
    for plan in plans:
        assert [table for table in (*BIG, "mfa_secrets") if f"Seq Scan on {table}" in plan] == [], plan
        assert rows_looked_at(plan) <= MOST_ROWS, plan


# ── means ────────────────────────────────────────────────────────────────────────────────────────


def assert_by_index(plan: str, most_rows: int = MOST_ROWS) -> None:
    for table in BIG:
        assert f"Seq Scan on {table}" not in plan, plan
    assert "Index" in plan, plan
    assert rows_looked_at(plan) <= most_rows, plan


def rows_looked_at(plan: str) -> float:
    """Rows of big tables that the nodes of a plan read, those that they threw away included."""
    most = 0.0
    for node in re.split(r"\n\s*->", plan):
        if any(f" on {table}" in node for table in BIG):
            loops = float(found[1]) if (found := re.search(r"loops=(\d+)", node)) else 1
            kept = float(found[1]) if (found := re.search(r"actual rows=([\d.]+)", node)) else 0
            thrown = sum(map(float, re.findall(r"Rows Removed by [^:]+: (\d+)", node)))
            most = max(most, loops * (kept + thrown))
    return most


@contextmanager
def explained(services: Services, *tables: str) -> Iterator[list[str]]:
    """The plan, as it was carried out, of every statement that the services run on one of these, or on a big table."""
    ran: list[tuple[str, Any]] = []

    def note(_connection: object, _cursor: object, statement: str, parameters: Any, *_: object) -> None:
        ran.append((statement, parameters))

    plans: list[str] = []
    event.listen(services.engine, "before_cursor_execute", note)
    try:
        yield plans
    finally:
        event.remove(services.engine, "before_cursor_execute", note)
    with services.engine.connect() as connection:
        for statement, parameters in ran:
            if any(f"{word} {table}" in statement for word in ("FROM", "UPDATE") for table in tables or BIG):
                options = "(ANALYZE, TIMING OFF)"
                lines = connection.exec_driver_sql(f"EXPLAIN {options} {statement}", parameters).scalars()
                plans.append("\n".join(lines))


@pytest.fixture(scope="module")
def filled(postgresql: str, instance: Any) -> Iterator[Services]:
    """The services on a PostgreSQL that holds a great deal."""
    url, admin = make_url(postgresql), create_engine(postgresql, isolation_level="AUTOCOMMIT")
    with admin.connect() as connection:
        connection.execute(text("DROP DATABASE IF EXISTS plans WITH (FORCE)"))
        connection.execute(text("CREATE DATABASE plans"))
    engine = create_engine(url.set(database="plans"))
    schema.upgrade(engine)
    fill(engine)
    clock = Clock()
    clock.now = 1_650_100_000
    address = url.set(database="plans").render_as_string(hide_password=False)
    settings = {"MFA_INSTANCE": str(instance), "MFA_DATABASE_URL": address, "MFA_BCRYPT_COST": 4}
    services = Services(Settings.load({"TESTING": True, "MFA_SEAL_SECONDS": 0} | settings), engine, clock)
    rules = {"staff": Deadline(days=14), "finance": Deadline(at=datetime(2022, 1, 1, tzinfo=UTC)), "admin": Deadline()}
    services.administration.set_policy(By(CLIENT), Rules("optional", Deadline(), rules))
    yield services
    services.close()
    engine.dispose()
    with admin.connect() as connection:
        connection.execute(text("DROP DATABASE plans WITH (FORCE)"))
    admin.dispose()


def fill(engine: Engine) -> None:
    """By the database itself, with the indexes made afterwards: it is much faster."""
    with engine.begin() as connection:
        connection.execute(text("SET LOCAL session_replication_role = replica"))
        connection.execute(text("SET LOCAL maintenance_work_mem = '256MB'"))
        indexes = without_indexes(connection)
        for statement in FILLING:
            connection.execute(text(statement), {"users": USERS, "events": EVENTS})
        for index in indexes:
            connection.exec_driver_sql(index)
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("VACUUM ANALYZE"))


def without_indexes(connection: Connection) -> list[str]:
    """Drop the indexes of the log, and say how they are made again."""
    found = connection.execute(
        text("SELECT indexname, indexdef FROM pg_indexes WHERE tablename = 'mfa_events' AND indexname LIKE 'ix_%'")
    ).all()
    for name, _ in found:
        connection.exec_driver_sql(f"DROP INDEX {name}")
    return [definition for _, definition in found]


_ID = "'u' || lpad(n::text, 21, '0')"
_AT = "to_timestamp(1650000000 + n)"
FILLING = (
    f"""INSERT INTO mfa_users (id, username, username_key, email, email_key, sealed_password, password_set_at,
            created_at, seen_at, had_factor_at)
        SELECT {_ID}, 'user' || n, 'user' || n, 'mail' || n || '@example.com', 'mail' || n || '@example.com', '\\x00',
            {_AT}, {_AT}, to_timestamp(1650000000 + (n * 7919) % 100000), {_AT} FROM generate_series(1, :users) AS n""",
    f"""INSERT INTO mfa_user_roles (user_id, role)
        SELECT {_ID}, role FROM generate_series(1, :users) AS n, (VALUES ('staff', 10), ('finance', 100),
            ('admin', 20000)) AS given (role, one_of) WHERE n % one_of = 0""",
    f"""INSERT INTO mfa_secrets (id, user_id, sealed_secret, last_step, created_at, confirmed_at)
        SELECT {_ID}, {_ID}, '\\x00', 1, {_AT}, CASE WHEN (n / 100) % 10 < 9 THEN {_AT} END
        FROM generate_series(1, :users) AS n""",
    f"""INSERT INTO mfa_locks (user_id, subject, failures, failed_at, disabled_at)
        SELECT {_ID}, 'totp', 100, {_AT}, {_AT} FROM generate_series(1, :users) AS n WHERE n % 1000 = 1""",
    f"""INSERT INTO mfa_grace_periods (user_id, subject, started_at)
        SELECT {_ID}, 'role:staff', {_AT} FROM generate_series(1, :users) AS n WHERE n % 20 = 0""",
    f"""INSERT INTO mfa_rules (subject, user_id, created_at)
        SELECT 'user:' || {_ID}, {_ID}, {_AT} FROM generate_series(1, :users) AS n WHERE n % 500 = 3""",
    f"""INSERT INTO mfa_sessions (id, user_id, address, network, user_agent, step, amr, key_id, generation, created_at,
            authenticated_at, refreshed_at, seen_at, expires_at)
        SELECT {_ID}, {_ID}, '', '', '', 'authenticated', 'pwd otp mfa', 'k', 0, {_AT}, {_AT}, {_AT}, {_AT},
            {_AT} + interval '30 days' FROM generate_series(1, :users) AS n""",
    f"""INSERT INTO mfa_devices (id, user_id, digest, name, address, user_agent, created_at, used_at, expires_at)
        SELECT {_ID}, {_ID}, 'd' || n, '', '', '', {_AT}, {_AT}, {_AT} + interval '30 days'
        FROM generate_series(1, :users) AS n""",
    """INSERT INTO mfa_events (at, event, user_id, actor, address, user_agent, request_id, detail)
        SELECT to_timestamp(1650000000 + n / 10.0),
            CASE WHEN n % 100000 = 0 THEN 'event.rare' ELSE 'event.' || n % 20 END,
            'u' || lpad((n % 100000)::text, 21, '0'), CASE WHEN n % 1000 = 0 THEN 'actor' || (n / 1000) % 10 END,
            '192.0.2.1', 'tests', 'request', '{}' FROM generate_series(1, :events) AS n""",
    """INSERT INTO mfa_seals (number, kind, first_id, last_id, count, events_digest, previous, sealed_at, key_id,
            signature)
        SELECT n, 'seal', n, n, 1, 'x', 'p' || n, now(), 'k', 's' FROM generate_series(1, 20000) AS n""",
)
