"""Blueprint `auth`: before you are signed in."""

from mfa_service.auth import browsers, forward, pages, routes
from mfa_service.auth.blueprint import blueprint

__all__ = ["blueprint", "browsers", "forward", "pages", "routes"]
