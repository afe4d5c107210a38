"""Password hashes that other systems made, for people who are brought along: recognised, verified, never made.

werkzeug's (scrypt, pbkdf2), Django's (pbkdf2, bcrypt, bcrypt_sha256, argon2), plain bcrypt, and with the extra
`[import]` what passlib writes (argon2, sha256-crypt, sha512-crypt, pbkdf2, bcrypt-sha256). Each is replaced by one of
ours at its owner's next login; until then that login takes the time of the foreign hash.
"""

import base64
import hashlib
import hmac
import importlib
import re
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import bcrypt
from werkzeug.security import check_password_hash

_WERKZEUG = re.compile(r"(scrypt|pbkdf2:sha(1|256|512))(:[0-9]+)+\$[^$]+\$[0-9a-f]+", re.ASCII)
_BCRYPT = re.compile(r"\$2[aby]\$[0-9]{2}\$[./A-Za-z0-9]{53}", re.ASCII)
_DJANGO_PBKDF2 = re.compile(r"pbkdf2_(sha1|sha256)\$([0-9]{1,8})\$([^$]+)\$([A-Za-z0-9+/=]+)", re.ASCII)
#: What passlib verifies, by its own names (libpass is the kept passlib).
_PASSLIB = ("argon2", "sha256_crypt", "sha512_crypt", "pbkdf2_sha1", "pbkdf2_sha256", "pbkdf2_sha512", "bcrypt_sha256")
#: bcrypt never read more; newer versions of the library refuse to be given more.
_BCRYPT_BYTES = 72


def is_known(stored: str) -> bool:
    """Whether this is a hash that can be verified here and now."""
    return _find_verifier(stored) is not None


def verify(password: str, stored: str) -> bool:
    """Compare with a foreign hash. Raises ValueError for what is none, or is damaged."""
    verifier = _find_verifier(stored)
    if verifier is None:
        raise ValueError("not a hash that can be verified here")
    try:
        return verifier(password, stored)
    except TypeError:
        raise ValueError("a damaged hash") from None


def _find_verifier(stored: str) -> Callable[[str, str], bool] | None:
    if _WERKZEUG.fullmatch(stored):
        return lambda password, hashed: check_password_hash(hashed, password)
    if _BCRYPT.fullmatch(stored):
        return _is_bcrypt
    passlib, kind = _passlib(), stored.partition("$")[0]
    if kind in _DJANGO:
        return _DJANGO[kind] if passlib or kind != "argon2" else None
    return (
        (lambda password, hashed: bool(passlib.verify(password, hashed)))
        if passlib and passlib.identify(stored)
        else None
    )


def _is_bcrypt(password: str, stored: str) -> bool:
    return bcrypt.checkpw(password.encode()[:_BCRYPT_BYTES], stored.encode())


def _is_django_pbkdf2(password: str, stored: str) -> bool:
    match = _DJANGO_PBKDF2.fullmatch(stored)
    if not match:
        return False
    name, rounds, salt, expected = match.groups()
    made = hashlib.pbkdf2_hmac(name, password.encode(), salt.encode(), int(rounds))
    return hmac.compare_digest(base64.b64encode(made).decode(), expected)


def _is_django_bcrypt(password: str, stored: str) -> bool:
    name, _, hashed = stored.partition("$")
    if not _BCRYPT.fullmatch(hashed):
        return False
    is_reduced = name == "bcrypt_sha256"
    secret = hashlib.sha256(password.encode()).hexdigest() if is_reduced else password
    return _is_bcrypt(secret, hashed)


def _is_django_argon2(password: str, stored: str) -> bool:
    passlib = _passlib()
    return bool(passlib and passlib.verify(password, "$" + stored.partition("$")[2]))


_DJANGO: Mapping[str, Callable[[str, str], bool]] = {
    "pbkdf2_sha256": _is_django_pbkdf2,
    "pbkdf2_sha1": _is_django_pbkdf2,
    "bcrypt": _is_django_bcrypt,
    "bcrypt_sha256": _is_django_bcrypt,
    "argon2": _is_django_argon2,
}


@cache
def _passlib() -> Any | None:
    try:
        context = importlib.import_module("passlib.context")
    except ImportError:
        return None
    return context.CryptContext(schemes=list(_PASSLIB))
