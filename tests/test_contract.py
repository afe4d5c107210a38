"""Every route is declared and documented, every error is used, every event is recorded somewhere."""

import ast
import re
from collections.abc import Callable
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient

from mfa_service import errors
from mfa_service.services.audit import Event
from mfa_service.web.contract import Contract, contract_of
from tests.conftest import ROOT

#: Pages and their files, for people, and figures, in Prometheus' own form: in no contract between programs.
PAGES = {("/docs", "meta.docs"), ("/docs/<name>", "meta.docs_file"), ("/metrics", "meta.metrics")}
#: Routes whose answer is not of our own form.
UNDECLARED = {("/openapi.json", "meta.openapi"), *PAGES}
#: Guarded by nothing, on purpose; whatever else is on the URL map answers 401 without a token.
OPEN = {
    "auth.register", "auth.login", "auth.verify_mfa", "auth.enrol", "auth.refresh",
    "meta.healthz", "meta.readyz", "meta.jwks", "meta.openapi", "meta.docs", "meta.docs_file",
    "meta.metrics",
}  # fmt: skip


def test_every_route_is_in_the_document_and_nothing_else(app: Flask, document: dict[str, Any]) -> None:
    mapped = {
        (re.sub("<(.*?)>", r"{\1}", rule.rule), method.lower())
        for rule in app.url_map.iter_rules()
        for method in _methods(rule.methods)
    }
    undeclared = {(re.sub("<(.*?)>", r"{\1}", path), "get") for path, _ in UNDECLARED}
    documented = {(path, method) for path, item in document["paths"].items() for method in item}
    assert undeclared <= mapped
    assert documented == mapped - undeclared


def test_every_route_declares_what_it_gives(app: Flask) -> None:
    for rule in app.url_map.iter_rules():
        contract = contract_of(app.view_functions[rule.endpoint])
        assert bool(contract.gives) != ((rule.rule, rule.endpoint) in UNDECLARED), rule


def test_every_route_that_changes_something_is_limited_and_so_are_the_keys(app: Flask) -> None:
    for rule in app.url_map.iter_rules():
        contract: Contract = contract_of(app.view_functions[rule.endpoint])
        is_change = bool(_methods(rule.methods) - {"GET"})
        assert bool(contract.limits) == (is_change or rule.endpoint == "meta.jwks"), rule


def test_every_route_wants_a_token_unless_it_is_on_the_list(app: Flask, client: FlaskClient) -> None:
    for rule in app.url_map.iter_rules():
        if rule.endpoint in OPEN:
            continue
        for method in _methods(rule.methods):
            answer = client.open(rule.rule, method=method)
            assert (answer.status_code, answer.json["code"]) == (401, "no_token"), rule


def test_what_is_documented_is_what_the_views_declare(app: Flask, document: dict[str, Any]) -> None:
    login = document["paths"]["/auth/login"]["post"]
    assert set(login["responses"]) == {"200", "400", "401", "413", "415", "429", "500", "503"}
    assert login["security"] == []
    assert document["paths"]["/api/profile"]["get"]["security"] == [{"bearer": []}]
    assert document["openapi"] == "3.1.0"


def test_registration_that_is_closed_leaves_the_document(make_app: Callable[..., Flask]) -> None:
    client = make_app(MFA_REGISTRATION_OPEN="false").test_client()
    assert "/auth/register" not in client.get("/openapi.json").json["paths"]
    answer = client.post("/auth/register", json={"username": "a", "password": "b", "email": "c"})
    assert (answer.status_code, answer.json["code"]) == (403, "registration_closed")


def test_every_code_is_published_once() -> None:
    codes = [error.code for error in errors.published()]
    assert sorted(codes) == sorted(set(codes))
    assert all(re.fullmatch(r"[a-z_]+", code) for code in codes)


@pytest.mark.parametrize("error", list(errors.published()), ids=lambda error: error.code)
def test_every_error_is_answered_somewhere(error: type[errors.MFAError]) -> None:
    assert error is errors.MFAError or re.search(rf"\b{error.__name__}\b", _source(excluding="errors.py"))


@pytest.mark.parametrize("event", Event)
def test_every_event_is_recorded_somewhere(event: Event) -> None:
    assert f"Event.{event.name}" in _source()


def test_events_are_named_noun_happened() -> None:
    assert all(re.fullmatch(r"[a-z_]+\.([a-z]+_)*[a-z]+(ed|en|able)", event) for event in Event)


def test_every_refusal_that_a_conductor_names_is_declared_by_a_route(app: Flask) -> None:
    declared = {refusal.__name__ for view in app.view_functions.values() for refusal in contract_of(view).refusals}
    general = {"InvalidRequest", "SealBroken", "Unavailable"}  # every route has them
    for path in (ROOT / "mfa_service/services").glob("*.py"):
        raised = {
            ast.unparse(node.exc).partition("(")[0] for node in ast.walk(ast.parse(path.read_text())) if _raises(node)
        }
        ours = {name for name in raised if issubclass(getattr(errors, name, int), errors.MFAError)}
        assert ours <= declared | general, path.name


# ── means ────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def document(client: FlaskClient) -> dict[str, Any]:
    found: dict[str, Any] = client.get("/openapi.json").json
    return found


def _methods(methods: set[str] | None) -> set[str]:
    return (methods or set()) - {"HEAD", "OPTIONS"}


def _source(excluding: str = "") -> str:
    paths = [
        path for path in (ROOT / "mfa_service").rglob("*.py") if path.name != excluding or path.parent.name == "web"
    ]
    return "\n".join(path.read_text() for path in paths)


def _raises(node: ast.AST) -> bool:
    return isinstance(node, ast.Raise) and node.exc is not None
