"""The page behind `/docs`: the OpenAPI document for reading, in Swagger UI, with every file served from here.

Of `flask-swagger-ui` only the viewer's own files are used: the page that comes with it starts by an inline script,
which our Content-Security-Policy forbids.
"""

import mimetypes
import posixpath
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from flask import Response, render_template, request, url_for

from mfa_service.errors import NotFound
from mfa_service.web.security import page

_OURS = Path(__file__).parent.parent / "static/mfa_service"
_THEIRS = Path(str(files("flask_swagger_ui") / "dist"))
#: What the page loads, and where it lies. Nothing else in these folders is served.
_FILES: Mapping[str, Path] = {
    "docs.css": _OURS,
    "docs.js": _OURS,
    "favicon-32x32.png": _THEIRS,
    "swagger-ui.css": _THEIRS,
    "swagger-ui-bundle.js": _THEIRS,
}
_SECONDS_KEPT = 3600


@page
def docs() -> str:
    """The OpenAPI document as a page."""
    return render_template("mfa_service/docs.html", link=_link)


def docs_file(name: str) -> Response:
    """One of the files that the page loads."""
    if name not in _FILES:
        raise NotFound
    # Whole, and not as an open file: an answer to HEAD, or a 304, would leave that open.
    response = Response((_FILES[name] / name).read_bytes(), mimetype=mimetypes.guess_type(name)[0])
    response.headers["Cache-Control"] = f"public, max-age={_SECONDS_KEPT}"
    response.add_etag()
    response.make_conditional(request)
    return response


def _link(endpoint: str, **values: Any) -> str:
    """A path as seen from the page, so that it also holds behind a proxy that takes a prefix away."""
    return posixpath.relpath(url_for(endpoint, **values), posixpath.dirname(url_for(".docs")))
