"""deploy/nginx/service.conf and what stands behind it, run for real: nginx with TLS, replicas of gunicorn."""

import http.client
import json
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.conftest import ROOT, free_port

NAME = "auth.example"


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

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def log(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self._log.read_text().splitlines() if line.startswith("{")]

    @property
    def _log(self) -> Path:
        return self.folder / f"replica-{self.port}.log"

    def start(self) -> None:
        command = [sys.executable, "-m", "gunicorn", self.app]
        environment = self.environment | {"PORT": str(self.port)}
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                command, env=environment, cwd=ROOT, stdout=log, stderr=log, start_new_session=True
            )
        assert within(30, self.is_up), self._log.read_text()

    def is_up(self) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=2)
        try:
            connection.request("GET", "/readyz")
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
