"""The bounded pool that bcrypt runs in: few threads, low priority, a short queue; full means Busy, at once.

A quarter of a second of CPU for each login would otherwise stop every other route. The place is taken before
anything else is done, so that a refusal spends nothing.
"""

import math
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import cached_property
from typing import ParamSpec, TypeVar

from mfa_service.errors import Busy

P = ParamSpec("P")
R = TypeVar("R")

_NICE = 10
#: What a hash is taken to last before one was seen, in seconds, and how much each one that is seen counts.
_FIRST_GUESS, _WEIGHT = 0.3, 0.1


class Place:
    """A place in the pool, held by one request for as long as it may need to hash."""

    def __init__(self, pool: ThreadPoolExecutor, note: Callable[[float], None]) -> None:
        """`note` is told how long a hash took, in seconds."""
        self._pool, self._note = pool, note

    def run(self, work: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Run `work` in a thread of the pool and wait for it."""
        return self._pool.submit(self._timed(work), *args, **kwargs).result()

    def _timed(self, work: Callable[P, R]) -> Callable[P, R]:
        def timed(*args: P.args, **kwargs: P.kwargs) -> R:
            began = time.perf_counter()
            result = work(*args, **kwargs)
            self._note(time.perf_counter() - began)
            return result

        return timed


class Hashing:
    """Hands out `threads + queue` places."""

    def __init__(self, threads: int, queue: int) -> None:
        self._threads = threads
        self._capacity = threads + queue
        self._held: list[Place] = []
        self._lock = threading.Lock()
        self._lasts = _FIRST_GUESS

    @contextmanager
    def place(self) -> Iterator[Place]:
        """Hold a place. Raises Busy if none is free."""
        place = self._take()
        try:
            yield place
        finally:
            with self._lock:
                self._held.remove(place)

    def _take(self) -> Place:
        with self._lock:
            if len(self._held) >= self._capacity:
                raise Busy(retry_after=self._until_empty())
            place = Place(self._pool, self._note)
            self._held.append(place)
        return place

    def _until_empty(self) -> int:
        """Whole seconds until all places are through, as hashes have lasted of late."""
        return math.ceil(self._capacity / self._threads * self._lasts)

    def _note(self, seconds: float) -> None:
        self._lasts += (seconds - self._lasts) * _WEIGHT

    @property
    def in_use(self) -> int:
        """How many places are held."""
        return len(self._held)

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown()

    @cached_property
    def _pool(self) -> ThreadPoolExecutor:
        # Made on first use, that is after gunicorn has forked.
        return ThreadPoolExecutor(self._threads, "hashing", initializer=_yield_to_requests)


def _yield_to_requests() -> None:
    # Elsewhere priorities belong to whole processes, and a sandbox may forbid it: then logins are only not nice.
    if sys.platform == "linux":
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)
