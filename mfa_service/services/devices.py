"""Remembered devices: an opaque token that spares its user the code, never the password.

What is given up: on such a device a stolen password and a stolen token together are enough. So the user asks for it
each time, the access token says `amr: ["pwd"]`, and whatever wants a fresh second factor does not accept it. Any
change to the account's security forgets all devices.
"""

from collections.abc import Callable, Sequence
from datetime import datetime, timedelta

from sqlalchemy import ColumnElement, and_, delete, false, select, update
from sqlalchemy.orm import Session, scoped_session

from mfa_service.crypto.opaque import digest, is_id, new_id, new_token
from mfa_service.errors import NotFound
from mfa_service.models import Device
from mfa_service.services.audit import Audit, ClientInfo, Event
from mfa_service.services.database import changes_one, page
from mfa_service.services.policy import is_trusted_since_the_rules
from mfa_service.services.unit_of_work import UnitOfWork, reading, unit_of_work


class Devices:
    """Trusts, recognises and forgets devices."""

    def __init__(
        self,
        session: scoped_session[Session],
        unit: UnitOfWork,
        audit: Audit,
        now: Callable[[], datetime],
        *,
        seconds: int,
    ) -> None:
        """`seconds` is how long a device is remembered; 0 means not at all."""
        self._session = session
        self.unit = unit
        self._audit = audit
        self._now = now
        self._seconds = seconds

    def trust(self, user_id: str, name: str, client: ClientInfo) -> str | None:
        """Remember the device that asks, and return its token; None where devices are switched off."""
        if not self._seconds:
            return None
        token, now = new_token(), self._now()
        device = Device(
            id=new_id(),
            user_id=user_id,
            digest=digest(token),
            name=name,
            address=client.address,
            user_agent=client.user_agent,
            created_at=now,
            used_at=now,
            expires_at=now + timedelta(seconds=self._seconds),
        )
        self._session.add(device)
        self._audit.record(Event.DEVICE_TRUSTED, client, user_id=user_id, device=device.id)
        return token

    def recognises(self, user_id: str, token: str | None) -> bool:
        """Whether this is the token of a live device of this very user."""
        if not token:
            return False  # who shows none knows that: only one that is shown has to cost the same for every name
        return self._session.scalar(select(Device.id).where(self._is(user_id, token))) is not None

    def use(self, user_id: str, token: str) -> bool:
        """Note that a device was used; False if it is not recognised (any more)."""
        return changes_one(self._session, update(Device).where(self._is(user_id, token)).values(used_at=self._now()))

    @reading
    def list(self, user_id: str, cursor: str | None) -> tuple[Sequence[Device], str | None]:
        """A page of a user's live devices, newest first, and the cursor of the next page."""
        live = select(Device).where(Device.user_id == user_id, Device.expires_at > self._now())
        return page(self._session, live, Device.created_at, Device.id, cursor)

    @unit_of_work
    def forget(self, user_id: str, device_id: str, client: ClientInfo) -> None:
        """Forget one device. Raises NotFound if the user has no such device."""
        forgetting = delete(Device).where(Device.user_id == user_id, Device.id == device_id)
        if not is_id(device_id) or not changes_one(self._session, forgetting):
            raise NotFound
        self._audit.record(Event.DEVICE_FORGOTTEN, client, user_id=user_id, device=device_id)

    @unit_of_work
    def forget_own(self, user_id: str, client: ClientInfo) -> None:
        """Forget every device of the user who asks for it."""
        self.forget_all(user_id)
        self._audit.record(Event.DEVICES_FORGOTTEN, client, user_id=user_id)

    def forget_all(self, user_id: str) -> None:
        """Forget every device of a user."""
        self._session.execute(delete(Device).where(Device.user_id == user_id))

    def _is(self, user_id: str, token: str) -> ColumnElement[bool]:
        if not self._seconds:
            return false()
        is_theirs = and_(Device.user_id == user_id, Device.digest == digest(token), Device.expires_at > self._now())
        return and_(is_theirs, is_trusted_since_the_rules(Device))
