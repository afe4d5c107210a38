"""The routes about the service itself: alive, ready, its public keys, its contract."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jwt
import pytest
from flask import Flask
from flask.testing import FlaskClient
from joserfc import jws
from joserfc.jwk import KeySet
from openapi_spec_validator import OpenAPIV31SpecValidator
from sqlalchemy import create_engine, text
from sqlalchemy.engine import make_url
from werkzeug.routing import Rule

from mfa_service.crypto.signing import new_key_pem
from mfa_service.errors import TooManyAttempts, published
from mfa_service.services import schema
from mfa_service.services.database import engine_for
from mfa_service.web.contract import contract_of
from tests.conftest import Clock, free_port
from tests.factories import log_in, register, sign_in

MakeApp = Callable[..., Flask]

NOBODY = {"username": "nobody", "password": "not-the-right-one"}


# ── alive and ready ──────────────────────────────────────────────────────────────────────────────


def test_a_process_that_lives_says_so_and_nothing_else(client: FlaskClient) -> None:
    answer = client.get("/healthz")
    assert (answer.status_code, answer.json) == (200, {"status": "ok"})


def test_a_service_that_has_all_it_needs_is_ready(client: FlaskClient) -> None:
    answer = client.get("/readyz")
    assert (answer.status_code, answer.json) == (200, {"status": "ok"})


@pytest.mark.faults("Q4")
def test_without_its_database_it_lives_and_is_not_ready(make_app: MakeApp, absent: "Absent") -> None:
    client = make_app(MFA_DATABASE_URL=absent.url).test_client()
    assert client.get("/healthz").status_code == 200
    answer = client.get("/readyz")
    assert answer.status_code == 503
    assert answer.json == {
        "error": "Not ready",
        "code": "not_ready",
        "fields": {"database": "is down"},
        "retryAfter": 5,
    }


@pytest.mark.faults("Q4")
def test_without_its_database_every_route_that_needs_it_says_try_again(make_app: MakeApp, absent: "Absent") -> None:
    client = make_app(MFA_DATABASE_URL=absent.url).test_client()
    body = {"username": "ada", "password": "analytical-engine-1843", "email": "ada@example.com"}
    for path in ("/auth/register", "/auth/login"):
        answer = client.post(path, json=body)
        assert (answer.status_code, answer.json["code"]) == (503, "unavailable")
        assert 1 <= int(answer.headers["Retry-After"]) <= 5


@pytest.mark.faults("Q4")
def test_when_the_database_comes_it_is_used_without_a_restart(make_app: MakeApp, absent: "Absent") -> None:
    client = make_app(MFA_DATABASE_URL=absent.url).test_client()
    assert client.get("/readyz").status_code == 503
    absent.appear()
    assert client.get("/readyz").status_code == 200
    register(client)


def test_a_database_without_tables_is_not_ready(make_app: MakeApp, absent: "Absent") -> None:
    absent.appear(migrated=False)
    client = make_app(MFA_DATABASE_URL=absent.url).test_client()
    answer = client.get("/readyz")
    assert (answer.status_code, answer.json["fields"].keys()) == (503, {"database"})


def test_a_database_without_tables_is_503_to_everybody(make_app: MakeApp, absent: "Absent") -> None:
    absent.appear(migrated=False)
    client = make_app(MFA_DATABASE_URL=absent.url).test_client()
    assert client.post("/auth/login", json=NOBODY).status_code == 503


def test_all_that_is_down_is_named(make_app: MakeApp, absent: "Absent") -> None:
    redis = f"redis://127.0.0.1:{free_port()}/0"
    client = make_app(MFA_DATABASE_URL=absent.url, MFA_REDIS_URL=redis).test_client()
    assert client.get("/readyz").json["fields"] == {"database": "is down", "limiter": "is down"}
    assert redis not in client.get("/readyz").text


@pytest.mark.faults("Q4")
@pytest.mark.services
@pytest.mark.parametrize("database", ["postgresql"], indirect=True)
def test_a_database_that_goes_away_under_load_is_503_and_then_forgotten(make_app: MakeApp, absent: "Absent") -> None:
    absent.appear()
    client = make_app(MFA_DATABASE_URL=absent.url).test_client()
    ada = register(client)
    absent.go()
    assert client.get("/readyz").json["fields"] == {"database": "is down"}
    assert client.post("/auth/login", json=NOBODY).status_code == 503
    absent.return_()
    assert client.get("/readyz").status_code == 200
    log_in(client, ada)


# ── the public keys ──────────────────────────────────────────────────────────────────────────────


def test_the_key_set_holds_public_members_only(client: FlaskClient) -> None:
    answer = client.get("/.well-known/jwks.json")
    assert answer.status_code == 200
    assert answer.json.keys() == {"keys"}
    [key] = answer.json["keys"]
    assert key.keys() == {"kty", "crv", "x", "y", "kid", "use", "alg"}
    assert (key["kty"], key["crv"], key["use"], key["alg"]) == ("EC", "P-256", "sig", "ES256")


def test_another_library_verifies_both_tokens_with_the_published_keys(client: FlaskClient, clock: Clock) -> None:
    ada = register(client)
    keys = KeySet.import_key_set(client.get("/.well-known/jwks.json").json)
    for token in (log_in(client, ada), sign_in(client, ada, clock())):
        assert jws.deserialize_compact(token, keys, algorithms=["ES256"]).payload


def test_old_keys_stay_published_and_the_newest_signs(
    make_app: MakeApp, tmp_path: Path, instance: Path, clock: Clock
) -> None:
    folder = tmp_path / "keys"
    shutil.copytree(instance / "signing-keys", folder)
    (folder / "two.pem").write_bytes(new_key_pem())
    for name in ("one.pem", "two.pem"):
        os.utime(folder / name, (clock() - 60, clock() - 60))
    client = make_app(MFA_SIGNING_KEYS=str(folder)).test_client()
    old, new = (key["kid"] for key in client.get("/.well-known/jwks.json").json["keys"])
    assert jwt.get_unverified_header(log_in(client, register(client)))["kid"] == new
    [only] = make_app().test_client().get("/.well-known/jwks.json").json["keys"]
    assert only["kid"] == old


def test_a_shared_secret_publishes_nothing(make_app: MakeApp) -> None:
    secret = "Zm9vYmFyYmF6cXV4MTIzNDU2Nzg5MGFiY2RlZmdoaWo"
    client = make_app(JWT_SECRET=secret).test_client()
    assert client.get("/.well-known/jwks.json").json == {"keys": []}
    assert secret not in client.get("/openapi.json").text


# ── the contract ─────────────────────────────────────────────────────────────────────────────────


def test_the_document_is_valid_openapi_3_1(openapi: dict[str, Any]) -> None:
    assert openapi["openapi"].startswith("3.1.")
    assert list(OpenAPIV31SpecValidator(openapi).iter_errors()) == []


def test_the_document_names_every_route_and_no_other(app: Flask, openapi: dict[str, Any]) -> None:
    documented = {(path, method.upper()) for path, item in openapi["paths"].items() for method in item}
    routed = {
        (documented_path(rule), method)
        for rule in app.url_map.iter_rules()
        for method in rule.methods - {"HEAD", "OPTIONS"}
    }
    undocumented = {("/openapi.json", "GET"), ("/docs", "GET"), ("/docs/{name}", "GET"), ("/metrics", "GET")}
    assert documented == routed - undocumented


def test_the_document_says_what_each_route_takes_gives_and_refuses(app: Flask, openapi: dict[str, Any]) -> None:
    for rule in app.url_map.iter_rules():
        contract = contract_of(app.view_functions[rule.endpoint])
        if contract.gives:
            [method] = rule.methods - {"HEAD", "OPTIONS"}
            operation = openapi["paths"][documented_path(rule)][method.lower()]
            assert ("requestBody" in operation) == bool(contract.takes)
            assert operation.get("requestBody", {}).get("required", False) == bool(
                contract.takes and not contract.is_optional
            )
            asked = {part["name"] for part in operation.get("parameters", []) if part["in"] == "query"}
            members = contract.asks.model_fields.values() if contract.asks else []
            assert asked == {member.alias for member in members}
            named = {part["name"] for part in operation.get("parameters", []) if part["in"] == "path"}
            assert named == rule.arguments
            assert str(contract.status) in operation["responses"]
            assert ("content" in operation["responses"][str(contract.status)]) == (contract.status != 204)
            for refusal in contract.refusals:
                assert refusal.code in codes(operation, refusal.status)
            is_limited = contract.limits or TooManyAttempts in contract.refusals
            assert ("429" in operation["responses"]) == bool(is_limited)
            assert ("413" in operation["responses"]) == ("415" in operation["responses"]) == bool(contract.takes)


def test_the_document_promises_no_code_that_is_not_published(openapi: dict[str, Any]) -> None:
    known = {error.code for error in published()}
    for operation in operations(openapi):
        for status in operation["responses"]:
            assert status == "204" or codes(operation, status) <= known


def test_the_document_tells_people_what_each_route_is_for(openapi: dict[str, Any]) -> None:
    for operation in operations(openapi):
        assert operation["summary"]
        assert all(response["description"] for response in operation["responses"].values())
    assert len({operation["operationId"] for operation in operations(openapi)}) == len(operations(openapi))


def test_the_document_says_which_routes_want_a_token(openapi: dict[str, Any]) -> None:
    wanting = {path for path, item in openapi["paths"].items() if any(each["security"] for each in item.values())}
    in_auth = {"/auth/step-up", "/auth/logout", "/auth/password", "/auth/check"}
    assert wanting == {path for path in openapi["paths"] if path.startswith("/api/")} | in_auth
    for path in wanting:
        assert {str(operation["security"]) for operation in openapi["paths"][path].values()} == {"[{'bearer': []}]"}
    assert openapi["components"]["securitySchemes"]["bearer"]["scheme"] == "bearer"


def test_the_document_holds_all_that_it_points_at_and_nothing_it_does_not(openapi: dict[str, Any]) -> None:
    schemas = set(openapi["components"]["schemas"])
    pointers = set(references(openapi))
    assert pointers == {f"#/components/schemas/{name}" for name in schemas}


def test_the_document_names_the_address_that_clients_use(make_app: MakeApp) -> None:
    client = make_app(MFA_PUBLIC_URL="https://auth.example/mfa").test_client()
    assert client.get("/openapi.json").json["servers"] == [{"url": "https://auth.example/mfa"}]


def test_the_document_is_put_together_once(make_app: MakeApp) -> None:
    app = make_app()
    first = app.test_client().get("/openapi.json")
    app.view_functions["auth.login"] = lambda: ""  # a view without a contract, which a new document would leave out
    again = app.test_client().get("/openapi.json")
    assert (again.data, again.content_type) == (first.data, first.content_type)
    assert "/auth/login" in again.json["paths"]


def test_a_closed_registration_is_403_and_leaves_the_document(make_app: MakeApp) -> None:
    client = make_app(MFA_REGISTRATION_OPEN="false").test_client()
    assert "/auth/register" not in client.get("/openapi.json").json["paths"]
    answer = client.post("/auth/register", json={"username": "ada", "password": "x", "email": "x"})
    assert (answer.status_code, answer.json["code"]) == (403, "registration_closed")


# ── fixtures and helpers ─────────────────────────────────────────────────────────────────────────


@pytest.fixture
def openapi(client: FlaskClient) -> dict[str, Any]:
    answer = client.get("/openapi.json")
    assert answer.status_code == 200
    found: dict[str, Any] = json.loads(answer.text)
    return found


def operations(openapi: dict[str, Any]) -> list[dict[str, Any]]:
    return [operation for item in openapi["paths"].values() for operation in item.values()]


def documented_path(rule: Rule) -> str:
    return rule.rule.replace("<", "{").replace(">", "}")


def codes(operation: dict[str, Any], status: int | str) -> set[str]:
    """The codes that a refusal of this status may have."""
    content = operation["responses"][str(status)]["content"]["application/json"]["schema"]
    parts = [part.get("properties", {}) for part in content.get("allOf", [])]
    return {code for properties in parts for code in properties.get("code", {}).get("enum", [])}


def references(node: object) -> Iterator[str]:
    if isinstance(node, dict):
        if "$ref" in node:
            yield node["$ref"]
        for child in node.values():
            yield from references(child)
    elif isinstance(node, list):
        for child in node:
            yield from references(child)


class Absent:
    """A database that is not there, until it appears."""

    def __init__(self, neighbour: str, folder: Path) -> None:
        self._server = make_url(neighbour)
        self._is_sqlite = neighbour.startswith("sqlite")
        self._folder = folder / "absent"
        name = str(self._folder / "mfa.db") if self._is_sqlite else "absent"
        self.url = self._server.set(database=name).render_as_string(hide_password=False)

    def appear(self, *, migrated: bool = True) -> None:
        if self._is_sqlite:
            self._folder.mkdir()
        else:
            self.on_server("CREATE DATABASE absent")
        if migrated:
            engine = engine_for(create_engine(self.url))
            schema.upgrade(engine)
            engine.dispose()

    def go(self) -> None:
        self.on_server("ALTER DATABASE absent ALLOW_CONNECTIONS false")
        self.on_server("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = 'absent'")

    def return_(self) -> None:
        self.on_server("ALTER DATABASE absent ALLOW_CONNECTIONS true")

    def remove(self) -> None:
        if not self._is_sqlite:
            self.on_server("DROP DATABASE IF EXISTS absent WITH (FORCE)")

    def on_server(self, statement: str) -> None:
        engine = create_engine(self._server, isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            connection.execute(text(statement))
        engine.dispose()


@pytest.fixture
def absent(database: str, tmp_path: Path) -> Iterator[Absent]:
    one = Absent(database, tmp_path)
    yield one
    one.remove()
