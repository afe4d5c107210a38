"""So many at the database at once: the others wait where that helps, and are refused at once where it does not."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from mfa_service.errors import Unavailable
from mfa_service.services.admission import Admission


def test_whoever_is_one_too_many_waits_until_somebody_comes_out() -> None:
    admission, most, inside, lock = Admission(3), 0, 0, threading.Lock()

    def stay(_number: int) -> None:
        nonlocal most, inside
        with admission.one():
            with lock:
                inside += 1
                most = max(most, inside)
            time.sleep(0.02)
            with lock:
                inside -= 1

    with ThreadPoolExecutor(12) as pool:
        list(pool.map(stay, range(24)))
    assert most == 3


def test_where_nobody_comes_out_one_waits_once_and_then_nobody_does() -> None:
    admission = Admission(1)
    with admission.one():
        assert 1 < seconds_until_refused(admission) < 5
        assert seconds_until_refused(admission) < 0.5
    with admission.one():
        """Whoever stayed has gone."""


def test_whoever_fails_inside_comes_out() -> None:
    admission = Admission(1)
    for _ in range(3):
        with pytest.raises(ZeroDivisionError), admission.one():
            raise ZeroDivisionError


def test_after_a_rest_of_any_length_a_crowd_is_waited_for() -> None:
    admission = Admission(1)
    with admission.one():
        """Somebody, long ago."""
    admission._moved_at -= 3600
    with ThreadPoolExecutor(2) as pool:
        for outcome in [pool.submit(stay_a_moment, admission) for _ in range(2)]:
            outcome.result()


def stay_a_moment(admission: Admission) -> None:
    with admission.one():
        time.sleep(0.1)


def seconds_until_refused(admission: Admission) -> float:
    began = time.monotonic()
    with pytest.raises(Unavailable), admission.one():
        pytest.fail("nobody came out")
    return time.monotonic() - began
