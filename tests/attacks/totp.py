"""RFC 6238 in a dozen lines: the phone of the attack suite, and nobody else's code."""

import base64
import hmac
import struct

STEP = 30


def totp(key: bytes, step: int, digits: int = 6, digest: str = "sha1") -> str:
    """The code of one step."""
    mac = hmac.digest(key, struct.pack(">Q", step), digest)
    start = mac[-1] & 15
    number = int.from_bytes(mac[start : start + 4], "big") & 0x7FFFFFFF
    return str(number % 10**digits).zfill(digits)


def decoded(secret: str) -> bytes:
    """The key behind what is typed into an authenticator."""
    return base64.b32decode(secret + "=" * (-len(secret) % 8))
