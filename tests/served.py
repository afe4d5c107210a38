"""The service as tests run it under gunicorn: settings from TEST_CONFIG, among them those for tests only.

`TEST_KILL_AT` names an event and a file. The process kills itself, as `kill -9` would, when the event has been
committed and before anybody is answered; once, for the file says that it has happened.
`TEST_KILL_IN` names a path and a file with a number: so does the process within a request for that path, before the
statement of this number, its commit, or the answer after it; the file is taken away then.
`TEST_CLOCK` names a file with the seconds that the clock of this machine is off; after a `=`, at which it stands still.
`TEST_FULL` names a file; while it is there, SQLite's file can't grow.
`TEST_HOOK` is an address that every notice is posted to.
"""

import json
import os
import signal
import sqlite3
import threading
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flask import Flask, request
from sqlalchemy import Engine, event

from mfa_service.app import create_app
from mfa_service.services import Services
from mfa_service.services.audit import Audit, Recorded
from mfa_service.services.notices import Notice


def shift_clock(by: Path) -> None:
    """Let this process believe that it is later, or earlier; the libraries in it, too."""
    real = time.time

    def shifted() -> float:
        said = by.read_text()
        return float(said[1:]) if said.startswith("=") else real() + float(said)

    time.time = shifted


def killer(event: str, done: Path) -> Callable[..., None]:
    def kill(_audit: Audit, record: Recorded) -> None:
        if record.event == event and not done.exists():
            done.touch()
            os.kill(os.getpid(), signal.SIGKILL)

    return kill


def kill_in(app: Flask, engine: Engine, path: str, number: Path) -> None:
    left = threading.local()

    def begin() -> None:
        left.steps = int(number.read_text()) if request.path == path and number.exists() else 0

    def step(*_args: Any) -> None:
        left.steps = getattr(left, "steps", 0) - 1
        if left.steps == 0:
            number.unlink()
            os.kill(os.getpid(), signal.SIGKILL)

    app.before_request(begin)
    for boundary in ("before_cursor_execute", "commit", "checkin"):
        event.listen(engine, boundary, step)


def fill_up(engine: Engine, while_there: Path) -> None:
    def bound(connection: sqlite3.Connection, *_args: Any) -> None:
        # No file can be made smaller by this: one page is as many as it has.
        connection.execute(f"PRAGMA max_page_count = {1 if while_there.exists() else 2**32 - 2}")

    event.listen(engine, "checkout", bound)


def post_to(url: str) -> Callable[..., None]:
    def post(_services: Any, notice: Notice) -> None:
        urllib.request.urlopen(url, json.dumps({"event": notice.event, "to": notice.email}).encode()).close()

    return post


config = json.loads(os.environ["TEST_CONFIG"])
if "TEST_CLOCK" in config:
    shift_clock(Path(config["TEST_CLOCK"]))
app = create_app(config, clock=lambda: time.time())  # noqa: PLW0108 - the one of now, which may be shifted
services: Services = app.extensions["mfa_service"].services
if "TEST_KILL_AT" in config:
    name, path = config["TEST_KILL_AT"]
    services.audit.signal.connect(killer(name, Path(path)), weak=False)
if "TEST_KILL_IN" in config:
    path, number = config["TEST_KILL_IN"]
    kill_in(app, services.engine, path, Path(number))
if "TEST_FULL" in config:
    fill_up(services.engine, Path(config["TEST_FULL"]))
if "TEST_HOOK" in config:
    services.notices.signal.connect(post_to(config["TEST_HOOK"]), weak=False)
