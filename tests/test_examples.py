"""The examples run as they stand, against a real service."""

import json
import os
import socket
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator

import pytest

from tests.bursts import post
from tests.conftest import ROOT, free_port, running
from tests.factories import PASSWORD, bearer, totp

pytestmark = [pytest.mark.services, pytest.mark.parametrize("database", ["sqlite"], indirect=True)]


def test_an_api_verifies_by_the_published_keys(service: str, start: Callable[..., str], tokens: dict[str, str]) -> None:
    api = start([sys.executable, "-m", "flask", "--app", "examples/api_by_jwks", "run", "--port"], service)
    assert ask(f"{api}/orders", tokens["access"]) == (200, {"orders": [], "of": "ada"})
    assert ask(f"{api}/pay", tokens["access"], "POST")[0] == 200
    status, answer = ask(f"{api}/pay", tokens["by device"], "POST")
    assert (status, answer["code"]) == (401, "step_up_required")
    for token, code in ((tokens["pending"], "full_authentication_required"), ("x.y.z", "invalid_token")):
        status, answer = ask(f"{api}/orders", token)
        assert (status, answer["code"]) == (401, code)


def test_a_service_without_flask_reads_our_tokens(
    service: str, start: Callable[..., str], tokens: dict[str, str]
) -> None:
    api = start([sys.executable, "examples/without_flask.py"], service)
    assert ask(api, tokens["access"]) == (200, {"of": "ada"})
    for token in (tokens["pending"], "x.y.z", ""):
        assert ask(api, token)[0] == 401


# ── means ────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def service(serve: Callable[..., str]) -> str:
    return serve(MFA_AUDIENCES="shop")


@pytest.fixture
def start() -> Iterator[Callable[..., str]]:
    """Run an example; a command that ends in an option is given the port with it."""
    import contextlib

    with contextlib.ExitStack() as stack:

        def run(command: list[str], service: str) -> str:
            port = free_port()
            command = [*command, str(port)] if command[-1].startswith("--") else command
            environment = os.environ | {"AUTH_SERVICE": service, "PORT": str(port), "PYTHONPATH": str(ROOT)}
            ready = lambda: socket.create_connection(("127.0.0.1", port), 1).close()  # noqa: E731
            stack.enter_context(running(command, ready=ready, cwd=ROOT, env=environment))
            return f"http://127.0.0.1:{port}"

        yield run


@pytest.fixture
def tokens(service: str) -> dict[str, str]:
    """An access token of somebody, one of a remembered device, and a pending one."""
    who = {"username": "ada", "password": PASSWORD}
    secret = post(service, "/auth/register", who | {"email": "ada@example.com"}).json["manualEntryKey"]
    body = {"tempToken": post(service, "/auth/login", who).json["tempToken"], "rememberDevice": True}
    signed_in = post(service, "/auth/verify-mfa", body | {"totpCode": totp(secret, int(time.time()) // 30)}).json
    by_device = post(service, "/auth/login", who | {"deviceToken": signed_in["deviceToken"]}).json["accessToken"]
    pending = post(service, "/auth/login", who).json["tempToken"]
    return {"access": signed_in["accessToken"], "by device": by_device, "pending": pending}


def ask(address: str, token: str, method: str = "GET") -> tuple[int, dict[str, object]]:
    request = urllib.request.Request(address, headers=bearer(token), method=method)
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as refusal:
        with refusal:
            return refusal.code, json.load(refusal)
