"""The walks of the README, end to end, with real codes."""

from flask.testing import FlaskClient

from tests.conftest import Clock
from tests.factories import bearer, log_in, register


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
