"""Recovery codes: ten, shown once, each good once, for this user, beside the password."""

import hashlib

import pytest

from mfa_service.errors import InvalidCode, InvalidPendingToken, InvalidRecoveryCode
from mfa_service.services import Services
from mfa_service.services.administration import By
from mfa_service.services.login import MFAPending, SignedIn
from tests.conftest import Clock
from tests.factories import Person
from tests.services import (
    CLIENT,
    Rows,
    acting,
    at_once,
    ensure_refused,
    events,
    forgive,
    identity_of,
    is_live,
    log_in,
    recovery,
    register,
    sign_in,
    totp,
    user_id_of,
)

# ── issued ───────────────────────────────────────────────────────────────────────────────────────


def test_the_first_success_shows_ten_codes_and_no_later_one_does(
    services: Services, ada: Person, codes: tuple[str, ...]
) -> None:
    assert len(set(codes)) == 10
    for steps in (1, 2):
        assert sign_in(services, ada, steps).recovery_codes is None
    assert redeem(services, ada, codes[0]).recovery_codes is None


def test_the_database_holds_their_sha_256_and_nothing_else_of_them(codes: tuple[str, ...], rows: Rows) -> None:
    stored = {row["digest"] for row in rows("SELECT digest FROM mfa_recovery_codes")}
    assert stored == {hashlib.sha256(code.replace("-", "").encode()).hexdigest() for code in codes}
    tables = ("mfa_recovery_codes", "mfa_events", "mfa_users", "mfa_sessions", "mfa_challenges")
    dump = repr([rows(f"SELECT * FROM {table}") for table in tables])
    assert [code for code in codes if code in dump or code.replace("-", "") in dump] == []


def test_before_the_first_success_there_are_none(services: Services, ada: Person, rows: Rows) -> None:
    ensure_refused(InvalidCode, lambda: sign_in(services, ada, steps=9))
    assert rows("SELECT * FROM mfa_recovery_codes") == []
    ensure_refused(InvalidRecoveryCode, lambda: redeem(services, ada, ""))


# ── redeemed ─────────────────────────────────────────────────────────────────────────────────────


def test_a_code_signs_in_and_the_token_says_so(services: Services, ada: Person, codes: tuple[str, ...]) -> None:
    signed_in = redeem(services, ada, codes[3])
    assert identity_of(services, signed_in).amr == ("pwd", "recovery", "mfa")
    assert identity_of(services, signed_in).auth_time == int(services.clock())
    assert is_live(services, signed_in)


def test_each_code_works_once(services: Services, ada: Person, codes: tuple[str, ...], rows: Rows) -> None:
    for used, code in enumerate(codes, 1):
        assert redeem(services, ada, code).recovery_codes_left == 10 - used
        ensure_refused(InvalidRecoveryCode, lambda code=code: redeem(services, ada, code))
        forgive(services)
    assert rows("SELECT * FROM mfa_recovery_codes WHERE used_at IS NULL") == []


def test_twenty_at_once_with_one_code_from_different_pending_tokens_succeed_once(
    services: Services, ada: Person, codes: tuple[str, ...], rows: Rows
) -> None:
    tokens = [log_in(services, ada) for _ in range(20)]
    outcomes = at_once(20, lambda number: services.login.complete(tokens[number], recovery(codes[0]), CLIENT))
    assert sum(isinstance(outcome, SignedIn) for outcome in outcomes) == 1, outcomes
    assert all(isinstance(outcome, SignedIn | InvalidRecoveryCode | InvalidPendingToken) for outcome in outcomes)
    assert len(rows("SELECT * FROM mfa_recovery_codes WHERE used_at IS NOT NULL")) == 1


def test_one_sign_in_spends_one_code_at_most(services: Services, ada: Person, codes: tuple[str, ...]) -> None:
    token = log_in(services, ada)
    assert services.login.complete(token, recovery(codes[0]), CLIENT)
    ensure_refused(InvalidPendingToken, lambda: services.login.complete(token, recovery(codes[1]), CLIENT))
    assert redeem(services, ada, codes[1]).recovery_codes_left == 8


def test_a_spent_pending_token_spends_no_code(
    services: Services, ada: Person, codes: tuple[str, ...], clock: Clock
) -> None:
    token = log_in(services, ada)
    clock.advance(300)
    ensure_refused(InvalidPendingToken, lambda: services.login.complete(token, recovery(codes[0]), CLIENT))
    assert redeem(services, ada, codes[0]).recovery_codes_left == 9


def test_a_code_never_replaces_the_password(services: Services, ada: Person, codes: tuple[str, ...]) -> None:
    for token in ("", codes[1], "x.y.z"):
        ensure_refused(InvalidPendingToken, lambda it=token: services.login.complete(it, recovery(codes[0]), CLIENT))
    assert redeem(services, ada, codes[0]).recovery_codes_left == 9


@pytest.mark.parametrize(
    "spelling",
    [str.lower, lambda code: code.replace("-", ""), lambda code: code.replace("-", " "), lambda code: f" {code} "],
    ids=["lower case", "no hyphens", "spaces", "around"],
)
def test_case_hyphens_and_spaces_do_not_count_and_make_no_second_code(
    services: Services, ada: Person, codes: tuple[str, ...], spelling: object
) -> None:
    assert callable(spelling)
    assert redeem(services, ada, spelling(codes[0]))
    for code in (codes[0], spelling(codes[0])):
        ensure_refused(InvalidRecoveryCode, lambda code=code: redeem(services, ada, code))


@pytest.mark.parametrize("code", ["", "0", "null", "\0", "\ud800", "%", "' OR 1=1 --", "x" * 10_000])
def test_no_magic_word_is_a_code(services: Services, ada: Person, codes: tuple[str, ...], code: str) -> None:
    ensure_refused(InvalidRecoveryCode, lambda: redeem(services, ada, code))


def test_a_totp_code_is_no_recovery_code_nor_the_other_way_round(
    services: Services, ada: Person, codes: tuple[str, ...]
) -> None:
    ensure_refused(InvalidRecoveryCode, lambda: redeem(services, ada, ada.code(services.clock(), 1)))
    token = log_in(services, ada)
    ensure_refused(InvalidCode, lambda: services.login.complete(token, totp(codes[0]), CLIENT))
    assert redeem(services, ada, codes[0])


def test_a_code_of_another_user_is_a_wrong_one_and_stays_theirs(
    services: Services, ada: Person, codes: tuple[str, ...]
) -> None:
    bob = register(services, "bob")
    bobs = sign_in(services, bob).recovery_codes
    assert bobs
    ensure_refused(InvalidRecoveryCode, lambda: redeem(services, ada, bobs[0]))
    ensure_refused(InvalidRecoveryCode, lambda: redeem(services, bob, codes[0]))
    assert redeem(services, bob, bobs[0])
    assert redeem(services, ada, codes[0])


def test_a_stored_digest_is_no_code(services: Services, ada: Person, codes: tuple[str, ...], rows: Rows) -> None:
    for row in rows("SELECT digest FROM mfa_recovery_codes")[:3]:
        ensure_refused(InvalidRecoveryCode, lambda row=row: redeem(services, ada, row["digest"]))


def test_a_recovery_code_steps_up_too(services: Services, ada: Person, codes: tuple[str, ...], clock: Clock) -> None:
    signed_in = sign_in(services, ada, steps=1)
    clock.advance(1000)
    again = services.login.step_up(identity_of(services, signed_in), recovery(codes[0]), CLIENT)
    assert identity_of(services, again).amr == ("pwd", "recovery", "mfa")
    assert identity_of(services, again).auth_time == int(clock())
    ensure_refused(InvalidRecoveryCode, lambda: redeem(services, ada, codes[0]))


# ── how many are left ────────────────────────────────────────────────────────────────────────────


def test_with_fewer_than_four_left_every_sign_in_says_so(
    services: Services, ada: Person, codes: tuple[str, ...], clock: Clock
) -> None:
    for code in codes[:6]:
        redeem(services, ada, code)
    clock.advance(30)
    assert sign_in(services, ada).recovery_codes_left is None
    redeem(services, ada, codes[6])
    clock.advance(30)
    assert sign_in(services, ada).recovery_codes_left == 3


def test_the_owner_can_look_how_many_are_left(
    services: Services, ada: Person, codes: tuple[str, ...], rows: Rows
) -> None:
    user_id = user_id_of(rows, "ada")
    assert services.factors.summary(user_id).recovery_codes_left == 10
    for code in codes:
        redeem(services, ada, code)
    assert services.factors.summary(user_id).recovery_codes_left == 0
    assert services.factors.summary(user_id).methods == ("totp",)
    pending = services.login.begin("ada", ada.password, CLIENT)
    assert isinstance(pending, MFAPending)
    assert pending.methods == ("totp",)


def test_a_use_is_recorded_with_what_is_left(
    services: Services, ada: Person, codes: tuple[str, ...], rows: Rows
) -> None:
    redeem(services, ada, codes[0])
    ensure_refused(InvalidRecoveryCode, lambda: redeem(services, ada, codes[0]))
    assert events(rows).count("recovery_code.used") == events(rows).count("login.recovery_code_refused") == 1
    [row] = rows("SELECT detail FROM mfa_events WHERE event = 'recovery_code.used'")
    assert "9" in str(row["detail"])


# ── renewed and forgotten ────────────────────────────────────────────────────────────────────────


def test_renewing_gives_ten_others_and_the_old_ones_are_dead(
    services: Services, ada: Person, codes: tuple[str, ...], rows: Rows
) -> None:
    redeem(services, ada, codes[0])
    renewed = services.factors.renew_recovery_codes(acting(services, user_id_of(rows, "ada")), CLIENT)
    assert len(set(renewed) - set(codes)) == 10
    for code in codes[:4]:
        ensure_refused(InvalidRecoveryCode, lambda code=code: redeem(services, ada, code))
    assert redeem(services, ada, renewed[0]).recovery_codes_left == 9


def test_renewing_ten_times_at_once_leaves_one_whole_set(
    services: Services, ada: Person, codes: tuple[str, ...], rows: Rows
) -> None:
    user_id = user_id_of(rows, "ada")
    sets = at_once(10, lambda _: services.factors.renew_recovery_codes(acting(services, user_id), CLIENT))
    assert all(isinstance(each, tuple) for each in sets), sets
    stored = {row["digest"] for row in rows("SELECT digest FROM mfa_recovery_codes")}
    digests = [{hashlib.sha256(c.replace("-", "").encode()).hexdigest() for c in each} for each in sets]  # type: ignore[attr-defined]
    assert digests.count(stored) == 1


def test_renewing_opens_codes_that_were_disabled_by_guessing(
    services: Services, ada: Person, codes: tuple[str, ...], rows: Rows
) -> None:
    ensure_refused(InvalidRecoveryCode, lambda: redeem(services, ada, "wrong"))
    rows("UPDATE mfa_locks SET failures = 99")
    ensure_refused(InvalidRecoveryCode, lambda: redeem(services, ada, "wrong"))
    renewed = services.factors.renew_recovery_codes(acting(services, user_id_of(rows, "ada")), CLIENT)
    assert redeem(services, ada, renewed[0])


def test_after_a_reset_no_code_works(services: Services, ada: Person, codes: tuple[str, ...], rows: Rows) -> None:
    services.administration.reset_factors(By(CLIENT, reason="phone lost"), user_id_of(rows, "ada"))
    for code in codes[:3]:
        ensure_refused(InvalidRecoveryCode, lambda code=code: redeem(services, ada, code))
    assert rows("SELECT * FROM mfa_recovery_codes") == []


# ── fixtures and helpers ─────────────────────────────────────────────────────────────────────────


@pytest.fixture
def ada(services: Services) -> Person:
    return register(services, "ada")


@pytest.fixture
def codes(services: Services, ada: Person) -> tuple[str, ...]:
    """The ten that the first success has shown."""
    shown = sign_in(services, ada).recovery_codes
    assert shown
    return shown


def redeem(services: Services, person: Person, code: str) -> SignedIn:
    return services.login.complete(log_in(services, person), recovery(code), CLIENT)
