"""The service as tests run it under gunicorn: settings from TEST_CONFIG, among them those for tests only."""

import json
import os

from mfa_service.app import create_app

app = create_app(json.loads(os.environ["TEST_CONFIG"]))
