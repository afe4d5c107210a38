"""The authenticator as a factor: enrol, open, claim a step.

A step is claimed by one conditional UPDATE, so a code is accepted once, whoever sends it and however often, and a
step before the last accepted one never again (RFC 6238 section 5.2). What was given up: two sign-ins within one
step need two codes, so the second waits up to thirty seconds.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime

from sqlalchemy import delete, func, select, update
from sqlalchemy.orm import Session, scoped_session

from mfa_service.crypto import qr, totp
from mfa_service.crypto.opaque import new_id
from mfa_service.crypto.vault import Vault
from mfa_service.errors import InvalidCode, SealBroken
from mfa_service.models import TOTPSecret
from mfa_service.services.audit import Audit, ClientInfo, Event
from mfa_service.services.database import changes_one


@dataclass(frozen=True)
class Enrolment:
    """What an authenticator app needs, shown once."""

    secret: str = field(repr=False)
    uri: str = field(repr=False)

    @property
    def qr_code(self) -> str:
        """The address as a PNG in a data URI; drawn on demand, and not while a transaction is open."""
        return qr.as_data_uri(self.uri)


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

    def enrol(self, user_id: str, username: str) -> Enrolment:
        """Make a new secret in place of the unconfirmed one; the caller has made sure that this is allowed."""
        secret = totp.new_secret()
        # A row of its own, not an update: a code for the former secret can't confirm this one.
        self._session.execute(
            delete(TOTPSecret).where(TOTPSecret.user_id == user_id, TOTPSecret.confirmed_at.is_(None))
        )
        sealed = self._vault.seal(secret, _context(user_id))
        self._session.add(TOTPSecret(id=new_id(), user_id=user_id, sealed_secret=sealed, created_at=self._now()))
        uri = totp.otpauth_uri(secret, account=username, issuer=self._issuer)
        return Enrolment(totp.as_base32(secret), uri)

    def is_confirmed(self, user_id: str) -> bool:
        """Whether the user has ever shown a right code."""
        confirmed = select(TOTPSecret.id).where(TOTPSecret.user_id == user_id, TOTPSecret.confirmed_at.is_not(None))
        return self._session.scalar(confirmed) is not None

    def find_open(self, user_id: str, client: ClientInfo) -> OpenSecret | None:
        """The confirmed secret, or else the one that waits for its first code. Raises SealBroken, recorded."""
        mine = select(TOTPSecret).where(TOTPSecret.user_id == user_id)
        row = self._session.scalar(mine.order_by(TOTPSecret.confirmed_at.is_(None)).limit(1))
        if row is None:
            return None
        try:
            secret = self._vault.open(row.sealed_secret, _context(user_id))
        except SealBroken:
            self._audit.record(Event.SECRET_UNREADABLE, client, user_id=user_id, secret=row.id)
            raise
        return OpenSecret(row.id, user_id, secret, row.confirmed_at is not None)

    def claim(self, held: OpenSecret | None, code: str, client: ClientInfo, *, user_id: str) -> None:
        """Use up the step that `code` belongs to; the first one confirms the factor. Raises InvalidCode."""
        step = self._matching_step(held, code) if held else None
        if held is None or step is None:
            self._refuse(Event.CODE_REFUSED, user_id, client)
        elif not self._take(held.id, step):
            self._refuse(Event.CODE_REPLAYED, user_id, client)
        elif not held.is_confirmed:
            self._audit.record(Event.FACTOR_CONFIRMED, client, user_id=user_id, factor="totp")

    def _matching_step(self, held: OpenSecret, code: str) -> int | None:
        return totp.matching_step(held.secret, code, now=self._now().timestamp(), window=self._window)

    def _take(self, secret_id: str, step: int) -> bool:
        confirmed_at = func.coalesce(TOTPSecret.confirmed_at, self._now())
        taking = update(TOTPSecret).where(TOTPSecret.id == secret_id, TOTPSecret.last_step < step)
        return changes_one(self._session, taking.values(last_step=step, confirmed_at=confirmed_at))

    def _refuse(self, event: Event, user_id: str, client: ClientInfo) -> None:
        self._audit.record(event, client, user_id=user_id, factor="totp")
        raise InvalidCode


def _context(user_id: str) -> str:
    return f"mfa_secrets.sealed_secret:{user_id}"
