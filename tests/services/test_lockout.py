"""Lockout: failures in a row make the next try wait; they are counted in one place, and harm nobody else."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from functools import partial
from typing import Any

import pytest
from sqlalchemy import event

from mfa_service.errors import (
    Busy,
    FactorExists,
    InvalidCode,
    InvalidCredentials,
    InvalidPendingToken,
    InvalidRecoveryCode,
    MFAError,
    SealBroken,
)
from mfa_service.services import Services
from mfa_service.services.audit import ClientInfo
from mfa_service.services.login import MFAPending, SignedIn
from tests.conftest import Clock
from tests.factories import PASSWORD, Person
from tests.services import (
    CLIENT,
    STRANGER,
    Rows,
    at_once,
    ensure_refused,
    events,
    identity_of,
    is_live,
    log_in,
    outcome_of,
    recovery,
    register,
    sign_in,
    totp,
    trust_device,
    verify,
)

HERE = f"password:{CLIENT.network}"
DELAYS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 900, 900)

# ── the delays ───────────────────────────────────────────────────────────────────────────────────


def test_four_wrong_passwords_delay_nothing(services: Services, ada: Person) -> None:
    for _ in range(4):
        guess_password(services)
    assert log_in(services, ada)


def test_four_wrong_codes_delay_nothing(services: Services, signed_in: SignedIn, ada: Person) -> None:
    for _ in range(4):
        guess_code(services, ada)
    assert sign_in(services, ada, steps=1)


def test_from_the_fifth_wrong_password_on_the_next_try_waits_longer_each_time(
    services: Services, rows: Rows, clock: Clock, ada: Person
) -> None:
    for _ in range(4):
        guess_password(services)
    waited = []
    for _ in DELAYS:
        guess_password(services)
        waited.append(delay_of(rows, HERE, clock))
        clock.advance(waited[-1] - 0.1)
        ensure_refused(InvalidCredentials, lambda: log_in(services, ada))
        clock.advance(0.1)
    assert tuple(waited) == DELAYS
    assert log_in(services, ada)


def test_from_the_fifth_wrong_code_on_the_next_try_waits_longer_each_time(
    services: Services, rows: Rows, clock: Clock, signed_in: SignedIn, ada: Person
) -> None:
    for _ in range(4):
        guess_code(services, ada)
    waited = []
    for _ in DELAYS:
        guess_code(services, ada)
        waited.append(delay_of(rows, "totp", clock))
        clock.advance(waited[-1] - 0.1)
        ensure_refused(InvalidCode, lambda: sign_in(services, ada, steps=1))
        clock.advance(0.1)
    assert tuple(waited) == DELAYS
    assert sign_in(services, ada, steps=1)


def test_from_the_fifth_wrong_recovery_code_on_the_next_try_waits_longer_each_time(
    services: Services, rows: Rows, clock: Clock, signed_in: SignedIn, ada: Person
) -> None:
    for _ in range(4):
        guess_recovery_code(services, ada)
    waited = []
    for _ in DELAYS:
        guess_recovery_code(services, ada)
        waited.append(delay_of(rows, "recovery_codes", clock))
        clock.advance(waited[-1] - 0.1)
        ensure_refused(InvalidRecoveryCode, lambda: redeem(services, ada, first_code(signed_in)))
        clock.advance(0.1)
    assert tuple(waited) == DELAYS
    assert redeem(services, ada, first_code(signed_in))


def test_tries_while_a_delay_runs_are_not_counted_and_make_it_no_longer(
    services: Services, rows: Rows, clock: Clock, signed_in: SignedIn, ada: Person
) -> None:
    for _ in range(5):
        guess_code(services, ada)
        guess_password(services, STRANGER)
        guess_recovery_code(services, ada)
    before = locks(rows)
    clock.advance(0.5)
    for _ in range(6):
        guess_code(services, ada)
        guess_password(services, STRANGER)
        guess_recovery_code(services, ada)
    assert locks(rows) == before
    clock.advance(0.5)
    assert sign_in(services, ada, steps=1)


def test_a_locked_account_answers_like_a_wrong_proof(services: Services, signed_in: SignedIn, ada: Person) -> None:
    wrong = [described(guess) for guess in guesses(services, ada)]
    for _ in range(5):
        for guess in guesses(services, ada):
            outcome_of(guess)
    assert [described(guess) for guess in guesses(services, ada)] == wrong
    token = log_in(services, ada)
    for _ in range(5):
        guess_password(services)
    right = [
        lambda: log_in(services, ada),
        lambda: verify(services, token, ada, steps=1),
        lambda: services.login.complete(token, recovery(first_code(signed_in)), CLIENT),
    ]
    assert [described(act) for act in right] == wrong


# ── who is counted, and where ────────────────────────────────────────────────────────────────────


def test_another_network_is_not_kept_out(services: Services, ada: Person) -> None:
    for _ in range(30):
        guess_password(services, STRANGER)
    assert services.login.begin("ada", ada.password, CLIENT)
    ensure_refused(InvalidCredentials, lambda: services.login.begin("ada", ada.password, STRANGER))


def test_addresses_of_one_network_share_a_counter(services: Services, rows: Rows) -> None:
    for number in range(5):
        guess_password(services, ClientInfo(f"2001:db8::{number}", "2001:db8::/64", "curl/8"))
    assert locks(rows)["password:2001:db8::/64"]["failures"] == 5


def test_the_spellings_of_a_name_share_a_counter(services: Services, rows: Rows, ada: Person) -> None:
    for username in ("ada", "ADA", "Ada", "ａｄａ", "aDa"):
        ensure_refused(InvalidCredentials, lambda name=username: services.login.begin(name, "wrong-password", CLIENT))
    assert locks(rows)[HERE]["failures"] == 5
    ensure_refused(InvalidCredentials, lambda: services.login.begin("ADA", ada.password, CLIENT))


@pytest.mark.parametrize("username", ["", " ", "nobody", "\u200b", "%", "ada:", "x" * 300])
def test_a_name_that_nobody_has_changes_no_counter(services: Services, rows: Rows, ada: Person, username: str) -> None:
    for _ in range(6):
        ensure_refused(InvalidCredentials, lambda: services.login.begin(username, ada.password, CLIENT))
    assert locks(rows) == {}
    assert log_in(services, ada)


def test_one_user_is_not_counted_against_another(services: Services, rows: Rows, ada: Person) -> None:
    bob = register(services, "bob")
    for _ in range(5):
        guess_password(services)
        assert log_in(services, bob)
    ensure_refused(InvalidCredentials, lambda: log_in(services, ada))


def test_password_and_factor_are_counted_apart(
    services: Services, rows: Rows, signed_in: SignedIn, ada: Person
) -> None:
    token = log_in(services, ada)
    for _ in range(5):
        guess_password(services)
    assert set(locks(rows)) == {HERE, "password"}
    assert verify(services, token, ada, steps=1)


def test_nobody_without_the_password_can_spend_the_factors(services: Services, rows: Rows, ada: Person) -> None:
    for number in range(30):
        guess_password(services, ClientInfo("", f"network-{number}"))
        outcome_of(lambda: services.login.complete("x", totp("000000"), CLIENT))
    assert {subject.partition(":")[0] for subject in locks(rows)} == {"password"}


def test_a_locked_authenticator_leaves_the_recovery_codes_open(
    services: Services, signed_in: SignedIn, ada: Person
) -> None:
    for _ in range(5):
        guess_code(services, ada)
    assert redeem(services, ada, first_code(signed_in))


def test_codes_are_counted_across_pending_tokens_and_networks(
    services: Services, rows: Rows, signed_in: SignedIn, ada: Person
) -> None:
    for number in range(5):
        guess_code(services, ada, ClientInfo("", f"network-{number}", f"agent {number}"))
    assert locks(rows)["totp"]["failures"] == 5
    ensure_refused(InvalidCode, lambda: sign_in(services, ada, steps=1))


# ── what sets a counter back ─────────────────────────────────────────────────────────────────────


def test_a_right_password_sets_its_own_counters_back(services: Services, rows: Rows, ada: Person) -> None:
    for _ in range(4):
        guess_password(services)
    log_in(services, ada)
    assert locks(rows) == {}


def test_a_right_password_sets_back_no_counter_of_another_network(services: Services, rows: Rows, ada: Person) -> None:
    for _ in range(4):
        guess_password(services, STRANGER)
    log_in(services, ada)
    assert {subject: lock["failures"] for subject, lock in locks(rows).items()} == {f"password:{STRANGER.network}": 4}


def test_a_right_password_does_not_set_the_counter_of_codes_back(
    services: Services, rows: Rows, signed_in: SignedIn, ada: Person
) -> None:
    for failures in range(1, 5):
        guess_code(services, ada)
        log_in(services, ada)
        assert locks(rows)["totp"]["failures"] == failures


def test_a_right_code_sets_back_the_counter_of_codes_alone(
    services: Services, rows: Rows, signed_in: SignedIn, ada: Person
) -> None:
    for _ in range(4):
        guess_code(services, ada)
        guess_recovery_code(services, ada)
    sign_in(services, ada, steps=1)
    assert set(locks(rows)) == {"recovery_codes"}


def test_a_right_recovery_code_does_not_set_the_counter_of_codes_back(
    services: Services, rows: Rows, signed_in: SignedIn, ada: Person
) -> None:
    for _ in range(5):
        guess_code(services, ada)
        guess_recovery_code(services, ada)
    before = locks(rows)["totp"]
    clock_of(services).advance(1)
    redeem(services, ada, first_code(signed_in))
    assert locks(rows) == {"totp": before}


def test_a_replayed_code_counts_as_a_wrong_one(
    services: Services, rows: Rows, signed_in: SignedIn, ada: Person
) -> None:
    for _ in range(5):
        ensure_refused(InvalidCode, lambda: sign_in(services, ada))
    assert locks(rows)["totp"]["failures"] == 5
    assert delay_of(rows, "totp", clock_of(services)) == 1


# ── account-wide ─────────────────────────────────────────────────────────────────────────────────


def test_a_hundred_wrong_passwords_from_everywhere_delay_nobody_else_and_one_more_does(
    services: Services, rows: Rows, clock: Clock, ada: Person
) -> None:
    for number in range(100):
        guess_password(services, ClientInfo("", f"network-{number // 4}"))
    assert delay_of(rows, "password", clock) == 0
    guess_password(services, STRANGER)
    assert delay_of(rows, "password", clock) == 1
    ensure_refused(InvalidCredentials, lambda: log_in(services, ada))
    clock.advance(1)
    assert log_in(services, ada)
    assert "password" not in locks(rows)


def test_a_right_password_from_anywhere_breaks_the_row_of_a_hundred(
    services: Services, rows: Rows, clock: Clock, ada: Person
) -> None:
    guess_password(services, STRANGER)
    rows("UPDATE mfa_locks SET failures = 100 WHERE subject = 'password'")
    log_in(services, ada)
    guess_password(services, STRANGER)
    assert locks(rows)["password"]["failures"] == 1


def test_a_remembered_device_passes_the_account_wide_delay_and_not_that_of_its_network(
    services: Services, rows: Rows, ada: Person
) -> None:
    device = trust_device(services, ada)
    guess_password(services, STRANGER)
    rows("UPDATE mfa_locks SET failures = 109 WHERE subject = 'password'")
    guess_password(services, STRANGER)
    ensure_refused(InvalidCredentials, lambda: log_in(services, ada))
    assert isinstance(services.login.begin("ada", ada.password, CLIENT, device), SignedIn)
    ensure_refused(InvalidCredentials, lambda: services.login.begin("ada", ada.password, CLIENT, "x" * 43))
    for _ in range(5):
        ensure_refused(InvalidCredentials, lambda: services.login.begin("ada", "wrong-password", CLIENT, device))
    ensure_refused(InvalidCredentials, lambda: services.login.begin("ada", ada.password, CLIENT, device))


def test_wrong_passwords_from_a_remembered_device_lengthen_no_delay_that_runs(
    services: Services, rows: Rows, clock: Clock, ada: Person
) -> None:
    device = trust_device(services, ada)
    guess_password(services, STRANGER)
    rows("UPDATE mfa_locks SET failures = 103 WHERE subject = 'password'")
    guess_password(services, STRANGER)
    clock.advance(1)
    before = locks(rows)["password"]
    ensure_refused(InvalidCredentials, lambda: services.login.begin("ada", "wrong-password", CLIENT, device))
    assert locks(rows)["password"] == before


def test_nobody_far_away_keeps_a_signed_in_user_from_changing_the_password(
    services: Services, rows: Rows, ada: Person, signed_in: SignedIn
) -> None:
    guess_password(services, STRANGER)
    rows("UPDATE mfa_locks SET failures = 109 WHERE subject = 'password'")
    guess_password(services, STRANGER)
    who = identity_of(services, signed_in)
    services.accounts.change_password(who.user_id, who.session_id, ada.password, "difference-engine-1822", CLIENT)
    assert isinstance(services.login.begin("ada", "difference-engine-1822", CLIENT), MFAPending)


def test_who_has_a_session_has_a_hundred_tries_from_everywhere_too(
    services: Services, rows: Rows, clock: Clock, ada: Person, signed_in: SignedIn
) -> None:
    who = identity_of(services, signed_in)

    def change(current: str, client: ClientInfo) -> None:
        services.accounts.change_password(who.user_id, who.session_id, current, "difference-engine-1822", client)

    for number in range(100):
        elsewhere = ClientInfo("", f"network-{number // 4}")
        ensure_refused(InvalidCredentials, lambda client=elsewhere: change("wrong-password", client))
    assert delay_of(rows, "trusted_password", clock) == 0
    ensure_refused(InvalidCredentials, lambda: change("wrong-password", STRANGER))
    assert delay_of(rows, "trusted_password", clock) == 1
    ensure_refused(InvalidCredentials, lambda: change(ada.password, CLIENT))
    assert log_in(services, ada), "a thief keeps the owner out"
    clock.advance(1)
    change(ada.password, CLIENT)
    assert "trusted_password" not in locks(rows)


def test_remembered_devices_have_a_hundred_tries_with_the_sessions(
    services: Services, rows: Rows, clock: Clock, ada: Person
) -> None:
    device = trust_device(services, ada)

    def come(password: str) -> object:
        return services.login.begin("ada", password, CLIENT, device)

    ensure_refused(InvalidCredentials, lambda: come("wrong-password"))
    assert "password" not in locks(rows), "what is trusted is not counted against strangers"
    rows("UPDATE mfa_locks SET failures = 100 WHERE subject = 'trusted_password'")
    ensure_refused(InvalidCredentials, lambda: come("wrong-password"))
    ensure_refused(InvalidCredentials, lambda: come(ada.password))
    clock.advance(1)
    assert isinstance(come(ada.password), SignedIn)


def test_the_device_of_another_user_passes_no_lock(services: Services, rows: Rows, ada: Person) -> None:
    device = trust_device(services, register(services, "bob"))
    guess_password(services, STRANGER)
    rows("UPDATE mfa_locks SET failures = 109 WHERE subject = 'password'")
    guess_password(services, STRANGER)
    ensure_refused(InvalidCredentials, lambda: services.login.begin("ada", ada.password, CLIENT, device))


def test_no_number_of_wrong_passwords_disables_an_account_for_good(
    services: Services, rows: Rows, clock: Clock, ada: Person
) -> None:
    guess_password(services)
    rows("UPDATE mfa_locks SET failures = 999999")
    guess_password(services)
    assert delay_of(rows, HERE, clock) == delay_of(rows, "password", clock) == 900
    clock.advance(900)
    assert log_in(services, ada)


# ── a hundred in a row ───────────────────────────────────────────────────────────────────────────


def test_a_hundred_wrong_codes_in_a_row_disable_the_factor_and_no_time_brings_it_back(
    services: Services, rows: Rows, clock: Clock, signed_in: SignedIn, ada: Person
) -> None:
    for failures in range(1, 101):
        assert locks(rows).get("totp", {}).get("disabled_at") is None
        guess_code(services, ada)
        assert locks(rows)["totp"]["failures"] == failures
        clock.advance(900)
    assert locks(rows)["totp"]["disabled_at"]
    assert events(rows).count("factor.disabled") == 1
    for _ in range(3):
        clock.advance(31_536_000)
        ensure_refused(InvalidCode, lambda: sign_in(services, ada))
    assert locks(rows)["totp"]["failures"] == 100


def test_a_disabled_factor_still_counts_as_confirmed_and_a_password_alone_enrols_no_other(
    services: Services, rows: Rows, signed_in: SignedIn, ada: Person
) -> None:
    disable_totp(services, rows, ada)
    pending = services.login.begin("ada", ada.password, CLIENT)
    assert isinstance(pending, MFAPending)
    assert "totp" in pending.methods
    ensure_refused(FactorExists, lambda: services.login.enrol(pending.token, CLIENT))
    account = services.sessions.find_account(identity_of(services, signed_in))
    assert account
    assert account.mfa_enabled


def test_a_recovery_code_enables_the_factor_again(
    services: Services, rows: Rows, signed_in: SignedIn, ada: Person
) -> None:
    disable_totp(services, rows, ada)
    ensure_refused(InvalidCode, lambda: sign_in(services, ada, steps=1))
    assert redeem(services, ada, first_code(signed_in))
    assert locks(rows) == {}
    assert events(rows).count("factor.reenabled") == 1
    assert sign_in(services, ada, steps=1)


def test_a_wrong_recovery_code_enables_nothing(
    services: Services, rows: Rows, signed_in: SignedIn, ada: Person
) -> None:
    disable_totp(services, rows, ada)
    guess_recovery_code(services, ada)
    assert locks(rows)["totp"]["disabled_at"]


def test_a_hundred_wrong_recovery_codes_disable_them_and_not_the_authenticator(
    services: Services, rows: Rows, clock: Clock, signed_in: SignedIn, ada: Person
) -> None:
    guess_recovery_code(services, ada)
    rows("UPDATE mfa_locks SET failures = 99")
    guess_recovery_code(services, ada)
    clock.advance(86_400)
    ensure_refused(InvalidRecoveryCode, lambda: redeem(services, ada, first_code(signed_in)))
    assert sign_in(services, ada)


# ── what a lock does ─────────────────────────────────────────────────────────────────────────────


def test_a_lock_of_the_factor_ends_the_pending_tokens_that_are_open(
    services: Services, clock: Clock, signed_in: SignedIn, ada: Person
) -> None:
    waiting = [log_in(services, ada) for _ in range(3)]
    bystander = log_in(services, register(services, "bob"))
    for _ in range(5):
        guess_code(services, ada)
    clock.advance(30)
    for token in waiting:
        ensure_refused(InvalidPendingToken, lambda token=token: verify(services, token, ada))
    assert sign_in(services, ada)
    ensure_refused(InvalidCode, lambda: services.login.complete(bystander, totp("000000"), CLIENT))


def test_a_lock_of_the_password_ends_no_pending_token(services: Services, ada: Person) -> None:
    waiting = log_in(services, ada)
    for _ in range(5):
        guess_password(services)
    assert verify(services, waiting, ada)


def test_no_lock_ends_a_session_or_stops_a_refresh(
    services: Services, rows: Rows, signed_in: SignedIn, ada: Person
) -> None:
    for _ in range(5):
        guess_code(services, ada)
        guess_recovery_code(services, ada)
        guess_password(services, STRANGER)
    disable_totp(services, rows, ada)
    for _ in range(5):
        guess_password(services)
    assert is_live(services, signed_in)
    assert is_live(services, services.login.refresh(signed_in.refresh_token, CLIENT))


def test_a_lock_is_an_event_that_says_how_long(services: Services, rows: Rows, clock: Clock, ada: Person) -> None:
    for _ in range(6):
        guess_password(services)
        clock.advance(1)
    assert events(rows).count("password.locked") == 2
    assert not [row for row in rows("SELECT detail FROM mfa_events") if "wrong-password" in str(row)]


# ── remembered, even at once ─────────────────────────────────────────────────────────────────────


def test_a_failure_is_on_disk_although_it_was_refused(
    services: Services, rows: Rows, signed_in: SignedIn, ada: Person
) -> None:
    guess_password(services)
    assert {subject: lock["failures"] for subject, lock in locks(rows).items()} == {HERE: 1, "password": 1}
    guess_code(services, ada)
    guess_recovery_code(services, ada)
    found = {subject: lock["failures"] for subject, lock in locks(rows).items()}
    assert found == {"totp": 1, "recovery_codes": 1}


def test_of_twenty_wrong_codes_at_once_five_are_looked_at(
    services: Services, rows: Rows, signed_in: SignedIn, ada: Person
) -> None:
    tokens = [log_in(services, ada) for _ in range(20)]
    outcomes = at_once(20, lambda number: services.login.complete(tokens[number], totp("00000x"), CLIENT))
    assert all(isinstance(outcome, InvalidCode | InvalidPendingToken) for outcome in outcomes), outcomes
    assert locks(rows)["totp"]["failures"] == 5


def test_of_twenty_wrong_passwords_at_once_five_are_counted_and_a_right_one_after_them_waits(
    services: Services, rows: Rows, ada: Person
) -> None:
    with_room = services.settings.hashing_threads + services.settings.hashing_queue
    for _ in range(20 // with_room + 1):
        at_once(with_room, lambda _: services.login.begin("ada", "wrong-password", CLIENT))
    assert locks(rows)[HERE]["failures"] == 5
    ensure_refused(InvalidCredentials, lambda: log_in(services, ada))


def test_a_right_password_that_was_hashed_while_the_lock_ran_is_refused_when_it_is_over(
    services: Services, clock: Clock, ada: Person
) -> None:
    for _ in range(5):
        guess_password(services)
    verdict = services.accounts.check_password("ada", ada.password, CLIENT)
    clock.advance(1)
    ensure_refused(InvalidCredentials, lambda: in_unit(services, lambda: services.accounts.settle(verdict, CLIENT)))
    assert log_in(services, ada)


def test_a_right_password_that_was_hashed_before_the_lock_began_is_refused(services: Services, ada: Person) -> None:
    verdict = services.accounts.check_password("ada", ada.password, CLIENT)
    for _ in range(5):
        guess_password(services)
    ensure_refused(InvalidCredentials, lambda: in_unit(services, lambda: services.accounts.settle(verdict, CLIENT)))


def test_logins_at_once_with_the_right_password_harm_nobody(services: Services, rows: Rows, ada: Person) -> None:
    for _ in range(4):
        guess_password(services)
    outcomes = at_once(6, lambda _: log_in(services, ada))
    assert [outcome for outcome in outcomes if not isinstance(outcome, str)] == []
    assert locks(rows) == {}


# ── 503 spends nothing ───────────────────────────────────────────────────────────────────────────


def test_with_no_place_to_hash_nothing_is_counted(services: Services, rows: Rows, ada: Person) -> None:
    with ExitStack() as places:
        for _ in range(services.settings.hashing_threads + services.settings.hashing_queue):
            places.enter_context(services.hashing.place())
        for _ in range(6):
            ensure_refused(Busy, lambda: services.login.begin("ada", "wrong-password", CLIENT))
    assert locks(rows) == {}
    assert log_in(services, ada)


def test_a_secret_or_a_hash_that_does_not_open_counts_nothing(
    services: Services, rows: Rows, signed_in: SignedIn, ada: Person
) -> None:
    identity, token = identity_of(services, signed_in), log_in(services, ada)
    services.factors.replace(identity, CLIENT)
    rows("UPDATE mfa_secrets SET sealed_secret = :broken", broken=b"broken")
    rows("UPDATE mfa_users SET sealed_password = :broken", broken=b"broken")
    for _ in range(6):
        ensure_refused(SealBroken, lambda: verify(services, token, ada, steps=1))
        ensure_refused(SealBroken, lambda: services.login.step_up(identity, totp("000000"), CLIENT))
        ensure_refused(SealBroken, lambda: services.factors.confirm_replacement(identity, "000000", CLIENT))
        ensure_refused(SealBroken, lambda: log_in(services, ada))
    assert locks(rows) == {}


# ── the same work ────────────────────────────────────────────────────────────────────────────────


def test_a_login_costs_the_same_writes_for_a_wrong_password_a_locked_or_disabled_account_and_nobody(
    services: Services, rows: Rows, ada: Person
) -> None:
    register(services, "bob")
    rows("UPDATE mfa_users SET disabled_at = created_at WHERE username = 'bob'")
    writes = {}
    cases = [
        ("wrong", "ada", "wrong"),
        ("disabled", "bob", "wrong"),
        ("right but disabled", "bob", PASSWORD),
        ("nobody", "nobody", "wrong"),
        ("locked", "ada", "wrong"),
        ("right but locked", "ada", PASSWORD),
    ]
    for case, username, password in cases:
        if case == "locked":
            for _ in range(4):
                guess_password(services)
        with writes_of(services) as said:
            ensure_refused(InvalidCredentials, partial(services.login.begin, username, password, CLIENT))
        writes[case] = len(said)
    assert len(set(writes.values())) == 1, writes


def test_a_right_password_writes_no_counter(services: Services, ada: Person) -> None:
    with writes_of(services) as said:
        log_in(services, ada)
    assert [statement for statement in said if "mfa_locks" in statement and "DELETE" not in statement] == []


# ── fixtures and helpers ─────────────────────────────────────────────────────────────────────────


@pytest.fixture
def ada(services: Services) -> Person:
    return register(services, "ada")


@pytest.fixture
def signed_in(services: Services, ada: Person) -> SignedIn:
    return sign_in(services, ada)


@pytest.fixture(autouse=True)
def _has_account(ada: Person) -> None:
    """All of these are about somebody who exists."""


def guess_password(services: Services, client: ClientInfo = CLIENT) -> None:
    ensure_refused(InvalidCredentials, lambda: services.login.begin("ada", "wrong-password", client))


def guess_code(services: Services, person: Person, client: ClientInfo = CLIENT) -> None:
    token = log_in(services, person)
    code = totp(person.code(services.clock(), 9))
    ensure_refused(InvalidCode, lambda: services.login.complete(token, code, client))


def guess_recovery_code(services: Services, person: Person) -> None:
    ensure_refused(InvalidRecoveryCode, lambda: redeem(services, person, "0000-0000-0000-0000-0000-0000"))


def redeem(services: Services, person: Person, code: str) -> SignedIn:
    return services.login.complete(log_in(services, person), recovery(code), CLIENT)


def guesses(services: Services, person: Person) -> list[Any]:
    return [
        lambda: services.login.begin("ada", "wrong-password", STRANGER),
        lambda: services.login.complete(log_in(services, person), totp("00000x"), CLIENT),
        lambda: redeem(services, person, "0000-0000-0000-0000-0000-0000"),
    ]


def described(act: Any) -> tuple[Any, ...]:
    """All that a refusal shows."""
    refusal = outcome_of(act)
    assert isinstance(refusal, MFAError), refusal
    return type(refusal), refusal.status, refusal.code, refusal.message, refusal.fields, refusal.retry_after


def first_code(signed_in: SignedIn) -> str:
    assert signed_in.recovery_codes
    return signed_in.recovery_codes[0]


def disable_totp(services: Services, rows: Rows, person: Person) -> None:
    """The hundredth failure in a row, after ninety-nine that time has gone over."""
    rows("DELETE FROM mfa_locks WHERE subject = 'totp'")
    guess_code(services, person)
    rows("UPDATE mfa_locks SET failures = 99 WHERE subject = 'totp'")
    guess_code(services, person)


def locks(rows: Rows) -> dict[str, dict[str, Any]]:
    return {row["subject"]: row for row in rows("SELECT * FROM mfa_locks")}


def delay_of(rows: Rows, subject: str, clock: Clock) -> float:
    """Seconds from now until the next try is let through."""
    opens = locks(rows)[subject]["open_at"]
    if opens is None:
        return 0
    opens = datetime.fromisoformat(opens) if isinstance(opens, str) else opens
    return round((opens if opens.tzinfo else opens.replace(tzinfo=UTC)).timestamp() - clock(), 3)


def clock_of(services: Services) -> Clock:
    assert isinstance(services.clock, Clock)
    return services.clock


def in_unit(services: Services, act: Any) -> object:
    return services.unit.run(act, writes=True)


@contextmanager
def writes_of(services: Services) -> Iterator[list[str]]:
    """The statements by which a service changes its database meanwhile."""
    said: list[str] = []

    def listen(*call: Any) -> None:
        if call[2].split()[0] in ("INSERT", "UPDATE", "DELETE"):
            said.append(call[2])

    event.listen(services.engine, "before_cursor_execute", listen)
    yield said
    event.remove(services.engine, "before_cursor_execute", listen)
