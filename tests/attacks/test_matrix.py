"""Every kind of token on every route that the service says it has."""

import functools
import re

from tests.attacks.case import case
from tests.attacks.target import Call, Target

METHODS = ("get", "post", "put", "patch", "delete")
#: What the document says of nobody: the paths of the document itself and of probes.
LET_THROUGH = frozenset({"no_token", "invalid_token", "full_authentication_required"})


@functools.cache
def _document(url: str, connect_to: tuple[str, int], ca: str) -> dict[str, dict[str, object]]:
    target = Target(url, "", connect_to, ca=ca)
    paths: dict[str, dict[str, object]] = target.get("/openapi.json").json["paths"]
    return paths


def operations(target: Target) -> list[tuple[str, str, bool]]:
    """Method and path of every operation, and whether the document says that it wants a token."""
    paths = _document(target.url, target.connect_to, target.ca)
    found = []
    for path, operations_of in paths.items():
        for method in METHODS:
            operation = operations_of.get(method)
            if isinstance(operation, dict):
                found.append((method.upper(), re.sub(r"\{\w+\}", "x", path), bool(operation.get("security"))))
    return found


def is_let_in(target: Target, method: str, path: str, token: str) -> bool:
    """Whether the guard took the token for one of its own kind, whatever comes after."""
    answer = target.send(Call(method, path, {} if method != "GET" else None, token))
    assert answer.status < 500, f"{method} {path} answered {answer.status}"
    return answer.code not in LET_THROUGH


@case(
    "D3",
    holds="every kind of token opens its own routes alone",
    stems_from="RFC 8725 section 3.12",
    broken_by="refresh_as_bearer",
)
def test_every_kind_of_token_opens_its_own_routes_alone(target: Target) -> None:
    person = target.person(device=True)
    others = {
        "nothing": "",
        "garbage": "garbage",
        "refresh token": person.tokens["refreshToken"],
        "device token": person.tokens["deviceToken"],
        "recovery code": person.tokens["recoveryCodes"][0],
        "pending token": person.pending(),
    }
    guarded = [(method, path) for method, path, is_guarded in operations(target) if is_guarded]
    for kind, token in others.items():
        let_in = [f"{method} {path}" for method, path in guarded if is_let_in(target, method, path, token)]
        assert not let_in, f"a {kind} opens {let_in}"


@case(
    "D3b",
    holds="in a body exactly one kind of token is taken",
    stems_from="RFC 8725 section 3.12",
    broken_by="access_as_pending",
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


@case(
    "K2",
    holds="no route that wants a token answers without one, by any method",
    stems_from="ASVS 8.3.1",
    broken_by="head_unguarded",
)
def test_nothing_answers_without_a_token(target: Target) -> None:
    for _, path, is_guarded in operations(target):
        if is_guarded:
            for method in ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"):
                answer = target.send(Call(method, path))
                assert answer.status in (401, 404, 405), f"{method} {path} answered {answer.status}"


@case(
    "K12",
    holds="a user's token opens no route of administrators",
    stems_from="ASVS 8.2.1",
    broken_by="admin_open",
)
def test_administration_is_for_administrators(target: Target) -> None:
    person = target.person()
    administration = [(method, path) for method, path, _ in operations(target) if path.startswith("/api/admin")]
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
    person.sign_in()
    assert target.get("/api/admin/users", person.access).status == 200, "who shows a code does"
