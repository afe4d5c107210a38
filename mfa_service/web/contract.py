"""The contract of a route, in decorators that parse, answer and document from one declaration.

    @blueprint.post("/login")
    @limited("credentials")
    @takes(LoginBody)
    @gives(200, LoginView)
    @refuses(InvalidCredentials)
    def login(body: LoginBody) -> LoginView: ...

`web/openapi.py` reads the same declarations, so the document can't say anything else than the code does.
"""

import functools
import json
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Annotated, Any, ClassVar, Literal, NoReturn, ParamSpec, TypeVar

from flask import Response, current_app, request
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, WithJsonSchema, field_validator
from pydantic.alias_generators import to_camel
from pydantic_core import PydanticCustomError
from werkzeug.exceptions import HTTPException

from mfa_service.errors import InvalidRequest, MFAError, PayloadTooLarge, UnsupportedMediaType

P = ParamSpec("P")
V = TypeVar("V", bound=BaseModel)
B = TypeVar("B", bound="Body")
F = TypeVar("F", bound=Callable[..., Any])

MAX_BYTES = 64 * 1024
MAX_NESTING = 20

_REASONS = {
    "missing": "is required",
    "string_type": "must be a string",
    "string_too_long": "is too long",
    "value_error": "must not hold control characters or lone surrogates",
    "literal_error": "must be one of the values listed in the contract",
    "rfc3339": "must be a time with its zone, such as 2027-01-31T00:00:00Z",
}


def _as_time(value: object) -> datetime:
    """A time as RFC 3339 writes it; a number is none, nor is a time whose zone nobody knows."""
    try:
        time = datetime.fromisoformat(value) if isinstance(value, str) and len(value) >= _SHORTEST_TIME else None
        if time and time.tzinfo and _EARLIEST <= time < _LATEST:
            return time.astimezone(UTC)
    except (ValueError, OverflowError):
        pass
    raise PydanticCustomError("rfc3339", "not a time")


_SHORTEST_TIME = len("2027-01-31T00:00Z")
_EARLIEST, _LATEST = datetime(1970, 1, 2, tzinfo=UTC), datetime(9999, 1, 1, tzinfo=UTC)
#: A moment, in the query or in a body.
Time = Annotated[datetime, BeforeValidator(_as_time), WithJsonSchema({"type": "string", "format": "date-time"})]


class Body(BaseModel):
    """A JSON object that a route takes: camelCase members, exact types, unknown members bound to nothing."""

    model_config = ConfigDict(alias_generator=to_camel, strict=True, frozen=True, extra="ignore")

    @field_validator("*", mode="after")
    @classmethod
    def _holds_no_controls(cls, value: object) -> object:
        if isinstance(value, str) and any(unicodedata.category(character) in ("Cc", "Cs") for character in value):
            raise ValueError
        return value


class Query(Body):
    """What a route takes from the query string."""


class Paged(Query):
    """Where a page begins."""

    cursor: Annotated[str | None, Field(description="`next` of the page before.")] = None


class Empty(BaseModel):
    """Nothing to say: 204."""


class View(BaseModel):
    """A JSON object that a route answers. Members that are None are left out."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, frozen=True)


@dataclass(frozen=True)
class Contract:
    """What a route takes, gives and refuses."""

    takes: type[Body] | None = None
    is_optional: bool = False
    asks: "type[Query] | None" = None
    status: int = 200
    gives: type[BaseModel] | None = None
    media: str = ""
    refusals: tuple[type[MFAError], ...] = ()
    limits: tuple[str, ...] = ()

    attribute: ClassVar[str] = "mfa_contract"


def contract_of(view: Callable[..., Any]) -> Contract:
    """What has been declared about a view function."""
    return getattr(view, Contract.attribute, Contract())


def declare(view: F, **changes: Any) -> F:
    """Add to what is declared about a view function."""
    setattr(view, Contract.attribute, replace(contract_of(view), **changes))
    return view


def takes(body: type[Body], *, optional: bool = False) -> Callable[[Callable[..., Response]], Callable[..., Response]]:
    """Parse the request's JSON as `body` and pass it as the first argument; no body at all may mean an empty one."""

    def decorate(view: Callable[..., Response]) -> Callable[..., Response]:
        @functools.wraps(view)
        def parsed(*args: Any, **kwargs: Any) -> Response:
            is_absent = optional and not _request_bytes()
            return view(_parsed(body, {} if is_absent else request_json()), *args, **kwargs)

        return declare(parsed, takes=body, is_optional=optional)

    return decorate


def gives(
    status: int, view_class: type[V], *, media: str = ""
) -> Callable[[Callable[P, V | Response]], Callable[P, Response]]:
    """Answer what the function returns as JSON, with this status; one that it makes itself is of type `media`."""

    def decorate(view: Callable[P, V | Response]) -> Callable[P, Response]:
        @functools.wraps(view)
        def answered(*args: P.args, **kwargs: P.kwargs) -> Response:
            answer = view(*args, **kwargs)
            if isinstance(answer, Response):
                return answer
            if status == 204:
                response = current_app.response_class(status=204)
                del response.headers["Content-Type"]
                return response
            body = answer.model_dump_json(by_alias=True, exclude_none=True)
            return current_app.response_class(body + "\n", status, mimetype="application/json")

        return declare(answered, status=status, gives=view_class, media=media)

    return decorate


def refuses(*refusals: type[MFAError]) -> Callable[[F], F]:
    """Document what may be refused. One with status 500 is what an unexpected failure is answered with."""
    return lambda view: declare(view, refusals=contract_of(view).refusals + refusals)


def limited(*limits: Literal["credentials", "sessions", "registrations", "administration"]) -> Callable[[F], F]:
    """Count calls, before the view does anything, against limits that `web/limits.py` knows by name."""
    return lambda view: declare(view, limits=limits)


def asks(query: type[Query]) -> Callable[[Callable[..., Response]], Callable[..., Response]]:
    """Parse the query string as `query` and pass it as the first argument."""

    def decorate(view: Callable[..., Response]) -> Callable[..., Response]:
        @functools.wraps(view)
        def asked(*args: Any, **kwargs: Any) -> Response:
            # Mostly there is none, and of an empty MultiDict each name would be asked by way of an exception.
            return view(_parsed(query, request.args if request.query_string else {}), *args, **kwargs)

        return declare(asked, asks=query)

    return decorate


def request_json() -> Mapping[str, object]:
    """The request's body as a JSON object (RFC 8259). Raises UnsupportedMediaType, PayloadTooLarge, InvalidRequest."""
    charset = request.mimetype_params.get("charset", "utf-8").lower()
    if request.mimetype != "application/json" or charset != "utf-8" or "Content-Encoding" in request.headers:
        raise UnsupportedMediaType
    try:
        value = json.loads(_request_bytes().decode("utf-8"), parse_constant=_refuse_constant)
        depth = _depth(value)
    except (ValueError, RecursionError):
        raise InvalidRequest(fields={"body": "is not JSON in UTF-8"}) from None
    if not isinstance(value, dict):
        raise InvalidRequest(fields={"body": "must be a JSON object"})
    if depth > MAX_NESTING:
        raise InvalidRequest(fields={"body": f"must not be nested deeper than {MAX_NESTING}"})
    return value


def _request_bytes() -> bytes:
    # One more than is allowed: a body without a length is cut at the limit, not refused.
    request.max_content_length = MAX_BYTES + 1
    try:
        raw = request.get_data()
    except HTTPException:
        raise
    except Exception:  # noqa: BLE001 — each server has its own error for a body that is framed wrongly
        raise InvalidRequest(fields={"body": "can't be read"}) from None
    if len(raw) > MAX_BYTES:
        raise PayloadTooLarge
    return raw


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _depth(value: object) -> int:
    children = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return 0 if children is None else 1 + max(map(_depth, children), default=0)


def _parsed(body: type[B], value: Mapping[str, object]) -> B:
    try:
        return body.model_validate(value)
    except ValidationError as error:
        reasons = {str(item["loc"][0]): _REASONS.get(item["type"], "is not valid") for item in error.errors()}
        raise InvalidRequest(fields=reasons) from None
