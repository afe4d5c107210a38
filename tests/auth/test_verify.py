"""POST /auth/verify-mfa: a pending token and a code for an access token."""

from typing import Any

import jwt
import pytest
from flask.testing import FlaskClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from werkzeug.test import TestResponse

from tests.conftest import Clock
from tests.factories import Person, bearer, log_in, register, sign_in
from tests.services import Rows

REFUSED = (401, {"error": "Invalid TOTP code", "code": "invalid_code"})
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(), children, max_size=3),
    max_leaves=5,
)
IN_OTHER_DIGITS = ["１２３４５６", "⁰¹²³⁴⁵", "٠١٢٣٤٥"]


def test_the_right_code_is_answered_with_a_token_and_the_user(client: FlaskClient, ada: Person, clock: Clock) -> None:
    verify(client, log_in(client, ada), ada.code(clock(), -1))
    answer = verify(client, log_in(client, ada), ada.code(clock()))
    assert answer.status_code == 200
    assert answer.json | {"accessToken": "…", "refreshToken": "…"} == {
        "message": "Authentication successful",
        "accessToken": "…",
        "refreshToken": "…",
        "tokenType": "Bearer",
        "expiresIn": 3600,
        "user": {"username": "ada", "email": ada.email},
    }
    assert client.get("/api/profile", headers=bearer(answer.json["accessToken"])).json["mfaEnabled"] is True


def test_the_first_success_shows_ten_recovery_codes_and_no_later_one_does(
    client: FlaskClient, ada: Person, clock: Clock
) -> None:
    first = verify(client, log_in(client, ada), ada.code(clock(), -1)).json
    assert len(set(first["recoveryCodes"])) == 10
    assert first.keys() - {"recoveryCodes"} == verify(client, log_in(client, ada), ada.code(clock())).json.keys()


def test_the_token_tells_what_was_shown_and_when(client: FlaskClient, ada: Person, clock: Clock) -> None:
    token = log_in(client, ada)
    clock.advance(7.9)
    answer = verify(client, token, ada.code(clock())).json
    claims = jwt.decode(answer["accessToken"], options={"verify_signature": False})
    assert (claims["amr"], claims["acr"]) == (["pwd", "otp", "mfa"], "mfa")
    assert claims["auth_time"] == claims["iat"] == int(clock())


def test_what_the_token_says_and_what_the_answer_says_agree(client: FlaskClient, ada: Person, clock: Clock) -> None:
    answer = verify(client, log_in(client, ada), ada.code(clock())).json
    claims = jwt.decode(answer["accessToken"], options={"verify_signature": False})
    assert claims["exp"] - claims["iat"] == answer["expiresIn"]
    assert claims["username"] == answer["user"]["username"]
    assert claims["step"] == "authenticated"
    assert "email" not in claims


def test_a_wrong_code_is_401_and_may_be_followed_by_the_right_one(
    client: FlaskClient, ada: Person, clock: Clock
) -> None:
    token = log_in(client, ada)
    assert refusal(verify(client, token, ada.code(clock(), 9))) == REFUSED
    assert verify(client, token, ada.code(clock())).status_code == 200


@pytest.mark.parametrize(
    "code",
    [
        "",
        "12345",
        "1234567",
        "abcdef",
        "12345a",
        "12 345",
        "+12345",
        "１２３４５６",
        "⁰¹²³⁴⁵",
        "٠١٢٣٤٥",
        "null",
        "-12345",
    ],
)
def test_a_string_that_is_not_six_ascii_digits_is_one_more_wrong_code(
    client: FlaskClient, ada: Person, rows: Rows, code: str
) -> None:
    assert refusal(verify(client, log_in(client, ada), code)) == REFUSED
    assert rows("SELECT attempts FROM mfa_challenges") == [{"attempts": 1}]


@pytest.mark.parametrize("code", [123456, 0, 1.5, True, None, [], ["123456"], {}, {"code": "123456"}, "12345\n", "\0"])
def test_what_is_no_string_or_holds_control_characters_is_400_and_spends_nothing(
    client: FlaskClient, ada: Person, rows: Rows, code: object
) -> None:
    answer = verify(client, log_in(client, ada), code)
    assert (answer.status_code, answer.json["code"]) == (400, "invalid_request")
    assert set(answer.json["fields"]) == {"totpCode"}
    assert rows("SELECT attempts FROM mfa_challenges") == [{"attempts": 0}]


def test_the_right_code_as_a_number_is_400(client: FlaskClient, ada: Person, clock: Clock) -> None:
    while not ada.code(clock()).startswith("0"):
        clock.advance(30)
    token = log_in(client, ada)
    assert verify(client, token, int(ada.code(clock()))).status_code == 400
    assert verify(client, token, ada.code(clock())).status_code == 200


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(code=json_values)
def test_no_json_value_is_a_code(client: FlaskClient, ada: Person, code: object) -> None:
    assert verify(client, log_in(client, ada), code).status_code in (400, 401)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(token=json_values)
def test_no_json_value_is_a_token(client: FlaskClient, ada: Person, clock: Clock, token: object) -> None:
    assert verify(client, token, ada.code(clock())).status_code in (400, 401)


@pytest.mark.parametrize("token", ["", "x", "a.b.c", "null", "ü", "x" * 60_000], ids=lambda token: ascii(token)[:12])
def test_what_is_no_token_is_401(client: FlaskClient, token: str) -> None:
    answer = verify(client, token, "123456")
    assert refusal(answer) == (401, {"error": "MFA verification failed", "code": "invalid_pending_token"})
    assert 'error="invalid_token"' in answer.headers["WWW-Authenticate"]


def test_a_lone_surrogate_in_a_token_is_400(client: FlaskClient) -> None:
    answer = client.post(
        "/auth/verify-mfa", data=b'{"tempToken": "\\ud800", "totpCode": "123456"}', content_type="application/json"
    )
    assert answer.status_code == 400


def test_an_access_token_is_a_good_token_of_another_step(client: FlaskClient, ada: Person, clock: Clock) -> None:
    access = sign_in(client, ada, clock())
    answer = verify(client, access, ada.code(clock(), 1))
    assert refusal(answer) == (401, {"error": "Invalid token", "code": "wrong_step"})


def test_a_late_used_or_spent_token_is_401_and_the_same(client: FlaskClient, ada: Person, clock: Clock) -> None:
    late, spent, used = (log_in(client, ada) for _ in range(3))
    for _ in range(5):
        verify(client, spent, "000000")
    verify(client, used, ada.code(clock()))
    answers = [verify(client, token, ada.code(clock(), 1)) for token in (spent, used)]
    clock.advance(300)
    answers.append(verify(client, late, ada.code(clock())))
    for answer in answers:
        assert refusal(answer) == (401, {"error": "MFA verification failed", "code": "invalid_pending_token"})


def test_the_user_comes_from_the_token_and_from_nothing_else(client: FlaskClient, ada: Person, clock: Clock) -> None:
    bob = register(client, "bob")
    token = log_in(client, ada)
    client.set_cookie("username", "bob")
    hints = {"username": "bob", "user_id": "bob", "userId": "bob", "sub": "bob", "verify": "bob"}
    body = {"tempToken": token, "totpCode": bob.code(clock())} | hints
    assert refusal(client.post("/auth/verify-mfa?username=bob&verify=bob", json=body)) == REFUSED
    answer = client.post("/auth/verify-mfa?username=bob", json=body | {"totpCode": ada.code(clock())})
    assert answer.json["user"]["username"] == "ada"


def test_time_window_and_algorithm_are_not_the_clients_to_choose(
    client: FlaskClient, ada: Person, clock: Clock
) -> None:
    wishes = {"time": int(clock()) + 270, "window": 10, "algorithm": "SHA256", "digits": 1, "period": 3600}
    body = {"tempToken": log_in(client, ada), "totpCode": ada.code(clock(), 9)} | wishes
    assert refusal(client.post("/auth/verify-mfa", json=body)) == REFUSED


def test_a_code_in_the_query_is_not_read(client: FlaskClient, ada: Person, clock: Clock) -> None:
    token, code = log_in(client, ada), ada.code(clock())
    for body, missing in (({}, {"tempToken"}), ({"tempToken": token}, {"totpCode"})):
        answer = client.post(f"/auth/verify-mfa?tempToken={token}&totpCode={code}", json=body)
        assert (answer.status_code, set(answer.json["fields"])) == (400, missing)


def test_a_pending_token_opens_no_profile(client: FlaskClient, ada: Person) -> None:
    answer = client.get("/api/profile", headers=bearer(log_in(client, ada)))
    assert refusal(answer) == (
        401,
        {"error": "Full authentication required", "code": "full_authentication_required"},
    )


def test_a_secret_that_does_not_open_is_503_and_says_nothing(
    client: FlaskClient, ada: Person, rows: Rows, clock: Clock
) -> None:
    token = log_in(client, ada)
    rows("UPDATE mfa_secrets SET sealed_secret = :garbage", garbage=b"garbage")
    answer = verify(client, token, ada.code(clock()))
    assert (answer.status_code, answer.json["code"]) == (503, "unavailable")
    assert int(answer.headers["Retry-After"]) >= 1
    assert rows("SELECT attempts FROM mfa_challenges") == [{"attempts": 0}]


def test_no_answer_of_either_step_sets_a_cookie(client: FlaskClient, ada: Person, clock: Clock) -> None:
    answer = client.post("/auth/login", json={"username": "ada", "password": ada.password})
    assert "Set-Cookie" not in answer.headers
    assert "Set-Cookie" not in verify(client, answer.json["tempToken"], ada.code(clock())).headers


@pytest.fixture
def ada(client: FlaskClient) -> Person:
    return register(client, "ada")


def verify(client: FlaskClient, token: object, code: object) -> TestResponse:
    return client.post("/auth/verify-mfa", json={"tempToken": token, "totpCode": code})


def refusal(answer: TestResponse) -> tuple[int, Any]:
    return answer.status_code, answer.json
