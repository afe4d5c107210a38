"""Every member of every body with everything that is not meant for it: refused, never a 500."""

import gzip
import json
import re
from typing import Any

from tests.attacks.case import case
from tests.attacks.target import Call, Target
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
BODIES = {
    "/auth/register": {"username": "x", "password": "x", "email": "x"},
    "/auth/login": {"username": "x", "password": "x", "deviceToken": "x"},
    "/auth/verify-mfa": {"tempToken": "x", "totpCode": "x", "rememberDevice": True, "deviceName": "x"},
    "/auth/enrol": {"tempToken": "x", "enrolmentTicket": "x"},
    "/auth/refresh": {"refreshToken": "x"},
    "/auth/step-up": {"totpCode": "x"},
    "/auth/password": {"currentPassword": "x", "newPassword": "x"},
    "/api/mfa/totp/confirm": {"totpCode": "x"},
}
ADDRESSES = ("addresses",)
TRIES = ("tries",)


def tried(target: Target, path: str, body: Any, token: str = "", **options: Any) -> int:
    """The status of an answer, which is never a failure of the service's."""
    answer = target.post(path, body, token, **options)
    assert answer.status in (200, 204, 400, 401, 403, 409, 413, 415), (
        f"{path} answered {answer.status} to {str(body)[:80]!r}"
    )
    assert "Traceback" not in answer.text
    return answer.status


@case(
    "N6",
    holds="no text in any member of any body makes the service fail",
    stems_from="UnicodeEncodeError of bcrypt, SQLite, PyJWT and pyotp; ASVS 2.2.1",
    broken_by="crash_on_unicode",
    needs=TRIES,
)
def test_no_text_breaks_it(target: Target) -> None:
    person = target.person()
    for path, body in BODIES.items():
        # Where a slow hash waits behind a body, all members at once, and not all texts.
        slow = any("assword" in name for name in body)
        for name in [*body] if not slow else [""]:
            for text in TEXTS[::3] if slow else TEXTS:
                value = body | {name: text} if name else dict.fromkeys(body, text)
                assert tried(target, path, value, person.access) != 200, f"{path} took {text!r} as {name}"


@case(
    "N4",
    holds="numbers, lists, objects and null in the place of any member are refused with a reason",
    stems_from="ASVS 15.3.5, PortSwigger: multiple credentials per request",
    broken_by="crash_on_types",
    needs=TRIES,
)
def test_no_type_breaks_it(target: Target) -> None:
    person = target.person()
    for path, body in BODIES.items():
        for name in body:
            for other in OTHERS if path != "/auth/register" else OTHERS[:9:4]:
                assert tried(target, path, body | {name: other}, person.access) in (400, 401), (
                    f"{path} took {other!r} as {name}"
                )


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
    raws += (
        b'{"username":"a","username":"b"}',
        b'{"username":NaN}',
        b'{"username":1e400}',
        b'{"username":%s}' % (b"9" * 5000),
    )
    raws += ('{"username":"x"}'.encode("utf-16"), b"{}{}", b"{'a':1}", b'{"a":1,}', b"\x00")
    for raw in raws:
        status = tried(target, "/auth/login", raw, headers={"Content-Type": "application/json"})
        assert status in (400, 415), f"{raw[:40]!r} answered {status}"
    assert target.get("/healthz").status == 200


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


@case(
    "N11",
    holds="every member of every body in the document, administrators' included, refuses what is not meant for it",
    stems_from="ASVS 2.2.1, 15.3.5",
    broken_by="crash_on_admin_types",
    needs=("admin", "tries"),
)
def test_no_documented_member_breaks_it(target: Target) -> None:
    person = target.person()
    user = target.id_of(person)
    wrong = ("\u0000", "\ud800", "\u202ea", "a" * 5000, "' OR 1=1 --", None, 2**63, 1.5, [], [[]], {"$gt": ""}, [None])
    bodies = documented(target)
    assert any(path.startswith("/api/admin") for _, path, _ in bodies)
    assert {path for _, path, _ in bodies if path.startswith("/auth")} >= set(BODIES) - {"/api/mfa/totp/confirm"}
    for method, path, members in bodies:
        is_admin = path.startswith("/api/admin")
        # Whoever deletes an account with a strange reason has deleted it: that one is nobody's.
        real = re.sub(r"\{\w+\}", user if method != "DELETE" else "x" * 22, path)
        for name in members:
            for value in wrong if is_admin else wrong[:2]:
                answer = target.send(Call(method, real, {name: value}, target.admin() if is_admin else person.access))
                assert answer.status in (200, 204, 400, 401, 403, 404, 409), (
                    f"{method} {path} answered {answer.status} to {value!r} as {name}"
                )
