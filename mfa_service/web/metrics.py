"""Figures for Prometheus: requests by route, audit events by kind, refusals by code, and what may run out.

A listener on the audit signal counts events, and one hook each request. Where several processes serve
(`PROMETHEUS_MULTIPROC_DIR`, set by gunicorn.conf.py) each writes into a file of its own, and whichever is asked adds
them up; what a process has in use is what it had at the end of its last request.
"""

import ipaddress
import os
import platform
import time
from importlib import import_module
from importlib.metadata import version
from typing import Any

from flask import Flask, Response, g, request

from mfa_service.errors import NotFound
from mfa_service.services import Services
from mfa_service.services.audit import Audit, Event, Recorded
from mfa_service.web.client import client_address
from mfa_service.web.gauges import Gauges
from mfa_service.web.limits import Limits

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)


class Metrics:
    """The figures of one app."""

    def __init__(self, services: Services, limits: Limits) -> None:
        self._library = import_module("prometheus_client")  # an extra, which the settings have looked for
        self._services, self._limits = services, limits
        self._networks = [ipaddress.ip_network(network) for network in services.settings.metrics]
        self._is_shared = "PROMETHEUS_MULTIPROC_DIR" in os.environ
        self._registry = self._library.CollectorRegistry()
        self._make()
        services.audit.signal.connect(self._count_event, weak=False)

    def _make(self) -> None:
        own: dict[str, Any] = {"registry": None if self._is_shared else self._registry}
        kinds = self._library
        labels = ("route", "method", "status")
        self._requests = kinds.Histogram(
            "mfa_request_seconds", "Requests and how long they took.", labels, buckets=_SECONDS, **own
        )
        self._refusals = kinds.Counter("mfa_refusals", "Refusals by their code.", ("code",), **own)
        self._events = kinds.Counter("mfa_events", "Audit events by their kind.", ("event",), **own)
        self._gauges = Gauges(kinds, self._services, self._limits, own)
        for event in Event:  # at 0, so that the first one of a kind is an increase
            self._events.labels(event)
        newest: dict[str, Any] = own | {"multiprocess_mode": "livemax"}
        build = kinds.Gauge("mfa_build", "The version that runs.", ("version", "python"), **newest)
        build.labels(version("mfa_service"), platform.python_version()).set(1)

    def install(self, app: Flask) -> None:
        """Count every request of an app."""
        app.before_request(self.begin)
        app.after_request(self.finish)

    def begin(self) -> None:
        """Note when a request begins."""
        g.mfa_began = time.perf_counter()

    def finish(self, response: Response) -> Response:
        """Count a request that is answered."""
        route = request.url_rule.rule if request.url_rule else "none"
        method = request.method if request.url_rule else "none"  # whatever word a client makes up
        took = time.perf_counter() - g.get("mfa_began", time.perf_counter())
        self._requests.labels(route, method, response.status_code).observe(took)
        if refusal := g.get("mfa_refusal"):
            self._refusals.labels(refusal).inc()
        self._gauges.update()
        return response

    def text(self) -> Response:
        """All figures, for who may ask. Raises NotFound for others."""
        address = client_address()
        if address is None or not any(address in network for network in self._networks):
            raise NotFound
        if self._is_shared:
            registry = self._library.CollectorRegistry()
            import_module("prometheus_client.multiprocess").MultiProcessCollector(registry)
        else:
            registry = self._registry
        return Response(self._library.generate_latest(registry), content_type=self._library.CONTENT_TYPE_LATEST)

    def _count_event(self, _sender: Audit, record: Recorded) -> None:
        self._events.labels(record.event).inc()
