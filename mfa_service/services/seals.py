"""Sealing the audit log: signed links over ranges of events, and what they prove.

Events are sealed when they are a minute old, in the order of their ids. PostgreSQL commits ids out of order, but
every unit is cut after thirty seconds, so nothing can still appear below the newest id of that age. Writing an event
takes no lock on the chain; of two replicas that seal at once, the unique predecessor lets one through.

What it proves: nobody without a seal key has changed, added, removed or reordered a sealed event. Whoever holds both
the key and the database can write the chain anew, except for what was shipped before (`MFA_SEALS_OUTPUT`), and no
seal speaks of the last minutes.
"""

import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, delete, func, select, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session, scoped_session

from mfa_service.crypto.chain import GENESIS, Kind, Seal, SealKeys, digest_of
from mfa_service.errors import ConfigurationError
from mfa_service.models import AuditEvent, SealRecord
from mfa_service.services.audit import Audit, ClientInfo, Event
from mfa_service.services.database import PAGE, rows_changed
from mfa_service.services.unit_of_work import LONGEST_SECONDS, UnitOfWork, reading, unit_of_work

#: How old an event must be to be sealed, in seconds: twice the longest transaction.
LAG_SECONDS = 2 * LONGEST_SECONDS
#: Events under one seal.
MAX_EVENTS = 10_000
#: How long events may wait for a seal before verifying wonders: at least so many seconds, or three rounds.
OVERDUE_SECONDS = 900
#: Seals that are read at once.
_SEALS = 1000


@dataclass(frozen=True)
class Progress:
    """How many events have been looked at so far, and what was found wrong since the last time."""

    events: int
    findings: tuple[str, ...] = ()


class Seals:
    """Seals, verifies and prunes the audit log."""

    def __init__(
        self,
        session: scoped_session[Session],
        unit: UnitOfWork,
        audit: Audit,
        keys: SealKeys,
        now: Callable[[], datetime],
        *,
        output: str,
        seconds: int,
    ) -> None:
        """`output` is a file that seals are appended to, `-` for standard output, `none` for neither.

        `seconds` is how often the log is sealed.
        """
        self._session = session
        self.unit = unit
        self._audit = audit
        self.keys = keys
        self._now = now
        self._output = output
        self._overdue = timedelta(seconds=max(OVERDUE_SECONDS, 3 * seconds + LAG_SECONDS))

    def seal(self) -> list[Seal]:
        """Seal every event that is old enough, a range at a time; nothing if another replica is at it.

        Raises ConfigurationError where there is no seal key.
        """
        made = []
        while (draft := self._draft()) and (seal := self._append(self.keys.sign(draft))):
            self._ship(seal)
            made.append(seal)
        return made

    def prune(self, older_than: timedelta, client: ClientInfo) -> Iterator[int]:
        """Remove sealed ranges whose events are all older; yields how many events went, range by range.

        The signed record of it is there first, so a pruning that is killed can be run again. Raises
        ConfigurationError if what is to go has been tampered with: the evidence stays.
        """
        ranges = self._ranges_before(self._now() - older_than)
        if broken := [finding for each in ranges for finding in self._misfits(each)]:
            raise ConfigurationError([f"nothing is pruned: {finding}" for finding in broken])
        if ranges:
            self._announce(ranges[-1].last_id, client)
        for each in self._pruned_ranges():
            yield self._remove(each)

    @reading
    def page(self, cursor: str | None) -> tuple[list[Seal], str | None]:
        """A page of seals, newest first, and the cursor of the next one."""
        newest = select(SealRecord).order_by(SealRecord.number.desc()).limit(PAGE + 1)
        if cursor is not None:
            newest = newest.where(SealRecord.number < (int(cursor) if re.fullmatch("[0-9]{1,9}", cursor) else 0))
        seals = [_as_seal(row) for row in self._session.scalars(newest)]
        return seals[:PAGE], str(seals[PAGE - 1].number) if len(seals) > PAGE else None

    def verify(self, shipped: Iterable[Seal] = ()) -> Iterator[Progress]:
        """Look at the whole chain and every sealed event; yields after each range. Nothing found is a sound log.

        `shipped` are seals that were kept elsewhere: what is missing of them here was removed.
        """
        pruned = self._pruned_through()
        last: Seal | None = None
        number_of_events = last_id = 0
        ours: dict[int, str] = {}
        for seal in self._chain():
            findings = [*self._misplaced(seal, last)]
            if seal.kind == "seal":
                findings += self._uncovered(seal, last_id)
                findings += self._left_over(seal) if seal.last_id <= pruned else self._misfits(seal)
                number_of_events, last_id = number_of_events + seal.count, seal.last_id
            last, ours[seal.number] = seal, seal.digest
            yield Progress(number_of_events, tuple(findings))
        ends = [*self._unsealed(last_id), *self._not_here(shipped, ours)]
        yield Progress(number_of_events, tuple(ends))

    # ── making ───────────────────────────────────────────────────────────────────────────────────

    @reading
    def _draft(self) -> Seal | None:
        """The next seal, without its signature, over what is old enough and not yet sealed."""
        after = self._last_id()
        newest = select(func.max(AuditEvent.id)).where(AuditEvent.at <= self._now() - timedelta(seconds=LAG_SECONDS))
        until = self._session.scalar(newest)
        if until is None or until <= after:
            return None
        batch = select(AuditEvent.id).where(AuditEvent.id > after, AuditEvent.id <= until).order_by(AuditEvent.id)
        until = self._session.scalars(batch.limit(MAX_EVENTS)).all()[-1]
        return self._following("seal", after + 1, until, *digest_of(self._events(after + 1, until)))

    def _following(self, kind: Kind, first_id: int, last_id: int, events_digest: str, count: int) -> Seal:
        last = self._last_seal()
        return Seal(
            number=last.number + 1 if last else 1,
            kind=kind,
            first_id=first_id,
            last_id=last_id,
            count=count,
            events_digest=events_digest,
            previous=last.digest if last else GENESIS,
            sealed_at=self._now(),
        )

    def _append(self, seal: Seal) -> Seal | None:
        """Store a seal; None if another one has the same predecessor."""
        try:
            self._store(seal)
        except IntegrityError:
            return None
        return seal

    @unit_of_work
    def _store(self, seal: Seal) -> None:
        self._session.add(_as_record(seal))

    def _ship(self, seal: Seal) -> None:
        line = seal.as_json() + "\n"
        if self._output == "-":
            sys.stdout.write(line)
            sys.stdout.flush()
        elif self._output != "none":
            descriptor = os.open(self._output, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
            with os.fdopen(descriptor, "w") as file:
                file.write(line)

    # ── pruning ──────────────────────────────────────────────────────────────────────────────────

    @reading
    def _ranges_before(self, cutoff: datetime) -> list[Seal]:
        """The oldest ranges that are still there, as far as they end before the cutoff."""
        pruned = self._pruned_through()
        found = []
        for seal in self._seals("seal", after=pruned):
            newest = select(func.max(AuditEvent.at)).where(AuditEvent.id.between(seal.first_id, seal.last_id))
            at = self._session.scalar(newest)
            if at is None or at >= cutoff:
                break
            found.append(seal)
        return found

    def _announce(self, last_id: int, client: ClientInfo) -> None:
        while True:
            record = self.keys.sign(self._pruning(last_id))
            try:
                self._record_pruning(record, client)
            except IntegrityError:
                continue  # a seal was faster: this comes after it
            return self._ship(record)

    @reading
    def _pruning(self, last_id: int) -> Seal:
        return self._following("prune", 1, last_id, *digest_of([]))

    @unit_of_work
    def _record_pruning(self, seal: Seal, client: ClientInfo) -> None:
        self._session.add(_as_record(seal))
        self._audit.record(Event.AUDIT_PRUNED, client, through=seal.last_id, seal=seal.number)

    @reading
    def _pruned_ranges(self) -> list[Seal]:
        pruned = self._pruned_through()
        lowest = self._session.scalar(select(func.min(AuditEvent.id)))
        return [seal for seal in self._seals("seal") if lowest is not None and lowest <= seal.last_id <= pruned]

    @unit_of_work
    def _remove(self, seal: Seal) -> int:
        if self._session.get_bind().dialect.name == "postgresql":
            self._session.execute(text("SET LOCAL mfa.pruning = 'on'"))
        return rows_changed(self._session, delete(AuditEvent).where(_within(seal)))

    @reading
    def _pruned_through(self) -> int:
        """The last id that was pruned, by records that are ours; a forged one excuses nothing."""
        return max((seal.last_id for seal in self._seals("prune") if self.keys.is_genuine(seal)), default=0)

    # ── verifying ────────────────────────────────────────────────────────────────────────────────

    def _misplaced(self, seal: Seal, last: Seal | None) -> Iterator[str]:
        due = last.number + 1 if last else 1
        if seal.number != due:
            yield f"{_span('seal', due, seal.number - 1)} missing"
        elif seal.previous != (last.digest if last else GENESIS):
            yield f"seal {seal.number} does not follow the one before it: one of them is not what was made"
        if not self.keys.is_genuine(seal):
            yield f"seal {seal.number} is not signed by a key of ours: changed or inserted"

    def _uncovered(self, seal: Seal, last_id: int) -> Iterator[str]:
        if seal.first_id != last_id + 1:
            yield f"{_span('event', last_id + 1, seal.first_id - 1)} under no seal"

    @reading
    def _misfits(self, seal: Seal) -> list[str]:
        """What is wrong with the events of a range."""
        found, count = digest_of(self._events(seal.first_id, seal.last_id))
        span = f"events {seal.first_id} to {seal.last_id} (seal {seal.number})"
        if count != seal.count:
            return [f"{span}: {seal.count} were sealed, {count} are there"]
        return [] if found == seal.events_digest else [f"{span}: changed, exchanged or reordered"]

    @reading
    def _left_over(self, seal: Seal) -> list[str]:
        count = self._session.scalar(select(func.count()).select_from(AuditEvent).where(_within(seal)))
        span = f"events {seal.first_id} to {seal.last_id} (seal {seal.number})"
        return [f"{span} were pruned, and {count} are there: inserted, or pruning was cut short"] if count else []

    @reading
    def _unsealed(self, last_id: int) -> list[str]:
        """What no seal speaks of: ids that no range begins with, and events that should have been sealed by now."""
        before = self._session.scalar(select(func.count()).select_from(AuditEvent).where(AuditEvent.id < 1))
        due = (AuditEvent.id > last_id, AuditEvent.at < self._now() - self._overdue)
        oldest, newest, count = self._session.execute(
            select(func.min(AuditEvent.id), func.max(AuditEvent.id), func.count()).where(*due)
        ).one()
        late = f"events {oldest} to {newest}: {count} are long due and under no seal: the newest seals were removed, "
        findings = [f"{before} events below 1: inserted"] if before else []
        return findings + ([late + "events were inserted, or nothing seals"] if count else [])

    def _not_here(self, shipped: Iterable[Seal], ours: Mapping[int, str]) -> Iterator[str]:
        for seal in shipped:
            if not self.keys.is_genuine(seal):
                yield f"shipped seal {seal.number} is not signed by a key of ours"
            elif ours.get(seal.number) != seal.digest:
                yield f"seal {seal.number} was shipped, and is missing here or another one"

    # ── reading ──────────────────────────────────────────────────────────────────────────────────

    def _chain(self) -> Iterator[Seal]:
        """All seals, oldest first, some at a time."""
        after = 0
        while batch := self._some(after):
            yield from batch
            after = batch[-1].number

    @reading
    def _some(self, after: int) -> Sequence[Seal]:
        rows = select(SealRecord).where(SealRecord.number > after).order_by(SealRecord.number).limit(_SEALS)
        return [_as_seal(row) for row in self._session.scalars(rows)]

    def _seals(self, kind: Kind, *, after: int = 0) -> Iterator[Seal]:
        rows = select(SealRecord).where(SealRecord.kind == kind, SealRecord.last_id > after)
        return map(_as_seal, self._session.scalars(rows.order_by(SealRecord.number)))

    def _last_seal(self) -> Seal | None:
        row = self._session.scalar(select(SealRecord).order_by(SealRecord.number.desc()).limit(1))
        return _as_seal(row) if row else None

    def _last_id(self) -> int:
        return self._session.scalar(select(func.max(SealRecord.last_id)).where(SealRecord.kind == "seal")) or 0

    def _events(self, first_id: int, last_id: int) -> Iterator[dict[str, Any]]:
        """Events in the order of their ids, in the form that is sealed."""
        rows = select(AuditEvent.__table__).where(AuditEvent.id.between(first_id, last_id)).order_by(AuditEvent.id)
        for row in self._session.execute(rows).mappings():
            yield dict(row) | {"at": row["at"].isoformat(timespec="microseconds")}


def _within(seal: Seal) -> ColumnElement[bool]:
    return AuditEvent.id.between(seal.first_id, seal.last_id)


def _span(what: str, first: int, last: int) -> str:
    return f"{what} {first} is" if first == last else f"{what}s {first} to {last} are"


def _as_record(seal: Seal) -> SealRecord:
    return SealRecord(**vars(seal))


def _as_seal(record: SealRecord) -> Seal:
    return Seal(**{field.name: getattr(record, field.name) for field in fields(Seal)})
