"""Who is told of what happens does not listen: the log's reader, and the hook for notices."""

import fcntl
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from tests.conftest import free_port
from tests.faults import ensure_discreet, ensure_recovered, figure, sign_in, warnings_in, workers_of
from tests.services import Rows
from tests.stack import CREDENTIALS, MANY, Start, log_in, profile, verify, within

pytestmark = pytest.mark.services


# ── the log ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.faults("Q21")
def test_when_nobody_reads_the_log_people_still_sign_in_and_what_was_lost_is_counted(
    start: Start, rows: Rows, pipe: "Pipe"
) -> None:
    stack = start(**MANY, sink=pipe.into)
    ada, workers = sign_in(stack), workers_of(stack)
    for _ in range(60):
        began = time.monotonic()
        assert stack.call("POST", "/auth/login", CREDENTIALS).status == 200
        assert profile(stack, ada.access).status == 200
        assert time.monotonic() - began < 5, "the first that finds it full waits a second"
    assert pipe.is_full()
    assert len(rows("SELECT id FROM mfa_events WHERE event = 'login.password_accepted'")) == 61, "none of these is lost"

    pipe.read_on()
    for _ in stack.replicas:
        log_in(stack)
    assert within(5, lambda: any("lines of this log are lost" in entry["message"] for entry in pipe.entries()))
    log_in(stack)
    assert within(5, lambda: pipe.entries()[-1].get("event") == "login.password_accepted")
    assert figure(stack, "mfa_log_lines_lost") > 0
    ensure_recovered(stack, workers)


# ── the hook ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.faults("Q18", "Q22")
def test_a_hook_that_is_down_is_an_error_in_the_log_and_nothing_else(start: Start) -> None:
    stack = start(**MANY, TEST_HOOK=f"http://127.0.0.1:{free_port()}/")
    ada = sign_in(stack)  # three notices: the factor, the codes, the new client
    assert within(10, lambda: len(warnings_in(stack, "a listener of notices failed")) == 3)
    assert verify(stack, log_in(stack).json["tempToken"], ada.phone.code()).status == 200
    assert [
        secret for replica in stack.replicas for secret in ada.secrets if secret in replica.log_file.read_text()
    ] == []


@pytest.mark.faults("Q18")
def test_a_hook_that_never_answers_delays_nobody_and_does_not_keep_a_replica_from_stopping(start: Start) -> None:
    with deaf_server() as (address, has_been_called):
        stack = start(**MANY, TEST_HOOK=address)
        began = time.monotonic()
        ada = sign_in(stack)
        for _ in range(2):
            assert verify(stack, log_in(stack).json["tempToken"], ada.phone.code()).status == 200
        assert time.monotonic() - began < 10
        assert has_been_called()
        for replica in stack.replicas:
            replica.stop()
        assert time.monotonic() - began < 30
        ensure_discreet(stack, ada.secrets)


# ── means ────────────────────────────────────────────────────────────────────────────────────────


class Pipe:
    """A log that nobody reads at first; it holds two pages."""

    def __init__(self) -> None:
        self._out, self.into = os.pipe()
        fcntl.fcntl(self.into, fcntl.F_SETPIPE_SZ, 8192)
        self._read = b""

    def is_full(self) -> bool:
        """Whether a writer that does not wait would be sent away."""
        mine = os.open(f"/proc/self/fd/{self.into}", os.O_WRONLY | os.O_NONBLOCK)
        try:
            os.write(mine, b" " * 4096)
        except BlockingIOError:
            return True
        finally:
            os.close(mine)
        return False

    def read_on(self) -> None:
        threading.Thread(target=self._read_all, daemon=True).start()

    def _read_all(self) -> None:
        while some := os.read(self._out, 65536):
            self._read += some

    def entries(self) -> list[dict[str, str]]:
        """All of it: every line is whole."""
        return [json.loads(line) for line in self._read.decode().splitlines()]


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    made = Pipe()
    yield made
    os.close(made.into)


@contextmanager
def deaf_server() -> Iterator[tuple[str, Callable[[], bool]]]:
    """Connections are made, and that is all."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(10)

        def has_been_called() -> bool:
            connection, _ = listener.accept()
            held.append(connection)
            return True

        held: list[socket.socket] = []
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/", has_been_called
        for connection in held:
            connection.close()
