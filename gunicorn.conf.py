"""gunicorn: threads, because a sync worker is blocked by one half-sent request; one process without Redis.

Put a proxy in front that buffers whole requests: here a slow client holds a thread, for fifteen seconds at most.
"""

import contextlib
import itertools
import os
import queue
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
from functools import partial
from pathlib import Path

from gunicorn.glogging import Logger
from gunicorn.workers.gthread import ThreadWorker

from mfa_service.app import ensure_startable
from mfa_service.errors import ConfigurationError
from mfa_service.server import Server, problems
from mfa_service.web.logs import gunicorn_logging

#: gunicorn's own code for an app that can't be loaded.
APP_LOAD_ERROR = 4
#: Seconds that a client has for sending a request, from when it is let in or begins the next one.
READ_SECONDS = 15
#: Seconds that a worker leaves new connections to its siblings after it took one. epoll counts in milliseconds.
REST = 0.001


class Worker(ThreadWorker):
    """gthread that shares connections evenly, and that nobody stops who is slow to send or to hang up."""

    rests_until = looks_again_at = 0.0
    #: What `post_fork` gives; without these hooks, as in the bench's floors, nothing was put aside.
    put_aside = queue.SimpleQueue()

    def init_signals(self):
        """Heed what the arbiter said before this process had handlers of its own.

        Until then it had those of the arbiter, which put a signal aside for later. Nobody would come back to it: the
        worker went on, and a service that was stopped while it replaced a worker took all of the graceful timeout.
        """
        super().init_signals()
        while not self.put_aside.empty():
            if self.put_aside.get() in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
                self.alive = False

    def init_process(self):
        """Begin with nobody who is late."""
        self.late_at = {}
        self.parking = threading.Lock()
        super().init_process()

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
        """Listen again when the rest is over, and never again once the end has begun."""
        super().set_accept_enabled(enabled and time.monotonic() >= self.rests_until)
        if not self.alive:
            self.hang_up()

    def hang_up(self):
        """Take whoever is connected already, then let nobody connect: a proxy asks another replica at once.

        gthread keeps the door open until all have gone, and lets nobody in: who came meanwhile was cut off in the end,
        and what is sent once, such as a password, no proxy sends again.
        """
        with self.parking:
            pass  # whoever saw no end yet has put its connection back by now, where the loop counts them
        for listener in self.sockets:
            before = -1
            while self.nr_conns != before:
                before = self.nr_conns
                super().accept(listener)
            listener.close()
        self.sockets = []

    def wait_for_and_dispatch_events(self, timeout):
        """Wait no longer than the rest lasts; asked by the state, for the clock has gone on since it was set."""
        is_resting = self.alive and not self._accepting and self.nr_conns < self.worker_connections
        super().wait_for_and_dispatch_events(min(timeout, REST) if is_resting else timeout)

    def enqueue_req(self, conn):
        """Give a client's connection to a thread; the client's time runs from here."""
        self.late_at[conn] = time.monotonic() + READ_SECONDS
        self.tpool.submit(self.handle, conn).add_done_callback(partial(self.answered, conn))

    def answered(self, conn, answer):
        """Put back a connection that is kept, in the client's thread; the loop sees to all others, and near the end.

        gthread wakes its loop for this, once more for each request. epoll and kqueue let others add while one waits.
        """
        with self.parking:
            is_kept = self.alive and answer.exception() is None and answer.result() is True
            # Who has sent the next request already is answered at once, and that not in here.
            if is_kept and not conn.parser.unreader.buf.getvalue():
                self.finish_request(conn, answer)
                return
        self.method_queue.defer(self.finish_request, conn, answer)

    def handle(self, conn):
        """Answer one request; whether the connection is kept.

        gthread itself waits two seconds for the client to hang up in the one loop of all; this one in the client's
        thread. Somebody who asks for `Connection: close` and stays would stop the whole worker.
        """
        is_kept = super().handle(conn)
        is_late = time.monotonic() > self.late_at.pop(conn)
        if is_late or not is_kept:
            conn.close(graceful=True)
            conn.close = lambda **_: None  # what the loop calls now
        return False if is_late else is_kept

    def murder_pending(self):
        """Hear out nobody for ever: a thread reads the end of what a late client sends, and is free.

        Who has sent everything in time does not notice; the connection is closed after the answer.
        """
        super().murder_pending()
        now = time.monotonic()
        if now < self.looks_again_at:
            return
        self.looks_again_at = now + 1
        for conn, late_at in self.late_at.copy().items():
            if now > late_at:
                with contextlib.suppress(OSError):
                    conn.sock.shutdown(socket.SHUT_RD)


class QuietLogger(Logger):
    """Without gunicorn's access log, which is put together for nobody as soon as its logging is configured at all."""

    access_log_enabled = False


planned, wrong = Server.planned(os.environ), [*problems(os.environ)]
# For the app, which is made in each worker.
os.environ.update(
    WEB_CONCURRENCY=str(planned.workers),
    MFA_HASHING_THREADS=os.environ.get("MFA_HASHING_THREADS") or str(planned.hashing_threads),
    MFA_HASHING_QUEUE=os.environ.get("MFA_HASHING_QUEUE") or str(planned.hashing_queue),
)

bind = f"127.0.0.1:{planned.port}"
worker_class = Worker
workers = planned.workers
threads = planned.threads
timeout = 30
graceful_timeout = 30
# As long as what nginx lets through (large_client_header_buffers): what is longer, it refuses in our form.
limit_request_line = 8190
# Longer than a proxy keeps an idle connection (nginx: 60 s), or its next POST meets one that is just being closed.
keepalive = 75
# A worker that has leaked is replaced in time, and never all of them at once. 0: never.
max_requests = planned.max_requests
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
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = os.environ.get("PROMETHEUS_MULTIPROC_DIR") or tempfile.mkdtemp(
        prefix="mfa-metrics-"
    )


def pre_fork(server, worker):
    """Give a worker the lowest number that no other one has; its figures are in files of this number.

    By its process id there would be new files with every worker that is replaced, and all would be read for ever.
    """
    taken = {other.number for other in server.WORKERS.values()}
    worker.number = next(number for number in itertools.count(1) if number not in taken)


def post_fork(server, worker):
    """Give a new worker its copy of the signals that the arbiter has put aside, and its own files for figures."""
    worker.put_aside = server.SIG_QUEUE
    if os.environ.get("MFA_METRICS"):
        from prometheus_client import values  # noqa: PLC0415 - an extra

        values.ValueClass = values.MultiProcessValue(lambda: worker.number)


def child_exit(_server, worker):
    """Forget what a worker had in use when it ended; what it counted stays, and its successor goes on from there."""
    if os.environ.get("MFA_METRICS"):
        from prometheus_client import multiprocess  # noqa: PLC0415 - an extra

        multiprocess.mark_process_dead(worker.number)


def on_exit(_server):
    """Take the figures away: the next start counts from zero."""
    folder = Path(os.environ.get("PROMETHEUS_MULTIPROC_DIR", "/nowhere"))
    if folder.name.startswith("mfa-metrics-"):
        shutil.rmtree(folder, ignore_errors=True)


def on_starting(server):
    """Stop before any worker starts, with everything that is wrong said once."""
    if server.cfg.workers > 1 and not os.environ.get("MFA_REDIS_URL"):
        wrong.append(f"{server.cfg.workers} worker processes need MFA_REDIS_URL: without it each counts for itself")
    if server.app.app_uri == "wsgi:app":
        try:
            ensure_startable(os.environ)
        except ConfigurationError as error:
            wrong.extend(error.problems)
    if wrong:
        print("mfa_service can't start:", *wrong, sep="\n  - ", file=sys.stderr)  # noqa: T201
        sys.exit(APP_LOAD_ERROR)
