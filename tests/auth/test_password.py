"""POST /auth/password: the old password and the new one, from somebody who has just shown a code."""

from typing import Any

import pytest
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from tests.conftest import Clock
from tests.factories import PASSWORD, Person, bearer, log_in, register
from tests.services import Rows

NEW = "difference-engine-1822"


def test_the_new_password_is_good_and_the_old_one_is_not(client: FlaskClient, ada: Person, clock: Clock) -> None:
    answer = change(client, sign_in(client, ada, clock)["accessToken"])
    assert (answer.status_code, answer.data) == (204, b"")
    assert answer.headers["Cache-Control"] == "no-store"
    statuses = [
        client.post("/auth/login", json={"username": "ada", "password": password}).status_code
        for password in (PASSWORD, NEW)
    ]
    assert statuses == [401, 200]


def test_everything_but_this_session_ends(client: FlaskClient, ada: Person, clock: Clock) -> None:
    other = sign_in(client, ada, clock, rememberDevice=True)
    this = sign_in(client, ada, clock, 1)
    pending = log_in(client, ada)
    assert change(client, this["accessToken"]).status_code == 204
    assert is_alive(client, this["accessToken"])
    assert client.post("/auth/refresh", json={"refreshToken": this["refreshToken"]}).status_code == 200
    assert not is_alive(client, other["accessToken"])
    assert client.post("/auth/refresh", json={"refreshToken": other["refreshToken"]}).status_code == 401
    body = {"username": "ada", "password": NEW, "deviceToken": other["deviceToken"]}
    assert client.post("/auth/login", json=body).json["mfaRequired"] is True
    answer = client.post("/auth/verify-mfa", json={"tempToken": pending, "totpCode": ada.code(clock(), 2)})
    assert answer.json["code"] == "invalid_pending_token"


def test_a_wrong_password_is_a_failed_attempt_and_changes_nothing(
    client: FlaskClient, ada: Person, clock: Clock, rows: Rows
) -> None:
    token = sign_in(client, ada, clock)["accessToken"]
    answer = change(client, token, current="wrong")
    assert answer.status_code == 401
    assert answer.json == {"error": "Invalid credentials", "code": "invalid_credentials"}
    assert {row["failures"] for row in rows("SELECT failures FROM mfa_locks")} == {1}
    for _ in range(4):
        change(client, token, current="wrong")
    assert change(client, token).json["code"] == "invalid_credentials"
    clock.advance(1)
    assert change(client, token).status_code == 204


@pytest.mark.parametrize("new", ["short", "password", "ada", "analytical-engine-1843\u0000", "x" * 1025])
def test_a_new_password_that_does_not_do_is_400_and_spends_nothing(
    client: FlaskClient, ada: Person, clock: Clock, rows: Rows, new: str
) -> None:
    answer = change(client, sign_in(client, ada, clock)["accessToken"], current="wrong", new=new)
    assert (answer.status_code, set(answer.json["fields"])) == (400, {"newPassword"})
    assert rows("SELECT * FROM mfa_locks") == []
    log_in(client, ada)


def test_neither_password_is_in_the_answer(client: FlaskClient, ada: Person, clock: Clock) -> None:
    token = sign_in(client, ada, clock)["accessToken"]
    for answer in (
        change(client, token, current="wrong-" + NEW),
        change(client, token, new="1"),
        change(client, token),
    ):
        assert PASSWORD not in answer.text
        assert NEW not in answer.text


def test_a_device_or_an_old_code_changes_no_password(client: FlaskClient, ada: Person, clock: Clock) -> None:
    signed_in = sign_in(client, ada, clock, rememberDevice=True)
    body = {"username": "ada", "password": PASSWORD, "deviceToken": signed_in["deviceToken"]}
    by_device = client.post("/auth/login", json=body).json["accessToken"]
    clock.advance(300)
    for token in (by_device, signed_in["accessToken"]):
        assert change(client, token).json["code"] == "step_up_required"
    log_in(client, ada)


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


def change(client: FlaskClient, token: str, current: str = PASSWORD, new: str = NEW) -> TestResponse:
    body = {"currentPassword": current, "newPassword": new}
    return client.post("/auth/password", json=body, headers=bearer(token))


def is_alive(client: FlaskClient, token: str) -> bool:
    return client.get("/api/profile", headers=bearer(token)).status_code == 200
