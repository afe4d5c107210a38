"""The keys of a service elsewhere, read from its JWK Set (RFC 7517): what `Guard.from_jwks` verifies with.

They are fetched on first use and again when they are five minutes old. A `kid` that is unknown makes one more fetch,
but no oftener than every half minute, so that forged tokens can't make us a hammer. One thread fetches, the others go
on with what is there; when a fetch fails the old keys stay.
"""

import json
import logging
import threading
import time
import urllib.request
from collections.abc import Callable, Mapping
from http.client import HTTPException
from typing import Any

import jwt

from mfa_service.errors import Unavailable

#: How long fetched keys are used before they are fetched again, in seconds.
FRESH_SECONDS = 300
#: How long nothing is fetched after a fetch, whatever unknown keys are named, in seconds.
PAUSE_SECONDS = 30
_TIMEOUT = 5
_MAX_BYTES = 64 * 1024


class RemoteKeys:
    """ES256 keys by `kid`, as the service publishes them."""

    algorithm = "ES256"

    def __init__(
        self, url: str, *, fetch: Callable[[str], bytes] | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`url` is the service's `/.well-known/jwks.json`; `fetch` is for who has an HTTP client of their own."""
        self._url = url
        self._fetch = fetch or fetch_json
        self._clock = clock
        self._keys: Mapping[str, Any] = {}
        self._has_read = False
        self._tried_at = -float("inf")
        self._is_fetching = threading.Lock()

    def find(self, kid: object) -> Any | None:
        """The key of that `kid`, or None. `kid` is looked up, never followed.

        Raises Unavailable as long as the keys could not be read once: nobody can tell then whether a token is good.
        """
        if not isinstance(kid, str):
            return None
        pause = FRESH_SECONDS if kid in self._keys else PAUSE_SECONDS
        if self._clock() - self._tried_at >= pause:
            self._refresh(waits=not self._keys)
        if not self._has_read:
            raise Unavailable(retry_after=PAUSE_SECONDS)
        return self._keys.get(kid)

    def _refresh(self, *, waits: bool) -> None:
        """Fetch the keys, unless another thread does; without any keys there is nothing to do but to wait for it."""
        if not self._is_fetching.acquire(blocking=waits):
            return
        try:
            if self._clock() - self._tried_at >= PAUSE_SECONDS:
                self._try()
        finally:
            self._is_fetching.release()

    def _try(self) -> None:
        try:
            self._keys, self._has_read = _parsed(self._fetch(self._url)), True
        except (OSError, ValueError, HTTPException, RecursionError) as error:
            logging.getLogger("mfa_service").error("the keys at %s can't be read: %s", self._url, error)
        finally:
            # Only now: whoever comes before the very first keys are there has to wait for them.
            self._tried_at = self._clock()


def fetch_json(url: str) -> bytes:
    """GET a small document; addresses other than http(s) are refused. Raises OSError, ValueError."""
    if not url.startswith(("https://", "http://")):
        raise ValueError("not an http(s) address")
    request = urllib.request.Request(url, headers={"Accept": "application/json"})  # noqa: S310 - checked above
    with urllib.request.urlopen(request, timeout=_TIMEOUT) as answer:  # noqa: S310
        content: bytes = answer.read(_MAX_BYTES + 1)
    if len(content) > _MAX_BYTES:
        raise ValueError("too large for a key set")
    return content


def _parsed(content: bytes) -> Mapping[str, Any]:
    """The signing keys in a set; what is of another kind, or for another use, is left out."""
    document = json.loads(content)
    keys = document.get("keys") if isinstance(document, dict) else None
    if not isinstance(keys, list):
        raise ValueError("not a JWK Set")
    found = {key["kid"]: _public_key(key) for key in keys if _is_ours(key)}
    return {kid: key for kid, key in found.items() if key is not None}


def _public_key(key: dict[str, Any]) -> Any | None:
    try:
        return jwt.PyJWK(key, "ES256").key
    except (jwt.PyJWTError, ValueError, TypeError):
        return None  # one that is malformed is no reason to go without the others


def _is_ours(key: object) -> bool:
    if not isinstance(key, dict):
        return False
    expected = {"kty": "EC", "crv": "P-256", "use": "sig", "alg": "ES256"}
    return isinstance(key.get("kid"), str) and all(key.get(name) == value for name, value in expected.items())
