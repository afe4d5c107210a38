"""What every fault ends in: the right status, one line in the log, a figure, no secret, and nobody let in."""

import contextlib
import http.client
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.browsers import Phone
from tests.factories import PASSWORD
from tests.stack import Replica, Reply, Stack, log_in, register, verify, within

#: What lets somebody in, or further.
_GIVEN = {"tempToken", "accessToken", "refreshToken", "deviceToken", "recoveryCodes", "manualEntryKey", "qrCode"}
OUT_OF_ORDER = "the database is out of order"
FALLS_BACK = "Rate limit storage unreachable"


@dataclass
class Ada:
    """Somebody who has signed in."""

    phone: Phone
    access: str
    refresh: str

    @property
    def secrets(self) -> list[str]:
        return [PASSWORD, self.phone.secret, self.access, self.refresh]


def sign_in(stack: Stack) -> Ada:
    phone = Phone(register(stack).json["manualEntryKey"])
    verified = verify(stack, log_in(stack).json["tempToken"], phone.code())
    assert verified.status == 200, verified
    return Ada(phone, verified.json["accessToken"], verified.json["refreshToken"])


@contextlib.contextmanager
def contained(
    stack: Stack, status: int, code: str, line: str, *, secrets: Sequence[str] = (), each: bool = True
) -> Iterator[list[Reply]]:
    """Within the block a fault strikes; what is put into the list has to be refused as it should be.

    `line` is in the log once: for each request, or (`each=False`) for each process that has noticed.
    """
    refused, lines = figure(stack, f'mfa_refusals_total{{code="{code}"}}'), len(warnings_in(stack, line))
    answers: list[Reply] = []
    yield answers
    assert answers
    for answer in answers:
        ensure_refused(answer, status, code)
    if each:
        said = [warnings_of(stack, answer) for answer in answers]
        assert [messages for messages in said if len(messages) != 1 or line not in messages[0]] == []
    else:
        said = len(warnings_in(stack, line)) - lines
        assert 1 <= said <= len(stack.replicas), f"{line!r} {said} times"
    assert figure(stack, f'mfa_refusals_total{{code="{code}"}}') >= refused + len(answers)
    ensure_discreet(stack, secrets)


def ensure_refused(answer: Reply, status: int, code: str) -> None:
    """Right status, nothing that lets in, and when to come again."""
    assert (answer.status, answer.json["code"]) == (status, code), answer
    assert not answer.json.keys() & _GIVEN
    if status == 503:
        assert 1 <= int(answer.headers["Retry-After"]) <= 5


def ensure_discreet(stack: Stack, secrets: Sequence[str]) -> None:
    """All that was logged is structured, without tracebacks and without secrets."""
    for replica in stack.replicas:
        written = replica.log_file.read_text()
        assert [text for text in written.splitlines() if not text.startswith("{")] == []
        assert [entry for entry in replica.log if "exc_info" in entry or "Traceback" in str(entry)] == []
        assert [secret for secret in secrets if secret in written] == []


def warnings_in(stack: Stack, line: str) -> list[str]:
    """What was logged above the level of information, with these words."""
    return [entry["message"] for entry in _warnings(stack) if line in entry["message"]]


def warnings_of(stack: Stack, answer: Reply) -> list[str]:
    """The same, about one request."""
    request_id = answer.headers["X-Request-Id"]
    return [entry["message"] for entry in _warnings(stack) if entry.get("requestId") == request_id]


def _warnings(stack: Stack) -> list[dict[str, Any]]:
    return [entry for replica in stack.replicas for entry in replica.log if entry["level"] != "INFO"]


def figure(stack: Stack, name: str) -> float:
    """A figure for Prometheus, of all replicas together."""
    texts = [of_replica(replica, "/metrics").text for replica in stack.replicas]
    found = [re.findall(rf"^{re.escape(name)} (\S+)$", text, re.MULTILINE) for text in texts]
    return sum(float(value) for values in found for value in values)


def of_replica(replica: Replica, path: str, token: str = "") -> Reply:
    """Ask one replica, past nginx."""
    headers = {"X-Forwarded-For": "127.0.0.1"} | ({"Authorization": f"Bearer {token}"} if token else {})
    connection = http.client.HTTPConnection("127.0.0.1", replica.port, timeout=30)
    with contextlib.closing(connection):
        connection.request("GET", path, headers=headers)
        answer = connection.getresponse()
        return Reply(answer.status, answer.headers, answer.read().decode())


def workers_of(stack: Stack) -> list[int]:
    """The processes that answer."""
    masters = [replica.process.pid for replica in stack.replicas if replica.process]
    return [int(pid) for master in masters for pid in children_of(master)]


def children_of(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


def ensure_recovered(stack: Stack, workers: list[int]) -> None:
    """Both replicas are ready again, by themselves."""
    for replica in stack.replicas:
        assert within(10, replica.is_up), of_replica(replica, "/readyz")
    assert workers_of(stack) == workers, "without a restart"


class under_load:  # noqa: N801 - reads like what it is
    """Somebody calls again and again for the length of the block."""

    def __init__(self, call: Callable[[], object]) -> None:
        self._call, self._over = call, threading.Event()
        self._threads = [threading.Thread(target=self._run) for _ in range(2)]

    def _run(self) -> None:
        while not self._over.wait(0.02):
            self._call()

    def __enter__(self) -> None:
        for thread in self._threads:
            thread.start()

    def __exit__(self, *_failure: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()


def register_as(stack: Stack, username: str) -> Reply:
    body = {"username": username, "password": PASSWORD, "email": "someone@example.com"}
    return stack.call("POST", "/auth/register", body)
