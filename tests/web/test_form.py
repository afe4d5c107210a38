"""What every route that takes JSON does with a body: the good, the broken and the hostile (API.md, Form)."""

import contextlib
import functools
import gzip
import http.client
import io
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urlencode, urlsplit

import pytest
from flask import Flask
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from mfa_service.errors import NoToken, StepUpRequired, published
from mfa_service.web.contract import Body, contract_of
from tests.bursts import post
from tests.conftest import Clock
from tests.factories import PASSWORD, Person, bearer, log_in, register, totp

KIB = 1024


#: Routes that change something and have nothing to be told.
WITHOUT_A_BODY = {"/api/mfa/totp", "/api/mfa/recovery-codes"}
#: Routes with a test of their own, since their bodies are of other kinds (tests/api/admin).
ADMIN = "/api/admin/"


def test_the_routes_under_test_are_all_that_take_a_body(app: Flask, routes: "list[Route]") -> None:
    changing = {rule.rule for rule in app.url_map.iter_rules() if {"POST", "PUT", "PATCH"} & rule.methods}
    administrating = {path for path in changing if path.startswith(ADMIN)}
    assert {route.path for route in routes} == changing - WITHOUT_A_BODY - administrating
    assert changing >= WITHOUT_A_BODY
    assert {route.path for route in routes} >= {"/auth/register", "/auth/login", "/auth/verify-mfa", "/auth/enrol"}
    assert {route.path for route in routes if route.is_guarded} == {
        "/auth/step-up",
        "/auth/logout",
        "/auth/password",
        "/api/mfa/totp/confirm",
    }


def test_a_route_that_takes_no_body_reads_none(app: Flask, client: FlaskClient, signed_in: "SignedIn") -> None:
    for path in WITHOUT_A_BODY:
        answer = client.post(path, data=b"{" * 100, content_type="text/plain", headers=signed_in.by_code)
        assert answer.status_code == 200


# ── the media type ───────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "content_type",
    [
        None,
        "",
        "text/plain",
        "text/json",
        "application/jsonp",
        "application/x-www-form-urlencoded",
        "application/vnd.example+json",
        "application/json; charset=utf-7",
        "application/json; charset=utf-16",
        "application/json; charset=latin-1",
    ],
)
def test_anything_but_json_in_utf_8_is_415(routes: "list[Route]", content_type: str) -> None:
    for route in routes:
        answer = route.post(data=json.dumps(route.good), content_type=content_type)
        assert_refused(answer, 415, "unsupported_media_type")


@pytest.mark.parametrize(
    "content_type",
    ["application/json", "Application/JSON", "application/json;charset=UTF-8", 'application/json; v="1"'],
)
def test_json_is_json_however_its_name_is_spelled(routes: "list[Route]", content_type: str) -> None:
    for route in routes:
        route.assert_reads_nothing_in(route.post(data="{}", content_type=content_type))


def test_forms_and_files_are_415(routes: "list[Route]") -> None:
    for route in routes:
        multipart = dict.fromkeys(route.good, "x") | {"file": (io.BytesIO(b"{}"), "x.json", "application/json")}
        answer = route.post(data=multipart, content_type="multipart/form-data")
        assert_refused(answer, 415, "unsupported_media_type")


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "x-unknown"])
def test_a_compressed_body_is_415_and_stays_packed(routes: "list[Route]", encoding: str) -> None:
    bomb = gzip.compress(b" " * 10_000 * KIB)
    for route in routes:
        answer = route.post(data=bomb, headers=JSON | {"Content-Encoding": encoding})
        assert_refused(answer, 415, "unsupported_media_type")


# ── the size ─────────────────────────────────────────────────────────────────────────────────────


def test_a_body_may_be_64_kib_and_not_a_byte_more(routes: "list[Route]") -> None:
    for route in routes:
        route.assert_reads_nothing_in(route.post(data=b"{}".ljust(64 * KIB), headers=JSON))
        assert_refused(route.post(data=b"{}".ljust(64 * KIB + 1), headers=JSON), 413, "payload_too_large")


@pytest.mark.services
@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_a_chunked_body_without_a_length_ends_at_64_kib_too(serve: Callable[..., str], routes: "list[Route]") -> None:
    address = serve()
    for route in served(address, routes):
        small, large = ([b"{}".ljust(KIB)] + [b" " * KIB] * chunks for chunks in (62, 200))
        status, body = post_chunked(address, route, large)
        assert (status, body["code"]) == (413, "payload_too_large")
        assert post_chunked(address, route, small)[0] == route.status_of_nothing


@pytest.mark.services
@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_bottomless_nesting_leaves_the_worker_alive(serve: Callable[..., str], routes: "list[Route]") -> None:
    address = serve()
    for route in served(address, routes):
        for deep in (b"[" * 60 * KIB, b'{"a":' * 10 * KIB):
            status, body = post_chunked(address, route, [deep])
            assert (status, body["code"]) == (400, "invalid_request")
        assert post_chunked(address, route, [b"{}"])[0] == route.status_of_nothing


# ── the JSON ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("value", ["null", "[]", "[{}]", '"x"', "1", "1.5", "true", "false", '""', "[[[]]]"])
def test_the_body_must_be_an_object(routes: "list[Route]", value: str) -> None:
    for route in routes:
        answer = route.post(data=value, headers=JSON)
        assert_refused(answer, 400, "invalid_request")
        assert answer.json["fields"] == {"body": "must be a JSON object"}


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b" ",
        b"{",
        b"{}{}",
        b"{} x",
        b"{'a': 1}",
        b"{a: 1}",
        b'{"a": 1,}',
        b"[" * 60 * KIB,
        b'{"a":' * 10 * KIB,
        b'{"a":' + b"[" * 50 * KIB + b"]" * 10 * KIB,
        b'{"a": NaN}',
        b'{"a": Infinity}',
        b'{"a": -Infinity}',
        b'{"a": ' + b"9" * 5000 + b"}",
        b'{"a": "tab\there"}',
        b'{"a": "\xff"}',
        b'{"a": "\xc0\x80"}',
        b'{"a": "\xed\xa0\x80"}',
        b"\xef\xbb\xbf{}",
        "{}".encode("utf-16"),
        "{}".encode("utf-16-le"),
        "{}".encode("utf-32"),
        b"\x00",
        b"%7B%7D",
    ],
    ids=lambda body: repr(body[:12]),
)
def test_what_is_not_json_in_utf_8_is_400(routes: "list[Route]", body: bytes) -> None:
    for route in routes:
        if not body and route.path == "/auth/logout":
            continue  # takes no body for an empty one, whatever header comes with it
        answer = route.post(data=body, headers=JSON)
        assert_refused(answer, 400, "invalid_request")
        assert answer.json["fields"] == {"body": "is not JSON in UTF-8"}


def test_nesting_may_be_20_deep_and_no_deeper(routes: "list[Route]") -> None:
    for route in routes:
        deepest, too_deep = ('{"x": ' + "[" * depth + "]" * depth + "}" for depth in (19, 20))
        route.assert_reads_nothing_in(route.post(data=deepest, headers=JSON))
        assert "body" in route.post(data=too_deep, headers=JSON).json["fields"]


@pytest.mark.parametrize("number", ["1e400", "-1e400", "9" * 4000, "1e-400", "-0", "9223372036854775808"])
def test_a_monstrous_number_in_an_unknown_member_harms_nobody(routes: "list[Route]", number: str) -> None:
    for route in routes:
        route.assert_reads_nothing_in(route.post(data=f'{{"surplus": {number}}}', headers=JSON))


def test_the_last_of_two_members_of_one_name_counts(routes: "list[Route]") -> None:
    for route in routes:
        for member in route.strings:
            good = json.dumps({member: "x-1234"} | route.good)[1:-1]
            wrong_last = route.post(data=f'{{{good}, "{member}": 1}}', headers=JSON)
            assert wrong_last.json["fields"] == {member: "must be a string"}
            wrong_first = route.post(data=f'{{"{member}": 1, {good}}}', headers=JSON)
            assert (
                member not in wrong_first.json.get("fields", {})
                or wrong_first.json["fields"][member] != "must be a string"
            )


# ── the members ──────────────────────────────────────────────────────────────────────────────────


def test_every_missing_member_is_named(routes: "list[Route]") -> None:
    for route in routes:
        route.assert_reads_nothing_in(route.post(json={}))
        for member in route.required:
            rest = {name: value for name, value in route.good.items() if name != member}
            answer = route.post(json=rest)
            assert_refused(answer, 400, "invalid_request")
            assert answer.json["fields"] == {member: "is required"}


@pytest.mark.parametrize("value", [None, 1, 1.5, 2**63, -1, True, [], ["x", "y"], {}, {"$gt": ""}], ids=repr)
def test_a_member_of_a_wrong_type_is_named(routes: "list[Route]", value: object) -> None:
    for route in routes:
        for member in route.strings:
            answer = route.post(json=route.good | {member: value})
            if value is None and member not in route.required:
                continue
            assert_refused(answer, 400, "invalid_request")
            assert answer.json["fields"] == {member: "must be a string"}


@pytest.mark.parametrize("value", ["yes", "true", 1, 0, None, [], {}], ids=repr)
def test_yes_and_no_are_true_and_false_and_nothing_else(routes: "list[Route]", value: object) -> None:
    for route in routes:
        for member in route.flags:
            answer = route.post(json=route.good | {member: value})
            assert_refused(answer, 400, "invalid_request")
            assert set(answer.json["fields"]) == {member}


def test_members_that_may_be_absent_may_be_null_and_then_are_absent(routes: "list[Route]") -> None:
    for route in routes:
        for member in set(route.strings) - set(route.required) - {"deviceName"}:
            absent = {name: value for name, value in route.bad.items() if name != member}
            answers = [route.post(json=body) for body in (absent, absent | {member: None})]
            assert answers[0].status_code == answers[1].status_code
            assert answers[0].json == answers[1].json


@pytest.mark.parametrize(
    "character",
    [
        "\\u0000",
        "\\u0001",
        "\\n",
        "\\r",
        "\\t",
        "\\u001b",
        "\\u007f",
        "\\u0085",
        "\\u009b",
        "\\ud800",
        "\\udfff\\ud800",
    ],
)
@pytest.mark.parametrize("place", ["{}", "x{}", "{}x", "x{}x"])
def test_controls_nul_and_lone_surrogates_are_refused_in_every_string(
    routes: "list[Route]", character: str, place: str
) -> None:
    for route in routes:
        for member in route.strings:
            body = json.dumps(route.good | {member: "@"}).replace('"@"', f'"{place.replace("{}", character)}"')
            answer = route.post(data=body, headers=JSON)
            assert_refused(answer, 400, "invalid_request")
            assert set(answer.json["fields"]) == {member}


@pytest.mark.parametrize(
    "text", ["", " ", "é", "１２３４５６", "²", "\u2028", "\u202e", "\ufeff", "\uffff", "\U0010ffff", "😀" * 64]
)
def test_other_characters_than_ascii_crash_nothing(routes: "list[Route]", text: str) -> None:
    for route in routes:
        for member in route.strings:
            assert_ours(route.post(json=route.good | {member: text}))


@pytest.mark.parametrize(
    "text",
    [
        "' OR 1=1 --",
        '"; DROP TABLE mfa_users; --',
        "{{7*7}}",
        "${jndi:ldap://127.0.0.1/a}",
        "%s%n%x",
        "*)(uid=*))(|(uid=*",
        "../../../etc/passwd",
        "<script>alert(1)</script>",
        "$(id)",
        "__proto__",
        "a" * 60_000,
    ],
    ids=lambda text: text[:12],
)
def test_what_other_languages_take_for_code_is_text(routes: "list[Route]", text: str) -> None:
    for route in routes:
        for member in route.strings:
            answer = route.post(json=route.good | {member: text})
            assert_ours(answer)
            assert text not in answer.text


def test_a_refusal_never_repeats_what_was_sent(routes: "list[Route]") -> None:
    for route in routes:
        for member in route.strings:
            for value in ("sent-by-me\x00", ["sent-by-me"], "sent-by-me" * 2000):
                assert "sent-by-me" not in route.post(json=route.good | {member: value}).text


def test_unknown_members_are_ignored(routes: "list[Route]") -> None:
    for route in routes:
        surplus = {
            "surplus": {"a": [1, None]},
            "user_id": "1",
            "__class__": "x",
            "": 0,
            "\ud800": "\ud800",
            "\x00": "\n",
        }
        without, with_surplus = (route.post(json=body) for body in (route.bad, route.bad | surplus))
        assert with_surplus.status_code == without.status_code
        assert with_surplus.json == without.json


def test_a_member_has_one_spelling(routes: "list[Route]") -> None:
    for route in routes:
        for spell in (str.upper, str.capitalize, snake_case):
            for member in (name for name in route.required if spell(name) != name):
                respelled = {spell(name) if name == member else name: value for name, value in route.good.items()}
                assert route.post(json=respelled).json["fields"] == {member: "is required"}


def test_privileged_members_are_bound_to_nothing(
    client: FlaskClient, rows: Callable[..., list[dict[str, Any]]]
) -> None:
    privileges = {
        "id": "1",
        "is_admin": True,
        "role": "admin",
        "roles": ["admin"],
        "mfaEnabled": True,
        "confirmed_at": "2020-01-01T00:00:00Z",
        "sealed_password": "x",
        "created_at": "1970-01-01T00:00:00Z",
    }
    body = {"username": "eve", "password": "analytical-engine-1843", "email": "eve@example.com"}
    assert client.post("/auth/register", json=body | privileges).status_code == 200
    [user], [secret] = rows("SELECT * FROM mfa_users"), rows("SELECT * FROM mfa_secrets")
    assert user["id"] != "1"
    assert "1970" not in str(user["created_at"])
    assert secret["confirmed_at"] is None


def test_a_query_string_and_headers_are_no_substitute_for_the_body(routes: "list[Route]") -> None:
    for route in routes:
        everything = {name: str(value) for name, value in route.good.items()}
        route.assert_reads_nothing_in(route.post(query_string=urlencode(everything), json={}, headers=everything))
        # And twice the same parameter, in both places, decides nothing either.
        assert route.post(query_string="username=a&username=b", json=route.bad).json == route.post(json=route.bad).json


# ── fixtures and helpers ─────────────────────────────────────────────────────────────────────────

JSON = {"Content-Type": "application/json"}
CODES = {error.code for error in published()}


@dataclass(frozen=True)
class Route:
    """A route that takes JSON, with a body of the right form, and a client that may call it."""

    path: str
    body: type[Body]
    client: FlaskClient
    is_guarded: bool
    #: The header of somebody who has just signed in for this very call.
    header: Callable[[], dict[str, str]]

    def post(self, *, headers: dict[str, str] | None = None, **request: Any) -> TestResponse:
        return self.client.post(self.path, headers=(headers or {}) | self.header(), **request)

    @property
    def required(self) -> list[str]:
        return [str(field.alias) for field in self.body.model_fields.values() if field.is_required()]

    @property
    def strings(self) -> list[str]:
        return [str(field.alias) for field in self.body.model_fields.values() if field.annotation is not bool]

    @property
    def flags(self) -> list[str]:
        return [str(field.alias) for field in self.body.model_fields.values() if field.annotation is bool]

    @property
    def good(self) -> dict[str, Any]:
        """A body of the right form; where one of several proofs is wanted it is a code."""
        needed = [name for name in self.strings if name in self.required or name == "totpCode"]
        return dict.fromkeys(needed, "x-1234") | dict.fromkeys(self.flags, False)

    @property
    def bad(self) -> dict[str, Any]:
        """A body of the right form that every route answers alike, each time."""
        return self.good | {"email": "nowhere"}

    @property
    def status_of_nothing(self) -> int:
        """What an empty object is answered with: only one route needs to be told nothing."""
        return 204 if self.path == "/auth/logout" else 400

    def assert_reads_nothing_in(self, answer: TestResponse) -> None:
        """The answer is the one to an empty object."""
        assert answer.status_code == self.status_of_nothing
        if self.required:
            assert answer.json["fields"] == dict.fromkeys(self.required, "is required")
        elif answer.status_code == 400:
            assert set(answer.json["fields"]) == {"totpCode"}


@dataclass(frozen=True)
class SignedIn:
    """Somebody with two ways in: a session with a fresh second factor, and as many without one as are wanted."""

    client: FlaskClient
    person: Person
    access_token: str
    device_token: str

    @property
    def by_code(self) -> dict[str, str]:
        return bearer(self.access_token)

    def by_device(self) -> dict[str, str]:
        """A session of its own for each call, since a call may end it."""
        body = {"username": self.person.username, "password": self.person.password, "deviceToken": self.device_token}
        return bearer(self.client.post("/auth/login", json=body).json["accessToken"])


@pytest.fixture
def signed_in(client: FlaskClient, clock: Clock) -> SignedIn:
    person = register(client)
    body = {"tempToken": log_in(client, person), "totpCode": person.code(clock()), "rememberDevice": True}
    answer = client.post("/auth/verify-mfa", json=body).json
    return SignedIn(client, person, answer["accessToken"], answer["deviceToken"])


@pytest.fixture
def routes(app: Flask, client: FlaskClient, signed_in: SignedIn) -> list[Route]:
    return list(_json_routes(app, client, signed_in))


def _json_routes(app: Flask, client: FlaskClient, signed_in: SignedIn) -> Iterator[Route]:
    for rule in app.url_map.iter_rules():
        contract = contract_of(app.view_functions[rule.endpoint])
        if contract.takes and not rule.rule.startswith(ADMIN):
            is_guarded, is_strict = NoToken in contract.refusals, StepUpRequired in contract.refusals
            guarded = (lambda: signed_in.by_code) if is_strict else signed_in.by_device
            yield Route(rule.rule, contract.takes, client, is_guarded, guarded if is_guarded else dict)


def served(address: str, routes: list[Route]) -> Iterator[Route]:
    """The same routes on a real server, each with somebody who is signed in there."""
    for number, route in enumerate(routes):
        header = bearer(sign_in_at(address, f"served{number}")) if route.is_guarded else {}
        yield replace(route, header=functools.partial(dict, header))


def sign_in_at(address: str, username: str) -> str:
    """Somebody's access token, on the server's own clock."""
    who = {"username": username, "password": PASSWORD}
    secret = post(address, "/auth/register", who | {"email": "someone@example.com"}).json["manualEntryKey"]
    pending = post(address, "/auth/login", who).json["tempToken"]
    body = {"tempToken": pending, "totpCode": totp(secret, int(time.time()) // 30)}
    return str(post(address, "/auth/verify-mfa", body).json["accessToken"])


def assert_refused(answer: TestResponse, status: int, code: str) -> None:
    assert (answer.status_code, answer.json["code"]) == (status, code), answer.text
    assert_ours(answer)


def assert_ours(answer: TestResponse) -> None:
    """No crash, and our form where it is a refusal."""
    assert answer.status_code < 500
    if answer.status_code == 204:
        assert answer.data == b""
        return
    assert answer.mimetype == "application/json"
    if answer.status_code >= 400:
        assert answer.json["code"] in CODES
        assert answer.json["error"]
        assert answer.json.keys() <= {"error", "code", "fields", "retryAfter"}


def post_chunked(address: str, route: Route, chunks: list[bytes]) -> tuple[int, dict[str, Any]]:
    """POST without a Content-Length; the server may hang up before it has all of it."""
    connection = http.client.HTTPConnection(urlsplit(address).netloc, timeout=10)
    with contextlib.closing(connection):
        with contextlib.suppress(ConnectionError):
            connection.request("POST", route.path, iter(chunks), JSON | route.header(), encode_chunked=True)
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read() or b"{}")


def snake_case(name: str) -> str:
    return "".join(f"_{character.lower()}" if character.isupper() else character for character in name)
