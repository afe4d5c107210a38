"""Types `flask mfa …` as an operator does: each command in a process of its own, with the environment it is given.

Python takes a second to read the code, and the suite types hundreds of commands. So they are forked from a process that
has read it, and has done nothing else; what Python itself takes from an environment is that one's.
"""

import atexit
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parent.parent

Done = subprocess.CompletedProcess[str]
#: Of one command, in seconds: some import a hundred thousand people.
_TIMEOUT = 900


def flask_mfa(*words: str, environment: Mapping[str, str], folder: Path = ROOT, typed: str = "") -> Done:
    """Run `flask mfa <words>` in this folder, with `typed` on standard input, and wait for its end."""
    with tempfile.TemporaryDirectory(prefix="mfa-shell-") as kept:
        files = [Path(kept, name) for name in ("stdin", "stdout", "stderr")]
        files[0].write_text(typed)
        code = _parent().fork(
            {
                "words": ["flask", "mfa", *words],
                "environment": dict(environment),
                "folder": str(folder),
                "files": [str(file) for file in files],
            }
        )
        return subprocess.CompletedProcess(words, code, files[1].read_text(), files[2].read_text())


class Parent:
    """The process that has read the code, and forks."""

    def __init__(self) -> None:
        self._ours, theirs = socket.socketpair()
        with theirs:
            line = [sys.executable, "-m", "tests.shell", str(theirs.fileno())]
            options = {"cwd": ROOT, "stdin": subprocess.DEVNULL, "start_new_session": True}
            self._process = subprocess.Popen(line, **options, pass_fds=[theirs.fileno()])
        self._ours.settimeout(_TIMEOUT)
        self._lock = threading.Lock()

    def fork(self, command: dict[str, object]) -> int:
        """The exit code of this command; less than 0 if a signal ended it."""
        with self._lock, self._ours.makefile("rw") as wire:
            wire.write(json.dumps(command) + "\n")
            wire.flush()
            try:
                return int(wire.readline())
            except BaseException:  # it may hang, and would answer the next one instead
                self.end()
                _parent.cache_clear()
                raise

    def end(self) -> None:
        self._ours.close()
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()


@cache
def _parent() -> Parent:
    parent = Parent()
    atexit.register(parent.end)
    return parent


def _serve(wire: socket.socket) -> None:
    """Fork for each command that comes; return in the child, and never in the parent."""
    with wire.makefile("rw") as lines:
        for line in lines:
            command = json.loads(line)
            if not (pid := os.fork()):
                return _become(**command)
            lines.write(f"{os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])}\n")
            lines.flush()
    sys.exit()


def _become(words: list[str], environment: dict[str, str], folder: str, files: list[str]) -> None:
    for number, file in enumerate(files):
        opened = os.open(file, os.O_RDWR | os.O_CREAT)
        os.dup2(opened, number)
        os.close(opened)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    sys.argv, sys.path[0] = words, folder


if __name__ == "__main__":
    from flask import cli

    import mfa_service.app
    import mfa_service.cli  # noqa: F401 - read before anybody waits for it

    _serve(socket.socket(fileno=int(sys.argv[1])))
    cli.main()
