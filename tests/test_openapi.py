"""A robot reads the OpenAPI document and tries to break what it promises."""

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.bursts import post
from tests.factories import PASSWORD, totp

#: What the robot can't know from a schema; everything else that it checks has to hold.
#: `positive_data_acceptance` takes every body of the right form for acceptable, yet a password may be weak, a name
#: may mix scripts, and a string with control characters is refused without a pattern in the schema saying so.
EXCLUDED = "positive_data_acceptance"


@pytest.mark.services
def test_schemathesis_finds_no_crash_and_no_undocumented_answer(serve: Callable[..., str], tmp_path: Path) -> None:
    address = serve()
    command = [
        str(Path(sys.executable).with_name("schemathesis")),
        "run",
        f"{address}/openapi.json",
        f"--header=Authorization: Bearer {access_token(address)}",
        f"--exclude-checks={EXCLUDED}",
        "--phases=examples,coverage,fuzzing,stateful",
        "--mode=all",
        "--max-examples=150",
        "--workers=2",
        "--continue-on-failure",
        "--generation-database=none",
        "--no-color",
    ]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=180, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "Tested: 8" in ended.stdout


def access_token(address: str) -> str:
    """Sign somebody in, on the server's own clock."""
    ada = {"username": "ada", "password": PASSWORD}
    secret = post(address, "/auth/register", ada | {"email": "ada@example.com"}).json["manualEntryKey"]
    pending = post(address, "/auth/login", ada).json["tempToken"]
    body = {"tempToken": pending, "totpCode": totp(secret, int(time.time()) // 30)}
    return str(post(address, "/auth/verify-mfa", body).json["accessToken"])
