"""POST /auth/step-up, and the challenge that asks for it (RFC 9470)."""

from typing import Any

import jwt
import pytest
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from tests.conftest import Clock
from tests.factories import Person, bearer, log_in, register
from tests.services import Rows

STRICT = [
    ("POST", "/auth/password"),
    ("POST", "/api/mfa/totp"),
    ("POST", "/api/mfa/totp/confirm"),
    ("POST", "/api/mfa/recovery-codes"),
    ("DELETE", "/api/mfa"),
]


@pytest.mark.parametrize(("method", "path"), STRICT)
def test_five_minutes_after_the_code_it_is_asked_for_again(
    client: FlaskClient, ada: Person, clock: Clock, method: str, path: str
) -> None:
    token = sign_in(client, ada, clock)["accessToken"]
    clock.advance(299)
    assert client.open(path, method=method, json={}, headers=bearer(token)).status_code != 401
    clock.advance(1)
    answer = client.open(path, method=method, json={}, headers=bearer(token))
    assert answer.status_code == 401
    assert answer.json == {"error": "Recent second factor required", "code": "step_up_required"}
    assert answer.headers["WWW-Authenticate"] == (
        'Bearer realm="mfa_service", error="insufficient_user_authentication", max_age="300"'
    )
    assert answer.headers["Cache-Control"] == "no-store"


def test_a_code_gives_the_same_session_a_fresh_time(client: FlaskClient, ada: Person, clock: Clock) -> None:
    token = sign_in(client, ada, clock)["accessToken"]
    clock.advance(1000)
    answer = step_up(client, token, totpCode=ada.code(clock()))
    assert answer.status_code == 200
    assert answer.json.keys() == {"accessToken", "tokenType", "expiresIn"}
    assert answer.headers["Cache-Control"] == "no-store"
    before, after = claims_of(token), claims_of(answer.json["accessToken"])
    assert {name: after[name] for name in ("sub", "sid", "username")} == {
        name: before[name] for name in ("sub", "sid", "username")
    }
    assert (after["auth_time"], after["amr"], after["acr"]) == (int(clock()), ["pwd", "otp", "mfa"], "mfa")
    assert client.post("/api/mfa/recovery-codes", headers=bearer(answer.json["accessToken"])).status_code == 200
    # The token from before proves no more than it did.
    assert client.post("/api/mfa/recovery-codes", headers=bearer(token)).json["code"] == "step_up_required"


def test_a_remembered_device_steps_up_to_both_factors(client: FlaskClient, ada: Person, clock: Clock) -> None:
    device_token = sign_in(client, ada, clock, rememberDevice=True)["deviceToken"]
    body = {"username": ada.username, "password": ada.password, "deviceToken": device_token}
    token = client.post("/auth/login", json=body).json["accessToken"]
    assert client.post("/api/mfa/recovery-codes", headers=bearer(token)).json["code"] == "step_up_required"
    token = step_up(client, token, totpCode=ada.code(clock(), 1)).json["accessToken"]
    assert claims_of(token)["amr"] == ["pwd", "otp", "mfa"]
    assert client.post("/api/mfa/recovery-codes", headers=bearer(token)).status_code == 200


def test_a_recovery_code_does_it_too_and_the_token_says_so(client: FlaskClient, ada: Person, clock: Clock) -> None:
    signed_in = sign_in(client, ada, clock)
    code = signed_in["recoveryCodes"][0]
    answer = step_up(client, signed_in["accessToken"], recoveryCode=code)
    assert claims_of(answer.json["accessToken"])["amr"] == ["pwd", "recovery", "mfa"]
    again = step_up(client, signed_in["accessToken"], recoveryCode=code)
    assert (again.status_code, again.json["code"]) == (401, "invalid_recovery_code")


def test_refreshing_afterwards_keeps_the_time_of_the_last_code(client: FlaskClient, ada: Person, clock: Clock) -> None:
    signed_in = sign_in(client, ada, clock)
    clock.advance(1000)
    step_up(client, signed_in["accessToken"], totpCode=ada.code(clock()))
    stepped_up_at = int(clock())
    clock.advance(100)
    answer = client.post("/auth/refresh", json={"refreshToken": signed_in["refreshToken"]})
    assert claims_of(answer.json["accessToken"])["auth_time"] == stepped_up_at


def test_a_code_is_good_once_wherever_it_is_shown(client: FlaskClient, ada: Person, clock: Clock) -> None:
    token = sign_in(client, ada, clock)["accessToken"]
    pending = log_in(client, ada)
    assert step_up(client, token, totpCode=ada.code(clock())).json["code"] == "invalid_code"
    assert step_up(client, token, totpCode=ada.code(clock(), 1)).status_code == 200
    assert step_up(client, token, totpCode=ada.code(clock(), 1)).status_code == 401
    answer = client.post("/auth/verify-mfa", json={"tempToken": pending, "totpCode": ada.code(clock(), 1)})
    assert (answer.status_code, answer.json["code"]) == (401, "invalid_code")


def test_another_users_proof_is_none(client: FlaskClient, ada: Person, clock: Clock) -> None:
    bob = register(client, "bob")
    bobs = sign_in(client, bob, clock)
    token = sign_in(client, ada, clock)["accessToken"]
    assert step_up(client, token, totpCode=bob.code(clock(), 1)).json["code"] == "invalid_code"
    assert step_up(client, token, recoveryCode=bobs["recoveryCodes"][0]).json["code"] == "invalid_recovery_code"
    assert step_up(client, bobs["accessToken"], recoveryCode=bobs["recoveryCodes"][0]).status_code == 200


@pytest.mark.parametrize(
    "proof",
    [
        {},
        {"totpCode": "123456", "recoveryCode": "x"},
        {"totpCode": None, "recoveryCode": None},
        {"tempToken": "x"},
    ],
    ids=repr,
)
def test_exactly_one_proof_is_wanted_and_else_nothing_is_spent(
    client: FlaskClient, ada: Person, clock: Clock, rows: Rows, proof: dict[str, object]
) -> None:
    answer = step_up(client, sign_in(client, ada, clock)["accessToken"], **proof)
    assert (answer.status_code, answer.json["code"], set(answer.json["fields"])) == (
        400,
        "invalid_request",
        {"totpCode"},
    )
    assert rows("SELECT * FROM mfa_locks") == []


def test_wrong_codes_are_counted_together_with_those_of_verify_and_confirm(
    client: FlaskClient, ada: Person, clock: Clock, rows: Rows
) -> None:
    token = sign_in(client, ada, clock)["accessToken"]
    pending, surviving = log_in(client, ada), log_in(client, ada)
    client.post("/api/mfa/totp", headers=bearer(token))
    for _ in range(2):
        assert step_up(client, token, totpCode="x").json["code"] == "invalid_code"
        client.post("/auth/verify-mfa", json={"tempToken": pending, "totpCode": "x"})
    client.post("/api/mfa/totp/confirm", json={"totpCode": "x"}, headers=bearer(token))
    assert rows("SELECT subject, failures FROM mfa_locks") == [{"subject": "totp", "failures": 5}]
    # Locked: a right code is refused like a wrong one, and pending tokens are dead.
    answer = step_up(client, token, totpCode=ada.code(clock(), 1))
    assert answer.json == {"error": "Invalid TOTP code", "code": "invalid_code"}
    answer = client.post("/auth/verify-mfa", json={"tempToken": surviving, "totpCode": ada.code(clock(), 1)})
    assert answer.json["code"] == "invalid_pending_token"
    # A lock ends no session, and after the delay it is over.
    assert client.get("/api/profile", headers=bearer(token)).status_code == 200
    clock.advance(1)
    assert step_up(client, token, totpCode=ada.code(clock(), 1)).status_code == 200
    assert rows("SELECT * FROM mfa_locks") == []


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


def step_up(client: FlaskClient, token: str, **proof: object) -> TestResponse:
    return client.post("/auth/step-up", json=proof, headers=bearer(token))


def claims_of(token: str) -> dict[str, Any]:
    found: dict[str, Any] = jwt.decode(token, options={"verify_signature": False})
    return found
