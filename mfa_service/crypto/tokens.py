"""The two JWTs of this service: the pending token (`step: mfa_pending`) and the access token.

An access token says `step: authenticated`, or `step: password` where policy lets an account go without a factor.
Both are signed by the same keys; `typ`, `aud` and `step` differ, and each verifier demands its own (RFC 8725
sections 3.11 and 3.12). All claims are required and typed. PyJWT checks signature, issuer and audience; times are
checked here against the caller's clock. Tokens are compared by `jti` and `sid`, never as strings.
"""

import base64
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jwt

from mfa_service.crypto.signing import TokenKeys, VerifyingKeys
from mfa_service.errors import InvalidToken, MFAError

PENDING_SECONDS = 300
ACCESS_SECONDS = 3600
#: How far another machine's clock may run ahead of ours, in seconds. `exp` has no leeway.
LEEWAY = 30
#: Verified tokens that a process remembers; then it begins anew.
MEMO_SIZE = 4096

#: The steps of access tokens: a completed sign-in, and a password where policy lets an account go without more.
AUTHENTICATED, PASSWORD = "authenticated", "password"

_MAX_CHARACTERS = 4096
_COMPACT = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+", re.ASCII)
_CRYPTO_OPTIONS: Any = {
    "verify_exp": False,
    "verify_nbf": False,
    "verify_iat": False,
    "verify_sub": False,
    "verify_jti": False,
}


class AnotherKind(MFAError):
    """The token is good, but of the other kind; callers answer with a refusal of their own."""


@dataclass(frozen=True)
class Kind:
    """What tells one kind of token from the other."""

    typ: str
    seconds: int
    steps: frozenset[str]
    claims: Mapping[str, type]


_COMMON = {"sub": str, "username": str, "step": str, "jti": str, "iat": int, "exp": int}
PENDING = Kind("mfa-pending+jwt", PENDING_SECONDS, frozenset({"mfa_pending"}), _COMMON)
ACCESS = Kind(
    "at+jwt",
    ACCESS_SECONDS,
    frozenset({AUTHENTICATED, PASSWORD}),
    _COMMON | {"sid": str, "auth_time": int, "amr": list, "acr": str},
)


@dataclass(frozen=True)
class Identity:
    """Who an access token speaks for.

    `auth_time` (Unix seconds) is when the factors were checked, `amr` (RFC 8176) how. `external_id` is the user's id in
    the host app that the service is embedded in.
    """

    user_id: str
    username: str
    session_id: str
    auth_time: int
    amr: tuple[str, ...]
    step: str = AUTHENTICATED
    external_id: str | None = None

    @property
    def is_complete(self) -> bool:
        """Whether the sign-in was completed, and not only begun with a password."""
        return self.step == AUTHENTICATED


@dataclass(frozen=True)
class Pending:
    """Who has given a right password, and the challenge that is left."""

    user_id: str
    challenge_id: str


@dataclass(frozen=True)
class _Remembered:
    """A token that was verified."""

    identity: Identity
    kid: object
    key: object
    begins: int
    ends: int

    def holds(self, keys: VerifyingKeys, now: float) -> bool:
        """Whether it would be verified again."""
        # By what it is: the same key may have been read again.
        return self.begins <= now < self.ends and self.key is not None and bool(keys.find(self.kid) == self.key)


class Verifier:
    """Checks tokens of one issuer."""

    def __init__(self, keys: VerifyingKeys, *, issuer: str, audience: str) -> None:
        """`audience` is the one name that must be in an access token's `aud`."""
        self._keys = keys
        self._issuer = issuer
        self._audiences = {PENDING.typ: f"{issuer}/pending", ACCESS.typ: audience}
        self._memo: dict[str, _Remembered] = {}

    def access(self, token: str, *, now: float) -> Identity:
        """Who an access token speaks for. Raises InvalidToken, or AnotherKind for a good pending token.

        A token that was verified is remembered by its exact characters, until it expires or its key is gone: the
        second time costs next to nothing.
        """
        remembered = self._memo.get(token)
        if remembered and remembered.holds(self._keys, now):
            return remembered.identity
        claims = self._claims(token, ACCESS, now, other=PENDING)
        identity = _identity(claims)
        if len(self._memo) >= MEMO_SIZE:
            self._memo.clear()
        kid = jwt.get_unverified_header(token).get("kid")
        begins = max(claims["iat"], claims.get("nbf", 0)) - LEEWAY
        self._memo[token] = _Remembered(identity, kid, self._keys.find(kid), begins, claims["exp"])
        return identity

    def pending(self, token: str, *, now: float) -> Pending:
        """Which challenge a pending token stands for. Raises InvalidToken, or AnotherKind for a good access token."""
        claims = self._claims(token, PENDING, now, other=ACCESS)
        return Pending(claims["sub"], claims["jti"])

    def _claims(self, token: str, kind: Kind, now: float, other: Kind) -> dict[str, Any]:
        header = _header(token)
        if header.get("typ") == other.typ:
            self._checked(token, header, other, now)
            raise AnotherKind
        return self._checked(token, header, kind, now)

    def _checked(self, token: str, header: Mapping[str, Any], kind: Kind, now: float) -> dict[str, Any]:
        key = self._keys.find(header.get("kid"))
        if key is None or header.get("alg") != self._keys.algorithm or header.get("typ") != kind.typ:
            raise InvalidToken
        try:
            claims = jwt.decode(
                token,
                key,
                algorithms=[self._keys.algorithm],
                issuer=self._issuer,
                audience=self._audiences[kind.typ],
                options=_CRYPTO_OPTIONS,
            )
        except (jwt.InvalidIssuerError, jwt.InvalidAudienceError) as error:
            # The signature is good: this is no attack, but a name that is written otherwise in two places.
            expected = f"iss {self._issuer!r} and {self._audiences[kind.typ]!r} in aud"
            logging.getLogger("mfa_service").warning("a token is refused, %s are expected: %s", expected, error)
            raise InvalidToken from None
        except (jwt.PyJWTError, ValueError, TypeError, RecursionError):
            raise InvalidToken from None
        _ensure_sound(claims, kind, now)
        return claims


def _identity(claims: Mapping[str, Any]) -> Identity:
    amr = tuple(str(method) for method in claims["amr"])
    who = claims["sub"], claims["username"], claims["sid"]
    return Identity(*who, claims["auth_time"], amr, claims["step"], claims.get("ext"))


class Minter:
    """Makes tokens of one issuer."""

    def __init__(self, keys: TokenKeys, *, issuer: str, audiences: tuple[str, ...]) -> None:
        """`audiences` is `aud` of access tokens: the issuer itself comes first, always."""
        self._keys = keys
        self._issuer = issuer
        self._audiences = [issuer, *(name for name in audiences if name != issuer)]

    def pending(self, *, user_id: str, username: str, challenge_id: str, now: float) -> str:
        """A pending token, good for five minutes."""
        claims = {"sub": user_id, "username": username, "step": "mfa_pending", "jti": challenge_id}
        return self._signed(claims | {"aud": f"{self._issuer}/pending"}, PENDING, now)

    def access(self, identity: Identity, *, token_id: str, now: float) -> str:
        """An access token, good for an hour (RFC 9068)."""
        claims = {
            "sub": identity.user_id,
            "username": identity.username,
            "step": identity.step,
            "jti": token_id,
            "sid": identity.session_id,
            "auth_time": identity.auth_time,
            "amr": list(identity.amr),
            "acr": "mfa" if "mfa" in identity.amr else "pwd",
            "aud": self._audiences,
        }
        external = {} if identity.external_id is None else {"ext": identity.external_id}
        return self._signed(claims | external, ACCESS, now)

    def _signed(self, claims: dict[str, Any], kind: Kind, now: float) -> str:
        times = {"iss": self._issuer, "iat": int(now), "exp": int(now) + kind.seconds}
        kid, key = self._keys.signer
        headers = {"typ": kind.typ} | ({"kid": kid} if kid else {})
        return jwt.encode(claims | times, key, self._keys.algorithm, headers)


def _header(token: str) -> Mapping[str, Any]:
    """The header of a token in canonical compact form: no padding, no spare bits, no second spelling."""
    if len(token) > _MAX_CHARACTERS or not _COMPACT.fullmatch(token):
        raise InvalidToken
    try:
        if any(_respelled(part) != part for part in token.split(".")):
            raise InvalidToken
        return jwt.get_unverified_header(token)
    except (jwt.PyJWTError, ValueError, TypeError, RecursionError):
        raise InvalidToken from None


def _respelled(part: str) -> str:
    raw = base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")


def _ensure_sound(claims: Mapping[str, Any], kind: Kind, now: float) -> None:
    # type() and not isinstance(): True is an int, and a subclass has no business in JSON.
    is_typed = all(type(claims.get(name)) is expected for name, expected in kind.claims.items())
    is_typed = is_typed and type(claims.get("ext", "")) is str
    # Ids of ours are ASCII; a lone surrogate would only fail later, in the database.
    ids = [claims.get(name, "") for name in ("sub", "jti", "sid")]
    if not is_typed or claims["step"] not in kind.steps or not all(str(value).isascii() for value in ids):
        raise InvalidToken
    starts = (claims["iat"], claims.get("nbf", claims["iat"]))
    begins_later = any(type(start) is not int or start > now + LEEWAY for start in starts)
    # A clock that was wrong while it signed must not make a token that outlives its kind.
    lasts_too_long = claims["exp"] - claims["iat"] > kind.seconds
    if begins_later or lasts_too_long or claims["exp"] <= now:
        raise InvalidToken
