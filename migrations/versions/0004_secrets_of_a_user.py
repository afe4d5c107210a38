"""What a user has, confirmed or not, by an index: the two there are each know one half, and both were passed by."""

from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add it. A service that runs goes on; who shows a code meanwhile waits: seconds, with a million users."""
    op.create_index("ix_mfa_secrets_user_id", "mfa_secrets", ["user_id"])


def downgrade() -> None:
    """Take it away again: the same is found, slowly."""
    op.drop_index("ix_mfa_secrets_user_id", "mfa_secrets")
