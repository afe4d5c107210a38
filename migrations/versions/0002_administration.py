"""Roles, policy, enrolment tickets; who acted, and seals over the audit log; what administrators search by."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_ID = sa.String(22)
_TIME = sa.DateTime(timezone=True)

#: On PostgreSQL the database itself refuses to change the log. Pruning says that it is pruning, in its transaction.
_REFUSAL = """
CREATE FUNCTION mfa_refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'DELETE' AND TG_TABLE_NAME = 'mfa_events' AND current_setting('mfa.pruning', true) = 'on' THEN
        RETURN OLD;
    END IF;
    RAISE EXCEPTION '% is append-only', TG_TABLE_NAME USING ERRCODE = 'insufficient_privilege';
END $$
"""


def upgrade() -> None:
    """Add to the tables of 0001 what administration needs."""
    _extend_users()
    _add_policy()
    _extend_sessions()
    _extend_events()
    _add_seals()
    if op.get_context().dialect.name == "postgresql":
        _refuse_changes()


def _owner() -> sa.ForeignKey:
    return sa.ForeignKey("mfa_users.id", ondelete="CASCADE")


def _bytewise(length: int) -> sa.types.TypeEngine[str]:
    return sa.String(length).with_variant(sa.String(length, collation="C"), "postgresql")


def _extend_users() -> None:
    with op.batch_alter_table("mfa_users") as table:
        table.add_column(sa.Column("email_key", _bytewise(254)))
        table.add_column(sa.Column("seen_at", _TIME))
    op.execute("UPDATE mfa_users SET email_key = lower(email), seen_at = created_at")
    _fold_addresses()
    with op.batch_alter_table("mfa_users") as table:
        table.alter_column("email_key", nullable=False, existing_type=_bytewise(254))
        table.alter_column("seen_at", nullable=False, existing_type=_TIME)
        table.alter_column("username_key", type_=_bytewise(64), existing_type=sa.String(64), existing_nullable=False)
    op.create_index("ix_mfa_users_email_key", "mfa_users", ["email_key"])
    op.create_index("ix_mfa_users_seen_at", "mfa_users", ["seen_at"])
    op.create_index("ix_mfa_users_created_at", "mfa_users", ["created_at", "id"])
    op.create_table(
        "mfa_user_roles",
        sa.Column("user_id", _ID, _owner(), primary_key=True),
        sa.Column("role", sa.String(32), primary_key=True),
    )
    op.create_index("ix_mfa_user_roles_role", "mfa_user_roles", ["role", "user_id"])


def _fold_addresses() -> None:
    """Fold what is not ASCII here: databases differ in what they make of it."""
    connection = op.get_bind()
    pattern = "email GLOB '*[^ -~]*'" if connection.dialect.name == "sqlite" else "email ~ '[^ -~]'"
    users = sa.table("mfa_users", sa.column("id"), sa.column("email"), sa.column("email_key"))
    for user_id, email in connection.execute(sa.select(users.c.id, users.c.email).where(sa.text(pattern))).all():
        connection.execute(users.update().where(users.c.id == user_id).values(email_key=email.casefold()))


def _add_policy() -> None:
    op.create_table(
        "mfa_policies",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("mode", sa.String(8), nullable=False),
        sa.Column("deadline_at", _TIME),
        sa.Column("grace_days", sa.Integer),
        sa.Column("created_at", _TIME, nullable=False),
    )
    op.create_table(
        "mfa_rules",
        sa.Column("subject", sa.String(40), primary_key=True),
        sa.Column("user_id", _ID, _owner(), unique=True),
        sa.Column("deadline_at", _TIME),
        sa.Column("grace_days", sa.Integer),
        sa.Column("created_at", _TIME, nullable=False),
    )
    op.create_table(
        "mfa_grace_periods",
        sa.Column("user_id", _ID, _owner(), primary_key=True),
        sa.Column("subject", sa.String(40), primary_key=True),
        sa.Column("started_at", _TIME, nullable=False),
    )
    op.create_table(
        "mfa_tickets",
        sa.Column("user_id", _ID, _owner(), primary_key=True),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("created_at", _TIME, nullable=False),
        sa.Column("expires_at", _TIME, nullable=False, index=True),
    )


def _extend_sessions() -> None:
    with op.batch_alter_table("mfa_sessions") as table:
        table.add_column(sa.Column("step", sa.String(16), nullable=False, server_default="authenticated"))
    with op.batch_alter_table("mfa_sessions") as table:
        table.alter_column("step", server_default=None, existing_type=sa.String(16), existing_nullable=False)
    op.create_index("ix_mfa_sessions_key_id", "mfa_sessions", ["key_id"])


def _extend_events() -> None:
    # "always": SQLite gives a table AUTOINCREMENT only when it is made.
    with op.batch_alter_table(
        "mfa_events",
        recreate="always" if op.get_context().dialect.name == "sqlite" else "auto",
        table_kwargs={"sqlite_autoincrement": True},
    ) as table:
        table.add_column(sa.Column("actor", sa.String(64)))
        table.drop_index("ix_mfa_events_at")
        table.drop_index("ix_mfa_events_user_id")
    for name in ("event", "user_id", "actor"):
        op.create_index(f"ix_mfa_events_{name}", "mfa_events", [name, "at", "id"])
    op.create_index("ix_mfa_events_at", "mfa_events", ["at", "id"])


def _add_seals() -> None:
    op.create_table(
        "mfa_seals",
        sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("kind", sa.String(8), nullable=False),
        sa.Column("first_id", sa.BigInteger, nullable=False),
        sa.Column("last_id", sa.BigInteger, nullable=False),
        sa.Column("count", sa.BigInteger, nullable=False),
        sa.Column("events_digest", sa.String(64), nullable=False),
        sa.Column("previous", sa.String(64), nullable=False, unique=True),
        sa.Column("sealed_at", _TIME, nullable=False),
        sa.Column("key_id", sa.String(43), nullable=False),
        sa.Column("signature", sa.String(86), nullable=False),
    )


def _refuse_changes() -> None:
    op.execute(_REFUSAL)
    for table in ("mfa_events", "mfa_seals"):
        op.execute(
            f"CREATE TRIGGER {table}_append_only BEFORE UPDATE OR DELETE ON {table} "
            "FOR EACH ROW EXECUTE FUNCTION mfa_refuse_change()"
        )
        op.execute(
            f"CREATE TRIGGER {table}_no_truncate BEFORE TRUNCATE ON {table} "
            "FOR EACH STATEMENT EXECUTE FUNCTION mfa_refuse_change()"
        )


def downgrade() -> None:
    """Take it away again; users, secrets, codes and sessions stay, roles, policy and seals go."""
    if op.get_context().dialect.name == "postgresql":
        for table in ("mfa_events", "mfa_seals"):
            op.execute(f"DROP TRIGGER {table}_append_only ON {table}")
            op.execute(f"DROP TRIGGER {table}_no_truncate ON {table}")
        op.execute("DROP FUNCTION mfa_refuse_change()")
    for table in ("seals", "tickets", "grace_periods", "rules", "policies", "user_roles"):
        op.drop_table(f"mfa_{table}")
    # Who was let in with a password alone is not let in by a version that knows no such step.
    op.execute("DELETE FROM mfa_sessions WHERE step <> 'authenticated'")
    op.drop_index("ix_mfa_sessions_key_id", "mfa_sessions")
    op.drop_index("ix_mfa_events_actor", "mfa_events")
    op.drop_index("ix_mfa_events_event", "mfa_events")
    for table, columns in (("mfa_sessions", ("step",)), ("mfa_events", ("actor",))):
        with op.batch_alter_table(table) as batch:
            for column in columns:
                batch.drop_column(column)
    for name in ("at", "user_id"):
        op.drop_index(f"ix_mfa_events_{name}", "mfa_events")
        op.create_index(f"ix_mfa_events_{name}", "mfa_events", [name])
    for name in ("created_at", "seen_at", "email_key"):
        op.drop_index(f"ix_mfa_users_{name}", "mfa_users")
    with op.batch_alter_table("mfa_users") as batch:
        batch.drop_column("email_key")
        batch.drop_column("seen_at")
        batch.alter_column("username_key", type_=sa.String(64), existing_type=_bytewise(64), existing_nullable=False)
