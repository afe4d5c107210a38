"""From a refusal to an answer: one JSON form for all of them, from the router's 404 to a 500."""

import logging
from collections.abc import Mapping

from flask import Blueprint, Flask, Response, current_app, request
from flask_limiter import RateLimitExceeded
from werkzeug.exceptions import HTTPException, MethodNotAllowed, default_exceptions

from mfa_service import errors
from mfa_service.answers import answer
from mfa_service.errors import MFAError
from mfa_service.web.contract import contract_of
from mfa_service.web.limits import current_limits

_BY_STATUS: Mapping[int, type[MFAError]] = {
    404: errors.NotFound,
    405: errors.MethodNotAllowed,
    413: errors.PayloadTooLarge,
    415: errors.UnsupportedMediaType,
    429: errors.TooManyAttempts,
}


def install(target: Flask | Blueprint) -> None:
    """Answer every failure of an app, or of one blueprint in somebody else's app, in our form."""
    target.register_error_handler(MFAError, answer)
    target.register_error_handler(RateLimitExceeded, _from_limit)
    for status in default_exceptions:  # one by one: a host's handler of a status comes before ours of them all
        target.register_error_handler(status, _from_http)
    target.register_error_handler(HTTPException, _from_http)
    target.register_error_handler(Exception, _from_crash)


def _from_limit(_breach: RateLimitExceeded) -> Response:
    return answer(current_limits().refusal())


def _from_http(error: HTTPException) -> Response:
    status = error.code or 500
    response = answer(_BY_STATUS.get(status, errors.BadRequest if status < 500 else MFAError)())
    if isinstance(error, MethodNotAllowed):
        response.headers["Allow"] = ", ".join(sorted(error.valid_methods or ()))
    return response


def _from_crash(error: Exception) -> Response:
    logging.getLogger("mfa_service").exception("unexpected failure", exc_info=error)
    view = current_app.view_functions.get(request.endpoint or "")
    refusals = contract_of(view).refusals if view else ()
    return answer(next((refusal for refusal in refusals if refusal.status == 500), MFAError)())
