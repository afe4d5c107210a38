"""Users, their authenticators, challenges, sessions, the audit log, the canary."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_ID = sa.String(22)
_TIME = sa.DateTime(timezone=True)


def _owner() -> sa.ForeignKey:
    return sa.ForeignKey("mfa_users.id", ondelete="CASCADE")


def upgrade() -> None:
    """Make the tables."""
    op.create_table(
        "mfa_users",
        sa.Column("id", _ID, primary_key=True),
        sa.Column("username", sa.String(64), nullable=False),
        sa.Column("username_key", sa.String(64), nullable=False, unique=True),
        sa.Column("email", sa.String(254), nullable=False),
        sa.Column("sealed_password", sa.LargeBinary, nullable=False),
        sa.Column("password_set_at", _TIME, nullable=False),
        sa.Column("created_at", _TIME, nullable=False),
        sa.Column("disabled_at", _TIME),
        sa.Column("had_factor_at", _TIME),
    )
    op.create_table(
        "mfa_secrets",
        sa.Column("id", _ID, primary_key=True),
        sa.Column("user_id", _ID, _owner(), nullable=False),
        sa.Column("sealed_secret", sa.LargeBinary, nullable=False),
        sa.Column("last_step", sa.BigInteger, nullable=False),
        sa.Column("created_at", _TIME, nullable=False),
        sa.Column("expires_at", _TIME),
        sa.Column("confirmed_at", _TIME),
    )
    for name, condition in (("confirmed", "confirmed_at IS NOT NULL"), ("unconfirmed", "confirmed_at IS NULL")):
        where = sa.text(condition)
        op.create_index(
            f"uq_mfa_secrets_{name}",
            "mfa_secrets",
            ["user_id"],
            unique=True,
            sqlite_where=where,
            postgresql_where=where,
        )
    op.create_table(
        "mfa_challenges",
        sa.Column("id", _ID, primary_key=True),
        sa.Column("user_id", _ID, _owner(), nullable=False, index=True),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("created_at", _TIME, nullable=False),
        sa.Column("expires_at", _TIME, nullable=False, index=True),
        sa.Column("closed_at", _TIME),
    )
    op.create_table(
        "mfa_recovery_codes",
        sa.Column("user_id", _ID, _owner(), primary_key=True),
        sa.Column("digest", sa.String(64), primary_key=True),
        sa.Column("created_at", _TIME, nullable=False),
        sa.Column("used_at", _TIME),
    )
    op.create_table(
        "mfa_locks",
        sa.Column("user_id", _ID, _owner(), primary_key=True),
        sa.Column("subject", sa.String(80), primary_key=True),
        sa.Column("failures", sa.Integer, nullable=False),
        sa.Column("failed_at", _TIME, nullable=False, index=True),
        sa.Column("open_at", _TIME),
        sa.Column("disabled_at", _TIME),
    )
    op.create_table(
        "mfa_devices",
        sa.Column("id", _ID, primary_key=True),
        sa.Column("user_id", _ID, _owner(), nullable=False, index=True),
        sa.Column("digest", sa.String(64), nullable=False, unique=True),
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("address", sa.String(64), nullable=False),
        sa.Column("user_agent", sa.String(256), nullable=False),
        sa.Column("created_at", _TIME, nullable=False),
        sa.Column("used_at", _TIME, nullable=False),
        sa.Column("expires_at", _TIME, nullable=False, index=True),
    )
    op.create_table(
        "mfa_sessions",
        sa.Column("id", _ID, primary_key=True),
        sa.Column("user_id", _ID, _owner(), nullable=False, index=True),
        sa.Column("address", sa.String(64), nullable=False),
        sa.Column("network", sa.String(64), nullable=False),
        sa.Column("user_agent", sa.String(256), nullable=False),
        sa.Column("amr", sa.String(64), nullable=False),
        sa.Column("key_id", sa.String(32), nullable=False),
        sa.Column("generation", sa.Integer, nullable=False),
        sa.Column("created_at", _TIME, nullable=False),
        sa.Column("authenticated_at", _TIME, nullable=False),
        sa.Column("refreshed_at", _TIME, nullable=False),
        sa.Column("rotated_at", _TIME),
        sa.Column("seen_at", _TIME, nullable=False),
        sa.Column("expires_at", _TIME, nullable=False, index=True),
        sa.Column("revoked_at", _TIME),
    )
    op.create_table(
        "mfa_events",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True),
        sa.Column("at", _TIME, nullable=False, index=True),
        sa.Column("event", sa.String(64), nullable=False),
        sa.Column("user_id", _ID, index=True),
        sa.Column("address", sa.String(64), nullable=False),
        sa.Column("user_agent", sa.String(256), nullable=False),
        sa.Column("request_id", sa.String(64), nullable=False),
        sa.Column("detail", sa.JSON, nullable=False),
    )
    op.create_table(
        "mfa_canaries",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("sealed_value", sa.LargeBinary, nullable=False),
    )


def downgrade() -> None:
    """Drop the tables, and with them every account: `flask mfa downgrade` does not exist for a reason."""
    for table in (
        "canaries",
        "events",
        "sessions",
        "devices",
        "locks",
        "recovery_codes",
        "challenges",
        "secrets",
        "users",
    ):
        op.drop_table(f"mfa_{table}")
