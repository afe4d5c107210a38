"""People and codes for tests. The TOTP here is our own reading of RFC 6238, not the service's."""

import base64
import hmac
import itertools
import struct
from dataclasses import dataclass

from flask.testing import FlaskClient

PASSWORD = "analytical-engine-1843"
_names = (f"user{number}" for number in itertools.count(1))


@dataclass(frozen=True)
class Person:
    """Somebody with an account and a phone."""

    username: str
    password: str
    email: str
    secret: str

    def code(self, now: float, steps: int = 0) -> str:
        """What the phone shows, `steps` steps after `now`."""
        return totp(self.secret, int(now) // 30 + steps)


def totp(secret: str, step: int, digits: int = 6, digest: str = "sha1") -> str:
    """RFC 6238 over a base32 secret."""
    key = base64.b32decode(secret + "=" * (-len(secret) % 8))
    mac = hmac.digest(key, struct.pack(">Q", step), digest)
    offset = mac[-1] & 15
    number = struct.unpack(">I", mac[offset : offset + 4])[0] & 0x7FFFFFFF
    return str(number % 10**digits).zfill(digits)


def register(client: FlaskClient, username: str = "", password: str = PASSWORD) -> Person:
    """Register somebody over HTTP."""
    username = username or next(_names)
    email = "someone@example.com"
    answer = client.post("/auth/register", json={"username": username, "password": password, "email": email})
    assert answer.status_code == 200, answer.text
    return Person(username, password, email, answer.json["manualEntryKey"])


def log_in(client: FlaskClient, person: Person) -> str:
    """Give the right password; returns the pending token."""
    answer = client.post("/auth/login", json={"username": person.username, "password": person.password})
    assert answer.status_code == 200, answer.text
    return answer.json["tempToken"]


def sign_in(client: FlaskClient, person: Person, now: float, steps: int = 0) -> str:
    """Give password and code; returns the access token."""
    body = {"tempToken": log_in(client, person), "totpCode": person.code(now, steps)}
    answer = client.post("/auth/verify-mfa", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json["accessToken"]


def bearer(token: str) -> dict[str, str]:
    """The header that carries a token."""
    return {"Authorization": f"Bearer {token}"}
