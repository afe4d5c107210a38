"""Figures for Prometheus that give the others a scale: how much there may be, and since when nothing was done."""

from collections.abc import Mapping
from typing import Any

from mfa_service.services import Services


class Gauges:
    """What may run out, and when the audit log was sealed. Each process says its part, as of its last request."""

    def __init__(self, library: Any, services: Services, own: Mapping[str, Any]) -> None:
        """`library` is prometheus_client, and `own` says where its figures are kept."""
        self._services = services
        parts: dict[str, Any] = {**own, "multiprocess_mode": "livesum"}
        self._places = library.Gauge("mfa_hashing_places", "Logins that may hash or wait for it at once.", **parts)
        self._connections = library.Gauge("mfa_database_connections", "Connections there may be at once.", **parts)
        newest: dict[str, Any] = {**own, "multiprocess_mode": "livemax"}
        self._sealed = library.Gauge(
            "mfa_audit_sealed_timestamp_seconds",
            "When the audit log was sealed last; 0: not by this service.",
            **newest,
        )
        self.update()

    def update(self) -> None:
        """Say it anew: a process that was forked off has said nothing yet."""
        settings = self._services.settings
        self._places.set(settings.hashing_threads + settings.hashing_queue)
        self._connections.set(self._services.connections)
        self._sealed.set(self._services.sealed_at)
