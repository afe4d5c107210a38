"""What every blueprint of ours brings along, so that in a host's app nothing of ours lies outside them.

In the service of its own the same is done for the whole app (`app.py`), its 404s included.
"""

from typing import Any

from flask import Blueprint, Response

from mfa_service.web import client, current_mount, errors, security


def make_blueprint(name: str, **options: Any) -> Blueprint:
    """A blueprint whose requests have an id, whose answers have our headers, and whose failures have our form."""
    blueprint = Blueprint(name, __name__, **options)
    blueprint.before_request(_begin)
    blueprint.after_request(_finish)
    errors.install(blueprint)
    return blueprint


def _begin() -> None:
    mount = current_mount()
    mount.services.sealer.ensure_running()
    if mount.is_embedded:
        client.assign_request_id()
        if mount.metrics:
            mount.metrics.begin()


def _finish(response: Response) -> Response:
    mount = current_mount()
    if not mount.is_embedded:
        return response
    if mount.metrics:
        mount.metrics.finish(response)
    return client.echo_request_id(security.add_headers(response))


def ensure_ready() -> None:
    """Nothing is sealed or opened before it is known that the keyring is the database's own."""
    current_mount().ensure_ready()
