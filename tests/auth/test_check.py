"""`GET /auth/check`, as proxies ask it: whether somebody may pass, and who it is."""

from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from mfa_service.services.administration import By, Changes
from mfa_service.services.audit import ClientInfo
from tests.conftest import Clock
from tests.factories import bearer, log_in, register, sign_in

HEADERS = ("X-Auth-Subject", "X-Auth-Username", "X-Auth-Amr", "X-Auth-Roles")


def test_who_it_is_stands_in_the_headers(client: FlaskClient, clock: Clock) -> None:
    token = signed_in(client, clock, "ada", ("staff", "admin"))
    answer = check(client, token)
    assert (answer.status_code, answer.data) == (204, b"")
    user_id = services(client).directory.find_id("ada")
    assert [answer.headers[name] for name in HEADERS] == [user_id, "ada", "pwd otp mfa", "admin staff"]
    assert answer.headers["Cache-Control"] == "no-store"


def test_all_headers_are_there_even_with_nothing_in_them(client: FlaskClient, clock: Clock) -> None:
    assert check(client, signed_in(client, clock, "ada")).headers["X-Auth-Roles"] == ""


def test_a_name_is_percent_encoded(client: FlaskClient, clock: Clock) -> None:
    answer = check(client, signed_in(client, clock, "straße%"))
    assert answer.headers["X-Auth-Username"] == "stra%C3%9Fe%25"


def test_a_refusal_names_nobody(client: FlaskClient, clock: Clock) -> None:
    ada = register(client, "ada")
    for token in ("", "x.y.z", log_in(client, ada)):
        answer = check(client, token)
        assert answer.status_code == 401
        assert not [name for name in HEADERS if name in answer.headers]


def test_freshness_and_roles_are_asked_for_in_the_query(client: FlaskClient, clock: Clock) -> None:
    token = signed_in(client, clock, "ada", ("staff",))
    assert check(client, token, "?max_age=300&role=staff").status_code == 204
    assert refusal(check(client, token, "?role=admin")) == (403, "role_required")
    clock.advance(300)
    assert refusal(check(client, token, "?max_age=300")) == (401, "step_up_required")
    assert check(client, token, "?max_age=301").status_code == 204


def test_a_role_that_is_taken_counts_at_once(client: FlaskClient, clock: Clock) -> None:
    token = signed_in(client, clock, "ada", ("staff",))
    user_id = services(client).directory.find_id("ada")
    services(client).administration.change(By(ClientInfo()), user_id, Changes(removes_role="staff"))
    assert refusal(check(client, token, "?role=staff")) == (403, "role_required")


def test_a_question_that_makes_no_sense_lets_nobody_pass(client: FlaskClient, clock: Clock) -> None:
    token = signed_in(client, clock, "ada")
    for query in ("?max_age=x", "?max_age=-1", "?max_age=1.5", "?max_age=", "?max_age=9999999999", "?role=%00"):
        assert refusal(check(client, token, query)) == (400, "invalid_request"), query


def check(client: FlaskClient, token: str, query: str = "") -> TestResponse:
    return client.get(f"/auth/check{query}", headers=bearer(token) if token else {})


def refusal(answer: TestResponse) -> tuple[int, str]:
    return answer.status_code, answer.json["code"]


def services(client: FlaskClient):  # type: ignore[no-untyped-def]
    return client.application.extensions["mfa_service"].services


def signed_in(client: FlaskClient, clock: Clock, username: str, roles: tuple[str, ...] = ()) -> str:
    person = register(client, username)
    user_id = services(client).directory.find_id(username)
    services(client).administration.change(By(ClientInfo()), user_id, Changes(roles=roles))
    return sign_in(client, person, clock())
