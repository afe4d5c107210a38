"""Who must have a second factor, and from when.

Mode `required` means everybody; under `optional` only roles and users with a rule of their own. A rule holds from
the moment it is made, from a date on, or so many days after a user first logged in under it: that login is noted
once, and no later one moves it. Until the deadline a user may go without; after it only enrolling is open. Nothing
is cached: the rules are read in the transaction that issues or refreshes a token.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

from sqlalchemy import ColumnElement, and_, delete, exists, false, func, literal, or_, select, true
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session, scoped_session

from mfa_service.errors import MFARequired
from mfa_service.models import Device, GracePeriod, PolicyMode, Rule, User, UserRole
from mfa_service.services.roles import ADMIN
from mfa_service.services.unit_of_work import UnitOfWork, reading
from mfa_service.services.users import has_factor

Mode = Literal["required", "optional"]

EVERYONE = "everyone"
#: The longest grace period, in days.
MAX_DAYS = 365
#: Since when the rule stands that nobody made.
ALWAYS = datetime.fromtimestamp(0, UTC)


@dataclass(frozen=True)
class Deadline:
    """A date, or so many days after the first login under the rule; neither means at once."""

    at: datetime | None = None
    days: int | None = None

    def as_detail(self) -> dict[str, Any] | None:
        """For the audit log."""
        return {"at": self.at.isoformat()} if self.at else {"days": self.days} if self.days is not None else None


@dataclass(frozen=True)
class Rules:
    """The policy as administrators write it: what everybody must, and what roles must."""

    mode: Mode = "required"
    deadline: Deadline = Deadline()
    roles: Mapping[str, Deadline] = field(default_factory=dict)

    def as_detail(self) -> dict[str, Any]:
        """For the audit log."""
        roles = {role: deadline.as_detail() for role, deadline in self.roles.items()}
        return {"mode": self.mode, "deadline": self.deadline.as_detail(), "roles": roles}


@dataclass(frozen=True)
class StandingRule:
    """One rule as it stands in the database: about whom, from when on, and since when there is such a rule."""

    subject: str
    deadline: Deadline
    since: datetime

    def due_at(self, began: datetime | None, now: datetime) -> datetime:
        """From when it holds for a user whose days began then, or, where they did not, would begin now.

        Days that began under an earlier rule about the same role are over with that rule.
        """
        if self.deadline.at or self.deadline.days is None:
            return self.deadline.at or self.since
        is_counting = began is not None and began >= self.since
        return (began if began and is_counting else now) + timedelta(days=self.deadline.days)


@dataclass(frozen=True)
class Preview:
    """How many accounts without a second factor rules concern, and how many of them from this moment on."""

    without_factor: int
    required: int
    late: int
    newly_required: int
    released: int


class Policy:
    """Reads, judges and replaces the rules."""

    def __init__(self, session: scoped_session[Session], unit: UnitOfWork, now: Callable[[], datetime]) -> None:
        self._session = session
        self.unit = unit
        self._now = now

    def find_deadline(self, user_id: str, *, starts: bool = False) -> datetime | None:
        """From when this user must have a second factor, or None for never.

        `starts` is for a login: days that are counted from the first one begin now, unless they have begun.
        """
        rules, now = [*self._about_everyone(), *self._in_force(_is_about(user_id))], self._now()
        began = self._beginnings([user_id])
        if starts:
            for rule in rules:
                self._begin(rule, user_id, began.get((user_id, rule.subject)), now)
        return min((rule.due_at(began.get((user_id, rule.subject)), now) for rule in rules), default=None)

    def find_deadlines(self, roles: Mapping[str, Sequence[str]]) -> dict[str, datetime]:
        """The same for many users, given with their roles; who need not have a factor is left out."""
        general, now = {rule.subject: rule for rule in self.rules_in_force()}, self._now()
        own = {rule.subject: rule for rule in self._in_force(Rule.user_id.in_(roles))}
        began = self._beginnings(list(roles))
        deadlines: dict[str, datetime] = {}
        for user_id, names in roles.items():
            subjects = (EVERYONE, own_subject(user_id), *(f"role:{role}" for role in names))
            about = [rule for subject in subjects if (rule := general.get(subject) or own.get(subject))]
            dues = [rule.due_at(began.get((user_id, rule.subject)), now) for rule in about]
            deadlines |= {user_id: min(dues)} if dues else {}
        return deadlines

    def is_due(self, user_id: str) -> bool:
        """Whether this user must have a second factor now."""
        deadline = self.find_deadline(user_id)
        return deadline is not None and deadline <= self._now()

    def ensure_may_go_without(self, user_id: str, roles: Collection[str]) -> None:
        """Raise MFARequired if any rule is about this user, even one whose deadline is still to come.

        Nor may an administrator: a password alone would then enrol a factor that opens everything.
        """
        if ADMIN in roles or self.find_deadline(user_id) is not None:
            raise MFARequired

    def hold(self) -> None:
        """Of two units that change the policy at the same time, one waits here."""
        self._held()

    def hold_for_change(self) -> None:
        """The same by who is going to change it: what is not there can't be held.

        Where there is no row yet it is made, and says what none says; of two that make it one waits for the other.
        """
        if self._held() is None:
            with suppress(IntegrityError), self._session.begin_nested():
                self._session.add(PolicyMode(id=1, mode="required", created_at=ALWAYS))
            self._held()

    def _held(self) -> PolicyMode | None:
        held = select(PolicyMode).where(PolicyMode.id == 1).with_for_update()
        return self._session.scalar(held, execution_options={"populate_existing": True})

    def read(self) -> Rules:
        """The policy as it stands."""
        everyone = self._everyone()
        roles = self._session.scalars(select(Rule).where(Rule.user_id.is_(None)).order_by(Rule.subject)).all()
        by_role = {rule.subject.removeprefix("role:"): Deadline(rule.deadline_at, rule.grace_days) for rule in roles}
        return Rules(_mode(everyone), _deadline(everyone), by_role)

    def find_date(self, user_id: str) -> datetime | None:
        """The deadline to tell: none where nothing is required, or always was."""
        deadline = self.find_deadline(user_id)
        return None if deadline == ALWAYS else deadline

    @reading
    def show(self) -> Rules:
        """The policy as it stands, in a transaction of its own."""
        return self.read()

    def replace(self, rules: Rules) -> None:
        """Put other rules in place; one that stays keeps the day it was made and the days that have begun."""
        everyone = self._everyone()
        stays = _mode(everyone) == rules.mode
        since = (everyone.created_at if everyone else ALWAYS) if stays else self._now()
        at, days = rules.deadline.at, rules.deadline.days
        self._session.merge(PolicyMode(id=1, mode=rules.mode, deadline_at=at, grace_days=days, created_at=since))
        kept = {f"role:{role}": deadline for role, deadline in rules.roles.items()}
        self._session.execute(delete(Rule).where(Rule.user_id.is_(None), Rule.subject.not_in(kept)))
        for subject, deadline in kept.items():
            self._put(subject, deadline, user_id=None)

    def find_own_rule(self, user_id: str) -> Deadline | None:
        """The rule about this very user, if there is one."""
        rule = self._session.get(Rule, own_subject(user_id))
        if rule is None:
            return None
        return Deadline(rule.deadline_at) if rule.grace_days is None else Deadline(days=rule.grace_days)

    def require(self, user_id: str, deadline: Deadline | None) -> None:
        """Make, move or (None) drop the rule about this very user."""
        if deadline is None:
            self._session.execute(delete(Rule).where(Rule.subject == own_subject(user_id)))
        else:
            self._put(own_subject(user_id), deadline, user_id=user_id)

    @reading
    def preview(self, rules: Rules) -> Preview:
        """Count whom other rules would concern, changing nothing."""
        today, proposed, now = self.rules_in_force(), self.proposed(rules), self._now()
        required, before = is_required_by(proposed), is_required_by(today)
        counted = (true(), required, is_due_by(proposed, now), and_(required, ~before), and_(before, ~required))
        numbers = [func.count().filter(condition) for condition in counted]
        return Preview(*map(int, self._session.execute(select(*numbers).select_from(User).where(~has_factor())).one()))

    def proposed(self, rules: Rules) -> list[StandingRule]:
        """How other rules would stand, if they were put in place now: those that are there keep their day."""
        since, now = {rule.subject: rule.since for rule in self.rules_in_force()}, self._now()
        wanted = {f"role:{role}": deadline for role, deadline in rules.roles.items()}
        wanted |= {EVERYONE: rules.deadline} if rules.mode == "required" else {}
        return [StandingRule(subject, deadline, since.get(subject, now)) for subject, deadline in wanted.items()]

    def rules_in_force(self) -> list[StandingRule]:
        """The rules about everybody and about roles. There may be many about single users: those stay in SQL."""
        return [*self._about_everyone(), *self._in_force(Rule.user_id.is_(None))]

    def _about_everyone(self) -> Iterator[StandingRule]:
        everyone = self._everyone()
        if _mode(everyone) == "required":
            yield StandingRule(EVERYONE, _deadline(everyone), everyone.created_at if everyone else ALWAYS)

    def _in_force(self, which: ColumnElement[bool]) -> Iterator[StandingRule]:
        for rule in self._session.scalars(select(Rule).where(which).order_by(Rule.subject)):
            yield StandingRule(rule.subject, Deadline(rule.deadline_at, rule.grace_days), rule.created_at)

    def _beginnings(self, user_ids: Sequence[str]) -> dict[tuple[str, str], datetime]:
        rows = self._session.scalars(select(GracePeriod).where(GracePeriod.user_id.in_(user_ids)))
        return {(row.user_id, row.subject): row.started_at for row in rows}

    def _begin(self, rule: StandingRule, user_id: str, began: datetime | None, now: datetime) -> None:
        """Note the first login under a rule that counts days."""
        if rule.deadline.days is None or rule.deadline.at or (began and began >= rule.since):
            return
        if rule.subject == own_subject(user_id):
            self._session.get_one(Rule, rule.subject).deadline_at = rule.due_at(None, now)
        else:
            self._session.merge(GracePeriod(user_id=user_id, subject=rule.subject, started_at=now))

    def _put(self, subject: str, deadline: Deadline, user_id: str | None) -> None:
        found = self._session.get(Rule, subject)
        since = found.created_at if found else self._now()
        at, days = deadline.at, deadline.days
        if found and found.deadline_at and found.grace_days is not None and days is not None:
            # The days of a rule about one user have begun: they go on, and there are more or fewer of them.
            at = found.deadline_at + timedelta(days=days - found.grace_days)
        self._session.merge(Rule(subject=subject, user_id=user_id, deadline_at=at, grace_days=days, created_at=since))

    def _everyone(self) -> PolicyMode | None:
        return self._session.get(PolicyMode, 1, populate_existing=True)


def own_subject(user_id: str) -> str:
    """What a rule about this very user is called."""
    return f"user:{user_id}"


def is_required_by(rules: Sequence[StandingRule]) -> ColumnElement[bool]:
    """SQL: one of these rules, or one about the user alone, is about the user."""
    return or_(exists().where(Rule.user_id == User.id), *map(_concerns, rules))


def is_due_by(rules: Sequence[StandingRule], now: datetime) -> ColumnElement[bool]:
    """SQL: one of these rules, or one about the user alone, is about the user, and its deadline has come."""
    own = or_(Rule.deadline_at <= now, and_(Rule.deadline_at.is_(None), Rule.grace_days.is_(None)))
    due = (and_(_concerns(rule), _is_over(rule, now)) for rule in rules)
    return or_(exists().where(Rule.user_id == User.id, own), *due)


def is_trusted_since_the_rules(device: type[Device]) -> ColumnElement[bool]:
    """SQL: no rule about its user is newer than the device."""
    roles = select(literal("role:") + UserRole.role).where(UserRole.user_id == device.user_id)
    about = or_(Rule.user_id == device.user_id, Rule.subject.in_(roles))
    everyone = exists().where(PolicyMode.mode == "required", PolicyMode.created_at > device.created_at)
    return ~or_(exists().where(about, Rule.created_at > device.created_at), everyone)


def _is_about(user_id: str) -> ColumnElement[bool]:
    roles = select(literal("role:") + UserRole.role).where(UserRole.user_id == user_id)
    return or_(Rule.user_id == user_id, Rule.subject.in_(roles))


def _concerns(rule: StandingRule) -> ColumnElement[bool]:
    if rule.subject == EVERYONE:
        return true()
    return exists().where(UserRole.user_id == User.id, UserRole.role == rule.subject.removeprefix("role:"))


def _is_over(rule: StandingRule, now: datetime) -> ColumnElement[bool]:
    if rule.deadline.at or rule.deadline.days is None:
        return true() if (rule.deadline.at or rule.since) <= now else false()
    theirs = (GracePeriod.user_id == User.id, GracePeriod.subject == rule.subject)
    began = (GracePeriod.started_at >= rule.since, GracePeriod.started_at <= now - timedelta(days=rule.deadline.days))
    return exists().where(*theirs, *began)


def _mode(everyone: PolicyMode | None) -> Mode:
    # Whatever is not plainly `optional` is the stricter one.
    return "optional" if everyone and everyone.mode == "optional" else "required"


def _deadline(everyone: PolicyMode | None) -> Deadline:
    return Deadline(everyone.deadline_at, everyone.grace_days) if everyone else Deadline()
