"""Nobody learns from an answer which accounts exist, or how they stand."""

import statistics
import time
from collections.abc import Callable
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from mfa_service.crypto.vault import Vault
from mfa_service.services import load_keys
from tests.conftest import Clock
from tests.factories import PASSWORD, Person, log_in, register, sign_in

MakeApp = Callable[..., Flask]
Rows = Callable[..., list[dict[str, Any]]]

UNKNOWN = [
    "nobody",
    "ＮＯＢＯＤＹ",
    "",
    " ",
    "two words",
    "a:b",
    "nobody@example.com",
    "аdmin",
    "\u200bnobody",
    "\u202enobody",
    "\ue000",
    "x" * 65,
    "x" * 256,
    "ﷺ" * 64,
    "😀",
    "' OR 1=1 --",
]


def test_whatever_is_wrong_with_a_login_the_answer_is_the_same_to_the_byte(
    client: FlaskClient, people: dict[str, Person]
) -> None:
    refusals = {kind: attempt(client, person.username, "wrong-" + PASSWORD) for kind, person in people.items()}
    refusals |= {f"unknown {name!r}": attempt(client, name, PASSWORD) for name in UNKNOWN}
    refusals["disabled, right password"] = attempt(client, people["disabled"].username, PASSWORD)
    refusals["unreadable, right password"] = attempt(client, people["unreadable"].username, PASSWORD)
    expected = signature(refusals["confirmed"])
    assert expected[0] == 401
    assert expected[1] == b'{"error":"Invalid credentials","code":"invalid_credentials"}\n'
    for kind, answer in refusals.items():
        assert signature(answer) == expected, kind


@pytest.mark.parametrize("password", ["", "x", "x" * 72, "x" * 73, "x" * 1024, "é" * 500, "😀" * 256, "\u2028"])
def test_no_password_tells_a_known_name_from_an_unknown_one(
    client: FlaskClient, people: dict[str, Person], password: str
) -> None:
    known, unknown = attempt(client, people["confirmed"].username, password), attempt(client, "nobody", password)
    assert known.status_code == 401
    assert signature(known) == signature(unknown)


def test_a_body_of_wrong_form_is_refused_alike_for_known_and_unknown_names(
    client: FlaskClient, people: dict[str, Person]
) -> None:
    for password in ("x" * 1025, "\x00", None, ["a", "b"], 1, True, {}):
        known, unknown = attempt(client, people["confirmed"].username, password), attempt(client, "nobody", password)
        assert known.status_code == 400
        assert signature(known) == signature(unknown)


def test_who_is_over_the_limit_learns_nothing_either(make_app: MakeApp, people: dict[str, Person]) -> None:
    last = []
    for name in (people["confirmed"].username, "nobody"):
        client = make_app(MFA_AUTH_RATE_LIMIT="5 per hour").test_client()
        answers = [attempt(client, name, "wrong") for _ in range(6)]
        assert [answer.status_code for answer in answers] == [401] * 5 + [429]
        last.append({**answers[-1].json, "retryAfter": None} | dict.fromkeys(answers[-1].headers.keys()))
    assert last[0] == last[1]


def test_a_wrong_password_leaves_the_same_number_of_rows_for_known_and_unknown_names(
    client: FlaskClient, people: dict[str, Person], rows: Rows
) -> None:
    counts = []
    for name in (people["confirmed"].username, "nobody", "аdmin"):
        before = total(rows)
        attempt(client, name, "wrong")
        counts.append(total(rows) - before)
    assert len(set(counts)) == 1


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_an_unknown_name_costs_a_hash_too(make_app: MakeApp, clock: Clock) -> None:
    register(make_app(MFA_BCRYPT_COST=8).test_client(), "before-the-cost-was-raised")
    client = make_app(MFA_BCRYPT_COST=10).test_client()
    register(client, "ada")
    names = ["ada", "nobody", "аdmin", "", "before-the-cost-was-raised"]
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(7):
        for name in names:
            started = time.process_time()  # of this process alone: others may be at work beside it
            attempt(client, name, "wrong")
            seconds[name].append(time.process_time() - started)
    # Without the hash it is a hundredth; the statistics over many requests are the attack suite's.
    medians = {name: statistics.median(taken) for name, taken in seconds.items()}
    assert max(medians.values()) < 2 * min(medians.values()), medians


# ── and after a right password ───────────────────────────────────────────────────────────────────


def test_a_right_password_yields_a_pending_token_and_nothing_else(
    client: FlaskClient, people: dict[str, Person], rows: Rows
) -> None:
    answer = attempt(client, people["confirmed"].username, PASSWORD)
    assert answer.status_code == 200
    assert answer.json == {
        "tempToken": answer.json["tempToken"],
        "message": "Credentials valid, provide TOTP code",
        "tokenType": "Bearer",
        "expiresIn": 300,
        "mfaRequired": True,
        "enrolmentRequired": False,
        "methods": ["totp", "recovery_code"],
    }
    assert "Set-Cookie" not in answer.headers
    assert len(rows("SELECT * FROM mfa_sessions")) == 1  # the one of the fixture


def test_only_the_right_password_says_whether_there_is_a_second_factor(
    client: FlaskClient, people: dict[str, Person]
) -> None:
    for kind, methods in (("confirmed", ["totp", "recovery_code"]), ("not enrolled", [])):
        assert attempt(client, people[kind].username, PASSWORD).json["methods"] == methods
        assert "methods" not in attempt(client, people[kind].username, "wrong").json


def test_a_wrong_a_used_and_a_senseless_code_are_refused_alike(
    client: FlaskClient, people: dict[str, Person], clock: Clock
) -> None:
    ada = people["confirmed"]
    used = ada.code(clock())  # by the fixture
    far = ada.code(clock(), 100)
    codes = [
        used,
        far,
        "",
        "x",
        "12345",
        "1234567",
        " " + used,
        used + "=",
        "１２３４５６",
        "²²²²²²",
        "-12345",
        "x" * 9999,
    ]
    refusals = [verify(client, log_in(client, ada), code) for code in codes]
    assert refusals[0].json == {"error": "Invalid TOTP code", "code": "invalid_code"}
    for code, answer in zip(codes, refusals, strict=True):
        assert signature(answer) == signature(refusals[0]), code


def test_a_pending_token_says_nothing_of_why_it_is_refused(
    client: FlaskClient, people: dict[str, Person], clock: Clock, rows: Rows
) -> None:
    ada = people["confirmed"]
    expired = log_in(client, ada)
    clock.advance(301)
    disabled, spent, exhausted = (log_in(client, ada) for _ in range(3))
    assert verify(client, spent, ada.code(clock())).status_code == 200
    assert {verify(client, exhausted, "000000").status_code for _ in range(5)} == {401}
    clock.advance(30)
    good = [ada.code(clock())] * 4
    refusals = [verify(client, token, code) for token, code in zip((expired, spent, exhausted, "x"), good, strict=True)]
    rows("UPDATE mfa_users SET disabled_at = created_at")
    refusals.append(verify(client, disabled, good[0]))
    assert refusals[0].json == {"error": "MFA verification failed", "code": "invalid_pending_token"}
    for answer in refusals:
        assert signature(answer) == signature(refusals[0])


def test_a_profile_says_nothing_of_why_a_token_is_refused(
    client: FlaskClient, people: dict[str, Person], clock: Clock, rows: Rows
) -> None:
    ada, bob = people["confirmed"], register(client)
    expired = sign_in(client, ada, clock(), 1)
    clock.advance(3601)
    revoked, disabled = sign_in(client, ada, clock()), sign_in(client, bob, clock())
    rows(f"UPDATE mfa_sessions SET revoked_at = created_at {OF_USER}", name=ada.username)
    rows("UPDATE mfa_users SET disabled_at = created_at WHERE username = :name", name=bob.username)
    tokens = [expired, revoked, disabled, revoked[:-4] + "AAAA", "x", "x.y.z", "\xff"]
    refusals = [client.get("/api/profile", headers={"Authorization": f"Bearer {token}"}) for token in tokens]
    assert refusals[0].json == {"error": "Invalid or expired token", "code": "invalid_token"}
    for token, answer in zip(tokens, refusals, strict=True):
        assert signature(answer) == signature(refusals[0]), token


# ── fixtures and helpers ─────────────────────────────────────────────────────────────────────────


OF_USER = "WHERE user_id = (SELECT id FROM mfa_users WHERE username = :name)"


@pytest.fixture
def people(client: FlaskClient, clock: Clock, rows: Rows) -> dict[str, Person]:
    """Accounts of every kind, all with the same password."""
    names = ("confirmed", "not enrolled", "without a secret", "disabled", "unreadable")
    kinds = {kind: register(client) for kind in names}
    sign_in(client, kinds["confirmed"], clock())
    rows(f"DELETE FROM mfa_secrets {OF_USER}", name=kinds["without a secret"].username)
    rows("UPDATE mfa_users SET disabled_at = created_at WHERE username = :name", name=kinds["disabled"].username)
    spoil(client, rows, kinds["unreadable"])
    return kinds


def spoil(client: FlaskClient, rows: Rows, person: Person) -> None:
    """Seal something in place of the hash that is none."""
    [user] = rows("SELECT id FROM mfa_users WHERE username = :name", name=person.username)
    services = client.application.extensions["mfa_service"].services
    vault = Vault(load_keys(services.settings, time.time)[0])
    sealed = vault.seal(b"garbage", f"mfa_users.sealed_password:{user['id']}")
    rows("UPDATE mfa_users SET sealed_password = :sealed WHERE id = :id", sealed=sealed, id=user["id"])


def attempt(client: FlaskClient, username: str, password: object) -> TestResponse:
    return client.post("/auth/login", json={"username": username, "password": password})


def verify(client: FlaskClient, token: str, code: str) -> TestResponse:
    return client.post("/auth/verify-mfa", json={"tempToken": token, "totpCode": code})


def signature(answer: TestResponse) -> tuple[int, bytes, list[tuple[str, str]]]:
    """All that a client sees of an answer, in order, but for the request's id and the date."""
    headers = [(name, value) for name, value in answer.headers.items() if name not in ("X-Request-Id", "Date")]
    return answer.status_code, answer.data, headers


def total(rows: Rows) -> int:
    tables = ("mfa_users", "mfa_secrets", "mfa_challenges", "mfa_sessions", "mfa_events")
    return sum(rows(f"SELECT count(*) AS n FROM {table}")[0]["n"] for table in tables)
