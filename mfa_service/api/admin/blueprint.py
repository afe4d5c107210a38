"""The blueprint that the files of this folder put their routes on, and its guard.

Whoever comes in has the role `admin` now, and has shown a second factor within five minutes in this very session.
"""

from dataclasses import replace

from flask import Blueprint

from mfa_service import errors
from mfa_service.guard import REFUSALS, STEP_UP_SECONDS, current_guard, current_identity
from mfa_service.services.administration import By
from mfa_service.services.roles import ADMIN
from mfa_service.web import services
from mfa_service.web.client import client_info
from mfa_service.web.limits import current_limits

#: What the guard refuses, on every route.
ADMIN_REFUSALS = (*REFUSALS, errors.RoleRequired, errors.StepUpRequired, errors.TooManyAttempts)

blueprint = Blueprint("admin", __name__, url_prefix="/admin")


@blueprint.before_request
def ensure_administrator() -> None:
    """Let administrators pass; who is somebody else is on record, as often as the limit lets them ask.

    The routes' own limits are round the views, and never see who stops here.
    """
    current_guard().check()
    try:
        current_guard().ensure(role=ADMIN, max_age=STEP_UP_SECONDS)
    except errors.RoleRequired:
        current_limits().count_refusal()
        services().administration.record_refusal(current_identity, client_info(), ADMIN)
        raise


def acting(reason: str = "") -> By:
    """The administrator that this request is from."""
    client = replace(client_info(), actor=current_identity.user_id)
    return By(client, current_identity, reason)
