"""One keyring: keys by id, newest first, from which a sub-key is derived for each purpose.

The file is JSON: `{"keys": [{"id": "k1", "key": "<32 random bytes, base64url>"}, …]}`. The first key seals new
data; the others stay for as long as something is sealed under them.
"""

import base64
import binascii
import json
import re
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Self

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from mfa_service.errors import ConfigurationError

KEY_BYTES = 32


class Keyring:
    """Keys by id; the first is the active one."""

    def __init__(self, keys: Mapping[str, bytes]) -> None:
        """`keys` maps ids to 32 random bytes, newest first. Raises ConfigurationError if one is weak."""
        if not keys:
            raise ConfigurationError(["the keyring holds no key"])
        weak = [
            f"keyring: key {name!r} is not {KEY_BYTES} random bytes"
            for name, key in keys.items()
            if not _is_strong(key)
        ]
        if weak:
            raise ConfigurationError(weak)
        self._keys = dict(keys)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read the JSON form. Raises ConfigurationError, which never quotes a key."""
        try:
            entries = json.loads(text)["keys"]
            keys = {_checked_id(entry["id"]): base64.urlsafe_b64decode(entry["key"] + "==") for entry in entries}
        except (ValueError, KeyError, TypeError, AttributeError, binascii.Error):
            raise ConfigurationError(["the keyring is not in the form that `flask mfa init` writes"]) from None
        if len(keys) != len(entries):
            raise ConfigurationError(["the keyring holds two keys of one id"])
        return cls(keys)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read the file at `path`. Raises ConfigurationError."""
        try:
            return cls.parse(path.read_text())
        except (OSError, UnicodeDecodeError):
            raise ConfigurationError([f"the keyring {path} can't be read"]) from None

    @property
    def active_id(self) -> str:
        """The id of the key that new data is sealed under."""
        return next(iter(self._keys))

    @property
    def ids(self) -> tuple[str, ...]:
        """All ids, newest first."""
        return tuple(self._keys)

    def sub_key(self, key_id: str, purpose: str) -> bytes:
        """Derive the 32-byte key for `purpose` (HKDF-SHA-256, RFC 5869). Raises KeyError for an unknown id."""
        info = f"mfa_service/{purpose}".encode()
        return HKDF(algorithm=SHA256(), length=32, salt=None, info=info).derive(self._keys[key_id])


def new_keyring_text() -> str:
    """A fresh keyring with one key, in the file's form."""
    key = base64.urlsafe_b64encode(secrets.token_bytes(KEY_BYTES)).decode()
    return json.dumps({"keys": [{"id": f"k{secrets.token_hex(4)}", "key": key.rstrip("=")}]}, indent=2) + "\n"


def _checked_id(key_id: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,32}", key_id, re.ASCII):
        raise ValueError("bad key id")
    return key_id


def _is_strong(key: bytes) -> bool:
    # 32 random bytes have fewer than 16 different values once in 10**13 keys.
    repeats_itself = key in (key + key)[1:-1]
    return len(key) == KEY_BYTES and len(set(key)) >= 16 and not repeats_itself
