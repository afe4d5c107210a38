"""The timer: one thread, from the first request on, until the service is closed; no failure is the last round."""

import logging
import threading
from collections.abc import Callable

import pytest

from mfa_service.errors import Unavailable
from mfa_service.services.timer import Timer
from tests.services import at_once

SOON = 0.01


def test_it_works_again_and_again(timer: Callable[..., Timer]) -> None:
    rounds = Rounds(3)
    timer(rounds, SOON).ensure_running()
    assert rounds.done.wait(10)


def test_a_round_that_fails_is_logged_and_the_next_goes_on(
    timer: Callable[..., Timer], caplog: pytest.LogCaptureFixture
) -> None:
    rounds = Rounds(3, failing=2)
    timer(rounds, SOON).ensure_running()
    assert rounds.done.wait(10)
    failures = [it for it in caplog.records if it.levelno == logging.ERROR]
    assert [it.getMessage() for it in failures] == ["a round of the tests failed"] * 2
    assert all(it.exc_info and isinstance(it.exc_info[1], ZeroDivisionError) for it in failures)


def test_that_the_database_is_out_of_order_is_not_said_again(
    timer: Callable[..., Timer], caplog: pytest.LogCaptureFixture
) -> None:
    rounds = Rounds(3, failing=2, failure=Unavailable())
    timer(rounds, SOON).ensure_running()
    assert rounds.done.wait(10)
    assert caplog.records == []


def test_nothing_runs_before_it_is_asked_to(timer: Callable[..., Timer]) -> None:
    rounds = Rounds(1)
    timer(rounds, SOON)
    assert not rounds.done.wait(20 * SOON)
    assert running() == []


def test_zero_is_never(timer: Callable[..., Timer]) -> None:
    rounds = Rounds(1)
    timer(rounds, 0).ensure_running()
    assert running() == []
    assert not rounds.done.wait(20 * SOON)


def test_many_that_start_it_at_once_start_one_thread(timer: Callable[..., Timer]) -> None:
    idle = timer(Rounds(1), 3600)
    at_once(16, lambda _number: idle.ensure_running())
    assert len(running()) == 1


def test_closing_ends_the_thread_at_once_however_long_the_pause(timer: Callable[..., Timer]) -> None:
    idle = timer(Rounds(1), 3600)
    idle.ensure_running()
    assert len(running()) == 1
    idle.close()
    assert running() == []


def test_closing_waits_for_the_round_that_is_on(timer: Callable[..., Timer]) -> None:
    began, may_end, ended = threading.Event(), threading.Event(), threading.Event()

    def work() -> None:
        began.set()
        may_end.wait(10)
        ended.set()

    slow = timer(work, SOON)
    slow.ensure_running()
    assert began.wait(10)
    threading.Timer(0.1, may_end.set).start()
    slow.close()
    assert ended.is_set()
    assert running() == []


def test_what_never_ran_is_closed_without_ado_and_stays_closed(timer: Callable[..., Timer]) -> None:
    rounds = Rounds(1)
    closed = timer(rounds, SOON)
    closed.close()
    closed.close()
    closed.ensure_running()
    assert not rounds.done.wait(20 * SOON)


def test_it_does_not_keep_a_process_alive(timer: Callable[..., Timer]) -> None:
    timer(Rounds(1), 3600).ensure_running()
    assert all(thread.daemon for thread in running())


# ── means ────────────────────────────────────────────────────────────────────────────────────────


class Rounds:
    """Work that counts, and whose first rounds may fail."""

    def __init__(self, count: int, *, failing: int = 0, failure: Exception | None = None) -> None:
        self.left = count
        self.failing = failing
        self.failure = failure or ZeroDivisionError()
        self.done = threading.Event()

    def __call__(self) -> None:
        self.left -= 1
        if self.left <= 0:
            self.done.set()
        if self.failing:
            self.failing -= 1
            raise self.failure


@pytest.fixture
def timer(request: pytest.FixtureRequest) -> Callable[..., Timer]:
    def make(work: Callable[[], None], seconds: float) -> Timer:
        made = Timer("tests", work, seconds)
        request.addfinalizer(made.close)
        return made

    return make


def running() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "tests"]
