"""The service under gunicorn, with a clock that the file at TEST_CLOCK puts ahead."""

import os
import time
from pathlib import Path

from mfa_service.app import create_app

AHEAD = Path(os.environ["TEST_CLOCK"])


def clock() -> float:
    try:
        return time.time() + float(AHEAD.read_text() or 0)
    except FileNotFoundError:
        return time.time()


app = create_app(clock=clock)
