"""Logs as JSON lines on standard error: one for each audit event, and whatever else goes wrong."""

import functools
import json
import logging
import os
import select
import stat
import sys
import time
from typing import Any, TextIO

from flask import Flask, Response, g, has_request_context, request
from limits.errors import StorageError
from pythonjsonlogger.json import JsonFormatter

from mfa_service.services.audit import Audit, Recorded
from mfa_service.web.client import client_address, request_id

_FIELDS = "{asctime}{levelname}{name}{message}"
_TIME = "%Y-%m-%dT%H:%M:%SZ"
_RENAMED = {"asctime": "time", "levelname": "level", "name": "logger"}
#: Where a record has its line, if that is put together already.
_READY = "mfa_line"
#: How long the first line that finds nobody to take it waits, in milliseconds; those after it do not wait.
_PATIENCE = 1000
#: What a pipe that has room at all takes at once.
_PIECE = 4096


class _RequestId(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        if not hasattr(record, _READY) and has_request_context():
            record.requestId = request_id()
        return True


class _Reason(logging.Filter):
    """Adds why the limits' store is counted with no more: Flask-Limiter leaves it out, but is just handling it."""

    def filter(self, record: logging.LogRecord) -> bool:
        error = sys.exc_info()[1]
        if record.name == "flask-limiter" and isinstance(error, StorageError):
            record.msg, record.args = f"{record.getMessage()}: {error.storage_error}", ()
        return True


class _NoQuotes(logging.Filter):
    """Takes what a client sent out of gunicorn's complaints about it: a body without a length is read as a header."""

    def filter(self, record: logging.LogRecord) -> bool:
        message = record.getMessage()
        if message.startswith("Invalid request from ip="):
            record.msg, record.args = message.partition(":")[0], ()
        return True


class LineHandler(logging.StreamHandler[TextIO]):
    """Writes lines while somebody takes them, and counts those that are lost: a full pipe must not stop requests."""

    #: By all handlers of this process.
    lost_ever = 0

    def __init__(self) -> None:
        super().__init__()
        self._lost, self._is_torn = 0, False

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line, and before it how many had been lost; as `logging` wants it, nothing is raised."""
        try:
            torn = self.terminator if self._is_torn else ""
            if self._lost and self._is_written(torn + self.format(_loss_of(self._lost))):
                self._lost, self._is_torn = 0, False
            if self._lost or not self._is_written(self.format(record)):
                self._lost += 1
                LineHandler.lost_ever += 1
        except Exception:  # noqa: BLE001 - so do all handlers of the standard library
            self.handleError(record)

    def _is_written(self, line: str) -> bool:
        line += self.terminator
        for start in range(0, len(line), _PIECE):
            if not (self._has_room() and self._is_taken(line[start : start + _PIECE])):
                self._is_torn |= start > 0
                return False
        return True

    def _is_taken(self, piece: str) -> bool:
        """Write without waiting: since there was room another process may have filled it, and nobody may ever read."""
        try:
            if not stat.S_ISREG(os.fstat(self.stream.fileno()).st_mode):
                return os.pwritev(self.stream.fileno(), [piece.encode()], -1, os.RWF_NOWAIT) == len(piece)
        except BlockingIOError:
            return False
        except (OSError, AttributeError):
            pass  # no file of the system's, or a system that can't: Linux can, of pipes since 6.4
        self.stream.write(piece)
        self.flush()
        return True

    def _has_room(self) -> bool:
        poll = select.poll()
        try:
            poll.register(self.stream.fileno(), select.POLLOUT)
        except OSError:
            return True  # no file of the system's
        return bool(poll.poll(0 if self._lost else _PATIENCE))


def _loss_of(count: int) -> logging.LogRecord:
    message = f"{count} lines of this log are lost: nobody took them"
    return logging.LogRecord("mfa_service", logging.ERROR, __file__, 0, message, None, None)


class _Formatter(JsonFormatter):
    def format(self, record: logging.LogRecord) -> str:
        return getattr(record, _READY, None) or super().format(record)


def json_formatter() -> logging.Formatter:
    """One JSON object a line; ASCII only, so that no input forges a line; times in UTC."""
    formatter = _Formatter(_FIELDS, style="{", rename_fields=_RENAMED, datefmt=_TIME)
    formatter.converter = time.gmtime
    return formatter


def configure_logging(app: Flask) -> None:
    """Send the service's loggers to standard error as JSON."""
    handler = LineHandler()
    handler.setFormatter(json_formatter())
    handler.addFilter(_RequestId())
    handler.addFilter(_Reason())
    for name in ("mfa_service", "flask-limiter", app.logger.name):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(logging.INFO)


def gunicorn_logging() -> dict[str, Any]:
    """Settings of `logging.config` that put gunicorn's own log into the same form."""
    handler = {"()": LineHandler, "formatter": "json", "filters": ["no_quotes"]}
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "root": {"level": "WARNING", "handlers": ["error"]},
        "formatters": {"json": {"()": json_formatter}},
        "filters": {"no_quotes": {"()": _NoQuotes}},
        "handlers": {"error": handler},
        "loggers": {"gunicorn.error": {"level": "INFO", "handlers": ["error"], "propagate": False}},
    }


def log_requests(app: Flask, *, everything: bool) -> None:
    """Write a line for each request, or for those alone that a route refuses.

    A query may hold what somebody typed, and a path of no route anything at all: such a path is none to get into, so
    no refusal either. What is written without having been asked for quotes nothing: of a path it names the route.
    What fails on our side has a line of its own.

    The line is put together here: it is the one that is written all the time, and the formatter takes thrice as long.
    """
    logger = logging.getLogger("mfa_service.access")

    def begin() -> None:
        g.mfa_log_began = time.perf_counter()

    def write(response: Response) -> Response:
        code, route = g.get("mfa_refusal"), request.url_rule
        is_refused = code is not None and route is not None and response.status_code < 500
        if (everything or is_refused) and logger.isEnabledFor(logging.INFO):
            took = time.perf_counter() - g.get("mfa_log_began", time.perf_counter())
            path = route and (request.path[:256] if everything else route.rule)
            reason = f' "code": {json.dumps(code)},' if code else ""
            record = logging.LogRecord(logger.name, logging.INFO, __file__, 0, "request", None, None)
            record.mfa_line = (
                f'{{"time": "{_written(int(record.created))}", "level": "INFO", "logger": "{logger.name}", '
                f'"message": "request", "requestId": "{request_id()}", "method": {json.dumps(request.method[:16])}, '
                f'"path": {json.dumps(path)}, "status": {response.status_code},{reason} "seconds": {took:.6f}, '
                f'"address": "{client_address() or "unknown"}"}}'
            )
            logger.handle(record)
        return response

    app.before_request(begin)
    app.after_request(write)


@functools.lru_cache(1)
def _written(seconds: int) -> str:
    return time.strftime(_TIME, time.gmtime(seconds))


def log_events(audit: Audit) -> None:
    """Write a line for each audit event, after its commit."""
    logger = logging.getLogger("mfa_service.audit")

    def write(_sender: Audit, record: Recorded) -> None:
        client = record.client
        fields: dict[str, Any] = {
            "event": record.event,
            "userId": record.user_id,
            "actor": client.actor or None,
            "address": client.address,
            "userAgent": client.user_agent,
            "requestId": client.request_id,
            "detail": record.detail,
        }
        logger.info(record.event, extra=fields)

    audit.signal.connect(write, weak=False)
