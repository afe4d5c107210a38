"""`MFA`: a second factor for an app that has users already.

    mfa = MFA(app)                                  # after the host's Flask-SQLAlchemy

    @mfa.user_loader
    def load_user(identity): return db.session.get(User, identity.external_id)

    @app.post("/login")
    def login():                                    # the host checks the password
        outcome = mfa.login.continue_for(user.id, username=user.name, client=mfa.client)

The host's tables, session, error handlers, logging and configuration stay as they are. The host commits before it
calls: ours is another transaction.
"""

import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any, TypeVar

from flask import Flask, after_this_request, current_app
from sqlalchemy import Engine
from werkzeug.exceptions import Unauthorized
from werkzeug.wrappers import Response

from mfa_service.auth import browsers
from mfa_service.config import Settings, from_environment, from_host, unknown_names
from mfa_service.crypto.tokens import Identity
from mfa_service.errors import ConfigurationError
from mfa_service.guard import current_account
from mfa_service.mount import Host, Mount
from mfa_service.services import Services
from mfa_service.services.accounts import Accounts
from mfa_service.services.audit import ClientInfo
from mfa_service.services.database import engine_of_service
from mfa_service.services.links import ExternalId, checked_external_id
from mfa_service.services.login import Login
from mfa_service.web import EXTENSION, cookies
from mfa_service.web.client import client_info

L = TypeVar("L", bound=Callable[..., Any])


@dataclass(frozen=True)
class HostUser:
    """A user of the host: an id that never changes and is never given to another, and what to show."""

    external_id: ExternalId
    username: str
    email: str = ""

    @property
    def id(self) -> str:
        """The id as it is stored. Raises ValueError for what is none."""
        return checked_external_id(self.external_id)

    @classmethod
    def of(cls, user: Any) -> "HostUser":
        """The same of a user object of Flask-Login's kind, which has `get_id()`, and `username` or `email`.

        Raises ValueError for a user who has no id (yet).
        """
        if isinstance(user, HostUser):
            return user
        external_id = checked_external_id(user.get_id())
        email = str(getattr(user, "email", None) or "")
        return cls(external_id, str(getattr(user, "username", None) or email or external_id), email)


class MFA(Host):
    """The extension. It keeps nothing of an app but what `app.extensions` holds, so one object serves many apps."""

    def __init__(
        self, app: Flask | None = None, *, engine: Engine | None = None, clock: Callable[[], float] = time.time
    ) -> None:
        """`init_app` at once if there is an `app`. `clock` gives Unix seconds."""
        self._load_user: Callable[[Identity], object | None] | None = None
        self._load_current_user: Callable[[], Any] | None = None
        self._clock = clock
        if app is not None:
            self.init_app(app, engine=engine)

    def init_app(self, app: Flask, *, engine: Engine | None = None) -> None:
        """Mount the service in a host's app.

        The database is `engine`, or MFA_DATABASE_URL, or that of the app's Flask-SQLAlchemy. Settings are the names in
        `app.config` that begin with MFA_, then those of the environment. Raises ConfigurationError, with everything
        that is wrong.
        """
        source = from_host(from_environment(os.environ)) | from_host(app.config)
        settings = Settings.load(source)
        for warning in unknown_names(source):
            logging.getLogger("mfa_service").warning(warning)
        if engine is None and settings.database_url:
            own = engine_of_service(settings.database)
            Mount(app, settings, own, clock=self._clock, host=self)
        else:
            Mount(app, settings, engine or _engine_of(app), clock=self._clock, host=self, borrows=True)

    def user_loader(self, loader: L) -> L:
        """Register what gives the host's user behind an identity; None means that there is nobody: 401."""
        self._load_user = loader
        return loader

    def current_user_loader(self, loader: L) -> L:
        """Register what gives the user whom the host has signed in, as `begin` takes it; Flask-Login's is known."""
        self._load_current_user = loader
        return loader

    @property
    def services(self) -> Services:
        """The services of the current app."""
        mount = _current_mount()
        mount.ensure_ready()
        return mount.services

    @property
    def login(self) -> Login:
        """What continues a sign-in whose password the host has checked."""
        return self.services.login

    @property
    def accounts(self) -> Accounts:
        """What forgets a user whom the host has deleted (`unlink`)."""
        return self.services.accounts

    @property
    def client(self) -> ClientInfo:
        """Where the current request comes from."""
        return client_info()

    @property
    def user(self) -> Any:
        """What `user_loader` gave for this request; within a view under `require_mfa` or `require_login`."""
        return getattr(current_account(), "user", None)

    def begin(self, user: Any, *, next: str = "/") -> Response:  # noqa: A002 - the name that everybody uses
        """Go on with a browser whose user the host has just signed in: to the code, or where they wanted to go.

        `user` is a HostUser, or one of Flask-Login's kind; `next` a path of this origin.
        Raises ConfigurationError where MFA_TOKEN_LOCATIONS has no cookie, and ValueError for a user without an id.
        """
        return self._begin(user, next, offers_factor=False)

    def end(self) -> None:
        """End the session of this browser, for the host's own sign-out; wherever the request comes from."""
        _current_mount().ensure_ready()
        browsers.leave()

        @after_this_request
        def forget(response: Response) -> Response:
            browsers.forget(response)
            return response

    # ── what the mount asks of its host ──────────────────────────────────────────────────────────

    @property
    def knows_current_user(self) -> bool:
        """Whether somebody has said who is signed in to the host."""
        return self._load_current_user is not None or hasattr(current_app, "login_manager")

    def find_user(self, identity: Identity) -> object | None:
        """The host's user behind an identity; the identity itself where nobody has said how to find one."""
        return self._load_user(identity) if self._load_user else identity

    def find_current_id(self) -> str | None:
        """The id of the user whom the host has signed in."""
        user = self._find_current_user()
        return None if user is None else HostUser.of(user).id

    def ask_to_sign_in(self) -> Response | None:
        """Flask-Login's own answer to who is not signed in, where it knows a form to send them to."""
        manager = getattr(current_app, "login_manager", None)
        if manager is None or self._find_current_user() is not None:
            return None
        try:
            return current_app.make_response(manager.unauthorized())
        except Unauthorized:
            return None

    def continue_current(self, following: str) -> Response | None:
        """Ask the user whom the host has signed in for the code."""
        user = self._find_current_user()
        return None if user is None else self._begin(user, following, offers_factor=True)

    def _find_current_user(self) -> Any:
        if self._load_current_user:
            return self._load_current_user()
        if not hasattr(current_app, "login_manager"):
            return None
        current_user = import_module("flask_login").current_user  # only a host that has it gets here
        return current_user if current_user.is_authenticated else None

    def _begin(self, user: Any, following: str, *, offers_factor: bool) -> Response:
        if not _current_mount().settings.has_cookie:
            raise ConfigurationError(["begin() needs MFA_TOKEN_LOCATIONS=header,cookie"])
        who = HostUser.of(user)
        outcome = self.login.continue_for(
            who.external_id,
            username=who.username,
            email=who.email,
            client=self.client,
            device_token=cookies.read("device"),
            wants_cookie=True,
        )
        return browsers.go_on(outcome, browsers.safe_next(following), offers_factor=offers_factor)


def _current_mount() -> Mount:
    found: Mount | None = current_app.extensions.get(EXTENSION)
    if found is None:
        raise ConfigurationError(["MFA is not in this app: MFA(app), or init_app"])
    return found


def _engine_of(app: Flask) -> Engine:
    try:
        with app.app_context():
            found: Engine = app.extensions["sqlalchemy"].engine
            return found
    except (KeyError, AttributeError):
        raise ConfigurationError(
            ["there is no database: make Flask-SQLAlchemy before MFA, or pass engine=, or set MFA_DATABASE_URL"]
        ) from None
