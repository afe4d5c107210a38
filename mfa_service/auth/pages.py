"""Signing in with a browser: the same acts as the JSON routes, as plain pages that need no script.

In a host's app the password is the host's affair: who is signed in there is asked for the code (`MFA.begin`). Every
form has to come from a page of this origin, and leads back to a place on it.
"""

from typing import Any

from flask import Response, g, redirect, request
from flask.sansio.blueprints import BlueprintSetupState
from flask_limiter import RateLimitExceeded
from werkzeug.wrappers import Response as Answer

from mfa_service.auth.browsers import (
    arrive,
    begin_again,
    blueprint,
    find_session,
    find_waiting,
    forget,
    go_on,
    leave,
    next_place,
    place_of,
    show,
)
from mfa_service.errors import FactorExists, InvalidPendingToken, MFAError, NoToken
from mfa_service.services.factors import Proof
from mfa_service.services.login import Remember, SignedIn
from mfa_service.web import cookies, current_mount, services
from mfa_service.web.client import client_info
from mfa_service.web.contract import MAX_BYTES, limited
from mfa_service.web.files import OURS, answer_with
from mfa_service.web.limits import current_limits
from mfa_service.web.security import ensure_own_origin, page


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
    return show("sign_in.html")


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
        return show("sign_in.html", refusal)
    return go_on(outcome, next_place(), offers_factor=True)


@blueprint.record
def _add_sign_in(state: BlueprintSetupState) -> None:
    if not state.options.get("is_embedded"):
        state.add_url_rule("/sign-in", "show_sign_in", show_sign_in, methods=["GET"])
        state.add_url_rule("/sign-in", "sign_in", sign_in, methods=["POST"])


# ── the second factor ────────────────────────────────────────────────────────────────────────────


@blueprint.get("/code")
@limited("sessions")
@page
def code() -> Answer:
    """The form for a code: for who has given a password, or is signed in and has to show the factor again."""
    waiting, found = find_waiting(), find_session()
    if waiting:
        return show("code.html") if waiting.methods else redirect(place_of("authenticator", next=next_place()), 303)
    return show("code.html") if found and found[0].is_complete else begin_again()


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
    return show("recovery_code.html")


@blueprint.post("/recovery-code")
@limited("credentials")
@page
def recover() -> Answer:
    """Take a recovery code."""
    return _prove(Proof("recovery_code", request.form.get("code", "")), "recovery_code.html")


@blueprint.get("/authenticator")
@limited("sessions")
@page
def authenticator() -> Answer:
    """Ask whether to make a secret: looking at a page must not make one."""
    waiting, found = find_waiting(), find_session()
    if waiting is None:
        return begin_again()
    return show("authenticator.html", may_wait=found is not None and found[0].user_id == waiting.user_id)


@blueprint.post("/authenticator")
@limited("credentials")
@page
def enrol() -> Answer:
    """A new secret to scan, and the form that confirms it."""
    try:
        if find_waiting() is None:
            raise InvalidPendingToken
        ticket = request.form.get("ticket", "").strip() or None
        enrolment = services().login.enrol(cookies.read("pending") or "", client_info(), ticket)
    except MFAError as refusal:
        return _again(refusal, "authenticator.html", wants_ticket=isinstance(refusal, FactorExists))
    return show("scan.html", enrolment=enrolment, can_repeat=ticket is None)


@blueprint.post("/sign-out")
@page
def sign_out() -> Answer:
    """End the session of this browser."""
    leave()
    response = redirect(next_place(), 303)
    forget(response)
    return response


# ── means ────────────────────────────────────────────────────────────────────────────────────────


def _prove(proof: Proof, form: str) -> Answer:
    pending, login = cookies.read("pending"), services().login
    try:
        if pending and find_waiting() is None:
            raise InvalidPendingToken
        if pending:
            remember = Remember(client_info().user_agent[:64]) if "remember" in request.form else None
            signed_in = login.complete(pending, proof, client_info(), remember, wants_cookie=True)
            return arrive(signed_in, _welcome(signed_in))
        found = find_session()
        if found is None or not found[0].is_complete:
            raise NoToken
        signed_in = login.step_up(found[0], proof, client_info(), cookies.read("session"))
    except MFAError as refusal:
        return _again(refusal, form)
    response = redirect(next_place(), 303)
    cookies.keep(response, "session", signed_in.cookie or "")
    return response


def _again(refusal: MFAError, form: str, **context: Any) -> Answer:
    """The form once more, with what was wrong; from the beginning where the pending token is no longer good."""
    if not isinstance(refusal, InvalidPendingToken | NoToken):
        waiting = find_waiting()
        return show(form, refusal, can_scan=waiting is not None and not waiting.methods, **context)
    g.mfa_refusal = refusal.code  # for who counts
    return begin_again()


def _welcome(signed_in: SignedIn) -> Answer:
    if signed_in.recovery_codes:
        may_sign_out = not current_mount().is_embedded  # the cookie comes with this very page
        return show("recovery_codes.html", codes=signed_in.recovery_codes, may_sign_out=may_sign_out)
    return redirect(next_place(), 303)


@blueprint.errorhandler(MFAError)
def _show_refusal(refusal: MFAError) -> Response:
    return show("problem.html", refusal)


@blueprint.errorhandler(RateLimitExceeded)
def _show_limit(_breach: RateLimitExceeded) -> Response:
    return show("problem.html", current_limits().refusal())
