"""What both blueprints need from HTTP."""

from typing import Any

from flask import current_app

from mfa_service.services import Services

EXTENSION = "mfa_service"


def current_mount() -> Any:
    """The service as it is mounted in the app that answers this request (`mount.py`)."""
    return current_app.extensions[EXTENSION]


def services() -> Services:
    """The services of the app that answers this request."""
    found: Services = current_mount().services
    return found
