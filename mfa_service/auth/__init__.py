"""Blueprint `auth`: before you are signed in."""

from mfa_service.auth import forward, routes
from mfa_service.auth.blueprint import blueprint

__all__ = ["blueprint", "forward", "routes"]
