"""Remembered devices: they spare the code and never the password, and every change of the account forgets them."""

import re
from collections.abc import Callable

import pytest

from mfa_service.errors import InvalidCode, InvalidCredentials, NotFound
from mfa_service.services import Services
from mfa_service.services.administration import By
from mfa_service.services.login import MFAPending, Remember, SignedIn
from tests.conftest import Clock
from tests.factories import PASSWORD, Person
from tests.services import (
    CLIENT,
    STRANGER,
    Rows,
    acting,
    another,
    ensure_refused,
    events,
    identity_of,
    log_in,
    register,
    sign_in,
    totp,
    trust_device,
    user_id_of,
)

# ── remembered ───────────────────────────────────────────────────────────────────────────────────


def test_with_a_remembered_device_the_password_is_enough(services: Services, ada: Person, device: str) -> None:
    signed_in = begin(services, ada, device)
    assert isinstance(signed_in, SignedIn)
    assert signed_in.username == "ada"
    assert services.sessions.find_account(identity_of(services, signed_in))


def test_the_token_says_that_only_a_password_was_proved(services: Services, ada: Person, device: str) -> None:
    signed_in = begin(services, ada, device)
    assert isinstance(signed_in, SignedIn)
    assert identity_of(services, signed_in).amr == ("pwd",)


def test_a_second_factor_can_be_added_to_that_session(
    services: Services, ada: Person, device: str, clock: Clock
) -> None:
    weak = begin(services, ada, device)
    assert isinstance(weak, SignedIn)
    clock.advance(60)
    strong = services.login.step_up(identity_of(services, weak), totp(ada.code(clock())), CLIENT)
    assert identity_of(services, strong).amr == ("pwd", "otp", "mfa")
    assert identity_of(services, strong).session_id == identity_of(services, weak).session_id


def test_a_device_is_used_again_and_again(services: Services, ada: Person, device: str, clock: Clock) -> None:
    for _ in range(3):
        clock.advance(86_400)
        assert isinstance(begin(services, ada, device), SignedIn)


def test_nobody_is_remembered_who_did_not_ask(services: Services, ada: Person, rows: Rows) -> None:
    assert sign_in(services, ada).device_token is None
    assert rows("SELECT * FROM mfa_devices") == []


def test_nothing_is_remembered_of_a_wrong_code(services: Services, ada: Person, rows: Rows) -> None:
    token = log_in(services, ada)
    ensure_refused(InvalidCode, lambda: services.login.complete(token, totp("00000x"), CLIENT, Remember("laptop")))
    assert rows("SELECT * FROM mfa_devices") == []


def test_a_device_login_remembers_no_further_device(services: Services, ada: Person, device: str, rows: Rows) -> None:
    signed_in = begin(services, ada, device)
    assert isinstance(signed_in, SignedIn)
    assert signed_in.device_token is None
    assert len(rows("SELECT * FROM mfa_devices")) == 1


def test_a_token_is_random_and_stored_as_its_digest_alone(services: Services, device: str, rows: Rows) -> None:
    assert re.fullmatch(r"[A-Za-z0-9_-]{43}", device)
    assert device not in repr([rows("SELECT * FROM mfa_devices"), rows("SELECT * FROM mfa_events")])
    [row] = rows("SELECT id, digest FROM mfa_devices")
    assert row["id"] not in device


def test_a_token_is_not_shown_when_printed(services: Services, ada: Person) -> None:
    signed_in = services.login.complete(
        log_in(services, ada), totp(ada.code(services.clock())), CLIENT, Remember("laptop")
    )
    assert signed_in.device_token
    assert signed_in.device_token not in repr(signed_in)


# ── not accepted ─────────────────────────────────────────────────────────────────────────────────


def test_a_device_does_not_replace_the_password(services: Services, device: str, rows: Rows) -> None:
    for password in ("", "wrong-password", device):
        ensure_refused(InvalidCredentials, lambda it=password: services.login.begin("ada", it, CLIENT, device))
    assert len(rows("SELECT * FROM mfa_sessions")) == 1


def test_a_device_is_good_for_its_own_user_alone(services: Services, ada: Person, device: str) -> None:
    bob = register(services, "bob")
    sign_in(services, bob)
    assert isinstance(begin(services, bob, device), MFAPending)
    ensure_refused(InvalidCredentials, lambda: services.login.begin("nobody", ada.password, CLIENT, device))


@pytest.mark.parametrize(
    "change",
    [
        lambda token: "",
        lambda token: token[:-1],
        lambda token: token + "=",
        lambda token: token + "\n",
        lambda token: token.swapcase(),
        lambda token: "x" * 43,
        lambda token: "\ud800",
        lambda token: "\0",
        lambda token: "%",
        lambda token: token * 1000,
    ],
)
def test_a_token_that_was_tampered_with_is_none_and_the_code_is_asked_for(
    services: Services, ada: Person, device: str, change: Callable[[str], str]
) -> None:
    assert isinstance(begin(services, ada, change(device)), MFAPending)


def test_what_the_database_holds_is_no_token(services: Services, ada: Person, device: str, rows: Rows) -> None:
    [row] = rows("SELECT id, digest FROM mfa_devices")
    for stolen in (row["id"], row["digest"]):
        assert isinstance(begin(services, ada, stolen), MFAPending)


def test_a_device_is_remembered_for_thirty_days_sharp_however_often_it_is_used(
    services: Services, ada: Person, device: str, clock: Clock
) -> None:
    clock.advance(2_591_999)
    assert isinstance(begin(services, ada, device), SignedIn)
    clock.advance(1)
    assert isinstance(begin(services, ada, device), MFAPending)


def test_how_long_is_a_setting(services: Services, ada: Person, clock: Clock) -> None:
    with another(services, device_seconds=60) as forgetful:
        device = trust_device(forgetful, ada)
        clock.advance(60)
        assert isinstance(begin(forgetful, ada, device), MFAPending)


def test_with_zero_no_device_is_remembered_and_none_counts_any_more(
    services: Services, ada: Person, device: str, rows: Rows
) -> None:
    with another(services, device_seconds=0) as strict:
        assert isinstance(begin(strict, ada, device), MFAPending)
        code = totp(ada.code(strict.clock(), 1))
        assert strict.login.complete(log_in(strict, ada), code, CLIENT, Remember("phone")).device_token is None
    assert len(rows("SELECT * FROM mfa_devices")) == 1
    assert isinstance(begin(services, ada, device), SignedIn)


# ── each of its deaths ───────────────────────────────────────────────────────────────────────────


def change_password(services: Services, ada: Person, rows: Rows) -> None:
    who = acting(services, user_id_of(rows, "ada"))
    services.accounts.change_password(who.user_id, who.session_id, PASSWORD, "another-engine-1843", CLIENT)


def reset_factors(services: Services, ada: Person, rows: Rows) -> None:
    services.administration.reset_factors(By(CLIENT, reason="phone lost"), user_id_of(rows, "ada"))


def replace_authenticator(services: Services, ada: Person, rows: Rows) -> None:
    user_id = user_id_of(rows, "ada")
    new = Person("ada", "", "", services.factors.replace(acting(services, user_id), CLIENT).secret)
    services.factors.confirm_replacement(acting(services, user_id), new.code(services.clock()), CLIENT)


def disable_and_enable(services: Services, ada: Person, rows: Rows) -> None:
    services.administration.disable(By(CLIENT, reason="left"), user_id_of(rows, "ada"))
    services.administration.enable(By(CLIENT), user_id_of(rows, "ada"))


def sign_out_everywhere(services: Services, ada: Person, rows: Rows) -> None:
    identity = identity_of(services, sign_in(services, ada, steps=1))
    services.login.sign_out(identity, CLIENT, everywhere=True)


def forget_it(services: Services, ada: Person, rows: Rows) -> None:
    [row] = rows("SELECT id FROM mfa_devices WHERE user_id = :id", id=user_id_of(rows, "ada"))
    services.devices.forget(user_id_of(rows, "ada"), row["id"], CLIENT)


def forget_all(services: Services, ada: Person, rows: Rows) -> None:
    services.devices.forget_own(user_id_of(rows, "ada"), CLIENT)


@pytest.mark.parametrize(
    "death",
    [
        change_password,
        reset_factors,
        replace_authenticator,
        disable_and_enable,
        sign_out_everywhere,
        forget_it,
        forget_all,
    ],
)
def test_a_device_dies_with(
    services: Services, ada: Person, device: str, rows: Rows, death: Callable[[Services, Person, Rows], None]
) -> None:
    bob = register(services, "bob")
    bobs = trust_device(services, bob)
    assert isinstance(begin(services, ada, device), SignedIn)
    death(services, ada, rows)
    password = "another-engine-1843" if death is change_password else PASSWORD
    assert isinstance(services.login.begin("ada", password, CLIENT, device), MFAPending)
    assert rows("SELECT id FROM mfa_devices WHERE user_id = :id", id=user_id_of(rows, "ada")) == []
    assert isinstance(begin(services, bob, bobs), SignedIn)


def test_signing_out_of_this_session_forgets_no_device(services: Services, ada: Person, device: str) -> None:
    services.login.sign_out(identity_of(services, sign_in(services, ada, 1)), CLIENT, everywhere=False)
    assert isinstance(begin(services, ada, device), SignedIn)


def test_a_device_of_a_disabled_or_deleted_user_lets_nobody_in(
    services: Services, ada: Person, device: str, rows: Rows
) -> None:
    user_id = user_id_of(rows, "ada")
    rows("UPDATE mfa_users SET disabled_at = created_at")
    ensure_refused(InvalidCredentials, lambda: begin(services, ada, device))
    services.administration.delete(By(CLIENT, reason="asked for"), user_id)
    register(services, "ada")
    assert isinstance(begin(services, ada, device), MFAPending)


# ── the list ─────────────────────────────────────────────────────────────────────────────────────


def test_the_list_names_each_device_with_where_and_when(
    services: Services, ada: Person, device: str, rows: Rows, clock: Clock
) -> None:
    began = clock()
    clock.advance(3600)
    begin(services, ada, device)
    [row], cursor = services.devices.list(user_id_of(rows, "ada"), None)
    assert (row.name, row.address, row.user_agent) == ("laptop", CLIENT.address, CLIENT.user_agent)
    assert (row.created_at.timestamp(), row.used_at.timestamp()) == (began, clock())
    assert row.expires_at.timestamp() == began + 2_592_000
    assert cursor is None


def test_the_list_shows_own_and_live_devices_newest_first(
    services: Services, ada: Person, device: str, rows: Rows, clock: Clock
) -> None:
    trust_device(services, register(services, "bob"))
    clock.advance(60)
    trust_device(services, ada, name="phone")
    user_id = user_id_of(rows, "ada")
    assert [row.name for row in services.devices.list(user_id, None)[0]] == ["phone", "laptop"]
    clock.advance(2_592_000 - 60)
    assert [row.name for row in services.devices.list(user_id, None)[0]] == ["phone"]


def test_a_device_of_somebody_else_is_not_found_and_not_forgotten(
    services: Services, ada: Person, device: str, rows: Rows
) -> None:
    register(services, "bob")
    [row] = rows("SELECT id FROM mfa_devices")
    bob = user_id_of(rows, "bob")
    for device_id in (row["id"], "", "%", "x" * 22, device):
        ensure_refused(NotFound, lambda it=device_id: services.devices.forget(bob, it, STRANGER))
    services.devices.forget_own(bob, STRANGER)
    assert isinstance(begin(services, ada, device), SignedIn)


def test_one_of_two_devices_is_forgotten(services: Services, ada: Person, device: str, rows: Rows) -> None:
    other = trust_device(services, ada, steps=1, name="phone")
    [row] = rows("SELECT id FROM mfa_devices WHERE name = 'laptop'")
    services.devices.forget(user_id_of(rows, "ada"), row["id"], CLIENT)
    assert isinstance(begin(services, ada, device), MFAPending)
    assert isinstance(begin(services, ada, other), SignedIn)
    assert events(rows).count("device.forgotten") == 1
    assert events(rows).count("device.trusted") == 2


# ── fixtures and helpers ─────────────────────────────────────────────────────────────────────────


@pytest.fixture
def ada(services: Services) -> Person:
    return register(services, "ada")


@pytest.fixture
def device(services: Services, ada: Person) -> str:
    return trust_device(services, ada)


def begin(services: Services, person: Person, device: str) -> MFAPending | SignedIn:
    return services.login.begin(person.username, person.password, CLIENT, device)
