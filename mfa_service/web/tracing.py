"""Spans for OpenTelemetry: one for each request of ours, and within it one for each statement.

Only this file knows OpenTelemetry, and it is loaded where `MFA_TRACING` says so. Spans go to the tracer provider of
the process. In the service of its own there is none as a rule: then one is made, as the standard `OTEL_…` names of
the environment say. No span holds a query, a header, a body, a value of a statement, or what a client made up.
"""

import os
import re
from collections.abc import Iterable, Iterator
from importlib.metadata import entry_points, version

from flask import Flask, Response, g, request
from opentelemetry import context, propagate, trace
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.trace import Span, SpanKind, StatusCode

from mfa_service.errors import ConfigurationError
from mfa_service.services import Services
from mfa_service.services.statements import watch_statements
from mfa_service.web.client import request_id

_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
_TABLE = re.compile(r"\b(?:FROM|INTO|UPDATE)\s+(mfa_\w+)")


def install(app: Flask, services: Services, *, blueprints: Iterable[str] | None) -> None:
    """Trace what goes to these blueprints of a host's app, or to the whole app where there are none to name.

    Raises ConfigurationError for an exporter that is not there.
    """
    if blueprints is None and isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider):
        provider: trace.TracerProvider = _own_provider()
    else:
        provider = trace.get_tracer_provider()  # a host may set its own later: this one hands on to it
    spans = Spans(provider.get_tracer("mfa_service", version("mfa_service")), services.engine.dialect.name)
    for name in (None,) if blueprints is None else blueprints:
        # Before whatever may refuse, and after everything that may change the answer.
        app.before_request_funcs.setdefault(name, []).insert(0, spans.begin)
        app.after_request_funcs.setdefault(name, []).insert(0, spans.describe)
        app.teardown_request_funcs.setdefault(name, []).insert(0, spans.end)
    for engine in services.engines:
        watch_statements(engine, spans.begin_statement, spans.end_statement)


class Spans:
    """The spans of one app."""

    def __init__(self, tracer: trace.Tracer, system: str) -> None:
        self._tracer, self._system = tracer, system

    def begin(self) -> None:
        """Open the span of a request, under that of whoever called, or of a host's own instrumentation."""
        is_inner = trace.get_current_span().get_span_context().is_valid
        parent = None if is_inner else propagate.extract(request.headers)
        kind = SpanKind.INTERNAL if is_inner else SpanKind.SERVER
        method = request.method if request.method in _METHODS else "_OTHER"
        attributes = {"http.request.method": method}
        if request.url_rule:  # any other path may hold anything at all
            attributes["http.route"] = request.url_rule.rule
            if not request.url_rule.arguments:  # which may hold anything, too
                attributes["url.path"] = request.path
        name = f"{method} {request.url_rule.rule}" if request.url_rule else method.replace("_OTHER", "HTTP")
        span = self._tracer.start_span(name, parent, kind, attributes)
        g.mfa_span = span, context.attach(trace.set_span_in_context(span))

    def describe(self, response: Response) -> Response:
        """Say how a request was answered; a 5xx is an error, and the refusal's code its type."""
        if "mfa_span" in g:
            span, status = g.mfa_span[0], response.status_code
            span.set_attributes({"http.response.status_code": status, "mfa.request_id": request_id()})
            if status >= 500:
                span.set_status(StatusCode.ERROR)
                span.set_attribute("error.type", g.get("mfa_refusal") or str(status))
        return response

    def end(self, _error: BaseException | None) -> None:
        """Close the span of a request."""
        if "mfa_span" in g:
            span, token = g.pop("mfa_span")
            context.detach(token)
            span.end()

    def begin_statement(self, text: str) -> Span | None:
        """Open the span of a statement, if it belongs to a request that is traced."""
        if not trace.get_current_span().is_recording():
            return None
        operation = text.split(None, 1)[0].upper()
        attributes = {"db.system.name": self._system, "db.operation.name": operation}
        if table := _TABLE.search(text):
            attributes["db.collection.name"] = table[1]
        name = f"{operation} {table[1]}" if table else operation
        return self._tracer.start_span(name, kind=SpanKind.CLIENT, attributes=attributes)

    def end_statement(self, span: Span, error: BaseException | None) -> None:
        """Close it. The driver's words stay out: they quote values."""
        if error is not None:
            span.set_status(StatusCode.ERROR)
            span.set_attribute("error.type", type(error).__qualname__)
        span.end()


def _own_provider() -> TracerProvider:
    # What the environment says of the service comes before its name here.
    resource = Resource.create({"service.name": "mfa_service"}).merge(OTELResourceDetector().detect())
    provider = TracerProvider(resource=resource)
    for exporter in _exporters():
        provider.add_span_processor(BatchSpanProcessor(exporter))  # which starts anew in a process that is forked off
    return provider


def _exporters() -> Iterator[SpanExporter]:
    """The exporters of OTEL_TRACES_EXPORTER; without it OTLP, over HTTP unless OTEL_EXPORTER_OTLP_PROTOCOL differs."""
    protocols = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
    protocol = next(filter(None, map(os.environ.get, protocols)), "http/protobuf")
    kinds = {"otlp": f"otlp_proto_{protocol.partition('/')[0]}"}
    for name in (os.environ.get("OTEL_TRACES_EXPORTER") or "otlp").split(","):
        if (kind := name.strip()) == "none":
            continue
        found = entry_points(group="opentelemetry_traces_exporter", name=kinds.get(kind, kind))
        if not found:
            raise ConfigurationError([f"OTEL_TRACES_EXPORTER {kind}: no such exporter is installed"])
        yield next(iter(found)).load()()
