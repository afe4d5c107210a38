"""GET /api/profile: who you are, as of now."""

from typing import Any

import pytest
from flask.testing import FlaskClient

from tests.conftest import Clock
from tests.factories import Person, bearer, log_in, register
from tests.services import Rows


def test_a_profile_is_these_three_members(client: FlaskClient, ada: Person, clock: Clock) -> None:
    answer = client.get("/api/profile", headers=bearer(sign_in(client, ada, clock)["accessToken"]))
    assert answer.status_code == 200
    assert answer.json == {"username": "ada", "email": ada.email, "mfaEnabled": True}
    assert answer.headers["Cache-Control"] == "no-store"


def test_it_is_read_anew_each_time(client: FlaskClient, ada: Person, clock: Clock, rows: Rows) -> None:
    token = sign_in(client, ada, clock)["accessToken"]
    rows("UPDATE mfa_users SET email = 'new@example.com'")
    assert client.get("/api/profile", headers=bearer(token)).json["email"] == "new@example.com"


def test_a_token_is_good_for_an_hour_and_no_longer(client: FlaskClient, ada: Person, clock: Clock) -> None:
    token = sign_in(client, ada, clock)["accessToken"]
    clock.advance(3599)
    assert client.get("/api/profile", headers=bearer(token)).status_code == 200
    clock.advance(1)
    answer = client.get("/api/profile", headers=bearer(token))
    assert (answer.status_code, answer.json["code"]) == (401, "invalid_token")


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
