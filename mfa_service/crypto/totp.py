"""Time-based one-time passwords (RFC 6238): SHA-1, six digits, 30 seconds, as every authenticator app has them.

A code is compared for all steps of the window, in constant time, and the step is returned: whoever calls has to
claim it (RFC 6238 section 5.2), since it is the step that is used up, not the string that was typed.
"""

import base64
import hmac
import re
import secrets
from urllib.parse import quote

import pyotp

SECRET_BYTES = 20
PERIOD = 30
# \d and isdigit() take full-width and superscript digits, and pyotp folds them: only these six count.
_SIX_DIGITS = re.compile(r"[0-9]{6}", re.ASCII)


def new_secret() -> bytes:
    """160 random bits (RFC 4226 section 4, R6)."""
    return secrets.token_bytes(SECRET_BYTES)


def as_base32(secret: bytes) -> str:
    """The form in which people type a secret: base32 without padding."""
    return base64.b32encode(secret).decode().rstrip("=")


def otpauth_uri(secret: bytes, *, account: str, issuer: str) -> str:
    """The address behind the QR code. Spaces are %20 and the issuer stands in both places, as apps expect it."""
    label = f"{quote(issuer, safe='')}:{quote(account, safe='')}"
    query = f"secret={as_base32(secret)}&issuer={quote(issuer, safe='')}&algorithm=SHA1&digits=6&period={PERIOD}"
    return f"otpauth://totp/{label}?{query}"


def step_at(now: float) -> int:
    """The number of the 30-second step that `now` (Unix seconds) lies in."""
    return int(now) // PERIOD


def code_at(secret: bytes, step: int) -> str:
    """The code of one step."""
    return pyotp.TOTP(as_base32(secret)).generate_otp(step)


def matching_step(secret: bytes, code: str, *, now: float, window: int) -> int | None:
    """The step within ±`window` of `now` whose code this is, or None. Every step is compared, always."""
    if not _SIX_DIGITS.fullmatch(code):
        return None
    current = step_at(now)
    steps = range(max(0, current - window), current + window + 1)
    matches = [step for step in steps if hmac.compare_digest(code_at(secret, step), code)]
    return max(matches, default=None)
