"""The first ring against guessing: five calls in fifteen minutes for each client and route (API.md, Locks)."""

import contextlib
import http.client
import json
import os
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

import pytest
from flask import Flask
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from mfa_service.web.contract import contract_of
from tests.conftest import ROOT, free_port
from tests.faults.servers import Redis
from tests.faults.servers import own_redis as redis_of_ones_own

MakeApp = Callable[..., Flask]

CREDENTIAL_ROUTES = [
    *("/auth/register", "/auth/login", "/auth/verify-mfa", "/auth/enrol"),
    *("/auth/step-up", "/auth/password", "/api/mfa/totp/confirm"),
]
SESSION_ROUTES = [
    *(("POST", "/auth/refresh"), ("POST", "/auth/logout")),
    *(("POST", "/api/mfa/totp"), ("POST", "/api/mfa/recovery-codes"), ("DELETE", "/api/mfa")),
    *(("DELETE", "/api/sessions/x"), ("DELETE", "/api/devices/x"), ("DELETE", "/api/devices")),
    ("GET", "/.well-known/jwks.json"),
]
#: An empty setting is the default: five in fifteen minutes.
SHIPPED = {"MFA_AUTH_RATE_LIMIT": "", "MFA_REGISTRATION_RATE_LIMIT": ""}

#: The limiter knows no database: one kind will do.
pytestmark = pytest.mark.parametrize("database", ["sqlite"], indirect=True)


@pytest.mark.parametrize("path", CREDENTIAL_ROUTES)
def test_five_calls_pass_and_the_sixth_is_refused(limited: FlaskClient, path: str) -> None:
    answers = [call(limited, path) for _ in range(7)]
    assert [answer.status_code == 429 for answer in answers] == [False] * 5 + [True] * 2
    seconds = answers[5].json["retryAfter"]
    assert answers[5].json == {
        "error": "Too many authentication attempts",
        "code": "too_many_attempts",
        "retryAfter": seconds,
    }
    assert answers[5].headers["Retry-After"] == str(seconds)
    assert answers[5].headers["Cache-Control"] == "no-store"
    assert seconds >= 890


def test_these_routes_and_no_others_are_limited(app: Flask) -> None:
    found: dict[str, set[tuple[str, str]]] = defaultdict(set)
    for rule in app.url_map.iter_rules():
        [method] = rule.methods - {"HEAD", "OPTIONS"}
        path = rule.rule.partition("<")[0] + "x" * ("<" in rule.rule)
        for limit in contract_of(app.view_functions[rule.endpoint]).limits or ("none",):
            found[limit].add((method, path))
    assert found["credentials"] == {("POST", path) for path in CREDENTIAL_ROUTES}
    assert found["sessions"] == set(SESSION_ROUTES)
    assert found["registrations"] == {("POST", "/auth/register")}
    assert {method for method, _ in found["none"]} == {"GET"}


@pytest.mark.parametrize(("method", "path"), SESSION_ROUTES)
def test_sixty_calls_a_minute_pass_where_no_password_and_no_code_can_be_tried(
    limited: FlaskClient, method: str, path: str
) -> None:
    answers = [limited.open(path, method=method, json={}) for _ in range(62)]
    assert [answer.status_code == 429 for answer in answers] == [False] * 60 + [True] * 2
    assert 1 <= answers[-1].json["retryAfter"] <= 60
    assert answers[-1].headers["Cache-Control"] == "no-store"


def test_how_often_sessions_are_refreshed_is_a_setting_of_its_own(make_app: MakeApp) -> None:
    client = make_app(MFA_SESSION_RATE_LIMIT="2 per minute").test_client()
    assert [call(client, "/auth/refresh").status_code for _ in range(3)] == [400, 400, 429]
    assert {call(client, "/auth/login").status_code for _ in range(8)} == {400}


def test_nobody_is_told_to_wait_longer_than_the_window(limited: FlaskClient) -> None:
    for _ in range(5):
        call(limited, "/auth/login")
    assert call(limited, "/auth/login").json["retryAfter"] <= 15 * 60


def test_after_the_time_that_was_named_the_door_is_open_again(make_app: MakeApp) -> None:
    client = make_app(MFA_AUTH_RATE_LIMIT="2 per 2 seconds").test_client()
    assert {call(client, "/auth/login").status_code for _ in range(2)} == {400}
    refusal = call(client, "/auth/login")
    assert refusal.status_code == 429
    time.sleep(refusal.json["retryAfter"])
    assert call(client, "/auth/login").status_code == 400


def test_each_route_counts_for_itself(limited: FlaskClient) -> None:
    for path in CREDENTIAL_ROUTES:
        assert all(call(limited, path).status_code in (400, 401) for _ in range(5))
    assert {call(limited, path).status_code for path in CREDENTIAL_ROUTES} == {429}


def test_what_is_no_credential_route_is_not_counted(limited: FlaskClient) -> None:
    for path in ("/healthz", "/readyz", "/openapi.json"):
        assert {limited.get(path).status_code for _ in range(20)} == {200}
    assert {limited.get("/api/profile").status_code for _ in range(20)} == {401}


def test_one_client_never_shuts_another_out(limited: FlaskClient) -> None:
    assert [call(limited, "/auth/login", "192.0.2.1").status_code for _ in range(6)][-1] == 429
    assert call(limited, "/auth/login", "192.0.2.2").status_code == 400


# ── counted before anything else is done ─────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "request_of",
    [
        {"data": b"{", "content_type": "application/json"},
        {"data": b"", "content_type": "application/json"},
        {"data": b"x" * 70_000, "content_type": "application/json"},
        {"data": b"{}", "content_type": "text/plain"},
        {"json": {"username": "", "password": ""}},
        {"json": {"username": None}},
        {"json": {"username": "\x00", "password": "x"}},
        {"json": {"username": "nobody", "password": "not-the-right-one"}},
    ],
    ids=lambda request: repr(request)[:40],
)
def test_whatever_the_body_it_counts(limited: FlaskClient, request_of: dict[str, Any]) -> None:
    answers = [limited.post("/auth/login", **request_of) for _ in range(6)]
    assert [answer.status_code == 429 for answer in answers] == [False] * 5 + [True]
    # And now a body of any other kind is refused as well.
    assert limited.post("/auth/login", json={"username": "ada", "password": "right"}).status_code == 429


def test_a_refused_call_costs_neither_a_hash_nor_a_row(
    make_app: MakeApp, rows: Callable[..., list[dict[str, Any]]]
) -> None:
    client = make_app(**SHIPPED, MFA_BCRYPT_COST=14).test_client()
    body = {"username": "nobody", "password": "not-the-right-one"}
    for _ in range(5):
        call(client, "/auth/login")
    before = time.perf_counter()
    assert {client.post("/auth/login", json=body).status_code for _ in range(10)} == {429}
    assert time.perf_counter() - before < 0.5  # ten hashes of this cost take ten seconds
    assert rows("SELECT * FROM mfa_events") == []


@pytest.mark.parametrize(
    "path", ["//auth/login", "///auth/login", "/auth/%6cogin", "/auth/login/", "/auth//login", "/AUTH/login"]
)
def test_no_spelling_of_the_path_has_a_bucket_of_its_own(limited: FlaskClient, path: str) -> None:
    for _ in range(5):
        call(limited, "/auth/login")
    environ = {"PATH_INFO": path.replace("%6c", "l")}
    assert limited.open("/", method="POST", environ_overrides=environ).status_code in (404, 429)


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS", "PUT", "post"])
def test_no_method_has_a_bucket_of_its_own(limited: FlaskClient, method: str) -> None:
    for _ in range(5):
        call(limited, "/auth/login")
    environ = {"REQUEST_METHOD": method}
    assert limited.open("/auth/login", environ_overrides=environ).status_code in (405, 429)


# ── who is one client ────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "addresses",
    [
        [f"2001:db8:1:2::{number:x}" for number in range(6)],
        [f"2001:db8:1:2:{number}:{number}:{number}:{number}" for number in range(6)],
        ["2001:db8::1", "2001:DB8::1", "2001:0db8:0000::0001", "2001:db8:0:0:0:0:0:1", "2001:db8::0.0.0.1"] * 2,
        ["192.0.2.1", "::ffff:192.0.2.1", "::FFFF:192.0.2.1", "::ffff:c000:201", "0:0:0:0:0:ffff:192.0.2.1"] * 2,
        ["", "notanip", "999.1.1.1", "1.2.3", "unknown", "192.0.2.1\x00", "::g"],
    ],
    ids=["a /64", "a /64 again", "spellings of IPv6", "IPv4 in IPv6", "no address at all"],
)
def test_these_addresses_are_one_client(limited: FlaskClient, addresses: list[str]) -> None:
    answers = [call(limited, "/auth/login", address) for address in addresses[:6]]
    assert [answer.status_code for answer in answers] == [400] * 5 + [429]


@pytest.mark.parametrize(
    "addresses",
    [
        [f"2001:db8:1:{number:x}::1" for number in range(6)],
        [f"::ffff:192.0.2.{number}" for number in range(6)],
        [f"192.0.2.{number}" for number in range(6)],
    ],
    ids=["IPv6 networks", "IPv4 in IPv6", "IPv4"],
)
def test_these_addresses_are_six_clients(limited: FlaskClient, addresses: list[str]) -> None:
    assert {call(limited, "/auth/login", address).status_code for address in addresses} == {400}


def test_without_a_trusted_proxy_forwarded_headers_change_nothing(limited: FlaskClient) -> None:
    names = ("X-Forwarded-For", "X-Real-IP", "Forwarded", "X-Client-IP", "True-Client-IP", "CF-Connecting-IP")
    answers = [
        call(limited, "/auth/login", headers=dict.fromkeys(names, f"198.51.100.{number}")) for number in range(6)
    ]
    assert [answer.status_code for answer in answers] == [400] * 5 + [429]


@pytest.mark.parametrize("proxies", [1, 2])
@pytest.mark.parametrize(
    "spoofed",
    ["198.51.100.{}, ", "198.51.100.{}, 203.0.113.{}, ", "notanip{}, ", "{}, , ,", "a" * 5000 + "{}, ", "::{}, "],
)
def test_behind_proxies_what_the_client_adds_on_the_left_changes_nothing(
    make_app: MakeApp, proxies: int, spoofed: str
) -> None:
    client = make_app(**SHIPPED, MFA_TRUSTED_PROXIES=proxies).test_client()
    told_by_proxies = ["192.0.2.1", "10.0.0.1"][:proxies]
    answers = [
        forwarded(client, spoofed.replace("{}", str(number)) + ", ".join(told_by_proxies)) for number in range(6)
    ]
    assert [answer.status_code for answer in answers] == [400] * 5 + [429]
    assert forwarded(client, ", ".join(["192.0.2.2", "10.0.0.1"][:proxies])).status_code == 400


@pytest.mark.parametrize("proxies", [1, 2])
@pytest.mark.parametrize("header", [None, "", ",", "garbage", "garbage, garbage", "1.2.3.4.5, 6", "' OR 1=1, \x00"])
def test_behind_proxies_an_unreadable_header_still_limits(make_app: MakeApp, proxies: int, header: str | None) -> None:
    client = make_app(**SHIPPED, MFA_TRUSTED_PROXIES=proxies).test_client()
    assert [forwarded(client, header).status_code for _ in range(6)] == [400] * 5 + [429]


def test_behind_two_proxies_a_client_that_passed_one_of_them_by_is_still_limited(make_app: MakeApp) -> None:
    client = make_app(**SHIPPED, MFA_TRUSTED_PROXIES=2).test_client()
    assert [forwarded(client, f"198.51.100.{number}").status_code for number in range(6)] == [400] * 5 + [429]


def test_the_audit_names_the_address_that_the_limit_counts(
    make_app: MakeApp, rows: Callable[..., list[dict[str, Any]]]
) -> None:
    client = make_app(MFA_TRUSTED_PROXIES=1).test_client()
    body = {"username": "nobody", "password": "not-the-right-one"}
    for header in ("6.6.6.6, 192.0.2.1", "6.6.6.6, notanip"):
        assert client.post("/auth/login", json=body, headers={"X-Forwarded-For": header}).status_code == 401
    assert [row["address"] for row in rows("SELECT address FROM mfa_events ORDER BY id")] == ["192.0.2.1", "unknown"]


# ── registrations of everybody together ──────────────────────────────────────────────────────────


def test_registrations_are_limited_for_all_clients_together(make_app: MakeApp) -> None:
    client = make_app(MFA_REGISTRATION_RATE_LIMIT="7 per hour").test_client()
    answers = [call(client, "/auth/register", f"192.0.2.{number}") for number in range(8)]
    assert [answer.status_code for answer in answers] == [400] * 7 + [429]
    assert answers[-1].json["retryAfter"] > 3000
    assert call(client, "/auth/login", "192.0.2.1").status_code == 400


@pytest.mark.parametrize(("each", "everybody"), [("2 per 15 minutes", "6 per hour"), ("2 per hour", "6 per minute")])
def test_a_client_over_its_own_limit_uses_up_nothing_of_everybodys(
    make_app: MakeApp, each: str, everybody: str
) -> None:
    client = make_app(MFA_AUTH_RATE_LIMIT=each, MFA_REGISTRATION_RATE_LIMIT=everybody).test_client()
    assert [call(client, "/auth/register", "192.0.2.1").status_code for _ in range(20)] == [400] * 2 + [429] * 18
    assert call(client, "/auth/register", "192.0.2.2").status_code == 400


# ── many at once, many processes, a store that dies ──────────────────────────────────────────────


@pytest.mark.services
def test_of_thirty_calls_at_once_five_pass(serve: Callable[..., str]) -> None:
    assert at_once(serve(**SHIPPED), 30) == {400: 5, 429: 25}


@pytest.mark.faults("G12")
@pytest.mark.services
def test_two_processes_with_redis_count_together(serve: Callable[..., str], own_redis: Redis) -> None:
    address = serve(workers=2, MFA_REDIS_URL=own_redis.url, **SHIPPED)
    assert at_once(address, 30) == {400: 5, 429: 25}


@pytest.mark.faults("G12")
@pytest.mark.services
def test_a_restart_forgets_nothing_that_redis_knows(make_app: MakeApp, own_redis: Redis) -> None:
    for status in ([400] * 5, [429] * 5):
        client = make_app(MFA_REDIS_URL=own_redis.url, **SHIPPED).test_client()
        assert [call(client, "/auth/login").status_code for _ in range(5)] == status


@pytest.mark.services
def test_with_redis_nobody_is_told_to_come_too_early(make_app: MakeApp, own_redis: Redis) -> None:
    client = make_app(MFA_REDIS_URL=own_redis.url, MFA_AUTH_RATE_LIMIT="1 per 2 seconds").test_client()
    assert call(client, "/auth/login").status_code == 400
    refusal = call(client, "/auth/login")
    assert refusal.status_code == 429
    time.sleep(refusal.json["retryAfter"])
    assert call(client, "/auth/login").status_code == 400


@pytest.mark.faults("Q8", "G19")
@pytest.mark.services
def test_when_redis_dies_each_process_goes_on_counting(serve: Callable[..., str], own_redis: Redis) -> None:
    address = serve(workers=2, MFA_REDIS_URL=own_redis.url, **SHIPPED)
    assert at_once(address, 2) == {400: 2}
    assert get(address, "/readyz")[0] == 200
    own_redis.kill()
    statuses = at_once(address, 40)
    assert statuses.keys() == {400, 429}
    assert 2 <= statuses[400] <= 4, "half of five, without a rest, in each process that was asked"
    status, body = get(address, "/readyz")
    assert (status, body["code"], body["fields"]) == (503, "not_ready", {"limiter": "is down"})
    assert get(address, "/healthz")[0] == 200


@pytest.mark.faults("Q8", "G19")
@pytest.mark.services
@pytest.mark.parametrize("harm", ["kill", "stop"])
def test_a_store_that_is_dead_or_hangs_costs_little_time_and_opens_nothing(
    make_app: MakeApp, own_redis: Redis, harm: str
) -> None:
    client = make_app(MFA_REDIS_URL=own_redis.url, **SHIPPED).test_client()
    assert call(client, "/auth/login").status_code == 400
    getattr(own_redis, harm)()
    before = time.perf_counter()
    statuses = [call(client, "/auth/login").status_code for _ in range(10)]
    assert time.perf_counter() - before < 2
    assert statuses == [400] * 5 + [429] * 5
    assert client.get("/readyz").json["fields"] == {"limiter": "is down"}


@pytest.mark.faults("Q8")
@pytest.mark.services
def test_calls_that_meet_a_hanging_store_together_are_all_answered(serve: Callable[..., str], own_redis: Redis) -> None:
    address = serve(MFA_REDIS_URL=own_redis.url, **SHIPPED)
    assert at_once(address, 1) == {400: 1}
    own_redis.stop()
    assert at_once(address, 20) == {400: 5, 429: 15}


@pytest.mark.faults("Q8", "G19")
@pytest.mark.services
def test_a_store_that_comes_back_is_used_again_without_a_restart(make_app: MakeApp, own_redis: Redis) -> None:
    client = make_app(MFA_REDIS_URL=own_redis.url, **SHIPPED).test_client()
    own_redis.kill()
    assert [call(client, "/auth/login").status_code for _ in range(6)][-1] == 429
    own_redis.start()
    assert client.get("/readyz").status_code == 200
    deadline = time.monotonic() + 15
    while call(client, "/auth/login").status_code == 429:  # of the process's own count; Redis knows nothing yet
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert [call(client, "/auth/login").status_code for _ in range(5)] == [400] * 4 + [429]


@pytest.mark.faults("G12")
@pytest.mark.services
def test_several_processes_without_redis_refuse_to_start(config: dict[str, Any]) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MFA_")}
    environment |= {"WEB_CONCURRENCY": "2", "PORT": str(free_port()), "TEST_CONFIG": json.dumps(config)}
    command = [sys.executable, "-m", "gunicorn", "tests.served:app"]
    ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=30, check=False)
    assert ended.returncode != 0
    assert "MFA_REDIS_URL" in ended.stderr


# ── fixtures and helpers ─────────────────────────────────────────────────────────────────────────


@pytest.fixture
def limited(make_app: MakeApp) -> FlaskClient:
    """A client of the service with the limits it is shipped with."""
    return make_app(**SHIPPED).test_client()


def call(
    client: FlaskClient, path: str, address: str = "127.0.0.1", headers: dict[str, str] | None = None
) -> TestResponse:
    """A call that passes the limit and is refused for its body, or for lack of a token: 400, 401, or 429."""
    return client.post(path, json={}, headers=headers, environ_overrides={"REMOTE_ADDR": address})


def forwarded(client: FlaskClient, header: str | None) -> TestResponse:
    environ = {} if header is None else {"HTTP_X_FORWARDED_FOR": header}
    return client.post("/auth/login", json={}, environ_overrides=environ)


def get(address: str, path: str) -> tuple[int, dict[str, Any]]:
    with contextlib.closing(http.client.HTTPConnection(urlsplit(address).netloc, timeout=10)) as connection:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())


def at_once(address: str, count: int) -> Counter[int]:
    """So many calls on as many connections, all but the last byte of each sent before any is completed."""
    netloc = urlsplit(address).netloc
    connections = [http.client.HTTPConnection(netloc, timeout=20) for _ in range(count)]
    for connection in connections:
        connection.putrequest("POST", "/auth/login")
        connection.putheader("Content-Type", "application/json")
        connection.putheader("Content-Length", "2")
        connection.endheaders(b"{")
    for connection in connections:
        connection.send(b"}")
    with ThreadPoolExecutor(count) as pool:
        statuses = Counter(pool.map(lambda connection: connection.getresponse().status, connections))
    for connection in connections:
        connection.close()
    return statuses


@pytest.fixture
def own_redis() -> Iterator[Redis]:
    with redis_of_ones_own() as own:
        yield own
