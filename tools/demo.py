"""Walk the five steps against a running service: register, scan, log in, show the code, be let in.

`make demo` asks for the code of your own phone; `make demo ARGS=--auto` computes it. The account is a throw-away.
Exit codes: 0 walked to the end, 1 refused, 2 wrong usage, 3 no service there, 4 rate limit used up, 130 interrupted.
"""

import argparse
import http.client
import json
import os
import secrets
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import pyotp
import segno

REFUSED, NO_SERVICE, LIMITED, INTERRUPTED = 1, 3, 4, 130
#: Codes that one pending token is good for.
TRIES = 5
_TIMEOUT = 30
_ISSUER = "MFA demo"
#: Strings longer than this are tokens and pictures; the key for typing is shorter.
_SHOWN = 48


class Stop(Exception):
    """The walk can't go on; `exit_code` says why to the shell, the message to people."""

    def __init__(self, exit_code: int, message: str) -> None:
        self.exit_code = exit_code
        super().__init__(message)


@dataclass(frozen=True)
class Answer:
    """What the service said."""

    path: str
    status: int
    body: dict[str, Any]

    def member(self, name: str) -> Any:
        """A member of a good answer. Raises Stop for a refusal."""
        if self.status != 200 or name not in self.body:
            raise Stop(REFUSED, f"{self.path} answered {self.status}: {self.body.get('error', 'not as expected')}")
        return self.body[name]


class Service:
    """The running service, every call to it shown."""

    def __init__(self, url: str) -> None:
        self._url = url.rstrip("/")

    def get(self, path: str, token: str) -> Answer:
        """GET with a token."""
        print(f"\n> GET {path}\n> Authorization: Bearer {shortened(token)}")
        return self._call(path, {"Authorization": f"Bearer {token}"}, None)

    def post(self, path: str, body: dict[str, str]) -> Answer:
        """POST a JSON object."""
        print(f"\n> POST {path}\n{as_lines(body, '> ')}")
        return self._call(path, {"Content-Type": "application/json"}, json.dumps(body).encode())

    def _call(self, path: str, headers: dict[str, str], data: bytes | None) -> Answer:
        answer = self._sent(path, urllib.request.Request(self._url + path, data, headers))
        print(f"< {answer.status}\n{as_lines(answer.body, '< ')}")
        if answer.status == 429:
            seconds = int(answer.body.get("retryAfter", 0))
            raise Stop(LIMITED, f"too many attempts from here: try again in {in_words(seconds)}")
        return answer

    def _sent(self, path: str, request: urllib.request.Request) -> Answer:
        try:
            with opened(request) as response:
                body = json.load(response)
        except OSError:
            raise Stop(NO_SERVICE, f"nothing answers at {self._url}: start the service with `make serve`") from None
        except (ValueError, http.client.HTTPException):
            body = None
        if not isinstance(body, dict):
            raise Stop(NO_SERVICE, f"what answers at {self._url} is not this service")
        return Answer(path, response.status, body)


def opened(request: urllib.request.Request) -> Any:
    """The response, also where it is a refusal."""
    try:
        return urllib.request.urlopen(request, timeout=_TIMEOUT)
    except urllib.error.HTTPError as refusal:
        return refusal


def shortened(text: str) -> str:
    """The beginning of a long string."""
    return text if len(text) <= _SHOWN else f"{text[:24]}… ({len(text)} characters)"


def as_lines(body: dict[str, Any], prefix: str) -> str:
    """A JSON object as people read it, long strings shortened."""
    short = {name: shortened(value) if isinstance(value, str) else value for name, value in body.items()}
    text = json.dumps(short, indent=2, ensure_ascii=False)
    return "\n".join(prefix + line for line in text.splitlines())


def in_words(seconds: int) -> str:
    """A waiting time, rounded up."""
    return f"{seconds} seconds" if seconds < 100 else f"{-(-seconds // 60)} minutes"


def draw(key: str, username: str) -> None:
    """Show the key of the answer as a QR code of block characters."""
    label = f"{quote(_ISSUER)}:{quote(username)}"
    uri = f"otpauth://totp/{label}?secret={key}&issuer={quote(_ISSUER)}"
    segno.make_qr(uri, error="l").terminal(border=2, compact=True)
    print(f"\nScan it with an authenticator app, or type the key: {key}")


def typed_codes() -> Iterator[str]:
    """What a person reads off the phone, as often as the service looks at it."""
    for tries_left in reversed(range(TRIES)):
        yield input("\nThe code on your phone: ").strip()
        if tries_left:
            print(f"\nThat was not it. Wait for the next code; tries left: {tries_left}")


def own_code(key: str) -> Iterator[str]:
    """The code that a phone would show now."""
    yield pyotp.TOTP(key).now()


def verify(service: Service, pending_token: str, codes: Iterator[str]) -> str:
    """Show codes until one is right; returns the access token."""
    for code in codes:
        answer = service.post("/auth/verify-mfa", {"tempToken": pending_token, "totpCode": code})
        if answer.body.get("code") != "invalid_code":
            return str(answer.member("accessToken"))
    raise Stop(REFUSED, "no code was right: compare the clocks of phone and service, then start again")


def walk(service: Service, *, types_itself: bool) -> None:
    """The five steps. Raises Stop where they end early."""
    account = {"username": f"demo-{secrets.token_hex(4)}", "password": secrets.token_urlsafe(18)}
    step(1, "Register")
    key = str(service.post("/auth/register", account | {"email": "demo@example.com"}).member("manualEntryKey"))
    step(2, "Scan")
    draw(key, account["username"])
    step(3, "Log in. The password alone gives a token that opens nothing")
    pending_token = str(service.post("/auth/login", account).member("tempToken"))
    ensure_refused(service.get("/api/profile", pending_token))
    step(4, "Show the code")
    access_token = verify(service, pending_token, own_code(key) if types_itself else typed_codes())
    step(5, "Be let in")
    service.get("/api/profile", access_token).member("mfaEnabled")
    print("\nDone: a password and a code, and only then an answer.")


def step(number: int, title: str) -> None:
    """The heading of a step."""
    print(f"\n── {number}. {title} " + "─" * (72 - len(title)))


def ensure_refused(answer: Answer) -> None:
    """Stop the walk if the pending token opened anything."""
    if answer.status != 401:
        raise Stop(REFUSED, f"{answer.path} answered {answer.status} to a pending token: it should refuse")


def arguments() -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(description="Walk the five steps against a running service.")
    parser.add_argument("--url", default=f"http://127.0.0.1:{os.environ.get('PORT', '8000')}", help="its address")
    parser.add_argument("--auto", action="store_true", help="compute the code instead of asking for it")
    given = parser.parse_args()
    if not given.url.startswith(("http://", "https://")):
        parser.error("--url must begin with http:// or https://")
    return given


def main() -> int:
    """Walk, and turn what stops the walk into one line and an exit code."""
    given = arguments()
    try:
        walk(Service(given.url), types_itself=given.auto)
    except Stop as stop:
        print(f"\ndemo: {stop}", file=sys.stderr)
        return stop.exit_code
    except (KeyboardInterrupt, EOFError):
        print("\ndemo: interrupted", file=sys.stderr)
        return INTERRUPTED
    return 0


if __name__ == "__main__":
    sys.exit(main())
