"""User names: which are allowed, and when two are the same (RFC 8265, UsernameCaseMapped with case folding).

`BOB`, `ｂｏｂ` and `bob` are one account. Refused are invisible, bidirectional, control and unassigned characters
(all by PRECIS), names that mix scripts so that one looks like another (UTS 39, "highly restrictive"), and the
colon, which separates issuer and account in an otpauth address.
"""

import precis_i18n
from confusable_homoglyphs import categories
from email_validator import EmailNotValidError, validate_email

from mfa_service.errors import InvalidRequest

MAX_CHARACTERS = 64
#: The longest name of a host's user; what is longer is cut.
MAX_LABEL = 254
_PROFILE = precis_i18n.get_profile("UsernameCaseMapped:CaseFold")
_NEUTRAL = {"COMMON", "INHERITED"}
_COMBINATIONS = ({"LATIN", "HAN", "HIRAGANA", "KATAKANA"}, {"LATIN", "HAN", "BOPOMOFO"}, {"LATIN", "HAN", "HANGUL"})


def find_key(username: str) -> str | None:
    """The form that is compared, or None for a name that nobody can have."""
    try:
        return str(_PROFILE.enforce(username))
    except UnicodeEncodeError:
        return None


def get_key(username: str) -> str:
    """The form that is compared, for a new account. Raises InvalidRequest with the reason."""
    key = find_key(username)
    if key is None:
        raise _refused("holds a character that user names can't have, or is empty")
    if ":" in key:
        raise _refused("must not hold a colon")
    if len(key) > MAX_CHARACTERS or len(username) > MAX_CHARACTERS:
        raise _refused(f"must not be longer than {MAX_CHARACTERS} characters")
    if _mixes_scripts(key):
        raise _refused("mixes scripts, so that it looks like another name")
    return key


def label(text: str) -> str:
    """The name of a host's user as it is shown, which is the host's to choose. Raises InvalidRequest for nothing."""
    shown = "".join(character for character in text if character.isprintable()).strip()[:MAX_LABEL]
    if not shown:
        raise _refused("is empty")
    return shown


def checked_email(email: str) -> str:
    """An address that mail could be sent to, in its normal form. Raises InvalidRequest."""
    try:
        return validate_email(email, check_deliverability=False).normalized
    except EmailNotValidError:
        raise InvalidRequest(fields={"email": "is not an e-mail address that mail could be sent to"}) from None


def _mixes_scripts(key: str) -> bool:
    scripts = categories.unique_aliases(key) - _NEUTRAL
    return len(scripts) > 1 and not any(scripts <= allowed for allowed in _COMBINATIONS)


def _refused(reason: str) -> InvalidRequest:
    return InvalidRequest(fields={"username": reason})
