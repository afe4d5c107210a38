"""Blueprint `auth`: before you are signed in."""

from mfa_service.auth.routes import blueprint

__all__ = ["blueprint"]
