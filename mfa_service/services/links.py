"""Accounts of a host app's users: made at their first sign-in, known by the host's id, without a password here.

The name is a label for tokens, the authenticator and lists; it follows the host, and need not be unique.
"""

from collections.abc import Callable
from datetime import datetime
from uuid import UUID

from sqlalchemy import delete
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session, scoped_session

from mfa_service.crypto.opaque import new_id
from mfa_service.models import User
from mfa_service.services import usernames
from mfa_service.services.audit import Audit, ClientInfo, Event
from mfa_service.services.users import Users

#: What a host may know a user by.
ExternalId = str | int | UUID
#: The longest id that a host may have for a user, in characters.
MAX_EXTERNAL_ID = 255


class Links:
    """Ties accounts to a host's users, and lets them go."""

    def __init__(
        self, session: scoped_session[Session], audit: Audit, users: Users, now: Callable[[], datetime]
    ) -> None:
        self._session = session
        self._audit = audit
        self._users = users
        self._now = now

    def link(self, external_id: ExternalId, username: str, email: str, client: ClientInfo) -> User:
        """The account of a host's user, held; made where there is none. Name and address become what they are now.

        Raises ValueError for an id that is none, and InvalidRequest for a username of nothing that can be shown.
        """
        their_id, label, address = checked_external_id(external_id), usernames.label(username), checked_address(email)
        user = self._users.find_external(their_id) or self._add(their_id, label, address, client)
        if (user.username, user.email) != (label, address):
            user.username, user.username_key = label, key_of(label)
            user.email, user.email_key = address, email_key(address)
        return user

    def unlink(self, external_id: ExternalId, client: ClientInfo) -> None:
        """Remove the account of a host's user with all that belongs to it but the audit log; none is no matter."""
        user = self._users.find_external(checked_external_id(external_id))
        if user is not None:
            self._audit.record(Event.USER_UNLINKED, client, user_id=user.id)
            self._session.execute(delete(User).where(User.id == user.id))

    def _add(self, external_id: str, label: str, address: str, client: ClientInfo) -> User:
        now = self._now()
        user = User(id=new_id(), external_id=external_id, username=label, username_key=key_of(label), email=address)
        user.email_key, user.created_at, user.seen_at = email_key(address), now, now
        try:
            with self._session.begin_nested():
                self._session.add(user)
        except IntegrityError:
            # Another request of the same user was faster.
            return self._users.find_external(external_id) or self._add(external_id, label, address, client)
        self._audit.record(Event.USER_LINKED, client, user_id=user.id)
        return user


def checked_external_id(external_id: ExternalId) -> str:
    """A host's id as it is stored. Raises ValueError for what can't be one: None, True, nothing, control characters.

    The word None is no id either: it is what is made of that of a user who has not been stored yet.
    """
    text = str(external_id) if type(external_id) in (str, int, UUID) else ""
    if not text.isprintable() or not 0 < len(text) <= MAX_EXTERNAL_ID or text == "None":
        raise ValueError(f"a user's id must be text, a number or a UUID, of 1 to {MAX_EXTERNAL_ID} characters")
    return text


def key_of(label: str) -> str:
    """What a name is searched by."""
    return (usernames.find_key(label) or label.casefold())[: usernames.MAX_LABEL]


def email_key(address: str) -> str:
    """What an address is searched by. Folding makes some letters three, so it is cut like a name."""
    return address.casefold()[: usernames.MAX_LABEL]


def checked_address(email: str) -> str:
    """The address as it is stored; one that no mail could go to is none."""
    return email if email.isprintable() and len(email) <= usernames.MAX_LABEL else ""
