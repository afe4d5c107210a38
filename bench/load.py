"""Load on loopback, bounded in count and time: wrk for as fast as it goes, threads of our own for a fixed rate."""

import http.client
import json
import re
import statistics
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from urllib.parse import urlsplit

CONNECTIONS = 16


@dataclass
class Answers:
    """What came back: how often each status, and how long each answer took, in seconds."""

    statuses: Counter[int] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)
    lasted: float = 0.0

    def add(self, status: int, took: float) -> None:
        self.statuses[status] += 1
        self.seconds.append(took)

    def rate(self, *statuses: int) -> float:
        """Answers of these statuses in a second."""
        return sum(self.statuses[status] for status in statuses) / max(self.lasted, 1e-9)

    def percentile(self, share: float) -> float:
        return statistics.quantiles(self.seconds, n=1000)[int(share * 1000) - 1] if len(self.seconds) > 1 else 0.0


def throughput(url: str, token: str, seconds: float) -> float:
    """Requests a second that wrk gets through; raises if any was refused."""
    command = ["wrk", "-t2", f"-c{CONNECTIONS}", f"-d{seconds:.0f}s", "-H", f"Authorization: Bearer {token}", url]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    if "Non-2xx" in told:
        raise RuntimeError(f"{url} refused: {told}")
    return float(re.findall(r"Requests/sec:\s+([\d.]+)", told)[0])


class Caller:
    """One connection that is kept open."""

    def __init__(self, address: str) -> None:
        self._connection = http.client.HTTPConnection(urlsplit(address).netloc, timeout=30)

    def ask(self, method: str, path: str, body: object = None, token: str = "") -> tuple[int, dict[str, str], bytes]:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        sent = json.dumps(body).encode() if body is not None else None
        if sent:
            headers["Content-Type"] = "application/json"
        try:
            self._connection.request(method, path, sent, headers)
            answer = self._connection.getresponse()
        except (ConnectionError, http.client.HTTPException):
            # It was idle for longer than the server keeps connections open.
            self._connection.close()
            self._connection.request(method, path, sent, headers)
            answer = self._connection.getresponse()
        return answer.status, dict(answer.getheaders()), answer.read()


def at_rate(address: str, path: str, token: str, rate: float, seconds: float, threads: int = 8) -> Answers:
    """Ask at a fixed rate, whatever the answers take: each thread has its own times to ask at.

    An answer's time counts from when it was due, so a server that falls behind can't hide it.
    """
    answers, began = Answers(), time.monotonic() + 0.2

    def work(number: int) -> None:
        caller, due, step = Caller(address), began + number / rate, threads / rate
        while due < began + seconds:
            time.sleep(max(0.0, due - time.monotonic()))
            status, _, _ = caller.ask("GET", path, token=token)
            answers.add(status, time.monotonic() - due)
            due += step

    _together(work, threads)
    answers.lasted = time.monotonic() - began
    return answers


def logins(address: str, people: list[tuple[str, str]], seconds: float, connections: int) -> Answers:
    """Nothing but logins, one after another on each connection; a 503 waits for as long as it says."""
    answers, began = Answers(), time.monotonic()

    def work(number: int) -> None:
        caller, ends = Caller(address), began + seconds
        username, password = people[number % len(people)]
        while (now := time.monotonic()) < ends:
            status, headers, _ = caller.ask("POST", "/auth/login", {"username": username, "password": password})
            answers.add(status, time.monotonic() - now)
            if status == 503:
                time.sleep(min(float(headers.get("Retry-After", 1)), max(0.0, ends - time.monotonic())))

    _together(work, connections)
    answers.lasted = time.monotonic() - began
    return answers


def each(address: str, bodies: list[dict[str, str]], path: str, rate: float | None, threads: int = 8) -> Answers:
    """Send each body once; as fast as it goes, or at a rate."""
    answers, began, left, lock = Answers(), time.monotonic(), list(enumerate(bodies)), threading.Lock()

    def work(_number: int) -> None:
        caller = Caller(address)
        while True:
            with lock:
                if not left:
                    return
                index, body = left.pop(0)
            due = began + index / rate if rate else time.monotonic()
            time.sleep(max(0.0, due - time.monotonic()))
            status, _, _ = caller.ask("POST", path, body)
            answers.add(status, time.monotonic() - due)

    _together(work, threads)
    answers.lasted = time.monotonic() - began
    return answers


def _together(work: Callable[[int], None], count: int) -> None:
    threads = [threading.Thread(target=work, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
