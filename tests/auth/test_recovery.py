"""Recovery codes at POST /auth/verify-mfa: in place of the phone, once each."""

from typing import Any

import jwt
import pytest
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from tests.conftest import Clock
from tests.factories import Person, bearer, log_in, register
from tests.services import Rows


def test_a_code_signs_in_and_the_token_and_the_answer_say_so(client: FlaskClient, ada: Person, clock: Clock) -> None:
    code = sign_in(client, ada, clock)["recoveryCodes"][0]
    answer = recover(client, log_in(client, ada), code)
    assert answer.status_code == 200
    assert answer.json["recoveryCodesLeft"] == 9
    assert "recoveryCodes" not in answer.json
    assert answer.headers["Cache-Control"] == "no-store"
    assert claims_of(answer.json["accessToken"])["amr"] == ["pwd", "recovery", "mfa"]
    assert client.post("/api/mfa/recovery-codes", headers=bearer(answer.json["accessToken"])).status_code == 200


def test_each_code_works_once_and_all_ten_do(client: FlaskClient, ada: Person, clock: Clock) -> None:
    codes = sign_in(client, ada, clock)["recoveryCodes"]
    left = [recover(client, log_in(client, ada), code).json["recoveryCodesLeft"] for code in codes]
    assert left == [9, 8, 7, 6, 5, 4, 3, 2, 1, 0]
    for code in codes[:2]:
        answer = recover(client, log_in(client, ada), code)
        assert answer.json == {"error": "Invalid recovery code", "code": "invalid_recovery_code"}
        assert answer.status_code == 401


@pytest.mark.parametrize(
    "spell",
    [str.lower, lambda code: code.replace("-", ""), lambda code: code.replace("-", " "), lambda code: f" {code} "],
    ids=["lower case", "no hyphens", "spaces", "spaces around"],
)
def test_case_hyphens_and_spaces_do_not_matter(client: FlaskClient, ada: Person, clock: Clock, spell: Any) -> None:
    code = sign_in(client, ada, clock)["recoveryCodes"][0]
    assert recover(client, log_in(client, ada), spell(code)).status_code == 200
    assert recover(client, log_in(client, ada), code).status_code == 401


@pytest.mark.parametrize(
    "code",
    ["", "-", " ", "x", "0" * 24, "\uff10" * 24, "\U0001f600" * 6, "x" * 60_000],
    ids=lambda code: ascii(code)[:12],
)
def test_what_is_no_code_is_one_more_wrong_one(
    client: FlaskClient, ada: Person, clock: Clock, rows: Rows, code: str
) -> None:
    sign_in(client, ada, clock)
    assert recover(client, log_in(client, ada), code).json["code"] == "invalid_recovery_code"
    assert rows("SELECT subject, failures FROM mfa_locks") == [{"subject": "recovery_codes", "failures": 1}]


def test_exactly_one_of_the_two_proofs_is_wanted_and_else_nothing_is_spent(
    client: FlaskClient, ada: Person, clock: Clock, rows: Rows
) -> None:
    code = sign_in(client, ada, clock)["recoveryCodes"][0]
    token = log_in(client, ada)
    for proofs in ({}, {"totpCode": ada.code(clock(), 1), "recoveryCode": code}, {"totpCode": None}):
        answer = client.post("/auth/verify-mfa", json={"tempToken": token} | proofs)
        assert (answer.status_code, answer.json["code"], set(answer.json["fields"])) == (
            *(400, "invalid_request"),
            {"totpCode"},
        )
    assert recover(client, token, code).status_code == 200
    assert rows("SELECT max(attempts) AS most FROM mfa_challenges") == [{"most": 1}]


def test_another_users_code_is_wrong_and_stays_good_for_its_owner(
    client: FlaskClient, ada: Person, clock: Clock
) -> None:
    bob = register(client, "bob")
    code = sign_in(client, bob, clock)["recoveryCodes"][0]
    sign_in(client, ada, clock)
    assert recover(client, log_in(client, ada), code).json["code"] == "invalid_recovery_code"
    assert recover(client, log_in(client, bob), code).status_code == 200


def test_a_code_replaces_neither_the_password_nor_the_first_enrolment(client: FlaskClient, ada: Person) -> None:
    answer = recover(client, log_in(client, ada), "0000-0000-0000-0000-0000-0000")
    assert answer.json["code"] == "invalid_recovery_code"
    body = {"username": "ada", "password": "wrong", "recoveryCode": "x"}
    assert client.post("/auth/login", json=body).json["code"] == "invalid_credentials"


def test_wrong_recovery_codes_lock_themselves_and_not_the_authenticator(
    client: FlaskClient, ada: Person, clock: Clock
) -> None:
    code = sign_in(client, ada, clock)["recoveryCodes"][0]
    token = log_in(client, ada)
    assert {recover(client, token, "x").status_code for _ in range(5)} == {401}
    assert recover(client, log_in(client, ada), code).json["code"] == "invalid_recovery_code"
    assert sign_in(client, ada, clock, 1)
    clock.advance(1)
    assert recover(client, log_in(client, ada), code).status_code == 200


def test_after_a_hundred_wrong_codes_the_authenticator_is_disabled_until_a_recovery_code(
    client: FlaskClient, ada: Person, clock: Clock
) -> None:
    code = sign_in(client, ada, clock)["recoveryCodes"][0]
    for _ in range(100):
        client.post("/auth/verify-mfa", json={"tempToken": log_in(client, ada), "totpCode": "x"})
        clock.advance(900)
    clock.advance(86400)
    token = log_in(client, ada)
    right = {"tempToken": token, "totpCode": ada.code(clock())}
    assert client.post("/auth/verify-mfa", json=right).json["code"] == "invalid_code"
    # It still counts as confirmed: the password alone leads to no new one.
    assert client.post("/auth/enrol", json={"tempToken": token}).json["code"] == "factor_exists"
    assert recover(client, log_in(client, ada), code).status_code == 200
    assert sign_in(client, ada, clock)


def test_few_left_is_said_at_every_sign_in(client: FlaskClient, ada: Person, clock: Clock) -> None:
    codes = sign_in(client, ada, clock, -1)["recoveryCodes"]
    for code in codes[:6]:
        recover(client, log_in(client, ada), code)
    assert "recoveryCodesLeft" not in sign_in(client, ada, clock)
    recover(client, log_in(client, ada), codes[6])
    assert sign_in(client, ada, clock, 1)["recoveryCodesLeft"] == 3


def test_only_digests_are_stored(client: FlaskClient, ada: Person, clock: Clock, rows: Rows) -> None:
    codes = sign_in(client, ada, clock)["recoveryCodes"]
    stored = str(rows("SELECT * FROM mfa_recovery_codes")) + str(rows("SELECT * FROM mfa_events"))
    for code in codes:
        assert code not in stored
        assert code.replace("-", "") not in stored


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


def recover(client: FlaskClient, token: str, code: str) -> TestResponse:
    return client.post("/auth/verify-mfa", json={"tempToken": token, "recoveryCode": code})


def claims_of(token: str) -> dict[str, Any]:
    found: dict[str, Any] = jwt.decode(token, options={"verify_signature": False})
    return found
