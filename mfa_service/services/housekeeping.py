"""Housekeeping: what has ended is removed, in batches that no request waits for."""

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, and_, delete, or_, select, tuple_
from sqlalchemy.orm import Session as Transaction
from sqlalchemy.orm import scoped_session

from mfa_service.models import Challenge, Device, Lock, Session, Ticket, TOTPSecret
from mfa_service.services.database import rested, rows_changed
from mfa_service.services.unit_of_work import UnitOfWork, unit_of_work

BATCH = 1000
#: Ended rows are kept for so long, for whoever looks into what happened yesterday.
_KEPT = timedelta(days=1)


class Housekeeping:
    """Prunes tables. The audit log is not touched."""

    def __init__(
        self, session: scoped_session[Transaction], unit: UnitOfWork, now: Callable[[], datetime], *, idle_seconds: int
    ) -> None:
        self._session = session
        self.unit = unit
        self._now = now
        self._idle = timedelta(seconds=idle_seconds)

    def prune(self) -> dict[str, int]:
        """Remove what has ended, and say how much of each."""
        return {name: self._prune(*what) for name, what in self._ended().items()}

    def _ended(self) -> dict[str, tuple[tuple[Any, ...], ColumnElement[bool]]]:
        before = self._now() - _KEPT
        idle = or_(Session.expires_at < before, Session.revoked_at < before, Session.refreshed_at < before - self._idle)
        return {
            "challenges": ((Challenge.id,), Challenge.expires_at < before),
            "tickets": ((Ticket.user_id,), Ticket.expires_at < before),
            "sessions": ((Session.id,), idle),
            "devices": ((Device.id,), Device.expires_at < before),
            "unconfirmed authenticators": (
                (TOTPSecret.id,),
                and_(TOTPSecret.confirmed_at.is_(None), TOTPSecret.expires_at <= self._now()),
            ),
            # Second factors are never forgiven by time, nor is the account-wide counter.
            "counters of networks": (
                (Lock.user_id, Lock.subject),
                and_(Lock.subject.startswith("password:", autoescape=True), Lock.failed_at < before),
            ),
        }

    def _prune(self, key: tuple[Any, ...], which: ColumnElement[bool]) -> int:
        return sum(rested(iter(lambda: self._prune_batch(key, which), 0)))

    @unit_of_work
    def _prune_batch(self, key: tuple[Any, ...], which: ColumnElement[bool]) -> int:
        batch = select(*key).where(which).limit(BATCH)
        return rows_changed(self._session, delete(key[0].class_).where(tuple_(*key).in_(batch)))
