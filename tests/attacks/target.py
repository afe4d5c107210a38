"""The service under attack, seen from outside: requests, bursts, raw bytes, and throw-away people with phones.

Nothing here knows the inside; what does, a stack of the suite's own puts into `Target.inside`.
"""

import contextlib
import http.client
import itertools
import json
import re
import secrets
import socket
import ssl
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol
from urllib.parse import quote, urlsplit

import pytest

from tests.attacks.totp import STEP, decoded, totp

#: Longer than this the suite does not wait for a limit: the case is not run then.
PATIENCE = 8
Json = dict[str, Any]


class Inside(Protocol):
    """What only a stack of the suite's own shows."""

    def move(self, seconds: float) -> None:
        """Put the service's clock so many seconds ahead of the real one."""

    def failures(self, username: str) -> int:
        """Failures in a row of the authenticator, as they stand on disk."""

    def set_failures(self, username: str, number: int) -> None:
        """Have it so many failures in a row, with no delay left."""

    def dump(self) -> str:
        """All of the database, as text."""

    def log(self) -> str:
        """All that all processes wrote."""

    @property
    def key(self) -> tuple[str, int]:
        """`kid` and private number of the key that signs."""


@dataclass(frozen=True)
class Call:
    """A request that is to be made."""

    method: str
    path: str
    body: Any = None
    token: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    #: The address that it comes from; a new one where there are many.
    source: str = ""

    @property
    def content(self) -> bytes:
        if isinstance(self.body, bytes):
            return self.body
        return b"" if self.body is None else json.dumps(self.body).encode()

    def head(self, host: str) -> bytes:
        given = {"Host": host, "Connection": "close"}
        given |= {"Content-Type": "application/json", "Content-Length": str(len(self.content))} if self.content else {}
        given |= {"Authorization": f"Bearer {self.token}"} if self.token else {}
        lines = [f"{self.method} {self.path} HTTP/1.1"]
        lines += [f"{name}: {value}" for name, value in (given | self.headers).items()]
        return ("\r\n".join(lines) + "\r\n\r\n").encode("utf-8", "surrogatepass")


@dataclass(frozen=True)
class Answer:
    """What came back; `status` is 0 where the connection was closed without a word."""

    status: int
    headers: tuple[tuple[str, str], ...]
    content: bytes
    seconds: float = 0.0

    def get(self, name: str) -> str:
        return ", ".join(value for key, value in self.headers if key == name.lower())

    @property
    def text(self) -> str:
        return self.content.decode(errors="replace")

    @property
    def json(self) -> Json:
        try:
            found = json.loads(self.content)
        except ValueError:
            found = {}
        return found if isinstance(found, dict) else {}

    @property
    def code(self) -> str:
        return str(self.json.get("code", ""))


@dataclass
class Target:
    """A running deployment. `offers` are the needs of cases that it can meet."""

    url: str
    name: str
    connect_to: tuple[str, int]
    rate: float = 1000.0
    ca: str = ""
    window: int = 2
    timeout: float = 20.0
    admin_token: str = ""
    offers: frozenset[str] = frozenset()
    inside: Inside | None = None
    #: The same service past the proxy.
    direct: "Target | None" = None
    #: The same proxy, come to over IPv6.
    over_ipv6: "Target | None" = None
    offset: float = 0.0
    #: Seconds that were spent on waiting because the target or the rate wanted it.
    waited: float = 0.0
    #: What runs there, with versions, as far as it is known.
    software: list[str] = field(default_factory=list)
    people: "list[Person]" = field(default_factory=list)
    exchanges: list[tuple[Call | bytes, Answer]] = field(default_factory=list)
    #: Every value that must never be seen again.
    secrets: set[str] = field(default_factory=set)
    _free_at: float = 0.0
    _administrator: "Person | None" = None
    _signed_in_at: float = 0.0

    def __post_init__(self) -> None:
        self.run = secrets.token_hex(3)
        self._numbers = itertools.count()
        start = secrets.randbelow(2**22) + 256
        self._sources = (f"127.{n >> 16 & 127 | 64}.{n >> 8 & 255}.{n & 255}" for n in itertools.count(start))

    # ── requests ─────────────────────────────────────────────────────────────────────────────────

    def client(self) -> str:
        """An address of its own; the only one there is, where there are no more."""
        return next(self._sources) if "addresses" in self.offers else ""

    def get(self, path: str, token: str = "", **options: Any) -> Answer:
        return self.send(Call("GET", path, None, token, **options))

    def post(self, path: str, body: Any = None, token: str = "", **options: Any) -> Answer:
        return self.send(Call("POST", path, {} if body is None else body, token, **options))

    def send(self, call: Call) -> Answer:
        """One request. Waits where it is asked to, unless the call is from one fixed address."""
        answer = self.once(call)
        while not call.source and answer.status in (429, 503) and self.waits(answer):
            answer = self.once(call)
        return answer

    def waits(self, answer: Answer) -> bool:
        """Wait as Retry-After says; longer than patience lasts, the case is not run."""
        seconds = int(answer.get("retry-after") or 1)
        if seconds > PATIENCE:
            pytest.skip(f"not run: the target's limit is used up for {seconds} s; raise its limits for the full set")
        self.waited += seconds
        time.sleep(seconds)
        return True

    def once(self, call: Call) -> Answer:
        self._pace(1)
        started = time.perf_counter()
        with self.connection(call.source) as connection:
            connection.sendall(call.head(self.host) + call.content)
            answer = read(connection, started, call.method)
        return self._noted(call, answer)

    def over(self, connection: socket.socket, call: Call) -> Answer:
        """One request over a connection that stays."""
        self._pace(1)
        started = time.perf_counter()
        kept = replace(call, headers={"Connection": "keep-alive"} | call.headers)
        with contextlib.suppress(OSError):  # it may have been closed meanwhile; then there is no answer to read
            connection.sendall(kept.head(self.host) + kept.content)
        return self._noted(call, read(connection, started, call.method))

    def together(self, calls: Sequence[Call]) -> list[Answer]:
        """All at once, each on a connection of its own: everything but the last byte first, then the last bytes."""
        self._pace(len(calls))
        connections = [self.connection(call.source) for call in calls]
        requests = [call.head(self.host) + call.content for call in calls]
        for connection, request in zip(connections, requests, strict=True):
            connection.sendall(request[:-1])
        for connection, request in zip(connections, requests, strict=True):
            connection.sendall(request[-1:])
        answers = []
        for call, connection in zip(calls, connections, strict=True):
            with connection:
                answers.append(self._noted(call, read(connection, time.perf_counter(), call.method)))
        return answers

    def raw(self, request: bytes, seconds: float = 3) -> bytes:
        """All that is answered to these bytes, until the end or for so long."""
        self._pace(1)
        received = b""
        with self.connection("") as connection:
            connection.settimeout(seconds)
            try:
                connection.sendall(request)
                while piece := connection.recv(65536):
                    received += piece
            except OSError:
                pass
        status = int(received[9:12]) if received[9:12].isdigit() else 0
        self._noted(request, Answer(status, (), received))
        return received

    def connection(self, source: str) -> socket.socket:
        bound = (source or self.client(), 0)
        plain = socket.create_connection(self.connect_to, self.timeout, bound if bound[0] else None)
        if not self.url.startswith("https:"):
            return plain
        context = ssl.create_default_context(cafile=self.ca or None)
        return context.wrap_socket(plain, server_hostname=urlsplit(self.url).hostname)

    @property
    def host(self) -> str:
        return urlsplit(self.url).netloc

    def _pace(self, number: int) -> None:
        """Never more than the set rate: what goes out at once is waited for before the next."""
        pause = max(0.0, self._free_at - time.monotonic())
        self.waited += pause
        time.sleep(pause)
        self._free_at = max(time.monotonic(), self._free_at) + number / self.rate

    def _noted(self, call: Call | bytes, answer: Answer) -> Answer:
        self.exchanges.append((call, answer))
        self.secrets |= set(shown_secrets(answer.json))
        return answer

    # ── people ───────────────────────────────────────────────────────────────────────────────────

    def newcomer(self, **members: Any) -> "Person":
        """Somebody who has registered, and has never shown a code."""
        person = Person(self, f"attack-{self.run}-{next(self._numbers)}", secrets.token_urlsafe(18))
        body = {"username": person.name, "password": person.password, "email": "attack@example.com"}
        answer = self.post("/auth/register", body | members)
        assert answer.status == 200, f"registering answered {answer.status} {answer.text}"
        person.name, person.password = (body | members)["username"], (body | members)["password"]
        person.secret = answer.json["manualEntryKey"]
        self.people.append(person)
        self.secrets |= {person.password}
        return person

    def person(self, *, device: bool = False) -> "Person":
        """Somebody who has registered and signed in once: `tokens` are of that session."""
        person = self.newcomer()
        person.sign_in(**({"rememberDevice": True} if device else {}))
        return person

    def admin(self) -> str:
        """The token of an administrator, from the last five minutes."""
        if self._administrator is None:
            return self.admin_token
        if time.monotonic() - self._signed_in_at > 200:
            self._administrator.sign_in()
            self._signed_in_at = time.monotonic()
        return str(self._administrator.tokens["accessToken"])

    def give_administrator(self, person: "Person") -> None:
        self._administrator, self._signed_in_at = person, time.monotonic()
        self.people.remove(person)

    def id_of(self, person: "Person") -> str:
        """The id of an account, or nothing if there is none."""
        name, page = person.name.casefold(), {"next": ""}
        while page.get("next") is not None:
            page = self.get(
                f"/api/admin/users?q={quote(name, safe='')}&cursor={page['next']}".removesuffix("&cursor="),
                self.admin(),
            ).json
            if "items" not in page:
                pytest.skip(
                    "not run: the administrator's token is not taken: older than five minutes, or of somebody else"
                )
            for item in page["items"]:
                if item["username"].casefold() == name:
                    return str(item["id"])
        return ""

    def move(self, seconds: float) -> None:
        """Move the service's clock, and phones with it."""
        assert self.inside
        self.inside.move(seconds)
        self.offset = seconds

    def is_deleted(self, user: str) -> bool:
        """Delete somebody, however long the limit of administrators takes."""
        call = Call("DELETE", f"/api/admin/users/{user}", None, self.admin())
        while (answer := self.once(call)).status == 429:
            time.sleep(int(answer.get("retry-after")))
        return answer.status == 204

    def clean_up(self) -> list[str]:
        """Delete everybody who was made; the names of those who are still there."""
        left = [person.name for person in self.people if not self.is_gone(person)]
        self.people.clear()
        return left

    def is_gone(self, person: "Person") -> bool:
        """Whether somebody was deleted, now or before."""
        if "admin" not in self.offers:
            return False
        try:
            user = self.id_of(person)
        except pytest.skip.Exception:
            return False
        return not user or self.is_deleted(user)


@dataclass
class Person:
    """Somebody with an account and a phone that never shows the same code twice."""

    target: Target
    name: str
    password: str
    secret: str = ""
    tokens: Json = field(default_factory=dict)
    _last: int = 0

    def step(self) -> int:
        return int(time.time() + self.target.offset) // STEP

    def code(self) -> str:
        """The next code that is good now; waits when the window has no more."""
        back, ahead = (1, 2) if self.target.window == 2 else (0, self.target.window)
        step = max(self._last + 1, self.step() - back)
        while step > self.step() + ahead:
            time.sleep(0.1)
        self._last = step
        return self.code_at(step)

    def code_at(self, step: int) -> str:
        code = totp(decoded(self.secret), step)
        self.target.secrets.add(code)
        return code

    def wrong(self) -> str:
        """Six digits that are no code near now."""
        near = {totp(decoded(self.secret), self.step() + away) for away in range(-9, 10)}
        return next(code for code in (f"{number:06}" for number in itertools.count(222222)) if code not in near)

    def login(self, **members: Any) -> Answer:
        return self.target.post("/auth/login", {"username": self.name, "password": self.password} | members)

    def pending(self) -> str:
        answer = self.login()
        assert answer.status == 200, f"a right password answered {answer.status} {answer.text}"
        return str(answer.json["tempToken"])

    def verify(self, token: str, code: Any, **members: Any) -> Answer:
        return self.target.post("/auth/verify-mfa", {"tempToken": token, "totpCode": code} | members)

    def recover(self, token: str, code: str) -> Answer:
        return self.target.post("/auth/verify-mfa", {"tempToken": token, "recoveryCode": code})

    def step_up(self, code: Any, token: str = "", **members: Any) -> Answer:
        return self.target.post("/auth/step-up", {"totpCode": code} | members, token or self.access)

    def sign_in(self, **members: Any) -> Json:
        answer = self.verify(self.pending(), self.code(), **members)
        assert answer.status == 200, f"a right code answered {answer.status} {answer.text}"
        self.tokens = self.tokens | answer.json
        return answer.json

    def refresh(self, token: str = "") -> Answer:
        return self.target.post("/auth/refresh", {"refreshToken": token or self.tokens["refreshToken"]})

    def profile(self, token: str = "") -> Answer:
        return self.target.get("/api/profile", token or self.access)

    @property
    def access(self) -> str:
        return str(self.tokens["accessToken"])

    def lock(self) -> float:
        """Show wrong codes until the factor is locked for two seconds; the time at which it opens."""
        for number in range(6):
            time.sleep(1.1 if number == 5 else 0)
            assert self.step_up(self.wrong()).status == 401
        return time.monotonic() + 2


class Line:
    """A client that keeps its connection, for as many requests as it may make before the next one takes over."""

    def __init__(self, target: Target, most: int = 5) -> None:
        self._target, self._most, self._left = target, most, 0
        self._connection: socket.socket | None = None

    def send(self, call: Call) -> Answer:
        """As `Target.send`, without the price of a connection for each request."""
        self._left -= 1
        if self._connection is None or self._left < 0:
            self.close()
            self._connection, self._left = self._target.connection(""), self._most - 1
        answer = self._target.over(self._connection, call)
        if not answer.status or "close" in answer.get("connection"):
            self.close()
        return answer if answer.status not in (0, 429, 503) else self._target.send(call)

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
        self._connection = None

    def __del__(self) -> None:
        self.close()


def has_ipv6() -> bool:
    """Whether this machine can come to itself over IPv6."""
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


def read(connection: socket.socket, started: float, method: str = "GET") -> Answer:
    """An answer as the standard library reads it; status 0 where there is none."""
    response = http.client.HTTPResponse(connection, method=method)
    try:
        response.begin()
        content = response.read()
    except (OSError, http.client.HTTPException):
        return Answer(0, (), b"", time.perf_counter() - started)
    headers = tuple((name.lower(), value) for name, value in response.getheaders())
    return Answer(response.status, headers, content, time.perf_counter() - started)


#: Members whose values must not be shown again.
SECRET_MEMBERS = frozenset(
    {
        *("password", "currentPassword", "newPassword", "totpCode", "recoveryCode", "recoveryCodes", "manualEntryKey"),
        *("qrCode", "tempToken", "accessToken", "refreshToken", "deviceToken", "enrolmentTicket", "resetToken"),
    }
)
_JWT = re.compile(r"eyJ[A-Za-z0-9_-]{8,}[A-Za-z0-9_.=-]*")


def shown_secrets(members: Json) -> Iterable[str]:
    for name in SECRET_MEMBERS & set(members):
        value = members[name]
        yield from value if isinstance(value, list) else [value] if isinstance(value, str) else []


def redacted(text: str) -> str:
    """The same with nothing in it that anybody could use."""
    names = "|".join(SECRET_MEMBERS)
    text = re.sub(rf'("(?:{names})":\s*)("(?:[^"\\]|\\.)*"|\[[^\]]*\]|-?[0-9.]+)', r'\1"…"', text)
    return _JWT.sub("eyJ…", text)
