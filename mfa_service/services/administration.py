"""Administration: what is done to accounts by somebody else, each act with who did it, why, before and after.

An administrator acts in a live session of their own, which is looked at again in the unit that changes something;
the operator at a terminal acts as `cli:` and their name. The last administrator can't be taken away by either; the
operator alone may reset that one's factors, for else a lost phone would be the end.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sqlalchemy import delete
from sqlalchemy.orm import Session, scoped_session

from mfa_service.crypto.opaque import is_id
from mfa_service.crypto.tokens import Identity
from mfa_service.errors import InvalidToken, NotFound, RoleRequired
from mfa_service.models import User
from mfa_service.services.audit import Audit, ClientInfo, Event
from mfa_service.services.directory import Directory, Profile
from mfa_service.services.lockout import Lockout
from mfa_service.services.policy import Deadline, Policy, Rules
from mfa_service.services.recovery_codes import RecoveryCodes
from mfa_service.services.roles import ADMIN, Roles, ensure_names
from mfa_service.services.sessions import Sessions
from mfa_service.services.tickets import Tickets
from mfa_service.services.totp import TOTP
from mfa_service.services.trust import Trust
from mfa_service.services.unit_of_work import UnitOfWork, unit_of_work
from mfa_service.services.users import Users


@dataclass(frozen=True)
class By:
    """Who acts, from where, and why. Without an identity it is the operator at a terminal."""

    client: ClientInfo
    identity: Identity | None = None
    reason: str = ""


@dataclass(frozen=True)
class Changes:
    """What is to be different about an account; None leaves it as it is."""

    roles: tuple[str, ...] | None = None
    disabled: bool | None = None
    mfa_required: bool | None = None
    deadline: Deadline = field(default_factory=Deadline)
    adds_role: str | None = None
    removes_role: str | None = None

    def roles_after(self, before: tuple[str, ...]) -> tuple[str, ...]:
        """The roles that are to be, of a user who has these."""
        roles = set(before if self.roles is None else self.roles)
        added = {self.adds_role} if self.adds_role is not None else set()
        return tuple(sorted((roles | added) - {self.removes_role}))


@dataclass(frozen=True)
class Administration:
    """Changes accounts and policy on behalf of somebody."""

    session: scoped_session[Session]
    unit: UnitOfWork
    audit: Audit
    users: Users
    roles: Roles
    policy: Policy
    locks: Lockout
    totp: TOTP
    recovery_codes: RecoveryCodes
    tickets: Tickets
    sessions: Sessions
    trust: Trust
    directory: Directory
    now: Callable[[], datetime]

    @unit_of_work
    def change(self, by: By, user_id: str, changes: Changes) -> None:
        """Change roles, disable or enable, require a second factor or no longer.

        Raises NotFound, InvalidRequest, LastAdministrator.
        """
        self.roles.hold_administrators()  # before anybody's row: two that act on each other don't wait for each other
        user = self._get(by, user_id)
        before = self.roles.of(user.id)
        after = changes.roles_after(before)
        ensure_names(after)
        if changes.disabled or (ADMIN in before and ADMIN not in after):
            self.roles.ensure_another_administrator(user.id)
        if after != before:
            self.roles.replace(user.id, after)
            self._record(Event.ROLES_CHANGED, by, user, before=before, after=after)
        if changes.disabled is not None:
            self._set_disabled(by, user, changes.disabled)
        if changes.mfa_required is not None:
            self._require(by, user, changes.deadline if changes.mfa_required else None)

    @unit_of_work
    def change_and_show(self, by: By, user_id: str, changes: Changes) -> Profile:
        """The same, and the account as it is then, whatever becomes of it afterwards."""
        self.change(by, user_id, changes)
        return self.directory.show(user_id)

    def disable(self, by: By, user_id: str) -> None:
        """Let nobody in with this account, and end all that was let in. Raises NotFound, LastAdministrator."""
        self.change(by, user_id, Changes(disabled=True))

    def enable(self, by: By, user_id: str) -> None:
        """Undo `disable`; sessions and devices stay ended. Raises NotFound."""
        self.change(by, user_id, Changes(disabled=False))

    @unit_of_work
    def delete(self, by: By, user_id: str) -> None:
        """Remove an account and all that belongs to it but the audit log. Its id is never used again.

        Raises NotFound, LastAdministrator.
        """
        self.roles.hold_administrators()
        user = self._get(by, user_id)
        self.roles.ensure_another_administrator(user.id)
        had = {"roles": self.roles.of(user.id), "factor": self.totp.is_confirmed(user.id)}
        self._record(Event.USER_DELETED, by, user, before=had)
        self.session.execute(delete(User).where(User.id == user.id))

    @unit_of_work
    def reset_factors(self, by: By, user_id: str) -> str:
        """Take all factors from an account, end whatever rested on them, and give a ticket for enrolling anew.

        A password alone does not enrol: the ticket has to be handed over in a way that is trusted. Raises NotFound,
        and LastAdministrator for an administrator who is the only one and no operator.
        """
        self.roles.hold_administrators()
        user = self._get(by, user_id)
        if by.identity:
            self.roles.ensure_another_administrator(user.id)
        self.totp.forget_all(user.id)
        self.recovery_codes.forget_all(user.id)
        self.locks.forget_all(user.id)
        self.trust.end(user.id)
        user.had_factor_at = user.had_factor_at or self.now()
        self._record(Event.FACTOR_REMOVED, by, user)
        return self.tickets.issue(user.id)

    @unit_of_work
    def unlock(self, by: By, user_id: str) -> None:
        """Forget the failures of an account: locks open, disabled factors work again. Raises NotFound."""
        user = self._get(by, user_id)
        self.locks.forget_all(user.id)
        self._record(Event.USER_UNLOCKED, by, user)

    @unit_of_work
    def end_sessions(self, by: By, user_id: str) -> None:
        """End all sessions of an account, its remembered devices and pending tokens. Raises NotFound."""
        user = self._get(by, user_id)
        self.trust.end(user.id)
        self._record(Event.SESSIONS_ENDED, by, user)

    def set_policy(self, by: By, rules: Rules) -> Rules:
        """Put other rules in place, and return them as they stand then. Raises InvalidRequest."""
        return self.change_policy(by, lambda _: rules)

    @unit_of_work
    def change_policy(self, by: By, change: Callable[[Rules], Rules]) -> Rules:
        """Put in place what `change` makes of the rules as they are now, and return that. Raises InvalidRequest."""
        self.policy.hold()
        self._ensure_administrator(by)
        ensure_names(change(self.policy.read()).roles)  # what is refused leaves nothing
        self.policy.hold_for_change()
        before = self.policy.read()
        rules = change(before)
        self.policy.replace(rules)
        self.audit.record(
            Event.POLICY_CHANGED, by.client, reason=by.reason, before=before.as_detail(), after=rules.as_detail()
        )
        return self.policy.read()

    @unit_of_work
    def record_refusal(self, identity: Identity, client: ClientInfo, role: str) -> None:
        """Note that somebody wanted in who has not the role."""
        self.audit.record(Event.ACCESS_REFUSED, client, user_id=identity.user_id, role=role)

    @unit_of_work
    def record_export(self, by: By, event: Event, which: Mapping[str, object]) -> None:
        """Note that the audit log, or a report of everybody, was taken away, and which part of it."""
        self._ensure_administrator(by)
        asked = {name: str(value) for name, value in which.items() if value is not None}
        self.audit.record(event, by.client, reason=by.reason, which=asked)

    def _get(self, by: By, user_id: str) -> User:
        if not is_id(user_id):
            raise NotFound
        # Held in the order of their ids: two administrators that act on each other don't wait for each other.
        for held in sorted({user_id, by.identity.user_id if by.identity else user_id}):
            self.users.find(held)
        self._ensure_administrator(by)
        user = self.users.find(user_id)
        if user is None:
            raise NotFound
        return user

    def _ensure_administrator(self, by: By) -> None:
        """Asked again here: session or role may have ended since the guard looked."""
        identity = by.identity
        if identity is None:
            return
        user = self.users.find_active(identity.user_id)
        if user is None or not self.sessions.is_live(identity.session_id, user.id):
            raise InvalidToken
        if not self.roles.has(user.id, ADMIN):
            raise RoleRequired

    def _set_disabled(self, by: By, user: User, disabled: bool) -> None:
        if disabled == (user.disabled_at is not None):
            return
        user.disabled_at = self.now() if disabled else None
        self._record(Event.USER_DISABLED if disabled else Event.USER_ENABLED, by, user)
        if disabled:
            self.tickets.void(user.id)
            self.trust.end(user.id)

    def _require(self, by: By, user: User, deadline: Deadline | None) -> None:
        before = self.policy.find_own_rule(user.id)
        if before == deadline:
            return
        self.policy.require(user.id, deadline)
        self._record(Event.REQUIREMENT_CHANGED, by, user, before=_shown(before), after=_shown(deadline))

    def _record(self, event: Event, by: By, user: User, **detail: Any) -> None:
        self.audit.record(event, by.client, user_id=user.id, reason=by.reason, **detail)


def _shown(rule: Deadline | None) -> Any:
    return "not required" if rule is None else rule.as_detail() or "at once"
