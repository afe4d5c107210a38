"""Notices: what a user should hear of, once, after it is true, and without anybody waiting for it."""

import functools
import threading
import time
from datetime import UTC, datetime

import pytest

from mfa_service.errors import InvalidCode, InvalidCredentials, InvalidRecoveryCode, RefreshReused
from mfa_service.services import Services
from mfa_service.services.administration import By
from mfa_service.services.audit import ClientInfo, Event, Recorded
from mfa_service.services.login import SignedIn
from mfa_service.services.notices import Notice
from tests.conftest import Clock
from tests.factories import PASSWORD, Person
from tests.services import (
    CLIENT,
    Rows,
    acting,
    ensure_refused,
    identity_of,
    log_in,
    recovery,
    register,
    sign_in,
    totp,
    trust_device,
    user_id_of,
)

#: Another browser than that of CLIENT.
ELSEWHERE = ClientInfo("198.51.100.7", "198.51.100.7", "another browser", "request-9")

# ── which ────────────────────────────────────────────────────────────────────────────────────────


def test_the_first_sign_in_tells_of_the_factor_the_codes_and_the_new_client(
    services: Services, heard: list[Notice]
) -> None:
    sign_in(services, register(services))
    assert told(services, heard) == ["factor.confirmed", "recovery_codes.issued", "login.completed"]


def test_a_sign_in_from_a_client_that_is_known_is_no_news(services: Services, ada: Person, heard: list[Notice]) -> None:
    for steps in (1, 2):
        sign_in(services, ada, steps)
    assert told(services, heard) == []


def test_a_sign_in_from_a_new_client_is_news_once(services: Services, ada: Person, heard: list[Notice]) -> None:
    for steps in (1, 2):
        code = totp(ada.code(services.clock(), steps))
        services.login.complete(log_in(services, ada), code, ELSEWHERE)
    assert told(services, heard) == ["login.completed"]
    assert heard[0].client == ELSEWHERE


def test_a_client_that_is_known_of_another_user_is_new(services: Services, ada: Person, heard: list[Notice]) -> None:
    sign_in(services, register(services, "bob"))
    assert told(services, heard)[-1] == "login.completed"
    assert {notice.username for notice in heard} == {"bob"}


def test_a_recovery_code_that_was_used_is_news_with_what_is_left(
    services: Services, codes: tuple[str, ...], ada: Person, heard: list[Notice]
) -> None:
    services.login.complete(log_in(services, ada), recovery(codes[0]), CLIENT)
    ensure_refused(
        InvalidRecoveryCode, lambda: services.login.complete(log_in(services, ada), recovery(codes[0]), CLIENT)
    )
    assert told(services, heard) == ["recovery_code.used"]
    assert heard[0].detail == {"left": 9}


def test_a_factor_that_was_replaced_or_removed_is_news_and_one_that_waits_is_not(
    services: Services, ada: Person, rows: Rows, heard: list[Notice]
) -> None:
    user_id = user_id_of(rows, "ada")
    new = Person("ada", "", "", services.factors.replace(acting(services, user_id), CLIENT).secret)
    services.factors.confirm_replacement(acting(services, user_id), new.code(services.clock()), CLIENT)
    services.factors.renew_recovery_codes(acting(services, user_id), CLIENT)
    services.administration.reset_factors(By(CLIENT, reason="phone lost"), user_id)
    assert told(services, heard) == ["factor.replaced", "recovery_codes.issued", "factor.removed"]


def test_a_password_that_was_changed_is_news_and_a_wrong_try_is_not(
    services: Services, ada: Person, rows: Rows, heard: list[Notice]
) -> None:
    user_id = user_id_of(rows, "ada")
    (session_id,) = (row["id"] for row in rows("SELECT id FROM mfa_sessions WHERE revoked_at IS NULL"))
    ensure_refused(
        InvalidCredentials,
        lambda: services.accounts.change_password(user_id, session_id, "wrong", "engine-no-2-1822", CLIENT),
    )
    services.accounts.change_password(user_id, session_id, PASSWORD, "engine-no-2-1822", CLIENT)
    assert told(services, heard) == ["password.changed"]


def test_ten_wrong_codes_after_a_right_password_are_news_once_and_a_hundred_once_more(
    services: Services, ada: Person, rows: Rows, clock: Clock, heard: list[Notice]
) -> None:
    for _ in range(15):
        guess(services, ada)
        clock.advance(900)
    rows("UPDATE mfa_locks SET failures = 99")
    for _ in range(2):
        guess(services, ada)
    assert told(services, heard) == ["factor.attacked", "factor.disabled"]


def test_a_copied_refresh_token_is_news(services: Services, ada: Person, clock: Clock, heard: list[Notice]) -> None:
    signed_in = sign_in(services, ada, steps=1)
    services.login.refresh(signed_in.refresh_token, CLIENT)
    clock.advance(11)
    ensure_refused(RefreshReused, lambda: services.login.refresh(signed_in.refresh_token, CLIENT))
    assert told(services, heard) == ["session.reused"]


def test_wrong_passwords_refreshes_and_step_ups_are_none(
    services: Services, ada: Person, clock: Clock, heard: list[Notice]
) -> None:
    signed_in = sign_in(services, ada, steps=1)
    for _ in range(6):
        ensure_refused(InvalidCredentials, lambda: services.login.begin("ada", "wrong-password", CLIENT))
        ensure_refused(InvalidCredentials, lambda: services.login.begin("nobody", "wrong-password", CLIENT))
    services.login.refresh(signed_in.refresh_token, CLIENT)
    clock.advance(60)
    services.login.step_up(identity_of(services, signed_in), totp(ada.code(clock())), CLIENT)
    assert told(services, heard) == []


# ── what they say ────────────────────────────────────────────────────────────────────────────────


def test_a_notice_says_to_whom_when_and_from_where(
    services: Services, ada: Person, rows: Rows, clock: Clock, heard: list[Notice]
) -> None:
    services.factors.renew_recovery_codes(acting(services, user_id_of(rows, "ada")), ELSEWHERE)
    told(services, heard)
    [notice] = heard
    assert (notice.event, notice.username, notice.email) == (Event.RECOVERY_CODES_ISSUED, "ada", ada.email)
    assert (notice.at.timestamp(), notice.client) == (clock(), ELSEWHERE)


def test_no_notice_holds_a_secret(services: Services, ada: Person, rows: Rows, heard: list[Notice]) -> None:
    device = trust_device(services, ada, steps=1)
    signed_in = services.login.begin("ada", ada.password, ELSEWHERE, device)
    assert isinstance(signed_in, SignedIn)
    user_id = user_id_of(rows, "ada")
    codes = services.factors.renew_recovery_codes(acting(services, user_id), CLIENT)
    services.login.complete(log_in(services, ada), recovery(codes[0]), CLIENT)
    new = services.factors.replace(acting(services, user_id), CLIENT).secret
    services.factors.confirm_replacement(
        acting(services, user_id), Person("", "", "", new).code(services.clock()), CLIENT
    )
    kept = services.login.complete(log_in(services, ada), recovery(codes[1]), CLIENT)
    session_id = identity_of(services, kept).session_id
    services.accounts.change_password(user_id, session_id, PASSWORD, "engine-no-2-1822", CLIENT)
    assert len(told(services, heard)) == 6
    secrets = [device, *codes, new, ada.secret, PASSWORD, "engine-no-2-1822", signed_in.access_token]
    secrets += [signed_in.refresh_token, ada.code(services.clock(), 1)]
    assert [secret for secret in secrets if secret in repr(heard)] == []


# ── after the commit, and in nobody's way ────────────────────────────────────────────────────────


def test_when_a_notice_arrives_what_it_tells_of_is_on_disk(services: Services, ada: Person, rows: Rows) -> None:
    found: list[int] = []

    def look(_sender: object, notice: Notice) -> None:
        found.append(len(rows("SELECT id FROM mfa_events WHERE event = :name", name=notice.event.value)))

    services.notices.signal.connect(look, weak=False)
    services.factors.renew_recovery_codes(acting(services, user_id_of(rows, "ada")), CLIENT)
    told(services, [])
    assert found == [2]


def test_nothing_is_told_of_what_was_rolled_back(services: Services, ada: Person, heard: list[Notice]) -> None:
    def crash() -> None:
        services.audit.record(Event.PASSWORD_CHANGED, CLIENT, user_id="x" * 22)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        services.unit.run(crash, writes=True)
    assert told(services, heard) == []


@pytest.mark.faults("Q18")
def test_a_slow_listener_delays_nothing(services: Services, ada: Person, rows: Rows) -> None:
    go_on, arrived = threading.Event(), threading.Event()

    def dawdle(_sender: object, notice: Notice) -> None:
        arrived.set()
        go_on.wait(30)

    services.notices.signal.connect(dawdle, weak=False)
    began = time.monotonic()
    for _ in range(3):
        services.factors.renew_recovery_codes(acting(services, user_id_of(rows, "ada")), CLIENT)
    sign_in(services, ada, steps=1)
    assert time.monotonic() - began < 10
    assert arrived.wait(10)
    go_on.set()
    told(services, [])


@pytest.mark.faults("Q18")
def test_a_failing_listener_fails_nothing_and_keeps_nobody_from_hearing(
    services: Services, ada: Person, rows: Rows, caplog: pytest.LogCaptureFixture
) -> None:
    heard: list[Notice] = []

    def fail(_sender: object, notice: Notice) -> None:
        raise ZeroDivisionError

    for _ in range(12):
        services.notices.signal.connect(functools.partial(fail), weak=False)
    for _ in range(3):
        services.notices.signal.connect(lambda _sender, notice: heard.append(notice), weak=False)
    for _ in range(2):
        services.factors.renew_recovery_codes(acting(services, user_id_of(rows, "ada")), CLIENT)
    told(services, heard)
    assert len(heard) == 6
    assert "a listener of notices failed" in caplog.text


@pytest.mark.faults("Q18")
def test_when_too_many_wait_the_newest_are_dropped_and_logged(
    services: Services, ada: Person, clock: Clock, rows: Rows, caplog: pytest.LogCaptureFixture
) -> None:
    flood(services, clock, rows).set()
    assert "too many notices wait" in caplog.text
    assert sign_in(services, ada, steps=1)
    told(services, [])


def test_closing_a_service_tells_what_still_waits(services: Services, ada: Person, rows: Rows) -> None:
    heard: list[Notice] = []

    def take_a_while(_sender: object, notice: Notice) -> None:
        time.sleep(0.1)
        heard.append(notice)

    services.notices.signal.connect(take_a_while, weak=False)
    for _ in range(3):
        services.factors.renew_recovery_codes(acting(services, user_id_of(rows, "ada")), CLIENT)
    services.notices.close()
    when_closed = len(heard)
    told(services, heard)
    assert when_closed == 3


@pytest.mark.faults("Q18")
def test_closing_a_service_whose_queue_is_full_and_whose_listener_hangs_takes_a_few_seconds(
    services: Services, ada: Person, clock: Clock, rows: Rows
) -> None:
    go_on = flood(services, clock, rows)
    closing = threading.Thread(target=services.notices.close, daemon=True)
    closing.start()
    closing.join(8)
    is_closed = not closing.is_alive()
    go_on.set()
    assert is_closed


def test_a_service_that_was_closed_and_goes_on_tells_what_comes_then(
    services: Services, ada: Person, rows: Rows, heard: list[Notice]
) -> None:
    """As after a command that a host runs within its own process."""
    for count in (1, 2):
        services.factors.renew_recovery_codes(acting(services, user_id_of(rows, "ada")), CLIENT)
        assert told(services, heard) == ["recovery_codes.issued"] * count


def test_where_nobody_listens_there_is_no_thread(services: Services, ada: Person) -> None:
    before = threading.active_count()
    sign_in(services, ada, steps=1)
    assert threading.active_count() == before


# ── fixtures and helpers ─────────────────────────────────────────────────────────────────────────


@pytest.fixture
def ada(services: Services, codes: tuple[str, ...], _ada: Person) -> Person:
    """Somebody who has signed in before, from CLIENT."""
    return _ada


@pytest.fixture
def _ada(services: Services) -> Person:
    return register(services, "ada")


@pytest.fixture
def codes(services: Services, _ada: Person) -> tuple[str, ...]:
    shown = sign_in(services, _ada).recovery_codes
    assert shown
    return shown


@pytest.fixture
def heard(request: pytest.FixtureRequest, services: Services) -> list[Notice]:
    """What is told from here on."""
    if "ada" in request.fixturenames:
        request.getfixturevalue("ada")
    notices: list[Notice] = []
    services.notices.signal.connect(lambda _sender, notice: notices.append(notice), weak=False)
    return notices


def flood(services: Services, clock: Clock, rows: Rows) -> threading.Event:
    """More notices than may wait, to a listener that waits for what is returned."""
    go_on = threading.Event()
    services.notices.signal.connect(lambda _sender, notice: go_on.wait(60), weak=False)
    at = datetime.fromtimestamp(clock(), UTC)
    record = Recorded(Event.PASSWORD_CHANGED, at, user_id_of(rows, "ada"), CLIENT, {})
    services.audit.publish([record] * 1100)
    return go_on


def told(services: Services, heard: list[Notice]) -> list[str]:
    """The events that were told of, once all have been."""
    services.notices.close()
    for thread in threading.enumerate():
        if thread.name == "notices":
            thread.join(10)
    return [notice.event.value for notice in heard]


def guess(services: Services, person: Person) -> None:
    code = totp(person.code(services.clock(), 9))
    ensure_refused(InvalidCode, lambda: services.login.complete(log_in(services, person), code, CLIENT))
