"""Load on loopback, bounded in count and time: wrk as fast as it goes, hey at a fixed rate, the rest by threads."""

import csv
import json
import re
import socket
import statistics
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from urllib.parse import urlsplit

CONNECTIONS = 16
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_RETRY = re.compile(rb"\r\nretry-after: *(\d+)", re.IGNORECASE)


@dataclass
class Answers:
    """What came back: how often each status, and how long each answer took, in seconds."""

    statuses: Counter[int] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)
    refused_seconds: list[float] = field(default_factory=list)
    lasted: float = 0.0
    #: The share of all cores that was taken meanwhile, by whomever.
    busy: float = 0.0

    def add(self, status: int, took: float) -> None:
        self.statuses[status] += 1
        (self.refused_seconds if status == 503 else self.seconds).append(took)

    def rate(self, *statuses: int) -> float:
        """Answers of these statuses in a second."""
        return sum(self.statuses[status] for status in statuses) / max(self.lasted, 1e-9)

    def percentile(self, share: float) -> float:
        return percentile(self.seconds, share)


def percentile(values: Sequence[float], share: float) -> float:
    """The value that this share of them is below; 0 without any."""
    return sorted(values)[min(len(values) - 1, int(len(values) * share))] if values else 0.0


def throughput(url: str, token: str, seconds: float) -> float:
    """Requests a second that wrk gets through; raises if any was refused."""
    command = ["wrk", "-t2", f"-c{CONNECTIONS}", f"-d{seconds:.0f}s", "-H", f"Authorization: Bearer {token}", url]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    if "Non-2xx" in told:
        raise RuntimeError(f"{url} refused: {told}")
    return float(re.findall(r"Requests/sec:\s+([\d.]+)", told)[0])


@dataclass(frozen=True)
class Reply:
    """An answer, as far as anybody here looks at it."""

    status: int
    body: bytes
    retry_after: int


class Caller:
    """One connection that is kept open. Bytes by hand: an HTTP library would take as long as what is measured."""

    def __init__(self, address: str) -> None:
        self._host = urlsplit(address).netloc
        self._socket: socket.socket | None = None

    def ask(self, method: str, path: str, body: object = None, token: str = "") -> Reply:
        sent = b"" if body is None else json.dumps(body).encode()
        head = f"{method} {path} HTTP/1.1\r\nHost: {self._host}\r\n"
        head += f"Authorization: Bearer {token}\r\n" if token else ""
        head += f"Content-Type: application/json\r\nContent-Length: {len(sent)}\r\n" if sent else ""
        try:
            return self._exchange(head.encode() + b"\r\n" + sent)
        except ConnectionError:
            # It was idle for longer than the server keeps connections open.
            self.close()
            return self._exchange(head.encode() + b"\r\n" + sent)

    def close(self) -> None:
        if self._socket:
            self._socket.close()
            self._socket = None

    def _exchange(self, request: bytes) -> Reply:
        if self._socket is None:
            name, _, port = self._host.partition(":")
            self._socket = socket.create_connection((name, int(port)), timeout=60)
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket.sendall(request)
        received = self._more(self._socket)
        while b"\r\n\r\n" not in received:
            received += self._more(self._socket)
        head, _, body = received.partition(b"\r\n\r\n")
        length, retry = _LENGTH.search(head), _RETRY.search(head)
        while length and len(body) < int(length[1]):
            body += self._more(self._socket)
        return Reply(int(head[9:12]), body, int(retry[1]) if retry else 1)

    @staticmethod
    def _more(connection: socket.socket) -> bytes:
        received = connection.recv(65536)
        if not received:
            raise ConnectionResetError
        return received


def at_rate(url: str, token: str, rate: float, seconds: float, connections: int = 8) -> Answers:
    """What hey says of a fixed rate. A client in Python would take a share of the cores that is none of the service's.

    A connection whose answer is late asks less often than it should: the rate that was kept shows it.
    """
    each = f"{rate / connections:.3f}"
    command = ["hey", "-o", "csv", "-z", f"{seconds:.0f}s", "-c", f"{connections}", "-q", each]
    idle, there = _ticks()
    told = subprocess.run(
        [*command, "-H", f"Authorization: Bearer {token}", url], capture_output=True, text=True, check=True
    ).stdout
    idle_then, there_then = _ticks()
    answers = Answers(lasted=seconds, busy=1 - (idle_then - idle) / (there_then - there))
    for row in csv.DictReader(told.splitlines()):
        answers.add(int(row["status-code"]), float(row["response-time"]))
    return answers


def _ticks() -> tuple[int, int]:
    """How long all cores have been idle since the start, and how long they have been there (proc(5), /proc/stat)."""
    with open("/proc/stat") as file:
        counted = [int(each) for each in file.readline().split()[1:9]]
    return counted[3] + counted[4], sum(counted)


def logins(address: str, people: list[tuple[str, str]], seconds: float, connections: int) -> Answers:
    """Nothing but logins, one after another on each connection; a 503 waits for as long as it says."""
    answers, began = Answers(), time.monotonic()

    def work(number: int) -> None:
        caller, ends = Caller(address), began + seconds
        username, password = people[number % len(people)]
        while (now := time.monotonic()) < ends:
            reply = caller.ask("POST", "/auth/login", {"username": username, "password": password})
            answers.add(reply.status, time.monotonic() - now)
            if reply.status == 503:
                time.sleep(min(reply.retry_after, max(0.0, ends - time.monotonic())))
        caller.close()

    together(work, connections)
    answers.lasted = time.monotonic() - began
    return answers


def each(address: str, bodies: Sequence[object], path: str, rate: float | None, threads: int = 8) -> Answers:
    """Send each body once; as fast as it goes, or at a rate."""
    answers, began, left, lock = Answers(), time.monotonic(), list(enumerate(bodies)), threading.Lock()

    def work(_number: int) -> None:
        caller = Caller(address)
        while True:
            with lock:
                if not left:
                    return caller.close()
                index, body = left.pop(0)
            due = began + index / rate if rate else time.monotonic()
            time.sleep(max(0.0, due - time.monotonic()))
            status = caller.ask("POST", path, body).status
            answers.add(status, time.monotonic() - due)

    together(work, threads)
    answers.lasted = time.monotonic() - began
    return answers


def median_of(count: int, ask: Callable[[int], Reply]) -> float:
    """The median of so many answers, one after another, in seconds; raises if any was refused."""
    took = []
    for number in range(count):
        began = time.perf_counter()
        reply = ask(number)
        took.append(time.perf_counter() - began)
        if reply.status >= 400:
            raise RuntimeError(f"refused: {reply.status} {reply.body!r}")
    return statistics.median(took)


def together(work: Callable[[int], None], count: int) -> None:
    """Run `work` in so many threads, each with its number."""
    threads = [threading.Thread(target=work, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
