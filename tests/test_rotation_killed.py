"""`flask mfa rotate-keys` dies at random points, ten times over, while people sign in: nobody notices.

Twenty thousand accounts, two worker processes, every kill a `kill -9` of a process that was at work. Afterwards every
code is the one that the phone shows, no login was refused, and nothing needs the old key any more.
"""

import base64
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, insert, select

from mfa_service.config import Settings
from mfa_service.crypto.opaque import new_id
from mfa_service.crypto.passwords import hash_password
from mfa_service.crypto.totp import new_secret
from mfa_service.models import TOTPSecret, User
from mfa_service.services import Services
from mfa_service.services.totp import context_of
from mfa_service.services.users import password_context
from tests.bursts import post
from tests.factories import PASSWORD, totp
from tests.shell import Done, flask_mfa

Serve = Callable[..., str]
Rows = Callable[..., list[dict[str, Any]]]

pytestmark = pytest.mark.services
ACCOUNTS = 20_000
KILLS = 10
#: Of the kills, so many strike before anything was sealed anew: while the key is made, or waited for.
EARLY_KILLS = 2
LOGIN_THREADS = 2
SEED = 20_261_124


def test_killed_ten_times_beside_logins_it_changes_no_secret_and_refuses_nobody(
    serve: Serve, operator: "Operator", services: Services, redis: str, rows: Rows
) -> None:
    secrets = fill(services)
    (old,) = operator.key_ids()
    server = serve(workers=2, MFA_REDIS_URL=redis, MFA_SESSION_RATE_LIMIT="100000 per minute", **operator.settings)
    chance = random.Random(SEED)
    with people_signing_in(server, secrets) as people:
        time.sleep(0.5)  # some sign in under the old key alone
        for number in range(KILLS):
            operator.rotate_and_kill(services, chance, is_early=number < EARLY_KILLS)
        rotated = operator.run("rotate-keys")
        time.sleep(0.5)  # and some under the new one alone
    new = operator.key_ids()[0]

    assert people.refusals == []
    assert operator.key_ids() == [new, old]
    assert list(services.rotation.count_under(old)) in ([], ["sessions"])
    assert services.rotation.count_stale(new) == 0
    assert codes_in(services) == {user_id: totp(as_base32(secret), 1) for user_id, secret in secrets.items()}
    assert len(rows("SELECT id FROM mfa_events WHERE event = 'keys.rotated'")) == 1
    print(f"\n{people.count} logins beside it; {rotated.stderr.splitlines()[-1]}")  # noqa: T201 - how it went

    ensure_old_key_can_go(server, operator, people, old, rows)


def ensure_old_key_can_go(server: str, operator: "Operator", people: "People", old: str, rows: Rows) -> None:
    """The sessions that began under the old key are named; once they were refreshed, nothing needs it."""
    assert "sessions" in operator.run("retire-key", old, "--yes", code=1).stderr
    theirs = {row["id"] for row in rows("SELECT id FROM mfa_sessions WHERE key_id = :old", old=old)}
    for token in (each for each in people.refresh_tokens if each.partition(".")[0] in theirs):
        assert post(server, "/auth/refresh", {"refreshToken": token}).status == 200
    operator.run("retire-key", old, "--yes")
    assert old not in operator.key_ids()
    time.sleep(1.5)  # every worker has looked again
    assert people.sign_in_once(server).status == 200


# ── means ────────────────────────────────────────────────────────────────────────────────────────


class Operator:
    """Somebody at a terminal, with an instance folder of their own: the keyring in it changes."""

    def __init__(self, folder: Path, database: str) -> None:
        self.settings = {"MFA_INSTANCE": str(folder), "MFA_DATABASE_URL": database, "MFA_KEY_REREAD_SECONDS": "1"}
        self._environment = {"PATH": os.environ["PATH"]} | self.settings
        self._keyring = folder / "keyring.json"

    def key_ids(self) -> list[str]:
        return [key["id"] for key in json.loads(self._keyring.read_text())["keys"]]

    def run(self, *words: str, code: int = 0) -> Done:
        answer = flask_mfa(*words, environment=self._environment)
        assert answer.returncode == code, answer.stdout + answer.stderr
        return answer

    def rotate_and_kill(self, services: Services, chance: random.Random, *, is_early: bool) -> None:
        line = [sys.executable, "-m", "flask", "mfa", "rotate-keys"]
        process = subprocess.Popen(line, env=self._environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            if is_early:
                time.sleep(chance.uniform(0.5, 2))  # it waits two seconds for the key: it can't be done by then
            else:
                self._wait_for_progress(services, process)
                time.sleep(chance.uniform(0, 0.3))
            assert process.poll() is None, "it was done before it could be killed: give it more accounts"
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()

    def _wait_for_progress(self, services: Services, process: "subprocess.Popen[bytes]") -> None:
        before: dict[str, int] = {}
        while process.poll() is None:
            new = self.key_ids()[0]  # the killed one may not have come to making it
            stale = services.rotation.count_stale(new)
            # Logins seal anew, too, one value each: only a batch is the work of the command.
            if stale < before.get(new, 0) - 100:
                return
            before[new] = stale
            time.sleep(0.02)


@dataclass
class People:
    """Who signs in over HTTP, each account once; what was refused is kept."""

    secrets: list[tuple[int, bytes]]
    lock: threading.Lock = field(default_factory=threading.Lock)
    refusals: list[object] = field(default_factory=list)
    refresh_tokens: list[str] = field(default_factory=list)
    count: int = 0

    def sign_in_once(self, server: str) -> Any:
        with self.lock:
            number, secret = self.secrets.pop()
        pending = post(server, "/auth/login", {"username": f"user{number}", "password": PASSWORD})
        if pending.status != 200:
            return pending
        code = totp(as_base32(secret), int(time.time()) // 30)
        return post(server, "/auth/verify-mfa", {"tempToken": pending.json["tempToken"], "totpCode": code})

    def sign_in_until(self, server: str, is_over: threading.Event) -> None:
        while not is_over.wait(0.02):
            try:
                answer = self.sign_in_once(server)
            except OSError as error:
                self.refusals.append(error)
                continue
            with self.lock:
                if answer.status == 200:
                    self.count += 1
                    self.refresh_tokens.append(answer.json["refreshToken"])
                else:
                    self.refusals.append(answer)


@contextmanager
def people_signing_in(server: str, secrets: dict[str, bytes]) -> Iterator[People]:
    """People sign in for the length of the block, in the order of chance."""
    numbered = list(enumerate(secrets.values()))
    random.Random(SEED).shuffle(numbered)
    people, is_over = People(numbered), threading.Event()
    threads = [threading.Thread(target=people.sign_in_until, args=(server, is_over)) for _ in range(LOGIN_THREADS)]
    for thread in threads:
        thread.start()
    try:
        yield people
    finally:
        is_over.set()
        for thread in threads:
            thread.join()


def fill(services: Services) -> dict[str, bytes]:
    """Make the accounts, each with a secret of its own and with the password of all; secrets by user id."""
    now, hashed = datetime.now(UTC), hash_password(PASSWORD, 4).encode()
    secrets = {new_id(): new_secret() for _ in range(ACCOUNTS)}
    users = [
        {
            "id": user_id,
            "username": f"user{number}",
            "username_key": f"user{number}",
            "email": f"user{number}@example.com",
            "email_key": f"user{number}@example.com",
            "sealed_password": services.vault.seal(hashed, password_context(user_id)),
            "password_set_at": now,
            "created_at": now,
            "seen_at": now,
            "had_factor_at": now,
        }
        for number, user_id in enumerate(secrets)
    ]
    factors = [
        {
            "id": new_id(),
            "user_id": user_id,
            "sealed_secret": services.vault.seal(secret, context_of(user_id)),
            "last_step": -1,
            "created_at": now,
            "confirmed_at": now,
        }
        for user_id, secret in secrets.items()
    ]
    with services.engine.begin() as connection:
        connection.execute(insert(User), users)
        connection.execute(insert(TOTPSecret), factors)
    services.health.ensure_keyring()
    return secrets


def codes_in(services: Services) -> dict[str, str]:
    """The code that each account's secret gives for one step, out of the database and under the keyring."""
    with services.engine.connect() as connection:
        rows = connection.execute(select(TOTPSecret.user_id, TOTPSecret.sealed_secret)).all()
    return {user_id: totp(as_base32(services.vault.open(sealed, context_of(user_id))), 1) for user_id, sealed in rows}


def as_base32(secret: bytes) -> str:
    return base64.b32encode(secret).decode().rstrip("=")


@pytest.fixture
def operator(instance: Path, database: str, tmp_path: Path) -> Operator:
    return Operator(Path(shutil.copytree(instance, tmp_path / "own-instance")), database)


@pytest.fixture
def services(operator: Operator) -> Iterator[Services]:
    """A look into the database, on the clock of this machine and with the keys of the operator."""
    settings = Settings.load(operator.settings)
    made = Services(settings, create_engine(settings.database), time.time)
    yield made
    made.close()
