"""POST /auth/register: one account, shown its secret once."""

import re
from collections.abc import Callable
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient

from tests.conftest import Clock
from tests.factories import PASSWORD, log_in, register, sign_in
from tests.services import GROWING, Rows

ADA = {"username": "ada", "password": PASSWORD, "email": "ada@example.com"}


def test_the_answer_is_a_message_a_qr_code_and_a_key(client: FlaskClient) -> None:
    answer = client.post("/auth/register", json=ADA)
    assert answer.status_code == 200
    assert set(answer.json) == {"message", "qrCode", "manualEntryKey"}
    assert answer.json["message"] == "User registered successfully"
    assert answer.json["qrCode"].startswith("data:image/png;base64,")
    assert re.fullmatch("[A-Z2-7]{32,}", answer.json["manualEntryKey"])


@pytest.mark.parametrize("other", ["bob", "BOB", "Bob", "ｂｏｂ"])
def test_a_name_that_is_taken_is_400_and_shows_nothing(client: FlaskClient, clock: Clock, other: str) -> None:
    bob = register(client, "bob")
    answer = client.post("/auth/register", json=ADA | {"username": other, "password": "another-engine-1843"})
    assert (answer.status_code, answer.json) == (400, {"error": "User already exists", "code": "user_exists"})
    assert sign_in(client, bob, clock())


def test_an_address_that_folding_makes_three_times_as_long_does(client: FlaskClient, rows: Rows) -> None:
    assert client.post("/auth/register", json=ADA | {"email": GROWING}).status_code == 200
    assert rows("SELECT email FROM mfa_users") == [{"email": GROWING}]


@pytest.mark.parametrize("member", ["username", "password", "email"])
@pytest.mark.parametrize("value", [None, 1, True, 1.5, [], ["x"], {}, {"$ne": ""}], ids=repr)
def test_a_member_that_is_no_string_is_400_and_named(client: FlaskClient, member: str, value: object) -> None:
    answer = client.post("/auth/register", json=ADA | {member: value})
    assert (answer.status_code, answer.json["code"]) == (400, "invalid_request")
    assert set(answer.json["fields"]) == {member}


def test_all_members_that_are_missing_are_named(client: FlaskClient) -> None:
    answer = client.post("/auth/register", json={})
    assert answer.status_code == 400
    assert answer.json["fields"] == dict.fromkeys(ADA, "is required")


@pytest.mark.parametrize(
    "username", ["аdmin", "user\u200b", "\u202eadmin", "a\u0000b", "\ud800", "ﷺ" * 64, "a:b", "", " "]
)
def test_a_name_that_nobody_can_have_is_400(client: FlaskClient, rows: Rows, username: str) -> None:
    answer = client.post("/auth/register", json=ADA | {"username": username})
    assert (answer.status_code, set(answer.json["fields"])) == (400, {"username"})
    assert rows("SELECT * FROM mfa_users") == []


@pytest.mark.parametrize(
    ("password", "reason"),
    [
        ("é" * 7, "must have at least 8 characters"),
        ("password123", "is on the list of common passwords"),
        ("ada2026!", "is built on the user name, the e-mail address or the name of this service"),
        ("é" * 513, "must not be longer than 1024 bytes"),
    ],
)
def test_a_weak_password_is_400_with_the_reason(client: FlaskClient, password: str, reason: str) -> None:
    answer = client.post("/auth/register", json=ADA | {"password": password})
    assert answer.status_code == 400
    assert answer.json == {"error": "Password refused", "code": "weak_password", "fields": {"password": reason}}


@pytest.mark.parametrize(
    "password", ["é" * 8, "😀" * 64, "correct horse battery staple", " " * 20 + "letters", "x" * 1024]
)
def test_a_long_enough_password_of_any_characters_registers_and_logs_in(client: FlaskClient, password: str) -> None:
    assert log_in(client, register(client, "ada", password))


@pytest.mark.parametrize(("characters", "status"), [(1025, 400), (60_000, 400), (2**20, 413)])
def test_a_password_past_the_maximum_is_refused_unhashed(client: FlaskClient, characters: int, status: int) -> None:
    for path in ("/auth/register", "/auth/login"):
        assert client.post(path, json=ADA | {"password": "x" * characters}).status_code == status


def test_a_nul_in_a_password_is_refused(client: FlaskClient) -> None:
    for path in ("/auth/register", "/auth/login"):
        answer = client.post(path, json=ADA | {"password": "analytical\0engine"})
        assert (answer.status_code, set(answer.json["fields"])) == (400, {"password"})


def test_members_that_nobody_asked_for_are_bound_to_nothing(client: FlaskClient, rows: Rows) -> None:
    privileges: dict[str, Any] = {
        "is_admin": True,
        "mfa_enabled": True,
        "mfaEnabled": True,
        "role": "admin",
        "id": 1,
        "disabled_at": "2020-01-01T00:00:00Z",
        "confirmed_at": "2020-01-01T00:00:00Z",
        "secret": "A" * 32,
        "username_key": "root",
        "usernameKey": "root",
    }
    answer = client.post("/auth/register", json=ADA | privileges)
    assert answer.json["manualEntryKey"] != "A" * 32
    [user] = rows("SELECT * FROM mfa_users")
    assert (user["username"], user["username_key"], user["disabled_at"]) == ("ada", "ada", None)
    assert len(user["id"]) == 22
    assert rows("SELECT confirmed_at, last_step FROM mfa_secrets") == [{"confirmed_at": None, "last_step": -1}]


def test_switched_off_it_is_403_and_not_in_the_document(make_app: Callable[..., Flask], rows: Rows) -> None:
    client = make_app(MFA_REGISTRATION_OPEN=False).test_client()
    answer = client.post("/auth/register", json=ADA)
    assert (answer.status_code, answer.json["code"]) == (403, "registration_closed")
    assert rows("SELECT * FROM mfa_users") == []
    assert "/auth/register" not in client.get("/openapi.json").json["paths"]
    assert "/auth/register" in make_app().test_client().get("/openapi.json").json["paths"]


def test_a_name_is_shown_as_it_was_typed_and_compared_as_it_is_meant(client: FlaskClient, clock: Clock) -> None:
    ada = register(client, "Ada.Lovelace")
    body = {"username": "ADA.LOVELACE", "password": ada.password}
    token = client.post("/auth/login", json=body).json["tempToken"]
    answer = client.post("/auth/verify-mfa", json={"tempToken": token, "totpCode": ada.code(clock())})
    assert answer.json["user"]["username"] == "Ada.Lovelace"
