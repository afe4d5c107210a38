"""Who gets at what: every admin route and every route with an id, tried by everybody who must not."""

from collections.abc import Callable

import pytest
from flask import Flask
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from mfa_service.services.administration import By, Changes
from tests.administrators import complete, everything, id_of, promote, refusal, services_of
from tests.conftest import Clock
from tests.factories import Person, bearer, log_in, register
from tests.services import CLIENT, Rows

MakeApp = Callable[..., Flask]

#: Every admin route, with a body that an administrator would be obeyed for.
ADMIN_ROUTES: dict[tuple[str, str], dict[str, object] | None] = {
    ("GET", "/api/admin/users"): None,
    ("GET", "/api/admin/users/<user_id>"): None,
    ("PATCH", "/api/admin/users/<user_id>"): {"roles": ["admin"], "disabled": True, "mfaRequired": True},
    ("DELETE", "/api/admin/users/<user_id>"): {"reason": "none"},
    ("POST", "/api/admin/users/<user_id>/reset-mfa"): {"reason": "none"},
    ("POST", "/api/admin/users/<user_id>/unlock"): {"reason": "none"},
    ("DELETE", "/api/admin/users/<user_id>/sessions"): {"reason": "none"},
    ("GET", "/api/admin/policy"): None,
    ("PUT", "/api/admin/policy"): {"mode": "optional"},
    ("POST", "/api/admin/policy/preview"): {"mode": "optional"},
    ("GET", "/api/admin/compliance"): None,
    ("GET", "/api/admin/audit"): None,
    ("GET", "/api/admin/audit/export"): None,
    ("GET", "/api/admin/audit/seals"): None,
}
#: Every other route with an id in it: it is one's own, or it is not there.
OWN_ROUTES = {
    ("DELETE", "/api/sessions/<session_id>"): "session",
    ("DELETE", "/api/devices/<device_id>"): "device",
}

NOTHING, PENDING, USER, OLD, BY_DEVICE = "none", "pending", "a user's", "an old one", "a remembered device's"
FORMER, DISABLED, GARBAGE = "a former administrator's", "a disabled administrator's", "garbage"
ADMIN, USER_BY_DEVICE, DELETED = "an administrator's", "a user's remembered device's", "a deleted administrator's"
REFUSED = {
    NOTHING: (401, "no_token"),
    GARBAGE: (401, "invalid_token"),
    PENDING: (401, "full_authentication_required"),
    USER: (403, "role_required"),
    USER_BY_DEVICE: (403, "role_required"),
    OLD: (401, "step_up_required"),
    BY_DEVICE: (401, "step_up_required"),
    FORMER: (403, "role_required"),
    DISABLED: (401, "invalid_token"),
    DELETED: (401, "invalid_token"),
}


def test_every_admin_route_has_a_row(app: Flask) -> None:
    routed = routes_of(app)
    assert {route for route in routed if route[1].startswith("/api/admin")} == set(ADMIN_ROUTES)


def test_every_other_route_with_an_id_has_a_row(app: Flask) -> None:
    is_other = lambda path: "<" in path and not path.startswith(("/api/admin", "/docs/"))  # noqa: E731
    others = {route for route in routes_of(app) if is_other(route[1])}
    assert others == set(OWN_ROUTES)


@pytest.mark.parametrize(("method", "path"), ADMIN_ROUTES)
def test_an_admin_route_is_closed_to_everybody_else(
    client: FlaskClient, tokens: dict[str, str], rows: Rows, method: str, path: str
) -> None:
    before = everything(rows)
    for kind, expected in REFUSED.items():
        for target in ("ada", "root"):
            answer = call(client, method, path, tokens[kind], target)
            assert refusal(answer) == expected, (kind, target)
            assert answer.json.keys() == {"error", "code"}
    assert everything(rows) == before


@pytest.mark.parametrize(("method", "path"), ADMIN_ROUTES)
def test_it_is_open_to_an_administrator_who_has_just_shown_a_second_factor(
    client: FlaskClient, tokens: dict[str, str], method: str, path: str
) -> None:
    assert call(client, method, path, tokens[ADMIN], "ada").status_code in (200, 204)


@pytest.mark.parametrize(("method", "path"), ADMIN_ROUTES)
def test_who_is_no_administrator_is_on_record(
    client: FlaskClient, tokens: dict[str, str], rows: Rows, method: str, path: str
) -> None:
    ids = {USER: id_of(client, "ada"), FORMER: id_of(client, "former")}
    last = rows("SELECT max(id) AS id FROM mfa_events")[0]["id"]
    for kind in (NOTHING, PENDING, OLD, BY_DEVICE, DISABLED, *ids):
        call(client, method, path, tokens[kind], "ada")
    found = rows("SELECT event, user_id FROM mfa_events WHERE id > :last ORDER BY id", last=last)
    assert found == [{"event": "access.refused", "user_id": ids[kind]} for kind in (USER, FORMER)]


@pytest.mark.parametrize(("method", "path"), ADMIN_ROUTES)
def test_whether_there_is_such_an_account_is_told_to_administrators_alone(
    client: FlaskClient, tokens: dict[str, str], method: str, path: str
) -> None:
    for kind, expected in REFUSED.items():
        assert refusal(call(client, method, path, tokens[kind], "nobody")) == expected


@pytest.mark.parametrize("user_id", ["nobody", "x" * 22, "%25", "ada", "x" * 300, "..%2f", "%00", "%ED%A0%80", "é"])
def test_nobody_is_not_found(client: FlaskClient, tokens: dict[str, str], rows: Rows, user_id: str) -> None:
    before = everything(rows)
    for (method, path), json in ADMIN_ROUTES.items():
        if "<user_id>" in path:
            body = {"json": json} if json else {}
            theirs = path.replace("<user_id>", user_id)
            answer = client.open(theirs, method=method, headers=bearer(tokens[ADMIN]), **body)
            assert refusal(answer) == (404, "not_found"), (method, theirs)
    assert everything(rows) == before


@pytest.mark.parametrize(("method", "path"), OWN_ROUTES)
def test_the_id_of_another_user_is_not_found(
    client: FlaskClient, tokens: dict[str, str], rows: Rows, method: str, path: str
) -> None:
    ada, before = id_of(client, "ada"), everything(rows)
    theirs = rows(f"SELECT id FROM mfa_{OWN_ROUTES[method, path]}s WHERE user_id = :ada", ada=ada)
    assert theirs
    for kind in (ADMIN, OLD, BY_DEVICE, FORMER):
        for row in theirs:
            answer = client.open(own(path, row["id"]), method=method, headers=bearer(tokens[kind]))
            assert refusal(answer) == (404, "not_found"), kind
    for kind in (NOTHING, PENDING, DISABLED, DELETED):
        answer = client.open(own(path, theirs[0]["id"]), method=method, headers=bearer(tokens[kind]) if kind else {})
        assert refusal(answer) == REFUSED[kind]
    assert everything(rows) == before


@pytest.mark.parametrize("row_id", ["x", "x" * 22, "x" * 300, "%25", "..%2f", "%00", "%ED%A0%80", "é"])
def test_an_id_of_nothing_is_not_found(client: FlaskClient, tokens: dict[str, str], rows: Rows, row_id: str) -> None:
    before = everything(rows)
    for method, path in OWN_ROUTES:
        answer = client.open(own(path, row_id), method=method, headers=bearer(tokens[USER]))
        assert refusal(answer) == (404, "not_found"), path
    assert everything(rows) == before


def test_own_lists_hold_nothing_of_others(client: FlaskClient, tokens: dict[str, str], rows: Rows) -> None:
    for name, kind in (("ada", USER), ("root", ADMIN)):
        for table in ("sessions", "devices"):
            own_ids = {
                row["id"] for row in rows(f"SELECT id FROM mfa_{table} WHERE user_id = :id", id=id_of(client, name))
            }
            listed = client.get(f"/api/{table}", headers=bearer(tokens[kind])).json["items"]
            assert {item["id"] for item in listed} == own_ids != set()


def test_an_administrator_whose_role_is_taken_is_out_at_the_next_request(
    client: FlaskClient, tokens: dict[str, str]
) -> None:
    assert client.get("/api/admin/users", headers=bearer(tokens[ADMIN])).status_code == 200
    promote(client, id_of(client, "former"), "admin")
    promote(client, id_of(client, "root"), "auditor")
    assert refusal(client.get("/api/admin/users", headers=bearer(tokens[ADMIN]))) == (403, "role_required")


def test_five_minutes_are_five_minutes(client: FlaskClient, tokens: dict[str, str], clock: Clock) -> None:
    clock.advance(299)
    assert client.get("/api/admin/users", headers=bearer(tokens[ADMIN])).status_code == 200
    clock.advance(1)
    answer = client.get("/api/admin/users", headers=bearer(tokens[ADMIN]))
    assert refusal(answer) == (401, "step_up_required")
    assert 'max_age="300"' in answer.headers["WWW-Authenticate"]


def test_a_role_in_the_token_or_the_body_is_worth_nothing(client: FlaskClient, tokens: dict[str, str]) -> None:
    body = {"mode": "optional", "role": "admin", "roles": {"admin": None}, "admin": True}
    headers = bearer(tokens[USER]) | {"X-Role": "admin", "X-Auth-Roles": "admin"}
    answer = client.put("/api/admin/policy?role=admin", json=body, headers=headers)
    assert refusal(answer) == (403, "role_required")


def test_calls_that_are_refused_are_counted_together_and_on_record_no_oftener(
    make_app: MakeApp, clock: Clock, rows: Rows
) -> None:
    client = make_app(MFA_ADMIN_RATE_LIMIT="3 per hour").test_client()
    token = complete(client, register(client, "ada"), clock())["accessToken"]
    paths = ["/api/admin/users", "/api/admin/policy", "/api/admin/audit", "/api/admin/users", "/api/admin/compliance"]
    answers = [client.get(path, headers=bearer(token)) for path in paths]
    assert [answer.status_code for answer in answers] == [403, 403, 403, 429, 429]
    assert answers[-1].json["code"] == "too_many_attempts"
    assert answers[-1].headers["Retry-After"] == str(answers[-1].json["retryAfter"])
    assert [row["event"] for row in rows("SELECT event FROM mfa_events")].count("access.refused") == 3
    assert client.get("/api/profile", headers=bearer(token)).status_code == 200


def test_who_is_let_in_is_not_kept_out_by_calls_that_were_refused(make_app: MakeApp, clock: Clock) -> None:
    client = make_app(MFA_ADMIN_RATE_LIMIT="2 per hour").test_client()
    people = [register(client, name) for name in ("ada", "root")]
    promote(client, id_of(client, "root"))
    ada, root = (complete(client, person, clock())["accessToken"] for person in people)
    assert [client.get("/api/admin/users", headers=bearer(ada)).status_code for _ in range(3)] == [403, 403, 429]
    assert [client.get("/api/admin/users", headers=bearer(root)).status_code for _ in range(3)] == [200] * 3
    preview = "/api/admin/policy/preview"
    for _ in range(3):
        client.post(preview, json={"mode": "optional"}, headers=bearer(ada))
    answers = [client.post(preview, json={"mode": "optional"}, headers=bearer(root)) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200, 200, 429]


# ── means ────────────────────────────────────────────────────────────────────────────────────────


def routes_of(app: Flask) -> set[tuple[str, str]]:
    return {(method, rule.rule) for rule in app.url_map.iter_rules() for method in rule.methods - {"HEAD", "OPTIONS"}}


def own(path: str, row_id: str) -> str:
    return path.replace("<session_id>", row_id).replace("<device_id>", row_id)


def call(client: FlaskClient, method: str, path: str, token: str, target: str) -> TestResponse:
    user_id = services_of(client).directory.find_id(target) or "x" * 22
    body = {"json": ADMIN_ROUTES[method, path]} if ADMIN_ROUTES[method, path] else {}
    headers = bearer(token) if token else {}
    return client.open(path.replace("<user_id>", user_id), method=method, headers=headers, **body)


def by_device(client: FlaskClient, person: Person, device_token: str) -> str:
    body = {"username": person.username, "password": person.password, "deviceToken": device_token}
    return str(client.post("/auth/login", json=body).json["accessToken"])


@pytest.fixture
def client(make_app: MakeApp) -> FlaskClient:
    """Without the limits: everybody is tried on every route."""
    limits = {f"MFA_{name}_RATE_LIMIT": "100000 per minute" for name in ("ADMIN", "SESSION")}
    return make_app(**limits).test_client()


@pytest.fixture
def tokens(client: FlaskClient, clock: Clock) -> dict[str, str]:
    """One token of everybody; `root` is the administrator, `ada` the user."""
    people = {name: register(client, name) for name in ("root", "ada", "former", "disabled", "deleted")}
    for name in ("root", "former", "disabled", "deleted"):
        promote(client, id_of(client, name))
    old = complete(client, people["root"], clock(), rememberDevice=True)
    clock.advance(300)
    fresh = {name: complete(client, person, clock(), rememberDevice=True) for name, person in people.items()}
    administration, reason = services_of(client).administration, By(CLIENT, reason="left the company")
    administration.change(By(CLIENT), id_of(client, "former"), Changes(roles=("auditor",)))
    administration.disable(reason, id_of(client, "disabled"))
    administration.delete(reason, id_of(client, "deleted"))
    return {
        NOTHING: "",
        GARBAGE: "garbage",
        PENDING: log_in(client, people["root"]),
        USER: fresh["ada"]["accessToken"],
        USER_BY_DEVICE: by_device(client, people["ada"], fresh["ada"]["deviceToken"]),
        OLD: old["accessToken"],
        BY_DEVICE: by_device(client, people["root"], fresh["root"]["deviceToken"]),
        FORMER: fresh["former"]["accessToken"],
        DISABLED: fresh["disabled"]["accessToken"],
        DELETED: fresh["deleted"]["accessToken"],
        ADMIN: fresh["root"]["accessToken"],
    }
