"""Spans: one for each request and statement, what they say and never hold, and nothing at all where they are off."""

import json
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from flask.testing import FlaskClient
from opentelemetry import trace
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from mfa_service import doctor
from mfa_service.errors import ConfigurationError
from tests.conftest import ROOT, Clock, free_port, running
from tests.factories import PASSWORD, bearer, log_in, register, sign_in
from tests.hosts import Shop, enrol, orders
from tests.hosts import log_in as host_log_in

MakeApp = Callable[..., Any]
ON_SQLITE = pytest.mark.parametrize("database", ["sqlite"], indirect=True)


# ── a request ────────────────────────────────────────────────────────────────────────────────────


def test_a_request_is_a_span_that_names_its_route(traced: FlaskClient, spans: "Spans") -> None:
    traced.delete("/api/sessions/some-session?q=1", headers={"X-Request-Id": "request-1234"})
    [span] = spans.requests()
    assert (span.name, span.kind) == ("DELETE /api/sessions/<session_id>", SpanKind.SERVER)
    assert dict(span.attributes) == {
        "http.request.method": "DELETE",
        "http.route": "/api/sessions/<session_id>",
        "http.response.status_code": 401,
        "mfa.request_id": "request-1234",
    }
    assert (span.status.status_code, span.parent) == (StatusCode.UNSET, None)


def test_what_clients_make_up_is_in_no_span(traced: FlaskClient, spans: "Spans") -> None:
    traced.open("/made-up/path", method="MADEUP")
    traced.get("/made-up/path")
    traced.delete("/api/sessions/made-up")
    traced.get("/docs/made-up")
    traced.get("/healthz?made-up")
    names = ["HTTP", "GET", "DELETE /api/sessions/<session_id>", "GET /docs/<name>", "GET /healthz"]
    assert [span.name for span in spans.requests()] == names
    assert [span.attributes.get("url.path") for span in spans.requests()] == [None] * 4 + ["/healthz"]
    assert "made-up" not in spans.text().lower()
    assert "madeup" not in spans.text().lower()


def test_a_request_that_is_refused_before_any_route_is_a_span_as_well(traced: FlaskClient, spans: "Spans") -> None:
    traced.get("/api/profile", headers={"Host": "elsewhere.example"})
    [span] = spans.requests()
    assert span.attributes["http.response.status_code"] == 400


def test_what_fails_on_our_side_is_an_error_with_the_refusals_code(make_app: MakeApp, spans: "Spans") -> None:
    app = make_app(MFA_TRACING=True, MFA_HASHING_QUEUE=0)
    person = register(app.test_client())
    spans.clear()
    with app.extensions["mfa_service"].services.hashing.place():
        body = {"username": person.username, "password": person.password}
        assert app.test_client().post("/auth/login", json=body).status_code == 503
    [span] = spans.requests()
    assert (span.status.status_code, span.attributes["error.type"]) == (StatusCode.ERROR, "busy")


def test_the_trace_of_whoever_calls_goes_on(traced: FlaskClient, spans: "Spans") -> None:
    traced.get("/api/profile", headers={"traceparent": f"00-{'ab' * 16}-{'cd' * 8}-01"})
    [span] = spans.requests()
    assert f"{span.context.trace_id:x}" == "ab" * 16
    assert f"{span.parent.span_id:x}" == "cd" * 8


def test_what_the_caller_does_not_sample_is_not_traced(traced: FlaskClient, spans: "Spans") -> None:
    token = "." * 40
    traced.get("/api/profile", headers={"traceparent": f"00-{'ab' * 16}-{'cd' * 8}-00", **bearer(token)})
    assert spans.all() == []


def test_a_header_that_is_no_traceparent_begins_a_trace(traced: FlaskClient, spans: "Spans") -> None:
    for header in ("", "00-zz-1-01", f"00-{'0' * 32}-{'0' * 16}-01", "x" * 4000):
        traced.get("/api/profile", headers={"traceparent": header})
    assert [span.parent for span in spans.requests()] == [None] * 4
    assert len({span.context.trace_id for span in spans.requests()}) == 4


# ── its statements ───────────────────────────────────────────────────────────────────────────────


def test_each_statement_is_a_span_within_its_request(
    traced: FlaskClient, spans: "Spans", clock: Clock, database: str
) -> None:
    token = sign_in(traced, register(traced), clock())
    spans.clear()
    assert traced.get("/api/profile", headers=bearer(token)).status_code == 200
    [request] = spans.requests()
    statements = spans.statements()
    assert statements
    for span in statements:
        assert span.kind is SpanKind.CLIENT
        assert span.parent.span_id == request.context.span_id
        assert span.attributes["db.system.name"] == database.partition(":")[0].partition("+")[0]
        assert request.start_time <= span.start_time <= span.end_time <= request.end_time
    [select] = [span for span in statements if span.name.startswith("SELECT")]
    assert select.attributes["db.operation.name"] == "SELECT"
    assert select.name == f"SELECT {select.attributes['db.collection.name']}"


def test_a_sign_in_shows_what_it_writes(traced: FlaskClient, spans: "Spans", clock: Clock) -> None:
    person = register(traced)
    spans.clear()
    log_in(traced, person)
    [request] = spans.requests()
    assert {"INSERT mfa_challenges", "INSERT mfa_events"} <= {span.name for span in spans.statements()}
    assert {span.context.trace_id for span in spans.all()} == {request.context.trace_id}


@ON_SQLITE
def test_a_statement_that_fails_is_an_error_without_the_drivers_words(
    traced: FlaskClient, spans: "Spans", clock: Clock, rows: Callable[..., Any]
) -> None:
    token = sign_in(traced, register(traced), clock())
    rows("ALTER TABLE mfa_users RENAME TO elsewhere")
    spans.clear()
    assert traced.get("/api/profile", headers=bearer(token)).status_code == 503
    [request], [statement] = spans.requests(), [span for span in spans.statements() if span.name != "BEGIN"]
    assert (request.attributes["error.type"], statement.attributes["error.type"]) == ("unavailable", "OperationalError")
    assert statement.status.status_code is request.status.status_code is StatusCode.ERROR
    assert (statement.status.description, statement.events) == (None, ())


def test_work_outside_of_requests_makes_no_spans(make_app: MakeApp, spans: "Spans") -> None:
    app = make_app(MFA_TRACING=True)
    app.extensions["mfa_service"].services.health.ensure_writable()
    assert spans.all() == []


# ── what they never hold ─────────────────────────────────────────────────────────────────────────


def test_no_span_holds_a_secret_or_says_who_it_was(traced: FlaskClient, spans: "Spans", clock: Clock) -> None:
    person = register(traced, "some-body-known")
    first, pending = person.code(clock()), log_in(traced, person)
    answer = traced.post(f"/auth/verify-mfa?{PASSWORD}", json={"tempToken": pending, "totpCode": first}).json
    token = answer["accessToken"]
    clock.advance(30)
    for path, body in {
        "/auth/refresh": {"refreshToken": answer["refreshToken"]},
        "/auth/login": {"username": person.username, "password": "wrong-password"},
        "/auth/register": {"username": person.username, "password": PASSWORD, "email": person.email},
        "/auth/step-up": {"totpCode": "000000"},
        "/auth/nowhere": {"username": person.username},
    }.items():
        headers = bearer(token) | {"Cookie": f"a={token}", "baggage": f"user={person.username}"}
        traced.post(path, json=body, headers=headers)
    hidden = [person.username, person.email, person.secret, PASSWORD, "wrong-password", first, pending, token]
    hidden += [answer["refreshToken"], *answer["recoveryCodes"]]
    said = spans.text()
    assert len(spans.requests()) == 8
    assert [each for each in hidden if each in said] == []


# ── in a host's app ──────────────────────────────────────────────────────────────────────────────


def test_of_a_hosts_app_only_ours_is_traced(shop: Shop, spans: "Spans", clock: Clock) -> None:
    shop.add("ada")
    client = shop.client()
    token, _ = enrol(client, "ada", clock())  # begins at /auth/login, which is the shop's
    client.get("/api/profile", headers=bearer(token))
    assert orders(client, token).status_code == 200
    client.get("/nowhere")
    assert [span.name for span in spans.requests()] == ["POST /auth/enrol", "POST /auth/verify-mfa", "GET /api/profile"]
    assert {span.name for span in spans.statements() if "db.collection.name" not in span.attributes} <= {"BEGIN"}
    assert {span.parent.span_id for span in spans.statements()} == {span.context.span_id for span in spans.requests()}


def test_within_a_hosts_own_spans_ours_are_inner_ones(shop: Shop, spans: "Spans", clock: Clock) -> None:
    shop.add("ada")
    client = shop.client()
    token, _ = enrol(client, "ada", clock())
    spans.clear()
    with trace.get_tracer("shop").start_as_current_span("the shop's") as outer:
        client.get("/api/profile", headers={"traceparent": f"00-{'ab' * 16}-{'cd' * 8}-01", **bearer(token)})
        orders(client, token)
        host_log_in(client, "ada")  # asks the shop's table, on the engine that we may share, and then ours
    [request] = spans.requests()
    assert (request.kind, request.parent.span_id) == (SpanKind.INTERNAL, outer.get_span_context().span_id)
    parents = [span.parent.span_id for span in spans.statements()]
    assert outer.get_span_context().span_id in parents, "what keeps the shop's own view"
    assert {span.name for span in spans.statements() if "db.collection.name" not in span.attributes} <= {"BEGIN"}
    assert {span.context.trace_id for span in spans.all()} == {outer.get_span_context().trace_id}


# ── off, or not to be had ────────────────────────────────────────────────────────────────────────


@ON_SQLITE
def test_where_it_is_off_nothing_is_loaded_and_nothing_listens(config: dict[str, Any]) -> None:
    script = """
import json, sys
from mfa_service.app import create_app
app = create_app(json.loads(sys.argv[1]))
assert app.test_client().get("/api/profile").status_code == 401
services = app.extensions["mfa_service"].services
assert not services.engine.dispatch.before_cursor_execute
assert not app.teardown_request_funcs
services.close()
print([name for name in sys.modules if name.startswith("opentelemetry")])
"""
    done = run([sys.executable, "-c", script, json.dumps(config)])
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr


@ON_SQLITE
def test_without_the_extra_nothing_starts_and_the_doctor_says_so(
    make_app: MakeApp, config: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk", None)
    with pytest.raises(ConfigurationError, match=r"MFA_TRACING needs OpenTelemetry: pip install mfa_service\[otel\]"):
        make_app(MFA_TRACING=True)
    found = doctor.examine(config | {"MFA_TRACING": True})
    assert [finding.level for finding in found if "mfa_service[otel]" in finding.text] == ["error"]
    make_app()


@ON_SQLITE
def test_an_exporter_that_is_not_installed_is_said_at_the_start(config: dict[str, Any]) -> None:
    ours = {name: str(value) for name, value in config.items() if name != "TESTING"}
    environment = os.environ | ours | {"MFA_BCRYPT_COST": "10", "MFA_TRACING": "1", "OTEL_TRACES_EXPORTER": "zipkin"}
    done = run([sys.executable, "-c", "import wsgi"], env=environment)
    assert done.returncode == 4
    assert "OTEL_TRACES_EXPORTER zipkin: no such exporter is installed" in done.stderr
    assert "Traceback" not in done.stderr


# ── under gunicorn ───────────────────────────────────────────────────────────────────────────────


@pytest.mark.services
@ON_SQLITE
def test_every_worker_sends_its_spans_to_a_collector(start: "Start", collector: "Collector", redis: str) -> None:
    address = start(WEB_CONCURRENCY="2", MFA_REDIS_URL=redis, OTEL_EXPERIMENTAL_RESOURCE_DETECTORS="process")
    asked, deadline = 0, time.monotonic() + 20
    while asked < 20 or (len(collector.pids) < 2 and time.monotonic() < deadline):
        assert status_of(f"{address}/api/profile") == 401
        asked += 1
    collector.wait_for("GET /api/profile", asked)
    assert len(collector.pids) == 2
    assert {resource["service.name"] for resource, _ in collector.spans} == {"mfa_service"}


@pytest.mark.services
@ON_SQLITE
def test_an_app_that_was_loaded_before_the_fork_sends_them_too(
    start: "Start", collector: "Collector", redis: str
) -> None:
    address = start("--preload", WEB_CONCURRENCY="2", MFA_REDIS_URL=redis, OTEL_SERVICE_NAME="sign-in")
    for _ in range(20):
        assert status_of(f"{address}/api/profile") == 401
    collector.wait_for("GET /api/profile", 20)
    assert {resource["service.name"] for resource, _ in collector.spans} == {"sign-in"}


@pytest.mark.services
@ON_SQLITE
def test_what_still_waits_is_sent_at_the_stop(start: "Start", collector: "Collector", stack: ExitStack) -> None:
    address = start(OTEL_BSP_SCHEDULE_DELAY="60000")
    for _ in range(5):
        assert status_of(f"{address}/api/profile") == 401
    assert collector.spans == []
    stack.close()
    assert collector.names.count("GET /api/profile") == 5


@pytest.mark.services
@ON_SQLITE
def test_a_collector_that_is_away_harms_nobody(start: "Start") -> None:
    address = start(OTEL_EXPORTER_OTLP_ENDPOINT=f"http://127.0.0.1:{free_port()}")
    began = time.monotonic()
    assert {status_of(f"{address}/api/profile") for _ in range(100)} == {401}
    assert time.monotonic() - began < 10


# ── means ────────────────────────────────────────────────────────────────────────────────────────

#: Runs the service under gunicorn with options and settings; gives its address.
Start = Callable[..., str]


class Spans:
    """What has been traced, in the order of the ends."""

    def __init__(self, exporter: InMemorySpanExporter) -> None:
        self._exporter = exporter
        self.clear = exporter.clear

    def all(self) -> list[ReadableSpan]:
        ours = [span for span in self._exporter.get_finished_spans() if span.instrumentation_scope.name != "shop"]
        return sorted(ours, key=lambda span: span.start_time)

    def requests(self) -> list[ReadableSpan]:
        return [span for span in self.all() if "http.request.method" in span.attributes]

    def statements(self) -> list[ReadableSpan]:
        return [span for span in self.all() if "db.system.name" in span.attributes]

    def text(self) -> str:
        return "".join(span.to_json() for span in self.all())


@pytest.fixture(scope="session")
def _exporter() -> InMemorySpanExporter:
    """What the provider of this process hands its spans to; a process has one provider, for ever."""
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    return exporter


@pytest.fixture
def spans(_exporter: InMemorySpanExporter) -> Spans:
    _exporter.clear()
    return Spans(_exporter)


@pytest.fixture
def traced(make_app: MakeApp, spans: Spans) -> FlaskClient:
    client: FlaskClient = make_app(MFA_TRACING=True).test_client()
    spans.clear()
    return client


@pytest.fixture
def shop(database: str, config: dict[str, Any], clock: Clock, spans: Spans) -> Iterator[Shop]:
    from mfa_service import MFA

    made = Shop(database, config | {"MFA_TRACING": True}, mfa=MFA(clock=clock)).embed()
    spans.clear()
    yield made
    made.close()


class Collector:
    """Takes spans by OTLP over HTTP."""

    def __init__(self) -> None:
        self.spans: list[tuple[dict[str, Any], str]] = []
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.path == "/v1/traces":
                    collector.take(ExportTraceServiceRequest.FromString(body))
                self.send_response(200)
                self.send_header("Content-Type", "application/x-protobuf")
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_port}"

    @property
    def names(self) -> list[str]:
        return [name for _, name in self.spans]

    @property
    def pids(self) -> set[int]:
        return {resource["process.pid"] for resource, _ in self.spans}

    def take(self, sent: ExportTraceServiceRequest) -> None:
        for group in sent.resource_spans:
            values = {each.key: each.value.string_value or each.value.int_value for each in group.resource.attributes}
            self.spans += [(values, span.name) for scope in group.scope_spans for span in scope.spans]

    def wait_for(self, name: str, count: int) -> None:
        deadline = time.monotonic() + 20
        while self.names.count(name) < count and time.monotonic() < deadline:
            time.sleep(0.1)
        assert self.names.count(name) == count


@pytest.fixture
def collector() -> Iterator[Collector]:
    made = Collector()
    thread = threading.Thread(target=made.server.serve_forever)
    thread.start()
    yield made
    made.server.shutdown()
    thread.join()
    made.server.server_close()


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    """What is closed ends a service that `start` has started."""
    with ExitStack() as made:
        yield made


@pytest.fixture
def start(config: dict[str, Any], collector: Collector, stack: ExitStack) -> Start:
    def run(*options: str, **overrides: str) -> str:
        port = free_port()
        settings = config | {"MFA_TRACING": True, "MFA_PUBLIC_URL": f"http://127.0.0.1:{port}"}
        settings |= {name: value for name, value in overrides.items() if name.startswith("MFA_")}
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("MFA_", "OTEL_"))}
        environment |= {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.address, "OTEL_BSP_SCHEDULE_DELAY": "200"}
        environment |= {"PORT": str(port), "TEST_CONFIG": json.dumps(settings)} | overrides
        command = [sys.executable, "-m", "gunicorn", "tests.served:app", "--log-level", "warning", *options]
        ready = lambda: socket.create_connection(("127.0.0.1", port), 1).close()  # noqa: E731
        stack.enter_context(running(command, ready=ready, env=environment, cwd=ROOT))
        return f"http://127.0.0.1:{port}"

    return run


def run(command: list[str], **options: Any) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(command, check=False, capture_output=True, text=True, cwd=ROOT, **options)


def status_of(url: str) -> int:
    with pytest.raises(urllib.error.HTTPError) as refusal:
        urllib.request.urlopen(url, timeout=10)
    with refusal.value:
        return refusal.value.code
