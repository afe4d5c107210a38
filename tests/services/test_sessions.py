"""Sessions: an access token is good for as long as its session and its user are."""

import dataclasses

import pytest
from sqlalchemy import event

from mfa_service.crypto.tokens import Identity
from mfa_service.services import Services
from mfa_service.services.audit import ClientInfo
from mfa_service.services.sessions import Account
from tests.conftest import Clock
from tests.factories import Person
from tests.services import Rows, log_in, register, sign_in


def test_a_live_session_knows_the_account_as_it_is_now(services: Services, identity: Identity, rows: Rows) -> None:
    assert services.sessions.find_account(identity) == Account("ada", "someone@example.com", mfa_enabled=True)
    rows("UPDATE mfa_users SET email = 'new@example.com'")
    assert services.sessions.find_account(identity) == Account("ada", "new@example.com", mfa_enabled=True)


def test_whether_a_factor_is_confirmed_is_looked_up_and_not_remembered(
    services: Services, identity: Identity, rows: Rows
) -> None:
    rows("UPDATE mfa_secrets SET confirmed_at = NULL")
    found = services.sessions.find_account(identity)
    assert found
    assert found.mfa_enabled is False


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE mfa_sessions SET revoked_at = created_at",
        "UPDATE mfa_users SET disabled_at = created_at",
        "DELETE FROM mfa_sessions",
        "UPDATE mfa_sessions SET expires_at = created_at",
    ],
    ids=["revoked", "user disabled", "deleted", "expired"],
)
def test_a_session_that_has_ended_finds_nobody(services: Services, identity: Identity, rows: Rows, change: str) -> None:
    rows(change)
    assert services.sessions.find_account(identity) is None


def test_a_session_ends_after_an_hour_sharp(services: Services, identity: Identity, clock: Clock) -> None:
    clock.advance(3599.9)
    assert services.sessions.find_account(identity)
    clock.advance(0.1)
    assert services.sessions.find_account(identity) is None


def test_ending_one_session_leaves_the_others(services: Services, ada: Person, rows: Rows) -> None:
    first, second = (identity_of(services, sign_in(services, ada, steps).access_token) for steps in (0, 1))
    rows("UPDATE mfa_sessions SET revoked_at = created_at WHERE id = :id", id=first.session_id)
    assert services.sessions.find_account(first) is None
    assert services.sessions.find_account(second)


def test_a_session_belongs_to_its_user(services: Services, identity: Identity) -> None:
    bob = register(services, "bob")
    other = identity_of(services, sign_in(services, bob).access_token)
    crossed = dataclasses.replace(identity, session_id=other.session_id)
    assert services.sessions.find_account(crossed) is None


def test_a_challenge_is_no_session(services: Services, ada: Person, identity: Identity) -> None:
    pending = services.verifier.pending(log_in(services, ada), now=services.clock())
    pretended = dataclasses.replace(identity, session_id=pending.challenge_id)
    assert services.sessions.find_account(pretended) is None


@pytest.mark.parametrize("session_id", ["", "x", "x" * 5000, "' OR 1=1 --", "%"])
def test_an_id_that_was_never_given_finds_nobody(services: Services, identity: Identity, session_id: str) -> None:
    assert services.sessions.find_account(dataclasses.replace(identity, session_id=session_id)) is None


def test_looking_is_one_select_and_changes_nothing(services: Services, identity: Identity, rows: Rows) -> None:
    before = rows("SELECT * FROM mfa_sessions")
    statements: list[str] = []
    event.listen(services.engine, "before_cursor_execute", lambda *call: statements.append(call[2]))
    services.sessions.find_account(identity)
    assert [statement.split()[0] for statement in statements if not statement.startswith("BEGIN")] == ["SELECT"]
    assert rows("SELECT * FROM mfa_sessions") == before


def test_a_session_keeps_where_it_was_opened_from(services: Services, ada: Person, rows: Rows, clock: Clock) -> None:
    client = ClientInfo("2001:db8::1", "Mozilla/5.0", "request-7")
    services.login.complete(log_in(services, ada), ada.code(clock()), client)
    [session] = rows("SELECT * FROM mfa_sessions")
    assert (session["address"], session["user_agent"]) == ("2001:db8::1", "Mozilla/5.0")


def test_the_id_of_a_session_is_random(services: Services, rows: Rows, ada: Person) -> None:
    for steps in range(-2, 3):
        sign_in(services, ada, steps)
    ids = {row["id"] for row in rows("SELECT id FROM mfa_sessions")}
    assert len(ids) == 5
    assert {len(session_id) for session_id in ids} == {22}


@pytest.fixture
def ada(services: Services) -> Person:
    return register(services, "ada")


@pytest.fixture
def identity(services: Services, ada: Person) -> Identity:
    return identity_of(services, sign_in(services, ada).access_token)


def identity_of(services: Services, token: str) -> Identity:
    return services.verifier.access(token, now=services.clock())
