"""nginx and Caddy, run for real with the configurations that we ship, in front of an app that knows nothing of us.

TLS would be in front of them; the browsers of these tests speak as if there were some.
"""

import http.client
import itertools
import json
import re
import shutil
import socket
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.browsers import Browser, Phone
from tests.bursts import post
from tests.conftest import ROOT, free_port, program, running
from tests.factories import PASSWORD
from tests.services import Rows

pytestmark = [pytest.mark.services, pytest.mark.parametrize("database", ["sqlite"], indirect=True)]


def test_nobody_passes_without_a_token(proxy: "Proxy") -> None:
    for headers in ({}, {"Authorization": "Bearer forged"}, {"Authorization": f"Bearer {proxy.pending}"}):
        answer = proxy.get("/", headers)
        assert answer.status == 401
        assert answer.headers["WWW-Authenticate"].startswith("Bearer")
    assert proxy.behind.seen == []


def test_who_comes_is_told_to_the_app_behind(proxy: "Proxy") -> None:
    answer = proxy.get("/", proxy.bearer)
    assert answer.status == 200
    [seen] = proxy.behind.seen
    assert seen["x-auth-subject"] == [proxy.user_id]
    assert seen["x-auth-username"] == ["ad%C3%A9"]
    assert seen["x-auth-amr"] == ["pwd otp mfa"]
    assert seen.get("x-auth-roles", [""]) in ([""], ["staff"])


@pytest.mark.parametrize(
    "name",
    [
        "X-Auth-Subject",
        "x-auth-roles",
        "X-AUTH-USERNAME",
        "X-Auth-Amr",
        "X_Auth_Subject",
        "X_Auth-Roles",
        "X-Auth_Roles",
    ],
)
def test_what_a_client_says_of_itself_never_arrives(proxy: "Proxy", name: str) -> None:
    assert proxy.get("/", proxy.bearer | {name: "forged-by-client"}).status == 200
    assert "forged-by-client" not in json.dumps(proxy.behind.seen)


@pytest.mark.parametrize("path", ["/", "/admin/"])
def test_a_client_can_not_have_the_identity_taken_away(proxy: "Proxy", path: str) -> None:
    named = {"Host": "app.example", "Connection": "X-Auth-Subject, X-Auth-Username, X-Auth-Roles, X-Auth-Amr"}
    connection = http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=20)
    connection.request("GET", path, headers=proxy.bearer | named)
    answer = connection.getresponse()
    answer.read()
    connection.close()
    assert answer.status == 200
    assert proxy.behind.seen[-1]["x-auth-subject"] == [proxy.user_id]


def test_the_folder_without_its_slash_is_no_way_in(proxy: "Proxy") -> None:
    proxy.get("/admin", {"Authorization": f"Bearer {proxy.by_device}"})
    assert proxy.behind.seen == []


def test_a_path_may_want_a_fresh_second_factor(proxy: "Proxy", rows: Rows) -> None:
    assert proxy.get("/admin/", proxy.bearer).status == 200
    assert proxy.get("/admin/", {"Authorization": f"Bearer {proxy.by_device}"}).status == 401
    assert proxy.get("/", {"Authorization": f"Bearer {proxy.by_device}"}).status == 200


def test_a_session_that_ended_is_refused_at_once(proxy: "Proxy", rows: Rows) -> None:
    assert proxy.get("/", proxy.bearer).status == 200
    rows("UPDATE mfa_sessions SET revoked_at = created_at")
    assert proxy.get("/", proxy.bearer).status == 401


def test_uploads_pass_untouched(proxy: "Proxy") -> None:
    body = bytes(range(256)) * 8192
    assert proxy.get("/", proxy.bearer, body).status == 200
    assert proxy.behind.bodies == [body]


def test_a_large_upload_streams_through(proxy: "Proxy") -> None:
    head = f"POST / HTTP/1.1\r\nHost: app.example\r\nAuthorization: {proxy.bearer['Authorization']}\r\n"
    with socket.create_connection(("127.0.0.1", proxy.port), timeout=10) as connection:
        connection.sendall(f"{head}Content-Length: {2 * len(HALF)}\r\n\r\n".encode() + HALF)
        assert within(5, lambda: proxy.behind.seen), "the app behind hears of it before it is all there"
        connection.sendall(HALF)
        assert connection.recv(1024).startswith(b"HTTP/1.1 200")
    assert proxy.behind.bodies == [HALF * 2]


def test_a_websocket_is_upgraded(proxy: "Proxy") -> None:
    assert proxy.handshake(proxy.bearer).startswith(b"HTTP/1.1 101")


# ── browsers ─────────────────────────────────────────────────────────────────────────────────────


def test_a_browser_is_sent_to_sign_in_and_back_to_the_page(proxy: "Proxy") -> None:
    browser = proxy.browser()
    page = browser.get("/books?sort=year")
    assert page.status == 303
    assert page.target.startswith("/auth/sign-in?next=")
    assert page.headers["Cache-Control"] == "no-store"
    assert proxy.behind.seen == []

    assert "Sign in" in browser.follow(page).text
    assert browser.get("/auth/pages.css").headers["Content-Type"].startswith("text/css")
    browser.follow(page)
    browser.follow(browser.submit(username="adé", password=PASSWORD))
    assert browser.page.path.startswith("/auth/code?next=")
    arrived = browser.follow(browser.submit(code=proxy.code()))
    assert (arrived.path, arrived.text) == ("/books?sort=year", "in")
    assert proxy.behind.seen[-1]["x-auth-subject"] == [proxy.user_id]


@pytest.mark.parametrize(
    "path",
    [
        "/books?by=Woolf&sort=year",
        "/caf%C3%A9/100%25?q=a%26b+c&r=%2F",
        "/a+b",
        "/a;b?c",
        "/?next=https://evil.example/&x=1",
    ],
)
def test_the_page_is_found_again_with_its_query(proxy: "Proxy", path: str) -> None:
    browser = proxy.browser()
    browser.follow(browser.get(path))
    browser.follow(browser.submit(username="adé", password=PASSWORD))
    assert browser.follow(browser.submit(code=proxy.code())).path == path


@pytest.mark.parametrize("path", ["//evil.example/", "/\\evil.example", "//evil.example/?a=1&b=%20"])
def test_nobody_is_sent_to_another_origin(proxy: "Proxy", path: str) -> None:
    browser = proxy.browser()
    browser.follow(browser.get(path))
    browser.follow(browser.submit(username="adé", password=PASSWORD))
    page = browser.submit(code=proxy.code())
    while page.status in (302, 303):
        assert re.match(r"/(?![/\\])", page.target), page.target
        page = browser.get(page.target)


def test_programs_get_the_refusal_and_no_page(proxy: "Proxy") -> None:
    accepts_pages = {"Accept": "text/html"}
    for headers in ({"Accept": "application/json"}, {"Accept": "*/*"}, accepts_pages | {"Authorization": "Bearer x"}):
        answer = proxy.browser().get("/", **headers)
        assert answer.status == 401
        assert answer.headers.get_all("WWW-Authenticate")[0].startswith("Bearer")
        assert len(answer.headers.get_all("WWW-Authenticate")) == 1
        assert json.loads(answer.text)["code"]
    assert proxy.browser().post("/").status == 401, "what a form was about to do can't be done by going there"


def test_a_form_passes_from_a_page_of_this_site_alone(proxy: "Proxy") -> None:
    browser = proxy.signed_in()
    assert browser.post("/pay", {"sum": "1"}).text == "in"
    assert proxy.behind.bodies[-1] == b"sum=1"
    passed = len(proxy.behind.seen)
    foreign: list[dict[str, str]] = [
        {"Origin": "https://evil.example", "Sec-Fetch-Site": "cross-site"},
        {"Origin": "https://evil.app.example", "Sec-Fetch-Site": "same-site"},
        {"Origin": "null", "Sec-Fetch-Site": "cross-site"},
    ]
    tricks = [{}, {"X-Forwarded-Method": "GET"}, {"X_Forwarded_Method": "GET"}, {"X-HTTP-Method-Override": "GET"}]
    for headers, trick in itertools.product(foreign, tricks):
        assert browser.send("POST", "/pay", {"sum": "1"}, headers | trick).status == 403
    assert browser.send("POST", "/pay", {"sum": "1"}, {}).status == 403, "nor without a word of where it is from"
    assert browser.send("GET", "/", None, {"Origin": "https://evil.example"}).status == 403
    assert len(proxy.behind.seen) == passed


def test_a_websocket_of_a_browser_opens_from_a_page_of_this_site_alone(proxy: "Proxy") -> None:
    cookie = {"Cookie": proxy.signed_in().cookie}
    assert proxy.handshake(cookie | {"Origin": "https://app.example"}).startswith(b"HTTP/1.1 101")
    passed = len(proxy.behind.seen)
    for refused in (cookie | {"Origin": "https://evil.example"}, cookie | {"Origin": "null"}):
        assert proxy.handshake(refused).startswith(b"HTTP/1.1 403")
    assert proxy.handshake({"Origin": "https://app.example"}).startswith(b"HTTP/1.1 401")
    assert len(proxy.behind.seen) == passed


def test_a_browser_whose_factor_is_old_is_asked_for_the_code_alone(proxy: "Proxy", rows: Rows) -> None:
    browser = proxy.signed_in()
    assert browser.get("/admin/users").text == "in"
    rows("UPDATE mfa_sessions SET authenticated_at = datetime(authenticated_at, '-10 minutes')")
    assert browser.get("/").text == "in"
    page = browser.get("/admin/users?page=2")
    assert page.target.startswith("/auth/code?next=")
    browser.follow(page)
    assert browser.follow(browser.submit(code=proxy.code())).path == "/admin/users?page=2"


def test_signing_out_ends_it(proxy: "Proxy") -> None:
    browser = proxy.signed_in()
    kept = dict(browser.cookies)
    assert browser.post("/auth/sign-out", {"next": "/bye"}, Origin="https://evil.example").status == 403
    assert browser.get("/").text == "in"
    assert browser.post("/auth/sign-out?next=/bye").target == "/bye"
    browser.cookies = kept
    assert browser.get("/").target.startswith("/auth/sign-in")


def test_signing_out_leads_nowhere_else(proxy: "Proxy") -> None:
    assert proxy.browser().post("/auth/sign-out?next=https://evil.example/").target == "/"
    assert proxy.browser().post("/auth/sign-out?next=https://app.example/bye").target == "/bye"


@pytest.mark.parametrize("kept", ["//evil.example/", "https://evil.example/", "/\\evil.example", ""])
@pytest.mark.parametrize("proxy", ["nginx"], indirect=True)
def test_a_cookie_that_says_where_to_go_back_to_leads_nowhere_else(proxy: "Proxy", kept: str) -> None:
    browser = proxy.browser()
    browser.cookies["__Host-mfa_back"] = kept
    assert browser.get("/_mfa/back").target == "/"
    assert browser.cookies == {}


def test_the_service_counts_by_the_address_that_the_proxy_sees(proxy: "Proxy", rows: Rows) -> None:
    browser = proxy.browser()
    browser.get("/auth/sign-in", X_Forwarded_For="203.0.113.9")
    browser.submit(username="adé", password="wrong-horse")
    form = {"username": "adé", "password": PASSWORD}
    browser.follow(browser.post("/auth/sign-in", form, X_Forwarded_For="203.0.113.9"))
    browser.submit(code=proxy.code())
    assert {row["address"] for row in rows("SELECT address FROM mfa_sessions")} == {"127.0.0.1"}


def test_a_host_that_is_not_ours_gets_nowhere(proxy: "Proxy") -> None:
    page = proxy.browser().get("/auth/sign-in", Host="evil.example")
    assert "evil.example" not in page.text + str(page.headers)


# ── means ────────────────────────────────────────────────────────────────────────────────────────


HALF = bytes(range(256)) * 8192


def within(seconds: float, happens: Callable[[], object]) -> bool:
    deadline = time.monotonic() + seconds
    while not happens() and time.monotonic() < deadline:
        time.sleep(0.02)
    return bool(happens())


class Behind(ThreadingHTTPServer):
    """An app that remembers what it was sent, and echoes what comes through a socket."""

    def __init__(self) -> None:
        self.seen: list[dict[str, list[str]]] = []
        self.bodies: list[bytes] = []
        super().__init__(("127.0.0.1", 0), _Answering)


class _Answering(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Behind

    def do_GET(self) -> None:
        seen: dict[str, list[str]] = {}
        for name, value in self.headers.items():
            seen.setdefault(name.lower(), []).append(value)
        self.server.seen.append(seen)
        if self.headers.get("Upgrade") == "websocket":
            self.wfile.write(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
            self.wfile.write(self.connection.recv(4))
            self.close_connection = True
            return
        self.server.bodies.append(self._body())
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"in")

    do_POST = do_GET  # noqa: N815

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        chunks = []
        while size := int(self.rfile.readline(), 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def log_message(self, *_: object) -> None: ...


@dataclass
class Proxy:
    port: int
    behind: Behind
    user_id: str
    token: str
    by_device: str
    pending: str
    phone: "Phone"

    @property
    def bearer(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token}"}

    def get(self, path: str, headers: dict[str, str], body: bytes | None = None) -> Any:
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{path}", body, headers | {"Host": "app.example", "Accept": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=20) as answer:
                answer.read()
                return answer
        except urllib.error.HTTPError as refusal:
            with refusal:
                return refusal

    def handshake(self, headers: dict[str, str]) -> bytes:
        """What a websocket is answered; one that opens has to echo."""
        lines = ["GET /socket HTTP/1.1", "Host: app.example", "Connection: Upgrade", "Upgrade: websocket"]
        lines += ["Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==", "Sec-WebSocket-Version: 13"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        with socket.create_connection(("127.0.0.1", self.port), timeout=10) as connection:
            connection.sendall("\r\n".join(lines).encode() + b"\r\n\r\n")
            answer = connection.recv(1024)
            if answer.startswith(b"HTTP/1.1 101"):
                connection.sendall(b"ping")
                assert connection.recv(1024).endswith(b"ping")
            return answer

    def browser(self) -> Browser:
        return Browser(f"http://127.0.0.1:{self.port}", "https://app.example")

    def signed_in(self) -> Browser:
        """A browser on which somebody has signed in by the pages."""
        browser = self.browser()
        browser.get("/auth/sign-in")
        browser.follow(browser.submit(username="adé", password=PASSWORD))
        assert browser.follow(browser.submit(code=self.code())).text == "in"
        return browser

    def code(self) -> str:
        return self.phone.code()


@pytest.fixture(params=["nginx", "caddy"])
def proxy(request: pytest.FixtureRequest, serve: Callable[..., str], rows: Rows, behind: Behind) -> Iterator[Proxy]:
    binary = program(request.param)
    address = serve(**settings() | {"MFA_REGISTRATION_OPEN": "true"})  # for making people by HTTP
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        start = {"nginx": nginx, "caddy": caddy}[request.param]
        command = start(Path(folder), binary, port, address, behind.server_port)
        ready = lambda: socket.create_connection(("127.0.0.1", port), 1).close()  # noqa: E731
        with running(command, ready=ready):
            yield Proxy(port, behind, *sign_in(address, rows))


def settings() -> dict[str, str]:
    """What the README starts the service with, for a proxy in front."""
    section = (ROOT / "README.md").read_text().partition("## In front of anything")[2]
    found = re.search(r"^(MFA_.*) make serve$", section, re.M)
    assert found
    return dict(pair.split("=", 1) for pair in found[1].split())


@pytest.fixture
def behind() -> Iterator[Behind]:
    with Behind() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def nginx(folder: Path, binary: str, port: int, address: str, behind: int) -> list[str]:
    """The shipped configuration with these addresses in it, and around it what a distribution's nginx.conf has."""
    shutil.copytree(ROOT / "deploy/nginx", folder, dirs_exist_ok=True)
    shipped = folder / "forward-auth.conf"
    shipped.write_text(addressed(shipped.read_text(), port, address, behind))
    paths = " ".join(
        f"{name}_temp_path {folder}/{name};" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    http = f"http {{ access_log off; {paths} include {shipped}; }}"
    main = folder / "nginx.conf"
    main.write_text(f"daemon off; pid {folder}/pid; error_log stderr; events {{}} {http}")
    return [binary, "-p", str(folder), "-c", str(main), "-e", "stderr"]


def caddy(folder: Path, binary: str, port: int, address: str, behind: int) -> list[str]:
    shipped = addressed((ROOT / "deploy/caddy/Caddyfile").read_text(), port, address, behind)
    (folder / "Caddyfile").write_text("{\n\tadmin off\n}\n" + shipped)
    return [binary, "run", "--config", str(folder / "Caddyfile"), "--adapter", "caddyfile"]


def addressed(text: str, port: int, address: str, behind: int) -> str:
    service = address.removeprefix("http://")
    replaced = text.replace("127.0.0.1:8000", service).replace("127.0.0.1:9000", f"127.0.0.1:{behind}")
    return re.sub(r":8080\b", f":{port}", replaced)


def sign_in(address: str, rows: Rows) -> tuple[str, str, str, str, Phone]:
    """The id of somebody with a role, their token, one of a remembered device, a pending one, and their phone."""
    who = {"username": "adé", "password": PASSWORD}
    phone = Phone(post(address, "/auth/register", who | {"email": "ada@example.com"}).json["manualEntryKey"])
    rows("INSERT INTO mfa_user_roles (user_id, role) SELECT id, 'staff' FROM mfa_users")
    body = {"tempToken": post(address, "/auth/login", who).json["tempToken"], "rememberDevice": True}
    signed_in = post(address, "/auth/verify-mfa", body | {"totpCode": phone.code()}).json
    by_device = post(address, "/auth/login", who | {"deviceToken": signed_in["deviceToken"]}).json["accessToken"]
    pending = post(address, "/auth/login", who).json["tempToken"]
    return rows("SELECT id FROM mfa_users")[0]["id"], signed_in["accessToken"], by_device, pending, phone
