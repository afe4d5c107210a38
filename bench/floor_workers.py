"""The floors share connections among their workers as the service does, and have nothing else of its configuration."""

import runpy

worker_class = runpy.run_path("gunicorn.conf.py")["Worker"]
