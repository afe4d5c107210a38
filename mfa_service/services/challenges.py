"""Challenges: a right password waits here for its second factor. Short-lived, counted, single-use."""

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import and_, bindparam, insert, select, update
from sqlalchemy.orm import Session, scoped_session

from mfa_service.crypto.opaque import new_id
from mfa_service.crypto.tokens import PENDING_SECONDS, Pending
from mfa_service.errors import InvalidPendingToken
from mfa_service.models import Challenge
from mfa_service.services.audit import Audit, ClientInfo, Event
from mfa_service.services.database import changes_one, execute

#: Codes that may be tried on one pending token.
MAX_ATTEMPTS = 5


_IS_UNUSED = and_(
    Challenge.id == bindparam("challenge"), Challenge.user_id == bindparam("user"), Challenge.closed_at.is_(None)
)
_IS_OPEN = and_(_IS_UNUSED, Challenge.expires_at > bindparam("now"))
_HAS_ATTEMPTS = Challenge.attempts < MAX_ATTEMPTS
_OPEN = insert(Challenge)
_FIND = select(Challenge.id).where(_IS_OPEN, _HAS_ATTEMPTS)
_SPEND = update(Challenge).where(_IS_OPEN, _HAS_ATTEMPTS).values(attempts=Challenge.attempts + 1)
_CLOSE = update(Challenge).where(_IS_UNUSED).values(closed_at=bindparam("now"))


class Challenges:
    """Opens, counts and closes challenges; each change is one conditional UPDATE."""

    def __init__(self, session: scoped_session[Session], audit: Audit, now: Callable[[], datetime]) -> None:
        self._session = session
        self._audit = audit
        self._now = now

    def open(self, user_id: str) -> str:
        """Start a challenge and return its id."""
        challenge_id, now = new_id(), self._now()
        expires_at = now + timedelta(seconds=PENDING_SECONDS)
        execute(self._session, _OPEN, id=challenge_id, user_id=user_id, created_at=now, expires_at=expires_at)
        return challenge_id

    def attempt(self, pending: Pending, client: ClientInfo) -> None:
        """Spend one attempt, before the code is looked at. Raises InvalidPendingToken if there is none left."""
        if not changes_one(self._session, _SPEND, **self._values(pending)):
            self._refuse(pending, client)

    def ensure_open(self, pending: Pending, client: ClientInfo) -> None:
        """Refuse with InvalidPendingToken unless the challenge could still be attempted."""
        if not self.is_open(pending):
            self._refuse(pending, client)

    def is_open(self, pending: Pending) -> bool:
        """Whether the challenge could still be attempted."""
        return self._session.scalar(_FIND, self._values(pending)) is not None

    def close(self, pending: Pending, client: ClientInfo) -> None:
        """Use up the challenge on which this unit has spent an attempt. Raises InvalidPendingToken if it is used up.

        Whoever came in time is not refused for the time that has passed since: a factor may be confirmed by now.
        """
        if not changes_one(self._session, _CLOSE, **self._values(pending)):
            self._refuse(pending, client)

    def close_all(self, user_id: str) -> None:
        """Kill every pending token of a user."""
        open_ones = (Challenge.user_id == user_id, Challenge.closed_at.is_(None))
        self._session.execute(update(Challenge).where(*open_ones).values(closed_at=self._now()))

    def _values(self, pending: Pending) -> dict[str, Any]:
        return {"challenge": pending.challenge_id, "user": pending.user_id, "now": self._now()}

    def _refuse(self, pending: Pending, client: ClientInfo) -> None:
        self._audit.record(Event.CHALLENGE_REFUSED, client, user_id=pending.user_id, challenge=pending.challenge_id)
        raise InvalidPendingToken
