"""Strings that mean nothing by themselves: ids, device tokens, and refresh tokens, which are derived and not stored.

A refresh token is `session id . generation . MAC`, the MAC being HMAC-SHA-256 under the keyring. The database holds
the generation alone: who steals it can derive none, and a client whose answer got lost can be given the very same
successor again.
"""

import base64
import hashlib
import hmac
import re
import secrets
from dataclasses import dataclass, field

from mfa_service.crypto.keyring import Keys
from mfa_service.errors import InvalidRefreshToken, SealBroken

_ID = re.compile(r"[A-Za-z0-9_-]{22}")
_REFRESH = re.compile(r"(?P<session>[A-Za-z0-9_-]{22})\.(?P<generation>[0-9]{1,9})\.(?P<mac>[A-Za-z0-9_-]{43})")


def new_id() -> str:
    """128 random bits in 22 URL-safe characters: never reused, and telling nothing of when or how many.

    None begins with a hyphen (which costs a fortieth of a bit): a command line would take it for an option.
    """
    text = secrets.token_urlsafe(16)
    return new_id() if text.startswith("-") else text


def is_id(text: str) -> bool:
    """Whether this could be an id of ours; whatever else a client sends is the id of nothing."""
    return _ID.fullmatch(text) is not None


def new_token() -> str:
    """256 random bits, for a secret that a client keeps."""
    return secrets.token_urlsafe(32)


def digest(token: str) -> str:
    """What is stored of such a secret: its SHA-256."""
    return hashlib.sha256(token.encode("utf-8", "replace")).hexdigest()


@dataclass(frozen=True)
class RefreshToken:
    """A refresh token taken apart; nothing in it is believed before `RefreshTokens.is_genuine` says so."""

    session_id: str
    generation: int
    mac: str = field(repr=False)


class RefreshTokens:
    """Derives and checks refresh tokens."""

    def __init__(self, keyring: Keys) -> None:
        self._keyring = keyring

    @property
    def active_key_id(self) -> str:
        """The key for a new session; its row keeps the id."""
        return self._keyring.active_id

    def derive(self, session_id: str, generation: int, key_id: str) -> str:
        """The token of one generation of a session. Raises SealBroken if the key is not in the keyring."""
        return f"{session_id}.{generation}.{self._mac(session_id, generation, key_id)}"

    def is_genuine(self, token: RefreshToken, key_id: str) -> bool:
        """Whether we derived it, for a session whose row names `key_id`. Raises SealBroken for an unknown key.

        A session moves to the newest key when it is refreshed, and the token before that may still be answered: so
        every key of the ring is tried.
        """
        key_ids = dict.fromkeys((key_id, *self._keyring.ids))
        macs = (self._mac(token.session_id, token.generation, each) for each in key_ids)
        return any(hmac.compare_digest(mac, token.mac) for mac in macs)

    def _mac(self, session_id: str, generation: int, key_id: str) -> str:
        try:
            key = self._keyring.sub_key(key_id, "refresh")
        except KeyError:
            raise SealBroken from None
        mac = hmac.digest(key, f"{session_id}.{generation}".encode(), "sha256")
        return base64.urlsafe_b64encode(mac).decode().rstrip("=")


def parse_refresh_token(text: str) -> RefreshToken:
    """Take a token apart. Raises InvalidRefreshToken for anything that has another shape."""
    match = _REFRESH.fullmatch(text)
    # One spelling for each number: "007" would be another string for the same generation.
    if not match or str(int(match["generation"])) != match["generation"]:
        raise InvalidRefreshToken
    return RefreshToken(match["session"], int(match["generation"]), match["mac"])
