"""Enrolment tickets: after a reset a password alone must not enrol, so an administrator hands over a ticket.

It is opaque, kept as a digest, good once and for a day. A new reset voids the one before.
"""

from collections.abc import Callable
from datetime import datetime, timedelta

from sqlalchemy import delete
from sqlalchemy.orm import Session, scoped_session

from mfa_service.crypto.opaque import digest, new_token
from mfa_service.models import Ticket
from mfa_service.services.database import changes_one

#: How long a ticket is good, in seconds.
TICKET_SECONDS = 86400


class Tickets:
    """Issues and redeems tickets; a user has at most one."""

    def __init__(self, session: scoped_session[Session], now: Callable[[], datetime]) -> None:
        self._session = session
        self._now = now

    def issue(self, user_id: str) -> str:
        """A new ticket for a user, whose row is held, in place of the one before."""
        self.void(user_id)
        token, now = new_token(), self._now()
        expires_at = now + timedelta(seconds=TICKET_SECONDS)
        self._session.add(Ticket(user_id=user_id, digest=digest(token), created_at=now, expires_at=expires_at))
        return token

    def redeem(self, user_id: str, token: str | None) -> bool:
        """Use a ticket up; False if it is none of this user's, or over."""
        if not token:
            return False
        theirs = (Ticket.user_id == user_id, Ticket.digest == digest(token), Ticket.expires_at > self._now())
        return changes_one(self._session, delete(Ticket).where(*theirs))

    def void(self, user_id: str) -> None:
        """Take a user's ticket away."""
        self._session.execute(delete(Ticket).where(Ticket.user_id == user_id))
