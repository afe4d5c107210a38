"""The walks of the README, end to end, with real codes."""

from dataclasses import replace
from typing import Any

from flask.testing import FlaskClient

from tests.conftest import Clock
from tests.factories import Person, bearer, log_in, register


def test_register_scan_log_in_verify_and_be_let_in(client: FlaskClient, clock: Clock) -> None:
    ada = register(client, "ada")

    answer = client.post("/auth/login", json={"username": "ada", "password": ada.password})
    assert answer.status_code == 200
    assert answer.json.items() >= {"mfaRequired": True, "enrolmentRequired": True, "methods": []}.items()

    answer = client.post(
        "/auth/verify-mfa", json={"tempToken": answer.json["tempToken"], "totpCode": ada.code(clock())}
    )
    assert answer.status_code == 200
    assert answer.json["user"] == {"username": "ada", "email": ada.email}

    answer = client.get("/api/profile", headers=bearer(answer.json["accessToken"]))
    assert answer.json == {"username": "ada", "email": ada.email, "mfaEnabled": True}


def test_a_lost_qr_code_is_no_lost_account(client: FlaskClient, clock: Clock) -> None:
    lost = register(client, "bob")
    answer = client.post("/auth/enrol", json={"tempToken": log_in(client, lost)})
    assert answer.status_code == 200
    assert answer.json["manualEntryKey"] != lost.secret


def test_a_lost_phone_a_recovery_code_and_another_authenticator(client: FlaskClient, clock: Clock) -> None:
    ada = register(client, "ada")
    codes = complete(client, ada, totpCode=ada.code(clock()))["recoveryCodes"]
    assert len(codes) == 10

    signed_in = complete(client, ada, recoveryCode=codes[0].lower())
    assert signed_in["recoveryCodesLeft"] == 9
    header = bearer(signed_in["accessToken"])
    answer = client.post("/auth/verify-mfa", json={"tempToken": log_in(client, ada), "recoveryCode": codes[0]})
    assert (answer.status_code, answer.json["code"]) == (401, "invalid_recovery_code")

    answer = client.post("/api/mfa/totp", headers=header)
    assert answer.json["expiresIn"] == 600
    new_phone = replace(ada, secret=answer.json["manualEntryKey"])
    answer = client.post("/api/mfa/totp/confirm", headers=header, json={"totpCode": ada.code(clock(), 1)})
    assert (answer.status_code, answer.json["code"]) == (401, "invalid_code")
    answer = client.post("/api/mfa/totp/confirm", headers=header, json={"totpCode": new_phone.code(clock())})
    assert answer.status_code == 204

    assert "accessToken" in complete(client, new_phone, totpCode=new_phone.code(clock(), 1))
    clock.advance(60)
    answer = client.post("/auth/verify-mfa", json={"tempToken": log_in(client, ada), "totpCode": ada.code(clock())})
    assert (answer.status_code, answer.json["code"]) == (401, "invalid_code")


def test_a_remembered_device_skips_the_code_and_opens_no_security(client: FlaskClient, clock: Clock) -> None:
    ada = register(client, "ada")
    device = complete(client, ada, totpCode=ada.code(clock()), rememberDevice=True, deviceName="laptop")["deviceToken"]

    on_device = {"username": "ada", "password": ada.password, "deviceToken": device}
    answer = client.post("/auth/login", json=on_device)
    assert answer.json.items() >= {"mfaRequired": False, "message": "Authentication successful"}.items()
    header = bearer(answer.json["accessToken"])
    assert client.get("/api/profile", headers=header).json["username"] == "ada"
    [listed] = client.get("/api/devices", headers=header).json["items"]
    assert listed["name"] == "laptop"

    answer = client.post("/api/mfa/recovery-codes", headers=header)
    assert (answer.status_code, answer.json["code"]) == (401, "step_up_required")
    assert 'max_age="300"' in answer.headers["WWW-Authenticate"]
    answer = client.post("/auth/step-up", headers=header, json={"totpCode": ada.code(clock(), 1)})
    stepped_up = bearer(answer.json["accessToken"])
    assert len(client.post("/api/mfa/recovery-codes", headers=stepped_up).json["recoveryCodes"]) == 10

    assert client.delete(f"/api/devices/{listed['id']}", headers=header).status_code == 204
    assert client.post("/auth/login", json=on_device).json["mfaRequired"] is True


def test_refresh_twice_by_two_tabs_and_log_out(client: FlaskClient, clock: Clock) -> None:
    ada = register(client, "ada")
    signed_in = complete(client, ada, totpCode=ada.code(clock()))
    first = {"refreshToken": signed_in["refreshToken"]}
    clock.advance(3600)
    assert client.get("/api/profile", headers=bearer(signed_in["accessToken"])).status_code == 401

    answers = [client.post("/auth/refresh", json=first).json for _ in range(2)]
    assert answers[0]["refreshToken"] == answers[1]["refreshToken"] != first["refreshToken"]
    header = bearer(answers[0]["accessToken"])
    [session] = client.get("/api/sessions", headers=header).json["items"]
    assert session["isCurrent"] is True

    assert client.post("/auth/logout", headers=header).status_code == 204
    assert client.get("/api/profile", headers=bearer(answers[1]["accessToken"])).status_code == 401
    answer = client.post("/auth/refresh", json={"refreshToken": answers[0]["refreshToken"]})
    assert (answer.status_code, answer.json["code"]) == (401, "invalid_refresh_token")


def test_a_copied_refresh_token_ends_the_session_for_both(client: FlaskClient, clock: Clock) -> None:
    ada = register(client, "ada")
    copied = {"refreshToken": complete(client, ada, totpCode=ada.code(clock()))["refreshToken"]}
    fresh = client.post("/auth/refresh", json=copied).json
    clock.advance(10)
    answer = client.post("/auth/refresh", json=copied)
    assert (answer.status_code, answer.json["code"]) == (401, "refresh_reused")
    assert client.get("/api/profile", headers=bearer(fresh["accessToken"])).status_code == 401
    answer = client.post("/auth/refresh", json={"refreshToken": fresh["refreshToken"]})
    assert (answer.status_code, answer.json["code"]) == (401, "invalid_refresh_token")


def test_a_changed_password_ends_what_rested_on_the_old_one(client: FlaskClient, clock: Clock) -> None:
    ada = register(client, "ada")
    elsewhere = complete(client, ada, totpCode=ada.code(clock(), -1), rememberDevice=True)
    here = bearer(complete(client, ada, totpCode=ada.code(clock()))["accessToken"])
    pending = log_in(client, ada)

    changed = replace(ada, password="difference-engine-1822")
    change = {"currentPassword": ada.password, "newPassword": changed.password}
    answer = client.post("/auth/password", headers=here, json=change | {"currentPassword": "wrong"})
    assert (answer.status_code, answer.json["code"]) == (401, "invalid_credentials")
    assert client.post("/auth/password", headers=here, json=change).status_code == 204

    assert client.get("/api/profile", headers=here).status_code == 200
    assert client.get("/api/profile", headers=bearer(elsewhere["accessToken"])).status_code == 401
    assert client.post("/auth/refresh", json={"refreshToken": elsewhere["refreshToken"]}).status_code == 401
    answer = client.post("/auth/verify-mfa", json={"tempToken": pending, "totpCode": ada.code(clock(), 1)})
    assert (answer.status_code, answer.json["code"]) == (401, "invalid_pending_token")
    on_device = {"username": "ada", "deviceToken": elsewhere["deviceToken"]}
    assert client.post("/auth/login", json=on_device | {"password": ada.password}).status_code == 401
    assert client.post("/auth/login", json=on_device | {"password": changed.password}).json["mfaRequired"] is True


def complete(client: FlaskClient, person: Person, **proof: Any) -> dict[str, Any]:
    """Log in and show a second factor; returns what the answer says."""
    answer = client.post("/auth/verify-mfa", json={"tempToken": log_in(client, person)} | proof)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json
    return found
