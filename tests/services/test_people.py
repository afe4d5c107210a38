"""Bringing people along: what a row may hold."""

from mfa_service.services import Services
from mfa_service.services.people import checked
from tests.crypto.test_foreign import HASHES
from tests.services import CLIENT, GROWING, Rows


def test_an_address_that_folding_makes_three_times_as_long_does(services: Services, rows: Rows) -> None:
    ours = {"username": "ada", "email": GROWING, "password_hash": HASHES["bcrypt"]}
    theirs = {"username": "bob", "email": GROWING, "external_id": "7"}
    assert services.people.bring([checked(ours), checked(theirs)], CLIENT) == 2
    assert rows("SELECT email FROM mfa_users") == [{"email": GROWING}] * 2
