"""Accounts: registering, checking and changing a password; and those of a host app's users, who have none here.

No hash is computed while a transaction is open: read, end the transaction, hash, then one unit judges and records.
Whatever is wrong with a login, the work and the answer are the same, so that nobody learns which names exist.
"""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, NoReturn

from sqlalchemy import ColumnElement, Select, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session, scoped_session

from mfa_service.config import Settings
from mfa_service.crypto.opaque import new_id
from mfa_service.crypto.passwords import UnknownHash, decoy, hash_password, needs_rehash, verify_password
from mfa_service.crypto.vault import Vault
from mfa_service.errors import (
    Busy,
    InvalidCredentials,
    InvalidToken,
    MFAError,
    RegistrationClosed,
    SealBroken,
    Unavailable,
    UserExists,
)
from mfa_service.models import User
from mfa_service.services import lockout, usernames
from mfa_service.services.audit import Audit, ClientInfo, Event
from mfa_service.services.database import changes_one
from mfa_service.services.hashing import Hashing, Place
from mfa_service.services.links import ExternalId, Links, email_key
from mfa_service.services.lockout import Lockout, password_from
from mfa_service.services.password_policy import ensure_acceptable
from mfa_service.services.roles import Roles
from mfa_service.services.sessions import Sessions
from mfa_service.services.totp import TOTP, Enrolment
from mfa_service.services.trust import Trust
from mfa_service.services.unit_of_work import UnitOfWork, reading, unit_of_work
from mfa_service.services.users import Users, is_named, password_context


@dataclass(frozen=True)
class StoredPassword:
    """A password hash as it was read, before hashing began."""

    user_id: str
    set_at: datetime
    sealed: bytes = field(repr=False)
    was_shut: bool


def _stored(who: ColumnElement[bool]) -> Select[Any]:
    stored = select(User.id, User.password_set_at).add_columns(User.sealed_password, lockout.IS_SHUT)
    return stored.where(who, User.sealed_password.is_not(None))  # none: a host's user


@dataclass(frozen=True)
class Verdict:
    """What hashing found out. It holds nothing until `settle` has looked at the account again."""

    stored: StoredPassword | None
    is_right: bool
    is_readable: bool = True
    #: Right, but of another cost, or of another system.
    is_old: bool = False


@dataclass(frozen=True)
class Accounts:
    """Users and their passwords."""

    session: scoped_session[Session]
    unit: UnitOfWork
    audit: Audit
    users: Users
    links: Links
    roles: Roles
    locks: Lockout
    vault: Vault
    hashing: Hashing
    totp: TOTP
    sessions: Sessions
    trust: Trust
    settings: Settings
    now: Callable[[], datetime]

    def register(self, username: str, password: str, email: str, client: ClientInfo) -> Enrolment:
        """Make an account and its first, unconfirmed authenticator.

        Raises RegistrationClosed, InvalidRequest, WeakPassword, Busy, UserExists.
        """
        try:
            if not self.settings.registration_open:
                raise RegistrationClosed
            user = self._new_user(username, password, email)
        except MFAError as refusal:
            self._record_refusal(refusal, client)
            raise
        return self._add(user, self._hashed(password), (), client)

    def create(
        self, username: str, password: str, email: str, client: ClientInfo, *, roles: tuple[str, ...] = ()
    ) -> Enrolment:
        """Make an account whether or not registration is open; for the operator's terminal.

        Raises InvalidRequest, WeakPassword, Busy, UserExists.
        """
        return self._add(self._new_user(username, password, email), self._hashed(password), roles, client)

    def _hashed(self, password: str) -> str:
        with self.hashing.place() as place:
            return place.run(hash_password, password, self.settings.bcrypt_cost)

    def _new_user(self, username: str, password: str, email: str) -> User:
        key, address = usernames.get_key(username), usernames.checked_email(email)
        self._ensure_acceptable(password, username, address)
        return User(id=new_id(), username=username, username_key=key, email=address, email_key=email_key(address))

    @unit_of_work
    def _record_refusal(self, refusal: MFAError, client: ClientInfo) -> None:
        self.audit.record(Event.REGISTRATION_REFUSED, client, reason=refusal.code)

    @unit_of_work
    def _add(self, user: User, hashed: str, roles: tuple[str, ...], client: ClientInfo) -> Enrolment:
        user.created_at = user.password_set_at = user.seen_at = self.now()
        user.sealed_password = self.vault.seal(hashed.encode(), password_context(user.id))
        try:
            with self.session.begin_nested():
                self.session.add(user)
        except IntegrityError:
            refusal = UserExists()
            self._record_refusal(refusal, client)
            raise refusal from None
        self.audit.record(Event.USER_REGISTERED, client, user_id=user.id)
        if roles:
            self.roles.replace(user.id, roles)
            self.audit.record(Event.ROLES_CHANGED, client, user_id=user.id, before=(), after=roles)
        return self.totp.enrol(user.id, user.username, seconds=None)

    @unit_of_work
    def link(self, external_id: ExternalId, username: str, email: str, client: ClientInfo) -> User:
        """The account of a host's user, who has given the host their password; made where there is none.

        Raises ValueError for an id that is none, InvalidRequest for a name that is none, and InvalidCredentials for an
        account that was disabled here.
        """
        user = self.links.link(external_id, username, email, client)
        if user.disabled_at is not None:
            self.audit.record(Event.PASSWORD_REFUSED, client, user_id=user.id)
            raise InvalidCredentials
        self.audit.record(Event.LOGIN_CONTINUED, client, user_id=user.id)
        return user

    @unit_of_work
    def unlink(self, external_id: ExternalId, client: ClientInfo | None = None) -> None:
        """Forget a user whom the host has deleted: whoever gets the same id one day inherits nothing."""
        self.links.unlink(external_id, client or ClientInfo())

    def check_password(self, username: str, password: str, client: ClientInfo) -> Verdict:
        """Hash and compare, outside of any transaction; an unknown name costs the same. Raises Busy, SealBroken."""
        with self.hashing.place() as place:
            return self._compare(place, is_named(usernames.find_key(username)), password, client)

    def change_password(self, user_id: str, session_id: str, current: str, new: str, client: ClientInfo) -> None:
        """Change the password, and end every other session, device and pending token.

        The new one is hashed after the current one was judged: no time tells a right one of a locked account.
        Raises WeakPassword before anything is spent, InvalidCredentials (a failed attempt, counted as at login), Busy.
        """
        user = self._get(user_id)
        self._ensure_acceptable(new, user.username, user.email, member="newPassword")
        with self.hashing.place() as place:
            verdict = self._compare(place, User.id == user_id, current, client)
            self._judge(user_id, session_id, verdict, client)
            hashed = place.run(hash_password, new, self.settings.bcrypt_cost)
        self._set_password(user_id, session_id, verdict, hashed, client)

    @unit_of_work
    def _judge(self, user_id: str, session_id: str, verdict: Verdict, client: ClientInfo) -> None:
        # Asked before anything is settled: the session may have ended while the current password was hashed.
        if self.users.find_active(user_id) and not self.sessions.is_live(session_id, user_id):
            raise InvalidToken
        self.settle(verdict, client, is_trusted=True)

    @unit_of_work
    def _set_password(self, user_id: str, session_id: str, verdict: Verdict, hashed: str, client: ClientInfo) -> None:
        user, judged = self.users.find_active(user_id), verdict.stored
        if user is None or not self.sessions.is_live(session_id, user.id):
            raise InvalidToken  # ended while the new one was hashed
        if judged is None or user.password_set_at != judged.set_at:
            self._refuse(judged, client)  # another change was faster
        user.sealed_password = self.vault.seal(hashed.encode(), password_context(user.id))
        user.password_set_at = self.now()
        self.locks.passed(user.id, lockout.PASSWORD)  # what was guessed of the old one no longer counts
        self.audit.record(Event.PASSWORD_CHANGED, client, user_id=user.id)
        self.trust.end(user.id, keep=session_id)

    @reading
    def _get(self, user_id: str) -> User:
        user = self.users.find_unheld(user_id)
        if user is None:
            raise InvalidToken
        return user

    def _ensure_acceptable(self, password: str, username: str, email: str, *, member: str = "password") -> None:
        context = (username, usernames.find_key(username) or "", email.partition("@")[0], self.settings.totp_issuer)
        min_length = self.settings.password_min_length
        ensure_acceptable(password, min_length=min_length, context=(*context, "mfa_service"), member=member)

    def _compare(self, place: Place, who: ColumnElement[bool], password: str, client: ClientInfo) -> Verdict:
        cost = self.settings.bcrypt_cost
        stored = self._find_password(who, client)
        hashed = self._opened(stored, client) if stored else decoy(cost)
        try:
            is_right = place.run(verify_password, password, hashed, cost) and stored is not None
        except UnknownHash:
            place.run(verify_password, password, decoy(cost), cost)
            return Verdict(stored, is_right=False, is_readable=False)
        return Verdict(stored, is_right, is_old=is_right and needs_rehash(hashed, cost))

    def _find_password(self, who: ColumnElement[bool], client: ClientInfo) -> StoredPassword | None:
        # One statement, whether or not there is such a name.
        values = {"for_subject": password_from(client.network).name, "now": self.now()}
        rows = self.unit.fetch(_stored(who), values)
        return StoredPassword(*tuple(rows[0])) if rows else None

    def _opened(self, stored: StoredPassword, client: ClientInfo) -> str:
        try:
            return self.vault.open(stored.sealed, password_context(stored.user_id)).decode("ascii", "replace")
        except SealBroken:
            self._record_unreadable(stored, client)
            raise

    @unit_of_work
    def _record_unreadable(self, stored: StoredPassword, client: ClientInfo) -> None:
        self.audit.record(Event.PASSWORD_UNREADABLE, client, user_id=stored.user_id)

    @unit_of_work
    def settle(self, verdict: Verdict, client: ClientInfo, *, is_trusted: bool = False) -> User:
        """Judge a verdict against the account as it is now, and record it. Raises InvalidCredentials.

        `is_trusted`: who shows more than a password is not counted with strangers from everywhere, but apart.
        """
        stored = verdict.stored
        if stored and not verdict.is_readable:
            self._record_unreadable(stored, client)
        user = self.users.find_active(stored.user_id if stored else "")
        subjects = (password_from(client.network), lockout.TRUSTED_PASSWORD if is_trusted else lockout.PASSWORD)
        is_open = self.locks.is_open(stored.user_id if stored else "", *subjects) and not (stored and stored.was_shut)
        # A right password that was changed while it was hashed is no guess: it is refused, not counted.
        is_outdated = bool(user and stored and verdict.is_right and user.password_set_at != stored.set_at)
        is_looked_at = user is not None and is_open and not is_outdated
        if not (user and stored and is_looked_at and verdict.is_right):
            # For nobody, too, and where the password is not looked at: the same statements, changing nothing.
            counted_id = user.id if user and is_looked_at else ""
            counted = [subject for subject in subjects if self.locks.attempt(counted_id, subject)]
            for subject in counted:
                self.locks.failed(counted_id, subject, client)
            self._refuse(stored, client, **({} if is_looked_at else {"locked": not is_open}))
        self.locks.passed(user.id, *subjects)
        self.audit.record(Event.PASSWORD_ACCEPTED, client, user_id=user.id)
        if not verdict.is_old and self.vault.is_stale(stored.sealed):
            self._replace(stored, self.vault.open(stored.sealed, password_context(stored.user_id)))
        return user

    def renew_hash(self, verdict: Verdict, password: str, client: ClientInfo) -> None:
        """Hash at the current cost what is of another one, once its owner was let in.

        Not before: the time that it takes would tell the right password of a locked account. What finds no place in
        the pool, or no database, waits for the next login.
        """
        if verdict.stored and verdict.is_old:
            with suppress(Busy, Unavailable):
                self._store_renewed(verdict.stored, self._hashed(password), client)

    @unit_of_work
    def _store_renewed(self, stored: StoredPassword, hashed: str, client: ClientInfo) -> None:
        if self._replace(stored, hashed.encode()):
            self.audit.record(Event.PASSWORD_REHASHED, client, user_id=stored.user_id)

    def _refuse(self, stored: StoredPassword | None, client: ClientInfo, **detail: bool) -> NoReturn:
        self.audit.record(Event.PASSWORD_REFUSED, client, user_id=stored.user_id if stored else None, **detail)
        raise InvalidCredentials

    def _replace(self, stored: StoredPassword, plain: bytes) -> bool:
        # Only in place of what was read: of ten parallel logins one writes, and none undoes a re-sealing.
        unchanged = (User.id == stored.user_id, User.sealed_password == stored.sealed)
        sealed = self.vault.seal(plain, password_context(stored.user_id))
        return changes_one(self.session, update(User).where(*unchanged).values(sealed_password=sealed))
