"""Every kind of token over every route: exactly what the table says is let through, and a route without a row fails."""

import re

import pytest
from flask import Flask
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from mfa_service.services.administration import By, Changes
from mfa_service.services.audit import ClientInfo
from mfa_service.services.policy import Rules
from mfa_service.web.contract import contract_of
from tests.conftest import Clock
from tests.factories import Person, bearer, log_in, register

FRESH, OLD, BY_DEVICE = "access, just now", "access, five minutes ago", "access, from a remembered device"
ADMIN, PASSWORD_ONLY = "access, of an administrator", "access, of a password where policy asks for no more"
PENDING, REFRESH, DEVICE, RECOVERY = "pending", "refresh token", "device token", "recovery code"
TICKET = "enrolment ticket"
ENDED = ("access, of an ended session", "refresh token, of an ended session")
DISABLED = ("access, of a disabled user", "refresh token, of a disabled user")
ANOTHERS = ("device token, of another user", "recovery code, of another user")
GARBAGE = ("garbage", "a JWT of nobody")
NOTHING = "none"
KINDS = (NOTHING, *GARBAGE, PENDING, REFRESH, DEVICE, RECOVERY, *ENDED, *DISABLED, *ANOTHERS)
KINDS += (TICKET, PASSWORD_ONLY, OLD, BY_DEVICE, ADMIN, FRESH)

#: Nobody is asked for a token, and one that comes along changes nothing.
OPEN = frozenset({"open"})
SIGNED_IN = frozenset({FRESH, OLD, BY_DEVICE, ADMIN})
#: Also with a password alone, where policy lets an account go without a second factor.
LOGGED_IN = SIGNED_IN | {PASSWORD_ONLY}
#: The second factor has been shown in this session within the last five minutes.
RECENT = frozenset({FRESH, ADMIN})
#: And has the role.
ADMINISTRATING = frozenset({ADMIN})

AS_BEARER = {
    ("GET", "/healthz"): OPEN,
    ("GET", "/readyz"): OPEN,
    ("GET", "/.well-known/jwks.json"): OPEN,
    ("GET", "/openapi.json"): OPEN,
    ("GET", "/metrics"): OPEN,
    ("GET", "/docs"): OPEN,
    ("GET", "/docs/<name>"): OPEN,
    ("POST", "/auth/register"): OPEN,
    ("POST", "/auth/login"): OPEN,
    ("POST", "/auth/verify-mfa"): OPEN,
    ("POST", "/auth/enrol"): OPEN,
    ("POST", "/auth/refresh"): OPEN,
    ("POST", "/auth/step-up"): SIGNED_IN,
    ("POST", "/auth/logout"): LOGGED_IN,
    ("POST", "/auth/password"): RECENT,
    ("GET", "/auth/check"): SIGNED_IN,
    ("GET", "/api/profile"): SIGNED_IN,
    ("GET", "/api/mfa"): LOGGED_IN,
    ("DELETE", "/api/mfa"): RECENT,
    ("POST", "/api/mfa/totp"): RECENT,
    ("POST", "/api/mfa/totp/confirm"): RECENT,
    ("POST", "/api/mfa/recovery-codes"): RECENT,
    ("GET", "/api/sessions"): LOGGED_IN,
    ("DELETE", "/api/sessions/<session_id>"): LOGGED_IN,
    ("GET", "/api/devices"): SIGNED_IN,
    ("DELETE", "/api/devices/<device_id>"): SIGNED_IN,
    ("DELETE", "/api/devices"): SIGNED_IN,
    ("GET", "/api/activity"): SIGNED_IN,
    ("GET", "/api/admin/users"): ADMINISTRATING,
    ("GET", "/api/admin/users/<user_id>"): ADMINISTRATING,
    ("PATCH", "/api/admin/users/<user_id>"): ADMINISTRATING,
    ("DELETE", "/api/admin/users/<user_id>"): ADMINISTRATING,
    ("POST", "/api/admin/users/<user_id>/reset-mfa"): ADMINISTRATING,
    ("POST", "/api/admin/users/<user_id>/unlock"): ADMINISTRATING,
    ("DELETE", "/api/admin/users/<user_id>/sessions"): ADMINISTRATING,
    ("GET", "/api/admin/policy"): ADMINISTRATING,
    ("PUT", "/api/admin/policy"): ADMINISTRATING,
    ("POST", "/api/admin/policy/preview"): ADMINISTRATING,
    ("GET", "/api/admin/compliance"): ADMINISTRATING,
    ("GET", "/api/admin/audit"): ADMINISTRATING,
    ("GET", "/api/admin/audit/export"): ADMINISTRATING,
    ("GET", "/api/admin/audit/seals"): ADMINISTRATING,
}
IN_A_BODY = {
    ("/auth/login", "deviceToken"): DEVICE,
    ("/auth/verify-mfa", "tempToken"): PENDING,
    ("/auth/verify-mfa", "recoveryCode"): RECOVERY,
    ("/auth/enrol", "tempToken"): PENDING,
    ("/auth/enrol", "enrolmentTicket"): TICKET,
    ("/auth/refresh", "refreshToken"): REFRESH,
    ("/auth/step-up", "recoveryCode"): RECOVERY,
}


def test_every_route_has_a_row(app: Flask) -> None:
    routed = {(method, rule.rule) for rule in app.url_map.iter_rules() for method in rule.methods - {"HEAD", "OPTIONS"}}
    assert set(AS_BEARER) == routed


def test_every_member_that_is_a_token_has_a_row(app: Flask) -> None:
    members = set()
    for rule in app.url_map.iter_rules():
        body = contract_of(app.view_functions[rule.endpoint]).takes
        names = [str(field.alias) for field in body.model_fields.values()] if body else []
        members |= {
            (rule.rule, name) for name in names if name.endswith(("Token", "Code", "Ticket")) and name != "totpCode"
        }
    assert set(IN_A_BODY) == members


@pytest.mark.parametrize(("method", "path"), AS_BEARER)
def test_as_bearer_exactly_these_are_let_through(
    client: FlaskClient, tokens: dict[str, str], method: str, path: str
) -> None:
    allowed, answers = AS_BEARER[method, path], {kind: call(client, method, path, tokens[kind]) for kind in KINDS}
    if allowed == OPEN:
        assert {outcome(answer) for answer in answers.values()} == {outcome(answers[NOTHING])}
        return
    for kind, answer in answers.items():
        told = None if answer.status_code < 400 else answer.json["code"]
        assert (told not in REFUSALS) == (kind in allowed), (kind, told)
        if kind not in allowed:
            assert (answer.status_code, told) == refusal_of(kind, allowed), kind


@pytest.mark.parametrize(("path", "member"), IN_A_BODY)
def test_in_a_body_exactly_one_kind_is_let_through(
    client: FlaskClient, tokens: dict[str, str], ada: Person, dan: Person, path: str, member: str
) -> None:
    for kind in KINDS:
        body = {
            "/auth/login": {"username": ada.username, "password": ada.password},
            "/auth/verify-mfa": {"totpCode": "x"} if member == "tempToken" else {"tempToken": log_in(client, ada)},
            "/auth/enrol": {} if member == "tempToken" else {"tempToken": log_in(client, dan)},
        }.get(path, {})
        answer = client.post(path, json=body | {member: tokens[kind]}, headers=bearer(tokens[FRESH]))
        is_right = kind == IN_A_BODY[path, member]
        assert is_let_through(path, member, answer) == is_right, (kind, answer.json)
        assert answer.status_code in (200, 401, 403)
        if member == "recoveryCode" and not is_right:
            forget_failures(client, ada, tokens)


@pytest.mark.parametrize("scheme", ["Basic", "Token", "Bearer:", "DPoP", ""])
def test_a_good_token_under_another_scheme_is_none(client: FlaskClient, tokens: dict[str, str], scheme: str) -> None:
    answer = client.get("/api/profile", headers={"Authorization": f"{scheme} {tokens[FRESH]}"})
    assert (answer.status_code, answer.json["code"]) == (401, "no_token")


def test_a_good_token_anywhere_else_is_none(client: FlaskClient, tokens: dict[str, str]) -> None:
    client.set_cookie("access_token", tokens[FRESH])
    for name in ("access_token", "accessToken", "token", "Authorization"):
        answer = client.get("/api/profile", query_string={name: tokens[FRESH]}, headers={"X-Access-Token": "x"})
        assert (answer.status_code, answer.json["code"]) == (401, "no_token")


# ── means ────────────────────────────────────────────────────────────────────────────────────────

REFUSALS = ("no_token", "invalid_token", "full_authentication_required", "step_up_required", "role_required")


def refusal_of(kind: str, allowed: frozenset[str]) -> tuple[int, str]:
    if kind in SIGNED_IN:
        return (403, "role_required") if allowed == ADMINISTRATING else (401, "step_up_required")
    incomplete = dict.fromkeys((PENDING, PASSWORD_ONLY), "full_authentication_required")
    return 401, ({NOTHING: "no_token"} | incomplete).get(kind, "invalid_token")


def call(client: FlaskClient, method: str, path: str, token: str) -> TestResponse:
    headers = bearer(token) if token else {}
    body = {"json": {}} if method == "POST" else {}
    return client.open(re.sub("<.*?>", "x", path), method=method, headers=headers, **body)


def outcome(answer: TestResponse) -> tuple[int, str | None]:
    """The status, and the code of a refusal; a page has none."""
    return answer.status_code, answer.json.get("code") if answer.is_json else None


def is_let_through(path: str, member: str, answer: TestResponse) -> bool:
    """Whether the token was taken for what the member wants, whatever comes after that."""
    if path == "/auth/login":
        return answer.json["mfaRequired"] is False
    if member == "tempToken":
        return answer.json["code"] not in ("invalid_pending_token", "wrong_step")
    return answer.status_code == 200


def forget_failures(client: FlaskClient, person: Person, tokens: dict[str, str]) -> None:
    """Ten new codes, and nothing held against them, so that the next kind is looked at again."""
    answer = client.post("/api/mfa/recovery-codes", headers=bearer(tokens[FRESH]))
    tokens[RECOVERY] = answer.json["recoveryCodes"][0]


@pytest.fixture
def ada(client: FlaskClient) -> Person:
    return register(client, "ada")


@pytest.fixture
def dan(client: FlaskClient) -> Person:
    return register(client, "dan")


@pytest.fixture
def tokens(client: FlaskClient, ada: Person, dan: Person, clock: Clock) -> dict[str, str]:
    """One token of every kind."""
    services, by = client.application.extensions["mfa_service"].services, By(ClientInfo(), reason="test")
    bob, root = register(client, "bob"), register(client, "root")
    ids = {person: services.directory.find_id(person.username) for person in (ada, bob, dan, root)}
    for person, user_id in ids.items():  # who shows a second factor here may not take it away
        roles = ("admin",) if person is root else ()
        services.administration.change(by, user_id, Changes(roles=roles, mfa_required=True))
    services.administration.set_policy(by, Rules("optional"))
    first, bobs = (sign_in(client, person, clock, 0) for person in (ada, bob))
    clock.advance(301)
    ended, fresh = (sign_in(client, ada, clock, steps) for steps in (0, 1))
    assert client.post("/auth/logout", headers=bearer(ended["accessToken"])).status_code == 204
    services.administration.disable(by, ids[bob])
    carol = register(client, "carol")
    hers = client.post("/auth/login", json={"username": carol.username, "password": carol.password})
    credentials = {"username": ada.username, "password": ada.password, "deviceToken": first["deviceToken"]}
    return {
        NOTHING: "",
        GARBAGE[0]: "garbage",
        GARBAGE[1]: "eyJhbGciOiJub25lIn0.eyJzdWIiOiJhZGEifQ.AAAA",
        PENDING: log_in(client, ada),
        REFRESH: fresh["refreshToken"],
        DEVICE: first["deviceToken"],
        RECOVERY: first["recoveryCodes"][0],
        ENDED[0]: ended["accessToken"],
        ENDED[1]: ended["refreshToken"],
        DISABLED[0]: bobs["accessToken"],
        DISABLED[1]: bobs["refreshToken"],
        ANOTHERS[0]: bobs["deviceToken"],
        ANOTHERS[1]: bobs["recoveryCodes"][0],
        OLD: first["accessToken"],
        TICKET: services.administration.reset_factors(by, ids[dan]),
        PASSWORD_ONLY: hers.json["accessToken"],
        ADMIN: sign_in(client, root, clock, 0)["accessToken"],
        BY_DEVICE: client.post("/auth/login", json=credentials).json["accessToken"],
        FRESH: fresh["accessToken"],
    }


def sign_in(client: FlaskClient, person: Person, clock: Clock, steps: int) -> dict[str, str]:
    body = {"tempToken": log_in(client, person), "totpCode": person.code(clock(), steps), "rememberDevice": True}
    answer = client.post("/auth/verify-mfa", json=body)
    assert answer.status_code == 200, answer.text
    found: dict[str, str] = answer.json
    return found
