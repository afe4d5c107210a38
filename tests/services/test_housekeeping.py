"""Housekeeping: what has ended is removed, nothing else, and nobody who signs in meanwhile notices."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from sqlalchemy import event

from mfa_service.errors import InvalidCredentials, InvalidRecoveryCode
from mfa_service.services import Services
from mfa_service.services.administration import By
from mfa_service.services.audit import ClientInfo
from tests.conftest import Clock
from tests.factories import Person
from tests.services import (
    CLIENT,
    Rows,
    acting,
    another,
    ensure_refused,
    events,
    identity_of,
    is_live,
    log_in,
    recovery,
    register,
    sign_in,
    totp,
    trust_device,
    user_id_of,
)

DAY = 86_400
NOTHING = {
    "challenges": 0,
    "tickets": 0,
    "sessions": 0,
    "devices": 0,
    "unconfirmed authenticators": 0,
    "counters of networks": 0,
}


def test_where_nothing_has_ended_nothing_is_removed(services: Services, ada: Person, rows: Rows) -> None:
    trust_device(services, ada, steps=1)
    log_in(services, ada)
    before = everything(rows)
    assert services.housekeeping.prune() == NOTHING
    assert everything(rows) == before


def test_challenges_go_a_day_after_their_five_minutes(services: Services, ada: Person, clock: Clock) -> None:
    services.housekeeping.prune()
    log_in(services, ada)
    clock.advance(300 + DAY)
    kept = services.housekeeping.prune()
    clock.advance(1)
    gone = services.housekeeping.prune()
    assert (kept["challenges"], gone["challenges"]) == (0, 2)


@pytest.mark.parametrize(
    ("end", "seconds"),
    [("revoked", 0), ("idle", DAY), ("absolute", 2_592_000)],
)
def test_sessions_go_a_day_after_their_end(
    services: Services, ada: Person, rows: Rows, clock: Clock, end: str, seconds: int
) -> None:
    if end == "revoked":
        services.login.sign_out(identity_of(services, sign_in(services, ada, 1)), CLIENT, everywhere=True)
    if end == "absolute":
        rows("UPDATE mfa_sessions SET refreshed_at = expires_at")
    count = len(rows("SELECT id FROM mfa_sessions"))
    clock.advance(seconds + DAY)
    assert services.housekeeping.prune()["sessions"] == 0
    clock.advance(1)
    assert services.housekeeping.prune()["sessions"] == count
    assert rows("SELECT id FROM mfa_sessions") == []


def test_a_session_that_lives_stays_beside_those_that_ended(
    services: Services, ada: Person, rows: Rows, clock: Clock
) -> None:
    current = sign_in(services, ada, steps=1)
    for _ in range(3):
        clock.advance(DAY - 60)
        current = services.login.refresh(current.refresh_token, CLIENT)
    assert services.housekeeping.prune()["sessions"] == 1
    assert is_live(services, current)
    assert services.login.refresh(current.refresh_token, CLIENT)


def test_the_idle_time_is_that_of_the_setting(services: Services, ada: Person, clock: Clock) -> None:
    clock.advance(3 * DAY)
    with another(services, session_idle_seconds=7 * DAY) as patient:
        assert patient.housekeeping.prune()["sessions"] == 0
    assert services.housekeeping.prune()["sessions"] == 1


def test_devices_go_a_day_after_their_time(services: Services, ada: Person, rows: Rows, clock: Clock) -> None:
    trust_device(services, ada, steps=1)
    clock.advance(2_592_000 - 60)
    device = trust_device(services, ada)
    clock.advance(DAY + 61)
    assert services.housekeeping.prune()["devices"] == 1
    assert services.login.begin("ada", ada.password, CLIENT, device)
    assert len(rows("SELECT id FROM mfa_devices")) == 1


def test_tickets_go_a_day_after_theirs(services: Services, ada: Person, rows: Rows, clock: Clock) -> None:
    services.administration.reset_factors(By(CLIENT, reason="phone lost"), user_id_of(rows, "ada"))
    clock.advance(2 * DAY)
    assert services.housekeeping.prune()["tickets"] == 0
    clock.advance(1)
    assert services.housekeeping.prune()["tickets"] == 1
    assert rows("SELECT * FROM mfa_tickets") == []


def test_a_replacement_that_nobody_confirmed_is_wiped_and_the_authenticator_stays(
    services: Services, ada: Person, rows: Rows, clock: Clock
) -> None:
    services.factors.replace(acting(services, user_id_of(rows, "ada")), CLIENT)
    clock.advance(599)
    assert services.housekeeping.prune()["unconfirmed authenticators"] == 0
    clock.advance(1)
    assert services.housekeeping.prune()["unconfirmed authenticators"] == 1
    assert sign_in(services, ada)


def test_the_secret_of_a_registration_waits_for_its_first_code_for_ever(services: Services, clock: Clock) -> None:
    bob = register(services, "bob")
    clock.advance(365 * DAY)
    services.housekeeping.prune()
    assert sign_in(services, bob)


def test_counters_of_networks_go_after_a_day_and_those_of_factors_and_accounts_never(
    services: Services, ada: Person, rows: Rows, clock: Clock
) -> None:
    for number in range(3):
        client = ClientInfo("", f"network_{number}%")
        ensure_refused(InvalidCredentials, lambda it=client: services.login.begin("ada", "wrong-password", it))
    token = log_in(services, ada)
    for _ in range(2):
        ensure_refused(InvalidRecoveryCode, lambda: services.login.complete(token, recovery("x"), CLIENT))
    ensure_refused(InvalidCredentials, lambda: services.login.begin("ada", "wrong-password", CLIENT))
    clock.advance(DAY)
    assert services.housekeeping.prune()["counters of networks"] == 0
    clock.advance(365 * DAY)
    assert services.housekeeping.prune()["counters of networks"] == 4
    left = {row["subject"]: row["failures"] for row in rows("SELECT subject, failures FROM mfa_locks")}
    assert left == {"password": 1, "recovery_codes": 2}


def test_a_disabled_factor_is_not_enabled_by_housekeeping(
    services: Services, ada: Person, rows: Rows, clock: Clock
) -> None:
    rows(
        "INSERT INTO mfa_locks (user_id, subject, failures, failed_at, open_at, disabled_at)"
        " SELECT id, 'totp', 100, created_at, created_at, created_at FROM mfa_users"
    )
    clock.advance(3650 * DAY)
    services.housekeeping.prune()
    assert rows("SELECT subject, failures FROM mfa_locks") == [{"subject": "totp", "failures": 100}]


def test_a_second_run_removes_nothing(services: Services, ada: Person, clock: Clock) -> None:
    trust_device(services, ada, steps=1)
    clock.advance(400 * DAY)
    assert sum(services.housekeeping.prune().values()) > 0
    assert services.housekeeping.prune() == NOTHING


def test_users_codes_and_the_log_are_not_touched(services: Services, ada: Person, rows: Rows, clock: Clock) -> None:
    tables = ("mfa_users", "mfa_recovery_codes", "mfa_events", "mfa_secrets")
    before = [rows(f"SELECT * FROM {table}") for table in tables]
    clock.advance(400 * DAY)
    services.housekeeping.prune()
    assert [rows(f"SELECT * FROM {table}") for table in tables] == before
    assert events(rows)


def test_many_rows_go_in_batches_of_a_thousand(services: Services, ada: Person, rows: Rows, clock: Clock) -> None:
    multiply_challenge(rows, 2499)
    clock.advance(2 * DAY)
    with deletions_of(services) as said:
        assert services.housekeeping.prune()["challenges"] == 2500
    assert said.count("mfa_challenges") >= 3


def test_people_sign_in_while_it_runs(services: Services, ada: Person, rows: Rows, clock: Clock) -> None:
    multiply_challenge(rows, 2999)
    clock.advance(2 * DAY)
    removed: list[dict[str, int]] = []
    with another(services) as worker:
        sweeper = threading.Thread(target=lambda: removed.append(worker.housekeeping.prune()))
        sweeper.start()
        signed_in = [sign_in(services, ada, steps) for steps in (-2, -1, 0, 1, 2)]
        sweeper.join(30)
    assert removed[0]["challenges"] == 3000
    assert all(is_live(services, one) for one in signed_in)


# ── fixtures and helpers ─────────────────────────────────────────────────────────────────────────


@pytest.fixture
def ada(services: Services) -> Person:
    """Somebody who has signed in once."""
    ada = register(services, "ada")
    services.login.complete(log_in(services, ada), totp(ada.code(services.clock())), CLIENT)
    return ada


def everything(rows: Rows) -> list[list[dict[str, Any]]]:
    tables = ("users", "secrets", "challenges", "recovery_codes", "locks", "devices", "sessions", "tickets", "events")
    return [rows(f"SELECT * FROM mfa_{table}") for table in tables]


def multiply_challenge(rows: Rows, count: int) -> None:
    """Beside the one challenge that there is, so many of its kind."""
    rows(
        "WITH RECURSIVE numbers(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < :count)"
        " INSERT INTO mfa_challenges (id, user_id, attempts, created_at, expires_at)"
        " SELECT 'c' || n, user_id, attempts, created_at, expires_at FROM mfa_challenges, numbers",
        count=count,
    )


@contextmanager
def deletions_of(services: Services) -> Iterator[list[str]]:
    """The table of each DELETE meanwhile."""
    said: list[str] = []

    def listen(*call: Any) -> None:
        if call[2].startswith("DELETE"):
            said.append(call[2].split()[2])

    event.listen(services.engine, "before_cursor_execute", listen)
    yield said
    event.remove(services.engine, "before_cursor_execute", listen)
