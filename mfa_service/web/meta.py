"""The routes about the service itself: is it alive, is it ready, which keys, which contract, and that as a page."""

from importlib.metadata import version
from typing import Literal

from flask import Response, after_this_request, current_app, jsonify

from mfa_service.errors import NotFound, NotReady
from mfa_service.web import current_mount, services, viewer
from mfa_service.web.blueprint import make_blueprint
from mfa_service.web.contract import View, gives, limited, refuses
from mfa_service.web.limits import current_limits
from mfa_service.web.metrics import Metrics
from mfa_service.web.openapi import document

blueprint = make_blueprint("meta", template_folder="../templates")
blueprint.add_url_rule("/docs", view_func=viewer.docs)
blueprint.add_url_rule("/docs/<name>", view_func=viewer.docs_file)


class HealthView(View):
    """The process lives."""

    status: Literal["ok"] = "ok"


class ReadyView(View):
    """Everything that requests need is there."""

    status: Literal["ok"] = "ok"


class JWKView(View):
    """A public signing key (RFC 7517)."""

    kty: str
    crv: str
    x: str
    y: str
    kid: str
    use: str
    alg: str


class JWKSView(View):
    """The public signing keys; empty where a shared secret signs."""

    keys: list[JWKView]


@blueprint.get("/healthz")
@gives(200, HealthView)
def healthz() -> HealthView:
    """Whether the process lives."""
    return HealthView()


@blueprint.get("/readyz")
@gives(200, ReadyView)
@refuses(NotReady)
def readyz() -> ReadyView:
    """Whether requests should be sent here: do database and rate limiter answer?"""
    parts = {"database": services().health.is_database_up(), "limiter": current_limits().is_store_up()}
    down = {name: "is down" for name, is_up in parts.items() if not is_up}
    if down:
        raise NotReady(fields=down, retry_after=5)
    return ReadyView()


@blueprint.get("/.well-known/jwks.json")
@limited("sessions")
@gives(200, JWKSView)
def jwks() -> JWKSView:
    """The public keys that verify our tokens. They may be kept for five minutes."""

    @after_this_request
    def let_it_be_kept(response: Response) -> Response:
        response.headers["Cache-Control"] = "public, max-age=300"
        return response

    return JWKSView.model_validate(services().keys.public_jwks())


@blueprint.get("/metrics")
def metrics() -> Response:
    """Figures for Prometheus; there is no such route unless MFA_METRICS says for whom."""
    found: Metrics | None = current_mount().metrics
    if found is None:
        raise NotFound
    return found.text()


@blueprint.get("/openapi.json")
def openapi() -> Response:
    """The OpenAPI document; it leaves out what is switched off."""
    mount = current_mount()
    if mount.document is None:  # once: nothing in it changes after the start, and anybody may ask for it
        mount.document = _document()
    return current_app.response_class(mount.document, mimetype="application/json")


def _document() -> bytes:
    settings = services().settings
    hidden = () if settings.registration_open else ("auth.register",)
    made = document(current_app, server=settings.public_url, version=version("mfa_service"), hidden=hidden)
    return jsonify(made).get_data()
