"""Passwords: length and a blocklist, and no rules of composition."""

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from zxcvbn.frequency_lists import FREQUENCY_LISTS

from mfa_service.errors import WeakPassword
from mfa_service.services.password_policy import ensure_acceptable

CONTEXT = ("Lovelace", "lovelace", "countess", "MFA", "Service", "mfa_service")


@pytest.mark.parametrize("password", ["é" * 7, "abcdefg", "", "😀" * 7, "xk7#Qpz"])
def test_seven_characters_are_too_few(password: str) -> None:
    assert refusal_of(password) == "must have at least 8 characters"


@pytest.mark.parametrize("password", ["é" * 8, "😀" * 8, "xk7#Qpzv"])
def test_eight_characters_are_enough_however_many_bytes_they_have(password: str) -> None:
    assert refusal_of(password) is None


def test_the_minimum_is_a_setting() -> None:
    assert refusal_of("xk7#Qpzvw9!mTb", min_length=15) == "must have at least 15 characters"
    assert refusal_of("xk7#Qpzvw9!mTbe", min_length=15) is None


@pytest.mark.parametrize(
    "password",
    [
        "correct horse battery staple",
        " " * 20 + "letters",
        "analytical engine",
        "ünïcödé lëttérs",
        "all lower case and no digit",
        "73019284650192",
        "😀" * 64,
        "a\tb\tc\td\te",
    ],
)
def test_nothing_is_asked_of_its_composition(password: str) -> None:
    assert refusal_of(password) is None


@pytest.mark.parametrize(("password", "is_taken"), [("é" * 512, True), ("é" * 513, False), ("x" * 1024, True)])
def test_1024_bytes_are_the_most(password: str, is_taken: bool) -> None:
    assert (refusal_of(password) is None) is is_taken


def test_a_megabyte_is_refused_in_no_time() -> None:
    start = time.monotonic()
    assert refusal_of("x" * 2**20) == "must not be longer than 1024 bytes"
    assert time.monotonic() - start < 0.1


@settings(deadline=500)
@given(st.text(alphabet="abcxyz019()/\\@$", min_size=8, max_size=1024))
def test_no_password_takes_long_to_judge(password: str) -> None:
    refusal_of(password)


@pytest.mark.parametrize(
    "password",
    [
        "password",
        "password123",
        "Password123",
        "P@ssw0rd",
        "P@ssw0rd2024",
        "12345678",
        "11111111",
        "qwertyuiop",
        "iloveyou",
        "letmein1",
        "trustno1",
        "sunshine1",
        "monkey1999",
        "drowssap",
    ],
)
def test_common_passwords_and_their_disguises_are_refused_with_the_reason(password: str) -> None:
    assert refusal_of(password) == "is on the list of common passwords"


def test_the_3000_most_common_passwords_are_refused() -> None:
    long_enough = [word for word in FREQUENCY_LISTS["passwords"] if len(word) >= 8][:3000]
    assert len(long_enough) == 3000
    assert [word for word in long_enough if refusal_of(word) is None] == []


@pytest.mark.parametrize(
    "password",
    ["lovelace2026", "Lovelace2026", "LOVELACE1", "lovelace", "2026lovelace", "lovelacelovelace", "countess!99"],
)
def test_the_users_own_name_with_a_year_is_refused_with_the_reason(password: str) -> None:
    assert refusal_of(password) == "is built on the user name, the e-mail address or the name of this service"


@pytest.mark.parametrize(
    "password", ["mfa_service", "mfa_service1", "service2026", "mfaservice", "mfaservice2026", "MFA-Service-2026"]
)
def test_the_name_of_the_service_with_a_year_is_refused(password: str) -> None:
    assert refusal_of(password)


def test_a_name_may_stand_in_a_long_password() -> None:
    assert refusal_of("lovelace and the difference engine") is None


def test_names_of_one_or_two_letters_forbid_nothing() -> None:
    ensure_acceptable("xk7#Qpzv", min_length=8, context=("x", "k7"))


def refusal_of(password: str, min_length: int = 8) -> str | None:
    try:
        ensure_acceptable(password, min_length=min_length, context=CONTEXT)
    except WeakPassword as refusal:
        return refusal.fields["password"]
    return None
