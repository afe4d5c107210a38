"""Tokens put together by hand: JWS in compact form, HMAC, and ECDSA on P-256, with no library that could refuse."""

import base64
import hashlib
import hmac
import json
import secrets
from typing import Any

PRIME = 0xFFFFFFFF00000001000000000000000000000000FFFFFFFFFFFFFFFFFFFFFFFF
ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
BASE = (
    0x6B17D1F2E12C4247F8BCE6E563A440F277037D812DEB33A0F4A13945D898C296,
    0x4FE342E2FE1A7F9B8EE7EB4A7C0F9E162BCE33576B315ECECBB6406837BF51F5,
)
#: What stands before the point in the DER of a P-256 public key.
_SPKI = bytes.fromhex("3059301306072a8648ce3d020106082a8648ce3d030107034200")
_ECDSA_WITH_SHA256 = bytes.fromhex("300a06082a8648ce3d040302")
_COMMON_NAME = bytes.fromhex("0603550403")

Point = tuple[int, int]


def b64(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")


def unb64(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def part(members: object) -> str:
    """A header or a payload; text and bytes go in as they are."""
    if isinstance(members, str):
        members = members.encode()
    return b64(members if isinstance(members, bytes) else json.dumps(members).encode())


def header_of(token: str) -> dict[str, Any]:
    return dict(json.loads(unb64(token.split(".", maxsplit=1)[0])))


def claims_of(token: str) -> dict[str, Any]:
    return dict(json.loads(unb64(token.split(".")[1])))


def unsigned(header: object, claims: object) -> str:
    return f"{part(header)}.{part(claims)}."


def twice(members: dict[str, Any], name: str, first: object, last: object) -> str:
    """The text of an object in which one member stands twice."""
    rest = json.dumps({key: value for key, value in members.items() if key != name})[1:-1]
    return f'{{"{name}": {json.dumps(first)}, {rest}, "{name}": {json.dumps(last)}}}'


def with_hmac(header: object, claims: object, key: bytes, alg: str = "HS256") -> str:
    """Signed as `alg` says, whatever the header says."""
    signed = f"{part(header)}.{part(claims)}"
    return f"{signed}.{b64(hmac.digest(key, signed.encode(), 'sha' + alg[-3:]))}"


def with_ecdsa(header: object, claims: object, key: int) -> str:
    signed = f"{part(header)}.{part(claims)}"
    return f"{signed}.{b64(ecdsa(signed.encode(), key))}"


def ecdsa(message: bytes, key: int) -> bytes:
    digest, nonce = int.from_bytes(hashlib.sha256(message).digest(), "big"), secrets.randbelow(ORDER - 1) + 1
    r = times(nonce, BASE)[0] % ORDER
    s = pow(nonce, -1, ORDER) * (digest + r * key) % ORDER
    return r.to_bytes(32, "big") + s.to_bytes(32, "big")


def times(number: int, point: Point) -> Point:
    """A point of P-256 added to itself so many times."""
    total: Point | None = None
    while number:
        if number & 1:
            total = point if total is None else _sum(total, point)
        point, number = _sum(point, point), number >> 1
    assert total is not None
    return total


def _sum(one: Point, other: Point) -> Point:
    (x1, y1), (x2, y2) = one, other
    rise, run = (3 * x1 * x1 - 3, 2 * y1) if one == other else (y2 - y1, x2 - x1)
    slope = rise * pow(run, -1, PRIME) % PRIME
    x3 = (slope * slope - x1 - x2) % PRIME
    return x3, (slope * (x1 - x3) - y1) % PRIME


def jwk(key: int) -> dict[str, str]:
    """The public half of a key of ours."""
    x, y = times(key, BASE)
    return {"kty": "EC", "crv": "P-256", "x": b64(x.to_bytes(32, "big")), "y": b64(y.to_bytes(32, "big"))}


def der(public: dict[str, str]) -> bytes:
    """A JWK as SubjectPublicKeyInfo."""
    return _SPKI + b"\x04" + unb64(public["x"]) + unb64(public["y"])


def pem(raw: bytes, what: str = "PUBLIC KEY") -> bytes:
    text = base64.b64encode(raw).decode()
    lines = "\n".join(text[start : start + 64] for start in range(0, len(text), 64))
    return f"-----BEGIN {what}-----\n{lines}\n-----END {what}-----\n".encode()


def certificate(key: int) -> bytes:
    """X.509 for a key of ours, signed by itself, as DER."""
    name = tlv(0x30, tlv(0x31, tlv(0x30, _COMMON_NAME, tlv(0x0C, b"attacker"))))
    times = tlv(0x30, tlv(0x17, b"200101000000Z"), tlv(0x17, b"491231235959Z"))
    head = tlv(0xA0, _integer(2)) + _integer(1) + _ECDSA_WITH_SHA256
    body = tlv(0x30, head, name, times, name, der(jwk(key)))
    raw = ecdsa(body, key)
    signature = tlv(0x30, *(_integer(int.from_bytes(half, "big")) for half in (raw[:32], raw[32:])))
    return tlv(0x30, body, _ECDSA_WITH_SHA256, tlv(0x03, b"\0", signature))


def tlv(tag: int, *contents: bytes) -> bytes:
    """A value of DER, with its tag and length."""
    value = b"".join(contents)
    size = len(value).to_bytes(2, "big").lstrip(b"\0")
    length = size if len(value) < 128 else bytes([0x80 | len(size)]) + size
    return bytes([tag]) + length + value


def _integer(number: int) -> bytes:
    return tlv(0x02, number.to_bytes(number.bit_length() // 8 + 1, "big"))


def private_number(pem_text: str) -> int:
    """The number in a PKCS 8 file of a P-256 key: 32 bytes after the tag of an octet string."""
    raw = base64.b64decode("".join(line for line in pem_text.splitlines() if "-----" not in line))
    start = raw.index(b"\x02\x01\x01\x04\x20") + 5
    return int.from_bytes(raw[start : start + 32], "big")
