"""Every setting once, with its type, its default, its check and its reason.

A setting is read from the environment, or from what `create_app` is given, under its upper-case name with the
prefix `MFA_`. All that is missing, weak or contradictory is reported in one go and stops the start.
"""

import ipaddress
import re
import types
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Self, get_args, get_origin, get_type_hints
from urllib.parse import urlsplit

from mfa_service.errors import ConfigurationError

#: Returns what is wrong with a value, or None.
Check = Callable[[Any], str | None]

_EXAMPLES = (
    "a-string-secret-at-least-256-bits-long",
    "your-256-bit-secret",
    "changeme",
    "password",
    "example",
    "secret",
)


def setting(
    default: Any = MISSING, *, why: str, check: Check | None = None, env: str = "", secret: bool = False
) -> Any:
    """Declare a setting: `why` it exists, how it is checked, and whether it must never be printed."""
    metadata = {"why": why, "check": check, "env": env}
    return field(default=default, repr=not secret, metadata=metadata)


def between(low: int, high: int) -> Check:
    """A check that a number lies within these bounds, both included."""
    return lambda value: None if low <= value <= high else f"must be between {low} and {high}"


def _rate(value: str) -> str | None:
    number = "[1-9][0-9]{0,8}"
    good = re.fullmatch(rf"{number} ?(per|/) ?({number} ?)?(second|minute|hour|day)s?", value)
    return None if good else 'must read like "5 per 15 minutes"'


def _origin(value: str) -> str | None:
    try:
        url = urlsplit(value)
        is_plain = (
            url.scheme in ("http", "https") and url.hostname and url.port != 0 and not (url.query or url.fragment)
        )
    except ValueError:
        is_plain = False
    return None if is_plain and not value.endswith("/") else "must be an http(s) address without a slash at the end"


def _origins(values: tuple[str, ...]) -> str | None:
    bare = all(_origin(value) is None and not urlsplit(value).path for value in values)
    return None if bare else "must be origins such as https://shop.example, separated by commas"


def _address(schemes: str, example: str) -> Check:
    """A check of an address that never quotes it: it may hold a password."""

    def check(value: str) -> str | None:
        try:
            url = urlsplit(value)
            is_good = re.fullmatch(schemes, url.scheme) and url.port != 0 and (url.netloc or url.path)
        except ValueError:
            return f"must be an address such as {example}"
        return None if is_good else f"must be an address such as {example}"

    return check


def _redis_address(value: str) -> str | None:
    """Of a cluster and of Sentinels there are several places, each with its port."""
    place = r"(\[[0-9A-Fa-f:]+\]|[A-Za-z0-9._-]+):[0-9]{1,5}"
    places = rf"([^@/?#]*@)?{place}(,{place})*"
    if value.startswith(("redis+cluster:", "rediss+cluster:")):
        good = re.fullmatch(rf"rediss?\+cluster://{places}/?", value)
        return None if good else "must be an address such as redis+cluster://a.example:6379,b.example:6379"
    if value.startswith(("redis+sentinel:", "rediss+sentinel:")):
        good = re.fullmatch(rf"rediss?\+sentinel://{places}/[A-Za-z0-9._-]+", value)
        return None if good else "must be an address such as redis+sentinel://a.example:26379,b.example:26379/mymaster"
    return _address(r"rediss?|redis\+unix", "redis://redis.example:6379/0")(value)


_database_address = _address(r"sqlite|postgres|postgresql(\+psycopg)?", "postgresql://mfa@db.example/mfa")


def _hosts(values: tuple[str, ...]) -> str | None:
    bare = all(re.fullmatch(r"[A-Za-z0-9._-]+|([0-9A-Fa-f]*:){2,}[0-9A-Fa-f.]*", value) for value in values)
    return None if bare else "must be host names such as auth.example, without scheme and port, separated by commas"


def _prefix(value: str) -> str | None:
    good = re.fullmatch(r"(/[A-Za-z0-9_-]+)+", value)
    return None if good else "must be a path such as /auth, without a slash at the end"


def _locations(values: tuple[str, ...]) -> str | None:
    return None if values in (("header",), ("header", "cookie")) else "must be header, or header,cookie"


def _networks(values: tuple[str, ...]) -> str | None:
    try:
        for value in values:
            ipaddress.ip_network(value)
    except ValueError:
        return "must be networks such as 10.0.0.0/8 or ::1, separated by commas"
    return None


def _label(value: str) -> str | None:
    return None if value.strip() and ":" not in value else "must not be empty or hold a colon"


def weakness_of_secret(secret: str | bytes) -> str | None:
    """Say why this can't be a secret: short, few different bytes, a pattern, or an example from a manual."""
    raw = secret.encode() if isinstance(secret, str) else secret
    if len(raw) < 32:
        return "must be at least 32 bytes"
    repeats = any((raw[:period] * len(raw))[: len(raw)] == raw for period in range(1, len(raw) - 11))
    if len(set(raw)) < 10 or repeats:
        return "repeats itself: make one with `openssl rand -base64 48`"
    rest = raw.lower()
    for example in _EXAMPLES:
        rest = rest.replace(example.encode(), b"")
    return "holds an example value: make one with `openssl rand -base64 48`" if len(rest) < 24 else None


#: Settings that need a library beside the others: its name, its module, and our extra that brings it.
_EXTRAS = {
    "metrics": ("prometheus-client", "prometheus_client", "metrics"),
    "tracing": ("OpenTelemetry", "opentelemetry.sdk", "otel"),
}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The configuration of one service, checked. Make it with `Settings.load`."""

    instance: Path = setting(Path("instance"), why="The folder of the keys and of the SQLite file.")
    database_url: str = setting(
        "",
        secret=True,
        check=lambda value: _database_address(value) if value else None,
        why="SQLite (a file) or PostgreSQL. Empty: `mfa.db` in the instance folder.",
    )
    keyring: Path | None = setting(
        None, why="The file of the keys that seal secrets and hashes. Empty: `keyring.json` in the instance folder."
    )
    keys: str | None = setting(
        None, secret=True, why="The content of that file, for those who must pass it by the environment."
    )
    signing_keys: Path | None = setting(
        None, why="The folder of the ES256 keys that sign tokens. Empty: `signing-keys` in the instance folder."
    )
    key_reread_seconds: int = setting(
        30,
        check=between(1, 60),
        why="How often key files are looked at. A new key is used after twice this, when every replica has read it.",
    )
    seal_keys: Path | None = setting(
        None, why="The folder of the Ed25519 keys that seal the audit log. Empty: `seal-keys` in the instance folder."
    )
    seal_seconds: int = setting(
        300, check=between(0, 86400), why="How often the audit log is sealed by a running service. 0: only by command."
    )
    seals_output: str = setting(
        "-",
        why="Where seals are written besides, as JSON lines, for shipping off the machine: a file; `-` is standard "
        "output; `none` is nowhere.",
    )
    jwt_secret: str | None = setting(
        None,
        env="JWT_SECRET",
        secret=True,
        check=weakness_of_secret,
        why="Signs tokens with HS256 instead. Whoever verifies with it can mint, too.",
    )
    public_url: str = setting(
        "http://127.0.0.1:8000", check=_origin, why="The address that clients use: the issuer (`iss`) of all tokens."
    )
    audiences: tuple[str, ...] = setting(
        (), why="Apps that may accept our access tokens (`aud`), beside the issuer; separated by commas."
    )
    allowed_hosts: tuple[str, ...] = setting(
        (),
        check=_hosts,
        why="Host names that are answered besides that of the public address and loopback; others get 400.",
    )
    cors_origins: tuple[str, ...] = setting(
        (), check=_origins, why="Origins whose pages may call the API from a browser; separated by commas."
    )
    trusted_proxies: int = setting(
        0,
        check=between(0, 10),
        why="How many proxies stand in front, each adding to `X-Forwarded-For`. 0: the header is ignored.",
    )
    metrics: tuple[str, ...] = setting(
        (),
        check=_networks,
        why="Networks that may ask for `/metrics`; separated by commas. Empty: there is no such route.",
    )
    access_log: bool = setting(
        False, why="Whether each request is a line of the log, not refused ones alone: no query, no body, no header."
    )
    tracing: bool = setting(
        False, why="Whether requests and their statements are spans of OpenTelemetry; `OTEL_…` say where they go."
    )
    redis_url: str | None = setting(
        None,
        secret=True,
        check=_redis_address,
        why="Shares the rate limits between worker processes and machines: Redis, a cluster of it, or Sentinels.",
    )
    auth_rate_limit: str = setting(
        "5 per 15 minutes", check=_rate, why="How often one client may call one credential route."
    )
    session_rate_limit: str = setting(
        "60 per minute",
        check=_rate,
        why="How often one client may refresh, log out, change its own factors, or read the keys.",
    )
    registration_rate_limit: str = setting(
        "300 per hour", check=_rate, why="Registrations taken from all clients together: each costs a hash and rows."
    )
    admin_rate_limit: str = setting(
        "300 per minute",
        check=_rate,
        why="How often one client may call one route that administrates, and all of them together without the role.",
    )
    registration_open: bool = setting(
        True, why="Whether people register themselves. False: 403, and the route leaves the OpenAPI document."
    )
    token_locations: tuple[str, ...] = setting(
        ("header",),
        check=_locations,
        why="Where a session is looked for: `header`, or `header,cookie` for browsers, which also opens the pages.",
    )
    auth_prefix: str = setting("/auth", check=_prefix, why="In a host app: where the routes of signing in lie.")
    api_prefix: str = setting("/api", check=_prefix, why="In a host app: where the routes of the signed-in user lie.")
    blueprint_prefix: str = setting(
        "mfa_",
        check=lambda value: None if re.fullmatch(r"[a-z][a-z0-9_]*", value) else "must be like mfa_",
        why="In a host app: what the names of our blueprints begin with.",
    )
    totp_issuer: str = setting("MFA Service", check=_label, why="The name that authenticator apps show.")
    totp_window: int = setting(
        2, check=between(0, 2), why="How many 30-second steps a phone's clock may be off, either way."
    )
    bcrypt_cost: int = setting(
        12,
        why="Work factor of password hashes, 10 to 16; 12 is a quarter of a second. "
        "Once lowered, accounts hashed before answer later than unknown names.",
    )
    password_min_length: int = setting(8, check=between(8, 64), why="In code points (NIST SP 800-63B).")
    session_idle_seconds: int = setting(
        86400, check=between(3600, 31536000), why="A session that was not refreshed for so long has ended."
    )
    session_seconds: int = setting(
        2592000, check=between(3600, 31536000), why="How long a session lasts at most, however often it is refreshed."
    )
    device_seconds: int = setting(
        2592000, check=between(0, 2592000), why="How long a device is remembered. 0: no device is, and none counts."
    )
    hashing_threads: int = setting(
        1, check=between(1, 64), why="Passwords that a process hashes at once; gunicorn.conf.py sets it from the cores."
    )
    hashing_queue: int = setting(
        6, check=between(0, 100), why="Hashes that may wait for a thread; beyond that login answers 503 at once."
    )
    testing: bool = setting(
        False, env="TESTING", why="Allows a bcrypt cost under 10. From code only, never from the environment."
    )

    @classmethod
    def load(cls, source: Mapping[str, Any], *, needs_keys: bool = True) -> Self:
        """Read and check the settings. `needs_keys=False` is for the commands that make the keys.

        Raises ConfigurationError with every problem found.
        """
        values: dict[str, Any] = {}
        problems: list[str] = []
        for spec in fields(cls):
            name = env_name(spec)
            if (given := _without_end_of_line(source.get(name))) not in (None, ""):
                try:
                    values[spec.name] = _parsed(given, get_type_hints(cls)[spec.name])
                except ValueError as error:
                    problems.append(f"{name} {error}")
        settings = cls(**values)
        problems += settings._problems(needs_keys)
        if problems:
            raise ConfigurationError(problems)
        return settings

    def _problems(self, needs_keys: bool) -> Iterator[str]:
        for spec in fields(self):
            value, check = getattr(self, spec.name), spec.metadata["check"]
            reason = check(value) if check and value is not None else None
            if reason:
                yield f"{env_name(spec)} {reason}"
        if reason := between(4 if self.testing else 10, 16)(self.bcrypt_cost):
            yield f"MFA_BCRYPT_COST {reason}"
        if self.keys and self.keyring:
            yield "MFA_KEYS and MFA_KEYRING are both set: choose one"
        if self.jwt_secret and self.signing_keys:
            yield "JWT_SECRET and MFA_SIGNING_KEYS are both set: tokens have one signature"
        yield from self._missing_extras()
        yield from self._missing_keys() if needs_keys else ()

    def _missing_extras(self) -> Iterator[str]:
        for name, (library, module, extra) in _EXTRAS.items():
            if getattr(self, name) and not _is_installed(module):
                yield f"MFA_{name.upper()} needs {library}: pip install mfa_service[{extra}]"

    def _missing_keys(self) -> Iterator[str]:
        if not self.keys and not self.keyring_file.is_file():
            yield f"no keyring at {self.keyring_file}: run `flask mfa init`, or set MFA_KEYRING or MFA_KEYS"
        if not self.jwt_secret and not any(self.signing_folder.glob("*.pem")):
            where = self.signing_folder
            yield f"no signing key in {where}: run `flask mfa init`, or set MFA_SIGNING_KEYS or JWT_SECRET"

    @property
    def folder(self) -> Path:
        """The instance folder, absolute."""
        return self.instance.resolve()

    @property
    def keyring_file(self) -> Path:
        """Where the keyring is read from unless `keys` holds it."""
        return self.keyring or self.folder / "keyring.json"

    @property
    def signing_folder(self) -> Path:
        """Where the ES256 keys are read from unless `jwt_secret` is set."""
        return self.signing_keys or self.folder / "signing-keys"

    @property
    def seal_folder(self) -> Path:
        """Where the keys that seal the audit log are read from."""
        return self.seal_keys or self.folder / "seal-keys"

    @property
    def database(self) -> str:
        """The database's address for SQLAlchemy, with psycopg 3 as the driver of PostgreSQL."""
        url = self.database_url or f"sqlite:///{self.folder / 'mfa.db'}"
        if url.startswith("sqlite:///") and not url.startswith(("sqlite:////", "sqlite:///:", "sqlite:///file:")):
            return f"sqlite:///{Path.cwd() / url.removeprefix('sqlite:///')}"
        return re.sub(r"^postgres(ql)?://", "postgresql+psycopg://", url)

    @property
    def has_public_url(self) -> bool:
        """Whether somebody has said where clients find us."""
        return self.public_url != type(self).public_url

    @property
    def has_cookie(self) -> bool:
        """Whether a browser's cookie may stand for a session."""
        return "cookie" in self.token_locations

    @property
    def hosts(self) -> frozenset[str]:
        """The host names that are answered, in lower case; addresses of IPv6 without brackets."""
        own = urlsplit(self.public_url).hostname or ""
        return frozenset({own, "localhost", "127.0.0.1", "::1", *(host.lower() for host in self.allowed_hosts)})


def env_name(spec: "Field[Any]") -> str:
    """The name under which a setting is read from the environment."""
    return str(spec.metadata["env"]) or f"MFA_{spec.name.upper()}"


def _without_end_of_line(value: Any) -> Any:
    """What was read from a file, as Kubernetes does for a secret, ends as the editor has left it."""
    return value.rstrip("\r\n") if isinstance(value, str) else value


def _parsed(value: Any, kind: Any) -> Any:
    """Read a value of the environment as `kind`; values of another type come from code and must fit already."""
    if get_origin(kind) is types.UnionType:
        kind = next(option for option in get_args(kind) if option is not type(None))
    if get_origin(kind) is tuple:
        parts = value.split(",") if isinstance(value, str) else value
        return tuple(part.strip() for part in parts if part.strip())
    if kind is bool:
        return _parsed_bool(value)
    if kind is int and not re.fullmatch(r"-?[0-9]{1,9}", str(value)):
        raise ValueError("must be a whole number")
    return kind(value)


def _parsed_bool(value: Any) -> bool:
    known = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}
    try:
        return known[str(value).strip().lower()]
    except KeyError:
        raise ValueError("must be true or false") from None


def _is_installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # not even what it lies in
        return False


def unknown_names(environment: Mapping[str, Any]) -> list[str]:
    """What looks like a setting and is none, each with what may have been meant."""
    known = [env_name(spec) for spec in fields(Settings)]
    warnings = []
    for name in sorted(set(from_environment(environment)) - set(known)):
        near = get_close_matches(name, known, 1)
        warnings.append(f"{name} is not a setting" + (f"; did you mean {near[0]}?" if near else ""))
    return warnings


def from_host(config: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a host app's configuration that is ours. A `JWT_SECRET` there may be the host's own: left alone."""
    return {name: value for name, value in config.items() if name.startswith("MFA_")}


def from_environment(environment: Mapping[str, str]) -> dict[str, Any]:
    """The part of the environment that is ours."""
    return {name: value for name, value in environment.items() if name.startswith("MFA_") or name == "JWT_SECRET"}
