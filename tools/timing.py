"""Ask whether the time of a refused login tells which names exist: wrong passwords of a user against an unknown name.

Both kinds are sent in turn, their medians compared. It needs a service of its own with raised limits:

    MFA_AUTH_RATE_LIMIT="100000 per minute" MFA_REGISTRATION_RATE_LIMIT="100000 per minute" make serve

From its fifth failure in a row an account is locked for a growing time and answers without looking; both states
have to look like an unknown name, so both are measured. To lock one for long enough takes two minutes of waiting.
What is too far apart is measured again, three times in all: a busy machine differs once, a leak always.

Exit codes: 0 no difference beyond the limit, 1 there is one, 2 wrong usage, 3 no service there, 4 rate limit used up.
"""

import argparse
import http.client
import json
import os
import secrets
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from urllib.parse import urlsplit

DIFFERENT, NO_SERVICE, LIMITED = 1, 3, 4
#: What the medians may differ by, in per cent.
ALLOWED = 5.0
#: From this failure in a row on, an account answers without looking at the password.
FIRST_DELAY = 5
#: Failures that make a delay of two minutes, for measuring while it runs.
LOCKED_AFTER = 12
#: How often a comparison that fails is made at most.
TRIES = 3
_TIMEOUT = 30


class Stop(Exception):
    """It can't be measured; `exit_code` says why to the shell, the message to people."""

    def __init__(self, exit_code: int, message: str) -> None:
        self.exit_code = exit_code
        super().__init__(message)


@dataclass(frozen=True)
class Comparison:
    """Milliseconds of each refusal of a name that exists and of one that does not."""

    title: str
    known: list[float] = field(default_factory=list)
    unknown: list[float] = field(default_factory=list)

    @property
    def difference(self) -> float:
        """By how many per cent the medians differ."""
        known, unknown = statistics.median(self.known), statistics.median(self.unknown)
        return 100 * abs(known - unknown) / min(known, unknown)

    @property
    def row(self) -> str:
        """A line of the table."""
        medians = f"{statistics.median(self.known):11.2f}{statistics.median(self.unknown):11.2f}"
        return f"{self.title:34}{len(self.known):6}{medians}{self.difference:9.2f} %"


class Service:
    """The running service; each request has a connection of its own, made before the clock starts."""

    def __init__(self, url: str) -> None:
        self._url = url
        parts = urlsplit(url)
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        self._connection = kind(parts.hostname or "", parts.port, timeout=_TIMEOUT)
        self._prefix = parts.path.rstrip("/")

    def post(self, path: str, body: dict[str, str]) -> tuple[int, bytes, float]:
        """Status, body and milliseconds of an answer. Raises Stop for a 429, and where nothing answers."""
        data = json.dumps(body).encode()
        try:
            self._connection.close()
            self._connection.connect()
            started = time.perf_counter()
            self._connection.request("POST", self._prefix + path, data, {"Content-Type": "application/json"})
            response = self._connection.getresponse()
            raw = response.read()
        except (OSError, http.client.HTTPException):
            raise Stop(NO_SERVICE, f"nothing answers at {self._url}: start the service with `make serve`") from None
        milliseconds = 1000 * (time.perf_counter() - started)
        if response.status == 429:
            raise Stop(LIMITED, explained(response.headers.get("Retry-After", "some")))
        return response.status, raw, milliseconds

    def refused_login(self, username: str, password: str) -> tuple[bytes, float]:
        """Body and milliseconds of a login that is refused. Raises Stop if it is not."""
        status, raw, milliseconds = self.post("/auth/login", {"username": username, "password": password})
        if status != 401:
            raise Stop(DIFFERENT, f"/auth/login answered {status} and not 401: {raw.decode(errors='replace').strip()}")
        return raw, milliseconds

    def register(self) -> str:
        """Make an account and return its name."""
        username = f"timing-{secrets.token_hex(6)}"
        body = {"username": username, "password": secrets.token_urlsafe(18), "email": "timing@example.com"}
        status, raw, _ = self.post("/auth/register", body)
        if status != 200:
            raise Stop(DIFFERENT, f"/auth/register answered {status}: {raw.decode(errors='replace').strip()}")
        return username


def explained(seconds: str) -> str:
    """Why there was a 429, and what to do about it."""
    return (
        f"the rate limit is used up for {seconds} seconds (Retry-After): it is meant to be met long before so many "
        'logins. Measure a service that was started with MFA_AUTH_RATE_LIMIT="100000 per minute"'
    )


def compare(service: Service, title: str, password: str, rounds: int) -> Comparison:
    """Wrong passwords of accounts that are not locked: each takes four before its delay, then another is registered."""
    names: list[str] = []
    for number in range(rounds):
        names += [service.register()] if number % (FIRST_DELAY - 1) == 0 else names[-1:]
    return measured(service, title, password, names)


def compare_locked(service: Service, rounds: int) -> Comparison:
    """The same for an account whose delay runs, long enough for all rounds."""
    username = service.register()
    for failure in range(1, LOCKED_AFTER + 1):
        service.refused_login(username, "wrong")
        time.sleep(1.05 * 2 ** (failure - FIRST_DELAY) if FIRST_DELAY <= failure < LOCKED_AFTER else 0)
    return measured(service, "locked account", "wrong", [username] * rounds)


def measured(service: Service, title: str, password: str, names: Sequence[str]) -> Comparison:
    """Send both kinds in turn; who comes first alternates, so that whatever wanders weighs on both."""
    comparison = Comparison(title)
    for number, name in enumerate(names):
        kinds = [(name, comparison.known), (f"timing-{secrets.token_hex(6)}", comparison.unknown)]
        bodies = set()
        for username, times in kinds if number % 2 else reversed(kinds):
            body, milliseconds = service.refused_login(username, password)
            bodies.add(body)
            times.append(milliseconds)
        if len(bodies) != 1:
            raise Stop(DIFFERENT, "a name that exists and one that does not got different bodies")
    return comparison


def arguments() -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default=f"http://127.0.0.1:{os.environ.get('PORT', '8000')}", help="its address")
    parser.add_argument("--rounds", type=int, default=200, help="logins of each kind (200)")
    given = parser.parse_args()
    if not given.url.startswith(("http://", "https://")):
        parser.error("--url must begin with http:// or https://")
    if given.rounds < FIRST_DELAY:
        parser.error(f"--rounds must be at least {FIRST_DELAY}")
    return given


def compare_all(service: Service, rounds: int) -> Iterator[Comparison]:
    """Every comparison; the odd passwords get a quarter of the rounds, the locked account half."""
    passwords = {"wrong password": "not-the-password", "60 bytes": "x" * 60, "73 bytes": "x" * 73, "empty password": ""}
    for number, (title, password) in enumerate(passwords.items()):
        few = rounds // 4 if number else rounds
        yield from repeated(lambda title=title, password=password, few=few: compare(service, title, password, few))
    yield from repeated(lambda: compare_locked(service, rounds // 2))


def repeated(measure: Callable[[], Comparison]) -> Iterator[Comparison]:
    """Measure again what is too far apart: a busy machine makes a difference once, a leak makes it always."""
    for _ in range(TRIES):
        comparison = measure()
        print(comparison.row, flush=True)
        if comparison.difference < ALLOWED:
            break
    yield comparison


def main() -> int:
    """Measure, print a table, and turn what stops it into one line and an exit code."""
    given = arguments()
    print(f"{'median, ms':34}{'each':>6}{'exists':>11}{'unknown':>11}{'apart':>11}")
    worst = 0.0
    try:
        for comparison in compare_all(Service(given.url), given.rounds):
            worst = max(worst, comparison.difference)
    except Stop as stop:
        print(f"timing: {stop}", file=sys.stderr)
        return stop.exit_code
    print(f"\nallowed: {ALLOWED} %, worst in the end: {worst:.2f} %")
    return DIFFERENT if worst >= ALLOWED else 0


if __name__ == "__main__":
    sys.exit(main())
