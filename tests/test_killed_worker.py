"""kill -9 between the commit and the answer: what was spent is spent, nobody has what was not sent, and it goes on."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.bursts import Answer, Call, post, together
from tests.factories import PASSWORD, totp

Serve = Callable[..., str]
Rows = Callable[..., list[dict[str, Any]]]

pytestmark = pytest.mark.services


@pytest.mark.faults("Q3")
def test_a_code_whose_answer_was_lost_is_burnt_and_the_next_one_works(serve: Serve, rows: Rows, done: Path) -> None:
    server = serve(TEST_KILL_AT=["login.completed", str(done)])
    secret, step = register(server), now()
    token = log_in(server)
    with pytest.raises(ConnectionError):
        verify(server, token, totp(secret, step))
    assert done.exists()
    again = verify(server, token, totp(secret, step + 1))
    assert (again.status, again.json["code"]) == (401, "invalid_pending_token")
    burnt = verify(server, log_in(server), totp(secret, step))
    assert (burnt.status, burnt.json["code"]) == (401, "invalid_code")
    assert verify(server, log_in(server), totp(secret, step + 1)).status == 200
    assert rows("SELECT last_step FROM mfa_secrets") == [{"last_step": step + 1}]


@pytest.mark.faults("Q3")
def test_a_recovery_code_whose_answer_was_lost_is_burnt_and_the_next_one_works(
    serve: Serve, rows: Rows, done: Path
) -> None:
    server = serve(TEST_KILL_AT=["recovery_code.used", str(done)])
    first, second = sign_in(server, register(server))["recoveryCodes"][:2]
    token = log_in(server)
    with pytest.raises(ConnectionError):
        recover(server, token, first)
    assert recover(server, log_in(server), first).status == 401
    answer = recover(server, log_in(server), second)
    assert (answer.status, answer.json["recoveryCodesLeft"]) == (200, 8)
    assert len(rows("SELECT digest FROM mfa_recovery_codes WHERE used_at IS NOT NULL")) == 2


@pytest.mark.faults("Q2")
def test_a_refresh_whose_answer_was_lost_is_given_the_same_successor_again(
    serve: Serve, rows: Rows, done: Path
) -> None:
    server = serve(TEST_KILL_AT=["session.refreshed", str(done)])
    refresh_token = sign_in(server, register(server))["refreshToken"]
    with pytest.raises(ConnectionError):
        refresh(server, refresh_token)
    assert rows("SELECT generation FROM mfa_sessions") == [{"generation": 1}]
    retries = [refresh(server, refresh_token) for _ in range(2)]
    assert [retry.status for retry in retries] == [200, 200]
    assert retries[0].json["refreshToken"] == retries[1].json["refreshToken"] != refresh_token
    assert rows("SELECT generation, revoked_at FROM mfa_sessions") == [{"generation": 1, "revoked_at": None}]
    assert profile(server, retries[0].json["accessToken"]).status == 200
    assert refresh(server, retries[0].json["refreshToken"]).status == 200


def test_a_copy_that_was_noticed_has_ended_the_session_although_nobody_was_told(
    serve: Serve, rows: Rows, done: Path
) -> None:
    server = serve(TEST_KILL_AT=["session.reused", str(done)])
    oldest = sign_in(server, register(server))["refreshToken"]
    newest = refresh(server, refresh(server, oldest).json["refreshToken"]).json
    with pytest.raises(ConnectionError):
        refresh(server, oldest)
    assert refresh(server, newest["refreshToken"]).status == 401
    assert profile(server, newest["accessToken"]).status == 401


@pytest.mark.faults("Q3")
def test_a_wrong_code_is_counted_although_nobody_was_told(serve: Serve, rows: Rows, done: Path) -> None:
    server = serve(TEST_KILL_AT=["login.code_refused", str(done)])
    register(server)
    token = log_in(server)
    with pytest.raises(ConnectionError):
        verify(server, token, "x")
    assert rows("SELECT attempts FROM mfa_challenges") == [{"attempts": 1}]
    assert rows("SELECT subject, failures FROM mfa_locks") == [{"subject": "totp", "failures": 1}]
    assert verify(server, token, "x").status == 401
    assert rows("SELECT subject, failures FROM mfa_locks") == [{"subject": "totp", "failures": 2}]


def test_a_wrong_recovery_code_is_counted_although_nobody_was_told(serve: Serve, rows: Rows, done: Path) -> None:
    server = serve(TEST_KILL_AT=["login.recovery_code_refused", str(done)])
    sign_in(server, register(server))
    token = log_in(server)
    with pytest.raises(ConnectionError):
        recover(server, token, "x")
    assert rows("SELECT subject, failures FROM mfa_locks") == [{"subject": "recovery_codes", "failures": 1}]


def test_a_wrong_password_is_counted_although_nobody_was_told(serve: Serve, rows: Rows, done: Path) -> None:
    server = serve(TEST_KILL_AT=["login.password_refused", str(done)])
    register(server)
    with pytest.raises(ConnectionError):
        post(server, "/auth/login", {"username": "ada", "password": "wrong"})
    assert {row["failures"] for row in rows("SELECT failures FROM mfa_locks")} == {1}
    assert log_in(server)


def test_a_logout_whose_answer_was_lost_has_happened(serve: Serve, done: Path) -> None:
    server = serve(TEST_KILL_AT=["session.ended", str(done)])
    tokens = sign_in(server, register(server))
    with pytest.raises(ConnectionError):
        post(server, "/auth/logout", {}, tokens["accessToken"])
    assert profile(server, tokens["accessToken"]).status == 401
    assert refresh(server, tokens["refreshToken"]).status == 401


# ── means ────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def done(tmp_path: Path) -> Path:
    """The file that is there once the worker has been killed."""
    return tmp_path / "killed"


def register(server: str) -> str:
    body = {"username": "ada", "password": PASSWORD, "email": "ada@example.com"}
    return str(post(server, "/auth/register", body).json["manualEntryKey"])


def log_in(server: str) -> str:
    return str(post(server, "/auth/login", {"username": "ada", "password": PASSWORD}).json["tempToken"])


def verify(server: str, token: str, code: str) -> Answer:
    return post(server, "/auth/verify-mfa", {"tempToken": token, "totpCode": code})


def recover(server: str, token: str, code: str) -> Answer:
    return post(server, "/auth/verify-mfa", {"tempToken": token, "recoveryCode": code})


def sign_in(server: str, secret: str) -> dict[str, Any]:
    answer = verify(server, log_in(server), totp(secret, now()))
    assert answer.status == 200, answer
    return answer.json


def refresh(server: str, token: str) -> Answer:
    return post(server, "/auth/refresh", {"refreshToken": token})


def profile(server: str, token: str) -> Answer:
    return together(server, [Call("/api/profile", token=token, method="GET")])[0]


def now() -> int:
    """The step of this moment, on the server's own clock."""
    return int(time.time()) // 30
