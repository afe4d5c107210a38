"""For guards that need to know at once: whether a session is still there, and what roles its user has now.

    check = LiveCheck("https://auth.example/auth/check")
    Guard.from_jwks(keys, issuer=issuer, audience="shop", find_account=check).init_app(app)

Each request costs one call to the service; when it can't be asked nobody passes.
"""

import urllib.error
import urllib.request
from dataclasses import dataclass
from http.client import HTTPException

from flask import request

from mfa_service.crypto.tokens import Identity
from mfa_service.errors import FullAuthenticationRequired, Unavailable

_TIMEOUT = 2


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A redirect is a failure like others: the token would go along to wherever it leads."""

    def redirect_request(self, *_args: object, **_options: object) -> None:
        return None


@dataclass(frozen=True)
class LiveAccount:
    """What the service says of a user now."""

    roles: frozenset[str]


class LiveCheck:
    """Asks `GET /auth/check` with the token of the request that is being answered."""

    def __init__(self, url: str) -> None:
        """`url` is the service's `/auth/check`. Raises ValueError for what is no http(s) address."""
        if not url.startswith(("https://", "http://")):
            raise ValueError("not an http(s) address")
        self._url = url
        self._opener = urllib.request.build_opener(_NoRedirects)

    def __call__(self, identity: Identity) -> LiveAccount | None:
        """The account behind the request's token, or None if the service refuses it.

        Raises FullAuthenticationRequired for a token of a password alone, also under `require_login`: the service
        answers for completed sign-ins only. Raises Unavailable.
        """
        if not identity.is_complete:
            raise FullAuthenticationRequired
        asking = urllib.request.Request(  # noqa: S310 - checked when it was made
            self._url, headers={"Authorization": request.headers["Authorization"], "Accept": "application/json"}
        )
        try:
            with self._opener.open(asking, timeout=_TIMEOUT) as answer:
                subject, roles = answer.headers["X-Auth-Subject"], answer.headers["X-Auth-Roles"] or ""
        except urllib.error.HTTPError as refusal:
            with refusal:
                if refusal.code in (401, 403):
                    return None
            raise Unavailable from None
        except (OSError, HTTPException):
            raise Unavailable from None
        # Whatever answered speaks of somebody else: then it is not our service, or not our token.
        return LiveAccount(frozenset(roles.split())) if subject == identity.user_id else None
