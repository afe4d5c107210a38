"""One keyring: keys by id, newest first, from which a sub-key is derived for each purpose.

The file is JSON: `{"keys": [{"id": "k1", "key": "<32 random bytes, base64url>"}, …]}`. A key may name the time from
which it seals new data (`"activeFrom": "2026-12-01T00:00:00Z"`), so that every replica has read it before the first
value under it arrives. The newest active key seals; the others stay for as long as something is sealed under them.
"""

import base64
import binascii
import copy
import json
import re
import secrets
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol, Self

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from mfa_service.errors import ConfigurationError

KEY_BYTES = 32


class Keys(Protocol):
    """What sealing and deriving need of a keyring."""

    @property
    def active_id(self) -> str:
        """The id of the key for new data."""

    @property
    def ids(self) -> tuple[str, ...]:
        """All ids, newest first."""

    def sub_key(self, key_id: str, purpose: str) -> bytes:
        """Derive the key for a purpose. Raises KeyError for an unknown id."""


class Keyring:
    """Keys by id; the newest one that is active already seals new data."""

    def __init__(self, keys: Mapping[str, bytes], active_from: Mapping[str, float] | None = None) -> None:
        """`keys` maps ids to 32 random bytes, newest first; `active_from` maps some of them to Unix seconds.

        Raises ConfigurationError if one is weak.
        """
        if not keys:
            raise ConfigurationError(["the keyring holds no key"])
        weak = [f"keyring: key {name!r} is not {KEY_BYTES} random bytes" for name in keys if not _is_strong(keys[name])]
        if weak:
            raise ConfigurationError(weak)
        self._keys = dict(keys)
        self._active_from = dict(active_from or {})
        self.active_id = next(iter(self._keys))

    @classmethod
    def parse(cls, text: str, *, active_from: float = 0) -> Self:
        """Read the JSON form; `active_from` is for keys that name no time and are not the oldest.

        Raises ConfigurationError, which never quotes a key.
        """
        try:
            entries = json.loads(text)["keys"]
            keys = {_checked_id(entry["id"]): base64.urlsafe_b64decode(entry["key"] + "==") for entry in entries}
            times = {entry["id"]: _active_from(entry, active_from) for entry in entries[:-1]}
        except (ValueError, KeyError, TypeError, AttributeError, binascii.Error):
            raise ConfigurationError(["the keyring is not in the form that `flask mfa init` writes"]) from None
        if len(keys) != len(entries):
            raise ConfigurationError(["the keyring holds two keys of one id"])
        return cls(keys, times)

    @classmethod
    def load(cls, path: Path, *, delay: float = 0) -> Self:
        """Read the file at `path`; a key that names no time is active `delay` seconds after the file was written.

        Raises ConfigurationError.
        """
        try:
            return cls.parse(path.read_text(), active_from=path.stat().st_mtime + delay if delay else 0)
        except (OSError, UnicodeDecodeError):
            raise ConfigurationError([f"the keyring {path} can't be read"]) from None

    def following(self, earlier: Self) -> Self:
        """The same keys; one that was there before is active from when it was, however often the file is written."""
        times = {key_id: earlier.active_from(key_id) for key_id in self.ids if key_id in earlier.ids}
        return type(self)(self._keys, self._active_from | times)

    def as_of(self, now: float) -> Self:
        """The same keys, with the one active that is so at `now` (Unix seconds)."""
        dated = copy.copy(self)
        dated.active_id = next((name for name in self._keys if self.active_from(name) <= now), self.ids[-1])
        return dated

    def active_from(self, key_id: str) -> float:
        """From when a key seals new data, in Unix seconds."""
        return self._active_from.get(key_id, 0)

    @property
    def ids(self) -> tuple[str, ...]:
        """All ids, newest first."""
        return tuple(self._keys)

    def sub_key(self, key_id: str, purpose: str) -> bytes:
        """Derive the 32-byte key for `purpose` (HKDF-SHA-256, RFC 5869). Raises KeyError for an unknown id."""
        info = f"mfa_service/{purpose}".encode()
        return HKDF(algorithm=SHA256(), length=32, salt=None, info=info).derive(self._keys[key_id])


def newest_since(text: str) -> float | None:
    """From when the newest key of a keyring has been in use, in Unix seconds; None if it does not say.

    Raises ConfigurationError for what is no keyring.
    """
    Keyring.parse(text)
    try:
        return _active_from(json.loads(text)["keys"][0], 0) or None
    except (ValueError, TypeError):
        return None  # the only key of a ring is used whatever it says


def new_keyring_text() -> str:
    """A fresh keyring with one key, in the file's form."""
    return _text([_new_entry()])


def with_new_key(text: str, *, active_from: float) -> str:
    """The same keyring with a fresh key in front, active from then on (Unix seconds)."""
    time = datetime.fromtimestamp(active_from, UTC).isoformat(timespec="seconds")
    return _text([_new_entry() | {"activeFrom": time}, *_settled(json.loads(text)["keys"])])


def without_key(text: str, key_id: str) -> str:
    """The same keyring without one key."""
    return _text([entry for entry in _settled(json.loads(text)["keys"]) if entry["id"] != key_id])


def _new_entry() -> dict[str, str]:
    key = base64.urlsafe_b64encode(secrets.token_bytes(KEY_BYTES)).decode()
    return {"id": f"k{secrets.token_hex(4)}", "key": key.rstrip("=")}


def _settled(entries: list[dict[str, str]]) -> list[dict[str, str]]:
    """Keys that name no time have been active; the time of the file that is about to change must not say otherwise."""
    return [entry | {"activeFrom": entry.get("activeFrom", "1970-01-01T00:00:00+00:00")} for entry in entries]


def _text(entries: list[dict[str, str]]) -> str:
    return json.dumps({"keys": entries}, indent=2) + "\n"


def _active_from(entry: Mapping[str, Any], default: float) -> float:
    if "activeFrom" not in entry:
        return default
    time = datetime.fromisoformat(entry["activeFrom"])
    if time.tzinfo is None:
        raise ValueError("a time without a zone")
    return time.timestamp()


def _checked_id(key_id: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,32}", key_id, re.ASCII):
        raise ValueError("bad key id")
    return key_id


def _is_strong(key: bytes) -> bool:
    # 32 random bytes have fewer than 16 different values once in 10**13 keys.
    repeats_itself = key in (key + key)[1:-1]
    return len(key) == KEY_BYTES and len(set(key)) >= 16 and not repeats_itself
