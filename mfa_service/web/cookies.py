"""Cookies of the pages: `__Host-`, so bound to this very host and to https; out of reach for scripts.

What stands in one is either a token of ours or means nothing by itself. A cookie is sent along by whoever makes the
browser send something, so it counts only where the request comes from a page of this origin.
"""

from typing import Literal

from flask import g, request
from werkzeug.wrappers import Response

from mfa_service.services.sessions import Found
from mfa_service.web import services
from mfa_service.web.security import ensure_own_origin

Name = Literal["session", "pending", "device"]


def read(name: Name) -> str | None:
    """What the browser has kept."""
    return request.cookies.get(_full(name))


def keep(response: Response, name: Name, value: str, seconds: int | None = None) -> None:
    """Let the browser keep it for so long; without a time until the browser is closed."""
    response.set_cookie(_full(name), value, max_age=seconds, path="/", secure=True, httponly=True, samesite="Lax")


def drop(response: Response, name: Name) -> None:
    """Let the browser forget it."""
    response.delete_cookie(_full(name), path="/", secure=True, httponly=True, samesite="Lax")


def find_session() -> Found | None:
    """Who the browser's cookie stands for; None without one, or if the session has ended. Raises ForeignOrigin."""
    cookie = read("session")
    if not cookie:
        return None
    ensure_own_origin(g.get("mfa_forwarded_method", request.method))
    return services().login.find_by_cookie(cookie)


def _full(name: Name) -> str:
    return f"__Host-mfa_{name}"
