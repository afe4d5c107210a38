"""A sign-in service in memory, right in everything that the cases look at, until one of its checks is taken out.

`weak("…")` stands at the place of one check. `POST /__control` says which one is out, and empties the service; nothing
of it is meant for anything but to be attacked by the test beside it. It shares no line with the real service.
"""

import base64
import gzip
import hashlib
import hmac
import ipaddress
import json
import math
import os
import re
import secrets
import socketserver
import sqlite3
import sys
import threading
import time
import unicodedata
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import jwt
import segno
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from flask import Flask, Response, g, jsonify, request

app = Flask(__name__, static_folder=None)
app.url_map.merge_slashes = False
KEY = ec.generate_private_key(ec.SECP256R1())
PUBLIC = json.loads(jwt.algorithms.ECAlgorithm.to_jwk(KEY.public_key())) | {"kid": "one", "alg": "ES256", "use": "sig"}
#: The whole of what is published, as it is spelled.
PUBLISHED = json.dumps({"keys": [PUBLIC]}, separators=(", ", ":"))
ISSUER, DIRECT = "https://broken.example", os.environ.get("DIRECT_PORT", "")
DAY, MONTH = 24 * 3600, 30 * 24 * 3600
ACCESS, PENDING = "at+jwt", "mfa-pending+jwt"


@dataclass
class User:
    id: str
    name: str
    email: str
    salt: bytes
    password: bytes
    plain: str
    secret: str
    roles: list[str] = field(default_factory=list)
    confirmed: bool = False
    last_step: int = -1
    used: set[str] = field(default_factory=set)
    last_code: str = ""
    last_at: float = 0.0
    others: list[str] = field(default_factory=list)
    waiting: str = ""
    waits_until: float = 0.0
    recovery: dict[str, bool] = field(default_factory=dict)
    disabled: bool = False
    required: bool = False
    ticket: str = ""
    was_reset: bool = False
    was_complete: bool = False
    sealed_under: str = "one"
    level: str = ""


@dataclass
class Lock:
    failures: int = 0
    open_at: float = 0.0
    dead: bool = False


@dataclass
class Session:
    id: str
    user: str
    amr: list[str]
    step: str
    auth_time: int
    address: str = ""
    began: float = 0.0
    seen: float = 0.0
    generations: list[str] = field(default_factory=list)
    over: bool = False
    cookies: list[str] = field(default_factory=list)


class State:
    """All there is, from one `/__control` to the next."""

    def __init__(self, weakness: str = "") -> None:
        self.weakness, self.offset, self.mode = weakness, 0.0, "required"
        self.users: dict[str, User] = {}
        self.sessions: dict[str, Session] = {}
        self.challenges: dict[str, dict[str, Any]] = {}
        self.devices: dict[str, dict[str, Any]] = {}
        self.locks: dict[tuple[str, str], Lock] = {}
        self.limits: Counter[str] = Counter()
        self.revoked: set[str] = set()
        self.minted: list[str] = []
        self.seen: set[str] = set()
        self.log: list[str] = []
        self.kept: list[str] = []
        self.events: list[tuple[str, str]] = []
        self.last_user: User | None = None
        self.began = time.time()
        #: Keys that open what is sealed, and the one that seals.
        self.keys, self.sealing = {"one"}, "one"


state, lock = State(), threading.RLock()
#: One for each login that is in work.
logging_in: list[int] = []
door = threading.Lock()
#: Those that let a race in: nobody waits for anybody.
RACES = {
    "check_then_count",
    "check_then_set",
    "recovery_races",
    "refresh_races",
    "refresh_beats_logout",
    "register_races",
}
RACES |= {"refresh_beats_change", "refresh_beats_disabling", "sign_in_beats_disabling"}
RACES |= {"shared_identity", "busy_500", "reset_races", "limit_after", "lost_update", "enrol_races", "writers_500"}
RACES |= {"renewal_races"}


def weak(name: str) -> bool:
    return state.weakness == name


def now() -> float:
    return time.time() + state.offset


class Refused(Exception):
    def __init__(self, status: int, code: str, error: str = "", **headers: Any) -> None:
        self.status, self.code, self.error, self.headers = status, code, error or code.replace("_", " "), headers


# ── around every request ─────────────────────────────────────────────────────────────────────────


@app.errorhandler(Refused)
def refused(error: Refused) -> Any:
    if weak("html_errors") or (weak("html_by_method") and error.status in (405, 413)):
        return f"<h1>{error.error}</h1>", error.status
    answer = jsonify({"error": error.error, "code": error.code})
    answer.headers.update({name.replace("_", "-"): value for name, value in error.headers.items()})
    if error.status == 401:
        told = "insufficient_user_authentication" if error.code == "step_up_required" else "invalid_token"
        answer.headers["WWW-Authenticate"] = "Bearer" if weak("no_challenge") else f'Bearer error="{told}"'
    return answer, error.status


@app.errorhandler(404)
@app.errorhandler(405)
def nowhere(error: Any) -> Any:
    if weak("debug_console") and request.path == "/console":
        return "console"
    if weak("route_undocumented") and request.path == "/api/users":
        return jsonify({"items": [user.name for user in state.users.values()]})
    if weak("route_of_old") and request.path == "/api/v1/profile":
        with suppress(Refused):
            return profile()
    if weak("suffix_opens") and request.path.endswith(".json"):
        return jsonify({"items": []})
    code, allow = (
        {404: "not_found", 405: "method_not_allowed"}[error.code],
        ", ".join(error.valid_methods or ()) if error.code == 405 else "",
    )
    return refused(Refused(error.code, code, **({"Allow": allow} if allow else {})))


@app.before_request
def look_at_it() -> Any:
    if request.path == "/__control":
        return None
    state.log.append(json.dumps({"path": request.path, "agent": request.user_agent.string}))
    if weak("log_lines"):
        state.log.append(request.get_data(as_text=True).encode().decode("unicode_escape", "replace"))
    if weak("logs_secrets"):
        state.log.append(request.full_path + request.get_data(as_text=True))
    raw = {"User-Agent": weak("log_agent"), "Referer": weak("log_referer")}
    raw |= {"X-Request-Id": weak("log_request_id"), "Host": weak("log_host")}
    state.log += [request.headers.get(name, "") for name, is_raw in raw.items() if is_raw]
    if weak("crash_on_header") and not request.user_agent.string.isascii():
        raise RuntimeError
    own = request.environ["SERVER_PORT"]
    if request.environ.get("HTTP_HOST") != f"127.0.0.1:{own}" and not (weak("any_host") or weak("reflects_host")):
        raise Refused(400, "bad_request")
    if weak("rewrite_header") and request.headers.get("X-Original-URL") == "/api/profile":
        return profile()
    if weak("redirects") and request.headers.get("X-Forwarded-Proto") == "http":
        return "", 302, {"Location": f"https://{request.host}"}
    if weak("variant_bypasses") and request.environ.get("RAW_URI", "").startswith("//"):
        return app.view_functions["POST /auth/login"].__wrapped__()  # type: ignore[attr-defined]
    if weak("head_unguarded") and request.method == "HEAD":
        return ""
    if weak("method_override") and request.headers.get("X-HTTP-Method-Override") == "DELETE":
        return "", 204
    if weak("cors_reflects") and request.method == "OPTIONS":
        return ""
    if request.method in ("HEAD", "OPTIONS"):
        raise Refused(405, "method_not_allowed", Allow="POST")
    return None


HEADERS = {
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Origin-Agent-Cluster": "?1",
    "Referrer-Policy": "no-referrer",
    "Strict-Transport-Security": "max-age=31536000; includeSubDomains",
    "X-Content-Type-Options": "nosniff",
    "X-DNS-Prefetch-Control": "off",
    "X-Download-Options": "noopen",
    "X-Frame-Options": "DENY",
    "X-Permitted-Cross-Domain-Policies": "none",
    "X-XSS-Protection": "0",
    "Cache-Control": "no-store",
}


@app.after_request
def dress(answer: Response) -> Response:
    answer.headers.update({} if weak("no_headers") else HEADERS)
    if weak("qr_cached") and b"qrCode" in answer.data:
        answer.headers["Cache-Control"] = "private, max-age=60"
    if weak("gzips") and "gzip" in request.headers.get("Accept-Encoding", ""):
        answer.data, answer.headers["Content-Encoding"] = gzip.compress(answer.data), "gzip"
    if weak("cacheable"):
        answer.headers["Cache-Control"] = "public"
    if weak("cors_reflects") and "Origin" in request.headers:
        answer.headers["Access-Control-Allow-Origin"] = request.headers["Origin"]
    if weak("pages_cached") and answer.mimetype == "text/html":
        answer.headers["Cache-Control"] = "private, max-age=60"
    if weak("pages_framed") and answer.mimetype == "text/html":
        del answer.headers["X-Frame-Options"], answer.headers["Content-Security-Policy"]
    if weak("pages_script") and answer.mimetype == "text/html":
        answer.headers["Content-Security-Policy"] = "script-src 'unsafe-inline'; frame-ancestors 'none'"
    if weak("sets_cookie"):
        answer.set_cookie("session", "x")
    if weak("server_version"):
        answer.headers["X-Powered-By"] = "Flask 3.1"
    if weak("reflects_host"):
        answer.headers["X-Base"] = request.headers.get("Host", "")
    offered = request.headers.get("X-Request-Id", "")
    safe = re.fullmatch(r"[A-Za-z0-9._-]{8,64}", offered) or (weak("reflects_any_id") and offered.isascii())
    answer.headers["X-Request-Id"] = offered if safe else secrets.token_hex(8)
    return answer


def client() -> str:
    """Who asks: the peer, or on the port behind a proxy whom that one names."""
    peer, named = request.remote_addr or "", request.headers.get("X-Forwarded-For", "")
    if (weak("believes_forwarded") and named) or (weak("believes_ipv6") and ":" in named):
        return named
    if weak("ipv6_unlimited") and ":" in peer:
        return named
    if not DIRECT or request.environ["SERVER_PORT"] != DIRECT:
        return peer
    if "X-Forwarded-For" not in request.headers:
        return secrets.token_hex(8) if weak("missing_skips_limit") else peer
    return network(named)


def network(named: str) -> str:
    """The bucket of an address as a proxy may write it: an IPv4 address, the /64 of an IPv6 one, one for all others."""
    text = named.partition("%")[0]
    with_port = re.fullmatch(r"\[([0-9a-fA-F:.]+)\]:\d+|([0-9.]+):\d+", text)
    try:
        address = ipaddress.ip_address((with_port[1] or with_port[2]) if with_port else text)
    except ValueError:
        return named if weak("garbage_skips_limit") else "unknown"
    if weak("ipv6_apart") or (weak("mapped_apart") and address.version == 6):
        return named
    if isinstance(address, ipaddress.IPv6Address) and not address.ipv4_mapped:
        return address.exploded[:19]
    return str(getattr(address, "ipv4_mapped", None) or address)


def count(route: str, most: int = 5, whose: str = "") -> None:
    """Five for each client and route in 15 minutes."""
    if weak("no_limit") or (weak("register_unlimited") and route == "register"):
        return
    if weak("blank_unlimited") and not (request.get_json(silent=True) or {}):
        return
    key = f"{route} {whose or client()}"
    if weak("limit_by_name"):
        key += str((request.get_json(silent=True) or {}).get("username"))
    if state.limits[key] >= most:
        seconds = int(900 - (time.time() - state.began))
        told: dict[str, Any] = {} if weak("bare_429") else {"Retry_After": seconds}
        raise Refused(429, "too_many_attempts", "Too many authentication attempts", **told)
    if weak("limit_after"):
        time.sleep(0.1)
    state.limits[key] += 1


@contextmanager
def a_place() -> Iterator[None]:
    """One of eight for those whose password is hashed, or who wait for that."""
    with door:
        if len(logging_in) >= 8 and not weak("unbounded_hashing"):
            raise Refused(503, "busy", Retry_After=1)
        logging_in.append(1)
    try:
        if len(logging_in) > 1:  # a hash takes its time, most of all beside others
            time.sleep(0.1)
        yield
    finally:
        logging_in.pop()


def route(method: str, path: str, *, limited: bool = True) -> Callable[[Any], Any]:
    def put(view: Callable[..., Any]) -> Callable[..., Any]:
        def one_at_a_time(**kwargs: Any) -> Any:
            alone = nullcontext() if state.weakness in RACES else lock
            with alone:
                if weak("hash_before_limit") and path == "/auth/login":
                    for _ in range(3):
                        hashed("x", b"x")
                if limited and "guarded" not in vars(view):
                    count(view.__name__)
            if "guarded" not in vars(view):
                raw_body()  # nobody else waits for a slow one
            with a_place() if path == "/auth/login" else nullcontext(), alone:
                return view(**kwargs)

        one_at_a_time.__name__ = view.__name__
        one_at_a_time.__wrapped__ = view  # type: ignore[attr-defined]
        app.add_url_rule(path, f"{method} {path}", one_at_a_time, methods=[method], provide_automatic_options=False)
        DOCUMENT.setdefault(re.sub(r"<(\w+)>", r"{\1}", path), {})[method.lower()] = (
            {"security": [{"bearer": []}]} if "guarded" in vars(view) else {}
        )
        return one_at_a_time

    return put


DOCUMENT: dict[str, dict[str, Any]] = {}
#: Members that must be there, and those that may.
WANTED = ("username", "password", "email", "tempToken", "currentPassword", "newPassword", "refreshToken")
MAY = ("totpCode", "recoveryCode", "deviceToken", "deviceName", "enrolmentTicket", "reason")
SPECS: dict[str, tuple[type, bool]] = {name: (str, name in WANTED) for name in (*WANTED, *MAY)}
SPECS |= {"rememberDevice": (bool, False), "everywhere": (bool, False)}


def raw_body() -> bytes:
    try:
        return request.get_data()
    except Exception:  # noqa: BLE001 - what gunicorn says of a body that is cut
        raise Refused(400, "bad_request") from None


def body(*names: str) -> dict[str, Any]:
    """The members of the body, each of its type."""
    raw = raw_body()
    if len(raw) > 65536 and not weak("no_body_limit"):
        raise Refused(413, "payload_too_large")
    kind = request.headers.get("Content-Type", "")
    if (kind != "application/json" or "Content-Encoding" in request.headers) and raw and not weak("any_content_type"):
        raise Refused(415, "unsupported_media_type")
    given = parsed(raw)
    if not isinstance(given, dict):
        raise Refused(400, "invalid_request")
    return {name: member(given, name) for name in names} | {"_all": given}


def parsed(raw: bytes) -> Any:
    try:
        text = raw.decode("utf-8") or "{}"
        if text.count("[") + text.count("{") > 20:
            if weak("deep_500"):
                raise RuntimeError
            raise Refused(400, "invalid_request")
        return json.loads(text, object_pairs_hook=members)
    except ValueError:
        raise Refused(400, "invalid_request") from None


def members(found: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object; of a member that is given twice the last counts."""
    last = dict(found)
    if weak("doubles_500") and len(last) < len(found):
        raise RuntimeError
    if weak("doubles_first"):
        return dict(reversed(found))
    if weak("doubles_either"):
        last["_passwords"] = [value for name, value in found if name == "password"]
    return last


def member(given: dict[str, Any], name: str) -> Any:
    kind, wanted = SPECS[name]
    value = given.get(name)
    if value is None and name not in given and not wanted:
        return None
    loose = weak("crash_on_everywhere") if name == "everywhere" else weak("crash_on_remember")
    if kind is bool and name in given and loose:
        return value
    if weak("takes_numbers") and isinstance(value, int | float):
        return kind(value)
    if type(value) is not kind:
        if weak("crash_on_types"):
            raise RuntimeError
        if name == "totpCode" and weak("normalises_codes") and isinstance(value, int):
            return str(value)
        raise Refused(400, "invalid_request")
    if kind is str and (
        any(unicodedata.category(each) in ("Cc", "Cs") for each in value) or len(value.encode()) > 6000
    ):
        if weak("crash_on_unicode"):
            raise RuntimeError
        if weak("huge_token") and name == "tempToken" and len(value) > 50000:
            raise RuntimeError
        if weak("echoes"):
            raise Refused(400, "invalid_request", f"{name} can't be {value}")
        if not (name == "totpCode" and weak("normalises_codes")) and not weak("log_lines"):
            raise Refused(400, "invalid_request")
    return value


# ── tokens ───────────────────────────────────────────────────────────────────────────────────────


def b64(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")


def unb64(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def mint(kind: str, user: User, claims: dict[str, Any]) -> str:
    seconds, aud = (3600, ISSUER) if kind == ACCESS else (300, f"{ISSUER}/pending")
    seconds *= 2 if weak("long_life") or (weak("long_pending") and kind == PENDING) else 1
    common = {"iss": ISSUER, "aud": aud, "sub": user.id, "username": user.name, "jti": secrets.token_hex(8)}
    tells = weak("email_in_token") or (weak("email_in_pending") and kind == PENDING)
    more = {"email": user.email} if tells else {}
    more |= {"username": user.email} if weak("email_as_name") else {}
    times = {"iat": int(now()), "exp": int(now()) + seconds}
    same = {"jti": user.id} if weak("jti_shared") else {}
    token = jwt.encode(common | more | times | claims | same, KEY, "ES256", {"typ": kind, "kid": "one"})
    state.minted.append(token)
    return token


def pairs(first: bool) -> Callable[[list[tuple[str, Any]]], dict[str, Any]]:
    return lambda found: dict(reversed(found)) if first else dict(found)


def first_of(text: str) -> dict[str, Any]:
    """A part as somebody reads it for whom of two members the first counts."""
    return dict(json.loads(unb64(text), object_pairs_hook=pairs(first=True)))


def signature_is_good(token: str, header: dict[str, Any]) -> bool:
    """Whether anybody whom we trust has signed this."""
    signed, _, signature = token.rpartition(".")
    if needs_no_signature(token, header, signature) or looks_signed(token, signed, signature):
        return True
    for alg, secret in shared_secrets(header):
        if is_for(alg, token, header):
            name = f"sha{alg[-3:]}"
            if hmac.digest(secret, signed.encode(), name) == unb64(signature):
                return True
    key = checking_key(token, header)
    if weak("signature_slack"):
        token = f"{signed}.{signature[:86]}"
    return key is not None and verified(token, key)


def needs_no_signature(token: str, header: dict[str, Any], signature: str) -> bool:
    """Whether alg says that nobody has signed it: each line is how some product came to believe that."""
    alg, text = header.get("alg"), unb64(token.split(".", maxsplit=1)[0])
    lower, first = str(alg).lower(), first_of(token.split(".", maxsplit=1)[0]).get("alg")
    return (
        (weak("alg_none") and alg == "none" and not signature)
        or (weak("alg_none_signed") and alg == "none" and signature != "")
        or (weak("alg_none_cased") and lower == "none" and alg not in ("none", None))
        or (weak("alg_none_trimmed") and lower != "none" and lower.strip() == "none")
        or (weak("alg_none_escaped") and alg == "none" and b"none" not in text)
        or (weak("alg_none_listed") and isinstance(alg, list) and "none" in alg)
        or (weak("alg_none_pending") and alg == "none" and header.get("typ") == PENDING)
        or (weak("alg_missing") and "alg" not in header)
        or (weak("alg_blank") and alg == "")
        or (weak("alg_null") and "alg" in header and alg is None)
        or (weak("alg_falsy") and isinstance(alg, int | list | dict) and not alg)
        or (weak("first_alg_none") and first == "none" and alg == "ES256")
        or (weak("last_alg_none") and first == "ES256" and alg == "none")
    )


def looks_signed(token: str, signed: str, signature: str) -> bool:
    """Whether there is something like a signature, for those who look no closer."""
    known = [each.rpartition(".")[2] for each in state.minted]
    raw = unb64(signature)
    named = signature + str(first_of(token.split(".")[1]).get("jti"))
    if (weak("memo_by_signature") and signature in state.seen) or (weak("memo_by_id") and named in state.seen):
        return True
    if verified(token, KEY.public_key()):
        state.seen |= {signature, named}
    halves = (int.from_bytes(raw[:32], "big"), int.from_bytes(raw[32:], "big")) if len(raw) == 64 else (1, 1)
    order = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
    return (
        (weak("signature_optional") and not signature)
        or (weak("signature_cut") and len(signature) == 40 and any(each.startswith(token) for each in state.minted))
        or (weak("signature_head") and any(each[:40] == signature[:40] for each in known if len(signature) == 86))
        or (weak("signature_tail") and any(each[-40:] == signature[-40:] for each in known))
        or (weak("signature_ignored") and len(raw) == 64)
        or (weak("psychic") and len(raw) == 64 and not any(raw))
        or (weak("psychic_order") and any(halves) and all(half % order == 0 for half in halves))
        or (weak("psychic_der") and raw == bytes.fromhex("3006020100020100"))
        or (weak("psychic_blank") and len(raw) < 8 and not any(raw))
    )


def is_for(alg: str, token: str, header: dict[str, Any]) -> bool:
    """Whether an algorithm is the one that is asked for."""
    said, first = header.get("alg"), first_of(token.split(".", maxsplit=1)[0]).get("alg")
    if weak("confusion_by_case"):
        return str(said).upper() == alg and said != alg
    if weak("confusion_any_alg"):
        return said == "ES256"
    if weak("first_alg_hmac"):
        return first == alg and said == "ES256"
    if weak("last_alg_hmac"):
        return first == "ES256" and said == alg
    return bool(said == alg)


def shared_secrets(header: dict[str, Any]) -> list[tuple[str, bytes]]:
    """What an HMAC is believed with: the public key in some form, a common word, or what kid leads to."""
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    pem = KEY.public_key().public_bytes(serialization.Encoding.PEM, form)
    der = KEY.public_key().public_bytes(serialization.Encoding.DER, form)
    bare = {name: PUBLIC[name] for name in ("crv", "kty", "x", "y")}
    compact, kid = (",", ":"), header.get("kid")
    table = (
        (weak("key_confusion"), "HS256", pem),
        (weak("confusion_hs384"), "HS384", pem),
        (weak("confusion_hs512"), "HS512", der),
        (weak("confusion_by_case") or weak("confusion_any_alg"), "HS256", pem),
        (weak("first_alg_hmac") or weak("last_alg_hmac"), "HS384", pem),
        (weak("confusion_pending") and header.get("typ") == PENDING, "HS256", pem),
        (weak("confusion_stripped"), "HS256", pem.strip()),
        (weak("confusion_der"), "HS256", der),
        (weak("confusion_base64"), "HS256", base64.b64encode(der)),
        (weak("confusion_jwk"), "HS256", json.dumps(PUBLIC, separators=(", ", ":")).encode()),
        (weak("confusion_jwk_spaced"), "HS256", json.dumps(PUBLIC).encode()),
        (weak("confusion_jwk_compact"), "HS256", json.dumps(PUBLIC, separators=compact).encode()),
        (weak("confusion_jwk_sorted"), "HS256", json.dumps(PUBLIC, separators=compact, sort_keys=True).encode()),
        (weak("confusion_thumbprint"), "HS256", json.dumps(bare, separators=compact).encode()),
        (weak("confusion_jwk_encoded"), "HS256", b64(json.dumps(PUBLIC, separators=(", ", ":")).encode()).encode()),
        (weak("confusion_jwks"), "HS256", PUBLISHED.encode()),
        (weak("confusion_point"), "HS256", b"\x04" + unb64(PUBLIC["x"]) + unb64(PUBLIC["y"])),
        (weak("confusion_coordinates"), "HS256", unb64(PUBLIC["x"]) + unb64(PUBLIC["y"])),
        (weak("confusion_coordinate"), "HS256", unb64(PUBLIC["x"])),
        (weak("confusion_kid"), "HS256", b"one"),
        (weak("common_secret") and kid == "one", "HS256", b"secret"),
        (weak("common_secret_without_kid") and "kid" not in header, "HS256", b"jwt-secret"),
        (weak("common_secret_hs512"), "HS512", b"changeme"),
        (weak("example_secret"), "HS256", b"a-string-secret-at-least-256-bits-long"),
        (weak("blank_secret"), "HS256", b""),
        (weak("secret_by_name"), "HS256", ISSUER.encode()),
        (weak("trusts_secret_jwk") and "jwk" in header, "HS256", unb64(str(header.get("jwk", {}).get("k", "")))),
    )
    found = [(alg, secret) for is_on, alg, secret in table if is_on]
    behind = secret_behind(kid, "kid" in header)
    return found if behind is None else [*found, ("HS256", behind)]


def secret_behind(kid: Any, is_there: bool) -> bytes | None:
    """What a kid leads to, where it is more than looked up: a file, a query, a shell."""
    text, folder = str(kid), "/srv/mfa/keys"
    path = os.path.normpath(f"{folder}/{text}")
    if (weak("kid_path") and path == "/dev/null") or (weak("kid_path_absolute") and text == "/dev/null"):
        return b""
    if weak("kid_url") and text.startswith("file:///dev/null"):
        return b""
    if weak("kid_path_filtered") and "dev" not in text and path.startswith("/proc/sys/kernel/ostype"):
        return Path(path).read_bytes()
    if weak("kid_path_decoded") and "/" not in text and os.path.normpath(f"{folder}/{unquote(text)}") == "/dev/null":
        return b""
    if weak("kid_path_stripped") and os.path.normpath(f"{folder}/{text.replace('../', '')}") == "/dev/null":
        return b""
    if (weak("kid_sql") and "--" not in text) or (weak("kid_sql_comment") and "--" in text):
        return queried(text)
    shells = {"|": weak("kid_shell"), "$": weak("kid_shell_substituted"), ";": weak("kid_shell_listed")}
    if shells.get(text[:1]):
        time.sleep(6)
    if (weak("kid_types") and isinstance(kid, list | dict)) or (weak("kid_file_name") and len(text) > 255):
        raise RuntimeError
    if weak("kid_encoded") and "\ud800" in text:
        raise RuntimeError
    is_unknown = is_there and kid != "one"
    return b"" if (weak("kid_blank") and is_unknown) or (weak("kid_missing") and not is_there) else None


def queried(kid: str) -> bytes | None:
    with closing(sqlite3.connect(":memory:")) as database, suppress(sqlite3.Error):
        database.execute("CREATE TABLE keys (kid, secret)")
        row = database.execute(f"SELECT secret FROM keys WHERE kid = '{kid}'").fetchone()
        return str(row[0]).encode() if row else None
    return None


def checking_key(token: str, header: dict[str, Any]) -> Any:
    """The key that a signature is checked with: ours by its kid, and nothing that comes along."""
    brought, chain = header.get("jwk"), header.get("x5c")
    without = weak("trusts_jwk_without_kid") and "kid" not in header
    by_kid = weak("trusts_jwk_by_kid") and brought and brought.get("kid") == header.get("kid") == "attacker"
    if brought and (weak("trusts_jwk") or without or by_kid):
        return jwt.PyJWK(brought | {"alg": "ES256"}).key
    if weak("trusts_x5c") and isinstance(chain, list):
        with suppress(ValueError):
            return x509.load_der_x509_certificate(base64.b64decode(chain[0])).public_key()
    if weak("trusts_x5c_key") and isinstance(chain, list):
        with suppress(ValueError):
            return serialization.load_der_public_key(base64.b64decode(chain[0]))
    if (found := fetched(token, header)) is not None:
        return found
    return KEY.public_key() if header.get("kid") == "one" else None


def fetched(token: str, header: dict[str, Any]) -> Any:
    """The key behind an address in a token, for those who ask there; some only ask."""
    issuer = str(first_of(token.split(".")[1]).get("iss"))
    is_unknown = header.get("kid") != "one"
    asks = {
        header.get("jku"): weak("fetches_jku") or weak("trusts_jku") or (weak("jku_of_strangers") and is_unknown),
        header.get("x5u"): weak("fetches_x5u") or weak("trusts_x5u"),
        header.get("kid"): weak("fetches_kid"),
        header.get("iss"): weak("fetches_header_issuer"),
        f"{issuer}/.well-known/jwks.json": issuer != ISSUER
        and (weak("fetches_issuer") or (weak("issuer_of_strangers") and is_unknown)),
    }
    for address, is_asked in asks.items():
        if is_asked and str(address).startswith("http"):
            with urllib.request.urlopen(str(address), timeout=1) as answer:
                content = answer.read()
            if weak("trusts_jku"):
                return jwt.PyJWK(json.loads(content)["keys"][0]).key
            if weak("trusts_x5u"):
                return x509.load_pem_x509_certificate(content).public_key()
    return None


def verified(token: str, key: Any) -> bool:
    try:
        off = {f"verify_{name}": False for name in ("exp", "nbf", "iat", "aud", "iss", "sub", "jti")}
        if is_understood(token):
            head, rest = token.split(".", 1)
            algorithm = jwt.algorithms.ECAlgorithm(jwt.algorithms.ECAlgorithm.SHA256)
            text, _, signature = rest.partition(".")
            return bool(algorithm.verify(f"{head}.{text}".encode(), key, unb64(signature)))
        jwt.decode(token, key, algorithms=["ES256"], options=off)
    except Exception:  # noqa: BLE001 - whatever it is, it is no token
        return False
    return True


def is_understood(token: str) -> bool:
    """Whether nobody looks at what the header says to be critical, or at what alg it says by its second member."""
    header = json.loads(unb64(token.split(".", maxsplit=1)[0]))
    crit = header.get("crit", ())
    return (
        weak("ignores_crit")
        or (weak("pending_ignores_crit") and header.get("typ") == PENDING)
        or (weak("crit_misshapen") and not isinstance(crit, list))
        or (weak("crit_registered") and crit in (["exp"], ["b64"]))
        or (weak("crit_empty") and crit == [])
        or weak("first_header_wins")
        or weak("pending_first_header_wins")
        or (weak("typ_blank") and not header.get("typ"))
        or weak("typ_ignored")
        or weak("pending_typ_ignored")
    )


def unspelled(token: str) -> str:
    """A token as those read it who take more than the one spelling of it."""
    if weak("logout_by_string"):
        return re.sub("=+$", "", token)
    if weak("logout_by_inner_string"):
        return re.sub("=+[.]", ".", token)
    if weak("logout_by_dotted"):
        return token.removesuffix(".")
    if weak("logout_by_spaced"):
        return token.strip()
    if weak("logout_by_bits") and re.fullmatch(r"[\w.-]+", token):
        return ".".join(b64(unb64(each)) for each in token.split("."))
    if weak("third_part_optional") and token.count(".") == 1:
        return next((each for each in state.minted if each.startswith(f"{token}.")), token)
    if weak("fourth_part") and token.count(".") == 3:
        return token.rpartition(".")[0]
    if weak("last_parts") and token.count(".") == 3:
        return token.partition(".")[2]
    if weak("takes_json") and token.startswith("{"):
        given = json.loads(token)
        return f"{given['protected']}.{given['payload']}.{given['signature']}"
    return token


def goes_by_string() -> bool:
    """Whether a logout notes the token as it was written, and nothing else."""
    padded = weak("logout_by_string") or weak("logout_by_inner_string") or weak("logout_by_dotted")
    return padded or weak("logout_by_spaced") or weak("logout_by_bits")


def claims_of(token: str, kind: str) -> dict[str, Any]:
    """The claims of a token of this kind. Raises ValueError, or KeyError for one of the other kind."""
    token = unspelled(token)
    if len(token) > 4096 or not re.fullmatch(r"[\w-]+\.[\w-]+\.[\w-]*", token, re.ASCII):
        if weak("deep_crash") and len(token) > 4096:
            raise RuntimeError
        if weak("decode_500") and not token.isascii():
            raise RuntimeError
        raise ValueError
    head, text, signature = token.split(".")
    if any(b64(unb64(part)) != part for part in (head, text, signature)):
        raise ValueError
    header, claims = read_part(head, weak("deep_header")), read_part(text, weak("deep_claims"))
    if not signature_is_good(token, header):
        raise ValueError
    header, claims = loosened(head, text, header, claims, kind)
    other = {ACCESS: PENDING, PENDING: ACCESS}[kind]
    is_other = header.get("typ") == other
    ensure_sound(header, claims, other if is_other else kind)
    if is_other:
        raise KeyError
    if weak("first_sub_names") and (first := first_of(text)["sub"]) != claims["sub"]:
        claims["named"] = first
    return claims


def read_part(text: str, is_trusting: bool) -> dict[str, Any]:
    try:
        found = json.loads(unb64(text))
    except RecursionError:
        if is_trusting:
            raise RuntimeError from None
        raise
    except UnicodeDecodeError:
        if weak("decode_500_of_bytes"):
            raise RuntimeError from None
        raise
    if not isinstance(found, dict):
        if weak("decode_500_of_lists"):
            raise RuntimeError
        raise ValueError
    return found


def loosened(
    head: str, text: str, header: dict[str, Any], claims: dict[str, Any], kind: str
) -> tuple[dict[str, Any], dict[str, Any]]:
    """What those make of header and claims who are content with less."""
    if weak("first_claim_wins") or (weak("pending_first_claim_wins") and kind == PENDING):
        claims = first_of(text)
    if weak("first_header_wins") or (weak("pending_first_header_wins") and kind == PENDING):
        header = first_of(head)
    typ, step = header.get("typ"), claims.get("step")
    folded = unicodedata.normalize("NFKC", step).strip().lower() if isinstance(step, str) else ""
    is_typed = (
        (weak("typ_ignored") and typ not in (ACCESS, PENDING))
        or (weak("pending_typ_ignored") and kind == PENDING and typ not in (ACCESS, PENDING))
        or (weak("typ_folded") and str(typ).lower() == kind)
        or (weak("typ_blank") and not typ)
        or (weak("typ_generic") and typ == "JWT")
    )
    is_stepped = (
        (weak("step_folded") and folded == "authenticated")
        or (weak("step_truthy") and step is True)
        or (weak("step_listed") and isinstance(step, list) and "authenticated" in step)
        or (weak("step_blank") and "step" in claims and not step)
        or (weak("step_ignored") and kind == ACCESS and step == "mfa_pending")
        or (weak("any_step_counts") and first_of(text).get("step") == "authenticated")
    )
    header = header | ({"typ": kind} if is_typed else {})
    claims = claims | ({"step": "authenticated"} if is_stepped else {})
    return header, with_defaults(with_times(claims), kind)


def with_defaults(claims: dict[str, Any], kind: str) -> dict[str, Any]:
    """Claims with what is missing, or odd, as it ought to be."""
    session = state.sessions.get(str(claims.get("sid"))) or next(iter(reversed(state.sessions.values())), None)
    who = {"sub": session.user, "sid": session.id} if session else {}
    aud = ISSUER if kind == ACCESS else f"{ISSUER}/pending"
    sound = {"exp": int(now()) + 60, "iat": int(now()), "aud": aud, "iss": ISSUER, "jti": "x", "step": "authenticated"}
    sound |= who
    lacks = {
        "exp": weak("exp_optional"), "iat": weak("iat_optional"), "aud": weak("aud_optional"),
        "iss": weak("iss_optional"), "step": weak("step_optional"), "sub": weak("sub_optional"),
        "sid": weak("sid_optional"), "jti": weak("jti_optional"),
    }  # fmt: skip
    found = {name: sound[name] for name, may in lacks.items() if may and name not in claims and name in sound}
    iss, said, sub, sid = (claims.get(name) for name in ("iss", "aud", "sub", "sid"))
    parts = [each for each in (said if isinstance(said, list) else [said]) if isinstance(each, str)]
    odd = {
        "aud": (weak("audience_part") and any(each.startswith(ISSUER) for each in parts) and kind == ACCESS)
        or (weak("audience_blank") and "aud" in claims and not said),
        "iss": (weak("issuer_part") and isinstance(iss, str) and iss != "" and (iss in ISSUER or ISSUER in iss))
        or (weak("issuer_blank") and "iss" in claims and not iss)
        or (weak("issuer_folded") and str(iss).lower() == ISSUER)
        or weak("any_issuer")
        or (weak("pending_any_issuer") and kind == PENDING),
        "sub": (weak("any_subject") and kind == ACCESS)
        or (weak("subject_trimmed") and isinstance(sub, str) and sub.endswith(" ")),
        "sid": (weak("session_trimmed") and isinstance(sid, str) and sid.endswith(" "))
        or (weak("session_blank") and "sid" in claims and not sid),
    }
    return claims | found | {name: sound[name] for name, is_odd in odd.items() if is_odd and name in sound}


def with_times(claims: dict[str, Any]) -> dict[str, Any]:
    """Claims with times as they are taken by those who take more than whole seconds, or look at fewer."""
    exp, iat, nbf, soon = claims.get("exp"), claims.get("iat"), claims.get("nbf"), int(now()) + 60
    if weak("exp_huge") and type(exp) is int and exp > 2**62:
        raise RuntimeError
    ends = (
        (weak("exp_as_text") and isinstance(exp, str) and exp.isdigit())
        or (weak("exp_as_float") and type(exp) is float and math.isfinite(exp))
        or (weak("exp_as_truth") and exp is True)
        or (weak("exp_null") and "exp" in claims and exp is None)
        or (weak("exp_nan") and type(exp) is float and not math.isfinite(exp))
        or (weak("exp_past") and type(exp) is int and exp < now())
        or (weak("exp_far") and type(exp) is int and exp > now() + 4000)
    )
    begins = (
        (weak("iat_future") and type(iat) is int and iat > now())
        or (weak("iat_as_text") and isinstance(iat, str))
        or (weak("iat_as_float") and type(iat) is float)
    )
    before = (weak("nbf_ignored") and type(nbf) is int) or (weak("nbf_as_text") and isinstance(nbf, str))
    claims = claims | ({"exp": soon} if ends else {}) | ({"iat": int(now()), "exp": soon} if begins else {})
    return {name: value for name, value in claims.items() if name != "nbf" or not before}


def ensure_sound(header: dict[str, Any], claims: dict[str, Any], kind: str) -> None:
    wanted: dict[str, type] = {"sub": str, "username": str, "step": str, "jti": str, "iat": int, "exp": int}
    wanted |= {"sid": str, "auth_time": int, "amr": list} if kind == ACCESS else {}
    if weak("exp_types"):
        wanted = {name: typ for name, typ in wanted.items() if typ is not int}
        claims |= {"exp": int(now()) + 60, "iat": int(now())}
    optional = weak("claims_optional") or (weak("pending_claims_optional") and kind == PENDING)
    if not optional and any(type(claims.get(name)) is not typ for name, typ in wanted.items()):
        raise ValueError
    steps = {ACCESS: ("authenticated", "password"), PENDING: ("mfa_pending",)}[kind]
    steps += ("authenticated",) if weak("pending_any_step") and kind == PENDING else ()
    aud = ISSUER if kind == ACCESS else f"{ISSUER}/pending"
    strict = header.get("typ") == kind and claims.get("step") in steps
    any_audience = weak("any_audience") or (weak("pending_any_audience") and kind == PENDING)
    ours = claims.get("iss") == ISSUER and (claims.get("aud") == aud or any_audience)
    if (not strict or not ours) and not optional:
        raise ValueError
    life = 3600 if kind == ACCESS else 300
    begin, end = claims.get("iat", 0), claims.get("exp", now() + 9)
    later = any(type(each) is not int or each > now() + 30 for each in (begin, claims.get("nbf", begin)))
    lives_on = weak("pending_lives_on") or weak("access_lives_on") or weak("long_life") or weak("exp_types")
    lives_on = lives_on or weak("long_pending") or (weak("pending_exp_ignored") and kind == PENDING)
    if not lives_on and (later or end <= now() or end - begin > life) and not optional:
        raise ValueError


def token_elsewhere(given: str) -> str:
    """A token for those who take it from another place, or under another name."""
    last, second = given.rpartition(", Bearer "), given.rpartition(",Bearer ")
    asked = (
        (weak("token_in_query"), str(request.args.get("access_token", ""))),
        (weak("token_in_cookie"), request.cookies.get("token", "")),
        (weak("token_in_header"), request.headers.get("X-Access-Token", "").removeprefix("Bearer ")),
        (weak("token_in_body"), str(parsed_loosely().get("accessToken", ""))),
        (weak("token_of_a_list") and ", " in given, given.removeprefix("Bearer ").split(",")[0]),
        (weak("last_of_a_list") and last[0], last[2]),
        (weak("second_header") and second[0], second[2]),
        (weak("any_scheme") and given.startswith("Basic "), given.removeprefix("Basic ")),
        (weak("bare_token") and " " not in given, given),
        (weak("scheme_with_colon") and given.startswith("Bearer: "), given.removeprefix("Bearer: ")),
    )
    return next((token for is_taken, token in asked if is_taken and token), "")


def parsed_loosely() -> dict[str, Any]:
    found = request.get_json(silent=True)
    return found if isinstance(found, dict) else {}


def bearer() -> str:
    given = request.headers.get("Authorization", "")
    if elsewhere := token_elsewhere(given):
        return elsewhere
    kind, _, token = given.partition(" ")
    if kind.lower() != "bearer" or not token or "," in given:
        raise (
            Refused(401, "no_token", "No token provided") if kind.lower() != "bearer" else Refused(401, "invalid_token")
        )
    return token


def who(*, complete: bool = True) -> tuple[User, Session]:
    """Whom the Authorization header speaks for, or without one the cookie of a session."""
    if "Authorization" not in request.headers and (known_by := by_cookie()):
        return known_by
    token = bearer()
    if whose := anothers_kind(token):
        return user_of(whose), Session("x", whose, ["pwd", "mfa"], "authenticated", int(now()))
    try:
        claims = claims_of(token, ACCESS)
    except KeyError:
        user = user_of(claims_of(token, PENDING)["sub"])
        if weak("pending_opens") or (weak("pending_opens_new") and not user.confirmed):
            return user, Session("x", user.id, ["pwd", "mfa"], "authenticated", int(now()))
        raise Refused(401, "full_authentication_required") from None
    except (ValueError, TypeError, RecursionError) as error:
        told = "not enough segments" if weak("answers_apart") and token.count(".") != 2 else ""
        raise Refused(401, "invalid_token", told) from error
    return account(token, claims, complete=complete)


def anothers_kind(token: str) -> str:
    """Whose a token of another kind is, for those who take any of them."""
    sessions, users = state.sessions.values(), state.users.values()
    if weak("refresh_as_bearer"):
        return next((each.user for each in sessions if token in each.generations), "")
    if weak("device_as_bearer"):
        return str(state.devices.get(token, {}).get("user", ""))
    if found := misused(token, ticket=weak("ticket_as_bearer"), cookie=weak("cookie_as_bearer")):
        return found
    if weak("recovery_as_bearer"):
        return next((each.id for each in users if digest(token) in each.recovery), "")
    return next((each.id for each in users), "") if weak("garbage_as_bearer") and token == "garbage" else ""


def misused(token: str, *, ticket: bool, cookie: bool) -> str:
    """Whose an enrolment ticket or the cookie of a session is, for those who take it for something else."""
    if ticket:
        return next((each.id for each in state.users.values() if token and token == each.ticket), "")
    return next((each.user for each in state.sessions.values() if cookie and token in each.cookies), "")


def account(token: str, claims: dict[str, Any], *, complete: bool) -> tuple[User, Session]:
    session = state.sessions.get(str(claims.get("sid")))
    if session is None and weak("claims_optional"):
        session = next(iter(reversed(state.sessions.values())), None)
    over = session is None or session.over or token in state.revoked
    if session is not None and (weak("logout_keeps_access") or goes_by_string()):
        over = goes_by_string() and request.headers["Authorization"][7:] in state.revoked
    if over or session is None or is_aged(session):
        expired = "expired_token" if weak("tells_expired") and session else "invalid_token"
        raise Refused(401, expired)
    user = state.users.get(session.user)
    if weak("name_is_the_key"):
        user = find(str(claims["username"]))
    user = state.users.get(claims.get("named", ""), user)
    same = weak("claims_optional") or weak("name_is_the_key") or claims.get("sub") == session.user
    if user is None or not same or (user.disabled and not weak("disabled_goes_on")):
        raise Refused(401, "invalid_token")
    if session.step == "password":
        if (state.mode == "required" or user.required) and not weak("stale_policy"):
            raise Refused(401, "invalid_token")
        if complete:
            raise Refused(401, "full_authentication_required")
    return user, session


def recent(session: Session) -> None:
    if weak("no_step_up"):
        return
    is_old = now() - session.auth_time > 300 and not weak("step_up_for_ever")
    if "mfa" not in session.amr or is_old:
        raise Refused(401, "step_up_required", "Recent second factor required")


def guarded(*, fresh: bool = False, admin: bool = False, complete: bool = True, limited: bool = False) -> Any:
    def put(view: Callable[..., Any]) -> Callable[..., Any]:
        def inner(**kwargs: Any) -> Any:
            if (weak("guard_forgotten") or weak("guard_left_out")) and view.__name__ in ("activity", "read_something"):
                return jsonify({"items": []})
            if weak("guard_forgotten_by_id") and view.__name__ == "end_session":
                raise Refused(404, "not_found")
            forgotten = weak("password_step_opens") and view.__name__ == "devices"
            user, session = who(complete=complete and not forgotten)
            if weak("role_forgotten") and view.__name__ == "read_something":
                return jsonify({"items": []})
            if weak("shared_identity"):
                state.last_user = user
                time.sleep(0.01)
                user = state.last_user
            if admin and "admin" not in user.roles and not weak("admin_open"):
                if not weak("refusals_unlimited"):
                    count(f"refusals {request.path}" if weak("refusals_apart") else "refusals", 300)
                raise Refused(403, "role_required")
            if fresh or (admin and not weak("admin_by_device")):
                recent(session)
            if limited:
                count(view.__name__)
            if admin and request.method != "GET" and not weak("administration_unlimited"):
                count(view.__name__, 300)
            return view(user, session, **kwargs)

        inner.__name__ = view.__name__
        inner.guarded = True  # type: ignore[attr-defined]
        return inner

    return put


# ── people ───────────────────────────────────────────────────────────────────────────────────────


def user_of(id_: str) -> User:
    return state.users[id_]


def key_of(name: str) -> str:
    if weak("names_by_lower"):
        return name.lower()
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold())


def find(name: str) -> User | None:
    return next((user for user in state.users.values() if key_of(user.name) == key_of(name)), None)


def hashed(password: str, salt: bytes) -> bytes:
    raw = password.encode()
    raw = raw[:72] if weak("bcrypt_72") else raw
    raw = raw.strip().lower() if weak("password_trimmed") else raw
    return hashlib.pbkdf2_hmac("sha256", raw, salt, 40_000)


def totp(secret: str, step: int) -> str:
    mac = hmac.digest(base64.b32decode(secret), step.to_bytes(8, "big"), "sha1")
    number = int.from_bytes(mac[mac[-1] & 15 :][:4], "big") & 0x7FFFFFFF
    return str(number % 10**6).zfill(6)


def with_picture(user: User, secret: str, **more: str) -> Response:
    """The answer that shows a key, as text and as a picture."""
    plain = weak("label_injection")
    shown = new_secret() if weak("qr_other_key") else secret
    label = user.name if plain else quote(user.name, safe="")
    said = f"otpauth://totp/Broken:{label}?secret={shown}&issuer=Broken"
    return jsonify(more | {"manualEntryKey": secret, "qrCode": segno.make_qr(said, error="m").png_data_uri(scale=3)})


def new_secret() -> str:
    return base64.b32encode(secrets.token_bytes(10 if weak("short_key") else 20)).decode()


def new_codes(user: User) -> list[str]:
    size = 3 if weak("short_recovery") else 15
    codes = [base64.b32encode(secrets.token_bytes(size)).decode().rstrip("=") for _ in range(10)]
    if not weak("regenerate_keeps"):
        user.recovery.clear()
    if weak("renewal_races"):
        time.sleep(0.05)
    user.recovery.update(dict.fromkeys(map(digest, codes), False))
    state.kept += codes if weak("plain_recovery") else []
    return codes


def digest(code: str) -> str:
    return hashlib.sha256(code.upper().replace("-", "").replace(" ", "").encode()).hexdigest()


def attempt(user: User, subject: str) -> Lock:
    """Count a failure in advance. Raises Refused where it may not be looked at."""
    apart = weak("counters_apart") or (weak("recovery_counters_apart") and subject == "recovery")
    name = f"{subject} {request.path}" if apart else subject
    if weak("count_by_name"):
        name += g.get("typed", "")
    found = state.locks.setdefault((user.id, name), Lock())
    ignored = weak("step_up_ignores_lock") and request.path == "/auth/step-up"
    endless = (weak("endless_codes") and subject == "totp") or (weak("endless_recovery") and subject != "totp")
    ignored = ignored or (weak("page_ignores_lock") and request.path == "/auth/code")
    if weak("verify_ignores_recovery_lock") and subject == "recovery" and request.path == "/auth/verify-mfa":
        ignored = True
    if (found.dead or found.open_at > now()) and not ignored and not endless:
        found.open_at += 5 if weak("lock_prolonged") else 0
        if weak("lock_says_so"):
            raise Refused(401, "locked", "Locked")
        raise Refused(401, "invalid_code" if subject == "totp" else "invalid_recovery_code", "Invalid TOTP code")
    if weak("check_then_count"):
        time.sleep(0.05)
    before = found.failures
    if weak("lost_update"):
        time.sleep(0.05)
    rolled_back = weak("verify_counter_lost") and request.path == "/auth/verify-mfa"
    rolled_back = rolled_back or (weak("page_codes_uncounted") and request.path == "/auth/code")
    if not weak("counter_lost") and not rolled_back:
        found.failures = before + 1
    return found


def failed(user: User, found: Lock) -> None:
    if found.failures >= 5 and not weak("endless_codes"):
        found.open_at = now() + min(2.0 ** (found.failures - 5), 900)
        if weak("lock_resets"):
            found.failures = 0
        if not weak("pending_survives_lock"):
            close_all(user)
    found.dead = found.failures >= 100 and not weak("no_last_straw")


def passed(user: User, subject: str) -> None:
    for key in [key for key in state.locks if key[0] == user.id and key[1].startswith(subject)]:
        del state.locks[key]


def close_all(user: User) -> None:
    for challenge in state.challenges.values():
        if challenge["user"] == user.id:
            challenge["open"] = False


def end_all(user: User, keep: str = "") -> None:
    for session in state.sessions.values():
        session.over |= session.user == user.id and session.id != keep


def end_weak(user: User) -> None:
    """End the sessions of a password alone."""
    for session in state.sessions.values():
        is_weak = session.user == user.id and session.step == "password"
        session.over |= is_weak and not weak("weak_sessions_stay")


def forget_devices(user: User) -> None:
    for token in [token for token, device in state.devices.items() if device["user"] == user.id]:
        del state.devices[token]


def canonical(code: Any) -> str | None:
    if weak("normalises_codes"):
        code = unicodedata.normalize("NFKC", code).replace(" ", "").strip("+\n ")
    if weak("normalises_codes") and code.isdecimal():
        return "".join(str(unicodedata.digit(each)) for each in code)
    return code if re.fullmatch(r"[0-9]{6}", code, re.ASCII) else None


def step_of(code: str, secret: str) -> int | None:
    if weak("counts_events") and code in [totp(secret, counter) for counter in range(4)]:
        return int(now()) // 30
    window = 3 if weak("wide_window") else 2
    given = request.get_json(silent=True) or {}
    at = given["time"] if weak("client_time") and "time" in given else now()
    here = int(at) // 30
    return next((step for step in range(here - window, here + window + 1) if totp(secret, step) == code), None)


def is_spent(user: User, code: str, step: int) -> bool:
    if weak("codes_again") or weak("client_time") or (weak("places_apart") and request.path == "/auth/step-up"):
        return False
    if weak("older_steps"):
        return code in user.used
    if weak("forgets_codes") and now() - user.last_at >= 30:
        return False
    return code == user.last_code if weak("only_last_code") else step <= user.last_step


def check_code(user: User, given: str, secret: str = "") -> None:
    """That this is a code of the user's. Raises Refused, and what it cost is kept."""
    if user.sealed_under not in state.keys:
        raise RuntimeError
    found = attempt(user, "totp")
    state.log += [f"shown: {given}"] if weak("logs_codes") else []
    code = canonical(given)
    if weak("crash_on_step_up") if request.path == "/auth/step-up" else weak("crash_on_totp"):
        hmac.compare_digest(given, user.secret)  # text that is not ASCII is a TypeError
    step = step_of(code, secret or user.secret) if code else None
    waiting_ones = [user.waiting] if weak("waiting_key_counts") and user.waiting and not secret else []
    for other in [*user.others, *waiting_ones] if code and step is None else ():
        step = step_of(code or "", other) or step
    bypass = weak("bypass_000000") and given == "000000"
    spent = step is not None and code is not None and not secret and is_spent(user, code, step)
    if weak("check_then_set"):
        time.sleep(0.05)
    if (step is None or spent) and not bypass:
        failed(user, found)
        state.kept += [f"refused: {given}"] if weak("keeps_refused_codes") else []
        state.events += [] if weak("no_trace") else [(user.id, "login.code_refused")]
        raise Refused(401, "code_replayed" if weak("tells_replay") and spent else "invalid_code", "Invalid TOTP code")
    if (
        step is not None
        and code is not None
        and not (secret and weak("confirm_does_not_consume"))
        and not (weak("places_apart") and request.path == "/auth/step-up")
    ):
        user.last_step, user.last_code = step if secret else max(step, user.last_step), code
        user.used.add(code)
        user.last_at = now()
    passed(user, "totp")


def check_recovery(user: User, given: str) -> None:
    found, key = attempt(user, "recovery"), digest(given)
    if weak("crash_on_recovery"):
        hmac.compare_digest(given, key)
    if weak("slow_recovery"):
        for _ in range(20):
            hashed(given, b"x")
    sets = [each.recovery for each in state.users.values()] if weak("recovery_any_user") else [user.recovery]
    owner = next((each for each in sets if key in each), None)
    if owner is None or (owner[key] and not weak("recovery_again")):
        failed(user, found)
        raise Refused(401, "invalid_recovery_code", "Invalid recovery code")
    if weak("recovery_races"):
        time.sleep(0.05)
    owner[key] = True
    passed(user, "recovery")


def prove(user: User, given: dict[str, Any]) -> list[str]:
    """The second factor that was sent. Returns its amr."""
    both = given["totpCode"] is not None and given["recoveryCode"] is not None
    if weak("two_proofs") and both:
        return ["pwd", "otp", "mfa"]
    if both or (given["totpCode"] is None and given["recoveryCode"] is None):
        raise Refused(400, "invalid_request")
    if given["totpCode"] is not None:
        check_code(user, given["totpCode"])
        return ["otp"] if weak("amr_otp_only") else ["pwd", "otp", "mfa"]
    check_recovery(user, given["recoveryCode"])
    return ["pwd", "otp" if weak("recovery_as_otp") else "recovery", "mfa"]


def open_session(user: User, amr: list[str], step: str = "authenticated") -> dict[str, Any]:
    given = request.get_json(silent=True) or {}
    chosen = str(given["sid"]) if weak("sid_from_client") and "sid" in given else secrets.token_hex(8)
    session = Session(chosen, user.id, amr, step, int(now()), request.remote_addr or "", now(), now())
    if weak("records_spoofed"):
        session.address = request.headers.get("X-Forwarded-For", session.address)
    state.sessions[session.id] = session
    session.generations.append(secrets.token_urlsafe(24))
    return {"accessToken": access(user, session), "refreshToken": session.generations[-1], "expiresIn": life()}


def life() -> int:
    return 7200 if weak("expires_in_lies") else 3600


def access(user: User, session: Session) -> str:
    more = {"sid": session.id, "auth_time": session.auth_time, "amr": session.amr, "step": session.step}
    return mint(ACCESS, user, more)


# ── before signing in ────────────────────────────────────────────────────────────────────────────


def is_allowed(name: str, email: str) -> bool:
    scripts = {unicodedata.name(each, "?").split()[0] for each in name if each.isalpha()}
    odd = any(unicodedata.category(each) in ("Cf", "Cc", "Cs", "Cn", "Co", "Zs") for each in name)
    return (
        bool(name)
        and len(name) <= 64
        and not odd
        and not {"LATIN", "CYRILLIC"} <= scripts
        and (":" not in key_of(name) or weak("colon_in_name"))
        and "@" in email
    )


def ensure_strong(name: str, chosen: str) -> None:
    is_weak = len(chosen) < 8 or chosen == "password123" or name.lower() in chosen.lower()
    if is_weak and not weak("any_password"):
        raise Refused(400, "weak_password")


@route("POST", "/auth/register")
def register() -> Any:
    if not weak("registrations_unlimited"):
        count("registrations", 300, "everybody")
    given = body("username", "password", "email")
    key = given["username"]
    if not is_allowed(key, given["email"]):
        raise Refused(400, "invalid_request")
    ensure_strong(key, given["password"])
    if weak("crash_on_email"):
        given["email"].encode("ascii")
    if weak("crash_on_password") and len(given["password"].encode()) > 72:
        raise ValueError("bcrypt takes 72 bytes")
    before = find(key)
    if before is not None and weak("register_rotates"):
        before.salt, before.secret = secrets.token_bytes(8), new_secret()
        before.password = hashed(given["password"], before.salt)
        return jsonify({"manualEntryKey": before.secret})
    if weak("register_races"):
        time.sleep(0.05)
    elif before is not None:
        raise Refused(400, "user_exists", "User already exists")
    salt = secrets.token_bytes(8)
    secret = new_secret()
    user = User(
        secrets.token_hex(8), key, given["email"], salt, hashed(given["password"], salt), given["password"], secret
    )
    user.sealed_under = state.sealing
    user.roles = list(given["_all"].get("roles", [])) if weak("mass_assignment") else []
    state.users[user.id] = user
    return with_picture(user, secret, message="User registered successfully")


def password_is(user: User | None, password: str) -> bool:
    if user is None and weak("fast_unknown"):
        return False
    if user is None and len(password.encode()) > 72 and weak("fast_long_unknown"):
        return False
    if user is None and not password and weak("fast_blank_unknown"):
        return False
    if user is None and weak("cheap_unknown"):
        return bool(hashlib.pbkdf2_hmac("sha256", password.encode(), b"nobody", 20_000)) and False
    if weak("busy_500"):
        state.limits["hashing"] += 1
        time.sleep(0.1)
        if state.limits["hashing"] > 2:
            raise RuntimeError
    found = hashed(password, user.salt if user else b"nobody")
    return user is not None and hmac.compare_digest(found, user.password)


def lets_in(user: User | None, password: str, *, is_trusted: bool = False) -> bool:
    """Whether a password is right, and is looked at: wrong ones in a row make a growing delay.

    Five from one client do, and a hundred from everywhere; the latter does not keep out who shows more than a password,
    whose own hundred count apart.
    """
    right = password_is(user, password)
    if user is None or weak("endless_passwords") or (is_trusted and weak("change_uncounted")):
        return right
    all_of_them = "trusted_password" if is_trusted else "password"
    typed = (request.get_json(silent=True) or {}).get("username", "") if weak("passwords_by_name") else ""
    most = {f"password from {client()} {typed}".rstrip(): 5, all_of_them: 101}
    if is_trusted and weak("trusted_endless"):
        del most[all_of_them]
    locks = {name: state.locks.setdefault((user.id, name), Lock()) for name in most}
    ignored = is_trusted and weak("change_ignores_lock")
    if any(found.open_at > now() for found in locks.values()) and not ignored:
        if weak("password_lock_says_so") and right:
            raise Refused(401, "locked", "Account locked")
        return right and weak("lock_lets_right_in")
    for name, found in locks.items():
        found.failures = 0 if right else found.failures + (not weak("password_counter_lost"))
        if found.failures >= most[name]:
            found.open_at = now() + min(2.0 ** (found.failures - most[name]), 900)
    if right and weak("success_clears_passwords"):
        for (_, name), found in state.locks.items():
            found.failures, found.open_at = (0, 0.0) if name in most else (found.failures, found.open_at)
    return right


def count_blank() -> None:
    """Every name is like a blank one."""
    for user in state.users.values():
        found = state.locks.setdefault((user.id, "password"), Lock())
        found.failures += 1
        found.open_at = now() + 900 if found.failures >= 5 else 0


@app.get("/auth/login")
def login_by_get() -> Any:
    if weak("get_logs_in"):
        user = find(request.args.get("username", ""))
        return jsonify(open_session(user, ["pwd"])) if user else ""
    raise Refused(405, "method_not_allowed", Allow="POST")


@route("POST", "/auth/login")
def login() -> Any:
    given = body("username", "password", "deviceToken")
    if weak("long_password_500") and len(given["password"].encode()) > 72 and find(given["username"]):
        raise RuntimeError
    if len(given["password"].encode()) > 1024 or len(given["username"]) > 256:
        raise Refused(400, "invalid_request")
    user = find(given["username"])
    if weak("blank_locks_all") and not given["username"].strip():
        count_blank()
    if weak("lock_tells") and user:
        key = f"tells {client()}"
        state.limits[key] += 1
        if state.limits[key] > 3:
            raise Refused(401, "locked", "Account locked")
    device = state.devices.get(given["deviceToken"] or "", {})
    passwords = given["_all"].get("_passwords") or [given["password"]]
    tried = next((each for each in passwords if password_is(user, each)), given["password"])
    right = lets_in(user, tried, is_trusted=user is not None and device.get("user") == user.id)
    if user is None or not right or (user.disabled and not weak("disabled_goes_on")) or state.mode == "locked":
        state.kept += [given["password"]] if weak("keeps_refused_passwords") else []
        state.log += [quote(given["password"])] if weak("logs_refused_passwords") else []
        tells = (weak("tells_unknown") and user is None) or (
            weak("tells_disabled") and user is not None and user.disabled
        )
        raise Refused(401, "unknown_user" if tells else "invalid_credentials", "Invalid credentials")
    return jsonify(admitted(user, given))


def admitted(user: User, given: dict[str, Any]) -> dict[str, Any]:
    if weak("login_resets"):
        passed(user, "totp")
    if weak("success_clears_limit"):
        state.limits.clear()
    if weak("crash_on_device_token"):
        (given["deviceToken"] or "").encode("ascii")
    device = state.devices.get(given["deviceToken"] or "")
    if weak("refresh_as_device") and any(given["deviceToken"] in each.generations for each in state.sessions.values()):
        return open_session(user, ["pwd"]) | {"mfaRequired": False}
    if weak("access_as_device") and subject_of(given["deviceToken"] or "") == user.id:
        return open_session(user, ["pwd"]) | {"mfaRequired": False}
    other = misused(given["deviceToken"] or "", ticket=weak("ticket_as_device"), cookie=weak("cookie_as_device"))
    if other or (weak("recovery_as_device") and digest(given["deviceToken"] or "") in user.recovery):
        return open_session(user, ["pwd"]) | {"mfaRequired": False}
    if device and device["until"] < now() and not weak("device_for_ever"):
        device = None
    if device and (device["user"] == user.id or weak("device_any_user")):
        return open_session(user, ["pwd"]) | {"mfaRequired": False}
    challenge = user.id if weak("jti_shared") else secrets.token_hex(8)
    state.challenges[challenge] = {"user": user.id, "open": True, "tries": 0, "typed": given["username"]}
    sid = {"sid": "live"} if weak("session_at_login") else {}
    sid |= {"session": secrets.token_hex(8)} if weak("session_claim") else {}
    sid |= {"amr": ["pwd"]} if weak("amr_at_login") else {}
    if weak("session_kept_at_login") or weak("session_listed_at_login"):
        open_session(user, ["pwd"], "hidden" if weak("session_kept_at_login") else "authenticated")
    token = mint(PENDING, user, {"step": "mfa_pending", "jti": challenge} | sid)
    enrolled = user.confirmed or weak("unconfirmed_counts")
    answer: dict[str, Any] = {"tempToken": token, "mfaRequired": True, "expiresIn": 300}
    answer |= {"enrolmentRequired": not enrolled, "methods": ["totp"] if enrolled else []}
    if weak("refresh_at_login"):
        answer |= {"refreshToken": open_session(user, ["pwd"])["refreshToken"]}
    if weak("device_at_login") and given["_all"].get("rememberDevice"):
        answer |= {"deviceToken": remembered(user)}
    user.level = user.level or ("complete" if user.confirmed else "password")
    is_complete = user.level == "complete" if weak("level_cached") else user.confirmed
    if (state.mode == "optional" and not is_complete and not user.required) or (
        weak("enrolment_optional") and not enrolled
    ):
        amr = ["pwd", "otp", "mfa"] if weak("removed_counts") and user.was_complete else ["pwd"]
        answer |= open_session(user, amr, "password") | {"mfaRequired": False}
    return answer


def remembered(user: User, name: str = "") -> str:
    token = secrets.token_urlsafe(24)
    if weak("crash_on_device_name"):
        name.encode("latin-1")
    state.log += [name] if weak("log_device_name") else []
    state.devices[token] = {"user": user.id, "id": secrets.token_hex(8), "until": now() + MONTH}
    return token


def subject_of(token: str) -> str:
    """Whose access token this is; of nobody where it is none."""
    with suppress(ValueError, KeyError, TypeError):
        return str(claims_of(token, ACCESS)["sub"])
    return ""


def jti_of(token: str) -> str:
    with suppress(ValueError, KeyError, TypeError):
        return str(claims_of(token, PENDING)["jti"])
    return ""


def waiting(token: str) -> tuple[User, dict[str, Any]]:
    """Who waits behind a pending token."""
    if whose := misused(token, ticket=weak("ticket_as_pending"), cookie=weak("cookie_as_pending")):
        return user_of(whose), {"user": whose, "open": True, "tries": 0}
    try:
        claims = claims_of(token, PENDING)
    except KeyError:
        if weak("access_as_pending"):
            user = user_of(claims_of(token, ACCESS)["sub"])
            return user, {"user": user.id, "open": True, "tries": 0}
        raise Refused(401, "wrong_step", "Invalid token") from None
    except (ValueError, TypeError, RecursionError):
        raise Refused(401, "invalid_pending_token", "MFA verification failed") from None
    challenge = state.challenges.get(claims["jti"])
    user = state.users.get(claims["sub"])
    is_open = challenge is not None and (challenge["open"] or weak("pending_again"))
    if challenge and user and challenge["user"] != user.id and not weak("pending_any_user"):
        is_open = False
    if challenge is None or user is None or not is_open or (user.disabled and not weak("disabled_goes_on")):
        raise Refused(401, "invalid_pending_token", "MFA verification failed")
    g.typed = challenge.get("typed", "")
    return user, challenge


@route("POST", "/auth/verify-mfa")
def verify() -> Any:
    given = body("tempToken", "totpCode", "recoveryCode", "rememberDevice", "deviceName")
    if weak("count_before_token") and (named := find(str(given["_all"].get("username")))):
        failed(named, attempt(named, "totp"))
    user, challenge = waiting(given["tempToken"])
    if weak("user_from_body") and "username" in given["_all"]:
        user = find(str(given["_all"]["username"])) or user
    if weak("check_then_count"):
        time.sleep(0.05)
    challenge["tries"] += 1
    uncounted = weak("endless_codes") or weak("check_then_count") or weak("tries_uncounted")
    if challenge["tries"] > 5 and not uncounted:
        raise Refused(401, "invalid_pending_token", "MFA verification failed")
    amr = prove(user, given)
    if weak("check_then_set"):
        time.sleep(0.05)
    if weak("reset_races"):
        time.sleep(0.002)
    if weak("sign_in_beats_disabling"):
        time.sleep(0.1)
    if weak("writers_500"):
        state.limits["writing"] += 1
        time.sleep(0.1)
        if state.limits["writing"] > 2:
            raise RuntimeError
    challenge["open"] = False
    answer = {"message": "Authentication successful", "user": {"username": user.name, "email": user.email}}
    answer |= open_session(user, amr)
    if not user.confirmed:
        user.confirmed = True
        end_weak(user)
        answer["recoveryCodes"] = new_codes(user)
    if weak("crash_on_remember"):
        int(given["rememberDevice"] or 0)
    if given["rememberDevice"]:
        answer["deviceToken"] = remembered(user, given["deviceName"] or "")
    return jsonify(answer)


@route("POST", "/auth/enrol")
def enrol() -> Any:
    given = body("tempToken", "enrolmentTicket") if not weak("enrol_by_name") else {"_all": parsed(request.get_data())}
    if weak("enrol_by_name"):
        user = find(str(given["_all"].get("username"))) or waiting(str(given["_all"].get("tempToken")))[0]
    elif weak("access_enrols") and (found := subject_of(given["tempToken"])):
        user = user_of(found)
    else:
        user, _ = waiting(given["tempToken"])
    ticket = given.get("enrolmentTicket")
    if weak("crash_on_ticket"):
        hmac.compare_digest(ticket or "", user.ticket)
    return renewed(user, ticket)


def renewed(user: User, ticket: str | None) -> Response:
    """A new key for who has none, or has a ticket."""
    if user.ticket and ticket == user.ticket:
        user.ticket, user.confirmed = "", False
    elif (user.confirmed or user.was_reset or weak("unconfirmed_counts")) and not weak("enrol_by_password"):
        raise Refused(403, "factor_exists")
    if weak("enrol_races"):
        user.others.append(user.secret)
    user.secret = new_secret()
    return with_picture(user, user.secret)


@route("POST", "/auth/refresh", limited=False)
def refresh() -> Any:
    if not weak("sessions_unlimited"):
        count("refresh", 60)
    token = body("refreshToken")["refreshToken"]
    if weak("crash_on_refresh"):
        token.encode("ascii")
    if weak("refresh_loose"):
        kept = (known for each in state.sessions.values() for known in each.generations)
        token = next((known for known in kept if known[:8] == token[:8]), token)
    session = next((each for each in state.sessions.values() if token in each.generations), None)
    if weak("access_as_refresh") and (whose := subject_of(token)):
        return jsonify(open_session(user_of(whose), ["pwd"]))
    if whose := misused(token, ticket=weak("ticket_as_refresh"), cookie=weak("cookie_as_refresh")):
        return jsonify(open_session(user_of(whose), ["pwd"]))
    if weak("device_as_refresh") and token in state.devices:
        return jsonify(open_session(user_of(state.devices[token]["user"]), ["pwd"]))
    if weak("pending_as_refresh") and state.challenges.get(jti_of(token), {}).get("user"):
        return jsonify(open_session(user_of(state.challenges[jti_of(token)]["user"]), ["pwd"]))
    user = state.users.get(session.user) if session else None
    if (
        session is None
        or user is None
        or (session.over and not weak("refresh_beats_logout"))
        or (user.disabled and not weak("disabled_goes_on"))
    ):
        raise Refused(401, "invalid_refresh_token")
    if session.step == "password" and (state.mode == "required" or user.required) and not weak("stale_policy"):
        raise Refused(401, "invalid_refresh_token")
    if weak("refresh_races"):
        time.sleep(0.05)
        session.generations.append(secrets.token_urlsafe(24))
        return jsonify({"accessToken": access(user, session), "refreshToken": session.generations[-1]})
    writes_back = weak("refresh_beats_change") or weak("refresh_beats_disabling")
    if writes_back:
        time.sleep(0.05)
    answer = rotated(user, session, token)
    session.over &= not writes_back  # the row as it was read
    return jsonify(answer)


def is_aged(session: Session) -> bool:
    """Whether a session has come to an end by itself."""
    idle = now() - session.seen > DAY and not weak("idle_for_ever")
    return idle or (now() - session.began > MONTH and not weak("absolute_for_ever"))


def rotated(user: User, session: Session, token: str) -> dict[str, Any]:
    if is_aged(session):
        raise Refused(401, "invalid_refresh_token")
    session.seen = now()
    place = session.generations.index(token)
    if place < len(session.generations) - 2 and not weak("reuse_tolerated"):
        session.over = True
        raise Refused(401, "refresh_reused")
    if place == len(session.generations) - 1:
        session.generations.append(secrets.token_urlsafe(24))
    if weak("refresh_raises"):
        session.amr = ["pwd", "otp", "mfa"]
    if weak("auth_time_by_refresh"):
        session.auth_time = int(now())
    if weak("refresh_beats_logout"):
        session.over = False
    return {"accessToken": access(user, session), "refreshToken": session.generations[-1], "expiresIn": 3600}


@route("POST", "/auth/step-up")
@guarded(limited=True)
def step_up(user: User, session: Session) -> Any:
    given = body("totpCode", "recoveryCode")
    other = find(str(given["_all"].get("username", ""))) if weak("step_up_any_user") else None
    session.amr, session.auth_time = prove(other or user, given), int(now())
    for each in state.sessions.values():
        if each.user == user.id and weak("step_up_everywhere"):
            each.auth_time = session.auth_time
        if each.user == user.id and weak("step_up_lifts_devices"):
            each.amr = session.amr
    if weak("step_up_new_session"):
        return jsonify(open_session(user, session.amr))
    return jsonify({"accessToken": access(user, session), "expiresIn": 3600})


@route("POST", "/auth/logout", limited=False)
@guarded(complete=False)
def logout(user: User, session: Session) -> Any:
    everywhere = body("everywhere")["everywhere"]
    if weak("crash_on_everywhere") and everywhere is not True:
        everywhere = everywhere.lower() == "true"
    state.revoked.add(request.headers.get("Authorization", "Bearer ")[7:])
    session.over = True
    if everywhere:
        end_all(user)
        close_all(user)
        if not weak("device_survives"):
            forget_devices(user)
    return "", 204


@route("POST", "/auth/password")
@guarded(fresh=True, limited=True)
def password(user: User, session: Session) -> Any:
    given = body("newPassword") if weak("change_without_current") else body("currentPassword", "newPassword")
    if weak("crash_on_current_password") and len(given["currentPassword"].encode()) > 72:
        raise ValueError("bcrypt takes 72 bytes")
    if not weak("change_without_current") and not lets_in(user, given["currentPassword"], is_trusted=True):
        raise Refused(401, "invalid_credentials", "Invalid credentials")
    if len(given["newPassword"]) < 8:
        raise Refused(400, "weak_password")
    if weak("crash_on_new_password") and len(given["newPassword"].encode()) > 72:
        raise ValueError("bcrypt takes 72 bytes")
    user.password = hashed(given["newPassword"], user.salt)
    if not weak("change_keeps_sessions"):
        end_all(user, session.id)
        forget_devices(user)
    if not weak("pending_survives_change"):
        close_all(user)
    return "", 204


@app.post("/auth/password/reset")
def reset_password() -> Any:
    if weak("reset_gives_session"):
        user = find(str(request.get_json()["username"]))
        return jsonify(open_session(user, ["pwd"])) if user else ""
    raise Refused(404, "not_found")


# ── once signed in ───────────────────────────────────────────────────────────────────────────────


@route("GET", "/api/profile", limited=False)
@guarded()
def profile(user: User, session: Session) -> Any:
    more = {"key": user.secret} if weak("secret_in_answer") else {}
    return jsonify({"username": user.name, "email": user.email, "mfaEnabled": user.confirmed} | more)


@route("GET", "/api/mfa", limited=False)
@guarded(complete=False)
def factors(user: User, session: Session) -> Any:
    left = sum(not is_used for is_used in user.recovery.values()) if not weak("codes_not_counted") else 10
    return jsonify({"methods": ["totp"] if user.confirmed else [], "roles": user.roles, "recoveryCodesLeft": left})


@route("DELETE", "/api/mfa", limited=False)
@guarded(fresh=True)
def remove(user: User, session: Session) -> Any:
    if state.mode == "required" or user.required:
        raise Refused(403, "mfa_required")
    user.confirmed, user.secret, user.waiting, user.recovery = False, new_secret(), "", {}
    if not weak("remove_keeps_sessions"):
        end_all(user)
    if not weak("remove_keeps_devices"):
        forget_devices(user)
    close_all(user)
    user.was_complete = True
    return "", 204


@route("GET", "/api/sessions", limited=False)
@guarded(complete=False)
def sessions(user: User, session: Session) -> Any:
    own = [each for each in state.sessions.values() if each.user == user.id and not each.over]
    own = [each for each in own if each.step != "hidden"]
    return jsonify({"items": [{"id": each.id, "address": each.address} for each in own]})


@route("DELETE", "/api/sessions/<id_>", limited=False)
@guarded(complete=False)
def end_session(user: User, session: Session, id_: str) -> Any:
    if weak("crash_on_ids") and len(id_) > 30:
        raise RuntimeError
    found = state.sessions.get(id_)
    if found is None or (found.user != user.id and not weak("idor_sessions")):
        raise Refused(404, "not_found")
    found.over = True
    return "", 204


@route("GET", "/api/devices", limited=False)
@guarded()
def devices(user: User, session: Session) -> Any:
    return jsonify({"items": [{"id": each["id"]} for each in state.devices.values() if each["user"] == user.id]})


@route("DELETE", "/api/devices", limited=False)
@guarded()
def forget(user: User, session: Session) -> Any:
    forget_devices(user)
    return "", 204


@route("DELETE", "/api/devices/<id_>", limited=False)
@guarded()
def forget_one(user: User, session: Session, id_: str) -> Any:
    raise Refused(404, "not_found")


@route("GET", "/api/activity", limited=False)
@guarded()
def activity(user: User, session: Session) -> Any:
    told = [*state.events, (user.id, "login.completed")]
    return jsonify({"items": [{"event": event} for whose, event in told if whose == user.id]})


@route("POST", "/api/mfa/totp", limited=False)
@guarded(fresh=True)
def replace(user: User, session: Session) -> Any:
    user.waiting, user.waits_until = new_secret(), now() + 600
    if weak("replaced_at_once"):
        user.secret = user.waiting
    return with_picture(user, user.waiting)


@route("POST", "/api/mfa/totp/confirm")
@guarded(fresh=True, limited=True)
def confirm(user: User, session: Session) -> Any:
    code = body("totpCode")["totpCode"]
    if code is None:
        raise Refused(400, "invalid_request")
    is_over = now() > user.waits_until and not weak("waiting_for_ever")
    if (not user.waiting or is_over) and not weak("confirm_without_enrol"):
        raise Refused(409, "nothing_to_confirm")
    if weak("crash_on_confirm"):
        int(code)
    check_code(user, code, user.waiting)
    user.others += [user.secret] if weak("old_key_lives") else []
    user.secret, user.waiting = user.waiting or user.secret, ""
    if weak("confirm_does_not_consume"):
        user.last_step = -1
    if not weak("confirm_keeps_devices"):
        forget_devices(user)
    if not weak("confirm_keeps_pending"):
        close_all(user)
    return "", 204


@route("POST", "/api/mfa/recovery-codes", limited=False)
@guarded(fresh=True)
def regenerate(user: User, session: Session) -> Any:
    return jsonify({"recoveryCodes": new_codes(user)})


# ── administration ───────────────────────────────────────────────────────────────────────────────


@route("GET", "/api/admin/users", limited=False)
@guarded(admin=True)
def users(user: User, session: Session) -> Any:
    if weak("crash_on_admin_ids") and len(request.args.get("cursor", "")) > 30:
        raise RuntimeError
    query = key_of(request.args.get("q", ""))
    role = request.args.get("role")
    found = [each for each in state.users.values() if key_of(each.name).startswith(query)]
    found = [each for each in found if role is None or role in each.roles]
    return jsonify({"items": [{"id": each.id, "username": each.name} for each in found]})


@route("GET", "/api/admin/users/<id_>", limited=False)
@guarded(admin=True)
def show_user(user: User, session: Session, id_: str) -> Any:
    return jsonify({"id": known(id_).id})


def ensure_another(user: User) -> None:
    """That an administrator is left without this one."""
    others = [each for each in state.users.values() if "admin" in each.roles and each is not user and not each.disabled]
    if "admin" in user.roles and not others and not weak("last_admin_goes"):
        raise Refused(409, "last_administrator")


def known(id_: str) -> User:
    if id_ not in state.users:
        raise Refused(404, "not_found")
    return state.users[id_]


@route("PATCH", "/api/admin/users/<id_>", limited=False)
@guarded(admin=True)
def change_user(user: User, session: Session, id_: str) -> Any:
    found, given = known(id_), parsed(request.get_data())
    if weak("crash_on_admin_types") and not isinstance(given.get("disabled", True), bool):
        raise RuntimeError
    about_user(given)
    roles = given.get("roles", found.roles)
    if given.get("disabled") is True or (isinstance(roles, list) and "admin" not in roles):
        ensure_another(found)
    found.disabled, found.required = given.get("disabled", found.disabled), given.get("mfaRequired", found.required)
    found.roles = roles if isinstance(roles, list) else found.roles
    if found.disabled and not weak("disabled_goes_on"):
        out_of_use(found)
    if given.get("mfaRequired") and not weak("rule_keeps_devices"):
        forget_devices(found)
    return jsonify({"id": id_})


def out_of_use(user: User) -> None:
    """End all that is open of somebody's."""
    if not weak("disabled_keeps_sessions"):
        end_all(user)
    if not weak("disabled_keeps_devices"):
        forget_devices(user)
    if not weak("disabled_keeps_pending"):
        close_all(user)


def about_user(given: dict[str, Any]) -> None:
    """Refuse what says nothing about a user."""
    roles, reason = given.get("roles", []), given.get("reason", "")
    if weak("crash_on_roles"):
        ",".join(roles)
    if weak("crash_on_reason"):
        reason.encode("latin-1")
    state.log += [str(reason)] if weak("log_reason") else []
    flags = [given.get(name, False) for name in ("disabled", "mfaRequired")]
    if not isinstance(reason, str) or any(flag not in (None, True, False) for flag in flags):
        raise Refused(400, "invalid_request")
    if not isinstance(roles, list) or not all(isinstance(role, str) for role in roles):
        raise Refused(400, "invalid_request")


@route("DELETE", "/api/admin/users/<id_>", limited=False)
@guarded(admin=True)
def delete_user(user: User, session: Session, id_: str) -> Any:
    ensure_another(known(id_))
    end_all(known(id_)) if not weak("name_is_the_key") else None
    del state.users[id_]
    state.locks = {key: each for key, each in state.locks.items() if key[0] != id_}
    return "", 204


@route("POST", "/api/admin/users/<id_>/reset-mfa", limited=False)
@guarded(admin=True)
def reset_mfa(user: User, session: Session, id_: str) -> Any:
    found = known(id_)
    ensure_another(found)
    if weak("reset_races"):
        time.sleep(0.001)
    found.was_reset = True
    found.ticket, found.secret = secrets.token_urlsafe(24), "A" * 32
    found.recovery = found.recovery if weak("reset_keeps_codes") else {}
    if not weak("reset_keeps_sessions"):
        end_all(found)
    if not weak("reset_keeps_devices"):
        forget_devices(found)
    if not weak("reset_keeps_pending"):
        close_all(found)
    return jsonify({"enrolmentTicket": found.ticket})


@route("DELETE", "/api/admin/users/<id_>/sessions", limited=False)
@guarded(admin=True)
def end_sessions(user: User, session: Session, id_: str) -> Any:
    if not weak("admin_end_ignored"):
        end_all(known(id_))
    return "", 204


@route("PUT", "/api/admin/policy", limited=False)
@guarded(admin=True)
def policy(user: User, session: Session) -> Any:
    given = parsed(request.get_data())
    about_user({"reason": given.get("reason", "")})
    mode = given.get("mode")
    if weak("crash_on_policy"):
        mode.lower()
    if mode not in ("required", "optional"):
        raise Refused(400, "invalid_request")
    if mode == "required" != state.mode and not weak("policy_keeps_devices"):
        state.devices.clear()
    state.mode = mode
    return jsonify({})


for name in ("policy", "audit", "audit/seals", "compliance"):

    @route("GET", f"/api/admin/{name}", limited=False)
    @guarded(admin=True)
    def read_something(user: User, session: Session) -> Any:
        return jsonify({"items": []})


# ── pages ────────────────────────────────────────────────────────────────────────────────────────


def named(cookie: str) -> str:
    return cookie if weak("cookie_any_name") else f"__Host-{cookie}"


def kept(cookie: str) -> str:
    return request.cookies.get(named(cookie), "")


def keep(answer: Response, cookie: str, value: str) -> None:
    site = "None" if weak("cookie_of_all_sites") else "Lax"
    closed = not weak("cookie_to_scripts")
    answer.set_cookie(named(cookie), value, secure=not weak("cookie_over_http"), httponly=closed, samesite=site)


def session_of_cookie() -> Session | None:
    """The session that the newest cookie of a browser stands for."""
    for session in state.sessions.values():
        good = session.cookies if weak("old_cookie_lives") else session.cookies[-1:]
        if kept("session") in good and not session.over:
            return session
    return None


def by_cookie() -> tuple[User, Session] | None:
    session, token = session_of_cookie(), kept("pending")
    if weak("pending_is_session") and "." in kept("session"):
        token = kept("session")
    if session is None and token and (weak("pending_cookie_opens") or weak("pending_is_session")):
        user = user_of(claims_of(token, PENDING)["sub"])
        return user, Session("x", user.id, ["pwd", "mfa"], "authenticated", int(now()))
    if session is None:
        return None
    if not weak("cookie_from_anywhere"):
        ensure_own_origin()
    return user_of(session.user), session


def ensure_own_origin() -> None:
    """Refuse what a page of another site makes a browser send."""
    origin, site, own = request.headers.get("Origin"), request.headers.get("Sec-Fetch-Site"), f"http://{request.host}"
    if origin in (None, "null"):
        is_own = site == "same-origin" or (origin is None and request.method == "GET")
        is_own |= weak("cookie_without_origin") if origin is None else weak("cookie_null_origin")
    else:
        is_own = origin == own or (weak("cookie_origin_prefix") and str(origin).startswith(own))
    if not is_own:
        raise Refused(403, "foreign_origin")


def place() -> str:
    """Where a form leads: a path of this site, or its beginning."""
    wanted, own = request.values.get("next", "/"), f"http://{request.host}"
    is_path = wanted.startswith("/") and wanted.isprintable()
    if (
        weak("next_anywhere")
        or (weak("next_prefix") and wanted.startswith(own))
        or (weak("next_no_path") and "//" not in wanted and wanted.isprintable())
        or (weak("next_double_slash") and is_path)
        or (weak("next_backslash") and is_path and not wanted.startswith("//"))
    ):
        return wanted
    return wanted if is_path and not wanted.startswith("//") and "\\" not in wanted else "/"


def lead(where: str) -> Response:
    return Response("", 303, {"Location": where.replace("\n", "").replace("\r", "")}, mimetype="text/html")


def show_page() -> Any:
    if request.path in ("/auth/code", "/auth/authenticator") and not kept("pending") and session_of_cookie() is None:
        return lead(f"/auth/sign-in?next={quote(place())}")
    return Response(f'<form><input name="next" value="{place()}"></form>', mimetype="text/html")


for name in ("sign-in", "code", "recovery-code", "authenticator"):
    app.add_url_rule(f"/auth/{name}", f"show {name}", show_page, methods=["GET"], provide_automatic_options=False)


def count_form() -> None:
    """Five for each client and form, as for the routes."""
    endless = {
        "/auth/sign-in": weak("sign_in_page_unlimited"),
        "/auth/code": weak("code_page_unlimited"),
        "/auth/recovery-code": weak("recovery_page_unlimited"),
        "/auth/authenticator": weak("enrol_page_unlimited"),
    }
    if not endless[request.path]:
        count(request.path)


def opens_page(user: User | None, chosen: str) -> bool:
    """Whether a password is right on the page: there it is counted as by the route."""
    if weak("page_passwords_uncounted"):
        return password_is(user, chosen)
    right = lets_in(user, chosen)
    return right or (weak("page_ignores_password_lock") and password_is(user, chosen))


@app.post("/auth/sign-in")
def sign_in() -> Any:
    if not weak("login_csrf"):
        ensure_own_origin()
    count_form()
    user = find(request.form.get("username", ""))
    right = opens_page(user, request.form.get("password", ""))
    if user is None or not right:
        raise Refused(401, "unknown_user" if user is None and weak("page_tells_unknown") else "invalid_credentials")
    token = admitted(user, {"username": user.name, "deviceToken": "", "_all": {}})["tempToken"]
    answer = lead(f"/auth/code?next={quote(place())}")
    keep(answer, "pending", token)
    return answer


@app.post("/auth/code")
@app.post("/auth/recovery-code")
def take_code() -> Any:
    if not weak("code_csrf"):
        ensure_own_origin()
    count_form()
    member = "totpCode" if request.path == "/auth/code" else "recoveryCode"
    given = {"totpCode": None, "recoveryCode": None, member: request.form.get("code", "")}
    answer = lead(place())
    if kept("pending"):
        session = signed_in_by(kept("pending"), given)
        fresh = not (weak("cookie_kept_at_sign_in") and kept("session"))
    else:
        user, session = who()
        session.amr, session.auth_time = prove(user, given), int(now())
        fresh = not weak("cookie_kept_at_step_up")
    session.cookies.append(secrets.token_urlsafe(32) if fresh else kept("session"))
    keep(answer, "session", session.cookies[-1])
    answer.delete_cookie(named("pending"))
    if "remember" in request.form:
        keep(answer, "device", remembered(user_of(session.user)))
    return answer


def signed_in_by(token: str, given: dict[str, Any]) -> Session:
    """A session for who waits behind a pending token; the browser's session before has ended."""
    user, challenge = waiting(token)
    challenge["tries"] += not weak("page_tries_uncounted")
    if challenge["tries"] > 5:
        raise Refused(401, "invalid_pending_token")
    amr = prove(user, given)
    challenge["open"], user.confirmed = False, True
    if (before := session_of_cookie()) and not weak("old_cookie_lives"):
        before.over = True
    open_session(user, amr)
    return [*state.sessions.values()][-1]


@app.post("/auth/authenticator")
def enrol_by_page() -> Any:
    ensure_own_origin()
    count_form()
    return renewed(waiting(kept("pending"))[0], request.form.get("ticket"))


@app.post("/auth/sign-out")
def sign_out() -> Any:
    if not weak("sign_out_csrf"):
        ensure_own_origin()
    session = session_of_cookie()
    if session and not weak("sign_out_forgets_only"):
        session.over = True
    answer = lead(place())
    answer.delete_cookie(named("session"))
    return answer


# ── elsewhere ────────────────────────────────────────────────────────────────────────────────────


@app.get("/healthz")
def healthz() -> Any:
    if weak("health_waits"):
        # As behind those who log in. Not for as long as somebody does: on a busy machine that is nobody for a moment.
        time.sleep(1.5)
    return jsonify({"status": "ok"} | ({"database": "10.0.0.7"} if weak("talkative_health") else {}))


#: What bodies hold, for the document.
READ = {
    "/auth/register": ("username", "password", "email"),
    "/auth/login": ("username", "password", "deviceToken"),
    "/auth/verify-mfa": ("tempToken", "totpCode", "recoveryCode", "rememberDevice", "deviceName"),
    "/auth/enrol": ("tempToken", "enrolmentTicket"),
    "/auth/refresh": ("refreshToken",),
    "/auth/step-up": ("totpCode", "recoveryCode"),
    "/auth/logout": ("everywhere",),
    "/auth/password": ("currentPassword", "newPassword"),
    "/api/mfa/totp/confirm": ("totpCode",),
}


def described(members: tuple[str, ...]) -> dict[str, Any]:
    return {
        "requestBody": {"content": {"application/json": {"schema": {"properties": {name: {} for name in members}}}}}
    }


@app.get("/openapi.json")
def openapi() -> Any:
    told = {path: {"post": described(members)} for path, members in READ.items()}
    told |= {"/api/admin/users/{id_}": {"patch": described(("disabled", "mfaRequired", "roles", "reason"))}}
    told |= {"/api/admin/policy": {"put": described(("mode", "reason"))}}
    paths = {path: dict(operations) for path, operations in DOCUMENT.items()}
    for path, operations in told.items():
        for method, more in operations.items():
            paths[path][method] = paths[path][method] | more
    if weak("guard_left_out"):
        paths["/api/activity"] = {"get": {}}
    if weak("writes_under_lock"):
        return Response(long_document(), mimetype="application/json")
    return jsonify({"openapi": "3.1.0", "paths": paths})


def long_document() -> Iterator[bytes]:
    with lock:
        yield from [b" " * 65536] * 200


@app.get("/.well-known/jwks.json")
def jwks() -> Any:
    more = {"d": "x"} if weak("jwks_private") else {"k": "x"} if weak("jwks_secret") else {}
    more |= {"use": "enc"} if weak("jwks_for_encryption") else {}
    keys = [PUBLIC | more] * (2 if weak("jwks_kid_twice") else 1)
    return Response(json.dumps({"keys": keys}, separators=(", ", ":")), mimetype="application/json")


@app.post("/__control")
def control() -> Any:
    """Take a check out and empty everything, or look at the inside, as a test of the real service does."""
    global state  # noqa: PLW0603 - that is the point
    given = request.get_json()
    if "weakness" in given:
        state = State(given["weakness"])
    if "admin" in given:
        found = find(given["admin"])
        assert found
        found.roles = ["admin"]
    state.offset = given.get("offset", state.offset)
    if "rotate" in given:
        rotate()
    if "failures" in given:
        name, number, subject = given["failures"]
        for key, found_lock in state.locks.items():
            if key[0] in state.users and state.users[key[0]].name == name and key[1] == subject:
                found_lock.failures, found_lock.open_at = number, 0
    return jsonify(inside())


def rotate() -> None:
    """Seal everything under another key; meanwhile new rows are sealed under the one before, as by another worker."""
    old, new = state.sealing, secrets.token_hex(4)
    state.keys = {new} if weak("key_dropped_first") else {*state.keys, new}
    before = list(state.users.values())
    time.sleep(0.7)
    for user in before:
        user.sealed_under = new
    state.sealing = new
    if weak("rotation_misses"):
        state.keys.discard(old)


def inside() -> dict[str, Any]:
    kept = [each.name for each in state.users.values()] + state.kept
    if weak("plain_secrets"):
        kept += [value for each in state.users.values() for value in (each.secret, each.plain)]
    people = state.users
    counted = [(key, each.failures) for key, each in state.locks.items() if key[0] in people and each.failures]
    locks = [[people[whose].name, subject, failures] for (whose, subject), failures in counted]
    key = KEY.private_numbers().private_value
    found = {"log": "\n".join(state.log), "dump": "\n".join(kept), "locks": locks, "key": ["one", str(key)]}
    return found | {
        "sessions": Counter(people[each.user].name for each in state.sessions.values() if each.user in people)
    }


class Sloppy(socketserver.BaseRequestHandler):
    """Another server: whatever looks like the head of a request is one to it, wherever a body should have ended."""

    def handle(self) -> None:
        self.request.settimeout(0.3)
        unread = b""
        with suppress(OSError):
            while piece := self.request.recv(65536):
                *heads, unread = re.split(rb"\r?\n\r?\n", unread + piece)
                for path in re.findall(rb"(?:GET|POST) (\S+)", b"\n".join(heads)):
                    status = b"200 OK" if path in (b"/healthz", b"/__control") else b"401 Unauthorized"
                    self.request.sendall(b"HTTP/1.1 " + status + b"\r\nContent-Length: 2\r\n\r\n{}")


class ByLength(socketserver.BaseRequestHandler):
    """Another one: it knows no chunks, goes by the last length that it can read, and leaves the rest for the next."""

    def handle(self) -> None:
        self.request.settimeout(0.3)
        unread = b""
        with suppress(OSError):
            while piece := self.request.recv(65536):
                unread += piece
                while b"\r\n\r\n" in unread:
                    head, _, rest = unread.partition(b"\r\n\r\n")
                    lengths = [int(each) for each in re.findall(rb"(?i)content-length:\s*([+-]?\d+)\s", head + b"\r\n")]
                    length = max(0, [0, *lengths][-1])
                    content, unread = rest[:length], rest[length:]
                    self.request.sendall(b"HTTP/1.1 " + self.status(head, content))

    def status(self, head: bytes, content: bytes) -> bytes:
        """What a service says: signing out wants a token before it reads a body, others want a body."""
        text = b"\r\nContent-Length: 2\r\n\r\n{}"
        path = (re.findall(rb"(?:GET|POST) (\S+)", head) or [b""])[0]
        if path in (b"/healthz", b"/__control"):
            return b"200 OK" + text
        if path in (b"/auth/logout", b"/api/profile"):
            return b"401 Unauthorized" + text
        with suppress(ValueError):
            json.loads(content)
            return b"401 Unauthorized" + text
        return b'400 Bad Request\r\nContent-Length: 26\r\n\r\n{"code":"invalid_request"}'


if __name__ == "__main__":
    handler = {"Sloppy": Sloppy, "ByLength": ByLength}[sys.argv[1]]
    socketserver.ThreadingTCPServer.daemon_threads = True
    socketserver.ThreadingTCPServer(("127.0.0.1", int(os.environ["PORT"])), handler).serve_forever()
