"""Alembic's environment. Our tables keep a version table of their own, beside a host's."""

from alembic import context

from mfa_service.models import Base
from mfa_service.services.schema import VERSION_TABLE


def _is_ours(_object: object, name: str | None, kind: str, _reflected: bool, _compare_to: object) -> bool:
    return kind != "table" or str(name).startswith("mfa_")


# The caller (services/schema.py) passes an open connection; nothing is configured from a file.
context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    version_table=VERSION_TABLE,
    include_object=_is_ours,
    render_as_batch=True,
)
with context.begin_transaction():
    context.run_migrations()
