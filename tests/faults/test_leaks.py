"""Ten thousand requests of every kind leave a worker as large as it was, with as many files open."""

import http.client
import itertools
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.factories import PASSWORD
from tests.faults import Ada, ensure_discreet, ensure_recovered, sign_in, workers_of
from tests.stack import MANY, NAME, Stack, Start

pytestmark = pytest.mark.services
REQUESTS, THREADS = 10_000, 4
#: Until then memory may grow: caches fill up, threads start, connections are opened.
WARM = 4_000
#: Of pages that the allocator has not given back, in KiB.
SLACK = 8 * 1024


@pytest.mark.faults("Q17")
def test_ten_thousand_requests_leave_no_worker_larger_than_before(start: Start) -> None:
    stack = start(**MANY)
    ada, workers = sign_in(stack), workers_of(stack)
    ask(stack, ada, WARM)
    before = [(rss_of(pid), files_of(pid), threads_of(pid)) for pid in workers]
    ask(stack, ada, REQUESTS - WARM)
    for pid, (rss, files, threads) in zip(workers, before, strict=True):
        assert rss_of(pid) - rss < SLACK
        assert files_of(pid) <= files + 4, "connections come and go"
        assert threads_of(pid) <= threads + THREADS
    ensure_recovered(stack, workers)
    ensure_discreet(stack, ada.secrets)


def ask(stack: Stack, ada: Ada, count: int) -> None:
    """So many requests over kept connections, a mixture of what is fine, wrong, unknown and malformed."""
    with ThreadPoolExecutor(THREADS) as pool:
        for future in [pool.submit(ask_alone, stack, ada, count // THREADS) for _ in range(THREADS)]:
            future.result()


def ask_alone(stack: Stack, ada: Ada, count: int) -> None:
    connection = http.client.HTTPConnection(NAME, timeout=60)
    connection.sock = stack.connect()
    for number, (method, path, body, status) in enumerate(itertools.islice(itertools.cycle(mixture(ada)), count)):
        if number % 900 == 899:  # nginx ends a connection after a thousand
            connection.close()
            connection.sock = stack.connect()
        connection.request(method, path, body, headers_for(ada))
        answer = connection.getresponse()
        answer.read()
        assert answer.status == status, (method, path)
    connection.close()


def headers_for(ada: Ada) -> dict[str, str]:
    return {"Content-Type": "application/json", "Authorization": f"Bearer {ada.access}"}


def mixture(ada: Ada) -> list[tuple[str, str, bytes | None, int]]:
    """Forty requests; one of them hashes."""
    cheap: list[tuple[str, str, bytes | None, int]] = [
        ("GET", "/api/profile", None, 200),
        ("GET", "/api/sessions", None, 200),
        ("GET", "/healthz", None, 200),
        ("GET", "/readyz", None, 200),
        ("GET", "/.well-known/jwks.json", None, 200),
        ("POST", "/auth/login", b"{", 400),
        ("POST", "/auth/verify-mfa", b'{"tempToken": "x", "totpCode": "000000"}', 401),
        ("POST", "/auth/refresh", b'{"refreshToken": "x"}', 401),
        ("GET", f"/nowhere/{os.getpid()}", None, 404),
        ("PUT", "/auth/login", b"{}", 405),
        ("POST", "/auth/login", b" " * 65_000, 400),
        ("GET", "/api/profile?x=" + "y" * 500, None, 200),
        ("GET", "/api/devices", None, 200),
    ]
    wrong = b'{"username": "nobody", "password": "%s-not"}' % PASSWORD.encode()
    return [*cheap * 3, ("POST", "/auth/login", wrong, 401)]


def rss_of(pid: int) -> int:
    [line] = [line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmRSS")]
    return int(line.split()[1])


def files_of(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def threads_of(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/task"))
