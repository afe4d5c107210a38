"""A client of the five fixed routes as it was written against the original: it knows these and nothing else.

usage: existing_client.py URL  — exits with 0 if everything is as it always was. Needs oathtool for the phone.
"""

import json
import subprocess
import sys
import urllib.error
import urllib.request
import uuid
from typing import Any

URL = sys.argv[1]
NAME = f"client-{uuid.uuid4().hex[:8]}"
USER = {"username": NAME, "password": "a long enough one 42", "email": f"{NAME}@example.com"}


def call(path: str, body: dict[str, Any] | None = None, token: str = "") -> tuple[int, dict[str, Any]]:
    data = json.dumps(body).encode() if body is not None else None
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {token}"} if token else {})
    try:
        with urllib.request.urlopen(urllib.request.Request(URL + path, data, headers), timeout=30) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def expect(answer: tuple[int, dict[str, Any]], status: int, **members: object) -> dict[str, Any]:
    assert answer[0] == status, answer
    assert answer[1].items() >= members.items(), answer
    return answer[1]


def wrong(code: str) -> str:
    return f"{(int(code) + 1) % 10**6:06}"


registered = expect(call("/auth/register", USER), 200, message="User registered successfully")
assert registered["qrCode"].startswith("data:image/png;base64,")
key = registered["manualEntryKey"]
assert len(key) >= 32
expect(call("/auth/register", USER), 400, error="User already exists")

expect(call("/auth/login", USER | {"password": "not that one at all"}), 401, error="Invalid credentials")
pending = expect(call("/auth/login", USER), 200, message="Credentials valid, provide TOTP code", mfaRequired=True)[
    "tempToken"
]

expect(call("/api/profile"), 401, error="No token provided")
expect(call("/api/profile", token="nonsense"), 401, error="Invalid or expired token")
expect(call("/api/profile", token=pending), 401, error="Full authentication required")

code = subprocess.run(["oathtool", "--totp", "-b", key], capture_output=True, text=True, check=True).stdout.strip()
expect(call("/auth/verify-mfa", {"tempToken": pending, "totpCode": wrong(code)}), 401, error="Invalid TOTP code")
expect(call("/auth/verify-mfa", {"tempToken": "nonsense", "totpCode": code}), 401, error="MFA verification failed")
done = expect(
    call("/auth/verify-mfa", {"tempToken": pending, "totpCode": code}),
    200,
    message="Authentication successful",
    user={"username": NAME, "email": USER["email"]},
)
access = done["accessToken"]
expect(call("/auth/verify-mfa", {"tempToken": access, "totpCode": code}), 401, error="Invalid token")
expect(call("/api/profile", token=access), 200, username=NAME, email=USER["email"], mfaEnabled=True)

statuses = [call("/auth/login", USER) for _ in range(4)]
expect(statuses[-1], 429, error="Too many authentication attempts")
print("everything as it always was")
