"""`make demo`: the walk in a terminal, by itself and with a phone."""

import os
import pty
import re
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT, free_port
from tests.factories import totp

COMMAND = [sys.executable, "-W", "error", "tools/demo.py"]
PROMPT = "The code on your phone: "

pytestmark = pytest.mark.services


def test_it_walks_to_the_profile_by_itself(serve: Callable[..., str]) -> None:
    done = demo("--auto", "--url", serve(MFA_AUTH_RATE_LIMIT="5 per 15 minutes"))
    assert (done.returncode, done.stderr) == (0, "")
    assert re.findall(r"(?:GET|POST) (/\S+)", done.stdout) == [
        "/auth/register",
        "/auth/login",
        "/api/profile",
        "/auth/verify-mfa",
        "/api/profile",
    ]
    assert re.findall(r"^< (\d+)$", done.stdout, re.M) == ["200", "200", "401", "200", "200"]
    assert '"mfaEnabled": true' in done.stdout


def test_it_draws_a_qr_code_and_shortens_tokens(serve: Callable[..., str]) -> None:
    output = demo("--auto", "--url", serve()).stdout
    assert output.count("█") > 100
    assert len(key_in(output)) == 32
    assert max(map(len, output.split())) < 100


def test_a_wrong_code_is_asked_for_again(serve: Callable[..., str]) -> None:
    with terminal("--url", serve()) as demo_in:
        key = key_in(demo_in.read_until(PROMPT))
        demo_in.type(wrong_code(key))
        assert "tries left: 4" in demo_in.read_until(PROMPT)
        demo_in.type(code_for(key))
        assert '"mfaEnabled": true' in demo_in.read_until("Done: ")
        assert demo_in.exit_code() == 0


def test_five_wrong_codes_end_the_walk(serve: Callable[..., str]) -> None:
    with terminal("--url", serve()) as demo_in:
        for _ in range(5):
            demo_in.read_until(PROMPT)
            demo_in.type("wrong")
        demo_in.read_until("demo: no code was right")
        assert demo_in.exit_code() == 1


def test_without_a_service_it_says_so_in_one_line() -> None:
    address = f"http://127.0.0.1:{free_port()}"
    done = demo("--auto", "--url", address)
    assert done.returncode == 3
    assert done.stderr.strip() == f"demo: nothing answers at {address}: start the service with `make serve`"


def test_the_port_of_make_serve_is_its_own(serve: Callable[..., str]) -> None:
    port = serve().rpartition(":")[2]
    assert demo("--auto", PORT=port).returncode == 0


def test_a_used_up_limit_says_when_to_come_back(serve: Callable[..., str]) -> None:
    address = serve(MFA_AUTH_RATE_LIMIT="1 per 10 minutes")
    assert demo("--auto", "--url", address).returncode == 0
    done = demo("--auto", "--url", address)
    assert done.returncode == 4
    assert re.search(r"^demo: too many attempts from here: try again in (\d+ seconds|\d+ minutes)$", done.stderr, re.M)


def test_a_refusal_is_one_line(serve: Callable[..., str]) -> None:
    done = demo("--auto", "--url", serve(MFA_REGISTRATION_OPEN=False))
    assert done.returncode == 1
    assert done.stderr.strip() == "demo: /auth/register answered 403: Registration is closed"


@pytest.mark.parametrize("address", ["127.0.0.1:8000", "file:///etc/passwd"])
def test_only_http_addresses_are_taken(address: str) -> None:
    assert demo("--url", address).returncode == 2


def test_leaving_in_the_middle_is_no_crash(serve: Callable[..., str]) -> None:
    done = demo("--url", serve())
    assert done.returncode == 130
    assert done.stderr.strip() == "demo: interrupted"


@pytest.fixture
def database(_migrated_sqlite: Path, tmp_path: Path) -> str:
    """SQLite alone: whoever sits at a terminal does not see the database."""
    return f"sqlite:///{shutil.copy(_migrated_sqlite, tmp_path / 'mfa.db')}"


# ── terminals and phones ─────────────────────────────────────────────────────────────────────────


def demo(*arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [*COMMAND, *arguments],
        cwd=ROOT,
        env=os.environ | environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


class Terminal:
    """A process in a pseudo-terminal, as a person at a keyboard has it."""

    def __init__(self, process: "subprocess.Popen[Any]", terminal_fd: int) -> None:
        self._process = process
        self._terminal_fd = terminal_fd

    def read_until(self, expected: str) -> str:
        """All output up to and with `expected`."""
        raw = b""
        while expected.encode() not in raw:
            more = self._read()
            if not more:
                pytest.fail(f"ended or stood still before {expected!r}:\n{raw.decode(errors='replace')}")
            raw += more
        return raw.decode(errors="replace")

    def _read(self) -> bytes:
        has_more, _, _ = select.select([self._terminal_fd], [], [], 30)
        try:
            return os.read(self._terminal_fd, 4096) if has_more else b""
        except OSError:  # what Linux says when the process has gone
            return b""

    def type(self, line: str) -> None:
        os.write(self._terminal_fd, f"{line}\n".encode())

    def exit_code(self) -> int:
        return self._process.wait(timeout=30)


@contextmanager
def terminal(*arguments: str) -> Iterator[Terminal]:
    """Run the demo in a terminal of its own for the length of the block."""
    ours, theirs = pty.openpty()
    with subprocess.Popen([*COMMAND, *arguments], cwd=ROOT, stdin=theirs, stdout=theirs, stderr=theirs) as process:
        os.close(theirs)
        try:
            yield Terminal(process, ours)
        finally:
            process.kill()
            os.close(ours)


def key_in(output: str) -> str:
    found = re.search(r"type the key: ([A-Z2-7]+)", output)
    assert found, output
    return found[1]


def code_for(key: str, steps: int = 0) -> str:
    return totp(key, int(time.time()) // 30 + steps)


def wrong_code(key: str) -> str:
    """Six digits that no step near now has."""
    right = {code_for(key, steps) for steps in range(-4, 5)}
    return next(code for code in map("{:06}".format, range(10)) if code not in right)
