"""What gunicorn.conf.py takes from the environment beside the settings, and the processes and threads that follow."""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

#: The least and the most; what those of our own prefix may be, the settings say.
_BOUNDS = {"PORT": (1, 65535), "WEB_CONCURRENCY": (1, 1000), "GUNICORN_MAX_REQUESTS": (0, 10**9)}
#: The most that hash in one process; the setting allows no more either.
_MOST_HASHING = 64
#: Threads of a process beside those that hash or wait for it: there must be some for everything else.
_OTHERS = 24


@dataclass(frozen=True, kw_only=True)
class Server:
    """How the service is served."""

    port: int
    workers: int
    hashing_threads: int
    hashing_queue: int
    max_requests: int

    @classmethod
    def planned(cls, environment: Mapping[str, Any]) -> Self:
        """What this environment asks for; for what it does not say, and for what can't be, there are defaults."""
        cores = os.cpu_count() or 1
        workers = _number(environment, "WEB_CONCURRENCY", cores if environment.get("MFA_REDIS_URL") else 1)
        return cls(
            port=_number(environment, "PORT", 8000),
            workers=workers,
            hashing_threads=_number(environment, "MFA_HASHING_THREADS", min(max(1, cores // workers), _MOST_HASHING)),
            hashing_queue=_number(environment, "MFA_HASHING_QUEUE", 6),
            max_requests=_number(environment, "GUNICORN_MAX_REQUESTS", 0),
        )

    @property
    def threads(self) -> int:
        """Of each process."""
        return self.hashing_threads + self.hashing_queue + _OTHERS


def problems(environment: Mapping[str, Any]) -> Iterator[str]:
    """What stands in the way of serving so, one sentence each."""
    for name, (low, high) in _BOUNDS.items():
        if environment.get(name) and not _fits(environment, name):
            yield f"{name} must be a whole number between {low} and {high}"
    folder = environment.get("PROMETHEUS_MULTIPROC_DIR")
    if folder and environment.get("MFA_METRICS") and not (Path(folder).is_dir() and os.access(folder, os.W_OK)):
        yield f"PROMETHEUS_MULTIPROC_DIR is no folder that can be written to: {folder}"


def _number(environment: Mapping[str, Any], name: str, default: int) -> int:
    return int(environment[name]) if _fits(environment, name) else default


def _fits(environment: Mapping[str, Any], name: str) -> bool:
    value, (low, high) = str(environment.get(name) or ""), _BOUNDS.get(name, (0, 100))
    return value.isascii() and value.isdecimal() and low <= int(value) <= high
