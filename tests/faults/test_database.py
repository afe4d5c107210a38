"""The database goes away, hangs, takes no changes or is full: 503, nothing spent, nothing lost, and on it goes."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest

from tests.factories import PASSWORD
from tests.faults import (
    OUT_OF_ORDER,
    Ada,
    contained,
    ensure_discreet,
    ensure_recovered,
    ensure_refused,
    of_replica,
    register_as,
    sign_in,
    under_load,
    workers_of,
)
from tests.faults.servers import PostgreSQL
from tests.services import Rows
from tests.stack import CREDENTIALS, MANY, Reply, Stack, Start, log_in, profile, refresh, verify, within

pytestmark = pytest.mark.services


# ── it goes away ─────────────────────────────────────────────────────────────────────────────────


@pytest.mark.faults("Q4", "Q22")
@pytest.mark.parametrize("harm", [PostgreSQL.stop, PostgreSQL.crash])
def test_without_it_everything_that_needs_it_is_503_and_nothing_is_spent(
    start: Start, postgresql: PostgreSQL, harm: Callable[[PostgreSQL], None]
) -> None:
    stack = start(**MANY)
    ada, workers = sign_in(stack), workers_of(stack)
    pending, code = log_in(stack).json["tempToken"], ada.phone.code()
    with contained(stack, 503, "unavailable", OUT_OF_ORDER, secrets=[*ada.secrets, pending]) as answers:
        harm(postgresql)
        answers += [call() for call in calls(stack, ada, pending, code)]
        assert stack.call("GET", "/healthz").status == 200
        assert stack.call("GET", "/readyz").json["fields"] == {"database": "is down"}
    postgresql.start()
    ensure_recovered(stack, workers)
    statuses = [call().status for call in calls(stack, ada, pending, code)]
    assert statuses == [200] * len(statuses)


@pytest.mark.faults("Q4", "Q22")
def test_what_was_answered_before_it_died_under_load_is_there_when_it_is_back(
    start: Start, postgresql: PostgreSQL, rows: Rows
) -> None:
    stack = start(**MANY, MFA_REGISTRATION_RATE_LIMIT="100000 per minute")
    ada, workers = sign_in(stack), workers_of(stack)
    answers, registered = [], []
    with under_load(lambda: answers.append(profile(stack, ada.access))):
        for number in range(20):
            answers.append(register_as(stack, f"user{number}"))
            registered += [f"user{number}"] if answers[-1].status == 200 else []
            if number == 5:
                threading.Thread(target=postgresql.crash).start()
            if number == 15:
                assert not postgresql.is_running
                postgresql.start()
        ensure_recovered(stack, workers)
    for answer in answers:
        if answer.status != 200:
            ensure_refused(answer, 503, "unavailable")
    assert {answer.status for answer in answers} == {200, 503}
    kept = {
        row["username"] for row in rows("SELECT username FROM mfa_users JOIN mfa_secrets ON user_id = mfa_users.id")
    }
    assert kept >= {"ada", *registered}
    assert len(rows("SELECT id FROM mfa_users")) == len(kept), "and there is no account without its secret"
    ensure_discreet(stack, ada.secrets)


@pytest.mark.faults("Q4")
def test_who_starts_before_it_waits_without_dying(start: Start, postgresql: PostgreSQL) -> None:
    postgresql.stop()
    stack = start(**MANY, is_ready=False)
    workers = workers_of(stack)
    for _ in range(4):
        for replica in stack.replicas:
            assert of_replica(replica, "/healthz").status == 200
            ensure_refused(of_replica(replica, "/readyz"), 503, "not_ready")
        ensure_refused(stack.call("POST", "/auth/login", CREDENTIALS), 503, "unavailable")
        time.sleep(0.5)
    postgresql.start()
    ensure_recovered(stack, workers)
    sign_in(stack)
    ensure_discreet(stack, [PASSWORD])


# ── it hangs ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.faults("Q5", "Q22")
def test_behind_a_lock_nobody_waits_for_ever_and_all_else_is_answered(start: Start, postgresql: PostgreSQL) -> None:
    stack = start(MFA_SESSION_RATE_LIMIT="100000 per minute")
    ada, workers = sign_in(stack), workers_of(stack)
    secrets, began = ada.secrets, time.monotonic()
    with (
        contained(stack, 503, "unavailable", OUT_OF_ORDER, secrets=secrets) as answers,
        locked(postgresql),
        ThreadPoolExecutor() as pool,
    ):
        waiting = [pool.submit(stack.call, "POST", "/auth/login", CREDENTIALS) for _ in range(4)]
        waiting += [pool.submit(profile, stack, ada.access) for _ in range(8)]
        time.sleep(1)
        for path in ("/healthz", "/.well-known/jwks.json"):
            assert seconds_of(lambda: stack.call("GET", path)) < 1  # noqa: B023
        limited = stack.call("POST", "/auth/login", CREDENTIALS)  # this client's sixth
        ensure_refused(limited, 429, "too_many_attempts")
        assert not any(each.done() for each in waiting)
        answers += [each.result() for each in waiting]
        assert time.monotonic() - began < 15
    ensure_recovered(stack, workers)
    assert profile(stack, ada.access).status == 200


@pytest.mark.faults("Q5")
def test_when_it_pauses_everybody_waits_and_nothing_fails(start: Start, postgresql: PostgreSQL) -> None:
    stack = start(**MANY)
    ada, workers = sign_in(stack), workers_of(stack)
    with ThreadPoolExecutor() as pool:
        postgresql.freeze()
        try:
            waiting = [pool.submit(profile, stack, ada.access) for _ in range(5)]
            waiting += [pool.submit(stack.call, "POST", "/auth/login", CREDENTIALS) for _ in range(3)]
            time.sleep(2)
            assert seconds_of(lambda: stack.call("GET", "/healthz")) < 1
            assert not any(each.done() for each in waiting)
        finally:
            postgresql.thaw()
        assert [each.result().status for each in waiting] == [200] * 8
    ensure_recovered(stack, workers)


@pytest.mark.faults("Q5")
def test_while_it_hangs_a_crowd_gets_no_connection_and_does_not_take_health_along(
    start: Start, postgresql: PostgreSQL
) -> None:
    stack = start(**MANY)
    ada, workers = sign_in(stack), workers_of(stack)
    with ThreadPoolExecutor(80) as pool:
        postgresql.freeze()
        try:
            # More than both replicas have threads. Whoever gets one of the open connections waits until it goes on.
            waiting = [pool.submit(profile, stack, ada.access) for _ in range(80)]
            time.sleep(2)
            for replica in stack.replicas:
                assert of_replica(replica, "/healthz").status == 200
            assert within(15, lambda: sum(each.done() for each in waiting) > 40)
        finally:
            postgresql.thaw()
        answers = [each.result() for each in waiting]
    for answer in answers:
        if answer.status != 200:
            ensure_refused(answer, 503, "unavailable")
    assert len([answer for answer in answers if answer.status == 503]) > 40
    ensure_recovered(stack, workers)
    ensure_discreet(stack, ada.secrets)


@pytest.mark.faults("Q5")
def test_while_it_hangs_more_than_there_are_threads_keep_asking_and_health_and_limits_are_answered(
    start: Start, postgresql: PostgreSQL
) -> None:
    stack = start(**MANY | {"MFA_SESSION_RATE_LIMIT": "3 per minute"})
    ada, over = sign_in(stack), threading.Event()
    for _ in range(3):
        refresh(stack, "no")

    def keep_asking(number: int) -> list[Reply]:
        answers = []
        while not over.is_set():
            answers.append(of_replica(stack.replicas[number % 2], "/api/profile", ada.access))
            time.sleep(0.5)
        return answers

    with ThreadPoolExecutor(100) as pool:
        postgresql.freeze()
        try:
            asking = [pool.submit(keep_asking, number) for number in range(100)]
            time.sleep(5)
            for _ in range(8):
                began = time.monotonic()
                assert stack.call("GET", "/healthz").status == 200
                assert refresh(stack, "no").status == 429
                assert time.monotonic() - began < 1
                time.sleep(0.5)
        finally:
            over.set()
            postgresql.thaw()
        answers = [answer for each in asking for answer in each.result()]
    assert len([answer for answer in answers if answer.status == 503]) > 200, "at once, and again, and again"
    for answer in answers:
        if answer.status != 200:
            ensure_refused(answer, 503, "unavailable")


@pytest.mark.faults("Q5", "Q22")
def test_where_it_hangs_for_good_nobody_waits_for_ever_and_health_is_answered(
    start: Start, postgresql: PostgreSQL
) -> None:
    stack = start(**MANY)
    ada, workers = sign_in(stack), workers_of(stack)
    with (
        contained(stack, 503, "unavailable", OUT_OF_ORDER, secrets=ada.secrets) as answers,
        ThreadPoolExecutor(20) as pool,
    ):
        for _ in range(20):
            assert profile(stack, ada.access).status == 200  # on connections that are trusted for a second
        postgresql.freeze()
        try:
            began = time.monotonic()
            waiting = [pool.submit(profile, stack, ada.access) for _ in range(20)]
            while not all(each.done() for each in waiting):
                assert seconds_of(lambda: stack.call("GET", "/healthz")) < 1
                time.sleep(0.5)
            assert time.monotonic() - began < 32
            answers += [each.result() for each in waiting]
        finally:
            postgresql.thaw()
    ensure_recovered(stack, workers)


# ── it takes nothing ─────────────────────────────────────────────────────────────────────────────


@pytest.mark.faults("Q6", "Q22")
def test_read_only_it_lets_nobody_in_and_whoever_is_in_stays(start: Start, postgresql: PostgreSQL, rows: Rows) -> None:
    stack = start(**MANY)
    ada, workers = sign_in(stack), workers_of(stack)
    pending, code = log_in(stack).json["tempToken"], ada.phone.code()
    before = rows("SELECT count(*) FROM mfa_sessions")
    with contained(stack, 503, "unavailable", OUT_OF_ORDER, secrets=[*ada.secrets, pending]) as answers:
        postgresql.set("default_transaction_read_only", "on")
        assert within(5, lambda: is_read_only(postgresql))
        refused = [verify(stack, pending, code), refresh(stack, ada.refresh), register_as(stack, "bob")]
        answers += [*refused, stack.call("POST", "/auth/login", CREDENTIALS)]
        assert profile(stack, ada.access).status == 200
    assert rows("SELECT count(*) FROM mfa_sessions") == before
    postgresql.set("default_transaction_read_only", "off")
    assert within(5, lambda: not is_read_only(postgresql))
    ensure_recovered(stack, workers)
    assert verify(stack, pending, code).status == 200, "the code was not spent"
    assert verify(stack, log_in(stack).json["tempToken"], code).status == 401, "and now it is"


@pytest.mark.faults("Q7", "Q22")
@pytest.mark.parametrize("database", ["sqlite", "postgresql"], indirect=True)
def test_full_it_takes_nothing_in_halves(start: Start, full: "Full", rows: Rows) -> None:
    stack = start(**MANY, **full.settings)
    ada, workers = sign_in(stack), workers_of(stack)
    pending, code = log_in(stack).json["tempToken"], ada.phone.code()
    with contained(stack, 503, "unavailable", OUT_OF_ORDER, secrets=[*ada.secrets, pending]) as answers:
        full.begin()
        # What is in the file already has room left for some; then all are refused.
        tried = [register_as(stack, f"user{number:02}") for number in range(40)]
        answers += [answer for answer in tried if answer.status != 200]
        assert tried[-1].status == 503
    complete = "SELECT username FROM mfa_users JOIN mfa_secrets ON user_id = mfa_users.id"
    assert len(rows(complete)) == len(rows("SELECT id FROM mfa_users")) == 1 + 40 - len(answers)
    assert profile(stack, ada.access).status == 200
    full.end()
    ensure_recovered(stack, workers)
    assert register_as(stack, "user39").status == 200
    assert verify(stack, pending, code).status == 200


# ── means ────────────────────────────────────────────────────────────────────────────────────────


class Full:
    """A database that is full for a while: SQLite, which can't make its file larger, or PostgreSQL, which says so."""

    def __init__(self, database: str, postgresql: PostgreSQL, folder: Path) -> None:
        self._file = folder / "full"
        self._postgresql = None if database.startswith("sqlite") else postgresql
        self.settings = {"TEST_FULL": str(self._file)} if self._postgresql is None else {}

    def begin(self) -> None:
        if self._postgresql is None:
            self._file.touch()
            return
        # The last one of the rows that make an account; a real disk can't be filled up without being root.
        self._postgresql.run(
            "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS "
            "$$ BEGIN RAISE EXCEPTION 'could not extend file: No space left on device' USING ERRCODE = '53100'; END $$",
            "CREATE TRIGGER full_disk BEFORE INSERT ON mfa_events FOR EACH ROW EXECUTE FUNCTION refuse()",
        )

    def end(self) -> None:
        self._file.unlink(missing_ok=True)
        if self._postgresql:
            self._postgresql.run("DROP FUNCTION IF EXISTS refuse() CASCADE")


@pytest.fixture
def full(database: str, postgresql: PostgreSQL, tmp_path: Path) -> Iterator[Full]:
    made = Full(database, postgresql, tmp_path)
    yield made
    made.end()


class locked:  # noqa: N801 - reads like what it is
    """Somebody else holds the table of users for the length of the block."""

    def __init__(self, postgresql: PostgreSQL) -> None:
        self._connection = psycopg.connect(postgresql.url.replace("+psycopg", ""))

    def __enter__(self) -> None:
        self._connection.execute("LOCK TABLE mfa_users IN ACCESS EXCLUSIVE MODE")

    def __exit__(self, *_failure: object) -> None:
        self._connection.close()


def calls(stack: Stack, ada: Ada, pending: str, code: str) -> list[Callable[[], Reply]]:
    """One of each kind that needs the database."""
    return [
        lambda: verify(stack, pending, code),
        lambda: stack.call("POST", "/auth/login", CREDENTIALS),
        lambda: refresh(stack, ada.refresh),
        lambda: profile(stack, ada.access),
        lambda: register_as(stack, "bob"),
    ]


def is_read_only(postgresql: PostgreSQL) -> bool:
    with psycopg.connect(postgresql.url.replace("+psycopg", "")) as connection:
        return connection.execute("SHOW default_transaction_read_only").fetchone() == ("on",)


def seconds_of(act: Callable[[], Reply]) -> float:
    began = time.monotonic()
    assert act().status == 200
    return time.monotonic() - began
