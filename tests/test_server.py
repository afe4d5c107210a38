"""How many processes and threads serve."""

import os

import pytest

from mfa_service.config import Settings
from mfa_service.server import Server


@pytest.mark.parametrize("cores", [1, 2, 64, 65, 192, None])
def test_what_follows_from_the_cores_the_settings_allow(monkeypatch: pytest.MonkeyPatch, cores: int | None) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    planned = Server.planned({})
    assert planned.hashing_threads == min(cores or 1, 64)
    made = {"MFA_HASHING_THREADS": str(planned.hashing_threads), "MFA_HASHING_QUEUE": str(planned.hashing_queue)}
    assert Settings.load(made, needs_keys=False).hashing_threads == planned.hashing_threads
