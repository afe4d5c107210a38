"""The bounded pool that bcrypt runs in: few threads, low priority, a short queue; full means Busy, at once.

A quarter of a second of CPU for each login would otherwise stop every other route. The place is taken before
anything else is done, so that a refusal spends nothing.
"""

import os
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import cached_property
from typing import ParamSpec, TypeVar

from mfa_service.errors import Busy

P = ParamSpec("P")
R = TypeVar("R")

_NICE = 10
#: What a waiting client is told, in seconds: a full queue of hashes is through by then.
_RETRY_AFTER = 2


class Place:
    """A place in the pool, held by one request for as long as it may need to hash."""

    def __init__(self, pool: ThreadPoolExecutor) -> None:
        self._pool = pool

    def run(self, work: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Run `work` in a thread of the pool and wait for it."""
        return self._pool.submit(work, *args, **kwargs).result()


class Hashing:
    """Hands out `threads + queue` places."""

    def __init__(self, threads: int, queue: int) -> None:
        self._threads = threads
        self._capacity = threads + queue
        self._held: list[Place] = []
        self._lock = threading.Lock()

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
                raise Busy(retry_after=_RETRY_AFTER)
            place = Place(self._pool)
            self._held.append(place)
        return place

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
