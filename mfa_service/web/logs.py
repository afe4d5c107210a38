"""Logs as JSON lines on standard error: one for each audit event, and whatever else goes wrong."""

import logging
import time
from typing import Any

from flask import Flask, has_request_context
from pythonjsonlogger.json import JsonFormatter

from mfa_service.services.audit import Audit, Recorded
from mfa_service.web.client import request_id

_FIELDS = "{asctime}{levelname}{name}{message}"
_RENAMED = {"asctime": "time", "levelname": "level", "name": "logger"}


class _RequestId(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        if has_request_context():
            record.requestId = request_id()
        return True


def configure_logging(app: Flask) -> None:
    """Send the service's loggers to standard error as JSON; ASCII only, so that no input forges a line."""
    formatter = JsonFormatter(_FIELDS, style="{", rename_fields=_RENAMED, datefmt="%Y-%m-%dT%H:%M:%SZ")
    formatter.converter = time.gmtime
    handler = logging.StreamHandler()
    handler.setFormatter(formatter)
    handler.addFilter(_RequestId())
    for name in ("mfa_service", "flask-limiter", app.logger.name):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(logging.INFO)


def log_events(audit: Audit) -> None:
    """Write a line for each audit event, after its commit."""
    logger = logging.getLogger("mfa_service.audit")

    def write(_sender: Audit, record: Recorded) -> None:
        client = record.client
        fields: dict[str, Any] = {
            "event": record.event,
            "userId": record.user_id,
            "address": client.address,
            "userAgent": client.user_agent,
            "requestId": client.request_id,
            "detail": record.detail,
        }
        logger.info(record.event, extra=fields)

    audit.signal.connect(write, weak=False)
