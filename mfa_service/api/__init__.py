"""Blueprint `api`: once you are signed in."""

from mfa_service.api.account import blueprint

__all__ = ["blueprint"]
