"""What the pages stand on: who is at the browser, where to go, and the cookies that carry it.

A right password leaves a pending token in a cookie; a code turns it into a cookie that stands for the session. In a
host's app both count only for the user whom the host has signed in.
"""

from typing import Any, cast
from urllib.parse import quote, urlsplit

from flask import Response, g, make_response, redirect, render_template, request, url_for
from werkzeug.wrappers import Response as Answer

from mfa_service.answers import answer
from mfa_service.errors import MFAError
from mfa_service.services.login import Admission, MFAPending, PasswordOnly, SignedIn, Waiting
from mfa_service.services.sessions import Found
from mfa_service.web import cookies, current_mount, services
from mfa_service.web.blueprint import ensure_ready, make_blueprint
from mfa_service.web.client import client_info
from mfa_service.web.security import own_origins

#: What a URL holds as it is (RFC 3986), beside letters and digits; anything else in it is percent-encoded.
_IN_URLS = "%/?#[]@!$&'()*+,;=:"

blueprint = make_blueprint("pages", template_folder="../templates")
blueprint.before_request(ensure_ready)


# ── who is there ─────────────────────────────────────────────────────────────────────────────────


def find_session() -> Found | None:
    """Who is signed in; nobody if somebody else has signed in to the host with this browser."""
    found = cookies.find_session()
    return found if found and current_mount().is_current(found[0].external_id) else None


def _find_any_session() -> Found | None:
    """Whose session the browser's cookie stands for, whoever asks: for ending it, which gives nobody anything."""
    cookie = cookies.read("session")
    return services().login.find_by_cookie(cookie) if cookie else None


def find_waiting() -> Waiting | None:
    """Whose password was right, and whose second factor is still to come; in a host it is of who is signed in there."""
    waiting = services().login.find_waiting(cookies.read("pending") or "")
    return waiting if waiting and current_mount().is_current(waiting.external_id) else None


# ── where to ─────────────────────────────────────────────────────────────────────────────────────


def go_on(outcome: Admission, following: str, *, offers_factor: bool) -> Answer:
    """From a right password to the next page: the code, the authenticator, or where the user wanted to go.

    Whom policy lets go without a factor is offered one where that is what they came for.
    """
    if isinstance(outcome, MFAPending):
        form = "code" if outcome.methods else "authenticator"
        response = redirect(place_of(form, next=following), 303)
        before = _find_any_session()
        if before and before[0].user_id != outcome.user_id:
            leave()  # from here on a code is of the one who waits
            cookies.drop(response, "session")
        return _await(outcome, response)
    if not (offers_factor and isinstance(outcome, PasswordOnly) and outcome.pending):
        return arrive(outcome, redirect(following, 303))
    response = arrive(outcome, redirect(place_of("authenticator", next=following), 303))
    return _await(outcome.pending, response)


def begin_again() -> Answer:
    """From the password on: ours, or in a host the code of who is signed in there."""
    host = current_mount().host
    begun: Answer | None = host.continue_current(next_place()) if host else None
    if begun:
        return begun
    if host:
        response: Answer = show("sign_in_first.html", status=401)
    else:
        response = redirect(place_of("show_sign_in", next=next_place()), 303)
    cookies.drop(response, "pending")
    return response


def leave() -> None:
    """End the session that the browser's cookie stands for, if there is one; wherever the request comes from."""
    if found := _find_any_session():
        services().login.sign_out(found[0], client_info(), everywhere=False)


def forget(response: Answer) -> None:
    """Let the browser forget who was signed in, or about to be."""
    cookies.drop(response, "session")
    cookies.drop(response, "pending")


def answer_browser(refusal: MFAError) -> Answer:
    """A refusal of `require_mfa` in a host's view: a browser is sent to the code, a program gets the refusal."""
    wanted = request.accept_mimetypes.best_match(["application/json", "text/html"])
    if wanted != "text/html" or "Authorization" in request.headers:
        return answer(refusal)
    if (asked := current_mount().host.ask_to_sign_in()) is not None:
        return cast("Answer", asked)
    # What a form was about to do can't be done again by going there.
    came_from = urlsplit(request.referrer or "").path
    following = _here() if request.method == "GET" else came_from
    return redirect(place_of("code", next=safe_next(following)), 303)


def safe_next(target: str) -> str:
    """Where to go afterwards: a path on this origin, or its beginning for anything else."""
    for origin in own_origins():
        target = target.removeprefix(origin) if target.startswith(f"{origin}/") else target
    is_path = target.startswith("/") and not target.startswith("//") and "\\" not in target
    return quote(target, safe=_IN_URLS) if is_path and target.isprintable() else "/"


def _here() -> str:
    """Where this request went, as a browser writes it."""
    path, query = request.script_root + request.path, quote(request.query_string, safe=_IN_URLS)
    return quote(path, safe="/") + (f"?{query}" if query else "")


def _await(pending: MFAPending, response: Answer) -> Answer:
    cookies.keep(response, "pending", pending.token, pending.expires_in)
    return response


def arrive(signed_in: SignedIn, response: Answer) -> Answer:
    """Let the browser keep what stands for its new session; the one before, if there was one, has ended."""
    leave()
    cookies.keep(response, "session", signed_in.cookie or "")
    cookies.drop(response, "pending")
    if signed_in.device_token:
        cookies.keep(response, "device", signed_in.device_token, services().settings.device_seconds)
    return response


def show(template: str, refusal: MFAError | None = None, *, status: int = 200, **context: Any) -> Response:
    """A page; with a refusal its sentence and its status, so that scripts and limits see what happened."""
    # Every name that a template knows: a host's Jinja may be strict about those that are not there.
    shown: dict[str, Any] = dict.fromkeys(("can_scan", "can_repeat", "may_wait", "wants_ticket"), False)
    shown |= {"next": next_place(), "refusal": refusal, "settings": services().settings, "url": place_of}
    shown |= {"may_remember": services().settings.device_seconds and cookies.read("pending")}
    # In a host's app it is the host that people sign out of.
    shown |= {"may_sign_out": not current_mount().is_embedded and cookies.read("session")} | context
    if refusal:
        g.mfa_refusal = refusal.code  # for who counts
    response = make_response(render_template(f"mfa_service/{template}", **shown), refusal.status if refusal else status)
    if refusal and refusal.retry_after is not None:
        response.headers["Retry-After"] = str(refusal.retry_after)
    return response


def next_place() -> str:
    """Where this request says to go afterwards."""
    return safe_next(request.values.get("next", "/"))


def place_of(endpoint: str, **values: Any) -> str:
    """The address of one of the pages, whatever they are called in this app."""
    return url_for(f"{current_mount().name_of(blueprint)}.{endpoint}", **values)
