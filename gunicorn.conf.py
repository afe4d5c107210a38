"""gunicorn: threads, because a sync worker is blocked by one half-sent request; one process without Redis.

Put a proxy in front that buffers whole requests: a slow client holds a thread here.
"""

import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

from gunicorn.glogging import Logger
from gunicorn.workers.gthread import ThreadWorker

from mfa_service.app import ensure_startable
from mfa_service.errors import ConfigurationError
from mfa_service.web.logs import gunicorn_logging

#: gunicorn's own code for an app that can't be loaded.
APP_LOAD_ERROR = 4
#: Seconds that a worker leaves new connections to its siblings after it took one. epoll counts in milliseconds.
REST = 0.001

problems = []


def number(name, default, low, high):
    """A number from the environment; what is wrong with it is said together with everything else."""
    value = os.environ.get(name) or str(default)
    if value.isascii() and value.isdecimal() and low <= int(value) <= high:
        return int(value)
    problems.append(f"{name} must be a whole number between {low} and {high}")
    return default


class Worker(ThreadWorker):
    """gthread with two manners: it shares connections evenly, and nobody who is slow to hang up stops it."""

    rests_until = 0.0

    def accept(self, listener):
        """Take one connection, and leave the next to a sibling.

        Whoever woke first took all that a proxy or a client opened at once, and kept them: one core then did the work
        of all.
        """
        super().accept(listener)
        if self.cfg.workers > 1:
            self.rests_until = time.monotonic() + REST
            self.set_accept_enabled(False)

    def set_accept_enabled(self, enabled):
        """Listen again when the rest is over."""
        super().set_accept_enabled(enabled and time.monotonic() >= self.rests_until)

    def wait_for_and_dispatch_events(self, timeout):
        """Wait no longer than the rest lasts; asked by the state, for the clock has gone on since it was set."""
        is_resting = self.alive and not self._accepting and self.nr_conns < self.worker_connections
        super().wait_for_and_dispatch_events(min(timeout, REST) if is_resting else timeout)

    def handle(self, conn):
        """Answer one request; whether the connection is kept.

        gthread itself waits two seconds for the client to hang up in the one loop of all; this one in the client's
        thread. Somebody who asks for `Connection: close` and stays would stop the whole worker.
        """
        is_kept = super().handle(conn)
        if not is_kept:
            conn.close(graceful=True)
            conn.close = lambda **_: None  # what the loop calls now
        return is_kept


class QuietLogger(Logger):
    """Without gunicorn's access log, which is put together for nobody as soon as its logging is configured at all."""

    access_log_enabled = False


cores = os.cpu_count() or 1
has_shared_limits = bool(os.environ.get("MFA_REDIS_URL"))

bind = f"127.0.0.1:{number('PORT', 8000, 1, 65535)}"
worker_class = Worker
workers = number("WEB_CONCURRENCY", cores if has_shared_limits else 1, 1, 1000)
os.environ["WEB_CONCURRENCY"] = str(workers)

# bcrypt gets the cores, a short queue, and never all the threads: others must be free for everything else.
hashing_threads = number("MFA_HASHING_THREADS", max(1, cores // workers), 1, 64)
hashing_queue = number("MFA_HASHING_QUEUE", 6, 0, 100)
os.environ.update(MFA_HASHING_THREADS=str(hashing_threads), MFA_HASHING_QUEUE=str(hashing_queue))
threads = hashing_threads + hashing_queue + 24

timeout = 30
graceful_timeout = 30
# Longer than a proxy keeps an idle connection (nginx: 60 s), or its next POST meets one that is just being closed.
keepalive = 75
# A worker that has leaked is replaced in time, and never all of them at once. 0: never.
max_requests = number("GUNICORN_MAX_REQUESTS", 0, 0, 10**9)
max_requests_jitter = max_requests // 10
# The heartbeat of workers is a file: on a slow disk it would be late, and a healthy worker killed.
worker_tmp_dir = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # noqa: S108 - gunicorn makes its own name
control_socket_disable = True
umask = 0o077  # what SQLite puts beside its file is its owner's alone
logconfig_dict = gunicorn_logging()
logger_class = QuietLogger

# The app itself counts proxies (MFA_TRUSTED_PROXIES); nobody else may tell gunicorn who asks, or for which path.
forwarded_allow_ips = ""
forwarder_headers = ""
secure_scheme_headers = {}


# Each process writes its figures into a file of its own; whichever is asked for /metrics adds them up.
if os.environ.get("MFA_METRICS"):
    figures = os.environ.get("PROMETHEUS_MULTIPROC_DIR") or tempfile.mkdtemp(prefix="mfa-metrics-")
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = figures
    if not (Path(figures).is_dir() and os.access(figures, os.W_OK)):
        problems.append(f"PROMETHEUS_MULTIPROC_DIR is no folder that can be written to: {figures}")


def child_exit(_server, worker):
    """Forget what a worker had in use when it ended; what it counted stays."""
    if os.environ.get("MFA_METRICS"):
        from prometheus_client import multiprocess  # noqa: PLC0415 - an extra

        multiprocess.mark_process_dead(worker.pid)


def on_exit(_server):
    """Take the figures away: the next start counts from zero."""
    folder = Path(os.environ.get("PROMETHEUS_MULTIPROC_DIR", "/nowhere"))
    if folder.name.startswith("mfa-metrics-"):
        shutil.rmtree(folder, ignore_errors=True)


def on_starting(server):
    """Stop before any worker starts, with everything that is wrong said once."""
    if server.cfg.workers > 1 and not has_shared_limits:
        problems.append(f"{server.cfg.workers} worker processes need MFA_REDIS_URL: without it each counts for itself")
    if server.app.app_uri == "wsgi:app":
        try:
            ensure_startable(os.environ)
        except ConfigurationError as error:
            problems.extend(error.problems)
    if problems:
        print("mfa_service can't start:", *problems, sep="\n  - ", file=sys.stderr)  # noqa: T201
        sys.exit(APP_LOAD_ERROR)
