"""A client that knows the five fixed routes only goes on working, against the limits as they are shipped."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import program


@pytest.mark.services
def test_an_existing_client_passes_unchanged(serve: Callable[..., str]) -> None:
    program("oathtool")
    address = serve(MFA_AUTH_RATE_LIMIT="5 per 15 minutes", MFA_BCRYPT_COST=12)
    client = Path(__file__).with_name("existing_client.py")
    answer = subprocess.run([sys.executable, str(client), address], capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout == "everything as it always was\n"
