"""What must happen once happens once, over four worker processes, on SQLite and on PostgreSQL."""

import time
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import pytest

from tests.bursts import Answer, burst, post
from tests.factories import PASSWORD, totp

pytestmark = pytest.mark.services
ROUNDS = 20


def test_fifty_pending_tokens_and_one_code_give_one_success(server: str, rows: Callable[..., Any]) -> None:
    for number in range(ROUNDS):
        secret = _register(server, f"one{number}")
        code = _code(secret)
        answers = burst(
            server, "/auth/verify-mfa", [_proof(token, code) for token in _log_in(server, f"one{number}", 50)]
        )
        assert _statuses(answers) == {200: 1, 401: 49}
    assert len(rows("SELECT id FROM mfa_sessions")) == ROUNDS
    assert len(rows("SELECT id FROM mfa_events WHERE event = 'login.code_replayed'")) == 49 * ROUNDS


def test_one_pending_token_and_one_code_sent_fifty_times_give_one_success(server: str) -> None:
    for number in range(ROUNDS):
        secret = _register(server, f"same{number}")
        (token,) = _log_in(server, f"same{number}", 1)
        answers = burst(server, "/auth/verify-mfa", [_proof(token, _code(secret))] * 50)
        assert _statuses(answers) == {200: 1, 401: 49}


def test_of_fifty_wrong_codes_at_once_five_are_looked_at(server: str, rows: Callable[..., Any]) -> None:
    for number in range(ROUNDS):
        secret = _register(server, f"wrong{number}")
        (token,) = _log_in(server, f"wrong{number}", 1)
        burst(server, "/auth/verify-mfa", [_proof(token, _wrong(secret))] * 50)
        assert post(server, "/auth/verify-mfa", _proof(token, _code(secret))).json["code"] == "invalid_pending_token"
    assert len(rows("SELECT id FROM mfa_events WHERE event = 'login.code_refused'")) == 5 * ROUNDS
    assert {row["attempts"] for row in rows("SELECT attempts FROM mfa_challenges")} == {5}


def test_of_two_different_steps_at_once_the_older_is_never_accepted_after_the_newer(server: str) -> None:
    for number in range(ROUNDS):
        secret = _register(server, f"steps{number}")
        tokens = _log_in(server, f"steps{number}", 21)
        older, newer = _code(secret, -1), _code(secret)
        proofs = [_proof(token, code) for token, code in zip(tokens, [older, newer] * 10, strict=False)]
        assert 1 <= _statuses(burst(server, "/auth/verify-mfa", proofs))[200] <= 2
        assert post(server, "/auth/verify-mfa", _proof(tokens[-1], older)).status == 401


def test_of_twenty_registrations_of_one_name_one_succeeds(server: str, rows: Callable[..., Any]) -> None:
    for number in range(ROUNDS):
        spellings = [f"name{number}", f"NAME{number}", f"Name{number}", f"ｎａｍｅ{number}"] * 5
        answers = burst(server, "/auth/register", [_account(name) for name in spellings])
        refused = [answer for answer in answers if answer.status != 200]
        assert len(refused) == 19
        assert {answer.json["code"] for answer in refused} <= {"user_exists", "busy"}
    assert len(rows("SELECT id FROM mfa_users")) == len(rows("SELECT id FROM mfa_secrets")) == ROUNDS


def test_of_ten_enrolments_at_once_one_key_is_alive(server: str, rows: Callable[..., Any]) -> None:
    for number in range(ROUNDS):
        _register(server, f"enrol{number}")
        tokens = _log_in(server, f"enrol{number}", 20)
        answers = burst(server, "/auth/enrol", [{"tempToken": token} for token in tokens[:10]])
        assert _statuses(answers) == {200: 10}
        proofs = [_proof(t, _code(a.json["manualEntryKey"])) for t, a in zip(tokens[10:], answers, strict=True)]
        assert _statuses(burst(server, "/auth/verify-mfa", proofs))[200] == 1
    assert len(rows("SELECT id FROM mfa_secrets")) == ROUNDS


def test_enrolling_while_verifying_never_confirms_a_key_that_was_not_shown_last(server: str) -> None:
    for number in range(ROUNDS):
        shown = _register(server, f"both{number}")
        first, second, third = _log_in(server, f"both{number}", 3)
        enrolled = burst(server, "/auth/enrol", [{"tempToken": first}])[0]
        verified = post(server, "/auth/verify-mfa", _proof(second, _code(shown)))
        assert (enrolled.status, verified.status) == (200, 401)
        assert post(server, "/auth/verify-mfa", _proof(third, _code(enrolled.json["manualEntryKey"]))).status == 200


# ── means ────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def server(serve: Callable[..., str], redis: str) -> str:
    return serve(workers=4, MFA_REDIS_URL=redis, MFA_HASHING_QUEUE=50)


def _register(server: str, username: str) -> str:
    answer = post(server, "/auth/register", _account(username))
    assert answer.status == 200, answer
    return str(answer.json["manualEntryKey"])


def _account(username: str) -> dict[str, str]:
    return {"username": username, "password": PASSWORD, "email": "someone@example.com"}


def _log_in(server: str, username: str, times: int) -> list[str]:
    answers = burst(server, "/auth/login", [{"username": username, "password": PASSWORD}] * times)
    assert _statuses(answers) == {200: times}
    return [answer.json["tempToken"] for answer in answers]


def _proof(token: str, code: str) -> dict[str, str]:
    return {"tempToken": token, "totpCode": code}


def _code(secret: str, steps: int = 0) -> str:
    return totp(secret, int(time.time()) // 30 + steps)


def _wrong(secret: str) -> str:
    near = {_code(secret, steps) for steps in range(-4, 5)}
    return next(code for code in ("000000", "000001", "111111") if code not in near)


def _statuses(answers: Iterable[Answer]) -> Counter[int]:
    return Counter(answer.status for answer in answers)
