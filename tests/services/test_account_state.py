"""Accounts that are disabled, enabled again, deleted: whatever they had been let in with has ended."""

from collections.abc import Callable

import pytest

from mfa_service.errors import InvalidCredentials, InvalidPendingToken, InvalidRefreshToken, InvalidToken, NotFound
from mfa_service.services import Services
from mfa_service.services.administration import By
from mfa_service.services.login import MFAPending, SignedIn
from tests.factories import PASSWORD, Person
from tests.services import (
    CLIENT,
    Rows,
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
    verify,
)

Act = Callable[[Services, str], None]


def disable(services: Services, user_id: str) -> None:
    services.administration.disable(By(CLIENT, reason="left the company"), user_id)


def enable(services: Services, user_id: str) -> None:
    services.administration.enable(By(CLIENT), user_id)


def remove(services: Services, user_id: str) -> None:
    services.administration.delete(By(CLIENT, reason="asked for"), user_id)


@pytest.mark.parametrize("act", [disable, remove])
def test_it_ends_all_that_was_let_in_on_every_worker(services: Services, rows: Rows, act: Act) -> None:
    ada = register(services, "ada")
    device = trust_device(services, ada)
    signed_in, pending = sign_in(services, ada, steps=1), log_in(services, ada)
    identity = identity_of(services, signed_in)
    with another(services) as worker:
        act(services, user_id_of(rows, "ada"))
        assert not is_live(worker, signed_in)
        ensure_refused(InvalidRefreshToken, lambda: worker.login.refresh(signed_in.refresh_token, CLIENT))
        ensure_refused(InvalidPendingToken, lambda: verify(worker, pending, ada, steps=2))
        ensure_refused(InvalidPendingToken, lambda: worker.login.enrol(pending, CLIENT))
        ensure_refused(InvalidCredentials, lambda: worker.login.begin("ada", PASSWORD, CLIENT))
        ensure_refused(InvalidCredentials, lambda: worker.login.begin("ada", PASSWORD, CLIENT, device))
        code = totp(ada.code(worker.clock(), 2))
        ensure_refused(InvalidToken, lambda: worker.login.step_up(identity, code, CLIENT))


@pytest.mark.parametrize("act", [disable, remove])
def test_it_harms_nobody_else(services: Services, rows: Rows, act: Act) -> None:
    register(services, "ada")
    bob = register(services, "bob")
    device = trust_device(services, bob)
    signed_in, pending = sign_in(services, bob, steps=1), log_in(services, bob)
    act(services, user_id_of(rows, "ada"))
    assert is_live(services, signed_in)
    assert verify(services, pending, bob, steps=2)
    assert isinstance(services.login.begin("bob", PASSWORD, CLIENT, device), SignedIn)


def test_an_enabled_account_signs_in_again_and_nothing_of_before_comes_back(services: Services, rows: Rows) -> None:
    ada = register(services, "ada")
    device = trust_device(services, ada)
    signed_in, pending = sign_in(services, ada, steps=1), log_in(services, ada)
    user_id = user_id_of(rows, "ada")
    disable(services, user_id)
    enable(services, user_id)
    assert not is_live(services, signed_in)
    ensure_refused(InvalidRefreshToken, lambda: services.login.refresh(signed_in.refresh_token, CLIENT))
    ensure_refused(InvalidPendingToken, lambda: verify(services, pending, ada, steps=2))
    assert isinstance(services.login.begin("ada", PASSWORD, CLIENT, device), MFAPending)
    assert sign_in(services, ada, steps=2)


def test_an_enabled_account_keeps_its_factors_and_its_locks(services: Services, rows: Rows) -> None:
    ada = register(services, "ada")
    codes = sign_in(services, ada).recovery_codes
    assert codes
    ensure_refused(InvalidCredentials, lambda: services.login.begin("ada", "wrong-password", CLIENT))
    before = rows("SELECT * FROM mfa_locks ORDER BY subject")
    user_id = user_id_of(rows, "ada")
    disable(services, user_id)
    enable(services, user_id)
    assert rows("SELECT * FROM mfa_locks ORDER BY subject") == before
    assert services.login.complete(log_in(services, ada), recovery(codes[0]), CLIENT).recovery_codes_left == 9


def test_a_wrong_password_of_a_disabled_account_counts_nothing(services: Services, rows: Rows) -> None:
    register(services, "ada")
    disable(services, user_id_of(rows, "ada"))
    for _ in range(6):
        ensure_refused(InvalidCredentials, lambda: services.login.begin("ada", "wrong-password", CLIENT))
    assert rows("SELECT * FROM mfa_locks") == []


def test_a_deleted_account_leaves_its_record_and_nothing_else(services: Services, rows: Rows) -> None:
    ada = register(services, "ada")
    trust_device(services, ada)
    ensure_refused(InvalidCredentials, lambda: services.login.begin("ada", "wrong-password", CLIENT))
    log_in(services, ada)
    user_id = user_id_of(rows, "ada")
    remove(services, user_id)
    tables = ("challenges", "secrets", "recovery_codes", "locks", "devices", "sessions")
    assert [table for table in tables if rows(f"SELECT user_id FROM mfa_{table}")] == []
    assert rows("SELECT id FROM mfa_users") == []
    assert rows("SELECT user_id FROM mfa_events WHERE event = 'user.deleted'") == [{"user_id": user_id}]
    assert "login.completed" in events(rows)


def test_the_next_of_that_name_is_somebody_else(services: Services, rows: Rows) -> None:
    ada = register(services, "ada")
    signed_in, pending = sign_in(services, ada), log_in(services, ada)
    user_id = user_id_of(rows, "ada")
    remove(services, user_id)
    successor = register(services, "ada")
    assert user_id_of(rows, "ada") != user_id
    assert not is_live(services, signed_in)
    ensure_refused(InvalidRefreshToken, lambda: services.login.refresh(signed_in.refresh_token, CLIENT))
    ensure_refused(InvalidPendingToken, lambda: verify(services, pending, successor))
    assert sign_in(services, successor)


@pytest.mark.parametrize("act", [disable, enable, remove])
def test_nobody_is_not_found_and_nothing_is_done(services: Services, rows: Rows, act: Act) -> None:
    register(services, "ada")
    before = rows("SELECT * FROM mfa_users"), events(rows)
    for user_id in ("", "x" * 22, "ada", "%"):
        ensure_refused(NotFound, lambda it=user_id: act(services, it))
    assert (rows("SELECT * FROM mfa_users"), events(rows)) == before


def test_each_is_recorded_once_with_its_reason(services: Services, rows: Rows) -> None:
    register(services, "ada")
    user_id = user_id_of(rows, "ada")
    for act in (disable, disable, enable, enable, remove):
        act(services, user_id)
    ensure_refused(NotFound, lambda: remove(services, user_id))
    found = events(rows)
    assert [found.count(f"user.{name}") for name in ("disabled", "enabled", "deleted")] == [1, 1, 1]
    [row] = rows("SELECT detail FROM mfa_events WHERE event = 'user.disabled'")
    assert "left the company" in str(row["detail"])


def test_a_disabled_user_is_no_wrong_password_to_tell_apart(services: Services, rows: Rows) -> None:
    ada: Person = register(services, "ada")
    disable(services, user_id_of(rows, "ada"))
    for password in (ada.password, "wrong-password"):
        ensure_refused(InvalidCredentials, lambda it=password: services.login.begin("ada", it, CLIENT))
