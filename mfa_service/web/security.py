"""Security headers: Talisman's, and those of helmet's set that it lacks; caching; cross-origin calls.

Talisman's redirect to https is off: a redirected POST has sent its password in the clear already, and would arrive
as a GET. HSTS is sent always, as helmet does; browsers heed it over https only.
"""

import logging
import re
from collections.abc import Callable
from typing import Any, TypeVar

from flask import Flask, Response, request
from flask_talisman import Talisman

from mfa_service.config import Settings
from mfa_service.errors import BadRequest

V = TypeVar("V", bound=Callable[..., Any])

#: For JSON: nothing may be loaded, framed or sent from here.
_POLICY = "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
#: For pages: what is served from here, in files of its own, and nobody else's; no inline script or style, no eval.
_PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
#: All that Talisman lets a view have of its own.
_OPTIONS: dict[str, Any] = {
    "force_https": False,
    "frame_options": "DENY",
    "frame_options_allow_from": None,
    "content_security_policy": _POLICY,
    "content_security_policy_nonce_in": [],
    "permissions_policy": {"browsing-topics": "()"},
    "document_policy": {},
    "feature_policy": {},
}
_HOST = re.compile(r"(?P<name>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(:[0-9]{1,5})?")
_HEADERS = {
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Origin-Agent-Cluster": "?1",
    "Strict-Transport-Security": "max-age=31536000; includeSubDomains",
    "X-Content-Type-Options": "nosniff",
    "X-DNS-Prefetch-Control": "off",
    "X-Download-Options": "noopen",
    "X-Permitted-Cross-Domain-Policies": "none",
    "X-XSS-Protection": "0",
}
_CORS_HEADERS = {
    "Access-Control-Allow-Methods": "GET, POST, PUT, PATCH, DELETE",
    "Access-Control-Allow-Headers": "Authorization, Content-Type, X-Request-Id",
    "Access-Control-Expose-Headers": "Retry-After, WWW-Authenticate, X-Request-Id",
    "Access-Control-Max-Age": "600",
}


def install(app: Flask, settings: Settings) -> None:
    """Put the headers on every answer of an app that is ours alone."""
    Talisman(app, strict_transport_security=False, referrer_policy="no-referrer", **_OPTIONS)
    app.before_request(lambda: _ensure_known_host(settings.hosts))
    app.after_request(_add_headers)
    if settings.cors_origins:
        _allow_origins(app, frozenset(settings.cors_origins))


def page(view: V) -> V:
    """Let what a view answers, a page for people, load what is served from here."""
    # Of every option: Talisman writes what is missing into this very dict, and so one app's into the next one's.
    options = _OPTIONS | {"content_security_policy": _PAGE_POLICY}
    setattr(view, "talisman_view_options", options)  # noqa: B010 — mypy knows no such attribute
    return view


def _ensure_known_host(hosts: frozenset[str]) -> None:
    """Refuse a Host header that is not ours. Werkzeug's own list takes any IPv6 address where it holds one."""
    match = _HOST.fullmatch(request.headers.get("Host", ""))
    if not match or match["name"].strip("[]").lower() not in hosts:
        logging.getLogger("mfa_service").warning("host %.80r is not in MFA_ALLOWED_HOSTS", request.headers.get("Host"))
        raise BadRequest


def _add_headers(response: Response) -> Response:
    response.headers.update(_HEADERS)
    response.headers.setdefault("Cache-Control", "no-store")
    return response


def _allow_origins(app: Flask, origins: frozenset[str]) -> None:
    """Let pages of these origins call us (Fetch standard, CORS protocol): exact matches, never credentials."""

    def answer_preflight() -> Response | None:
        is_preflight = request.method == "OPTIONS" and "Access-Control-Request-Method" in request.headers
        return app.response_class(status=204) if is_preflight and request.origin in origins else None

    def allow(response: Response) -> Response:
        response.vary.add("Origin")
        if request.origin in origins:
            response.headers.update({"Access-Control-Allow-Origin": request.origin, **_CORS_HEADERS})
        return response

    app.before_request(answer_preflight)
    app.after_request(allow)
