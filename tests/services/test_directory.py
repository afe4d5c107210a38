"""Who there is: accounts found by how they begin, by role, factor and last seen, a page at a time."""

from datetime import timedelta
from typing import Any

import pytest

from mfa_service.services import Services
from mfa_service.services.administration import By, Changes
from mfa_service.services.directory import UserFilter
from mfa_service.services.reports import as_csv
from tests.conftest import Clock
from tests.services import CLIENT, GROWING, Rows, register, sign_in, user_id_of


@pytest.mark.parametrize("text", ["ada", "ADA", "Ａｄａ", "ad", "a"])
def test_a_name_is_found_by_its_beginning_in_any_case_and_width(services: Services, text: str) -> None:
    for name in ("ada.lovelace", "bob", "xada"):
        register(services, name)
    assert found(services, text=text) == {"ada.lovelace"}


@pytest.mark.parametrize("text", ["Some", "SOMEONE@EXAMPLE.COM", "someone@ex"])
def test_an_address_is_found_by_its_beginning_in_any_case(services: Services, rows: Rows, text: str) -> None:
    register(services, "ada")
    register(services, "bob")
    rows("UPDATE mfa_users SET email = 'x@y.org', email_key = 'x@y.org' WHERE username = 'bob'")
    assert found(services, text=text) == {"ada"}


@pytest.mark.parametrize("text", [GROWING, GROWING.upper(), GROWING[:60], GROWING[:90]], ids=len)
def test_an_address_that_folding_makes_three_times_as_long_is_found_and_so_is_such_a_name(
    services: Services, text: str
) -> None:
    for number, (name, email) in enumerate([("ada", GROWING), (GROWING, ""), ("eve", "eve@x.example")]):
        services.login.continue_for(number, username=name, email=email, client=CLIENT)
    assert found(services, text=text) == {"ada", GROWING}


@pytest.mark.parametrize("text", ["%", "_", "a%", "a_", "%da", "[a]", "a*"])
def test_wildcards_mean_themselves(services: Services, text: str) -> None:
    register(services, "ada")
    assert found(services, text=text) == set()
    register(services, f"{text}x")
    assert found(services, text=text) == {f"{text}x"}


def test_roles_factors_and_last_seen_are_combined(services: Services, rows: Rows, clock: Clock) -> None:
    people = {name: register(services, name) for name in ("ada", "bob", "eve")}
    for name in ("ada", "bob"):
        services.administration.change(By(CLIENT), user_id_of(rows, name), Changes(roles=("staff",)))
    clock.advance(100)
    for name in ("ada", "eve"):
        sign_in(services, people[name])
    now = services.now()
    assert found(services, role="staff") == {"ada", "bob"}
    assert found(services, role="staf") == set()
    assert found(services, factor="enabled") == {"ada", "eve"}
    assert found(services, factor="none") == {"bob"}
    assert found(services, seen_since=now) == {"ada", "eve"}
    assert found(services, seen_before=now) == {"bob"}
    assert found(services, role="staff", factor="enabled", seen_since=now, text="a") == {"ada"}
    assert found(services, role="staff", seen_since=now + timedelta(seconds=1)) == set()


def test_a_factor_that_failures_have_disabled_is_told_apart(services: Services, rows: Rows) -> None:
    for name in ("ada", "bob"):
        sign_in(services, register(services, name))
    rows(
        "INSERT INTO mfa_locks (user_id, subject, failures, failed_at, disabled_at) "
        "VALUES (:user_id, 'totp', 100, '2023-01-01 00:00:00', '2023-01-01 00:00:00')",
        user_id=user_id_of(rows, "ada"),
    )
    assert found(services, factor="disabled") == {"ada"}
    assert found(services, factor="enabled") == {"bob"}
    entries, _ = services.directory.search(UserFilter(), None)
    assert {entry.user.username: entry.factor for entry in entries} == {"ada": "disabled", "bob": "enabled"}


def test_pages_hold_everybody_once_newest_first(services: Services, clock: Clock) -> None:
    for number in range(120):
        register(services, f"user{number}")
        clock.advance(number % 3)
    seen: list[Any] = []
    cursor = None
    for size in (50, 50, 20):
        entries, cursor = services.directory.search(UserFilter(text="user"), cursor)
        assert len(entries) == size
        seen += [(entry.user.created_at, entry.user.id) for entry in entries]
    assert cursor is None
    assert seen == sorted(set(seen), reverse=True)
    assert len(seen) == 120


def test_disabled_accounts_are_found_and_not_reported(services: Services, rows: Rows) -> None:
    register(services, "ada")
    services.administration.disable(By(CLIENT), user_id_of(rows, "ada"))
    assert found(services) == {"ada"}
    assert services.directory.compliance().users == 0
    assert list(services.directory.whole_report(None)) == []


def test_the_csv_has_a_heading_even_over_nobody(services: Services) -> None:
    assert list(as_csv([])) == ["id,username,email,roles,mfa,standing,deadline,last_seen_at\r\n"]


def found(services: Services, **which: Any) -> set[str]:
    entries, _ = services.directory.search(UserFilter(**which), None)
    return {entry.user.username for entry in entries}
