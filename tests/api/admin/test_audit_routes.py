"""The audit log over HTTP: searched and exported by administrators; everybody sees their own events and no others."""

import json

import pytest
from flask.testing import FlaskClient

from tests.administrators import administrator, complete, id_of, refusal
from tests.conftest import Clock
from tests.factories import bearer, register


def test_it_is_searched_by_event_user_actor_and_time(client: FlaskClient, root: dict[str, str], clock: Clock) -> None:
    register(client, "ada")
    ada, admin = id_of(client, "ada"), id_of(client, "root")
    clock.advance(10)
    client.post(f"/api/admin/users/{ada}/unlock", json={"reason": "asked"}, headers=root)
    for query, expected in (
        ({"event": "user.unlocked"}, ["user.unlocked"]),
        ({"user": ada}, ["user.unlocked", "user.registered"]),
        ({"actor": admin}, ["user.unlocked"]),
        ({"user": ada, "from": "2023-11-14T22:13:25Z"}, ["user.unlocked"]),
        ({"user": ada, "to": "2023-11-14T22:13:25+00:00"}, ["user.registered"]),
        ({"event": "nothing.happened"}, []),
    ):
        answer = client.get("/api/admin/audit", query_string=query, headers=root)
        assert [item["event"] for item in answer.json["items"]] == expected, query
    [item] = client.get("/api/admin/audit?event=user.unlocked", headers=root).json["items"]
    assert (item["user"], item["actor"], item["detail"]) == (ada, admin, {"reason": "asked"})


def test_the_export_is_ndjson_and_on_record(client: FlaskClient, root: dict[str, str]) -> None:
    answer = client.get("/api/admin/audit/export", headers=root)
    assert (answer.status_code, answer.mimetype) == (200, "application/x-ndjson")
    events = [json.loads(line) for line in answer.text.splitlines()]
    assert events[0]["event"] == "audit.exported"
    assert events[0]["actor"] == id_of(client, "root")
    paged = client.get("/api/admin/audit", headers=root).json["items"]
    assert events == paged
    filtered = client.get("/api/admin/audit/export?event=user.registered", headers=root).text
    assert {json.loads(line)["event"] for line in filtered.splitlines()} == {"user.registered"}


def test_seals_come_with_the_keys_that_verify_them(client: FlaskClient, root: dict[str, str]) -> None:
    shown = client.get("/api/admin/audit/seals", headers=root).json
    assert [key["kty"] for key in shown["keys"]] == ["OKP"]


@pytest.mark.parametrize("path", ["/api/admin/audit", "/api/admin/audit/export"])
@pytest.mark.parametrize(
    ("query", "member"),
    [
        ("from=x", "from"),
        ("to=1700000000", "to"),
        ("from=2027-01-31T00:00:00", "from"),
        ("event=%00", "event"),
        ("user=%1b", "user"),
        ("actor=%00", "actor"),
    ],
)
def test_a_bad_query_is_400_and_nothing_is_on_record(
    client: FlaskClient, root: dict[str, str], path: str, query: str, member: str
) -> None:
    answer = client.get(f"{path}?{query}", headers=root)
    assert refusal(answer) == (400, "invalid_request")
    assert answer.json["fields"].keys() == {member}
    assert client.get("/api/admin/audit?event=audit.exported", headers=root).json["items"] == []


def test_everybody_sees_their_own_events_and_no_others(client: FlaskClient, root: dict[str, str], clock: Clock) -> None:
    ada = register(client, "ada")
    register(client, "bob")
    token = complete(client, ada, clock())["accessToken"]
    for query in ("", f"?user={id_of(client, 'bob')}", f"?user_id={id_of(client, 'bob')}&actor=x"):
        items = client.get(f"/api/activity{query}", headers=bearer(token)).json["items"]
        assert {item["user"] for item in items} == {id_of(client, "ada")}
        assert items[-1]["event"] == "user.registered"


@pytest.fixture
def root(client: FlaskClient, clock: Clock) -> dict[str, str]:
    return administrator(client, clock())
