"""Security headers: Talisman's, and those of helmet's set that it lacks; caching; calls from other origins.

Talisman's redirect to https is off: a redirected POST has sent its password in the clear already, and would arrive
as a GET. HSTS is sent always, as helmet does; browsers heed it over https only.
"""

import functools
import logging
import re
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from flask import Flask, Response, current_app, request
from flask_talisman import Talisman

from mfa_service.config import Settings
from mfa_service.errors import BadRequest, ForeignOrigin
from mfa_service.web import services

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

F = TypeVar("F", bound=Callable[..., Any])

#: For JSON: nothing may be loaded, framed or sent from here.
_POLICY = "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
_HOST = re.compile(r"(?P<name>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(:[0-9]{1,5})?")
#: For pages: styles from here, a form goes here, and no script at all.
_PAGE_POLICY = "default-src 'none'; style-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
#: For the one page with a script: from here too, in files of its own; no inline script or style, no eval.
_SCRIPT_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
#: What Talisman does not send.
_HEADERS = (
    ("Cross-Origin-Opener-Policy", "same-origin"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
    ("X-DNS-Prefetch-Control", "off"),
    ("X-Download-Options", "noopen"),
    ("X-Permitted-Cross-Domain-Policies", "none"),
    ("X-XSS-Protection", "0"),
)
#: What speaks for the whole origin, which in a host's app is not ours.
_ORIGIN_HEADERS = (("Origin-Agent-Cluster", "?1"), ("Strict-Transport-Security", "max-age=31536000; includeSubDomains"))
#: What Talisman sends in our own app, and what is there in a host's that has none.
_TALISMANS = (("Referrer-Policy", "no-referrer"), ("X-Content-Type-Options", "nosniff"), ("X-Frame-Options", "DENY"))
_POLICY_OF_VIEW = "mfa_content_security_policy"
#: Where in the WSGI environment an answer's headers wait to be sent.
_CHOSEN = "mfa_service.headers"
_CORS_HEADERS = {
    "Access-Control-Allow-Methods": "GET, POST, PUT, PATCH, DELETE",
    "Access-Control-Allow-Headers": "Authorization, Content-Type, X-Request-Id",
    "Access-Control-Expose-Headers": "Retry-After, WWW-Authenticate, X-Request-Id",
    "Access-Control-Max-Age": "600",
}


def install(app: Flask, settings: Settings) -> None:
    """Put the headers on every answer of an app that is ours alone."""
    app.before_request(functools.partial(_ensure_known_host, settings.hosts))
    app.after_request(_choose_headers)
    app.wsgi_app = _with_headers(app.wsgi_app)  # type: ignore[method-assign, assignment]
    if settings.cors_origins:
        _allow_origins(app, frozenset(settings.cors_origins))


def _ensure_known_host(hosts: frozenset[str]) -> None:
    """Refuse a Host header that is not ours. Werkzeug's own list takes any IPv6 address where it holds one."""
    if _name_in(request.headers.get("Host", "")) not in hosts:
        logging.getLogger("mfa_service").warning("host %.80r is not in MFA_ALLOWED_HOSTS", request.headers.get("Host"))
        raise BadRequest


@functools.lru_cache(64)
def _name_in(host: str) -> str | None:
    match = _HOST.fullmatch(host)
    return match["name"].strip("[]").lower() if match else None


def page(view: F) -> F:
    """Say that a view answers with a page, which has another content security policy than JSON."""
    setattr(view, _POLICY_OF_VIEW, _PAGE_POLICY)
    return view


def scripted_page(view: F) -> F:
    """The same of a page that needs a script of ours."""
    setattr(view, _POLICY_OF_VIEW, _SCRIPT_POLICY)
    return view


def with_policy(view: Callable[..., Any]) -> Callable[..., Any]:
    """The view as one app has it, with the policy that Talisman is to send: ours, or a host's own Talisman.

    The options are in a dictionary of this view alone, for Talisman writes its app's defaults into it.
    """

    @functools.wraps(view)
    def mounted(*args: Any, **kwargs: Any) -> Any:
        return view(*args, **kwargs)

    options = {"content_security_policy": _parsed(_policy_of(view)), "frame_options": "DENY"}
    setattr(mounted, "talisman_view_options", options)  # noqa: B010 - mypy knows no attributes of functions
    return mounted


def _parsed(policy: str) -> dict[str, str]:
    """A policy by its directives: Talisman would take it apart for each answer."""
    return dict(directive.split(" ", 1) for directive in policy.split("; "))


def _choose_headers(response: Response) -> Response:
    response.headers.setdefault("Cache-Control", "no-store")
    request.environ[_CHOSEN] = _headers_with(_current_policy())
    return response


def _with_headers(application: "WSGIApplication") -> "WSGIApplication":
    """Send what was chosen for an answer. Werkzeug would look at each of these headers, and again as it copies them."""

    def answer(environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
        def start(status: str, headers: list[tuple[str, str]], *exc_info: Any) -> Callable[[bytes], object]:
            return start_response(status, [*headers, *environ.get(_CHOSEN, ())], *exc_info)

        return application(environ, start)

    return answer


@functools.cache
def _headers_with(policy: str) -> tuple[tuple[str, str], ...]:
    """What every answer with this policy has. Talisman is asked once: on each answer it would say the same again."""
    asked = Flask("mfa_service.headers", static_folder=None)
    Talisman(
        asked,
        force_https=False,
        strict_transport_security=False,
        content_security_policy=policy,
        frame_options="DENY",
        referrer_policy="no-referrer",
    )
    with asked.test_request_context():
        response = asked.process_response(Response(content_type=""))
    del response.headers["Content-Type"], response.headers["Content-Length"]
    return (*response.headers, *_HEADERS, *_ORIGIN_HEADERS)


def add_headers(response: Response) -> Response:
    """Put the headers that are about one answer on it, in a host's app."""
    response.headers.update(_HEADERS + _TALISMANS)
    response.headers["Content-Security-Policy"] = _current_policy()
    response.headers.setdefault("Cache-Control", "no-store")
    return response


def _current_policy() -> str:
    return _policy_of(current_app.view_functions.get(request.endpoint or ""))


def _policy_of(view: object) -> str:
    return str(getattr(view, _POLICY_OF_VIEW, _POLICY))


def ensure_own_origin(method: str) -> None:
    """Raise ForeignOrigin unless a request that a browser's cookie speaks for comes from a page of this origin.

    Whatever has an Origin must have ours: what changes state has one always, and so has a websocket. A browser says
    `null` for a form of a page that sends no referrer, such as ours; then its own word counts (Fetch metadata).
    """
    origin = request.origin
    if origin in (None, "null"):
        is_own = request.headers.get("Sec-Fetch-Site") == "same-origin"
        is_harmless = origin is None and method in ("GET", "HEAD")
    else:
        is_own, is_harmless = origin in own_origins(), False
    if not (is_own or is_harmless):
        raise ForeignOrigin


def own_origins() -> tuple[str, ...]:
    """The origins of pages on the host that this request was sent to, and that of the public address.

    https is one of them always: behind a proxy that ends TLS this is all that shows of it.
    """
    # Not `host_url`, where Werkzeug writes an international name as people read it; a browser never does.
    here = f"{request.scheme}://{request.host}", f"https://{request.host}"
    settings = services().settings
    public = urlsplit(settings.public_url)
    return (*here, f"{public.scheme}://{public.netloc}") if settings.has_public_url else here


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
