"""The services without Flask, and the few acts that most of these tests begin with."""

import dataclasses
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

from sqlalchemy import create_engine

from mfa_service.services import Services
from mfa_service.services.audit import ClientInfo
from mfa_service.services.login import SignedIn
from tests.factories import PASSWORD, Person

Rows = Callable[..., list[dict[str, Any]]]

CLIENT = ClientInfo("192.0.2.1", "tests", "request-1")


def register(services: Services, username: str = "ada", password: str = PASSWORD) -> Person:
    email = "someone@example.com"
    return Person(username, password, email, services.accounts.register(username, password, email, CLIENT).secret)


def log_in(services: Services, person: Person) -> str:
    """Give the right password; returns the pending token."""
    return services.login.begin(person.username, person.password, CLIENT).token


def verify(services: Services, token: str, person: Person, steps: int = 0) -> SignedIn:
    """Show the code of the step that lies `steps` after now."""
    return services.login.complete(token, person.code(services.clock(), steps), CLIENT)


def sign_in(services: Services, person: Person, steps: int = 0) -> SignedIn:
    return verify(services, log_in(services, person), person, steps)


def user_id_of(rows: Rows, username: str) -> str:
    return str(rows("SELECT id FROM mfa_users WHERE username = :name", name=username)[0]["id"])


def events(rows: Rows) -> list[str]:
    return [row["event"] for row in rows("SELECT event FROM mfa_events ORDER BY id")]


@contextmanager
def another(services: Services, **settings: Any) -> Iterator[Services]:
    """A second service on the same database, with settings of its own."""
    changed = dataclasses.replace(services.settings, **settings)
    made = Services(changed, create_engine(changed.database), services.clock)
    try:
        yield made
    finally:
        made.close()


def at_once(count: int, act: Callable[[int], object]) -> list[object]:
    """What `act` gives, or raises, in so many threads that start together."""
    start = threading.Barrier(count)

    def run(number: int) -> object:
        start.wait()
        try:
            return act(number)
        except Exception as error:  # noqa: BLE001 - it is the outcome
            return error

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(run, range(count)))
