"""The signed-in user's own account."""

from typing import cast

from mfa_service.api.blueprint import blueprint
from mfa_service.guard import REFUSALS, current_account, require_mfa
from mfa_service.services.sessions import Account
from mfa_service.web.contract import View, gives, refuses


class ProfileView(View):
    """Who you are."""

    username: str
    email: str
    mfa_enabled: bool


@blueprint.get("/profile")
@require_mfa
@gives(200, ProfileView)
@refuses(*REFUSALS)
def profile() -> ProfileView:
    """Who you are. The session check has read it already: this route adds no query."""
    account = cast("Account", current_account())
    return ProfileView(username=account.username, email=account.email, mfa_enabled=account.mfa_enabled)
