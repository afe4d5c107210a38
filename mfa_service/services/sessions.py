"""Sessions: who is signed in. An access token is good for as long as its session lives, on every worker."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import exists, select
from sqlalchemy.orm import Session as Transaction
from sqlalchemy.orm import scoped_session

from mfa_service.crypto.opaque import new_id
from mfa_service.crypto.tokens import ACCESS_SECONDS, Identity
from mfa_service.models import Session, TOTPSecret, User
from mfa_service.services.audit import ClientInfo
from mfa_service.services.unit_of_work import UnitOfWork, reading


@dataclass(frozen=True)
class Account:
    """The user behind a live session, as of now."""

    username: str
    email: str
    mfa_enabled: bool


class Sessions:
    """Opens sessions and says which are alive."""

    def __init__(self, session: scoped_session[Transaction], unit: UnitOfWork, now: Callable[[], datetime]) -> None:
        self._session = session
        self.unit = unit
        self._now = now

    def open(self, user_id: str, client: ClientInfo) -> str:
        """Start a session and return its id, which is never the client's to choose."""
        now = self._now()
        session = Session(
            id=new_id(),
            user_id=user_id,
            address=client.address,
            user_agent=client.user_agent,
            created_at=now,
            expires_at=now + timedelta(seconds=ACCESS_SECONDS),
        )
        self._session.add(session)
        return session.id

    @reading
    def find_account(self, identity: Identity) -> Account | None:
        """The account behind a token, or None if session or user have ended since. One SELECT."""
        has_factor = exists().where(TOTPSecret.user_id == User.id, TOTPSecret.confirmed_at.is_not(None))
        found = (
            select(User.username, User.email, has_factor)
            .join(Session, Session.user_id == User.id)
            .where(Session.id == identity.session_id, User.id == identity.user_id, User.disabled_at.is_(None))
            .where(Session.revoked_at.is_(None), Session.expires_at > self._now())
        )
        row = self._session.execute(found).one_or_none()
        return Account(*row) if row else None
