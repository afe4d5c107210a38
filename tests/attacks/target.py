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
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any, Protocol
from urllib.parse import quote, urlsplit

import pytest

from tests.attacks.totp import STEP, decoded, totp

#: Longer than this the suite does not wait for a limit: the case is not run then.
PATIENCE = 8
#: Seconds after which an administrator shows the phone again, well before the service asks for it.
FRESH = 200
Json = dict[str, Any]


class CouldNotTry(Exception):
    """What a case needs before it can begin was refused; that says nothing about what it is to show."""


class Inside(Protocol):
    """What only a stack of the suite's own shows."""

    def move(self, seconds: float) -> None:
        """Put the service's clock so many seconds ahead of the real one."""

    def failures(self, username: str, subject: str = "totp") -> int:
        """Failures in a row of the authenticator, or of the password, as they stand on disk."""

    def set_failures(self, username: str, number: int, subject: str = "totp") -> None:
        """Have it so many failures in a row, with no delay left. There has to be one."""

    def locks(self) -> str:
        """All counters of failures of everybody, as they stand on disk."""

    def rotate_keys(self) -> None:
        """Seal all that is sealed under a new key, beside traffic; it takes seconds."""

    def sessions(self, username: str) -> int:
        """Rows of somebody's sessions in the database."""

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
    admin_token: str = field(default="", repr=False)
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
    #: Where a listener of this machine is reached by the target; port 0 is any.
    listen: tuple[str, int] = ("127.0.0.1", 0)
    people: "list[Person]" = field(default_factory=list, repr=False)
    exchanges: list[tuple[Call | bytes, Answer]] = field(default_factory=list, repr=False)
    #: Every value that must never be seen again.
    secrets: set[str] = field(default_factory=set, repr=False)
    #: The answer that shows what a case is about.
    shown: Answer | None = field(default=None, repr=False)
    note: str = ""
    _free_at: float = 0.0
    _administrator: "Person | None" = field(default=None, repr=False)
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
        if answer.code == "step_up_required" and self._is_by_hired(call):
            self._renew()
            answer = self.once(call := replace(call, token=self.admin()))
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
        self.pace(1)
        started = time.perf_counter()
        with self.connection(call.source) as connection:
            connection.sendall(call.head(self.host) + call.content)
            answer = read(connection, started, call.method)
        return self._noted(call, answer)

    def over(self, connection: socket.socket, call: Call) -> Answer:
        """One request over a connection that stays."""
        self.pace(1)
        started = time.perf_counter()
        kept = replace(call, headers={"Connection": "keep-alive"} | call.headers)
        with contextlib.suppress(OSError):  # it may have been closed meanwhile; then there is no answer to read
            connection.sendall(kept.head(self.host) + kept.content)
        return self._noted(call, read(connection, started, call.method))

    def together(self, calls: Sequence[Call]) -> list[Answer]:
        """All at once, each on a connection of its own: everything but the last byte first, then the last bytes.

        Each answer is read as it comes, and its connection closed: who is slow to hang up would hold a thread there.
        """
        self.pace(len(calls))
        connections = [self.connection(call.source) for call in calls]
        requests = [call.head(self.host) + call.content for call in calls]
        for connection, request in zip(connections, requests, strict=True):
            connection.sendall(request[:-1])
        started = time.perf_counter()
        for connection, request in zip(connections, requests, strict=True):
            connection.sendall(request[-1:])
        with ThreadPoolExecutor(len(calls)) as readers:
            answers = readers.map(lambda call, of: read_whole(of, started, call.method), calls, connections)
            return [self._noted(call, answer) for call, answer in zip(calls, answers, strict=True)]

    def raw(self, request: bytes, seconds: float = 3) -> bytes:
        """All that is answered to these bytes, until the end or for so long; each request in them counts."""
        self.pace(max(1, request.count(b" HTTP/1.")))
        received = b""
        with self.connection("") as connection:
            started = time.perf_counter()
            connection.settimeout(seconds)
            try:
                connection.sendall(request)
                while piece := connection.recv(65536):
                    received += piece
            except OSError:
                pass
        status = int(received[9:12]) if received[9:12].isdigit() else 0
        self._noted(request, Answer(status, (), received, time.perf_counter() - started))
        return received

    def connection(self, source: str) -> socket.socket:
        bound = (source or self.client(), 0)
        plain = socket.create_connection(self.connect_to, self.timeout, bound if bound[0] else None)
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # or a body waits until its head is acknowledged
        if not self.url.startswith("https:"):
            return plain
        context = ssl.create_default_context(cafile=self.ca or None)
        return context.wrap_socket(plain, server_hostname=urlsplit(self.url).hostname)

    @property
    def host(self) -> str:
        return urlsplit(self.url).netloc

    def pace(self, number: int) -> None:
        """Never more than the set rate: what goes out at once is waited for before the next."""
        pause = max(0.0, self._free_at - time.monotonic())
        self.waited += pause
        time.sleep(pause)
        self._free_at = max(time.monotonic(), self._free_at) + number / self.rate

    def rounds(self, most: int = 20, seconds: float = 4) -> Iterator[int]:
        """Again and again, since a race is lost once in many tries: so often, or for so long.

        Twice where somebody else's limits are as they are by default: whoever registers counts there.
        """
        most = 2 if self.inside is None and "limits" in self.offers else most
        end = time.monotonic() + seconds
        for number in range(most):
            if number and time.monotonic() > end:
                return
            yield number

    def shows(self, answer: Answer | None = None, note: str = "") -> Answer:
        """Put this answer and its request into the report, or those just now: whatever is asked later is a control.

        A note says what can't be read there, such as what a token holds.
        """
        self.shown, self.note = answer or self.exchanges[-1][1], note
        return self.shown

    def _noted(self, call: Call | bytes, answer: Answer) -> Answer:
        self.exchanges.append((call, answer))
        self.secrets |= set(shown_secrets(answer.json))
        if isinstance(call, Call) and (call.path, answer.status) == ("/auth/password", 204):
            # Those made at random: what else is tried as a password may stand in a log for another reason.
            self.secrets |= {text for text in shown_secrets(call.body) if re.fullmatch(r"[A-Za-z0-9_-]{24}", text)}
        return answer

    # ── people ───────────────────────────────────────────────────────────────────────────────────

    def newcomer(self, **members: Any) -> "Person":
        """Somebody who has registered, and has never shown a code."""
        person = Person(self, f"attack-{self.run}-{next(self._numbers)}", secrets.token_urlsafe(18))
        body = {"username": person.name, "password": person.password, "email": "attack@example.com"}
        answer = self.post("/auth/register", body | members)
        if answer.status != 200:
            raise CouldNotTry(f"registering answered {answer.status} {answer.text}")
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
        """The token of an administrator, from the last five minutes where the suite can see to that."""
        if self._administrator is None:
            return self.admin_token
        if time.monotonic() - self._signed_in_at > FRESH:
            self._renew()
        return self._administrator.access

    def give_administrator(self, person: "Person") -> None:
        """Have somebody who is signed in, and was made by this suite, as administrator."""
        self._administrator, self._signed_in_at = person, time.monotonic()
        self.people.remove(person)

    def hire_administrator(self, name: str, password: str, key: str) -> None:
        """Have an administrator of the target's own, who signs in now, and shows the phone when it is asked for."""
        self._administrator = Person(self, name, password, key)
        self._administrator.use_newest()
        self._renew()

    def dismiss(self) -> list[str]:
        """Sign out the administrator who signed in here; what is left of them, if that was refused."""
        if self.inside or self._administrator is None or not self._administrator.tokens:
            return []
        call = Call("POST", "/auth/logout", {}, self._administrator.access)
        try:
            status = self.once(call).status
        except OSError:
            status = 0
        # Of a session that is over no token is taken.
        return [] if status in (204, 401) else [f"a session of {self._administrator.name}"]

    def _is_by_hired(self, call: Call) -> bool:
        """Whether a call is by an administrator who can show the phone again, on a target whose clock is the real."""
        return bool(
            self.inside is None and self._administrator and call.token == self._administrator.tokens.get("accessToken")
        )

    def _renew(self) -> None:
        """Show the phone, and the password where the session is over; nothing of it stands in the report."""
        person, noted = self._administrator, len(self.exchanges)
        assert person
        answer = person.step_up(person.code()) if person.tokens else None
        if answer and answer.status == 200:
            person.tokens["accessToken"] = answer.json["accessToken"]
        else:
            self.dismiss()
            person.sign_in()
        self._signed_in_at = time.monotonic()
        del self.exchanges[noted:]

    def id_of(self, person: "Person") -> str:
        """The id of an account, or nothing if there is none."""
        name = person.name.casefold()
        return next((id_ for id_, found in self.accounts(name) if found.casefold() == name), "")

    def accounts(self, beginning: str) -> Iterator[tuple[str, str]]:
        """Id and name of all accounts whose name begins so; not of the administrator whom the suite made."""
        cursor: str | None = ""
        while cursor is not None:
            path = f"/api/admin/users?q={quote(beginning, safe='')}" + (f"&cursor={cursor}" if cursor else "")
            page = self.get(path, self.admin()).json
            if "items" not in page:
                pytest.skip(
                    "not run: the administrator's token is not taken: older than five minutes, or of somebody else"
                )
            own = self._administrator.name if self._administrator else ""
            yield from ((str(each["id"]), str(each["username"])) for each in page["items"] if each["username"] != own)
            cursor = page.get("next")

    def begin(self) -> None:
        """Know nothing of the case before."""
        self.exchanges.clear()
        self.shown, self.note, self.waited = None, "", 0.0

    def move(self, seconds: float) -> None:
        """Move the service's clock, and phones with it."""
        assert self.inside
        self.inside.move(seconds)
        self.offset = seconds

    def delete(self, user: str) -> None:
        """Delete somebody, however long the limit of administrators takes."""
        call = Call("DELETE", f"/api/admin/users/{user}", None, self.admin())
        while (answer := self.once(call)).status == 429:
            time.sleep(int(answer.get("retry-after")))

    def clean_up(self) -> list[str]:
        """Delete everybody who was made; the names of those who are still there.

        The service is asked who there is: a list of who was made may be wrong, and can't be shown to be right.
        """
        names = [person.name for person in self.people]
        if "admin" not in self.offers:
            return names
        try:
            found = self.found()
            for id_ in found:
                self.delete(id_)
            left = [*self.found().values()] if found else []
        except (pytest.skip.Exception, OSError, CouldNotTry):
            return names
        self.people = [person for person in self.people if person.name in left]
        return left

    def found(self) -> dict[str, str]:
        """Names by ids of all who were made and are there: all begin alike, but those who were named otherwise."""
        usual = f"attack-{self.run}"
        others = [person.name for person in self.people if not person.name.casefold().startswith(usual)]
        return dict(account for beginning in [usual, *others] for account in self.accounts(beginning))


@dataclass
class Person:
    """Somebody with an account and a phone that never shows the same code twice."""

    target: Target
    name: str
    password: str = field(repr=False)
    secret: str = field(default="", repr=False)
    tokens: Json = field(default_factory=dict, repr=False)
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

    def use_newest(self) -> None:
        """Show no code that is older than now: somebody else may have shown those."""
        self._last = self.step() - 1

    def wrong(self) -> str:
        """Six digits that are no code near now."""
        near = {totp(decoded(self.secret), self.step() + away) for away in range(-9, 10)}
        return next(code for code in (f"{number:06}" for number in itertools.count(222222)) if code not in near)

    def login(self, **members: Any) -> Answer:
        return self.target.post("/auth/login", {"username": self.name, "password": self.password} | members)

    def pending(self) -> str:
        answer = self.login()
        if answer.status != 200:
            raise CouldNotTry(f"a right password answered {answer.status} {answer.text}")
        return str(answer.json["tempToken"])

    def verify(self, token: str, code: Any, **members: Any) -> Answer:
        return self.target.post("/auth/verify-mfa", {"tempToken": token, "totpCode": code} | members)

    def recover(self, token: str, code: str) -> Answer:
        return self.target.post("/auth/verify-mfa", {"tempToken": token, "recoveryCode": code})

    def step_up(self, code: Any, token: str = "", **members: Any) -> Answer:
        return self.target.post("/auth/step-up", {"totpCode": code} | members, token or self.access)

    def sign_in(self, **members: Any) -> Json:
        answer = self.verify(self.pending(), self.code(), **members)
        if answer.status != 200:
            raise CouldNotTry(f"a right code answered {answer.status} {answer.text}")
        self.tokens = self.tokens | answer.json
        return answer.json

    def gets_in(self) -> None:
        """Sign in where that is what has to be shown, and no mere beginning."""
        try:
            self.sign_in()
        except CouldNotTry as refused:
            raise AssertionError(str(refused)) from None

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
            if (answer := self.step_up(self.wrong())).status != 401:
                raise CouldNotTry(f"a wrong code answered {answer.status} {answer.text}")
        return time.monotonic() + 2


class Line:
    """A client that keeps its connection, for as many requests as it may make before the next one takes over.

    Where it comes from says the first request on a connection.
    """

    def __init__(self, target: Target, most: int = 5) -> None:
        self._target, self._most, self._left = target, most, 0
        self._connection: socket.socket | None = None

    def send(self, call: Call) -> Answer:
        """As `Target.send`, without the price of a connection for each request."""
        self._left -= 1
        if self._connection is None or self._left < 0:
            self.close()
            self._connection, self._left = self._target.connection(call.source), self._most - 1
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
    """An answer as the standard library reads it; status 0 where the connection was closed without one."""
    response = http.client.HTTPResponse(connection, method=method)
    try:
        response.begin()
        content = response.read()
    except TimeoutError:
        raise TimeoutError(f"no answer within {connection.gettimeout():.0f} s") from None
    except (OSError, http.client.HTTPException):
        return Answer(0, (), b"", time.perf_counter() - started)
    headers = tuple((name.lower(), value) for name, value in response.getheaders())
    return Answer(response.status, headers, content, time.perf_counter() - started)


def read_whole(connection: socket.socket, started: float, method: str) -> Answer:
    """The answer of a connection that is closed then."""
    with connection:
        return read(connection, started, method)


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
