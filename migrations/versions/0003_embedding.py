"""Users of a host app, who have no password here; sessions that a browser's cookie stands for."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_TIME = sa.DateTime(timezone=True)
_OWN_NAMES = sa.text("external_id IS NULL")


def _bytewise(length: int) -> sa.types.TypeEngine[str]:
    return sa.String(length).with_variant(sa.String(length, collation="C"), "postgresql")


def upgrade() -> None:
    """Let accounts be a host's: known by an id of its own, with a name that is a label, and without a password."""
    with op.batch_alter_table("mfa_users") as table:
        table.add_column(sa.Column("external_id", _bytewise(255)))
        table.alter_column("username", type_=sa.String(254), existing_type=sa.String(64), existing_nullable=False)
        table.alter_column("username_key", type_=_bytewise(254), existing_type=_bytewise(64), existing_nullable=False)
        table.alter_column("sealed_password", nullable=True, existing_type=sa.LargeBinary)
        table.alter_column("password_set_at", nullable=True, existing_type=_TIME)
        table.drop_constraint("uq_mfa_users_username_key", type_="unique")
        table.create_unique_constraint("uq_mfa_users_external_id", ["external_id"])
    op.create_index("ix_mfa_users_username_key", "mfa_users", ["username_key"])
    op.create_index(
        "uq_mfa_users_own_username_key",
        "mfa_users",
        ["username_key"],
        unique=True,
        sqlite_where=_OWN_NAMES,
        postgresql_where=_OWN_NAMES,
    )
    with op.batch_alter_table("mfa_sessions") as table:
        table.add_column(sa.Column("cookie_digest", sa.String(64)))
        table.create_unique_constraint("uq_mfa_sessions_cookie_digest", ["cookie_digest"])


def downgrade() -> None:
    """Take it away again; what belongs to a host's users goes with them."""
    op.execute("DELETE FROM mfa_sessions WHERE cookie_digest IS NOT NULL")
    with op.batch_alter_table("mfa_sessions") as table:
        table.drop_constraint("uq_mfa_sessions_cookie_digest", type_="unique")
        table.drop_column("cookie_digest")
    _delete_users_of_hosts()
    op.drop_index("uq_mfa_users_own_username_key", "mfa_users")
    op.drop_index("ix_mfa_users_username_key", "mfa_users")
    with op.batch_alter_table("mfa_users") as table:
        table.drop_constraint("uq_mfa_users_external_id", type_="unique")
        table.drop_column("external_id")
        table.create_unique_constraint("uq_mfa_users_username_key", ["username_key"])
        table.alter_column("password_set_at", nullable=False, existing_type=_TIME)
        table.alter_column("sealed_password", nullable=False, existing_type=sa.LargeBinary)
        table.alter_column("username_key", type_=_bytewise(64), existing_type=_bytewise(254), existing_nullable=False)
        table.alter_column("username", type_=sa.String(64), existing_type=sa.String(254), existing_nullable=False)


def _delete_users_of_hosts() -> None:
    """By hand: SQLite's foreign keys are off while it migrates."""
    users = sa.table("mfa_users", sa.column("id"), sa.column("external_id"))
    theirs = sa.select(users.c.id).where(users.c.external_id.is_not(None))
    owned = ("user_roles", "rules", "grace_periods", "tickets", "secrets", "challenges", "recovery_codes")
    for name in (*owned, "locks", "devices", "sessions"):
        table = sa.table(f"mfa_{name}", sa.column("user_id"))
        op.execute(table.delete().where(table.c.user_id.in_(theirs)))
    op.execute(users.delete().where(users.c.external_id.is_not(None)))
