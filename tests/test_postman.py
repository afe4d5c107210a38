"""The collection for Postman is that of the contract, and its walk goes through against a real service."""

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient

from tests.conftest import ROOT, program

COLLECTION = ROOT / "docs/mfa_service.postman_collection.json"
ENVIRONMENT = ROOT / "docs/mfa_service.postman_environment.json"
STEPS = ["register", "login", "verify-mfa", "profile", "refresh", "step-up", "logout", "profile"]


def test_it_is_what_the_generator_makes() -> None:
    command = [sys.executable, str(ROOT / "tools/postman.py"), "--check"]
    assert subprocess.run(command, cwd=ROOT, timeout=60, check=False).returncode == 0, "run python tools/postman.py"


def test_it_holds_every_operation_and_no_other(client: FlaskClient) -> None:
    documented = {
        (method.upper(), path) for path, item in client.get("/openapi.json").json["paths"].items() for method in item
    }
    assert {call(request) for request in requests(collection())} == documented


def test_the_walk_goes_from_registering_to_logging_out_and_is_refused_then() -> None:
    walked = iter([path.rpartition("/")[2] for _, path in map(call, requests(folder("Walk")))])
    assert all(step in walked for step in STEPS)


def test_every_step_of_the_walk_has_claims() -> None:
    for item in folder("Walk")["item"]:
        tests = "\n".join(
            line for event in item["event"] if event["listen"] == "test" for line in event["script"]["exec"]
        )
        assert "pm.response.to.have.status(" in tests, item["name"]
        assert ("jsonSchema(" in tests) == ("status(204)" not in tests), item["name"]


def test_every_body_fits_the_contract(client: FlaskClient) -> None:
    document = client.get("/openapi.json").json
    for request in requests(collection()):
        method, path = call(request)
        wanted = document["paths"][path][method.lower()].get("requestBody")
        assert ("body" in request) == bool(wanted), path
        if wanted:
            name = wanted["content"]["application/json"]["schema"]["$ref"].rpartition("/")[2]
            schema, body = document["components"]["schemas"][name], json.loads(request["body"]["raw"])
            assert set(schema.get("required", ())) <= set(body) <= set(schema["properties"]), path
            assert "…" not in body.values(), path


def test_nothing_is_kept_in_it_but_the_address() -> None:
    assert [(value["key"], value["value"]) for value in json.loads(ENVIRONMENT.read_text())["values"]] == [
        ("baseUrl", "http://127.0.0.1:8000")
    ]


@pytest.mark.services
@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
@pytest.mark.parametrize("options", [[], ["--folder", "Walk"]], ids=["run as a whole", "the folder alone"])
def test_the_walk_runs_by_itself_within_the_limits_as_shipped(
    serve: Callable[..., str], tmp_path: Path, options: list[str]
) -> None:
    newman = program("newman")
    address = serve(MFA_AUTH_RATE_LIMIT="5 per 15 minutes", MFA_REGISTRATION_RATE_LIMIT="300 per hour")
    report = tmp_path / "report.json"
    command = [newman, "run", str(COLLECTION), "-e", str(ENVIRONMENT), "--env-var", f"baseUrl={address}", *options]
    command += ["--reporters", "cli,json", "--reporter-json-export", str(report), "--color", "off"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    run = json.loads(report.read_text())["run"]
    assert [execution["item"]["name"] for execution in run["executions"]] == [
        item["name"] for item in folder("Walk")["item"]
    ]
    assert run["stats"]["assertions"]["total"] > 20


# ── means ────────────────────────────────────────────────────────────────────────────────────────


def collection() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(COLLECTION.read_text())
    return found


def folder(name: str) -> dict[str, Any]:
    return next(item for item in collection()["item"] if item["name"] == name)


def requests(item: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """All requests in a folder and the folders in it."""
    if "request" in item:
        yield item["request"]
    for child in item.get("item", ()):
        yield from requests(child)


def call(request: dict[str, Any]) -> tuple[str, str]:
    """Method and path, as the contract writes it."""
    path = request["url"]["raw"].removeprefix("{{baseUrl}}")
    return request["method"], re.sub(r":(\w+)", r"{\1}", path)
