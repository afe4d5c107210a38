"""Sessions: an access token is good for as long as its session and its user are."""

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import event

from mfa_service.crypto.tokens import Identity
from mfa_service.errors import InvalidPendingToken, InvalidRefreshToken, InvalidToken, NotFound, NoToken
from mfa_service.services import Services
from mfa_service.services.audit import ClientInfo
from mfa_service.services.factors import Proof
from mfa_service.services.login import MFAPending, SignedIn
from mfa_service.services.sessions import Account, Found
from tests.conftest import Clock
from tests.factories import Person
from tests.services import (
    CLIENT,
    Rows,
    another,
    at_once,
    ensure_refused,
    events,
    identity_of,
    is_live,
    log_in,
    register,
    sign_in,
    totp,
    trust_device,
    user_id_of,
    verify,
)


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


def test_an_access_token_ends_after_an_hour_sharp(services: Services, ada: Person, clock: Clock) -> None:
    token = sign_in(services, ada).access_token
    clock.advance(3599)
    assert services.verifier.access(token, now=clock())
    clock.advance(1)
    with pytest.raises(InvalidToken):
        services.verifier.access(token, now=clock())


def test_a_session_that_is_not_refreshed_ends_after_a_day_sharp(
    services: Services, identity: Identity, clock: Clock
) -> None:
    clock.advance(86399.9)
    assert services.sessions.find_account(identity)
    clock.advance(0.1)
    assert services.sessions.find_account(identity) is None


def test_looking_does_not_keep_a_session_from_ending(services: Services, identity: Identity, clock: Clock) -> None:
    for _ in range(24):
        assert services.sessions.find_account(identity)
        clock.advance(3600)
    assert services.sessions.find_account(identity) is None


def test_ending_one_session_leaves_the_others(services: Services, ada: Person, rows: Rows) -> None:
    first, second = (identity_of(services, sign_in(services, ada, steps)) for steps in (0, 1))
    rows("UPDATE mfa_sessions SET revoked_at = created_at WHERE id = :id", id=first.session_id)
    assert services.sessions.find_account(first) is None
    assert services.sessions.find_account(second)


def test_a_session_belongs_to_its_user(services: Services, identity: Identity) -> None:
    bob = register(services, "bob")
    other = identity_of(services, sign_in(services, bob))
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
    event.listen(services.single, "before_cursor_execute", lambda *call: statements.append(call[2]))
    services.sessions.find_account(identity)
    assert [statement.split()[0] for statement in statements if not statement.startswith("BEGIN")] == ["SELECT"]
    assert rows("SELECT * FROM mfa_sessions") == before


def test_a_session_keeps_where_it_was_opened_from(services: Services, ada: Person, rows: Rows, clock: Clock) -> None:
    client = ClientInfo("2001:db8::1", "2001:db8::/64", "Mozilla/5.0", "request-7")
    services.login.complete(log_in(services, ada), totp(ada.code(clock())), client)
    [session] = rows("SELECT * FROM mfa_sessions")
    assert (session["address"], session["user_agent"]) == ("2001:db8::1", "Mozilla/5.0")


def test_the_id_of_a_session_is_random(services: Services, rows: Rows, ada: Person) -> None:
    for steps in range(-2, 3):
        sign_in(services, ada, steps)
    ids = {row["id"] for row in rows("SELECT id FROM mfa_sessions")}
    assert len(ids) == 5
    assert {len(session_id) for session_id in ids} == {22}


# ── last seen ────────────────────────────────────────────────────────────────────────────────────


def test_that_a_session_was_seen_is_written_once_a_minute_at_most(
    services: Services, identity: Identity, rows: Rows, clock: Clock
) -> None:
    with statements_of(services) as said:
        for _ in range(12):  # two minutes
            clock.advance(10)
            assert services.sessions.find_account(identity)
    assert said.count("UPDATE") == 2
    assert seen_at(rows) == clock()


def test_within_the_minute_the_time_stays_as_it_was(
    services: Services, identity: Identity, rows: Rows, clock: Clock
) -> None:
    before = clock()
    clock.advance(59.9)
    services.sessions.find_account(identity)
    assert seen_at(rows) == before
    clock.advance(0.1)
    services.sessions.find_account(identity)
    assert seen_at(rows) == before + 60


def test_a_session_that_has_ended_is_not_seen(services: Services, identity: Identity, rows: Rows, clock: Clock) -> None:
    before = clock()
    rows("UPDATE mfa_sessions SET revoked_at = created_at")
    clock.advance(3600)
    assert services.sessions.find_account(identity) is None
    assert seen_at(rows) == before


def test_a_database_that_can_only_be_read_turns_nobody_away(
    services: Services, identity: Identity, rows: Rows, clock: Clock
) -> None:
    before = clock()
    clock.advance(3600)
    with another(services, database_url=read_only(services.settings.database)) as replica:
        assert replica.sessions.find_account(identity) == Account("ada", "someone@example.com", mfa_enabled=True)
    assert seen_at(rows) == before


def test_a_database_that_can_only_be_read_is_asked_to_write_once_a_minute(
    services: Services, identity: Identity, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    clock.advance(3600)
    with another(services, database_url=read_only(services.settings.database)) as replica:
        for seconds in (0, 1, 58, 1):
            clock.advance(seconds)
            assert replica.sessions.find_account(identity)
    assert len([record for record in caplog.records if "out of order" in record.message]) == 2


# ── lists ────────────────────────────────────────────────────────────────────────────────────────


def test_a_list_shows_the_live_sessions_of_its_user_newest_first(
    services: Services, ada: Person, rows: Rows, clock: Clock
) -> None:
    made = []
    for _ in range(3):
        made.append(identity_of(services, sign_in(services, ada)).session_id)
        clock.advance(30)
    sign_in(services, register(services, "bob"))
    user_id = user_id_of(rows, "ada")
    services.sessions.revoke(user_id, made[1], CLIENT)
    sessions, cursor = services.sessions.list(user_id, None)
    assert [session.id for session in sessions] == [made[2], made[0]]
    assert cursor is None
    assert {(session.address, session.user_agent) for session in sessions} == {("192.0.2.1", "tests")}


@pytest.mark.parametrize(("count", "sizes"), [(1, [1]), (50, [50]), (51, [50, 1]), (120, [50, 50, 20])])
def test_a_long_list_comes_in_pages_of_fifty_and_each_session_once(
    services: Services, identity: Identity, rows: Rows, count: int, sizes: list[int]
) -> None:
    multiply(rows, count - 1)
    pages = pages_of(services, identity.user_id)
    assert [len(page) for page in pages] == sizes
    expected = [row["id"] for row in rows("SELECT id, created_at FROM mfa_sessions ORDER BY created_at DESC, id DESC")]
    listed = [session_id for page in pages for session_id in page]
    assert set(listed) == set(expected)
    assert len(listed) == count
    assert listed[0] == identity.session_id


def test_a_session_that_begins_or_ends_meanwhile_moves_no_other_off_the_pages(
    services: Services, ada: Person, identity: Identity, rows: Rows, clock: Clock
) -> None:
    multiply(rows, 60)
    first, cursor = services.sessions.list(identity.user_id, None)
    clock.advance(30)
    sign_in(services, ada)
    services.sessions.revoke(identity.user_id, first[0].id, CLIENT)
    second, end = services.sessions.list(identity.user_id, cursor)
    assert end is None
    assert len({session.id for session in [*first, *second]}) == 61


def test_a_page_goes_on_although_the_row_it_ended_with_is_gone(services: Services, identity: Identity) -> None:
    for _ in range(60):
        services.unit.run(lambda: services.sessions.open(identity.user_id, ("pwd",), CLIENT), writes=True)
    first, cursor = services.sessions.list(identity.user_id, None)
    services.sessions.revoke(identity.user_id, first[-1].id, CLIENT)
    second, _ = services.sessions.list(identity.user_id, cursor)
    assert len(second) == 11
    assert not {row.id for row in first} & {row.id for row in second}


def test_logging_out_twice_at_once_is_no_mistake(services: Services, identity: Identity) -> None:
    at_once(8, lambda _: services.login.sign_out(identity, CLIENT, everywhere=False))
    assert services.sessions.find_account(identity) is None


@pytest.mark.parametrize("cursor", ["", "x", "x" * 22, "x" * 5000, "' OR 1=1 --", "\0"], ids=lambda c: ascii(c)[:12])
def test_a_cursor_that_was_never_given_leads_nowhere(services: Services, identity: Identity, cursor: str) -> None:
    assert services.sessions.list(identity.user_id, cursor) == ([], None)


def test_a_cursor_of_somebody_else_shows_nothing_of_theirs(
    services: Services, identity: Identity, clock: Clock
) -> None:
    clock.advance(30)
    foreign = identity_of(services, sign_in(services, register(services, "bob")))
    sessions, _ = services.sessions.list(identity.user_id, foreign.session_id)
    assert {session.user_id for session in sessions} <= {identity.user_id}
    assert services.sessions.list(foreign.user_id, identity.session_id) == ([], None)


# ── ending ───────────────────────────────────────────────────────────────────────────────────────


def test_a_session_is_ended_at_once_and_for_every_worker(services: Services, identity: Identity, rows: Rows) -> None:
    with another(services) as worker:
        assert worker.sessions.find_account(identity)
        services.sessions.revoke(identity.user_id, identity.session_id, CLIENT)
        assert worker.sessions.find_account(identity) is None
    assert events(rows)[-1] == "session.ended"


def test_what_is_not_a_live_session_of_theirs_nobody_ends(services: Services, identity: Identity, rows: Rows) -> None:
    foreign = identity_of(services, sign_in(services, register(services, "bob")))
    before = rows("SELECT * FROM mfa_sessions ORDER BY id")
    for session_id in (foreign.session_id, "x" * 22, "", "%", "\0"):
        ensure_refused(NotFound, lambda it=session_id: services.sessions.revoke(identity.user_id, it, CLIENT))
    assert rows("SELECT * FROM mfa_sessions ORDER BY id") == before
    services.sessions.revoke(identity.user_id, identity.session_id, CLIENT)
    ensure_refused(NotFound, lambda: services.sessions.revoke(identity.user_id, identity.session_id, CLIENT))
    assert services.sessions.find_account(foreign)


def test_signing_out_ends_this_session_with_its_refresh_token_and_no_other(
    services: Services, ada: Person, rows: Rows
) -> None:
    this, other = (sign_in(services, ada, steps) for steps in (0, 1))
    services.login.sign_out(identity_of(services, this), CLIENT, everywhere=False)
    assert (is_live(services, this), is_live(services, other)) == (False, True)
    ensure_refused(InvalidRefreshToken, lambda: services.login.refresh(this.refresh_token, CLIENT))
    assert services.login.refresh(other.refresh_token, CLIENT)
    assert "session.ended" in events(rows)


def test_signing_out_everywhere_ends_sessions_devices_and_pending_tokens_of_this_user_alone(
    services: Services, ada: Person, rows: Rows
) -> None:
    bob = sign_in(services, register(services, "bob"))
    device = trust_device(services, ada)
    signed_in = [sign_in(services, ada, steps) for steps in (1, 2)]
    pending = log_in(services, ada)
    services.login.sign_out(identity_of(services, signed_in[0]), CLIENT, everywhere=True)
    for one in signed_in:
        assert not is_live(services, one)
        ensure_refused(InvalidRefreshToken, lambda one=one: services.login.refresh(one.refresh_token, CLIENT))
    ensure_refused(InvalidPendingToken, lambda: verify(services, pending, ada, steps=2))
    assert isinstance(services.login.begin("ada", ada.password, CLIENT, device), MFAPending)
    assert is_live(services, bob)
    assert events(rows).count("sessions.ended") == 1


# ── cookies ──────────────────────────────────────────────────────────────────────────────────────


def test_a_cookie_stands_for_its_session_and_finds_the_account_as_it_is_now(
    services: Services, ada: Person, rows: Rows
) -> None:
    signed_in = with_cookie(services, ada)
    identity, account = found_by(services, signed_in)
    assert identity == identity_of(services, signed_in)
    assert account == Account("ada", "someone@example.com", mfa_enabled=True)
    rows("UPDATE mfa_users SET email = 'new@example.com'")
    assert found_by(services, signed_in)[1].email == "new@example.com"


def test_a_cookie_is_made_only_for_who_wants_one(services: Services, ada: Person, rows: Rows) -> None:
    assert sign_in(services, ada).cookie is None
    assert rows("SELECT cookie_digest FROM mfa_sessions") == [{"cookie_digest": None}]
    begun = services.login.begin("ada", ada.password, CLIENT, wants_cookie=True)
    assert isinstance(begun, MFAPending)


def test_every_session_has_another_cookie_and_keeps_its_digest_only(
    services: Services, ada: Person, rows: Rows
) -> None:
    cookies = [with_cookie(services, ada, steps).cookie or "" for steps in range(-2, 3)]
    assert len(set(cookies)) == 5
    assert min(len(cookie) for cookie in cookies) >= 43
    kept = [row["cookie_digest"] for row in rows("SELECT cookie_digest FROM mfa_sessions")]
    assert len(set(kept)) == 5
    assert not set(kept) & set(cookies)
    assert not any(cookie in repr(rows(f"SELECT * FROM {table}")) for cookie in cookies for table in EVERYWHERE)


def test_a_step_up_replaces_the_cookie_it_came_with_and_no_other(
    services: Services, ada: Person, rows: Rows, clock: Clock
) -> None:
    first, other = (with_cookie(services, ada, steps) for steps in (-1, 0))
    before = first.cookie or ""
    found = services.login.find_by_cookie(before)
    assert found
    clock.advance(60)
    proof = Proof("totp", ada.code(clock()))
    with pytest.raises(NoToken):
        services.login.step_up(found[0], proof, CLIENT, other.cookie)
    stepped = services.login.step_up(found[0], proof, CLIENT, before)
    assert stepped.cookie not in (None, before)
    assert services.login.find_by_cookie(before) is None
    again = services.login.find_by_cookie(stepped.cookie or "")
    assert again
    assert (again[0].session_id, again[0].auth_time) == (found[0].session_id, int(clock()))
    assert services.login.find_by_cookie(other.cookie or "")


def test_a_step_up_without_a_cookie_leaves_it(services: Services, ada: Person, clock: Clock) -> None:
    cookie = with_cookie(services, ada).cookie or ""
    found = services.login.find_by_cookie(cookie)
    assert found
    clock.advance(60)
    assert services.login.step_up(found[0], Proof("totp", ada.code(clock())), CLIENT).cookie is None
    assert services.login.find_by_cookie(cookie)


def test_a_cookie_is_shown_by_no_repr(services: Services, ada: Person) -> None:
    signed_in = with_cookie(services, ada)
    assert signed_in.cookie
    assert signed_in.cookie not in repr(signed_in)


def test_no_other_text_finds_a_session(services: Services, ada: Person, rows: Rows) -> None:
    sign_in(services, ada)  # its digest is NULL
    signed_in = with_cookie(services, ada, 1)
    cookie = signed_in.cookie or ""
    [kept] = rows("SELECT id, cookie_digest FROM mfa_sessions WHERE cookie_digest IS NOT NULL")
    wrong = ["", "x", "%", "\0", "None", cookie[:-1], f"{cookie} ", cookie.swapcase(), kept["id"]]
    wrong += [str(kept["cookie_digest"]), signed_in.refresh_token, signed_in.access_token, "x" * 5000]
    for text in wrong:
        assert services.login.find_by_cookie(text) is None, text
    assert services.login.find_by_cookie(cookie)


def test_a_cookie_ends_with_its_session_for_every_worker(services: Services, ada: Person) -> None:
    first, second = (with_cookie(services, ada, steps) for steps in (0, 1))
    services.login.sign_out(identity_of(services, first), CLIENT, everywhere=False)
    with another(services) as worker:
        assert worker.login.find_by_cookie(first.cookie or "") is None
        assert worker.login.find_by_cookie(second.cookie or "")
    services.login.sign_out(identity_of(services, second), CLIENT, everywhere=True)
    assert services.login.find_by_cookie(second.cookie or "") is None


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE mfa_sessions SET revoked_at = created_at",
        "UPDATE mfa_users SET disabled_at = created_at",
        "DELETE FROM mfa_sessions",
        "UPDATE mfa_sessions SET expires_at = created_at",
        "UPDATE mfa_sessions SET cookie_digest = NULL",
    ],
    ids=["revoked", "user disabled", "deleted", "expired", "without a cookie"],
)
def test_a_cookie_of_what_has_ended_finds_nobody(services: Services, ada: Person, rows: Rows, change: str) -> None:
    signed_in = with_cookie(services, ada)
    rows(change)
    assert services.login.find_by_cookie(signed_in.cookie or "") is None


def test_coming_with_a_cookie_keeps_a_session_from_being_idle_but_not_from_its_end(
    services: Services, ada: Person, clock: Clock
) -> None:
    signed_in, began = with_cookie(services, ada), clock()
    while clock() + 86399 < began + services.settings.session_seconds:
        clock.advance(86399)
        assert services.login.find_by_cookie(signed_in.cookie or "")
    clock.advance(began + services.settings.session_seconds - clock() - 0.1)
    assert services.login.find_by_cookie(signed_in.cookie or "")
    clock.advance(0.1)
    assert services.login.find_by_cookie(signed_in.cookie or "") is None


def test_who_does_not_come_is_idle_after_a_day_sharp(services: Services, ada: Person, clock: Clock) -> None:
    signed_in = with_cookie(services, ada)
    clock.advance(86400)
    assert services.login.find_by_cookie(signed_in.cookie or "") is None


def test_coming_is_written_once_a_minute_at_most(services: Services, ada: Person, clock: Clock) -> None:
    signed_in = with_cookie(services, ada)
    with statements_of(services) as said:
        for _ in range(12):  # two minutes
            clock.advance(10)
            assert services.login.find_by_cookie(signed_in.cookie or "")
    assert said.count("UPDATE") == 2


def test_a_cookie_that_can_only_be_read_about_turns_nobody_away(services: Services, ada: Person, clock: Clock) -> None:
    signed_in = with_cookie(services, ada)
    clock.advance(3600)
    with another(services, database_url=read_only(services.settings.database)) as replica:
        assert replica.login.find_by_cookie(signed_in.cookie or "")


def test_refreshing_and_stepping_up_leave_the_cookie_as_it_is(services: Services, ada: Person, clock: Clock) -> None:
    signed_in = with_cookie(services, ada)
    services.login.refresh(signed_in.refresh_token, CLIENT)
    clock.advance(30)
    services.login.step_up(identity_of(services, signed_in), totp(ada.code(clock())), CLIENT)
    identity, _ = found_by(services, signed_in)
    assert identity.auth_time == int(clock())


def test_a_device_that_is_remembered_gives_a_cookie_too(services: Services, ada: Person) -> None:
    device = trust_device(services, ada)
    signed_in = services.login.begin("ada", ada.password, CLIENT, device, wants_cookie=True)
    assert isinstance(signed_in, SignedIn)
    assert found_by(services, signed_in)[0].amr == ("pwd",)


# ── fixtures and helpers ─────────────────────────────────────────────────────────────────────────


@pytest.fixture
def ada(services: Services) -> Person:
    return register(services, "ada")


@pytest.fixture
def identity(services: Services, ada: Person) -> Identity:
    return identity_of(services, sign_in(services, ada))


EVERYWHERE = ["mfa_sessions", "mfa_challenges", "mfa_devices", "mfa_users", "mfa_events"]


def with_cookie(services: Services, person: Person, steps: int = 0) -> SignedIn:
    """Sign in with a browser."""
    code = totp(person.code(services.clock(), steps))
    return services.login.complete(log_in(services, person), code, CLIENT, wants_cookie=True)


def found_by(services: Services, signed_in: SignedIn) -> Found:
    found = services.login.find_by_cookie(signed_in.cookie or "")
    assert found
    return found


@contextmanager
def statements_of(services: Services) -> Iterator[list[str]]:
    """The first words of what a service says to its database meanwhile."""
    said: list[str] = []

    def listen(*call: Any) -> None:
        said.append(call[2].split()[0])

    event.listen(services.engine, "before_cursor_execute", listen)
    yield said
    event.remove(services.engine, "before_cursor_execute", listen)


def multiply(rows: Rows, count: int) -> None:
    """Beside the one session that there is, so many more, older by seconds, two of each age."""
    columns = "user_id, address, network, user_agent, step, amr, key_id, generation"
    columns += ", authenticated_at, refreshed_at, seen_at, expires_at"
    [one] = rows("SELECT id, created_at FROM mfa_sessions")
    started, zone = one["created_at"], "+00:00"
    if isinstance(started, str):
        started, zone = datetime.fromisoformat(started).replace(tzinfo=UTC), ""
    for number in range(count):
        at = (started - timedelta(seconds=number // 2 + 1)).astimezone(UTC)
        rows(
            f"INSERT INTO mfa_sessions (id, created_at, {columns}) SELECT :id, :at, {columns}"
            " FROM mfa_sessions WHERE id = :one",
            id=f"s{number:021}",
            at=f"{at:%Y-%m-%d %H:%M:%S.%f}{zone}",
            one=one["id"],
        )


def pages_of(services: Services, user_id: str) -> list[list[str]]:
    """The ids on each page of a user's sessions."""
    pages, cursor = [], None
    while True:
        found, cursor = services.sessions.list(user_id, cursor)
        pages.append([session.id for session in found])
        if cursor is None:
            return pages


def seen_at(rows: Rows) -> float:
    [row] = rows("SELECT seen_at FROM mfa_sessions")
    seen = row["seen_at"]
    seen = datetime.fromisoformat(seen) if isinstance(seen, str) else seen
    return float((seen if seen.tzinfo else seen.replace(tzinfo=UTC)).timestamp())


def read_only(url: str) -> str:
    """The address under which this database takes no writes, as a replica does."""
    if url.startswith("sqlite"):
        return url.replace("sqlite:///", "sqlite:///file:") + "?mode=ro&uri=true"
    return url + ("&" if "?" in url else "?") + "options=-c%20default_transaction_read_only%3Don"
