"""`MFA`: the whole service, mounted in a Flask app."""

import logging
import time
from collections.abc import Callable

from flask import Flask, request

from mfa_service import api, auth
from mfa_service.config import Settings
from mfa_service.errors import ConfigurationError, SealBroken, Unavailable
from mfa_service.guard import Guard
from mfa_service.services import Services
from mfa_service.web import EXTENSION, meta
from mfa_service.web.limits import Limits
from mfa_service.web.logs import log_events


class MFA:
    """The service in one app. State is in `app.extensions`; nothing on module level belongs to an app."""

    def __init__(self, app: Flask, settings: Settings, *, clock: Callable[[], float] = time.time) -> None:
        """Mount on `app`, whose Flask-SQLAlchemy is initialised. `clock` gives Unix seconds.

        Raises ConfigurationError for keys that are missing, weak, or not those of the database.
        """
        with app.app_context():
            self.services = Services(settings, app.extensions["sqlalchemy"].engine, clock)
        self._check_keyring()
        self.services.engine.dispose()  # gunicorn may fork now: no two processes share a connection
        self.limits = Limits(app, settings)
        app.extensions[EXTENSION] = self
        Guard(self.services.verifier, find_account=self.services.login.find_account, clock=clock).init_app(app)
        log_events(self.services.audit)
        app.before_request(self._ensure_keyring)
        app.register_blueprint(meta.blueprint)
        for blueprint in (auth.blueprint, api.blueprint):
            app.register_blueprint(blueprint, url_prefix=f"/{blueprint.name}")
            self.limits.attach(app, blueprint.name)

    def _check_keyring(self) -> None:
        try:
            self.services.health.ensure_keyring()
        except Unavailable:
            return  # the database may come later: `/readyz` says so, and the check is made up for
        except ConfigurationError:
            self.services.close()
            raise

    def _ensure_keyring(self) -> None:
        """Nothing is sealed or opened before it is known that the keyring is the database's own."""
        self.services.sealer.ensure_running()
        if request.blueprint == meta.blueprint.name:
            return
        try:
            self.services.health.ensure_keyring()
        except ConfigurationError as error:
            logging.getLogger("mfa_service").critical("%s", error)
            raise SealBroken from None
