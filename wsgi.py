"""The service as gunicorn and `flask` find it."""

import sys

from mfa_service.app import create_app
from mfa_service.errors import ConfigurationError

#: gunicorn stops for good at this exit code of a worker; at any other it would start workers for ever.
APP_LOAD_ERROR = 4

try:
    app = create_app()
except ConfigurationError as error:
    print("mfa_service can't start:", *error.problems, sep="\n  - ", file=sys.stderr)  # noqa: T201
    sys.exit(APP_LOAD_ERROR)
