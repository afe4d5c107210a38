"""Accounts: registering, and checking a password.

No hash is computed while a transaction is open: read, end the transaction, hash, then one unit judges and records.
Whatever is wrong with a login, the work and the answer are the same, so that nobody learns which names exist.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime

from email_validator import EmailNotValidError, validate_email
from sqlalchemy import select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session, scoped_session

from mfa_service.config import Settings
from mfa_service.crypto.opaque import new_id
from mfa_service.crypto.passwords import UnknownHash, decoy, hash_password, needs_rehash, verify_password
from mfa_service.crypto.vault import Vault
from mfa_service.errors import InvalidCredentials, InvalidRequest, MFAError, RegistrationClosed, SealBroken, UserExists
from mfa_service.models import User
from mfa_service.services import usernames
from mfa_service.services.audit import Audit, ClientInfo, Event
from mfa_service.services.database import changes_one
from mfa_service.services.hashing import Hashing
from mfa_service.services.password_policy import ensure_acceptable
from mfa_service.services.totp import TOTP, Enrolment
from mfa_service.services.unit_of_work import UnitOfWork, reading, unit_of_work


@dataclass(frozen=True)
class StoredPassword:
    """A password hash as it was read, before hashing began."""

    user_id: str
    set_at: datetime
    sealed: bytes = field(repr=False)


@dataclass(frozen=True)
class Verdict:
    """What hashing found out. It holds nothing until `settle` has looked at the account again."""

    stored: StoredPassword | None
    is_right: bool
    is_readable: bool = True
    fresh_hash: str | None = field(default=None, repr=False)


class Accounts:
    """Users and their passwords."""

    def __init__(
        self,
        session: scoped_session[Session],
        unit: UnitOfWork,
        audit: Audit,
        vault: Vault,
        hashing: Hashing,
        totp: TOTP,
        settings: Settings,
        now: Callable[[], datetime],
    ) -> None:
        self._session = session
        self.unit = unit
        self._audit = audit
        self._vault = vault
        self._hashing = hashing
        self._totp = totp
        self._settings = settings
        self._now = now

    def register(self, username: str, password: str, email: str, client: ClientInfo) -> Enrolment:
        """Make an account and its first, unconfirmed authenticator.

        Raises RegistrationClosed, InvalidRequest, WeakPassword, Busy, UserExists.
        """
        try:
            user = self._new_user(username, password, email)
        except MFAError as refusal:
            self._record_refusal(refusal, client)
            raise
        with self._hashing.place() as place:
            hashed = place.run(hash_password, password, self._settings.bcrypt_cost)
        return self._add(user, hashed, client)

    def _new_user(self, username: str, password: str, email: str) -> User:
        if not self._settings.registration_open:
            raise RegistrationClosed
        key, address = usernames.get_key(username), _checked_email(email)
        context = (username, key, address.partition("@")[0], self._settings.totp_issuer, "mfa_service")
        ensure_acceptable(password, min_length=self._settings.password_min_length, context=context)
        return User(id=new_id(), username=username, username_key=key, email=address)

    @unit_of_work
    def _record_refusal(self, refusal: MFAError, client: ClientInfo) -> None:
        self._audit.record(Event.REGISTRATION_REFUSED, client, reason=refusal.code)

    @unit_of_work
    def _add(self, user: User, hashed: str, client: ClientInfo) -> Enrolment:
        user.created_at = user.password_set_at = self._now()
        user.sealed_password = self._vault.seal(hashed.encode(), _context(user.id))
        try:
            with self._session.begin_nested():
                self._session.add(user)
        except IntegrityError:
            refusal = UserExists()
            self._record_refusal(refusal, client)
            raise refusal from None
        self._audit.record(Event.USER_REGISTERED, client, user_id=user.id)
        return self._totp.enrol(user.id, user.username)

    def check_password(self, username: str, password: str, client: ClientInfo) -> Verdict:
        """Hash and compare, outside of any transaction; an unknown name costs the same. Raises Busy, SealBroken."""
        cost = self._settings.bcrypt_cost
        with self._hashing.place() as place:
            stored = self._find_password(username)
            hashed = self._opened(stored, client) if stored else decoy(cost)
            try:
                is_right = place.run(verify_password, password, hashed, cost) and stored is not None
            except UnknownHash:
                place.run(verify_password, password, decoy(cost), cost)
                return Verdict(stored, is_right=False, is_readable=False)
            is_old = is_right and needs_rehash(hashed, cost)
            return Verdict(stored, is_right, fresh_hash=place.run(hash_password, password, cost) if is_old else None)

    @reading
    def _find_password(self, username: str) -> StoredPassword | None:
        key = usernames.find_key(username)
        user = self._session.scalar(select(User).where(User.username_key == key)) if key else None
        return StoredPassword(user.id, user.password_set_at, user.sealed_password) if user else None

    def _opened(self, stored: StoredPassword, client: ClientInfo) -> str:
        try:
            return self._vault.open(stored.sealed, _context(stored.user_id)).decode("ascii", "replace")
        except SealBroken:
            self._record_unreadable(stored, client)
            raise

    @unit_of_work
    def _record_unreadable(self, stored: StoredPassword, client: ClientInfo) -> None:
        self._audit.record(Event.PASSWORD_UNREADABLE, client, user_id=stored.user_id)

    @unit_of_work
    def settle(self, verdict: Verdict, client: ClientInfo) -> User:
        """Judge a verdict against the account as it is now, and record it. Raises InvalidCredentials."""
        stored = verdict.stored
        user = self.find_active(stored.user_id) if stored else None
        if stored and not verdict.is_readable:
            self._record_unreadable(stored, client)
        if not stored or not user or not verdict.is_right or user.password_set_at != stored.set_at:
            self._audit.record(Event.PASSWORD_REFUSED, client, user_id=stored.user_id if stored else None)
            raise InvalidCredentials
        self._audit.record(Event.PASSWORD_ACCEPTED, client, user_id=user.id)
        if verdict.fresh_hash:
            self._replace_hash(stored, verdict.fresh_hash, client)
        return user

    def _replace_hash(self, stored: StoredPassword, fresh_hash: str, client: ClientInfo) -> None:
        sealed = self._vault.seal(fresh_hash.encode(), _context(stored.user_id))
        # Only in place of what was read: of ten parallel logins one writes, and none undoes a re-sealing.
        unchanged = (User.id == stored.user_id, User.sealed_password == stored.sealed)
        if changes_one(self._session, update(User).where(*unchanged).values(sealed_password=sealed)):
            self._audit.record(Event.PASSWORD_REHASHED, client, user_id=stored.user_id)

    def find_active(self, user_id: str) -> User | None:
        """The user, unless gone or disabled, locked against other units until this one ends."""
        mine = select(User).where(User.id == user_id, User.disabled_at.is_(None))
        # SQLite knows no FOR UPDATE and needs none: a unit that writes is the only one that does.
        return self._session.scalar(mine.with_for_update())


def _context(user_id: str) -> str:
    return f"mfa_users.sealed_password:{user_id}"


def _checked_email(email: str) -> str:
    try:
        return validate_email(email, check_deliverability=False).normalized
    except EmailNotValidError:
        raise InvalidRequest(fields={"email": "is not an e-mail address"}) from None
