"""For apps that verify tokens: `Guard` knows how, `require_mfa` keeps a view, `current_identity` says who came.

This module is the side door: it needs Flask and PyJWT, and neither a database nor anything of the services.
"""

import functools
import time
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar, cast, overload

from flask import Flask, current_app, g, request
from werkzeug.local import LocalProxy

from mfa_service.crypto.tokens import AUTHENTICATED, AnotherKind, Identity, Verifier
from mfa_service.errors import FullAuthenticationRequired, InvalidToken, NoToken, RoleRequired, StepUpRequired

P = ParamSpec("P")
R = TypeVar("R")

_EXTENSION = "mfa_guard"
#: How recent the second factor must be for what changes an account's security.
STEP_UP_SECONDS = 300
#: What a view under `require_mfa` may answer besides its own.
REFUSALS = (NoToken, InvalidToken, FullAuthenticationRequired)


class Guard:
    """Checks the access token of a request."""

    def __init__(
        self,
        verifier: Verifier,
        *,
        find_account: Callable[[Identity], object | None] | None = None,
        has_role: Callable[[Identity, str], bool] | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`find_account` gives what the service knows of a live session, or None if it has ended.

        Without it a token is believed until it expires, whatever has happened to its session since. `has_role` says
        what roles a user has now: no token does.
        """
        self._verifier = verifier
        self._find_account = find_account
        self._has_role = has_role
        self._clock = clock

    def init_app(self, app: Flask) -> None:
        """Make `require_mfa` work in `app`."""
        app.extensions[_EXTENSION] = self

    def check(self, *, max_age: int | None = None, role: str | None = None, needs_mfa: bool = True) -> None:
        """Let the request pass and remember who it is.

        Raises NoToken, InvalidToken, FullAuthenticationRequired, RoleRequired, StepUpRequired.
        """
        token = _bearer_token()
        try:
            identity = self._verifier.access(token, now=self._clock())
        except AnotherKind:
            raise FullAuthenticationRequired from None
        account = self._find_account(identity) if self._find_account else None
        if self._find_account and account is None:
            raise InvalidToken
        if needs_mfa and identity.step != AUTHENTICATED:
            raise FullAuthenticationRequired
        self.ensure(identity, max_age=max_age, role=role)
        # Only now, after every check: nothing that a half-checked request left may be believed.
        g.mfa_identity, g.mfa_account = identity, account

    def ensure(self, identity: Identity, *, max_age: int | None = None, role: str | None = None) -> None:
        """Ask more of somebody whose token is good. Raises RoleRequired, StepUpRequired."""
        if role is not None and not (self._has_role and self._has_role(identity, role)):
            raise RoleRequired
        if max_age is not None and not self._is_recent(identity, max_age):
            raise StepUpRequired(max_age)

    def _is_recent(self, identity: Identity, max_age: int) -> bool:
        return "mfa" in identity.amr and identity.auth_time > self._clock() - max_age


@overload
def require_mfa(view: Callable[P, R], /) -> Callable[P, R]: ...


@overload
def require_mfa(*, max_age: int | None = None) -> Callable[[Callable[P, R]], Callable[P, R]]: ...


def require_mfa(view: Callable[..., Any] | None = None, /, *, max_age: int | None = None) -> Any:
    """Call the view only for an access token of a completed sign-in.

    With `max_age` (seconds) the second factor must have been shown so recently, in this very session: a remembered
    device is not enough, and the refusal is an RFC 9470 challenge.
    """
    if view is None:
        return functools.partial(_guarded, max_age=max_age)
    return _guarded(view, max_age=max_age)


def _guarded(view: Callable[P, R], *, max_age: int | None) -> Callable[P, R]:
    @functools.wraps(view)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> R:
        current_guard().check(max_age=max_age)
        return cast("R", current_app.ensure_sync(view)(*args, **kwargs))

    return guarded


def require_login(view: Callable[P, R]) -> Callable[P, R]:
    """Call the view for any access token, also for one of a password alone where policy lets an account go without."""

    @functools.wraps(view)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> R:
        current_guard().check(needs_mfa=False)
        return cast("R", current_app.ensure_sync(view)(*args, **kwargs))

    return guarded


def current_guard() -> Guard:
    """The guard of the app that answers this request."""
    found: Guard = current_app.extensions[_EXTENSION]
    return found


#: Who this request is from; only within a view under `require_mfa`.
current_identity = cast("Identity", LocalProxy(lambda: g.mfa_identity))


def current_account() -> object:
    """What `find_account` gave for this request."""
    return g.mfa_account


def _bearer_token() -> str:
    """The token of the one Authorization header (RFC 6750 section 2.1); never from a query or a form."""
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    token = token.strip(" ")
    if scheme.lower() != "bearer" or not token:
        raise NoToken
    return token
