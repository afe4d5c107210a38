"""Recovery codes: 120 random bits each, in letters and digits that nobody confuses.

They are stored as plain SHA-256, which is enough for random values of that size (ASVS 6.5.2), and found by it: one
digest for each guess, and no slow hash over every stored code.
"""

import hashlib
import secrets

COUNT = 10
_ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"  # Crockford's base32: no I, L, O, U
_CHARACTERS = 24
_GROUP = 4


def new_codes() -> tuple[str, ...]:
    """Ten codes, in groups of four characters."""
    return tuple(_new_code() for _ in range(COUNT))


def digest(code: str) -> str:
    """The SHA-256 of a code in its one canonical form: upper case, no hyphens, no spaces."""
    # Beyond ASCII upper() makes other letters of what never was a code: "ß" would become "SS".
    canonical = (code.upper() if code.isascii() else code).replace("-", "").replace(" ", "")
    return hashlib.sha256(canonical.encode("utf-8", "replace")).hexdigest()


def _new_code() -> str:
    code = "".join(secrets.choice(_ALPHABET) for _ in range(_CHARACTERS))
    return "-".join(code[start : start + _GROUP] for start in range(0, _CHARACTERS, _GROUP))
