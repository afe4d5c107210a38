"""The chain over the audit log: seals that each sign a range of events and name the seal before them.

A seal holds the range of ids, how many events there are, the SHA-256 over their canonical form, and the digest of
the seal before; all of it is signed with Ed25519 (RFC 8032). So an event that is changed, added or taken away shows
in the digest of its range, and a seal that is changed, added or taken away shows in the next one. What no chain
shows by itself is that its newest end was cut off: for that, seals are shipped elsewhere as they are made.
"""

import base64
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, Self

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from mfa_service.errors import ConfigurationError

#: What the first seal names as the one before it.
GENESIS = "0" * 64

Kind = Literal["seal", "prune"]


@dataclass(frozen=True, kw_only=True)
class Seal:
    """A link of the chain. Of kind `prune`, it says that the events up to `last_id` were removed by us."""

    number: int
    kind: Kind
    first_id: int
    last_id: int
    count: int
    events_digest: str
    previous: str
    sealed_at: datetime
    key_id: str = ""
    signature: str = ""

    @property
    def digest(self) -> str:
        """What the next seal names this one by."""
        return hashlib.sha256(self.statement() + self.signature.encode()).hexdigest()

    def as_json(self) -> str:
        """One line, for shipping."""
        return json.dumps(self.as_members(), separators=(",", ":"))

    def as_members(self) -> dict[str, Any]:
        """The same as a dictionary."""
        return self._members() | {"signature": self.signature}

    @classmethod
    def from_json(cls, line: str) -> Self:
        """Read such a line. Raises ValueError for anything else."""
        try:
            members = json.loads(line)
            texts = [members["key_id"], members["signature"], members["sealed_at"]]
            sealed_at = datetime.fromisoformat(members["sealed_at"]).astimezone(UTC)
            seal = cls(**(members | {"sealed_at": sealed_at}))
        except (TypeError, KeyError, AttributeError, OverflowError, RecursionError):
            raise ValueError("not a seal") from None
        if not all(isinstance(text, str) for text in texts):
            raise ValueError("not a seal")
        return seal

    def _members(self) -> dict[str, Any]:
        members = asdict(self) | {"sealed_at": self.sealed_at.astimezone(UTC).isoformat(timespec="microseconds")}
        del members["signature"]
        return members

    def statement(self) -> bytes:
        """What is signed."""
        return b"mfa_service/seal/1\n" + _canonical(self._members())


class SealKeys:
    """Ed25519 keys: the newest private one signs, all of them verify, for ever."""

    def __init__(self, signer: Ed25519PrivateKey | None, verifiers: Iterable[Ed25519PublicKey]) -> None:
        self._signer = signer
        self.public = {key_id(key): key for key in verifiers}

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read all `*.pem` of a folder; the last private one by name signs. Raises ConfigurationError.

        A key that was replaced may be kept as its public part alone. A folder without keys makes no seals.
        """
        paths = sorted(folder.glob("*.pem"))
        keys = {path: _find_key(path) for path in paths}
        problems = [f"{path} is not an unencrypted Ed25519 key" for path, key in keys.items() if key is None]
        if problems:
            raise ConfigurationError(problems)
        private = [key for key in keys.values() if isinstance(key, Ed25519PrivateKey)]
        verifiers = [key if isinstance(key, Ed25519PublicKey) else key.public_key() for key in keys.values() if key]
        return cls(private[-1] if private else None, verifiers)

    @property
    def can_sign(self) -> bool:
        """Whether there is a private key."""
        return self._signer is not None

    def sign(self, seal: Seal) -> Seal:
        """The seal with our signature. Raises ConfigurationError where there is no private key."""
        if self._signer is None:
            raise ConfigurationError(["there is no seal key: run `flask mfa init`"])
        named = replace(seal, key_id=key_id(self._signer.public_key()))
        return replace(named, signature=_text(self._signer.sign(named.statement())))

    def is_genuine(self, seal: Seal) -> bool:
        """Whether one of our keys signed exactly this."""
        key = self.public.get(seal.key_id)
        try:
            if key is None:
                return False
            signature = base64.urlsafe_b64decode(seal.signature + "==")
            if _text(signature) != seal.signature:  # one spelling: the next seal names this one by it
                return False
            key.verify(signature, seal.statement())
        except (InvalidSignature, ValueError):
            return False
        return True

    def public_jwks(self) -> list[dict[str, str]]:
        """The public keys (RFC 8037), for whoever verifies seals elsewhere."""
        return [{"kty": "OKP", "crv": "Ed25519", "x": kid, "kid": kid} for kid in self.public]


def digest_of(events: Iterable[Mapping[str, Any]]) -> tuple[str, int]:
    """SHA-256 over the canonical form of events, in their order, and how many they were."""
    digest, count = hashlib.sha256(), 0
    for event in events:
        digest.update(_canonical(event) + b"\n")
        count += 1
    return digest.hexdigest(), count


def new_seal_key_pem() -> bytes:
    """A fresh Ed25519 private key in PKCS 8."""
    return Ed25519PrivateKey.generate().private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def key_id(key: Ed25519PublicKey) -> str:
    """The name of a key: itself, 43 characters of base64url."""
    return _text(key.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw))


def _canonical(members: Mapping[str, Any]) -> bytes:
    return json.dumps(members, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()


def _text(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")


def _find_key(path: Path) -> Ed25519PrivateKey | Ed25519PublicKey | None:
    pem = path.read_bytes()
    for load in (lambda: serialization.load_pem_private_key(pem, None), lambda: serialization.load_pem_public_key(pem)):
        try:
            key = load()
        except (ValueError, TypeError, UnsupportedAlgorithm):
            continue
        return key if isinstance(key, Ed25519PrivateKey | Ed25519PublicKey) else None
    return None
