"""Who there is: searching accounts, looking at one, and the report of who has which factor and who is late.

Nothing here loads more than a page or a batch: a million users are counted and walked by the database.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from sqlalchemy import ColumnElement, Select, and_, exists, func, or_, select
from sqlalchemy.orm import Session as Transaction
from sqlalchemy.orm import scoped_session

from mfa_service.crypto.opaque import is_id
from mfa_service.errors import NotFound
from mfa_service.models import Device, Lock, TOTPSecret, User, UserRole
from mfa_service.services import lockout, usernames
from mfa_service.services.database import page
from mfa_service.services.links import email_key, key_of
from mfa_service.services.policy import ALWAYS, Deadline, Policy, Preview, Rules, is_due_by, is_required_by
from mfa_service.services.recovery_codes import RecoveryCodes
from mfa_service.services.roles import Roles
from mfa_service.services.sessions import Sessions
from mfa_service.services.unit_of_work import UnitOfWork, reading
from mfa_service.services.users import has_factor, is_named

FactorState = Literal["enabled", "disabled", "none"]
Standing = Literal["enrolled", "late", "due", "free"]

#: Rows that a report reads at once.
BATCH = 1000
#: Behind every text that begins with a prefix, and before every other one.
_LAST = chr(0x10FFFF)


@dataclass(frozen=True)
class UserFilter:
    """Which accounts; None asks for nothing. `text` is the beginning of a username or of an e-mail address."""

    text: str | None = None
    role: str | None = None
    factor: FactorState | None = None
    seen_since: datetime | None = None
    seen_before: datetime | None = None


@dataclass(frozen=True)
class UserEntry:
    """An account in a list."""

    user: User
    roles: tuple[str, ...]
    factor: FactorState

    def as_members(self) -> dict[str, Any]:
        """What administrators see of it in lists."""
        return {
            "id": self.user.id,
            "external_id": self.user.external_id,
            "username": self.user.username,
            "email": self.user.email,
            "roles": list(self.roles),
            "mfa": self.factor,
            "created_at": self.user.created_at,
            "last_seen_at": self.user.seen_at,
            "disabled_at": self.user.disabled_at,
        }


@dataclass(frozen=True)
class Counter:
    """Failures in a row that an account has, and what they do."""

    subject: str
    failures: int
    open_at: datetime | None
    disabled_at: datetime | None


@dataclass(frozen=True)
class Profile:
    """An account as an administrator sees it: no secret, hash, code or token."""

    entry: UserEntry
    recovery_codes_left: int
    sessions: int
    devices: int
    own_rule: Deadline | None
    deadline: datetime | None
    counters: tuple[Counter, ...]


@dataclass(frozen=True)
class Row:
    """One line of the report. Standing: `late` must enrol now, `due` by the deadline, `free` need not."""

    user_id: str
    username: str
    email: str
    roles: tuple[str, ...]
    factor: FactorState
    standing: Standing
    deadline: datetime | None
    seen_at: datetime


@dataclass(frozen=True)
class Compliance:
    """The numbers of the report; disabled accounts are not counted."""

    users: int
    enrolled: int
    late: int
    due: int
    free: int


class Directory:
    """Finds accounts and reports on them."""

    def __init__(
        self,
        session: scoped_session[Transaction],
        unit: UnitOfWork,
        roles: Roles,
        policy: Policy,
        recovery_codes: RecoveryCodes,
        sessions: Sessions,
        now: Callable[[], datetime],
    ) -> None:
        self._session = session
        self.unit = unit
        self._roles = roles
        self._policy = policy
        self._recovery_codes = recovery_codes
        self._sessions = sessions
        self._now = now

    @reading
    def search(self, which: UserFilter, cursor: str | None) -> tuple[Sequence[UserEntry], str | None]:
        """A page of accounts, newest first, and the cursor of the next one."""
        users, following = page(self._session, matching(which), User.created_at, User.id, cursor)
        return self._entries(users), following

    @reading
    def show(self, user_id: str) -> Profile:
        """Everything about one account that is nobody's secret. Raises NotFound."""
        user = self._session.get(User, user_id) if is_id(user_id) else None
        if user is None:
            raise NotFound
        counters = self._session.scalars(select(Lock).where(Lock.user_id == user_id).order_by(Lock.subject))
        return Profile(
            entry=self._entries([user])[0],
            recovery_codes_left=self._recovery_codes.remaining(user_id),
            sessions=self._sessions.count(user_id),
            devices=self._count(Device.id, and_(Device.user_id == user_id, Device.expires_at > self._now())),
            own_rule=self._policy.find_own_rule(user_id),
            deadline=self._policy.find_date(user_id),
            counters=tuple(Counter(it.subject, it.failures, it.open_at, it.disabled_at) for it in counters),
        )

    @reading
    def find_id(self, name_or_id: str) -> str | None:
        """The id of the account of this id, or of this username, or of a host's user of this id."""
        user = self._session.get(User, name_or_id) if is_id(name_or_id) else None
        if user:
            return user.id
        named = self._session.scalar(select(User.id).where(is_named(usernames.find_key(name_or_id))))
        return named or self._session.scalar(select(User.id).where(User.external_id == name_or_id))

    @reading
    def compliance(self) -> Compliance:
        """Count accounts by standing, exactly."""
        conditions = self._standings()
        numbers = [func.count(), *(func.count().filter(condition) for condition in conditions.values())]
        row = self._session.execute(select(*numbers).select_from(User).where(User.disabled_at.is_(None))).one()
        return Compliance(*map(int, row))

    @reading
    def preview(self, rules: Rules, cursor: str | None) -> tuple[Preview, Sequence[UserEntry], str | None]:
        """Whom other rules would make enrol: the numbers, and a page of the accounts."""
        without = select(User).where(~has_factor(), is_required_by(self._policy.proposed(rules)))
        users, following = page(self._session, without, User.created_at, User.id, cursor)
        return self._policy.preview(rules), self._entries(users), following

    @reading
    def report(self, standing: Standing | None, cursor: str | None) -> tuple[Sequence[Row], str | None]:
        """A page of the report."""
        users, following = page(self._session, self._reported(standing), User.created_at, User.id, cursor)
        return self._rows(users), following

    @reading
    def report_with_numbers(
        self, standing: Standing | None, cursor: str | None
    ) -> tuple[Compliance, Sequence[Row], str | None]:
        """The numbers, a page of the report, and the cursor of the next one."""
        return self.compliance(), *self.report(standing, cursor)

    def whole_report(self, standing: Standing | None) -> Iterator[Row]:
        """The whole report, a batch at a time, each in a transaction of its own."""
        last = ""
        while batch := self._batch(standing, last):
            yield from batch
            last = batch[-1].user_id

    @reading
    def _batch(self, standing: Standing | None, last: str) -> Sequence[Row]:
        users = self._reported(standing).where(User.id > last).order_by(User.id).limit(BATCH)
        return self._rows(self._session.scalars(users).all())

    def _reported(self, standing: Standing | None) -> Select[Any]:
        which = (self._standings()[standing],) if standing else ()
        return select(User).where(User.disabled_at.is_(None), *which)

    def _standings(self) -> dict[Standing, ColumnElement[bool]]:
        rules, now = self._policy.rules_in_force(), self._now()
        without, required, due = ~has_factor(), is_required_by(rules), is_due_by(rules, now)
        return {
            "enrolled": has_factor(),
            "late": and_(without, due),
            "due": and_(without, required, ~due),
            "free": and_(without, ~required),
        }

    def _rows(self, users: Sequence[User]) -> list[Row]:
        entries = self._entries(users)
        deadlines = self._policy.find_deadlines({entry.user.id: entry.roles for entry in entries})
        return [self._row(entry, deadlines.get(entry.user.id)) for entry in entries]

    def _row(self, entry: UserEntry, deadline: datetime | None) -> Row:
        user, is_enrolled = entry.user, entry.factor != "none"
        still_to_do: Standing = "free" if deadline is None else "late" if deadline <= self._now() else "due"
        return Row(
            user_id=user.id,
            username=user.username,
            email=user.email,
            roles=entry.roles,
            factor=entry.factor,
            standing="enrolled" if is_enrolled else still_to_do,
            deadline=None if is_enrolled or deadline == ALWAYS else deadline,
            seen_at=user.seen_at,
        )

    def _entries(self, users: Sequence[User]) -> list[UserEntry]:
        """Roles and factors of all of them in three queries, not three for each."""
        ids = [user.id for user in users]
        roles = self._roles.of_all(ids)
        confirmed = select(TOTPSecret.user_id).where(TOTPSecret.user_id.in_(ids), TOTPSecret.confirmed_at.is_not(None))
        enrolled = set(self._session.scalars(confirmed))
        locked = set(self._session.scalars(select(Lock.user_id).where(Lock.user_id.in_(ids), *_disabled())))
        return [
            UserEntry(user, roles.get(user.id, ()), _state(user.id in enrolled, user.id in locked)) for user in users
        ]

    def _count(self, column: Any, which: ColumnElement[bool]) -> int:
        return self._session.scalar(select(func.count(column)).where(which)) or 0


def matching(which: UserFilter) -> Select[Any]:
    """The accounts that a filter lets through."""
    query = select(User)
    if which.text:
        query = query.where(_begins_with(which.text))
    if which.role is not None:
        query = query.where(exists().where(UserRole.user_id == User.id, UserRole.role == which.role))
    if which.factor is not None:
        query = query.where(_is_in(which.factor))
    query = query if which.seen_since is None else query.where(User.seen_at >= which.seen_since)
    return query if which.seen_before is None else query.where(User.seen_at < which.seen_before)


def _begins_with(text: str) -> ColumnElement[bool]:
    """Username or address; a range rather than LIKE, which no index of every database serves."""
    name, address = key_of(text), email_key(text)
    by_name = and_(User.username_key >= name, User.username_key < name + _LAST)
    return or_(by_name, and_(User.email_key >= address, User.email_key < address + _LAST))


def _is_in(factor: FactorState) -> ColumnElement[bool]:
    if factor == "none":
        return ~has_factor()
    is_disabled = exists().where(Lock.user_id == User.id, *_disabled())
    return and_(has_factor(), is_disabled if factor == "disabled" else ~is_disabled)


def _disabled() -> tuple[ColumnElement[bool], ...]:
    return Lock.subject == lockout.TOTP.name, Lock.disabled_at.is_not(None)


def _state(has_one: bool, is_disabled: bool) -> FactorState:
    if not has_one:
        return "none"
    return "disabled" if is_disabled else "enabled"
