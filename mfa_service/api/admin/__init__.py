"""Blueprint `admin`, nested in `api`: one guard for all of it."""

from mfa_service.api.admin import audit, compliance, policy, users
from mfa_service.api.admin.blueprint import blueprint

__all__ = ["audit", "blueprint", "compliance", "policy", "users"]
