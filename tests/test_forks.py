"""Worker processes: made after the app was loaded, and killed in the middle of a hash."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.bursts import insistent, post
from tests.conftest import ROOT, free_port, running
from tests.factories import PASSWORD, totp
from tests.services import Rows

pytestmark = pytest.mark.services
ON_SQLITE = pytest.mark.parametrize("database", ["sqlite"], indirect=True)
Start = Callable[..., tuple[str, "subprocess.Popen[bytes]"]]


@pytest.mark.faults("Q14")
def test_an_app_that_was_loaded_before_the_fork_shares_nothing(start: Start, rows: Rows, redis: str) -> None:
    address, master = start("--preload", WEB_CONCURRENCY="4", MFA_REDIS_URL=redis, MFA_SEAL_SECONDS=1)
    deadline = time.monotonic() + 20
    while len(workers_of(master)) < 4:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    bodies = [{"username": f"u{number}", "password": PASSWORD, "email": "u@example.com"} for number in range(40)]
    made = insistent(address, "/auth/register", bodies)
    secrets = [answer.json["manualEntryKey"] for answer in made]
    assert len(set(secrets)) == 40
    pending = [answer.json["tempToken"] for answer in insistent(address, "/auth/login", bodies)]
    assert len(set(pending)) == 40
    step = int(time.time()) // 30
    codes = [
        {"tempToken": token, "totpCode": totp(secret, step)} for token, secret in zip(pending, secrets, strict=True)
    ]
    assert len(insistent(address, "/auth/verify-mfa", codes)) == 40
    # The timer that seals runs in the workers, not in the process that forked them.
    assert not [thread for thread in threads_of(master.pid) if thread == "sealer"]


@pytest.mark.faults("Q13")
def test_a_worker_that_is_killed_in_the_middle_of_a_hash_leaves_no_lock(start: Start, rows: Rows) -> None:
    address, master = start(MFA_BCRYPT_COST=14)
    who = {"username": "ada", "password": PASSWORD}
    assert post(address, "/auth/register", who | {"email": "ada@example.com"}).status == 200
    outcome: list[BaseException] = []
    asking = threading.Thread(target=lambda: outcome.append(failure_of(lambda: post(address, "/auth/login", who))))
    asking.start()
    time.sleep(0.3)
    [worker] = workers_of(master)
    os.kill(worker, signal.SIGKILL)
    asking.join()
    assert isinstance(outcome[0], ConnectionError)
    assert rows("SELECT * FROM mfa_locks") == []
    assert rows("SELECT * FROM mfa_challenges") == []
    assert post(address, "/auth/login", who).status == 200


@ON_SQLITE
def test_a_worker_that_is_stopped_tells_what_still_waits(start: Start) -> None:
    with slow_hook() as (hook, heard):
        address, master = start(TEST_HOOK=hook)
        who = {"username": "ada", "password": PASSWORD}
        secret = post(address, "/auth/register", who | {"email": "ada@example.com"}).json["manualEntryKey"]
        pending = post(address, "/auth/login", who).json["tempToken"]
        code = totp(secret, int(time.time()) // 30)
        assert post(address, "/auth/verify-mfa", {"tempToken": pending, "totpCode": code}).status == 200
        master.terminate()
        master.wait(30)
    assert heard == ["factor.confirmed", "recovery_codes.issued", "login.completed"]


@ON_SQLITE
def test_who_wakes_first_leaves_connections_to_the_others(start: Start, redis: str) -> None:
    address, master = start(WEB_CONCURRENCY="2", MFA_REDIS_URL=redis)
    await_both(address, master)
    sleeper = workers_of(master)[0]
    os.kill(sleeper, signal.SIGSTOP)

    def wake() -> None:
        time.sleep(0.1)  # enough to take all of them
        os.kill(sleeper, signal.SIGCONT)

    shares = shares_of(address, master, connections=300, meanwhile=wake)
    assert min(shares) >= 20, shares


@ON_SQLITE
def test_who_has_left_one_to_the_others_listens_again_at_once(start: Start, redis: str) -> None:
    address, master = start(WEB_CONCURRENCY="2", MFA_REDIS_URL=redis)
    await_both(address, master)
    os.kill(workers_of(master)[0], signal.SIGSTOP)
    took = []
    for _ in range(1000):
        began = time.monotonic()
        urllib.request.urlopen(f"{address}/healthz", timeout=20).close()
        took.append(time.monotonic() - began)
    os.kill(workers_of(master)[0], signal.SIGCONT)
    assert max(took) < 0.9


# ── means ────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def start(config: dict[str, Any]) -> Iterator[Start]:
    """Run the service under gunicorn with options of one's own; gives its address and its first process."""
    with ExitStack() as stack:

        def run(*options: str, WEB_CONCURRENCY: str = "1", **settings: Any) -> tuple[str, "subprocess.Popen[bytes]"]:  # noqa: N803
            port = free_port()
            address = f"http://127.0.0.1:{port}"
            chosen = config | {"MFA_PUBLIC_URL": address, "MFA_HASHING_QUEUE": 50} | settings
            environment = {name: value for name, value in os.environ.items() if not name.startswith("MFA_")}
            environment |= {"PORT": str(port), "WEB_CONCURRENCY": WEB_CONCURRENCY, "TEST_CONFIG": json.dumps(chosen)}
            environment |= {"MFA_REDIS_URL": chosen["MFA_REDIS_URL"]} if "MFA_REDIS_URL" in chosen else {}
            command = [sys.executable, "-m", "gunicorn", "tests.served:app", "--log-level", "warning", *options]
            ready = lambda: urllib.request.urlopen(f"{address}/healthz", timeout=2).close()  # noqa: E731
            return address, stack.enter_context(running(command, ready=ready, env=environment, cwd=ROOT))

        yield run


@contextmanager
def slow_hook() -> Iterator[tuple[str, list[str]]]:
    """Where notices are posted to, and takes half a second for each; its address, and the events it heard of."""
    heard: list[str] = []

    class Hook(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            time.sleep(0.5)
            heard.append(json.loads(self.rfile.read(int(self.headers["Content-Length"])))["event"])
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Hook) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/", heard
        server.shutdown()


def workers_of(master: "subprocess.Popen[bytes]") -> list[int]:
    return [int(pid) for pid in Path(f"/proc/{master.pid}/task/{master.pid}/children").read_text().split()]


def await_both(address: str, master: "subprocess.Popen[bytes]") -> None:
    """Until each worker has taken a connection: until then one of them may still be loading the app."""
    deadline = time.monotonic() + 30
    while len(shares := shares_of(address, master, connections=8)) < 2 or not min(shares):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def shares_of(
    address: str, master: "subprocess.Popen[bytes]", connections: int, meanwhile: Callable[[], object] = bool
) -> list[int]:
    """How many of so many connections, opened at once and kept, each worker has taken."""
    url = urlsplit(address)
    with ExitStack() as stack:
        opened = [stack.enter_context(socket.socket()) for _ in range(connections)]
        for connection in opened:
            connection.setblocking(False)
            connection.connect_ex((url.hostname, url.port))
        meanwhile()
        for connection in opened:
            connection.settimeout(20)
            connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        for connection in opened:
            assert connection.recv(65536).startswith(b"HTTP/1.1 200 ")
        theirs = server_ends(url.port, {connection.getsockname()[1] for connection in opened})
        return [len(theirs & sockets_of(pid)) for pid in workers_of(master)]


def server_ends(port: int | None, client_ports: set[int]) -> set[str]:
    """The server's ends of connections, as the kernel numbers them (proc(5), /proc/net/tcp)."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    ends = {(f"{port:04X}", f"{client_port:04X}") for client_port in client_ports}
    return {f"socket:[{row[9]}]" for row in rows if (row[1][-4:], row[2][-4:]) in ends}


def sockets_of(pid: int) -> set[str]:
    found = set()
    for path in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # closed meanwhile
            found.add(os.readlink(path))
    return found


def threads_of(pid: int) -> list[str]:
    return [(task / "comm").read_text().strip() for task in Path(f"/proc/{pid}/task").iterdir()]


def failure_of(act: Callable[[], object]) -> BaseException:
    try:
        return AssertionError(f"answered {act()}")
    except ConnectionError as error:
        return error
