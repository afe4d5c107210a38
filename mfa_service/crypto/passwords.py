"""Password hashes: NFC, HMAC-SHA-384 under a fixed label, base64, bcrypt.

bcrypt reads 72 bytes and stops at NUL; 48 bytes of HMAC in base64 are 64 printable ones, so every character of a
long password counts. The label is no secret: it keeps hashes that leaked elsewhere from being tried here. Stored
form: the scheme, then bcrypt's own string, which names the cost. What is stored is sealed besides (`vault.py`).
"""

import base64
import hmac
import re
import secrets
import unicodedata

import bcrypt

from mfa_service.crypto import foreign
from mfa_service.crypto.libcrypt import hashpw

SCHEME = "$bcrypt-hmac-sha384"
MAX_BYTES = 1024
_LABEL = b"mfa_service/password/1"
_OURS = re.compile(rf"{re.escape(SCHEME)}\$2b{foreign.BCRYPT_REST}")
_ALPHABET = "./ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"


class UnknownHash(ValueError):
    """The stored string is none that this module wrote."""


def hash_password(password: str, cost: int) -> str:
    """Hash at bcrypt's work factor `cost` (4 to 31). Takes about a quarter of a second at 12."""
    return SCHEME + hashpw(_reduced(password), bcrypt.gensalt(cost)).decode()


def verify_password(password: str, stored: str, cost: int) -> bool:
    """Compare with a stored hash, in the time of a hash at the current `cost` even where `stored` is cheaper.

    A hash at cost c takes 2**c rounds, so the missing rounds are 2**c + 2**(c+1) + … + 2**(cost-1): without them an
    account that was hashed before the cost was raised answers sooner than an unknown name does. A hash that came from
    another system takes its own time, until it is replaced. Raises UnknownHash.
    """
    if not stored.startswith(SCHEME) and foreign.is_known(stored):
        return _is_foreign(password, stored)
    plain, reduced = _bcrypt_part(stored), _reduced(password)
    is_right = hmac.compare_digest(hashpw(reduced, plain), plain)
    for missing in range(_cost(stored), cost):
        hashpw(reduced, _bcrypt_part(decoy(missing)))
    return is_right


def is_known(stored: str) -> bool:
    """Whether this is a whole hash, of ours or of another system, that can be verified here and now."""
    return _OURS.fullmatch(stored) is not None or foreign.is_known(stored)


def needs_rehash(stored: str, cost: int) -> bool:
    """Whether the hash was made at another cost, or by another system. Raises UnknownHash."""
    if not stored.startswith(SCHEME) and foreign.is_known(stored):
        return True
    return _cost(stored) != cost


def decoy(cost: int) -> str:
    """A well-formed hash of nothing, for names that nobody has: comparing with it costs what a real one does."""
    return SCHEME + bcrypt.gensalt(cost).decode() + "".join(secrets.choice(_ALPHABET) for _ in range(31))


def _is_foreign(password: str, stored: str) -> bool:
    spellings = dict.fromkeys((password, unicodedata.normalize("NFC", password)))
    try:
        return any(foreign.verify(spelling, stored) for spelling in spellings)
    except ValueError:
        raise UnknownHash("a damaged hash of another system") from None


def _reduced(password: str) -> bytes:
    normal = unicodedata.normalize("NFC", password).encode()
    return base64.b64encode(hmac.digest(_LABEL, normal, "sha384"))


def _bcrypt_part(stored: str) -> bytes:
    if not _OURS.fullmatch(stored):
        raise UnknownHash("not a hash of this service")
    return stored.removeprefix(SCHEME).encode()


def _cost(stored: str) -> int:
    return int(_bcrypt_part(stored)[4:6])
