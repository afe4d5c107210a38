"""The service under gunicorn as it is shipped: what the server itself could spoil."""

import contextlib
import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from flask import Flask

from mfa_service.crypto.keyring import new_keyring_text
from tests.conftest import ROOT, Clock, free_port
from tests.factories import log_in, register

pytestmark = pytest.mark.services
HEALTH = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
ON_SQLITE = pytest.mark.parametrize("database", ["sqlite"], indirect=True)


@ON_SQLITE
@pytest.mark.parametrize("chunk", [b"ZZ\r\n{}\r\n0\r\n\r\n", b"-2\r\n{}\r\n0\r\n\r\n", b"2\r\n{}XX0\r\n\r\n"])
def test_a_body_in_broken_chunks_is_one_more_bad_request(serve: Callable[..., str], chunk: bytes) -> None:
    head = b"Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n"
    status, body = _raw(serve(), b"POST /auth/login HTTP/1.1\r\nHost: localhost\r\n" + head + b"\r\n" + chunk)
    assert (status, json.loads(body)["code"]) == (400, "invalid_request")


@ON_SQLITE
@pytest.mark.parametrize("header", [b"SCRIPT_NAME: /x", b"Script-Name: /x"])
def test_no_client_names_the_path_that_it_is_under(serve: Callable[..., str], header: bytes) -> None:
    address = serve()
    for path, status in ((b"/x/healthz", 404), (b"/healthz", 200)):
        request = b"GET " + path + b" HTTP/1.1\r\nHost: localhost\r\n" + header + b"\r\n\r\n"
        assert _raw(address, request)[0] == status


@ON_SQLITE
def test_conflicting_words_about_the_scheme_change_nothing(serve: Callable[..., str]) -> None:
    headers = b"X-Forwarded-Proto: https\r\nX-Forwarded-Ssl: off\r\n"
    assert _raw(serve(), b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n" + headers + b"\r\n")[0] == 200


def test_what_a_client_sent_is_not_in_the_complaint_about_it(shipped: "Shipped") -> None:
    _raw(shipped.address, b'POST /auth/login HTTP/1.1\r\nHost: localhost\r\n\r\n{"password":"REALPASSWORD-77"}\r\n\r\n')
    _raw(shipped.address, b"GET /api/profile HTTP/1.1\r\nHost: localhost\r\nAuthorization Bearer SECRETTOKEN\r\n\r\n")
    lines = shipped.stop().splitlines()
    assert [line for line in lines if "REALPASSWORD" in line or "SECRETTOKEN" in line] == []
    assert any("Invalid request from ip=127.0.0.1" in json.loads(line)["message"] for line in lines)


@pytest.mark.faults("R8")
def test_who_does_not_hang_up_after_the_last_answer_stops_nobody(shipped: "Shipped") -> None:
    request = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    url = urlsplit(shipped.address)
    lingering = [socket.create_connection((url.hostname, url.port), timeout=20) for _ in range(5)]
    for connection in lingering:
        connection.sendall(request)
        assert b"".join(iter(lambda: connection.recv(65536), b"")).startswith(b"HTTP/1.1 200 ")  # noqa: B023
    began = time.monotonic()
    assert _raw(shipped.address, request)[0] == 200
    assert time.monotonic() - began < 1
    for connection in lingering:
        connection.close()


@pytest.mark.faults("R8")
def test_who_does_not_end_a_request_is_not_heard_out_for_ever(shipped: "Shipped") -> None:
    # Without a proxy: more of them than there are threads, in the middle of the header or of the body.
    begun = b"POST /auth/refresh HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99\r\n"
    begun += b"Content-Type: application/json\r\n"
    url = urlsplit(shipped.address)
    with contextlib.ExitStack() as open_until:
        late = [
            open_until.enter_context(socket.create_connection((url.hostname, url.port), timeout=30)) for _ in range(60)
        ]
        for connection in late[::2]:
            connection.sendall(begun)
        for connection in late[1::2]:
            connection.sendall(begun + b"\r\n{")
        answers = [b"".join(iter(lambda: connection.recv(65536), b"")) for connection in late]  # noqa: B023
    assert {answer[:13] for answer in answers} == {b"", b"HTTP/1.1 400 "}, "and each of them is closed"
    assert _raw(shipped.address, HEALTH)[0] == 200


@pytest.mark.faults("Q12")
def test_while_it_stops_nobody_who_gets_a_connection_goes_without_an_answer(shipped: "Shipped") -> None:
    url, outcomes = urlsplit(shipped.address), []
    with socket.create_connection((url.hostname, url.port), timeout=20) as kept:
        kept.sendall(HEALTH)  # it is kept open, and waited for: a stop takes a while
        assert kept.recv(65536).startswith(b"HTTP/1.1 200 ")
        outcomes.append(_raw(shipped.address, HEALTH)[0])
        stopping = threading.Thread(target=shipped.stop)
        stopping.start()
        while stopping.is_alive():
            try:
                outcomes.append(_raw(shipped.address, HEALTH)[0])
            except ConnectionRefusedError:
                outcomes.append(0)
                time.sleep(0.01)
        stopping.join()
    assert set(outcomes) == {200, 0}
    assert outcomes == sorted(outcomes, reverse=True), "a proxy that is refused asks another replica"


@pytest.mark.faults("Q3")
def test_stopped_while_it_replaces_a_worker_it_stops_at_once(tmp_path: Path) -> None:
    no_handlers_yet = """
given = post_fork
def post_fork(server, worker):
    given(server, worker)
    time.sleep(1)
"""
    with Shipped(tmp_path / "instance", *_busy(tmp_path, no_handlers_yet)) as shipped:
        (before,) = shipped.workers()
        os.kill(before, signal.SIGKILL)
        while shipped.workers() in ([], [before]):
            time.sleep(0.01)
        began = time.monotonic()
        shipped.stop()
        assert time.monotonic() - began < 15


@pytest.mark.faults("Q12")
def test_a_connection_that_is_put_back_just_as_the_end_begins_does_not_delay_it(tmp_path: Path) -> None:
    the_end_begins_meanwhile = """
class Connections(collections.deque):
    def append(self, connection):
        time.sleep(1)
        super().append(connection)
class Busy(Worker):
    def init_process(self):
        self.keepalived_conns = Connections()
        super().init_process()
worker_class = Busy
"""
    with Shipped(tmp_path / "instance", *_busy(tmp_path, the_end_begins_meanwhile)) as shipped:
        url = urlsplit(shipped.address)
        with socket.create_connection((url.hostname, url.port), timeout=20) as kept:
            kept.sendall(HEALTH)
            assert kept.recv(65536).startswith(b"HTTP/1.1 200 ")
            began = time.monotonic()
            shipped.stop()
        assert 0.5 < time.monotonic() - began < 15


@pytest.mark.faults("Q12")
def test_a_connection_that_is_put_back_after_the_end_has_begun_is_no_accident(tmp_path: Path) -> None:
    answered_late_and_counted_slowly = """
class Connections(collections.deque):
    def __iter__(self):
        for connection in super().__iter__():
            time.sleep(2)
            yield connection
class Busy(Worker):
    def init_process(self):
        self.keepalived_conns = Connections()
        super().init_process()
    def answered(self, conn, answer):
        time.sleep(1)
        super().answered(conn, answer)
worker_class = Busy
"""
    with Shipped(tmp_path / "instance", *_busy(tmp_path, answered_late_and_counted_slowly)) as shipped:
        url = urlsplit(shipped.address)
        with contextlib.ExitStack() as open_until:
            for pause in (1.5, 0):  # one that is counted, then one that comes back while it is
                kept = open_until.enter_context(socket.create_connection((url.hostname, url.port), timeout=20))
                kept.sendall(HEALTH)
                assert kept.recv(65536).startswith(b"HTTP/1.1 200 ")
                time.sleep(pause)
            said = shipped.stop()
    assert "Exception in worker process" not in said


def test_requests_that_come_at_once_on_one_connection_are_all_answered(tmp_path: Path) -> None:
    answered_before_anybody_asks = """
class Pool(futures.ThreadPoolExecutor):
    def submit(self, *work):
        answer = super().submit(*work)
        futures.wait([answer])
        return answer
class Busy(Worker):
    def get_thread_pool(self):
        return Pool(self.cfg.threads)
worker_class = Busy
"""
    with Shipped(tmp_path / "instance", *_busy(tmp_path, answered_before_anybody_asks)) as shipped:
        url, times = urlsplit(shipped.address), 20
        with socket.create_connection((url.hostname, url.port), timeout=20) as connection:
            connection.sendall(HEALTH * times)
            received = b""
            while received.count(b'{"status":"ok"}') < times:
                received += connection.recv(65536) or pytest.fail("hung up")
            connection.sendall(b"GET /elsewhere HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert b"HTTP/1.1 404 " in connection.recv(65536)


def test_its_workers_serve_without_the_rest_of_it_as_the_floors_of_the_bench_do(tmp_path: Path) -> None:
    with Shipped(tmp_path / "instance", "-c", "bench/floor_workers.py") as floor:
        assert _raw(floor.address, HEALTH)[0] == 200


def test_all_that_is_wrong_is_said_once_and_no_worker_starts(tmp_path: Path) -> None:
    settings = {"MFA_INSTANCE": str(tmp_path), "MFA_TOTP_WINDOW": "9", "WEB_CONCURRENCY": "4", "PORT": "99999"}
    answer = _gunicorn(settings)
    assert answer.returncode == 4
    assert answer.stderr.count("MFA_TOTP_WINDOW must be between 0 and 2") == 1
    for said in (
        "PORT must be a whole number",
        "4 worker processes need MFA_REDIS_URL",
        "no keyring at",
        "no signing key",
    ):
        assert said in answer.stderr
    assert "Booting worker" not in answer.stderr


def test_a_folder_for_figures_that_is_none_is_said_before_a_worker_starts(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    settings = {"MFA_INSTANCE": str(tmp_path), "MFA_METRICS": "127.0.0.1", "PORT": str(free_port())}
    answer = _gunicorn(settings | {"PROMETHEUS_MULTIPROC_DIR": str(tmp_path / "file")})
    assert answer.returncode == 4
    assert f"PROMETHEUS_MULTIPROC_DIR is no folder that can be written to: {tmp_path / 'file'}" in answer.stderr
    assert "Traceback" not in answer.stderr


@ON_SQLITE
def test_the_wrong_keyring_is_noticed_even_if_the_database_was_locked_at_start(
    make_app: Callable[..., Flask], tmp_path: Path
) -> None:
    make_app()  # leaves the canary
    (tmp_path / "other.json").write_text(new_keyring_text())
    # Moved away, so that nothing can be read while the app starts; a lock held for longer than the timeout is the same.
    database = tmp_path / "mfa.db"
    database.rename(tmp_path / "away.db")
    client = make_app(MFA_KEYRING=str(tmp_path / "other.json")).test_client()
    for path in tmp_path.glob("mfa.db*"):
        path.unlink()
    (tmp_path / "away.db").rename(database)
    account = {"username": "ada", "password": "analytical-engine-1843", "email": "ada@example.com"}
    answer = client.post("/auth/register", json=account)
    assert (answer.status_code, answer.json["code"]) == (503, "unavailable")
    assert client.get("/readyz").status_code == 503
    with sqlite3.connect(database) as connection:
        assert connection.execute("SELECT count(*) FROM mfa_users").fetchone() == (0,)
    connection.close()


def test_a_relative_sqlite_address_is_one_file_for_the_commands_and_the_service(tmp_path: Path) -> None:
    environment = {
        "PATH": os.environ["PATH"],
        "MFA_INSTANCE": str(tmp_path / "keys"),
        "MFA_DATABASE_URL": "sqlite:///rel.db",
    }
    for command in ("init", "upgrade"):
        line = [sys.executable, "-m", "flask", "mfa", command]
        subprocess.run(line, env=environment, cwd=tmp_path, check=True, capture_output=True)
    script = "from mfa_service import create_app; print(create_app().test_client().get('/readyz').status_code)"
    ready = subprocess.run(
        [sys.executable, "-c", script], env=environment, cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert ready.stdout == "200\n"
    assert sorted(path.name for path in tmp_path.rglob("*.db")) == ["rel.db"]


def test_a_secret_of_enrol_is_wiped_after_ten_minutes_and_that_of_registration_is_not(
    make_app: Callable[..., Flask], clock: Clock, rows: Callable[..., Any]
) -> None:
    client = make_app().test_client()
    first, second = register(client), register(client)
    key = client.post("/auth/enrol", json={"tempToken": log_in(client, second)}).json["manualEntryKey"]
    clock.advance(601)
    proofs = [(first, first), (second, type(second)(second.username, second.password, second.email, key))]
    answers = [
        client.post("/auth/verify-mfa", json={"tempToken": log_in(client, person), "totpCode": phone.code(clock())})
        for person, phone in proofs
    ]
    assert [answer.status_code for answer in answers] == [200, 401]
    assert len(rows("SELECT id FROM mfa_secrets")) == 1


# ── means ────────────────────────────────────────────────────────────────────────────────────────


def _busy(folder: Path, what: str) -> tuple[str, str]:
    """Options for the shipped configuration on a machine that is busy just then: `what` makes the moment long."""
    path = folder / "busy.conf.py"
    shipped = f"globals().update(runpy.run_path({str(ROOT / 'gunicorn.conf.py')!r}))\n"
    path.write_text(f"import collections, runpy, time\nfrom concurrent import futures\n{shipped}{what}")
    return "-c", str(path)


class Shipped:
    """wsgi.py under gunicorn.conf.py, with keys of its own."""

    def __init__(self, folder: Path, *options: str) -> None:
        port = free_port()
        self.address = f"http://127.0.0.1:{port}"
        environment = {"PATH": os.environ["PATH"], "MFA_INSTANCE": str(folder), "PORT": str(port)}
        for command in ("init", "upgrade"):
            line = [sys.executable, "-m", "flask", "mfa", command]
            subprocess.run(line, env=environment, check=True, capture_output=True)
        line = [sys.executable, "-m", "gunicorn", *options, "wsgi:app"]
        self._process = subprocess.Popen(
            line, env=environment, cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        assert self._process.stderr is not None
        self._said = [next(self._process.stderr) for _ in range(4)]  # up to "Booting worker"

    def __enter__(self) -> "Shipped":
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)  # a worker that hangs would outlive it
        self._process.communicate()

    def workers(self) -> list[int]:
        """The ids of its worker processes (proc(5))."""
        pid = self._process.pid
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]

    def stop(self) -> str:
        """End it as an operator does; all that it has said."""
        self._process.terminate()
        return "".join(self._said) + self._process.communicate(timeout=60)[1]


@pytest.fixture
def shipped(tmp_path: Path) -> Iterator[Shipped]:
    with Shipped(tmp_path / "instance") as made:
        yield made


def _gunicorn(settings: dict[str, str]) -> "subprocess.CompletedProcess[str]":
    environment = {"PATH": os.environ["PATH"]} | settings
    line = [sys.executable, "-m", "gunicorn", "wsgi:app"]
    return subprocess.run(line, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)


def _raw(address: str, request: bytes) -> tuple[int, bytes]:
    """Send bytes as they are; the status and the body of the first answer."""
    url = urlsplit(address)
    with (
        socket.create_connection((url.hostname, url.port), timeout=20) as connection,
        connection.makefile("rb") as stream,
    ):
        connection.sendall(request)
        status = int(stream.readline().split()[1])
        headers = dict(line.decode().strip().lower().split(": ", 1) for line in iter(stream.readline, b"\r\n"))
        return status, stream.read(int(headers.get("content-length", 0)))
