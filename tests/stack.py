"""deploy/nginx/service.conf and what stands behind it, run for real: nginx with TLS, replicas of gunicorn."""

import contextlib
import http.client
import json
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.conftest import ROOT, free_port, program, running
from tests.factories import PASSWORD

NAME = "auth.example"
#: Limits that are out of the way.
MANY = {"MFA_AUTH_RATE_LIMIT": "100000 per minute", "MFA_SESSION_RATE_LIMIT": "100000 per minute"}
CREDENTIALS = {"username": "ada", "password": PASSWORD}


Settings = dict[str, str]
Start = Callable[..., "Stack"]


@dataclass
class Reply:
    status: int
    headers: http.client.HTTPMessage
    text: str

    @property
    def json(self) -> dict[str, Any]:
        return dict(json.loads(self.text))


@dataclass
class Replica:
    """One gunicorn on a port of its own, which can be stopped, killed and started again."""

    folder: Path
    environment: dict[str, str]
    app: str = "wsgi:app"
    port: int = field(default_factory=free_port)
    process: "subprocess.Popen[bytes] | None" = None
    sink: int | None = None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def log(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log_file.read_text().splitlines() if line.startswith("{")]

    @property
    def log_file(self) -> Path:
        return self.folder / f"replica-{self.port}.log"

    def start(self) -> None:
        self.launch()
        assert within(30, self.is_up), self.log_file.read_text()

    def launch(self) -> None:
        """Begin to start; it may have to wait for what it needs."""
        command = [sys.executable, "-m", "gunicorn", self.app]
        environment = self.environment | {"PORT": str(self.port)}
        with self.log_file.open("ab") as log:
            sink = log if self.sink is None else self.sink
            self.process = subprocess.Popen(
                command, env=environment, cwd=ROOT, stdout=sink, stderr=sink, start_new_session=True
            )

    def is_up(self) -> bool:
        return self._answers("/readyz")

    def is_alive(self) -> bool:
        return self._answers("/healthz")

    def _answers(self, path: str) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=2)
        try:
            connection.request("GET", path)
            return connection.getresponse().status == 200
        except OSError:
            return False
        finally:
            connection.close()

    def stop(self) -> None:
        """As systemd and Docker do it: the master is told, and waited for."""
        if self.process is not None:
            self.process.terminate()
            assert self.process.wait(timeout=45) == 0

    def kill(self) -> None:
        """As a machine that goes away: the master and its workers, in the middle of whatever they do."""
        if self.process is not None and self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(timeout=10)


@dataclass
class Stack:
    """nginx in front of replicas."""

    folder: Path
    port: int
    replicas: list[Replica]

    def call(
        self, method: str, path: str, body: object = None, token: str = "", headers: dict[str, str] | None = None
    ) -> Reply:
        """One request on a connection of its own. Bytes are sent as they are, everything else as JSON."""
        given = {"Host": NAME, "Content-Type": "application/json"} | (headers or {})
        given |= {"Authorization": f"Bearer {token}"} if token else {}
        connection = http.client.HTTPConnection(NAME, timeout=60)
        connection.sock = self.connect()
        try:
            content = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
            connection.request(method, path, content, given)
            answer = connection.getresponse()
            return Reply(answer.status, answer.headers, answer.read().decode())
        finally:
            connection.close()

    def connect(self, name: str = NAME) -> ssl.SSLSocket:
        context = ssl.create_default_context(cafile=str(self.folder / "auth.example.pem"))
        context.check_hostname = name == NAME
        plain = socket.create_connection(("127.0.0.1", self.port), timeout=60)
        return context.wrap_socket(plain, server_hostname=name)

    def raw(self, request: bytes) -> bytes:
        """All that is answered to these bytes, until the end; nothing where the connection is just closed."""
        with self.connect() as connection:
            connection.sendall(request)
            return b"".join(iter(lambda: connection.recv(65536), b""))

    @property
    def log(self) -> list[dict[str, str]]:
        """nginx's access log."""
        return [json.loads(line) for line in self.log_file.read_text().splitlines()]

    @property
    def log_file(self) -> Path:
        return self.folder / "access.log"

    def logged(self, request_id: str | None) -> dict[str, str]:
        """The one line of a request; nginx writes it after it has answered."""
        found: list[dict[str, str]] = []

        def is_there() -> bool:
            found[:] = [line for line in self.log if line["requestId"] == request_id]
            return bool(found)

        assert within(5, is_there), f"{request_id} is not in nginx's log"
        [line] = found
        return line


@contextlib.contextmanager
def stacks(settings: Settings) -> Iterator[Start]:
    """What starts a stack with settings of a test's own, until the end of the block.

    One worker for each replica, so that a killed one is missed.
    """
    with tempfile.TemporaryDirectory(prefix="mfa-stack-") as folder, contextlib.ExitStack() as running_now:

        def begin(*own: dict[str, Any], is_ready: bool = True, sink: int | None = None, **overrides: Any) -> Stack:
            """`overrides` are of both replicas, `own` of one each. `is_ready`: they have all that they need.

            `sink`: where they write to instead of into files.
            """
            replicas = [_replica(Path(folder), settings, overrides | each) for each in own or ({}, {})]
            for replica in replicas:
                replica.sink = sink
                running_now.callback(replica.kill)
                replica.launch()
            for replica in replicas:
                assert within(30, replica.is_up if is_ready else replica.is_alive), replica.log
            return running_now.enter_context(nginx(Path(folder), replicas))

        yield begin


def _replica(folder: Path, settings: Settings, overrides: dict[str, Any]) -> Replica:
    """wsgi.py; or tests/served.py, where there are settings for tests only."""
    shipped = {name: value for name, value in overrides.items() if not name.startswith("TEST_")}
    environment = environment_of(settings | shipped)
    if shipped == overrides:
        return Replica(folder, environment)
    return Replica(folder, environment | {"TEST_CONFIG": json.dumps(settings | overrides)}, "tests.served:app")


def settings_of(config: dict[str, Any], redis: str) -> Settings:
    """Settings of a service behind one proxy."""
    return {
        "MFA_INSTANCE": config["MFA_INSTANCE"],
        "MFA_DATABASE_URL": config["MFA_DATABASE_URL"],
        "MFA_REDIS_URL": redis,
        "MFA_PUBLIC_URL": f"https://{NAME}",
        "MFA_TRUSTED_PROXIES": "1",
        "MFA_BCRYPT_COST": "10",
        "MFA_SEAL_SECONDS": "0",
        "MFA_SEALS_OUTPUT": "none",
    }


def environment_of(settings: Settings) -> dict[str, str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MFA_")}
    return environment | {"WEB_CONCURRENCY": "1"} | settings


@contextlib.contextmanager
def nginx(folder: Path, replicas: list[Replica]) -> Iterator[Stack]:
    stack = Stack(folder, free_port(), replicas)
    main = site(folder, stack.port, [replica.address for replica in replicas])
    ready = lambda: stack.connect().close()  # noqa: E731
    with running(nginx_command(program("nginx"), main), ready=ready):
        yield stack


def site(folder: Path, port: int, replicas: list[str]) -> Path:
    """The shipped configuration with these addresses and paths in it, and around it what a distribution's nginx has.

    Returns the path of nginx.conf. There is a certificate beside it, made for the occasion.
    """
    make_certificate(folder)
    shipped = (ROOT / "deploy/nginx/service.conf").read_text()
    shipped = re.sub(r"\b443\b", f"127.0.0.1:{port}", shipped)
    shipped = shipped.replace("/etc/ssl/", f"{folder}/").replace("/var/log/nginx/", f"{folder}/")
    (folder / "service.conf").write_text(shipped)
    upstream = (ROOT / "deploy/nginx/service-replicas.conf").read_text()
    for written, real in zip(("127.0.0.1:8000", "127.0.0.1:8001"), replicas, strict=True):
        assert written in upstream
        upstream = upstream.replace(written, real)
    (folder / "service-replicas.conf").write_text(upstream)
    paths = " ".join(
        f"{name}_temp_path {folder}/{name};" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    main = folder / "nginx.conf"
    http_block = f"http {{ {paths} include {folder}/service.conf; }}"
    main.write_text(f"daemon off; pid {folder}/pid; error_log {folder}/error.log; events {{}} {http_block}")
    return main


def nginx_command(binary: str, main: Path) -> list[str]:
    return [binary, "-p", str(main.parent), "-c", str(main), "-e", "stderr"]


def make_certificate(folder: Path, *more: x509.GeneralName) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    name, now = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, NAME)]), datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(NAME), *more]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    (folder / "auth.example.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    pem, plain = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    (folder / "auth.example.key").write_bytes(key.private_bytes(serialization.Encoding.PEM, pem, plain))


def within(seconds: float, happens: Callable[[], object]) -> bool:
    deadline = time.monotonic() + seconds
    while not happens():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


# ── what is asked of it ──────────────────────────────────────────────────────────────────────────


def register(stack: Stack) -> Reply:
    answer = stack.call("POST", "/auth/register", CREDENTIALS | {"email": "ada@example.com"})
    assert answer.status == 200, answer
    return answer


def log_in(stack: Stack) -> Reply:
    answer = stack.call("POST", "/auth/login", CREDENTIALS)
    assert answer.status == 200, answer
    return answer


def verify(stack: Stack, token: str, code: str) -> Reply:
    return stack.call("POST", "/auth/verify-mfa", {"tempToken": token, "totpCode": code})


def refresh(stack: Stack, token: str) -> Reply:
    return stack.call("POST", "/auth/refresh", {"refreshToken": token})


def profile(stack: Stack, token: str) -> Reply:
    return stack.call("GET", "/api/profile", token=token)


def await_use(stack: Stack, replica: Replica) -> None:
    """nginx tries a replica again a while after it has failed: what whoever restarts them waits for."""

    def is_used() -> bool:
        answer = stack.call("GET", "/healthz")
        return stack.logged(answer.headers["X-Request-Id"])["replica"] == replica.address

    assert within(15, is_used)
