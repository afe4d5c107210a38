"""Figures for Prometheus, and a line for each request: what they say, to whom, and what they never hold."""

import os
import re
import signal
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any

import pytest
from flask.testing import FlaskClient

from mfa_service import doctor
from mfa_service.errors import ConfigurationError
from mfa_service.services.audit import Event
from tests.conftest import Clock
from tests.factories import register, sign_in

MakeApp = Callable[..., Any]


# ── who may ask ──────────────────────────────────────────────────────────────────────────────────


def test_there_is_no_such_route_unless_somebody_may_ask(client: FlaskClient) -> None:
    assert client.get("/metrics").json["code"] == "not_found"


@pytest.mark.parametrize(
    ("networks", "address", "status"),
    [
        ("127.0.0.1", "127.0.0.1", 200),
        ("10.0.0.0/8,::1", "10.1.2.3", 200),
        ("10.0.0.0/8,::1", "::1", 200),
        ("10.0.0.0/8", "127.0.0.1", 404),
        ("10.0.0.0/8", "::ffff:10.0.0.1", 404),
        ("10.0.0.0/8", "not an address", 404),
    ],
)
def test_only_the_networks_that_are_named_may_ask(make_app: MakeApp, networks: str, address: str, status: int) -> None:
    client = make_app(MFA_METRICS=networks).test_client()
    assert client.get("/metrics", environ_base={"REMOTE_ADDR": address}).status_code == status


def test_a_proxys_client_is_not_the_proxy(make_app: MakeApp) -> None:
    client = make_app(MFA_METRICS="127.0.0.1", MFA_TRUSTED_PROXIES=1).test_client()
    assert client.get("/metrics", headers={"X-Forwarded-For": "203.0.113.9"}).status_code == 404


def test_what_is_no_network_is_said_at_the_start(make_app: MakeApp) -> None:
    with pytest.raises(ConfigurationError, match="MFA_METRICS must be networks"):
        make_app(MFA_METRICS="everybody")


def test_without_the_extra_nothing_starts_and_the_doctor_says_so(
    make_app: MakeApp, config: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    needed = "MFA_METRICS needs prometheus-client: pip install mfa_service[metrics]"
    with pytest.raises(ConfigurationError, match=re.escape(needed)):
        make_app(MFA_METRICS="127.0.0.1")
    assert [finding.level for finding in doctor.examine(config | {"MFA_METRICS": "::1"}) if needed in finding.text] == [
        "error"
    ]


# ── what they say ────────────────────────────────────────────────────────────────────────────────


def test_requests_are_counted_by_route_method_and_status(metered: FlaskClient) -> None:
    for _ in range(3):
        metered.get("/api/profile")
    metered.get("/api/sessions/one-session?q=1")
    metered.delete("/api/sessions/another-session")
    found = figures(metered)
    assert found['mfa_request_seconds_count{method="GET",route="/api/profile",status="401"}'] == 3
    assert found['mfa_request_seconds_count{method="DELETE",route="/api/sessions/<session_id>",status="401"}'] == 1
    assert found['mfa_refusals_total{code="no_token"}'] == 4


def test_what_clients_make_up_makes_no_series(metered: FlaskClient) -> None:
    for number in range(5):
        metered.open(f"/nowhere/{number}", method=f"WORD{number}")
        metered.open("/healthz", method=f"WORD{number}")
    series = [name for name in figures(metered) if name.startswith("mfa_request_seconds_count")]
    assert sorted(series) == [
        'mfa_request_seconds_count{method="none",route="none",status="404"}',
        'mfa_request_seconds_count{method="none",route="none",status="405"}',
    ]


def test_events_are_counted_by_kind(metered: FlaskClient, clock: Clock) -> None:
    person = register(metered)
    sign_in(metered, person, clock())
    metered.post("/auth/login", json={"username": person.username, "password": "wrong"})
    found = figures(metered)
    for event in (Event.USER_REGISTERED, Event.LOGIN_COMPLETED, Event.PASSWORD_REFUSED):
        assert found[f'mfa_events_total{{event="{event}"}}'] == 1


def test_they_say_what_may_run_out_and_what_runs(metered: FlaskClient) -> None:
    found = figures(metered)
    assert found["mfa_hashing_places_in_use"] == found["mfa_limiter_fallback"] == 0
    assert "mfa_database_connections_in_use" in found
    assert any(name.startswith("mfa_build{") for name in found)


def test_they_name_nobody(metered: FlaskClient, clock: Clock) -> None:
    person = register(metered, "some-body-known")
    token = sign_in(metered, person, clock())
    text = metered.get("/metrics").text
    assert not [secret for secret in (person.username, person.email, person.secret, token) if secret in text]


def test_two_apps_of_a_process_count_for_themselves(make_app: MakeApp) -> None:
    one, other = (make_app(MFA_METRICS="127.0.0.1").test_client() for _ in range(2))
    one.get("/api/profile")
    assert not [name for name in figures(other) if "/api/profile" in name]


@pytest.mark.services
@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_whichever_worker_is_asked_knows_of_all_and_of_those_that_have_gone(
    serve: Callable[..., str], redis: str
) -> None:
    address = serve(workers=2, MFA_METRICS="127.0.0.1", MFA_REDIS_URL=redis)
    for _ in range(40):
        assert status_of(f"{address}/api/profile") == 401
    name = 'mfa_request_seconds_count{method="GET",route="/api/profile",status="401"}'
    assert {served_figures(address)[name] for _ in range(8)} == {40}
    for worker in workers_of(address):
        os.kill(worker, signal.SIGKILL)
    deadline = time.monotonic() + 20
    while status_of(f"{address}/healthz") != 200 and time.monotonic() < deadline:
        time.sleep(0.1)
    assert served_figures(address)[name] == 40


# ── means ────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def metered(make_app: MakeApp) -> FlaskClient:
    client: FlaskClient = make_app(MFA_METRICS="127.0.0.1").test_client()
    return client


def figures(client: FlaskClient) -> dict[str, float]:
    answer = client.get("/metrics")
    assert answer.content_type.startswith("text/plain; version=")
    return parsed(answer.text)


def parsed(text: str) -> dict[str, float]:
    return {name: float(value) for name, value in re.findall(r"^([^#].*) (\S+)$", text, re.M)}


def served_figures(address: str) -> dict[str, float]:
    with urllib.request.urlopen(f"{address}/metrics", timeout=10) as answer:
        return parsed(answer.read().decode())


def status_of(url: str) -> int:
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as refusal:
        with refusal:
            return refusal.code
    except OSError:
        return 0


def workers_of(address: str) -> list[int]:
    """The processes that serve an address, but for the one that minds them."""
    port = address.rpartition(":")[2]
    found = []
    for folder in os.listdir("/proc"):
        if not folder.isdigit():
            continue
        try:
            with open(f"/proc/{folder}/environ", "rb") as file:
                is_ours = f"PORT={port}".encode() in file.read().split(b"\0")
            with open(f"/proc/{folder}/stat") as file:
                parent = int(file.read().rpartition(") ")[2].split()[1])
        except OSError:
            continue
        if is_ours:
            found.append((int(folder), parent))
    minders = {pid for pid, _ in found}
    return [pid for pid, parent in found if parent in minders]
