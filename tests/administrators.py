"""Administrators for tests, and what the database held before and after."""

from typing import Any

from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from mfa_service.models import Base
from mfa_service.services import Services
from mfa_service.services.administration import By, Changes
from tests.factories import Person, bearer, log_in, register
from tests.services import CLIENT, Rows

#: Columns that say when somebody was seen: asking moves them.
_SEEN = {"seen_at"}


def services_of(client: FlaskClient) -> Services:
    """The services behind an app."""
    found: Services = client.application.extensions["mfa_service"].services
    return found


def promote(client: FlaskClient, user_id: str, *roles: str) -> None:
    """Give roles as the operator does."""
    services_of(client).administration.change(By(CLIENT), user_id, Changes(roles=roles or ("admin",)))


def administrator(client: FlaskClient, now: float, username: str = "root") -> dict[str, str]:
    """The header of an administrator who has just shown a second factor."""
    person = register(client, username)
    promote(client, id_of(client, username))
    return bearer(str(complete(client, person, now)["accessToken"]))


def id_of(client: FlaskClient, username: str) -> str:
    found = services_of(client).directory.find_id(username)
    assert found
    return found


def complete(client: FlaskClient, person: Person, now: float, steps: int = 0, **wishes: object) -> dict[str, Any]:
    """Everything that a full sign-in is answered with."""
    body = {"tempToken": log_in(client, person), "totpCode": person.code(now, steps)} | wishes
    answer = client.post("/auth/verify-mfa", json=body)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json
    return found


def refusal(answer: TestResponse) -> tuple[int, str | None]:
    """Status and code."""
    return answer.status_code, answer.json.get("code") if answer.is_json else None


def everything(rows: Rows) -> dict[str, list[dict[str, Any]]]:
    """All rows of all tables but the log, without the columns that asking moves."""
    tables = [table for table in Base.metadata.sorted_tables if table.name != "mfa_events"]
    return {
        table.name: sorted(
            ({key: value for key, value in row.items() if key not in _SEEN} for row in rows(f"SELECT * FROM {table}")),
            key=repr,
        )
        for table in tables
    }
