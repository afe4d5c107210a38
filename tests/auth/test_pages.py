"""Signing in with a browser, on the pages of the service of its own."""

import io
import re
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient

from mfa_service.services.administration import By, Changes
from mfa_service.services.policy import Rules
from tests.conftest import Clock, program
from tests.factories import PASSWORD, Person, bearer, register, sign_in, totp
from tests.pages import DEVICE, OWN, PENDING, SESSION, Browser, Page
from tests.services import CLIENT, Rows, events, forgive, user_id_of

MakeApp = Callable[..., Flask]

sqlite_alone = pytest.mark.parametrize("database", ["sqlite"], indirect=True)
SCAN = "The app shows no code for this account: scan a QR code"
PAGES = ["/auth/sign-in", "/auth/code", "/auth/recovery-code", "/auth/authenticator"]
FORMS = [*PAGES, "/auth/sign-out"]


# ── the walk ─────────────────────────────────────────────────────────────────────────────────────


def test_the_first_sign_in_sets_up_an_authenticator_and_shows_recovery_codes_once(
    browser: Browser, ada: Person, clock: Clock
) -> None:
    assert browser.sign_in(ada, "/there").headers["Location"] == "/auth/authenticator?next=/there"
    browser.follow()
    assert "Not now" not in browser.page.links
    secret = browser.set_up(clock)
    assert secret != ada.secret
    codes = browser.page.codes
    assert len(set(codes)) == 10
    assert browser.page.links["I have kept them: continue"] == "/there"
    for path in (*PAGES, "/api/mfa", "/api/profile"):
        assert not set(codes) & set(re.split(r"[^A-Z0-9-]+", browser.get(path).text)), path
    assert browser.get("/api/profile").json["username"] == "ada"


def test_the_picture_holds_the_key_that_stands_below_it(
    browser: Browser, ada: Person, clock: Clock, tmp_path: Path
) -> None:
    browser.sign_in(ada)
    browser.follow()
    browser.press()
    [picture] = re.findall(r"<svg.*?</svg>", browser.answer.text, re.S)
    [key] = browser.page.codes
    assert f"secret={key}" in read_picture(picture, tmp_path)


def test_later_sign_ins_ask_for_the_code_and_lead_on(browser: Browser, ready: Person, clock: Clock) -> None:
    assert browser.sign_in(ready, "/there?a=b").headers["Location"] == "/auth/code?next=/there?a%3Db"
    browser.follow()
    answer = browser.press(code=ready.code(clock()))
    assert (answer.status_code, answer.headers["Location"]) == (303, "/there?a=b")
    assert browser.get("/api/profile").json["username"] == "ada"


def test_a_code_may_be_typed_as_phones_show_it(browser: Browser, ready: Person, clock: Clock) -> None:
    for shown in ("{0}{1}", " {0} {1} ", "{0}\N{NO-BREAK SPACE}{1}"):
        browser.sign_in(ready)
        browser.follow()
        code = ready.code(clock())
        assert browser.press(code=shown.format(code[:3], code[3:])).status_code == 303
        clock.advance(30)


def test_a_recovery_code_stands_in_for_the_phone_and_works_once(browser: Browser, ada: Person, clock: Clock) -> None:
    browser.sign_in(ada)
    browser.follow()
    browser.set_up(clock)
    code = browser.page.codes[3]
    for expected in (303, 401):
        browser.sign_in(ada, "/there")
        browser.follow()
        browser.get(browser.page.links["The phone is not at hand: use a recovery code"])
        assert browser.press(code=code).status_code == expected
    assert "Invalid recovery code" in browser.page.text
    assert browser.page.forms[0].fields["next"] == "/there"


def test_a_wrong_password_says_so_and_keeps_where_to_go(browser: Browser, ada: Person) -> None:
    for who in (ada.username, "nobody", "", "\0", "ad\N{ZERO WIDTH SPACE}a"):
        browser.get("/auth/sign-in?next=/there")
        assert browser.press(username=who, password="wrong").status_code == 401
        assert "Invalid credentials" in browser.page.text
        assert browser.page.forms[0].fields["next"] == "/there"
    assert "Set-Cookie" not in browser.answer.headers


@pytest.mark.parametrize(
    "code", ["000000", "", "x", "１２３４５６", "\0", "0" * 5000], ids=lambda code: ascii(code)[:12]
)
def test_a_wrong_code_says_so_and_may_be_followed_by_the_right_one(
    browser: Browser, ready: Person, clock: Clock, code: str
) -> None:
    browser.sign_in(ready, "/there")
    browser.follow()
    assert browser.press(code=code).status_code == 401
    assert "Invalid TOTP code" in browser.page.text
    answer = browser.press(code=ready.code(clock()))
    assert (answer.status_code, answer.headers["Location"]) == (303, "/there")


def test_five_wrong_codes_lead_back_to_the_beginning(browser: Browser, ready: Person) -> None:
    browser.sign_in(ready, "/there")
    browser.follow()
    for _ in range(5):
        assert browser.press(code="000000").status_code == 401
    answer = browser.press(code="000000")
    assert (answer.status_code, answer.headers["Location"]) == (303, "/auth/sign-in?next=/there")
    assert browser.cookie(PENDING) is None


def test_who_waits_too_long_begins_again(browser: Browser, ready: Person, clock: Clock) -> None:
    for path in ("/auth/code", "/auth/recovery-code", "/auth/authenticator"):
        browser.sign_in(ready)
        clock.advance(300)
        answer = browser.post(path, {"code": ready.code(clock()), "next": "/there"})
        assert (answer.status_code, answer.headers["Location"]) == (303, "/auth/sign-in?next=/there")
        assert browser.cookie(PENDING) is None


@pytest.mark.parametrize("token", ["", "x", "a.b.c", "ü", "%00", "x" * 4000], ids=lambda token: ascii(token)[:12])
@sqlite_alone
def test_a_forged_pending_cookie_leads_back_to_the_beginning(browser: Browser, token: str) -> None:
    browser.client.set_cookie(PENDING, token)
    for path in ("/auth/code", "/auth/recovery-code", "/auth/authenticator"):
        assert browser.post(path, {"code": "000000"}).headers["Location"] == "/auth/sign-in?next=/"
        browser.client.set_cookie(PENDING, token)


def test_without_having_given_a_password_every_page_leads_to_it(browser: Browser) -> None:
    for path in ("/auth/code?next=/there", "/auth/authenticator?next=/there"):
        assert browser.get(path).headers["Location"] == "/auth/sign-in?next=/there"
    for path in ("/auth/code", "/auth/recovery-code", "/auth/authenticator"):
        assert browser.post(path, {"code": "000000"}).headers["Location"] == "/auth/sign-in?next=/"


def test_a_mistyped_first_code_leads_back_to_a_picture(browser: Browser, ada: Person, clock: Clock) -> None:
    browser.sign_in(ada, "/there")
    browser.follow()
    browser.press()
    browser.press(code="000000")
    assert "Invalid TOTP code" in browser.page.text
    browser.get(browser.page.links[SCAN])
    browser.set_up(clock)
    assert browser.page.links["I have kept them: continue"] == "/there"


def test_who_has_no_authenticator_yet_is_never_left_with_a_question_for_its_code(browser: Browser, ada: Person) -> None:
    browser.sign_in(ada, "/there")
    assert browser.get("/auth/code?next=/there").headers["Location"] == "/auth/authenticator?next=/there"
    browser.post("/auth/code", {"code": "000000", "next": "/there"})
    assert browser.page.links[SCAN] == "/auth/authenticator?next=/there"


def test_who_has_one_is_not_told_to_make_another(browser: Browser, ready: Person) -> None:
    browser.sign_in(ready, "/there")
    browser.follow()
    assert SCAN not in browser.page.links
    browser.press(code="000000")
    assert SCAN not in browser.page.links


def test_not_now_is_for_who_is_signed_in_already_and_not_for_whoever_was_here_before(
    browser: Browser, ready: Person, app: Flask, clock: Clock
) -> None:
    enter(browser, ready, clock)
    browser.sign_in(register(app.test_client(), "bob"), "/there")
    browser.follow()
    assert "Not now" not in browser.page.links


def test_whose_factors_were_reset_needs_the_ticket(
    browser: Browser, ready: Person, app: Flask, rows: Rows, clock: Clock
) -> None:
    ticket = services(app).administration.reset_factors(By(CLIENT), user_id_of(rows, "ada"))
    browser.sign_in(ready, "/there")
    browser.follow()
    assert browser.press().status_code == 403
    for wrong in ("", "wrong", "\0"):
        assert browser.press(ticket=wrong).status_code == 403
    browser.press(ticket=f" {ticket} ")
    [secret] = browser.page.codes
    assert [form.fields["next"] for form in browser.page.forms] == ["/there"]  # the ticket is used up
    assert browser.press(code=totp(secret, int(clock()) // 30)).status_code == 200


def test_who_has_a_factor_gets_no_second_one_by_the_password(browser: Browser, ready: Person) -> None:
    browser.sign_in(ready)
    browser.get("/auth/authenticator")
    assert browser.press().status_code == 403
    assert browser.page.codes == []


def test_where_policy_asks_for_no_factor_one_is_offered(
    browser: Browser, ada: Person, app: Flask, clock: Clock
) -> None:
    services(app).administration.set_policy(By(CLIENT), Rules("optional"))
    browser.sign_in(ada, "/there")
    assert browser.answer.headers["Location"] == "/auth/authenticator?next=/there"
    browser.follow()
    assert browser.page.links["Not now"] == "/there"
    assert browser.get("/api/profile").json["code"] == "full_authentication_required"
    assert browser.get("/api/mfa").status_code == 200
    browser.get("/auth/authenticator?next=/there")
    browser.set_up(clock)
    assert browser.get("/api/profile").json["mfaEnabled"] is True


# ── a remembered device ──────────────────────────────────────────────────────────────────────────


def test_a_remembered_device_needs_the_password_only_and_only_its_owners(
    browser: Browser, ready: Person, app: Flask, clock: Clock
) -> None:
    remember(browser, ready, clock)
    browser.post("/auth/sign-out")
    assert browser.cookie(DEVICE)
    assert browser.sign_in(ready, "/there").headers["Location"] == "/there"
    assert browser.get("/api/profile").status_code == 200
    bob = established(app, "bob", clock)
    assert browser.sign_in(bob, "/there").headers["Location"] == "/auth/code?next=/there"


def test_a_device_is_remembered_only_by_who_asks_for_it(browser: Browser, ready: Person, clock: Clock) -> None:
    enter(browser, ready, clock)
    assert browser.cookie(DEVICE) is None


def test_where_no_device_is_remembered_none_is_offered(make_app: MakeApp, clock: Clock) -> None:
    app = with_pages(make_app, MFA_DEVICE_SECONDS=0)
    browser, ada = Browser(app), established(app, "ada", clock)
    browser.sign_in(ada)
    assert "Remember" not in browser.follow().text
    browser.press(code=ada.code(clock()), remember="on")
    assert (browser.answer.status_code, browser.cookie(DEVICE)) == (303, None)


def test_a_device_is_known_by_what_can_be_shown_of_its_browser(
    browser: Browser, ready: Person, clock: Clock, rows: Rows
) -> None:
    browser.sign_in(ready)
    browser.post("/auth/code", {"code": ready.code(clock()), "remember": "on"}, User_Agent="Fire\0fox\x85 \x7f7")
    assert browser.answer.status_code == 303
    assert rows("SELECT name FROM mfa_devices") == [{"name": "Firefox 7"}]


# ── cookies ──────────────────────────────────────────────────────────────────────────────────────


def test_each_cookie_belongs_to_this_host_over_https_and_to_no_script(
    browser: Browser, ready: Person, clock: Clock
) -> None:
    browser.sign_in(ready)
    [pending] = set_cookies(browser)
    browser.follow()
    browser.press(code=ready.code(clock()), remember="on")
    session, dropped, device = set_cookies(browser)
    own = {"Secure", "HttpOnly", "Path=/", "SameSite=Lax"}
    assert lifetimes(pending[1] - own) == {"Max-Age=300"}
    assert lifetimes(device[1] - own) == {"Max-Age=2592000"}
    assert session[1] == own
    assert lifetimes(dropped[1] - own) == {"Max-Age=0"}
    assert [name for name, _ in (pending, session, dropped, device)] == [PENDING, SESSION, PENDING, DEVICE]


def test_a_code_is_of_whose_password_was_given_last(
    browser: Browser, ready: Person, clock: Clock, app: Flask, rows: Rows
) -> None:
    other = established(app, "bob", clock)
    enter(browser, ready, clock)
    browser.sign_in(other)  # and no code
    assert browser.cookie(SESSION) is None
    browser.follow()
    clock.advance(30)
    assert browser.press(code=other.code(clock())).status_code == 303
    assert browser.get("/api/profile").json["username"] == "bob"
    assert rows("SELECT * FROM mfa_locks") == []


def test_the_session_cookie_is_not_the_id_and_only_its_digest_is_kept(
    browser: Browser, ready: Person, clock: Clock, app: Flask, rows: Rows
) -> None:
    enter(browser, ready, clock)
    cookie = browser.cookie(SESSION) or ""
    assert len(cookie) >= 43
    everything = [
        repr(row)
        for table in ("sessions", "challenges", "devices", "events", "users")
        for row in rows(f"SELECT * FROM mfa_{table}")
    ]
    assert cookie not in "".join(everything)
    for token in (cookie, f"{cookie}."):
        assert app.test_client().get("/api/profile", headers=bearer(token)).json["code"] == "invalid_token"
    browser.client.set_cookie(SESSION, rows("SELECT id FROM mfa_sessions WHERE cookie_digest IS NOT NULL")[0]["id"])
    assert browser.get("/api/profile").json["code"] == "no_token"


def test_no_token_works_as_a_cookie(browser: Browser, ready: Person, client: FlaskClient, clock: Clock) -> None:
    browser.sign_in(ready)
    pending = browser.cookie(PENDING) or ""
    for token in (pending, sign_in(client, ready, clock()), "", "x", "ü", "\N{GRINNING FACE}", "x" * 4000, "%00"):
        browser.client.set_cookie(SESSION, token)
        assert browser.get("/api/profile").json["code"] == "no_token"
        assert browser.get("/auth/recovery-code").status_code == 200


def test_a_session_of_a_program_has_no_cookie(client: FlaskClient, ready: Person, clock: Clock, rows: Rows) -> None:
    sign_in(client, ready, clock())
    assert {row["cookie_digest"] for row in rows("SELECT cookie_digest FROM mfa_sessions")} == {None}
    client.set_cookie(SESSION, "")
    assert client.get("/api/profile").json["code"] == "no_token"


def test_every_sign_in_has_a_cookie_of_its_own(browser: Browser, ready: Person, clock: Clock) -> None:
    browser.client.set_cookie(SESSION, "chosen-by-somebody-else")
    seen = {"chosen-by-somebody-else"}
    for _ in range(3):
        enter(browser, ready, clock)
        assert browser.cookie(SESSION) not in seen
        seen.add(browser.cookie(SESSION) or "")


def test_two_browsers_are_two_people(app: Flask, ready: Person, clock: Clock) -> None:
    one, other = Browser(app), Browser(app)
    bob = established(app, "bob", clock)
    one.sign_in(ready)
    other.sign_in(bob)
    for browser, wrong in ((one, bob), (other, ready)):
        browser.follow()
        assert browser.press(code=wrong.code(clock())).status_code == 401
    for browser, right in ((one, ready), (other, bob)):
        browser.press(code=right.code(clock()))
        assert browser.get("/api/profile").json["username"] == right.username


# ── how a session ends ───────────────────────────────────────────────────────────────────────────


def test_signing_out_ends_the_session_and_not_only_the_cookie(
    browser: Browser, ready: Person, clock: Clock, rows: Rows
) -> None:
    enter(browser, ready, clock)
    cookie = browser.cookie(SESSION) or ""
    answer = browser.post("/auth/sign-out", {"next": "/bye"})
    assert (answer.status_code, answer.headers["Location"]) == (303, "/bye")
    assert browser.cookie(SESSION) is None
    browser.client.set_cookie(SESSION, cookie)
    assert browser.get("/api/profile").json["code"] == "no_token"
    assert events(rows)[-1] == "session.ended"
    assert browser.post("/auth/sign-out").status_code == 303


@pytest.mark.parametrize("path", ["/auth/code", "/auth/recovery-code"])
def test_a_page_for_who_is_signed_in_has_a_button_for_signing_out(
    browser: Browser, ready: Person, clock: Clock, path: str
) -> None:
    enter(browser, ready, clock)
    browser.get(f"{path}?next=/there")
    assert browser.page.words[-1] == "Sign out"
    assert browser.press(-1).headers["Location"] == "/auth/sign-in?next=/there"
    assert browser.cookie(SESSION) is None
    assert "Sign out" not in browser.follow().text


def test_so_have_the_pages_for_setting_up_an_authenticator(
    browser: Browser, ada: Person, app: Flask, clock: Clock
) -> None:
    services(app).administration.set_policy(By(CLIENT), Rules("optional"))
    browser.sign_in(ada)
    browser.follow()
    assert browser.page.words[-1] == "Sign out"
    browser.press()
    assert browser.page.words[-1] == "Sign out"
    browser.press(code=totp(browser.page.codes[0], int(clock()) // 30))
    assert len(browser.page.codes) == 10
    assert browser.page.words[-1] == "Sign out"
    browser.press(-1)
    assert browser.get("/api/profile").json["code"] == "no_token"


def test_so_has_a_refusal(browser: Browser, ready: Person, clock: Clock) -> None:
    enter(browser, ready, clock)
    browser.get("/auth/code")
    assert browser.press(code=ready.code(clock(), 50)).status_code == 401
    assert browser.page.words[-1] == "Sign out"
    browser.post("/auth/code", {"code": "123456"}, Origin="https://evil.example")
    assert browser.page.words[-1] == "Sign out"


def test_who_is_not_signed_in_yet_has_nothing_to_sign_out_of(browser: Browser, ready: Person) -> None:
    for path in PAGES:
        assert "Sign out" not in browser.get(path).text
    browser.sign_in(ready)
    assert "Sign out" not in browser.follow().text


def test_signing_out_of_one_browser_leaves_the_other(app: Flask, ready: Person, clock: Clock) -> None:
    one, other = Browser(app), Browser(app)
    enter(one, ready, clock)
    enter(other, ready, clock)
    one.post("/auth/sign-out")
    assert other.get("/api/profile").status_code == 200


@pytest.mark.parametrize("end", ["logout everywhere", "logout", "disabled", "sessions ended", "deleted"])
def test_a_session_ends_with_what_it_hangs_on(
    browser: Browser, ready: Person, app: Flask, clock: Clock, rows: Rows, end: str
) -> None:
    enter(browser, ready, clock)
    administration, user_id = services(app).administration, user_id_of(rows, "ada")
    if end.startswith("logout"):
        headers = {"Origin": "http://localhost"}
        done = browser.client.post("/auth/logout", json={"everywhere": "everywhere" in end}, headers=headers)
        assert done.status_code == 204
    elif end == "disabled":
        administration.disable(By(CLIENT), user_id)
    elif end == "sessions ended":
        administration.end_sessions(By(CLIENT), user_id)
    else:
        administration.delete(By(CLIENT), user_id)
    assert browser.get("/api/profile").json["code"] == "no_token"
    assert browser.get("/auth/code").status_code == 303


def test_a_session_that_nobody_comes_with_ends_after_a_day(browser: Browser, ready: Person, clock: Clock) -> None:
    enter(browser, ready, clock)
    clock.advance(86399)
    assert browser.get("/api/profile").status_code == 200
    clock.advance(86399)
    assert browser.get("/api/profile").status_code == 200
    clock.advance(86400)
    assert browser.get("/api/profile").json["code"] == "no_token"


def test_coming_keeps_a_session_only_until_its_end(browser: Browser, ready: Person, clock: Clock) -> None:
    enter(browser, ready, clock)
    for _ in range(30):
        assert browser.get("/api/profile").status_code == 200
        clock.advance(86399)
    clock.advance(30)
    assert browser.get("/api/profile").json["code"] == "no_token"


def test_a_session_of_a_password_ends_when_policy_asks_for_more(browser: Browser, ada: Person, app: Flask) -> None:
    administration = services(app).administration
    administration.set_policy(By(CLIENT), Rules("optional"))
    browser.sign_in(ada)
    assert browser.get("/api/mfa").status_code == 200
    administration.set_policy(By(CLIENT), Rules("required"))
    assert browser.get("/api/mfa").json["code"] == "no_token"


# ── showing the factor again ─────────────────────────────────────────────────────────────────────


def test_what_needs_a_fresh_factor_is_opened_by_the_page(
    browser: Browser, ready: Person, app: Flask, clock: Clock, rows: Rows
) -> None:
    changes = Changes(roles=("admin",))
    services(app).administration.change(By(CLIENT), user_id_of(rows, "ada"), changes)
    enter(browser, ready, clock)
    assert browser.get("/api/admin/policy").status_code == 200
    clock.advance(301)
    before = browser.cookie(SESSION)
    new = {"Origin": "http://localhost"}
    body = {"mode": "optional"}
    assert browser.client.put("/api/admin/policy", json=body, headers=new).json["code"] == "step_up_required"
    assert browser.get("/auth/code?next=/there").status_code == 200
    assert "Remember this device" not in browser.page.text
    assert browser.press(code="000000").status_code == 401
    clock.advance(30)
    answer = browser.press(code=ready.code(clock()))
    assert (answer.status_code, answer.headers["Location"]) == (303, "/there")
    assert browser.client.put("/api/admin/policy", json=body, headers=new).status_code == 200
    assert browser.cookie(SESSION) != before
    assert "step_up.completed" in events(rows)


def test_the_cookie_from_before_is_dead_at_once_and_the_session_is_the_same(
    browser: Browser, ready: Person, clock: Clock, app: Flask, rows: Rows
) -> None:
    enter(browser, ready, clock)
    thief = Browser(app)
    thief.client.set_cookie(SESSION, browser.cookie(SESSION) or "")
    assert thief.get("/api/profile").status_code == 200
    sessions = rows("SELECT id, generation, expires_at FROM mfa_sessions ORDER BY id")
    clock.advance(30)
    browser.get("/auth/code")
    assert browser.press(code=ready.code(clock())).status_code == 303
    assert thief.get("/api/profile").json["code"] == "no_token"
    assert browser.get("/api/profile").status_code == 200
    assert rows("SELECT id, generation, expires_at FROM mfa_sessions ORDER BY id") == sessions


def test_a_step_up_that_is_refused_leaves_the_cookie(browser: Browser, ready: Person, clock: Clock) -> None:
    enter(browser, ready, clock)
    before = browser.cookie(SESSION)
    browser.get("/auth/code")
    assert browser.press(code=ready.code(clock(), 50)).status_code == 401
    assert browser.cookie(SESSION) == before
    assert browser.get("/api/profile").status_code == 200


def test_a_script_of_a_page_that_steps_up_with_the_cookie_has_it_replaced_too(
    browser: Browser, ready: Person, clock: Clock, app: Flask
) -> None:
    enter(browser, ready, clock)
    before = browser.cookie(SESSION) or ""
    clock.advance(30)
    answer = browser.client.post("/auth/step-up", json={"totpCode": ready.code(clock())}, headers={"Origin": OWN})
    assert answer.status_code == 200
    [header] = answer.headers.getlist("Set-Cookie")
    assert header.endswith("; Secure; HttpOnly; Path=/; SameSite=Lax")
    assert browser.cookie(SESSION) != before
    assert browser.get("/api/profile").status_code == 200
    clock.advance(30)
    token = bearer(answer.json["accessToken"])
    again = browser.client.post("/auth/step-up", json={"totpCode": ready.code(clock())}, headers=token)
    assert (again.status_code, "Set-Cookie" in again.headers) == (200, False), "a program's step-up is no browser's"
    assert browser.get("/api/profile").status_code == 200


def test_of_two_tabs_that_step_up_at_once_one_does_and_the_browser_stays_signed_in(
    make_app: MakeApp, ada: Person, clock: Clock, rows: Rows
) -> None:
    app = with_pages(make_app, MFA_AUTH_RATE_LIMIT="1000 per minute")
    browser = Browser(app)
    browser.sign_in(ada)
    browser.follow()
    browser.set_up(clock)
    codes = browser.page.codes
    tabs = [Browser(app) for _ in codes[:5]]
    for tab in tabs:
        tab.client.set_cookie(SESSION, browser.cookie(SESSION) or "")
    with ThreadPoolExecutor(len(tabs)) as pool:
        list(pool.map(lambda tab, code: tab.post("/auth/recovery-code", {"code": code}), tabs, codes))
    went = sorted(tab.answer.headers["Location"] for tab in tabs)
    assert went == ["/", *["/auth/sign-in?next=/"] * 4]
    kept = [tab.cookie(SESSION) for tab in tabs]
    assert kept.count(browser.cookie(SESSION)) == 4, "nothing takes the place of the new one"
    [alive] = [tab for tab in tabs if tab.get("/api/profile").status_code == 200]
    assert alive.cookie(SESSION) != browser.cookie(SESSION)
    assert len(rows("SELECT 1 FROM mfa_recovery_codes WHERE used_at IS NOT NULL")) == 1


def test_a_remembered_device_shows_the_factor_where_it_is_asked_for(
    browser: Browser, ready: Person, clock: Clock, app: Flask
) -> None:
    remember(browser, ready, clock)
    browser.sign_in(ready)
    clock.advance(30)
    assert browser.client.get("/auth/check?max_age=300", headers=AS_GET).json["code"] == "step_up_required"
    browser.get("/auth/code?next=/there")
    assert browser.press(code=ready.code(clock())).headers["Location"] == "/there"
    assert browser.client.get("/auth/check?max_age=300", headers=AS_GET).status_code == 204


def test_a_session_of_a_password_has_nothing_to_show_again(browser: Browser, ada: Person, app: Flask) -> None:
    services(app).administration.set_policy(By(CLIENT), Rules("optional"))
    browser.sign_in(ada)
    browser.forget(PENDING)
    assert browser.get("/auth/code?next=/there").headers["Location"] == "/auth/sign-in?next=/there"
    assert browser.post("/auth/code", {"code": "000000"}).headers["Location"] == "/auth/sign-in?next=/"


def test_the_right_code_that_comes_after_the_pending_token_confirms_nothing_and_ends_nothing(
    browser: Browser, ada: Person, app: Flask, clock: Clock, rows: Rows
) -> None:
    services(app).administration.set_policy(By(CLIENT), Rules("optional"))
    browser.sign_in(ada)
    browser.follow()
    browser.press()
    secret = browser.page.codes[0]
    clock.advance(360)
    browser.forget(PENDING)  # as browsers do, when its time is over
    assert browser.press(code=totp(secret, int(clock()) // 30)).headers["Location"] == "/auth/sign-in?next=/there"
    assert rows("SELECT 1 FROM mfa_secrets WHERE confirmed_at IS NOT NULL") == []
    assert rows("SELECT * FROM mfa_recovery_codes") == [], "nobody would ever have seen them"
    assert browser.get("/api/mfa").status_code == 200, "still signed in"
    browser.sign_in(ada)
    browser.follow()
    browser.set_up(clock)
    assert len(browser.page.codes) == 10


# ── what the pages are ───────────────────────────────────────────────────────────────────────────


@sqlite_alone
def test_there_are_no_pages_where_nobody_asked_for_cookies(make_app: MakeApp) -> None:
    browser = Browser(make_app())
    for path in (*FORMS, "/auth/pages.css"):
        assert browser.get(path).status_code == 404
        assert browser.post(path).status_code == 404


@sqlite_alone
def test_a_cookie_is_not_looked_at_where_nobody_asked_for_it(
    make_app: MakeApp, browser: Browser, ready: Person, clock: Clock
) -> None:
    enter(browser, ready, clock)
    without = make_app().test_client()
    without.set_cookie(SESSION, browser.cookie(SESSION) or "")
    assert without.get("/api/profile").json["code"] == "no_token"


def test_every_page_is_plain_labelled_and_kept_by_nobody(
    browser: Browser, ada: Person, app: Flask, clock: Clock
) -> None:
    seen = {name: (answer, Page(answer.text)) for name, answer in every_page(browser, ada, app, clock).items()}
    assert len(seen) == 9
    for name, (answer, page) in seen.items():
        assert answer.mimetype == "text/html", name
        assert answer.headers["Cache-Control"] == "no-store", name
        assert answer.headers["Content-Security-Policy"] == (
            "default-src 'none'; style-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
        ), name
        assert page.all("html") == [{"lang": "en"}], name
        assert len(page.all("h1")) == len(page.all("main")) == len(page.all("title")) == 1, name
        assert not page.all("script", "iframe", "base", "object", "style", "img"), name
        assert not [one for _, one in page.tags if any(key.startswith("on") or key == "style" for key in one)], name
        ids = [one["id"] for one in page.all("input") if one.get("type") not in ("hidden", "checkbox")]
        assert ids == [label["for"] for label in page.all("label") if "for" in label], name
        assert {form.fields["next"] for form in page.forms} <= {"/there", "/auth/sign-in?next=/there"}, name
    assert seen["scan"][1].all("input")[1]["autocomplete"] == "one-time-code"
    assert seen["code"][1].all("input")[1]["autocomplete"] == "one-time-code"
    assert [one.get("autocomplete") for one in seen["sign in"][1].all("input")[1:]] == ["username", "current-password"]
    fields = [one for _, page in seen.values() for one in page.all("input") if one["name"] == "password"]
    assert {one.get("type") for one in fields} == {"password"}


@sqlite_alone
def test_looking_at_a_page_changes_nothing(browser: Browser, ready: Person, clock: Clock, rows: Rows) -> None:
    for act in (lambda: None, lambda: browser.sign_in(ready), lambda: enter(browser, ready, clock)):
        act()
        before = counted(rows)
        for path in (*PAGES, "/auth/pages.css"):
            browser.get(path)
            assert browser.client.head(path).status_code in (200, 303)
        assert counted(rows) == before


@sqlite_alone
def test_other_methods_are_405(browser: Browser) -> None:
    for path in PAGES:
        assert browser.client.head(path).data == b""
        for method in ("PUT", "PATCH", "DELETE"):
            answer = browser.client.open(path, method=method)
            assert (answer.status_code, answer.json["code"]) == (405, "method_not_allowed")
    assert browser.get("/auth/sign-out").status_code == 405
    assert browser.post("/auth/pages.css").status_code == 405


@sqlite_alone
def test_the_style_may_be_kept_and_is_a_style(browser: Browser) -> None:
    answer = browser.get("/auth/pages.css")
    assert (answer.status_code, answer.mimetype) == (200, "text/css")


@sqlite_alone
def test_the_pages_are_not_in_the_document_of_the_api(browser: Browser) -> None:
    assert not [path for path in browser.get("/openapi.json").json["paths"] if path in FORMS]


@sqlite_alone
def test_a_used_up_limit_is_a_page_that_says_when_to_come_again(make_app: MakeApp) -> None:
    browser = Browser(with_pages(make_app, MFA_AUTH_RATE_LIMIT="2 per minute"))
    for _ in range(2):
        assert browser.post("/auth/sign-in", {"username": "ada", "next": "/there"}).status_code == 401
    answer = browser.post("/auth/sign-in", {"username": "ada", "next": "/there"})
    assert (answer.status_code, answer.mimetype) == (429, "text/html")
    assert 1 <= int(answer.headers["Retry-After"]) <= 60
    assert "Too many authentication attempts" in browser.page.text
    assert browser.page.links == {"Go on": "/there"}


@pytest.mark.parametrize("path", FORMS)
@sqlite_alone
def test_a_body_that_no_form_of_ours_has_is_refused(browser: Browser, path: str) -> None:
    large = {"username": "x" * 65_537, "code": "1"}
    assert browser.post(path, large).status_code == 413
    assert browser.post(path, large, Content_Type="multipart/form-data; boundary=x").status_code == 413
    # Whoever sent it: a page for another refusal would want to read it, too.
    assert browser.post(path, large, Origin="https://evil.example").status_code == 413


@pytest.mark.parametrize("path", FORMS)
@sqlite_alone
def test_uploads_and_broken_bodies_are_no_failure_of_ours(browser: Browser, path: str) -> None:
    upload = {"username": (io.BytesIO(b"x"), "x.txt"), "code": (io.BytesIO(b"x"), "x.txt")}
    assert browser.post(path, upload).status_code in (303, 401)
    for body, media in [
        (b"--x\r\nbroken", "multipart/form-data; boundary=x"),
        (b"", "multipart/form-data"),
        (b"\xff\xfe%ff%00%ed%a0%80", "application/x-www-form-urlencoded"),
        (
            b"username=%ed%a0%80&password=%ed%a0%80&code=%ed%a0%80&ticket=%00&next=%ff",
            "application/x-www-form-urlencoded",
        ),
        (b'{"username": "ada"}', "application/json"),
        (b"x", "text/plain"),
        (b"&".join(b"a=1" for _ in range(16_000)), "application/x-www-form-urlencoded"),
    ]:
        headers = {"Origin": "http://localhost", "Content-Type": media}
        answer = browser.client.post(path, data=body, headers=headers)
        assert answer.status_code in (303, 400, 401, 413), (body[:20], answer.text)


@sqlite_alone
def test_fields_that_no_account_has_are_no_failure_of_ours(browser: Browser, ready: Person, app: Flask) -> None:
    for odd in ("\0", "a\0b", "\ufffd", "\N{RIGHT-TO-LEFT OVERRIDE}", "x" * 10_000, "\N{GRINNING FACE}" * 500):
        assert browser.post("/auth/sign-in", {"username": odd, "password": odd}).status_code == 401
        assert browser.post("/auth/sign-in", {"username": "ada", "password": odd}).status_code == 401
        browser.sign_in(ready)
        assert browser.post("/auth/code", {"code": odd}).status_code == 401
        assert browser.post("/auth/recovery-code", {"code": odd}).status_code == 401
        assert browser.post("/auth/authenticator", {"ticket": odd}).status_code == 403
        forgive(services(app))


# ── means ────────────────────────────────────────────────────────────────────────────────────────

AS_GET = {"X-Forwarded-Method": "GET"}


@pytest.fixture
def app(make_app: MakeApp) -> Flask:
    return with_pages(make_app)


@pytest.fixture
def browser(app: Flask) -> Browser:
    return Browser(app)


@pytest.fixture
def ada(app: Flask) -> Person:
    """Somebody with a password only."""
    return register(app.test_client(), "ada")


@pytest.fixture
def ready(app: Flask, clock: Clock) -> Person:
    """Somebody with an authenticator."""
    return established(app, "ada", clock)


def with_pages(make_app: MakeApp, **settings: Any) -> Flask:
    return make_app(MFA_TOKEN_LOCATIONS="header,cookie", **settings)


def established(app: Flask, name: str, clock: Clock) -> Person:
    client = app.test_client()
    person = register(client, name, PASSWORD)
    sign_in(client, person, clock(), -2)
    return person


def enter(browser: Browser, person: Person, clock: Clock, **more: str) -> None:
    """Sign in, to the end, with the next code."""
    clock.advance(30)
    browser.sign_in(person)
    browser.follow()
    assert browser.press(code=person.code(clock()), **more).status_code == 303


def remember(browser: Browser, person: Person, clock: Clock) -> None:
    enter(browser, person, clock, remember="on")
    assert browser.cookie(DEVICE)


def services(app: Flask) -> Any:
    return app.extensions["mfa_service"].services


def every_page(browser: Browser, ada: Person, app: Flask, clock: Clock) -> dict[str, Any]:
    """Each page once, as somebody sees them who wants to go to `/there`."""
    seen: dict[str, Any] = {"sign in": browser.get("/auth/sign-in?next=/there")}
    seen["refused"] = browser.press(username="ada", password="wrong")
    browser.sign_in(ada, "/there")
    seen["authenticator"] = browser.follow()
    seen["scan"] = browser.press()
    secret = browser.page.codes[0]
    seen["wrong code"] = browser.press(code="000000")
    again = Person(ada.username, ada.password, ada.email, secret)
    seen["codes"] = browser.press(code=again.code(clock()))
    browser.sign_in(ada, "/there")
    seen["code"] = browser.follow()
    seen["recovery code"] = browser.get("/auth/recovery-code?next=/there")
    seen["problem"] = browser.post("/auth/code", {"next": "/there"}, Origin="https://evil.example")
    return seen


def set_cookies(browser: Browser) -> list[tuple[str, set[str]]]:
    """The names of the cookies that the answer sets, and what it says about each."""
    parts = [line.split("; ") for line in browser.answer.headers.getlist("Set-Cookie")]
    return [(first.partition("=")[0], set(rest)) for first, *rest in parts]


def lifetimes(attributes: set[str]) -> set[str]:
    return {one for one in attributes if not one.startswith("Expires=")}


def counted(rows: Rows) -> dict[str, int]:
    tables = ("users", "secrets", "challenges", "sessions", "devices", "recovery_codes", "locks", "events")
    return {name: rows(f"SELECT count(*) AS n FROM mfa_{name}")[0]["n"] for name in tables}


def read_picture(svg: str, folder: Path) -> str:
    """What a barcode reader sees, after we have drawn the lines of the picture: `M` to a place, `m` and `h` from it."""
    size = int(re.findall(r'viewBox="0 0 (\d+) ', svg)[0])
    dark = [[False] * size for _ in range(size)]
    x, y = 0, 0
    for command, numbers in re.findall(r"([Mmh])([-0-9. ]+)", re.findall(r' d="([^"]*)"', svg)[0]):
        first, *rest = (float(number) for number in numbers.split())
        if command == "h":
            dark[y][x : x + int(first)] = [True] * int(first)
            x += int(first)
        else:
            x, y = (int(first), int(rest[0])) if command == "M" else (x + int(first), y + int(rest[0]))
    lines = [b"".join((b"\0" if each else b"\xff") * 6 for each in row) * 6 for row in dark]
    (folder / "qr.pgm").write_bytes(b"P5 %d %d 255\n" % (6 * size, 6 * size) + b"".join(lines))
    command = [program("zbarimg"), "--quiet", "--raw", "-Sdisable", "-Sqrcode.enable", str(folder / "qr.pgm")]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout
