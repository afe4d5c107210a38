"""A guard that asks the service for each request: endings and roles count at once, and silence lets nobody in."""

import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from flask import Flask
from flask.testing import FlaskClient

from mfa_service import Guard, LiveCheck, require_login, require_mfa
from mfa_service.services.administration import By
from mfa_service.services.policy import Rules
from tests.bursts import post
from tests.factories import PASSWORD, bearer, totp
from tests.services import CLIENT, Rows

MakeApp = Callable[..., Flask]
WHO = {"username": "ada", "password": PASSWORD}


@pytest.mark.services
@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_endings_and_roles_count_at_once(serve: Callable[..., str], rows: Rows) -> None:
    service = serve(MFA_AUDIENCES="shop")
    client = guarded(f"{service}/.well-known/jwks.json", service, LiveCheck(f"{service}/auth/check"))
    token = sign_in(service)
    assert client.get("/", headers=bearer(token)).status_code == 200
    assert client.get("/staff", headers=bearer(token)).json["code"] == "role_required"
    rows("INSERT INTO mfa_user_roles (user_id, role) SELECT id, 'staff' FROM mfa_users")
    assert client.get("/staff", headers=bearer(token)).status_code == 200
    rows("UPDATE mfa_sessions SET revoked_at = created_at")
    for path in ("/", "/staff"):
        assert client.get(path, headers=bearer(token)).json["code"] == "invalid_token"


@pytest.mark.services
@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
@pytest.mark.parametrize(
    ("status", "headers", "code"),
    [
        (500, {}, "unavailable"),
        (404, {}, "unavailable"),
        (401, {}, "invalid_token"),
        (403, {}, "invalid_token"),
        (204, {}, "invalid_token"),
        (200, {"X-Auth-Subject": "somebody else", "X-Auth-Roles": "staff"}, "invalid_token"),
    ],
)
def test_any_other_answer_lets_nobody_in(
    serve: Callable[..., str], answering: Callable[..., str], status: int, headers: dict[str, str], code: str
) -> None:
    service = serve(MFA_AUDIENCES="shop")
    client = guarded(f"{service}/.well-known/jwks.json", service, LiveCheck(answering(status, headers)))
    answer = client.get("/staff", headers=bearer(sign_in(service)))
    assert answer.json["code"] == code


@pytest.mark.services
@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_the_token_goes_nowhere_else(
    serve: Callable[..., str], answering: Callable[..., str], arrived: list[str], rows: Rows
) -> None:
    service = serve(MFA_AUDIENCES="shop")
    token = sign_in(service)
    elsewhere = answering(204, {"X-Auth-Subject": rows("SELECT id FROM mfa_users")[0]["id"]})
    client = guarded(f"{service}/.well-known/jwks.json", service, LiveCheck(answering(302, {"Location": elsewhere})))
    assert client.get("/", headers=bearer(token)).json["code"] == "unavailable"
    assert arrived == [f"Bearer {token}"]


@pytest.mark.services
@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_a_token_of_a_password_alone_is_told_what_it_lacks(serve: Callable[..., str], make_app: MakeApp) -> None:
    service = serve(MFA_AUDIENCES="shop")
    complete = sign_in(service, "grace")
    administration = make_app().extensions["mfa_service"].services.administration
    administration.set_policy(By(CLIENT), Rules("optional"))
    client = guarded(f"{service}/.well-known/jwks.json", service, LiveCheck(f"{service}/auth/check"))
    post(service, "/auth/register", WHO | {"email": "ada@example.com"})
    token = post(service, "/auth/login", WHO).json["accessToken"]
    for path in ("/", "/staff", "/anybody"):
        answer = client.get(path, headers=bearer(token))
        assert (answer.status_code, answer.json["code"]) == (401, "full_authentication_required")
    assert client.get("/anybody", headers=bearer(complete)).status_code == 200


@pytest.mark.services
@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_silence_lets_nobody_in(serve: Callable[..., str]) -> None:
    service = serve(MFA_AUDIENCES="shop")
    client = guarded(f"{service}/.well-known/jwks.json", service, LiveCheck("http://127.0.0.1:1/auth/check"))
    answer = client.get("/", headers=bearer(sign_in(service)))
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "5")


def test_other_addresses_are_refused() -> None:
    with pytest.raises(ValueError, match="http"):
        LiveCheck("file:///etc/passwd")


# ── means ────────────────────────────────────────────────────────────────────────────────────────


def guarded(keys: str, issuer: str, check: LiveCheck) -> FlaskClient:
    app = Flask("shop")
    Guard.from_jwks(keys, issuer=issuer, audience="shop", find_account=check).init_app(app)
    app.add_url_rule("/", "any", require_mfa(lambda: "in"))
    app.add_url_rule("/anybody", "anybody", require_login(lambda: "in"))
    app.add_url_rule("/staff", "staff", require_mfa(role="staff")(lambda: "in"))
    return app.test_client()


def sign_in(service: str, username: str = "ada") -> str:
    who = WHO | {"username": username}
    registered = post(service, "/auth/register", who | {"email": f"{username}@example.com"}).json
    secret, pending = registered["manualEntryKey"], post(service, "/auth/login", who).json["tempToken"]
    body = {"tempToken": pending, "totpCode": totp(secret, int(time.time()) // 30)}
    return str(post(service, "/auth/verify-mfa", body).json["accessToken"])


@pytest.fixture
def arrived() -> list[str]:
    """The tokens that came to what is `answering`."""
    return []


@pytest.fixture
def answering(arrived: list[str]) -> Iterator[Callable[..., str]]:
    """Something that is not our service, and answers whatever it is told to."""
    servers: list[ThreadingHTTPServer] = []

    def start(status: int, headers: dict[str, str]) -> str:
        class Answer(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                arrived.append(self.headers["Authorization"])
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None: ...

        servers.append(ThreadingHTTPServer(("127.0.0.1", 0), Answer))
        threading.Thread(target=servers[-1].serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{servers[-1].server_port}/auth/check"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()
