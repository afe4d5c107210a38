"""Key files that change while the service runs: read again within a minute, active when every replica has read them.

A key can be read as soon as its file is; new data is sealed and signed with it two intervals after it appeared, so
that no replica meets what it can't open. A file that can't be read keeps what was read before, and says so.
"""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, Generic, Protocol, Self, TypeVar

from mfa_service.config import Settings
from mfa_service.crypto.keyring import Keyring, Keys
from mfa_service.crypto.signing import DatedKeys, SharedSecret, SigningKeys, TokenKeys
from mfa_service.crypto.tokens import ACCESS_SECONDS, LEEWAY
from mfa_service.errors import ConfigurationError

K_co = TypeVar("K_co", covariant=True)

#: Intervals from when a key appears until it is used for new data.
INTERVALS = 2


class Dated(Protocol[K_co]):
    """Keys that depend on the time."""

    def following(self, earlier: Any) -> Self:
        """The same, read after `earlier`: what has been active stays so."""

    def as_of(self, now: float) -> K_co:
        """Those that count at `now` (Unix seconds)."""


class Watched(Generic[K_co]):
    """What a file, or a folder of files, holds as of now; looked at again every so many seconds."""

    def __init__(
        self, path: Path | None, load: Callable[[], Dated[K_co]], clock: Callable[[], float], seconds: float
    ) -> None:
        """Without a `path` it stays what it is, and the time alone changes what of it counts.

        Raises ConfigurationError if it can't be read the first time.
        """
        self._path = path
        self._load = load
        self._clock = clock
        self._seconds = seconds
        self._stamp = _stamp(path)
        self._dated = load()
        self._checked_at = clock()
        self._current = self._dated.as_of(self._checked_at)

    @property
    def current(self) -> K_co:
        """What counts now."""
        if abs(self._clock() - self._checked_at) >= self._seconds:
            self.look()
        return self._current

    def look(self) -> None:
        """Read the file again if it has changed."""
        self._checked_at = self._clock()
        try:
            stamp = _stamp(self._path)
            if stamp != self._stamp:
                self._dated, self._stamp = self._load().following(self._dated), stamp
        except (ConfigurationError, OSError) as error:
            logging.getLogger("mfa_service").critical("keys stay as they were: %s", error)
        self._current = self._dated.as_of(self._checked_at)


class WatchedKeyring:
    """The keyring of a file or a setting, as `crypto/keyring.py:Keys` wants it."""

    def __init__(self, watched: Watched[Keyring]) -> None:
        self._watched = watched

    @property
    def active_id(self) -> str:
        """The id of the key for new data."""
        return self._watched.current.active_id

    @property
    def ids(self) -> tuple[str, ...]:
        """All ids, newest first."""
        return self._watched.current.ids

    def sub_key(self, key_id: str, purpose: str) -> bytes:
        """Derive the key for a purpose; an unknown id is looked for in the file at once. Raises KeyError."""
        if key_id not in self._watched.current.ids:
            self._watched.look()
        return self._watched.current.sub_key(key_id, purpose)


class SigningFolder:
    """The signing keys of a folder, as of now."""

    algorithm = SigningKeys.algorithm

    def __init__(self, watched: Watched[SigningKeys]) -> None:
        self._watched = watched

    @property
    def signer(self) -> tuple[str | None, Any]:
        """The `kid` and the key that sign now."""
        return self._watched.current.signer

    def find(self, kid: object) -> Any | None:
        """The public key of `kid`, or None."""
        return self._watched.current.find(kid)

    def public_jwks(self) -> dict[str, Any]:
        """The JWK Set to publish."""
        return self._watched.current.public_jwks()


def watch_keyring(settings: Settings, clock: Callable[[], float]) -> Keys:
    """The keyring that the settings name. Raises ConfigurationError."""
    seconds = settings.key_reread_seconds
    if text := settings.keys:
        return WatchedKeyring(Watched(None, lambda: Keyring.parse(text), clock, seconds))
    path, delay = settings.keyring_file, activation_delay(settings)
    return WatchedKeyring(Watched(path, lambda: Keyring.load(path, delay=delay), clock, seconds))


def watch_signing_keys(settings: Settings, clock: Callable[[], float]) -> TokenKeys:
    """The keys that sign tokens, as the settings name them. Raises ConfigurationError."""
    if settings.jwt_secret:
        return SharedSecret(settings.jwt_secret)
    folder, delay = settings.signing_folder, activation_delay(settings)
    # A replica may sign with the old key until it has looked again.
    overlap = ACCESS_SECONDS + LEEWAY + settings.key_reread_seconds
    load = lambda: DatedKeys.load(folder, delay=delay, overlap=overlap)  # noqa: E731
    return SigningFolder(Watched(folder, load, clock, settings.key_reread_seconds))


def activation_delay(settings: Settings) -> int:
    """Seconds from when a key appears until it is used for new data."""
    return INTERVALS * settings.key_reread_seconds


def _stamp(path: Path | None) -> tuple[object, ...]:
    """What is different when the content is: of a folder, what is different of its files."""
    if path is None:
        return ()
    paths = sorted(path.glob("*.pem")) if path.is_dir() else [path] if path.exists() else []
    return tuple((each.name, each.stat().st_mtime_ns, each.stat().st_size, each.stat().st_ino) for each in paths)
