"""The whole schema on one page. Every table is named `mfa_*`, times are UTC, ids are random strings.

Columns ending in `_at` are times, `sealed_` columns hold envelopes of `crypto/vault.py`. The database settles all
races: what may happen once stands here as a unique constraint, or as a column that one conditional UPDATE changes.
"""

from datetime import UTC, datetime
from typing import Any, ClassVar

from sqlalchemy import (
    JSON,
    BigInteger,
    DateTime,
    Dialect,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    TypeDecorator,
    text,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

ID_LENGTH = 22


class UTCDateTime(TypeDecorator[datetime]):
    """An aware UTC time on every database; SQLite keeps none of the zone, so it is put back on reading."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Store UTC; refuse a naive time, whose zone nobody knows."""
        if value is not None and value.tzinfo is None:
            raise ValueError("a time without a zone")
        return value and value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Return it aware."""
        return value and (value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC))


def _bytewise(length: int) -> String:
    """Text compared by its bytes on every database, so that an index finds what begins with a prefix."""
    return String(length).with_variant(String(length, collation="C"), "postgresql")


class Base(DeclarativeBase):
    """Root of our tables, on a registry and a metadata of its own: nothing of a host's is mixed in."""

    metadata = MetaData(
        naming_convention={
            "pk": "pk_%(table_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s",
            "uq": "uq_%(table_name)s_%(column_0_name)s",
            "ix": "ix_%(table_name)s_%(column_0_name)s",
        }
    )
    type_annotation_map: ClassVar = {datetime: UTCDateTime, dict[str, Any]: JSON}


class User(Base):
    """An account: ours, by its username and password, or that of a host app's user, by the host's id.

    `username` is shown, `username_key` is compared (RFC 8265); a host's names are labels, and need not be unique.
    """

    __tablename__ = "mfa_users"

    id: Mapped[str] = mapped_column(String(ID_LENGTH), primary_key=True)
    external_id: Mapped[str | None] = mapped_column(_bytewise(255), unique=True)
    username: Mapped[str] = mapped_column(String(254))
    username_key: Mapped[str] = mapped_column(_bytewise(254), index=True)
    email: Mapped[str] = mapped_column(String(254))
    # What addresses are searched by: `email` casefolded, and cut to fit.
    email_key: Mapped[str] = mapped_column(_bytewise(254), index=True)
    sealed_password: Mapped[bytes | None] = mapped_column(LargeBinary)
    password_set_at: Mapped[datetime | None]
    created_at: Mapped[datetime]
    # Registered, signed in or refreshed: written where the row is held anyway.
    seen_at: Mapped[datetime] = mapped_column(index=True)
    disabled_at: Mapped[datetime | None]
    # Set by the first confirmed factor and kept, unless its owner goes without: a password alone never enrols another.
    had_factor_at: Mapped[datetime | None]

    __table_args__ = (
        Index("ix_mfa_users_created_at", "created_at", "id"),
        Index(
            "uq_mfa_users_own_username_key",
            "username_key",
            unique=True,
            sqlite_where=text("external_id IS NULL"),
            postgresql_where=text("external_id IS NULL"),
        ),
    )


class UserRole(Base):
    """A role of a user. `admin` is ours, others are the operator's."""

    __tablename__ = "mfa_user_roles"

    user_id: Mapped[str] = mapped_column(ForeignKey("mfa_users.id", ondelete="CASCADE"), primary_key=True)
    role: Mapped[str] = mapped_column(String(32), primary_key=True)

    __table_args__ = (Index("ix_mfa_user_roles_role", "role", "user_id"),)


class PolicyMode(Base):
    """The one row that says whether everybody must have a second factor; no row means yes, at once."""

    __tablename__ = "mfa_policies"

    id: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    mode: Mapped[str] = mapped_column(String(8))
    deadline_at: Mapped[datetime | None]
    grace_days: Mapped[int | None]
    # Since when this rule stands; moving its deadline does not change it.
    created_at: Mapped[datetime]


class Rule(Base):
    """A role (`role:…`) or a user (`user:…`) that must have a second factor, from a day on or so long after a login."""

    __tablename__ = "mfa_rules"

    subject: Mapped[str] = mapped_column(String(40), primary_key=True)
    # So that the rule about a user goes with the user.
    user_id: Mapped[str | None] = mapped_column(ForeignKey("mfa_users.id", ondelete="CASCADE"), unique=True)
    deadline_at: Mapped[datetime | None]
    grace_days: Mapped[int | None]
    created_at: Mapped[datetime]


class GracePeriod(Base):
    """When a user first logged in under a rule that counts days; later logins find the row and change nothing."""

    __tablename__ = "mfa_grace_periods"

    user_id: Mapped[str] = mapped_column(ForeignKey("mfa_users.id", ondelete="CASCADE"), primary_key=True)
    subject: Mapped[str] = mapped_column(String(40), primary_key=True)
    started_at: Mapped[datetime]


class Ticket(Base):
    """After a reset by an administrator: what its user needs, beside the password, to enrol once."""

    __tablename__ = "mfa_tickets"

    user_id: Mapped[str] = mapped_column(ForeignKey("mfa_users.id", ondelete="CASCADE"), primary_key=True)
    digest: Mapped[str] = mapped_column(String(64))
    created_at: Mapped[datetime]
    expires_at: Mapped[datetime] = mapped_column(index=True)


class TOTPSecret(Base):
    """An authenticator. It counts as a factor once `confirmed_at` is set; a step up to `last_step` is used up."""

    __tablename__ = "mfa_secrets"

    id: Mapped[str] = mapped_column(String(ID_LENGTH), primary_key=True)
    user_id: Mapped[str] = mapped_column(ForeignKey("mfa_users.id", ondelete="CASCADE"), index=True)
    sealed_secret: Mapped[bytes] = mapped_column(LargeBinary)
    last_step: Mapped[int] = mapped_column(BigInteger, default=-1)
    created_at: Mapped[datetime]
    # When it is wiped unless it is confirmed; the secret of registration waits for ever.
    expires_at: Mapped[datetime | None]
    confirmed_at: Mapped[datetime | None]

    __table_args__ = (
        # One confirmed and one unconfirmed authenticator for each user, whatever runs at the same time.
        Index(
            "uq_mfa_secrets_confirmed",
            "user_id",
            unique=True,
            sqlite_where=text("confirmed_at IS NOT NULL"),
            postgresql_where=text("confirmed_at IS NOT NULL"),
        ),
        Index(
            "uq_mfa_secrets_unconfirmed",
            "user_id",
            unique=True,
            sqlite_where=text("confirmed_at IS NULL"),
            postgresql_where=text("confirmed_at IS NULL"),
        ),
    )


class Challenge(Base):
    """A right password that waits for its second factor; its id is the `jti` of the pending token."""

    __tablename__ = "mfa_challenges"

    id: Mapped[str] = mapped_column(String(ID_LENGTH), primary_key=True)
    user_id: Mapped[str] = mapped_column(ForeignKey("mfa_users.id", ondelete="CASCADE"), index=True)
    attempts: Mapped[int] = mapped_column(Integer, default=0)
    created_at: Mapped[datetime]
    expires_at: Mapped[datetime] = mapped_column(index=True)
    closed_at: Mapped[datetime | None]


class RecoveryCode(Base):
    """A code for the day the phone is gone, good once. The codes have 120 random bits: a plain SHA-256 hides them."""

    __tablename__ = "mfa_recovery_codes"

    user_id: Mapped[str] = mapped_column(ForeignKey("mfa_users.id", ondelete="CASCADE"), primary_key=True)
    digest: Mapped[str] = mapped_column(String(64), primary_key=True)
    created_at: Mapped[datetime]
    used_at: Mapped[datetime | None]


class Lock(Base):
    """Failures in a row, of one user and one subject: a factor, the password, or the password from one network."""

    __tablename__ = "mfa_locks"

    user_id: Mapped[str] = mapped_column(ForeignKey("mfa_users.id", ondelete="CASCADE"), primary_key=True)
    subject: Mapped[str] = mapped_column(String(80), primary_key=True)
    failures: Mapped[int] = mapped_column(Integer)
    failed_at: Mapped[datetime] = mapped_column(index=True)
    open_at: Mapped[datetime | None]
    disabled_at: Mapped[datetime | None]


class Device(Base):
    """A browser or app that its user asked us to remember: it skips the code, never the password."""

    __tablename__ = "mfa_devices"

    id: Mapped[str] = mapped_column(String(ID_LENGTH), primary_key=True)
    user_id: Mapped[str] = mapped_column(ForeignKey("mfa_users.id", ondelete="CASCADE"), index=True)
    digest: Mapped[str] = mapped_column(String(64), unique=True)
    name: Mapped[str] = mapped_column(String(64))
    address: Mapped[str] = mapped_column(String(64))
    user_agent: Mapped[str] = mapped_column(String(256))
    created_at: Mapped[datetime]
    used_at: Mapped[datetime]
    expires_at: Mapped[datetime] = mapped_column(index=True)


class Session(Base):
    """Somebody signed in; its id is the `sid` of the access token.

    `generation` counts the refresh tokens that were given out; they are derived from it under `key_id`, not stored.
    """

    __tablename__ = "mfa_sessions"

    id: Mapped[str] = mapped_column(String(ID_LENGTH), primary_key=True)
    user_id: Mapped[str] = mapped_column(ForeignKey("mfa_users.id", ondelete="CASCADE"), index=True)
    address: Mapped[str] = mapped_column(String(64))
    network: Mapped[str] = mapped_column(String(64))
    user_agent: Mapped[str] = mapped_column(String(256))
    step: Mapped[str] = mapped_column(String(16))
    amr: Mapped[str] = mapped_column(String(64))
    # Where a browser's cookie stands for the session: the digest of what is in it.
    cookie_digest: Mapped[str | None] = mapped_column(String(64), unique=True)
    key_id: Mapped[str] = mapped_column(String(32), index=True)
    generation: Mapped[int] = mapped_column(Integer, default=0)
    created_at: Mapped[datetime]
    authenticated_at: Mapped[datetime]
    refreshed_at: Mapped[datetime]
    rotated_at: Mapped[datetime | None]
    seen_at: Mapped[datetime]
    expires_at: Mapped[datetime] = mapped_column(index=True)
    revoked_at: Mapped[datetime | None]


class AuditEvent(Base):
    """Something happened. Rows are added in the transaction of the fact and never changed."""

    __tablename__ = "mfa_events"

    # SQLite counts only INTEGER keys by itself.
    id: Mapped[int] = mapped_column(BigInteger().with_variant(Integer, "sqlite"), primary_key=True)
    at: Mapped[datetime]
    event: Mapped[str] = mapped_column(String(64))
    # No foreign keys: the record outlives the account.
    user_id: Mapped[str | None] = mapped_column(String(ID_LENGTH))
    # Who did it to them: an administrator's id, or `cli:` and the name in the terminal.
    actor: Mapped[str | None] = mapped_column(String(64))
    address: Mapped[str] = mapped_column(String(64))
    user_agent: Mapped[str] = mapped_column(String(256))
    request_id: Mapped[str] = mapped_column(String(64))
    detail: Mapped[dict[str, Any]]

    __table_args__ = (
        Index("ix_mfa_events_at", "at", "id"),
        Index("ix_mfa_events_event", "event", "at", "id"),
        Index("ix_mfa_events_user_id", "user_id", "at", "id"),
        Index("ix_mfa_events_actor", "actor", "at", "id"),
        # An id is never used again, not even that of a row which was removed from the end.
        {"sqlite_autoincrement": True},
    )


class SealRecord(Base):
    """A signed link of the chain over the audit log (`crypto/chain.py`). Never changed, never removed."""

    __tablename__ = "mfa_seals"

    number: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    kind: Mapped[str] = mapped_column(String(8))
    first_id: Mapped[int] = mapped_column(BigInteger)
    last_id: Mapped[int] = mapped_column(BigInteger)
    count: Mapped[int] = mapped_column(BigInteger)
    events_digest: Mapped[str] = mapped_column(String(64))
    # One successor each: of two replicas that seal at the same time, one stops.
    previous: Mapped[str] = mapped_column(String(64), unique=True)
    sealed_at: Mapped[datetime]
    key_id: Mapped[str] = mapped_column(String(43))
    signature: Mapped[str] = mapped_column(String(86))


class Canary(Base):
    """A known value sealed under the keyring: the wrong keyring is noticed at start, not at the first login."""

    __tablename__ = "mfa_canaries"

    id: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    sealed_value: Mapped[bytes] = mapped_column(LargeBinary)
