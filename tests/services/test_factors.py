"""Second factors of somebody who has one: shown again, replaced, renewed, reset; and one place that counts."""

from collections.abc import Callable

import pytest

from mfa_service.crypto.tokens import Identity
from mfa_service.errors import (
    FactorExists,
    InvalidCode,
    InvalidPendingToken,
    InvalidRecoveryCode,
    InvalidRefreshToken,
    InvalidToken,
    MFARequired,
    NotFound,
    NothingToConfirm,
)
from mfa_service.services import Services
from mfa_service.services.administration import By
from mfa_service.services.login import MFAPending, SignedIn
from tests.conftest import Clock
from tests.factories import Person
from tests.services import (
    CLIENT,
    Rows,
    acting,
    another,
    at_once,
    ensure_refused,
    events,
    identity_of,
    is_live,
    log_in,
    recovery,
    register,
    sign_in,
    totp,
    trust_device,
    user_id_of,
    verify,
)

# ── step-up ──────────────────────────────────────────────────────────────────────────────────────


def test_a_code_renews_the_time_of_the_factor_in_the_same_session(
    services: Services, ada: Person, signed_in: SignedIn, clock: Clock, rows: Rows
) -> None:
    clock.advance(1000)
    again = step_up(services, signed_in, ada.code(clock()))
    before, after = identity_of(services, signed_in), identity_of(services, again)
    assert (after.session_id, after.user_id) == (before.session_id, before.user_id)
    assert (before.auth_time, after.auth_time) == (int(clock()) - 1000, int(clock()))
    assert after.amr == ("pwd", "otp", "mfa")
    assert len(rows("SELECT * FROM mfa_sessions")) == 1
    assert events(rows)[-1] == "step_up.completed"


def test_a_step_up_renews_neither_the_idle_nor_the_absolute_end(
    services: Services, ada: Person, signed_in: SignedIn, clock: Clock, rows: Rows
) -> None:
    ends = "SELECT expires_at, refreshed_at FROM mfa_sessions"
    before = rows(ends)
    clock.advance(1000)
    step_up(services, signed_in, ada.code(clock()))
    assert rows(ends) == before


def test_the_refresh_token_of_before_goes_on(
    services: Services, ada: Person, signed_in: SignedIn, clock: Clock
) -> None:
    clock.advance(30)
    again = step_up(services, signed_in, ada.code(clock()))
    assert again.refresh_token == signed_in.refresh_token
    refreshed = services.login.refresh(signed_in.refresh_token, CLIENT)
    assert identity_of(services, refreshed).auth_time == int(clock())


def test_a_code_that_was_used_to_sign_in_steps_nothing_up_nor_the_other_way_round(
    services: Services, ada: Person, signed_in: SignedIn
) -> None:
    now = services.clock()
    ensure_refused(InvalidCode, lambda: step_up(services, signed_in, ada.code(now)))
    step_up(services, signed_in, ada.code(now, 1))
    ensure_refused(InvalidCode, lambda: sign_in(services, ada, steps=1))


def test_the_code_of_another_user_steps_nothing_up(services: Services, signed_in: SignedIn, clock: Clock) -> None:
    bob = register(services, "bob")
    ensure_refused(InvalidCode, lambda: step_up(services, signed_in, bob.code(clock())))
    assert sign_in(services, bob)


def test_a_session_that_has_ended_is_not_stepped_up_and_spends_nothing(
    services: Services, ada: Person, signed_in: SignedIn, clock: Clock
) -> None:
    assert signed_in.recovery_codes
    code = signed_in.recovery_codes[0]
    identity = identity_of(services, signed_in)
    services.login.sign_out(identity, CLIENT, everywhere=False)
    ensure_refused(InvalidToken, lambda: services.login.step_up(identity, recovery(code), CLIENT))
    clock.advance(30)
    assert services.login.complete(log_in(services, ada), recovery(code), CLIENT)


def test_a_disabled_user_steps_nothing_up(services: Services, ada: Person, signed_in: SignedIn, rows: Rows) -> None:
    rows("UPDATE mfa_users SET disabled_at = created_at")
    ensure_refused(InvalidToken, lambda: step_up(services, signed_in, ada.code(services.clock(), 1)))


# ── replacing ────────────────────────────────────────────────────────────────────────────────────


def test_the_old_authenticator_works_until_the_new_one_is_confirmed(
    services: Services, ada: Person, signed_in: SignedIn, rows: Rows, clock: Clock
) -> None:
    new = replace(services, rows, ada)
    clock.advance(30)
    assert sign_in(services, ada)
    ensure_refused(InvalidCode, lambda: sign_in(services, new))
    confirm(services, rows, new)
    clock.advance(30)
    assert sign_in(services, new)
    ensure_refused(InvalidCode, lambda: sign_in(services, ada, steps=1))
    assert len(rows("SELECT * FROM mfa_secrets")) == 1
    assert events(rows).count("factor.replaced") == 1


def test_a_replacement_that_is_abandoned_changes_nothing(
    services: Services, ada: Person, signed_in: SignedIn, rows: Rows, clock: Clock
) -> None:
    replace(services, rows, ada)
    for _ in range(3):
        clock.advance(3600)
        assert sign_in(services, ada)


def test_the_code_that_confirms_is_used_up(services: Services, ada: Person, signed_in: SignedIn, rows: Rows) -> None:
    new = replace(services, rows, ada)
    confirm(services, rows, new)
    ensure_refused(InvalidCode, lambda: sign_in(services, new))
    assert sign_in(services, new, steps=1)


def test_a_code_of_the_old_one_confirms_nothing(
    services: Services, ada: Person, signed_in: SignedIn, rows: Rows
) -> None:
    replace(services, rows, ada)
    ensure_refused(InvalidCode, lambda: confirm(services, rows, ada, steps=1))
    assert sign_in(services, ada, steps=1)


def test_a_new_secret_that_waited_ten_minutes_is_refused_and_wiped(
    services: Services, ada: Person, signed_in: SignedIn, rows: Rows, clock: Clock
) -> None:
    new = replace(services, rows, ada)
    clock.advance(600)
    ensure_refused(NothingToConfirm, lambda: confirm(services, rows, new))
    assert rows("SELECT id FROM mfa_secrets WHERE confirmed_at IS NULL") == []
    assert sign_in(services, ada)


def test_within_ten_minutes_it_is_confirmed(
    services: Services, ada: Person, signed_in: SignedIn, rows: Rows, clock: Clock
) -> None:
    new = replace(services, rows, ada)
    clock.advance(599)
    confirm(services, rows, new)


def test_beginning_again_replaces_what_was_shown_before(
    services: Services, ada: Person, signed_in: SignedIn, rows: Rows
) -> None:
    first, second = (replace(services, rows, ada) for _ in range(2))
    ensure_refused(InvalidCode, lambda: confirm(services, rows, first))
    confirm(services, rows, second)


def test_of_ten_that_begin_at_once_one_secret_waits(
    services: Services, ada: Person, signed_in: SignedIn, rows: Rows
) -> None:
    outcomes = at_once(10, lambda _: replace(services, rows, ada))
    assert all(isinstance(outcome, Person) for outcome in outcomes), outcomes
    assert len(rows("SELECT id FROM mfa_secrets WHERE confirmed_at IS NULL")) == 1


def test_with_nothing_begun_there_is_nothing_to_confirm_and_nothing_is_counted(
    services: Services, ada: Person, signed_in: SignedIn, rows: Rows
) -> None:
    ensure_refused(NothingToConfirm, lambda: confirm(services, rows, ada, steps=1))
    assert rows("SELECT * FROM mfa_locks") == []


def test_confirming_twice_at_once_replaces_once(
    services: Services, ada: Person, signed_in: SignedIn, rows: Rows
) -> None:
    new = replace(services, rows, ada)
    outcomes = at_once(5, lambda _: confirm(services, rows, new))
    assert sum(isinstance(outcome, NothingToConfirm) for outcome in outcomes) == 4, outcomes
    assert len(rows("SELECT * FROM mfa_secrets")) == 1


def test_confirming_ends_devices_pending_tokens_and_sessions_without_a_factor(
    services: Services, ada: Person, rows: Rows
) -> None:
    device = trust_device(services, ada)
    weak = services.login.begin("ada", ada.password, CLIENT, device)
    strong, pending = sign_in(services, ada, steps=1), log_in(services, ada)
    assert isinstance(weak, SignedIn)
    new = replace(services, rows, ada)
    confirm(services, rows, new)
    assert (is_live(services, weak), is_live(services, strong)) == (False, True)
    ensure_refused(InvalidRefreshToken, lambda: services.login.refresh(weak.refresh_token, CLIENT))
    ensure_refused(InvalidPendingToken, lambda: verify(services, pending, new, steps=1))
    assert isinstance(services.login.begin("ada", ada.password, CLIENT, device), MFAPending)


def test_recovery_codes_outlive_a_replacement(services: Services, ada: Person, signed_in: SignedIn, rows: Rows) -> None:
    assert signed_in.recovery_codes
    confirm(services, rows, replace(services, rows, ada))
    assert services.login.complete(log_in(services, ada), recovery(signed_in.recovery_codes[0]), CLIENT)


# ── one place counts ─────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("last", ["verify", "step_up", "confirm"])
def test_verify_step_up_and_confirm_share_one_counter_and_one_lock(
    services: Services, ada: Person, signed_in: SignedIn, rows: Rows, clock: Clock, last: str
) -> None:
    new = replace(services, rows, ada)
    acts = {
        "verify": lambda steps: verify(services, log_in(services, ada), ada, steps),
        "step_up": lambda steps: step_up(services, signed_in, ada.code(clock(), steps)),
        "confirm": lambda steps: confirm(services, rows, new, steps),
    }
    for act in [*acts.values(), acts["verify"], acts[last]]:
        ensure_refused(InvalidCode, lambda act=act: act(9))
    assert rows("SELECT subject, failures FROM mfa_locks") == [{"subject": "totp", "failures": 5}]
    for act in acts.values():
        ensure_refused(InvalidCode, lambda act=act: act(1))
    assert rows("SELECT failures FROM mfa_locks") == [{"failures": 5}]
    clock.advance(1)
    assert acts[last](1) is not False
    assert rows("SELECT * FROM mfa_locks") == []


def test_a_disabled_factor_is_disabled_for_all_of_them(
    services: Services, ada: Person, signed_in: SignedIn, rows: Rows, clock: Clock
) -> None:
    new = replace(services, rows, ada)
    ensure_refused(InvalidCode, lambda: step_up(services, signed_in, "00000x"))
    rows("UPDATE mfa_locks SET failures = 99")
    ensure_refused(InvalidCode, lambda: confirm(services, rows, new, steps=9))
    ensure_refused(InvalidCode, lambda: step_up(services, signed_in, ada.code(clock(), 1)))
    ensure_refused(InvalidCode, lambda: confirm(services, rows, new))
    ensure_refused(InvalidCode, lambda: sign_in(services, ada, steps=1))


def test_wrong_recovery_codes_are_counted_at_step_up_too(
    services: Services, ada: Person, signed_in: SignedIn, rows: Rows
) -> None:
    identity = identity_of(services, signed_in)
    for _ in range(5):
        ensure_refused(InvalidRecoveryCode, lambda: services.login.step_up(identity, recovery("x"), CLIENT))
    assert signed_in.recovery_codes
    right = recovery(signed_in.recovery_codes[0])
    ensure_refused(InvalidRecoveryCode, lambda: services.login.step_up(identity, right, CLIENT))
    ensure_refused(InvalidRecoveryCode, lambda: services.login.complete(log_in(services, ada), right, CLIENT))


# ── reset, remove ────────────────────────────────────────────────────────────────────────────────


def test_a_reset_ends_all_that_rested_on_the_factors(services: Services, ada: Person, rows: Rows) -> None:
    device = trust_device(services, ada)
    signed_in, pending = sign_in(services, ada, steps=1), log_in(services, ada)
    with another(services) as worker:
        worker.administration.reset_factors(By(CLIENT, reason="phone lost"), user_id_of(rows, "ada"))
    assert not is_live(services, signed_in)
    ensure_refused(InvalidRefreshToken, lambda: services.login.refresh(signed_in.refresh_token, CLIENT))
    ensure_refused(InvalidPendingToken, lambda: verify(services, pending, ada, steps=2))
    begun = services.login.begin("ada", ada.password, CLIENT, device)
    assert isinstance(begun, MFAPending)
    assert begun.methods == ()
    for table in ("mfa_secrets", "mfa_recovery_codes", "mfa_devices", "mfa_locks"):
        assert rows(f"SELECT user_id FROM {table}") == []


def test_after_a_reset_a_password_alone_still_enrols_nothing(
    services: Services, ada: Person, signed_in: SignedIn, rows: Rows
) -> None:
    services.administration.reset_factors(By(CLIENT, reason="phone lost"), user_id_of(rows, "ada"))
    token = log_in(services, ada)
    ensure_refused(FactorExists, lambda: services.login.enrol(token, CLIENT))
    ensure_refused(InvalidCode, lambda: verify(services, token, ada, steps=1))


def test_a_reset_takes_the_waiting_replacement_too(
    services: Services, ada: Person, signed_in: SignedIn, rows: Rows
) -> None:
    new = replace(services, rows, ada)
    services.administration.reset_factors(By(CLIENT, reason="phone lost"), user_id_of(rows, "ada"))
    ensure_refused(NothingToConfirm, lambda: confirm(services, rows, new))
    ensure_refused(InvalidCode, lambda: sign_in(services, new))


def test_a_reset_of_nobody_is_refused_and_does_nothing(
    services: Services, ada: Person, signed_in: SignedIn, rows: Rows
) -> None:
    before = events(rows)
    by = By(CLIENT, reason="typing error")
    ensure_refused(NotFound, lambda: services.administration.reset_factors(by, "x" * 22))
    assert events(rows) == before
    assert is_live(services, signed_in)


def test_nobody_goes_without_a_factor(services: Services, ada: Person, signed_in: SignedIn, rows: Rows) -> None:
    ensure_refused(MFARequired, lambda: services.factors.remove(acting(services, user_id_of(rows, "ada")), CLIENT))
    assert services.factors.summary(user_id_of(rows, "ada")).policy == "required"
    assert sign_in(services, ada, steps=1)


def test_a_disabled_user_changes_no_factor(services: Services, ada: Person, signed_in: SignedIn, rows: Rows) -> None:
    new = replace(services, rows, ada)
    rows("UPDATE mfa_users SET disabled_at = created_at")
    identity = acting(services, user_id_of(rows, "ada"))
    for act in changes_of(services, identity, new):
        ensure_refused(InvalidToken, act)


def test_a_session_that_ended_since_the_guard_looked_changes_no_factor(
    services: Services, ada: Person, signed_in: SignedIn, rows: Rows
) -> None:
    new = replace(services, rows, ada)
    identity = acting(services, user_id_of(rows, "ada"))
    before = rows("SELECT digest FROM mfa_recovery_codes ORDER BY digest")
    services.login.sign_out(identity, CLIENT, everywhere=True)
    for act in changes_of(services, identity, new):
        ensure_refused(InvalidToken, act)
    assert rows("SELECT digest FROM mfa_recovery_codes ORDER BY digest") == before
    assert sign_in(services, ada, steps=1)


def changes_of(services: Services, identity: Identity, new: Person) -> list[Callable[[], object]]:
    return [
        lambda: services.factors.replace(identity, CLIENT),
        lambda: services.factors.confirm_replacement(identity, new.code(services.clock()), CLIENT),
        lambda: services.factors.renew_recovery_codes(identity, CLIENT),
        lambda: services.factors.remove(identity, CLIENT),
    ]


def test_the_log_keeps_every_factor_that_was_ever_bound(
    services: Services, ada: Person, signed_in: SignedIn, rows: Rows
) -> None:
    confirm(services, rows, replace(services, rows, ada))
    services.factors.renew_recovery_codes(acting(services, user_id_of(rows, "ada")), CLIENT)
    services.administration.reset_factors(By(CLIENT, reason="phone lost"), user_id_of(rows, "ada"))
    assert [name for name in events(rows) if name.startswith(("factor.", "recovery_codes."))] == [
        "factor.confirmed",
        "recovery_codes.issued",
        "factor.enrolled",
        "factor.replaced",
        "recovery_codes.issued",
        "factor.removed",
    ]


# ── fixtures and helpers ─────────────────────────────────────────────────────────────────────────


@pytest.fixture
def ada(services: Services) -> Person:
    return register(services, "ada")


@pytest.fixture
def signed_in(services: Services, ada: Person) -> SignedIn:
    return sign_in(services, ada)


def step_up(services: Services, signed_in: SignedIn, code: str) -> SignedIn:
    return services.login.step_up(identity_of(services, signed_in), totp(code), CLIENT)


def replace(services: Services, rows: Rows, person: Person) -> Person:
    """Begin to replace the authenticator; returns the same person with the new phone."""
    secret = services.factors.replace(acting(services, user_id_of(rows, person.username)), CLIENT).secret
    return Person(person.username, person.password, person.email, secret)


def confirm(services: Services, rows: Rows, person: Person, steps: int = 0) -> None:
    code = person.code(services.clock(), steps)
    services.factors.confirm_replacement(acting(services, user_id_of(rows, person.username)), code, CLIENT)
