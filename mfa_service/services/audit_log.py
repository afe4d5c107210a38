"""Reading the audit log: pages for people, a stream for exports. Each search has an index (`models.py`)."""

from collections.abc import Iterator
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any

from sqlalchemy import Select, select
from sqlalchemy.orm import Session, scoped_session

from mfa_service.models import AuditEvent
from mfa_service.services.database import older_than, page
from mfa_service.services.unit_of_work import UnitOfWork, reading

#: Rows that an export reads at once.
BATCH = 1000


@dataclass(frozen=True)
class EventFilter:
    """Which events: of one kind, about a user, by an actor, from a time on, before a time. None asks for nothing."""

    event: str | None = None
    user_id: str | None = None
    actor: str | None = None
    since: datetime | None = None
    before: datetime | None = None


@dataclass(frozen=True)
class EventEntry:
    """An event as it is read."""

    id: int
    at: datetime
    event: str
    user_id: str | None
    actor: str | None
    address: str
    user_agent: str
    request_id: str
    detail: dict[str, Any]


class AuditLog:
    """Searches and exports events, newest first."""

    def __init__(self, session: scoped_session[Session], unit: UnitOfWork) -> None:
        self._session = session
        self.unit = unit

    @reading
    def search(self, which: EventFilter, cursor: str | None) -> tuple[list[EventEntry], str | None]:
        """A page of events, and the cursor of the next one."""
        rows, following = page(self._session, matching(which), AuditEvent.at, AuditEvent.id, cursor)
        return [_entry(row) for row in rows], following

    def export(self, which: EventFilter) -> Iterator[EventEntry]:
        """Every event, a batch at a time, each in a transaction of its own; nothing is held while it is sent."""
        last: EventEntry | None = None
        while batch := self._batch(which, last):
            yield from batch
            last = batch[-1]

    @reading
    def _batch(self, which: EventFilter, last: EventEntry | None) -> list[EventEntry]:
        query = matching(which)
        if last:
            query = query.where(older_than(AuditEvent.at, AuditEvent.id, last.at, last.id))
        newest = query.order_by(AuditEvent.at.desc(), AuditEvent.id.desc()).limit(BATCH)
        return [_entry(row) for row in self._session.scalars(newest)]


def matching(which: EventFilter) -> Select[Any]:
    """The events that a filter lets through."""
    query = select(AuditEvent)
    equal = {AuditEvent.event: which.event, AuditEvent.user_id: which.user_id, AuditEvent.actor: which.actor}
    for column, value in equal.items():
        query = query if value is None else query.where(column == value)
    query = query if which.since is None else query.where(AuditEvent.at >= which.since)
    return query if which.before is None else query.where(AuditEvent.at < which.before)


def _entry(row: AuditEvent) -> EventEntry:
    return EventEntry(**{field.name: getattr(row, field.name) for field in fields(EventEntry)})
