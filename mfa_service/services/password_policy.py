"""Which passwords are taken: long enough, not a common one, not the user's own name with a year behind it.

NIST SP 800-63B section 3.1.1.2: length and a blocklist, and neither composition rules nor expiry. The list is
zxcvbn's, which also sees through capitals, l33t and appended years; it comes with the package and asks no network.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from zxcvbn import zxcvbn
from zxcvbn.matching import RANKED_DICTIONARIES

from mfa_service.crypto.passwords import MAX_BYTES
from mfa_service.errors import WeakPassword

_COMMON = RANKED_DICTIONARIES["passwords"].keys()
#: Fewer guesses than this, with a word of a list in it, and the password is refused.
_FEW_GUESSES = 10**6
#: zxcvbn raises above 72 characters and takes seconds for some strings of that length; no common password is so long.
_LOOKED_AT = 24
#: A context word has to leave at least so many other characters.
_OWN_CHARACTERS = 6


def ensure_acceptable(password: str, *, min_length: int, context: Sequence[str], member: str = "password") -> None:
    """Raise WeakPassword with the reason.

    `context` are words that anybody would try: the user's, the service's; `member` is what the request calls the
    password.
    """
    reason = _find_fault(password, min_length, context)
    if reason:
        raise WeakPassword(fields={member: reason})


def _find_fault(password: str, min_length: int, context: Sequence[str]) -> str | None:
    if len(password) < min_length:
        return f"must have at least {min_length} characters"
    if len(password.encode()) > MAX_BYTES:
        return f"must not be longer than {MAX_BYTES} bytes"
    words = [word for word in map(_squeezed, context) if len(word) >= 3]
    if any(_is_built_on(_squeezed(password), word) for word in words):
        return "is built on the user name, the e-mail address or the name of this service"
    if password.lower() in _COMMON or _is_guessed_by_list(password[:_LOOKED_AT], words):
        return "is on the list of common passwords"
    return None


def _is_built_on(password: str, word: str) -> bool:
    return word in password and len(password.replace(word, "")) < _OWN_CHARACTERS


def _squeezed(text: str) -> str:
    return "".join(character for character in text.casefold() if character.isalnum())


def _is_guessed_by_list(password: str, words: list[str]) -> bool:
    result = zxcvbn(password, user_inputs=words)
    return result["guesses"] < _FEW_GUESSES and any(map(_is_listed, result["sequence"]))


def _is_listed(match: Mapping[str, Any]) -> bool:
    """Whether a part of a password is a word of a list, or one over and over."""
    return match["pattern"] == "dictionary" or any(map(_is_listed, match.get("base_matches", ())))
