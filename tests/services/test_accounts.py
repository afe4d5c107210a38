"""Accounts: one for each name, made whole or not at all; and passwords that are checked, re-hashed, never told."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import bcrypt
import pytest
from sqlalchemy.exc import ProgrammingError

from mfa_service.crypto.keyring import Keyring
from mfa_service.crypto.passwords import hash_password
from mfa_service.crypto.vault import Vault
from mfa_service.errors import (
    Busy,
    InvalidCredentials,
    InvalidRequest,
    RegistrationClosed,
    SealBroken,
    Unavailable,
    UserExists,
    WeakPassword,
)
from mfa_service.services import Services
from mfa_service.services.audit import ClientInfo
from tests.conftest import Clock
from tests.factories import PASSWORD, Person
from tests.services import CLIENT, Rows, another, at_once, events, log_in, register, sign_in, user_id_of, verify

# ── registering ──────────────────────────────────────────────────────────────────────────────────


def test_a_new_account_is_a_user_and_an_unconfirmed_authenticator(services: Services, rows: Rows) -> None:
    register(services, "Ada")
    [user] = rows("SELECT * FROM mfa_users")
    assert (user["username"], user["username_key"], user["email"]) == ("Ada", "ada", "someone@example.com")
    assert user["disabled_at"] is None
    [secret] = rows("SELECT * FROM mfa_secrets")
    assert (secret["user_id"], secret["confirmed_at"], secret["last_step"]) == (user["id"], None, -1)
    assert events(rows) == ["user.registered"]


@pytest.mark.parametrize(
    ("first", "second"),
    [("admin", "ADMIN"), ("admin", "ａｄｍｉｎ"), ("straße", "STRASSE"), ("ﬁ", "fi"), ("k", "\u212a")],
)
def test_a_name_is_taken_in_all_its_spellings(services: Services, rows: Rows, first: str, second: str) -> None:
    register(services, first)
    with pytest.raises(UserExists):
        register(services, second)
    assert len(rows("SELECT * FROM mfa_users")) == 1
    assert services.login.begin(second, PASSWORD, CLIENT).token


def test_registering_a_taken_name_leaves_its_account_as_it_was(services: Services, rows: Rows) -> None:
    bob = register(services, "bob")
    before = rows("SELECT * FROM mfa_users"), rows("SELECT * FROM mfa_secrets")
    with pytest.raises(UserExists):
        register(services, "bob", password="another-password-1843")
    assert (rows("SELECT * FROM mfa_users"), rows("SELECT * FROM mfa_secrets")) == before
    assert sign_in(services, bob).username == "bob"
    assert events(rows)[1] == "registration.refused"


def test_of_twenty_registrations_of_one_name_at_once_one_succeeds(services: Services, rows: Rows) -> None:
    with another(services, hashing_queue=30) as patient:
        outcomes = at_once(20, lambda _: patient.accounts.register("bob", PASSWORD, "bob@example.com", CLIENT))
    assert sum(isinstance(outcome, UserExists) for outcome in outcomes) == 19, outcomes
    assert len(rows("SELECT * FROM mfa_users")) == len(rows("SELECT * FROM mfa_secrets")) == 1


@pytest.mark.faults("Q1")
def test_a_registration_that_breaks_half_way_leaves_nothing_and_blocks_nothing(services: Services, rows: Rows) -> None:
    rows("ALTER TABLE mfa_secrets RENAME TO away")
    try:
        with pytest.raises((Unavailable, ProgrammingError)):
            register(services, "bob")
    finally:
        rows("ALTER TABLE away RENAME TO mfa_secrets")
    assert rows("SELECT * FROM mfa_users") == []
    assert events(rows) == []
    assert sign_in(services, register(services, "bob")).username == "bob"


def test_the_id_of_a_user_is_random_and_not_given_again(services: Services, rows: Rows) -> None:
    ids = set()
    for _ in range(3):
        register(services, "bob")
        ids.add(user_id_of(rows, "bob"))
        rows("DELETE FROM mfa_secrets")
        rows("DELETE FROM mfa_users")
    assert len(ids) == 3
    assert {len(user_id) for user_id in ids} == {22}


def test_a_token_of_a_deleted_account_does_not_reach_the_next_of_that_name(services: Services, rows: Rows) -> None:
    bob = register(services, "bob")
    pending = log_in(services, bob)
    access = sign_in(services, bob).access_token
    identity = services.verifier.access(access, now=services.clock())
    rows("DELETE FROM mfa_sessions")
    rows("DELETE FROM mfa_challenges")
    rows("DELETE FROM mfa_secrets")
    rows("DELETE FROM mfa_users")
    successor = register(services, "bob")
    assert services.sessions.find_account(identity) is None
    with pytest.raises(Exception, match="MFA verification failed"):
        verify(services, pending, successor)


def test_registration_can_be_switched_off(services: Services, rows: Rows) -> None:
    with another(services, registration_open=False) as closed, pytest.raises(RegistrationClosed):
        register(closed, "bob")
    assert rows("SELECT * FROM mfa_users") == []
    assert events(rows) == ["registration.refused"]


@pytest.mark.parametrize(
    "email",
    [
        "",
        "ada",
        "@example.com",
        "ada@",
        "a b@example.com",
        "ada@example.com\n",
        "ada@exa mple.com",
        "ada@@example.com",
        "a@xn--",
        "ada@example.com,bob@example.com",
        "a@" + "b." * 130 + "com",
        "\u200b@x.io",
    ],
    ids=lambda email: ascii(email)[:30],
)
def test_what_is_no_email_address_is_refused(services: Services, rows: Rows, email: str) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        services.accounts.register("ada", PASSWORD, email, CLIENT)
    assert set(refusal.value.fields) == {"email"}
    assert rows("SELECT * FROM mfa_users") == []


def test_an_email_address_is_no_key_and_may_be_shared(services: Services, rows: Rows) -> None:
    register(services, "ada")
    register(services, "bob")
    assert {row["email"] for row in rows("SELECT email FROM mfa_users")} == {"someone@example.com"}
    with pytest.raises(InvalidCredentials):
        services.login.begin("someone@example.com", PASSWORD, CLIENT)


@pytest.mark.parametrize("password", ["short", "password123", "lovelace2026", "someone!1", "x" * 1025])
def test_a_weak_password_is_refused_with_its_reason_and_before_it_is_hashed(
    services: Services, rows: Rows, password: str
) -> None:
    with filled(services), pytest.raises(WeakPassword) as refusal:
        register(services, "lovelace", password)
    assert set(refusal.value.fields) == {"password"}
    assert events(rows) == ["registration.refused"]


def test_with_no_place_to_hash_nothing_is_registered(services: Services, rows: Rows) -> None:
    with filled(services), pytest.raises(Busy):
        register(services, "bob")
    assert rows("SELECT * FROM mfa_users") == []


# ── passwords ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("😀" * 64, "😀" * 63 + "😁"),
        ("é" * 8, "é" * 7 + "e"),
        ("b\0bcdefghi-1843", "b\0cdefghij-1843"),
        ("trailing space ", "trailing space"),
        ("Leading case", "leading case"),
        ("x" * 1024, "x" * 1023),
        ("x" * 73, "x" * 72),
    ],
    ids=lambda password: ascii(password)[:24],
)
def test_every_character_of_a_password_counts(services: Services, right: str, wrong: str) -> None:
    register(services, "ada", right)
    assert services.login.begin("ada", right, CLIENT).token
    with pytest.raises(InvalidCredentials):
        services.login.begin("ada", wrong, CLIENT)


def test_a_password_typed_with_combining_accents_is_the_same(services: Services) -> None:
    register(services, "ada", "crème brûlée")
    assert services.login.begin("ada", "cre\u0300me bru\u0302le\u0301e", CLIENT).token


@pytest.mark.parametrize("length", [0, 1, 72, 73, 1024, 4096])
def test_a_wrong_password_of_any_length_is_refused_alike_for_a_user_and_for_nobody(
    services: Services, length: int
) -> None:
    register(services, "ada")
    for username in ("ada", "nobody"):
        with pytest.raises(InvalidCredentials):
            services.login.begin(username, "x" * length, CLIENT)


@pytest.mark.parametrize("username", ["nobody", "", "a b", "\u200b", "x" * 256, "a:b", "ﷺ", "аdmin"])
def test_a_name_that_nobody_has_or_can_have_is_refused_like_a_wrong_password(services: Services, username: str) -> None:
    for _ in range(5):
        with pytest.raises(InvalidCredentials):
            services.login.begin(username, PASSWORD, CLIENT)


def test_for_a_user_and_for_nobody_the_same_is_written(services: Services, rows: Rows) -> None:
    register(services, "ada")
    for username in ("ada", "nobody"):
        with pytest.raises(InvalidCredentials):
            services.login.begin(username, "wrong-password", CLIENT)
    assert events(rows)[1:] == ["login.password_refused"] * 2
    told = rows("SELECT detail FROM mfa_events WHERE event = 'login.password_refused'")
    assert not [row for row in told if "true" in str(row["detail"]).lower()], "nobody is locked"


def test_a_disabled_user_is_refused_like_a_wrong_password(services: Services, rows: Rows) -> None:
    ada = register(services)
    rows("UPDATE mfa_users SET disabled_at = created_at")
    with pytest.raises(InvalidCredentials):
        log_in(services, ada)


def test_the_database_alone_tests_no_guess(services: Services, rows: Rows) -> None:
    register(services)
    [user] = rows("SELECT * FROM mfa_users")
    assert b"$2b$" not in user["sealed_password"]
    assert PASSWORD.encode() not in user["sealed_password"]
    plain = vault(services).open(user["sealed_password"], place(user["id"])).decode()
    assert plain.startswith("$bcrypt-hmac-sha384$2b$04$")


def test_two_users_with_one_password_have_nothing_in_common(services: Services, rows: Rows) -> None:
    for username in ("ada", "bob"):
        register(services, username)
    hashes = {vault(services).open(row["sealed_password"], place(row["id"])) for row in rows("SELECT * FROM mfa_users")}
    assert len(hashes) == 2


def test_a_hash_pasted_from_another_user_does_not_let_in(services: Services, rows: Rows) -> None:
    register(services, "mallory", "mallory-knows-this")
    ada = register(services, "ada")
    rows(
        "UPDATE mfa_users SET sealed_password = (SELECT sealed_password FROM mfa_users WHERE username = 'mallory')"
        " WHERE username = 'ada'"
    )
    with pytest.raises(SealBroken):
        services.login.begin("ada", "mallory-knows-this", CLIENT)
    with pytest.raises(SealBroken):
        log_in(services, ada)
    assert events(rows).count("password.unreadable") == 2


@pytest.mark.parametrize(
    "stored",
    [
        "",
        "garbage",
        "$2b$04$" + "a" * 53,
        "$bcrypt-hmac-sha384$2b$04$cut",
        "$bcrypt-hmac-sha384$2b$99$" + "a" * 53,
        "$argon2id$v=19$m=65536,t=3,p=4$c29tZXNhbHQ$hash",
        "pbkdf2_sha256$600000$salt$cut",
        "bcrypt$$2b$04$cut",
        "argon2$cut",
        "pässwörd",
    ],
)
def test_a_hash_that_nobody_can_read_is_a_wrong_password_and_an_alarm(
    services: Services, rows: Rows, stored: str
) -> None:
    ada = register(services)
    store(services, rows, ada, stored)
    with pytest.raises(InvalidCredentials):
        log_in(services, ada)
    assert events(rows)[1:] == ["password.unreadable", "login.password_refused"]


def test_what_is_stored_decides_and_not_what_was_registered(services: Services, rows: Rows) -> None:
    ada = register(services)
    store(services, rows, ada, hash_password("another-password", 4))
    assert services.login.begin("ada", "another-password", CLIENT).token


# ── rehashing ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("guesses", [5, 101], ids=["of its network", "from everywhere"])
def test_where_a_lock_holds_the_right_password_is_not_hashed_anew_and_takes_no_longer(
    services: Services, clock: Clock, monkeypatch: pytest.MonkeyPatch, guesses: int
) -> None:
    ada = register(services)
    with another(services, bcrypt_cost=5) as costlier:
        for number in range(guesses):
            with pytest.raises(InvalidCredentials):
                costlier.login.begin("ada", "wrong-password", ClientInfo(network=f"network-{number // 5}"))
        salt, salts = bcrypt.gensalt, []
        monkeypatch.setattr(bcrypt, "gensalt", lambda cost: salts.append(cost) or salt(cost))
        client = ClientInfo(network="network-0" if guesses == 5 else "elsewhere")
        with pytest.raises(InvalidCredentials):
            costlier.login.begin("ada", ada.password, client)
        assert 5 not in salts
        clock.advance(86400)
        costlier.login.begin("ada", ada.password, client)
        assert salts.count(5) == 1, "as it is afterwards"


def test_where_no_place_is_free_the_next_login_hashes_anew(services: Services, rows: Rows) -> None:
    ada = register(services)
    with another(services, bcrypt_cost=5, hashing_threads=1, hashing_queue=0) as costlier:
        verdict = costlier.accounts.check_password("ada", ada.password, CLIENT)
        with costlier.hashing.place():
            costlier.accounts.renew_hash(verdict, ada.password, CLIENT)
        assert "$2b$04$" in stored_hash(services, rows, ada)
        log_in(costlier, ada)
    assert "$2b$05$" in stored_hash(services, rows, ada)


@pytest.mark.parametrize("cost", [5, 6])
def test_a_hash_of_another_cost_is_made_anew_at_the_next_login(services: Services, rows: Rows, cost: int) -> None:
    ada = register(services)
    with another(services, bcrypt_cost=cost) as costlier:
        log_in(costlier, ada)
        assert f"$2b${cost:02}$" in stored_hash(services, rows, ada)
        assert events(rows)[1:] == ["login.password_accepted", "password.rehashed"]
        log_in(costlier, ada)
    assert events(rows).count("password.rehashed") == 1


def test_a_password_does_not_expire(services: Services, clock: Clock) -> None:
    ada = register(services)
    clock.advance(10 * 366 * 86400)
    assert sign_in(services, ada).username == "ada"


def test_a_wrong_password_rehashes_nothing(services: Services, rows: Rows) -> None:
    ada = register(services)
    before = stored_hash(services, rows, ada)
    with another(services, bcrypt_cost=5) as costlier:
        for _ in range(5):
            with pytest.raises(InvalidCredentials):
                costlier.login.begin("ada", "wrong-password", CLIENT)
    assert stored_hash(services, rows, ada) == before


def test_ten_logins_at_once_with_the_right_password_succeed_during_a_rehash(services: Services, rows: Rows) -> None:
    ada = register(services)
    with another(services, bcrypt_cost=5, hashing_queue=20, hashing_threads=4) as costlier:
        outcomes = at_once(10, lambda _: log_in(costlier, ada))
        assert [outcome for outcome in outcomes if not isinstance(outcome, str)] == []
        assert log_in(costlier, ada)
    assert "$2b$05$" in stored_hash(services, rows, ada)


def test_one_of_ten_logins_at_once_is_recorded_as_the_one_that_rehashed(services: Services, rows: Rows) -> None:
    ada = register(services)
    with another(services, bcrypt_cost=5, hashing_queue=20, hashing_threads=4) as costlier:
        at_once(10, lambda _: log_in(costlier, ada))
    assert events(rows).count("password.rehashed") == 1


def test_a_password_that_was_changed_while_it_was_hashed_lets_nobody_in(services: Services, rows: Rows) -> None:
    register(services)
    verdict = services.accounts.check_password("ada", PASSWORD, CLIENT)
    assert verdict.is_right
    rows("UPDATE mfa_users SET password_set_at = :then", then="2030-01-01 00:00:00+00:00")
    with pytest.raises(InvalidCredentials):
        services.accounts.settle(verdict, CLIENT)


def test_an_account_that_was_disabled_while_it_was_hashed_lets_nobody_in(services: Services, rows: Rows) -> None:
    register(services)
    verdict = services.accounts.check_password("ada", PASSWORD, CLIENT)
    rows("UPDATE mfa_users SET disabled_at = created_at")
    with pytest.raises(InvalidCredentials):
        services.accounts.settle(verdict, CLIENT)


def test_nothing_that_checking_returns_shows_a_hash_when_printed(services: Services) -> None:
    register(services)
    verdict = services.accounts.check_password("ada", PASSWORD, CLIENT)
    assert verdict.stored
    assert repr(verdict.stored.sealed) not in repr(verdict)


# ── helpers ──────────────────────────────────────────────────────────────────────────────────────


@contextmanager
def filled(services: Services) -> Iterator[None]:
    """All places for hashing are taken, as long as the block runs."""
    with ExitStack() as places:
        for _ in range(services.settings.hashing_threads + services.settings.hashing_queue):
            places.enter_context(services.hashing.place())
        yield


def vault(services: Services) -> Vault:
    return Vault(Keyring.load(services.settings.keyring_file))


def place(user_id: str) -> str:
    return f"mfa_users.sealed_password:{user_id}"


def stored_hash(services: Services, rows: Rows, person: Person) -> str:
    [user] = rows("SELECT * FROM mfa_users WHERE username = :name", name=person.username)
    return vault(services).open(user["sealed_password"], place(user["id"])).decode()


def store(services: Services, rows: Rows, person: Person, plain: str) -> None:
    """Put another hash in place, properly sealed."""
    user_id = user_id_of(rows, person.username)
    sealed = vault(services).seal(plain.encode(), place(user_id))
    rows("UPDATE mfa_users SET sealed_password = :sealed WHERE id = :id", sealed=sealed, id=user_id)
