"""What both blueprints need from HTTP."""

from flask import current_app

from mfa_service.services import Services

EXTENSION = "mfa_service"


def services() -> Services:
    """The services of the app that answers this request."""
    found: Services = current_app.extensions[EXTENSION].services
    return found
