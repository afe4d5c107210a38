"""The service as it is mounted in one app: `app.extensions["mfa_service"]`. In a host it touches what it brings along.

What a host gets besides blueprints under names and prefixes of its own: error handlers for our refusals, raised by
`require_mfa` in its views, and two functions, the guard's and one here, that look at the app once, with the first
request.
"""

import functools
import logging
import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Protocol

from flask import Blueprint, Flask
from sqlalchemy import Engine
from werkzeug.routing import Rule
from werkzeug.wrappers import Response

from mfa_service import api, auth
from mfa_service.auth import browsers
from mfa_service.config import Settings
from mfa_service.crypto.tokens import Identity
from mfa_service.errors import ConfigurationError, SealBroken, Unauthenticated, Unavailable
from mfa_service.guard import Guard
from mfa_service.server import Server
from mfa_service.services import Services
from mfa_service.services.sessions import Account, Found
from mfa_service.web import EXTENSION, cookies, meta
from mfa_service.web.limits import Limits
from mfa_service.web.logs import log_events
from mfa_service.web.metrics import Metrics
from mfa_service.web.security import with_policy


class Host(Protocol):
    """What a host app says of its users."""

    @property
    def knows_current_user(self) -> bool:
        """Whether `find_current_id` can know."""

    def find_user(self, identity: Identity) -> object | None:
        """The host's user behind an identity, or None if there is none."""

    def find_current_id(self) -> str | None:
        """The id of the user whom the host itself has signed in, by a session of its own."""

    def ask_to_sign_in(self) -> Response | None:
        """Where somebody goes whom the host has not signed in; None where it has, or that is not known."""

    def continue_current(self, following: str) -> Response | None:
        """A response that asks that user for the second factor, or None if nobody is signed in."""


@dataclass(frozen=True)
class HostAccount(Account):
    """An account, and the host's user that it belongs to."""

    user: object | None = None


class Mount:
    """The service in one app. Nothing on module level belongs to an app."""

    def __init__(
        self,
        app: Flask,
        settings: Settings,
        engine: Engine,
        *,
        clock: Callable[[], float] = time.time,
        host: Host | None = None,
        borrows: bool = False,
    ) -> None:
        """Mount on `app`; in a host's app where there is a `host`, which may lend its engine. `clock`: Unix seconds.

        Raises ConfigurationError for keys that don't do, and routes that the host has already.
        """
        if EXTENSION in app.extensions:
            raise ConfigurationError(["MFA is in this app already"])
        self.settings = settings
        self.host = host
        self.services = Services(settings, engine, clock, borrows=borrows)
        self.limits = Limits(settings, Server.planned(os.environ).workers)
        self.metrics = Metrics(self.services, self.limits) if settings.metrics else None
        #: The OpenAPI document, from when somebody has first asked for it.
        self.document: bytes | None = None
        app.extensions[EXTENSION] = self
        Guard(
            self.services.verifier,
            find_account=self._find_account,
            find_session=self._find_session if settings.has_cookie else None,
            clock=clock,
        ).init_app(app)
        log_events(self.services.audit)
        self._register(app)
        if settings.tracing:  # an extra that costs nothing where it is off
            names = self._own_names if self.is_embedded else None
            import_module("mfa_service.web.tracing").install(app, self.services, blueprints=names)
        if host is None:
            self._check_keyring()
            for each in self.services.engines:
                each.dispose()  # gunicorn may fork now: no two processes share a connection
        else:
            self._settle_in(app)

    @property
    def is_embedded(self) -> bool:
        """Whether the app is somebody else's."""
        return self.host is not None

    def name_of(self, blueprint: Blueprint) -> str:
        """What a blueprint of ours is called in this app."""
        return self.settings.blueprint_prefix + blueprint.name if self.is_embedded else blueprint.name

    def ensure_ready(self) -> None:
        """Raise SealBroken if the keyring is not the database's own, and Unavailable where that can't be told."""
        try:
            self.services.health.ensure_keyring()
        except ConfigurationError as error:
            logging.getLogger("mfa_service").critical("%s", error)
            raise SealBroken from None

    def _check_keyring(self) -> None:
        try:
            self.services.health.ensure_keyring()
        except Unavailable:
            return  # the database may come later: `/readyz` says so, and the check is made up for
        except ConfigurationError:
            self.services.close()
            raise

    def is_current(self, external_id: str | None) -> bool:
        """Whether an account is that of whom the host itself has signed in; without a host nobody asks."""
        return self.host is None or (external_id is not None and external_id == self.host.find_current_id())

    # ── who comes ────────────────────────────────────────────────────────────────────────────────

    def _find_account(self, identity: Identity) -> Account | None:
        account = self.services.login.find_account(identity)
        return account if self.host is None or account is None else self._of_host(identity, account)

    def _find_session(self) -> Found | None:
        found = cookies.find_session()
        if self.host is None or found is None:
            return found
        identity, account = found
        # A browser's session counts beside the host's own; a token does without one.
        of_host = self._of_host(identity, account) if self.is_current(identity.external_id) else None
        return (identity, of_host) if of_host else None

    def _of_host(self, identity: Identity, account: Account) -> Account | None:
        """The account with the host's user; none for who is nobody of the host's (any more).

        None, too, where the host has signed in somebody else: views may ask either of both who is there.
        """
        if identity.external_id is None or identity.external_id != account.external_id or self.host is None:
            return None
        if self.host.find_current_id() not in (None, identity.external_id):
            return None
        user = self.host.find_user(identity)
        return HostAccount(**vars(account), user=user) if user is not None else None

    # ── where it lies ────────────────────────────────────────────────────────────────────────────

    def _register(self, app: Flask) -> None:
        own = self.settings
        auth_at, api_at, meta_at = "/auth", "/api", None
        if self.is_embedded:
            auth_at, api_at, meta_at = own.auth_prefix, own.api_prefix, own.auth_prefix
        places = {auth.blueprint: auth_at, api.blueprint: api_at, meta.blueprint: meta_at}
        if own.has_cookie:
            places[browsers.blueprint] = auth_at
        for blueprint, prefix in places.items():
            options: Any = {"name": self.name_of(blueprint), "is_embedded": self.is_embedded}
            app.register_blueprint(blueprint, url_prefix=prefix, **options)
        for endpoint, view in list(app.view_functions.items()):
            if self._is_ours(endpoint):
                app.view_functions[endpoint] = with_policy(self.limits.put_on(view))

    def _is_ours(self, endpoint: str) -> bool:
        return endpoint.partition(".")[0] in self._own_names

    @property
    def _own_names(self) -> list[str]:
        return [self.name_of(each) for each in (auth.blueprint, api.blueprint, meta.blueprint, browsers.blueprint)]

    def _settle_in(self, app: Flask) -> None:
        if app.url_map.host_matching:
            raise ConfigurationError(["an app with host_matching is not supported: our routes have no host"])
        self._ensure_apart(app)
        self._exempt_from_csrf(app)
        if self.settings.has_cookie:
            app.register_error_handler(Unauthenticated, browsers.answer_browser)
        app.before_request(functools.cache(functools.partial(self._look_once, app)))

    def _look_once(self, app: Flask) -> None:
        """With the first request: what the host has added since."""
        self._ensure_apart(app)
        self._exempt_from_csrf(app)
        if self.settings.has_cookie and self.host and not self.host.knows_current_user:
            raise ConfigurationError(
                ["MFA_TOKEN_LOCATIONS has cookie: Flask-Login or @mfa.current_user_loader must say who is signed in"]
            )

    def _ensure_apart(self, app: Flask) -> None:
        problems = [
            f"{ours.rule} is a route of the app ({theirs.endpoint}): MFA_AUTH_PREFIX and MFA_API_PREFIX move ours"
            for ours, theirs in self._overlaps(app)
        ]
        if problems:
            raise ConfigurationError(problems)

    def _overlaps(self, app: Flask) -> Iterator[tuple[Rule, Rule]]:
        ours: dict[str, list[Rule]] = defaultdict(list)
        theirs: list[Rule] = []
        for rule in app.url_map.iter_rules():
            (ours[rule.rule] if self._is_ours(rule.endpoint) else theirs).append(rule)
        for rule in theirs:
            yield from ((mine, rule) for mine in ours.get(rule.rule, ()) if _share_a_method(mine, rule))

    def _exempt_from_csrf(self, app: Flask) -> None:
        """Flask-WTF would want its token in our requests, where a bearer token or the origin says who sends them.

        By view, not by blueprint: it goes by the name that a blueprint was made with, which may be one of the host's.
        """
        protection = app.extensions.get("csrf")
        for endpoint, view in app.view_functions.items():
            if protection and self._is_ours(endpoint):
                protection.exempt(view)


def _share_a_method(one: Rule, other: Rule) -> bool:
    both = (one.methods or set()) & (other.methods or set())
    return bool(both - {"HEAD", "OPTIONS"})
