"""The chain as it stands in the database: seals, oldest first, and the events that they speak of."""

import re
from collections.abc import Iterator
from dataclasses import fields
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session, scoped_session

from mfa_service.crypto.chain import Kind, Seal, SealKeys
from mfa_service.models import AuditEvent, SealRecord
from mfa_service.services.database import PAGE
from mfa_service.services.unit_of_work import UnitOfWork, reading

#: Seals that are read at once.
_BATCH = 1000


class Chain:
    """Reads seals and sealed events. Seals are numbered from 1; whatever else there is, is none."""

    def __init__(self, session: scoped_session[Session], unit: UnitOfWork, keys: SealKeys) -> None:
        self._session = session
        self.unit = unit
        self.keys = keys

    def seals(self) -> Iterator[Seal]:
        """All of them, some at a time. What can't be read is no seal: there is a gap in its place."""
        after = 0
        while numbers := self._numbers(after):
            yield from self._some(numbers)
            after = numbers[-1]

    @reading
    def _numbers(self, after: int) -> list[int]:
        numbers = select(SealRecord.number).where(SealRecord.number > after).order_by(SealRecord.number)
        return list(self._session.scalars(numbers.limit(_BATCH)))

    def _some(self, numbers: list[int]) -> list[Seal]:
        try:
            return self._read(numbers)
        except (TypeError, ValueError):  # SQLite keeps whatever somebody put into a column
            halves = numbers[: len(numbers) // 2], numbers[len(numbers) // 2 :]
            return [seal for half in halves for seal in self._some(half)] if len(numbers) > 1 else []

    @reading
    def _read(self, numbers: list[int]) -> list[Seal]:
        rows = select(SealRecord).where(SealRecord.number.in_(numbers)).order_by(SealRecord.number)
        return [_as_seal(row) for row in self._session.scalars(rows)]

    @reading
    def of_kind(self, kind: Kind, *, after: int = 0) -> list[Seal]:
        """Those of one kind that end after an event."""
        rows = select(SealRecord).where(SealRecord.number > 0, SealRecord.kind == kind, SealRecord.last_id > after)
        return [_as_seal(row) for row in self._session.scalars(rows.order_by(SealRecord.number))]

    def find_last(self) -> Seal | None:
        """The newest seal."""
        row = self._session.scalar(select(SealRecord).order_by(SealRecord.number.desc()).limit(1))
        return _as_seal(row) if row else None

    def last_id(self) -> int:
        """The last event that is under a seal, or 0."""
        ranges = (SealRecord.number > 0, SealRecord.kind == "seal")
        return self._session.scalar(select(func.max(SealRecord.last_id)).where(*ranges)) or 0

    def pruned_through(self) -> int:
        """The last event that was pruned, by records that are ours; a forged one excuses nothing."""
        return max((seal.last_id for seal in self.of_kind("prune") if self.keys.is_genuine(seal)), default=0)

    def events(self, first_id: int, last_id: int) -> Iterator[dict[str, Any]]:
        """Events in the order of their ids, in the form that is sealed."""
        rows = select(AuditEvent.__table__).where(AuditEvent.id.between(first_id, last_id)).order_by(AuditEvent.id)
        for row in self._session.execute(rows).mappings():
            yield dict(row) | {"at": row["at"].isoformat(timespec="microseconds")}

    @reading
    def page(self, cursor: str | None) -> tuple[list[Seal], str | None]:
        """A page of seals, newest first, and the cursor of the next one."""
        newest = select(SealRecord).order_by(SealRecord.number.desc()).limit(PAGE + 1)
        if cursor is not None:
            newest = newest.where(SealRecord.number < (int(cursor) if re.fullmatch("[0-9]{1,9}", cursor) else 0))
        seals = [_as_seal(row) for row in self._session.scalars(newest)]
        return seals[:PAGE], str(seals[PAGE - 1].number) if len(seals) > PAGE else None


def _as_seal(record: SealRecord) -> Seal:
    seal = Seal(**{field.name: getattr(record, field.name) for field in fields(Seal)})
    if not all(isinstance(number, int) for number in (seal.first_id, seal.last_id, seal.count)):
        raise TypeError("not a number")
    if not isinstance(seal.signature, str):
        raise TypeError("not a signature")
    return seal
