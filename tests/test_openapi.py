"""A robot reads the OpenAPI document and tries to break what it promises."""

import json
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.bursts import post
from tests.factories import PASSWORD, totp
from tests.services import Rows

#: What the robot can't know from a schema; everything else that it checks has to hold.
#: `positive_data_acceptance` takes every body of the right form for acceptable, yet a password may be weak, a name
#: may mix scripts, and a string with control characters is refused without a pattern in the schema saying so.
EXCLUDED = "positive_data_acceptance"


@pytest.mark.services
@pytest.mark.parametrize("paths", ["--exclude-path=/auth/logout", "--include-path=/auth/logout"])
def test_schemathesis_finds_no_crash_and_no_undocumented_answer(
    serve: Callable[..., str], rows: Rows, tmp_path: Path, paths: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A request line that gunicorn finds too long it refuses by itself, in a form of its own: let all of them in.
    monkeypatch.setenv("GUNICORN_CMD_ARGS", "--limit-request-line 0")
    # Logging out is left for the end: it would make the token worthless for everything else.
    address = serve()
    command = [
        str(Path(sys.executable).with_name("schemathesis")),
        "run",
        f"{address}/openapi.json",
        f"--header=Authorization: Bearer {access_token(address, rows)}",
        f"--exclude-checks={EXCLUDED}",
        paths,
        "--phases=examples,coverage,fuzzing,stateful",
        "--mode=all",
        "--max-examples=150",
        "--workers=2",
        "--continue-on-failure",
        "--generation-database=none",
        "--no-color",
    ]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert f"Tested: {_operations(address) - 1 if 'exclude' in paths else 1}" in ended.stdout


def _operations(address: str) -> int:
    with urllib.request.urlopen(f"{address}/openapi.json", timeout=30) as answer:
        return sum(len(methods) for methods in json.load(answer)["paths"].values())


def access_token(address: str, rows: Rows) -> str:
    """Sign an administrator in, on the server's own clock: all routes are open to the robot."""
    ada = {"username": "ada", "password": PASSWORD}
    secret = post(address, "/auth/register", ada | {"email": "ada@example.com"}).json["manualEntryKey"]
    rows("INSERT INTO mfa_user_roles (user_id, role) SELECT id, 'admin' FROM mfa_users")
    pending = post(address, "/auth/login", ada).json["tempToken"]
    body = {"tempToken": pending, "totpCode": totp(secret, int(time.time()) // 30)}
    return str(post(address, "/auth/verify-mfa", body).json["accessToken"])
