"""Transactions: the outermost call commits, a refusal commits too, a crash rolls back."""

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from sqlalchemy import create_engine, event, false, func, literal, select, text
from sqlalchemy.exc import OperationalError

from mfa_service.config import Settings
from mfa_service.errors import InvalidCode, SealBroken, Unavailable
from mfa_service.models import AuditEvent, User
from mfa_service.services import Services
from mfa_service.services.audit import Event, Recorded
from mfa_service.services.database import options_for
from mfa_service.services.unit_of_work import TRIES, reading, unit_of_work
from tests.conftest import Clock, free_port
from tests.services import CLIENT, Rows, at_once

only_sqlite = pytest.mark.parametrize("database", ["sqlite"], indirect=True)
only_postgresql = pytest.mark.parametrize(
    "database", [pytest.param("postgresql", marks=pytest.mark.services)], indirect=True
)


class Crash(Exception):
    """Nothing that the service expects."""


class Diary:
    """A service whose facts are entries in the audit log."""

    def __init__(self, services: Services) -> None:
        self.unit = services.unit
        self._services = services

    @unit_of_work
    def write(self, entry: str, then: Callable[[], Any] = lambda: None) -> Any:
        self._services.audit.record(Event.USER_REGISTERED, CLIENT, entry=entry)
        return then()

    @reading
    def read(self, then: Callable[[], Any] = lambda: None) -> int:
        count = self._services.session.scalar(text("SELECT count(*) FROM mfa_events"))
        then()
        return int(count or 0)


# ── what is committed ────────────────────────────────────────────────────────────────────────────


def test_what_a_unit_wrote_is_there_when_it_returns(diary: Diary, rows: Rows) -> None:
    assert diary.write("a", then=lambda: "result") == "result"
    assert entries(rows) == 1


def test_nothing_is_there_before_it_returns(diary: Diary, rows: Rows) -> None:
    assert diary.write("a", then=lambda: entries(rows)) == 0


@pytest.mark.parametrize("refusal", [InvalidCode, SealBroken])
def test_a_refusal_commits(diary: Diary, rows: Rows, refusal: type[Exception]) -> None:
    with pytest.raises(refusal):
        diary.write("a", then=raising(refusal))
    assert entries(rows) == 1


@pytest.mark.parametrize("crash", [Crash, ValueError, KeyError, KeyboardInterrupt, SystemExit])
def test_a_crash_rolls_back(diary: Diary, rows: Rows, crash: type[BaseException]) -> None:
    with pytest.raises(crash):
        diary.write("a", then=raising(crash))
    assert entries(rows) == 0


def test_a_unit_that_takes_too_long_is_undone_and_says_so(
    diary: Diary, rows: Rows, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("mfa_service.services.unit_of_work.LONGEST_SECONDS", 0)
    with pytest.raises(Unavailable):
        diary.write("late")
    assert entries(rows) == 0
    assert [record.getMessage() for record in caplog.records] == ["a transaction took over 0 s: undone"]


def test_after_a_crash_or_a_refusal_the_thread_goes_on_with_a_clean_session(diary: Diary, rows: Rows) -> None:
    with pytest.raises(Crash):
        diary.write("a", then=raising(Crash))
    diary.write("b")
    with pytest.raises(InvalidCode):
        diary.write("c", then=raising(InvalidCode))
    diary.write("d")
    assert entries(rows) == 3


def test_an_inner_unit_joins_the_outer_one(diary: Diary, rows: Rows) -> None:
    def inner() -> int:
        diary.write("inner")
        return entries(rows)

    assert diary.write("outer", then=inner) == 0
    assert entries(rows) == 2


def test_an_inner_unit_goes_down_with_the_outer_one(diary: Diary, rows: Rows) -> None:
    def inner_then_crash() -> None:
        diary.write("inner")
        raise Crash

    with pytest.raises(Crash):
        diary.write("outer", then=inner_then_crash)
    assert entries(rows) == 0


def test_a_refusal_of_an_inner_unit_commits_the_outer_one(diary: Diary, rows: Rows) -> None:
    with pytest.raises(InvalidCode):
        diary.write("outer", then=lambda: diary.write("inner", then=raising(InvalidCode)))
    assert entries(rows) == 2


def test_an_outer_unit_may_go_on_after_a_refusal_of_an_inner_one(diary: Diary, rows: Rows) -> None:
    def inner() -> str:
        with pytest.raises(InvalidCode):
            diary.write("inner", then=raising(InvalidCode))
        return "went on"

    assert diary.write("outer", then=inner) == "went on"
    assert entries(rows) == 2


def test_a_reading_unit_ends_its_transaction(diary: Diary, rows: Rows) -> None:
    assert diary.read() == 0
    diary.write("a")
    assert diary.read() == 1


def test_units_of_two_threads_are_two(diary: Diary, rows: Rows) -> None:
    assert at_once(8, lambda number: diary.write(str(number), then=lambda: number)) == list(range(8))
    assert entries(rows) == 8


# ── signals ──────────────────────────────────────────────────────────────────────────────────────


def test_a_signal_comes_after_the_commit(diary: Diary, services: Services, rows: Rows) -> None:
    seen: list[int] = []
    listen(services, lambda _record: seen.append(entries(rows)))
    diary.write("a")
    diary.write("b")
    assert seen == [1, 2]


def test_signals_of_inner_units_wait_for_the_outer_one_and_keep_their_order(
    diary: Diary, services: Services, heard: list[str]
) -> None:
    def inner() -> list[str]:
        diary.write("b")
        return list(heard)

    assert diary.write("a", then=inner) == []
    assert heard == ["a", "b"]


def test_what_was_rolled_back_is_never_heard_of(diary: Diary, heard: list[str]) -> None:
    with pytest.raises(Crash):
        diary.write("a", then=raising(Crash))
    diary.write("b")
    assert heard == ["b"]


def test_what_was_refused_is_heard_of(diary: Diary, heard: list[str]) -> None:
    with pytest.raises(InvalidCode):
        diary.write("a", then=raising(InvalidCode))
    assert heard == ["a"]


def test_a_listener_that_fails_harms_nobody(diary: Diary, services: Services, rows: Rows) -> None:
    listen(services, lambda _record: raising(Crash)())
    heard: list[str] = []
    listen(services, lambda record: heard.append(record.detail["entry"]))
    listen(services, lambda _record: raising(InvalidCode)())
    assert diary.write("a", then=lambda: "result") == "result"
    assert diary.write("b", then=lambda: "result") == "result"
    assert heard == ["a", "b"]
    assert entries(rows) == 2


def test_a_listener_may_write_a_unit_of_its_own(diary: Diary, services: Services, rows: Rows) -> None:
    listen(services, lambda record: record.detail["entry"] == "a" and diary.write("b"))
    diary.write("a")
    assert entries(rows) == 2


# ── collisions on PostgreSQL ─────────────────────────────────────────────────────────────────────


@only_postgresql
def test_units_that_collide_are_run_again_and_no_update_is_lost(serializable: Services, rows: Rows) -> None:
    diary, heard = Diary(serializable), hearing(serializable)
    diary.write("0")
    runs: list[int] = []

    def count_up(number: int) -> None:
        runs.append(number)
        latest = serializable.session.scalar(text("SELECT max(CAST(detail->>'entry' AS integer)) FROM mfa_events"))
        time.sleep(0.05)
        serializable.audit.record(Event.USER_REGISTERED, CLIENT, entry=str(latest + 1))

    outcomes = at_once(3, lambda number: serializable.unit.run(lambda: count_up(number), writes=True))
    assert outcomes == [None] * 3
    assert len(runs) > 3, "they did not collide"
    assert sorted(row["entry"] for row in rows("SELECT detail->>'entry' AS entry FROM mfa_events")) == list("0123")
    assert sorted(heard) == list("0123"), "one signal each, none of them for a run that was undone"


@only_postgresql
@pytest.mark.usefixtures("changeable")
def test_a_unit_that_collides_every_time_is_given_up(serializable: Services, rows: Rows) -> None:
    Diary(serializable).write("a")
    runs: list[int] = []
    heard = hearing(serializable)

    def collide() -> None:
        serializable.session.execute(text("SELECT * FROM mfa_events"))
        rows("UPDATE mfa_events SET address = :address", address=str(len(runs)))
        runs.append(1)
        serializable.session.execute(text("UPDATE mfa_events SET address = 'ours'"))

    with pytest.raises(Unavailable) as refusal:
        serializable.unit.run(collide, writes=True)
    assert refusal.value.retry_after
    assert len(runs) == TRIES
    assert heard == []


@only_postgresql
@pytest.mark.usefixtures("changeable")
def test_of_two_units_in_a_deadlock_both_succeed_in_the_end(services: Services, rows: Rows) -> None:
    for entry in ("a", "b"):
        Diary(services).write(entry)
    first, second = (row["id"] for row in rows("SELECT id FROM mfa_events ORDER BY id"))
    orders, meeting, met = [(first, second), (second, first)], threading.Barrier(2), threading.local()

    def touch(order: tuple[int, int]) -> None:
        statement = text("UPDATE mfa_events SET request_id = request_id || 'x' WHERE id = :id")
        services.session.execute(statement, {"id": order[0]})
        if not vars(met):
            met.once = True
            meeting.wait(5)
        services.session.execute(statement, {"id": order[1]})

    outcomes = at_once(2, lambda number: services.unit.run(lambda: touch(orders[number]), writes=True))
    assert outcomes == [None, None]
    assert {row["request_id"] for row in rows("SELECT request_id FROM mfa_events")} == {"request-1xx"}


@pytest.mark.faults("Q5")
@only_postgresql
def test_with_no_connection_left_in_the_pool_the_service_is_unavailable(services: Services) -> None:
    engine = create_engine(services.settings.database, pool_size=1, max_overflow=0, pool_timeout=0.1)
    crowded = Services(services.settings, engine, services.clock)
    with engine.connect(), pytest.raises(Unavailable):
        Diary(crowded).write("a")
    Diary(crowded).write("b")
    crowded.close()


@only_sqlite
def test_a_database_that_does_not_answer_makes_the_service_unavailable(services: Services) -> None:
    address = f"postgresql+psycopg://nobody@127.0.0.1:{free_port()}/nothing"
    lonely = Services(services.settings, create_engine(address), services.clock)
    for act in (lambda: Diary(lonely).write("a"), lambda: Diary(lonely).read()):
        with pytest.raises(Unavailable) as refusal:
            act()
        assert refusal.value.retry_after
    lonely.close()


# ── locks on SQLite ──────────────────────────────────────────────────────────────────────────────


@pytest.mark.faults("Q5")
@only_sqlite
def test_a_lock_of_another_process_past_the_timeout_makes_the_service_unavailable_for_writing(
    diary: Diary, rows: Rows, database: str
) -> None:
    with locked_by_another_process(database):
        start = time.monotonic()
        assert diary.read() == 0
        assert time.monotonic() - start < 1, "reading waits for nobody"
        with pytest.raises(Unavailable):
            diary.write("a")
        assert time.monotonic() - start > 4, "it waits before it gives up"
    diary.write("b")
    assert entries(rows) == 1


@only_sqlite
def test_a_lock_that_ends_in_time_is_waited_for(diary: Diary, rows: Rows, database: str) -> None:
    with locked_by_another_process(database) as let_go:
        threading.Timer(0.5, let_go).start()
        diary.write("a")
    assert entries(rows) == 1


@only_sqlite
def test_a_unit_that_reads_first_and_writes_later_has_the_lock_from_its_beginning(
    diary: Diary, services: Services, rows: Rows
) -> None:
    has_read, outcomes = threading.Event(), []

    def late() -> None:
        has_read.wait(5)
        outcomes.append(diary.write("from another thread"))

    def read_then_write() -> None:
        services.session.execute(text("SELECT * FROM mfa_events"))
        has_read.set()
        time.sleep(0.3)
        services.audit.record(Event.USER_REGISTERED, CLIENT, entry="after reading")

    thread = threading.Thread(target=late)
    thread.start()
    services.unit.run(read_then_write, writes=True)
    thread.join()
    assert outcomes == [None]
    assert entries(rows) == 2


@only_sqlite
def test_writing_begins_immediate_and_reading_does_not(diary: Diary, services: Services) -> None:
    statements: list[str] = []
    event.listen(services.engine, "before_cursor_execute", lambda *call: statements.append(call[2]))
    diary.write("a")
    diary.read()
    diary.write("b", then=diary.read)
    begins = [statement for statement in statements if statement.startswith("BEGIN")]
    assert begins == ["BEGIN IMMEDIATE", "BEGIN", "BEGIN IMMEDIATE"]


@only_sqlite
def test_our_connections_write_ahead_and_keep_foreign_keys(services: Services) -> None:
    def pragmas() -> list[object]:
        names = ("journal_mode", "foreign_keys", "synchronous")
        return [services.session.scalar(text(f"PRAGMA {name}")) for name in names]

    assert services.unit.run(pragmas, writes=False) == ["wal", 1, 2]


# ── a single statement that reads ────────────────────────────────────────────────────────────────


def test_a_single_statement_needs_no_session_and_no_transaction(services: Services) -> None:
    statements: list[str] = []
    event.listen(services.single, "before_cursor_execute", lambda *call: statements.append(call[2]))
    assert services.unit.fetch(select(literal(1)), {}) == [(1,)]
    assert services.unit.fetch(select(literal(1)).where(false()), {}) == []
    assert [statement for statement in statements if not statement.startswith("SELECT")] == []
    assert services.engine.pool.checkedout() == 0  # type: ignore[attr-defined]


def test_within_a_unit_it_sees_what_the_unit_has_done(diary: Diary, services: Services) -> None:
    count = select(func.count()).select_from(AuditEvent)
    assert diary.write("a", then=lambda: services.unit.fetch(count, {})) == [(1,)]
    assert services.unit.fetch(count, {}) == [(1,)]


def test_after_it_the_next_unit_on_the_same_connection_is_a_transaction(config: dict[str, Any], clock: Clock) -> None:
    engine = create_engine(config["MFA_DATABASE_URL"], pool_size=1, max_overflow=0)
    narrow = Services(Settings.load(config), engine, clock)
    count = select(func.count()).select_from(AuditEvent)
    narrow.unit.fetch(count, {})
    with pytest.raises(Crash):
        Diary(narrow).write("a", then=raising(Crash))
    assert narrow.unit.fetch(count, {}) == [(0,)]
    narrow.close()


def test_without_a_database_it_is_unavailable(config: dict[str, Any], clock: Clock) -> None:
    address = f"postgresql+psycopg://nobody@127.0.0.1:{free_port()}/nothing"
    lonely = Services(Settings.load(config), create_engine(address), clock)
    with pytest.raises(Unavailable):
        lonely.unit.fetch(select(literal(1)), {})
    lonely.close()


# ── PostgreSQL that is slow ──────────────────────────────────────────────────────────────────────


@pytest.mark.faults("Q5")
@only_postgresql
def test_who_waits_for_a_lock_is_answered_in_time(config: dict[str, Any], clock: Clock, diary: Diary) -> None:
    url = config["MFA_DATABASE_URL"]
    served = Services(Settings.load(config), create_engine(url, **options_for(url)), clock)
    diary.write("a")
    with create_engine(url).begin() as connection:
        connection.execute(text("LOCK TABLE mfa_users IN ACCESS EXCLUSIVE MODE"))
        start = time.monotonic()
        with pytest.raises(Unavailable):
            served.unit.fetch(select(User.id), {})
        assert 4 < time.monotonic() - start < 15
    connection.engine.dispose()
    assert served.unit.fetch(select(User.id), {}) == []
    served.close()


@pytest.mark.faults("Q5")
@only_postgresql
def test_no_statement_and_no_transaction_lasts_for_ever(config: dict[str, Any]) -> None:
    url = config["MFA_DATABASE_URL"]
    engine = create_engine(url, **options_for(url))
    with engine.connect() as connection:
        shown = [
            connection.execute(text(f"SHOW {name}")).scalar()
            for name in ("statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout")
        ]
    engine.dispose()
    assert shown == ["20s", "5s", "1min"]


@only_postgresql
def test_a_database_that_is_gone_without_a_word_is_noticed(config: dict[str, Any]) -> None:
    url = config["MFA_DATABASE_URL"]
    engine = create_engine(url, **options_for(url))
    with engine.connect() as connection:
        told = connection.connection.driver_connection.info.get_parameters()  # type: ignore[union-attr]
    engine.dispose()
    assert told["tcp_user_timeout"] == "25000"
    assert [told[f"keepalives_{name}"] for name in ("idle", "interval", "count")] == ["5", "2", "3"]


# ── fixtures ─────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def changeable(rows: Rows) -> Iterator[None]:
    """The log without the triggers that keep it from being changed: these tests want a row to fight over."""
    rows("ALTER TABLE mfa_events DISABLE TRIGGER USER")
    yield
    rows("ALTER TABLE mfa_events ENABLE TRIGGER USER")


@pytest.fixture
def diary(services: Services) -> Diary:
    return Diary(services)


@pytest.fixture
def heard(services: Services) -> list[str]:
    return hearing(services)


@pytest.fixture
def serializable(config: dict[str, Any], clock: Clock) -> Iterator[Services]:
    settings = Settings.load(config)
    made = Services(settings, create_engine(settings.database, isolation_level="SERIALIZABLE"), clock)
    yield made
    made.close()


def hearing(services: Services) -> list[str]:
    """The entries whose signals have come."""
    heard: list[str] = []
    listen(services, lambda record: heard.append(record.detail["entry"]))
    return heard


def listen(services: Services, hear: Callable[[Recorded], object]) -> None:
    services.audit.signal.connect(lambda _sender, record: hear(record), weak=False)


def entries(rows: Rows) -> int:
    return int(rows("SELECT count(*) AS count FROM mfa_events")[0]["count"])


def raising(error: type[BaseException]) -> Callable[[], Any]:
    def act() -> None:
        raise error

    return act


@contextmanager
def locked_by_another_process(database: str) -> Iterator[Callable[[], object]]:
    """Another process holds the write lock of an SQLite file until what is yielded is called, or the block ends."""
    script = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("BEGIN IMMEDIATE")
print("locked", flush=True)
sys.stdin.read()
"""
    command = [sys.executable, "-c", script, database.removeprefix("sqlite:///")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stdin
        assert process.stdout.readline() == b"locked\n"
        yield process.stdin.close


# ── run again ────────────────────────────────────────────────────────────────────────────────────


def test_a_unit_that_collides_in_its_commit_is_run_again_with_what_it_was_given(services: Services, rows: Rows) -> None:
    tries: list[str] = []

    def collide(_connection: object) -> None:
        tries.append("")
        if len(tries) == 1:
            raise OperationalError("COMMIT", {}, CollisionError())

    event.listen(services.engine, "commit", collide)
    services.accounts.register("ada", "analytical-engine-1843", "ada@example.com", CLIENT)
    assert len(tries) == 2
    assert [row["username"] for row in rows("SELECT username FROM mfa_users")] == ["ada"]
    assert len(rows("SELECT id FROM mfa_secrets")) == len(rows("SELECT id FROM mfa_events")) == 1


class CollisionError(Exception):
    """What a driver says of a serialization failure."""

    sqlstate = "40001"
