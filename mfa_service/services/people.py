"""Bringing people along, and giving them back: accounts with the hashes and TOTP secrets of another system.

A row that does not do is refused with its reason and harms no other; a name that is there already is left alone, so an
import that was killed is run again. Foreign hashes are sealed like ours, and replaced at their owner's next login.
"""

import base64
import binascii
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session, scoped_session

from mfa_service.crypto import totp
from mfa_service.crypto.opaque import new_id
from mfa_service.crypto.passwords import is_known
from mfa_service.crypto.vault import Vault
from mfa_service.errors import InvalidRequest
from mfa_service.models import TOTPSecret, User, UserRole
from mfa_service.services import usernames
from mfa_service.services.audit import Audit, ClientInfo, Event
from mfa_service.services.links import checked_address, checked_external_id, email_key, key_of
from mfa_service.services.roles import Roles, ensure_names
from mfa_service.services.totp import context_of
from mfa_service.services.unit_of_work import UnitOfWork, reading, unit_of_work
from mfa_service.services.users import password_context

#: Rows that are read or written in one transaction.
BATCH = 500
#: The shortest and longest TOTP secret that is taken, in bytes (RFC 4226 section 4, R6).
SECRET_BYTES = range(16, 129)
_COLUMNS = ("username", "email", "password_hash", "totp_secret", "roles", "external_id", "disabled")


@dataclass(frozen=True)
class Newcomer:
    """Somebody to bring along, checked: with a password, or with the id that a host app knows them by."""

    external_id: str | None
    username: str
    key: str
    email: str
    password_hash: str | None = field(repr=False)
    totp_secret: bytes | None = field(repr=False)
    roles: tuple[str, ...]
    is_disabled: bool

    @property
    def identity(self) -> tuple[str, str]:
        """What tells this account from every other one."""
        return ("external_id", self.external_id) if self.external_id is not None else ("username", self.key)


def checked(row: Mapping[str, Any]) -> Newcomer:
    """Somebody from a row of a file. Raises InvalidRequest with a reason for each column that does not do."""
    text = {name: "" if row.get(name) is None else row[name] for name in _COLUMNS}
    if wrong := [name for name, value in text.items() if not isinstance(value, str)]:
        raise InvalidRequest(fields=dict.fromkeys(wrong, "must be text"))
    roles = tuple(sorted(set(text["roles"].split())))
    ensure_names(roles)
    secret = _checked_secret(text["totp_secret"])
    if text["disabled"] not in ("", "yes"):
        raise InvalidRequest(fields={"disabled": "must be yes or empty"})
    is_disabled = text["disabled"] == "yes"
    if text["external_id"]:
        return _of_host(text, secret, roles, is_disabled)
    return Newcomer(
        external_id=None,
        username=text["username"],
        key=usernames.get_key(text["username"]),
        email=usernames.checked_email(text["email"]),
        password_hash=_checked_hash(text["password_hash"]),
        totp_secret=secret,
        roles=roles,
        is_disabled=is_disabled,
    )


def _of_host(text: Mapping[str, str], secret: bytes | None, roles: tuple[str, ...], is_disabled: bool) -> Newcomer:
    if text["password_hash"]:
        raise InvalidRequest(fields={"password_hash": "must be empty where the user is a host's"})
    try:
        external_id = checked_external_id(text["external_id"])
    except ValueError as error:
        raise InvalidRequest(fields={"external_id": f"is none: {error}"}) from None
    label = usernames.label(text["username"])
    address = checked_address(text["email"])
    return Newcomer(external_id, label, key_of(label), address, None, secret, roles, is_disabled)


class People:
    """Brings accounts in, and gives them out."""

    def __init__(
        self,
        session: scoped_session[Session],
        unit: UnitOfWork,
        audit: Audit,
        roles: Roles,
        vault: Vault,
        now: Callable[[], datetime],
    ) -> None:
        self._session = session
        self.unit = unit
        self._audit = audit
        self._roles = roles
        self._vault = vault
        self._now = now

    @reading
    def find_taken(self, people: Sequence[Newcomer]) -> set[tuple[str, str]]:
        """Which of these are there already, by their identity."""
        keys = [person.key for person in people if person.external_id is None]
        ids = [person.external_id for person in people if person.external_id is not None]
        named = select(User.username_key).where(User.username_key.in_(keys), User.external_id.is_(None))
        linked = select(User.external_id).where(User.external_id.in_(ids))
        taken = {("username", key) for key in self._session.scalars(named)} if keys else set()
        return taken | ({("external_id", str(it)) for it in self._session.scalars(linked)} if ids else set())

    @unit_of_work
    def bring(self, people: Sequence[Newcomer], client: ClientInfo) -> int:
        """Make accounts of those whose names are free, and say how many. One transaction: all of them or none."""
        taken = self.find_taken(people)
        fresh = {person.identity: person for person in people if person.identity not in taken}
        ids = {identity: new_id() for identity in fresh}
        self._session.add_all(self._user(ids[identity], person) for identity, person in fresh.items())
        self._session.flush()
        for identity, person in fresh.items():
            self._equip(ids[identity], person, client)
        return len(fresh)

    def rows(self, *, with_secrets: bool) -> Iterator[dict[str, Any]]:
        """Every account, as `import-users` takes it; hashes and secrets only where they are asked for."""
        last = ""
        while batch := self._batch(last, with_secrets):
            yield from (row for _, row in batch)
            last = batch[-1][0]

    @unit_of_work
    def record_export(self, client: ClientInfo, *, with_secrets: bool) -> None:
        """Note that the accounts were taken away."""
        self._audit.record(Event.USERS_EXPORTED, client, with_secrets=with_secrets)

    def _user(self, user_id: str, person: Newcomer) -> User:
        now, hashed = self._now(), person.password_hash
        return User(
            id=user_id,
            external_id=person.external_id,
            username=person.username,
            username_key=person.key,
            email=person.email,
            email_key=email_key(person.email),
            sealed_password=self._vault.seal(hashed.encode(), password_context(user_id)) if hashed else None,
            password_set_at=now if hashed else None,
            created_at=now,
            seen_at=now,
            disabled_at=now if person.is_disabled else None,
            had_factor_at=now if person.totp_secret else None,
        )

    def _equip(self, user_id: str, person: Newcomer, client: ClientInfo) -> None:
        now = self._now()
        self._session.add_all(UserRole(user_id=user_id, role=role) for role in person.roles)
        if person.totp_secret:
            sealed = self._vault.seal(person.totp_secret, context_of(user_id))
            self._session.add(
                TOTPSecret(id=new_id(), user_id=user_id, sealed_secret=sealed, created_at=now, confirmed_at=now)
            )
        self._audit.record(Event.USER_IMPORTED, client, user_id=user_id, factor=person.totp_secret is not None)

    @reading
    def _batch(self, last: str, with_secrets: bool) -> list[tuple[str, dict[str, Any]]]:
        users = self._session.scalars(select(User).where(User.id > last).order_by(User.id).limit(BATCH)).all()
        ids = [user.id for user in users]
        roles = self._roles.of_all(ids)
        secrets = {
            secret.user_id: secret
            for secret in self._session.scalars(
                select(TOTPSecret).where(TOTPSecret.user_id.in_(ids), TOTPSecret.confirmed_at.is_not(None))
            )
        }
        return [
            (user.id, self._row(user, roles.get(user.id, ()), secrets.get(user.id), with_secrets)) for user in users
        ]

    def _row(self, user: User, roles: Sequence[str], secret: TOTPSecret | None, with_secrets: bool) -> dict[str, Any]:
        row = {"username": user.username, "email": user.email, "roles": " ".join(roles)}
        row["external_id"] = user.external_id or ""
        row |= {"created_at": user.created_at.isoformat(), "disabled": "yes" if user.disabled_at else ""}
        if with_secrets:
            hashed = user.sealed_password
            row["password_hash"] = self._vault.open(hashed, password_context(user.id)).decode() if hashed else ""
            opened = self._vault.open(secret.sealed_secret, context_of(user.id)) if secret else None
            row["totp_secret"] = totp.as_base32(opened) if opened else ""
        return row


def _checked_hash(stored: str) -> str:
    if not is_known(stored):
        raise InvalidRequest(fields={"password_hash": "is of no kind that can be verified here, or damaged"})
    return stored


def _checked_secret(text: str) -> bytes | None:
    if not text:
        return None
    plain = text.replace(" ", "").replace("-", "").rstrip("=").upper()
    try:
        secret = base64.b32decode(plain + "=" * (-len(plain) % 8))
    except (binascii.Error, ValueError):
        raise InvalidRequest(fields={"totp_secret": "is not base32"}) from None
    if len(secret) not in SECRET_BYTES:
        most = SECRET_BYTES.stop - 1
        reason = f"holds {len(secret)} bytes, not {SECRET_BYTES.start} (26 characters of base32) to {most}"
        raise InvalidRequest(fields={"totp_secret": reason})
    return secret
