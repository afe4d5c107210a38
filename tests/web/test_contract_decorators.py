"""`@takes`, `@gives`, `@refuses`, `@limited`: one declaration parses, answers and documents."""

from typing import Literal

import pytest
from flask import Flask
from pydantic import ValidationError
from werkzeug.test import TestResponse

from mfa_service.errors import InvalidCode, InvalidToken, LoginFailed, MFAError, NoToken
from mfa_service.web import errors
from mfa_service.web.contract import (
    Body,
    Contract,
    Empty,
    Paged,
    View,
    asks,
    contract_of,
    gives,
    limited,
    refuses,
    takes,
)


class GreetBody(Body):
    """Whom to greet."""

    first_name: str
    nick_name: str | None = None
    is_loud: bool = False


class QuietBody(Body):
    """Nothing that is needed."""

    is_loud: bool = False


class GreetView(View):
    """A greeting."""

    first_name: str
    nick_name: str | None = None
    kind: Literal["greeting"] = "greeting"


def test_takes_hands_the_parsed_body_to_the_view() -> None:
    seen = []

    @takes(GreetBody)
    @gives(200, GreetView)
    def greet(body: GreetBody) -> GreetView:
        seen.append(body)
        return GreetView(first_name=body.first_name)

    post(greet, {"firstName": "Ada", "isLoud": True, "surplus": 1})
    assert seen == [GreetBody(firstName="Ada", isLoud=True)]


def test_what_is_in_the_path_comes_after_the_body(app: Flask) -> None:
    @takes(GreetBody)
    @gives(200, GreetView)
    def greet(body: GreetBody, number: int) -> GreetView:
        return GreetView(first_name=f"{body.first_name} {number}")

    app.add_url_rule("/greet/<int:number>", view_func=greet, methods=["POST"])
    assert app.test_client().post("/greet/7", json={"firstName": "Ada"}).json["firstName"] == "Ada 7"


def test_a_body_is_exact_and_frozen() -> None:
    body = GreetBody.model_validate({"firstName": "Ada"})
    with pytest.raises(ValidationError):
        body.first_name = "Eve"
    for wrong in (
        {"first_name": "Ada"},
        {"firstName": 1},
        {"firstName": "Ada", "isLoud": "yes"},
        {"firstName": b"Ada"},
    ):
        with pytest.raises(ValidationError):
            GreetBody.model_validate(wrong)


def test_optional_members_are_checked_like_others() -> None:
    for wrong in ({"firstName": "Ada", "nickName": "a\nb"}, {"firstName": "Ada", "nickName": "\ud800"}):
        with pytest.raises(ValidationError):
            GreetBody.model_validate(wrong)


def test_takes_refuses_before_the_view_is_called() -> None:
    @takes(GreetBody)
    @gives(200, GreetView)
    def greet(body: GreetBody) -> GreetView:
        raise AssertionError("called")

    answer = post(greet, {"firstName": 1, "isLoud": "yes"})
    assert answer.status_code == 400
    assert answer.json["fields"].keys() == {"firstName", "isLoud"}


def test_no_body_at_all_is_an_empty_one_where_the_route_says_so() -> None:
    @takes(QuietBody, optional=True)
    @gives(200, GreetView)
    def greet(body: QuietBody) -> GreetView:
        return GreetView(first_name="loud" if body.is_loud else "quiet")

    app = bare_app()
    app.add_url_rule("/", "view", greet, methods=["POST"])
    client = app.test_client()
    assert client.post("/").json["firstName"] == "quiet"
    assert client.post("/", json={"isLoud": True}).json["firstName"] == "loud"
    # Many clients send the header where there is nothing to say.
    assert client.post("/", data=b"", content_type="application/json").json["firstName"] == "quiet"
    assert client.post("/", data=b" ", content_type="application/json").status_code == 400
    assert client.post("/", data=b"x").status_code == 415
    assert contract_of(greet).is_optional


def test_a_body_is_needed_where_the_route_does_not_say_so() -> None:
    @takes(QuietBody)
    @gives(200, GreetView)
    def greet(body: QuietBody) -> GreetView:
        raise AssertionError("called")

    app = bare_app()
    app.add_url_rule("/", "view", greet, methods=["POST"])
    assert app.test_client().post("/").status_code == 415


def test_204_has_neither_a_body_nor_a_type() -> None:
    @gives(204, Empty)
    def end() -> Empty:
        return Empty()

    answer = post(end)
    assert (answer.status_code, answer.data) == (204, b"")


def test_asks_hands_the_query_to_the_view() -> None:
    seen = []

    @asks(Paged)
    @gives(201, GreetView)
    def greet(query: Paged) -> GreetView:
        seen.append(query.cursor)
        return GreetView(first_name="Ada")

    app = bare_app()
    app.add_url_rule("/", "view", greet)
    for query in ({}, {"cursor": "abc"}, {"cursor": ""}):
        assert app.test_client().get("/", query_string=query).status_code == 201
    assert seen == [None, "abc", ""]
    assert contract_of(greet).asks is Paged


def test_gives_answers_in_camel_case_without_what_is_none() -> None:
    answer = post(greeting)
    assert (answer.status_code, answer.mimetype) == (201, "application/json")
    assert answer.text == '{"firstName":"Ada","kind":"greeting"}\n'


def test_refuses_changes_nothing_but_the_document() -> None:
    @refuses(InvalidCode)
    @gives(201, GreetView)
    def greet() -> GreetView:
        return GreetView(first_name="Ada")

    assert (post(greet).status_code, post(greet).text) == (201, post(greeting).text)


@pytest.mark.parametrize(
    ("declared", "told"),
    [
        ((), ("internal_error", "Internal error")),
        ((NoToken,), ("internal_error", "Internal error")),
        ((NoToken, LoginFailed), ("login_failed", "Login failed")),
    ],
)
def test_a_crash_is_answered_with_the_failure_that_the_route_declares(
    declared: tuple[type[MFAError], ...], told: tuple[str, str]
) -> None:
    @gives(200, GreetView)
    @refuses(*declared)
    def crash() -> GreetView:
        raise ZeroDivisionError

    answer = post(crash)
    assert answer.status_code == 500
    assert (answer.json["code"], answer.json["error"]) == told


def test_a_refusal_raised_in_the_view_is_answered_as_such() -> None:
    @gives(200, GreetView)
    def refuse() -> GreetView:
        raise InvalidCode(fields={"totpCode": "is wrong"}, retry_after=3)

    answer = post(refuse)
    assert answer.status_code == 401
    assert answer.json == {
        "error": "Invalid TOTP code",
        "code": "invalid_code",
        "fields": {"totpCode": "is wrong"},
        "retryAfter": 3,
    }
    assert answer.headers["Retry-After"] == "3"


def test_the_declarations_add_up_whatever_their_order() -> None:
    @limited("credentials")
    @takes(GreetBody)
    @gives(202, GreetView)
    @refuses(NoToken, InvalidToken)
    def one_way(body: GreetBody) -> GreetView:
        """Say hello."""
        raise NotImplementedError

    @refuses(InvalidToken)
    @takes(GreetBody)
    @gives(202, GreetView)
    @limited("credentials")
    @refuses(NoToken)
    def other_way(body: GreetBody) -> GreetView:
        raise NotImplementedError

    whole = Contract(
        takes=GreetBody, status=202, gives=GreetView, refusals=(NoToken, InvalidToken), limits=("credentials",)
    )
    assert contract_of(one_way) == contract_of(other_way) == whole
    assert (one_way.__name__, one_way.__doc__) == ("one_way", "Say hello.")


def test_a_view_without_declarations_has_an_empty_contract() -> None:
    assert contract_of(print) == Contract()


def test_two_routes_on_one_function_do_not_share_what_one_of_them_declares() -> None:
    @gives(200, GreetView)
    def greet() -> GreetView:
        raise NotImplementedError

    taking = takes(GreetBody)(greet)
    assert contract_of(taking).takes is GreetBody
    assert contract_of(greet).takes is None


# ── fixtures and helpers ─────────────────────────────────────────────────────────────────────────


@gives(201, GreetView)
def greeting() -> GreetView:
    return GreetView(first_name="Ada")


@pytest.fixture
def app() -> Flask:
    """An app that has our answers to failures, and nothing else of ours."""
    return bare_app()


def bare_app() -> Flask:
    app = Flask("bare")
    errors.install(app)
    return app


def post(view: object, body: dict[str, object] | None = None) -> TestResponse:
    app = bare_app()
    app.add_url_rule("/", "view", view, methods=["POST"])
    return app.test_client().post("/", json=body or {})
