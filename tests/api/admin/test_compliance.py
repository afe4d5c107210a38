"""The report over HTTP: numbers and pages as JSON, the whole as CSV."""

import csv
import io
from typing import Any

import pytest
from flask.testing import FlaskClient
from sqlalchemy import event

from tests.administrators import administrator, id_of, promote, refusal, services_of
from tests.conftest import Clock
from tests.factories import register
from tests.services import Rows


def test_numbers_and_rows_agree(client: FlaskClient, root: dict[str, str], clock: Clock) -> None:
    for name in ("ada", "bob"):
        clock.advance(1)
        register(client, name)
    shown = client.get("/api/admin/compliance", headers=root).json
    assert {name: shown[name] for name in ("users", "enrolled", "late", "due", "free")} == {
        "users": 3,
        "enrolled": 1,
        "late": 2,
        "due": 0,
        "free": 0,
    }
    late = client.get("/api/admin/compliance?standing=late", headers=root).json["items"]
    assert [(row["username"], row["mfa"], row["standing"]) for row in late] == [
        ("bob", "none", "late"),
        ("ada", "none", "late"),
    ]


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)  # PostgreSQL reads each statement's own moment
def test_numbers_and_rows_are_of_one_moment(client: FlaskClient, root: dict[str, str], rows: Rows) -> None:
    register(client, "ada")

    @event.listens_for(services_of(client).engine, "after_cursor_execute")
    def delete_somebody(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if "FILTER" in statement:
            rows("DELETE FROM mfa_users WHERE username = 'ada'")

    shown = client.get("/api/admin/compliance", headers=root).json
    assert rows("SELECT username FROM mfa_users") == [{"username": "root"}]
    assert shown["users"] == len(shown["items"]) == 2


def test_the_csv_equals_the_pages(client: FlaskClient, root: dict[str, str], clock: Clock) -> None:
    for number in range(60):
        register(client, f"many{number}")
    answer = client.get("/api/admin/compliance?format=csv", headers=root)
    assert (answer.status_code, answer.mimetype) == (200, "text/csv")
    lines = list(csv.DictReader(io.StringIO(answer.text)))
    items, cursor = [], None
    while cursor != "":
        query = {"cursor": cursor} if cursor else {}
        shown = client.get("/api/admin/compliance", query_string=query, headers=root).json
        items += shown["items"]
        cursor = shown.get("next", "")
    assert sorted(item["id"] for item in items) == [line["id"] for line in lines]
    by_id = {item["id"]: item for item in items}
    for line in lines:
        item = by_id[line["id"]]
        assert (line["username"], line["email"], line["mfa"]) == (item["username"], item["email"], item["mfa"])
        assert (line["standing"], line["roles"]) == (item["standing"], " ".join(item["roles"]))


@pytest.mark.parametrize("name", ["=1+1", "+1", "-1", "@sum"])
def test_no_cell_is_a_formula(client: FlaskClient, root: dict[str, str], rows: Rows, name: str) -> None:
    register(client, name)
    user_id = services_of(client).directory.find_id(name)
    assert user_id
    rows("UPDATE mfa_users SET email = :email WHERE id = :id", email=f"{name}@example.com", id=user_id)
    answer = client.get("/api/admin/compliance?format=csv", headers=root)
    [line] = [line for line in csv.DictReader(io.StringIO(answer.text)) if line["id"] == user_id]
    assert (line["username"], line["email"]) == (f"'{name}", f"'{name}@example.com")


def test_no_role_is_a_formula(client: FlaskClient, root: dict[str, str]) -> None:
    register(client, "ada")
    promote(client, id_of(client, "ada"), "-role")
    answer = client.get("/api/admin/compliance?format=csv", headers=root)
    lines = list(csv.DictReader(io.StringIO(answer.text)))
    assert not [line["roles"] for line in lines if line["roles"].startswith(("=", "+", "-", "@"))]


@pytest.mark.parametrize("query", ["standing=all", "format=xml", "standing=", "format=", "cursor=%00"])
def test_a_bad_query_is_400(client: FlaskClient, root: dict[str, str], query: str) -> None:
    answer = client.get(f"/api/admin/compliance?{query}", headers=root)
    assert refusal(answer) == (400, "invalid_request")
    assert answer.json["fields"].keys() == {query.partition("=")[0]}


@pytest.fixture
def root(client: FlaskClient, clock: Clock) -> dict[str, str]:
    headers = administrator(client, clock())
    clock.advance(1)
    return headers
