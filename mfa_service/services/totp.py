"""The authenticator as a factor: enrol, open, claim a step.

A step is claimed by one conditional UPDATE, so a code is accepted once, whoever sends it and however often, and a
step before the last accepted one never again (RFC 6238 section 5.2). What was given up: two sign-ins within one
step need two codes, so the second waits up to thirty seconds.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from sqlalchemy import ColumnElement, bindparam, delete, func, select, update
from sqlalchemy.orm import Session, scoped_session

from mfa_service.crypto import qr, totp
from mfa_service.crypto.opaque import new_id
from mfa_service.crypto.vault import Vault
from mfa_service.errors import SealBroken
from mfa_service.models import TOTPSecret, UTCDateTime
from mfa_service.services.audit import Audit, ClientInfo, Event
from mfa_service.services.database import changes_one, execute

#: How long a new authenticator waits for the code that confirms it. That of registration waits for ever.
ENROLMENT_SECONDS = 600


_CONFIRMED = select(TOTPSecret.id).where(TOTPSecret.user_id == bindparam("user"), TOTPSecret.confirmed_at.is_not(None))
_OF_USER = (
    select(TOTPSecret)
    .where(TOTPSecret.user_id == bindparam("user"))
    .order_by(TOTPSecret.confirmed_at.is_(None))
    .execution_options(populate_existing=True)
)
_CLAIM = (
    update(TOTPSecret)
    .where(TOTPSecret.id == bindparam("held"), TOTPSecret.last_step < bindparam("step"))
    .values(
        last_step=bindparam("step"),
        confirmed_at=func.coalesce(TOTPSecret.confirmed_at, bindparam("now", type_=UTCDateTime)),
        expires_at=None,
    )
)


@dataclass(frozen=True)
class Enrolment:
    """What an authenticator app needs, shown once."""

    secret: str = field(repr=False)
    uri: str = field(repr=False)
    expires_in: int | None = None

    @property
    def qr_code(self) -> str:
        """The address as a PNG in a data URI; drawn on demand, and not while a transaction is open."""
        return qr.as_data_uri(self.uri)

    @property
    def qr_svg(self) -> str:
        """The same as an SVG element."""
        return qr.as_svg(self.uri)


@dataclass(frozen=True)
class OpenSecret:
    """A secret out of its seal, for the length of one unit."""

    id: str
    user_id: str
    secret: bytes = field(repr=False)
    is_confirmed: bool


class TOTP:
    """Authenticators of users. A user has at most one that is confirmed and one that is not yet."""

    def __init__(
        self,
        session: scoped_session[Session],
        audit: Audit,
        vault: Vault,
        now: Callable[[], datetime],
        *,
        issuer: str,
        window: int,
    ) -> None:
        self._session = session
        self._audit = audit
        self._vault = vault
        self._now = now
        self._issuer = issuer
        self._window = window

    def enrol(self, user_id: str, username: str, *, seconds: int | None = ENROLMENT_SECONDS) -> Enrolment:
        """Make a new secret in place of the unconfirmed one; the caller has made sure that this is allowed.

        After `seconds` it is wiped unless a code has confirmed it; None waits for ever.
        """
        secret, now = totp.new_secret(), self._now()
        # A row of its own, not an update: a code for the former secret can't confirm this one.
        self._session.execute(delete(TOTPSecret).where(*_unconfirmed(user_id)))
        row = TOTPSecret(
            id=new_id(),
            user_id=user_id,
            sealed_secret=self._vault.seal(secret, context_of(user_id)),
            created_at=now,
            expires_at=None if seconds is None else now + timedelta(seconds=seconds),
        )
        self._session.add(row)
        uri = totp.otpauth_uri(secret, account=username, issuer=self._issuer)
        return Enrolment(totp.as_base32(secret), uri, seconds)

    def is_confirmed(self, user_id: str) -> bool:
        """Whether the user has an authenticator that has shown a right code."""
        return execute(self._session, _CONFIRMED, user=user_id).scalar() is not None

    def find_open(self, user_id: str, client: ClientInfo) -> OpenSecret | None:
        """The confirmed secret, or else the one that waits for its first code. Raises SealBroken, recorded."""
        rows = self._rows_of(user_id)
        return self._opened(rows[0], client) if rows else None

    def find_replacement(self, user_id: str, client: ClientInfo) -> OpenSecret | None:
        """The secret that waits to replace the confirmed one. Raises SealBroken, recorded."""
        rows = [row for row in self._rows_of(user_id) if row.confirmed_at is None]
        return self._opened(rows[0], client) if rows else None

    def _rows_of(self, user_id: str) -> list[TOTPSecret]:
        """What a user has, the confirmed one first; one that has waited too long is wiped."""
        rows = self._session.scalars(_OF_USER, {"user": user_id}).all()
        live = [row for row in rows if not self._has_expired(row)]
        if len(live) < len(rows):
            expired = delete(TOTPSecret).where(*_unconfirmed(user_id), TOTPSecret.expires_at <= self._now())
            self._session.execute(expired)
        return live

    def _has_expired(self, row: TOTPSecret) -> bool:
        return row.confirmed_at is None and row.expires_at is not None and row.expires_at <= self._now()

    def matching_step(self, held: OpenSecret, code: str) -> int | None:
        """The step whose code this is, if it lies within the window."""
        return totp.matching_step(held.secret, code, now=self._now().timestamp(), window=self._window)

    def claim(self, held: OpenSecret, step: int) -> bool:
        """Use a step up, and confirm the secret if that is its first; False if the step was used before."""
        return changes_one(self._session, _CLAIM, held=held.id, step=step, now=self._now())

    def forget_confirmed(self, user_id: str) -> None:
        """Drop the confirmed authenticator."""
        confirmed = TOTPSecret.user_id == user_id, TOTPSecret.confirmed_at.is_not(None)
        self._session.execute(delete(TOTPSecret).where(*confirmed))

    def forget_all(self, user_id: str) -> None:
        """Drop every authenticator of a user."""
        self._session.execute(delete(TOTPSecret).where(TOTPSecret.user_id == user_id))

    def _opened(self, row: TOTPSecret, client: ClientInfo) -> OpenSecret:
        try:
            secret = self._vault.open(row.sealed_secret, context_of(row.user_id))
        except SealBroken:
            self._audit.record(Event.SECRET_UNREADABLE, client, user_id=row.user_id, secret=row.id)
            raise
        if self._vault.is_stale(row.sealed_secret):
            unchanged = (TOTPSecret.id == row.id, TOTPSecret.sealed_secret == row.sealed_secret)
            fresh = self._vault.seal(secret, context_of(row.user_id))
            self._session.execute(update(TOTPSecret).where(*unchanged).values(sealed_secret=fresh))
        return OpenSecret(row.id, row.user_id, secret, row.confirmed_at is not None)


def _unconfirmed(user_id: str) -> tuple[ColumnElement[bool], ...]:
    return TOTPSecret.user_id == user_id, TOTPSecret.confirmed_at.is_(None)


def context_of(user_id: str) -> str:
    """What a TOTP secret of this user is sealed for."""
    return f"mfa_secrets.sealed_secret:{user_id}"
