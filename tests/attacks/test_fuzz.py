"""Every member of every body with everything that is not meant for it: refused, never a 500."""

import functools
import gzip
import json
import re
import secrets
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from tests.attacks.case import case
from tests.attacks.target import Answer, Call, Line, Person, Target
from tests.attacks.test_matrix import METHODS

TEXTS = (
    *(
        "",
        " ",
        "\u0000",
        "a\u0000b",
        "\ud800",
        "\udfff x",
        "\u202eadmin",
        "\u200b",
        "\ufeff",
        "\x7f",
        "\x1b[31m",
        "a" * 5000,
    ),
    *(
        "é" * 700,
        "😀" * 300,
        "ﷺ" * 64,
        "аdmin",
        "ｆｕｌｌ",
        "%s%n",
        "{{7*7}}",
        "${jndi:ldap://x}",
        "' OR 1=1 --",
        "<svg/onload=1>",
    ),
    *("\r\nX: y", "../../etc/passwd", "\u2028", "1e400", "NaN", "null", "a" * 73, "Ω" * 40, "\U000e0001", "\uffff"),
)
OTHERS: tuple[Any, ...] = (None, True, False, 0, -1, 1.5, 2**63, 10**30, [], [""], {}, {"$gt": ""}, [[]], ["a", "b"])
#: Members that are no text, and what else is none of them.
SWITCHES = ("rememberDevice", "everywhere")
NO_SWITCHES = ("true", "false", "", "0", "1", "\ud800", "\u0000", "a" * 5000)
#: What may come back for a body that is right but for one member.
REFUSALS = (400, 401, 403, 409)
TRIES = ("tries",)


def tried(target: Target, path: str, body: Any, token: str = "", **options: Any) -> int:
    """The status of an answer, which is never a failure of the service's."""
    answer = target.post(path, body, token, **options)
    assert answer.status in (200, 204, 400, 401, 403, 409, 413, 415), (
        f"{path} answered {answer.status} to {str(body)[:80]!r}"
    )
    assert "Traceback" not in answer.text
    return answer.status


# ── bodies that are right but for one member ─────────────────────────────────────────────────────


def spoilt(line: Line, call: Call, name: str, value: Any) -> Answer:
    """What is answered to a body with one member that is not what it should be."""
    return judged(call, name, value, line.send(replace(call, body=call.body | {name: value})))


def spoilt_at_once(target: Target, call: Call, name: str, values: Sequence[str]) -> list[Answer]:
    """The same of many, where a slow hash waits behind each: no more at once than wait for a hash."""
    answers = []
    for few in batched(values, 3):
        together = target.together([replace(call, body=call.body | {name: value}) for value in few])
        answers += [judged(call, name, value, answer) for value, answer in zip(few, together, strict=True)]
    return answers


def judged(call: Call, name: str, value: Any, answer: Answer) -> Answer:
    told = f"{call.method} {call.path} answered {answer.status} to {str(value)[:40]!r} as {name}"
    assert answer.status in (200, 204, *REFUSALS), told
    if answer.status in REFUSALS:
        assert re.fullmatch("[a-z_]+", answer.code), told
        text = json.dumps(value)[1:-1] if isinstance(value, str) else ""
        assert len(text) < 5 or text not in json.dumps(answer.json), f"{told}, and repeats it"
    return answer


def batched(values: Sequence[str], size: int) -> Iterator[Sequence[str]]:
    return (values[start : start + size] for start in range(0, len(values), size))


def is_right(target: Target, call: Call) -> Answer:
    """The answer to a body as it should be: what came before has broken nothing, and was refused for nothing else."""
    answer = target.send(call)
    assert answer.status in (200, 204), f"{call.path} answered {answer.status} {answer.text} to a right body"
    return answer


def registering(target: Target) -> Call:
    """A registration that is right. Whoever sends it notes who it made."""
    name = f"attack-{target.run}-{secrets.token_hex(3)}"
    body = {"username": name, "password": secrets.token_urlsafe(18), "email": "attack@example.com"}
    return Call("POST", "/auth/register", body)


def registered(target: Target, body: Any) -> Person:
    person = Person(target, unicodedata.normalize("NFKC", body["username"]), body["password"])
    target.people.append(person)
    return person


def few(target: Target, values: Sequence[Any] = TEXTS) -> Sequence[Any]:
    """All of them; a third where each costs a hash at its full price and a registration of 300 an hour, as it comes."""
    return values[:: 1 if "limits" not in target.offers or "proxy" in target.offers else 3]


def right_calls(target: Target, person: Person) -> list[tuple[Call, tuple[str, ...]]]:
    """A right call of every route with a body, in the order in which they can be made, and its members."""
    post = functools.partial(Call, "POST")
    credentials = {"username": person.name, "password": person.password}
    verify = {"tempToken": person.pending(), "totpCode": person.code(), "rememberDevice": True, "deviceName": "x"}
    recover = {"tempToken": person.pending(), "recoveryCode": person.tokens["recoveryCodes"][0]}
    enrol = {"tempToken": target.newcomer().pending(), "enrolmentTicket": "x"}
    step_up = {"recoveryCode": person.tokens["recoveryCodes"][1]}
    waiting = Person(target, person.name, person.password)
    waiting.secret = target.post("/api/mfa/totp", None, person.access).json["manualEntryKey"]
    change = {"currentPassword": person.password, "newPassword": secrets.token_urlsafe(18)}
    return [
        (registering(target), ("username", "password", "email")),
        (
            post("/auth/login", credentials | {"deviceToken": person.tokens["deviceToken"]}),
            (*credentials, "deviceToken"),
        ),
        (post("/auth/verify-mfa", verify), tuple(verify)),
        (post("/auth/verify-mfa", recover), ("recoveryCode",)),
        (post("/auth/enrol", enrol), tuple(enrol)),
        (post("/auth/refresh", {"refreshToken": person.tokens["refreshToken"]}), ("refreshToken",)),
        (post("/auth/step-up", {"totpCode": person.code()}, person.access), ("totpCode",)),
        (post("/auth/step-up", step_up, person.access), ("recoveryCode",)),
        (post("/api/mfa/totp/confirm", {"totpCode": waiting.code()}, person.access), ("totpCode",)),
        (post("/auth/password", change, person.access), tuple(change)),
        (post("/auth/logout", {"everywhere": True}, person.access), ("everywhere",)),
    ]


@case(
    "N4",
    holds="numbers, lists, objects and null as any one member of a body that is right otherwise are refused",
    stems_from="ASVS 15.3.5, PortSwigger: multiple credentials per request",
    broken_by="crash_on_types takes_numbers crash_on_remember crash_on_everywhere",
    needs=TRIES,
)
def test_no_type_breaks_it(target: Target) -> None:
    calls = right_calls(target, target.person(device=True))
    known = {(call.path, name) for call, members in calls for name in members}
    read = {(path, name) for _, path, members in documented(target) for name in members if "/admin" not in path}
    assert read == known, f"no body here has {read ^ known}"
    line = Line(target)
    for call, members in calls:
        for name in members:
            values = [each for each in OTHERS if not isinstance(each, bool)] + [*NO_SWITCHES]
            others = few(target, OTHERS) if call.path == "/auth/register" else OTHERS
            for value in values if name in SWITCHES else others:
                status = spoilt(line, call, name, value).status
                assert status == 400 or (value is None and status == 200), f"{call.path} took {value!r} as {name}"
        is_right(target, call)
        if call.path == "/auth/register":
            registered(target, call.body)


@case(
    "N6",
    holds="no text as name, password or address makes a registration fail that is right otherwise",
    stems_from="UnicodeEncodeError of bcrypt, SQLite, PyJWT and pyotp; ASVS 2.2.1",
    broken_by="crash_on_unicode crash_on_email crash_on_password echoes",
    needs=TRIES,
)
def test_no_text_breaks_a_registration(target: Target) -> None:
    line = Line(target)
    for name, form in (("username", "attack-{run}-{text}"), ("email", "{text}@example.com"), ("password", "{text}")):
        for text in few(target):
            call = registering(target)
            value = form.format(run=target.run, text=text)
            if spoilt(line, call, name, value).status == 200:
                registered(target, call.body | {name: value})
    call = registering(target)
    is_right(target, call)
    assert registered(target, call.body).login().status == 200


@case(
    "N6b",
    holds="no text as a name or a device's token makes a login fail that is right otherwise",
    stems_from="UnicodeEncodeError of bcrypt, SQLite, PyJWT and pyotp; ASVS 2.2.1",
    broken_by="crash_on_unicode crash_on_device_token echoes",
    needs=TRIES,
)
def test_no_text_breaks_a_login(target: Target) -> None:
    person = target.person(device=True)
    body = {"username": person.name, "password": person.password, "deviceToken": person.tokens["deviceToken"]}
    call, texts = Call("POST", "/auth/login", body), few(target)
    for text, answer in zip(texts, spoilt_at_once(target, call, "username", texts), strict=True):
        assert answer.status in (400, 401), f"{text!r} is taken as a name"
    for text, answer in zip(texts, spoilt_at_once(target, call, "deviceToken", texts), strict=True):
        assert "accessToken" not in answer.json, f"{text!r} is taken as a device's token"
    assert is_right(target, call).json["mfaRequired"] is False


@case(
    "N6i",
    holds="nor as a password",
    stems_from="ValueError of bcrypt beyond 72 bytes; ASVS 2.2.1",
    broken_by="crash_on_unicode long_password_500 echoes",
    needs=TRIES,
)
def test_no_password_breaks_a_login(target: Target) -> None:
    person = target.person()
    call = Call("POST", "/auth/login", {"username": person.name, "password": person.password})
    for text, answer in zip(few(target), spoilt_at_once(target, call, "password", few(target)), strict=True):
        assert answer.status in (400, 401), f"{text!r} is taken as a password"
    is_right(target, call)


@case(
    "N6c",
    holds="no text as a code of the phone makes the second step fail that is right otherwise",
    stems_from="TypeError of compare_digest, GHSA-rmmc-8cqj-hfp3",
    broken_by="crash_on_unicode crash_on_totp echoes",
    needs=TRIES,
)
def test_no_text_as_a_code_breaks_it(target: Target) -> None:
    odd_codes(target, "/auth/verify-mfa", "totpCode")


@case(
    "N6j",
    holds="nor as a recovery code",
    stems_from="TypeError of compare_digest, GHSA-rmmc-8cqj-hfp3",
    broken_by="crash_on_unicode crash_on_recovery echoes",
    needs=TRIES,
)
def test_no_text_as_a_recovery_code_breaks_it(target: Target) -> None:
    odd_codes(target, "/auth/verify-mfa", "recoveryCode")


@case(
    "N6d",
    holds="nor a step-up, nor the confirmation of another authenticator",
    stems_from="TypeError of compare_digest, GHSA-rmmc-8cqj-hfp3",
    broken_by="crash_on_unicode crash_on_step_up crash_on_recovery crash_on_confirm",
    needs=TRIES,
)
def test_no_text_as_a_code_breaks_a_step_up(target: Target) -> None:
    for name in ("totpCode", "recoveryCode"):
        odd_codes(target, "/auth/step-up", name)
    odd_codes(target, "/api/mfa/totp/confirm", "totpCode")


def odd_codes(target: Target, path: str, name: str) -> None:
    """Every text as a code; after four that were counted a right one, so that each is looked at."""
    tries, line = Tries(target, path, name), Line(target)
    for text in TEXTS:
        answer = spoilt(line, tries.call(), name, text)
        assert answer.status in (400, 401), f"{path} took {text!r} as {name}"
        tries.note(answer)
    tries.end()


class Tries:
    """Somebody whose codes are asked for at one place, over and over."""

    def __init__(self, target: Target, path: str, name: str) -> None:
        self._target, self._path, self._name = target, path, name
        self._begin()

    def _begin(self) -> None:
        self._person, self._wrong, self._pending = self._target.person(), 0, ""
        self._rights = 3 if self._name == "totpCode" else 9

    def call(self) -> Call:
        """What is right but for the code."""
        if self._path == "/auth/verify-mfa":
            self._pending = self._pending or self._person.pending()
            return Call("POST", self._path, {"tempToken": self._pending})
        if self._path == "/api/mfa/totp/confirm" and not self._pending:
            self._pending = self._target.post("/api/mfa/totp", None, self._person.access).json["manualEntryKey"]
        return Call("POST", self._path, {}, self._person.access)

    def note(self, answer: Answer) -> None:
        self._wrong += answer.status == 401
        if self._wrong == 4:
            self.end()

    def end(self) -> None:
        """Show a right code, and begin anew with somebody else where there are no more."""
        codes = self._person.tokens["recoveryCodes"]
        call = self.call()
        if self._path == "/api/mfa/totp/confirm":
            self._person.secret = self._pending
        right = self._person.code() if self._name == "totpCode" else codes[self._rights]
        is_right(self._target, replace(call, body=call.body | {self._name: right}))
        self._pending, self._wrong, self._rights = "", 0, self._rights - 1
        if not self._rights:
            self._begin()


@case(
    "N6e",
    holds="no text as the name of a device makes a sign-in fail that is right otherwise, or its list",
    stems_from="UnicodeEncodeError and columns that are too short; ASVS 2.2.1",
    broken_by="crash_on_unicode crash_on_device_name echoes",
    needs=TRIES,
)
def test_no_name_of_a_device_breaks_it(target: Target) -> None:
    person, codes = target.person(), [""]
    pending, line = person.pending(), Line(target)
    for text in few(target):
        if len(codes) == 1:
            codes += target.post("/api/mfa/recovery-codes", None, person.access).json["recoveryCodes"]
        proof = {"tempToken": pending, "recoveryCode": codes[-1], "rememberDevice": True}
        if spoilt(line, Call("POST", "/auth/verify-mfa", proof), "deviceName", text).status == 200:
            codes.pop()
            pending = person.pending()
    is_right(target, Call("POST", "/auth/verify-mfa", proof | {"tempToken": pending, "recoveryCode": codes[-1]}))
    devices = target.get("/api/devices?limit=100", person.access)
    assert (devices.status, bool(devices.json["items"])) == (200, True)


@case(
    "N6f",
    holds="no text as a pending token, a ticket or a refresh token makes the service fail",
    stems_from="UnicodeEncodeError of PyJWT, TypeError of compare_digest; ASVS 2.2.1",
    broken_by="crash_on_unicode decode_500 crash_on_ticket crash_on_refresh echoes",
    needs=("addresses", "admin"),
)
def test_no_text_as_a_token_breaks_it(target: Target) -> None:
    person = target.person()
    proof = {"tempToken": person.pending(), "totpCode": person.code()}
    refresh = {"refreshToken": person.tokens["refreshToken"]}
    other = target.person()
    reset = target.post(f"/api/admin/users/{target.id_of(other)}/reset-mfa", {"reason": "attack"}, target.admin())
    enrol = {"tempToken": other.pending(), "enrolmentTicket": reset.json["enrolmentTicket"]}
    line = Line(target)
    for path, body, names in (
        ("/auth/verify-mfa", proof, ("tempToken",)),
        ("/auth/enrol", enrol, ("tempToken", "enrolmentTicket")),
        ("/auth/refresh", refresh, ("refreshToken",)),
    ):
        call = Call("POST", path, body)
        for name in names:
            for text in TEXTS:
                assert spoilt(line, call, name, text).status in REFUSALS, f"{path} took {text!r} as {name}"
        is_right(target, call)


@case(
    "N6g",
    holds="no text as the current password makes a change fail that is right otherwise",
    stems_from="ValueError of bcrypt beyond 72 bytes; ASVS 2.2.1",
    broken_by="crash_on_unicode crash_on_current_password echoes",
    needs=TRIES,
)
def test_no_current_password_breaks_a_change(target: Target) -> None:
    person = target.person()
    body = {"currentPassword": person.password, "newPassword": secrets.token_urlsafe(18)}
    call = Call("POST", "/auth/password", body, person.access)
    texts = few(target)
    for text, answer in zip(texts, spoilt_at_once(target, call, "currentPassword", texts), strict=True):
        assert answer.status in (400, 401), f"{text!r} was taken"
    is_right(target, call)


@case(
    "N6h",
    holds="nor as the new one",
    stems_from="ValueError of bcrypt beyond 72 bytes; ASVS 2.2.1",
    broken_by="crash_on_unicode crash_on_new_password echoes",
    needs=TRIES,
)
def test_no_new_password_breaks_a_change(target: Target) -> None:
    person, line = target.person(), Line(target)
    for text in few(target):
        body = {"currentPassword": person.password, "newPassword": ""}
        if spoilt(line, Call("POST", "/auth/password", body, person.access), "newPassword", text).status == 204:
            person.password = text
    body = {"currentPassword": person.password, "newPassword": secrets.token_urlsafe(18)}
    is_right(target, Call("POST", "/auth/password", body, person.access))
    assert person.login(password=body["newPassword"]).status == 200


# ── bodies as a whole ────────────────────────────────────────────────────────────────────────────


@case(
    "N3",
    holds="bodies that are no object, nested too deep or no JSON at all are refused",
    stems_from="RecursionError in Flask's default",
    broken_by="deep_500",
)
def test_no_shape_breaks_it(target: Target) -> None:
    raws = (
        b"null",
        b"[]",
        b'"x"',
        b"1",
        b"true",
        b"{",
        b"",
        b"[" * 30000,
        b'{"a":' * 9000,
        b"\xff\xfe",
        b"\xef\xbb\xbf{}",
    )
    raws += (b'{"username":NaN}', b'{"username":1e400}', b'{"username":%s}' % (b"9" * 5000))
    raws += ('{"username":"x"}'.encode("utf-16"), b"{}{}", b"{'a':1}", b'{"a":1,}', b"\x00")
    for raw in raws:
        status = tried(target, "/auth/login", raw, headers={"Content-Type": "application/json"})
        assert status in (400, 415), f"{raw[:40]!r} answered {status}"
    assert target.get("/healthz").status == 200


@case(
    "N3b",
    holds="a member that is given twice counts as it stands last, or the body is refused",
    stems_from="ASVS 15.3.7, CVE-2017-12635: the first and the last of two members, read by two parsers",
    broken_by="doubles_500 doubles_first doubles_either",
    needs=TRIES,
)
def test_a_member_given_twice_is_read_in_one_way(target: Target) -> None:
    person, other = target.person(), target.newcomer()
    credentials = {"username": person.name, "password": person.password}
    proof = {"tempToken": person.pending(), "totpCode": person.code()}
    for path, right, name, wrong in (
        ("/auth/login", credentials, "username", other.name),
        ("/auth/login", credentials, "password", other.password),
        ("/auth/login", credentials, "password", ["x", person.password]),
        ("/auth/verify-mfa", proof, "totpCode", person.wrong()),
        ("/auth/verify-mfa", proof, "tempToken", other.pending()),
    ):
        before, after = doubled(right, name, wrong, first=False), doubled(right, name, wrong, first=True)
        status = tried(target, path, before)
        assert status in (400, 401), f"{path} takes the first {name} of two, or either"
        if name != "totpCode":  # a right code, too, is good for one of the two orders only
            assert tried(target, path, after) in (200, 400), f"{path} answered {status} to both orders of {name}"


def doubled(right: dict[str, Any], name: str, wrong: Any, *, first: bool) -> bytes:
    """A right body with a wrong member of the same name before or after its own."""
    pairs = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in right.items()]
    double = f"{json.dumps(name)}: {json.dumps(wrong)}"
    return ("{" + ", ".join([double, *pairs] if first else [*pairs, double]) + "}").encode()


@case(
    "N2",
    holds="a body over 64 KiB is refused, by its length or in chunks",
    stems_from="ASVS 4.3.1",
    broken_by="no_body_limit",
)
def test_large_bodies_are_refused(target: Target) -> None:
    for size in (65537, 300_000):
        assert target.post("/auth/enrol", b'{"tempToken":"' + b"x" * size + b'"}').status in (0, 413)
    head = (
        f"POST /auth/enrol HTTP/1.1\r\nHost: {target.host}\r\nContent-Type: application/json\r\nConnection: close\r\n"
    )
    chunk = b"10000\r\n" + b" " * 65536 + b"\r\n"
    answered = target.raw(head.encode() + b"Transfer-Encoding: chunked\r\n\r\n" + chunk * 3 + b"0\r\n\r\n")
    assert not answered or b" 413 " in answered[:20], answered[:40]


@case(
    "N1",
    holds="only application/json in UTF-8 and uncompressed is read",
    stems_from="ASVS 3.5.2, 4.1.1",
    broken_by="any_content_type",
)
def test_only_json_is_read(target: Target) -> None:
    person = target.person()
    body = json.dumps({"username": person.name, "password": person.password}).encode()
    kinds = ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "text/json", "*/*")
    for kind in (
        *kinds,
        "application/xml",
        "application/json; charset=utf-7",
        "application/jsonx",
        "application/vnd.x+json",
    ):
        answer = target.post("/auth/login", body, headers={"Content-Type": kind})
        assert (answer.status, answer.code) == (415, "unsupported_media_type"), f"{kind} answered {answer.status}"
    packed = {"Content-Encoding": "gzip"}
    assert target.post("/auth/login", gzip.compress(body), headers=packed).status == 415
    assert target.post("/auth/login", gzip.compress(b" " * 10**7), headers=packed).status == 415


@case(
    "A7",
    holds="members that nobody asked for are bound to nothing",
    stems_from="ASVS 15.3.3",
    broken_by="mass_assignment",
)
def test_nobody_makes_themselves_administrator(target: Target) -> None:
    more = {"roles": ["admin"], "role": "admin", "is_admin": True, "isAdmin": True, "mfaEnabled": True, "id": 1}
    person = target.newcomer(**more)
    login = person.login().json
    assert (login["enrolmentRequired"], login["mfaRequired"]) == (True, True)
    answer = person.verify(login["tempToken"], person.code(), **more)
    assert target.get("/api/admin/users", answer.json["accessToken"]).code == "role_required"
    assert target.get("/api/mfa", answer.json["accessToken"]).json["roles"] == []


@case(
    "A1",
    holds="names that look the same are one account, and what can't be told apart is refused",
    stems_from="RFC 8265, Spotify's account takeover of 2013",
    broken_by="names_by_lower",
)
def test_no_name_is_a_double(target: Target) -> None:
    person = target.newcomer()
    wide = "".join(chr(ord(each) + 0xFEE0) if each.isalnum() else each for each in person.name)
    body = {"password": person.password, "email": "attack@example.com"}
    for name in (person.name.upper(), wide, person.name.replace("k", "\u212a")):
        answer = target.post("/auth/register", body | {"username": name})
        assert (answer.status, answer.code) == (400, "user_exists"), f"{name} is another account"
    for name in (person.name + "\u200b", "\u202e" + person.name, person.name.replace("a", "а"), person.name + "\u0000"):
        assert target.post("/auth/register", body | {"username": name}).status == 400, f"{name!r} was taken"


@case(
    "A5",
    holds="registering a name again shows and changes nothing of its account",
    stems_from="ASVS 6.4.4",
    broken_by="register_rotates",
)
def test_registering_again_changes_nothing(target: Target) -> None:
    person = target.newcomer()
    body = {"username": person.name, "password": "another-password-1", "email": "evil@example.com"}
    answer = target.post("/auth/register", body)
    assert answer.json == {"error": "User already exists", "code": "user_exists"}
    assert person.login(password=body["password"]).status == 401
    assert person.sign_in()["user"]["email"] == "attack@example.com"


@case(
    "T48",
    holds="every character of a password counts, to the last of 64 emoji, and a NUL ends none",
    stems_from="Okta 2024: 72 bytes of user name and password in bcrypt",
    broken_by="bcrypt_72",
)
def test_the_last_character_counts(target: Target) -> None:
    password = "".join("😀😎"[number % 2] for number in range(64))
    person = target.newcomer(password=password)
    assert person.login().status == 200
    others = (
        password[:-1] + "😎😀"[1],
        password[:-1] + "x",
        password[:-1],
        password + " ",
        password[:18],
        password + "\u0000",
    )
    for other in others:
        assert person.login(password=other).status in (400, 401), "only the beginning of a password counts"


@case(
    "B4",
    holds="a long password is refused alike for users that exist and that do not",
    stems_from="bcrypt 5 raising beyond 72 bytes",
    broken_by="long_password_500",
)
def test_a_long_password_tells_nothing(target: Target) -> None:
    person = target.person()
    for password in ("x" * 73, "x" * 1024, "x" * 1025, "x" * 40000):
        answers = [person.login(username=name, password=password) for name in (person.name, "attack-nobody")]
        assert answers[0].status in (400, 401, 413), answers[0].status
        assert answers[0].content == answers[1].content
        assert max(answer.seconds for answer in answers) < 5


@case(
    "N10",
    holds="no header of a request makes the service fail",
    stems_from="ASVS 2.2.1",
    broken_by="crash_on_header",
)
def test_no_header_breaks_it(target: Target) -> None:
    person = target.person()
    for name in (
        "User-Agent",
        "X-Forwarded-For",
        "X-Request-Id",
        "Cookie",
        "Accept",
        "Origin",
        "Referer",
        "Accept-Language",
    ):
        for value in ("", "x" * 4000, "é😀", "\x7f", "'\"<>", "%00", "a=b; a=c; =; ;", "*/*;q=nan", "\xff"):
            answer = target.get("/api/sessions", person.access, headers={name: value})
            assert answer.status in (200, 400, 431), f"{name}: {value[:20]!r} answered {answer.status}"


@case(
    "B7",
    holds="short, common and self-named passwords are refused at registration",
    stems_from="NIST SP 800-63B section 3.1.1.2, ASVS 6.2.4",
    broken_by="any_password",
)
def test_weak_passwords_are_refused(target: Target) -> None:
    name = f"attack-{target.run}-weak"
    for password in ("", "1234567", "é" * 7, "password123", f"{name}2026"):
        body = {"username": name, "password": password, "email": "attack@example.com"}
        answer = target.post("/auth/register", body)
        assert (answer.status, answer.code) in ((400, "weak_password"), (400, "invalid_request")), (
            f"{password!r} was taken"
        )


@case(
    "B9",
    holds="case and spaces of a password count",
    stems_from="ASVS 6.2.8, passwords that Facebook and AOL made equal",
    broken_by="password_trimmed",
)
def test_no_password_is_made_equal(target: Target) -> None:
    person = target.newcomer(password="Analytical Engine 1843 ")
    for other in (
        "Analytical Engine 1843",
        "analytical engine 1843 ",
        " Analytical Engine 1843 ",
        "ANALYTICAL ENGINE 1843 ",
    ):
        assert target.shows(person.login(password=other)).status == 401, f"{other!r} was accepted"
    assert person.login().status == 200


@case(
    "A6",
    holds="no name holds a colon, which parts issuer and account on a phone",
    stems_from="Key URI format of authenticators",
    broken_by="colon_in_name",
)
def test_no_name_reaches_into_the_address_of_a_key(target: Target) -> None:
    body = {"password": "analytical-engine-1843", "email": "attack@example.com"}
    for name in (f"attack-{target.run}:evil", f"attack-{target.run}：evil"):
        assert target.post("/auth/register", body | {"username": name}).status == 400, f"{name} was taken"


#: What may stand where an id or a place in a list is expected.
IDS = (
    *(
        "0",
        "-1",
        str(2**63),
        "9" * 40,
        "1e400",
        "NaN",
        "%00",
        "a%00b",
        "%ff",
        "%ed%a0%80",
        "%F0%9F%98%80",
        "..%2f..%2f",
    ),
    *(
        "%27%20OR%201=1--",
        "x" * 3000,
        "%0d%0aX-Evil:1",
        "[]",
        "{}",
        "%25s",
        "null",
        "%E2%80%AE",
        "+",
        "*",
        "x&cursor=y",
    ),
)


@case(
    "N8",
    holds="no id and no cursor makes the service fail",
    stems_from="OverflowError of SQLite, ASVS 2.2.1",
    broken_by="crash_on_ids",
)
def test_no_id_breaks_it(target: Target) -> None:
    person = target.person()
    for text in IDS:
        calls = [Call("DELETE", f"/api/{of}/{text}", None, person.access) for of in ("sessions", "devices")]
        calls += [Call("GET", f"/api/{of}?cursor={text}", None, person.access) for of in ("activity", "sessions")]
        for call in calls:
            answer = target.send(call)
            assert answer.status in (200, 400, 404, 405, 414), f"{call.path[:60]} answered {answer.status}"
            assert not answer.get("x-evil")
    assert person.profile().status == 200


@case(
    "N8b",
    holds="nor in the hands of an administrator",
    stems_from="OverflowError of SQLite, ASVS 2.2.1",
    broken_by="crash_on_admin_ids",
    needs=("admin",),
)
def test_no_id_of_an_administrator_breaks_it(target: Target) -> None:
    target.id_of(target.newcomer())  # an administrator's token that is too old is no failure
    for text in IDS:
        for path in (
            *(f"users/{text}", f"users?q={text}", f"users?cursor={text}&role={text}&mfa={text}"),
            *(f"audit?user={text}&event={text}", f"audit?from={text}&to={text}&cursor={text}"),
        ):
            answer = target.get(f"/api/admin/{path}", target.admin())
            assert answer.status in (200, 400, 404, 405, 414), f"{path[:60]} answered {answer.status}"


def documented(target: Target) -> list[tuple[str, str, list[str]]]:
    """Method, path and members of every body that the service says it reads."""
    document, found = target.get("/openapi.json").json, []
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            if method in METHODS and "requestBody" in operation:
                schema = operation["requestBody"]["content"]["application/json"]["schema"]
                schema = (
                    document["components"]["schemas"][schema["$ref"].split("/")[-1]] if "$ref" in schema else schema
                )
                found.append((method.upper(), path, list(schema["properties"])))
    return found


#: Where there is nothing to change by accident: what an administrator's body says besides.
BESIDES: dict[str, dict[str, Any]] = {"/api/admin/policy": {"mode": "required"}}
BESIDES["/api/admin/policy/preview"] = BESIDES["/api/admin/policy"]


def odd_for_administrators(target: Target, method: str, path: str, members: list[str]) -> None:
    """Every text, type and depth as each member of a right body of one route."""
    user, line = target.id_of(target.newcomer()), Line(target, 50)
    # Whoever deletes an account with a strange reason has deleted it: that one is nobody's.
    real = re.sub(r"\{\w+\}", user if method != "DELETE" else "x" * 22, path)
    for name in members:
        # The policy of everybody is changed on stacks of the suite's own alone.
        besides = BESIDES.get(path, {}) if "policy" in target.offers else {}
        call = Call(method, real, besides, target.admin())
        nested = [{"at": text} for text in TEXTS[:3]] + [{"days": 10**30}, {"\ud800": None}, [TEXTS[2]], [TEXTS[4]]]
        for value in (*TEXTS, *OTHERS, *nested):
            answer = line.send(replace(call, body=besides | {name: value}))
            assert answer.status == 404 or judged(call, name, value, answer)


@case(
    "N11",
    holds="every member of every body about a user that an administrator sends refuses what is not meant for it",
    stems_from="ASVS 2.2.1, 15.3.5",
    broken_by="crash_on_admin_types crash_on_roles crash_on_reason",
    needs=("admin", "tries"),
)
def test_no_documented_member_breaks_it(target: Target) -> None:
    bodies = [each for each in documented(target) if each[1].startswith("/api/admin/users")]
    assert bodies
    for method, path, members in bodies:
        odd_for_administrators(target, method, path, members)
    assert target.get("/api/admin/users", target.admin()).status == 200


@case(
    "N11b",
    holds="so does every member of the policy, and of every other body for administrators",
    stems_from="ASVS 2.2.1, 15.3.5",
    broken_by="crash_on_policy crash_on_reason",
    needs=("admin", "addresses"),
)
def test_no_documented_member_of_the_policy_breaks_it(target: Target) -> None:
    admin = [each for each in documented(target) if each[1].startswith("/api/admin")]
    bodies = [each for each in admin if not each[1].startswith("/api/admin/users")]
    assert any("policy" in path for _, path, _ in bodies)
    for method, path, members in bodies:
        odd_for_administrators(target, method, path, members)
    assert target.get("/api/admin/policy", target.admin()).status == 200
