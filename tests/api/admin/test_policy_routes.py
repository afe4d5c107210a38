"""The policy over HTTP: shown, previewed, replaced; what can't be meant is refused and changes nothing."""

from typing import Any

import pytest
from flask.testing import FlaskClient

from tests.administrators import administrator, everything, refusal
from tests.conftest import Clock
from tests.factories import PASSWORD, register
from tests.services import Rows

AT = "2027-01-31T00:00:00Z"
WHOLE = {"mode": "optional", "roles": {"staff": None, "finance": {"days": 7}, "sales": {"at": AT}}}


def test_as_it_comes_everybody_must(client: FlaskClient, root: dict[str, str]) -> None:
    shown = client.get("/api/admin/policy", headers=root).json
    assert (shown["mode"], shown["roles"], shown.get("deadline")) == ("required", {}, None)


def test_what_is_put_is_what_is_shown(client: FlaskClient, root: dict[str, str]) -> None:
    put = client.put("/api/admin/policy", json=WHOLE, headers=root)
    assert put.status_code == 200
    assert put.json == client.get("/api/admin/policy", headers=root).json
    assert put.json["mode"] == "optional"
    assert put.json["roles"]["finance"] == {"days": 7}
    assert put.json["roles"]["sales"] == {"at": AT}
    assert client.put("/api/admin/policy", json={"mode": "required"}, headers=root).json["roles"] == {}


def test_it_holds_for_the_next_login(client: FlaskClient, root: dict[str, str]) -> None:
    register(client, "ada")
    client.put("/api/admin/policy", json={"mode": "optional"}, headers=root)
    body = {"username": "ada", "password": PASSWORD}
    assert client.post("/auth/login", json=body).json["mfaRequired"] is False
    client.put("/api/admin/policy", json={"mode": "required", "deadline": {"at": AT}}, headers=root)
    assert client.post("/auth/login", json=body).json["mfaDeadline"] == AT
    client.put("/api/admin/policy", json={"mode": "required"}, headers=root)
    assert client.post("/auth/login", json=body).json["mfaRequired"] is True


def test_a_preview_counts_and_changes_nothing(client: FlaskClient, root: dict[str, str], rows: Rows) -> None:
    register(client, "ada")
    before = everything(rows)
    answer = client.post("/api/admin/policy/preview", json={"mode": "optional"}, headers=root)
    expected = {"withoutFactor": 1, "required": 0, "late": 0, "newlyRequired": 0, "released": 1}
    assert answer.status_code == 200
    assert {name: answer.json[name] for name in expected} == expected
    assert everything(rows) == before


@pytest.mark.parametrize("route", ["PUT /api/admin/policy", "POST /api/admin/policy/preview"])
@pytest.mark.parametrize(
    ("body", "member"),
    [
        ({}, "mode"),
        ({"mode": "off"}, "mode"),
        ({"mode": None}, "mode"),
        ({"mode": 1}, "mode"),
        ({"mode": "required", "deadline": {}}, "deadline"),
        ({"mode": "required", "deadline": {"at": AT, "days": 1}}, "deadline"),
        ({"mode": "required", "deadline": {"at": "2027-01-31T00:00:00"}}, "deadline"),
        ({"mode": "required", "deadline": {"at": 1_800_000_000}}, "deadline"),
        ({"mode": "required", "deadline": {"at": "x"}}, "deadline"),
        ({"mode": "required", "deadline": {"days": 10**30}}, "deadline"),
        ({"mode": "required", "deadline": {"days": "7"}}, "deadline"),
        ({"mode": "required", "deadline": 7}, "deadline"),
        ({"mode": "optional", "roles": []}, "roles"),
        ({"mode": "optional", "roles": {"Admin": None}}, "roles"),
        ({"mode": "optional", "roles": {"": None}}, "roles"),
        ({"mode": "optional", "roles": {"a\u0000": None}}, "roles"),
        ({"mode": "optional", "roles": {"\ud800": None}}, "roles"),
        ({"mode": "optional", "roles": {"x" * 33: None}}, "roles"),
        ({"mode": "optional", "roles": {f"r{n}": None for n in range(33)}}, "roles"),
        ({"mode": "optional", "roles": {"staff": {"days": 366}}}, "roles"),
        ({"mode": "optional", "roles": {"staff": "now"}}, "roles"),
        ({"mode": "optional", "reason": "a\u0000"}, "reason"),
    ],
    ids=ascii,
)
def test_a_bad_body_is_400_with_its_member_and_changes_nothing(
    client: FlaskClient, root: dict[str, str], rows: Rows, route: str, body: Any, member: str
) -> None:
    method, path = route.split()
    before = everything(rows)
    answer = client.open(path, method=method, json=body, headers=root)
    assert refusal(answer) == (400, "invalid_request")
    assert member in answer.json["fields"]
    assert everything(rows) == before


@pytest.fixture
def root(client: FlaskClient, clock: Clock) -> dict[str, str]:
    return administrator(client, clock())
