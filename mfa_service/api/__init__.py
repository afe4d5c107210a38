"""Blueprint `api`: once you are signed in."""

from mfa_service.api import account, factors, sessions
from mfa_service.api.blueprint import blueprint

__all__ = ["account", "blueprint", "factors", "sessions"]
