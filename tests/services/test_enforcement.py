"""Enforcing a second factor: nobody slips through once the deadline has come, and nobody is kept from enrolling."""

import dataclasses
from collections.abc import Callable, Sequence
from datetime import timedelta

import pytest
from flask import Flask
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from mfa_service.crypto.tokens import AnotherKind
from mfa_service.errors import (
    FactorExists,
    FullAuthenticationRequired,
    InvalidCode,
    InvalidCredentials,
    InvalidPendingToken,
    InvalidRefreshToken,
    MFARequired,
)
from mfa_service.services import Services
from mfa_service.services.administration import By, Changes
from mfa_service.services.login import MFAPending, PasswordOnly, SignedIn
from mfa_service.services.policy import Deadline, Rules
from mfa_service.services.tickets import TICKET_SECONDS
from tests.conftest import Clock
from tests.factories import PASSWORD, Person, bearer
from tests.factories import register as register_by_http
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
    recovery,
    register,
    sign_in,
    totp,
    trust_device,
    user_id_of,
    verify,
)

DAY = 86_400
#: What a token of a password alone opens.
LETS_IN = {("GET", "/api/mfa"), ("GET", "/api/sessions"), ("DELETE", "/api/sessions/<session_id>")} | {
    ("POST", "/auth/logout")
}

Enforce = Callable[[Services, str, Deadline], None]


def everybody(services: Services, _user_id: str, deadline: Deadline) -> None:
    set_policy(services, "required", deadline)


def a_role(services: Services, _user_id: str, deadline: Deadline) -> None:
    set_policy(services, "optional", roles={"staff": deadline})


def one_user(services: Services, user_id: str, deadline: Deadline) -> None:
    services.administration.change(By(CLIENT), user_id, Changes(mfa_required=True, deadline=deadline))


WAYS: Sequence[Enforce] = (everybody, a_role, one_user)

# ── while policy lets ────────────────────────────────────────────────────────────────────────────


def test_an_account_that_never_had_a_factor_is_let_in_by_its_password(optional: Services, ada: Person) -> None:
    outcome = begin(optional, ada)
    assert isinstance(outcome, PasswordOnly)
    assert outcome.deadline is None
    assert outcome.pending.methods == ()
    identity = identity_of(optional, outcome)
    assert (identity.step, identity.amr) == ("password", ("pwd",))
    assert finds(optional, outcome)


def test_its_pending_token_enrols_and_verifies_at_any_time(optional: Services, ada: Person, clock: Clock) -> None:
    token = let_in(optional, ada).pending.token
    clock.advance(200)
    new = enrol(optional, token, ada)
    signed_in = verify(optional, token, new)
    assert identity_of(optional, signed_in).step == "authenticated"
    assert signed_in.recovery_codes


def test_the_factor_of_registration_is_as_good(optional: Services, ada: Person) -> None:
    assert identity_of(optional, verify(optional, let_in(optional, ada).pending.token, ada)).amr == (
        "pwd",
        "otp",
        "mfa",
    )


def test_refreshing_makes_no_more_of_it(optional: Services, ada: Person, clock: Clock) -> None:
    signed_in = let_in(optional, ada)
    for _ in range(3):
        clock.advance(3000)
        signed_in = optional.login.refresh(signed_in.refresh_token, CLIENT)
        identity = identity_of(optional, signed_in)
        assert (identity.step, identity.amr) == ("password", ("pwd",))


def test_a_wrong_password_is_as_wrong_as_ever(optional: Services, ada: Person) -> None:
    ensure_refused(InvalidCredentials, lambda: optional.login.begin("ada", "wrong-password", CLIENT))
    assert isinstance(begin(optional, ada), PasswordOnly)


def test_who_has_a_factor_is_always_asked_for_it(optional: Services, ada: Person, clock: Clock) -> None:
    verify(optional, let_in(optional, ada).pending.token, ada)
    for _ in range(3):
        clock.advance(40 * DAY)
        outcome = begin(optional, ada)
        assert isinstance(outcome, MFAPending)
        assert "totp" in outcome.methods


def test_a_factor_that_failures_have_disabled_is_asked_for_all_the_same(
    optional: Services, ada: Person, rows: Rows
) -> None:
    verify(optional, let_in(optional, ada).pending.token, ada)
    rows(
        "INSERT INTO mfa_locks (user_id, subject, failures, failed_at, disabled_at) "
        "VALUES (:user_id, 'totp', 100, '2023-01-01 00:00:00', '2023-01-01 00:00:00')",
        user_id=user_id_of(rows, "ada"),
    )
    outcome = begin(optional, ada)
    assert isinstance(outcome, MFAPending)
    ensure_refused(FactorExists, lambda: optional.login.enrol(outcome.token, CLIENT))


def test_the_first_factor_ends_the_sessions_of_a_password_alone(optional: Services, ada: Person) -> None:
    first, second = let_in(optional, ada), let_in(optional, ada)
    strong = verify(optional, second.pending.token, ada)
    for weak in (first, second):
        assert not is_live(optional, weak)
        ensure_refused(InvalidRefreshToken, lambda it=weak: optional.login.refresh(it.refresh_token, CLIENT))
    assert is_live(optional, strong)


def test_a_session_of_a_password_alone_is_not_stepped_up_by_the_first_code(
    optional: Services, ada: Person, clock: Clock, rows: Rows
) -> None:
    weak = let_in(optional, ada)
    identity = identity_of(optional, weak)
    for code in (ada.code(clock()), "000000"):
        proof = totp(code)
        ensure_refused(FullAuthenticationRequired, lambda it=proof: optional.login.step_up(identity, it, CLIENT))
    assert is_live(optional, weak)
    assert rows("SELECT 1 FROM mfa_secrets WHERE confirmed_at IS NOT NULL") == []
    assert rows("SELECT * FROM mfa_recovery_codes") + rows("SELECT * FROM mfa_locks") == []


def test_no_device_is_remembered_by_a_password_alone(optional: Services, ada: Person, rows: Rows) -> None:
    let_in(optional, ada)
    assert rows("SELECT * FROM mfa_devices") == []
    assert isinstance(optional.login.begin("ada", PASSWORD, CLIENT, "x" * 43), PasswordOnly)


def test_a_session_of_a_password_alone_is_not_stepped_up_before_there_is_a_factor(
    client: FlaskClient, optional: Services, ada: Person, clock: Clock
) -> None:
    token = let_in(optional, ada).access_token
    answer = client.post("/auth/step-up", json={"totpCode": ada.code(clock())}, headers=bearer(token))
    assert refusal(answer) == (401, "full_authentication_required")


# ── what a token of a password alone opens ───────────────────────────────────────────────────────


def test_over_http_login_answers_both_tokens(client: FlaskClient, optional: Services, ada: Person) -> None:
    answer = client.post("/auth/login", json={"username": "ada", "password": PASSWORD})
    assert answer.status_code == 200
    assert answer.json["mfaRequired"] is False
    assert answer.json["methods"] == []
    assert answer.json.keys() >= {"accessToken", "refreshToken", "tempToken", "user"}
    assert "mfaDeadline" not in answer.json


def test_before_the_deadline_login_and_summary_tell_it(
    client: FlaskClient, optional: Services, ada: Person, clock: Clock
) -> None:
    at = optional.now() + timedelta(days=3)
    set_policy(optional, "optional", roles={"staff": Deadline(at=at)})
    answer = client.post("/auth/login", json={"username": "ada", "password": PASSWORD})
    summary = client.get("/api/mfa", headers=bearer(answer.json["accessToken"]))
    told = at.isoformat().replace("+00:00", "Z")
    assert answer.json["mfaDeadline"] == summary.json["mfaDeadline"] == told
    assert (summary.json["mfaRequired"], summary.json["policy"], summary.json["methods"]) == (True, "optional", [])


def test_it_opens_these_four_routes_and_no_other_guarded_one(
    app: Flask, client: FlaskClient, optional: Services, ada: Person
) -> None:
    headers, opened, guarded = bearer(let_in(optional, ada).access_token), set(), set()
    for rule in app.url_map.iter_rules():
        for method in sorted(rule.methods - {"HEAD", "OPTIONS"}):
            if refusal(call(client, method, rule.rule, {})) != (401, "no_token"):
                continue
            guarded.add((method, rule.rule))
            if rule.rule == "/auth/logout":
                continue  # it is called last: it ends the session
            if refusal(call(client, method, rule.rule, headers)) != (401, "full_authentication_required"):
                opened.add((method, rule.rule))
    assert client.post("/auth/logout", headers=headers).status_code == 204
    assert opened | {("POST", "/auth/logout")} == LETS_IN
    assert len(guarded) > 25


def test_it_lists_and_ends_own_sessions(client: FlaskClient, optional: Services, ada: Person) -> None:
    token = let_in(optional, ada).access_token
    other = identity_of(optional, let_in(optional, ada)).session_id
    listed = client.get("/api/sessions", headers=bearer(token)).json["items"]
    assert other in [item["id"] for item in listed]
    assert client.delete(f"/api/sessions/{other}", headers=bearer(token)).status_code == 204
    assert len(client.get("/api/sessions", headers=bearer(token)).json["items"]) == len(listed) - 1


# ── the clock is walked past the deadline ────────────────────────────────────────────────────────


@pytest.mark.parametrize("enforce", WAYS)
@pytest.mark.parametrize("by", ["a date", "days"])
def test_past_the_deadline_there_is_nothing_but_enrolling(
    optional: Services, ada: Person, clock: Clock, rows: Rows, enforce: Enforce, by: str
) -> None:
    before = let_in(optional, ada)
    assert before.deadline is None
    end = optional.now() + timedelta(days=3)
    enforce(optional, user_id_of(rows, "ada"), Deadline(at=end) if by == "a date" else Deadline(days=3))
    assert finds(optional, before)
    for _ in range(3):
        assert let_in(optional, ada).deadline == end
        clock.advance(DAY - 1)
    last = let_in(optional, ada)
    assert last.deadline == end
    clock.advance(2)
    last_refreshed = optional.login.refresh(last.refresh_token, CLIENT)
    assert finds(optional, last_refreshed)
    clock.advance(1)
    with another(optional) as worker:
        for signed_in in (last, last_refreshed):
            assert not finds(worker, signed_in)
            ensure_refused(InvalidRefreshToken, lambda it=signed_in: worker.login.refresh(it.refresh_token, CLIENT))
        outcome = begin(worker, ada)
        assert isinstance(outcome, MFAPending)
        assert outcome.methods == ()
        ensure_refused(AnotherKind, lambda: worker.verifier.access(outcome.token, now=clock()))
        new = enrol(worker, outcome.token, ada)
        ensure_refused(InvalidCode, lambda: verify(worker, outcome.token, ada))
        strong = verify(worker, outcome.token, new)
        assert identity_of(worker, strong).step == "authenticated"
        assert finds(worker, strong)


@pytest.mark.parametrize("enforce", WAYS)
def test_a_pending_token_from_before_the_deadline_still_enrols_after_it(
    optional: Services, ada: Person, clock: Clock, rows: Rows, enforce: Enforce
) -> None:
    enforce(optional, user_id_of(rows, "ada"), Deadline(at=optional.now() + timedelta(seconds=100)))
    token = let_in(optional, ada).pending.token
    clock.advance(100)
    new = enrol(optional, token, ada)
    assert identity_of(optional, verify(optional, token, new)).step == "authenticated"


@pytest.mark.parametrize("enforce", WAYS)
def test_at_once_takes_effect_in_the_middle_of_a_session(
    optional: Services, ada: Person, rows: Rows, enforce: Enforce
) -> None:
    let = let_in(optional, ada)
    enforce(optional, user_id_of(rows, "ada"), Deadline())
    with another(optional) as worker:
        assert not finds(worker, let)
        ensure_refused(InvalidRefreshToken, lambda: worker.login.refresh(let.refresh_token, CLIENT))
        assert isinstance(begin(worker, ada), MFAPending)
        assert verify(worker, let.pending.token, ada)


@pytest.mark.parametrize("enforce", WAYS)
def test_who_has_a_factor_notices_nothing_but_is_asked_once_more_on_devices(
    optional: Services, ada: Person, clock: Clock, rows: Rows, enforce: Enforce
) -> None:
    device = trust_first(optional, ada)
    strong = sign_in(optional, ada, steps=1)
    by_device = optional.login.begin("ada", PASSWORD, CLIENT, device)
    assert isinstance(by_device, SignedIn)
    clock.advance(60)
    enforce(optional, user_id_of(rows, "ada"), Deadline())
    assert finds(optional, strong)
    assert optional.login.refresh(strong.refresh_token, CLIENT)
    assert isinstance(optional.login.begin("ada", PASSWORD, CLIENT, device), MFAPending)
    fresh = trust_device(optional, ada)
    assert isinstance(optional.login.begin("ada", PASSWORD, CLIENT, fresh), SignedIn)


def test_a_rule_about_others_leaves_devices_alone(optional: Services, ada: Person, clock: Clock, rows: Rows) -> None:
    register(optional, "bob")
    device = trust_first(optional, ada)
    clock.advance(60)
    set_policy(optional, "optional", roles={"others": Deadline()})
    one_user(optional, user_id_of(rows, "bob"), Deadline())
    assert isinstance(optional.login.begin("ada", PASSWORD, CLIENT, device), SignedIn)


def test_a_rule_about_others_leaves_sessions_alone(optional: Services, ada: Person, clock: Clock, rows: Rows) -> None:
    register(optional, "bob")
    bob = let_in(optional, Person("bob", PASSWORD, "", ""))
    set_policy(optional, "optional", roles={"staff": Deadline()})
    one_user(optional, user_id_of(rows, "ada"), Deadline())
    assert finds(optional, bob)
    assert optional.login.refresh(bob.refresh_token, CLIENT)


def test_a_role_that_is_given_later_takes_effect_at_the_next_request(
    client: FlaskClient, optional: Services, rows: Rows
) -> None:
    set_policy(optional, "optional", roles={"finance": Deadline()})
    bob = register(optional, "bob")
    let = let_in(optional, bob)
    headers = bearer(let.access_token)
    assert client.get("/api/mfa", headers=headers).status_code == 200
    optional.administration.change(By(CLIENT), user_id_of(rows, "bob"), Changes(roles=("finance",)))
    assert refusal(client.get("/api/mfa", headers=headers)) == (401, "invalid_token")
    answer = client.post("/auth/refresh", json={"refreshToken": let.refresh_token})
    assert refusal(answer) == (401, "invalid_refresh_token")
    assert client.post("/auth/login", json={"username": "bob", "password": PASSWORD}).json["enrolmentRequired"] is True
    assert verify(optional, let.pending.token, bob)


def test_a_session_that_policy_ended_does_not_come_back_with_the_policy_once_it_was_refused_a_refresh(
    optional: Services, ada: Person
) -> None:
    let = let_in(optional, ada)
    set_policy(optional, "required")
    ensure_refused(InvalidRefreshToken, lambda: optional.login.refresh(let.refresh_token, CLIENT))
    set_policy(optional, "optional")
    assert not finds(optional, let)
    ensure_refused(InvalidRefreshToken, lambda: optional.login.refresh(let.refresh_token, CLIENT))


def test_a_policy_that_is_eased_between_login_and_verify_lets_nobody_past_the_code(
    services: Services, ada: Person
) -> None:
    sign_in(services, ada)
    pending = log_in(services, ada)
    set_policy(services, "optional")
    ensure_refused(InvalidCode, lambda: services.login.complete(pending, totp("000000"), CLIENT))
    assert isinstance(begin(services, ada), MFAPending)
    assert verify(services, pending, ada, steps=1)


def test_of_logins_at_the_moment_of_a_new_policy_none_is_let_in_for_longer_than_it(
    optional: Services, ada: Person
) -> None:
    def act(number: int) -> object:
        with another(optional) as worker:
            return set_policy(worker, "required") if number == 0 else begin(worker, ada)

    for _ in range(5):
        set_policy(optional, "optional")
        for outcome in at_once(5, act)[1:]:
            assert isinstance(outcome, PasswordOnly | MFAPending), outcome
            if isinstance(outcome, PasswordOnly):
                assert not finds(optional, outcome)


# ── going without again ──────────────────────────────────────────────────────────────────────────


def test_giving_the_factor_up_ends_all_that_rested_on_it(optional: Services, ada: Person, rows: Rows) -> None:
    device = trust_first(optional, ada)
    this, other, pending = sign_in(optional, ada, steps=1), sign_in(optional, ada, steps=2), log_in(optional, ada)
    optional.factors.remove(identity_of(optional, this), CLIENT)
    for signed_in in (this, other):
        assert not is_live(optional, signed_in)
        ensure_refused(InvalidRefreshToken, lambda it=signed_in: optional.login.refresh(it.refresh_token, CLIENT))
    ensure_refused(InvalidPendingToken, lambda: optional.login.enrol(pending, CLIENT))
    assert isinstance(optional.login.begin("ada", PASSWORD, CLIENT, device), PasswordOnly)
    left = ("mfa_secrets", "mfa_recovery_codes", "mfa_devices", "mfa_locks")
    assert [table for table in left if rows(f"SELECT user_id FROM {table}")] == []
    assert "factor.removed" in events(rows)


def test_after_that_the_account_is_as_if_it_had_never_had_one(optional: Services, ada: Person, clock: Clock) -> None:
    strong = verify(optional, let_in(optional, ada).pending.token, ada)
    optional.factors.remove(identity_of(optional, strong), CLIENT)
    let = let_in(optional, ada)
    new = enrol(optional, let.pending.token, ada)
    again = verify(optional, let.pending.token, new)
    assert len(again.recovery_codes or ()) == 10
    assert isinstance(begin(optional, ada), MFAPending)


def test_a_forged_refresh_token_ends_no_session_that_policy_has_overtaken(optional: Services, ada: Person) -> None:
    weak = let_in(optional, ada)
    forged = weak.refresh_token[:-43] + "x" * 43
    set_policy(optional, "required")
    ensure_refused(InvalidRefreshToken, lambda: optional.login.refresh(forged, CLIENT))
    set_policy(optional, "optional")
    again = optional.login.refresh(weak.refresh_token, CLIENT)
    set_policy(optional, "required")
    ensure_refused(InvalidRefreshToken, lambda: optional.login.refresh(again.refresh_token, CLIENT))
    set_policy(optional, "optional")
    ensure_refused(InvalidRefreshToken, lambda: optional.login.refresh(again.refresh_token, CLIENT))


@pytest.mark.parametrize("enforce", WAYS)
@pytest.mark.parametrize("deadline", [Deadline(), Deadline(days=300)])
def test_while_a_rule_is_about_its_user_a_factor_is_not_given_up(
    optional: Services, ada: Person, rows: Rows, enforce: Enforce, deadline: Deadline
) -> None:
    strong = verify(optional, let_in(optional, ada).pending.token, ada)
    enforce(optional, user_id_of(rows, "ada"), deadline)
    before = rows("SELECT * FROM mfa_secrets")
    ensure_refused(MFARequired, lambda: optional.factors.remove(identity_of(optional, strong), CLIENT))
    assert rows("SELECT * FROM mfa_secrets") == before
    assert finds(optional, strong)


def test_over_http_giving_up_wants_a_recent_factor(client: FlaskClient, optional: Services, clock: Clock) -> None:
    bob = register_by_http(client, "bob")
    token = verify(optional, let_in(optional, bob).pending.token, bob).access_token
    clock.advance(300)
    assert refusal(client.delete("/api/mfa", headers=bearer(token))) == (401, "step_up_required")
    answer = client.post("/auth/step-up", json={"totpCode": bob.code(clock())}, headers=bearer(token))
    assert client.delete("/api/mfa", headers=bearer(answer.json["accessToken"])).status_code == 204
    assert refusal(client.get("/api/profile", headers=bearer(token))) == (401, "invalid_token")


# ── after an administrator's reset ───────────────────────────────────────────────────────────────


@pytest.mark.parametrize("mode", ["required", "optional"])
def test_after_a_reset_a_password_alone_gives_a_pending_token_that_enrols_nothing(
    services: Services, ada: Person, rows: Rows, mode: str
) -> None:
    set_policy(services, mode)
    reset(services, rows)
    pending = begin(services, ada)
    assert isinstance(pending, MFAPending)
    assert pending.methods == ()
    for ticket in (None, "", "x" * 43, pending.token):
        ensure_refused(FactorExists, lambda it=ticket: services.login.enrol(pending.token, CLIENT, it))
    ensure_refused(InvalidCode, lambda: verify(services, pending.token, ada))
    assert isinstance(begin(services, ada), MFAPending)


def test_a_reset_ends_sessions_devices_pending_tokens_codes_and_locks(
    services: Services, ada: Person, rows: Rows
) -> None:
    codes = sign_in(services, ada).recovery_codes
    device = trust_device(services, ada, steps=1)
    signed_in, pending = sign_in(services, ada, steps=2), log_in(services, ada)
    reset(services, rows)
    assert not is_live(services, signed_in)
    ensure_refused(InvalidRefreshToken, lambda: services.login.refresh(signed_in.refresh_token, CLIENT))
    ensure_refused(InvalidPendingToken, lambda: services.login.enrol(pending, CLIENT))
    assert isinstance(services.login.begin("ada", PASSWORD, CLIENT, device), MFAPending)
    assert codes
    assert rows("SELECT * FROM mfa_recovery_codes") == rows("SELECT * FROM mfa_locks") == []


def test_the_ticket_enrols_once(services: Services, ada: Person, rows: Rows) -> None:
    ticket = reset(services, rows)
    token = log_in(services, ada)
    new = enrol(services, token, ada, ticket)
    ensure_refused(FactorExists, lambda: services.login.enrol(token, CLIENT, ticket))
    ensure_refused(FactorExists, lambda: services.login.enrol(log_in(services, ada), CLIENT, ticket))
    ensure_refused(InvalidCode, lambda: verify(services, token, ada))
    signed_in = verify(services, token, new)
    assert len(signed_in.recovery_codes or ()) == 10
    assert {"ticket.used", "factor.confirmed"} <= set(events(rows))
    ensure_refused(FactorExists, lambda: services.login.enrol(log_in(services, ada), CLIENT, ticket))


def test_of_many_that_redeem_a_ticket_at_the_same_time_one_enrols(services: Services, ada: Person, rows: Rows) -> None:
    for _ in range(3):
        ticket, tokens = reset(services, rows), [log_in(services, ada) for _ in range(4)]

        def act(number: int, tokens: list[str] = tokens, ticket: str = ticket) -> object:
            with another(services) as worker:
                return worker.login.enrol(tokens[number], CLIENT, ticket)

        outcomes = at_once(4, act)
        assert sorted(type(outcome).__name__ for outcome in outcomes) == ["Enrolment"] + 3 * ["FactorExists"]


def test_after_a_day_it_is_no_ticket(services: Services, ada: Person, rows: Rows, clock: Clock) -> None:
    ticket = reset(services, rows)
    clock.advance(TICKET_SECONDS)
    ensure_refused(FactorExists, lambda: services.login.enrol(log_in(services, ada), CLIENT, ticket))


def test_until_then_it_is_one(services: Services, ada: Person, rows: Rows, clock: Clock) -> None:
    ticket = reset(services, rows)
    clock.advance(TICKET_SECONDS - 1)
    assert services.login.enrol(log_in(services, ada), CLIENT, ticket)


def test_the_ticket_of_another_user_is_none(services: Services, ada: Person, rows: Rows) -> None:
    bob = register(services, "bob")
    adas, bobs = reset(services, rows), reset(services, rows, "bob")
    ensure_refused(FactorExists, lambda: services.login.enrol(log_in(services, ada), CLIENT, bobs))
    assert services.login.enrol(log_in(services, bob), CLIENT, bobs)
    assert services.login.enrol(log_in(services, ada), CLIENT, adas)


def test_a_new_reset_voids_the_old_ticket(services: Services, ada: Person, rows: Rows) -> None:
    old, new = reset(services, rows), reset(services, rows)
    ensure_refused(FactorExists, lambda: services.login.enrol(log_in(services, ada), CLIENT, old))
    assert services.login.enrol(log_in(services, ada), CLIENT, new)


def test_a_new_reset_takes_what_the_old_ticket_had_enrolled(services: Services, ada: Person, rows: Rows) -> None:
    ticket = reset(services, rows)
    token = log_in(services, ada)
    new = enrol(services, token, ada, ticket)
    reset(services, rows)
    ensure_refused(InvalidPendingToken, lambda: verify(services, token, new))
    ensure_refused(InvalidCode, lambda: verify(services, log_in(services, ada), new))


def test_disabling_voids_the_ticket_and_enabling_does_not_bring_it_back(
    services: Services, ada: Person, rows: Rows
) -> None:
    ticket, user_id = reset(services, rows), user_id_of(rows, "ada")
    services.administration.disable(By(CLIENT), user_id)
    services.administration.enable(By(CLIENT), user_id)
    ensure_refused(FactorExists, lambda: services.login.enrol(log_in(services, ada), CLIENT, ticket))


def test_unlocking_leaves_the_ticket(services: Services, ada: Person, rows: Rows) -> None:
    ticket = reset(services, rows)
    services.administration.unlock(By(CLIENT), user_id_of(rows, "ada"))
    assert services.login.enrol(log_in(services, ada), CLIENT, ticket)


def test_an_account_that_never_enrolled_needs_the_ticket_too_once_it_was_reset(services: Services, rows: Rows) -> None:
    bob = register(services, "bob")
    ticket = reset(services, rows, "bob")
    ensure_refused(FactorExists, lambda: services.login.enrol(log_in(services, bob), CLIENT))
    ensure_refused(InvalidCode, lambda: verify(services, log_in(services, bob), bob))
    assert services.login.enrol(log_in(services, bob), CLIENT, ticket)


def test_no_recovery_code_from_before_the_reset_gets_in(services: Services, ada: Person, rows: Rows) -> None:
    codes = sign_in(services, ada).recovery_codes
    assert codes
    reset(services, rows)
    token = log_in(services, ada)
    for code in codes[:3]:
        with pytest.raises(Exception, match="Invalid recovery code"):
            services.login.complete(token, recovery(code), CLIENT)


def test_over_http_the_refusal_without_a_ticket_is_403(client: FlaskClient, services: Services, rows: Rows) -> None:
    register_by_http(client, "bob")
    ticket = reset(services, rows, "bob")
    token = client.post("/auth/login", json={"username": "bob", "password": PASSWORD}).json["tempToken"]
    assert refusal(client.post("/auth/enrol", json={"tempToken": token})) == (403, "factor_exists")
    body = {"tempToken": token, "enrolmentTicket": "x" * 43}
    assert refusal(client.post("/auth/enrol", json=body)) == (403, "factor_exists")
    answer = client.post("/auth/enrol", json={"tempToken": token, "enrolmentTicket": ticket})
    assert (answer.status_code, answer.headers["Cache-Control"]) == (200, "no-store")


# ── means ────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def ada(services: Services, rows: Rows) -> Person:
    """Somebody with the role `staff`."""
    person = register(services, "ada")
    services.administration.change(By(CLIENT), user_id_of(rows, "ada"), Changes(roles=("staff",)))
    return person


@pytest.fixture
def optional(services: Services) -> Services:
    """The services where nobody has to have a second factor."""
    set_policy(services, "optional")
    return services


def set_policy(
    services: Services, mode: str, deadline: Deadline | None = None, roles: dict[str, Deadline] | None = None
) -> None:
    services.administration.set_policy(By(CLIENT), Rules(mode, deadline or Deadline(), roles or {}))


def begin(services: Services, person: Person) -> MFAPending | PasswordOnly | SignedIn:
    return services.login.begin(person.username, PASSWORD, CLIENT)


def let_in(services: Services, person: Person) -> PasswordOnly:
    """Give the password where policy asks for no more."""
    outcome = begin(services, person)
    assert isinstance(outcome, PasswordOnly), outcome
    return outcome


def finds(services: Services, signed_in: SignedIn) -> bool:
    """Whether a guard would find the account behind an access token."""
    return services.login.find_account(identity_of(services, signed_in)) is not None


def enrol(services: Services, token: str, person: Person, ticket: str | None = None) -> Person:
    """The same person with the authenticator that enrolling gives."""
    return dataclasses.replace(person, secret=services.login.enrol(token, CLIENT, ticket).secret)


def trust_first(services: Services, person: Person) -> str:
    """Confirm the first factor and have the device remembered."""
    verify(services, let_in(services, person).pending.token, person, steps=-1)
    return trust_device(services, person)


def reset(services: Services, rows: Rows, username: str = "ada") -> str:
    return services.administration.reset_factors(By(CLIENT, reason="lost phone"), user_id_of(rows, username))


def call(client: FlaskClient, method: str, path: str, headers: dict[str, str]) -> TestResponse:
    for name in ("session_id", "device_id", "user_id"):
        path = path.replace(f"<{name}>", "x" * 22)
    body = {} if method in ("GET", "DELETE") or path == "/auth/logout" else {"json": {}}
    return client.open(path, method=method, headers=headers, **body)


def refusal(answer: TestResponse) -> tuple[int, str | None]:
    return answer.status_code, answer.json.get("code") if answer.is_json else None
