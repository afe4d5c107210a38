"""Key rotation while the service runs: everything that is sealed is sealed again under the active key.

It works in batches, each a short transaction that changes a row only if it still is what was read. So it can be
killed at any point and run again, beside logins that change the same rows, and no secret is another one afterwards.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, func, select, update
from sqlalchemy.orm import InstrumentedAttribute, scoped_session
from sqlalchemy.orm import Session as Transaction

from mfa_service.crypto.vault import Vault, header_of
from mfa_service.models import Canary, TOTPSecret, User
from mfa_service.services import health, totp
from mfa_service.services.audit import Audit, ClientInfo, Event
from mfa_service.services.database import changes_one, rested
from mfa_service.services.sessions import Sessions
from mfa_service.services.unit_of_work import UnitOfWork, reading, unit_of_work
from mfa_service.services.users import password_context

#: Rows that are sealed again in one transaction.
BATCH = 200


@dataclass(frozen=True)
class _Place:
    """A column of sealed values: its rows' key, and what a value is sealed for."""

    key: InstrumentedAttribute[Any]
    column: InstrumentedAttribute[Any]
    owner: InstrumentedAttribute[Any]
    context_of: Callable[[Any], str]


PLACES: Mapping[str, _Place] = {
    "secrets": _Place(TOTPSecret.id, TOTPSecret.sealed_secret, TOTPSecret.user_id, totp.context_of),
    "passwords": _Place(User.id, User.sealed_password, User.id, password_context),
    "canary": _Place(Canary.id, Canary.sealed_value, Canary.id, health.context_of),
}


class Rotation:
    """Seals what is stale again, and says which rows still need a key."""

    def __init__(
        self, session: scoped_session[Transaction], unit: UnitOfWork, audit: Audit, vault: Vault, sessions: Sessions
    ) -> None:
        self._session = session
        self.unit = unit
        self._audit = audit
        self._vault = vault
        self._sessions = sessions

    @reading
    def count_under(self, key_id: str) -> dict[str, int]:
        """How many rows need this key, by what they are; live sessions among them."""
        counts = {
            name: self._count(place.column, _begins_with(place.column, header_of(key_id)))
            for name, place in PLACES.items()
        }
        counts["sessions"] = self._sessions.count_under(key_id)
        return {name: count for name, count in counts.items() if count}

    @reading
    def count_stale(self, key_id: str) -> int:
        """How many values are sealed under another key than this one."""
        stale = ((place.column, ~_begins_with(place.column, header_of(key_id))) for place in PLACES.values())
        return sum(self._count(column, which) for column, which in stale)

    def reseal(self, key_id: str, client: ClientInfo) -> Iterator[int]:
        """Seal everything that is not under `key_id` again, under it; yields how many rows each batch had.

        It is named, not "the active one": of two that run at once one may not have noticed yet which that is, and what
        it sealed under the former the other would take for done. Raises SealBroken at a value that no key of the ring
        opens.
        """
        total = 0
        for count in rested(self._batches(key_id)):
            total += count
            yield count
        self._record(Event.KEYS_ROTATED, client, {"key": key_id, "rows": total})

    def _batches(self, key_id: str) -> Iterator[int]:
        for place in PLACES.values():
            last: Any = None
            while batch := self._batch(place, key_id, last):
                last = batch[-1]
                yield len(batch)

    @unit_of_work
    def record_retired(self, key_id: str, client: ClientInfo) -> None:
        """Note that a key was taken out of the keyring."""
        self._audit.record(Event.KEY_RETIRED, client, key=key_id)

    @unit_of_work
    def _record(self, event: Event, client: ClientInfo, detail: dict[str, Any]) -> None:
        self._audit.record(event, client, **detail)

    @unit_of_work
    def _batch(self, place: _Place, key_id: str, last: Any) -> list[Any]:
        stale = select(place.key, place.column, place.owner).where(~_begins_with(place.column, header_of(key_id)))
        stale = stale if last is None else stale.where(place.key > last)
        rows = self._session.execute(stale.order_by(place.key).limit(BATCH)).all()
        for key, sealed, owner in rows:
            fresh = self._vault.reseal(sealed, place.context_of(owner), key_id)
            unchanged = update(place.key.class_).where(place.key == key, place.column == sealed)
            changes_one(self._session, unchanged.values({place.column: fresh}))
        return [key for key, _, _ in rows]

    def _count(self, column: InstrumentedAttribute[Any], which: ColumnElement[bool]) -> int:
        return self._session.scalar(select(func.count(column)).where(which)) or 0


def _begins_with(column: InstrumentedAttribute[Any], header: bytes) -> ColumnElement[bool]:
    return func.substr(column, 1, len(header)) == header
