"""The log is JSON, one line for each thing that happened; nobody writes into it, and nothing secret is in it."""

import base64
import json
import re
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, quote_plus

import pytest
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import create_engine, inspect

from tests.bursts import post
from tests.conftest import ROOT, Clock, free_port, running
from tests.factories import PASSWORD, bearer, log_in, register, sign_in, totp
from tests.pages import Browser

MakeApp = Callable[..., Flask]
Rows = Callable[..., list[dict[str, Any]]]
Lines = Callable[[], list[dict[str, Any]]]

FORGERIES = [
    '\r\n{"event":"login.completed","forged":true}',
    '\n{"event":"login.completed","forged":true}',
    '\u2028{"event":"login.completed","forged":true}',
    '\u2029{"event":"login.completed","forged":true}',
    '\u0085{"event":"login.completed","forged":true}',
    '","event":"login.completed","forged":true,"x":"',
    "\x1b[2J\x1b[31mforged",
    "\x9b2Jforged",
    "\u202eforged",
    "\x00forged",
    "%(event)s {event} ${event}forged",
]


def test_each_event_is_one_line_with_who_when_and_where(lines: Lines, make_app: MakeApp, clock: Clock) -> None:
    client = make_app().test_client()
    ada = register(client)
    sign_in(client, ada, clock())
    client.post("/auth/login", json={"username": ada.username, "password": "wrong"}, headers={"User-Agent": "tests/1"})
    written = events_in(lines())
    assert [line["event"] for line in written] == [
        "user.registered",
        "login.password_accepted",
        "factor.confirmed",
        "recovery_codes.issued",
        "login.completed",
        "login.password_refused",
    ]
    for line in written:
        assert line.keys() >= {"time", "level", "logger", "message", "userId", "address", "userAgent", "requestId"}
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(Z|[+]00:?00)", line["time"])
        assert (line["address"], line["userId"]) == ("127.0.0.1", written[0]["userId"])
    assert written[-1]["userAgent"] == "tests/1"


def test_the_line_of_a_crash_and_of_a_refusal_carry_the_id_that_the_client_was_given(
    lines: Lines, make_app: MakeApp
) -> None:
    app = make_app(MFA_AUTH_RATE_LIMIT="1 per hour")
    app.add_url_rule("/crash", view_func=crash)
    client = app.test_client()
    client.post("/auth/login", json={})
    lines()
    for method, path in (("GET", "/crash"), ("POST", "/auth/login")):
        answer = client.open(path, method=method, json={})
        assert {line["requestId"] for line in lines()} == {answer.headers["X-Request-Id"]}


def test_a_crash_is_logged_with_its_cause(lines: Lines, make_app: MakeApp) -> None:
    app = make_app()
    app.add_url_rule("/crash", view_func=crash)
    assert app.test_client().get("/crash").status_code == 500
    [line] = lines()
    assert line["level"] == "ERROR"
    assert "RuntimeError: out of tea" in line["exc_info"]


# ── requests, and refusals ───────────────────────────────────────────────────────────────────────


def test_a_request_is_a_line_that_holds_no_secret(lines: Lines, make_app: MakeApp) -> None:
    client = make_app(MFA_ACCESS_LOG=True).test_client()
    client.get("/api/profile?token=secret", headers={"X-Request-Id": "request-1234", "Authorization": "Bearer secret"})
    client.get("/secret/path")
    client.get("/healthz")
    refused, unknown, answered = written = requests_in(lines())
    assert {name: refused[name] for name in ("method", "path", "status", "code", "address", "requestId")} == {
        "method": "GET",
        "path": "/api/profile",
        "status": 401,
        "code": "invalid_token",
        "address": "127.0.0.1",
        "requestId": "request-1234",
    }
    assert list(refused)[-4:] == ["status", "code", "seconds", "address"]
    assert 0 <= refused["seconds"] < 5
    assert (unknown["path"], unknown["status"], unknown["code"]) == (None, 404, "not_found")
    assert (answered["path"], answered["status"]) == ("/healthz", 200)
    assert "code" not in answered
    assert "secret" not in json.dumps(written)


def test_without_the_setting_what_a_route_refuses_is_a_line_with_its_reason(
    lines: Lines, make_app: MakeApp, clock: Clock
) -> None:
    client = make_app(MFA_AUTH_RATE_LIMIT="3 per minute", MFA_TOKEN_LOCATIONS="header,cookie").test_client()
    ada, bob = register(client), register(client)
    token, other = sign_in(client, ada, clock()), sign_in(client, bob, clock())
    [theirs] = client.get("/api/sessions", headers=bearer(other)).json["items"]
    lines()
    client.get("/api/profile")
    client.get("/api/profile", headers=bearer(token + "x"))
    client.delete(f"/api/sessions/{theirs['id']}", headers=bearer(token))
    clock.advance(301)
    client.post("/api/mfa/recovery-codes", headers=bearer(token), json={})
    client.get("/api/admin/users", headers=bearer(token))
    client.post("/auth/sign-out", headers={"Origin": "https://evil.example"})
    for body in ({}, {"username": ["x"], "password": "p"}):
        client.post("/auth/login", json=body)
    assert [(line["path"], line["status"], line["code"]) for line in requests_in(lines())] == [
        ("/api/profile", 401, "no_token"),
        ("/api/profile", 401, "invalid_token"),
        ("/api/sessions/<session_id>", 404, "not_found"),
        ("/api/mfa/recovery-codes", 401, "step_up_required"),
        ("/api/admin/users", 403, "role_required"),
        ("/auth/sign-out", 403, "foreign_origin"),
        ("/auth/login", 400, "invalid_request"),
        ("/auth/login", 429, "too_many_attempts"),
    ]


def test_without_it_nothing_else_is_a_line_and_nobody_fills_the_log_with_paths(lines: Lines, make_app: MakeApp) -> None:
    client = make_app().test_client()
    client.get("/healthz")
    client.get("/secret/path")
    client.post("/healthz")
    assert lines() == []


def test_a_page_that_refuses_is_a_line_with_the_reason_too(lines: Lines, make_app: MakeApp) -> None:
    browser = Browser(make_app(MFA_TOKEN_LOCATIONS="header,cookie"))
    browser.post("/auth/sign-in", {"username": "nobody", "password": "typed"})
    browser.post("/auth/code", {"code": "123456"})
    written = requests_in(lines())
    assert [(line["path"], line["status"], line["code"]) for line in written] == [
        ("/auth/sign-in", 401, "invalid_credentials"),
        ("/auth/code", 303, "no_token"),
    ]


# ── nobody writes into it ────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("forgery", FORGERIES, ids=ascii)
def test_no_input_forges_a_line_or_a_member(lines: Lines, make_app: MakeApp, rows: Rows, forgery: str) -> None:
    client = make_app(MFA_TRUSTED_PROXIES=1).test_client()
    # As a server hands headers on: bytes, read as Latin-1.
    header = ("x" + forgery).encode().decode("latin-1")
    environ = {"HTTP_USER_AGENT": header, "HTTP_X_REQUEST_ID": header, "HTTP_X_FORWARDED_FOR": header}
    for member in ("username", "password", "email"):
        body = {"username": "ada", "password": PASSWORD, "email": "ada@example.com"} | {member: "x" + forgery}
        for path in ("/auth/register", "/auth/login"):
            assert client.post(path, json=body, environ_overrides=environ).status_code < 500
    written = lines()
    assert events_in(written)
    for line in written:
        assert "forged" not in line
        assert line.get("event") != "login.completed"
        assert line["address"] == "unknown"
        assert re.fullmatch(r"[0-9a-f]{32}", line["requestId"])
        assert line.get("userAgent", "").isprintable()
    for row in rows("SELECT user_agent, request_id, address FROM mfa_events"):
        assert all(value.isprintable() for value in row.values())
        assert row["address"] == "unknown"


def test_a_long_agent_is_cut_and_harms_nothing(lines: Lines, make_app: MakeApp) -> None:
    client = make_app().test_client()
    body = {"username": "nobody", "password": "wrong"}
    assert client.post("/auth/login", json=body, headers={"User-Agent": "é" * 5000}).status_code == 401
    [line] = events_in(lines())
    assert len(line["userAgent"]) == 256


# ── nothing secret is in it ──────────────────────────────────────────────────────────────────────


def test_no_secret_of_a_whole_walk_is_in_the_log_or_in_the_database(
    lines: Lines, make_app: MakeApp, clock: Clock, database: str, rows: Rows, instance: Path
) -> None:
    secrets = walk(make_app().test_client(), clock) | keys_of(instance)
    log, stored = "\n".join(map(json.dumps, lines())), dump(database, rows)
    assert "login.completed" in log
    assert "login.completed" in stored
    for name, secret in secrets.items():
        assert found(secret, log) == [], name
        assert found(secret, stored) == [], name


def test_a_name_that_nobody_has_is_not_logged_since_it_may_be_a_password(
    lines: Lines, make_app: MakeApp, database: str, rows: Rows
) -> None:
    client, typed = make_app().test_client(), "typed-into-the-wrong-field"
    client.post("/auth/login", json={"username": typed, "password": "ada"})
    client.post("/auth/login", json={"username": typed + "\x00", "password": "ada"})
    client.post("/auth/register", json={"username": typed + ":", "password": PASSWORD, "email": "ada@example.com"})
    assert found(typed, "\n".join(map(json.dumps, lines()))) == []
    assert found(typed, dump(database, rows)) == []


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_a_database_that_fails_does_not_pour_what_was_asked_into_the_log(
    lines: Lines, make_app: MakeApp, tmp_path: Path
) -> None:
    client = make_app(MFA_DATABASE_URL=f"sqlite:///{tmp_path / 'without-tables.db'}").test_client()
    lines()
    typed = {"username": "typed-into-the-wrong-field", "password": PASSWORD}
    for path in ("/auth/login", "/auth/register"):
        assert client.post(path, json=typed | {"email": "private@example.com"}).status_code >= 500
    log = "\n".join(map(json.dumps, lines()))
    assert "no such table" in log
    for secret in (*typed.values(), "private@example.com"):
        assert found(secret, log) == []


@pytest.mark.services
@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_all_that_a_real_server_writes_is_json_without_secrets(config: dict[str, Any], tmp_path: Path) -> None:
    log, port = tmp_path / "server.log", free_port()
    address = f"http://127.0.0.1:{port}"
    environment = {"PORT": str(port), "TEST_CONFIG": json.dumps(config), "PATH": ""}
    command = ["/bin/sh", "-c", f'exec "$@" >{log} 2>&1', "sh", sys.executable, "-m", "gunicorn", "tests.served:app"]
    ready = lambda: urllib.request.urlopen(f"{address}/healthz", timeout=2).close()  # noqa: E731
    with running([*command, "--log-level", "warning"], ready=ready, env=environment, cwd=ROOT):
        ada = {"username": "ada", "password": PASSWORD}
        secret = post(address, "/auth/register", ada | {"email": "ada@example.com"}).json["manualEntryKey"]
        pending = post(address, "/auth/login?password=in-the-query", ada).json["tempToken"]
        body = {"tempToken": pending, "totpCode": totp(secret, int(time.time()) // 30)}
        access = post(address, "/auth/verify-mfa", body).json["accessToken"]
        post(address, "/nowhere/in-the-path", {})
    written = [json.loads(line) for line in log.read_text().splitlines()]
    assert "login.completed" in {line.get("event") for line in written}
    for value in (PASSWORD, secret, pending, access, "in-the-query", "in-the-path"):
        assert found(value, log.read_text()) == []


# ── fixtures and helpers ─────────────────────────────────────────────────────────────────────────


@pytest.fixture
def lines(capsys: pytest.CaptureFixture[str]) -> Iterator[Lines]:
    """What was logged since the last call; every line has to be JSON. The app has to be made in the test itself:
    before it, standard error is another one.
    """

    def read() -> list[dict[str, Any]]:
        return [json.loads(line) for line in re.split(r"[\r\n\u0085\u2028\u2029]+", capsys.readouterr().err) if line]

    yield read
    read()


def events_in(written: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [line for line in written if line["logger"] == "mfa_service.audit"]


def requests_in(written: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [line for line in written if line["logger"] == "mfa_service.access"]


def crash() -> None:
    raise RuntimeError("out of tea")


def walk(client: FlaskClient, clock: Clock) -> dict[str, str]:
    """Everything that one can do, rightly and wrongly; returns each secret that was in it."""
    ada, lost = register(client), register(client, password="battery-staple-2048!")
    pending = log_in(client, ada)
    wrong = {"username": ada.username, "password": "wrong-horse-4711"}
    client.post("/auth/login", json=wrong)
    client.post("/auth/login", json=wrong | {"username": wrong["password"]})
    client.post("/auth/register", json=wrong | {"email": "a@example.com"})
    client.post(f"/auth/login?password={wrong['password']}", json={})
    wrong_code = ada.code(clock(), 50)
    for token, code in ((pending, wrong_code), ("x" + pending, ada.code(clock())), (pending, wrong["password"])):
        client.post("/auth/verify-mfa", json={"tempToken": token, "totpCode": code})
    access = sign_in(client, ada, clock())
    client.post("/auth/verify-mfa", json={"tempToken": pending, "totpCode": ada.code(clock())})
    client.post("/auth/verify-mfa", json={"tempToken": access, "totpCode": ada.code(clock())})
    client.post("/auth/enrol", json={"tempToken": log_in(client, ada)})
    enrolled = client.post("/auth/enrol", json={"tempToken": log_in(client, lost)}).json["manualEntryKey"]
    for token in (access, pending, access + "x"):
        client.get("/api/profile", headers=bearer(token))
        client.get(f"/api/profile?access_token={token}")
    secrets = {
        "password": PASSWORD,
        "other password": lost.password,
        "wrong password": wrong["password"],
        "pending token": pending,
        "access token": access,
        "signature of the access token": access.rpartition(".")[2],
        "claims of the access token": access.split(".")[1],
        "enrolled again": enrolled,
        "right code": ada.code(clock()),
        "wrong code": wrong_code,
    }
    return secrets | {f"secret of {person.username}": person.secret for person in (ada, lost)}


def keys_of(instance: Path) -> dict[str, str]:
    """The keys that the service runs on."""
    keyring = json.loads((instance / "keyring.json").read_text())
    pem = next((instance / "signing-keys").glob("*.pem")).read_text()
    return {"sealing key": keyring["keys"][0]["key"], "signing key": pem.splitlines()[1]}


def spellings(secret: str) -> set[str]:
    """The forms in which a secret could leak."""
    raws = {secret.encode()}
    if re.fullmatch("[A-Z2-7]{32}", secret):
        raws.add(base64.b32decode(secret))
    spelled = {secret, secret.lower(), quote(secret, safe=""), quote_plus(secret), json.dumps(secret)[1:-1]}
    for raw in raws:
        spelled |= {raw.hex(), raw.hex().upper(), base64.b32encode(raw).decode().rstrip("=")}
        # Only whole groups: the last characters depend on what follows.
        spelled |= {base64.b64encode(raw)[: len(raw) // 3 * 4].decode()}
        spelled |= {base64.urlsafe_b64encode(raw)[: len(raw) // 3 * 4].decode()}
    return spelled


def found(secret: str, text: str) -> list[str]:
    """The spellings of a secret that stand in a text; six digits count only if they stand alone."""
    if re.fullmatch("[0-9]{6}", secret):
        return re.findall(rf"(?<![0-9A-Za-z_.-]){secret}(?![0-9A-Za-z_-])", text)
    return [spelling for spelling in spellings(secret) if spelling in text]


def dump(database: str, rows: Rows) -> str:
    """Every value of every table; bytes as text, as hex, and as base64."""
    engine = create_engine(database)
    tables = inspect(engine).get_table_names()
    engine.dispose()
    values = [value for table in tables for row in rows(f"SELECT * FROM {table}") for value in row.values()]
    return "\n".join(text for value in values for text in texts(value))


def texts(value: object) -> list[str]:
    if isinstance(value, (bytes, memoryview)):
        raw = bytes(value)
        return [raw.decode("latin-1"), raw.hex(), base64.b64encode(raw).decode()]
    return [str(value)]
