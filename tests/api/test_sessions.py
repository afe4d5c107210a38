"""Own sessions and remembered devices: listed, ended, and never anybody else's."""

from typing import Any
from urllib.parse import quote

import pytest
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from tests.conftest import Clock
from tests.factories import Person, bearer, log_in, register
from tests.services import Rows

# ── sessions ─────────────────────────────────────────────────────────────────────────────────────


def test_own_sessions_are_listed_newest_first_and_say_which_this_is(
    client: FlaskClient, ada: Person, clock: Clock
) -> None:
    older = sign_in(client, ada, clock)
    clock.advance(60)
    sign_in(client, register(client, "bob"), clock)
    sign_in(client, ada, clock, rememberDevice=True)
    answer = client.get("/api/sessions", headers=bearer(older["accessToken"]))
    assert answer.status_code == 200
    assert answer.headers["Cache-Control"] == "no-store"
    assert answer.json.keys() == {"items"}
    newest, oldest = answer.json["items"]
    assert (newest["isCurrent"], oldest["isCurrent"]) == (False, True)
    assert oldest | {"id": ""} == {
        "id": "",
        "startedAt": "2023-11-14T22:13:20Z",
        "lastSeenAt": oldest["lastSeenAt"],
        "expiresAt": "2023-12-14T22:13:20Z",
        "address": "127.0.0.1",
        "userAgent": oldest["userAgent"],
        "amr": ["pwd", "otp", "mfa"],
        "isCurrent": True,
    }
    assert newest["startedAt"] == "2023-11-14T22:14:20Z"


def test_a_session_that_is_ended_is_dead_at_once_and_leaves_the_list(
    client: FlaskClient, ada: Person, clock: Clock
) -> None:
    this, other = sign_in(client, ada, clock), sign_in(client, ada, clock, 1)
    [session_id] = [item["id"] for item in sessions(client, this) if not item["isCurrent"]]
    answer = client.delete(f"/api/sessions/{session_id}", headers=bearer(this["accessToken"]))
    assert (answer.status_code, answer.data) == (204, b"")
    assert client.get("/api/profile", headers=bearer(other["accessToken"])).status_code == 401
    assert client.post("/auth/refresh", json={"refreshToken": other["refreshToken"]}).status_code == 401
    assert [item["isCurrent"] for item in sessions(client, this)] == [True]
    again = client.delete(f"/api/sessions/{session_id}", headers=bearer(this["accessToken"]))
    assert refusal(again) == (404, "not_found")


def test_nobody_ends_anybody_elses_session(client: FlaskClient, ada: Person, clock: Clock) -> None:
    bobs = sign_in(client, register(client, "bob"), clock)
    [theirs] = sessions(client, bobs)
    mine = sign_in(client, ada, clock)
    answer = client.delete(f"/api/sessions/{theirs['id']}", headers=bearer(mine["accessToken"]))
    unknown = client.delete("/api/sessions/unknown", headers=bearer(mine["accessToken"]))
    assert refusal(answer) == refusal(unknown) == (404, "not_found")
    assert answer.data == unknown.data
    assert client.get("/api/profile", headers=bearer(bobs["accessToken"])).status_code == 200


def test_many_sessions_come_in_pages(client: FlaskClient, ada: Person, clock: Clock) -> None:
    first = sign_in(client, ada, clock, rememberDevice=True)
    body = {"username": "ada", "password": ada.password, "deviceToken": first["deviceToken"]}
    for number in range(119):
        clock.advance(number % 2)  # some began at the very same moment
        client.post("/auth/login", json=body)
    pages, cursor = [], {}
    while True:
        page = client.get("/api/sessions", query_string=cursor, headers=bearer(first["accessToken"])).json
        pages.append(page["items"])
        if "next" not in page:
            break
        cursor = {"cursor": page["next"]}
    assert [len(page) for page in pages] == [50, 50, 20]
    items = [item for page in pages for item in page]
    assert len({item["id"] for item in items}) == 120
    assert [item["startedAt"] for item in items] == sorted((item["startedAt"] for item in items), reverse=True)


@pytest.mark.parametrize("path", ["/api/sessions", "/api/devices"])
@pytest.mark.parametrize("cursor", ["", "x", "'", "\x00", "a\x00b", "\u00e9", "x" * 5000, "\ud800"], ids=ascii)
def test_a_cursor_that_is_none_gives_an_empty_page(
    client: FlaskClient, ada: Person, clock: Clock, path: str, cursor: str
) -> None:
    signed_in = sign_in(client, ada, clock, rememberDevice=True)
    environ = {"QUERY_STRING": "cursor=" + quote(cursor, errors="surrogatepass")}
    answer = client.get(path, headers=bearer(signed_in["accessToken"]), environ_overrides=environ)
    assert answer.status_code in (200, 400)
    assert answer.status_code == 400 or answer.json["items"] == []


@pytest.mark.parametrize("path", ["/api/sessions/", "/api/devices/"])
@pytest.mark.parametrize("name", ["x", "'", "\x00", "a\x00b", "\u00e9", "x" * 5000, "..", "%"], ids=ascii)
def test_an_id_that_is_none_is_404(client: FlaskClient, ada: Person, clock: Clock, path: str, name: str) -> None:
    token = sign_in(client, ada, clock)["accessToken"]
    environ = {"PATH_INFO": path + name.encode().decode("latin-1")}
    answer = client.open("/", method="DELETE", headers=bearer(token), environ_overrides=environ)
    assert refusal(answer) == (404, "not_found")


def test_when_a_session_was_last_seen_is_written_at_most_once_a_minute(
    client: FlaskClient, ada: Person, clock: Clock, rows: Rows
) -> None:
    signed_in = sign_in(client, ada, clock)
    seen = []
    for _ in range(5):
        clock.advance(29)
        client.get("/api/profile", headers=bearer(signed_in["accessToken"]))
        seen.append(str(rows("SELECT seen_at FROM mfa_sessions")[0]["seen_at"]))
    assert seen[0] == seen[1] != seen[2] == seen[3] == seen[4]


# ── devices ──────────────────────────────────────────────────────────────────────────────────────


def test_own_devices_are_listed_with_all_but_their_token(client: FlaskClient, ada: Person, clock: Clock) -> None:
    signed_in = sign_in(client, ada, clock, rememberDevice=True, deviceName="Ada's laptop")
    sign_in(client, register(client, "bob"), clock, rememberDevice=True)
    answer = client.get("/api/devices", headers=bearer(signed_in["accessToken"]))
    assert answer.status_code == 200
    assert answer.headers["Cache-Control"] == "no-store"
    [device] = answer.json["items"]
    assert device | {"id": "", "userAgent": ""} == {
        "id": "",
        "name": "Ada's laptop",
        "address": "127.0.0.1",
        "userAgent": "",
        "trustedAt": "2023-11-14T22:13:20Z",
        "lastUsedAt": "2023-11-14T22:13:20Z",
        "expiresAt": "2023-12-14T22:13:20Z",
    }
    assert signed_in["deviceToken"] not in answer.text


def test_one_of_two_devices_is_forgotten_and_the_other_stays(client: FlaskClient, ada: Person, clock: Clock) -> None:
    one = sign_in(client, ada, clock, rememberDevice=True, deviceName="one")
    two = sign_in(client, ada, clock, 1, rememberDevice=True, deviceName="two")
    ids = {device["name"]: device["id"] for device in devices(client, one)}
    assert client.delete(f"/api/devices/{ids['one']}", headers=bearer(two["accessToken"])).status_code == 204
    assert (asks_for_a_code(client, ada, one), asks_for_a_code(client, ada, two)) == (True, False)
    again = client.delete(f"/api/devices/{ids['one']}", headers=bearer(two["accessToken"]))
    assert refusal(again) == (404, "not_found")


def test_all_own_devices_are_forgotten_and_nobody_elses(client: FlaskClient, ada: Person, clock: Clock) -> None:
    bob = register(client, "bob")
    bobs = sign_in(client, bob, clock, rememberDevice=True)
    mine = sign_in(client, ada, clock, rememberDevice=True)
    answer = client.delete("/api/devices", headers=bearer(mine["accessToken"]))
    assert (answer.status_code, answer.data) == (204, b"")
    assert devices(client, mine) == []
    assert (asks_for_a_code(client, ada, mine), asks_for_a_code(client, bob, bobs)) == (True, False)
    assert client.get("/api/profile", headers=bearer(mine["accessToken"])).status_code == 200


def test_nobody_forgets_anybody_elses_device(client: FlaskClient, ada: Person, clock: Clock) -> None:
    bob = register(client, "bob")
    bobs = sign_in(client, bob, clock, rememberDevice=True)
    [theirs] = devices(client, bobs)
    mine = sign_in(client, ada, clock)
    answer = client.delete(f"/api/devices/{theirs['id']}", headers=bearer(mine["accessToken"]))
    assert refusal(answer) == (404, "not_found")
    assert not asks_for_a_code(client, bob, bobs)


# ── means ────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def ada(client: FlaskClient) -> Person:
    return register(client, "ada")


def sign_in(client: FlaskClient, person: Person, clock: Clock, steps: int = 0, **wishes: object) -> dict[str, Any]:
    """Everything that a full sign-in is answered with."""
    body = {"tempToken": log_in(client, person), "totpCode": person.code(clock(), steps)} | wishes
    answer = client.post("/auth/verify-mfa", json=body)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json
    return found


def sessions(client: FlaskClient, signed_in: dict[str, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = client.get("/api/sessions", headers=bearer(signed_in["accessToken"])).json["items"]
    return found


def devices(client: FlaskClient, signed_in: dict[str, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = client.get("/api/devices", headers=bearer(signed_in["accessToken"])).json["items"]
    return found


def asks_for_a_code(client: FlaskClient, person: Person, signed_in: dict[str, Any]) -> bool:
    body = {"username": person.username, "password": person.password, "deviceToken": signed_in["deviceToken"]}
    return bool(client.post("/auth/login", json=body).json["mfaRequired"])


def refusal(answer: TestResponse) -> tuple[int, str]:
    return answer.status_code, answer.json["code"]
