"""Challenges: five attempts, five minutes, one success, one user."""

from collections.abc import Callable

import pytest

from mfa_service.crypto.tokens import Pending
from mfa_service.errors import InvalidPendingToken
from mfa_service.services import Services
from tests.conftest import Clock
from tests.services import CLIENT, Rows, at_once, events, register, user_id_of


def test_an_open_challenge_takes_five_attempts(services: Services, challenge: Pending) -> None:
    outcomes = [attempt(services, challenge) for _ in range(7)]
    assert outcomes == [True] * 5 + [False] * 2


def test_an_attempt_is_on_disk_when_it_has_been_made(services: Services, challenge: Pending, rows: Rows) -> None:
    for spent in (1, 2, 3):
        attempt(services, challenge)
        assert rows("SELECT attempts FROM mfa_challenges") == [{"attempts": spent}]


def test_of_twenty_attempts_at_once_five_are_taken(services: Services, challenge: Pending, rows: Rows) -> None:
    outcomes = at_once(20, lambda _: attempt(services, challenge))
    assert sorted(outcomes, key=str) == [False] * 15 + [True] * 5
    assert rows("SELECT attempts FROM mfa_challenges") == [{"attempts": 5}]


def test_a_challenge_is_closed_once(services: Services, challenge: Pending) -> None:
    assert [close(services, challenge) for _ in range(2)] == [True, False]


def test_of_ten_that_close_it_at_once_one_does(services: Services, challenge: Pending) -> None:
    outcomes = at_once(10, lambda _: close(services, challenge))
    assert sorted(outcomes, key=str) == [False] * 9 + [True]


def test_a_closed_challenge_takes_no_attempt(services: Services, challenge: Pending, rows: Rows) -> None:
    close(services, challenge)
    assert not attempt(services, challenge)
    assert not is_open(services, challenge)
    assert rows("SELECT attempts FROM mfa_challenges") == [{"attempts": 0}]


def test_a_challenge_ends_after_five_minutes_sharp(services: Services, challenge: Pending, clock: Clock) -> None:
    clock.advance(299.9)
    assert is_open(services, challenge)
    assert attempt(services, challenge)
    clock.advance(0.1)
    assert not is_open(services, challenge)
    assert not attempt(services, challenge)


def test_who_has_come_in_time_may_close_it_later(services: Services, challenge: Pending, clock: Clock) -> None:
    clock.advance(299.9)
    assert attempt(services, challenge)
    clock.advance(0.1)
    assert [close(services, challenge) for _ in range(2)] == [True, False]


def test_with_its_attempts_spent_it_is_open_no_longer(services: Services, challenge: Pending) -> None:
    for _ in range(5):
        assert is_open(services, challenge)
        attempt(services, challenge)
    assert not is_open(services, challenge)


def test_looking_spends_nothing(services: Services, challenge: Pending, rows: Rows) -> None:
    for _ in range(9):
        assert is_open(services, challenge)
    assert rows("SELECT attempts, closed_at FROM mfa_challenges") == [{"attempts": 0, "closed_at": None}]


@pytest.mark.parametrize("act", ["attempt", "close", "is_open"])
def test_the_challenge_of_another_user_is_none(services: Services, challenge: Pending, rows: Rows, act: str) -> None:
    register(services, "bob")
    crossed = Pending(user_id_of(rows, "bob"), challenge.challenge_id)
    assert not {"attempt": attempt, "close": close, "is_open": is_open}[act](services, crossed)
    assert rows("SELECT attempts, closed_at FROM mfa_challenges") == [{"attempts": 0, "closed_at": None}]


def test_every_refusal_is_recorded_with_the_challenge(services: Services, challenge: Pending, rows: Rows) -> None:
    unknown = Pending(challenge.user_id, "x" * 22)
    for act in (attempt, close, is_open):
        assert not act(services, unknown)
    assert events(rows)[1:] == ["challenge.refused"] * 3
    assert {row["user_id"] for row in rows("SELECT user_id FROM mfa_events")} == {challenge.user_id}


def test_an_id_is_random(services: Services, challenge: Pending) -> None:
    ids = {services.unit.run(lambda: services.challenges.open(challenge.user_id), writes=True) for _ in range(50)}
    assert len(ids) == 50
    assert {len(challenge_id) for challenge_id in ids} == {22}


@pytest.fixture
def challenge(services: Services, rows: Rows) -> Pending:
    register(services, "ada")
    user_id = user_id_of(rows, "ada")
    return Pending(user_id, services.unit.run(lambda: services.challenges.open(user_id), writes=True))


def attempt(services: Services, pending: Pending) -> bool:
    return is_let(services, lambda: services.challenges.attempt(pending, CLIENT))


def close(services: Services, pending: Pending) -> bool:
    return is_let(services, lambda: services.challenges.close(pending, CLIENT))


def is_open(services: Services, pending: Pending) -> bool:
    return is_let(services, lambda: services.challenges.ensure_open(pending, CLIENT))


def is_let(services: Services, act: Callable[[], None]) -> bool:
    try:
        services.unit.run(act, writes=True)
    except InvalidPendingToken:
        return False
    return True
