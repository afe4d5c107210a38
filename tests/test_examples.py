"""The examples run as they stand, by the commands in their first lines; those that need a service have a real one."""

import ast
import contextlib
import json
import os
import re
import shutil
import sqlite3
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.browsers import Browser, Phone
from tests.bursts import post
from tests.conftest import ROOT, free_port, running
from tests.factories import PASSWORD, bearer, totp
from tests.services import Rows

pytestmark = pytest.mark.services
with_service = pytest.mark.parametrize("database", ["sqlite"], indirect=True)


# ── users of the service, in other apps ──────────────────────────────────────────────────────────


@with_service
def test_an_api_verifies_by_the_published_keys(service: str, start: "Start", tokens: dict[str, str]) -> None:
    api = start("api_by_jwks.py", service)
    assert ask(f"{api}/orders", tokens["access"]) == (200, {"orders": [], "of": "ada"})
    assert ask(f"{api}/pay", tokens["access"], "POST")[0] == 200
    status, answer = ask(f"{api}/pay", tokens["by device"], "POST")
    assert (status, answer["code"]) == (401, "step_up_required")
    for token, code in ((tokens["pending"], "full_authentication_required"), ("x.y.z", "invalid_token")):
        status, answer = ask(f"{api}/orders", token)
        assert (status, answer["code"]) == (401, code)


@with_service
def test_a_service_without_flask_reads_our_tokens(service: str, start: "Start", tokens: dict[str, str]) -> None:
    api = start("without_flask.py", service)
    assert ask(api, tokens["access"]) == (200, {"of": "ada"})
    for token in (tokens["pending"], "x.y.z", ""):
        assert ask(api, token)[0] == 401


@with_service
def test_a_blueprint_is_guarded_whole(service: str, start: "Start", tokens: dict[str, str], rows: Rows) -> None:
    app = start("guarded_blueprint.py", service)
    with urllib.request.urlopen(app, timeout=20) as answer:
        assert answer.read() == b"books"
    for path, method in (("orders", "GET"), ("orders/1/refund", "POST"), ("staff", "GET")):
        assert ask(f"{app}/backoffice/{path}", tokens["pending"], method)[0] == 401
    assert ask(f"{app}/backoffice/orders", tokens["access"]) == (200, {"orders": [], "of": "ada"})

    assert ask(f"{app}/backoffice/orders/7/refund", tokens["access"], "POST")[1]["refunded"] == 7
    assert ask(f"{app}/backoffice/orders", tokens["by device"])[0] == 200
    assert ask(f"{app}/backoffice/orders/7/refund", tokens["by device"], "POST")[1]["code"] == "step_up_required"

    assert ask(f"{app}/backoffice/staff", tokens["access"])[0] == 403
    rows("INSERT INTO mfa_user_roles (user_id, role) SELECT id, 'staff' FROM mfa_users")
    assert ask(f"{app}/backoffice/staff", tokens["access"]) == (200, {"staff": "ada"})
    rows("UPDATE mfa_sessions SET revoked_at = created_at")
    assert ask(f"{app}/backoffice/orders", tokens["access"])[0] == 401


# ── a shop with Flask-Login, which browsers use ──────────────────────────────────────────────────


def test_the_shop_has_its_users_set_up_an_authenticator(shop: "Shop") -> None:
    browser, ada = Browser(shop.address), shop.add("ada")
    assert browser.follow(browser.get("/account?from=mail")).path.startswith("/login?next=")
    assert browser.submit(username="ada", password="wrong-horse").status == 200
    page = browser.submit(username="ada", password=PASSWORD)
    assert page.target == "/auth/authenticator?next=/account?from%3Dmail"
    assert browser.get("/account").status == 303
    browser.follow(page)
    ada.secret = browser.submit().key
    page = browser.submit(code=ada.code())
    assert len(re.findall(r"<li><code>", page.text)) == 10
    assert browser.get("/account").text == "orders of ada"


def test_the_next_sign_in_takes_a_code(shop: "Shop") -> None:
    ada = shop.add("ada2")
    shop.sign_up(ada)
    browser = Browser(shop.address)
    browser.get("/login")
    page = browser.follow(browser.submit(username="ada2", password=PASSWORD))
    assert page.path == "/auth/code?next=/account"
    assert browser.get("/account").target == "/auth/code?next=/account", "the shop's password alone opens nothing"
    browser.get("/auth/code?next=/account")
    assert browser.submit(code="000000").status == 401
    assert browser.follow(browser.submit(code=ada.code())).text == "orders of ada2"


def test_who_signs_in_next_on_the_same_browser_inherits_nothing(shop: "Shop") -> None:
    browser = shop.sign_up(shop.add("ada3"))
    shop.add("bob3")
    browser.get("/login")
    page = browser.submit(username="bob3", password=PASSWORD)
    assert page.target.startswith("/auth/authenticator"), "bob has none of his own"
    assert browser.get("/account").status == 303
    assert browser.post("/pay").status == 303


def test_paying_wants_a_code_of_the_last_five_minutes_and_a_page_of_the_shop(shop: "Shop") -> None:
    ada = shop.add("ada4")
    browser = shop.sign_up(ada, remember="on")
    assert browser.post("/pay").text == "paid by ada4"
    for foreign in ({"Origin": "https://evil.example"}, {"Origin": "null", "Sec_Fetch_Site": "cross-site"}):
        refused = browser.post("/pay", **foreign)
        assert (refused.status, json.loads(refused.text)["code"]) == (403, "foreign_origin")

    browser.post("/logout")
    browser.get("/login")
    assert browser.follow(browser.submit(username="ada4", password=PASSWORD)).text == "orders of ada4", "remembered"
    page = browser.post("/pay", Referer=f"{shop.address}/account")
    assert page.target == "/auth/code?next=/account"
    browser.follow(page)
    assert browser.follow(browser.submit(code=ada.code())).text == "orders of ada4"
    assert browser.post("/pay").text == "paid by ada4"


def test_logging_out_of_the_shop_ends_both_sessions(shop: "Shop") -> None:
    browser = shop.sign_up(shop.add("ada5"))
    kept = dict(browser.cookies)
    assert browser.post("/logout").target == "/login"
    assert "__Host-mfa_session" not in browser.cookies
    assert browser.get("/account").target.startswith("/login")
    browser.cookies = kept
    assert browser.get("/account").target.startswith("/auth/code"), "the shop's cookie holds its session; ours is over"


def test_our_tables_lie_beside_the_shops_and_touch_none(place: "Place") -> None:
    init, upgrade, add_user, _ = commands_of("flask_login_shop.py")
    place.run(init)
    place.run(add_user, PASSWORD)
    before = dump(place.database("shop.db"))
    assert any("ada" in line for line in before)
    place.run(upgrade)
    after = dump(place.database("shop.db"))
    assert len(after) > len(before) + 10
    assert [line for line in after if "mfa_" not in line] == before


def test_a_user_whom_the_shop_deletes_leaves_nothing_for_the_next_one_of_the_same_id(shop: "Shop") -> None:
    browser = shop.sign_up(shop.add("ada6"))
    users = shop.place.database("shop.db")
    [[before]] = users.execute("SELECT id FROM user WHERE username = 'ada6'")
    shop.place.run("flask --app examples/flask_login_shop delete-user ada6")
    assert browser.get("/account").target.startswith("/login")
    shop.add("eve6")
    assert list(users.execute("SELECT id FROM user WHERE username = 'eve6'")) == [(before,)]
    assert browser.get("/account").status == 303
    browser.get("/login")
    assert browser.submit(username="eve6", password=PASSWORD).target.startswith("/auth/authenticator")


# ── a host with an API and an /auth of its own ───────────────────────────────────────────────────


def test_a_host_keeps_its_own_auth_and_ours_lies_beside_it(place: "Place") -> None:
    host = place.start("host_with_own_auth.py", PASSWORD)
    for path, status in (("/auth/verify-mfa", 404), ("/auth/login", 401)):
        assert status_of(host + path, {"name": "ada", "password": "wrong-horse"}) == status

    begun = post(host, "/auth/login", {"name": "ada", "password": PASSWORD}).json
    assert begun["methods"] == []
    assert ask(f"{host}/orders/", begun["tempToken"])[0] == 401
    ada = Phone(post(host, "/mfa/enrol", {"tempToken": begun["tempToken"]}).json["manualEntryKey"])
    shown = {"tempToken": begun["tempToken"], "totpCode": ada.code(), "rememberDevice": True}
    signed_in = post(host, "/mfa/verify-mfa", shown).json
    assert ask(f"{host}/orders/", signed_in["accessToken"]) == (200, {"orders": [], "of": "ada"})
    assert ask(f"{host}/api/profile", signed_in["accessToken"])[1]["username"] == "ada"

    assert post(host, "/auth/login", {"name": "ada", "password": PASSWORD}).json["methods"] == ["totp", "recovery_code"]
    by_device = {"name": "ada", "password": PASSWORD, "deviceToken": signed_in["deviceToken"]}
    assert ask(f"{host}/orders/", post(host, "/auth/login", by_device).json["accessToken"])[0] == 200

    with place.database("host.db") as members:
        members.execute("DELETE FROM members")
    assert ask(f"{host}/orders/", signed_in["accessToken"])[0] == 401


# ── means ────────────────────────────────────────────────────────────────────────────────────────

Start = Callable[[str, str], str]


@pytest.fixture
def service(serve: Callable[..., str]) -> str:
    return serve(MFA_AUDIENCES="shop")


@pytest.fixture
def start(place: "Place") -> Start:
    """Run an example against a service; returns its address."""
    return lambda example, service: place.start(example, service=service)


@pytest.fixture
def place(tmp_path: Path) -> Iterator["Place"]:
    with contextlib.ExitStack() as stack:
        yield Place(tmp_path, stack)


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator["Shop"]:
    with contextlib.ExitStack() as stack:
        place = Place(tmp_path_factory.mktemp("shop"), stack)
        yield Shop(place, place.start("flask_login_shop.py", PASSWORD))


def commands_of(example: str) -> list[str]:
    """The commands in the first lines of an example; what starts the service is not among them."""
    lines = (ast.get_docstring(ast.parse((ROOT / "examples" / example).read_text())) or "").splitlines()
    return [line.strip() for line in lines if re.search(r"\b(flask|python) ", line) and "make" not in line]


class Place:
    """A folder with the examples in it, where their commands are run."""

    def __init__(self, folder: Path, stack: contextlib.ExitStack) -> None:
        shutil.copytree(ROOT / "examples", folder / "examples")
        self._folder, self._stack = folder, stack
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("MFA_", "FLASK_"))}
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        self._environment = kept | {"PYTHONPATH": str(ROOT), "PATH": path, "MFA_AUTH_RATE_LIMIT": "1000 per minute"}

    def run(self, command: str, *typed: str) -> None:
        """Run a command to its end; what it asks for is typed twice."""
        lines = "".join(f"{line}\n" * 2 for line in typed)
        done = subprocess.run(
            ["sh", "-c", command],
            input=lines,
            text=True,
            capture_output=True,
            timeout=60,
            cwd=self._folder,
            env=self._environment,
            start_new_session=True,  # without a terminal, passwords are read from what is typed here
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr

    def start(self, example: str, *typed: str, service: str = "") -> str:
        """Run an example by its own commands, of which the last one serves."""
        *first, last = commands_of(example)
        for command in first:
            self.run(command, *typed if "add-user" in command else ())
        port = free_port()
        last = re.sub(r"\b900[0-9]\b", str(port), last).replace("http://127.0.0.1:8000", service)
        assert str(port) in last
        address = f"http://127.0.0.1:{port}"

        def ready() -> None:
            with contextlib.suppress(urllib.error.HTTPError):
                urllib.request.urlopen(address, timeout=2).close()

        options = {"cwd": self._folder, "env": self._environment}
        self._stack.enter_context(running(["sh", "-c", f"exec env {last}"], ready=ready, **options))
        return address

    def database(self, name: str) -> sqlite3.Connection:
        return self._stack.enter_context(contextlib.closing(sqlite3.connect(self._folder / "instance" / name)))


class Customer(Phone):
    def __init__(self, username: str) -> None:
        super().__init__()
        self.username = username


class Shop:
    def __init__(self, place: Place, address: str) -> None:
        self.place, self.address = place, address

    def add(self, username: str) -> "Customer":
        """Somebody with a password of the shop's."""
        if username != "ada":  # whom the first lines of the example add
            self.place.run(f"flask --app examples/flask_login_shop add-user {username}", PASSWORD)
        return Customer(username)

    def sign_up(self, who: "Customer", **choices: str) -> Browser:
        """A browser on which somebody has signed in for the first time, with an authenticator."""
        browser = Browser(self.address)
        browser.get("/login")
        browser.follow(browser.submit(username=who.username, password=PASSWORD))
        who.secret = browser.submit().key
        assert "recovery codes" in browser.submit(code=who.code(), **choices).text
        assert browser.get("/account").text == f"orders of {who.username}"
        return browser


@pytest.fixture
def tokens(service: str) -> dict[str, str]:
    """An access token of somebody, one of a remembered device, and a pending one."""
    who = {"username": "ada", "password": PASSWORD}
    secret = post(service, "/auth/register", who | {"email": "ada@example.com"}).json["manualEntryKey"]
    body = {"tempToken": post(service, "/auth/login", who).json["tempToken"], "rememberDevice": True}
    signed_in = post(service, "/auth/verify-mfa", body | {"totpCode": totp(secret, int(time.time()) // 30)}).json
    by_device = post(service, "/auth/login", who | {"deviceToken": signed_in["deviceToken"]}).json["accessToken"]
    pending = post(service, "/auth/login", who).json["tempToken"]
    return {"access": signed_in["accessToken"], "by device": by_device, "pending": pending}


def dump(database: sqlite3.Connection) -> list[str]:
    """All tables and rows, without the counter that SQLite makes for the first table that has one."""
    return [line for line in database.iterdump() if "sqlite_sequence" not in line]


def status_of(address: str, body: dict[str, str]) -> int:
    """What a POST is answered with, in whatever form."""
    request = urllib.request.Request(address, json.dumps(body).encode(), {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as refusal:
        with refusal:
            return refusal.code


def ask(address: str, token: str, method: str = "GET") -> tuple[int, dict[str, object]]:
    request = urllib.request.Request(address, headers=bearer(token), method=method)
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as refusal:
        with refusal:
            return refusal.code, json.load(refusal)
