"""The pool that hashes: so many threads, so many that wait, and for everybody else Busy, at once."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from mfa_service.errors import Busy
from mfa_service.services.hashing import Hashing
from tests.services import at_once


@pytest.mark.parametrize(("threads", "queue"), [(1, 0), (1, 6), (2, 3)])
def test_there_are_as_many_places_as_threads_and_queue(threads: int, queue: int) -> None:
    hashing = Hashing(threads, queue)
    with ExitStack() as taken:
        for _ in range(threads + queue):
            taken.enter_context(hashing.place())
        with pytest.raises(Busy), hashing.place():
            pytest.fail("there was a place too many")
    with hashing.place():
        pass
    hashing.close()


def test_whoever_finds_no_place_is_told_so_at_once_and_when_to_come_again(hashing: Hashing) -> None:
    started, release = threading.Event(), threading.Event()
    busy = threading.Thread(target=lambda: run(hashing, lambda: started.set() or release.wait(5)))
    busy.start()
    started.wait(5)
    with hashing.place():
        start = time.monotonic()
        with pytest.raises(Busy) as refusal, hashing.place():
            pytest.fail("there was a place too many")
        assert time.monotonic() - start < 0.1
        assert refusal.value.retry_after == 1
        assert refusal.value.status == 503
        release.set()
        busy.join()


def test_when_to_come_again_is_when_all_are_through_as_long_as_hashes_last() -> None:
    hashing = Hashing(2, 18)
    first = told_when_full(hashing)
    for _ in range(3):
        run(hashing, lambda: time.sleep(0.6))
    assert (first, told_when_full(hashing)) == (3, 4)
    hashing.close()


def told_when_full(hashing: Hashing) -> int | None:
    with ExitStack() as taken:
        for _ in range(20):
            taken.enter_context(hashing.place())
        with pytest.raises(Busy) as refusal, hashing.place():
            pytest.fail("there was a place too many")
    return refusal.value.retry_after


def test_a_place_is_given_back_whatever_happens_on_it(hashing: Hashing) -> None:
    for _ in range(5):
        with pytest.raises(ZeroDivisionError), hashing.place() as place:
            place.run(lambda: 1 // 0)
        with pytest.raises(KeyError), hashing.place():
            raise KeyError
    assert run(hashing, lambda: "still here") == "still here"


def test_one_place_runs_several_things_with_their_arguments_one_after_the_other(hashing: Hashing) -> None:
    with hashing.place() as place:
        assert [place.run(divmod, number, 3) for number in (7, 8)] == [(2, 1), (2, 2)]
        assert place.run(int, "ff", base=16) == 255


def test_no_more_than_its_threads_run_at_a_time() -> None:
    hashing, running, seen = Hashing(2, 6), [], []

    def work() -> None:
        running.append(1)
        seen.append(len(running))
        time.sleep(0.02)
        running.pop()

    assert at_once(8, lambda _: run(hashing, work)) == [None] * 8
    assert max(seen) == 2
    hashing.close()


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere priorities belong to whole processes")
def test_hashing_yields_to_everything_else(hashing: Hashing) -> None:
    def niceness() -> int:
        return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    before = niceness()
    assert run(hashing, niceness) == max(10, before)
    assert niceness() == before


def test_hashing_works_where_its_priority_can_not_be_changed() -> None:
    script = """
import os
from mfa_service.services.hashing import Hashing
os.nice(15)
if os.getuid() == 0:
    os.setuid(65534)
with Hashing(1, 1).place() as place:
    print(place.run(sum, [20, 22]))
"""
    finished = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert finished.stdout == "42\n", finished.stderr


def test_threads_start_with_the_first_hash_and_end_with_the_service() -> None:
    before = threading.active_count()
    hashing = Hashing(1, 0)
    assert threading.active_count() == before
    run(hashing, int)
    assert threading.active_count() == before + 1
    hashing.close()
    assert threading.active_count() == before
    with pytest.raises(RuntimeError):
        run(hashing, int)


def test_closing_what_was_never_used_is_no_error() -> None:
    Hashing(1, 0).close()


@pytest.fixture
def hashing() -> Iterator[Hashing]:
    made = Hashing(1, 1)
    yield made
    made.close()


def run(hashing: Hashing, work: Callable[[], object]) -> object:
    with hashing.place() as place:
        return place.run(work)
