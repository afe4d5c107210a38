"""The keyring is the database's own, or the service does not start; also where several start for the first time."""

from typing import Any

import pytest
from sqlalchemy import event

from mfa_service.crypto.keyring import new_keyring_text
from mfa_service.errors import ConfigurationError
from mfa_service.services import Services
from mfa_service.services.health import context_of
from tests.services import Rows, another

WRONG = "the keyring is not the one this database was sealed with"


def test_of_two_first_starts_with_a_keyring_each_the_later_is_stopped(services: Services, rows: Rows) -> None:
    with another(services, keys=new_keyring_text()) as later:
        overtake(later, services)
        with pytest.raises(ConfigurationError, match=WRONG):
            later.health.ensure_keyring()
        assert not later.health.is_database_up()
    assert len(rows("SELECT id FROM mfa_canaries")) == 1
    assert services.health.is_database_up()


def test_of_two_first_starts_with_the_same_keyring_both_go_on(services: Services, rows: Rows) -> None:
    with another(services) as later:
        overtake(later, services)
        later.health.ensure_keyring()
        assert later.health.is_database_up()
    assert len(rows("SELECT id FROM mfa_canaries")) == 1


def test_a_canary_that_says_something_else_is_none(services: Services, rows: Rows) -> None:
    sealed = services.vault.seal(b"growl", context_of(1))
    rows("INSERT INTO mfa_canaries (id, sealed_value) VALUES (1, :sealed)", sealed=sealed)
    for _ in range(2):
        with pytest.raises(ConfigurationError, match=WRONG):
            services.health.ensure_keyring()


def overtake(slower: Services, faster: Services) -> None:
    """Let the faster one leave its canary when the slower one has just found none."""

    def listen(*call: Any) -> None:
        if "SELECT" in call[2] and "mfa_canaries" in call[2]:
            faster.health.ensure_keyring()

    event.listen(slower.engine, "after_cursor_execute", listen)
