"""Blueprint `api`: once you are signed in."""

from mfa_service.api import account, activity, admin, factors, sessions
from mfa_service.api.blueprint import blueprint

blueprint.register_blueprint(admin.blueprint)

__all__ = ["account", "activity", "admin", "blueprint", "factors", "sessions"]
