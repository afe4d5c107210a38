"""Forward auth: a proxy asks for each request whether to let it pass, and gets to know who it is.

The shipped proxy configurations (`deploy/`) take these headers from this answer alone, and delete what a client sent
under their names.
"""

from typing import Annotated, cast
from urllib.parse import quote

from flask import Response, current_app, g, request
from pydantic import BeforeValidator, Field

from mfa_service import errors
from mfa_service.auth.blueprint import blueprint
from mfa_service.guard import REFUSALS, current_account, current_guard, current_identity
from mfa_service.services.sessions import Account
from mfa_service.web.contract import Empty, Query, asks, gives, refuses

#: The longest time that a proxy may ask for, in seconds.
MAX_AGE = 86400


def _as_number(value: object) -> object:
    is_number = isinstance(value, str) and value.isascii() and value.isdecimal() and len(value) <= len(str(MAX_AGE))
    return int(str(value)) if is_number else value


class CheckQuery(Query):
    """What the proxy asks of whoever comes."""

    max_age: Annotated[
        Annotated[int, Field(ge=0, le=MAX_AGE)] | None,
        BeforeValidator(_as_number),
        Field(alias="max_age", description="The second factor must have been shown so many seconds ago at most."),
    ] = None
    role: Annotated[str | None, Field(description="A role that the user must have now.")] = None


@blueprint.get("/check")
@asks(CheckQuery)
@gives(204, Empty)
@refuses(*REFUSALS, errors.RoleRequired, errors.StepUpRequired, errors.ForeignOrigin)
def check(query: CheckQuery) -> Response:
    """Whether the access token is good, for forward auth; who it is from stands in `X-Auth-*` headers."""
    # Without a word of the proxy it may be anything: then only a page of this origin may have sent it.
    g.mfa_forwarded_method = request.headers.get("X-Forwarded-Method", "unknown")
    current_guard().check(max_age=query.max_age, role=query.role)
    account = cast("Account", current_account())
    response = current_app.response_class(status=204)
    del response.headers["Content-Type"]
    response.headers.extend(
        {
            "X-Auth-Subject": current_identity.user_id,
            # Percent-encoded: a header is ASCII, a name need not be.
            "X-Auth-Username": quote(account.username, safe=""),
            "X-Auth-Amr": " ".join(current_identity.amr),
            "X-Auth-Roles": " ".join(sorted(account.roles)),
        }
    )
    return response
