"""A thread that does something every so often, for as long as its process serves."""

import logging
import threading
from collections.abc import Callable

from mfa_service.errors import Unavailable


class Timer:
    """Started by the first request, that is after gunicorn has forked; one that fails is logged, and the next comes."""

    def __init__(self, name: str, work: Callable[[], None], seconds: float) -> None:
        """`seconds` lie between two rounds; 0 means never."""
        self._name = name
        self._work = work
        self._seconds = seconds
        self._ends = threading.Event()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def ensure_running(self) -> None:
        """Start the thread unless it runs already."""
        if self._thread or not self._seconds:
            return
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
                self._thread.start()

    def close(self) -> None:
        """End the thread after the round that it is in."""
        self._ends.set()
        if self._thread:
            self._thread.join()

    def _run(self) -> None:
        while not self._ends.wait(self._seconds):
            try:
                self._work()
            except Unavailable:
                continue  # the database is out of order, which has been said
            except Exception:
                logging.getLogger("mfa_service").exception("a round of the %s failed", self._name)
