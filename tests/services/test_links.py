"""Accounts of a host's users: made with their first sign-in, known by the host's id, gone with the user."""

from collections.abc import Iterator

import pytest
from sqlalchemy import create_engine

from mfa_service.errors import InvalidCode, InvalidCredentials, InvalidPendingToken, InvalidRefreshToken, InvalidRequest
from mfa_service.services import Services
from mfa_service.services.administration import By, Changes
from mfa_service.services.login import Admission, MFAPending, Remember, SignedIn
from mfa_service.services.policy import Deadline
from tests.conftest import Clock
from tests.factories import totp
from tests.services import (
    CLIENT,
    GROWING,
    STRANGER,
    Rows,
    another,
    at_once,
    ensure_refused,
    events,
    identity_of,
    is_live,
    register,
)
from tests.services import totp as proof

#: Everything of ours that belongs to a user.
OF_A_USER = ["user_roles", "rules", "grace_periods", "tickets", "secrets", "challenges", "recovery_codes", "locks"]
OF_A_USER += ["devices", "sessions"]


# ── one account for one user ─────────────────────────────────────────────────────────────────────


def test_the_first_sign_in_makes_an_account_without_a_password(services: Services, rows: Rows) -> None:
    assert isinstance(continue_for(services, 7), MFAPending)
    [user] = rows("SELECT * FROM mfa_users")
    assert (user["external_id"], user["username"], user["email"]) == ("7", "ada", "ada@example.com")
    assert (user["sealed_password"], user["password_set_at"]) == (None, None)
    assert events(rows)[0] == "user.linked"


def test_a_number_and_its_digits_are_one_user(services: Services, rows: Rows) -> None:
    for external_id in (7, "7", 7):
        continue_for(services, external_id)
    assert len(rows("SELECT id FROM mfa_users")) == 1
    assert events(rows).count("user.linked") == 1
    for other in ("07", "7 ", "7.0", "-7", "٧"):
        continue_for(services, other)
    assert len(rows("SELECT id FROM mfa_users")) == 6


def test_ids_are_compared_letter_by_letter(services: Services, rows: Rows) -> None:
    for external_id in ("ada", "Ada", "ADA", "ａｄａ", "é", "e\N{COMBINING ACUTE ACCENT}", "straße", "strasse"):
        continue_for(services, external_id)
    assert len(rows("SELECT id FROM mfa_users")) == 8


def test_many_requests_of_a_new_user_at_once_make_one_account(services: Services, rows: Rows) -> None:
    for number in range(5):
        outcomes = at_once(8, lambda _, it=number: continue_for(services, f"user-{it}"))
        assert {type(outcome) for outcome in outcomes} == {MFAPending}
    assert len(rows("SELECT id FROM mfa_users")) == 5
    assert events(rows).count("user.linked") == 5


def test_two_workers_make_one_account(services: Services, rows: Rows) -> None:
    with another(services) as other:
        for number in range(5):
            outcomes = at_once(6, lambda each, it=number: continue_for((services, other)[each % 2], f"user-{it}"))
            assert {type(outcome) for outcome in outcomes} == {MFAPending}
    assert len(rows("SELECT id FROM mfa_users")) == 5


def test_sign_ins_of_different_users_at_once_do_not_mix(services: Services, rows: Rows) -> None:
    at_once(8, lambda number: continue_for(services, number, f"name {number}"))
    found = {row["external_id"]: row["username"] for row in rows("SELECT external_id, username FROM mfa_users")}
    assert found == {str(number): f"name {number}" for number in range(8)}


# ── names ────────────────────────────────────────────────────────────────────────────────────────


def test_name_and_address_follow_the_host(services: Services, rows: Rows) -> None:
    continue_for(services, 7, "ada", "ada@example.com")
    continue_for(services, 7, "countess", "lovelace@example.com")
    [user] = rows("SELECT username, username_key, email, email_key FROM mfa_users")
    assert list(user.values()) == ["countess", "countess", "lovelace@example.com", "lovelace@example.com"]
    assert services.directory.find_id("ada") is None


def test_many_users_may_have_one_name_even_that_of_an_account_with_a_password(services: Services, rows: Rows) -> None:
    own = register(services, "ada")
    for external_id in (7, 8, 9):
        continue_for(services, external_id, "ada")
    assert len(rows("SELECT id FROM mfa_users WHERE username_key = 'ada'")) == 4
    # The password belongs to the one that has it, and to nobody with the same name.
    assert isinstance(services.login.begin("ada", own.password, CLIENT), MFAPending)


def test_nobody_signs_in_to_an_account_of_a_host_with_a_password(services: Services) -> None:
    continue_for(services, 7, "ada")
    for name in ("ada", "7", ""):
        for password in ("", "7", "ada", "None"):
            ensure_refused(InvalidCredentials, lambda n=name, p=password: services.login.begin(n, p, CLIENT))


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("ada@example.com", "ada@example.com"),
        (" Ada Lovelace ", "Ada Lovelace"),
        ("a:b", "a:b"),
        ("a\0d\na\x85", "ada"),
        ("\N{RIGHT-TO-LEFT OVERRIDE}ada", "ada"),
        ("\ud800ada", "ada"),
        ("x" * 300, "x" * 254),
        ("\N{GRINNING FACE}", "\N{GRINNING FACE}"),
    ],
    ids=ascii,
)
def test_a_name_is_whatever_can_be_shown(services: Services, rows: Rows, given: str, shown: str) -> None:
    continue_for(services, 7, given)
    assert rows("SELECT username FROM mfa_users") == [{"username": shown}]


@pytest.mark.parametrize("name", ["", " ", "\0", "\n", "\N{ZERO WIDTH SPACE}"], ids=ascii)
def test_a_name_of_nothing_is_refused_and_makes_no_account(services: Services, rows: Rows, name: str) -> None:
    ensure_refused(InvalidRequest, lambda: continue_for(services, 7, name))
    assert rows("SELECT id FROM mfa_users") == []


def test_an_address_that_folding_makes_three_times_as_long_is_kept(services: Services, rows: Rows) -> None:
    continue_for(services, 7, "ada", GROWING)
    continue_for(services, 8, "bob")
    continue_for(services, 8, "bob", GROWING)
    assert rows("SELECT email FROM mfa_users") == [{"email": GROWING}] * 2


@pytest.mark.parametrize("email", ["a\0b@example.com", "\n", "x" * 300, "\ud800"], ids=ascii)
def test_an_address_that_no_mail_could_go_to_is_none(services: Services, rows: Rows, email: str) -> None:
    continue_for(services, 7, "ada", email)
    assert rows("SELECT email FROM mfa_users") == [{"email": ""}]


# ── ids ──────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "external_id", [None, True, False, "", 1.5, b"7", [7], "\0", "a\nb", "\ud800", "x" * 256, "\u200b"], ids=ascii
)
def test_what_can_be_no_id_is_a_mistake_of_the_host(services: Services, rows: Rows, external_id: object) -> None:
    for act in (
        lambda: continue_for(services, external_id),
        lambda: services.accounts.unlink(external_id),  # type: ignore[arg-type]
    ):
        with pytest.raises(ValueError, match="a user's id must be text, a number or a UUID, of 1 to 255 characters"):
            act()
    assert rows("SELECT id FROM mfa_users") == []


@pytest.mark.parametrize("external_id", [0, -1, 2**70, "x" * 255, "é" * 255, "' OR 1=1 --", "%", "a b"], ids=ascii)
def test_everything_else_is_one(services: Services, rows: Rows, external_id: str | int) -> None:
    continue_for(services, external_id)
    assert rows("SELECT external_id FROM mfa_users") == [{"external_id": str(external_id)}]


# ── the rest of a sign-in ────────────────────────────────────────────────────────────────────────


def test_the_factor_is_the_accounts_and_the_token_says_whose_it_is(services: Services, clock: Clock) -> None:
    secret = set_up(services, 7)
    identity = identity_of(services, sign_in(services, 7, secret))
    assert (identity.external_id, identity.username, identity.is_complete) == ("7", "ada", True)
    account = services.login.find_account(identity)
    assert account
    assert (account.external_id, account.mfa_enabled) == ("7", True)


def test_who_has_no_password_here_can_give_none_for_a_new_one(services: Services, rows: Rows) -> None:
    who = identity_of(services, sign_in(services, 7, set_up(services, 7)))
    for guess in ("", "analytical-engine-1843"):
        with pytest.raises(InvalidCredentials):
            services.accounts.change_password(who.user_id, who.session_id, guess, "difference-engine-1822", CLIENT)
    assert rows("SELECT sealed_password FROM mfa_users") == [{"sealed_password": None}]


def test_who_is_disabled_here_does_not_get_on(services: Services, rows: Rows) -> None:
    signed_in = sign_in(services, 7, set_up(services, 7))
    services.administration.disable(By(CLIENT), account_of(rows, 7))
    assert not is_live(services, signed_in)
    ensure_refused(InvalidCredentials, lambda: continue_for(services, 7))
    services.administration.enable(By(CLIENT), account_of(rows, 7))
    assert isinstance(continue_for(services, 7), MFAPending)


def test_a_remembered_device_of_one_user_is_none_of_anothers(services: Services) -> None:
    secret = set_up(services, 7)
    pending = continue_for(services, 7)
    assert isinstance(pending, MFAPending)
    code = proof(totp(secret, int(services.clock()) // 30))
    device = services.login.complete(pending.token, code, CLIENT, Remember("laptop")).device_token
    assert isinstance(continue_for(services, 7, device_token=device), SignedIn)
    assert isinstance(continue_for(services, 8, device_token=device), MFAPending)


# ── the end ──────────────────────────────────────────────────────────────────────────────────────


def test_unlinking_leaves_nothing_of_the_user_but_the_log(services: Services, rows: Rows) -> None:
    fill(services, rows, 7)
    before = {name: len(rows(f"SELECT * FROM mfa_{name}")) for name in OF_A_USER}
    assert min(before.values()) >= 1, before
    logged = rows("SELECT id, event FROM mfa_events ORDER BY id")
    services.accounts.unlink(7, CLIENT)
    assert {name: len(rows(f"SELECT * FROM mfa_{name}")) for name in OF_A_USER} == dict.fromkeys(before, 0)
    assert rows("SELECT * FROM mfa_users") == []
    after = rows("SELECT id, event FROM mfa_events ORDER BY id")
    assert (after[:-1], after[-1]["event"]) == (logged, "user.unlinked")


def test_unlinking_leaves_everybody_else(services: Services, rows: Rows) -> None:
    register(services, "7")
    others = sign_in(services, 8, set_up(services, 8))
    fill(services, rows, 7)
    services.accounts.unlink(7)
    assert is_live(services, others)
    assert [row["username"] for row in rows("SELECT username FROM mfa_users ORDER BY username")] == ["7", "ada"]


def test_unlinking_takes_every_token_its_power_at_once(services: Services, rows: Rows) -> None:
    signed_in = sign_in(services, 7, set_up(services, 7))
    pending = continue_for(services, 7)
    assert isinstance(pending, MFAPending)
    services.accounts.unlink(7)
    assert not is_live(services, signed_in)
    ensure_refused(InvalidRefreshToken, lambda: services.login.refresh(signed_in.refresh_token, CLIENT))
    ensure_refused(InvalidPendingToken, lambda: services.login.enrol(pending.token, CLIENT))


def test_who_gets_a_used_id_inherits_nothing(services: Services, rows: Rows, clock: Clock) -> None:
    secret = set_up(services, 7)
    pending = continue_for(services, 7)
    assert isinstance(pending, MFAPending)
    device = services.login.complete(
        pending.token, proof(totp(secret, int(clock()) // 30)), CLIENT, Remember("laptop")
    ).device_token
    first = account_of(rows, 7)
    services.administration.change(By(CLIENT), first, Changes(roles=("admin",)))
    services.accounts.unlink(7)
    outcome = continue_for(services, 7, "bob", "bob@example.com", device_token=device)
    assert isinstance(outcome, MFAPending)
    assert outcome.methods == ()
    assert account_of(rows, 7) != first
    identity = identity_of(services, sign_in(services, 7, set_up(services, 7, "bob")))
    account = services.login.find_account(identity)
    assert account
    assert (account.username, account.roles) == ("bob", frozenset())


def test_unlinking_nobody_is_no_matter(services: Services, rows: Rows) -> None:
    register(services, "ada")
    for external_id in (7, "ada", "%", 7):
        services.accounts.unlink(external_id)
    assert len(rows("SELECT id FROM mfa_users")) == 1
    assert "user.unlinked" not in events(rows)


def test_unlinking_and_signing_in_at_once_end_in_one_account_or_none(services: Services, rows: Rows) -> None:
    for number in range(5):
        continue_for(services, number)
        outcomes = at_once(
            6,
            lambda each, it=number: continue_for(services, it) if each % 2 else services.accounts.unlink(it, STRANGER),
        )
        assert {type(outcome) for outcome in outcomes} <= {MFAPending, type(None)}
        assert len(rows("SELECT id FROM mfa_users WHERE external_id = :it", it=str(number))) <= 1


def test_an_engine_of_a_host_unlinks_as_thoroughly(services: Services, borrowed: Services, rows: Rows) -> None:
    fill(borrowed, rows, 7)
    borrowed.accounts.unlink(7)
    assert {name: rows(f"SELECT * FROM mfa_{name}") for name in OF_A_USER} == {name: [] for name in OF_A_USER}


# ── means ────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def borrowed(services: Services) -> Iterator[Services]:
    """Services on an engine that a host has made for itself, plain."""
    engine = create_engine(services.settings.database)
    made = Services(services.settings, engine, services.clock, borrows=True)
    yield made
    made.close()
    engine.dispose()


def continue_for(
    services: Services,
    external_id: object,
    username: str = "ada",
    email: str = "ada@example.com",
    device_token: str | None = None,
) -> Admission:
    return services.login.continue_for(
        external_id,  # type: ignore[arg-type]
        username=username,
        email=email,
        client=CLIENT,
        device_token=device_token,
    )


def set_up(services: Services, external_id: int, username: str = "ada") -> str:
    """An authenticator of a host's user; returns its secret, whose next code is still to come."""
    pending = continue_for(services, external_id, username)
    assert isinstance(pending, MFAPending)
    secret = services.login.enrol(pending.token, CLIENT).secret
    code = totp(secret, int(services.clock()) // 30 - 1)
    services.login.complete(pending.token, proof(code), CLIENT)
    return secret


def sign_in(services: Services, external_id: int, secret: str) -> SignedIn:
    pending = continue_for(services, external_id, username_of(services, external_id))
    assert isinstance(pending, MFAPending)
    return services.login.complete(pending.token, proof(totp(secret, int(services.clock()) // 30)), CLIENT)


def username_of(services: Services, external_id: int) -> str:
    user = services.unit.run(lambda: services.login.users.find_external(str(external_id)), writes=False)
    return user.username if user else "ada"


def account_of(rows: Rows, external_id: int) -> str:
    return str(rows("SELECT id FROM mfa_users WHERE external_id = :it", it=str(external_id))[0]["id"])


def fill(services: Services, rows: Rows, external_id: int) -> None:
    """A row in every table that knows of users."""
    secret = set_up(services, external_id)
    pending = continue_for(services, external_id)
    assert isinstance(pending, MFAPending)
    code = proof(totp(secret, int(services.clock()) // 30))
    services.login.complete(pending.token, code, CLIENT, Remember("laptop"))
    user_id = account_of(rows, external_id)
    changes = Changes(roles=("staff",), mfa_required=True, deadline=Deadline(days=7))
    services.administration.change(By(CLIENT), user_id, changes)
    again = continue_for(services, external_id)
    assert isinstance(again, MFAPending)
    ensure_refused(InvalidCode, lambda: services.login.complete(again.token, proof("000000"), CLIENT))
    now = "created_at FROM mfa_users WHERE id = :it"
    rows(f"INSERT INTO mfa_grace_periods (user_id, subject, started_at) SELECT id, 'everyone', {now}", it=user_id)
    columns = "user_id, digest, expires_at, created_at"
    rows(f"INSERT INTO mfa_tickets ({columns}) SELECT id, 'x', created_at, {now}", it=user_id)
