"""From a refusal to an answer: the one JSON form of all of them, here and in apps that only verify tokens."""

import json

from flask import Response, current_app, g

from mfa_service.errors import MFAError


def answer(refusal: MFAError) -> Response:
    """The response for a refusal: form, status, and the headers that belong to it."""
    g.mfa_refusal = refusal.code  # for who counts
    body: dict[str, object] = {"error": refusal.message, "code": refusal.code}
    if refusal.fields:
        body["fields"] = refusal.fields
    if refusal.retry_after is not None:
        body["retryAfter"] = refusal.retry_after
    response = current_app.response_class(
        json.dumps(body, separators=(",", ":")) + "\n", refusal.status, mimetype="application/json"
    )
    response.headers["Cache-Control"] = "no-store"
    if refusal.retry_after is not None:
        response.headers["Retry-After"] = str(refusal.retry_after)
    if refusal.status == 401:
        response.headers["WWW-Authenticate"] = _challenge(refusal)
    return response


def _challenge(refusal: MFAError) -> str:
    parameters = {"realm": "mfa_service"} | dict(refusal.challenge)
    return "Bearer " + ", ".join(f'{name}="{value}"' for name, value in parameters.items())
