"""Bringing people along: what a row may hold."""

import pytest

from mfa_service.crypto.passwords import hash_password
from mfa_service.errors import InvalidRequest
from mfa_service.services import Services
from mfa_service.services.people import checked
from tests.crypto.test_foreign import HASHES
from tests.services import CLIENT, GROWING, Rows


def test_an_address_that_folding_makes_three_times_as_long_does(services: Services, rows: Rows) -> None:
    ours = {"username": "ada", "email": GROWING, "password_hash": HASHES["bcrypt"]}
    theirs = {"username": "bob", "email": GROWING, "external_id": "7"}
    assert services.people.bring([checked(ours), checked(theirs)], CLIENT) == 2
    assert rows("SELECT email FROM mfa_users") == [{"email": GROWING}] * 2


@pytest.mark.parametrize("whole", [hash_password("secret", 4), *HASHES.values()], ids=["ours", *HASHES])
def test_a_damaged_hash_is_refused_with_its_reason(whole: str) -> None:
    row = {"username": "ada", "email": "ada@example.com"}
    assert checked(row | {"password_hash": whole}).password_hash == whole
    for damaged in (whole[:-1] + "!", whole[: whole.rindex("$")], whole[: len(whole) // 2], whole[:10]):
        with pytest.raises(InvalidRequest) as refusal:
            checked(row | {"password_hash": damaged})
        assert refusal.value.fields == {"password_hash": "is of no kind that can be verified here, or damaged"}
