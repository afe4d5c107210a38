"""Refreshing: each token is replaced by its use, a copy ends the session, and nothing lives longer or gets stronger."""

import base64
import json
import re

import pytest

from mfa_service.crypto.keyring import new_keyring_text
from mfa_service.errors import InvalidRefreshToken, RefreshReused, SealBroken
from mfa_service.services import Services
from mfa_service.services.administration import By
from mfa_service.services.login import SignedIn
from tests.conftest import Clock
from tests.factories import Person
from tests.services import (
    CLIENT,
    STRANGER,
    Rows,
    another,
    at_once,
    ensure_refused,
    events,
    identity_of,
    is_live,
    register,
    sign_in,
    trust_device,
    user_id_of,
)

# ── rotation ─────────────────────────────────────────────────────────────────────────────────────


def test_a_refresh_token_is_replaced_by_its_use(services: Services, first: SignedIn, rows: Rows) -> None:
    second = refresh(services, first)
    assert second.refresh_token != first.refresh_token
    assert second.access_token != first.access_token
    assert (second.username, second.email, second.expires_in) == ("ada", "someone@example.com", 3600)
    assert rows("SELECT generation FROM mfa_sessions") == [{"generation": 1}]
    assert events(rows)[-1] == "session.refreshed"


def test_the_session_stays_the_same_and_both_access_tokens_are_good(services: Services, first: SignedIn) -> None:
    second = refresh(services, first)
    assert identity_of(services, second).session_id == identity_of(services, first).session_id
    assert is_live(services, first)
    assert is_live(services, second)


def test_a_chain_goes_on_for_as_long_as_each_token_is_used_once(
    services: Services, first: SignedIn, clock: Clock
) -> None:
    seen, current = {first.refresh_token}, first
    for _ in range(12):
        clock.advance(3000)
        current = refresh(services, current)
        seen.add(current.refresh_token)
    assert len(seen) == 13


def test_an_access_token_of_a_refresh_lives_an_hour_from_then(
    services: Services, first: SignedIn, clock: Clock
) -> None:
    clock.advance(3000)
    claims = claims_of(refresh(services, first))
    assert (claims["iat"], claims["exp"]) == (int(clock()), int(clock()) + 3600)


# ── ten seconds of grace ─────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("seconds", [0, 1, 9.9])
def test_for_ten_seconds_the_replaced_token_is_given_the_very_same_successor(
    services: Services, first: SignedIn, rows: Rows, clock: Clock, seconds: float
) -> None:
    second = refresh(services, first)
    clock.advance(seconds)
    assert [refresh(services, first).refresh_token for _ in range(3)] == [second.refresh_token] * 3
    assert rows("SELECT generation FROM mfa_sessions") == [{"generation": 1}]
    assert refresh(services, second)


def test_the_grace_is_not_made_longer_by_being_used(services: Services, first: SignedIn, clock: Clock) -> None:
    refresh(services, first)
    for _ in range(2):
        clock.advance(4.9)
        assert refresh(services, first)
    clock.advance(0.2)
    ensure_refused(RefreshReused, lambda: refresh(services, first))


def test_a_client_of_another_worker_is_given_the_same_successor(services: Services, first: SignedIn) -> None:
    second = refresh(services, first)
    with another(services) as worker:
        assert refresh(worker, first).refresh_token == second.refresh_token


def test_twenty_refreshes_at_once_make_one_chain(services: Services, first: SignedIn, rows: Rows) -> None:
    outcomes = at_once(20, lambda _: refresh(services, first))
    refreshed = [outcome for outcome in outcomes if isinstance(outcome, SignedIn)]
    assert len(refreshed) == 20, outcomes
    [successor] = {one.refresh_token for one in refreshed}
    assert rows("SELECT generation, revoked_at FROM mfa_sessions") == [{"generation": 1, "revoked_at": None}]
    assert events(rows).count("session.refreshed") == 1
    assert services.login.refresh(successor, CLIENT)


# ── reuse ────────────────────────────────────────────────────────────────────────────────────────


def test_after_ten_seconds_reuse_ends_the_session_and_its_access_tokens(
    services: Services, first: SignedIn, rows: Rows, clock: Clock
) -> None:
    second = refresh(services, first)
    clock.advance(10)
    ensure_refused(RefreshReused, lambda: refresh(services, first))
    assert not is_live(services, first)
    assert not is_live(services, second)
    ensure_refused(InvalidRefreshToken, lambda: refresh(services, second))
    assert events(rows).count("session.reused") == 1


def test_that_reuse_ended_the_session_is_on_disk_although_it_was_refused(
    services: Services, first: SignedIn, rows: Rows, clock: Clock
) -> None:
    refresh(services, first)
    clock.advance(11)
    ensure_refused(RefreshReused, lambda: refresh(services, first))
    assert rows("SELECT id FROM mfa_sessions WHERE revoked_at IS NULL") == []
    with another(services) as worker:
        assert not is_live(worker, first)


def test_the_last_but_one_token_ends_the_session_even_within_the_ten_seconds(
    services: Services, first: SignedIn
) -> None:
    second = refresh(services, first)
    third = refresh(services, second)
    ensure_refused(RefreshReused, lambda: refresh(services, first))
    for one in (second, third):
        ensure_refused(InvalidRefreshToken, lambda one=one: refresh(services, one))


def test_after_the_grace_twenty_reuses_at_once_leave_no_live_token(
    services: Services, first: SignedIn, rows: Rows, clock: Clock
) -> None:
    second = refresh(services, first)
    clock.advance(11)
    tokens = [first.refresh_token, second.refresh_token] * 10
    outcomes = at_once(20, lambda number: services.login.refresh(tokens[number], CLIENT))
    assert rows("SELECT id FROM mfa_sessions WHERE revoked_at IS NULL") == []
    for outcome in outcomes:
        if isinstance(outcome, SignedIn):
            assert not is_live(services, outcome)
            ensure_refused(InvalidRefreshToken, lambda one=outcome: refresh(services, one))


def test_reuse_ends_one_session_and_leaves_the_others(services: Services, ada: Person, clock: Clock) -> None:
    first, other = (sign_in(services, ada, steps) for steps in (0, 1))
    refresh(services, first)
    clock.advance(11)
    ensure_refused(RefreshReused, lambda: refresh(services, first))
    assert is_live(services, other)
    assert refresh(services, other)


# ── ends ─────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("seconds", "is_let"), [(86399.9, True), (86400, False)])
def test_a_session_that_was_not_refreshed_for_a_day_has_ended(
    services: Services, first: SignedIn, clock: Clock, seconds: float, is_let: bool
) -> None:
    clock.advance(seconds)
    assert (outcome_type(services, first) is SignedIn) is is_let


def test_no_refreshing_gets_past_the_absolute_end(services: Services, first: SignedIn, clock: Clock) -> None:
    began, current = clock(), first
    while clock() + 80_000 < began + 2_592_000:
        clock.advance(80_000)
        current = refresh(services, current)
    clock.now = began + 2_591_999
    current = refresh(services, current)
    assert is_live(services, current)
    clock.now = began + 2_592_000
    assert not is_live(services, current)
    ensure_refused(InvalidRefreshToken, lambda: refresh(services, current))


def test_both_ends_are_settings(services: Services, ada: Person, clock: Clock) -> None:
    with another(services, session_idle_seconds=3600, session_seconds=7200) as strict:
        idle = sign_in(strict, ada)
        clock.advance(3600)
        ensure_refused(InvalidRefreshToken, lambda: refresh(strict, idle))
        busy, began = sign_in(strict, ada), clock()
        for seconds in (3500, 7000, 7199):
            clock.now = began + seconds
            busy = refresh(strict, busy)
        clock.now = began + 7200
        ensure_refused(InvalidRefreshToken, lambda: refresh(strict, busy))


def test_the_grace_does_not_outlive_the_session(services: Services, first: SignedIn) -> None:
    refresh(services, first)
    services.login.sign_out(identity_of(services, first), CLIENT, everywhere=False)
    ensure_refused(InvalidRefreshToken, lambda: refresh(services, first))


def test_an_old_token_of_a_session_that_has_ended_is_refused_and_raises_no_alarm(
    services: Services, first: SignedIn, rows: Rows, clock: Clock
) -> None:
    refresh(services, first)
    services.login.sign_out(identity_of(services, first), CLIENT, everywhere=False)
    clock.advance(11)
    ensure_refused(InvalidRefreshToken, lambda: refresh(services, first))
    assert events(rows)[-1] == "session.refresh_refused"
    assert "session.reused" not in events(rows)


# ── never stronger ───────────────────────────────────────────────────────────────────────────────


def test_refreshing_never_renews_the_time_of_the_factor(services: Services, first: SignedIn, clock: Clock) -> None:
    began, current = int(clock()), first
    for _ in range(3):
        clock.advance(3000)
        current = refresh(services, current)
        assert identity_of(services, current).auth_time == began


def test_refreshing_never_raises_what_was_proved(services: Services, ada: Person, clock: Clock) -> None:
    device = trust_device(services, ada)
    weak = services.login.begin("ada", ada.password, CLIENT, device)
    assert isinstance(weak, SignedIn)
    for _ in range(3):
        clock.advance(300)
        weak = refresh(services, weak)
        assert identity_of(services, weak).amr == ("pwd",)
    strong = sign_in(services, ada)
    assert identity_of(services, refresh(services, strong)).amr == ("pwd", "otp", "mfa")


def test_the_name_and_the_address_are_read_anew(services: Services, first: SignedIn, rows: Rows) -> None:
    rows("UPDATE mfa_users SET email = 'new@example.com', username = 'Ada'")
    second = refresh(services, first)
    assert (second.username, second.email) == ("Ada", "new@example.com")
    assert identity_of(services, second).username == "Ada"


def test_a_disabled_user_refreshes_nothing(services: Services, first: SignedIn, rows: Rows) -> None:
    rows("UPDATE mfa_users SET disabled_at = created_at")
    ensure_refused(InvalidRefreshToken, lambda: refresh(services, first))
    assert rows("SELECT generation FROM mfa_sessions") == [{"generation": 0}]


def test_a_refresh_obeys_no_lock(services: Services, first: SignedIn, rows: Rows) -> None:
    rows(
        "INSERT INTO mfa_locks (user_id, subject, failures, failed_at, open_at, disabled_at)"
        " SELECT id, 'totp', 100, created_at, '2099-01-01 00:00:00.000000+00:00', created_at FROM mfa_users"
    )
    assert refresh(services, first)


# ── keys ─────────────────────────────────────────────────────────────────────────────────────────


def test_a_session_under_a_key_that_is_missing_is_an_outage_and_spends_nothing(
    services: Services, first: SignedIn, rows: Rows
) -> None:
    before = rows("SELECT * FROM mfa_sessions")
    with another(services, keys=new_keyring_text()) as keyless:
        for _ in range(2):
            ensure_refused(SealBroken, lambda: refresh(keyless, first))
    assert rows("SELECT * FROM mfa_sessions") == before
    assert refresh(services, first)


def test_a_session_names_its_key_and_outlives_its_successor(services: Services, first: SignedIn) -> None:
    old = json.loads(services.settings.keyring_file.read_text())["keys"]
    new = json.loads(new_keyring_text())["keys"]
    with another(services, keys=json.dumps({"keys": new + old})) as rotated:
        second = refresh(rotated, first)
        assert refresh(rotated, second)
    with another(services, keys=json.dumps({"keys": old + new})) as lagging:
        assert refresh(lagging, second)


def test_the_database_yields_no_token(services: Services, first: SignedIn, rows: Rows) -> None:
    second = refresh(services, first)
    stored = repr([rows(f"SELECT * FROM {table}") for table in ("mfa_sessions", "mfa_events", "mfa_users")])
    for one in (first, second):
        mac = one.refresh_token.split(".")[2]
        raw = base64.urlsafe_b64decode(mac + "=")
        assert [form for form in (one.refresh_token, mac, raw.hex(), repr(raw)[2:-1]) if form in stored] == []


# ── what is no refresh token ─────────────────────────────────────────────────────────────────────


def test_a_forged_token_is_refused_and_ends_nothing(services: Services, first: SignedIn, clock: Clock) -> None:
    second = refresh(services, first)
    third = refresh(services, second)
    clock.advance(60)
    session, generation, mac = third.refresh_token.split(".")
    forged = [
        f"{session}.{generation}.{'A' * 43}",
        f"{session}.{int(generation) + 1}.{mac}",
        f"{session}.{int(generation) - 1}.{mac}",
        f"{session}.0.{mac}",
        f"{'x' * 22}.{generation}.{mac}",
        f"{session}.{generation}.{second.refresh_token.split('.')[2]}",
    ]
    for token in forged:
        ensure_refused(InvalidRefreshToken, lambda token=token: services.login.refresh(token, STRANGER))
    assert is_live(services, third)
    assert refresh(services, third)


def test_the_token_of_one_session_is_none_of_another(services: Services, ada: Person) -> None:
    first, other = (sign_in(services, ada, steps) for steps in (0, 1))
    crossed = f"{other.refresh_token.split('.')[0]}.{first.refresh_token.partition('.')[2]}"
    ensure_refused(InvalidRefreshToken, lambda: services.login.refresh(crossed, CLIENT))
    assert is_live(services, first)
    assert is_live(services, other)


@pytest.mark.parametrize(
    "change",
    [
        lambda token: "",
        lambda token: "null",
        lambda token: token + "=",
        lambda token: token + "\n",
        lambda token: " " + token,
        lambda token: token.upper(),
        lambda token: token.replace(".0.", ".00."),
        lambda token: token.replace(".0.", ".-0."),
        lambda token: token.replace(".0.", ".+0."),
        lambda token: token.replace(".0.", ".٠."),
        lambda token: token.replace(".0.", ".0.0."),
        lambda token: token.replace(".0.", ".9999999999."),
        lambda token: token.replace(".0.", ".999999999."),
        lambda token: token.replace(".", ":"),
        lambda token: token[:-1],
        lambda token: token + "\ud800",
        lambda token: token + "\0",
        lambda token: "%.0." + "A" * 43,
        lambda token: token * 1000,
    ],
)
def test_a_token_of_another_shape_is_refused_and_spends_nothing(
    services: Services, first: SignedIn, rows: Rows, change: object
) -> None:
    assert callable(change)
    ensure_refused(InvalidRefreshToken, lambda: services.login.refresh(change(first.refresh_token), CLIENT))
    assert events(rows)[-1] == "session.refresh_refused"
    assert refresh(services, first)


def test_access_and_pending_tokens_are_no_refresh_tokens(services: Services, first: SignedIn) -> None:
    ensure_refused(InvalidRefreshToken, lambda: services.login.refresh(first.access_token, CLIENT))


def test_a_refresh_token_is_not_shown_when_printed(services: Services, first: SignedIn) -> None:
    assert first.refresh_token not in repr(first)
    assert re.fullmatch(r"[A-Za-z0-9_-]{22}\.0\.[A-Za-z0-9_-]{43}", first.refresh_token)


def test_the_session_of_a_deleted_user_refreshes_nothing(services: Services, first: SignedIn, rows: Rows) -> None:
    services.administration.delete(By(CLIENT, reason="asked for"), user_id_of(rows, "ada"))
    ensure_refused(InvalidRefreshToken, lambda: refresh(services, first))


# ── fixtures and helpers ─────────────────────────────────────────────────────────────────────────


@pytest.fixture
def ada(services: Services) -> Person:
    return register(services, "ada")


@pytest.fixture
def first(services: Services, ada: Person) -> SignedIn:
    return sign_in(services, ada)


def refresh(services: Services, signed_in: SignedIn) -> SignedIn:
    return services.login.refresh(signed_in.refresh_token, CLIENT)


def outcome_type(services: Services, signed_in: SignedIn) -> type[object]:
    try:
        return type(refresh(services, signed_in))
    except InvalidRefreshToken as refusal:
        return type(refusal)


def claims_of(signed_in: SignedIn) -> dict[str, int]:
    part = signed_in.access_token.split(".")[1]
    return dict(json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))))
