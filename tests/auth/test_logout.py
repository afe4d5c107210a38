"""POST /auth/logout: this session, or all of them, at once."""

from typing import Any

import pytest
from flask.testing import FlaskClient

from tests.conftest import Clock
from tests.factories import Person, bearer, log_in, register
from tests.services import Rows

#: What many clients send where there is nothing to say.
EMPTY = {"data": b"", "content_type": "application/json"}


@pytest.mark.parametrize("request_of", [{}, {"json": {}}, {"json": {"everywhere": False}}, EMPTY], ids=repr)
def test_this_session_ends_at_once_and_no_other(
    client: FlaskClient, ada: Person, clock: Clock, request_of: dict[str, Any]
) -> None:
    this, other = sign_in(client, ada, clock), sign_in(client, ada, clock, 1)
    answer = client.post("/auth/logout", headers=bearer(this["accessToken"]), **request_of)
    assert (answer.status_code, answer.data) == (204, b"")
    assert answer.headers["Cache-Control"] == "no-store"
    assert "Content-Type" not in answer.headers
    profile = client.get("/api/profile", headers=bearer(this["accessToken"]))
    assert profile.json == {"error": "Invalid or expired token", "code": "invalid_token"}
    assert client.post("/auth/refresh", json={"refreshToken": this["refreshToken"]}).status_code == 401
    assert is_alive(client, other["accessToken"])


def test_everywhere_ends_all_sessions_devices_and_pending_tokens(
    client: FlaskClient, ada: Person, clock: Clock
) -> None:
    this, other = sign_in(client, ada, clock), sign_in(client, ada, clock, 1, rememberDevice=True)
    pending = log_in(client, ada)
    bobs = sign_in(client, register(client, "bob"), clock)
    answer = client.post("/auth/logout", json={"everywhere": True}, headers=bearer(this["accessToken"]))
    assert (answer.status_code, answer.data) == (204, b"")
    for ended in (this, other):
        assert not is_alive(client, ended["accessToken"])
        assert client.post("/auth/refresh", json={"refreshToken": ended["refreshToken"]}).status_code == 401
    body = {"username": "ada", "password": ada.password, "deviceToken": other["deviceToken"]}
    assert client.post("/auth/login", json=body).json["mfaRequired"] is True
    answer = client.post("/auth/verify-mfa", json={"tempToken": pending, "totpCode": ada.code(clock(), 2)})
    assert answer.json["code"] == "invalid_pending_token"
    assert is_alive(client, bobs["accessToken"])


def test_who_has_logged_out_can_not_do_it_again(client: FlaskClient, ada: Person, clock: Clock) -> None:
    token = sign_in(client, ada, clock)["accessToken"]
    statuses = [client.post("/auth/logout", headers=bearer(token)).status_code for _ in range(2)]
    assert statuses == [204, 401]


def test_one_logout_is_recorded_once(client: FlaskClient, ada: Person, clock: Clock, rows: Rows) -> None:
    client.post("/auth/logout", headers=bearer(sign_in(client, ada, clock)["accessToken"]))
    assert len(rows("SELECT id FROM mfa_events WHERE event = 'session.ended'")) == 1


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


def is_alive(client: FlaskClient, token: str) -> bool:
    return client.get("/api/profile", headers=bearer(token)).status_code == 200
