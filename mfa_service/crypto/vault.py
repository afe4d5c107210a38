"""Sealed values: AES-256-GCM under the keyring, bound to the place they are stored in.

Envelope: version (1 byte) · length of the key id (1) · key id · nonce (12) · ciphertext and tag. The header and the
context (`table.column:owner`) are authenticated, so a value pasted into another row, or under another key id, does
not open. Given up: values can't be searched or compared while sealed.
"""

import os
from functools import cache

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from mfa_service.crypto.keyring import Keys
from mfa_service.errors import SealBroken

_VERSION = 1
_NONCE = 12


class Vault:
    """Seals and opens values with the keys of one keyring."""

    def __init__(self, keyring: Keys) -> None:
        self._keyring = keyring
        self._cipher = cache(lambda key_id: AESGCM(keyring.sub_key(key_id, "seal")))

    def seal(self, value: bytes, context: str) -> bytes:
        """Encrypt `value` for one place, named by `context`, under the active key."""
        return self._seal(value, context, self._keyring.active_id)

    def _seal(self, value: bytes, context: str, key_id: str) -> bytes:
        header = header_of(key_id)
        nonce = os.urandom(_NONCE)
        return header + nonce + self._cipher(key_id).encrypt(nonce, value, header + context.encode())

    def open(self, envelope: bytes, context: str) -> bytes:
        """Decrypt what was sealed for this place. Raises SealBroken if it was not, or its key is unknown."""
        key_id, end = _key_id(envelope)
        header, nonce, sealed = envelope[:end], envelope[end : end + _NONCE], envelope[end + _NONCE :]
        try:
            return self._cipher(key_id).decrypt(nonce, sealed, header + context.encode())
        except (KeyError, InvalidTag, ValueError):
            raise SealBroken from None

    def is_stale(self, envelope: bytes) -> bool:
        """Whether the value is sealed under an older key than the active one.

        A newer one is no reason to seal it again: another replica is ahead of us.
        """
        key_id, active_id, ids = _key_id(envelope)[0], self._keyring.active_id, self._keyring.ids
        # The keyring may be read anew between the two: then the active key is not of these ids.
        return {key_id, active_id} <= set(ids) and ids.index(key_id) > ids.index(active_id)

    def reseal(self, envelope: bytes, context: str, key_id: str) -> bytes:
        """The same value under the key of this id, active or not. Raises SealBroken, and KeyError for an unknown id."""
        return self._seal(self.open(envelope, context), context, key_id)


def header_of(key_id: str) -> bytes:
    """What every envelope under this key begins with."""
    return bytes([_VERSION, len(key_id)]) + key_id.encode()


def _key_id(envelope: bytes) -> tuple[str, int]:
    """The key id in the header, and where the header ends."""
    if len(envelope) < 2 or envelope[0] != _VERSION:
        raise SealBroken
    end = 2 + envelope[1]
    return envelope[2:end].decode("ascii", "replace"), end
