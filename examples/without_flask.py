"""A service without Flask and without this package: any JWT library that knows ES256 reads our tokens.

What has to be looked at, besides the signature: `iss`, `aud`, `exp`, the header `typ`, and `step`.

    MFA_AUDIENCES=shop make serve
    AUTH_SERVICE=http://127.0.0.1:8000 PORT=9001 python examples/without_flask.py
"""

import json
import os
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import jwt

SERVICE = os.environ.get("AUTH_SERVICE", "http://127.0.0.1:8000")
KEYS = jwt.PyJWKClient(f"{SERVICE}/.well-known/jwks.json")


def claims_of(authorization: str) -> dict[str, Any] | None:
    """What a good access token says, or None."""
    scheme, _, token = authorization.partition(" ")
    try:
        key = KEYS.get_signing_key_from_jwt(token)
        required = ["exp", "iat", "iss", "aud", "sub", "step"]
        claims = jwt.decode(
            token, key, algorithms=["ES256"], issuer=SERVICE, audience="shop", options={"require": required}
        )
        is_access = jwt.get_unverified_header(token)["typ"] == "at+jwt" and claims["step"] == "authenticated"
    except (jwt.PyJWTError, KeyError):
        return None
    return dict(claims) if scheme.lower() == "bearer" and is_access else None


class Orders(BaseHTTPRequestHandler):
    """Answers who is asking."""

    def do_GET(self) -> None:
        """200 with the user's name, or 401."""
        claims = claims_of(self.headers.get("Authorization", ""))
        body = json.dumps({"of": claims["username"]} if claims else {"error": "Unauthenticated"}).encode()
        self.send_response(200 if claims else 401)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


if __name__ == "__main__":
    ThreadingHTTPServer(("127.0.0.1", int(os.environ.get("PORT", "9001"))), Orders).serve_forever()
