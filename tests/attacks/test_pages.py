"""Signing in with a browser: its cookies, what pages of other sites make it send, and where a page leads."""

import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

import pytest

from tests.attacks.case import case
from tests.attacks.target import Answer, Call, Person, Target
from tests.attacks.test_enumeration import seen
from tests.attacks.test_limits import LIMIT, guess, refused_while
from tests.attacks.test_matrix import guarded, is_worthless

NEEDED = ("pages", "tries")
FORM = {"Content-Type": "application/x-www-form-urlencoded"}
PAGES = ("/auth/sign-in", "/auth/code", "/auth/recovery-code", "/auth/authenticator")


@dataclass
class Browser:
    """One that keeps cookies, and says of a form where it comes from, as real ones do."""

    target: Target
    cookies: dict[str, str] = field(default_factory=dict)
    #: Every line of every Set-Cookie so far.
    lines: list[str] = field(default_factory=list)
    #: The address that all its requests come from; a new one for each where there are many.
    source: str = ""

    def send(self, method: str, path: str, body: Any = None, **headers: str) -> Answer:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        kept = {"Cookie": "; ".join(f"{name}={value}" for name, value in self.cookies.items())} if self.cookies else {}
        answer = self.target.send(Call(method, path, body, headers=kept | named, source=self.source))
        for line in (value for name, value in answer.headers if name == "set-cookie"):
            self._keep(line)
        return answer

    def _keep(self, line: str) -> None:
        name, _, value = line.partition(";")[0].partition("=")
        if value:
            self.lines.append(line)
            self.cookies[name] = value
            self.target.secrets.add(value)
        else:
            self.cookies.pop(name, None)

    def get(self, path: str, **headers: str) -> Answer:
        return self.send("GET", path, **headers)

    def post(self, path: str, fields: dict[str, str] | None = None, **headers: str) -> Answer:
        """A form, of a page of this very site unless it is said otherwise."""
        origin = headers or {"Origin": self.target.url, "Sec_Fetch_Site": "same-origin"}
        return self.send("POST", path, urlencode(fields or {}).encode() or b"x=", **FORM | origin)

    def password(self, person: Person, following: str = "/") -> Answer:
        answer = self.post("/auth/sign-in", {"username": person.name, "password": person.password, "next": following})
        assert answer.status == 303, f"a right password answered {answer.status}"
        return answer

    def sign_in(self, person: Person, **fields: str) -> Answer:
        self.password(person)
        answer = self.post("/auth/code", {"code": person.code()} | fields)
        assert answer.status == 303, f"a right code answered {answer.status}"
        return answer

    def who(self) -> str:
        """Whom the cookies speak for; nobody, if they open nothing."""
        return str(self.get("/api/profile").json.get("username", ""))

    @property
    def session(self) -> str:
        return next(value for name, value in self.cookies.items() if "session" in name)

    def with_session(self, value: str) -> "Browser":
        """Another browser, with a session's cookie of this value."""
        name = next(name for name in self.cookies if "session" in name)
        return Browser(self.target, {name: value})


def browser_for(target: Target) -> Browser:
    browser = Browser(target)
    if browser.get("/auth/sign-in").status == 404:
        pytest.skip("not run: this target has no pages (MFA_TOKEN_LOCATIONS=header,cookie)")
    return browser


def foreign(target: Target) -> Iterator[dict[str, str]]:
    """What browsers say of requests that a page of another site makes, and what no browser leaves out."""
    own = target.url
    origins = ["https://evil.example", "null", f"{own}.evil.example", f"{own}@evil.example", "http://localhost:1"]
    origins += [own.replace("://", "://evil."), own.replace("https:", "http:"), f"{own}1", "https://"]
    for origin in (each for each in origins if each != own):
        yield {"Origin": origin}
    yield {"Origin": "null", "Sec_Fetch_Site": "cross-site"}
    yield {"Sec_Fetch_Site": "cross-site"}
    yield {"Sec_Fetch_Site": "same-site"}
    yield {"Referer": f"{own}/auth/sign-in"}


@case(
    "M14b",
    holds="each cookie of the pages is bound to this host and https, and out of reach for scripts and other sites",
    stems_from="ASVS 3.3.1 to 3.3.5",
    broken_by="cookie_any_name cookie_over_http cookie_to_scripts cookie_of_all_sites",
    needs=NEEDED,
)
def test_cookies_are_kept_close(target: Target) -> None:
    browser, person = browser_for(target), target.person()
    browser.sign_in(person, remember="on")
    assert len({line.partition("=")[0] for line in browser.lines}) == 3, "not pending, session and device"
    for line in browser.lines:
        name, *attributes = (part.strip().lower() for part in line.split(";"))
        assert name.startswith("__host-"), line.partition("=")[0]
        assert {"secure", "httponly", "path=/"} <= set(attributes), f"{name.partition('=')[0]}: {attributes}"
        assert {"samesite=lax", "samesite=strict"} & set(attributes), f"{name.partition('=')[0]}: {attributes}"
        assert not any(each.startswith("domain") for each in attributes)
        assert len(line) <= 4096


@case(
    "M12",
    holds="a session's cookie does nothing for a request that a page of another site makes",
    stems_from="ASVS 3.5.1, 3.5.3",
    broken_by="cookie_from_anywhere cookie_null_origin cookie_origin_prefix cookie_without_origin",
    needs=NEEDED,
)
def test_the_cookie_does_nothing_for_other_sites(target: Target) -> None:
    browser, person = browser_for(target), target.person()
    browser.sign_in(person)
    assert browser.who() == person.name
    kept = dict(browser.cookies)
    own = {"Origin": target.url, "Sec_Fetch_Site": "same-origin"}
    acts = (("POST", "/auth/logout", {}), ("DELETE", "/api/devices", None), ("POST", "/api/mfa/recovery-codes", None))
    for headers in foreign(target):
        for method, path, body in acts:
            answer = browser.send(method, path, body, **headers)
            assert (answer.status, answer.code) == (403, "foreign_origin"), f"{method} {path} by {headers}"
        if "Origin" in headers:
            assert browser.get("/api/profile", **headers).status == 403, f"a page of {headers} reads the profile"
    assert browser.cookies == kept
    assert browser.send("DELETE", "/api/devices", **own).status == 204
    assert browser.send("POST", "/auth/logout", {}, **own).status == 204
    assert browser.who() == ""


@case(
    "M12b",
    holds="a form of another site signs nobody in, takes no code and signs nobody out",
    stems_from="login CSRF: Barth, Jackson and Mitchell 2008; ASVS 3.5.1",
    broken_by="login_csrf code_csrf sign_out_csrf cookie_null_origin cookie_origin_prefix cookie_without_origin",
    needs=NEEDED,
)
def test_no_form_of_another_site_is_taken(target: Target) -> None:
    browser, person = browser_for(target), target.person()
    waiting = Browser(target)
    waiting.password(person)
    recovery = {"code": person.tokens["recoveryCodes"][0]}
    browser.sign_in(person)
    for headers in foreign(target):
        lured = Browser(target)
        fields = {"username": person.name, "password": person.password}
        for who, path, form in (
            (lured, "/auth/sign-in", fields),
            (waiting, "/auth/recovery-code", recovery),
            (browser, "/auth/sign-out", {}),
        ):
            assert who.post(path, form, **headers).status == 403, f"{path} takes a form by {headers}"
        assert not lured.cookies
    assert waiting.post("/auth/recovery-code", recovery).status == 303
    assert (waiting.who(), browser.who()) == (person.name, person.name)


@case(
    "J18b",
    holds="a sign-in gives another cookie than the browser came with, a step-up yet another, and the old ones are dead",
    stems_from="ASVS 7.2.4, session fixation",
    broken_by="cookie_kept_at_sign_in cookie_kept_at_step_up old_cookie_lives",
    needs=NEEDED,
)
def test_no_cookie_from_before_is_worth_more_afterwards(target: Target) -> None:
    browser, person = browser_for(target), target.person()
    browser.sign_in(person)
    first = browser.session
    chosen = browser.with_session("chosen-by-somebody-else-chosen-by-somebody")
    chosen.password(person)
    chosen.post("/auth/recovery-code", {"code": person.tokens["recoveryCodes"][0]})
    assert (chosen.who(), "chosen" in chosen.session) == (person.name, False), "the browser chose the cookie"
    browser.sign_in(person)
    second = browser.session
    assert second != first, "a sign-in keeps the cookie"
    assert browser.with_session(first).who() == "", "the cookie from before the sign-in lives on"
    assert browser.post("/auth/recovery-code", {"code": person.tokens["recoveryCodes"][1]}).status == 303
    assert browser.session != second, "a step-up keeps the cookie"
    assert browser.with_session(second).who() == "", "the cookie from before the step-up lives on"
    assert browser.who() == person.name


@case(
    "J8b",
    holds="signing out on a page ends the session, and not only the browser's cookie",
    stems_from="ASVS 7.4.1",
    broken_by="sign_out_forgets_only",
    needs=NEEDED,
)
def test_signing_out_ends_the_session(target: Target) -> None:
    browser, person = browser_for(target), target.person()
    browser.sign_in(person)
    copied = Browser(target, dict(browser.cookies))
    assert copied.who() == person.name
    assert browser.post("/auth/sign-out").status == 303
    assert not [name for name in browser.cookies if "session" in name], "the browser keeps the cookie"
    assert copied.who() == "", "a copy of the cookie lives on"


#: Places that are not on this site, in every spelling that browsers read so; `{own}` is the origin attacked.
ELSEWHERE = (
    *(
        "//evil.example",
        "///evil.example",
        "////evil.example",
        "/\\evil.example",
        "\\/evil.example",
        "\\\\evil.example",
    ),
    *("https://evil.example/", "https:evil.example", "https:/evil.example", "http:evil.example", "HTTPS:evil.example"),
    *("javascript:alert(1)", "JaVaScript://%0aalert(1)", "data:text/html,x", "vbscript:x", "evil.example"),
    *("/\t/evil.example", "/\n/evil.example", "/\r\n/evil.example", "\t//evil.example", " //evil.example", "\u0000//x"),
    *("%2f%2fevil.example", "/%09/evil.example", "{own}@evil.example/", "{own}.evil.example/", "{own}//evil.example"),
    *(
        "//evil.example/%2e%2e",
        "/\\/evil.example",
        "/\u2028/evil.example",
        "\u3002//evil.example",
        "{own}\\@evil.example",
    ),
)


def leads_away(target: Target, location: str) -> bool:
    """Whether a browser that reads this address leaves the site, now or with the next form."""
    read = re.sub(r"[\t\r\n]", "", location).strip("".join(map(chr, range(33)))).replace("\\", "/")
    path = read.removeprefix(target.url) if read.startswith(f"{target.url}/") else read
    following = parse_qs(urlsplit(path).query).get("next", ["/"]) if path.startswith("/auth/") else []
    return not path.startswith("/") or path.startswith("//") or any(leads_away(target, each) for each in following)


@case(
    "M9b",
    holds="no place that is asked for by `next` is on another site, in any spelling",
    stems_from="CWE-601, CVE-2023-49438: Flask-Security's open redirects",
    broken_by="next_anywhere next_double_slash next_backslash next_prefix next_no_path",
    needs=NEEDED,
)
def test_no_page_leads_to_another_site(target: Target) -> None:
    browser, person = browser_for(target), target.person()
    for text in ELSEWHERE:
        following = text.replace("{own}", target.url)
        for answer in (
            Browser(target).post("/auth/sign-out", {"next": following}),
            Browser(target).get(f"/auth/code?{urlencode({'next': following})}"),
        ):
            assert answer.status == 303, answer.status
            assert not leads_away(target, answer.get("location")), f"{text!r} leads to {answer.get('location')!r}"
        shown = browser.get(f"/auth/sign-in?{urlencode({'next': following})}")
        assert "evil" not in shown.text or "<form" in shown.text
        for place in re.findall(r'name="next" value="([^"]*)"', shown.text):
            assert not leads_away(target, place), f"{text!r} stands in the form as {place!r}"
    for following in ("//evil.example", "/\\evil.example"):
        assert not leads_away(target, browser.password(person, following).get("location"))
        answer = browser.post("/auth/code", {"code": person.code(), "next": following})
        assert (answer.status, leads_away(target, answer.get("location"))) == (303, False)
    assert browser.post("/auth/sign-out", {"next": "/there?a=b"}).get("location").endswith("/there?a=b")


@case(
    "M5b",
    holds="no page is kept by a cache, is shown in a frame or runs a script",
    stems_from="ASVS 3.4.3, 3.4.6, 14.3.2",
    broken_by="pages_cached pages_framed pages_script",
    needs=NEEDED,
)
def test_pages_are_kept_by_nobody_and_framed_by_nobody(target: Target) -> None:
    browser, person = browser_for(target), target.person()
    answers = [browser.get(path) for path in PAGES]
    answers += [browser.password(person), browser.get("/auth/code"), browser.post("/auth/code", {"code": "x"})]
    answers += [browser.post("/auth/code", {"code": person.code()}), browser.get("/auth/code")]
    answers.append(browser.post("/auth/code", {"code": "x"}, Origin="https://evil.example"))
    for answer in answers:
        policy = dict(each.strip().partition(" ")[::2] for each in answer.get("content-security-policy").split(";"))
        assert "no-store" in answer.get("cache-control"), f"{answer.status} may be kept"
        assert (policy.get("frame-ancestors"), answer.get("x-frame-options")) == ("'none'", "DENY"), answer.status
        assert policy.get("script-src", policy.get("default-src")) == "'none'", "scripts may run"


@case(
    "D14",
    holds="the cookie that a right password leaves opens nothing, in its own place or in the session's",
    stems_from="ASVS 2.3.1, GHSA-xg6x-h9c9-2m83",
    broken_by="pending_cookie_opens pending_is_session",
    needs=NEEDED,
)
def test_the_cookie_of_a_password_opens_nothing(target: Target) -> None:
    browser, person = browser_for(target), target.person()
    waiting = Browser(target)
    waiting.password(person)
    [pending] = waiting.cookies.values()
    browser.sign_in(person)
    own = {"Origin": target.url, "Sec_Fetch_Site": "same-origin"}
    for method, path in guarded(target):
        for who in (waiting, browser.with_session(pending)):
            answer = who.send(method, path, None if method == "GET" else {}, **own)
            assert answer.status == 401, f"{method} {path} answered {answer.status}"
    assert waiting.post("/auth/code", {"code": person.code()}).status == 303
    assert waiting.who() == person.name


@case(
    "D3d",
    holds="what the cookies of a session and of a device hold is no token for the header, and none of another kind",
    stems_from="RFC 8725 section 3.12",
    broken_by="cookie_as_bearer cookie_as_pending cookie_as_refresh cookie_as_device device_as_bearer "
    "device_as_refresh",
    needs=NEEDED,
)
def test_what_a_cookie_holds_is_no_token(target: Target) -> None:
    browser, person = browser_for(target), target.person()
    browser.sign_in(person, remember="on")
    [device] = (value for name, value in browser.cookies.items() if "device" in name)
    is_worthless(person, "session's cookie", browser.session)
    is_worthless(person, "device's cookie", device, is_device=True)
    assert browser.who() == person.name


# ── guessing by the forms ────────────────────────────────────────────────────────────────────────


@case(
    "G2b",
    holds="every form that takes a credential refuses the sixth try of a client, as the routes do",
    stems_from="ASVS 6.3.1",
    broken_by="sign_in_page_unlimited code_page_unlimited recovery_page_unlimited enrol_page_unlimited",
    needs=("addresses", "limits", "pages"),
)
def test_every_form_has_a_limit(target: Target) -> None:
    browser_for(target)
    for path in PAGES:
        browser = Browser(target, source=target.client())
        answers = [browser.post(path, {"username": "attack-nobody", "code": "x"}) for _ in range(LIMIT + 1)]
        assert 429 not in [answer.status for answer in answers[:LIMIT]], path
        assert answers[LIMIT].status == 429, f"{path} has no limit"
        assert answers[LIMIT].get("retry-after").isdigit(), f"{path} says not how long"


@case(
    "C9c",
    holds="wrong passwords on the page and by the route are counted together, and the delay holds for both",
    stems_from="CVE-2025-64102, ASVS 6.3.1",
    broken_by="page_passwords_uncounted page_ignores_password_lock",
    needs=("addresses", "pages"),
)
def test_passwords_are_counted_on_the_page_too(target: Target) -> None:
    browser_for(target)
    person, source = target.newcomer(), target.client()
    browser = Browser(target, source=source)
    right, wrong = ({"username": person.name, "password": each} for each in (person.password, "wrong-password-1"))
    for number in range(3):
        assert guess(target, person, "wrong-password-1", source).status == 401
        time.sleep(1.1 if number == 2 else 0)
        opens = time.monotonic() + 2
        assert browser.post("/auth/sign-in", wrong).status == 401
    refused_while(opens, browser.post("/auth/sign-in", right))
    refused_while(opens, guess(target, person, person.password, source))
    time.sleep(2.2)
    assert browser.post("/auth/sign-in", right).status == 303, "a delay does not end"


@case(
    "T11b",
    holds="wrong codes on a page and by the routes are counted together, and the lock holds for both",
    stems_from="CVE-2024-32868, CVE-2025-64102",
    broken_by="page_codes_uncounted page_ignores_lock counters_apart",
    needs=NEEDED,
)
def test_codes_are_counted_on_the_page_too(target: Target) -> None:
    browser, person = browser_for(target), target.person()
    browser.password(person)
    for number in range(3):
        assert person.step_up(person.wrong()).status == 401
        if number == 2:  # five failures have ended what waited for a code
            time.sleep(1.1)
            browser.password(person)
        opens = time.monotonic() + 2
        assert browser.post("/auth/code", {"code": person.wrong()}).status == 401
    waiting = Browser(target)
    waiting.password(person)
    refused_while(opens, waiting.post("/auth/code", {"code": person.code()}))
    refused_while(opens, person.step_up(person.code()))


@case(
    "T4b",
    holds="five wrong codes kill a pending token, on the page and by the route together",
    stems_from="150 wrong codes on one pending token, then success",
    broken_by="page_tries_uncounted",
    needs=NEEDED,
)
def test_five_wrong_codes_kill_the_pending_cookie(target: Target) -> None:
    browser, person = browser_for(target), target.person()
    browser.password(person)
    [pending] = browser.cookies.values()
    for _ in range(2):
        assert person.verify(pending, person.wrong()).code == "invalid_code"
        assert browser.post("/auth/code", {"code": person.wrong()}).status == 401
    assert person.step_up(person.code()).status == 200, "the account's counter is not put back"
    assert browser.post("/auth/code", {"code": person.wrong()}).status == 401
    target.shows(browser.post("/auth/code", {"code": person.code()}))
    assert browser.who() == "", "tries of a token are not counted on the page"
    assert person.verify(pending, person.code()).code == "invalid_pending_token"


@case(
    "T46b",
    holds="on the page, too, unknown, unconfirmed and enrolled users with a wrong password get the same bytes",
    stems_from="CVE-2024-41952",
    broken_by="page_tells_unknown",
    needs=NEEDED,
)
def test_the_page_does_not_tell_who_exists(target: Target) -> None:
    browser_for(target)
    enrolled, unconfirmed = target.person(), target.newcomer()
    for password in ("wrong-password-1", "x" * 80, ""):
        forms = [
            {"username": name, "password": password} for name in (enrolled.name, unconfirmed.name, "attack-nobody")
        ]
        assert len({seen(Browser(target).post("/auth/sign-in", form)) for form in forms}) == 1
