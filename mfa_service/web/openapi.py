"""The OpenAPI 3.1 document, put together by apispec from the contracts on the URL map."""

import inspect
import re
from collections import defaultdict
from collections.abc import Collection, Iterator
from typing import Any

from apispec import APISpec
from flask import Flask
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from werkzeug.routing import Rule

from mfa_service import errors
from mfa_service.errors import MFAError
from mfa_service.web.contract import Contract, Empty, Query, View, contract_of

_REFERENCE = "#/components/schemas/{model}"
_PROBLEM = {
    "type": "object",
    "required": ["error", "code"],
    "properties": {
        "error": {"type": "string", "description": "A sentence for people."},
        "code": {"type": "string", "description": "A name for programs, from the published list."},
        "fields": {
            "type": "object",
            "additionalProperties": {"type": "string"},
            "description": "A reason for each member refused.",
        },
        "retryAfter": {"type": "integer", "minimum": 0, "description": "Seconds until another try makes sense."},
    },
}
_ANY_QUERY = (errors.InvalidRequest,)
_ANY_BODY = (errors.InvalidRequest, errors.PayloadTooLarge, errors.UnsupportedMediaType)
_ANY_ROUTE = (errors.BadRequest, errors.Unavailable)
_HEADERS = {
    401: {"WWW-Authenticate": {"schema": {"type": "string"}, "required": True}},
    429: {"Retry-After": {"schema": {"type": "integer"}, "required": True}},
    503: {"Retry-After": {"schema": {"type": "integer"}, "required": True}},
}


def document(app: Flask, *, server: str, version: str, hidden: Collection[str] = ()) -> dict[str, Any]:
    """Describe every route that has a contract, but for the `hidden` endpoints."""
    spec = APISpec(
        "mfa_service",
        version,
        "3.1.0",
        info={"description": "Sign-in with a password and a second factor."},
        servers=[{"url": server}],
    )
    spec.components.security_scheme("bearer", {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"})
    spec.components.schema("Problem", _PROBLEM)
    routes = [rule for rule in app.url_map.iter_rules() if rule.endpoint not in hidden]
    contracts = [(rule, contract_of(app.view_functions[rule.endpoint])) for rule in routes]
    for name, schema in _schemas(contract for _, contract in contracts):
        spec.components.schema(name, schema)
    for rule, contract in contracts:
        if contract.gives:
            operation = _operation(rule, app.view_functions[rule.endpoint], contract)
            spec.path(re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", rule.rule), operations={_method(rule): operation})
    return dict(spec.to_dict())


def _schemas(contracts: Iterator[Contract]) -> Iterator[tuple[str, dict[str, Any]]]:
    models: dict[type[BaseModel], None] = {}
    for contract in contracts:
        models |= {model: None for model in (contract.takes, contract.gives) if model not in (None, Empty)}
    modes: Any = [(model, "serialization" if issubclass(model, View) else "validation") for model in models]
    _, schemas = models_json_schema(modes, ref_template=_REFERENCE)
    yield from schemas.get("$defs", {}).items()


def _method(rule: Rule) -> str:
    return next(method.lower() for method in sorted(rule.methods or ()) if method not in ("HEAD", "OPTIONS"))


def _operation(rule: Rule, view: Any, contract: Contract) -> dict[str, Any]:
    summary, _, description = inspect.cleandoc(view.__doc__ or "").partition("\n")
    operation = {
        "operationId": rule.endpoint.replace(".", "_"),
        "tags": [rule.endpoint.rpartition(".")[0]],
        "summary": summary,
        "description": description.strip(),
        "security": [{"bearer": []}] if errors.NoToken in contract.refusals else [],
        "responses": _responses(contract),
    }
    if parameters := _parameters(rule, contract):
        operation["parameters"] = parameters
    if contract.takes:
        schema = {"$ref": _REFERENCE.format(model=contract.takes.__name__)}
        operation["requestBody"] = {
            "required": not contract.is_optional,
            "content": {"application/json": {"schema": schema}},
        }
    return operation


def _parameters(rule: Rule, contract: Contract) -> list[dict[str, Any]]:
    text = {"type": "string"}
    in_path = [{"name": name, "in": "path", "required": True, "schema": text} for name in sorted(rule.arguments)]
    return [*in_path, *_queried(contract.asks)] if contract.asks else in_path


def _queried(query: type[Query]) -> Iterator[dict[str, Any]]:
    for name, schema in query.model_json_schema(ref_template=_REFERENCE)["properties"].items():
        options = [option for option in schema.get("anyOf", [schema]) if option.get("type") != "null"]
        described = {"description": schema["description"]} if "description" in schema else {}
        yield {"name": name, "in": "query", "schema": options[0]} | described


def _responses(contract: Contract) -> dict[str, Any]:
    view = {"$ref": _REFERENCE.format(model=contract.gives.__name__ if contract.gives else "")}
    media = {contract.media: {"schema": {"type": "string"}}} if contract.media else {}
    content = {} if contract.status == 204 else {"content": {"application/json": {"schema": view}} | media}
    responses: dict[str, Any] = {str(contract.status): {"description": "Success"} | content}
    by_status: dict[int, list[type[MFAError]]] = defaultdict(list)
    for refusal in _all_refusals(contract):
        by_status[refusal.status].append(refusal)
    return responses | {str(status): _refusal(status, by_status[status]) for status in sorted(by_status)}


def _all_refusals(contract: Contract) -> dict[type[MFAError], None]:
    """What the route declares, and what every route of its kind may answer."""
    general = _ANY_ROUTE + (_ANY_BODY if contract.takes else _ANY_QUERY if contract.asks else ())
    general += (errors.TooManyAttempts,) if contract.limits else ()
    has_own_failure = any(refusal.status == 500 for refusal in contract.refusals)
    return dict.fromkeys(contract.refusals + general + (() if has_own_failure else (MFAError,)))


def _refusal(status: int, refusals: list[type[MFAError]]) -> dict[str, Any]:
    codes = {"type": "object", "properties": {"code": {"enum": sorted({refusal.code for refusal in refusals})}}}
    return {
        "description": " · ".join(dict.fromkeys(f"{refusal.message}" for refusal in refusals)),
        "headers": _HEADERS.get(status, {}),
        "content": {"application/json": {"schema": {"allOf": [{"$ref": _REFERENCE.format(model="Problem")}, codes]}}},
    }
