"""Signing in with a browser: the same acts as the JSON routes, as plain pages that need no script.

A right password leaves a pending token in a cookie; a code turns it into a cookie that stands for the session. In a
host's app the password is the host's affair: who is signed in there is asked for the code (`MFA.begin`). Every form
has to come from a page of this origin, and leads back to a place on it.
"""

from typing import Any, cast
from urllib.parse import quote, urlsplit

from flask import Response, make_response, redirect, render_template, request, url_for
from flask.sansio.blueprints import BlueprintSetupState
from flask_limiter import RateLimitExceeded
from werkzeug.wrappers import Response as Answer

from mfa_service.answers import answer
from mfa_service.errors import FactorExists, InvalidPendingToken, MFAError, NoToken
from mfa_service.services.factors import Proof
from mfa_service.services.login import Admission, MFAPending, PasswordOnly, Remember, SignedIn, Waiting
from mfa_service.services.sessions import Found
from mfa_service.web import cookies, current_mount, services
from mfa_service.web.blueprint import ensure_ready, make_blueprint
from mfa_service.web.client import client_info
from mfa_service.web.contract import MAX_BYTES, limited
from mfa_service.web.files import OURS, answer_with
from mfa_service.web.limits import current_limits
from mfa_service.web.security import ensure_own_origin, own_origins, page

#: What a URL holds as it is (RFC 3986), beside letters and digits; anything else in it is percent-encoded.
_IN_URLS = "%/?#[]@!$&'()*+,;=:"

blueprint = make_blueprint("pages", template_folder="../templates")
blueprint.before_request(ensure_ready)


@blueprint.before_request
def ensure_from_here() -> None:
    """Refuse forms of other origins, and bodies that no form of ours has."""
    request.max_content_length = request.max_form_memory_size = MAX_BYTES
    if request.method == "POST":
        _ = request.form  # what is too large is refused now, not while a page for another refusal is made
        ensure_own_origin(request.method)


@blueprint.get("/pages.css")
def style() -> Response:
    """How the pages look. A host that wants another look has `templates/mfa_service/base.html` of its own."""
    return answer_with(OURS / "pages.css")


# ── the password, where it is ours ───────────────────────────────────────────────────────────────


@page
def show_sign_in() -> Answer:
    """The form for username and password."""
    return _page("sign_in.html")


@limited("credentials")
@page
def sign_in() -> Answer:
    """Check a password, and go on to the code."""
    try:
        outcome = services().login.begin(
            request.form.get("username", "")[:256],
            request.form.get("password", ""),
            client_info(),
            cookies.read("device"),
            wants_cookie=True,
        )
    except MFAError as refusal:
        return _page("sign_in.html", refusal)
    return go_on(outcome, _next(), offers_factor=True)


@blueprint.record
def _add_sign_in(state: BlueprintSetupState) -> None:
    if not state.options.get("is_embedded"):
        state.add_url_rule("/sign-in", "show_sign_in", show_sign_in, methods=["GET"])
        state.add_url_rule("/sign-in", "sign_in", sign_in, methods=["POST"])


# ── the second factor ────────────────────────────────────────────────────────────────────────────


@blueprint.get("/code")
@page
def code() -> Answer:
    """The form for a code: for who has given a password, or is signed in and has to show the factor again."""
    waiting, found = _find_waiting(), _find_session()
    if waiting:
        return _page("code.html") if waiting.methods else redirect(_url("authenticator", next=_next()), 303)
    return _page("code.html") if found and found[0].is_complete else _start()


@blueprint.post("/code")
@limited("credentials")
@page
def verify() -> Answer:
    """Take a code of the authenticator."""
    # Apps show it in two halves, and so do people type it.
    return _prove(Proof("totp", "".join(request.form.get("code", "").split())), "code.html")


@blueprint.get("/recovery-code")
@page
def recovery_code() -> Answer:
    """The form for a recovery code."""
    return _page("recovery_code.html")


@blueprint.post("/recovery-code")
@limited("credentials")
@page
def recover() -> Answer:
    """Take a recovery code."""
    return _prove(Proof("recovery_code", request.form.get("code", "")), "recovery_code.html")


@blueprint.get("/authenticator")
@page
def authenticator() -> Answer:
    """Ask whether to make a secret: looking at a page must not make one."""
    waiting, found = _find_waiting(), _find_session()
    if waiting is None:
        return _start()
    return _page("authenticator.html", may_wait=found is not None and found[0].user_id == waiting.user_id)


@blueprint.post("/authenticator")
@limited("credentials")
@page
def enrol() -> Answer:
    """A new secret to scan, and the form that confirms it."""
    try:
        ticket = request.form.get("ticket", "").strip() or None
        enrolment = services().login.enrol(cookies.read("pending") or "", client_info(), ticket)
    except MFAError as refusal:
        return _again(refusal, "authenticator.html", wants_ticket=isinstance(refusal, FactorExists))
    return _page("scan.html", enrolment=enrolment, can_repeat=ticket is None)


@blueprint.post("/sign-out")
@page
def sign_out() -> Answer:
    """End the session of this browser."""
    leave()
    response = redirect(_next(), 303)
    forget(response)
    return response


# ── for the host, and for its views ──────────────────────────────────────────────────────────────


def go_on(outcome: Admission, following: str, *, offers_factor: bool) -> Answer:
    """From a right password to the next page: the code, the authenticator, or where the user wanted to go.

    Whom policy lets go without a factor is offered one where that is what they came for.
    """
    if isinstance(outcome, MFAPending):
        form = "code" if outcome.methods else "authenticator"
        response = redirect(_url(form, next=following), 303)
        if cookies.read("session"):
            leave()  # whoever was signed in before: from here on a code is of the one who waits
            cookies.drop(response, "session")
        return _await(outcome, response)
    if not (offers_factor and isinstance(outcome, PasswordOnly) and outcome.pending):
        return _arrive(outcome, redirect(following, 303))
    response = _arrive(outcome, redirect(_url("authenticator", next=following), 303))
    return _await(outcome.pending, response)


def leave() -> None:
    """End the session that the browser's cookie stands for, if there is one; wherever the request comes from."""
    cookie = cookies.read("session")
    found = services().login.find_by_cookie(cookie) if cookie else None
    if found:
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
    return redirect(_url("code", next=safe_next(following)), 303)


def safe_next(target: str) -> str:
    """Where to go afterwards: a path on this origin, or its beginning for anything else."""
    for origin in own_origins():
        target = target.removeprefix(origin) if target.startswith(f"{origin}/") else target
    is_path = target.startswith("/") and not target.startswith("//") and "\\" not in target
    return quote(target, safe=_IN_URLS) if is_path and target.isprintable() else "/"


# ── means ────────────────────────────────────────────────────────────────────────────────────────


def _here() -> str:
    """Where this request went, as a browser writes it."""
    path, query = request.script_root + request.path, quote(request.query_string, safe=_IN_URLS)
    return quote(path, safe="/") + (f"?{query}" if query else "")


def _prove(proof: Proof, form: str) -> Answer:
    pending, login = cookies.read("pending"), services().login
    try:
        if pending:
            remember = Remember(client_info().user_agent[:64]) if "remember" in request.form else None
            signed_in = login.complete(pending, proof, client_info(), remember, wants_cookie=True)
            return _arrive(signed_in, _welcome(signed_in))
        found = _find_session()
        if found is None:
            raise NoToken
        login.step_up(found[0], proof, client_info())
    except MFAError as refusal:
        return _again(refusal, form)
    return redirect(_next(), 303)


def _again(refusal: MFAError, form: str, **context: Any) -> Answer:
    """The form once more, with what was wrong; from the beginning where the pending token is no longer good."""
    if not isinstance(refusal, InvalidPendingToken | NoToken):
        waiting = _find_waiting()
        return _page(form, refusal, can_scan=waiting is not None and not waiting.methods, **context)
    return _start()


def _find_session() -> Found | None:
    """Who is signed in; nobody if somebody else has signed in to the host with this browser."""
    found, host = cookies.find_session(), current_mount().host
    is_other = found is not None and host is not None and found[0].external_id != host.find_current_id()
    return None if is_other else found


def _find_waiting() -> Waiting | None:
    """Whose password was right, and whose second factor is still to come."""
    return services().login.find_waiting(cookies.read("pending") or "")


def _start() -> Answer:
    host = current_mount().host
    begun: Answer | None = host.continue_current(_next()) if host else None
    if begun:
        return begun
    response = _page("sign_in_first.html", status=401) if host else redirect(_url("show_sign_in", next=_next()), 303)
    cookies.drop(response, "pending")
    return response


def _welcome(signed_in: SignedIn) -> Answer:
    if signed_in.recovery_codes:
        return _page("recovery_codes.html", codes=signed_in.recovery_codes)
    return redirect(_next(), 303)


def _await(pending: MFAPending, response: Answer) -> Answer:
    cookies.keep(response, "pending", pending.token, pending.expires_in)
    return response


def _arrive(signed_in: SignedIn, response: Answer) -> Answer:
    cookies.keep(response, "session", signed_in.cookie or "")
    cookies.drop(response, "pending")
    if signed_in.device_token:
        cookies.keep(response, "device", signed_in.device_token, services().settings.device_seconds)
    return response


def _page(template: str, refusal: MFAError | None = None, *, status: int = 200, **context: Any) -> Response:
    """A page; with a refusal its sentence and its status, so that scripts and limits see what happened."""
    shown = {"next": _next(), "refusal": refusal, "settings": services().settings, "url": _url}
    shown |= {"may_remember": services().settings.device_seconds and cookies.read("pending")} | context
    response = make_response(render_template(f"mfa_service/{template}", **shown), refusal.status if refusal else status)
    if refusal and refusal.retry_after is not None:
        response.headers["Retry-After"] = str(refusal.retry_after)
    return response


def _next() -> str:
    return safe_next(request.values.get("next", "/"))


def _url(endpoint: str, **values: Any) -> str:
    return url_for(f"{current_mount().name_of(blueprint)}.{endpoint}", **values)


@blueprint.errorhandler(MFAError)
def _show_refusal(refusal: MFAError) -> Response:
    return _page("problem.html", refusal)


@blueprint.errorhandler(RateLimitExceeded)
def _show_limit(_breach: RateLimitExceeded) -> Response:
    return _page("problem.html", current_limits().refusal())
