"""What stands around every answer: headers, methods, hosts, origins, paths (API.md, Form and the table of headers)."""

import contextlib
import http.client
import re
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import pytest
from flask import Flask
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from mfa_service.errors import published
from tests.conftest import Clock, free_port
from tests.factories import bearer, log_in, register, sign_in

MakeApp = Callable[..., Flask]

HELMET = {
    "Content-Security-Policy": "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Origin-Agent-Cluster": "?1",
    "Referrer-Policy": "no-referrer",
    "Strict-Transport-Security": "max-age=31536000; includeSubDomains",
    "X-Content-Type-Options": "nosniff",
    "X-DNS-Prefetch-Control": "off",
    "X-Download-Options": "noopen",
    "X-Frame-Options": "DENY",
    "X-Permitted-Cross-Domain-Policies": "none",
    "X-XSS-Protection": "0",
}
#: What a page has otherwise.
A_PAGES = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
}


def test_every_answer_carries_the_headers_of_helmet(answers: dict[str, TestResponse]) -> None:
    for kind, answer in answers.items():
        for name, value in (HELMET | (A_PAGES if answer.mimetype == "text/html" else {})).items():
            assert answer.headers.getlist(name) == [value], kind


def test_every_answer_under_auth_and_api_forbids_storing(answers: dict[str, TestResponse]) -> None:
    for kind, answer in answers.items():
        if answer.request.path.startswith(("/auth", "/api")):
            assert answer.headers.getlist("Cache-Control") == ["no-store"], kind


def test_every_answer_has_an_id_and_none_sets_a_cookie_or_names_what_runs_it(answers: dict[str, TestResponse]) -> None:
    for kind, answer in answers.items():
        assert re.fullmatch(r"[A-Za-z0-9._-]{8,64}", answer.headers["X-Request-Id"]), kind
        assert not {"Set-Cookie", "X-Powered-By", "Server", "Location"} & set(answer.headers.keys()), kind
        assert not cross_origin_headers(answer), kind
    assert len({answer.headers["X-Request-Id"] for answer in answers.values()}) == len(answers)


def test_every_refusal_is_json_with_a_sentence_and_a_published_code(answers: dict[str, TestResponse]) -> None:
    codes = {error.code for error in published()}
    refusals = {kind: answer for kind, answer in answers.items() if answer.status_code >= 400}
    assert {answer.status_code for answer in refusals.values()} == {
        *(400, 401, 403, 404, 405, 409, 413, 415, 429),
        *(500, 503),
    }
    for kind, answer in refusals.items():
        assert answer.mimetype == "application/json", kind
        if answer.request.method != "HEAD":
            assert answer.json["code"] in codes, kind
            assert answer.json.keys() <= {"error", "code", "fields", "retryAfter"}, kind


def test_every_401_says_what_would_be_let_in(answers: dict[str, TestResponse]) -> None:
    for kind, answer in answers.items():
        challenge = answer.headers.get("WWW-Authenticate", "")
        assert bool(challenge.startswith('Bearer realm="mfa_service"')) == (answer.status_code == 401), kind
    # RFC 6750 section 3.1: no error code where the request carried no token at all.
    assert "error" not in answers["no token"].headers["WWW-Authenticate"]
    assert "error" not in answers["wrong password"].headers["WWW-Authenticate"]
    assert 'error="invalid_token"' in answers["bad token"].headers["WWW-Authenticate"]
    assert 'error="invalid_token"' in answers["pending token at the profile"].headers["WWW-Authenticate"]
    # RFC 9470 section 3: the token is good, and more is wanted.
    assert answers["step-up required"].headers["WWW-Authenticate"] == (
        'Bearer realm="mfa_service", error="insufficient_user_authentication", max_age="300"'
    )


def test_every_405_says_what_is_allowed(answers: dict[str, TestResponse]) -> None:
    for kind, answer in answers.items():
        assert ("Allow" in answer.headers) == (answer.status_code == 405), kind
    assert answers["405"].headers["Allow"] == "POST"
    assert set(answers["405 on a GET"].headers["Allow"].split(", ")) == {"GET", "HEAD"}


def test_every_429_and_503_says_when_to_come_back(answers: dict[str, TestResponse]) -> None:
    for kind, answer in answers.items():
        assert ("Retry-After" in answer.headers) == (answer.status_code in (429, 503)), kind
        if "Retry-After" in answer.headers:
            assert re.fullmatch(r"[1-9]\d*", answer.headers["Retry-After"]), kind
            assert answer.json["retryAfter"] == int(answer.headers["Retry-After"]), kind


def test_there_is_no_debug_mode_and_no_trace_of_one(make_app: MakeApp, answers: dict[str, TestResponse]) -> None:
    app = make_app()
    assert not app.debug
    assert not app.config["PROPAGATE_EXCEPTIONS"]
    assert not app.config["EXPLAIN_TEMPLATE_LOADING"]
    for path in ("/console", "/?__debugger__=yes&cmd=resource&f=debugger.js", "/_debug_toolbar/", "/debug"):
        assert app.test_client().get(path).json["code"] == "not_found", path
    for name, answer in answers.items():
        assert not re.search("Traceback|a secret of the inside|__debugger__", answer.text), name


def test_a_crash_tells_nothing_of_its_cause(answers: dict[str, TestResponse]) -> None:
    assert answers["500"].json == {"error": "Internal error", "code": "internal_error"}


@pytest.mark.services
@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_the_real_server_names_no_version(serve: Callable[..., str]) -> None:
    address = serve()
    for path in ("/healthz", "/nowhere", "//auth/login"):
        answer = fetch(address, "GET", path)
        assert not re.search(r"\d", answer.headers.get("Server", ""))
        assert "X-Powered-By" not in answer.headers
        assert HELMET.items() <= dict(answer.headers).items()


# ── request ids ──────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("sent", ["12345678", "a" * 64, "6f1e.c0_ff-EE00"])
def test_a_safe_request_id_comes_back(client: FlaskClient, sent: str) -> None:
    for path in ("/healthz", "/auth/login", "/nowhere"):
        assert client.get(path, headers={"X-Request-Id": sent}).headers.getlist("X-Request-Id") == [sent]


@pytest.mark.parametrize(
    "sent",
    [
        "",
        "1234567",
        "a" * 65,
        "with space",
        "<script>1",
        "semi;colon",
        "a/../../b",
        "naïve-id",
        "12345678,12345678",
        "12345678\n",
        "12345678\r\nSet-Cookie: a=b",
        "１２３４５６７８",
        "\x1b[31m12345",
        'quote"12345',
    ],
    ids=repr,
)
def test_an_unsafe_request_id_is_replaced(client: FlaskClient, sent: str) -> None:
    environ = {"HTTP_X_REQUEST_ID": sent.encode().decode("latin-1")}
    first, second = (client.get("/healthz", environ_overrides=environ).headers["X-Request-Id"] for _ in range(2))
    assert first != sent
    assert first != second
    assert re.fullmatch(r"[0-9a-f]{32}", first)


def test_the_request_id_stands_in_the_audit(client: FlaskClient, rows: Callable[..., list[dict[str, Any]]]) -> None:
    body = {"username": "nobody", "password": "not-the-right-one"}
    answer = client.post("/auth/login", json=body, headers={"X-Request-Id": "ticket-4711"})
    assert answer.status_code == 401
    assert [row["request_id"] for row in rows("SELECT request_id FROM mfa_events")] == ["ticket-4711"]


# ── methods ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT", "BREW"])
def test_a_method_that_a_route_does_not_have_is_405(app: Flask, client: FlaskClient, method: str) -> None:
    methods: dict[str, set[str]] = {}
    for rule in app.url_map.iter_rules():
        methods.setdefault(rule.rule, set()).update(rule.methods)
    for path in (path for path in methods if method not in methods[path]):
        answer = client.open(path, method=method)
        assert answer.status_code == 405, path
        assert set(answer.headers["Allow"].split(", ")) == methods[path]


def test_head_is_get_without_a_body(client: FlaskClient) -> None:
    for path in ("/healthz", "/readyz", "/.well-known/jwks.json", "/openapi.json", "/docs", "/api/profile"):
        got, headed = client.get(path), client.head(path)
        assert (headed.status_code, headed.data) == (got.status_code, b"")
        assert set(headed.headers.keys()) == set(got.headers.keys())


@pytest.mark.parametrize("header", ["X-HTTP-Method-Override", "X-HTTP-Method", "X-Method-Override"])
def test_a_header_changes_no_method(client: FlaskClient, header: str) -> None:
    assert client.get("/auth/login", headers={header: "POST"}).status_code == 405
    assert client.post("/auth/login?_method=GET", json={}, headers={header: "GET"}).status_code == 400


# ── paths ────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "path",
    [
        "/auth/login/",
        "/auth//login",
        "/AUTH/LOGIN",
        "/auth/login.json",
        "/auth/login;x",
        "/auth/login;/..",
        "/auth/..;/auth/login",
        "/auth/./login",
        "/x/../auth/login",
        "/auth/login%20",
        "/auth/login%00",
        "/auth/login%2f",
        "/auth%252flogin",
        "/auth\\login",
        "/v1/auth/login",
        "/auth",
        "/",
    ],
)
def test_another_spelling_of_a_path_is_another_path(client: FlaskClient, path: str) -> None:
    for spelled, method in ((path, "POST"), (path.replace("auth/login", "api/profile"), "GET")):
        answer = client.open("/", method=method, environ_overrides={"PATH_INFO": unquoted(spelled)})
        assert answer.status_code == 404, spelled
        assert answer.json["code"] == "not_found"


@pytest.mark.services
@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_the_real_server_redirects_nobody(serve: Callable[..., str]) -> None:
    address = serve()
    for path in ("//evil.example/auth/login", "/auth//login", "/auth/login/", "/auth/x/../login", "/auth"):
        assert fetch(address, "POST", path).status == 404
    for path in ("//auth/login", "///auth/login", "//auth//login", "//auth/login/", "//api/profile"):
        answer = fetch(address, "POST", path)
        assert answer.status >= 400
        assert "Location" not in answer.headers


def test_leading_slashes_open_no_door(client: FlaskClient) -> None:
    for path in ("//api/profile", "///api/profile"):
        assert client.open("/", environ_overrides={"PATH_INFO": path}).status_code in (401, 404)


def test_plain_http_is_answered_and_not_redirected(client: FlaskClient, make_app: MakeApp) -> None:
    for tested in (client, make_app(MFA_TRUSTED_PROXIES=1).test_client()):
        for headers in ({}, {"X-Forwarded-Proto": "http"}, {"X-Forwarded-Proto": "https"}):
            answer = tested.post("http://localhost/auth/login", json={}, headers=headers)
            assert answer.status_code == 400
            assert answer.headers["Strict-Transport-Security"] == HELMET["Strict-Transport-Security"]


# ── hosts ────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "host", ["localhost", "127.0.0.1:8000", "[::1]", "[::1]:8000", "auth.example", "AUTH.example:443"]
)
def test_our_own_host_names_are_answered(make_app: MakeApp, host: str) -> None:
    client = make_app(MFA_PUBLIC_URL="https://auth.example").test_client()
    assert client.get("/healthz", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "localhost.evil.example",
        "evillocalhost",
        "auth.example.evil.example",
        "evil@localhost",
        "localhost@evil.example",
        "localhost/evil",
        "localhost:evil",
        "127.0.0.1.evil.example",
        "[::2]",
        "[::ffff:6.6.6.6]:80",
        "",
        " ",
        "\xff",
    ],
    ids=repr,
)
def test_another_host_is_400(make_app: MakeApp, host: str) -> None:
    client = make_app(MFA_PUBLIC_URL="https://auth.example").test_client()
    for path in ("/healthz", "/auth/login", "/nowhere"):
        answer = client.get(path, headers={"Host": host})
        assert answer.status_code == 400, path
        assert answer.json == {"error": "Bad request", "code": "bad_request"}


def test_the_allow_list_adds_to_the_default(make_app: MakeApp) -> None:
    client = make_app(MFA_ALLOWED_HOSTS="Shop.example, inner.example").test_client()
    statuses = {
        host: client.get("/healthz", headers={"Host": host}).status_code
        for host in ("shop.example", "a.inner.example", "localhost", "xinner.example", "sub.shop.example")
    }
    assert statuses == {
        "shop.example": 200,
        "a.inner.example": 400,
        "localhost": 200,
        "xinner.example": 400,
        "sub.shop.example": 400,
    }


def test_what_the_client_says_of_its_host_appears_in_no_answer(make_app: MakeApp) -> None:
    lies = dict.fromkeys(("X-Forwarded-Host", "X-Forwarded-Server", "X-Original-URL", "Forwarded"), "evil.example")
    for proxies in (0, 1):
        client = make_app(MFA_TRUSTED_PROXIES=proxies).test_client()
        for path in ("/openapi.json", "/healthz", "/nowhere", "/auth/login/", "/.well-known/jwks.json"):
            answer = client.get(path, headers=lies)
            assert "evil" not in answer.text + str(answer.headers)


# ── origins ──────────────────────────────────────────────────────────────────────────────────────

ORIGIN = "https://shop.example"


@pytest.mark.parametrize("origin", [ORIGIN, "null", "http://localhost", "*"])
def test_without_an_allow_list_no_page_elsewhere_may_call(client: FlaskClient, origin: str) -> None:
    for method in ("GET", "OPTIONS"):
        headers = {"Origin": origin, "Access-Control-Request-Method": "GET"}
        answer = client.open("/api/profile", method=method, headers=headers)
        assert not cross_origin_headers(answer)


def test_a_listed_origin_may_read_every_answer_but_never_with_cookies(make_app: MakeApp) -> None:
    app = make_app(MFA_CORS_ORIGINS=f"{ORIGIN},https://other.example", MFA_AUTH_RATE_LIMIT="1 per minute")
    app.add_url_rule("/crash", view_func=crash)
    client = app.test_client()
    statuses = set()
    for method, path in [("POST", "/auth/login")] * 2 + [("GET", "/healthz"), ("GET", "/x"), ("GET", "/crash")]:
        answer = client.open(path, method=method, json={}, headers={"Origin": ORIGIN})
        assert answer.headers.getlist("Access-Control-Allow-Origin") == [ORIGIN]
        assert "Access-Control-Allow-Credentials" not in answer.headers
        assert "Origin" in answer.headers["Vary"]
        assert {"Retry-After", "WWW-Authenticate"} <= listed(answer, "Access-Control-Expose-Headers")
        statuses.add(answer.status_code)
    assert statuses == {400, 429, 200, 404, 500}


def test_a_preflight_of_a_listed_origin_is_answered(make_app: MakeApp) -> None:
    app = make_app(MFA_CORS_ORIGINS=ORIGIN)
    methods = {method for rule in app.url_map.iter_rules() for method in rule.methods} - {"HEAD", "OPTIONS"}
    headers = {"Origin": ORIGIN, "Access-Control-Request-Method": "POST"}
    for path in ("/auth/login", "/api/profile"):
        answer = app.test_client().options(path, headers=headers)
        assert (answer.status_code, answer.data) == (204, b"")
        assert answer.headers["Access-Control-Allow-Origin"] == ORIGIN
        assert listed(answer, "Access-Control-Allow-Methods") == methods
        assert {"Authorization", "Content-Type"} <= listed(answer, "Access-Control-Allow-Headers")


@pytest.mark.parametrize(
    "origin",
    [
        "https://shop.example.evil.example",
        "https://evilshop.example",
        "https://sub.shop.example",
        "https://shop.example:8443",
        "https://shop.example/",
        "http://shop.example",
        "HTTPS://SHOP.EXAMPLE",
        "https://shop.example https://evil.example",
        "null",
        "*",
        "",
    ],
)
def test_an_origin_that_only_looks_like_a_listed_one_gets_nothing(make_app: MakeApp, origin: str) -> None:
    client = make_app(MFA_CORS_ORIGINS=ORIGIN).test_client()
    for method, status in (("GET", 401), ("OPTIONS", 405)):
        headers = {"Origin": origin, "Access-Control-Request-Method": "GET"}
        answer = client.open("/api/profile", method=method, headers=headers)
        assert answer.status_code == status
        assert not cross_origin_headers(answer)
        assert "Origin" in answer.headers["Vary"]  # or a cache hands one origin's answer to another


# ── fixtures and helpers ─────────────────────────────────────────────────────────────────────────


@pytest.fixture
def answers(make_app: MakeApp, clock: Clock) -> dict[str, TestResponse]:
    """One answer of every kind there is."""
    app = make_app()
    app.add_url_rule("/crash", view_func=crash)
    client = app.test_client()
    closed = make_app(MFA_REGISTRATION_OPEN="false").test_client()
    strict = make_app(MFA_AUTH_RATE_LIMIT="1 per hour").test_client()
    lame = make_app(MFA_REDIS_URL=f"redis://127.0.0.1:{free_port()}/0").test_client()
    ada = register(client)
    credentials = {"username": ada.username, "password": ada.password}
    pending = log_in(client, ada)
    access = sign_in(client, ada, clock())
    by_code = bearer(access)
    verified = client.post(
        "/auth/verify-mfa",
        json={"tempToken": pending, "totpCode": ada.code(clock(), 1), "rememberDevice": True},
    )
    by_device = client.post("/auth/login", json=credentials | {"deviceToken": verified.json["deviceToken"]})
    return {
        "healthz": client.get("/healthz"),
        "readyz": client.get("/readyz"),
        "jwks": client.get("/.well-known/jwks.json"),
        "openapi": client.get("/openapi.json"),
        "a page": client.get("/docs"),
        "a file of a page": client.get("/docs/docs.js"),
        "register": client.post("/auth/register", json=credentials | {"username": "bob", "email": "b@example.com"}),
        "login": client.post("/auth/login", json=credentials),
        "verify": verified,
        "login on a remembered device": by_device,
        "step-up required": client.post("/api/mfa/recovery-codes", headers=bearer(by_device.json["accessToken"])),
        "refresh": client.post("/auth/refresh", json={"refreshToken": verified.json["refreshToken"]}),
        "bad refresh token": client.post("/auth/refresh", json={"refreshToken": "x"}),
        "factors": client.get("/api/mfa", headers=by_code),
        "sessions": client.get("/api/sessions", headers=by_code),
        "devices": client.get("/api/devices", headers=by_code),
        "recovery codes": client.post("/api/mfa/recovery-codes", headers=by_code),
        "nothing to confirm": client.post("/api/mfa/totp/confirm", json={"totpCode": "123456"}, headers=by_code),
        "new authenticator": client.post("/api/mfa/totp", headers=by_code),
        "policy wants a factor": client.delete("/api/mfa", headers=by_code),
        "forgotten devices": client.delete("/api/devices", headers=by_code),
        "another session": client.delete("/api/sessions/unknown", headers=by_code),
        "logout": client.post("/auth/logout", headers=bearer(by_device.json["accessToken"])),
        "profile": client.get("/api/profile", headers=bearer(access)),
        "not JSON": client.post("/auth/login", data="{", content_type="application/json"),
        "user exists": client.post("/auth/register", json=credentials | {"email": "b@example.com"}),
        "foreign host": client.get("/api/profile", headers={"Host": "evil.example"}),
        "wrong password": client.post("/auth/login", json=credentials | {"password": "wrong"}),
        "bad pending token": client.post("/auth/verify-mfa", json={"tempToken": "x", "totpCode": "123456"}),
        "no token": client.get("/api/profile"),
        "no token, HEAD": client.head("/api/profile"),
        "bad token": client.get("/api/profile", headers=bearer("x.y.z")),
        "pending token at the profile": client.get("/api/profile", headers=bearer(log_in(client, ada))),
        "factor exists": client.post("/auth/enrol", json={"tempToken": log_in(client, ada)}),
        "registration closed": closed.post("/auth/register", json=credentials | {"email": "b@example.com"}),
        "404": client.get("/nowhere"),
        "404 under auth": client.get("/auth/nowhere"),
        "405": client.get("/auth/login"),
        "405 on a GET": client.post("/api/profile"),
        "405 to OPTIONS": client.options("/api/profile"),
        "413": client.post("/auth/login", data=b" " * 70_000, content_type="application/json"),
        "415": client.post("/auth/login", data="{}", content_type="text/plain"),
        "first of one": strict.post("/auth/login", json=credentials),
        "429": strict.post("/auth/login", json=credentials),
        "500": client.get("/crash"),
        "503": lame.get("/readyz"),
    }


def crash() -> None:
    raise RuntimeError("a secret of the inside")


def cross_origin_headers(answer: TestResponse) -> list[str]:
    return [name for name, _ in answer.headers.items() if name.startswith("Access-Control")]


def listed(answer: TestResponse, header: str) -> set[str]:
    return set(answer.headers[header].split(", "))


def unquoted(path: str) -> str:
    """What a server makes of a path: one round of percent-decoding."""
    return re.sub("%([0-9a-fA-F]{2})", lambda match: chr(int(match[1], 16)), path)


def fetch(address: str, method: str, path: str, headers: dict[str, str] | None = None) -> http.client.HTTPResponse:
    """Send exactly this path over a connection."""
    with contextlib.closing(http.client.HTTPConnection(urlsplit(address).netloc, timeout=10)) as connection:
        connection.request(method, path, headers=headers or {})
        answer = connection.getresponse()
        answer.read()
        return answer
