"""The pages under docs/ go as they stand: their blocks run in one shell, in order, against a real service."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mfa_service.doctor import DAYS
from mfa_service.services.audit import Event
from tests.conftest import ROOT, program
from tests.documents import table
from tests.test_readme import as_pattern

#: What is read and not run; two are about attacks on a deployment that is not here.
TEXTS = {"asvs.md", "threat-model.md", "attacks.md", "attack-report.md"}
PAGES = sorted(page for page in (ROOT / "docs").glob("*.md") if page.name not in TEXTS)
#: Of the OWASP Logging Vocabulary Cheat Sheet, those that events of ours are.
OWASP = {
    *("authn_login_success", "authn_login_fail", "authn_login_fail_max", "authn_login_lock", "authn_password_change"),
    *("authn_token_created", "authn_token_revoked", "authn_token_reuse", "authn_token_delete", "authz_fail"),
    *("authz_admin", "authz_change", "crypt_decrypt_fail", "input_validation_fail", "privilege_permissions_changed"),
    *("sensitive_create", "sensitive_read", "sensitive_update", "sensitive_delete", "session_created"),
    *("session_renewed", "session_use_after_expire", "user_created", "user_updated", "user_archived", "user_deleted"),
}
#: What a page takes for granted: that the one before it was read.
FIRST = {"audit-log.md": "administration.md", "keys.md": "administration.md"}
#: What a page tells to set before.
SETTINGS = {"observability.md": {"MFA_METRICS": "127.0.0.1"}}


@pytest.mark.services
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_every_block_goes_as_shown(page: Path, serve: Callable[..., str], own: dict[str, str], tmp_path: Path) -> None:
    for needed in ("curl", "oathtool"):
        program(needed)
    address = serve(**own, **SETTINGS.get(page.name, {}))
    if page.name == "embedding.md":  # an app with a database of its own
        own = {}
    before = blocks_of(PAGES[0].with_name(FIRST[page.name]))[:1] if page.name in FIRST else []
    blocks = [*before, *blocks_of(page)]
    outputs = run([code.replace("http://127.0.0.1:${PORT:-8000}", address) for code, _ in blocks], own, tmp_path)
    for (code, shown), output in zip(blocks, outputs, strict=True):
        assert shown is None or re.search(rf"^{as_pattern(shown)}\Z", output, re.M), f"{code}\nanswered\n{output}"


def test_no_page_is_without_a_block() -> None:
    assert all(blocks_of(page) for page in PAGES)


def test_how_long_a_key_is_used_is_what_the_doctor_goes_by_and_within_nists_times() -> None:
    years = {"once a year": 1, "every three years": 3}
    said = {key: years.get(when) for key, when, _ in table("docs/keys.md", "How long a key is used")}
    assert [said[key] for key in ("keyring", "signing keys", "seal keys")] == [days / 365 for days in DAYS.values()]
    assert DAYS["keyring key"] <= 2 * 365
    assert max(DAYS["signing key"], DAYS["seal key"]) <= 3 * 365


def test_every_event_has_a_name_in_owasps_vocabulary() -> None:
    rows = re.findall(r"^\| `([a-z_.]+)` \| (.+) \|$", (ROOT / "docs/audit-log.md").read_text(), re.M)
    assert sorted(event for event, _ in rows if "." in event) == sorted(Event)
    assert set(re.findall(r"`([a-z_]+)`", " ".join(names for event, names in rows if "." in event))) <= OWASP


# ── means ────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def own(instance: Path, config: dict[str, Any], tmp_path: Path) -> dict[str, str]:
    """Settings for a service and for commands beside it, on keys that may be changed."""
    shutil.copytree(instance, tmp_path / "instance")
    return {
        "MFA_INSTANCE": str(tmp_path / "instance"),
        "MFA_DATABASE_URL": config["MFA_DATABASE_URL"],
        "MFA_BCRYPT_COST": "10",
        "MFA_KEY_REREAD_SECONDS": "1",
    }


def blocks_of(page: Path) -> list[tuple[str, str | None]]:
    """Each block with the output that is shown under it, if there is one."""
    found = re.findall(r"^```sh\n(.*?)^```$(?:\n\n^```(?:json|text)\n(.*?)^```$)?", page.read_text(), re.M | re.S)
    return [(code, shown or None) for code, shown in found]


def run(blocks: list[str], settings: dict[str, str], folder: Path) -> list[str]:
    """What each block prints, all of them pasted into one shell."""
    divider = "-- next block --"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MFA_")} | settings
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    script = f"\necho '{divider}'\n".join(["set -e\n", *blocks])
    done = subprocess.run(
        ["bash"], input=script, capture_output=True, text=True, timeout=120, env=environment, cwd=folder, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.split(f"{divider}\n")[1:]
