"""What an operator would want to know of a configuration before users find out."""

import os
import stat
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from limits import parse
from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from mfa_service import server
from mfa_service.config import Settings, unknown_names
from mfa_service.crypto.chain import SealKeys
from mfa_service.crypto.keyring import newest_since
from mfa_service.crypto.signing import made_at
from mfa_service.errors import ConfigurationError, Unavailable
from mfa_service.mount import Mount
from mfa_service.services import Services, database, load_keys, schema
from mfa_service.services.unit_of_work import cause, hint
from mfa_service.web import limits

Level = Literal["ok", "warning", "error"]
#: Days for which a key is used. NIST SP 800-57 part 1 would allow the first two twice as long: a year leaves time for
#: whoever reads this late, and is a date that people keep. A seal key signs for three years at most, as there.
DAYS = {"keyring key": 365, "signing key": 365, "seal key": 3 * 365}
_CHANGE = {
    "keyring key": "run `flask mfa rotate-keys`",
    "signing key": "run `flask mfa new-signing-key`",
    "seal key": "put a new one in, and restart",
}
#: What comes with time, or by mistake; warnings about anything else are about choices.
DUE = {"keys", "settings"}
COLOURS: Mapping[Level, str] = {"ok": "green", "warning": "yellow", "error": "red"}


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    level: Level
    subject: str
    text: str


def examine(environment: Mapping[str, Any]) -> list[Finding]:
    """Look at everything; the first step that can't be passed ends it."""
    findings = [*_names(environment), *_server()]
    try:
        settings = Settings.load(environment)
        load_keys(settings, time.time)
    except ConfigurationError as error:
        return findings + [Finding("error", "settings", problem) for problem in error.problems]
    # As the service opens it: what a pooler refuses, or ignores, shows here.
    engine = database.engine_for(database.engine_of_service(settings.database))
    return findings + _checked(settings, engine) + list(_timeouts(engine))


def examine_mounted(mount: Mount) -> list[Finding]:
    """The same of the service in a host's app, which has started: so its settings and keys are good."""
    closed = replace(mount.settings, registration_open=False)  # there is no such route
    return _checked(closed, mount.services.engine)


def _checked(settings: Settings, engine: Engine) -> list[Finding]:
    findings = [Finding("ok", "settings", "complete and consistent; keys are present and strong")]
    for check in (_files, _ages, _seals, _standards, _proxy, _registration, _limiter):
        findings += check(settings)
    return findings + list(_database(settings, engine))


def _names(environment: Mapping[str, Any]) -> Iterator[Finding]:
    yield from (Finding("warning", "settings", warning) for warning in unknown_names(environment))


def _server() -> Iterator[Finding]:
    wrong = [*server.problems(os.environ)]
    yield from (Finding("error", "server", problem) for problem in wrong)
    if not wrong:
        planned = server.Server.planned(os.environ)
        text = f"port {planned.port}, processes: {planned.workers}, threads of each: {planned.threads}"
        yield Finding("ok", "server", f"{text}, {planned.hashing_threads} of them to hash")


def _files(settings: Settings) -> Iterator[Finding]:
    secret = [settings.keyring_file] if not settings.keys else []
    secret += sorted(settings.signing_folder.glob("*.pem")) if not settings.jwt_secret else []
    secret += sorted(settings.seal_folder.glob("*.pem"))
    secret += [path for path in _own_database(settings) if path.exists()]
    found = [finding for path in secret for finding in _openness(path)]
    yield from found or [Finding("ok", "keys", "keys and database files are their owner's alone")]


def _openness(path: Path) -> Iterator[Finding]:
    status = path.stat()
    mode = stat.S_IMODE(status.st_mode)
    if mode & 0o077 == 0o040 and status.st_gid == os.getegid():  # as Kubernetes hands over a secret
        yield Finding("warning", "keys", f"{path} can be read by this service's group: let nobody else be in it")
    elif mode & 0o077:
        yield Finding("error", "keys", f"{path} can be read by others: chmod go= {path}")


def _ages(settings: Settings) -> Iterator[Finding]:
    for key, since in _since(settings):
        days = int((time.time() - since) // 86400)
        if days >= DAYS[key]:
            yield Finding("warning", "keys", f"the {key} has been in use for {days} days: {_CHANGE[key]}")


def _since(settings: Settings) -> Iterator[tuple[str, float]]:
    """From when the keys that are in use have been so, where names, contents or times of files tell."""
    if not settings.keys:
        path = settings.keyring_file
        yield "keyring key", newest_since(path.read_text()) or path.stat().st_mtime
    elif since := newest_since(settings.keys):
        yield "keyring key", since
    if not settings.jwt_secret:
        yield "signing key", max(map(made_at, settings.signing_folder.glob("*.pem")))
    for path in sorted(settings.seal_folder.glob("*.pem"))[-1:]:
        yield "seal key", path.stat().st_mtime


def _own_database(settings: Settings) -> tuple[Path, ...]:
    if not settings.database.startswith("sqlite:///"):
        return ()
    file = Path(settings.database.removeprefix("sqlite:///").partition("?")[0])
    return file, file.parent


def _seals(settings: Settings) -> Iterator[Finding]:
    if not SealKeys.load(settings.seal_folder).can_sign:
        yield Finding("warning", "seals", f"no seal key in {settings.seal_folder}: run `flask mfa init`")
    elif not settings.seal_seconds:
        yield Finding("warning", "seals", "MFA_SEAL_SECONDS is 0: the audit log is sealed by command only")
    elif settings.seals_output == "none":
        yield Finding("warning", "seals", "MFA_SEALS_OUTPUT is none: cutting off the newest events would not show")
    else:
        where = "standard output, to be collected" if settings.seals_output == "-" else settings.seals_output
        yield Finding("ok", "seals", f"the audit log is sealed every {settings.seal_seconds} s; seals go to {where}")


def _standards(settings: Settings) -> Iterator[Finding]:
    if settings.totp_window > 1:
        yield Finding("warning", "standards", f"MFA_TOTP_WINDOW is {settings.totp_window}: RFC 6238 advises one step")
    if settings.bcrypt_cost < 12:
        yield Finding("warning", "standards", f"MFA_BCRYPT_COST is {settings.bcrypt_cost}, under the default of 12")
    if settings.jwt_secret:
        yield Finding("warning", "standards", "HS256: whoever can verify tokens can make them; ES256 keys avoid that")
    yield Finding("ok", "standards", f"passwords from {settings.password_min_length} characters, and a second factor")


def _proxy(settings: Settings) -> Iterator[Finding]:
    url = urlsplit(settings.public_url)
    is_local = url.hostname in ("localhost", "127.0.0.1", "::1")
    if url.scheme == "http" and not is_local:
        yield Finding("error", "proxy", "MFA_PUBLIC_URL is http: passwords and tokens would travel in the clear")
    elif not is_local and not settings.trusted_proxies:
        yield Finding("warning", "proxy", "MFA_TRUSTED_PROXIES is 0: behind a proxy all clients share one rate limit")
    else:
        yield Finding("ok", "proxy", f"{settings.public_url}, trusted proxies in front: {settings.trusted_proxies}")


def _registration(settings: Settings) -> Iterator[Finding]:
    if settings.has_cookie and settings.registration_open:
        text = "MFA_REGISTRATION_OPEN is true: whoever registers passes a proxy that asks /auth/check for no role"
        yield Finding("warning", "registration", text)


def _limiter(settings: Settings) -> Iterator[Finding]:
    rate = parse(settings.auth_rate_limit)
    if rate.amount > rate.get_expiry():
        yield Finding("warning", "limiter", f"MFA_AUTH_RATE_LIMIT is {settings.auth_rate_limit}: over one try a second")
    workers = server.Server.planned(os.environ).workers
    if not settings.redis_url:
        level: Level = "ok" if workers == 1 else "error"
        yield Finding(level, "limiter", f"counts in memory, for each of {workers} worker processes by itself")
        return
    if complaint := limits.complaint_of_store(settings):
        yield Finding("error", "limiter", f"Redis counts nothing: {complaint}")
    else:
        yield Finding("ok", "limiter", "Redis counts")


def _timeouts(engine: Engine) -> Iterator[Finding]:
    with suppress(SQLAlchemyError):
        if engine.dialect.name == "postgresql" and database.loses_timeouts(engine):
            text = "a pooler ignores our timeouts: set them by connect_query (docs/scaling.md), or requests may hang"
            yield Finding("warning", "database", text)
    engine.dispose()


def _database(settings: Settings, engine: Engine) -> Iterator[Finding]:
    try:
        current, newest = schema.find_current(engine), schema.newest()
        if schema.is_ahead(engine):
            yield Finding("warning", "database", f"is at revision {current}, of a newer version than this one")
        elif current != newest:
            yield Finding("error", "database", f"is at revision {current}, not {newest}: run `flask mfa upgrade`")
            return
        health = Services(settings, engine, time.time).health
        health.ensure_keyring(leaves_canary=False)
        health.ensure_writable()
    except SQLAlchemyError as error:
        yield Finding("error", "database", f"can't be reached: {cause(error)}{hint(error)}")
    except Unavailable:
        yield Finding("error", "database", "takes no changes now: it is locked, full or read-only")
    except ConfigurationError as error:
        yield Finding("error", "database", "; ".join(error.problems))
    else:
        mark = "opened by this keyring" if health.is_sealed() else "not yet sealed by any keyring"
        yield Finding("ok", "database", f"{engine.dialect.name} at revision {current}, {mark}")
    finally:
        engine.dispose()
