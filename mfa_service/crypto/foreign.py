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

from werkzeug.security import check_password_hash

from mfa_service.crypto.libcrypt import MAX_BYTES, hashpw

# The whole shape of each kind: a damaged hash is none, rather than one that no password fits.
_ROUNDS, _SALT = "[1-9][0-9]{0,7}", r"\$[^$]+\$"
_WERKZEUG = re.compile(
    rf"scrypt(:{_ROUNDS}){{3}}{_SALT}[0-9a-f]{{128}}"
    rf"|pbkdf2:sha1:{_ROUNDS}{_SALT}[0-9a-f]{{40}}"
    rf"|pbkdf2:sha256:{_ROUNDS}{_SALT}[0-9a-f]{{64}}"
    rf"|pbkdf2:sha512:{_ROUNDS}{_SALT}[0-9a-f]{{128}}"
)
_DJANGO_PBKDF2 = re.compile(
    rf"pbkdf2_sha1\${_ROUNDS}{_SALT}[A-Za-z0-9+/]{{27}}=|pbkdf2_sha256\${_ROUNDS}{_SALT}[A-Za-z0-9+/]{{43}}="
)
#: Cost, salt and hash, as bcrypt writes them: the salt's last character holds two bits.
BCRYPT_REST = r"\$(0[4-9]|[12][0-9]|3[01])\$[./A-Za-z0-9]{21}[.Oeu][./A-Za-z0-9]{31}"
_BCRYPT = re.compile(rf"\$2[aby]{BCRYPT_REST}")
_DJANGO_BCRYPT = re.compile(rf"bcrypt(_sha256)?\$\$2[aby]{BCRYPT_REST}")
#: What passlib verifies, by its own names (libpass is the kept passlib).
_PASSLIB = ("argon2", "sha256_crypt", "sha512_crypt", "pbkdf2_sha1", "pbkdf2_sha256", "pbkdf2_sha512", "bcrypt_sha256")


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
    for shape, verifier in _BY_SHAPE.items():
        if shape.fullmatch(stored):
            return verifier
    return _is_passlib if _has_passlib_shape(stored) else None


def _is_werkzeug(password: str, stored: str) -> bool:
    return check_password_hash(stored, password)


def _is_bcrypt(password: str, stored: str) -> bool:
    hashed = stored.encode()  # of $2a libxcrypt takes some passwords with a byte 0xff otherwise: UTF-8 has none
    return hmac.compare_digest(hashpw(password.encode()[:MAX_BYTES], hashed), hashed)


def _is_django_pbkdf2(password: str, stored: str) -> bool:
    name, rounds, salt, expected = stored.removeprefix("pbkdf2_").split("$")
    made = hashlib.pbkdf2_hmac(name, password.encode(), salt.encode(), int(rounds))
    return hmac.compare_digest(base64.b64encode(made).decode(), expected)


def _is_django_bcrypt(password: str, stored: str) -> bool:
    name, _, hashed = stored.partition("$")
    is_reduced = name == "bcrypt_sha256"
    secret = hashlib.sha256(password.encode()).hexdigest() if is_reduced else password
    return _is_bcrypt(secret, hashed)


_BY_SHAPE: Mapping[re.Pattern[str], Callable[[str, str], bool]] = {
    _WERKZEUG: _is_werkzeug,
    _BCRYPT: _is_bcrypt,
    _DJANGO_PBKDF2: _is_django_pbkdf2,
    _DJANGO_BCRYPT: _is_django_bcrypt,
}


def _is_passlib(password: str, stored: str) -> bool:
    passlib = _passlib()
    return bool(passlib and passlib.verify(password, _without_django(stored)))


def _has_passlib_shape(stored: str) -> bool:
    passlib, plain = _passlib(), _without_django(stored)
    kind = passlib.identify(plain, resolve=True) if passlib else None
    try:
        return kind is not None and kind.from_string(plain).checksum is not None
    except (TypeError, ValueError):
        return False


def _without_django(stored: str) -> str:
    """Django writes a name before Argon2's own string, and nothing in between."""
    return stored.removeprefix("argon2")


@cache
def _passlib() -> Any | None:
    try:
        context = importlib.import_module("passlib.context")
    except ImportError:
        return None
    return context.CryptContext(schemes=list(_PASSLIB))
