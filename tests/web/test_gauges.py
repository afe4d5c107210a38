"""What gives the other figures a scale: places, connections, and when the audit log was sealed last."""

import time
from collections.abc import Callable
from typing import Any

import prometheus_client
import pytest
from prometheus_client import CollectorRegistry
from sqlalchemy import NullPool, create_engine

from mfa_service.config import Settings
from mfa_service.services import Services
from mfa_service.web.gauges import Gauges
from mfa_service.web.limits import Limits
from tests.conftest import Clock
from tests.services import Rows, register

Told = Callable[..., "Figures"]


def test_they_say_how_much_there_may_be(told: Told, database: str) -> None:
    figures = told(MFA_HASHING_THREADS=3, MFA_HASHING_QUEUE=5)
    assert figures["mfa_hashing_places"] == 8
    # SQLite's two engines are always ours; the other one has what SQLAlchemy gives a host that asks for nothing.
    assert figures["mfa_database_connections"] == (80 if database.startswith("sqlite") else 15)


@pytest.mark.services
@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_a_pool_without_a_bound_has_none(config: dict[str, Any], clock: Clock, postgresql: str) -> None:
    settings = Settings.load(config)
    for options in ({"poolclass": NullPool}, {"max_overflow": -1}):
        services = Services(settings, create_engine(postgresql, **options), clock)
        assert services.connections == 0
        services.close()


def test_who_does_not_seal_says_so(told: Told) -> None:
    assert told(MFA_SEAL_SECONDS=0)["mfa_audit_sealed_timestamp_seconds"] == 0


def test_a_round_of_the_sealer_moves_the_time_also_where_nothing_waits(told: Told, clock: Clock) -> None:
    figures = told(MFA_SEAL_SECONDS=1)
    assert figures["mfa_audit_sealed_timestamp_seconds"] == clock()
    clock.advance(500)
    assert figures["mfa_audit_sealed_timestamp_seconds"] == clock() - 500
    figures.services.sealer.ensure_running()
    figures.wait_for("mfa_audit_sealed_timestamp_seconds", clock())


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_a_round_that_fails_does_not(told: Told, clock: Clock, rows: Rows, caplog: pytest.LogCaptureFixture) -> None:
    figures = told(MFA_SEAL_SECONDS=1)
    register(figures.services)
    clock.advance(500)
    rows("ALTER TABLE mfa_seals RENAME TO elsewhere")
    figures.services.sealer.ensure_running()
    deadline = time.monotonic() + 20
    while "the database is out of order" not in caplog.text and time.monotonic() < deadline:
        time.sleep(0.05)
    assert "the database is out of order" in caplog.text
    assert figures["mfa_audit_sealed_timestamp_seconds"] == clock() - 500


# ── means ────────────────────────────────────────────────────────────────────────────────────────


class Figures:
    def __init__(self, services: Services) -> None:
        self.services, self._registry = services, CollectorRegistry()
        self._gauges = Gauges(prometheus_client, services, Limits(services.settings), {"registry": self._registry})

    def __getitem__(self, name: str) -> float | None:
        self._gauges.update()
        return self._registry.get_sample_value(name)

    def wait_for(self, name: str, value: float) -> None:
        deadline = time.monotonic() + 20
        while self[name] != value and time.monotonic() < deadline:
            time.sleep(0.05)
        assert self[name] == value


@pytest.fixture
def told(config: dict[str, Any], clock: Clock, request: pytest.FixtureRequest) -> Told:
    def make(**settings: Any) -> Figures:
        loaded = Settings.load(config | settings)
        services = Services(loaded, create_engine(loaded.database), clock)
        request.addfinalizer(services.close)
        return Figures(services)

    return make
