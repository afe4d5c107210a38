"""How many requests of one process may be at the database at once: fewer than there are threads.

Where the database hangs, whoever has asked it waits for seconds. Were these all threads, then nobody would be left to
answer what needs no database: a health check, a limit that is used up, or that there is no database.
"""

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from mfa_service.errors import Unavailable

#: Of the 24 threads that a process has beside those for hashing (server.py).
AT_ONCE = 20
#: How long somebody waits to be let in while others come out, in seconds. Nobody waits where those who are in stay for
#: longer than this, or nobody has come or gone for as long.
_PATIENCE = 2.0
#: How much each stay counts in what they last of late.
_WEIGHT = 0.2


class Admission:
    """Lets so many in; the others wait for a moment, or not at all where it would be in vain."""

    def __init__(self, at_once: int = AT_ONCE) -> None:
        self._free = threading.Semaphore(at_once)
        self._lasts = self._moved_at = 0.0

    @contextmanager
    def one(self) -> Iterator[None]:
        """Be let in. Raises Unavailable where everybody who is in stays there."""
        if not self._free.acquire(blocking=False) and not self._free.acquire(timeout=self._patience()):
            logging.getLogger("mfa_service").error("the database is out of order: everybody waits who may")
            raise Unavailable
        began = self._moved_at = time.monotonic()
        try:
            yield
        finally:
            self._moved_at = time.monotonic()
            self._lasts += (self._moved_at - began - self._lasts) * _WEIGHT
            self._free.release()

    def _patience(self) -> float:
        is_stuck = time.monotonic() - self._moved_at > _PATIENCE or self._lasts > _PATIENCE
        return 0 if is_stuck else _PATIENCE
