"""`/docs`: the contract as a page, kept here with all that it loads."""

import re
from collections.abc import Callable
from html.parser import HTMLParser
from urllib.parse import urljoin

import pytest
from flask import Flask
from flask.testing import FlaskClient
from werkzeug.middleware.dispatcher import DispatcherMiddleware
from werkzeug.test import Client, TestResponse

from mfa_service.web.openapi import document

TYPES = {
    "docs/docs.css": "text/css",
    "docs/docs.js": "text/javascript",
    "docs/favicon-32x32.png": "image/png",
    "docs/swagger-ui.css": "text/css",
    "docs/swagger-ui-bundle.js": "text/javascript",
    "openapi.json": "application/json",
}


def test_it_is_a_page(client: FlaskClient) -> None:
    answer = client.get("/docs")
    assert (answer.status_code, answer.content_type) == (200, "text/html; charset=utf-8")
    assert client.head("/docs").status_code == 200
    assert client.head("/docs").data == b""


def test_it_says_nothing_inline(page: "Page") -> None:
    assert page.inline == []


def test_it_names_these_files_and_no_other_host(page: "Page") -> None:
    assert page.addresses == set(TYPES)


@pytest.mark.parametrize("address", TYPES)
def test_every_file_that_it_names_is_there(client: FlaskClient, address: str) -> None:
    answer = get(client, address)
    assert (answer.status_code, answer.mimetype.replace("application/java", "text/java")) == (200, TYPES[address])
    assert get(client, address, "HEAD").headers["Content-Length"] == str(len(answer.data))


def test_no_style_sheet_loads_anything_of_others(client: FlaskClient) -> None:
    for address in (address for address, kind in TYPES.items() if kind == "text/css"):
        sheet = get(client, address).text
        assert "@import" not in sheet
        assert all(target.startswith("data:") for target in re.findall(r"url\([\"'\s]*([^\"'\s]+)", sheet)), address


def test_the_document_that_it_shows_is_the_contract(app: Flask, client: FlaskClient, page: "Page") -> None:
    shown = client.get(urljoin("/docs", page.described_by)).json
    assert shown["paths"] == document(app, server="", version="")["paths"]


def test_it_may_load_what_is_served_from_here_and_nothing_else(client: FlaskClient) -> None:
    policy = dict(part.split(" ", 1) for part in client.get("/docs").headers["Content-Security-Policy"].split("; "))
    assert policy["default-src"] == policy["base-uri"] == policy["frame-ancestors"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert not re.search(r"unsafe|nonce|sha256|http|\*", str(policy))


def test_what_a_page_may_is_for_pages_alone(client: FlaskClient) -> None:
    client.get("/docs")
    for path in ("/openapi.json", "/docs/docs.js", "/docs/nowhere", "/nowhere"):
        policy = client.get(path).headers["Content-Security-Policy"]
        assert policy == "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'", path


def test_no_app_writes_into_what_another_one_sends(make_app: Callable[..., Flask]) -> None:
    one, other = (app.view_functions["meta.docs"] for app in (make_app(), make_app()))
    assert one.talisman_view_options is not other.talisman_view_options  # type: ignore[attr-defined]


def test_files_may_be_kept_and_the_page_may_not(client: FlaskClient) -> None:
    assert client.get("/docs").headers["Cache-Control"] == "no-store"
    answer = get(client, "docs/swagger-ui-bundle.js")
    assert answer.headers["Cache-Control"] == "public, max-age=3600"
    assert client.get(answer.request.path, headers={"If-None-Match": answer.headers["ETag"]}).status_code == 304


@pytest.mark.parametrize(
    "name",
    [
        "swagger-ui.js",
        "oauth2-redirect.html",
        "VERSION",
        "..%2f__init__.py",
        "%2fetc%2fpasswd",
        "docs.js%00",
        "DOCS.JS",
    ],
)
def test_no_other_file_is_served(client: FlaskClient, name: str) -> None:
    answer = client.get(f"/docs/{name}")
    assert (answer.status_code, answer.json["code"]) == (404, "not_found")


def test_behind_a_prefix_it_finds_its_files(app: Flask) -> None:
    client = Client(DispatcherMiddleware(lambda *_: [], {"/sign-in": app.wsgi_app}))
    page = Page(client.get("/sign-in/docs").text)
    for address in page.addresses:
        assert client.get(urljoin("/sign-in/docs", address)).status_code == 200, address


# ── means ────────────────────────────────────────────────────────────────────────────────────────


def get(client: FlaskClient, address: str, method: str = "GET") -> TestResponse:
    """What a link of the page leads to."""
    return client.open(urljoin("/docs", address), method=method)


class Page(HTMLParser):
    """What an HTML page names, and what it holds inline."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.addresses: set[str] = set()
        self.inline: list[str] = []
        self.described_by = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = dict(attributes)
        self.addresses |= {str(given[name]) for name in ("href", "src", "action") if name in given}
        self.inline += [name for name in given if name == "style" or name.startswith("on")]
        self.inline += [tag] if tag == "style" or (tag == "script" and "src" not in given) else []
        self.described_by = str(given["href"]) if given.get("rel") == "service-desc" else self.described_by


@pytest.fixture
def page(client: FlaskClient) -> Page:
    return Page(client.get("/docs").text)
