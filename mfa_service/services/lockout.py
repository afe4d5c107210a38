"""Lockout: failures in a row make a growing delay, counted in the database and committed with the refusal.

From the fifth failure on, the next try is let through after 1, 2, 4 … seconds, at most 15 minutes; tries in between
are refused unseen and make it no longer. At 100 failures in a row a second factor is disabled, and goes on counting
as a factor. All of it happens in a unit that holds the user's row: of many at once no more are looked at than one
after another would be. A try with a second factor is counted as a failure before the proof is looked at; a password
was compared before the unit began, so only one that is refused is counted.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import ColumnElement, Executable, String, and_, bindparam, delete, exists, literal, or_, select, update
from sqlalchemy.orm import Session, scoped_session

from mfa_service.models import Lock, User, UTCDateTime
from mfa_service.services.audit import Audit, ClientInfo, Event
from mfa_service.services.database import changes_one, insert_on, rows_changed

FIRST_DELAY = 5
LONGEST_DELAY = 900
DISABLED_AT = 100
NOTICED_AT = 10


@dataclass(frozen=True)
class Subject:
    """What failures are counted of: when the first delay comes, and whether there is an end."""

    name: str
    first_delay: int = FIRST_DELAY
    disabled_at: int | None = None

    def delay(self, failures: int) -> int:
        """Seconds until the next try after so many failures in a row."""
        return 0 if failures < self.first_delay else int(min(2 ** (failures - self.first_delay), LONGEST_DELAY))


TOTP = Subject("totp", disabled_at=DISABLED_AT)
RECOVERY_CODES = Subject("recovery_codes", disabled_at=DISABLED_AT)
#: From everywhere together: late, so that a stranger can hardly keep a user out.
PASSWORD = Subject("password", first_delay=DISABLED_AT + 1)
#: From everywhere together by whoever shows more than a password: strangers neither spend it nor keep anybody out.
TRUSTED_PASSWORD = Subject("trusted_password", first_delay=DISABLED_AT + 1)
FACTORS = (TOTP, RECOVERY_CODES)


def password_from(network: str) -> Subject:
    """The password as tried from one network."""
    return Subject(f"password:{network}")


_LETS_THROUGH = and_(or_(Lock.open_at.is_(None), Lock.open_at <= bindparam("now")), Lock.disabled_at.is_(None))
_AMONG = and_(Lock.user_id == bindparam("for_user"), Lock.subject.in_(bindparam("for_subjects", expanding=True)))
_LOCKED = select(Lock.subject).where(_AMONG, ~_LETS_THROUGH).limit(1)
_FORGET = delete(Lock).where(_AMONG)
#: SQL: a try at a user's `for_subject` would not be let through at the time `now`.
IS_SHUT = exists().where(Lock.user_id == User.id, Lock.subject == bindparam("for_subject"), ~_LETS_THROUGH)


@functools.cache
def _counting(dialect: str) -> Executable:
    """One failure more of a subject that lets through: of a user that there is, and counted from one."""
    now, subject = bindparam("now", type_=UTCDateTime), bindparam("for_subject", type_=String)
    key = ["user_id", "subject"]
    first = select(User.id, subject, literal(1), now).where(User.id == bindparam("for_user"))
    adding = insert_on(dialect, Lock).from_select([*key, "failures", "failed_at"], first)
    more = {"failures": Lock.failures + 1, "failed_at": now}
    return adding.on_conflict_do_update(index_elements=key, set_=more, where=_LETS_THROUGH)


class Lockout:
    """Counts failures of users. Units that ask it for a judgement hold the user's row (`Users.find_active`)."""

    def __init__(self, session: scoped_session[Session], audit: Audit, now: Callable[[], datetime]) -> None:
        self._session = session
        self._audit = audit
        self._now = now

    def is_open(self, user_id: str, *subjects: Subject) -> bool:
        """Whether a try would be let through by all of these."""
        names = [subject.name for subject in subjects]
        values = {"for_user": user_id, "for_subjects": names, "now": self._now()}
        return self._session.scalar(_LOCKED, values) is None

    def attempt(self, user_id: str, subject: Subject) -> bool:
        """Count a failure in advance, and say whether the proof may be looked at.

        A locked subject counts nothing, nor does a user that there is not; it takes the same statements.
        """
        dialect = self._session.get_bind().dialect.name
        values = {"for_user": user_id, "for_subject": subject.name, "now": self._now()}
        return changes_one(self._session, _counting(dialect), **values)

    def failed(self, user_id: str, subject: Subject, client: ClientInfo) -> bool:
        """After an attempt that was let through and was wrong: set the next delay, and say whether there is one."""
        mine = self._lock(user_id, subject)
        failures = self._session.scalar(select(Lock.failures).where(mine)) or 0
        delay, is_end = subject.delay(failures), failures == subject.disabled_at
        if not delay:
            return False
        values = {"open_at": self._now() + timedelta(seconds=delay)} | ({"disabled_at": self._now()} if is_end else {})
        self._session.execute(update(Lock).where(mine).values(values))
        self._record(user_id, subject, failures, delay, client)
        return True

    def passed(self, user_id: str, *subjects: Subject) -> None:
        """After a success: nothing is held against these any more, not even that they were disabled."""
        rows_changed(self._session, _FORGET, for_user=user_id, for_subjects=[subject.name for subject in subjects])

    def forget_all(self, user_id: str) -> None:
        """Nothing at all is held against a user any more."""
        self._session.execute(delete(Lock).where(Lock.user_id == user_id))

    def is_disabled(self, user_id: str, subject: Subject) -> bool:
        """Whether failures have disabled it for good."""
        disabled = select(Lock.subject).where(self._lock(user_id, subject), Lock.disabled_at.is_not(None))
        return self._session.scalar(disabled) is not None

    def _record(self, user_id: str, subject: Subject, failures: int, delay: int, client: ClientInfo) -> None:
        is_factor = subject in FACTORS
        event = Event.FACTOR_LOCKED if is_factor else Event.PASSWORD_LOCKED
        self._audit.record(event, client, user_id=user_id, subject=subject.name, failures=failures, seconds=delay)
        if is_factor and failures == NOTICED_AT:
            self._audit.record(Event.FACTOR_ATTACKED, client, user_id=user_id, factor=subject.name, failures=failures)
        if failures == subject.disabled_at:
            self._audit.record(Event.FACTOR_DISABLED, client, user_id=user_id, factor=subject.name)

    def _lock(self, user_id: str, subject: Subject) -> ColumnElement[bool]:
        return and_(Lock.user_id == user_id, Lock.subject == subject.name)
