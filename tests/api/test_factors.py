"""Own second factors: shown, replaced, renewed, and not given up."""

import dataclasses
import re
from typing import Any

import pytest
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from tests.conftest import Clock
from tests.factories import Person, bearer, log_in, register
from tests.services import Rows


def test_what_an_account_has_is_told_and_no_secret_of_it(client: FlaskClient, ada: Person, clock: Clock) -> None:
    signed_in = sign_in(client, ada, clock)
    answer = client.get("/api/mfa", headers=bearer(signed_in["accessToken"]))
    assert answer.status_code == 200
    assert answer.headers["Cache-Control"] == "no-store"
    assert answer.json == {
        "methods": ["totp", "recovery_code"],
        "recoveryCodesLeft": 10,
        "roles": [],
        "policy": "required",
        "mfaRequired": True,
    }


def test_used_codes_are_no_longer_counted(client: FlaskClient, ada: Person, clock: Clock) -> None:
    signed_in = sign_in(client, ada, clock)
    for code in signed_in["recoveryCodes"]:
        client.post("/auth/step-up", json={"recoveryCode": code}, headers=bearer(signed_in["accessToken"]))
    answer = client.get("/api/mfa", headers=bearer(signed_in["accessToken"]))
    assert (answer.json["methods"], answer.json["recoveryCodesLeft"]) == (["totp"], 0)


def test_without_a_second_factor_nobody_goes_on_while_policy_wants_one(
    client: FlaskClient, ada: Person, clock: Clock
) -> None:
    token = sign_in(client, ada, clock)["accessToken"]
    answer = client.delete("/api/mfa", headers=bearer(token))
    assert answer.status_code == 403
    assert answer.json == {"error": "A second factor is required", "code": "mfa_required"}
    assert client.get("/api/profile", headers=bearer(token)).json["mfaEnabled"] is True
    assert sign_in(client, ada, clock, 1)


# ── replacing the authenticator ──────────────────────────────────────────────────────────────────


def test_the_new_authenticator_is_shown_once(client: FlaskClient, ada: Person, clock: Clock) -> None:
    token = sign_in(client, ada, clock)["accessToken"]
    answer = client.post("/api/mfa/totp", headers=bearer(token))
    assert answer.status_code == 200
    assert answer.headers["Cache-Control"] == "no-store"
    assert answer.json.keys() == {"qrCode", "manualEntryKey", "expiresIn"}
    assert answer.json["qrCode"].startswith("data:image/png;base64,")
    assert (len(answer.json["manualEntryKey"]), answer.json["expiresIn"]) == (32, 600)
    again = client.post("/api/mfa/totp", headers=bearer(token))
    assert again.json["manualEntryKey"] != answer.json["manualEntryKey"] != ada.secret
    for other in (client.get("/api/mfa", headers=bearer(token)), confirm(client, token, "x")):
        assert again.json["manualEntryKey"] not in other.text


def test_the_old_one_works_until_the_new_one_is_confirmed_and_no_longer(
    client: FlaskClient, ada: Person, clock: Clock
) -> None:
    token = sign_in(client, ada, clock)["accessToken"]
    new = replacement(client, ada, token)
    before = client.post("/auth/verify-mfa", json={"tempToken": log_in(client, ada), "totpCode": new.code(clock())})
    assert before.json["code"] == "invalid_code"
    assert sign_in(client, ada, clock, 1)
    answer = confirm(client, token, new.code(clock()))
    assert (answer.status_code, answer.data) == (204, b"")
    after = client.post("/auth/verify-mfa", json={"tempToken": log_in(client, ada), "totpCode": ada.code(clock(), 2)})
    assert after.json["code"] == "invalid_code"
    assert sign_in(client, new, clock, 1)


def test_the_code_that_confirms_is_used_up(client: FlaskClient, ada: Person, clock: Clock) -> None:
    token = sign_in(client, ada, clock)["accessToken"]
    new = replacement(client, ada, token)
    assert confirm(client, token, new.code(clock())).status_code == 204
    answer = client.post("/auth/verify-mfa", json={"tempToken": log_in(client, ada), "totpCode": new.code(clock())})
    assert (answer.status_code, answer.json["code"]) == (401, "invalid_code")


def test_a_code_of_the_old_one_confirms_nothing(client: FlaskClient, ada: Person, clock: Clock) -> None:
    token = sign_in(client, ada, clock)["accessToken"]
    new = replacement(client, ada, token)
    assert refusal(confirm(client, token, ada.code(clock(), 1))) == (401, "invalid_code")
    assert confirm(client, token, new.code(clock())).status_code == 204


def test_of_two_replacements_the_last_one_shown_is_the_one(client: FlaskClient, ada: Person, clock: Clock) -> None:
    token = sign_in(client, ada, clock)["accessToken"]
    lost, new = replacement(client, ada, token), replacement(client, ada, token)
    assert refusal(confirm(client, token, lost.code(clock()))) == (401, "invalid_code")
    assert confirm(client, token, new.code(clock())).status_code == 204


def test_after_ten_minutes_there_is_nothing_to_confirm(client: FlaskClient, ada: Person, clock: Clock) -> None:
    token = sign_in(client, ada, clock)["accessToken"]
    new = replacement(client, ada, token)
    clock.advance(600)
    token = step_up(client, ada, token, clock)
    answer = confirm(client, token, new.code(clock()))
    assert answer.status_code == 409
    assert answer.json == {"error": "No authenticator waits to be confirmed", "code": "nothing_to_confirm"}
    assert sign_in(client, ada, clock, 1)


def test_where_none_was_asked_for_there_is_nothing_to_confirm_and_nothing_is_spent(
    client: FlaskClient, ada: Person, clock: Clock, rows: Rows
) -> None:
    token = sign_in(client, ada, clock)["accessToken"]
    assert refusal(confirm(client, token, ada.code(clock(), 1))) == (409, "nothing_to_confirm")
    assert rows("SELECT * FROM mfa_locks") == []


def test_replacing_forgets_devices_pending_tokens_and_sessions_without_a_code(
    client: FlaskClient, ada: Person, clock: Clock
) -> None:
    this = sign_in(client, ada, clock, rememberDevice=True)
    body = {"username": "ada", "password": ada.password, "deviceToken": this["deviceToken"]}
    by_device = client.post("/auth/login", json=body).json
    pending = log_in(client, ada)
    new = replacement(client, ada, this["accessToken"])
    assert confirm(client, this["accessToken"], new.code(clock())).status_code == 204
    assert client.post("/auth/login", json=body).json["mfaRequired"] is True
    answer = client.post("/auth/verify-mfa", json={"tempToken": pending, "totpCode": new.code(clock(), 1)})
    assert answer.json["code"] == "invalid_pending_token"
    assert client.get("/api/profile", headers=bearer(by_device["accessToken"])).status_code == 401
    assert client.post("/auth/refresh", json={"refreshToken": by_device["refreshToken"]}).status_code == 401
    assert client.get("/api/profile", headers=bearer(this["accessToken"])).status_code == 200


def test_a_replacement_leaves_the_recovery_codes(client: FlaskClient, ada: Person, clock: Clock) -> None:
    signed_in = sign_in(client, ada, clock)
    new = replacement(client, ada, signed_in["accessToken"])
    confirm(client, signed_in["accessToken"], new.code(clock()))
    body = {"tempToken": log_in(client, ada), "recoveryCode": signed_in["recoveryCodes"][0]}
    assert client.post("/auth/verify-mfa", json=body).status_code == 200


# ── recovery codes ───────────────────────────────────────────────────────────────────────────────


def test_renewing_gives_ten_new_codes_and_kills_the_old_ones(client: FlaskClient, ada: Person, clock: Clock) -> None:
    signed_in = sign_in(client, ada, clock)
    answer = client.post("/api/mfa/recovery-codes", headers=bearer(signed_in["accessToken"]))
    assert answer.status_code == 200
    assert answer.headers["Cache-Control"] == "no-store"
    assert answer.json.keys() == {"recoveryCodes"}
    new = answer.json["recoveryCodes"]
    assert len(set(new) | set(signed_in["recoveryCodes"])) == 20
    for code, status in ((signed_in["recoveryCodes"][0], 401), (new[0], 200)):
        body = {"tempToken": log_in(client, ada), "recoveryCode": code}
        assert client.post("/auth/verify-mfa", json=body).status_code == status


def test_codes_are_in_no_later_answer(client: FlaskClient, ada: Person, clock: Clock) -> None:
    token = sign_in(client, ada, clock)["accessToken"]
    codes = client.post("/api/mfa/recovery-codes", headers=bearer(token)).json["recoveryCodes"]
    for path in ("/api/mfa", "/api/profile", "/api/sessions", "/api/devices"):
        text = client.get(path, headers=bearer(token)).text
        assert not [code for code in codes if code in text]


def test_a_code_is_six_groups_of_four_that_nobody_confuses(client: FlaskClient, ada: Person, clock: Clock) -> None:
    codes = sign_in(client, ada, clock)["recoveryCodes"]
    assert all(re.fullmatch(r"[0-9A-HJKMNP-TV-Z]{4}(-[0-9A-HJKMNP-TV-Z]{4}){5}", code) for code in codes)


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


def replacement(client: FlaskClient, person: Person, token: str) -> Person:
    """The same person with the new authenticator, not yet confirmed."""
    answer = client.post("/api/mfa/totp", headers=bearer(token))
    assert answer.status_code == 200, answer.text
    return dataclasses.replace(person, secret=answer.json["manualEntryKey"])


def confirm(client: FlaskClient, token: str, code: str) -> TestResponse:
    return client.post("/api/mfa/totp/confirm", json={"totpCode": code}, headers=bearer(token))


def step_up(client: FlaskClient, person: Person, token: str, clock: Clock) -> str:
    body = {"totpCode": person.code(clock())}
    return str(client.post("/auth/step-up", json=body, headers=bearer(token)).json["accessToken"])


def refusal(answer: TestResponse) -> tuple[int, str]:
    return answer.status_code, answer.json["code"]
