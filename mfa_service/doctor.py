"""What an operator would want to know of a configuration before users find out."""

import os
import stat
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from difflib import get_close_matches
from typing import Any, Literal
from urllib.parse import urlsplit

from sqlalchemy import create_engine
from sqlalchemy.exc import SQLAlchemyError

from mfa_service.config import Settings, env_name
from mfa_service.errors import ConfigurationError
from mfa_service.services import Services, database, load_keys, schema
from mfa_service.web import limits

Level = Literal["ok", "warning", "error"]
COLOURS: Mapping[Level, str] = {"ok": "green", "warning": "yellow", "error": "red"}


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    level: Level
    subject: str
    text: str


def examine(environment: Mapping[str, Any]) -> list[Finding]:
    """Look at everything; the first step that can't be passed ends it."""
    findings = [*_names(environment)]
    try:
        settings = Settings.load(environment)
        load_keys(settings)
    except ConfigurationError as error:
        return findings + [Finding("error", "settings", problem) for problem in error.problems]
    findings.append(Finding("ok", "settings", "complete and consistent; keys are present and strong"))
    for check in (_files, _standards, _proxy, _limiter, _database):
        findings += check(settings)
    return findings


def _names(environment: Mapping[str, Any]) -> Iterator[Finding]:
    known = [env_name(spec) for spec in fields(Settings)]
    for name in sorted(set(environment) - set(known)):
        near = get_close_matches(name, known, 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        yield Finding("warning", "settings", f"{name} is not a setting{hint}")


def _files(settings: Settings) -> Iterator[Finding]:
    secret = [settings.keyring_file] if not settings.keys else []
    secret += [settings.folder] if settings.database.startswith("sqlite") else []
    secret += sorted(settings.signing_folder.glob("*.pem")) if not settings.jwt_secret else []
    open_to_all = [path for path in secret if stat.S_IMODE(path.stat().st_mode) & 0o077]
    for path in open_to_all:
        yield Finding("error", "keys", f"{path} can be read by others: chmod go=")
    if not open_to_all:
        yield Finding("ok", "keys", "keys and database files are their owner's alone")


def _standards(settings: Settings) -> Iterator[Finding]:
    if settings.totp_window > 1:
        yield Finding("warning", "standards", f"MFA_TOTP_WINDOW is {settings.totp_window}: RFC 6238 advises one step")
    if settings.jwt_secret:
        yield Finding("warning", "standards", "HS256: whoever can verify tokens can make them; ES256 keys avoid that")
    if settings.password_min_length < 15:
        yield Finding(
            "ok", "standards", "passwords from 8 characters: enough beside a second factor (NIST SP 800-63B-4)"
        )


def _proxy(settings: Settings) -> Iterator[Finding]:
    url = urlsplit(settings.public_url)
    is_local = url.hostname in ("localhost", "127.0.0.1", "::1")
    if url.scheme == "http" and not is_local:
        yield Finding("error", "proxy", "MFA_PUBLIC_URL is http: passwords and tokens would travel in the clear")
    elif not is_local and not settings.trusted_proxies:
        yield Finding("warning", "proxy", "MFA_TRUSTED_PROXIES is 0: behind a proxy all clients share one rate limit")
    else:
        yield Finding("ok", "proxy", f"{settings.public_url} behind {settings.trusted_proxies} trusted proxies")


def _limiter(settings: Settings) -> Iterator[Finding]:
    workers = os.environ.get("WEB_CONCURRENCY", "1")
    if not settings.redis_url:
        level: Level = "ok" if workers == "1" else "error"
        yield Finding(level, "limiter", f"counts in memory, for each of {workers} worker processes by itself")
        return
    is_up = limits.is_store_up(settings)
    yield Finding("ok", "limiter", "Redis answers") if is_up else Finding("error", "limiter", "Redis does not answer")


def _database(settings: Settings) -> Iterator[Finding]:
    try:
        engine = database.engine_for(create_engine(settings.database))
        current, newest = schema.find_current(engine), schema.newest()
        if current != newest:
            yield Finding("error", "database", f"is at revision {current}, not {newest}: run `flask mfa upgrade`")
            return
        Services(settings, engine, time.time).health.ensure_keyring()
    except (SQLAlchemyError, ConfigurationError) as error:
        text = "; ".join(error.problems) if isinstance(error, ConfigurationError) else "can't be reached"
        yield Finding("error", "database", text)
        return
    yield Finding("ok", "database", f"{engine.dialect.name} at revision {current}, opened by this keyring")
