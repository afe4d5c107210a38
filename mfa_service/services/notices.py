"""Notices: what a user should hear of by another way than this session (NIST SP 800-63B section 4.6).

A thread of its own tells the listeners, so that a mailer that is slow or fails delays no login. The queue is
bounded: what does not fit is logged and dropped; the audit log has it all the same. A process that ends, a worker or
a command, tells what waits before.
"""

import atexit
import logging
import queue
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from blinker import Signal
from sqlalchemy import select
from sqlalchemy.orm import Session, scoped_session

from mfa_service.models import User
from mfa_service.services.audit import Audit, ClientInfo, Event, Recorded
from mfa_service.services.unit_of_work import UnitOfWork, reading

_CAPACITY = 1000
_CLOSING_SECONDS = 5
_ALWAYS = frozenset(
    {
        Event.RECOVERY_CODE_USED,
        Event.RECOVERY_CODES_ISSUED,
        Event.FACTOR_CONFIRMED,
        Event.FACTOR_REPLACED,
        Event.FACTOR_REMOVED,
        Event.FACTOR_ATTACKED,
        Event.FACTOR_DISABLED,
        Event.PASSWORD_CHANGED,
        Event.SESSION_REUSED,
    }
)


@dataclass(frozen=True)
class Notice:
    """What a message to the user needs."""

    event: Event
    at: datetime
    username: str
    email: str
    client: ClientInfo
    detail: dict[str, Any]


class Notices:
    """Tells listeners of what users should know. `signal` sends `notice=Notice`, from another thread."""

    def __init__(self, session: scoped_session[Session], unit: UnitOfWork, audit: Audit) -> None:
        self._session = session
        self.unit = unit
        self.signal = Signal("a user should hear of this")
        self._queue: queue.Queue[Recorded | None] = queue.Queue(_CAPACITY)
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()
        audit.signal.connect(self._take, weak=False)

    def _take(self, _audit: Audit, record: Recorded) -> None:
        if not self.signal.receivers or not _is_noteworthy(record):
            return
        self._ensure_thread()
        try:
            self._queue.put_nowait(record)
        except queue.Full:
            logging.getLogger("mfa_service").error("too many notices wait; one is dropped: %s", record.event)

    def _ensure_thread(self) -> None:
        # Started on first use, that is after gunicorn has forked.
        with self._lock:
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._tell_all, name="notices", daemon=True)
                self._thread.start()
                atexit.register(self.close)

    def close(self) -> None:
        """Tell what waits, for a few seconds at most, and end the thread; another notice begins a new one."""
        atexit.unregister(self.close)
        thread, until = self._thread, time.monotonic() + _CLOSING_SECONDS
        if thread is None or not thread.is_alive():
            return
        with suppress(queue.Full):
            self._queue.put(None, timeout=_CLOSING_SECONDS)
        thread.join(max(0, until - time.monotonic()))
        if thread.is_alive():
            logging.getLogger("mfa_service").error("a listener of notices is too slow: those that wait are lost")

    def _tell_all(self) -> None:
        while (record := self._queue.get()) is not None:
            try:
                self._tell(record)
            except Exception:
                logging.getLogger("mfa_service").exception("a notice is lost: %s", record.event)

    def _tell(self, record: Recorded) -> None:
        user = self._find_user(record.user_id)
        if user is None:
            return
        notice = Notice(record.event, record.at, user.username, user.email, record.client, record.detail)
        for receiver in self.signal.receivers_for(self):
            try:
                receiver(self, notice=notice)
            except Exception:
                logging.getLogger("mfa_service").exception("a listener of notices failed")

    @reading
    def _find_user(self, user_id: str | None) -> User | None:
        return self._session.scalar(select(User).where(User.id == user_id))


def _is_noteworthy(record: Recorded) -> bool:
    is_new_place = record.event is Event.LOGIN_COMPLETED and record.detail.get("new_client", False)
    return record.event in _ALWAYS or is_new_place
