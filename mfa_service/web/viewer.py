"""The page behind `/docs`: the OpenAPI document for reading, in Swagger UI, with every file served from here.

Of `flask-swagger-ui` only the viewer's own files are used: the page that comes with it starts by an inline script,
which our Content-Security-Policy forbids.
"""

import posixpath
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from flask import Response, render_template, url_for

from mfa_service.errors import NotFound
from mfa_service.web.files import OURS, answer_with
from mfa_service.web.security import scripted_page

_THEIRS = Path(str(files("flask_swagger_ui") / "dist"))
#: What the page loads, and where it lies. Nothing else in these folders is served.
_FILES: Mapping[str, Path] = {
    "docs.css": OURS,
    "docs.js": OURS,
    "favicon-32x32.png": _THEIRS,
    "swagger-ui.css": _THEIRS,
    "swagger-ui-bundle.js": _THEIRS,
}


@scripted_page
def docs() -> str:
    """The OpenAPI document as a page."""
    return render_template("mfa_service/docs.html", link=_link)


def docs_file(name: str) -> Response:
    """One of the files that the page loads."""
    if name not in _FILES:
        raise NotFound
    return answer_with(_FILES[name] / name)


def _link(endpoint: str, **values: Any) -> str:
    """A path as seen from the page, so that it also holds behind a proxy that takes a prefix away."""
    return posixpath.relpath(url_for(endpoint, **values), posixpath.dirname(url_for(".docs")))
