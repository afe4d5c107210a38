"""Signing in: the two steps, in this order, by the same person, once."""

import math
from collections.abc import Callable
from typing import Any

import jwt
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from sqlalchemy import create_engine

from mfa_service.crypto.keyring import Keyring, new_keyring_text
from mfa_service.crypto.tokens import PENDING_SECONDS
from mfa_service.crypto.vault import Vault
from mfa_service.errors import (
    FactorExists,
    InvalidCode,
    InvalidCredentials,
    InvalidPendingToken,
    MFAError,
    SealBroken,
    WrongStep,
)
from mfa_service.services import Services
from mfa_service.services.login import MFAPending, SignedIn
from mfa_service.services.totp import ENROLMENT_SECONDS, Enrolment
from tests.conftest import Clock
from tests.factories import Person
from tests.services import (
    CLIENT,
    Rows,
    at_once,
    ensure_refused,
    events,
    forgive,
    log_in,
    outcome_of,
    register,
    sign_in,
    totp,
    user_id_of,
    verify,
)

# ── the two steps ────────────────────────────────────────────────────────────────────────────────


def test_a_password_and_a_code_open_a_session(services: Services, rows: Rows) -> None:
    ada = register(services)
    signed_in = sign_in(services, ada)
    assert (signed_in.username, signed_in.email, signed_in.expires_in) == ("ada", ada.email, 3600)
    [session] = rows("SELECT * FROM mfa_sessions")
    assert session["id"] == claims_of(signed_in.access_token)["sid"]
    assert events(rows) == [
        "user.registered",
        "login.password_accepted",
        "factor.confirmed",
        "recovery_codes.issued",
        "login.completed",
    ]


def test_the_access_token_proves_both_factors_and_lives_an_hour(services: Services, clock: Clock) -> None:
    ada = register(services)
    pending = log_in(services, ada)
    clock.advance(100.5)
    claims = claims_of(verify(services, pending, ada).access_token)
    assert claims["step"] == "authenticated"
    assert claims["auth_time"] == claims["iat"] == int(clock())
    assert claims["exp"] - claims["iat"] == 3600
    assert claims["amr"] == ["pwd", "otp", "mfa"]
    assert claims["jti"] != claims_of(pending)["jti"]
    assert claims["sid"] not in (claims["jti"], claims_of(pending)["jti"])


def test_every_token_has_an_id_of_its_own(services: Services) -> None:
    ada = register(services)
    tokens = [log_in(services, ada) for _ in range(3)]
    tokens += [sign_in(services, ada, steps).access_token for steps in (-1, 0, 1)]
    assert len({claims_of(token)["jti"] for token in tokens}) == 6


def test_before_the_second_step_there_is_no_session(services: Services, rows: Rows) -> None:
    ada = register(services)
    token = log_in(services, ada)
    with pytest.raises(InvalidCode):
        verify(services, token, ada, steps=9)
    assert rows("SELECT * FROM mfa_sessions") == []
    assert "sid" not in claims_of(token)


def test_the_password_says_which_factors_there_are_and_no_sooner(services: Services) -> None:
    ada = register(services)
    assert methods_of(services, ada) == ()
    sign_in(services, ada)
    assert methods_of(services, ada) == ("totp", "recovery_code")


def test_a_pending_token_lives_five_minutes_sharp(services: Services, clock: Clock) -> None:
    ada = register(services)
    for age, is_alive in ((299, True), (300, False), (301, False)):
        token = log_in(services, ada)
        clock.advance(age)
        if is_alive:
            assert verify(services, token, ada)
        else:
            ensure_refused(InvalidPendingToken, lambda token=token: verify(services, token, ada))


def test_a_right_code_does_not_make_the_pending_token_live_longer(services: Services, clock: Clock) -> None:
    ada = register(services)
    token = log_in(services, ada)
    ensure_refused(InvalidCode, lambda: verify(services, token, ada, steps=9))
    clock.advance(300)
    ensure_refused(InvalidPendingToken, lambda: verify(services, token, ada))


def test_a_pending_token_is_good_for_one_success(services: Services, clock: Clock) -> None:
    ada = register(services)
    token = log_in(services, ada)
    assert verify(services, token, ada)
    clock.advance(30)
    ensure_refused(InvalidPendingToken, lambda: verify(services, token, ada))


def test_five_wrong_codes_end_a_pending_token_and_the_right_one_comes_too_late(services: Services, rows: Rows) -> None:
    ada = register(services)
    token = log_in(services, ada)
    for spent in range(1, 6):
        ensure_refused(InvalidCode, lambda: verify(services, token, ada, steps=9))
        assert rows("SELECT attempts FROM mfa_challenges") == [{"attempts": spent}]
    forgive(services)
    ensure_refused(InvalidPendingToken, lambda: verify(services, token, ada))
    assert verify(services, log_in(services, ada), ada)


def test_the_fifth_code_may_be_the_right_one(services: Services) -> None:
    ada = register(services)
    token = log_in(services, ada)
    for _ in range(4):
        ensure_refused(InvalidCode, lambda: verify(services, token, ada, steps=9))
    assert verify(services, token, ada)


def test_pending_tokens_of_several_logins_do_not_know_each_other(services: Services) -> None:
    ada = register(services)
    older, newer = log_in(services, ada), log_in(services, ada)
    for _ in range(5):
        ensure_refused(InvalidCode, lambda: verify(services, newer, ada, steps=9))
        forgive(services)  # or else the lock of the account ends them all
    ensure_refused(InvalidPendingToken, lambda: verify(services, newer, ada))
    assert verify(services, older, ada)


# ── whose ────────────────────────────────────────────────────────────────────────────────────────


def test_the_code_of_another_user_is_a_wrong_one(services: Services) -> None:
    ada, bob = register(services, "ada"), register(services, "bob")
    token = log_in(services, ada)
    ensure_refused(InvalidCode, lambda: verify(services, token, bob))
    assert verify(services, token, ada).username == "ada"


def test_a_challenge_answers_to_the_user_it_was_opened_for(services: Services, rows: Rows, clock: Clock) -> None:
    ada, bob = register(services, "ada"), register(services, "bob")
    challenge = claims_of(log_in(services, ada))["jti"]
    user_id = user_id_of(rows, "bob")
    crossed = services.minter.pending(user_id=user_id, username="bob", challenge_id=challenge, now=clock())
    ensure_refused(InvalidPendingToken, lambda: verify(services, crossed, bob))
    ensure_refused(InvalidPendingToken, lambda: services.login.enrol(crossed, CLIENT))


def test_a_challenge_that_was_never_opened_is_none(services: Services, rows: Rows, clock: Clock) -> None:
    ada = register(services)
    token = services.minter.pending(user_id=user_id_of(rows, "ada"), username="ada", challenge_id="x" * 22, now=clock())
    ensure_refused(InvalidPendingToken, lambda: verify(services, token, ada))


def test_an_access_token_is_of_another_step(services: Services) -> None:
    ada = register(services)
    access = sign_in(services, ada).access_token
    ensure_refused(WrongStep, lambda: verify(services, access, ada, steps=1))
    ensure_refused(WrongStep, lambda: services.login.enrol(access, CLIENT))


@pytest.mark.parametrize("token", ["", "x", "a.b.c", "null", "ü", "\ud800", "x" * 60_000], ids=lambda t: ascii(t)[:12])
def test_what_is_no_token_is_refused_and_recorded(services: Services, rows: Rows, token: str) -> None:
    ensure_refused(InvalidPendingToken, lambda: services.login.complete(token, totp("000000"), CLIENT))
    ensure_refused(InvalidPendingToken, lambda: services.login.enrol(token, CLIENT))
    assert events(rows) == ["challenge.refused"] * 2


# ── the account meanwhile ────────────────────────────────────────────────────────────────────────


def test_a_user_who_is_disabled_between_the_steps_gets_no_further(services: Services, rows: Rows) -> None:
    ada = register(services)
    token = log_in(services, ada)
    rows("UPDATE mfa_users SET disabled_at = created_at")
    ensure_refused(InvalidPendingToken, lambda: verify(services, token, ada))
    ensure_refused(InvalidPendingToken, lambda: services.login.enrol(token, CLIENT))
    assert rows("SELECT attempts, closed_at FROM mfa_challenges") == [{"attempts": 0, "closed_at": None}]


def test_a_user_who_is_deleted_between_the_steps_gets_no_further(services: Services, rows: Rows) -> None:
    ada = register(services)
    token = log_in(services, ada)
    for table in ("mfa_challenges", "mfa_secrets", "mfa_users"):
        rows(f"DELETE FROM {table}")
    ensure_refused(InvalidPendingToken, lambda: verify(services, token, ada))


def test_a_user_without_a_secret_has_no_right_code(services: Services, rows: Rows) -> None:
    ada = register(services)
    rows("DELETE FROM mfa_secrets")
    token = log_in(services, ada)
    for code in (ada.code(services.clock()), "000000", ""):
        ensure_refused(InvalidCode, lambda code=code: services.login.complete(token, totp(code), CLIENT))


# ── one answer for every wrong code ──────────────────────────────────────────────────────────────


def test_wrong_used_late_and_malformed_codes_are_refused_alike(services: Services) -> None:
    ada = register(services)
    sign_in(services, ada)
    now = services.clock()
    codes = {
        "used": ada.code(now),
        "older than the used one": ada.code(now, -1),
        "late": ada.code(now, -3),
        "early": ada.code(now, 3),
        "malformed": "12345",
        "empty": "",
    }
    token = log_in(services, ada)
    refusals = []
    for code in codes.values():
        with pytest.raises(MFAError) as refusal:
            services.login.complete(token, totp(code), CLIENT)
        refusals.append((type(refusal.value), refusal.value.message, refusal.value.fields, refusal.value.retry_after))
        forgive(services)
        token = log_in(services, ada)
    assert refusals == [(InvalidCode, "Invalid TOTP code", {}, None)] * len(codes)


# ── 503 spends nothing ───────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("how", ["unknown key", "last bit", "cut", "plain", "empty", "of another column"])
@pytest.mark.parametrize("is_confirmed", [True, False], ids=["confirmed", "unconfirmed"])
def test_a_secret_that_does_not_open_is_an_alarm_and_spends_nothing(
    services: Services, rows: Rows, how: str, is_confirmed: bool
) -> None:
    ada = register(services)
    if is_confirmed:
        sign_in(services, ada)
    token = log_in(services, ada)
    good = rows("SELECT sealed_secret FROM mfa_secrets")[0]["sealed_secret"]
    store(rows, broken(services, rows, good, how))
    for _ in range(6):
        ensure_refused(SealBroken, lambda: verify(services, token, ada, steps=1))
    waiting = "SELECT attempts FROM mfa_challenges WHERE closed_at IS NULL"
    assert rows(waiting) == [{"attempts": 0}]
    assert events(rows)[-6:] == ["secret.unreadable"] * 6
    assert len(rows("SELECT * FROM mfa_sessions")) == is_confirmed
    store(rows, good)
    assert verify(services, token, ada, steps=1)


def test_with_two_users_secrets_swapped_neither_gets_in(services: Services, rows: Rows) -> None:
    people = [register(services, "ada"), register(services, "bob")]
    tokens = [log_in(services, person) for person in people]
    first, second = rows("SELECT id, sealed_secret FROM mfa_secrets")
    for row, other in ((first, second), (second, first)):
        rows("UPDATE mfa_secrets SET sealed_secret = :s WHERE id = :id", s=other["sealed_secret"], id=row["id"])
    for token in tokens:
        for person in people:
            ensure_refused(SealBroken, lambda token=token, person=person: verify(services, token, person))
    assert events(rows)[-4:] == ["secret.unreadable"] * 4


def test_an_unreadable_secret_is_not_read_as_having_none(services: Services, rows: Rows) -> None:
    ada = register(services)
    sign_in(services, ada)
    store(rows, b"garbage")
    assert methods_of(services, ada) == ("totp", "recovery_code")
    ensure_refused(FactorExists, lambda: services.login.enrol(log_in(services, ada), CLIENT))


# ── enrolling ────────────────────────────────────────────────────────────────────────────────────


def test_an_unconfirmed_factor_neither_protects_nor_locks_out(services: Services, rows: Rows) -> None:
    lost = register(services)
    enrolment = services.login.enrol(log_in(services, lost), CLIENT)
    found = with_secret(lost, enrolment)
    ensure_refused(InvalidCode, lambda: sign_in(services, lost))
    assert sign_in(services, found)
    assert len(rows("SELECT * FROM mfa_secrets")) == 1


def test_the_code_that_confirms_is_used_up(services: Services) -> None:
    ada = register(services)
    sign_in(services, ada)
    ensure_refused(InvalidCode, lambda: sign_in(services, ada))


def test_after_the_first_success_a_password_alone_enrols_nothing(services: Services, rows: Rows) -> None:
    ada = register(services)
    early = log_in(services, ada)
    sign_in(services, ada)
    before = rows("SELECT * FROM mfa_secrets")
    for token in (early, log_in(services, ada)):
        ensure_refused(FactorExists, lambda token=token: services.login.enrol(token, CLIENT))
    assert rows("SELECT * FROM mfa_secrets") == before
    assert events(rows)[-1] == "enrolment.refused"


def test_every_enrolment_has_another_secret_and_the_last_one_counts(services: Services, rows: Rows) -> None:
    ada = register(services)
    token = log_in(services, ada)
    secrets = [ada.secret] + [services.login.enrol(token, CLIENT).secret for _ in range(3)]
    assert len(set(secrets)) == 4
    people = [Person("ada", ada.password, ada.email, secret) for secret in secrets]
    for former in people[:-1]:
        ensure_refused(InvalidCode, lambda former=former: verify(services, token, former))
    assert verify(services, token, people[-1])
    assert len(rows("SELECT * FROM mfa_secrets")) == 1


def test_a_pending_token_that_is_spent_used_up_or_late_enrols_nothing(services: Services, clock: Clock) -> None:
    ada = register(services)
    spent = log_in(services, ada)
    for _ in range(5):
        ensure_refused(InvalidCode, lambda: verify(services, spent, ada, steps=9))
    ensure_refused(InvalidPendingToken, lambda: services.login.enrol(spent, CLIENT))
    late = log_in(services, ada)
    clock.advance(300)
    ensure_refused(InvalidPendingToken, lambda: services.login.enrol(late, CLIENT))
    used = log_in(services, ada)
    verify(services, used, ada)
    ensure_refused(InvalidPendingToken, lambda: services.login.enrol(used, CLIENT))


@pytest.mark.parametrize("run", range(4))
def test_of_enrolling_and_confirming_at_once_one_wins(services: Services, rows: Rows, run: int) -> None:
    ada = register(services)
    tokens = [log_in(services, ada), log_in(services, ada)]
    acts: list[Callable[[], object]] = [
        lambda: verify(services, tokens[0], ada),
        lambda: services.login.enrol(tokens[1], CLIENT),
    ]
    confirmed, enrolled = at_once(2, lambda number: acts[number]())
    [secret] = rows("SELECT * FROM mfa_secrets")
    if isinstance(confirmed, SignedIn):
        assert isinstance(enrolled, FactorExists)
        assert secret["confirmed_at"]
    else:
        assert isinstance(confirmed, InvalidCode)
        assert isinstance(enrolled, Enrolment)
        assert verify(services, log_in(services, ada), with_secret(ada, enrolled))


def test_of_ten_enrolments_at_once_one_secret_stays_and_it_was_shown_to_somebody(
    services: Services, rows: Rows
) -> None:
    ada = register(services)
    token = log_in(services, ada)
    shown = at_once(10, lambda _: services.login.enrol(token, CLIENT))
    assert len(rows("SELECT * FROM mfa_secrets")) == 1
    enrolments = [outcome for outcome in shown if isinstance(outcome, Enrolment)]
    assert len(enrolments) == 10, shown
    outcomes = []
    for enrolment in enrolments:
        forgive(services)
        try:
            outcomes.append(sign_in(services, with_secret(ada, enrolment)))
        except InvalidCode:
            continue
    assert len(outcomes) == 1


def test_results_do_not_show_their_secrets_when_printed(services: Services) -> None:
    ada = register(services)
    pending = services.login.begin("ada", ada.password, CLIENT)
    assert isinstance(pending, MFAPending)
    enrolment = services.login.enrol(pending.token, CLIENT)
    signed_in = verify(services, pending.token, with_secret(ada, enrolment))
    shown = repr([pending, enrolment, signed_in])
    secrets = [pending.token, enrolment.secret, signed_in.access_token, signed_in.refresh_token]
    secrets += signed_in.recovery_codes or ()
    assert not [secret for secret in secrets if secret in shown]


# ── in any order ─────────────────────────────────────────────────────────────────────────────────


def test_no_order_of_acts_reaches_what_the_rules_do_not_allow(services: Services, rows: Rows, clock: Clock) -> None:
    run_state_machine_as_test(
        lambda: Acts(services, rows, clock),
        settings=settings(max_examples=25, stateful_step_count=20, deadline=None),
    )


class Acts(RuleBasedStateMachine):
    """One account and whatever can be done to it, beside a model that says how each act must end."""

    tokens = Bundle("tokens")
    accounts = 0

    def __init__(self, services: Services, rows: Rows, clock: Clock) -> None:
        super().__init__()
        Acts.accounts += 1
        self.services, self.rows, self.clock = services, rows, clock
        self.person = register(services, f"user{Acts.accounts}")
        self.former: Person = self.person
        self.user_id = user_id_of(rows, self.person.username)
        self.is_confirmed = self.is_disabled = False
        self.last_step = -1
        self.successes = self.failures = 0
        self.opens, self.lapses = 0.0, math.inf
        self.held: list[dict[str, Any]] = []

    @rule(target=tokens)
    def give_the_password(self) -> dict[str, Any]:
        outcome = outcome_of(lambda: log_in(self.services, self.person))
        assert isinstance(outcome, InvalidCredentials if self.is_disabled else str)
        made = {"token": str(outcome), "attempts": 0, "is_open": not self.is_disabled, "ends": self.clock() + 300}
        self.held.append(made)
        return made

    @rule(held=tokens, steps=st.sampled_from([-3, -2, -1, 0, 0, 0, 1, 2, 3]))
    def show_a_code(self, held: dict[str, Any], steps: int) -> None:
        outcome = outcome_of(lambda: verify(self.services, held["token"], self.person, steps))
        if not self.is_usable(held):
            assert isinstance(outcome, InvalidPendingToken)
            return
        held["attempts"] += 1
        step = int(self.clock()) // 30 + steps
        if self.clock() < self.opens:
            assert isinstance(outcome, InvalidCode)
            return
        has_lapsed = not self.is_confirmed and self.clock() >= self.lapses
        if has_lapsed or abs(steps) > 2 or step <= self.last_step:
            assert isinstance(outcome, InvalidCode)
            self.fail()
            return
        self.failures = 0
        assert isinstance(outcome, SignedIn)
        held["is_open"] = False
        self.last_step, self.is_confirmed, self.successes = step, True, self.successes + 1

    @rule(held=tokens)
    def show_a_code_of_a_former_secret(self, held: dict[str, Any]) -> None:
        if self.former.secret == self.person.secret:
            return
        outcome = outcome_of(lambda: verify(self.services, held["token"], self.former))
        assert isinstance(outcome, InvalidCode if self.is_usable(held) else InvalidPendingToken)
        if self.is_usable(held):
            held["attempts"] += 1
            self.fail()

    @rule(held=tokens)
    def enrol(self, held: dict[str, Any]) -> None:
        outcome = outcome_of(lambda: self.services.login.enrol(held["token"], CLIENT))
        if not self.is_usable(held):
            assert isinstance(outcome, InvalidPendingToken)
        elif self.is_confirmed:
            assert isinstance(outcome, FactorExists)
        else:
            assert isinstance(outcome, Enrolment)
            self.former, self.person = self.person, with_secret(self.person, outcome)
            self.lapses = self.clock() + ENROLMENT_SECONDS

    @rule(seconds=st.sampled_from([1, 29, 30, 60, 299, 300]))
    def wait(self, seconds: int) -> None:
        self.clock.advance(seconds)

    @rule()
    def disable_or_enable(self) -> None:
        self.is_disabled = not self.is_disabled
        value = "created_at" if self.is_disabled else "NULL"
        self.rows(f"UPDATE mfa_users SET disabled_at = {value} WHERE id = :id", id=self.user_id)

    @invariant()
    def every_success_and_nothing_else_opened_a_session(self) -> None:
        sessions = self.rows("SELECT id FROM mfa_sessions WHERE user_id = :id", id=self.user_id)
        assert len(sessions) == self.successes

    def fail(self) -> None:
        """A wrong code that was looked at: the fifth in a row locks the account and ends its pending tokens."""
        if self.clock() < self.opens:
            return
        self.failures += 1
        if self.failures >= 5:
            self.opens = self.clock() + 2 ** (self.failures - 5)
            for held in self.held:
                held["is_open"] = False

    def is_usable(self, held: dict[str, Any]) -> bool:
        is_alive = held["is_open"] and held["attempts"] < 5 and self.clock() < held["ends"]
        return bool(is_alive and not self.is_disabled)


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_whenever_the_time_runs_out_a_code_is_refused_with_nothing_done_or_taken(
    services: Services, rows: Rows
) -> None:
    clock = Leaping()
    hurried = Services(services.settings, create_engine(services.settings.database), clock)
    refused = 0
    for calls in range(1, 100):
        clock.now = 1_700_000_000 + calls * 1000
        ada = register(hurried, f"ada{calls}")
        token, user_id = log_in(hurried, ada), user_id_of(rows, ada.username)
        clock.advance(PENDING_SECONDS - 0.5)
        clock.leap_at(calls)
        outcome = outcome_of(lambda person=ada, it=token: verify(hurried, it, person))
        codes = rows("SELECT * FROM mfa_recovery_codes WHERE user_id = :id", id=user_id)
        confirmed = rows("SELECT id FROM mfa_secrets WHERE user_id = :id AND confirmed_at IS NOT NULL", id=user_id)
        if isinstance(outcome, SignedIn):
            assert (len(outcome.recovery_codes or ()), len(codes), len(confirmed)) == (10, 10, 1)
        else:
            refused += 1
            assert isinstance(outcome, InvalidPendingToken)
            assert (codes, confirmed) == ([], []), f"at call {calls} of the clock"
        if clock.has_not_leapt:
            break
    hurried.close()
    assert 0 < refused < calls


class Leaping(Clock):
    """A clock that goes on by a second right before it is looked at the nth time."""

    def __init__(self) -> None:
        super().__init__()
        self._left = 0

    def leap_at(self, calls: int) -> None:
        self._left = calls

    @property
    def has_not_leapt(self) -> bool:
        return self._left > 0

    def __call__(self) -> float:
        self._left -= 1
        if self._left == 0:
            self.advance(1)
        return super().__call__()


# ── helpers ──────────────────────────────────────────────────────────────────────────────────────


def methods_of(services: Services, person: Person) -> tuple[str, ...]:
    pending = services.login.begin(person.username, person.password, CLIENT)
    assert isinstance(pending, MFAPending)
    return pending.methods


def claims_of(token: str) -> dict[str, Any]:
    return dict(jwt.decode(token, options={"verify_signature": False}))


def with_secret(person: Person, enrolment: Enrolment) -> Person:
    return Person(person.username, person.password, person.email, enrolment.secret)


def store(rows: Rows, sealed: bytes) -> None:
    rows("UPDATE mfa_secrets SET sealed_secret = :sealed", sealed=sealed)


def broken(services: Services, rows: Rows, sealed: bytes, how: str) -> bytes:
    place = f"mfa_secrets.sealed_secret:{user_id_of(rows, 'ada')}"
    ours = Vault(Keyring.load(services.settings.keyring_file))
    secret = ours.open(sealed, place)
    return {
        "unknown key": Vault(Keyring.parse(new_keyring_text())).seal(secret, place),
        "last bit": sealed[:-1] + bytes([sealed[-1] ^ 1]),
        "cut": sealed[:-1],
        "plain": secret,
        "empty": b"",
        "of another column": ours.seal(secret, place.replace("mfa_secrets.sealed_secret", "mfa_users.sealed_password")),
    }[how]
