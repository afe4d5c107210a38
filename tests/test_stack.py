"""The whole of it as deploy/ puts it together: nginx with TLS, two replicas, PostgreSQL and Redis."""

import contextlib
import http.client
import io
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import redis as redis_client

from tests.browsers import Phone
from tests.conftest import ROOT, empty
from tests.services import Rows
from tests.stack import (
    CREDENTIALS,
    MANY,
    Replica,
    Reply,
    Settings,
    Stack,
    Start,
    await_use,
    environment_of,
    log_in,
    nginx,
    profile,
    refresh,
    register,
    settings_of,
    stacks,
    verify,
    within,
)

pytestmark = pytest.mark.services
#: What the service says to browsers with every answer.
HELMET = {
    *("Content-Security-Policy", "Cross-Origin-Opener-Policy", "Cross-Origin-Resource-Policy", "Origin-Agent-Cluster"),
    *("Referrer-Policy", "Strict-Transport-Security", "X-Content-Type-Options", "X-DNS-Prefetch-Control"),
    *("X-Download-Options", "X-Frame-Options", "X-Permitted-Cross-Domain-Policies", "X-XSS-Protection"),
}


def test_the_walk_goes_over_two_replicas(start: Start) -> None:
    stack = start()
    registered = register(stack)
    phone = Phone(registered.json["manualEntryKey"])
    login = log_in(stack)
    verified = verify(stack, login.json["tempToken"], phone.code())
    assert verified.status == 200
    served = [stack.logged(answer.headers["X-Request-Id"])["replica"] for answer in (login, verified)]
    assert set(served) == {replica.address for replica in stack.replicas}, "what one began, the other completes"

    token, renewed = verified.json["accessToken"], verified.json["refreshToken"]
    for _ in stack.replicas:
        assert profile(stack, token).json["username"] == "ada"
        renewed = refresh(stack, renewed).json["refreshToken"]
    assert stack.call("POST", "/auth/logout", {}, token).status == 204
    assert [profile(stack, token).status for _ in stack.replicas] == [401, 401], "it has ended on both"


# ── who asks, and for what ───────────────────────────────────────────────────────────────────────


def test_no_header_moves_a_client_out_of_its_limit_or_into_the_log(start: Start, rows: Rows) -> None:
    stack = start()
    names = ["X-Forwarded-For", "X_Forwarded_For", "Forwarded", "X-Real-IP", "X-Client-IP", "True-Client-IP"]
    statuses = []
    for number, name in enumerate(names, 1):
        value = f"203.0.113.{number}"
        header = {name: f"for={value}" if name == "Forwarded" else f"{value}, 198.51.100.{number}"}
        statuses.append(stack.call("POST", "/auth/login", CREDENTIALS, headers=header).status)
    assert statuses == [401] * 5 + [429], "five per client, and it is one client"
    assert {row["address"] for row in rows("SELECT address FROM mfa_events")} == {"127.0.0.1"}


def test_a_request_has_one_id_everywhere(start: Start, rows: Rows) -> None:
    stack = start()
    for offered, is_kept in (("walk-1843.engine_1", True), ("short", False), ("in jec\tted-id", False)):
        answer = stack.call("POST", "/auth/login", CREDENTIALS, headers={"X-Request-Id": offered})
        request_id = answer.headers["X-Request-Id"]
        assert (request_id == offered) is is_kept
        line = stack.logged(request_id)
        [replica] = [replica for replica in stack.replicas if replica.address == line["replica"]]
        assert within(5, lambda: any(entry.get("requestId") == request_id for entry in replica.log))  # noqa: B023
        assert len(rows("SELECT id FROM mfa_events WHERE request_id = :request_id", request_id=request_id)) == 1


def test_the_access_log_has_no_query_and_no_secret(start: Start) -> None:
    stack = start()
    answer = stack.call("GET", "/api/sessions?cursor=QUERY-77", token="TOKEN-77", headers={"Cookie": "mfa=COOKIE-77"})
    line = stack.logged(answer.headers["X-Request-Id"])
    assert (line["path"], line["status"], line["client"]) == ("/api/sessions", "401", "127.0.0.1")
    assert "-77" not in stack.log_file.read_text()


@pytest.mark.parametrize(
    "head",
    [
        b"GET /healthz HTTP/1.1\r\n",
        b"GET /healthz HTTP/1.0\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: evil.example\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: auth.example\r\nHost: evil.example\r\n",
        b"GET https://evil.example/healthz HTTP/1.1\r\nHost: auth.example\r\n",
    ],
)
def test_who_does_not_name_us_is_not_answered(idle: Stack, head: bytes) -> None:
    answer = idle.raw(head + b"Connection: close\r\n\r\n")
    assert answer == b"" or answer.startswith(b"HTTP/1.1 400 ")
    assert idle.raw(b"GET /healthz HTTP/1.1\r\nHost: auth.example\r\nConnection: close\r\n\r\n").startswith(
        b"HTTP/1.1 502 "
    ), "and who does is let through"


def test_another_name_gets_no_certificate(idle: Stack) -> None:
    with pytest.raises(ssl.SSLError, match=r"(?i)unrecognized.name"):
        idle.connect("evil.example")


def test_the_newest_tls_is_spoken_and_the_oldest_is_not(idle: Stack) -> None:
    # The http block around it says nothing of versions.
    with idle.connect() as connection:
        assert connection.version() == "TLSv1.3"
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    old.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_1
    with (
        socket.create_connection(("127.0.0.1", idle.port), timeout=10) as plain,
        pytest.raises(ssl.SSLError, match="ALERT_PROTOCOL_VERSION"),
    ):
        old.wrap_socket(plain, server_hostname="auth.example")


def test_figures_are_not_for_outside(start: Start) -> None:
    stack = start(MFA_METRICS="127.0.0.0/8")
    for path in ("/metrics", "/metrics/", "//metrics", "/%6detrics", "/auth/../metrics", "/metrics?x=1", "/./metrics"):
        answer = stack.call("GET", path)
        assert (answer.status, answer.json["code"]) == (404, "not_found")
        assert stack.logged(answer.headers["X-Request-Id"])["replica"] == "", "nobody was asked"


def test_nothing_is_kept_of_an_answer(start: Start) -> None:
    stack = start()
    answers = [stack.call("GET", "/.well-known/jwks.json") for _ in range(3)]
    assert all(stack.logged(answer.headers["X-Request-Id"])["replica"] for answer in answers)
    assert stack.call("GET", "/api/profile").headers["Cache-Control"] == "no-store"


# ── too much, too slow ───────────────────────────────────────────────────────────────────────────


def test_a_body_over_the_limit_does_not_reach_a_replica(start: Start) -> None:
    stack = start()
    for size, status in ((65536, 400), (65537, 413)):
        answer = stack.call("POST", "/auth/login", b" " * size)
        assert answer.status == status
        assert bool(stack.logged(answer.headers["X-Request-Id"])["replica"]) is (status != 413)
    assert answer.json["code"] == "payload_too_large"

    head = b"POST /auth/login HTTP/1.1\r\nHost: auth.example\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
    chunked = stack.raw(head + b"%x\r\n" % 65537 + b" " * 65537 + b"\r\n0\r\n\r\n")
    assert chunked.startswith(b"HTTP/1.1 413 ")


def test_what_nginx_refuses_has_the_headers_of_what_the_service_refuses(start: "Start") -> None:
    stack = start()
    of_service = stack.call("POST", "/auth/login", b" ")
    assert len(set(of_service.headers.keys()) & HELMET) == len(HELMET)
    for own in (stack.call("POST", "/auth/login", b" " * 65537), stack.call("GET", "/metrics")):
        for name in (*HELMET, "Cache-Control"):
            assert own.headers.get_all(name) == of_service.headers.get_all(name), name
        assert len(own.headers.get_all("X-Request-Id")) == len(of_service.headers.get_all("X-Request-Id")) == 1


def test_a_long_address_that_nginx_lets_through_is_answered_in_our_form(start: Start) -> None:
    stack = start()
    for length in range(4000, 8100, 200):
        answer = stack.call("GET", "/api/profile?x=" + "x" * length)
        assert (answer.status, answer.json["code"]) == (401, "no_token")


def test_headers_over_the_limit_do_not_reach_a_replica(idle: Stack) -> None:
    for headers in (b"A: " + b"x" * 9000 + b"\r\n", b"".join(b"A%d: %s\r\n" % (i, b"x" * 4000) for i in range(10))):
        answer = idle.raw(b"GET /healthz HTTP/1.1\r\nHost: auth.example\r\nConnection: close\r\n" + headers + b"\r\n")
        assert answer.startswith(b"HTTP/1.1 400 ")
    assert {line["replica"] for line in idle.log} == {""}


#: What nginx refuses by itself: status, code, and the request.
REFUSED = {
    "no request at all": (400, "bad_request", b"nonsense\r\n\r\n"),
    "another host": (400, "bad_request", b"GET /healthz HTTP/1.1\r\nHost: a, b\r\n\r\n"),
    "no length": (400, "bad_request", b"POST /auth/login HTTP/1.1\r\nHost: auth.example\r\nContent-Length: x\r\n\r\n"),
    "two lengths": (
        *(400, "bad_request"),
        b"POST /auth/login HTTP/1.1\r\nHost: auth.example\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
    ),
    "a long header": (400, "bad_request", b"GET / HTTP/1.1\r\nHost: auth.example\r\nA: " + b"x" * 9000 + b"\r\n\r\n"),
    "TRACE": (405, "method_not_allowed", b"TRACE /healthz HTTP/1.1\r\nHost: auth.example\r\n\r\n"),
    "a long body": (
        *(413, "payload_too_large"),
        b"POST /auth/login HTTP/1.1\r\nHost: auth.example\r\nContent-Length: 65537\r\n\r\n",
    ),
    "a long address": (414, "bad_request", b"GET /" + b"x" * 9000 + b" HTTP/1.1\r\nHost: auth.example\r\n\r\n"),
    "strange chunks": (
        *(501, "bad_request"),
        b"POST /auth/login HTTP/1.1\r\nHost: auth.example\r\nTransfer-Encoding: gzip\r\n\r\n",
    ),
    "another version": (505, "bad_request", b"GET /healthz HTTP/3.7\r\nHost: auth.example\r\n\r\n"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_nginx_refuses_has_the_form_of_what_the_service_refuses(idle: Stack, what: str) -> None:
    status, code, request = REFUSED[what]
    refusal = parsed(idle.raw(request.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")))
    assert (refusal.status, refusal.json["code"]) == (status, code)
    assert refusal.json["error"]
    assert refusal.headers["Content-Type"] == "application/json"
    assert refusal.headers.get_all("Cache-Control") == ["no-store"]
    assert all(refusal.headers[name] for name in HELMET)


@pytest.mark.parametrize("is_plain", [False, True])
def test_who_says_no_name_or_speaks_no_tls_gets_that_form_too(idle: Stack, is_plain: bool) -> None:
    connection = socket.create_connection(("127.0.0.1", idle.port), timeout=10) if is_plain else idle.connect()
    with connection:
        connection.sendall(b"GET /healthz HTTP/1.1\r\nConnection: close\r\n\r\n")
        refusal = parsed(b"".join(iter(lambda: connection.recv(65536), b"")))
    assert (refusal.status, refusal.json["code"]) == (400, "bad_request")
    assert refusal.headers.get_all("Cache-Control") == ["no-store"]
    assert refusal.headers["Server"] == "nginx", "without its version"


def test_too_many_connections_are_told_when_to_come_back(idle: Stack) -> None:
    # nginx counts a connection from the moment its header is there, and for ten seconds after each byte of its body.
    head = b"POST /auth/login HTTP/1.1\r\nHost: auth.example\r\nContent-Length: 60000\r\n\r\n"
    with contextlib.ExitStack() as stack:
        waiting: list[ssl.SSLSocket] = []

        def one_more() -> None:
            waiting.append(stack.enter_context(idle.connect()))
            waiting[-1].sendall(head)
            for connection in waiting:
                with contextlib.suppress(OSError):  # was one too many
                    connection.sendall(b" ")

        for _ in range(100):
            one_more()

        def is_one_too_many() -> bool:
            one_more()  # where the last question was faster than the hundredth of them, that was the one
            refusal = idle.call("GET", "/healthz")
            return (refusal.status, refusal.json.get("code")) == (429, "too_many_attempts")

        assert within(20, is_one_too_many)
        refusal = idle.call("GET", "/healthz")
        assert int(refusal.headers["Retry-After"]) == refusal.json["retryAfter"]
        assert refusal.headers.get_all("Cache-Control") == ["no-store"]


def parsed(answered: bytes) -> Reply:
    head, _, content = answered.partition(b"\r\n\r\n")
    line, _, headers = head.partition(b"\r\n")
    return Reply(int(line.split()[1]), http.client.parse_headers(io.BytesIO(headers + b"\r\n\r\n")), content.decode())


@pytest.mark.faults("R8")
def test_slow_clients_hold_no_worker(start: Start) -> None:
    stack = start(**MANY)
    # More of them than both replicas have threads; half are slow with the header, half with the body.
    slow = [stack.connect() for _ in range(140)]
    for connection in slow[::2]:
        connection.sendall(b"POST /auth/login HTTP/1.1\r\nHost: auth.example\r\nX-Slow: ")
    head = b"POST /auth/login HTTP/1.1\r\nHost: auth.example\r\nContent-Type: application/json\r\n"
    for connection in slow[1::2]:
        connection.sendall(head + b"Content-Length: 1000\r\n\r\n{")
    for _ in range(8):
        for connection in slow:
            connection.sendall(b" ")
        began = time.monotonic()
        assert stack.call("GET", "/readyz").status == 200
        assert time.monotonic() - began < 2
    served = [line["path"] for line in stack.log if line["replica"]]
    assert set(served) == {"/readyz"}, "of the others no replica has heard anything"
    assert within(15, lambda: is_closed(slow[0])), "and it does not go on for ever"
    for connection in slow:
        connection.close()


# ── replicas that die, and come back ─────────────────────────────────────────────────────────────


@pytest.mark.faults("Q3")
def test_what_was_sent_to_a_replica_that_died_is_not_sent_again(start: Start, rows: Rows, tmp_path: Path) -> None:
    stack = start(**MANY, TEST_KILL_AT=["login.completed", str(tmp_path / "killed")])
    phone = Phone(register(stack).json["manualEntryKey"])
    lost = verify(stack, log_in(stack).json["tempToken"], phone.code())
    assert (lost.status, lost.json["code"]) == (502, "no_answer")
    assert ", " not in stack.logged(lost.headers["X-Request-Id"])["replica"]
    assert len(rows("SELECT id FROM mfa_events WHERE event = 'login.completed'")) == 1
    assert verify(stack, log_in(stack).json["tempToken"], phone.code()).status == 200, "the next code is as good"


@pytest.mark.faults("Q2")
def test_a_refresh_may_be_sent_again_and_is(start: Start, rows: Rows, tmp_path: Path) -> None:
    stack = start(**MANY, TEST_KILL_AT=["session.refreshed", str(tmp_path / "killed")])
    phone = Phone(register(stack).json["manualEntryKey"])
    tokens = verify(stack, log_in(stack).json["tempToken"], phone.code()).json
    answer = refresh(stack, tokens["refreshToken"])
    assert answer.status == 200
    assert stack.logged(answer.headers["X-Request-Id"])["replica"].count(", ") == 1, "by the other one"
    assert rows("SELECT generation, revoked_at FROM mfa_sessions") == [{"generation": 1, "revoked_at": None}]


@pytest.mark.faults("Q12")
def test_a_replica_that_was_killed_is_not_missed(start: Start) -> None:
    stack = start(**MANY)
    phone = Phone(register(stack).json["manualEntryKey"])
    tokens = verify(stack, log_in(stack).json["tempToken"], phone.code()).json
    for replica in stack.replicas:
        replica.kill()
        for _ in range(4):
            assert profile(stack, tokens["accessToken"]).status == 200
            answer = refresh(stack, tokens["refreshToken"])
            assert answer.status == 200
            tokens = answer.json
            assert log_in(stack).status == 200
        replica.start()
        await_use(stack, replica)


@pytest.mark.faults("Q12")
def test_a_rolling_restart_fails_nobody(start: Start) -> None:
    stack = start(**MANY)
    phone = Phone(register(stack).json["manualEntryKey"])
    first = verify(stack, log_in(stack).json["tempToken"], phone.code()).json
    second = verify(stack, log_in(stack).json["tempToken"], phone.code()).json
    over = threading.Event()
    answers: list[Reply] = []

    def again(act: Callable[[], Reply]) -> None:
        while not over.is_set():
            answers.append(act())

    def renew() -> None:
        token = second["refreshToken"]
        while not over.is_set():
            answers.append(refresh(stack, token))
            token = answers[-1].json.get("refreshToken", token) if answers[-1].status == 200 else token

    with ThreadPoolExecutor() as pool:
        loops = [pool.submit(again, lambda: profile(stack, first["accessToken"])) for _ in range(2)]
        # nginx gives no login to another replica: what one drops is lost.
        loops += [pool.submit(again, lambda: log_in(stack)) for _ in range(2)] + [pool.submit(renew)]
        try:
            for replica in stack.replicas:
                replica.stop()
                replica.start()
                await_use(stack, replica)
        finally:
            over.set()
    for loop in loops:
        loop.result()
    assert len(answers) > 50
    assert [(answer.status, answer.text) for answer in answers if answer.status != 200] == []


@pytest.mark.faults("Q12")
def test_with_a_socket_that_systemd_holds_a_restart_is_a_pause(settings: Settings, tmp_path: Path) -> None:
    with systemd(settings, tmp_path) as service:
        service.start()
        assert "READY=1" in service.said, "Type=notify: systemd knows when it is up"
        service.stop()
        with ThreadPoolExecutor() as pool:
            asked = [pool.submit(service.status_of, "/readyz") for _ in range(5)]
            time.sleep(1)
            assert not any(each.done() for each in asked), "they wait, none is refused"
            service.start()
            assert [each.result() for each in asked] == [200] * 5


# ── means ────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def database(_migrated_postgresql: str) -> str:
    """An empty PostgreSQL: several replicas want one."""
    empty(_migrated_postgresql)
    return _migrated_postgresql


@pytest.fixture
def settings(config: dict[str, Any], redis: str) -> Settings:
    """Of a service behind one proxy, with a Redis that has counted nothing yet."""
    with redis_client.Redis.from_url(redis) as client:
        client.flushall()
    return settings_of(config, redis)


@pytest.fixture
def start(settings: Settings) -> Iterator[Start]:
    with stacks(settings) as begin:
        yield begin


@pytest.fixture
def idle(tmp_path: Path) -> Iterator[Stack]:
    """nginx with nobody behind it."""
    with nginx(tmp_path, [Replica(tmp_path, {}), Replica(tmp_path, {})]) as stack:
        yield stack


class Held:
    """A service whose socket somebody else holds, and who is told how it is: what systemd is to ours."""

    def __init__(self, settings: Settings, listener: socket.socket, ear: socket.socket) -> None:
        self._listener, self._ear = listener, ear
        self._environment = environment_of(settings) | {"NOTIFY_SOCKET": ear.getsockname()}
        self._process: subprocess.Popen[bytes] | None = None
        self.said: list[str] = []

    def start(self) -> None:
        fd = self._listener.fileno()
        # The number of the process is known to itself alone, and the socket is number 3.
        line = f'exec 3<&{fd}; export LISTEN_FDS=1 LISTEN_PID=$$; exec "$0" -m gunicorn wsgi:app'
        command = ["bash", "-c", line, sys.executable]
        self._process = subprocess.Popen(command, env=self._environment, cwd=ROOT, pass_fds=[fd])
        self.said = self._ear.recv(1024).decode().splitlines()

    def stop(self) -> None:
        if self._process:
            self._process.terminate()
            self._process.wait(timeout=45)

    def status_of(self, path: str) -> int:
        connection = http.client.HTTPConnection("127.0.0.1", self._listener.getsockname()[1], timeout=60)
        try:
            connection.request("GET", path)
            return connection.getresponse().status
        finally:
            connection.close()


@contextlib.contextmanager
def systemd(settings: Settings, folder: Path) -> Iterator[Held]:
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ear:
        ear.settimeout(60)
        ear.bind(str(folder / "notify"))
        held = Held(settings, listener, ear)
        try:
            yield held
        finally:
            held.stop()


def is_closed(connection: ssl.SSLSocket) -> bool:
    try:
        connection.sendall(b" ")
    except OSError:
        return True
    return False
