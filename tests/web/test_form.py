"""What every route that takes JSON does with a body: the good, the broken and the hostile (API.md, Form)."""

import contextlib
import gzip
import http.client
import io
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode, urlsplit

import pytest
from flask import Flask
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from mfa_service.errors import published
from mfa_service.web.contract import contract_of

KIB = 1024


def test_the_routes_under_test_are_all_that_take_a_body(app: Flask, routes: "list[Route]") -> None:
    assert {route.path for route in routes} == {
        rule.rule for rule in app.url_map.iter_rules() if {"POST", "PUT", "PATCH"} & rule.methods
    }
    assert {route.path for route in routes} >= {"/auth/register", "/auth/login", "/auth/verify-mfa", "/auth/enrol"}


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
def test_anything_but_json_in_utf_8_is_415(client: FlaskClient, routes: "list[Route]", content_type: str) -> None:
    for route in routes:
        answer = client.post(route.path, data=json.dumps(route.good), content_type=content_type)
        assert_refused(answer, 415, "unsupported_media_type")


@pytest.mark.parametrize(
    "content_type",
    ["application/json", "Application/JSON", "application/json;charset=UTF-8", 'application/json; v="1"'],
)
def test_json_is_json_however_its_name_is_spelled(
    client: FlaskClient, routes: "list[Route]", content_type: str
) -> None:
    for route in routes:
        assert client.post(route.path, data="{}", content_type=content_type).json["code"] == "invalid_request"


def test_forms_and_files_are_415(client: FlaskClient, routes: "list[Route]") -> None:
    for route in routes:
        multipart = dict.fromkeys(route.good, "x") | {"file": (io.BytesIO(b"{}"), "x.json", "application/json")}
        answer = client.post(route.path, data=multipart, content_type="multipart/form-data")
        assert_refused(answer, 415, "unsupported_media_type")


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "x-unknown"])
def test_a_compressed_body_is_415_and_stays_packed(client: FlaskClient, routes: "list[Route]", encoding: str) -> None:
    bomb = gzip.compress(b" " * 10_000 * KIB)
    for route in routes:
        answer = client.post(route.path, data=bomb, headers=JSON | {"Content-Encoding": encoding})
        assert_refused(answer, 415, "unsupported_media_type")


# ── the size ─────────────────────────────────────────────────────────────────────────────────────


def test_a_body_may_be_64_kib_and_not_a_byte_more(client: FlaskClient, routes: "list[Route]") -> None:
    for route in routes:
        assert client.post(route.path, data=b"{}".ljust(64 * KIB), headers=JSON).status_code == 400
        assert_refused(client.post(route.path, data=b"{}".ljust(64 * KIB + 1), headers=JSON), 413, "payload_too_large")


@pytest.mark.services
@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_a_chunked_body_without_a_length_ends_at_64_kib_too(serve: Callable[..., str], routes: "list[Route]") -> None:
    address = serve()
    for route in routes:
        small, large = ([b"{}".ljust(KIB)] + [b" " * KIB] * chunks for chunks in (62, 200))
        assert post_chunked(address, route.path, small)[0] == 400
        status, body = post_chunked(address, route.path, large)
        assert (status, body["code"]) == (413, "payload_too_large")


@pytest.mark.services
@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_bottomless_nesting_leaves_the_worker_alive(serve: Callable[..., str], routes: "list[Route]") -> None:
    address = serve()
    for route in routes:
        for deep in (b"[" * 60 * KIB, b'{"a":' * 10 * KIB):
            status, body = post_chunked(address, route.path, [deep])
            assert (status, body["code"]) == (400, "invalid_request")
    assert post_chunked(address, "/auth/login", [b"{}"])[0] == 400


# ── the JSON ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("value", ["null", "[]", "[{}]", '"x"', "1", "1.5", "true", "false", '""', "[[[]]]"])
def test_the_body_must_be_an_object(client: FlaskClient, routes: "list[Route]", value: str) -> None:
    for route in routes:
        answer = client.post(route.path, data=value, headers=JSON)
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
def test_what_is_not_json_in_utf_8_is_400(client: FlaskClient, routes: "list[Route]", body: bytes) -> None:
    for route in routes:
        answer = client.post(route.path, data=body, headers=JSON)
        assert_refused(answer, 400, "invalid_request")
        assert answer.json["fields"] == {"body": "is not JSON in UTF-8"}


def test_nesting_may_be_20_deep_and_no_deeper(client: FlaskClient, routes: "list[Route]") -> None:
    for route in routes:
        deepest, too_deep = ('{"x": ' + "[" * depth + "]" * depth + "}" for depth in (19, 20))
        assert "body" not in client.post(route.path, data=deepest, headers=JSON).json["fields"]
        assert "body" in client.post(route.path, data=too_deep, headers=JSON).json["fields"]


@pytest.mark.parametrize("number", ["1e400", "-1e400", "9" * 4000, "1e-400", "-0", "9223372036854775808"])
def test_a_monstrous_number_in_an_unknown_member_harms_nobody(
    client: FlaskClient, routes: "list[Route]", number: str
) -> None:
    for route in routes:
        answer = client.post(route.path, data=f'{{"surplus": {number}}}', headers=JSON)
        assert answer.json["fields"] == dict.fromkeys(route.good, "is required")


def test_the_last_of_two_members_of_one_name_counts(client: FlaskClient, routes: "list[Route]") -> None:
    for route in routes:
        for member in route.strings:
            good = json.dumps(route.good)[1:-1]
            wrong_last = client.post(route.path, data=f'{{{good}, "{member}": 1}}', headers=JSON)
            assert wrong_last.json["fields"] == {member: "must be a string"}
            wrong_first = client.post(route.path, data=f'{{"{member}": 1, {good}}}', headers=JSON)
            assert (
                member not in wrong_first.json.get("fields", {})
                or wrong_first.json["fields"][member] != "must be a string"
            )


# ── the members ──────────────────────────────────────────────────────────────────────────────────


def test_every_missing_member_is_named(client: FlaskClient, routes: "list[Route]") -> None:
    for route in routes:
        assert client.post(route.path, json={}).json["fields"] == dict.fromkeys(route.good, "is required")
        for member in route.good:
            rest = {name: value for name, value in route.good.items() if name != member}
            answer = client.post(route.path, json=rest)
            assert_refused(answer, 400, "invalid_request")
            assert answer.json["fields"] == {member: "is required"}


@pytest.mark.parametrize("value", [None, 1, 1.5, 2**63, -1, True, [], ["x", "y"], {}, {"$gt": ""}], ids=repr)
def test_a_member_of_a_wrong_type_is_named(client: FlaskClient, routes: "list[Route]", value: object) -> None:
    for route in routes:
        for member in route.strings:
            answer = client.post(route.path, json=route.good | {member: value})
            assert_refused(answer, 400, "invalid_request")
            assert answer.json["fields"] == {member: "must be a string"}


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
    client: FlaskClient, routes: "list[Route]", character: str, place: str
) -> None:
    for route in routes:
        for member in route.strings:
            body = json.dumps(route.good | {member: "@"}).replace('"@"', f'"{place.replace("{}", character)}"')
            answer = client.post(route.path, data=body, headers=JSON)
            assert_refused(answer, 400, "invalid_request")
            assert set(answer.json["fields"]) == {member}


@pytest.mark.parametrize(
    "text", ["", " ", "é", "１２３４５６", "²", "\u2028", "\u202e", "\ufeff", "\uffff", "\U0010ffff", "😀" * 64]
)
def test_other_characters_than_ascii_crash_nothing(client: FlaskClient, routes: "list[Route]", text: str) -> None:
    for route in routes:
        for member in route.strings:
            assert_ours(client.post(route.path, json=route.good | {member: text}))


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
def test_what_other_languages_take_for_code_is_text(client: FlaskClient, routes: "list[Route]", text: str) -> None:
    for route in routes:
        for member in route.strings:
            answer = client.post(route.path, json=route.good | {member: text})
            assert_ours(answer)
            assert text not in answer.text


def test_a_refusal_never_repeats_what_was_sent(client: FlaskClient, routes: "list[Route]") -> None:
    for route in routes:
        for member in route.strings:
            for value in ("sent-by-me\x00", ["sent-by-me"], "sent-by-me" * 2000):
                assert "sent-by-me" not in client.post(route.path, json=route.good | {member: value}).text


def test_unknown_members_are_ignored(client: FlaskClient, routes: "list[Route]") -> None:
    for route in routes:
        surplus = {
            "surplus": {"a": [1, None]},
            "user_id": "1",
            "__class__": "x",
            "": 0,
            "\ud800": "\ud800",
            "\x00": "\n",
        }
        without, with_surplus = (client.post(route.path, json=body) for body in (route.bad, route.bad | surplus))
        assert with_surplus.status_code == without.status_code
        assert with_surplus.json == without.json


def test_a_member_has_one_spelling(client: FlaskClient, routes: "list[Route]") -> None:
    for route in routes:
        for spell in (str.upper, str.capitalize, snake_case):
            for member in (name for name in route.good if spell(name) != name):
                respelled = {spell(name) if name == member else name: value for name, value in route.good.items()}
                assert client.post(route.path, json=respelled).json["fields"] == {member: "is required"}


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


def test_a_query_string_and_headers_are_no_substitute_for_the_body(client: FlaskClient, routes: "list[Route]") -> None:
    for route in routes:
        answer = client.post(f"{route.path}?{urlencode(route.good)}", json={}, headers=route.good)
        assert answer.json["fields"] == dict.fromkeys(route.good, "is required")
        # And twice the same parameter, in both places, decides nothing either.
        assert (
            client.post(f"{route.path}?username=a&username=b", json=route.bad).json
            == client.post(route.path, json=route.bad).json
        )


# ── fixtures and helpers ─────────────────────────────────────────────────────────────────────────

JSON = {"Content-Type": "application/json"}
CODES = {error.code for error in published()}


@dataclass(frozen=True)
class Route:
    """A route that takes JSON, with a body of the right form."""

    path: str
    good: dict[str, Any]

    @property
    def strings(self) -> list[str]:
        return [name for name, value in self.good.items() if isinstance(value, str)]

    @property
    def bad(self) -> dict[str, Any]:
        """A body of the right form that every route refuses, and always alike."""
        return self.good | {"email": "nowhere"}


@pytest.fixture
def routes(app: Flask) -> list[Route]:
    return list(_json_routes(app))


def _json_routes(app: Flask) -> Iterator[Route]:
    for rule in app.url_map.iter_rules():
        body = contract_of(app.view_functions[rule.endpoint]).takes
        if body:
            schema = body.model_json_schema()
            samples = {"string": "x-1234", "boolean": True, "integer": 1}
            good = {name: samples[schema["properties"][name]["type"]] for name in schema["required"]}
            yield Route(rule.rule, good)


def assert_refused(answer: TestResponse, status: int, code: str) -> None:
    assert (answer.status_code, answer.json["code"]) == (status, code), answer.text
    assert_ours(answer)


def assert_ours(answer: TestResponse) -> None:
    """No crash, and our form where it is a refusal."""
    assert answer.status_code < 500
    assert answer.mimetype == "application/json"
    if answer.status_code >= 400:
        assert answer.json["code"] in CODES
        assert answer.json["error"]
        assert answer.json.keys() <= {"error", "code", "fields", "retryAfter"}


def post_chunked(address: str, path: str, chunks: list[bytes]) -> tuple[int, dict[str, Any]]:
    """POST without a Content-Length; the server may hang up before it has all of it."""
    connection = http.client.HTTPConnection(urlsplit(address).netloc, timeout=10)
    with contextlib.closing(connection):
        with contextlib.suppress(ConnectionError):
            connection.request("POST", path, iter(chunks), JSON, encode_chunked=True)
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())


def snake_case(name: str) -> str:
    return "".join(f"_{character.lower()}" if character.isupper() else character for character in name)
