"""POST /auth/refresh: a refresh token for its successor, and an access token of the same session."""

from typing import Any

import jwt
import pytest
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from tests.conftest import Clock
from tests.factories import Person, bearer, log_in, register
from tests.services import Rows

DEAD = (401, "invalid_refresh_token")


def test_a_refresh_token_gives_a_new_pair_and_nothing_else(client: FlaskClient, ada: Person, clock: Clock) -> None:
    first = sign_in(client, ada, clock)
    answer = refresh(client, first["refreshToken"])
    assert answer.status_code == 200
    assert answer.headers["Cache-Control"] == "no-store"
    assert answer.json.keys() == {"accessToken", "refreshToken", "tokenType", "expiresIn"}
    assert (answer.json["tokenType"], answer.json["expiresIn"]) == ("Bearer", 3600)
    assert answer.json["refreshToken"] != first["refreshToken"]
    assert is_alive(client, answer.json["accessToken"])
    assert is_alive(client, first["accessToken"])


def test_the_session_stays_the_same_and_the_time_of_the_factor_is_not_renewed(
    client: FlaskClient, ada: Person, clock: Clock
) -> None:
    first = sign_in(client, ada, clock)
    began = int(clock())
    clock.advance(1000)
    before, after = (
        claims_of(first["accessToken"]),
        claims_of(refresh(client, first["refreshToken"]).json["accessToken"]),
    )
    assert {name: after[name] for name in ("sub", "sid", "amr", "acr", "auth_time", "username", "step")} == {
        name: before[name] for name in ("sub", "sid", "amr", "acr", "auth_time", "username", "step")
    }
    assert (after["auth_time"], after["iat"]) == (began, began + 1000)
    assert after["jti"] != before["jti"]


def test_refreshing_never_raises_what_a_remembered_device_was_let_in_with(
    client: FlaskClient, ada: Person, clock: Clock
) -> None:
    device_token = sign_in(client, ada, clock, rememberDevice=True)["deviceToken"]
    body = {"username": ada.username, "password": ada.password, "deviceToken": device_token}
    answer = refresh(client, client.post("/auth/login", json=body).json["refreshToken"])
    assert (claims_of(answer.json["accessToken"])["amr"], claims_of(answer.json["accessToken"])["acr"]) == (
        ["pwd"],
        "pwd",
    )


def test_within_ten_seconds_the_same_token_gets_the_very_same_successor(
    client: FlaskClient, ada: Person, clock: Clock
) -> None:
    token = sign_in(client, ada, clock)["refreshToken"]
    first = refresh(client, token).json["refreshToken"]
    clock.advance(9.9)
    again = refresh(client, token)
    assert (again.status_code, again.json["refreshToken"]) == (200, first)
    assert refresh(client, first).status_code == 200


def test_after_ten_seconds_it_ends_the_session_and_all_that_came_of_it(
    client: FlaskClient, ada: Person, clock: Clock
) -> None:
    first = sign_in(client, ada, clock)
    newest = refresh(client, first["refreshToken"]).json
    clock.advance(10)
    answer = refresh(client, first["refreshToken"])
    assert answer.json == {"error": "Refresh token was used before", "code": "refresh_reused"}
    assert answer.status_code == 401
    assert 'error="invalid_token"' in answer.headers["WWW-Authenticate"]
    assert refusal(refresh(client, newest["refreshToken"])) == DEAD
    assert not is_alive(client, newest["accessToken"])
    assert not is_alive(client, first["accessToken"])


def test_two_generations_old_it_ends_the_session_at_once(client: FlaskClient, ada: Person, clock: Clock) -> None:
    oldest = sign_in(client, ada, clock)["refreshToken"]
    newest = refresh(client, refresh(client, oldest).json["refreshToken"]).json
    assert refusal(refresh(client, oldest)) == (401, "refresh_reused")
    assert refusal(refresh(client, newest["refreshToken"])) == DEAD


def test_a_copy_in_one_session_ends_no_other(client: FlaskClient, ada: Person, clock: Clock) -> None:
    other = sign_in(client, ada, clock)
    first = sign_in(client, ada, clock, 1)["refreshToken"]
    refresh(client, refresh(client, first).json["refreshToken"])
    assert refusal(refresh(client, first)) == (401, "refresh_reused")
    assert is_alive(client, other["accessToken"])
    assert refresh(client, other["refreshToken"]).status_code == 200


def test_a_session_that_was_not_refreshed_for_a_day_has_ended(client: FlaskClient, ada: Person, clock: Clock) -> None:
    token = sign_in(client, ada, clock)["refreshToken"]
    clock.advance(86399)
    token = refresh(client, token).json["refreshToken"]
    clock.advance(86400)
    assert refusal(refresh(client, token)) == DEAD


def test_no_refreshing_passes_the_absolute_end(client: FlaskClient, ada: Person, clock: Clock) -> None:
    token = sign_in(client, ada, clock)["refreshToken"]
    for _ in range(59):
        clock.advance(43_200)
        token = refresh(client, token).json["refreshToken"]
    clock.advance(43_200)
    assert refusal(refresh(client, token)) == DEAD


def test_a_locked_factor_stops_no_refresh(client: FlaskClient, ada: Person, clock: Clock) -> None:
    token = sign_in(client, ada, clock)["refreshToken"]
    pending = log_in(client, ada)
    for _ in range(5):
        client.post("/auth/verify-mfa", json={"tempToken": pending, "totpCode": "x"})
    assert refresh(client, token).status_code == 200


def test_a_disabled_user_refreshes_nothing(client: FlaskClient, ada: Person, clock: Clock, rows: Rows) -> None:
    token = sign_in(client, ada, clock)["refreshToken"]
    rows("UPDATE mfa_users SET disabled_at = created_at")
    assert refusal(refresh(client, token)) == DEAD


@pytest.mark.parametrize("change", ["", "x", ".", "{0}.", ".{0}", "{0}{0}", "{0} ", "A{0}", "\u0661{0}"])
def test_what_is_no_refresh_token_is_401_and_ends_nothing(
    client: FlaskClient, ada: Person, clock: Clock, change: str
) -> None:
    token = sign_in(client, ada, clock)["refreshToken"]
    answer = refresh(client, change.format(token))
    assert answer.json == {"error": "Invalid refresh token", "code": "invalid_refresh_token"}
    assert answer.status_code == 401
    assert refresh(client, token).status_code == 200


def test_no_part_of_a_refresh_token_can_be_another(client: FlaskClient, ada: Person, clock: Clock) -> None:
    token = sign_in(client, ada, clock)["refreshToken"]
    other = sign_in(client, ada, clock, 1)["refreshToken"]
    (session, generation, mac), (other_session, _, other_mac) = token.split("."), other.split(".")
    forged = [
        f"{session}.1.{mac}",
        f"{session}.00.{mac}",
        f"{session}.{generation}.{other_mac}",
        f"{other_session}.{generation}.{mac}",
        f"{session}.{generation}.{mac[:-1]}{'A' if mac[-1] != 'A' else 'B'}",
        f"{session}.-1.{mac}",
        f"{session}.999999999.{mac}",
    ]
    for text in forged:
        assert refusal(refresh(client, text)) == DEAD, text
    assert refresh(client, token).status_code == 200


def test_nothing_in_the_database_is_a_refresh_token(client: FlaskClient, ada: Person, clock: Clock, rows: Rows) -> None:
    token = sign_in(client, ada, clock)["refreshToken"]
    mac = token.rpartition(".")[2]
    assert mac not in str(rows("SELECT * FROM mfa_sessions")) + str(rows("SELECT * FROM mfa_events"))


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


def refresh(client: FlaskClient, token: str) -> TestResponse:
    return client.post("/auth/refresh", json={"refreshToken": token})


def claims_of(token: str) -> dict[str, Any]:
    found: dict[str, Any] = jwt.decode(token, options={"verify_signature": False})
    return found


def is_alive(client: FlaskClient, token: str) -> bool:
    return client.get("/api/profile", headers=bearer(token)).status_code == 200


def refusal(answer: TestResponse) -> tuple[int, str]:
    return answer.status_code, answer.json["code"]
