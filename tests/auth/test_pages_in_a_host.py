"""The pages in an app of somebody else, which has checked the password itself and has a session of its own."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from flask import Flask, redirect, request, session
from jinja2 import StrictUndefined
from sqlalchemy import create_engine
from werkzeug.wrappers import Response

from mfa_service import MFA, require_mfa
from mfa_service.extension import HostUser
from mfa_service.services.administration import By
from mfa_service.services.policy import Rules
from tests.conftest import Clock
from tests.factories import totp
from tests.pages import DEVICE, OWN, PENDING, SESSION, Browser
from tests.services import CLIENT, Rows, events

MakeHost = Callable[..., Flask]

EVIL = "https://evil.example"


def test_the_host_begins_and_the_user_sets_up_an_authenticator(browser: Browser, clock: Clock) -> None:
    answer = browser.post("/login", {"user": "7", "next": "/account?a=b"})
    assert (answer.status_code, answer.headers["Location"]) == (303, "/auth/authenticator?next=/account?a%3Db")
    browser.follow()
    browser.set_up(clock)
    assert browser.page.links["I have kept them: continue"] == "/account?a=b"
    assert browser.get("/account").text == "orders of 7"


def test_later_the_code_is_asked_for(browser: Browser, secret: str, clock: Clock) -> None:
    answer = browser.post("/login", {"user": "7"})
    assert answer.headers["Location"] == "/auth/code?next=/account"
    browser.follow()
    assert browser.press(code=now(secret, clock)).headers["Location"] == "/account"
    assert browser.follow().text == "orders of 7"


def test_a_view_that_needs_the_factor_sends_a_browser_to_it_and_back(
    browser: Browser, secret: str, clock: Clock
) -> None:
    browser.post("/login", {"user": "7"})
    answer = browser.get("/account?a=b")
    assert (answer.status_code, answer.headers["Location"]) == (303, "/auth/code?next=/account?a%3Db")
    browser.follow()
    assert browser.press(code=now(secret, clock)).headers["Location"] == "/account?a=b"


def test_a_program_gets_the_refusal_and_no_page(browser: Browser) -> None:
    for accept in ("*/*", "application/json", "", "application/json, text/html;q=0.9"):
        answer = browser.get("/account", Accept=accept)
        assert (answer.status_code, answer.json["code"]) == (401, "no_token")
    assert browser.get("/account", Authorization="Bearer x").json["code"] == "invalid_token"


def test_who_is_signed_in_nowhere_is_told_so(browser: Browser) -> None:
    assert browser.get("/account").headers["Location"] == "/auth/code?next=/account"
    assert browser.follow().status_code == 401
    assert "You are not signed in" in browser.page.text
    assert browser.page.links == {}  # the way to the host's own form is the host's to show


def test_there_is_no_page_for_the_password(browser: Browser) -> None:
    assert browser.get("/auth/sign-in").status_code == 404
    assert browser.post("/auth/sign-in").status_code == 404


def test_who_waited_too_long_begins_again_without_the_password(browser: Browser, secret: str, clock: Clock) -> None:
    browser.post("/login", {"user": "7"})
    browser.get("/auth/code?next=/x")
    before = browser.cookie(PENDING)
    clock.advance(300)
    assert browser.press(code=now(secret, clock)).headers["Location"] == "/auth/code?next=/x"
    assert browser.cookie(PENDING) not in (None, before)
    assert browser.follow().status_code == 200
    assert browser.press(code=now(secret, clock)).headers["Location"] == "/x"


def test_after_five_wrong_codes_it_begins_again(browser: Browser, secret: str, clock: Clock) -> None:
    browser.post("/login", {"user": "7"})
    browser.follow()
    for _ in range(5):
        assert browser.press(code="000000").status_code == 401
    assert browser.press(code="000000").headers["Location"] == "/auth/code?next=/account"
    clock.advance(60)
    browser.follow()
    assert browser.press(code=now(secret, clock)).headers["Location"] == "/account"


def test_a_view_that_needs_it_fresh_asks_again_and_leads_back(browser: Browser, secret: str, clock: Clock) -> None:
    enter(browser, secret, clock)
    assert browser.get("/payment").text == "paid by 7"
    clock.advance(300)
    assert browser.get("/account").status_code == 200
    assert browser.get("/payment?of=5").headers["Location"] == "/auth/code?next=/payment?of%3D5"
    browser.follow()
    assert browser.press(code=now(secret, clock)).headers["Location"] == "/payment?of=5"
    assert browser.follow().text == "paid by 7"


@pytest.mark.parametrize(
    "name", ["münchen", "a b", "100%", "a?b", "a#b", "%2e%2e", '"><b>', "東京", "a+b", "a\\b"], ids=ascii
)
def test_a_place_is_come_back_to_whatever_letters_it_is_made_of(
    browser: Browser, secret: str, clock: Clock, name: str
) -> None:
    place = f"/shelf/{quote(name)}?of={quote(name)}&x=1+2"
    browser.get(place)
    browser.follow()
    browser.post("/login", {"user": "7", "next": "/account"})
    browser.get(place)
    browser.follow()
    assert browser.press(code=now(secret, clock)).headers["Location"] == place
    assert browser.follow().json == [name, name, "1 2"]


def test_the_host_may_say_where_to_go_in_letters(browser: Browser, secret: str, clock: Clock) -> None:
    browser.post("/login", {"user": "7", "next": "/shelf/münchen?of=東京&x=1"})
    browser.follow()
    browser.press(code=now(secret, clock))
    assert browser.follow().json == ["münchen", "東京", "1"]


def test_what_a_form_was_about_to_do_leads_back_to_the_form(browser: Browser, secret: str, clock: Clock) -> None:
    enter(browser, secret, clock)
    clock.advance(300)
    for referrer, place in [
        (f"{OWN}/cart?a=b", "/cart"),
        ("", "/"),
        (f"{EVIL}//evil.example", "/"),
        ("javascript:alert(1)", "/"),
    ]:
        answer = browser.post("/payment", Referer=referrer)
        assert answer.headers["Location"] == f"/auth/code?next={place}"


def test_a_foreign_form_is_refused_in_the_hosts_views_too(browser: Browser, secret: str, clock: Clock) -> None:
    enter(browser, secret, clock)
    assert browser.post("/payment").text == "paid by 7"
    for origin in (EVIL, "null", "", "http://localhost:8080"):
        answer = browser.post("/payment", Origin=origin)
        assert (answer.status_code, answer.json["code"]) == (403, "foreign_origin")
    assert browser.get("/account", Origin=EVIL).status_code == 403


def test_the_cookie_counts_only_with_its_own_user_of_the_host(browser: Browser, secret: str, clock: Clock) -> None:
    enter(browser, secret, clock)
    for other in ("8", ""):
        with browser.client.session_transaction() as theirs:
            theirs["user"] = other
        assert browser.get("/account").status_code == 303
        assert browser.get("/api/profile").json["code"] == "no_token"
    with browser.client.session_transaction() as theirs:
        theirs["user"] = "7"
    assert browser.get("/account").status_code == 200


def test_who_comes_after_somebody_else_is_asked_for_their_own_code(
    browser: Browser, secret: str, clock: Clock, rows: Rows
) -> None:
    enter(browser, secret, clock)
    with browser.client.session_transaction() as theirs:
        theirs["user"] = "8"
    browser.get("/account")
    browser.follow()
    assert browser.answer.headers["Location"] == "/auth/authenticator?next=/account"
    browser.follow()
    browser.set_up(clock)
    assert browser.get("/account").text == "orders of 8"
    assert "login.code_refused" not in events(rows)


def test_a_code_of_another_does_not_count_against_who_was_there_before(
    browser: Browser, secret: str, clock: Clock, rows: Rows
) -> None:
    enter(browser, secret, clock)
    with browser.client.session_transaction() as theirs:
        theirs["user"] = "8"
    assert browser.post("/auth/code", {"code": "000000"}).headers["Location"] == "/auth/authenticator?next=/"
    assert "login.code_refused" not in events(rows)


def test_a_remembered_device_is_enough_for_the_code_and_only_its_owners(
    browser: Browser, secret: str, clock: Clock
) -> None:
    enter(browser, secret, clock, remember="on")
    assert browser.cookie(DEVICE)
    browser.post("/logout")
    assert browser.post("/login", {"user": "7"}).headers["Location"] == "/account"
    assert browser.follow().text == "orders of 7"
    assert browser.post("/login", {"user": "8"}).headers["Location"] == "/auth/authenticator?next=/account"


def test_the_hosts_sign_out_ends_both_sessions(browser: Browser, secret: str, clock: Clock, rows: Rows) -> None:
    enter(browser, secret, clock)
    cookie = browser.cookie(SESSION) or ""
    browser.post("/logout")
    assert (browser.cookie(SESSION), events(rows)[-1]) == (None, "session.ended")
    browser.client.set_cookie(SESSION, cookie)
    with browser.client.session_transaction() as theirs:
        theirs["user"] = "7"
    assert browser.get("/account").status_code == 303


def test_the_pages_leave_signing_out_to_the_host(browser: Browser, secret: str, clock: Clock) -> None:
    enter(browser, secret, clock)
    for path in ("/auth/code", "/auth/recovery-code"):
        assert "Sign out" not in browser.get(path).text


def test_the_hosts_sign_out_works_wherever_it_comes_from(browser: Browser, secret: str, clock: Clock) -> None:
    enter(browser, secret, clock)
    assert browser.post("/logout", Origin="https://evil.example").status_code == 302
    assert browser.cookie(SESSION) is None
    assert browser.get("/account").status_code == 303


def test_a_pending_cookie_counts_only_for_whom_the_host_has_signed_in(
    browser: Browser, secret: str, clock: Clock, rows: Rows
) -> None:
    browser.post("/login", {"user": "7"})  # and no code
    with browser.client.session_transaction() as theirs:
        theirs["user"] = "8"
    before = rows("SELECT count(*) AS n FROM mfa_locks")
    clock.advance(30)
    answer = browser.post("/auth/code", {"code": now(secret, clock), "next": "/account"})
    assert answer.headers["Location"] == "/auth/authenticator?next=/account"
    assert browser.cookie(SESSION) is None
    assert rows("SELECT count(*) AS n FROM mfa_locks") == before


def test_coming_again_as_the_same_user_ends_nothing(browser: Browser, secret: str, clock: Clock) -> None:
    enter(browser, secret, clock)
    browser.get("/auth/authenticator", Sec_Fetch_Site="cross-site")
    assert browser.get("/account").text == "orders of 7"


def test_a_host_whose_ids_are_numbers_is_understood(make_host: MakeHost, clock: Clock) -> None:
    app = make_host()
    app.extensions["mfa_service"].host.current_user_loader(
        lambda: HostUser(int(session["user"]), "seven") if session.get("user") else None
    )
    browser = Browser(app)
    browser.post("/login", {"user": "7"})
    browser.follow()
    browser.press()
    browser.press(code=totp(browser.page.codes[0], int(clock()) // 30))
    assert browser.get("/account").text == "orders of 7"


def test_a_hosts_jinja_may_be_strict(make_host: MakeHost) -> None:
    app = make_host()
    app.jinja_env.undefined = StrictUndefined
    browser = Browser(app)
    browser.post("/login", {"user": "7"})
    for path in ("/auth/authenticator", "/auth/recovery-code"):
        assert browser.get(path).status_code == 200


def test_a_new_sign_in_takes_the_place_of_the_session_before(
    browser: Browser, secret: str, clock: Clock, rows: Rows
) -> None:
    enter(browser, secret, clock)
    browser.post("/login", {"user": "8"})
    assert browser.cookie(SESSION) is None
    assert "session.ended" in events(rows)


def test_where_policy_asks_for_no_factor_nobody_is_stopped_and_one_is_offered_where_it_is_needed(
    host: Flask, browser: Browser, clock: Clock
) -> None:
    services(host).administration.set_policy(By(CLIENT), Rules("optional"))
    assert browser.post("/login", {"user": "7"}).headers["Location"] == "/account"
    assert browser.get("/account").headers["Location"] == "/auth/code?next=/account"
    assert browser.follow().headers["Location"] == "/auth/authenticator?next=/account"
    browser.follow()
    assert browser.page.links["Not now"] == "/account"
    browser.set_up(clock)
    assert browser.get("/account").text == "orders of 7"


def test_looking_at_pages_changes_nothing_but_what_begins_again(
    browser: Browser, secret: str, clock: Clock, rows: Rows
) -> None:
    before = {name: rows(f"SELECT * FROM mfa_{name}") for name in ("users", "secrets", "devices", "events")}
    for path in ("/auth/recovery-code", "/auth/pages.css", "/auth/code", "/auth/authenticator"):
        browser.get(path)
    assert before == {name: rows(f"SELECT * FROM mfa_{name}") for name in before}
    browser.post("/login", {"user": "7"})
    opened = rows("SELECT count(*) AS n FROM mfa_challenges")
    for path in ("/auth/recovery-code", "/auth/code", "/auth/authenticator"):
        assert browser.get(path).status_code == 200
    assert rows("SELECT count(*) AS n FROM mfa_challenges") == opened


def test_the_pages_go_where_the_host_puts_them(make_host: MakeHost, clock: Clock) -> None:
    browser = Browser(make_host(MFA_AUTH_PREFIX="/second/factor", MFA_API_PREFIX="/own"))
    browser.post("/login", {"user": "7"})
    assert browser.answer.headers["Location"] == "/second/factor/authenticator?next=/account"
    browser.follow()
    assert browser.page.forms[0].action == "/second/factor/authenticator"
    assert browser.page.all("link")[0]["href"] == "/second/factor/pages.css"
    browser.set_up(clock)
    assert browser.get("/own/profile").json["username"] == "user seven"


def test_a_host_under_a_path_stays_under_it(host: Flask, clock: Clock) -> None:
    client, under = host.test_client(), {"base_url": "http://localhost/shop/"}
    answer = client.post("/login", data={"user": "7", "next": "/shop/account"}, **under)
    assert answer.headers["Location"] == "/shop/auth/authenticator?next=/shop/account"
    answer = client.get("/account?a=b", headers={"Accept": "text/html"}, **under)
    assert answer.headers["Location"] == "/shop/auth/code?next=/shop/account?a%3Db"


def test_a_host_gives_the_pages_its_own_look(make_host: MakeHost, tmp_path: Path) -> None:
    folder = tmp_path / "templates" / "mfa_service"
    folder.mkdir(parents=True)
    (folder / "base.html").write_text("<html lang=de><body>Shop{% block content %}{% endblock %}</body></html>")
    browser = Browser(make_host(tmp_path))
    browser.post("/login", {"user": "7"})
    assert "Shop" in browser.follow().text
    assert browser.page.forms[0].action == "/auth/authenticator"


def test_the_hosts_own_cookie_and_headers_stay_as_they_are(browser: Browser, secret: str, clock: Clock) -> None:
    enter(browser, secret, clock)
    answer = browser.get("/account")
    assert "Content-Security-Policy" not in answer.headers
    assert "Strict-Transport-Security" not in browser.get("/auth/code").headers
    assert browser.answer.headers["Cache-Control"] == "no-store"


def test_where_the_account_is_disabled_the_page_says_so_and_there_is_no_circle(
    host: Flask, browser: Browser, secret: str, clock: Clock, rows: Rows
) -> None:
    enter(browser, secret, clock)
    [user] = rows("SELECT id FROM mfa_users")
    services(host).administration.disable(By(CLIENT), user["id"])
    assert browser.get("/account").status_code == 303
    assert browser.follow().status_code == 401
    assert browser.page.links == {"Go on": "/account"}


# ── means ────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def make_host(database: str, instance: Path, clock: Clock) -> Iterator[MakeHost]:
    """Make an app with a session of its own, and an MFA on the test's database."""
    made: list[Flask] = []

    def make(folder: Path | None = None, **settings: Any) -> Flask:
        app = Flask("host", root_path=str(folder or Path(__file__).parent))
        app.config.update(SECRET_KEY="the host's", TESTING=True, MFA_INSTANCE=str(instance))
        app.config.update(MFA_TOKEN_LOCATIONS="header,cookie", MFA_SEAL_SECONDS=0, MFA_SEALS_OUTPUT="none")
        app.config.update(MFA_AUTH_RATE_LIMIT="100000 per minute", **settings)
        _equip(app, MFA(app, engine=create_engine(database), clock=clock))
        made.append(app)
        return app

    yield make
    for app in made:
        services(app).close()
        services(app).engine.dispose()


def _equip(app: Flask, mfa: MFA) -> None:
    names = {"7": "user seven", "8": "user eight"}

    @mfa.current_user_loader
    def current_user() -> HostUser | None:
        return HostUser(session["user"], names[session["user"]]) if session.get("user") else None

    @app.post("/login")
    def login() -> Response:
        session["user"] = request.form["user"]
        user = HostUser(session["user"], names[session["user"]])
        return mfa.begin(user, next=request.form.get("next", "/account"))

    @app.get("/account")
    @require_mfa
    def account() -> str:
        return f"orders of {mfa.user.external_id}"

    @app.route("/payment", methods=["GET", "POST"])
    @require_mfa(max_age=300)
    def payment() -> str:
        return f"paid by {mfa.user.external_id}"

    @app.get("/shelf/<name>")
    @require_mfa
    def shelf(name: str) -> list[str]:
        return [name, request.args["of"], request.args["x"]]

    @app.post("/logout")
    def logout() -> Response:
        mfa.end()
        session.clear()
        return redirect("/")


@pytest.fixture
def host(make_host: MakeHost) -> Flask:
    return make_host()


@pytest.fixture
def browser(host: Flask) -> Browser:
    return Browser(host)


@pytest.fixture
def secret(host: Flask, clock: Clock) -> str:
    """The authenticator of user 7, set up in another browser."""
    other = Browser(host)
    other.post("/login", {"user": "7"})
    other.follow()
    found = other.set_up(clock)
    clock.advance(30)
    return found


def enter(browser: Browser, secret: str, clock: Clock, **more: str) -> None:
    browser.post("/login", {"user": "7"})
    browser.follow()
    assert browser.press(code=now(secret, clock), **more).status_code == 303
    clock.advance(30)


def now(secret: str, clock: Clock) -> str:
    return totp(secret, int(clock()) // 30)


def services(app: Flask) -> Any:
    return app.extensions["mfa_service"].services
