"""Codes at the door: the vectors of the RFCs, the window, and that no step is ever accepted twice."""

import base64
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mfa_service.crypto.keyring import Keyring
from mfa_service.crypto.vault import Vault
from mfa_service.errors import InvalidCode, InvalidPendingToken
from mfa_service.services import Services
from mfa_service.services.login import SignedIn
from tests.conftest import Clock
from tests.factories import Person
from tests.services import (
    CLIENT,
    Rows,
    another,
    at_once,
    events,
    forgive,
    log_in,
    register,
    sign_in,
    totp,
    user_id_of,
)

#: RFC 6238 appendix B, SHA-1: time and eight digits, of which six are shown.
RFC_6238 = {
    59: "94287082",
    1111111109: "07081804",
    1111111111: "14050471",
    1234567890: "89005924",
    2000000000: "69279037",
    20000000000: "65353130",
}
#: RFC 4226 appendix D: counters 0 to 9.
RFC_4226 = ["755224", "287082", "359152", "969429", "338314", "254676", "287922", "162583", "399871", "520489"]


# ── the right codes ──────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("now", "code"), RFC_6238.items())
def test_the_codes_of_rfc_6238_sign_in_at_their_times(
    services: Services, clock: Clock, rfc: Person, now: int, code: str
) -> None:
    clock.now = now
    assert accepts(services, rfc, code[-6:])


def test_the_codes_of_rfc_4226_sign_in_one_after_the_other(services: Services, clock: Clock, rfc: Person) -> None:
    with another(services, totp_window=0) as strict:
        for counter, code in enumerate(RFC_4226):
            clock.now = counter * 30
            assert accepts(strict, rfc, code), counter
            assert not accepts(strict, rfc, code), counter


def test_in_the_year_2603_people_still_sign_in(services: Services, clock: Clock, rows: Rows) -> None:
    clock.now = 20_000_000_000.0
    ada = register(services)
    token = sign_in(services, ada).access_token
    assert services.verifier.access(token, now=clock()).auth_time == 20_000_000_000
    assert rows("SELECT last_step FROM mfa_secrets") == [{"last_step": 666_666_666}]
    clock.now = 2.0**37
    assert sign_in(services, ada)


def test_a_code_with_a_leading_zero_is_a_string_of_six(services: Services, clock: Clock, ada: Person) -> None:
    while not ada.code(clock()).startswith("0"):
        clock.advance(30)
    assert not accepts(services, ada, ada.code(clock()).lstrip("0"))
    assert accepts(services, ada, ada.code(clock()))


# ── the window ───────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("window", [0, 1, 2])
@pytest.mark.parametrize("steps", [-3, -2, -1, 0, 1, 2, 3])
def test_the_window_is_as_wide_as_it_is_set_on_both_sides(
    services: Services, clock: Clock, ada: Person, window: int, steps: int
) -> None:
    with another(services, totp_window=window) as changed:
        assert accepts(changed, ada, ada.code(clock(), steps)) is (abs(steps) <= window)


@pytest.mark.parametrize(
    ("seconds", "is_let"), [(0.0, True), (29.9, True), (30.0, False), (59.9, False), (-0.1, False)]
)
def test_without_a_window_a_code_is_good_for_thirty_seconds(
    services: Services, clock: Clock, ada: Person, seconds: float, is_let: bool
) -> None:
    clock.now = start = 1_700_000_010.0  # where a step begins
    code = ada.code(start)
    clock.advance(seconds)
    with another(services, totp_window=0) as strict:
        assert accepts(strict, ada, code) is is_let


@pytest.mark.parametrize(("seconds", "is_let"), [(89.9, True), (90.0, False), (-60.0, True), (-60.1, False)])
def test_with_a_window_of_two_a_code_is_good_for_two_steps_before_and_after_its_own(
    services: Services, clock: Clock, ada: Person, seconds: float, is_let: bool
) -> None:
    clock.now = start = 1_700_000_010.0
    code = ada.code(start)
    clock.advance(seconds)
    assert accepts(services, ada, code) is is_let


def test_the_time_zone_and_its_summer_time_have_no_effect(services: Services, clock: Clock, berlin: None) -> None:
    ada = register(services)
    end_of_summer_time = datetime(2026, 10, 25, 1, tzinfo=UTC).timestamp()
    for minutes in (-61, -1, 0, 1, 59, 61):
        clock.now = end_of_summer_time + 60 * minutes
        token = sign_in(services, ada).access_token
        assert services.verifier.access(token, now=clock()).auth_time == int(clock())


# ── once ─────────────────────────────────────────────────────────────────────────────────────────


def test_a_code_is_accepted_once(services: Services, clock: Clock, ada: Person) -> None:
    code = ada.code(clock())
    assert [accepts(services, ada, code) for _ in range(3)] == [True, False, False]


def test_a_used_code_stays_used_for_as_long_as_it_is_in_the_window(
    services: Services, clock: Clock, ada: Person
) -> None:
    code = ada.code(clock(), 2)
    assert accepts(services, ada, code)
    for _ in range(5):
        clock.advance(30)
        assert not accepts(services, ada, code)


@pytest.mark.parametrize(
    "disguise",
    [
        lambda code: code.translate({48 + digit: 0xFF10 + digit for digit in range(10)}),
        lambda code: code.translate(dict(zip(range(48, 58), "⁰¹²³⁴⁵⁶⁷⁸⁹", strict=True))),
        lambda code: f"{code[:3]} {code[3:]}",
        lambda code: f" {code}",
        lambda code: f"{code}\n",
        lambda code: f"+{code}",
        lambda code: f"0{code}",
        lambda code: f"{code}.0",
    ],
    ids=["full-width", "superscript", "gap", "space", "newline", "plus", "zero", "decimal"],
)
def test_a_code_in_disguise_is_no_other_code(
    services: Services, clock: Clock, ada: Person, disguise: Callable[[str], str]
) -> None:
    code = ada.code(clock())
    assert not accepts(services, ada, disguise(code))
    assert accepts(services, ada, code)
    assert not accepts(services, ada, disguise(code))


def test_after_a_step_the_older_ones_are_dead_and_the_newer_ones_are_not(
    services: Services, clock: Clock, ada: Person
) -> None:
    for steps, is_let in ((0, True), (-1, False), (-2, False), (1, True), (0, False), (2, True), (1, False)):
        assert accepts(services, ada, ada.code(clock(), steps)) is is_let, steps


def test_the_codes_a_b_a_are_accepted_accepted_refused(services: Services, clock: Clock, ada: Person) -> None:
    a, b = ada.code(clock()), ada.code(clock(), 1)
    assert [accepts(services, ada, code) for code in (a, b, a, b)] == [True, True, False, False]


@pytest.mark.faults("Q10")
def test_when_the_clock_jumps_back_no_code_works_until_time_catches_up(
    services: Services, clock: Clock, ada: Person
) -> None:
    before = clock.now
    clock.advance(3600)
    assert accepts(services, ada, ada.code(clock()))
    clock.now = before
    for _ in range(3):
        assert not any(accepts(services, ada, ada.code(clock(), steps)) for steps in (-2, -1, 0, 1, 2))
        clock.advance(600)
    clock.now = before + 3630
    assert accepts(services, ada, ada.code(clock()))


def test_of_ten_logins_at_once_with_one_code_one_succeeds(services: Services, clock: Clock, ada: Person) -> None:
    tokens = [log_in(services, ada) for _ in range(10)]
    code = ada.code(clock())
    outcomes = at_once(10, lambda number: services.login.complete(tokens[number], totp(code), CLIENT))
    assert sum(isinstance(outcome, SignedIn) for outcome in outcomes) == 1, outcomes
    # The fifth of them that came too late has locked the factor and ended the pending tokens that were left.
    assert sum(isinstance(outcome, InvalidCode | InvalidPendingToken) for outcome in outcomes) == 9, outcomes


def test_a_code_of_one_user_uses_nothing_up_for_another(services: Services, clock: Clock, rows: Rows) -> None:
    ada, bob = register(services, "ada"), register(services, "bob")
    for person in (ada, bob):
        inject(services, rows, person, b"12345678901234567890")
    twin = Person("bob", bob.password, bob.email, "GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ")
    assert accepts(services, ada, twin.code(clock()))
    assert accepts(services, bob, twin.code(clock()))


# ── the wrong codes ──────────────────────────────────────────────────────────────────────────────


def test_a_wrong_code_changes_nothing_but_the_count_of_attempts(
    services: Services, clock: Clock, ada: Person, rows: Rows
) -> None:
    before = rows("SELECT * FROM mfa_secrets"), rows("SELECT * FROM mfa_users")
    assert not accepts(services, ada, ada.code(clock(), 9))
    assert (rows("SELECT * FROM mfa_secrets"), rows("SELECT * FROM mfa_users")) == before
    assert rows("SELECT attempts, closed_at FROM mfa_challenges") == [{"attempts": 1, "closed_at": None}]
    assert rows("SELECT * FROM mfa_sessions") == []


def test_a_replayed_code_is_an_event_of_its_own(services: Services, clock: Clock, ada: Person, rows: Rows) -> None:
    accepts(services, ada, ada.code(clock()))
    accepts(services, ada, ada.code(clock()))
    assert events(rows)[-1] == "login.code_replayed"
    accepts(services, ada, ada.code(clock(), 9))
    assert events(rows)[-1] == "login.code_refused"


@pytest.mark.parametrize(
    "code", ["", "0", "00000", "0000000", "null", "true", "None", "nan", "[]", "{}", "\0", "\ud800"]
)
@pytest.mark.parametrize("has_empty_secret", [False, True])
def test_no_magic_word_is_a_code(
    services: Services, ada: Person, rows: Rows, code: str, has_empty_secret: bool
) -> None:
    if has_empty_secret:
        inject(services, rows, ada, bytes(20))
    assert not accepts(services, ada, code)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(code=st.text() | st.from_regex(r"\d{6}", fullmatch=True) | st.integers().map(str))
def test_no_string_is_a_code_but_those_of_the_window(services: Services, clock: Clock, ada: Person, code: str) -> None:
    clock.advance(300)
    right = {ada.code(clock(), steps) for steps in (-2, -1, 0, 1, 2)}
    assert accepts(services, ada, code) is (code in right)


# ── at rest ──────────────────────────────────────────────────────────────────────────────────────


def test_the_database_holds_no_secret_in_any_spelling(services: Services, rows: Rows, ada: Person) -> None:
    raw = base64.b32decode(ada.secret)
    stored = rows("SELECT sealed_secret FROM mfa_secrets")[0]["sealed_secret"]
    for spelling in (raw, ada.secret.encode(), raw.hex().encode(), base64.b64encode(raw)):
        assert spelling not in stored
    place = f"mfa_secrets.sealed_secret:{user_id_of(rows, 'ada')}"
    assert Vault(Keyring.load(services.settings.keyring_file)).open(stored, place) == raw


def test_the_secrets_of_a_hundred_users_differ(services: Services) -> None:
    secrets = [base64.b32decode(register(services, f"ada{number}").secret) for number in range(100)]
    assert len(set(secrets)) == 100
    assert {len(secret) for secret in secrets} == {20}


# ── fixtures ─────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def ada(services: Services) -> Person:
    return register(services, "ada")


@pytest.fixture
def rfc(services: Services, rows: Rows, ada: Person) -> Person:
    """Somebody whose phone holds the key of the RFCs."""
    inject(services, rows, ada, b"12345678901234567890")
    return ada


@pytest.fixture
def berlin(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def inject(services: Services, rows: Rows, person: Person, secret: bytes) -> None:
    """Put another secret in place, properly sealed."""
    user_id = user_id_of(rows, person.username)
    vault = Vault(Keyring.load(services.settings.keyring_file))
    sealed = vault.seal(secret, f"mfa_secrets.sealed_secret:{user_id}")
    rows("UPDATE mfa_secrets SET sealed_secret = :sealed WHERE user_id = :id", sealed=sealed, id=user_id)


def accepts(services: Services, person: Person, code: str) -> bool:
    """Whether a fresh login of this person, who has no failures yet, ends well with this code."""
    forgive(services)
    token = log_in(services, person)
    try:
        services.login.complete(token, totp(code), CLIENT)
    except InvalidCode:
        return False
    return True
