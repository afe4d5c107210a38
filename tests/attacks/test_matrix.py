"""Every kind of token on every route that the service says it has."""

import re
from typing import Any

from tests.attacks.case import case
from tests.attacks.target import Call, Person, Target

METHODS = ("get", "post", "put", "patch", "delete")
#: All that wants no token, whatever the document says of itself.
OPEN = frozenset(
    {("POST", f"/auth/{name}") for name in ("register", "login", "verify-mfa", "enrol", "refresh")}
    | {("GET", path) for path in ("/healthz", "/readyz", "/.well-known/jwks.json", "/openapi.json")}
)
#: What the guard says to a token that is none, or none of the kind that it wants.
REFUSALS = frozenset({"no_token", "invalid_token", "full_authentication_required"})
#: Where other products had something that nobody had meant to publish; "x" stands for an id.
ELSEWHERE = (
    *("/admin", "/admin/", "/api", "/api/", "/api/admin", "/api/users", "/api/user", "/api/me", "/api/keys"),
    *("/api/admin/keys", "/api/admin/settings", "/api/admin/sessions", "/api/admin/keys/x"),
    *("/api/admin/users/x/totp", "/api/users/x", "/api/v1/profile", "/v1/api/profile", "/api/internal/users"),
    *("/api/config", "/api/logs", "/api/token", "/auth", "/auth/token", "/auth/session", "/auth/impersonate"),
    *("/auth/keys", "/internal", "/users", "/graphql", "/swagger.json", "/debug/users"),
)


def operations(target: Target) -> dict[tuple[str, str], bool]:
    """Method and path of every operation, and whether the document says that it wants a token."""
    paths: dict[str, dict[str, Any]] = target.get("/openapi.json").json["paths"]
    return {
        (method.upper(), re.sub(r"\{\w+\}", "x", path)): bool(of[method].get("security"))
        for path, of in paths.items()
        for method in METHODS
        if isinstance(of.get(method), dict)
    }


def guarded(target: Target) -> list[tuple[str, str]]:
    """Every operation but those that are open on purpose."""
    return [operation for operation in operations(target) if operation not in OPEN]


def is_let_in(target: Target, method: str, path: str, token: str) -> bool:
    """Whether the guard took the token for one of its own kind, whatever comes after."""
    answer = target.send(Call(method, path, {} if method != "GET" else None, token))
    assert answer.status < 500, f"{method} {path} answered {answer.status}"
    return answer.code not in REFUSALS


@case(
    "D3",
    holds="every kind of token opens its own routes alone",
    stems_from="RFC 8725 section 3.12",
    broken_by="refresh_as_bearer device_as_bearer recovery_as_bearer garbage_as_bearer guard_forgotten guard_left_out "
    "guard_forgotten_by_id",
)
def test_every_kind_of_token_opens_its_own_routes_alone(target: Target) -> None:
    person = target.person(device=True)
    others = {
        "garbage": "garbage",
        "refresh token": person.tokens["refreshToken"],
        "device token": person.tokens["deviceToken"],
        "recovery code": person.tokens["recoveryCodes"][0],
    }
    wanted = guarded(target)
    for kind, token in others.items():
        let_in = [f"{method} {path}" for method, path in wanted if is_let_in(target, method, path, token)]
        assert not let_in, f"a {kind} opens {let_in}"


@case(
    "D3b",
    holds="in a body exactly one kind of token is taken",
    stems_from="RFC 8725 section 3.12",
    broken_by="access_as_pending access_enrols access_as_refresh device_as_refresh pending_as_refresh access_as_device "
    "refresh_as_device recovery_as_device",
)
def test_in_a_body_exactly_one_kind_is_taken(target: Target) -> None:
    person = target.person(device=True)
    tokens = {**person.tokens, "tempToken": person.pending(), "recoveryCode": person.tokens["recoveryCodes"][0]}
    kinds = ("accessToken", "refreshToken", "deviceToken", "tempToken", "recoveryCode")
    for kind in set(kinds) - {"tempToken"}:
        assert person.verify(tokens[kind], person.wrong()).code in ("wrong_step", "invalid_pending_token"), kind
        assert target.post("/auth/enrol", {"tempToken": tokens[kind]}).status == 401, kind
    for kind in set(kinds) - {"refreshToken"}:
        assert person.refresh(tokens[kind]).status == 401, kind
    for kind in set(kinds) - {"deviceToken"}:
        assert person.login(deviceToken=tokens[kind]).json["mfaRequired"] is True, kind


def is_worthless(person: Person, kind: str, token: str, *, is_device: bool = False) -> None:
    """That what is none of the API's tokens counts as none of them, in the header or in a body."""
    target = person.target
    let_in = [f"{method} {path}" for method, path in guarded(target) if is_let_in(target, method, path, token)]
    assert not let_in, f"a {kind} opens {let_in}"
    assert person.verify(token, person.wrong()).code == "invalid_pending_token", f"a {kind} waits for a code"
    assert target.post("/auth/enrol", {"tempToken": token}).code == "invalid_pending_token", f"a {kind} enrols"
    assert person.refresh(token).status == 401, f"a {kind} is refreshed"
    assert is_device or person.login(deviceToken=token).json["mfaRequired"] is True, f"a {kind} is a device"


@case(
    "D3c",
    holds="the ticket of a reset enrols beside a password, and is no token of any other kind",
    stems_from="RFC 8725 section 3.12",
    broken_by="ticket_as_bearer ticket_as_pending ticket_as_refresh ticket_as_device",
    needs=("admin",),
)
def test_a_ticket_is_good_for_enrolling_alone(target: Target) -> None:
    person = target.person()
    path = f"/api/admin/users/{target.id_of(person)}/reset-mfa"
    ticket = target.post(path, {"reason": "attack"}, target.admin()).json["enrolmentTicket"]
    is_worthless(person, "ticket", ticket)
    body = {"tempToken": person.pending(), "enrolmentTicket": ticket}
    assert target.post("/auth/enrol", body).status == 200, "the ticket is good for nothing"


@case(
    "K2",
    holds="no route that wants a token answers without one, by any method",
    stems_from="ASVS 8.3.1",
    broken_by="head_unguarded guard_forgotten guard_left_out guard_forgotten_by_id",
)
def test_nothing_answers_without_a_token(target: Target) -> None:
    found = operations(target)
    said_open = {operation for operation, is_guarded in found.items() if not is_guarded}
    assert said_open <= OPEN, f"the document opens {said_open - OPEN}"
    for path in sorted({path for _, path in found} - {path for _, path in OPEN}):
        for method in ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"):
            answer = target.send(Call(method, path))
            wanted = (401,) if (method, path) in found else (401, 404, 405)
            assert answer.status in wanted, f"{method} {path} answered {answer.status}"


@case(
    "K2b",
    holds="nothing answers where the document names nothing, to nobody and to a user",
    stems_from="OWASP API9:2023, ASVS 13.4.5",
    broken_by="route_undocumented route_of_old",
)
def test_nothing_answers_that_is_not_documented(target: Target) -> None:
    person = target.person()
    for path in ELSEWHERE:
        for token in ("", person.access):
            answer = target.get(path, token)
            assert answer.status in (401, 404, 405), f"{path} answered {answer.status}"


@case(
    "K12",
    holds="a user's token opens no route of administrators",
    stems_from="ASVS 8.2.1",
    broken_by="admin_open role_forgotten",
)
def test_administration_is_for_administrators(target: Target) -> None:
    person = target.person()
    administration = [(method, path) for method, path in operations(target) if path.startswith("/api/admin")]
    assert len(administration) > 8
    for method, path in administration:
        answer = target.send(Call(method, path, {} if method != "GET" else None, person.access))
        assert (answer.status, answer.code) == (403, "role_required"), f"{method} {path} answered {answer.status}"


@case(
    "K17",
    holds="an administrator who came with a remembered device administrates nothing",
    stems_from="NIST SP 800-63B section 2.2, ASVS 7.5.1",
    broken_by="admin_by_device",
    needs=("admin",),
)
def test_a_device_administrates_nothing(target: Target) -> None:
    person = target.person(device=True)
    path = f"/api/admin/users/{target.id_of(person)}"
    assert target.send(Call("PATCH", path, {"roles": ["admin"]}, target.admin())).status == 200
    by_device = person.login(deviceToken=person.tokens["deviceToken"]).json["accessToken"]
    for other in ("/api/admin/users", "/api/admin/policy", "/api/admin/audit", path):
        answer = target.get(other, by_device)
        assert (answer.status, answer.code) == (401, "step_up_required"), f"{other} answered {answer.status}"
    person.gets_in()
    assert target.get("/api/admin/users", person.access).status == 200, "who shows a code does"
