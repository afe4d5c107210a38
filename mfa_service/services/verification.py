"""Verifying the audit log: every seal, every sealed event, and what the seals don't say.

Each finding is a sentence that names the range or the seal. No finding means a sound log, as far as seals can tell.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import func, select
from sqlalchemy.orm import Session, scoped_session

from mfa_service.crypto.chain import GENESIS, Seal, digest_of
from mfa_service.models import AuditEvent, SealRecord, User
from mfa_service.services.chain import Chain
from mfa_service.services.unit_of_work import UnitOfWork, reading


@dataclass(frozen=True)
class Progress:
    """How many events have been looked at so far, and what was found wrong since the last time."""

    events: int
    findings: tuple[str, ...] = ()


class Verification:
    """Looks for what is not as it was sealed."""

    def __init__(
        self,
        session: scoped_session[Session],
        unit: UnitOfWork,
        chain: Chain,
        now: Callable[[], datetime],
        overdue: timedelta,
    ) -> None:
        """Events that wait for a seal for longer than `overdue` are a finding."""
        self._session = session
        self.unit = unit
        self._chain = chain
        self._now = now
        self._overdue = overdue

    def run(self, shipped: Iterable[Seal] = ()) -> Iterator[Progress]:
        """Look at the whole; yields after each seal.

        `shipped` are seals that were kept elsewhere: what is missing of them here was removed.
        """
        pruned = self._pruned_through()
        last: Seal | None = None
        events = last_id = 0
        ours: dict[int, str] = {}
        for seal in self._chain.seals():
            findings = [*self._misplaced(seal, last)]
            if seal.kind == "seal":
                findings += self._uncovered(seal, last_id)
                findings += self._amiss(seal, pruned)
                events, last_id = events + seal.count, seal.last_id
            last, ours[seal.number] = seal, seal.digest
            yield Progress(events, tuple(findings))
        yield Progress(events, (*self._unsealed(last_id), *self._not_here(shipped, ours)))

    def before_pruning(self, ranges: Sequence[Seal]) -> Iterator[str]:
        """What is wrong with the chain up to these ranges, and with their events; pruned ones may be among them."""
        last, last_id = None, 0
        for seal in self._chain.seals() if ranges else ():
            if seal.number > ranges[-1].number:
                return
            yield from self._misplaced(seal, last)
            if seal.kind == "seal":
                yield from self._uncovered(seal, last_id)
                yield from self._misfits(seal) if seal in ranges else ()
                last_id = seal.last_id
            last = seal

    def _amiss(self, seal: Seal, pruned: int) -> list[str]:
        """What is wrong with a range; what was `pruned` when we began may be less than is by now."""
        if seal.last_id <= pruned:
            return self._left_over(seal)
        found = self._misfits(seal)
        has_gone_since = found and seal.last_id <= self._pruned_through()
        return self._left_over(seal) if has_gone_since else found

    @reading
    def _pruned_through(self) -> int:
        return self._chain.pruned_through()

    def _misplaced(self, seal: Seal, last: Seal | None) -> Iterator[str]:
        due = last.number + 1 if last else 1
        if seal.number != due:
            yield f"{_span('seal', due, seal.number - 1)} missing"
        elif seal.previous != (last.digest if last else GENESIS):
            yield f"seal {seal.number} does not follow the one before it: one of them is not what was made"
        if not self._chain.keys.is_genuine(seal):
            yield f"seal {seal.number} is not signed by a key of ours: changed or inserted"

    def _uncovered(self, seal: Seal, last_id: int) -> Iterator[str]:
        if seal.first_id <= last_id:
            yield f"seal {seal.number} begins at event {seal.first_id}, which is under the one before it"
        elif seal.first_id != last_id + 1:
            yield f"{_span('event', last_id + 1, seal.first_id - 1)} under no seal"

    @reading
    def _misfits(self, seal: Seal) -> list[str]:
        """What is wrong with the events of a range."""
        span = f"events {seal.first_id} to {seal.last_id} (seal {seal.number})"
        try:
            found, count = digest_of(self._chain.events(seal.first_id, seal.last_id))
        except (TypeError, ValueError):
            return [f"{span}: changed, one of them can't be read"]
        if count != seal.count:
            return [f"{span}: {seal.count} were sealed, {count} are there"]
        return [] if found == seal.events_digest else [f"{span}: changed, exchanged or reordered"]

    @reading
    def _left_over(self, seal: Seal) -> list[str]:
        # A range goes in one transaction: pruning that was cut short leaves it whole. One that goes between these two
        # looks is whole, and then gone.
        is_other = bool(self._misfits(seal))
        within = AuditEvent.id.between(seal.first_id, seal.last_id)
        count = self._session.scalar(select(func.count()).select_from(AuditEvent).where(within))
        why = "inserted" if is_other else "pruning runs, or was cut short: run it again"
        span = f"events {seal.first_id} to {seal.last_id} (seal {seal.number})"
        return [f"{span} were pruned, and {count} are there: {why}"] if count else []

    @reading
    def _unsealed(self, last_id: int) -> list[str]:
        """What no seal speaks of: ids that no range begins with, and events that should have been sealed by now."""
        before = self._session.scalar(select(func.count()).select_from(AuditEvent).where(AuditEvent.id < 1))
        seals = self._session.scalar(select(func.count()).select_from(SealRecord).where(SealRecord.number < 1))
        due = (AuditEvent.id > last_id, AuditEvent.at < self._now() - self._overdue)
        oldest, newest, count = self._session.execute(
            select(func.min(AuditEvent.id), func.max(AuditEvent.id), func.count()).where(*due)
        ).one()
        findings = [f"{before} events below 1: inserted"] if before else []
        findings += self._never_sealed() if not last_id else []
        findings += [f"{seals} seals below 1: inserted"] if seals else []
        late = f"events {oldest} to {newest}: {count} are long due and under no seal: the newest seals were removed, "
        return findings + ([late + "events were inserted, or nothing seals"] if count else [])

    def _never_sealed(self) -> list[str]:
        """Whoever has accounts has had events."""
        old = select(func.count()).select_from(User).where(User.created_at < self._now() - self._overdue)
        accounts = self._session.scalar(old)
        said = "there are accounts, and not one seal: the whole log was removed, or nothing seals"
        return [said] if accounts else []

    def _not_here(self, shipped: Iterable[Seal], ours: Mapping[int, str]) -> Iterator[str]:
        for seal in shipped:
            if not self._chain.keys.is_genuine(seal):
                yield f"shipped seal {seal.number} is not signed by a key of ours"
            elif ours.get(seal.number) != seal.digest:
                yield f"seal {seal.number} was shipped, and is missing here or another one"


def _span(what: str, first: int, last: int) -> str:
    return f"{what} {first} is" if first == last else f"{what}s {first} to {last} are"
