"""The user's row: what every unit that judges somebody holds first.

An account is ours, with a username that is its own and a password; or it belongs to a user of a host app, and is
known by the host's id.
"""

from sqlalchemy import ColumnElement, and_, bindparam, exists, false, select
from sqlalchemy.orm import Session, scoped_session

from mfa_service.models import TOTPSecret, User

# SQLite knows no FOR UPDATE and needs none: a unit that writes is the only one that does.
_HELD = select(User).where(User.id == bindparam("user")).with_for_update().execution_options(populate_existing=True)


class Users:
    """Finds users and holds them."""

    def __init__(self, session: scoped_session[Session]) -> None:
        self._session = session

    def find(self, user_id: str) -> User | None:
        """The user, held against other units until this one ends."""
        return self._session.scalar(_HELD, {"user": user_id})

    def find_unheld(self, user_id: str) -> User | None:
        """The same for who only looks."""
        return self._session.get(User, user_id, populate_existing=True)

    def find_external(self, external_id: str) -> User | None:
        """The account of a host's user, held."""
        held = select(User).where(User.external_id == external_id).with_for_update()
        return self._session.scalar(held, execution_options={"populate_existing": True})

    def find_active(self, user_id: str) -> User | None:
        """The user, held as by `find`; None if disabled."""
        user = self.find(user_id)
        return user if user and user.disabled_at is None else None


def is_named(key: str | None) -> ColumnElement[bool]:
    """SQL: the account with a password here whose name this is, as it is compared; none for a name of None."""
    return and_(User.username_key == key, User.external_id.is_(None)) if key else false()


def has_factor() -> ColumnElement[bool]:
    """SQL: the user has a confirmed factor."""
    return exists().where(TOTPSecret.user_id == User.id, TOTPSecret.confirmed_at.is_not(None))


def password_context(user_id: str) -> str:
    """What a password hash of this user is sealed for."""
    return f"mfa_users.sealed_password:{user_id}"
