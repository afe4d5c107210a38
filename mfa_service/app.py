"""The standalone service: a Flask app with `MFA` mounted, Talisman's headers and JSON logs. Nothing else."""

import os
import time
from collections.abc import Callable, Mapping
from typing import Any

from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from werkzeug.middleware.proxy_fix import ProxyFix

from mfa_service.config import Settings, from_environment
from mfa_service.extension import MFA
from mfa_service.models import Base
from mfa_service.web import client, errors, logs, security


def create_app(config: Mapping[str, Any] | None = None, *, clock: Callable[[], float] = time.time) -> Flask:
    """Make the service from the environment and `config`, which wins. `clock` gives Unix seconds.

    Raises ConfigurationError with everything that is wrong with the settings.
    """
    settings = Settings.load(from_environment(os.environ) | dict(config or {}))
    app = Flask("mfa_service", static_folder=None)
    app.config.update(
        PROVIDE_AUTOMATIC_OPTIONS=False,
        SQLALCHEMY_DATABASE_URI=settings.database,
        SQLALCHEMY_ENGINE_OPTIONS=_engine_options(settings),
    )
    app.url_map.merge_slashes = False  # //auth/login is 404, not a redirect to a host that the client named
    logs.configure_logging(app)
    client.install_request_ids(app)
    security.install(app, settings)
    errors.install(app)
    SQLAlchemy(app, metadata=Base.metadata)
    MFA(app, settings, clock=clock)
    if settings.trusted_proxies:
        hops = settings.trusted_proxies
        app.wsgi_app = ProxyFix(app.wsgi_app, x_for=hops, x_proto=0)  # type: ignore[method-assign]
    return app


def _engine_options(settings: Settings) -> dict[str, Any]:
    if settings.database.startswith("sqlite"):
        return {}
    return {
        "pool_pre_ping": True,
        "pool_size": 10,
        "max_overflow": 20,
        "pool_timeout": 5,
        "hide_parameters": True,
        "connect_args": {"connect_timeout": 5},
    }
