"""The service as tests run it under gunicorn: settings from TEST_CONFIG, among them those for tests only.

`TEST_KILL_AT` names an event and a file. The process kills itself, as `kill -9` would, when the event has been
committed and before anybody is answered; once, for the file says that it has happened.
"""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

from mfa_service.app import create_app
from mfa_service.services.audit import Audit, Recorded


def killer(event: str, done: Path) -> Callable[..., None]:
    def kill(_audit: Audit, record: Recorded) -> None:
        if record.event == event and not done.exists():
            done.touch()
            os.kill(os.getpid(), signal.SIGKILL)

    return kill


config = json.loads(os.environ["TEST_CONFIG"])
app = create_app(config)
if "TEST_KILL_AT" in config:
    event, path = config["TEST_KILL_AT"]
    app.extensions["mfa_service"].services.audit.signal.connect(killer(event, Path(path)), weak=False)
