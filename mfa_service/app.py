"""The service of its own: a Flask app with everything mounted, Talisman's headers and JSON logs. Nothing else."""

import os
import time
from collections.abc import Callable, Mapping
from typing import Any

from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from werkzeug.middleware.proxy_fix import ProxyFix

from mfa_service.config import Settings, from_environment, unknown_names
from mfa_service.errors import Unavailable
from mfa_service.models import Base
from mfa_service.mount import Mount
from mfa_service.services import Services
from mfa_service.services.database import engine_of_service, options_for
from mfa_service.web import client, errors, logs, security


class _Service(Flask):
    """A Flask app in which nothing is asynchronous, and nobody has to look at each function of each request for it."""

    def ensure_sync(self, func: Callable[..., Any]) -> Callable[..., Any]:
        return func


def create_app(config: Mapping[str, Any] | None = None, *, clock: Callable[[], float] = time.time) -> Flask:
    """Make the service from the environment and `config`, which wins. `clock` gives Unix seconds.

    Raises ConfigurationError with everything that is wrong with the settings.
    """
    settings = Settings.load(from_environment(os.environ) | dict(config or {}))
    app = _Service("mfa_service", static_folder=None)
    logs.configure_logging(app)
    for warning in unknown_names(os.environ):
        app.logger.warning(warning)
    app.config.update(
        PROVIDE_AUTOMATIC_OPTIONS=False,
        SQLALCHEMY_DATABASE_URI=settings.database,
        SQLALCHEMY_ENGINE_OPTIONS=options_for(settings.database),
    )
    app.url_map.merge_slashes = False  # another spelling is 404, and no redirect to a host that the client named
    client.install_request_ids(app)
    security.install(app, settings)
    errors.install(app)
    database = SQLAlchemy(app, metadata=Base.metadata)
    with app.app_context():
        mount = Mount(app, settings, database.engine, clock=clock)
    if mount.metrics:
        mount.metrics.install(app)
    logs.log_requests(app, everything=settings.access_log)
    if settings.trusted_proxies:
        hops = settings.trusted_proxies
        app.wsgi_app = ProxyFix(app.wsgi_app, x_for=hops, x_proto=0)  # type: ignore[method-assign]
    return app


def ensure_startable(environment: Mapping[str, str]) -> None:
    """Raise ConfigurationError for settings and keys that don't do, without leaving anything open.

    gunicorn asks before it forks. What else stops `create_app` is found by the first worker: an exporter of spans that
    is not installed. Whether the store of the limits answers, `/readyz` says.
    """
    settings = Settings.load(from_environment(environment))
    services = Services(settings, engine_of_service(settings.database), time.time)
    try:
        services.health.ensure_keyring()
    except Unavailable:
        return  # a database that is not there yet is waited for
    finally:
        services.close()
