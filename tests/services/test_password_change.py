"""Changing the password: by somebody who knows the old one, and all that it let in ends, but for this session."""

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import pytest

from mfa_service.errors import (
    Busy,
    InvalidCredentials,
    InvalidPendingToken,
    InvalidRefreshToken,
    InvalidToken,
    WeakPassword,
)
from mfa_service.services import Services
from mfa_service.services.accounts import Accounts
from mfa_service.services.administration import By
from mfa_service.services.hashing import Hashing
from mfa_service.services.login import MFAPending, SignedIn
from tests.conftest import Clock
from tests.factories import PASSWORD, Person
from tests.services import (
    CLIENT,
    Rows,
    another,
    at_once,
    ensure_refused,
    events,
    forgive,
    identity_of,
    is_live,
    log_in,
    register,
    sign_in,
    trust_device,
    user_id_of,
    verify,
)

NEW = "difference-engine-1822"


def test_the_new_password_lets_in_and_the_old_one_does_not(services: Services, this: SignedIn, rows: Rows) -> None:
    change(services, this)
    assert services.login.begin("ada", NEW, CLIENT)
    ensure_refused(InvalidCredentials, lambda: services.login.begin("ada", PASSWORD, CLIENT))
    assert events(rows).count("password.changed") == 1


def test_a_code_is_asked_for_afterwards_as_before(services: Services, this: SignedIn) -> None:
    change(services, this)
    assert isinstance(services.login.begin("ada", NEW, CLIENT), MFAPending)


def test_other_sessions_end_on_every_worker_and_this_one_lives(services: Services, ada: Person, this: SignedIn) -> None:
    other = sign_in(services, ada, steps=1)
    with another(services) as worker:
        assert is_live(worker, other)
        change(services, this)
        assert (is_live(worker, other), is_live(worker, this)) == (False, True)
        ensure_refused(InvalidRefreshToken, lambda: worker.login.refresh(other.refresh_token, CLIENT))
        assert worker.login.refresh(this.refresh_token, CLIENT)


def test_devices_and_pending_tokens_die(services: Services, ada: Person, this: SignedIn) -> None:
    device = trust_device(services, ada, steps=1)
    pending = log_in(services, ada)
    change(services, this)
    ensure_refused(InvalidPendingToken, lambda: verify(services, pending, ada, steps=2))
    assert isinstance(services.login.begin("ada", NEW, CLIENT, device), MFAPending)


def test_nobody_else_notices(services: Services, this: SignedIn) -> None:
    bob = register(services, "bob")
    device = trust_device(services, bob)
    pending, signed_in = log_in(services, bob), sign_in(services, bob, steps=1)
    change(services, this)
    assert is_live(services, signed_in)
    assert verify(services, pending, bob, steps=2)
    assert isinstance(services.login.begin("bob", bob.password, CLIENT, device), SignedIn)


def test_a_wrong_current_password_changes_nothing_and_ends_nothing(
    services: Services, ada: Person, this: SignedIn, rows: Rows
) -> None:
    other = sign_in(services, ada, steps=1)
    before = rows("SELECT * FROM mfa_users")
    ensure_refused(InvalidCredentials, lambda: change(services, this, current="wrong-password"))
    assert rows("SELECT * FROM mfa_users") == before
    assert is_live(services, other)
    assert log_in(services, ada)


def test_a_wrong_current_password_counts_on_the_lock_of_the_login(
    services: Services, ada: Person, this: SignedIn, rows: Rows, clock: Clock
) -> None:
    for _ in range(3):
        ensure_refused(InvalidCredentials, lambda: change(services, this, current="wrong-password"))
    for _ in range(2):
        ensure_refused(InvalidCredentials, lambda: services.login.begin("ada", "wrong-password", CLIENT))
    ensure_refused(InvalidCredentials, lambda: log_in(services, ada))
    ensure_refused(InvalidCredentials, lambda: change(services, this))
    failures = {row["subject"]: row["failures"] for row in rows("SELECT subject, failures FROM mfa_locks")}
    assert (failures.pop("trusted_password"), failures.pop("password")) == (3, 2)
    assert [*failures.values()] == [5], "from one network they are counted together"
    clock.advance(1)
    change(services, this)
    assert rows("SELECT * FROM mfa_locks") == []


def test_a_hundred_wrong_ones_with_a_stolen_token_meet_a_delay_that_keeps_nobody_from_signing_in(
    services: Services, ada: Person, this: SignedIn, rows: Rows, clock: Clock
) -> None:
    ensure_refused(InvalidCredentials, lambda: change(services, this, current="wrong-password"))
    rows("UPDATE mfa_locks SET failures = 100 WHERE subject = 'trusted_password'")
    ensure_refused(InvalidCredentials, lambda: change(services, this, current="wrong-password"))
    ensure_refused(InvalidCredentials, lambda: change(services, this))
    assert log_in(services, ada)
    clock.advance(1)
    change(services, this)


def test_what_is_hashed_is_the_current_password_and_only_where_it_is_right_and_unlocked_the_new_one(
    services: Services, this: SignedIn
) -> None:
    with another(services, bcrypt_cost=5) as costlier, counting(costlier) as (accounts, hashed):
        for current, count in [("wrong-password", 1)] * 5 + [(PASSWORD, 1)]:
            ensure_refused(InvalidCredentials, lambda it=current: change(costlier, this, current=it, by=accounts))
            assert len(hashed) == count, "of a locked account no time tells the right password"
            hashed.clear()
        forgive(services)
        change(costlier, this, by=accounts)
        assert len(hashed) == 2


def test_the_old_password_is_not_hashed_anew_before_it_goes(services: Services, this: SignedIn, rows: Rows) -> None:
    with another(services, bcrypt_cost=5) as costlier:
        change(costlier, this)
        assert "password.rehashed" not in events(rows)
        assert costlier.login.begin("ada", NEW, CLIENT)
        assert "password.rehashed" not in events(rows), "the new one is of the new cost"


def test_a_session_that_ends_while_the_new_password_is_hashed_changes_nothing(
    services: Services, this: SignedIn, rows: Rows
) -> None:
    before = rows("SELECT sealed_password FROM mfa_users")
    with counting(services) as (accounts, hashed):
        end = lambda: services.login.sign_out(identity_of(services, this), CLIENT, everywhere=True)  # noqa: E731
        hashed.at(2, end)
        ensure_refused(InvalidToken, lambda: change(services, this, by=accounts))
    assert rows("SELECT sealed_password FROM mfa_users") == before
    assert "password.changed" not in events(rows)


@pytest.mark.parametrize("new", ["short", "password123", "ada", "someone!1", "x" * 1025, "", "       "])
def test_a_weak_new_password_spends_nothing(services: Services, this: SignedIn, rows: Rows, new: str) -> None:
    before = rows("SELECT * FROM mfa_users")
    with full(services):
        for current in (PASSWORD, "wrong-password"):
            ensure_refused(WeakPassword, lambda it=current: change(services, this, current=it, new=new))
    assert rows("SELECT * FROM mfa_users") == before
    assert rows("SELECT * FROM mfa_locks") == []


def test_with_no_place_to_hash_nothing_is_spent(services: Services, ada: Person, this: SignedIn, rows: Rows) -> None:
    with full(services):
        ensure_refused(Busy, lambda: change(services, this, current="wrong-password"))
    assert rows("SELECT * FROM mfa_locks") == []
    assert log_in(services, ada)


def test_a_login_whose_hash_ran_while_the_password_changed_is_refused(
    services: Services, this: SignedIn, clock: Clock
) -> None:
    verdict = services.accounts.check_password("ada", PASSWORD, CLIENT)
    clock.advance(0.001)
    change(services, this)
    assert verdict.is_right
    ensure_refused(
        InvalidCredentials,
        lambda: services.unit.run(lambda: services.accounts.settle(verdict, CLIENT), writes=True),
    )


def test_a_session_that_has_ended_meanwhile_changes_nothing_and_counts_nothing(
    services: Services, this: SignedIn, rows: Rows
) -> None:
    ensure_refused(InvalidCredentials, lambda: change(services, this, current="wrong-password"))
    services.login.sign_out(identity_of(services, this), CLIENT, everywhere=False)
    before = {table: rows(f"SELECT * FROM {table}") for table in ("mfa_users", "mfa_locks", "mfa_events")}
    with another(services, bcrypt_cost=5) as costlier:
        for current in (PASSWORD, "wrong-password"):
            ensure_refused(InvalidToken, lambda it=current: change(costlier, this, current=it))
    assert {table: rows(f"SELECT * FROM {table}") for table in before} == before


def test_of_two_changes_at_once_one_wins(services: Services, this: SignedIn, rows: Rows, clock: Clock) -> None:
    clock.advance(1)
    new = [f"difference-engine-{number}" for number in range(4)]
    outcomes = at_once(4, lambda number: change(services, this, new=new[number]))
    assert len([outcome for outcome in outcomes if outcome is None]) == 1, outcomes
    assert events(rows).count("password.changed") == 1


def test_a_disabled_or_deleted_user_changes_nothing(services: Services, this: SignedIn, rows: Rows) -> None:
    rows("UPDATE mfa_users SET disabled_at = created_at")
    ensure_refused(InvalidCredentials, lambda: change(services, this))
    services.administration.delete(By(CLIENT, reason="asked for"), user_id_of(rows, "ada"))
    ensure_refused(InvalidToken, lambda: change(services, this))


def test_neither_password_is_in_the_database(services: Services, this: SignedIn, rows: Rows) -> None:
    change(services, this)
    dump = repr([rows(f"SELECT * FROM {table}") for table in ("mfa_users", "mfa_events")])
    assert [word for word in (PASSWORD, NEW, "$2b$") if word in dump] == []


# ── fixtures and helpers ─────────────────────────────────────────────────────────────────────────


@pytest.fixture
def ada(services: Services) -> Person:
    return register(services, "ada")


@pytest.fixture
def this(services: Services, ada: Person) -> SignedIn:
    """The session that changes the password."""
    return sign_in(services, ada)


def change(
    services: Services, this: SignedIn, current: str = PASSWORD, new: str = NEW, by: Accounts | None = None
) -> None:
    identity, accounts = identity_of(services, this), by or services.accounts
    accounts.change_password(identity.user_id, identity.session_id, current, new, CLIENT)


class Hashed(list[float]):
    """The hashes that were made, in seconds; at one of them something may happen."""

    def at(self, number: int, act: Callable[[], None]) -> None:
        self._number, self._act = number, act

    def append(self, seconds: float) -> None:
        super().append(seconds)
        if len(self) == getattr(self, "_number", 0):
            self._act()


@contextmanager
def counting(services: Services) -> Iterator[tuple[Accounts, Hashed]]:
    """The accounts with a pool that keeps count of what it hashes."""
    hashed = Hashed()

    class Pool(Hashing):
        def _note(self, seconds: float) -> None:
            hashed.append(seconds)

    pool = Pool(services.settings.hashing_threads, services.settings.hashing_queue)
    yield dataclasses.replace(services.accounts, hashing=pool), hashed
    pool.close()


def full(services: Services) -> ExitStack:
    """All places for hashing are taken, as long as the block runs."""
    places = ExitStack()
    for _ in range(services.settings.hashing_threads + services.settings.hashing_queue):
        places.enter_context(services.hashing.place())
    return places
