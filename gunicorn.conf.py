"""gunicorn: threads, because a sync worker is blocked by one half-sent request; one process without Redis."""

import os
import sys

cores = os.cpu_count() or 1
has_shared_limits = bool(os.environ.get("MFA_REDIS_URL"))

bind = f"127.0.0.1:{os.environ.get('PORT', '8000')}"
worker_class = "gthread"
workers = int(os.environ.get("WEB_CONCURRENCY", cores if has_shared_limits else 1))

# bcrypt gets the cores, a short queue, and never all the threads: others must be free for everything else.
hashing_threads = int(os.environ.setdefault("MFA_HASHING_THREADS", str(max(1, cores // workers))))
hashing_queue = int(os.environ.setdefault("MFA_HASHING_QUEUE", "6"))
threads = hashing_threads + hashing_queue + 8

timeout = 30
graceful_timeout = 30
control_socket_disable = True
os.environ.setdefault("WEB_CONCURRENCY", str(workers))


def on_starting(server):
    """Refuse to count rate limits per process where there are several."""
    if server.cfg.workers > 1 and not has_shared_limits:
        sys.exit(
            f"{server.cfg.workers} worker processes need MFA_REDIS_URL: without it each counts rate limits for itself"
        )
