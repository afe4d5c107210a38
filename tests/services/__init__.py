"""The services without Flask, and the few acts that most of these tests begin with."""

import dataclasses
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

from sqlalchemy import create_engine, delete

from mfa_service.crypto.tokens import Identity
from mfa_service.errors import MFAError
from mfa_service.models import Lock
from mfa_service.services import Services
from mfa_service.services.audit import ClientInfo
from mfa_service.services.factors import Proof
from mfa_service.services.login import MFAPending, Remember, SignedIn
from tests.factories import PASSWORD, Person

#: A good address, which is three times as long in the form that is searched by.
GROWING = "\N{GREEK SMALL LETTER IOTA WITH DIALYTIKA AND TONOS}" * 120 + "@x.example"

Rows = Callable[..., list[dict[str, Any]]]

CLIENT = ClientInfo("192.0.2.1", "192.0.2.1", "tests", "request-1")
#: Somebody else, somewhere else.
STRANGER = ClientInfo("198.51.100.7", "198.51.100.7", "curl/8", "request-2")


def register(services: Services, username: str = "ada", password: str = PASSWORD) -> Person:
    email = "someone@example.com"
    return Person(username, password, email, services.accounts.register(username, password, email, CLIENT).secret)


def log_in(services: Services, person: Person) -> str:
    """Give the right password; returns the pending token."""
    pending = services.login.begin(person.username, person.password, CLIENT)
    assert isinstance(pending, MFAPending)
    return pending.token


def verify(services: Services, token: str, person: Person, steps: int = 0) -> SignedIn:
    """Show the code of the step that lies `steps` after now."""
    return services.login.complete(token, totp(person.code(services.clock(), steps)), CLIENT)


def totp(code: str) -> Proof:
    return Proof("totp", code)


def recovery(code: str) -> Proof:
    return Proof("recovery_code", code)


def sign_in(services: Services, person: Person, steps: int = 0) -> SignedIn:
    return verify(services, log_in(services, person), person, steps)


def trust_device(services: Services, person: Person, steps: int = 0, name: str = "laptop") -> str:
    """Sign in and have the device remembered; returns its token."""
    code = totp(person.code(services.clock(), steps))
    token = services.login.complete(log_in(services, person), code, CLIENT, Remember(name)).device_token
    assert token
    return token


def identity_of(services: Services, signed_in: SignedIn) -> Identity:
    return services.verifier.access(signed_in.access_token, now=services.clock())


def acting(services: Services, user_id: str) -> Identity:
    """Somebody who is signed in as this user, in a session of their own."""
    amr = ("pwd", "otp", "mfa")
    grant = services.unit.run(lambda: services.sessions.open(user_id, amr, CLIENT), writes=True)
    return Identity(user_id, "", grant.session_id, int(services.clock()), amr)


def is_live(services: Services, signed_in: SignedIn) -> bool:
    """Whether an access token's session and user are still there."""
    return services.sessions.find_account(identity_of(services, signed_in)) is not None


def forgive(services: Services) -> None:
    """Take all locks away, for tests of something else."""
    services.unit.run(lambda: services.session.execute(delete(Lock)), writes=True)


def outcome_of(act: Callable[[], object]) -> object:
    """What an act gives, or its refusal."""
    try:
        return act()
    except MFAError as refusal:
        return refusal


def ensure_refused(refusal: type[MFAError], act: Callable[[], object]) -> None:
    """Demand this very refusal, not one of its kind."""
    outcome = outcome_of(act)
    assert type(outcome) is refusal, outcome


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
