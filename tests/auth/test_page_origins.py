"""A browser sends our cookie along for whoever makes it send something: what counts is where that comes from."""

import itertools
from collections.abc import Callable
from typing import Any

import pytest
from flask import Flask
from werkzeug.test import TestResponse

from mfa_service.services.administration import By, Changes
from tests.conftest import Clock
from tests.factories import Person, bearer, register, sign_in
from tests.pages import OWN, PENDING, SESSION, Browser
from tests.services import CLIENT, Rows, user_id_of

MakeApp = Callable[..., Flask]

pytestmark = pytest.mark.parametrize("database", ["sqlite"], indirect=True)

FORMS = ["/auth/sign-in", "/auth/code", "/auth/recovery-code", "/auth/authenticator", "/auth/sign-out"]
#: Origins that a form of somebody else may come with; none at all is what very old browsers send.
FOREIGN = [
    "",
    "null",
    "https://evil.example",
    "http://localhost:8080",
    "http://localhost.evil.example",
    "http://evil.example#http://localhost",
    "http://localhost@evil.example",
    "http://sub.localhost",
    "http://127.0.0.1",
    "http://localhost/",
    "HTTP://LOCALHOST",
    "http://localhost http://evil.example",
    "http://localhost, http://evil.example",
    "file://",
    "localhost",
]
SITES = ["", "cross-site", "same-site", "none", "Same-Origin", "same-origin, cross-site"]


# ── forms ────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("path", FORMS)
def test_a_form_counts_only_from_a_page_of_this_origin(browser: Browser, path: str, rows: Rows) -> None:
    before = rows("SELECT count(*) AS n FROM mfa_events")
    for origin in FOREIGN:
        refuse(browser.post(path, {"next": "/there"}, Origin=origin), origin)
        assert browser.page.links == {"Go on": "/there"}
    for origin, site in itertools.product(["", "null"], SITES):
        refuse(browser.post(path, Origin=origin, Sec_Fetch_Site=site), f"{origin} {site}")
    assert rows("SELECT count(*) AS n FROM mfa_events") == before
    assert browser.get("/api/profile").status_code == 200


@pytest.mark.parametrize("path", FORMS)
def test_a_browsers_own_word_counts_only_where_there_is_no_origin(browser: Browser, path: str) -> None:
    for origin in FOREIGN[2:]:
        refuse(browser.post(path, Origin=origin, Sec_Fetch_Site="same-origin"), origin)


@pytest.mark.parametrize("path", FORMS)
@pytest.mark.parametrize("headers", [{}, *({"Origin": it, "Sec_Fetch_Site": "same-origin"} for it in ("null", ""))])
def test_a_form_of_this_origin_is_taken(browser: Browser, path: str, headers: dict[str, str]) -> None:
    assert browser.post(path, **headers).status_code in (303, 401)


def test_behind_a_proxy_that_ends_tls_the_hosts_own_pages_count(make_app: MakeApp) -> None:
    app = make_app(MFA_TOKEN_LOCATIONS="header,cookie", MFA_PUBLIC_URL="https://auth.example")
    assert Browser(app).post("/auth/sign-in", Origin="https://localhost").status_code == 401


def test_over_https_a_page_of_the_same_host_over_http_does_not_count(make_app: MakeApp) -> None:
    client = make_app(MFA_TOKEN_LOCATIONS="header,cookie").test_client()
    for origin, status in (("https://localhost", 401), ("http://localhost", 403)):
        answer = client.post("/auth/sign-in", base_url="https://localhost", headers={"Origin": origin})
        assert answer.status_code == status, origin


def test_the_public_address_is_an_origin_of_ours(make_app: MakeApp) -> None:
    app = make_app(MFA_TOKEN_LOCATIONS="header,cookie", MFA_PUBLIC_URL="https://auth.example/mfa")
    browser = Browser(app)
    assert browser.post("/auth/sign-in", Origin="https://auth.example").status_code == 401
    for origin in ("http://auth.example", "https://auth.example/mfa", "https://auth.example:8443"):
        refuse(browser.post("/auth/sign-in", Origin=origin), origin)


def test_an_international_name_is_an_origin_as_browsers_write_it(make_app: MakeApp) -> None:
    name = "xn--mnchen-3ya.example"
    browser = Browser(make_app(MFA_TOKEN_LOCATIONS="header,cookie", MFA_ALLOWED_HOSTS=name))
    assert browser.post("/auth/sign-in", Host=name, Origin=f"http://{name}").status_code == 401
    refuse(browser.post("/auth/sign-in", Host=name, Origin="http://localhost"))


@pytest.mark.parametrize("host", ["localhost:80", "localhost", "[::1]:8000", "127.0.0.1:5000"])
def test_the_origin_is_that_of_the_address_that_was_asked(browser: Browser, host: str) -> None:
    origin = f"http://{host.lower().removesuffix(':80')}"
    assert browser.post("/auth/sign-in", Host=host, Origin=origin).status_code == 401


# ── the API by cookie ────────────────────────────────────────────────────────────────────────────


def test_a_call_by_cookie_counts_only_from_a_page_of_this_origin(browser: Browser) -> None:
    for origin in FOREIGN:
        answer = browser.post("/api/mfa/recovery-codes", Origin=origin)
        assert (answer.status_code, answer.json["code"]) == (403, "foreign_origin"), origin
    for headers in ({}, {"Origin": "null", "Sec_Fetch_Site": "same-origin"}):
        assert len(browser.post("/api/mfa/recovery-codes", **headers).json["recoveryCodes"]) == 10


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/auth/logout"),
        ("POST", "/auth/step-up"),
        ("POST", "/auth/password"),
        ("POST", "/api/mfa/totp"),
        ("DELETE", "/api/mfa"),
        ("DELETE", "/api/devices"),
        ("PUT", "/api/admin/policy"),
        ("PATCH", "/api/admin/users/x"),
    ],
)
def test_every_route_that_changes_something_is_kept_so(browser: Browser, method: str, path: str) -> None:
    for origin in ("https://evil.example", "null", ""):
        answer = browser.client.open(path, method=method, headers={"Origin": origin} if origin else {})
        assert (answer.status_code, answer.json["code"]) == (403, "foreign_origin"), origin
    answer = browser.client.open(path, method=method, headers={"Origin": OWN})
    assert answer.json is None or answer.json.get("code") != "foreign_origin"


def test_reading_by_cookie_is_for_navigations_and_pages_of_this_origin(browser: Browser) -> None:
    for headers in ({}, {"Origin": OWN}, {"Origin": "null", "Sec_Fetch_Site": "same-origin"}):
        assert browser.get("/api/profile", **headers).status_code == 200
        assert browser.client.head("/api/profile").status_code == 200
    for origin in FOREIGN[1:]:
        assert browser.get("/api/profile", Origin=origin).json["code"] == "foreign_origin", origin
        assert browser.get("/auth/code", Origin=origin).status_code == 403


def test_an_origin_that_may_call_with_a_token_may_not_with_the_cookie(make_app: MakeApp, clock: Clock) -> None:
    shop = "https://shop.example"
    app = make_app(MFA_TOKEN_LOCATIONS="header,cookie", MFA_CORS_ORIGINS=shop)
    browser, ada = signed_in(app, clock)
    answer = browser.get("/api/profile", Origin=shop)
    assert answer.json["code"] == "foreign_origin"
    assert "Access-Control-Allow-Credentials" not in answer.headers
    token = sign_in(app.test_client(), ada, clock(), 1)
    assert browser.get("/api/profile", Origin=shop, **bearer(token)).status_code == 200


def test_a_bearer_token_needs_no_origin(browser: Browser, token: str) -> None:
    for origin in FOREIGN:
        assert browser.get("/api/profile", Origin=origin, **bearer(token)).status_code == 200
        answer = browser.post("/api/mfa/recovery-codes", Origin=origin, **bearer(token))
        assert answer.status_code == 200


def test_who_has_no_cookie_gets_to_know_nothing_of_origins(app: Flask) -> None:
    answer = Browser(app).post("/api/mfa/recovery-codes", Origin="https://evil.example")
    assert (answer.status_code, answer.json["code"]) == (401, "no_token")


def test_the_header_is_believed_and_not_the_cookie(browser: Browser, app: Flask, clock: Clock) -> None:
    bob = register(app.test_client(), "bob")
    token = sign_in(app.test_client(), bob, clock())
    assert browser.get("/api/profile").json["username"] == "ada"
    assert browser.get("/api/profile", **bearer(token)).json["username"] == "bob"


@pytest.mark.parametrize("header", ["Bearer x.y.z", "Bearer ", "Bearer", "Basic YWRhOng=", "nonsense", "  "])
def test_a_bad_header_is_not_made_good_by_the_cookie(browser: Browser, header: str) -> None:
    assert browser.get("/api/profile", Authorization=header).status_code == 401
    assert browser.get("/auth/check", Authorization=header, X_Forwarded_Method="GET").status_code == 401


# ── forward auth ─────────────────────────────────────────────────────────────────────────────────


def test_a_proxy_learns_who_it_is_from_the_cookie(browser: Browser, rows: Rows) -> None:
    answer = browser.get("/auth/check", X_Forwarded_Method="GET")
    assert (answer.status_code, answer.data) == (204, b"")
    names = ("X-Auth-Subject", "X-Auth-Username", "X-Auth-Amr", "X-Auth-Roles")
    assert [answer.headers[name] for name in names] == [user_id_of(rows, "ada"), "ada", "pwd otp mfa", "admin"]
    assert "Set-Cookie" not in answer.headers


def test_what_changes_something_behind_a_proxy_has_to_come_from_its_own_pages(browser: Browser) -> None:
    for method in ("POST", "PUT", "PATCH", "DELETE", "post", "OPTIONS", "get", "", "unknown", "GET, POST"):
        for origin in FOREIGN:
            answer = browser.get("/auth/check", X_Forwarded_Method=method, Origin=origin)
            assert (answer.status_code, answer.json["code"]) == (403, "foreign_origin"), (method, origin)
            assert not [name for name, _ in answer.headers if name.startswith("X-Auth")]
        assert browser.get("/auth/check", X_Forwarded_Method=method, Origin=OWN).status_code == 204


def test_a_websocket_behind_a_proxy_has_to_come_from_its_own_pages(browser: Browser) -> None:
    for method in ("GET", "HEAD"):
        for origin in FOREIGN[1:]:
            assert browser.get("/auth/check", X_Forwarded_Method=method, Origin=origin).status_code == 403
        assert browser.get("/auth/check", X_Forwarded_Method=method, Origin=OWN).status_code == 204
        assert browser.get("/auth/check", X_Forwarded_Method=method).status_code == 204


def test_only_the_question_of_a_proxy_is_about_another_request(browser: Browser) -> None:
    refuse_json(browser.post("/api/mfa/recovery-codes", Origin="", X_Forwarded_Method="GET"))
    refuse(browser.post("/auth/code", Origin="", X_Forwarded_Method="GET"))


# ── where to go afterwards ───────────────────────────────────────────────────────────────────────

ELSEWHERE = [
    "//evil.example",
    "///evil.example",
    "////evil.example/x",
    "/\\evil.example",
    "\\\\evil.example",
    "\\/evil.example",
    "/there\\..\\..\\evil",
    "https://evil.example",
    "https:evil.example",
    "https:/evil.example",
    "HTTPS://evil.example",
    "http://localhost@evil.example",
    "http://localhost.evil.example/",
    "http://localhost:80@evil.example/",
    "http://localhost:8080/",
    "https://localhost/",
    "http://localhost//evil.example",
    "http://localhost/\\evil.example",
    "http://localhosthttp://evil.example",
    "http://localhost",
    "javascript:alert(1)",
    "JaVaScRiPt:alert(1)",
    "java\tscript:alert(1)",
    "data:text/html,<script>alert(1)</script>",
    "/\t/evil.example",
    "\t//evil.example",
    " //evil.example",
    " /there",
    "/\n/evil.example",
    "/there\r\nSet-Cookie: a=b",
    "/\0",
    "/\x7f",
    "/\x85/evil.example",
    "/\N{NO-BREAK SPACE}/evil.example",
    "\N{ZERO WIDTH SPACE}//evil.example",
    "there",
    "?there",
    "#there",
    ".",
    "",
]
HERE = {
    "/": "/",
    "/there": "/there",
    "/there?a=b&c=d#e": "/there?a=b&c=d#e",
    "/%0d%0aSet-Cookie:%20a=b": "/%0d%0aSet-Cookie:%20a=b",
    "/%2F%2Fevil.example": "/%2F%2Fevil.example",
    "/%5Cevil.example": "/%5Cevil.example",
    "/there?next=//evil.example": "/there?next=//evil.example",
    "/@evil.example": "/@evil.example",
    "/.//evil.example": "/.//evil.example",
    "http://localhost/": "/",
    "http://localhost/there?a=b": "/there?a=b",
    "http://127.0.0.1:8000/there": "/there",
    "/münchen?q=ü": "/m%C3%BCnchen?q=%C3%BC",
    "/\N{FULLWIDTH SOLIDUS}evil.example": "/%EF%BC%8Fevil.example",
    "/\N{IDEOGRAPHIC FULL STOP}": "/%E3%80%82",
    "/a b": "/a%20b",
    "/<script>alert(1)</script>": "/%3Cscript%3Ealert(1)%3C/script%3E",
    '/"><script>alert(1)</script>': "/%22%3E%3Cscript%3Ealert(1)%3C/script%3E",
    "/'onmouseover='alert(1)": "/'onmouseover='alert(1)",
    "/{{ 7 * 7 }}": "/%7B%7B%207%20*%207%20%7D%7D",
}


@pytest.mark.parametrize("target", ELSEWHERE, ids=ascii)
def test_nothing_leads_to_another_origin(browser: Browser, target: str) -> None:
    assert led_to(browser, target) == {"/"}


@pytest.mark.parametrize("target", HERE, ids=ascii)
def test_a_place_on_this_origin_is_gone_to_and_escaped_in_pages(browser: Browser, target: str) -> None:
    assert led_to(browser, target) == {HERE[target]}


def test_what_was_typed_never_becomes_a_part_of_the_page(browser: Browser) -> None:
    evil = "\"'><script>alert(1)</script>{{ 7 * 7 }}"
    for path in FORMS[:4]:
        for answer in (
            browser.post(path, {"username": evil, "password": evil, "code": evil, "ticket": evil, "next": f"/{evil}"}),
            browser.get(path, User_Agent=evil),
        ):
            assert "<script" not in answer.text
            assert "49" not in "".join(browser.page.words)


# ── means ────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def app(make_app: MakeApp) -> Flask:
    return make_app(MFA_TOKEN_LOCATIONS="header,cookie")


@pytest.fixture
def browser(app: Flask, clock: Clock, rows: Rows) -> Browser:
    """A browser in which an administrator is signed in."""
    browser, _ = signed_in(app, clock)
    changes = Changes(roles=("admin",))
    services: Any = app.extensions["mfa_service"].services
    services.administration.change(By(CLIENT), user_id_of(rows, "ada"), changes)
    return browser


@pytest.fixture
def token(app: Flask, clock: Clock) -> str:
    return sign_in(app.test_client(), register(app.test_client(), "bob"), clock())


def signed_in(app: Flask, clock: Clock) -> tuple[Browser, Person]:
    ada = register(app.test_client(), "ada")
    browser = Browser(app)
    browser.sign_in(ada)
    browser.follow()
    secret = browser.set_up(clock)
    assert browser.cookie(SESSION)
    return browser, Person(ada.username, ada.password, ada.email, secret)


def led_to(browser: Browser, target: str) -> set[str]:
    """Every place that pages and redirects lead to, if this is where somebody is said to want to go."""
    places = set()
    for way in ("query", "form"):
        values = {"query_string": {"next": target}} if way == "query" else {"data": {"next": target}}
        out = browser.client.post("/auth/sign-out", headers={"Origin": OWN}, **values)
        places.add(out.headers["Location"])
        browser.client.delete_cookie(PENDING)
        for path in FORMS[:3]:
            refused = browser.client.post(path, headers={"Origin": "https://evil.example"}, **values)
            browser.answer = refused
            places.add(browser.page.links["Go on"])
    browser.answer = browser.client.get("/auth/sign-in", query_string={"next": target})
    places.add(browser.page.forms[0].fields["next"])
    return places


def refuse(answer: TestResponse, why: str = "") -> None:
    assert (answer.status_code, answer.mimetype) == (403, "text/html"), why
    assert "Request from another origin" in answer.text
    assert "Set-Cookie" not in answer.headers


def refuse_json(answer: TestResponse) -> None:
    assert (answer.status_code, answer.json["code"]) == (403, "foreign_origin")
