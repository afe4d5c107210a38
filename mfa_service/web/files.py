"""The few files that our pages load."""

import mimetypes
from pathlib import Path

from flask import Response, request

OURS = Path(__file__).parent.parent / "static/mfa_service"
_SECONDS_KEPT = 3600


def answer_with(path: Path) -> Response:
    """A file that browsers may keep for an hour.

    Whole, and not as an open file: an answer to HEAD, or a 304, would leave that open.
    """
    response = Response(path.read_bytes(), mimetype=mimetypes.guess_type(path.name)[0])
    response.headers["Cache-Control"] = f"public, max-age={_SECONDS_KEPT}"
    response.add_etag()
    response.make_conditional(request)
    return response
