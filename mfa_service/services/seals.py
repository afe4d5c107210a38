"""Sealing the audit log: signed links over ranges of events, and what they prove.

Events are sealed when they are a minute old, in the order of their ids. PostgreSQL commits ids out of order, but
every unit is cut after thirty seconds, so nothing can still appear below the newest id of that age. Writing an event
takes no lock on the chain; of two replicas that seal at once, the unique predecessor lets one through.

What it proves: nobody without a seal key has changed, added, removed or reordered a sealed event. Whoever holds both
the key and the database can write the chain anew, except for what was shipped before (`MFA_SEALS_OUTPUT`), and no
seal speaks of the last minutes.
"""

import os
import sys
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime, timedelta

from sqlalchemy import delete, func, select, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session, scoped_session

from mfa_service.crypto.chain import GENESIS, Kind, Seal, digest_of
from mfa_service.errors import ConfigurationError
from mfa_service.models import AuditEvent, SealRecord
from mfa_service.services.audit import Audit, ClientInfo, Event
from mfa_service.services.chain import Chain
from mfa_service.services.database import rested, rows_changed
from mfa_service.services.unit_of_work import LONGEST_SECONDS, UnitOfWork, reading, unit_of_work
from mfa_service.services.verification import Progress, Verification

#: How old an event must be to be sealed, in seconds: twice the longest transaction.
LAG_SECONDS = 2 * LONGEST_SECONDS
#: Events under one seal.
MAX_EVENTS = 10_000
#: How long events may wait for a seal before verifying wonders: at least so many seconds, or three rounds.
OVERDUE_SECONDS = 900


class Seals:
    """Seals, verifies and prunes the audit log."""

    def __init__(
        self,
        session: scoped_session[Session],
        unit: UnitOfWork,
        audit: Audit,
        chain: Chain,
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
        self.chain = chain
        self._now = now
        self._output = output
        overdue = timedelta(seconds=max(OVERDUE_SECONDS, 3 * seconds + LAG_SECONDS))
        self._verification = Verification(session, unit, chain, now, overdue)

    def seal(self) -> list[Seal]:
        """Seal every event that is old enough, a range at a time; nothing if another replica is at it.

        Raises ConfigurationError where there is no seal key.
        """
        return list(self.sealing())

    def sealing(self) -> Iterator[Seal]:
        """The same, seal by seal."""
        while (draft := self._draft()) and (seal := self._append(self.chain.keys.sign(draft))):
            self._ship(seal)
            yield seal

    def verify(self, shipped: Iterable[Seal] = ()) -> Iterator[Progress]:
        """Look at the whole chain and every sealed event (`Verification.run`)."""
        return self._verification.run(shipped)

    def page(self, cursor: str | None) -> tuple[list[Seal], list[dict[str, str]], str | None]:
        """A page of seals, newest first, the keys that verify them all, and the cursor of the next page."""
        seals, following = self.chain.page(cursor)
        return seals, self.chain.keys.public_jwks(), following

    def prune(self, older_than: timedelta, client: ClientInfo) -> Iterator[int]:
        """Remove sealed ranges whose events are all older; yields how many events went, range by range.

        The signed record of it is there first, so a pruning that is killed can be run again. Raises
        ConfigurationError if what is to go has been tampered with: the evidence stays.
        """
        ranges = self._ranges_before(self._now() - older_than)
        leftover = self._pruned_ranges()
        if broken := list(self._verification.before_pruning([*leftover, *ranges])):
            raise ConfigurationError([f"nothing is pruned: {finding}" for finding in broken])
        if ranges:
            self._announce(ranges[-1].last_id, client)
        yield from rested(self._remove(each) for each in self._pruned_ranges())

    @reading
    def _draft(self) -> Seal | None:
        """The next seal, without its signature, over what is old enough and not yet sealed."""
        # In this order: who is overtaken in between has a stale predecessor, and is refused.
        last, after = self.chain.find_last(), self.chain.last_id()
        newest = select(func.max(AuditEvent.id)).where(AuditEvent.at <= self._now() - timedelta(seconds=LAG_SECONDS))
        until = self._session.scalar(newest)
        if until is None or until <= after:
            return None
        batch = select(AuditEvent.id).where(AuditEvent.id > after, AuditEvent.id <= until).order_by(AuditEvent.id)
        until = self._session.scalars(batch.limit(MAX_EVENTS)).all()[-1]
        return self._following(last, "seal", after + 1, until, *digest_of(self.chain.events(after + 1, until)))

    def _following(
        self, last: Seal | None, kind: Kind, first_id: int, last_id: int, events_digest: str, count: int
    ) -> Seal:
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

    @reading
    def _ranges_before(self, cutoff: datetime) -> list[Seal]:
        """The oldest ranges that are still there, as far as they end before the cutoff."""
        pruned = self.chain.pruned_through()
        found = []
        for seal in self.chain.of_kind("seal", after=pruned):
            newest = select(func.max(AuditEvent.at)).where(AuditEvent.id.between(seal.first_id, seal.last_id))
            at = self._session.scalar(newest)
            if at is not None and at >= cutoff:
                break
            found.append(seal)
        return found

    def _announce(self, last_id: int, client: ClientInfo) -> None:
        while True:
            record = self.chain.keys.sign(self._pruning(last_id))
            try:
                self._record_pruning(record, client)
            except IntegrityError:
                continue  # a seal was faster: this comes after it
            return self._ship(record)

    @reading
    def _pruning(self, last_id: int) -> Seal:
        return self._following(self.chain.find_last(), "prune", 1, last_id, *digest_of([]))

    @reading
    def find_oldest(self) -> tuple[Seal, datetime | None] | None:
        """The oldest range that is still there, and the time of its newest event: what pruning goes up to."""
        for seal in self.chain.of_kind("seal", after=self.chain.pruned_through()):
            newest = select(func.max(AuditEvent.at)).where(AuditEvent.id.between(seal.first_id, seal.last_id))
            return seal, self._session.scalar(newest)
        return None

    @unit_of_work
    def _record_pruning(self, seal: Seal, client: ClientInfo) -> None:
        self._session.add(_as_record(seal))
        self._audit.record(Event.AUDIT_PRUNED, client, through=seal.last_id, seal=seal.number)

    @reading
    def _pruned_ranges(self) -> list[Seal]:
        pruned = self.chain.pruned_through()
        lowest = self._session.scalar(select(func.min(AuditEvent.id)))
        return [seal for seal in self.chain.of_kind("seal") if lowest is not None and lowest <= seal.last_id <= pruned]

    @unit_of_work
    def _remove(self, seal: Seal) -> int:
        if self._session.get_bind().dialect.name == "postgresql":
            self._session.execute(text("SET LOCAL mfa.pruning = 'on'"))
        return rows_changed(self._session, delete(AuditEvent).where(AuditEvent.id.between(seal.first_id, seal.last_id)))


def _as_record(seal: Seal) -> SealRecord:
    return SealRecord(**vars(seal))
