"""A remembered device: asked for at verify-mfa, good at login in place of the code, never of the password."""

from collections.abc import Callable
from typing import Any

import jwt
import pytest
from flask import Flask
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from tests.conftest import Clock
from tests.factories import PASSWORD, Person, bearer, log_in, register
from tests.services import Rows


def test_a_device_is_remembered_only_if_that_is_asked_for(client: FlaskClient, ada: Person, clock: Clock) -> None:
    assert "deviceToken" not in sign_in(client, ada, clock, -1)
    assert "deviceToken" not in sign_in(client, ada, clock, 0, rememberDevice=False)
    assert len(sign_in(client, ada, clock, 1, rememberDevice=True)["deviceToken"]) >= 43


def test_the_device_and_the_password_sign_in_at_once(client: FlaskClient, ada: Person, clock: Clock) -> None:
    answer = log_in_with(client, sign_in(client, ada, clock, rememberDevice=True)["deviceToken"])
    assert answer.status_code == 200
    assert answer.headers["Cache-Control"] == "no-store"
    assert "Set-Cookie" not in answer.headers
    assert answer.json | {"accessToken": "…", "refreshToken": "…"} == {
        "message": "Authentication successful",
        "mfaRequired": False,
        "accessToken": "…",
        "refreshToken": "…",
        "tokenType": "Bearer",
        "expiresIn": 3600,
        "user": {"username": "ada", "email": ada.email},
    }
    assert client.get("/api/profile", headers=bearer(answer.json["accessToken"])).status_code == 200


def test_the_token_says_that_no_second_factor_was_shown(client: FlaskClient, ada: Person, clock: Clock) -> None:
    token = log_in_with(client, sign_in(client, ada, clock, rememberDevice=True)["deviceToken"]).json["accessToken"]
    claims = jwt.decode(token, options={"verify_signature": False})
    assert (claims["amr"], claims["acr"], claims["step"]) == (["pwd"], "pwd", "authenticated")
    answer = client.post("/api/mfa/recovery-codes", headers=bearer(token))
    assert (answer.status_code, answer.json["code"]) == (401, "step_up_required")


def test_the_device_never_replaces_the_password(client: FlaskClient, ada: Person, clock: Clock) -> None:
    token = sign_in(client, ada, clock, rememberDevice=True)["deviceToken"]
    with_it, without = (log_in_with(client, each, password="wrong") for each in (token, None))
    assert with_it.status_code == 401
    assert with_it.json == without.json == {"error": "Invalid credentials", "code": "invalid_credentials"}


def test_another_users_device_is_a_stranger(client: FlaskClient, ada: Person, clock: Clock) -> None:
    bobs = sign_in(client, register(client, "bob"), clock, rememberDevice=True)["deviceToken"]
    sign_in(client, ada, clock)
    assert log_in_with(client, bobs).json["mfaRequired"] is True
    assert log_in_with(client, bobs, username="bob").json["mfaRequired"] is False


@pytest.mark.parametrize("change", ["", " ", "x", "{0}x", " {0}", "{0}=", "\u00e9", "YWRhOmFkYQ"])
def test_what_is_no_device_is_asked_for_the_code_and_nothing_is_said_of_it(
    client: FlaskClient, ada: Person, clock: Clock, change: str
) -> None:
    token = sign_in(client, ada, clock, rememberDevice=True)["deviceToken"]
    with_it, without = (log_in_with(client, each) for each in (change.format(token), None))
    assert with_it.status_code == 200
    assert with_it.json | {"tempToken": ""} == without.json | {"tempToken": ""}


def test_the_same_token_is_good_until_thirty_days_are_over(client: FlaskClient, ada: Person, clock: Clock) -> None:
    token = sign_in(client, ada, clock, rememberDevice=True)["deviceToken"]
    for _ in range(2):
        assert log_in_with(client, token).json["mfaRequired"] is False
    clock.advance(30 * 86400 - 1)
    assert log_in_with(client, token).json["mfaRequired"] is False
    clock.advance(1)
    assert log_in_with(client, token).json["mfaRequired"] is True


def test_with_devices_switched_off_none_is_remembered_and_none_counts(
    client: FlaskClient, make_app: Callable[..., Flask], ada: Person, clock: Clock
) -> None:
    token = sign_in(client, ada, clock, rememberDevice=True)["deviceToken"]
    without = make_app(MFA_DEVICE_SECONDS=0).test_client()
    assert "deviceToken" not in sign_in(without, ada, clock, 1, rememberDevice=True)
    assert log_in_with(without, token).json["mfaRequired"] is True


def test_a_disabled_users_device_is_refused_like_a_wrong_password(
    client: FlaskClient, ada: Person, clock: Clock, rows: Rows
) -> None:
    token = sign_in(client, ada, clock, rememberDevice=True)["deviceToken"]
    rows("UPDATE mfa_users SET disabled_at = created_at")
    assert log_in_with(client, token).json["code"] == "invalid_credentials"


def test_only_a_digest_of_the_token_is_stored(client: FlaskClient, ada: Person, clock: Clock, rows: Rows) -> None:
    token = sign_in(client, ada, clock, rememberDevice=True)["deviceToken"]
    assert token not in str(rows("SELECT * FROM mfa_devices")) + str(rows("SELECT * FROM mfa_events"))


def test_a_name_may_have_64_characters_and_no_controls(client: FlaskClient, ada: Person, clock: Clock) -> None:
    body = {"tempToken": log_in(client, ada), "totpCode": ada.code(clock()), "rememberDevice": True}
    for name in ("x" * 65, "a\nb", 1):
        answer = client.post("/auth/verify-mfa", json=body | {"deviceName": name})
        assert (answer.status_code, set(answer.json["fields"])) == (400, {"deviceName"})
    assert client.post("/auth/verify-mfa", json=body | {"deviceName": "😀" * 64}).status_code == 200


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


def log_in_with(
    client: FlaskClient, device_token: str | None, username: str = "ada", password: str = PASSWORD
) -> TestResponse:
    body = {"username": username, "password": password}
    return client.post("/auth/login", json=body | ({"deviceToken": device_token} if device_token is not None else {}))
