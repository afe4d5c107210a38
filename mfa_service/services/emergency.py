"""For bad days: everything that was let in is put out again, after a key was stolen or a backup restored."""

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, TypeAlias

from sqlalchemy import ColumnElement, Delete, Update, delete, select, true, tuple_, update
from sqlalchemy.orm import Session as Transaction
from sqlalchemy.orm import scoped_session

from mfa_service.crypto.totp import step_at
from mfa_service.models import Challenge, Device, RecoveryCode, Session, Ticket, TOTPSecret
from mfa_service.services.audit import Audit, ClientInfo, Event
from mfa_service.services.database import rested, rows_changed
from mfa_service.services.unit_of_work import UnitOfWork, unit_of_work

#: A change, the key of its table, and which rows it is for.
Change: TypeAlias = tuple[Update | Delete, tuple[Any, ...], ColumnElement[bool]]
#: Rows that are changed in one transaction: nobody waits long for them, however many there are.
BATCH = 10_000


class Emergency:
    """Ends trust for everybody at once."""

    def __init__(
        self,
        session: scoped_session[Transaction],
        unit: UnitOfWork,
        audit: Audit,
        now: Callable[[], datetime],
        *,
        window: int,
    ) -> None:
        self._session = session
        self.unit = unit
        self._audit = audit
        self._now = now
        self._window = window

    def revoke_all(self, client: ClientInfo, *, reason: str) -> dict[str, int]:
        """End every session, remembered device, pending token and ticket; says how many of each."""
        ended = self._each(self._trust())
        self._record(Event.TRUST_REVOKED, client, {"reason": reason} | ended)
        return ended

    def after_restore(self, client: ClientInfo, *, burns_recovery_codes: bool = False) -> dict[str, int]:
        """Make a restored backup safe: what was used or ended since it was made must not come back.

        Trust ends as in `revoke_all`, and time steps are used up to the newest that the window lets through now. Which
        recovery codes were used since, nobody can say: `burns_recovery_codes` uses all of them up.
        """
        newest = step_at(self._now().timestamp()) + self._window
        steps = (update(TOTPSecret).values(last_step=newest), (TOTPSecret.id,), TOTPSecret.last_step < newest)
        changes = self._trust() | {"authenticators": steps}
        if burns_recovery_codes:
            codes = update(RecoveryCode).values(used_at=self._now())
            changes["recovery_codes"] = (
                codes,
                (RecoveryCode.user_id, RecoveryCode.digest),
                RecoveryCode.used_at.is_(None),
            )
        ended = self._each(changes)
        self._record(Event.BACKUP_RESTORED, client, dict(ended))
        return ended

    def _trust(self) -> dict[str, Change]:
        now = self._now()
        return {
            "sessions": (update(Session).values(revoked_at=now), (Session.id,), Session.revoked_at.is_(None)),
            "devices": (delete(Device), (Device.id,), true()),
            "challenges": (update(Challenge).values(closed_at=now), (Challenge.id,), Challenge.closed_at.is_(None)),
            "tickets": (delete(Ticket), (Ticket.user_id,), true()),
        }

    def _each(self, changes: Mapping[str, Change]) -> dict[str, int]:
        return {name: self._in_batches(*change) for name, change in changes.items()}

    def _in_batches(self, change: Update | Delete, key: tuple[Any, ...], which: ColumnElement[bool]) -> int:
        return sum(rested(iter(lambda: self._batch(change, key, which), 0)))

    @unit_of_work
    def _batch(self, change: Update | Delete, key: tuple[Any, ...], which: ColumnElement[bool]) -> int:
        batch = select(*key).where(which).limit(BATCH)
        return rows_changed(self._session, change.where(tuple_(*key).in_(batch)))

    @unit_of_work
    def _record(self, event: Event, client: ClientInfo, detail: dict[str, Any]) -> None:
        self._audit.record(event, client, **detail)
