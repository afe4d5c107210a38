"""Figures for Prometheus that say how much there is of something now, and how much there may be."""

import threading
from collections.abc import Mapping
from typing import Any

from mfa_service.services import Services
from mfa_service.web.limits import Limits
from mfa_service.web.logs import LineHandler


class Gauges:
    """What is in use, what may run out, and when the audit log was sealed: of each process as of its last request."""

    def __init__(self, library: Any, services: Services, limits: Limits, own: Mapping[str, Any]) -> None:
        """`library` is prometheus_client, and `own` says where its figures are kept."""
        self._services, self._limits = services, limits
        self._said: tuple[float, ...] = ()
        self._lock = threading.Lock()

        def gauge(mode: str, name: str, what: str) -> Any:
            return library.Gauge(name, what, multiprocess_mode=mode, **own)

        self._gauges = (
            gauge("livesum", "mfa_hashing_places_in_use", "Logins that hash, or wait for it."),
            gauge("livesum", "mfa_hashing_places", "Logins that may hash or wait for it at once."),
            gauge("livesum", "mfa_database_connections_in_use", "Connections in use."),
            gauge("livesum", "mfa_database_connections", "Connections there may be at once."),
            gauge("livesum", "mfa_log_lines_lost", "Lines of the log that nobody took."),
            gauge("livemax", "mfa_limiter_fallback", "1: limits are counted per process."),
            gauge(
                "livemax",
                "mfa_audit_sealed_timestamp_seconds",
                "When the audit log was sealed last; 0: not by this service.",
            ),
        )

    def update(self) -> None:
        """Say what has changed; all of it in a process that was forked off, which has said nothing yet."""
        with self._lock:  # or a thread that was overtaken would say last what is over
            levels = self._levels()
            if levels != self._said:
                self._said = levels
                for gauge, level in zip(self._gauges, levels, strict=True):
                    gauge.set(level)

    def _levels(self) -> tuple[float, ...]:
        services, settings = self._services, self._services.settings
        places = services.hashing.in_use, settings.hashing_threads + settings.hashing_queue
        connections = services.connections_in_use, services.connections
        return (*places, *connections, LineHandler.lost_ever, self._limits.is_falling_back, services.sealed_at)
