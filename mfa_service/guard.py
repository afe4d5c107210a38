"""For apps that verify tokens: `Guard` knows how, `require_mfa` keeps a view, `current_identity` says who came.

This module is the side door: it needs Flask and PyJWT, and neither a database nor anything of the services.

    keys, issuer = "https://auth.example/.well-known/jwks.json", "https://auth.example"
    Guard.from_jwks(keys, issuer=issuer, audience="shop").init_app(app)

    @app.get("/pay")
    @require_mfa(max_age=300)
    def pay(): return {"by": current_identity.user_id}

What an app that verifies by itself can't see: that a session was ended, a user disabled, a role taken. It believes a
token until it expires, an hour at most, unless it is given a check of its own (`find_account`).
"""

import functools
import inspect
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ParamSpec, Protocol, Self, TypeVar, cast, overload

from flask import Flask, Response, after_this_request, current_app, g, has_request_context, request
from werkzeug.local import LocalProxy

from mfa_service.answers import answer
from mfa_service.crypto.signing import SharedSecret
from mfa_service.crypto.tokens import AnotherKind, Identity, Verifier
from mfa_service.errors import (
    ConfigurationError,
    FullAuthenticationRequired,
    InvalidToken,
    MFAError,
    NoToken,
    RoleRequired,
    StepUpRequired,
)
from mfa_service.jwks import RemoteKeys, fetch_json

P = ParamSpec("P")
R = TypeVar("R")

_EXTENSION = "mfa_guard"
_SHORTEST_SECRET = 32
#: Set on what `require_mfa` returns, and on the function that it was given.
_REQUIREMENT, _BARE = "mfa_requirement", "mfa_left_bare"
#: How recent the second factor must be for what changes an account's security.
STEP_UP_SECONDS = 300
#: What a view under `require_mfa` may answer besides its own.
REFUSALS = (NoToken, InvalidToken, FullAuthenticationRequired)


class Account(Protocol):
    """What a check of sessions knows of a user now, where a guard is given one."""

    @property
    def roles(self) -> frozenset[str]:
        """The user's roles."""


class Guard:
    """Checks the access token of a request."""

    def __init__(
        self,
        verifier: Verifier,
        *,
        find_account: Callable[[Identity], Account | None] | None = None,
        find_session: Callable[[], tuple[Identity, Account] | None] | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`find_account` gives what the service knows of a live session, or None if it has ended.

        Without it a token is believed until it expires, whatever has happened to its session since, and nobody has a
        role: no token says so. `find_session` says who a request without a token is from, by its cookie.
        """
        self._verifier = verifier
        self._find_account = find_account
        self._find_session = find_session
        self._clock = clock

    @classmethod
    def from_jwks(
        cls,
        url: str,
        *,
        issuer: str,
        audience: str,
        find_account: Callable[[Identity], Account | None] | None = None,
        fetch: Callable[[str], bytes] = fetch_json,
    ) -> Self:
        """A guard that verifies by the keys which a service publishes at `url` (ES256).

        `issuer` is the service's `MFA_PUBLIC_URL`, `audience` the name of this app in its `MFA_AUDIENCES`.
        """
        verifier = Verifier(RemoteKeys(url, fetch=fetch), issuer=issuer, audience=audience)
        return cls(verifier, find_account=find_account)

    @classmethod
    def from_secret(
        cls,
        secret: str,
        *,
        issuer: str,
        audience: str,
        find_account: Callable[[Identity], Account | None] | None = None,
    ) -> Self:
        """A guard that verifies by the service's `JWT_SECRET` (HS256). Whoever has it can mint tokens, too.

        Raises ConfigurationError for a secret of less than 32 bytes.
        """
        if len(secret.encode()) < _SHORTEST_SECRET:
            raise ConfigurationError([f"the secret must be at least {_SHORTEST_SECRET} bytes"])
        verifier = Verifier(SharedSecret(secret), issuer=issuer, audience=audience)
        return cls(verifier, find_account=find_account)

    def init_app(self, app: Flask) -> None:
        """Make `require_mfa` work in `app`, and answer its refusals there. Raises ConfigurationError if done twice."""
        if _EXTENSION in app.extensions:
            raise ConfigurationError(["this app has a guard already"])
        app.extensions[_EXTENSION] = self
        app.register_error_handler(MFAError, answer)
        app.before_request(functools.cache(functools.partial(self._ensure_sound, app)))

    def _ensure_sound(self, app: Flask) -> None:
        """Once, with the first request: raise ConfigurationError for a view that is not guarded as it is written."""
        bare = [name for name, view in app.view_functions.items() if _is_bare(view)]
        problems = [f"{name}: @require_mfa stands above the route, where it guards nothing" for name in bare]
        hooks = [hook for funcs in app.before_request_funcs.values() for hook in funcs]
        for name, guarded in [*app.view_functions.items(), *(("before_request", hook) for hook in hooks)]:
            requirement = getattr(guarded, _REQUIREMENT, guarded)
            if isinstance(requirement, Requirement) and requirement.role and not self._find_account:
                problems.append(f"{name}: role={requirement.role!r} needs a guard with find_account: tokens name none")
        if problems:
            raise ConfigurationError(problems)

    def check(self, *, max_age: int | None = None, role: str | None = None, needs_mfa: bool = True) -> None:
        """Let the request pass and remember who it is.

        Raises NoToken, InvalidToken, FullAuthenticationRequired, RoleRequired, StepUpRequired, ForeignOrigin.
        """
        identity, account = self._identify()
        if needs_mfa and not identity.is_complete:
            raise FullAuthenticationRequired
        self._ensure(identity, account, max_age=max_age, role=role)
        # Only now, after every check: nothing that a half-checked request left may be believed.
        g.mfa_identity, g.mfa_account = identity, account

    def ensure(self, *, max_age: int | None = None, role: str | None = None) -> None:
        """Ask more of somebody who has been let pass. Raises RoleRequired, StepUpRequired."""
        self._ensure(g.mfa_identity, g.mfa_account, max_age=max_age, role=role)

    def _identify(self) -> tuple[Identity, Account | None]:
        if self._find_session and "Authorization" not in request.headers:
            found = self._find_session()
            if found is None:
                raise NoToken
            return found
        try:
            identity = self._verifier.access(_bearer_token(), now=self._clock())
        except AnotherKind:
            raise FullAuthenticationRequired from None
        account = self._find_account(identity) if self._find_account else None
        if self._find_account and account is None:
            raise InvalidToken
        return identity, account

    def _ensure(self, identity: Identity, account: Account | None, *, max_age: int | None, role: str | None) -> None:
        if role is not None and not (account and role in account.roles):
            raise RoleRequired
        if max_age is not None and not self._is_recent(identity, max_age):
            raise StepUpRequired(max_age)

    def _is_recent(self, identity: Identity, max_age: int) -> bool:
        return "mfa" in identity.amr and identity.auth_time > self._clock() - max_age


@dataclass(frozen=True)
class Requirement:
    """What a view, or every view of a blueprint, asks of a request."""

    max_age: int | None = None
    role: str | None = None
    needs_mfa: bool = True
    is_optional: bool = False

    def __call__(self, view: Callable[P, R] | None = None) -> Any:
        """Guard a view; without one, as a `before_request` function does it, check this request."""
        if view is None:
            return self.check()
        if inspect.isclass(view):
            cast("Any", view).decorators = [*getattr(view, "decorators", ()), self]
            return view
        return self._guarded(view)

    def check(self) -> None:
        """Let this request pass, or raise the refusal."""
        try:
            current_guard().check(max_age=self.max_age, role=self.role, needs_mfa=self.needs_mfa)
        except (NoToken, FullAuthenticationRequired):
            # A browser whose session is of a password alone may look on as whoever comes without one.
            if not self.is_optional or "Authorization" in request.headers:
                raise
            g.mfa_identity = g.mfa_account = None

    def _guarded(self, view: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(view)
        def guarded(*args: P.args, **kwargs: P.kwargs) -> R:
            self.check()
            return cast("R", current_app.ensure_sync(view)(*args, **kwargs))

        vars(guarded).pop(_BARE, None)  # copied from a view that was guarded before
        setattr(guarded, _REQUIREMENT, self)
        for inner in _unwrapped(view):
            setattr(inner, _BARE, True)  # if this one answers a route, nobody looks at tokens there
        return guarded


def _unwrapped(view: Callable[..., Any]) -> Iterator[Any]:
    """A view, and what other decorators have put it around."""
    layer: Any = view
    while layer is not None and not hasattr(layer, _REQUIREMENT):
        yield layer
        layer = getattr(layer, "__wrapped__", None)


@overload
def require_mfa(view: Callable[P, R], /) -> Callable[P, R]: ...


@overload
def require_mfa(*, max_age: int | None = ..., role: str | None = ..., optional: bool = ...) -> Requirement: ...


def require_mfa(
    view: Callable[..., Any] | None = None,
    /,
    *,
    max_age: int | None = None,
    role: str | None = None,
    optional: bool = False,
) -> Any:
    """Call the view only for an access token of a completed sign-in.

    For functions, async functions and view classes, under the route; `bp.before_request(require_mfa)` guards a whole
    blueprint. With `max_age` (seconds) the second factor must have been shown so recently, in this very session: a
    remembered device is not enough, and the refusal is an RFC 9470 challenge. `role` is looked up now. With
    `optional` who brings no token is let pass, and `current_identity` is false. Called with nothing at all, within a
    request, it checks that one.
    """
    return _required(Requirement(max_age=max_age, role=role, is_optional=optional), view)


def require_login(view: Callable[..., Any] | None = None, /, *, optional: bool = False) -> Any:
    """Call the view for any access token, also for one of a password alone where policy lets an account go without."""
    return _required(Requirement(needs_mfa=False, is_optional=optional), view)


def _is_bare(view: Any) -> bool:
    """Whether a view was guarded only after its route had been given the view without the guard."""
    classes = getattr(getattr(view, "view_class", None), "decorators", ())
    is_late = any(isinstance(it, Requirement) for it in classes) and not hasattr(view, _REQUIREMENT)
    return is_late or bool(getattr(view, _BARE, False))


def _required(requirement: Requirement, view: Callable[..., Any] | None) -> Any:
    if view is not None:
        if not callable(view):
            raise TypeError("require_mfa takes its options by name, such as max_age=300")
        return requirement(view)
    if not has_request_context():
        return requirement
    # `bp.before_request(require_mfa)` calls without anything, within a request; `@require_mfa()` does so before one.
    if requirement == Requirement(needs_mfa=requirement.needs_mfa):
        return requirement.check()
    return _put_to_use(requirement)


def _put_to_use(requirement: Requirement) -> Callable[..., Any]:
    """The requirement for a view in a module that this request loads; the request fails if it guards nothing.

    Whoever calls `require_mfa(max_age=300)` within a view means a check, and would get none.
    """
    uses: list[object] = []

    @after_this_request
    def ensure_used(response: Response) -> Response:
        if not uses:
            raise ConfigurationError(["require_mfa with options guards a view: called within one it checks nothing"])
        return response

    def guard(view: Callable[..., Any] | None = None) -> Any:
        uses.append(view)
        return requirement(view)

    setattr(guard, _REQUIREMENT, requirement)
    return guard


def current_guard() -> Guard:
    """The guard of the app that answers this request. Raises ConfigurationError if there is none."""
    found: Guard | None = current_app.extensions.get(_EXTENSION)
    if found is None:
        raise ConfigurationError(["this app has no guard: Guard.from_jwks(…).init_app(app), or MFA(app)"])
    return found


def _find_identity() -> Identity | None:
    if "mfa_identity" not in g:
        raise RuntimeError("current_identity is there only under require_mfa or require_login")
    return cast("Identity | None", g.mfa_identity)


#: Who this request is from; only within a view under `require_mfa` or `require_login`.
current_identity = cast("Identity", LocalProxy(_find_identity))


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
