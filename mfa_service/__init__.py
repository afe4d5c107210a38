"""Multi-factor sign-in for Python teams: a password, a code from the phone, a token.

The public names are imported on demand, so that an app which only guards its views loads no database.
"""

from importlib import import_module
from typing import Any

_HOMES = {
    "create_app": "mfa_service.app",
    "MFA": "mfa_service.extension",
    "MFAPending": "mfa_service.services.login",
    "SignedIn": "mfa_service.services.login",
    "PasswordOnly": "mfa_service.services.login",
    "HostUser": "mfa_service.extension",
    "Guard": "mfa_service.guard",
    "require_mfa": "mfa_service.guard",
    "require_login": "mfa_service.guard",
    "LiveCheck": "mfa_service.live",
    "current_identity": "mfa_service.guard",
}
__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
