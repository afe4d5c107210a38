"""The keys that sign tokens: a folder of ES256 keys with `kid`, or one HS256 secret.

The newest key, by the time in its file's name or of the file, signs as soon as every replica has had the time to
read it; one that was replaced verifies until the last token that it signed has expired. With a shared secret nothing
else is accepted, and nothing is published: whoever can verify with it can mint, too.
"""

import base64
import copy
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol, Self

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from jwt.algorithms import ECAlgorithm

from mfa_service.errors import ConfigurationError

_NAME = "es256-%Y%m%dT%H%M%SZ"


class VerifyingKeys(Protocol):
    """What a verifier needs: one algorithm, and a look-up of keys by `kid`."""

    @property
    def algorithm(self) -> str:
        """The only `alg` that is accepted."""

    def find(self, kid: object) -> Any | None:
        """The key of that `kid`, or None. `kid` comes from strangers: it is looked up, never followed."""


class TokenKeys(VerifyingKeys, Protocol):
    """What a minter needs besides."""

    @property
    def signer(self) -> tuple[str | None, Any]:
        """The `kid` and the key that sign now."""

    def public_jwks(self) -> dict[str, Any]:
        """The JWK Set (RFC 7517) to publish."""


class SigningKeys:
    """ES256 keys by `kid` (RFC 7638 thumbprint), as of one moment: all verify, the one at `signs` signs."""

    algorithm = "ES256"

    def __init__(self, keys: Sequence[ec.EllipticCurvePrivateKey], signs: int = -1) -> None:
        self._keys = [(thumbprint(public), public, key) for key in keys for public in [key.public_key()]]
        kid, _, key = self._keys[signs]
        self.signer = kid, key
        self.public = {kid: public for kid, public, _ in self._keys}

    def since(self, first: int, *, signs: int) -> Self:
        """The same, derived once: those from place `first` on verify, the one at place `signs` signs."""
        kid, _, key = self._keys[signs]
        some = copy.copy(self)
        some.signer = kid, key
        some.public = {kid: public for kid, public, _ in self._keys[first:]}
        return some

    def find(self, kid: object) -> ec.EllipticCurvePublicKey | None:
        """The public key of `kid`, or None."""
        return self.public.get(kid) if isinstance(kid, str) else None

    def public_jwks(self) -> dict[str, Any]:
        """The JWK Set (RFC 7517) to publish: public members only."""
        return {
            "keys": [public_jwk(key) | {"kid": kid, "use": "sig", "alg": "ES256"} for kid, key in self.public.items()]
        }


class DatedKeys:
    """ES256 keys, oldest first, each with the time from which it signs (Unix seconds)."""

    def __init__(self, keys: Sequence[tuple[ec.EllipticCurvePrivateKey, float]], *, overlap: float = math.inf) -> None:
        """A key verifies for `overlap` seconds after the next one began to sign."""
        self.dated = keys
        self._overlap = overlap
        self._keys = SigningKeys([key for key, _ in keys])

    @classmethod
    def load(cls, folder: Path, *, delay: float = 0, overlap: float = math.inf) -> Self:
        """Read all `*.pem` of a folder, oldest first; each signs `delay` seconds after the time in its name.

        A name that holds no time (`file_name`) counts by when the file was written. Raises ConfigurationError.
        """
        paths = sorted(folder.glob("*.pem"), key=lambda path: (made_at(path), path.name))
        found = [(path, _find_key(path)) for path in paths]
        problems = [f"{path} is not an unencrypted P-256 private key" for path, key in found if not key]
        if problems or not paths:
            raise ConfigurationError(problems or [f"there is no signing key in {folder}"])
        return cls([(key, made_at(path) + delay) for path, key in found if key], overlap=overlap)

    def following(self, earlier: Self) -> Self:
        """The same keys; one that was there before signs from when it did, however often its file is written."""
        before = {thumbprint(key.public_key()): since for key, since in earlier.dated}
        dated = [(key, before.get(thumbprint(key.public_key()), since)) for key, since in self.dated]
        return type(self)(sorted(dated, key=lambda each: each[1]), overlap=self._overlap)

    def as_of(self, now: float) -> SigningKeys:
        """The keys that count at `now`: the newest active one signs, the oldest one if none is active yet."""
        started = [place for place, (_, since) in enumerate(self.dated) if since <= now]
        signs = started[-1] if started else 0
        ends = [since + self._overlap for _, since in self.dated[1:]]
        first = next(place for place in range(signs + 1) if place == signs or ends[place] > now)
        return self._keys.since(first, signs=signs)


class SharedSecret:
    """One HS256 secret; tokens carry no `kid`."""

    algorithm = "HS256"

    def __init__(self, secret: str) -> None:
        """An end of line is no part of it: whoever reads it from a file would have another one than who does not."""
        self.key = secret.rstrip("\r\n").encode()
        self.signer = None, self.key

    def find(self, kid: object) -> bytes | None:
        """The secret, for tokens without a `kid`."""
        return self.key if kid is None else None

    def public_jwks(self) -> dict[str, Any]:
        """Nothing: a shared secret has no public part."""
        return {"keys": []}


def new_key_pem() -> bytes:
    """A fresh P-256 private key in PKCS 8."""
    return ec.generate_private_key(ec.SECP256R1()).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def file_name(now: float) -> str:
    """A name for a key made at `now` (Unix seconds), such that names sort by age."""
    return f"{datetime.fromtimestamp(now, UTC):{_NAME}}.pem"


def made_at(path: Path) -> float:
    """When the key of a file was made, in Unix seconds: by its name, or by when it was written."""
    try:
        return datetime.strptime(path.stem, _NAME).replace(tzinfo=UTC).timestamp()
    except ValueError:
        return path.stat().st_mtime


def public_jwk(key: ec.EllipticCurvePublicKey) -> dict[str, str]:
    """The public members of a key as a JWK (RFC 7518 section 6.2)."""
    members: Mapping[str, str] = ECAlgorithm.to_jwk(key, as_dict=True)
    return {name: members[name] for name in ("crv", "kty", "x", "y")}


def thumbprint(key: ec.EllipticCurvePublicKey) -> str:
    """The `kid` of a key: its RFC 7638 thumbprint, so that the same key has the same name everywhere."""
    canonical = json.dumps(public_jwk(key), sort_keys=True, separators=(",", ":")).encode()
    return base64.urlsafe_b64encode(hashlib.sha256(canonical).digest()).decode().rstrip("=")


def _find_key(path: Path) -> ec.EllipticCurvePrivateKey | None:
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), password=None)
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm):
        return None
    is_p256 = isinstance(key, ec.EllipticCurvePrivateKey) and isinstance(key.curve, ec.SECP256R1)
    return key if is_p256 and isinstance(key, ec.EllipticCurvePrivateKey) else None
